"""A bound on the end of the program, in real time, whatever hangs.

Theory of operation
-------------------
The end of a run is a wave with a deadline on Trio's clock. That bounds every wait of ours, but not
a system call: a disk that is dead leaves the store's thread in the middle of a write, which cannot
be cancelled, and nobody can leave before it. So a thread of its own, which needs neither the event
loop nor the disk, looks at a clock that no step moves. If the end has not come by then, it says so
and ends the process.

What is lost by that is what had not been stored anyway: the next start takes it up from the
exchange, as after a crash.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Final

from klagg_trio.core.errors import StoreError

LIMIT_S: Final = 10.0
"""Real seconds for an end. In life it takes a tenth of one."""


class Watchdog:
    """Ends the process unless it is told in time that the end has come."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        """Wait for `begin`."""
        self._limit_s = limit_s
        self._ended = threading.Event()
        self._begun = False

    def begin(self) -> None:
        """Give the program `limit_s` from now to end. Again, nothing changes."""
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._wait, name="watchdog", daemon=True).start()

    def ended(self) -> None:
        """Take note that all is done."""
        self._ended.set()

    def _wait(self) -> None:
        if self._ended.wait(self._limit_s):
            return
        text = (
            f"klagg: not stopped within {self._limit_s:.0f} s: the disk does not answer; what is "
            "not stored yet is fetched anew at the next start; check the disk\n"
        )
        with contextlib.suppress(OSError):
            os.set_blocking(2, False)  # nor is this to wait for whoever reads it
            os.write(2, text.encode())
        os._exit(StoreError.exit_code)
