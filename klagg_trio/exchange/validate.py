"""The one validator of official klines: what may go on to bars and to the store. Pure.

Theory of operation
-------------------
A row of klines is outside data. `flaw_of` says what is wrong with one by itself, and `sift` goes
through an answer: good rows go on, in order of time, each of the others is refused with its reason.
Rows are refused, never answers: one that contradicts itself costs its own minute and no other.

What passes is taken by the tables (`store/schema.py`) and by `klagg verify`, always; a property
test holds them against each other. So the checks are exact and in decimals: rounding to a float64
keeps every `<=` between them, and the bounds keep every sum of a month within what the tables hold.
"""

from __future__ import annotations

import decimal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from klagg_trio.core.bar import EXACT, Bar
from klagg_trio.core.intervals import DAY_MS, THREE_DAYS_MS, Interval

TIME_MS_MAX: Final = 2**53 - 1
"""The largest integer that JSON carries safely everywhere."""

COUNT_MAX: Final = 10**12
"""Trades of one row. A busy month has 10**9; the minutes of a month of this many are 4.5e16, which
64 bits hold."""

VALUE_MAX: Final = Decimal("1e40")
"""Of prices and volumes: what a number of the longest allowed text stays below. The sums of a month
and the products of two are far from what a float64 holds."""

ROUNDING: Final = Decimal("1e-4")
"""How far each trade's value may be off. The exchange prints values with the decimals of price and
quantity together, four at the least, which is exact; should a price once have more digits than are
printed, the value of each trade may have been rounded in the last of them before it was summed up.
In 44,000 real rows of USD-M and spot none was off at all."""

REFUSED_MAX: Final = 1_500
"""Refused rows told of one answer: more rows than that no answer has."""


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that was not believed."""

    open_ms: int | None
    """None where not even its time could be read."""
    reason: str


@dataclass(frozen=True, slots=True)
class Klines:
    """One answer: the bars that can be used, and what was refused."""

    bars: list[Bar] = field(default_factory=list)
    """In order of time, each once, on the grid of the interval; the one that still runs too."""
    refused: list[RefusedRow] = field(default_factory=list)

    def refused_within(self, first_ms: int, last_ms: int) -> list[RefusedRow]:
        """Return the refused rows that claim to open within these times, both inclusive."""
        return [
            row
            for row in self.refused
            if row.open_ms is not None and first_ms <= row.open_ms <= last_ms
        ]


def sift(
    rows: Iterable[Bar | RefusedRow],
    interval: Interval,
    *,
    first_ms: int | None = None,
    last_ms: int | None = None,
) -> Klines:
    """Sort the rows of one answer into those that can be used and those refused.

    `first_ms` and `last_ms` are what was asked for, by open time, both inclusive. The phase of 3d
    bars differs by symbol: most rows of an answer tell it.
    """
    found = Klines()
    by_time: dict[int, Bar] = {}
    contradicted: set[int] = set()
    with decimal.localcontext(EXACT):
        for row in rows:
            if isinstance(row, RefusedRow):
                _refuse(found, row.open_ms, row.reason)
            elif flaw := flaw_of(row, interval) or _flaw_of_range(row, first_ms, last_ms):
                _refuse(found, row.open_ms, flaw)
            elif by_time.setdefault(row.open_ms, row).values() != row.values():
                contradicted.add(row.open_ms)
    for open_ms in contradicted:
        del by_time[open_ms]
        _refuse(found, open_ms, "the answer has two that differ")
    if interval.length_ms == THREE_DAYS_MS:
        _refuse_other_grids(found, by_time)
    found.bars.extend(by_time[open_ms] for open_ms in sorted(by_time))
    return found


def _refuse(found: Klines, open_ms: int | None, reason: str) -> None:
    if len(found.refused) < REFUSED_MAX:
        found.refused.append(RefusedRow(open_ms, reason))


def _refuse_other_grids(found: Klines, by_time: dict[int, Bar]) -> None:
    """Refuse 3d bars that are not on the grid of most."""
    phases = Counter(open_ms % THREE_DAYS_MS for open_ms in by_time)
    for phase_ms, _ in phases.most_common()[1:]:
        for open_ms in [x for x in by_time if x % THREE_DAYS_MS == phase_ms]:
            del by_time[open_ms]
            _refuse(found, open_ms, "it is not on the grid of the others")


def _flaw_of_range(bar: Bar, first_ms: int | None, last_ms: int | None) -> str | None:
    if (first_ms is not None and bar.open_ms < first_ms) or (
        last_ms is not None and bar.open_ms > last_ms
    ):
        return "it was not asked for"
    return None


def flaw_of(bar: Bar, interval: Interval) -> str | None:
    """Return what is wrong with one official bar, or None. Runs under EXACT."""
    return _flaw_of_times(bar, interval) or _flaw_of_prices(bar) or _flaw_of_sums(bar)


def _flaw_of_times(bar: Bar, interval: Interval) -> str | None:
    if not 0 <= bar.open_ms < bar.end_ms <= TIME_MS_MAX:
        return "its times are out of range"
    if interval.length_ms == THREE_DAYS_MS:
        if bar.open_ms % DAY_MS:
            return "it opens within a day"
    elif not interval.is_open(bar.open_ms):
        return f"no {interval.name} bar opens then"
    if bar.end_ms != interval.end(bar.open_ms):
        return "its close time is not the last millisecond before the next bar"
    return None


def _flaw_of_prices(bar: Bar) -> str | None:
    for price in (bar.open, bar.high, bar.low, bar.close):
        if not price.is_finite() or not 0 < price < VALUE_MAX:
            return "a price is out of range"
    if not bar.low <= bar.open <= bar.high or not bar.low <= bar.close <= bar.high:
        return "not low <= open, close <= high"
    return None


def _flaw_of_sums(bar: Bar) -> str | None:
    volume, quote = bar.volume, bar.quote_volume
    taker, taker_quote = bar.taker_buy_volume, bar.taker_buy_quote_volume
    for value in (volume, quote, taker, taker_quote):
        if not value.is_finite() or not 0 <= value < VALUE_MAX:
            return "a volume is out of range"
    if not 0 <= bar.count <= COUNT_MAX:
        return "the count is out of range"
    if (bar.count == 0) != (not volume) or (volume and not float(volume)):
        return "trades without volume, or volume without trades"
    if taker > volume or taker_quote > quote:
        return "takers bought more than was traded"
    if not bar.count:
        flat = bar.low == bar.high and not quote
        return None if flat else "without trades, but not flat"
    # The value of what was traded is price times quantity, and no price is out of low and high.
    rounding = bar.count * ROUNDING
    for quantity, value in ((volume, quote), (taker, taker_quote)):
        if not bar.low * quantity - rounding <= value <= bar.high * quantity + rounding:
            return "its quote volume is not its volume at its prices"
    return None
