"""The exchange's interval calendar: which bar a moment belongs to, and where that bar ends.

All times are milliseconds since 1970-01-01 UTC. Sources of the rules: intervals up to one day
divide the UTC day; weeks open on Monday 00:00 UTC (1970-01-05 was one); months are calendar
months; three-day bars step from a phase that differs by symbol and must be learnt from an
official bar. On USD-M futures the phase seen is 1970-01-02 (BTCUSDT and ETHUSDT), the default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
WEEK_MS: Final = 7 * DAY_MS
THREE_DAYS_MS: Final = 3 * DAY_MS

MONDAY_MS: Final = 4 * DAY_MS
"""1970-01-05, the first Monday of the epoch."""

THREE_DAY_PHASE_MS: Final = DAY_MS
"""Where 3d bars open on USD-M, modulo three days, unless an official bar says otherwise."""


@dataclass(frozen=True, slots=True)
class Interval:
    """One bar length. `length_ms` is 0 for calendar months; `phase_ms` shifts the grid."""

    name: str
    length_ms: int
    phase_ms: int = 0

    def floor(self, at_ms: int) -> int:
        """Return the open time of the bar that holds the moment `at_ms`."""
        if self.length_ms:
            return at_ms - (at_ms - self.phase_ms) % self.length_ms
        return _month_open(*_month_of(at_ms))

    def end(self, open_ms: int) -> int:
        """Return the first millisecond after the bar that opens at `open_ms`."""
        if self.length_ms:
            return open_ms + self.length_ms
        year, month = _month_of(open_ms)
        return _month_open(year + month // 12, month % 12 + 1)

    def is_open(self, at_ms: int) -> bool:
        """Whether a bar opens exactly at `at_ms`."""
        return self.floor(at_ms) == at_ms

    def with_phase(self, phase_ms: int) -> Interval:
        """Return this interval on another grid: 3d bars of a symbol whose phase was learnt."""
        return replace(self, phase_ms=phase_ms % self.length_ms)


INTERVALS: Final[dict[str, Interval]] = {
    interval.name: interval
    for interval in (
        Interval("1m", MINUTE_MS),
        Interval("3m", 3 * MINUTE_MS),
        Interval("5m", 5 * MINUTE_MS),
        Interval("15m", 15 * MINUTE_MS),
        Interval("30m", 30 * MINUTE_MS),
        Interval("1h", HOUR_MS),
        Interval("2h", 2 * HOUR_MS),
        Interval("4h", 4 * HOUR_MS),
        Interval("6h", 6 * HOUR_MS),
        Interval("8h", 8 * HOUR_MS),
        Interval("12h", 12 * HOUR_MS),
        Interval("1d", DAY_MS),
        Interval("3d", THREE_DAYS_MS, THREE_DAY_PHASE_MS),
        Interval("1w", WEEK_MS, MONDAY_MS),
        Interval("1M", 0),
    )
}
"""Every interval of the exchange, shortest first."""

MINUTE: Final = INTERVALS["1m"]

DEFAULT_INTERVALS: Final = ("1m", "5m", "30m", "1h", "4h", "1d", "1w")


def select(names: tuple[str, ...]) -> tuple[Interval, ...]:
    """Return the named intervals, shortest first and without repeats.

    Raises ValueError, with a text for the user, for an unknown name or where 1m is missing
    (every longer bar is merged from minutes).
    """
    for name in names:
        if name not in INTERVALS:
            known = " ".join(INTERVALS)
            raise ValueError(f"unknown interval {name!r}; known are: {known} (or: all)")
    if MINUTE.name not in names:
        raise ValueError("the intervals must include 1m: every longer bar is merged from minutes")
    return tuple(interval for name, interval in INTERVALS.items() if name in names)


def utc_text(at_ms: int) -> str:
    """Return a moment to the minute, for people: 2025-01-01 12:03."""
    year, month = _month_of(at_ms)
    day = (at_ms - _month_open(year, month)) // DAY_MS + 1
    minutes = at_ms // MINUTE_MS
    return f"{year}-{month:02}-{day:02} {minutes // 60 % 24:02}:{minutes % 60:02}"


def count_text(count: int, name: str) -> str:
    """Return how many there are of something, for people: 1 minute, 2 minutes."""
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _month_of(at_ms: int) -> tuple[int, int]:
    """Return (year, month) of a moment.

    Civil-from-days for the proleptic Gregorian calendar, with years that begin in March so that
    the leap day comes last: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    """
    days = at_ms // DAY_MS + 719_468
    era, day_of_era = divmod(days, 146_097)
    year_of_era = (
        day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096
    ) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    month = shifted_month + 3 if shifted_month < 10 else shifted_month - 9
    return year_of_era + era * 400 + (month <= 2), month


def _month_open(year: int, month: int) -> int:
    """Return the first millisecond of a month: the inverse of `_month_of`, same source."""
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return (era * 146_097 + day_of_era - 719_468) * DAY_MS
