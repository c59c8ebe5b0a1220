"""Bars: nine exact values over one span of time, and the two ways to build them.

A bar grows by `add` (trades into a minute) or by `absorb` (minutes into a longer bar). Both give
the same result in any order of arrival: sums commute, and `first` and `last` remember which part
the open and the close came from. Only sealed minutes feed longer bars, so a trade costs the same
however many intervals are kept.

A part without trades changes nothing in the bar that absorbs it: a traded bar opens at its own
first trade, as the exchange's do, not at the previous close.

Arithmetic is exact: run it under `EXACT`, which traps a result that would need rounding.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterable
from decimal import Decimal
from enum import IntEnum
from typing import Final

import msgspec

from klagg_trio.core.trade import Trade

ZERO: Final = Decimal(0)

EXACT: Final = decimal.Context(
    # The edge admits numbers of up to 40 characters. The product of two has up to 80 digits before
    # the point and 76 behind it, and the sums of a month add a dozen: nothing admitted can trap.
    prec=200,
    traps=[decimal.Inexact, decimal.InvalidOperation, decimal.Overflow, decimal.DivisionByZero],
)

NEARLY: Final = 1 + Decimal("1e-12")
"""Two numbers this close may be one, of which one has been a float64."""

CRUMB: Final = Decimal("1e-6")
"""Of what was taken out of a sum: where less is left, too little of it is sure."""

Values = tuple[Decimal, Decimal, Decimal, Decimal, Decimal, Decimal, int, Decimal, Decimal]
"""Open, high, low, close, volume, quote volume, count, taker buy volume, taker buy quote volume."""

_NO_FIRST: Final = 1 << 63
_NO_LAST: Final = -1


class Source(IntEnum):
    """Where a bar comes from, and so how far it can be trusted. The numbers are stored."""

    TRADES = 0
    """An unbroken run of aggregate ids."""
    FLAT = 1
    """No trade, while the feed was provably alive."""
    SUSPECT = 2
    """A placeholder: ids are missing, the feed was silent, or the service was down."""
    OFFICIAL = 3
    """The exchange's own kline."""
    ABSENT = 4
    """The exchange itself has no kline for it: flat at the previous close."""

    @property
    def label(self) -> str:
        """The word that people read in tables and on the screen."""
        return self.name.lower()


