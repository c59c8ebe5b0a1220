"""The shard's oracle: trades and bars in whole numbers, written without a line of klagg's core.

Prices are in hundredths, quantities in thousandths, so every sum is an integer. A bar is computed
from the list of all trades of its time whenever it is asked for; nothing is kept up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple

MINUTE = 60_000

LENGTHS = {"1m": 1, "3m": 3, "5m": 5, "15m": 15, "1h": 60, "1d": 1_440}
"""Minutes in the intervals that the oracle knows: those that divide a day."""

TRADES, FLAT, SUSPECT, OFFICIAL = range(4)


@dataclass(frozen=True, slots=True)
class ATrade:
    """A trade as the core asks for it, with the whole numbers it was made from."""

    symbol: str
    id: int
    cents: int
    thousandths: int
    time_ms: int
    buyer_is_maker: bool = True
    first_id: int = 0
    last_id: int = 0
    price: Decimal = field(init=False)
    quantity: Decimal = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "price", Decimal(self.cents).scaleb(-2))
        object.__setattr__(self, "quantity", Decimal(self.thousandths).scaleb(-3))


class Nine(NamedTuple):
    """The nine values, as `Bar.values()` orders them, in whole numbers."""

    open: int
    high: int
    low: int
    close: int
    volume: int
    quote_volume: int
    count: int
    taker_buy_volume: int
    taker_buy_quote_volume: int


def nine(trades: Iterable[ATrade], close_before: int) -> Nine:
    """Return the bar of these trades, flat at `close_before` where there are none."""
    inside = sorted(trades, key=lambda trade: trade.id)
    if not inside:
        return Nine(close_before, close_before, close_before, close_before, 0, 0, 0, 0, 0)
    bought = [trade for trade in inside if not trade.buyer_is_maker]
    return Nine(
        inside[0].cents,
        max(trade.cents for trade in inside),
        min(trade.cents for trade in inside),
        inside[-1].cents,
        sum(trade.thousandths for trade in inside),
        sum(trade.cents * trade.thousandths for trade in inside),
        sum(trade.last_id - trade.first_id + 1 for trade in inside),
        sum(trade.thousandths for trade in bought),
        sum(trade.cents * trade.thousandths for trade in bought),
    )


def nine_between(trades: Sequence[ATrade], from_ms: int, end_ms: int, first_close: int) -> Nine:
    """Return the bar of [from_ms, end_ms) of a symbol whose price was `first_close` at first."""
    before = [trade for trade in trades if trade.time_ms < from_ms]
    close = max(before, key=lambda trade: trade.id).cents if before else first_close
    return nine((t for t in trades if from_ms <= t.time_ms < end_ms), close)


def nine_of(values: Sequence[Decimal | int]) -> Nine:
    """Return the nine values of a core bar in whole numbers, or fail where they are not whole."""
    digits = (2, 2, 2, 2, 3, 5, 0, 3, 5)
    whole = [Decimal(v).scaleb(d) for v, d in zip(values, digits, strict=True)]
    assert all(number == int(number) for number in whole), values
    return Nine(*(int(number) for number in whole))


def minutes_around_missing(trades: Iterable[ATrade]) -> set[int]:
    """Return the open times of the minutes that hold or border a missing id, by the rule's text."""
    seen = sorted(trades, key=lambda trade: trade.id)
    minutes: set[int] = set()
    for a, b in pairwise(seen):
        if b.id - a.id > 1:
            first = min(a.time_ms, b.time_ms) // MINUTE
            last = max(a.time_ms, b.time_ms) // MINUTE
            minutes.update(minute * MINUTE for minute in range(first, last + 1))
    return minutes


class StoredRow(NamedTuple):
    """One stored bar."""

    nine: Nine
    source: int


@dataclass
class NaiveStore:
    """What a database holds after it was told the facts: the writer's rules, minute by minute."""

    rows: dict[tuple[str, str, int], StoredRow] = field(default_factory=dict)
    sealed_minutes: list[tuple[str, int]] = field(default_factory=list)
    inexact: int = 0

    def take(self, facts) -> None:
        """Store one message's facts."""
        if facts is None:
            return
        sealed = list(facts.sealed_bars())
        told = {(f.symbol, f.interval, f.bar.open_ms) for f in (*sealed, *facts.restated)}
        changed: set[tuple[str, int]] = set()
        for fact in sealed:
            key = fact.symbol, fact.interval, fact.bar.open_ms
            if fact.interval == "1m":
                self.sealed_minutes.append((fact.symbol, fact.bar.open_ms))
            if key not in self.rows or self.rows[key].source == SUSPECT:
                self.rows[key] = StoredRow(nine_of(fact.bar.values()), int(fact.bar.source))
        for fact in facts.restated:
            key = fact.symbol, fact.interval, fact.bar.open_ms
            stored = self.rows.get(key)
            if stored and stored.source == OFFICIAL and fact.bar.source != OFFICIAL:
                continue
            self.rows[key] = StoredRow(nine_of(fact.bar.values()), int(fact.bar.source))
            if fact.interval == "1m":
                changed.add((fact.symbol, fact.bar.open_ms))
        for span in facts.doubted:
            changed |= self._relabel(span, (TRADES, FLAT), lambda row: SUSPECT)
        for span in facts.proven:
            changed |= self._relabel(
                span, (SUSPECT,), lambda row: TRADES if row.nine.count else FLAT
            )
        for symbol, open_ms in changed:
            self._restate_longer(symbol, open_ms, told)
        self.inexact += sum(event.kind == "inexact" for event in facts.events)

    def _relabel(self, span, sources, to) -> set[tuple[str, int]]:
        changed = set()
        for open_ms in range(span.first_ms, span.last_ms + 1, MINUTE):
            row = self.rows.get((span.symbol, "1m", open_ms))
            if row and row.source in sources:
                self.rows[span.symbol, "1m", open_ms] = row._replace(source=to(row))
                changed.add((span.symbol, open_ms))
        return changed

    def _restate_longer(self, symbol: str, minute_ms: int, told) -> None:
        for interval, minutes in LENGTHS.items():
            open_ms = minute_ms - minute_ms % (minutes * MINUTE)
            key = symbol, interval, open_ms
            if interval == "1m" or key not in self.rows or key in told:
                continue
            if self.rows[key].source == OFFICIAL:
                continue
            inside = [
                self.rows[symbol, "1m", at]
                for at in range(open_ms, open_ms + minutes * MINUTE, MINUTE)
                if (symbol, "1m", at) in self.rows
            ]
            self.rows[key] = merged(inside)


def merged(rows: Sequence[StoredRow]) -> StoredRow:
    """Return the longer bar of these minutes, in order."""
    traded = [row.nine for row in rows if row.nine.count]
    sources = {row.source for row in rows}
    source = FLAT
    if SUSPECT in sources:
        source = SUSPECT
    elif sources == {OFFICIAL}:
        source = OFFICIAL
    elif traded:
        source = TRADES
    if not traded:
        return StoredRow(rows[0].nine, source)
    sums = [sum(part) for part in zip(*(bar[4:] for bar in traded), strict=True)]
    return StoredRow(
        Nine(
            traded[0].open,
            max(bar.high for bar in traded),
            min(bar.low for bar in traded),
            traded[-1].close,
            *sums,
        ),
        source,
    )
