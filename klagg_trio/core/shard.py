"""One shard of the market as a state machine: messages in, facts out.

Theory of operation
-------------------
A shard keeps, for each of its symbols, the running 1m bar, the minutes ahead of the clock that
already had trades, the last few sealed minutes, and the running bar of each longer interval.

- `apply_trades` fills. A trade touches the 1m bar of its own time `T` and nothing else.
- `tick` alone seals. For each minute up to the given one, in order, and for each symbol: seal the
  1m bar (flat at the previous close where nothing traded), merge it into the longer bars, seal
  those that end with it, open what begins. A late tick does the same for every missed minute.
- `feed_lost` and `feed_live` say from when to when nobody watched.
- `add_symbol`, `remove_symbol`, `replace_minutes` do what their names say.

Which minutes can be vouched for? Three things make a minute suspect:

1. *Liveness.* The feed of the symbol was not alive for the whole minute: the minute began before
   `live_since_ms`, or ended after `lost_ms`.
2. *Missing ids.* Aggregate ids of a symbol are contiguous. A jump while the feed is up means that
   trades between the last one's time and this one's are missing (`_Gap`), so those minutes are
   suspect until the missing ids arrive after all, out of order.
3. *Too late.* A trade came for a minute that is no longer held.

After a loss a symbol is *in doubt*: `next_id` is -1 and `resume_id` is the id that would continue.
The first trade then decides: if it has that id nothing was missed, and the minutes that liveness
made suspect are *proven*; if not, they stay suspect and repair owes them. The sealed suspect
minutes of a symbol are kept as `suspects`; the source of a longer bar is derived from them.

This file does no I/O and knows no clock but the times in its messages. Every rule about the
contents of bars lives here and in `core/bar.py`.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from klagg_trio.core.bar import EXACT, Bar, Source, combined_source, newborn
from klagg_trio.core.facts import BarCounts, BarFact, Event, Facts, MinuteSpan, TradeCounts
from klagg_trio.core.gaps import Spans
from klagg_trio.core.intervals import DAY_MS, MINUTE, MINUTE_MS, Interval
from klagg_trio.core.seed import UNKNOWN_ID, OpenBar, Seed
from klagg_trio.core.trade import Trade

NEVER_MS: Final = 1 << 62
"""Later than any time of the exchange."""

HELD_MINUTES: Final = 3
"""Sealed minutes held for late trades. Every one lies in the open or the last sealed bar of each
longer interval, since the shortest of those is three minutes long."""

AHEAD_MS_MAX: Final = 10 * MINUTE_MS
"""A trade further ahead of the clock than this is nonsense; ten minutes outlast a slow resync."""

GAPS_MAX: Final = 32
"""Open id gaps remembered per symbol; an older one is given up to repair."""

SEED_FILL_MS_MAX: Final = DAY_MS
"""A symbol found later than this after its listing starts at the current minute instead."""

_IN_DOUBT: Final = UNKNOWN_ID


@dataclass(slots=True)
class _Gap:
    """Aggregate ids not seen though later ones were: `ids` are those still missing."""

    ids: set[int] | range
    from_ms: int
    to_ms: int


@dataclass(slots=True)
class _Longer:
    """The running bar of one interval longer than a minute, and the one sealed before it."""

    interval: Interval
    bar: Bar
    unofficial_minutes: int = 0
    previous: Bar | None = None
    previous_unofficial_minutes: int = 0


@dataclass(slots=True)
class SymbolState:
    """Everything a shard knows of one symbol. Owned by its shard; times are exchange time in ms."""

    symbol: str
    onboard_ms: int
    delivery_ms: int
    minute: Bar
    """The running 1m bar. The clock's minute, whatever the trades say."""
    last_close: Decimal
    """Close of the last sealed minute: the price of a flat one."""
    longer: list[_Longer]
    next_id: int = _IN_DOUBT
    """The aggregate id that continues; -1 while in doubt."""
    resume_id: int = UNKNOWN_ID
    """While in doubt, the id that would prove that nothing was missed, or -1."""
    last_trade_ms: int = 0
    live_since_ms: int = NEVER_MS
    """Minutes that open before this are not vouched for by liveness."""
    lost_ms: int = NEVER_MS
    """Minutes that end after this are not vouched for by liveness."""
    trusted_since_ms: int = 0
    """What `live_since_ms` returns to when doubt is resolved: nothing was missed since then."""
    doubt_from_ms: int = NEVER_MS
    """The first sealed minute that is suspect for liveness alone, or NEVER_MS."""
    ahead: dict[int, Bar] = field(default_factory=dict)
    """Bars of minutes that the clock has not reached, by open time, as far as AHEAD_MS_MAX."""
    held: list[Bar] = field(default_factory=list)
    """The last HELD_MINUTES sealed minutes, oldest first."""
    gaps: list[_Gap] = field(default_factory=list)
    suspects: Spans = field(default_factory=Spans)
    """Sealed minutes that repair owes."""
    partials: dict[int, Bar] = field(default_factory=dict)
    """Suspect minutes that hold trades and are no longer in `held`, by open time."""


