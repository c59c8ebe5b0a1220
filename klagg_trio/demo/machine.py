"""The machine that klagg runs on in a demo: its clocks, and what befalls them and the program.

Theory of operation: the machine's clock is Trio's and the time it has slept besides. While it
sleeps Trio's clock stands still and the exchange's goes on; while the process is stopped both go on
and nothing runs. When and what is drawn from the seed, each kind by its own rate.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import trio
import trio.testing

from klagg_trio.sim.faults import ON_MACHINE, FaultRates

HOUR_S: Final = 3_600.0

SNAPSHOT: Final = "initial_state.cbor"
DATABASE: Final = "klagg.db"


class Machine:
    """One machine. Its `wall_ms` goes on through a sleep, as the exchange's clock does."""

    def __init__(self, seed: int, start_ms: int, rates: Callable[[], FaultRates]) -> None:
        self.counts: dict[str, int] = {}
        """How often each fault came about."""
        self.downs: list[tuple[int, int]] = []
        """When klagg did not run, in exchange time."""
        self.random = random.Random(f"machine/{seed}")
        self._start_ms = start_ms
        self._rates = rates
        self._slept_s = 0.0
        self._draws = {kind: random.Random(f"machine/{seed}/{kind}") for kind in ON_MACHINE}
        self._hazards = {kind: rng.expovariate(1) for kind, rng in self._draws.items()}
        self._looked_s = trio.current_time()

    def wall_ms(self) -> int:
        """Return the local time, ms since the epoch."""
        return self._start_ms + int((trio.current_time() + self._slept_s) * 1000)

    def due(self) -> str:
        """Return what befalls the machine now, if anything does. To be asked every second or so."""
        now_s, rates = trio.current_time(), self._rates()
        passed_h, self._looked_s = (now_s - self._looked_s) / HOUR_S, now_s
        for kind in ON_MACHINE:
            self._hazards[kind] -= passed_h * getattr(rates, kind)
            if self._hazards[kind] <= 0:
                self._hazards[kind] = self._draws[kind].expovariate(1)
                self.counts[kind] = self.counts.get(kind, 0) + 1
                return kind
        return ""

    def suspend(self) -> None:
        """Sleep for one to fifteen minutes: Trio's clock knows nothing of it."""
        self._slept_s += self._draws["suspended"].uniform(60, 900)

    def stop(self) -> None:
        """Have the process stopped for up to three minutes: nothing runs, clocks go on."""
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(self._draws["stopped"].uniform(3, 180))


class Copy:
    """Database and start snapshot as they were at some moment."""

    def __init__(self, data_dir: Path) -> None:
        """Copy what there is now."""
        self._data_dir = data_dir
        self._kept = data_dir / "copy"
        shutil.rmtree(self._kept, ignore_errors=True)
        self._kept.mkdir()
        with (
            closing(sqlite3.connect(data_dir / DATABASE)) as source,
            closing(sqlite3.connect(self._kept / DATABASE)) as copy,
        ):
            source.backup(copy)
        shutil.copy(data_dir / SNAPSHOT, self._kept / SNAPSHOT)

    def restore_database(self) -> None:
        """Put the database of then in the place of that of now; nobody may have it open."""
        for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
            (self._data_dir / name).unlink(missing_ok=True)
        shutil.copy(self._kept / DATABASE, self._data_dir / DATABASE)

    def restore_snapshot(self) -> None:
        """Put the start snapshot of then in the place of that of now."""
        shutil.copy(self._kept / SNAPSHOT, self._data_dir / SNAPSHOT)
