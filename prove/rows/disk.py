"""What a disk does: full, failing, slow, read-only, locked, damaged.

Errors of single system calls are injected by strace into the running process, on its own files
only, over the end of a minute; what strace wrote tells that they happened. A full and a read-only
disk are a tmpfs. Damage is done to the files of a klagg that does not run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import resource
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from prove import judge
from prove.chain import Scene, scene, until_next_minute_s
from prove.process import Process, pause, process, wait_for
from prove.row import Outcome, Row, Skipped, check, needs

FAULT_S = 9.0
"""How long a fault lasts. It begins a few seconds before a minute ends."""

BUSY_S = 30.0
BEFORE_S = 3.0
TMPFS_MB = 24
EXIT_DAMAGED, EXIT_DISK = 65, 74

Kind = Callable[[Scene, random.Random, Outcome], None]


# -- Errors of system calls ------------------------------------------------------------------------


def injected(
    calls: str,
    fault: str,
    files: tuple[str, ...],
    made: Scene,
    rng: random.Random,
    outcome: Outcome,
) -> None:
    """Let system calls on some of klagg's files fail while a minute ends."""
    strace = needs("strace")
    with made.running() as klagg:
        made.wait_live(klagg)
        pause(until_next_minute_s(BEFORE_S))
        seen = judge.sealed(made.database)
        trace = made.folder / "strace.txt"
        paths = [word for name in files for word in ("-P", str(made.data / name))]
        command = [strace, "-f", "-o", str(trace), "-e", f"trace={calls}"]
        command += ["-e", f"inject={calls}:{fault}", *paths, "-p", str(klagg.pid)]
        with attached(command):
            pause(FAULT_S)
        # A delay is told by itself, an error by its mark.
        count = sum(
            "INJECTED" in line or "DELAYED" in line
            for line in trace.read_text(errors="replace").splitlines()
        )
        check(count > 0, f"strace has injected nothing: {' '.join(command)}")
        outcome.measure("errors injected", count)
        after_the_fault(made, klagg, seen, outcome)


