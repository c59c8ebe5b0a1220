"""The end is bounded in real time: whatever hangs, the process is gone and says why."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import trio

from klagg_trio.core.errors import StoreError
from klagg_trio.store.database import Database

from .app.stage import stage

pytestmark = pytest.mark.real

HANGS = """
import sys, threading, time
from klagg_trio.watchdog import Watchdog
watchdog = Watchdog(0.3)
watchdog.begin()
watchdog.begin()
if sys.argv[1] == "ends":
    watchdog.ended()
    time.sleep(0.6)
else:
    threading.Lock().acquire() and threading.Event().wait(60)
"""


@pytest.mark.parametrize(("how", "code"), [("hangs", 74), ("ends", 0)])
def test_what_hangs_is_ended(how, code):
    """Whoever has not ended by then is ended with the code of a disk fault; others are let be."""
    began_s = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", HANGS, how], capture_output=True, text=True, timeout=30, check=False
    )
    assert ran.returncode == code
    assert time.monotonic() - began_s < 20
    assert ("the disk does not answer" in ran.stderr) == (code == 74)


async def test_disk_that_refuses_to_the_end_is_told(autojump_clock, tmp_path, monkeypatch):
    """The disk takes nothing any more and queues are full: the stop is in time, and an error."""
    commit = Database.commit
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012
        async with stage(tmp_path) as (it, nursery):
            await it.start(nursery, inbox_max=16, writer_queue_max=16)
            await it.minutes(1)

            def refuse(self, *args):
                raise StoreError("the disk is full; make room")

            monkeypatch.setattr(Database, "commit", refuse)
            await trio.sleep(90)
            began_s = trio.current_time()
            it.app = None
            it._stop.set()
            await it._ended.wait()
            monkeypatch.setattr(Database, "commit", commit)
            assert trio.current_time() - began_s <= 10
            await trio.sleep(1)
    errors = list(leaves(caught.value))
    assert any("did not take everything" in str(error) for error in errors), errors


def leaves(error):
    """Return the single errors of a group."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
    else:
        yield error