class Bar(msgspec.Struct, gc=False):
    """One bar. A sealed bar is never changed: a restatement makes a new one (see `copy`).

    It holds no references but to its numbers. So the garbage collector need not look at it, which
    at some ten thousand bars would hold everything up for longer than the tick.
    """

    open_ms: int
    end_ms: int
    """The first millisecond after the bar."""
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal = ZERO
    """Base asset."""
    quote_volume: Decimal = ZERO
    count: int = 0
    """Raw trades: the sum of l - f + 1."""
    taker_buy_volume: Decimal = ZERO
    taker_buy_quote_volume: Decimal = ZERO
    first: int = _NO_FIRST
    """What the open came from: an aggregate id in a minute, a part's open time in a longer bar."""
    last: int = _NO_LAST
    """What the close came from, in the same terms."""
    source: Source = Source.FLAT

    def add(self, trade: Trade) -> None:
        """Count one trade of this minute, in whatever order trades arrive."""
        price, quantity = trade.price, trade.quantity
        quote = price * quantity
        if self.count:
            self.high = max(self.high, price)
            self.low = min(self.low, price)
        else:
            self.high = self.low = price
        if trade.id < self.first:
            self.first, self.open = trade.id, price
        if trade.id > self.last:
            self.last, self.close = trade.id, price
        self.volume += quantity
        self.quote_volume += quote
        self.count += trade.last_id - trade.first_id + 1
        if not trade.buyer_is_maker:
            self.taker_buy_volume += quantity
            self.taker_buy_quote_volume += quote

    def absorb(self, part: Bar) -> None:
        """Merge a shorter bar, disjoint from all those merged before, in any order."""
        if not part.count:
            return
        if self.count:
            if part.high > self.high:
                self.high = part.high
            if part.low < self.low:
                self.low = part.low
        else:
            self.high, self.low = part.high, part.low
        if part.open_ms < self.first:
            self.first, self.open = part.open_ms, part.open
        if part.open_ms > self.last:
            self.last, self.close = part.open_ms, part.close
        self.volume += part.volume
        self.quote_volume += part.quote_volume
        self.count += part.count
        self.taker_buy_volume += part.taker_buy_volume
        self.taker_buy_quote_volume += part.taker_buy_quote_volume

    def replace(self, old: Bar, new: Bar) -> bool:
        """Exchange one absorbed part for its restatement, by exact difference.

        Returns False where the parts at hand cannot tell the new open, close, high or low: the
        old part held one of them and the new one does not reach it, or was so large that what is
        left of a sum is smaller than what may be missing from it: an old part that was read back
        from floats is not exact.
        """
        if not old.count:
            self.absorb(new)
            if not self.count:
                self.open = self.high = self.low = self.close = new.close
            return True
        self.volume += new.volume - old.volume
        self.quote_volume += new.quote_volume - old.quote_volume
        self.count += new.count - old.count
        self.taker_buy_volume += new.taker_buy_volume - old.taker_buy_volume
        self.taker_buy_quote_volume += new.taker_buy_quote_volume - old.taker_buy_quote_volume
        if not self.count:
            self.open = self.high = self.low = self.close = new.close
            self.first, self.last = _NO_FIRST, _NO_LAST
            # What was read back from floats may leave a crumb: without trades there is nothing.
            self.volume = self.quote_volume = ZERO
            self.taker_buy_volume = self.taker_buy_quote_volume = ZERO
            return True
        if not new.count:
            return False
        if new.open_ms <= self.first:
            self.first, self.open = new.open_ms, new.open
        if new.open_ms >= self.last:
            self.last, self.close = new.open_ms, new.close
        lost_high = old.high * NEARLY >= self.high and new.high < old.high
        lost_low = old.low <= self.low * NEARLY and new.low > old.low
        self.high = max(self.high, new.high)
        self.low = min(self.low, new.low)
        lost_sum = self.volume < old.volume * CRUMB or self.quote_volume < old.quote_volume * CRUMB
        return not lost_high and not lost_low and not lost_sum

    def copy(self) -> Bar:
        """Return a bar that can be restated without touching this one."""
        return Bar(  # four times as fast as copy.copy, which matters at the tick
            self.open_ms,
            self.end_ms,
            self.open,
            self.high,
            self.low,
            self.close,
            self.volume,
            self.quote_volume,
            self.count,
            self.taker_buy_volume,
            self.taker_buy_quote_volume,
            self.first,
            self.last,
            self.source,
        )

    def values(self) -> Values:
        """Return the nine values in the order of the exchange's archive, times left out."""
        return (
            self.open,
            self.high,
            self.low,
            self.close,
            self.volume,
            self.quote_volume,
            self.count,
            self.taker_buy_volume,
            self.taker_buy_quote_volume,
        )


def newborn(open_ms: int, end_ms: int, price: Decimal) -> Bar:
    """Return the bar that opens at `open_ms` before its first trade: flat at `price`."""
    return Bar(open_ms, end_ms, price, price, price, price)


def merge(parts: Iterable[Bar], open_ms: int, end_ms: int, price: Decimal) -> Bar:
    """Return the bar of one span from its disjoint parts, in any order.

    `price` is the close before the span: what a span without trades is flat at.
    """
    merged = newborn(open_ms, end_ms, price)
    for part in parts:
        merged.absorb(part)
    return merged


def combined_source(count: int, suspect: bool, official: bool, absent: bool = False) -> Source:
    """Return the source of a longer bar: the weakest of its minutes.

    Args:
        count: the raw trades in it.
        suspect: whether any minute of it is.
        official: whether every minute of it is that is not absent.
        absent: whether every minute of it is. Otherwise absent minutes do not count.
    """
    if suspect:
        return Source.SUSPECT
    if absent:
        return Source.ABSENT
    if official:
        return Source.OFFICIAL
    return Source.TRADES if count else Source.FLAT
