"""What a shard keeps of its symbols, and how what is pending gets into it.

Whatever reads or changes a symbol settles its pending sums first (`ShardState.settle`), and whoever
reads or changes longer bars merges first what is *unmerged* (`SymbolState.merge`).
"""

from __future__ import annotations

import decimal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import msgspec

from klagg_trio.core.bar import EXACT, Bar, Source, combined_source, newborn
from klagg_trio.core.columns import Addition, PendingMinute
from klagg_trio.core.facts import BarCounts, TradeCounts
from klagg_trio.core.gaps import Spans
from klagg_trio.core.intervals import MINUTE, MINUTE_MS, Interval

NEVER_MS: Final = 1 << 62
"""Later than any time of the exchange: where a bar or a contract has no end."""

HELD_MINUTES: Final = 3
"""Sealed minutes held for late trades. Every one lies in the open or the last sealed bar of each
longer interval, since the shortest of those is three minutes long."""

PARTIALS_MAX: Final = 32
"""Suspect minutes with trades that are kept of one symbol, at a kilobyte each. Days without REST
make more of them; what the older ones gave to longer bars is unknown then, and these need their
official bars."""

UNMERGED_MAX: Final = 3
"""Sealed minutes that wait to be merged into longer bars; every one of them is held anyway."""


@dataclass(slots=True)
class Gap:
    """A run of aggregate ids, from `first_id` to before `end_id`, not seen though later ones were.

    Their trades were made from `from_ms` to `to_ms`, the times of the trades around the gap. Both
    are None where that is not known: after a loss, when other rules say which minutes suffer.
    """

    first_id: int
    end_id: int
    from_ms: int | None
    to_ms: int | None
    before_ms: int
    """When the trade with the id `end_id` was made: the missing ones were made no later."""

    def minutes(self) -> tuple[int, int] | None:
        """Return the first and the last minute that hold or border the gap, by open time."""
        if self.from_ms is None or self.to_ms is None:
            return None
        return MINUTE.floor(self.from_ms), MINUTE.floor(self.to_ms)

    def touches(self, bar: Bar) -> bool:
        """Whether trades of a minute may be among the missing ones."""
        if self.from_ms is None or self.to_ms is None:
            return False
        return self.from_ms < bar.end_ms and self.to_ms >= bar.open_ms


class Longer(msgspec.Struct, gc=False):
    """The running bar of one interval longer than a minute, and the one sealed before it."""

    interval: Interval
    bar: Bar
    """Its source is SUSPECT once a restatement left it inexact, and says nothing before."""
    unofficial_minutes: int = 0
    previous: Bar | None = None
    previous_unofficial_minutes: int = 0
    absent_minutes: int = 0
    """Of its sealed minutes, how many the exchange itself lacks. They are not unofficial."""
    previous_absent_minutes: int = 0
    resumed: bool = False
    """Whether it went on from what is stored: then it is stored already, in part."""


