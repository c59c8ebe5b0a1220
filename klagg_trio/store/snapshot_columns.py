"""The columns of a start snapshot, and what is impossible about them.

A snapshot whose digest is right is still data from outside: nothing that no run could have written
is taken. The bounds are those of the tables.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.intervals import (
    DAY_MS,
    INTERVALS,
    MINUTE,
    MINUTE_MS,
    THREE_DAYS_MS,
    select,
)

TIME_MS_MAX: Final = 253_402_300_799_999
"""The end of the year 9999, past which no calendar goes."""

DELIVERY_MS_MAX: Final = 1 << 62
"""What never comes, in whatever words."""

ID_MAX: Final = 1 << 63
"""SQLite's integers, and the ids of the exchange, are below."""

NUMBER_MAX: Final = Decimal("1e308")
"""What is stored has to be a float64 that is not infinite."""

SYMBOL_LENGTH_MAX: Final = 100

BAR_FIELDS: Final = Bar.__struct_fields__
SEED_FIELDS: Final = (
    "symbol",
    "onboard_ms",
    "delivery_ms",
    "last_close",
    "next_id",
    "last_trade_ms",
    "three_day_phase_ms",
    "first_ms",
)
SPAN_FIELDS: Final = ("suspect_spans", "partials", "unknown_spans")
SYMBOL_FIELDS: Final = (*SEED_FIELDS, *SPAN_FIELDS)


@dataclass(slots=True)
class Columns:
    """The state with each field of all symbols, and of all bars, as one list.

    The bars are: for each symbol its open bars, shortest interval first; then the partials of the
    first symbol that has any, and so on.
    """

    database_id: str | None
    """Of the database that holds every bar before the cut; None where that is not known."""
    generation: int | None
    cut_ms: int
    intervals: list[str]

    # One value a symbol.
    symbol: list[str]
    onboard_ms: list[int]
    delivery_ms: list[int]
    last_close: list[Decimal]
    next_id: list[int | None]
    last_trade_ms: list[int | None]
    first_ms: list[int | None]
    three_day_phase_ms: list[int]
    suspect_spans: list[int]
    """How many of the suspect spans are the symbol's."""
    partials: list[int]
    """How many of the partial minutes are."""
    unknown_spans: list[int]
    """How many of the spans of which nobody knows what they gave to longer bars."""

    # One value a suspect span.
    suspect_first_ms: list[int]
    suspect_last_ms: list[int]

    # One value such a span.
    unknown_first_ms: list[int]
    unknown_last_ms: list[int]

    # One value an open bar.
    unofficial_minutes: list[int]

    # One value a bar, in the order in which `Bar` takes them.
    open_ms: list[int]
    end_ms: list[int]
    open: list[Decimal]
    high: list[Decimal]
    low: list[Decimal]
    close: list[Decimal]
    volume: list[Decimal]
    quote_volume: list[Decimal]
    count: list[int]
    taker_buy_volume: list[Decimal]
    taker_buy_quote_volume: list[Decimal]
    first: list[int]
    last: list[int]
    source: list[Source]


def flaws(columns: Columns) -> Iterator[str]:
    """Tell what is impossible about these columns. What comes later relies on what came before."""
    yield from _flaws_of_shape(columns)
    yield from _flaws_of_symbols(columns)
    yield from _flaws_of_bars(columns)
    yield from _flaws_of_calendar(columns)


def _flaws_of_shape(columns: Columns) -> Iterator[str]:
    try:
        ordered = select(tuple(columns.intervals))
    except ValueError as error:
        yield str(error)
        return
    if [interval.name for interval in ordered] != columns.intervals:
        yield "its intervals are not in order"
    if not 0 <= columns.cut_ms <= TIME_MS_MAX or columns.cut_ms % MINUTE_MS:
        yield f"its cut {columns.cut_ms} is not on a minute"
    counts = [*columns.suspect_spans, *columns.partials, *columns.unknown_spans]
    if min(counts, default=0) < 0:
        yield "there are fewer than no suspects or partials"
    symbols = len(columns.symbol)
    open_bars = symbols * (len(ordered) - 1)
    suspects = ("suspect_first_ms", "suspect_last_ms")
    unknown = ("unknown_first_ms", "unknown_last_ms")
    for fields, length in (
        (SYMBOL_FIELDS, symbols),
        (suspects, sum(columns.suspect_spans)),
        (unknown, sum(columns.unknown_spans)),
        (("unofficial_minutes",), open_bars),
        (BAR_FIELDS, open_bars + sum(columns.partials)),
    ):
        for field in fields:
            if len(getattr(columns, field)) != length:
                yield f"{len(getattr(columns, field))} values of {field} instead of {length}"


