"""Holding stored minutes against the exchange's own, and telling why they differ.

A futures aggregate carries the time of its first fill, and its 100 ms window is not cut at minute
boundaries. So fills of the first moments of a minute may be counted in the minute before: that one
has more than the official bar, the next one has as much less, and the sum of both is right. Such a
pair, or chain, is a *straddle*. Where the other minute of a pair has been replaced by the official
one already, its share is gone: a minute beside such a one may have too much before it, or too
little after it. Any other difference is *unexplained*.
"""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Final

from klagg_trio.core.bar import EXACT, ZERO, Bar, Source

CHAIN_MAX: Final = 3
"""Minutes over which a straddle must cancel out: an aggregate reaches over one boundary, and the
next boundary may have one of its own."""


CRUMB: Final = Decimal("1e-12")
"""Of a bar's volume: above the rounding of a float64, below the smallest trade."""


class Verdict(Enum):
    """What an audit says of one minute."""

    EQUAL = "equal"
    STRADDLE = "straddle"
    UNEXPLAINED = "unexplained"


@dataclass(slots=True)
class Carry:
    """What has been counted before a boundary and belongs after it: the running difference."""

    volume: Decimal = ZERO
    quote_volume: Decimal = ZERO
    count: int = 0
    taker_buy_volume: Decimal = ZERO

    def add(self, stored: Bar, official: Bar) -> None:
        """Add what `stored` has more than `official`."""
        with decimal.localcontext(EXACT):
            self.volume += stored.volume - official.volume
            self.quote_volume += stored.quote_volume - official.quote_volume
            self.count += stored.count - official.count
            self.taker_buy_volume += stored.taker_buy_volume - official.taker_buy_volume

    def settled(self, official: Bar) -> bool:
        """Whether all that was counted early has been missed since.

        Values that came through floats leave a crumb, smaller than any trade could be.
        """
        with decimal.localcontext(EXACT):
            return self._is_crumb_of(official)

    def _is_crumb_of(self, official: Bar) -> bool:
        return (
            not self.count
            and abs(self.volume) <= official.volume * CRUMB
            and abs(self.quote_volume) <= official.quote_volume * CRUMB
            and abs(self.taker_buy_volume) <= official.volume * CRUMB
        )

    @property
    def possible(self) -> bool:
        """Whether it could have been counted early: whole trades, never less than nothing."""
        return (
            self.count > 0
            and self.volume > 0
            and self.quote_volume > 0
            and 0 <= self.taker_buy_volume <= self.volume
        )

    @property
    def missing(self) -> bool:
        """Whether it could be what a minute before has counted early."""
        return (
            self.count < 0
            and self.volume < 0
            and self.quote_volume < 0
            and self.volume <= self.taker_buy_volume <= 0
        )


def judge(
    stored: Sequence[Bar], official: Sequence[Bar], *, after_replaced: bool = False
) -> list[Verdict]:
    """Return the verdict on each minute. Both sequences hold the same minutes, in order.

    `after_replaced` says that the minute before the first one is the exchange's own.
    A chain of differences that is still open at the end is unexplained; ask again once the next
    minute is there.
    """
    with decimal.localcontext(EXACT):
        return _judged(stored, official, after_replaced)


def _judged(stored: Sequence[Bar], official: Sequence[Bar], after_replaced: bool) -> list[Verdict]:
    verdicts: list[Verdict] = []
    carry = Carry()
    chain = 0
    replaced = after_replaced
    for ours, theirs in zip(stored, official, strict=True):
        assert ours.open_ms == theirs.open_ms
        after_replaced, replaced = replaced, ours.source == Source.OFFICIAL
        if ours.values() == theirs.values() and (replaced or not chain):
            if chain:
                verdicts[-chain:] = [Verdict.STRADDLE] * chain
                carry, chain = Carry(), 0
            verdicts.append(Verdict.EQUAL)
            continue
        carry.add(ours, theirs)
        chain += 1
        verdicts.append(Verdict.UNEXPLAINED)
        if chain == 1 and after_replaced and carry.missing:
            verdicts[-1] = Verdict.STRADDLE
            carry, chain = Carry(), 0
        elif carry.settled(theirs):
            verdicts[-chain:] = [Verdict.STRADDLE] * chain if chain > 1 else verdicts[-1:]
            chain = 0
        elif chain >= CHAIN_MAX or not carry.possible:
            carry = Carry()
            chain = 0
    return verdicts
