"""Real processes and real signals: stop and go on, kill and start again."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import pytest

from klagg_trio.store.verify import verify

pytestmark = [pytest.mark.real, pytest.mark.slow]

KLAGG = [sys.executable, "-m", "klagg_trio"]


@contextmanager
def process(*arguments):
    """Start klagg; kill it in the end, whatever happens."""
    started = subprocess.Popen(
        [*KLAGG, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.communicate()


def wait_for(reached, what, limit_s=60.0):
    """Look until something is so. Real processes cannot be waited for in any other way."""
    end_s = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < end_s, f"gave up waiting for {what}"
        os.sched_yield()
        select_nothing(0.05)


def select_nothing(seconds):
    """Let some time pass."""
    import select

    select.select([], [], [], seconds)


def last_tick(data_dir):
    """Return the last tick in the database, or 0."""
    try:
        uri = f"file:{data_dir / 'klagg.db'}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            row = connection.execute("SELECT value FROM meta WHERE key = 'last_tick'").fetchone()
    except sqlite3.Error:
        return 0
    return int(row[0]) if row else 0


def test_stopped_for_ten_minutes_and_continued(tmp_path):
    """SIGSTOP for ten simulated minutes, SIGCONT: every minute is there, and right."""
    data_dir = tmp_path / "data"
    arguments = ["--minutes", 20, "--speed", 60, "--headless", "--json", "--data-dir", data_dir]
    with process("demo", *arguments) as demo:
        wait_for(lambda: (data_dir / "klagg.db").exists(), "the database")
        wait_for(lambda: last_tick(data_dir), "the backfill")
        first_ms = last_tick(data_dir)
        wait_for(lambda: last_tick(data_dir) >= first_ms + 3 * 60_000, "three minutes")
        os.kill(demo.pid, signal.SIGSTOP)
        select_nothing(10.0)
        os.kill(demo.pid, signal.SIGCONT)
        output, errors = demo.communicate(timeout=120)
    summary = json.loads(output)
    # The judge knows nothing of this stop: the minutes in doubt are hidden ones to it.
    assert demo.returncode in (0, 3), (summary, errors)
    assert summary["announced_wrong"] == summary["missing_expected"] == 0
    assert summary["holes"] == 0
    assert summary["differing_bars"] == 0
    assert summary["suspect_bars"] == 0
    assert summary["repaired"] >= 9 * 45
    connection = sqlite3.connect(data_dir / "klagg.db")
    resumed = connection.execute("SELECT text FROM events WHERE kind = 'resumed'").fetchall()
    connection.close()
    assert resumed
    assert verify(data_dir / "klagg.db") == []


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_a_random_moment(tmp_path, seed):
    """kill -9: what was sealed is there, nothing twice, no hole; the database is whole."""
    data_dir = tmp_path / "data"
    arguments = ["--minutes", 60, "--speed", 60, "--headless", "--data-dir", data_dir]
    with process("demo", *arguments, "--seed", seed) as demo:
        wait_for(lambda: last_tick(data_dir), "the backfill")
        first_ms = last_tick(data_dir)
        wait_for(lambda: last_tick(data_dir) > first_ms, "the first tick")
        select_nothing(random.Random(seed).uniform(0.0, 3.0))
        os.kill(demo.pid, signal.SIGKILL)
        demo.wait(10)
    tick_ms = last_tick(data_dir)
    assert tick_ms > first_ms
    assert verify(data_dir / "klagg.db") == []
    connection = sqlite3.connect(data_dir / "klagg.db")
    newest = connection.execute(
        "SELECT symbol, max(close_time) + 1 FROM klines WHERE interval = '1m' GROUP BY symbol"
    ).fetchall()
    connection.close()
    assert {end_ms for _, end_ms in newest} == {tick_ms}


DEAD_DISK = """
import sys, threading, time
from klagg_trio.store.database import Database
commit, calls = Database.commit, []
def hang(self, *args, **more):
    calls.append(1)
    if len(calls) > 2:
        print("hangs", file=sys.stderr, flush=True)
        threading.Event().wait(600)
    return commit(self, *args, **more)
Database.commit = hang
from klagg_trio.cli import main
main()
"""


def test_disk_that_never_answers_does_not_keep_klagg(tmp_path):
    """A write that never returns: SIGTERM ends klagg in ten seconds all the same, with 74."""
    with process("sim", "--symbols", 3, "--rest-port", 0, "--ws-port", 0, "--json") as sim:
        urls = json.loads(sim.stdout.readline())
        rest, feed = urls["rest_url"], urls["ws_url"]
        folder = ["--data-dir", str(tmp_path / "data"), "--rest-url", rest]
        subprocess.run([*KLAGG, "backfill", "--since", "0d", *folder], check=True, timeout=60)
        run = subprocess.Popen(
            [sys.executable, "-c", DEAD_DISK, "run", "--headless", *folder, "--ws-url", feed],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            while "hangs" not in run.stderr.readline():
                assert run.poll() is None
            began_s = time.monotonic()
            run.terminate()
            _, errors = run.communicate(timeout=30)
        finally:
            run.kill()
    assert run.returncode == 74
    assert time.monotonic() - began_s < 12
    assert "the disk does not answer" in errors