@dataclass(slots=True)
class SymbolState:
    """Everything a shard knows of one symbol. Owned by its shard; times are exchange time in ms."""

    symbol: str
    onboard_ms: int
    """A hint, as is `delivery_ms`: the exchange corrects them."""
    delivery_ms: int
    minute: Bar
    """The running 1m bar: the clock's minute, whatever the trades say; an earlier one while the
    symbol is caught up with after it has come back, a later one just before its listing."""
    last_close: Decimal
    """Close of the last sealed minute: the price of a flat one."""
    longer: list[Longer]
    """Their bars lack the `unmerged` minutes."""
    traded_ms: int
    """The newest sealed minute that may hold trades: all after it are empty."""
    next_id: int | None = None
    """The aggregate id that continues; None while in doubt."""
    resume_id: int | None = None
    """While in doubt, the id that would prove that nothing was missed, where it is known."""
    last_trade_ms: int | None = None
    live_since_ms: int | None = None
    """Minutes that open before this are not vouched for by liveness; None: no minute is."""
    lost_ms: int | None = None
    """Minutes that end after this are not vouched for by liveness; None: the feed is not lost."""
    trusted_since_ms: int | None = None
    """What `live_since_ms` returns to when doubt is resolved: nothing was missed since then."""
    official_ms: int | None = None
    """The newest official minute that told the close, by open time."""
    traded: Bar | None = None
    """The bar of that minute, where it is known."""
    ahead: dict[int, Bar] = field(default_factory=dict)
    """Bars of minutes that the clock has not reached, by open time, as far as AHEAD_MS_MAX."""
    unmerged: list[Bar] = field(default_factory=list)
    """Sealed minutes, at most UNMERGED_MAX, that are not in the longer bars yet."""
    longer_end_ms: int = field(init=False)
    """When the next of the longer bars ends."""
    longer_born_ms: int = 0
    """When a tick last opened one of them."""
    held: list[Bar] = field(default_factory=list)
    """The last HELD_MINUTES sealed minutes, oldest first."""
    gaps: list[Gap] = field(default_factory=list)
    suspects: Spans = field(default_factory=Spans)
    """Sealed minutes that repair owes."""
    doubtful: Spans = field(default_factory=Spans)
    """Those of them that the next trade may prove."""
    missing: Spans = field(default_factory=Spans)
    """Minutes, sealed or not, that only repair can make right."""
    unknown: Spans = field(default_factory=Spans)
    """Suspect minutes of which the shard does not know what they gave to longer bars."""
    official: Spans = field(default_factory=Spans)
    """Recent minutes replaced by the exchange's own: they are never doubted again."""
    partials: dict[int, Bar] = field(default_factory=dict)
    """Suspect minutes that hold trades and are no longer in `held`, by open time. The newest."""
    first_ms: int | None = None
    """Open time of its first official 1m kline, where that is known: part of its permanent key."""
    paused: str | None = None
    """What the exchange calls it while it is not in trading; None while it is."""
    over_since_ms: int | None = None
    """Since when every complete answer has said that it is over."""
    contradictions: int = 0
    """Trades in a row whose times cannot be, by the ids before them."""
    renumbered_ms: int | None = None
    """When its aggregate ids last began anew."""

    def __post_init__(self) -> None:
        self.look_for_next_end()
        self._forget_partials()

    def keep_partial(self, bar: Bar) -> None:
        """Keep a suspect minute that holds trades, in the place of the oldest of many."""
        self.partials[bar.open_ms] = bar
        self._forget_partials()

    def _forget_partials(self) -> None:
        while len(self.partials) > PARTIALS_MAX:
            oldest_ms = min(self.partials)
            del self.partials[oldest_ms]
            self.unknown.add(oldest_ms, oldest_ms)

    @property
    def in_doubt(self) -> bool:
        """Whether it is not known which aggregate id continues."""
        return self.next_id is None

    def look_for_next_end(self) -> None:
        """Bring `longer_end_ms` up to date."""
        self.longer_end_ms = min((x.bar.end_ms for x in self.longer), default=NEVER_MS)

    def merge(self) -> None:
        """Bring the longer bars up to date. Runs under EXACT."""
        traded = [minute for minute in self.unmerged if minute.count]
        for longer in self.longer:
            longer.unofficial_minutes += len(self.unmerged)
            for minute in traded:
                longer.bar.absorb(minute)
        self.unmerged.clear()

    def tells_the_close(self, open_ms: int) -> bool:
        """Whether nothing newer than a minute tells the price of the flat ones after it."""
        official = self.official_ms is None or open_ms >= self.official_ms
        return open_ms >= self.traded_ms and official

    @property
    def last_sealed_ms(self) -> int:
        """Open time of the minute sealed last."""
        return self.minute.open_ms - MINUTE_MS

    def source_of_longer(self, bar: Bar, unofficial_minutes: int, absent_minutes: int) -> Source:
        """Return the source of a longer bar, from the minutes that are suspect, and the others."""
        suspect = bool(self.suspects) and self.suspects.meets(bar.open_ms, bar.end_ms)
        forgotten_ms = self.suspects.forgotten_ms
        suspect |= forgotten_ms is not None and bar.open_ms <= forgotten_ms
        absent = absent_minutes * MINUTE_MS >= bar.end_ms - bar.open_ms
        return combined_source(bar.count, suspect, unofficial_minutes == 0, absent)

    @property
    def three_day_phase_ms(self) -> int:
        """Where 3d bars open, modulo three days; 0 where there are none."""
        return next((x.interval.phase_ms for x in self.longer if x.interval.name == "3d"), 0)


@dataclass(slots=True)
class ShardState:
    """All symbols of a shard, its clock, its counts, and the sums that wait for their bars."""

    minute_ms: int
    """Open time of the running minute: every minute before it is sealed."""
    longer_intervals: Sequence[Interval]
    symbols: dict[str, SymbolState] = field(default_factory=dict)
    trades: TradeCounts = field(default_factory=TradeCounts)
    bars: BarCounts = field(default_factory=BarCounts)
    merged_told: bool = False
    """Whether the merged bars have been asked for since the last tick."""
    now_ms: int | None = None
    """Exchange time when trades came last; None where it was not sure."""
    pending: PendingMinute | None = None
    """Sums of trades that have reached their minute, but not yet its bar."""

    def settle(self, symbols: Iterable[str] | None = None) -> None:
        """Bring the states of these symbols, or of all, up to date with what is pending."""
        if self.pending is None:
            return
        with decimal.localcontext(EXACT):
            for addition in self.pending.take(None if symbols is None else list(symbols)):
                _add_up(self.symbols[addition.symbol], addition)

    def settled(self, symbol: str) -> SymbolState | None:
        """Return the state of a symbol, up to date."""
        self.settle([symbol])
        return self.symbols.get(symbol)

    def merge_all(self) -> None:
        """Bring the longer bars of all symbols up to date."""
        with decimal.localcontext(EXACT):
            for state in self.symbols.values():
                state.merge()


def _add_up(state: SymbolState, addition: Addition) -> None:
    """Add to the running minute what trades that continue its ids add to it."""
    bar = state.minute
    if not bar.count:
        bar.open, bar.high, bar.low = addition.open, addition.high, addition.low
        bar.first = addition.first_id
    else:
        bar.high = max(bar.high, addition.high)
        bar.low = min(bar.low, addition.low)
        if addition.first_id < bar.first:  # older ids than those of this minute so far
            bar.first, bar.open = addition.first_id, addition.open
    bar.close, bar.last = addition.close, addition.last_id
    bar.volume += addition.volume
    bar.quote_volume += addition.quote_volume
    bar.count += addition.count
    if addition.taker_buy_volume:
        bar.taker_buy_volume += addition.taker_buy_volume
        bar.taker_buy_quote_volume += addition.taker_buy_quote_volume
    state.next_id = addition.last_id + 1
    state.last_trade_ms = addition.last_ms


def flat_at(bar: Bar, price: Decimal) -> Bar:
    """Return a bar without trades at another price."""
    flat = newborn(bar.open_ms, bar.end_ms, price)
    flat.source = bar.source
    return flat