@contextmanager
def attached(command: list[str]) -> Iterator[None]:
    """Trace a process for a while."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            pause(0.3)
            if tracer.poll() is not None:
                raise Skipped(f"strace cannot attach here: {(tracer.stderr.read() or '').strip()}")
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                tracer.send_signal(signal.SIGINT)
            tracer.wait(20)


def after_the_fault(
    made: Scene, klagg: Process, seen: dict[judge.Key, judge.Bar], outcome: Outcome
) -> None:
    """The disk is well again: klagg goes on, or has said why not and goes on after a start."""
    pause(1.0)
    if not klagg.alive:
        check(klagg.popen.returncode == EXIT_DISK, f"exit {klagg.popen.returncode}")
        klagg.check_quiet()
        outcome.notes.append("klagg ended with 74")
        with made.running("again") as again:
            made.wait_live(again)
            made.settle(again)
    else:
        made.settle(klagg)
        klagg.check_quiet()
    judge.check_kept(seen, judge.sealed(made.database))
    outcome.cases += 1


# -- A disk that is full, read-only, or held -------------------------------------------------------


@contextmanager
def tmpfs(made: Scene) -> Iterator[Path]:
    """Put the data directory on a small disk of its own."""
    if os.geteuid() != 0:
        raise Skipped("needs root to mount a tmpfs")
    mount = needs("mount")
    small = made.folder / "small"
    small.mkdir()
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={TMPFS_MB}m", "tmpfs", str(small)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Skipped(f"cannot mount a tmpfs: {done.stderr.strip()}")
    try:
        moved = small / "data"
        os.mkdir(moved)
        for each in made.data.iterdir():
            (moved / each.name).write_bytes(each.read_bytes())
        made.data = moved
        yield small
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


def full(seconds: float, made: Scene, rng: random.Random, outcome: Outcome) -> None:
    """Fill the disk to the last byte over the end of a minute, then make room."""
    with tmpfs(made) as small, made.running() as klagg:
        made.wait_live(klagg)
        pause(until_next_minute_s(BEFORE_S))
        seen = judge.sealed(made.database)
        ballast = small / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(4_096))
                file.flush()
        check(os.statvfs(small).f_bavail == 0, "the disk is not full")
        pause(seconds)
        told = "disk: " in klagg.text or not klagg.alive
        ballast.unlink()
        check(told, f"it does not say that the disk is full\n{klagg.tail()}")
        after_the_fault(made, klagg, seen, outcome)


def read_only(made: Scene, rng: random.Random, outcome: Outcome) -> None:
    """A disk that can only be read: klagg does not start, says so, and leaves it alone."""
    with tmpfs(made) as small:
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        before = digests(made)
        for number in range(2):
            with process(made.folder, f"run-{number}", made.run_arguments()) as klagg:
                code = klagg.wait(60)
            check(code == EXIT_DISK, f"exit {code}\n{klagg.tail()}")
            klagg.check_quiet()
        check(digests(made) == before, "a file has changed on a read-only disk")
        subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
        with made.running("again") as again:
            made.wait_live(again)
            made.settle(again)
        outcome.cases += 1


def file_size_limit(made: Scene, rng: random.Random, outcome: Outcome) -> None:
    """No file may grow (RLIMIT_FSIZE) over the end of a minute."""
    with made.running() as klagg:
        made.wait_live(klagg)
        pause(until_next_minute_s(BEFORE_S))
        seen = judge.sealed(made.database)
        wal = made.data / "klagg.db-wal"
        size = wal.stat().st_size if wal.exists() else 0
        _, hard = resource.prlimit(klagg.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(klagg.pid, resource.RLIMIT_FSIZE, (size // 2, hard))
        pause(FAULT_S)
        if klagg.alive:
            resource.prlimit(klagg.pid, resource.RLIMIT_FSIZE, (hard, hard))
        after_the_fault(made, klagg, seen, outcome)


def no_descriptors(made: Scene, rng: random.Random, outcome: Outcome) -> None:
    """No further file can be opened (EMFILE) over the end of a minute."""
    with made.running() as klagg:
        made.wait_live(klagg)
        pause(until_next_minute_s(BEFORE_S))
        seen = judge.sealed(made.database)
        used = max(int(name) for name in os.listdir(f"/proc/{klagg.pid}/fd")) + 1
        _, hard = resource.prlimit(klagg.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(klagg.pid, resource.RLIMIT_NOFILE, (used, hard))
        pause(FAULT_S)
        if klagg.alive:
            resource.prlimit(klagg.pid, resource.RLIMIT_NOFILE, (hard, hard))
        after_the_fault(made, klagg, seen, outcome)


def busy(lock: str, made: Scene, rng: random.Random, outcome: Outcome) -> None:
    """Another program holds the database for half a minute, over the end of one."""
    with made.running() as klagg:
        made.wait_live(klagg)
        pause(until_next_minute_s(BEFORE_S))
        seen = judge.sealed(made.database)
        with closing(sqlite3.connect(made.database, isolation_level=None, timeout=20)) as other:
            other.execute(lock)
            if lock.startswith("BEGIN DEFERRED"):
                other.execute("SELECT count(*) FROM klines").fetchone()
            pause(BUSY_S)
            other.execute("ROLLBACK")
        check("Traceback" not in klagg.text, klagg.tail(40))
        if "IMMEDIATE" in lock:
            check("disk: " not in klagg.text, f"it is no fault of the disk\n{klagg.tail()}")
        after_the_fault(made, klagg, seen, outcome)


# -- Damage ----------------------------------------------------------------------------------------


def damaged(where: str, made: Scene, rng: random.Random, outcome: Outcome) -> None:
    """Damage the files of a klagg that was killed, then start: found, told, never written over;
    or healed, with nothing missing."""
    with made.running() as klagg:
        made.wait_live(klagg)
        pause(until_next_minute_s(-1.5))
    damage(made, where, rng)
    before = digests(made)
    with made.running("after") as after:
        ended = wait_for(
            lambda: not after.alive or "good" in after.text, "a word on the damage", 120
        )
        check(ended, "no word")
        if after.alive:
            made.settle(after)
            outcome.notes.append(f"{where}: healed")
        else:
            code = after.popen.returncode
            check(code in (EXIT_DAMAGED, EXIT_DISK), f"exit {code}\n{after.tail()}")
            after.check_quiet()
            check(digests(made) == before, "a damaged database was written to")
            outcome.notes.append(f"{where}: refused with {code}")
    outcome.cases += 1


def damage(made: Scene, where: str, rng: random.Random) -> None:
    """Do one kind of damage."""
    database, wal = made.database, made.data / "klagg.db-wal"
    if where == "wal":
        contents = bytearray(wal.read_bytes())
        check(len(contents) > 4_096, "there is no write-ahead log")
        for at in rng.sample(range(32, len(contents)), 20):
            contents[at] ^= 0xFF
        wal.write_bytes(contents)
        return
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        tables = ("bars", "recent_bars")
        roots = connection.execute(
            f"SELECT rootpage FROM sqlite_master WHERE name IN {tables}"
        ).fetchall()
    contents = bytearray(database.read_bytes())
    if where == "header":
        contents[:16] = bytes(16)
    elif where == "short":
        del contents[len(contents) // 2 // size * size :]
    elif where == "root":
        at = (rng.choice(roots)[0] - 1) * size
        contents[at : at + 64] = rng.randbytes(64)
    else:
        for page in rng.sample(range(2, len(contents) // size), 40):
            at = page * size
            contents[at : at + 16] = rng.randbytes(16)
    database.write_bytes(contents)


def digests(made: Scene) -> dict[str, str]:
    """Return what the database and its log hold, by name; the lock and the index do not count."""
    return {
        each.name: hashlib.sha256(each.read_bytes()).hexdigest()
        for each in sorted(made.data.iterdir())
        if each.name == "klagg.db"
    }


WAL = ("klagg.db-wal",)
BOTH = ("klagg.db", "klagg.db-wal")
SNAPSHOT = ("initial_state.cbor.new", "initial_state.cbor")

KINDS: dict[str, Kind] = {
    "fsync-eio": partial(injected, "fsync,fdatasync", "error=EIO", BOTH),
    "fsync-eio-once": partial(injected, "fsync,fdatasync", "error=EIO:when=1", BOTH),
    "fsync-eio-now-and-then": partial(injected, "fsync,fdatasync", "error=EIO:when=1+3", BOTH),
    "fsync-enospc": partial(injected, "fsync,fdatasync", "error=ENOSPC", BOTH),
    "fsync-slow": partial(injected, "fsync,fdatasync", "delay_enter=4000000", WAL),
    "write-eio": partial(injected, "pwrite64", "error=EIO", WAL),
    "write-eio-once": partial(injected, "pwrite64", "error=EIO:when=2", WAL),
    "write-eio-now-and-then": partial(injected, "pwrite64", "error=EIO:when=2+5", WAL),
    "write-enospc": partial(injected, "pwrite64", "error=ENOSPC", WAL),
    "checkpoint-eio": partial(injected, "pwrite64", "error=EIO", ("klagg.db",)),
    "read-eio": partial(injected, "pread64", "error=EIO", BOTH),
    "snapshot-write-eio": partial(injected, "write", "error=EIO", SNAPSHOT),
    "snapshot-rename-eio": partial(injected, "rename", "error=EIO", SNAPSHOT),
    "full-short": partial(full, FAULT_S),
    "full-half-a-minute": partial(full, BUSY_S),
    "read-only": read_only,
    "file-size-limit": file_size_limit,
    "no-descriptors": no_descriptors,
    "busy-writer": partial(busy, "BEGIN IMMEDIATE"),
    "busy-reader": partial(busy, "BEGIN DEFERRED"),
    "damaged-header": partial(damaged, "header"),
    "damaged-short": partial(damaged, "short"),
    "damaged-root": partial(damaged, "root"),
    "damaged-pages": partial(damaged, "pages"),
    "damaged-wal": partial(damaged, "wal"),
}


def run(seed: int, folder: Path, outcome: Outcome) -> None:
    """Try the fault that a seed stands for."""
    name = list(KINDS)[seed % len(KINDS)]
    outcome.notes.append(name)
    rng = random.Random(f"disk/{seed}")
    with scene(folder, seed) as made:
        KINDS[name](made, rng, outcome)


ROW = Row(
    name="disk",
    what="disk: full, errors on write and on fsync, slow, read-only, held by others, damaged",
    holds="nothing undetected; nothing lost once the disk is well; damage is never written over",
    run=run,
    ci=len(KINDS),
    release=5 * len(KINDS),
    lanes=4,
)
