"""Programs that are measured, one module each, run in a process of their own against a blaster.

Each prints one JSON object: what it counted, how long it took from the first frame to the last, the
processor time of the process meanwhile, and how late a 5 ms timer in its event loop was.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from bench.market import Capture, Expected, capture
from bench.measure import percentile

LAG_EVERY_S = 0.005


class FeedClock:
    """The exchange's time as feeds want it, sure from the beginning."""

    is_sure = True

    def __init__(self, now_ms: Callable[[], int]) -> None:
        """Tell the time of `now_ms`."""
        self.now_ms = now_ms

    def bounded_event_ms(self, event_ms: int) -> int:
        """Believe every event time."""
        return event_ms

    def take_event(self, stream: str, event_ms: int) -> None:
        """Need no witness."""


@dataclass(slots=True)
class Meter:
    """Time and processor time between the first frame and the last.

    What comes before `warm_up` trades is left out: a program that has just begun is not what runs
    for weeks. `timed` says whether the 5 ms timer runs: at low rates it costs as much as the work.
    """

    warm_up: int = 0
    timed: bool = True
    skipped: int = 0
    began_s: float = 0.0
    began_cpu_s: float = 0.0
    ended_s: float = 0.0
    ended_cpu_s: float = 0.0
    lags_ms: list[float] = field(default_factory=list)

    def begin(self, received: int = 0) -> None:
        """Note the first frame, with so many trades received before it."""
        if not self.began_s and received >= self.warm_up:
            self.skipped = received
            self.began_s, self.began_cpu_s = time.perf_counter(), time.process_time()
            self.lags_ms.clear()

    def end(self) -> None:
        """Note the last."""
        self.ended_s, self.ended_cpu_s = time.perf_counter(), time.process_time()

    def tell(self, trades: int, **more: object) -> None:
        """Print the figures."""
        seconds = self.ended_s - self.began_s
        trades -= self.skipped
        cpu_s = self.ended_cpu_s - self.began_cpu_s
        figures = {
            "trades": trades,
            "seconds": seconds,
            "per_s": trades / seconds,
            "cpu_us": cpu_s / trades * 1e6,
            "cpu_percent": 100 * cpu_s / seconds,
            "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            **more,
        }
        if self.lags_ms:
            for share, name in ((0.5, "lag_p50"), (0.99, "lag_p99"), (0.999, "lag_p999")):
                figures[name] = percentile(self.lags_ms, share)
            figures["lag_max"] = max(self.lags_ms)
        print(json.dumps(figures), flush=True)


@dataclass(frozen=True, slots=True)
class Job:
    """What a contender is to do."""

    url: str
    source: Capture
    options: argparse.Namespace

    def meter(self) -> Meter:
        """Return a meter as the command line asks for."""
        return Meter(warm_up=self.options.warm_up, timed=not self.options.untimed)


def job() -> Job:
    """Read the command line of a contender."""
    parse = argparse.ArgumentParser()
    parse.add_argument("url")
    parse.add_argument("symbols", type=int)
    parse.add_argument("trades", type=int)
    parse.add_argument("market_rate", type=float)
    parse.add_argument("start_ms", type=int)
    parse.add_argument("--warm-up", type=int, default=0)
    parse.add_argument("--untimed", action="store_true")
    parse.add_argument("--json", action="store_true")
    parse.add_argument("--intervals", type=int, default=15)
    parse.add_argument("--read-pause-ms", type=int, default=None)
    parse.add_argument("--symbols-per-connection", type=int, default=1_000)
    options = parse.parse_args()
    source = capture(
        options.symbols, options.trades, rate_per_s=options.market_rate, start_ms=options.start_ms
    )
    return Job(options.url, source, options)


class Wrong(Exception):
    """The bars are not those that were to be made."""


def check_exact(expected: Expected, found: dict[tuple[str, int], tuple[object, ...]]) -> None:
    """Hold nine exact values of each bar against what was expected."""
    for key, values in expected.items():
        wanted = tuple(map(Decimal, values))
        if found.get(key) != wanted:
            raise Wrong(f"{key}: {found.get(key)} instead of {wanted}")


def check_floats(
    expected: Expected,
    found: dict[tuple[str, int], tuple[float, float, float, float, float]],
    *,
    volume_tolerance: float = 1e-9,
) -> None:
    """Hold open, high, low, close, volume of each bar, as floats, against what was expected."""
    for key, values in expected.items():
        wanted = tuple(map(float, values[:5]))
        bar = found.get(key)
        if bar is None or any(
            not math.isclose(a, b, rel_tol=volume_tolerance)
            for a, b in zip(bar, wanted, strict=True)
        ):
            raise Wrong(f"{key}: {bar} instead of {wanted}")
