"""What rows have in common: a market with a filled data directory, and going live on it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prove import judge
from prove.process import (
    Exchange,
    Process,
    backfill,
    exchange,
    pause,
    process,
    run_arguments,
    wait_for,
)
from prove.row import check

LIVE_S_MAX = 60.0
SETTLE_S_MAX = 240.0


@dataclass(slots=True)
class Scene:
    """An exchange, a data directory, and the way from one to the other."""

    folder: Path
    exchange: Exchange
    data: Path
    rest_url: str
    ws_url: str
    since_ms: int
    """The exchange's time when the scene began."""

    @property
    def database(self) -> Path:
        """Return the database file."""
        return self.data / "klagg.db"

    @property
    def snapshot(self) -> Path:
        """Return the start snapshot."""
        return self.data / "initial_state.cbor"

    def run_arguments(self) -> tuple[object, ...]:
        """Return the arguments of `klagg run` here."""
        return run_arguments(self.data, self.rest_url, self.ws_url)

    @contextmanager
    def running(self, name: str = "run", **options) -> Iterator[Process]:
        """Run klagg here until the context is left."""
        with process(self.folder, name, self.run_arguments(), **options) as klagg:
            yield klagg

    def wait_live(self, klagg: Process, limit_s: float = LIVE_S_MAX) -> float:
        """Wait until new trades of the running minute are stored. Returns how long it took.

        Live is what a reader sees: running bars of the minute that is now, counting on.
        """
        before = judge.running(self.database)

        def live() -> bool:
            check(klagg.alive, f"klagg has ended with {klagg.popen.returncode}\n{klagg.tail()}")
            open_ms, count = judge.running(self.database)
            current = open_ms + 2 * judge.MINUTE_MS > time.time() * 1_000 > open_ms
            return current and count > 0 and (open_ms, count) != before

        wait_for(live, f"live\n{klagg.tail()}", limit_s)
        return time.monotonic() - klagg.started_s

    def settle(self, klagg: Process, limit_s: float = SETTLE_S_MAX) -> int:
        """Wait until a whole minute after now is stored and nothing is owed; then stop klagg.

        Judges everything, and returns how many bars were compared with official ones.
        """
        until_ms = self.exchange.now_ms() // judge.MINUTE_MS * judge.MINUTE_MS
        until_ms += judge.MINUTE_MS

        def settled() -> bool:
            check(klagg.alive, f"klagg has ended with {klagg.popen.returncode}\n{klagg.tail()}")
            reached = judge.last_tick(self.database) >= until_ms
            return reached and judge.suspects(self.database, until_ms) == 0

        wait_for(settled, f"everything repaired\n{klagg.tail()}", limit_s, every_s=0.5)
        pause(1.0)
        klagg.stop(signal.SIGTERM)
        return self.judge(until_ms)

    def judge(self, until_ms: int | None = None) -> int:
        """Judge what is stored while klagg does not run; official bars up to `until_ms` too."""
        judge.check_whole(self.database)
        judge.check_snapshot(self.snapshot)
        bars = judge.sealed(self.database)
        judge.check_continuous(self.database, bars)
        if until_ms is None:
            return 0
        kept = {
            key: bar for key, bar in bars.items() if key[2] + judge.FIXED_MS[key[1]] <= until_ms
        }
        since_ms = self.since_ms - 120 * judge.MINUTE_MS
        return judge.check_official(self.database, self.exchange, kept, since_ms)


@contextmanager
def scene(folder: Path, seed: int, *, filled: bool = True, data: Path | None = None):
    """Bring up an exchange, and fill a data directory from it."""
    with exchange(folder, seed) as market:
        made = Scene(
            folder,
            market,
            data or folder / "data",
            market.rest_url,
            market.ws_url,
            market.now_ms(),
        )
        if filled:
            backfill(folder, made.data, made.rest_url)
        yield made


def until_next_minute_s(before_s: float = 0.0) -> float:
    """Return the seconds to some moment before the next minute begins."""
    now_s = time.time()
    left_s = 60.0 - now_s % 60.0 - before_s
    return left_s if left_s >= 0 else left_s + 60.0