def _flaws_of_symbols(columns: Columns) -> Iterator[str]:
    if len(set(columns.symbol)) < len(columns.symbol):
        (symbol, times), *_ = Counter(columns.symbol).most_common(1)
        yield f"the symbol {symbol!r} is in it {times} times"
    if not all(columns.symbol):
        yield "a symbol has no name"
    if not all(map(str.isprintable, columns.symbol)) or max(map(len, columns.symbol), default=0) > (
        SYMBOL_LENGTH_MAX
    ):
        yield "a symbol has a name that cannot be one"
    if not all(0 < price < NUMBER_MAX for price in columns.last_close):
        yield "a last close is not above zero, or beyond what is stored"
    yield from _flaws_of_times(columns)
    if any(number is not None and not 0 <= number < ID_MAX for number in columns.next_id):
        yield "a next aggregate id is negative, or beyond 64 bits"
    if min(columns.unofficial_minutes, default=0) < 0:
        yield "an open bar has fewer than no unofficial minutes"
    if max(columns.unofficial_minutes, default=0) > TIME_MS_MAX // MINUTE_MS:
        yield "an open bar has more unofficial minutes than there are"
    spans = [
        *zip(columns.suspect_first_ms, columns.suspect_last_ms, strict=True),
        *zip(columns.unknown_first_ms, columns.unknown_last_ms, strict=True),
    ]
    for first_ms, last_ms in spans:
        on_minutes = not first_ms % MINUTE_MS and not last_ms % MINUTE_MS
        if not on_minutes or not 0 <= first_ms <= last_ms < columns.cut_ms:
            yield f"no minutes are suspect from {first_ms} to {last_ms}"


def _flaws_of_times(columns: Columns) -> Iterator[str]:
    for field, at_most in (
        ("onboard_ms", TIME_MS_MAX),
        ("delivery_ms", DELIVERY_MS_MAX),
        ("last_trade_ms", columns.cut_ms),
        ("first_ms", columns.cut_ms),
        ("three_day_phase_ms", THREE_DAYS_MS - DAY_MS),
    ):
        known = [value for value in getattr(columns, field) if value is not None]
        if min(known, default=0) < 0 or max(known, default=0) > at_most:
            yield f"a {field} is before 1970, or later than it can be"
    if any(phase_ms % DAY_MS for phase_ms in columns.three_day_phase_ms):
        yield "a 3d grid does not begin at midnight"
    if any(first_ms is not None and first_ms % MINUTE_MS for first_ms in columns.first_ms):
        yield "a first kline does not open on a minute"


def _flaws_of_bars(columns: Columns) -> Iterator[str]:
    """The rules that the database has for stored bars, too."""
    if not all(price > 0 for price in columns.low):
        yield "a price is not above zero"
    for below, above in (
        ("low", "open"),
        ("low", "close"),
        ("open", "high"),
        ("close", "high"),
        ("taker_buy_volume", "volume"),
        ("taker_buy_quote_volume", "quote_volume"),
    ):
        if not all(map(operator.le, getattr(columns, below), getattr(columns, above))):
            yield f"in a bar {below} is above {above}"
    for field in ("count", "taker_buy_volume", "taker_buy_quote_volume"):
        if min(getattr(columns, field), default=0) < 0:
            yield f"in a bar {field} is below zero"
    for field in ("high", "volume", "quote_volume"):
        if max(getattr(columns, field), default=0) >= NUMBER_MAX:
            yield f"in a bar {field} is beyond what is stored"
    if max(columns.count, default=0) >= ID_MAX:
        yield "in a bar count is beyond 64 bits"
    if any(
        bool(n) != bool(volume) for n, volume in zip(columns.count, columns.volume, strict=True)
    ):
        yield "a bar has trades without volume, or volume without trades"
    if not all(0 <= first <= ID_MAX for first in columns.first):
        yield "in a bar first is negative, or beyond 64 bits"
    if not all(-1 <= last < ID_MAX for last in columns.last):
        yield "in a bar last is negative, or beyond 64 bits"


def _flaws_of_calendar(columns: Columns) -> Iterator[str]:
    """Open bars hold the cut, on the grid of their interval; partials are minutes before it."""
    cut_ms, longer = columns.cut_ms, columns.intervals[1:]
    open_bars = len(columns.unofficial_minutes)
    for index, name in enumerate(longer):
        places = slice(index, open_bars, len(longer))
        expected: dict[int, tuple[int, int]] = {}
        for symbol, phase_ms, *found in zip(
            columns.symbol,
            columns.three_day_phase_ms,
            columns.open_ms[places],
            columns.end_ms[places],
            strict=True,
        ):
            if phase_ms not in expected:
                expected[phase_ms] = _open_span(name, phase_ms, cut_ms)
            if (span := tuple(found)) != expected[phase_ms]:
                yield f"the open {name} bar of {symbol!r} is {span}, not {expected[phase_ms]}"
    for open_ms, end_ms in zip(
        columns.open_ms[open_bars:], columns.end_ms[open_bars:], strict=True
    ):
        if not MINUTE.is_open(open_ms) or end_ms != MINUTE.end(open_ms) or end_ms > cut_ms:
            yield f"a partial minute goes from {open_ms} to {end_ms}"


def _open_span(name: str, phase_ms: int, cut_ms: int) -> tuple[int, int]:
    interval = INTERVALS[name]
    if name == "3d":
        interval = interval.with_phase(phase_ms)
    open_ms = interval.floor(cut_ms)
    return open_ms, interval.end(open_ms)