class Shard:
    """See the module's theory of operation. All methods are synchronous and do no I/O."""

    def __init__(self, intervals: Sequence[Interval], cut_ms: int) -> None:
        """Make an empty shard whose running minute opens at `cut_ms`."""
        assert intervals[0] == MINUTE
        assert cut_ms % MINUTE_MS == 0
        self.minute_ms = cut_ms
        """Open time of the running minute: every minute before it is sealed."""
        self.states: dict[str, SymbolState] = {}
        self.trades = TradeCounts()
        self.bars = BarCounts()
        self._longer_intervals = tuple(intervals[1:])

    # -- Starting and stopping symbols ---------------------------------------------------------

    def load(self, seed: Seed) -> None:
        """Take up a symbol from a start snapshot whose cut is the shard's running minute."""
        longer = [
            _Longer(
                self._interval_of(open_bar.interval, seed),
                open_bar.bar.copy(),
                open_bar.unofficial_minutes,
            )
            for open_bar in seed.open_bars
        ]
        state = SymbolState(
            symbol=seed.symbol,
            onboard_ms=seed.onboard_ms,
            delivery_ms=seed.delivery_ms,
            minute=newborn(self.minute_ms, self.minute_ms + MINUTE_MS, seed.last_close),
            last_close=seed.last_close,
            longer=longer,
            resume_id=seed.next_id,
            last_trade_ms=seed.last_trade_ms,
            partials={bar.open_ms: bar for bar in seed.partials},
        )
        for first_ms, last_ms in seed.suspects:
            state.suspects.add(first_ms, last_ms)
        self.states[seed.symbol] = state

    def seeds(self) -> list[Seed]:
        """Return the state of every symbol as of the running minute, as `load` takes it.

        What the running minute already holds is left out: after a restart those trades are
        missing, so the id that continues is that of the first trade not in a sealed bar.
        """
        return [self._seed_of(state) for state in self.states.values()]

    def add_symbol(
        self,
        symbol: str,
        price: Decimal,
        onboard_ms: int,
        delivery_ms: int,
        three_day_phase_ms: int,
    ) -> Facts:
        """Take up a symbol that was listed while the program ran.

        Its bars of every interval exist from now on, flat at `price` until the first trade. The
        minutes from its listing up to now went unseen: they are stored as suspect.
        """
        facts = Facts()
        known = self.states.get(symbol)
        if known is not None:
            if known.onboard_ms >= onboard_ms:
                return facts
            self._freeze(known, facts)  # the ticker is reused by a new contract
        listed_ms = MINUTE.floor(onboard_ms)
        recent = self.minute_ms - SEED_FILL_MS_MAX <= listed_ms <= self.minute_ms
        first_ms = listed_ms if recent else self.minute_ms
        longer = []
        for interval in self._longer_intervals:
            if interval.name == "3d":
                interval = interval.with_phase(three_day_phase_ms)
            open_ms = interval.floor(first_ms)
            longer.append(_Longer(interval, newborn(open_ms, interval.end(open_ms), price)))
        state = SymbolState(
            symbol=symbol,
            onboard_ms=onboard_ms,
            delivery_ms=delivery_ms,
            minute=newborn(first_ms, first_ms + MINUTE_MS, price),
            last_close=price,
            longer=longer,
        )
        self.states[symbol] = state
        while state.minute.open_ms < self.minute_ms:
            self._seal_minute(state, facts)
        facts.events.append(Event(self.minute_ms, "listed", symbol, f"seeded at {price}"))
        return facts

    def remove_symbol(self, symbol: str, delivery_ms: int) -> None:
        """Note when a symbol ends. The tick that passes that moment seals and freezes it."""
        state = self.states.get(symbol)
        if state is not None:
            state.delivery_ms = delivery_ms

    # -- Trades --------------------------------------------------------------------------------

    def apply_trades(self, trades: Iterable[Trade]) -> Facts | None:
        """Put trades into their minutes. Returns None where that is all there is to say.

        This loop is the hot path of the program: the common case, a trade that continues its
        symbol's ids within the running minute, is written out here and calls nothing.
        """
        facts: Facts | None = None
        states, counts = self.states, self.trades
        in_bars = 0
        before = decimal.getcontext()
        decimal.setcontext(EXACT)
        try:
            for trade in trades:
                state = states.get(trade.symbol)
                if state is None:
                    counts.not_ours += 1
                    continue
                bar = state.minute
                time_ms, trade_id = trade.time_ms, trade.id
                if trade_id != state.next_id or not bar.open_ms <= time_ms < bar.end_ms:
                    if facts is None:
                        facts = Facts()
                    self._apply_unusual(state, trade, facts)
                    continue
                price, quantity = trade.price, trade.quantity
                quote = price * quantity
                if bar.count:
                    if price > bar.high:
                        bar.high = price
                    elif price < bar.low:
                        bar.low = price
                    if trade_id < bar.first:  # older ids of this minute came out of order before
                        bar.first, bar.open = trade_id, price
                else:
                    bar.open = bar.high = bar.low = price
                    bar.first = trade_id
                bar.close = price
                bar.last = trade_id
                bar.volume += quantity
                bar.quote_volume += quote
                bar.count += trade.last_id - trade.first_id + 1
                if not trade.buyer_is_maker:
                    bar.taker_buy_volume += quantity
                    bar.taker_buy_quote_volume += quote
                state.next_id = trade_id + 1
                state.last_trade_ms = time_ms
                in_bars += 1
        finally:
            decimal.setcontext(before)
            counts.in_bars += in_bars
        return facts or None

    def _apply_unusual(self, state: SymbolState, trade: Trade, facts: Facts) -> None:
        """Apply a trade that jumps, repeats, is out of order, or is not of the running minute."""
        if trade.time_ms >= state.minute.end_ms + AHEAD_MS_MAX:
            self.trades.rejected += 1
            return
        try:
            trade.price * trade.quantity
        except decimal.Inexact:
            self.trades.rejected += 1
            return
        if not self._admit(state, trade, facts):
            self.trades.duplicate += 1
            return
        state.last_trade_ms = max(state.last_trade_ms, trade.time_ms)
        minute = state.minute
        if trade.time_ms < minute.open_ms:
            self.trades.late += 1
            self._apply_late(state, trade, facts)
            return
        if trade.time_ms >= minute.end_ms:
            open_ms = MINUTE.floor(trade.time_ms)
            minute = state.ahead.setdefault(
                open_ms, newborn(open_ms, open_ms + MINUTE_MS, state.last_close)
            )
        minute.add(trade)
        self.trades.in_bars += 1

    def _admit(self, state: SymbolState, trade: Trade, facts: Facts) -> bool:
        """Judge a trade's id; remember gaps, close them, resolve doubt. False for a duplicate."""
        if state.next_id == _IN_DOUBT:
            return self._resolve_doubt(state, trade, facts)
        if trade.id < state.next_id:
            return self._fill_gap(state, trade.id, facts)
        if trade.id > state.next_id:
            missing = range(state.next_id, trade.id)
            from_ms = min(state.last_trade_ms or trade.time_ms, trade.time_ms)
            self._open_gap(state, _Gap(missing, from_ms, trade.time_ms), facts)
        state.next_id = trade.id + 1
        return True

    def _resolve_doubt(self, state: SymbolState, trade: Trade, facts: Facts) -> bool:
        """Let the first trade after a loss, or after the start, tell whether any was missed."""
        if state.resume_id != UNKNOWN_ID and trade.id < state.resume_id:
            return self._fill_gap(state, trade.id, facts)
        state.next_id = trade.id + 1
        if trade.id == state.resume_id:
            self._prove(state, facts)
        state.resume_id = UNKNOWN_ID
        state.doubt_from_ms = NEVER_MS
        return True

    def _prove(self, state: SymbolState, facts: Facts) -> None:
        """Clear what liveness alone made suspect: the ids show that nothing was missed."""
        state.live_since_ms = min(state.live_since_ms, state.trusted_since_ms)
        state.lost_ms = NEVER_MS
        if state.doubt_from_ms < self.minute_ms:
            self._clear(state, state.doubt_from_ms, self.minute_ms - MINUTE_MS, facts)

    def _open_gap(self, state: SymbolState, gap: _Gap, facts: Facts) -> None:
        state.gaps.append(gap)
        del state.gaps[:-GAPS_MAX]
        first_ms = MINUTE.floor(gap.from_ms)
        if first_ms < self.minute_ms:
            last_ms = min(MINUTE.floor(gap.to_ms), self.minute_ms - MINUTE_MS)
            self._doubt(state, first_ms, last_ms, facts)
        text = f"{len(gap.ids)} trades missing"
        facts.events.append(Event(gap.to_ms, "gap", state.symbol, text))

    def _fill_gap(self, state: SymbolState, trade_id: int, facts: Facts) -> bool:
        """Take an older id out of the gap it belongs to. False where it was seen before."""
        for gap in state.gaps:
            if trade_id not in gap.ids:
                continue
            missing = set(gap.ids)
            missing.discard(trade_id)
            gap.ids = missing
            if not missing:
                state.gaps.remove(gap)
                first_ms = MINUTE.floor(gap.from_ms)
                last_ms = min(MINUTE.floor(gap.to_ms), self.minute_ms - MINUTE_MS)
                self._clear(state, first_ms, last_ms, facts)
            return True
        return False

    def _apply_late(self, state: SymbolState, trade: Trade, facts: Facts) -> None:
        """Restate the sealed minute of a late trade, or call it suspect where it is not held."""
        open_ms = MINUTE.floor(trade.time_ms)
        for held in state.held:
            if held.open_ms == open_ms:
                if held.source == Source.OFFICIAL:
                    return  # the exchange's own bar counts this trade already
                restated = held.copy()
                restated.add(trade)
                if restated.source == Source.FLAT:
                    restated.source = Source.TRADES
                self._restate(state, held, restated, facts)
                return
        self._doubt(state, open_ms, open_ms, facts)

    # -- The tick ------------------------------------------------------------------------------

    def tick(self, minute_ms: int) -> Facts:
        """Seal every bar that ends at or before `minute_ms`, in order, and open what begins."""
        facts = Facts()
        before = decimal.getcontext()
        decimal.setcontext(EXACT)
        try:
            while self.minute_ms < minute_ms:
                self.minute_ms += MINUTE_MS
                ended = []
                for state in self.states.values():
                    self._seal_minute(state, facts)
                    if state.delivery_ms <= self.minute_ms:
                        ended.append(state)
                for state in ended:
                    self._freeze(state, facts)
        finally:
            decimal.setcontext(before)
        return facts

    def _seal_minute(self, state: SymbolState, facts: Facts) -> None:
        """Seal a symbol's running minute and what ends with it; open what begins."""
        bar = state.minute
        end_ms = bar.end_ms
        bar.source = self._judge(state, bar)
        sealed = facts.sealed
        sealed.append(BarFact(state.symbol, MINUTE.name, bar))
        counts = self.bars
        counts.sealed += 1
        if bar.source == Source.SUSPECT:
            counts.suspect += 1
            state.suspects.add(bar.open_ms, bar.open_ms)
        elif bar.source == Source.FLAT:
            counts.flat += 1
        self._hold(state, bar)
        price = bar.close
        traded = bar.count
        for longer in state.longer:
            running = longer.bar
            if traded:
                running.absorb(bar)
            longer.unofficial_minutes += 1
            if running.end_ms <= end_ms:
                running.source = self._source_of_longer(state, running, longer.unofficial_minutes)
                sealed.append(BarFact(state.symbol, longer.interval.name, running))
                counts.sealed += 1
                longer.previous, longer.bar = (
                    running,
                    newborn(running.end_ms, longer.interval.end(running.end_ms), price),
                )
                longer.previous_unofficial_minutes = longer.unofficial_minutes
                longer.unofficial_minutes = 0
        state.last_close = price
        state.minute = self._next_minute(state, end_ms, price)

    def _judge(self, state: SymbolState, bar: Bar) -> Source:
        """Decide whether a minute can be vouched for, at the moment when it is sealed."""
        if bar.open_ms < state.live_since_ms or bar.end_ms > state.lost_ms:
            state.doubt_from_ms = min(state.doubt_from_ms, bar.open_ms)
            return Source.SUSPECT
        for gap in state.gaps:
            if gap.from_ms < bar.end_ms and gap.to_ms >= bar.open_ms:
                return Source.SUSPECT
        return Source.TRADES if bar.count else Source.FLAT

    def _next_minute(self, state: SymbolState, open_ms: int, price: Decimal) -> Bar:
        if state.ahead:
            ahead = state.ahead.pop(open_ms, None)
            if ahead is not None:
                return ahead
        return newborn(open_ms, open_ms + MINUTE_MS, price)

    def _hold(self, state: SymbolState, bar: Bar) -> None:
        """Keep a sealed minute for late trades; forget what is too old for them."""
        held = state.held
        held.append(bar)
        if len(held) > HELD_MINUTES:
            oldest = held.pop(0)
            if oldest.source == Source.SUSPECT and oldest.count:
                state.partials[oldest.open_ms] = oldest
            if state.gaps:
                state.gaps = [gap for gap in state.gaps if gap.to_ms >= held[0].open_ms]

    def _freeze(self, state: SymbolState, facts: Facts) -> None:
        """Seal a symbol that has ended, with what its longer bars hold, and let it go."""
        for longer in state.longer:
            bar = longer.bar.copy()
            bar.source = self._source_of_longer(state, bar, longer.unofficial_minutes)
            facts.sealed.append(BarFact(state.symbol, longer.interval.name, bar))
            self.bars.sealed += 1
        del self.states[state.symbol]
        facts.events.append(Event(self.minute_ms, "delisted", state.symbol, "sealed and frozen"))

    # -- Feeds ---------------------------------------------------------------------------------

    def feed_live(self, symbols: Iterable[str], since_ms: int) -> None:
        """From `since_ms` on, the feed of these symbols is provably alive."""
        for symbol in symbols:
            state = self.states.get(symbol)
            if state is None:
                continue
            if state.live_since_ms == NEVER_MS or state.lost_ms != NEVER_MS:
                state.live_since_ms = since_ms
                state.lost_ms = NEVER_MS

    def feed_lost(self, symbols: Iterable[str], lost_ms: int) -> Facts:
        """Nothing after `lost_ms` is certain for these symbols until their feed is live again."""
        facts = Facts()
        for symbol in symbols:
            state = self.states.get(symbol)
            if state is None or state.live_since_ms == NEVER_MS:
                continue
            state.lost_ms = min(state.lost_ms, lost_ms)
            if state.next_id != _IN_DOUBT:
                state.resume_id, state.next_id = state.next_id, _IN_DOUBT
                state.trusted_since_ms = state.live_since_ms
            first_ms = MINUTE.floor(lost_ms)
            if first_ms < self.minute_ms:
                state.doubt_from_ms = min(state.doubt_from_ms, first_ms)
                self._doubt(state, first_ms, self.minute_ms - MINUTE_MS, facts)
        return facts

    # -- Restating -----------------------------------------------------------------------------

    def replace_minutes(
        self, symbol: str, minutes: Iterable[Bar], stored: Iterable[Bar] = ()
    ) -> Facts:
        """Restate sealed minutes, and what holds them in memory, by the exchange's own bars.

        Minutes that are not sealed yet are left to the tick. Bars that have left the memory are
        restated by the store, from the minutes it holds. `stored` are the bars that are to be
        replaced though they are not suspect: they are needed to take them out of longer bars.
        """
        facts = Facts()
        replaced = {bar.open_ms: bar for bar in stored}
        state = self.states.get(symbol)
        before = decimal.getcontext()
        decimal.setcontext(EXACT)
        try:
            for minute in minutes:
                if minute.open_ms >= self.minute_ms:
                    continue
                official = minute.copy()
                official.source = Source.OFFICIAL
                if state is None or minute.open_ms < state.onboard_ms - MINUTE_MS:
                    facts.restated.append(BarFact(symbol, MINUTE.name, official))
                    self.bars.restated += 1
                    self.bars.official += 1
                    continue
                old = self._old_minute(state, official, replaced.get(official.open_ms))
                if old is not None:
                    self.bars.official += 1
                    state.suspects.remove(official.open_ms, official.open_ms)
                    self._restate(state, old, official, facts)
        finally:
            decimal.setcontext(before)
        return facts

    def _old_minute(self, state: SymbolState, official: Bar, stored: Bar | None) -> Bar | None:
        """Return what the longer bars were given for this minute, or None: then it is official.

        A suspect minute that is not held any more was empty, unless it is among the partials.
        """
        open_ms = official.open_ms
        for held in state.held:
            if held.open_ms == open_ms:
                return None if held.source == Source.OFFICIAL else held
        if state.suspects.holds(open_ms):
            partial = state.partials.pop(open_ms, None)
            return partial or newborn(open_ms, official.end_ms, official.open)
        return None if stored is None or stored.source == Source.OFFICIAL else stored

    def _restate(self, state: SymbolState, old: Bar, new: Bar, facts: Facts) -> None:
        """Exchange a sealed minute, wherever the memory holds it, for its restatement."""
        facts.restated.append(BarFact(state.symbol, MINUTE.name, new))
        self.bars.restated += 1
        for index, held in enumerate(state.held):
            if held.open_ms == new.open_ms:
                state.held[index] = new
                if index == len(state.held) - 1:
                    self._move_close(state, held.close, new.close)
        turned_official = (new.source == Source.OFFICIAL) - (old.source == Source.OFFICIAL)
        for longer in state.longer:
            previous = longer.previous
            if longer.bar.open_ms <= new.open_ms:
                exact = longer.bar.replace(old, new)
                longer.unofficial_minutes -= turned_official
            elif previous is not None and previous.open_ms <= new.open_ms < previous.end_ms:
                restated = previous.copy()
                exact = restated.replace(old, new)
                longer.previous_unofficial_minutes -= turned_official
                restated.source = self._source_of_longer(
                    state, restated, longer.previous_unofficial_minutes
                )
                longer.previous = restated
                facts.restated.append(BarFact(state.symbol, longer.interval.name, restated))
                self.bars.restated += 1
            else:
                continue
            if not exact:
                facts.events.append(
                    Event(
                        new.open_ms,
                        "inexact",
                        state.symbol,
                        f"{longer.interval.name} needs its official bar",
                    )
                )

    def _move_close(self, state: SymbolState, old: Decimal, new: Decimal) -> None:
        """Carry a restated close into the bars that open with it and have no trade yet."""
        state.last_close = new
        empty = [
            bar for bar in (state.minute, *(longer.bar for longer in state.longer)) if not bar.count
        ]
        for bar in empty:
            if bar.close == old:
                bar.open = bar.high = bar.low = bar.close = new

    def _doubt(self, state: SymbolState, first_ms: int, last_ms: int, facts: Facts) -> None:
        """Call sealed minutes suspect after the fact."""
        state.suspects.add(first_ms, last_ms)
        facts.doubted.append(MinuteSpan(state.symbol, first_ms, last_ms))
        self._relabel(state, first_ms, last_ms, Source.SUSPECT)

    def _clear(self, state: SymbolState, first_ms: int, last_ms: int, facts: Facts) -> None:
        """Call sealed suspect minutes right after the fact."""
        if first_ms > last_ms:
            return
        state.suspects.remove(first_ms, last_ms)
        facts.proven.append(MinuteSpan(state.symbol, first_ms, last_ms))
        for open_ms in [open_ms for open_ms in state.partials if first_ms <= open_ms <= last_ms]:
            del state.partials[open_ms]
        self._relabel(state, first_ms, last_ms, None)

    def _relabel(
        self, state: SymbolState, first_ms: int, last_ms: int, source: Source | None
    ) -> None:
        """Give held minutes and sealed longer bars the source that now holds for them."""
        for index, held in enumerate(state.held):
            if first_ms <= held.open_ms <= last_ms and held.source != Source.OFFICIAL:
                relabelled = held.copy()
                relabelled.source = source or (Source.TRADES if held.count else Source.FLAT)
                state.held[index] = relabelled
        for longer in state.longer:
            previous = longer.previous
            if previous is not None and previous.open_ms <= last_ms and previous.end_ms > first_ms:
                relabelled = previous.copy()
                relabelled.source = self._source_of_longer(
                    state, previous, longer.previous_unofficial_minutes
                )
                longer.previous = relabelled

    # -- Reading -------------------------------------------------------------------------------

    def open_bars(self) -> list[BarFact]:
        """Return the running bars of all symbols and intervals, as of the newest trade."""
        facts = []
        before = decimal.getcontext()
        decimal.setcontext(EXACT)
        try:
            for state in self.states.values():
                minute = state.minute.copy()
                minute.source = Source.TRADES if minute.count else Source.FLAT
                if self._unvouched(state, minute):
                    minute.source = Source.SUSPECT
                facts.append(BarFact(state.symbol, MINUTE.name, minute))
                for longer in state.longer:
                    bar = longer.bar.copy()
                    bar.absorb(minute)
                    bar.source = self._source_of_longer(state, bar, 1 + longer.unofficial_minutes)
                    facts.append(BarFact(state.symbol, longer.interval.name, bar))
        finally:
            decimal.setcontext(before)
        return facts

    def _unvouched(self, state: SymbolState, minute: Bar) -> bool:
        return minute.open_ms < state.live_since_ms or state.lost_ms < NEVER_MS

    def _source_of_longer(self, state: SymbolState, bar: Bar, unofficial_minutes: int) -> Source:
        suspect = bool(state.suspects) and state.suspects.meets(bar.open_ms, bar.end_ms)
        return combined_source(bar.count, suspect, unofficial_minutes == 0)

    def _interval_of(self, name: str, seed: Seed) -> Interval:
        interval = next(i for i in self._longer_intervals if i.name == name)
        return interval.with_phase(seed.three_day_phase_ms) if name == "3d" else interval

    def _seed_of(self, state: SymbolState) -> Seed:
        next_id = state.resume_id if state.next_id == _IN_DOUBT else state.next_id
        unsealed = (state.minute, *state.ahead.values())
        next_id = min([next_id, *(bar.first for bar in unsealed if bar.count)])
        suspects = Spans(list(state.suspects))
        partials = [bar for bar in state.held if bar.source == Source.SUSPECT and bar.count]
        phase_ms = next((x.interval.phase_ms for x in state.longer if x.interval.name == "3d"), 0)
        return Seed(
            symbol=state.symbol,
            onboard_ms=state.onboard_ms,
            delivery_ms=state.delivery_ms,
            last_close=state.last_close,
            next_id=next_id,
            last_trade_ms=min(state.last_trade_ms, self.minute_ms - 1),
            three_day_phase_ms=phase_ms,
            open_bars=tuple(
                OpenBar(x.interval.name, x.bar.copy(), x.unofficial_minutes) for x in state.longer
            ),
            suspects=tuple(suspects),
            partials=(*state.partials.values(), *partials),
        )
