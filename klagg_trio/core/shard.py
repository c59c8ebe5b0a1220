"""One shard of the market as a state machine: messages in, facts out.

Theory of operation
-------------------
A shard keeps, for each of its symbols, the running 1m bar, the minutes ahead of the clock that
already had trades, the last few sealed minutes, and the running bar of each longer interval.

- `apply_trades` fills. A trade touches the 1m bar of its own time `T` and nothing else.
- `apply_runs` does the same for trades that come as columns. What only goes on, ids and minute, is
  added to sums that are *pending* until somebody needs the bar; a run that does anything else is
  taken trade by trade. Whatever reads or changes a symbol settles its pending sums first.
- `tick` alone seals. For each minute up to the given one, in order, and for each symbol: seal the
  1m bar (flat at the previous close where nothing traded), merge it into the longer bars, seal
  those that end with it, open what begins. A late tick does the same for every missed minute.
  The merging waits where no longer bar ends: a tick is urgent, and whoever reads or changes longer
  bars merges first what is *unmerged*.
- `feed_lost` and `feed_live` say from when to when nobody watched.
- `add_symbol`, `remove_symbol`, `replace_minutes` do what their names say.

Which minutes can be vouched for? Four things make a minute suspect:

1. *Liveness.* The feed of the symbol was not alive for the whole minute: the minute began before
   `live_since_ms`, or ended after `lost_ms`.
2. *Missing ids.* Aggregate ids of a symbol are contiguous. A jump while the feed is up means that
   trades between the last one's time and this one's are missing (`_Gap`), so those minutes are
   suspect until the missing ids arrive after all, out of order.
3. *Too late.* A trade came for a minute that is no longer held.
4. *Price.* The minute is flat, at a close that a missed trade may have moved.

After a loss a symbol is *in doubt*: `next_id` is -1 and `resume_id` is the id that would continue.
The first trade made under a live feed decides: if it has that id nothing was missed, and the
minutes that are suspect for want of proof (`doubtful`, for reasons 1 and 4) are *proven*; if not,
they are `missing` trades and repair owes them. An official bar from the time when the feed was live
again also settles the price. A minute may be suspect for several reasons and is cleared only when
none is left. All sealed suspect minutes of a symbol together are its `suspects`; the source of a
longer bar is derived from them.

To restate a longer bar one has to know what the old minute gave to it. So a suspect minute that
holds trades is kept until it is repaired: in `held`, or as `traded`, or among the `partials`. All
others gave nothing, but for the few in `unknown`.

This file does no I/O and knows no clock but the times in its messages. Every rule about the
contents of bars lives here and in `core/bar.py`.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import msgspec

from klagg_trio.core.bar import EXACT, Bar, Source, combined_source, newborn
from klagg_trio.core.columns import (
    CONTINUES,
    NEVER,
    UNKNOWN,
    WHICH,
    Addition,
    Booleans,
    PendingMinute,
    TradeRuns,
)
from klagg_trio.core.facts import (
    BarCounts,
    BarFact,
    Births,
    Event,
    Facts,
    Listing,
    MinuteSpan,
    RunningBar,
    TradeCounts,
)
from klagg_trio.core.gaps import Spans
from klagg_trio.core.intervals import DAY_MS, MINUTE, MINUTE_MS, Interval
from klagg_trio.core.seed import OpenBar, Seed
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

JUMP_MAX: Final = 10_000_000
"""More ids than the busiest symbol uses in a day: a larger jump under a live feed tells nothing of
missing trades, only that the numbering broke."""

SEED_FILL_MS_MAX: Final = DAY_MS
"""A symbol found later than this after its listing starts at the current minute instead."""

UNMERGED_MAX: Final = 3
"""Sealed minutes that wait to be merged into longer bars; every one of them is held anyway."""

OFFICIAL_SPANS_MAX: Final = 32
"""Spans of official minutes remembered per symbol. Doubt never reaches back further than a few."""

UNKNOWN_ID: Final = -1
_IN_DOUBT: Final = UNKNOWN_ID


@dataclass(slots=True)
class _Gap:
    """A run of aggregate ids, from `first_id` to before `end_id`, not seen though later ones were.

    Their trades were made from `from_ms` to `to_ms`, the times of the trades around the gap. Both
    are NEVER_MS where that is not known: after a loss, when other rules say which minutes suffer.
    """

    first_id: int
    end_id: int
    from_ms: int
    to_ms: int

    @property
    def dated(self) -> bool:
        """Whether it is known when the missing trades were made."""
        return self.from_ms != NEVER_MS

    def minutes(self) -> tuple[int, int]:
        """Return the first and the last minute that hold or border the gap, by open time."""
        return MINUTE.floor(self.from_ms), MINUTE.floor(self.to_ms)


class _Longer(msgspec.Struct, gc=False):
    """The running bar of one interval longer than a minute, and the one sealed before it."""

    interval: Interval
    bar: Bar
    """Its source is SUSPECT once a restatement left it inexact, and says nothing before."""
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
    """Their bars lack the `unmerged` minutes."""
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
    official_ms: int = 0
    """The newest official minute that told the close, by open time."""
    traded_ms: int = 0
    """The newest sealed minute that may hold trades: all after it are empty."""
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
    gaps: list[_Gap] = field(default_factory=list)
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
    """Suspect minutes that hold trades and are no longer in `held`, by open time."""

    def __post_init__(self) -> None:
        self.look_for_next_end()

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
        self.merged_told = False
        """Whether `merged_bars` has been asked since the last tick."""
        self._longer_intervals = tuple(intervals[1:])
        self._pending: PendingMinute | None = None
        """Sums of trades that have reached their minute, but not yet its bar."""

    # -- Starting and stopping symbols ---------------------------------------------------------

    def load(self, seed: Seed) -> None:
        """Take up a symbol from a start snapshot whose cut is the shard's running minute."""
        self._settle([seed.symbol])
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
            resume_id=UNKNOWN_ID if seed.next_id is None else seed.next_id,
            last_trade_ms=seed.last_trade_ms or 0,
            traded_ms=self.minute_ms - MINUTE_MS,
            partials={bar.open_ms: bar for bar in seed.partials},
        )
        for first_ms, last_ms in seed.suspects:
            state.suspects.add(first_ms, last_ms)
            state.missing.add(first_ms, last_ms)
        self.states[seed.symbol] = state

    def seeds(self) -> list[Seed]:
        """Return the state of every symbol as of the running minute, as `load` takes it.

        What the running minute already holds is left out: after a restart those trades are
        missing, so the id that continues is that of the first trade not in a sealed bar.
        """
        self._settle()
        self._merge_all()
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
        minutes from its listing up to now went unseen: they are stored as suspect, or at least
        owed to repair where the listing was long ago.
        """
        facts = Facts()
        self._settle([symbol])
        if symbol in self.states:
            return facts
        listed_ms = MINUTE.floor(onboard_ms)
        recent = self.minute_ms - SEED_FILL_MS_MAX <= listed_ms <= self.minute_ms
        first_ms = listed_ms if recent else self.minute_ms
        longer = []
        for interval in self._longer_intervals:
            if interval.name == "3d":
                interval = interval.with_phase(three_day_phase_ms)
            open_ms = interval.floor(first_ms)
            unseen = max(0, first_ms - max(open_ms, listed_ms)) // MINUTE_MS
            bar = newborn(open_ms, interval.end(open_ms), price)
            longer.append(_Longer(interval, bar, unofficial_minutes=unseen))
        state = SymbolState(
            symbol=symbol,
            onboard_ms=onboard_ms,
            delivery_ms=delivery_ms,
            minute=newborn(first_ms, first_ms + MINUTE_MS, price),
            last_close=price,
            longer=longer,
            traded_ms=first_ms - MINUTE_MS,
        )
        self.states[symbol] = state
        unseen_ms = max(listed_ms, min((x.bar.open_ms for x in longer), default=first_ms))
        if unseen_ms < first_ms:
            state.missing.add(unseen_ms, first_ms - MINUTE_MS)
            _suspect(state, unseen_ms, first_ms - MINUTE_MS)
        while state.minute.open_ms < self.minute_ms:
            self._seal_minute(state, facts)
        facts.listings.append(Listing(symbol, onboard_ms, delivery_ms, three_day_phase_ms))
        facts.events.append(Event(self.minute_ms, "listed", symbol, f"seeded at {price}"))
        return facts

    def end_symbol_before(self, symbol: str, onboard_ms: int) -> Facts:
        """Seal and freeze a symbol whose ticker a contract listed at `onboard_ms` has taken."""
        facts = Facts()
        self._settle([symbol])
        state = self.states.get(symbol)
        if state is not None and state.onboard_ms < onboard_ms:
            self._freeze(state, facts)
        return facts

    def remove_symbol(self, symbol: str, delivery_ms: int) -> Facts:
        """Note when a symbol ends. The tick that passes that moment seals and freezes it."""
        facts = Facts()
        state = self.states.get(symbol)
        if state is not None and state.delivery_ms != delivery_ms:
            state.delivery_ms = delivery_ms
            phase_ms = _three_day_phase_ms(state)
            facts.listings.append(Listing(symbol, state.onboard_ms, delivery_ms, phase_ms))
        return facts

    # -- Trades --------------------------------------------------------------------------------

    def apply_trades(self, trades: Iterable[Trade]) -> Facts | None:
        """Put trades into their minutes. Returns None where that is all there is to say.

        This loop is the hot path of the program: the common case, a trade that continues its
        symbol's ids within the running minute, is written out here and calls nothing.
        """
        if self._pending is not None:
            trades = list(trades)
            self._settle({trade.symbol for trade in trades})
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

    def apply_runs(self, runs: TradeRuns) -> Facts | None:
        """Put trades that come as columns into their minutes: the same as `apply_trades`."""
        pending = self._pending
        if pending is None or pending.units is not runs.units or pending.full:
            self._settle()
            pending = self._pending = PendingMinute(runs.units)
        usual = self._go_on(pending, runs)
        if not usual.all():
            self._ask_next_ids(pending, runs)
            usual = self._go_on(pending, runs)
        if usual.all():
            pending.add(runs)
            self.trades.in_bars += runs.trades_count
            return None
        chosen = runs.part(usual)
        pending.add(chosen)
        self.trades.in_bars += chosen.trades_count
        unusual = runs.part(~usual)
        one_by_one = [trade for run in range(len(unusual)) for trade in unusual.trades_of(run)]
        return self.apply_trades(one_by_one)

    def _go_on(self, pending: PendingMinute, runs: TradeRuns) -> Booleans:
        """Return which runs continue their symbols' ids within the running minute."""
        table, minute_ms = runs.runs, self.minute_ms
        going_on: Booleans = table[CONTINUES] == pending.next_id.take(table[WHICH])
        if not runs.all_within(minute_ms, minute_ms + MINUTE_MS):
            going_on &= runs.within(minute_ms, minute_ms + MINUTE_MS)
        return going_on

    def _ask_next_ids(self, pending: PendingMinute, runs: TradeRuns) -> None:
        """Look up which ids continue those symbols of these runs that nobody has asked about."""
        states, symbols, next_id = self.states, runs.units.symbols, pending.next_id
        for index in runs.runs[WHICH].tolist():
            if next_id[index] == UNKNOWN:
                state = states.get(symbols[index])
                known = state is not None and state.next_id != _IN_DOUBT
                next_id[index] = state.next_id if state is not None and known else NEVER

    def _settle(self, symbols: Iterable[str] | None = None) -> None:
        """Bring the states of these symbols, or of all, up to date with what is pending."""
        if self._pending is None:
            return
        before = decimal.getcontext()
        decimal.setcontext(EXACT)
        try:
            for addition in self._pending.take(None if symbols is None else list(symbols)):
                _add_up(self.states[addition.symbol], addition)
        finally:
            decimal.setcontext(before)

    def _apply_unusual(self, state: SymbolState, trade: Trade, facts: Facts) -> None:
        """Apply a trade that jumps, repeats, is out of order, or is not of the running minute."""
        if trade.time_ms >= state.minute.end_ms + AHEAD_MS_MAX:
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
        in_doubt = state.next_id == _IN_DOUBT
        expected = state.resume_id if in_doubt else state.next_id
        if trade.id < expected:
            if self._fill_gap(state, trade, facts):
                return True
            if trade.time_ms <= state.last_trade_ms:
                return False
            self._renumber(state, trade, facts)  # newer than all that was seen: no duplicate
        elif in_doubt:
            self._weigh_doubt(state, trade, facts)
        elif trade.id > expected:
            self._open_gap(state, expected, trade, facts)
        if in_doubt and not _decides(state, trade):
            state.resume_id = trade.id + 1
        else:
            state.next_id, state.resume_id = trade.id + 1, UNKNOWN_ID
        return True

    def _weigh_doubt(self, state: SymbolState, trade: Trade, facts: Facts) -> None:
        """Let a trade after a loss, or after the start, tell whether any before it was missed.

        A trade made under the live feed decides. One made before tells about the time before it,
        and leaves the rest to the next one.
        """
        resume_id = state.resume_id
        known = resume_id != UNKNOWN_ID
        watched = state.lost_ms == NEVER_MS and state.last_trade_ms >= state.live_since_ms
        if known and (trade.id == resume_id or watched):
            if _decides(state, trade):
                self._prove(state, facts)
            if trade.id > resume_id:
                self._open_gap(state, resume_id, trade, facts)
            return
        self._give_up_doubt(state)
        state.trusted_since_ms = trade.time_ms
        if trade.time_ms >= state.minute.end_ms:  # flat so far, at a price that nobody knows
            state.missing.add(state.minute.open_ms, MINUTE.floor(trade.time_ms) - MINUTE_MS)
        if known:
            self._keep_gaps(state, [*state.gaps, _Gap(resume_id, trade.id, NEVER_MS, NEVER_MS)])
            text = f"missing aggregates: {trade.id - resume_id}, while the feed was down"
            facts.events.append(Event(trade.time_ms, "gap", state.symbol, text))

    def _prove(self, state: SymbolState, facts: Facts) -> None:
        """Clear what was suspect for want of proof: nothing was missed since the last loss."""
        state.live_since_ms = min(state.live_since_ms, state.trusted_since_ms)
        proven, state.doubtful = state.doubtful, Spans()
        for first_ms, last_ms in proven:
            whole_ms = max(first_ms, MINUTE.floor(state.live_since_ms + MINUTE_MS - 1))
            if first_ms < whole_ms:
                state.missing.add(first_ms, min(last_ms, whole_ms - MINUTE_MS))
            self._clear(state, whole_ms, last_ms, facts)

    def _give_up_doubt(self, state: SymbolState) -> None:
        """Leave to repair what no trade can prove any more."""
        for first_ms, last_ms in state.doubtful:
            state.missing.add(first_ms, last_ms)
        state.doubtful = Spans()

    def _open_gap(self, state: SymbolState, first_id: int, trade: Trade, facts: Facts) -> None:
        """Note that the ids from `first_id` up to this trade's were not seen under a live feed."""
        if trade.id - first_id > JUMP_MAX:
            self._renumber(state, trade, facts)
            return
        from_ms = min(state.last_trade_ms or trade.time_ms, trade.time_ms)
        to_ms = max(state.last_trade_ms, trade.time_ms)
        gap = _Gap(first_id, trade.id, from_ms, to_ms)
        self._keep_gaps(state, [*state.gaps, gap])
        first_ms, last_ms = gap.minutes()
        self._doubt(state, first_ms, last_ms, facts)
        text = f"missing aggregates: {trade.id - first_id}"
        facts.events.append(Event(trade.time_ms, "gap", state.symbol, text))

    def _keep_gaps(self, state: SymbolState, gaps: list[_Gap]) -> None:
        """Remember the newest gaps; leave the minutes of older ones to repair."""
        for gap in gaps[:-GAPS_MAX]:
            if gap.dated:
                state.missing.add(*gap.minutes())
        state.gaps = gaps[-GAPS_MAX:]

    def _renumber(self, state: SymbolState, trade: Trade, facts: Facts) -> None:
        """Start over from a trade whose id cannot be compared with the ids before it."""
        self._give_up_doubt(state)
        state.trusted_since_ms = trade.time_ms
        from_ms = min(state.last_trade_ms or trade.time_ms, trade.time_ms)
        to_ms = max(state.last_trade_ms, trade.time_ms)
        self._miss(state, MINUTE.floor(from_ms), MINUTE.floor(to_ms), facts)
        text = f"the numbering broke: {trade.id} after {max(state.next_id, state.resume_id) - 1}"
        facts.events.append(Event(trade.time_ms, "gap", state.symbol, text))

    def _fill_gap(self, state: SymbolState, trade: Trade, facts: Facts) -> bool:
        """Take an older id out of the gap it belongs to. False where it is in none."""
        gap = next((gap for gap in state.gaps if gap.first_id <= trade.id < gap.end_id), None)
        if gap is None:
            return False
        open_ms = MINUTE.floor(trade.time_ms)
        if open_ms < self.minute_ms and all(held.open_ms != open_ms for held in state.held):
            if state.suspects.holds(open_ms):
                # This trade will not get into its bar, nor its price into the flat ones after.
                last_ms = MINUTE.floor(gap.to_ms) - MINUTE_MS if gap.dated else open_ms
                state.missing.add(open_ms, max(open_ms, last_ms))
            elif not gap.dated and open_ms >= state.live_since_ms:
                self._miss(state, open_ms, open_ms, facts)
        at_ms = min(max(trade.time_ms, gap.from_ms), gap.to_ms)
        lower = _Gap(gap.first_id, trade.id, gap.from_ms, at_ms)
        upper = _Gap(trade.id + 1, gap.end_id, at_ms, gap.to_ms)
        pieces = [piece for piece in (lower, upper) if piece.first_id < piece.end_id]
        index = state.gaps.index(gap)
        self._keep_gaps(state, [*state.gaps[:index], *pieces, *state.gaps[index + 1 :]])
        if gap.dated:
            self._clear(state, *gap.minutes(), facts)
        return True

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
        if trade.id + 1 not in (state.next_id, state.resume_id):
            return  # it filled a gap, whose minutes are suspect already
        last_ms = open_ms
        if open_ms >= max(state.traded_ms, state.official_ms):
            last_ms = self.minute_ms - MINUTE_MS  # all since was flat, but not at this price
            self._reprice(state, open_ms, trade.price, facts)
        self._miss(state, open_ms, last_ms, facts)

    # -- The tick ------------------------------------------------------------------------------

    def tick(self, minute_ms: int) -> Facts:
        """Seal every bar that ends at or before `minute_ms`, in order, and open what begins."""
        facts = Facts()
        self._settle()
        self.merged_told = False
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
        facts.sealed.append(BarFact(state.symbol, MINUTE.name, bar))
        counts = self.bars
        counts.sealed += 1
        if bar.source == Source.SUSPECT:
            counts.suspect += 1
            _suspect(state, bar.open_ms, bar.open_ms)
        elif bar.source == Source.FLAT:
            counts.flat += 1
        self._hold(state, bar)
        if bar.count:
            state.traded, state.traded_ms = bar, bar.open_ms
        state.unmerged.append(bar)
        if state.longer_end_ms <= end_ms:
            state.merge()
            self._seal_longer(state, end_ms, bar.close, facts)
        elif len(state.unmerged) > UNMERGED_MAX:
            state.merge()
        state.last_close = bar.close
        state.minute = self._next_minute(state, end_ms, bar.close)

    def _seal_longer(self, state: SymbolState, end_ms: int, price: Decimal, facts: Facts) -> None:
        """Seal the longer bars that end by `end_ms`; open those that follow."""
        for longer in state.longer:
            running = longer.bar
            if running.end_ms <= end_ms:
                longer.previous = running
                if running.source == Source.SUSPECT:
                    longer.previous = None  # the store keeps it suspect until it is official
                else:
                    unofficial = longer.unofficial_minutes
                    running.source = self._source_of_longer(state, running, unofficial)
                facts.sealed.append(BarFact(state.symbol, longer.interval.name, running))
                self.bars.sealed += 1
                longer.bar = newborn(running.end_ms, longer.interval.end(running.end_ms), price)
                longer.previous_unofficial_minutes = longer.unofficial_minutes
                longer.unofficial_minutes = 0
        state.longer_born_ms = end_ms
        state.look_for_next_end()

    def _judge(self, state: SymbolState, bar: Bar) -> Source:
        """Decide whether a minute can be vouched for, at the moment when it is sealed."""
        if bar.end_ms <= state.onboard_ms:
            return Source.FLAT  # the clock was late when the symbol was listed
        if self._unproven(state, bar):
            in_doubt = state.next_id == _IN_DOUBT
            (state.doubtful if in_doubt else state.missing).add(bar.open_ms, bar.open_ms)
            return Source.SUSPECT
        if self._incomplete(state, bar):
            return Source.SUSPECT
        return Source.TRADES if bar.count else Source.FLAT

    def _unproven(self, state: SymbolState, bar: Bar) -> bool:
        """Whether nobody watched all of a minute, or its flat price is that of before a loss."""
        live_since_ms = state.live_since_ms
        if bar.open_ms < live_since_ms or bar.end_ms > state.lost_ms:
            return True
        if bar.count or state.next_id != _IN_DOUBT:
            return False
        return max(state.last_trade_ms, state.official_ms + MINUTE_MS) < live_since_ms

    def _incomplete(self, state: SymbolState, bar: Bar) -> bool:
        """Whether ids say that trades of a minute are missing."""
        if state.missing and state.missing.holds(bar.open_ms):
            return True
        if not state.gaps:
            return False
        return any(gap.from_ms < bar.end_ms and gap.to_ms >= bar.open_ms for gap in state.gaps)

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

    def _freeze(self, state: SymbolState, facts: Facts) -> None:
        """Seal a symbol that has ended, with what its longer bars hold, and let it go."""
        state.merge()
        for longer in state.longer:
            if longer.bar.open_ms >= self.minute_ms:
                continue  # it would have begun with the end
            bar = longer.bar.copy()
            if bar.source != Source.SUSPECT:
                bar.source = self._source_of_longer(state, bar, longer.unofficial_minutes)
            facts.sealed.append(BarFact(state.symbol, longer.interval.name, bar))
            self.bars.sealed += 1
        del self.states[state.symbol]
        facts.ended.append(state.symbol)
        facts.events.append(Event(self.minute_ms, "delisted", state.symbol, "sealed and frozen"))

    # -- Feeds ---------------------------------------------------------------------------------

    def feed_live(self, symbols: Iterable[str], since_ms: int) -> None:
        """From `since_ms` on, the feed of these symbols is provably alive."""
        symbols = list(symbols)
        self._settle(symbols)
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
        symbols = list(symbols)
        self._settle(symbols)
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
                state.doubtful.add(first_ms, self.minute_ms - MINUTE_MS)
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
        self._settle([symbol])
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
                if state is None or minute.open_ms < MINUTE.floor(state.onboard_ms):
                    facts.restated.append(BarFact(symbol, MINUTE.name, official))
                    self.bars.restated += 1
                    self.bars.official += 1
                else:
                    self._replace_minute(state, official, replaced.get(minute.open_ms), facts)
        finally:
            decimal.setcontext(before)
        return facts

    def _replace_minute(
        self, state: SymbolState, official: Bar, stored: Bar | None, facts: Facts
    ) -> None:
        """Put one official minute in the place of what is there, unless that is official too.

        A suspect minute that is not kept anywhere gave nothing to longer bars, unless it is
        among the unknown: then only `stored` can tell what it gave.
        """
        open_ms = official.open_ms
        if state.official.holds(open_ms):
            return  # two who asked for it at once
        suspect = state.suspects.holds(open_ms)
        held = next((held for held in state.held if held.open_ms == open_ms), None)
        old = held or state.partials.pop(open_ms, None)
        if old is None and suspect and not state.unknown.holds(open_ms):
            old = newborn(open_ms, official.end_ms, official.open)
        old = old or stored
        if old is not None and old.source == Source.OFFICIAL:
            old = None
        if old is None and not suspect:
            return
        self.bars.official += 1
        for spans in (state.suspects, state.doubtful, state.missing, state.unknown):
            spans.remove(open_ms, open_ms)
        self._restate(state, old, official, facts)

    def _restate(self, state: SymbolState, old: Bar | None, new: Bar, facts: Facts) -> None:
        """Exchange a sealed minute, wherever the memory holds it, for its restatement."""
        state.merge()
        facts.restated.append(BarFact(state.symbol, MINUTE.name, new))
        self.bars.restated += 1
        for index, held in enumerate(state.held):
            if held.open_ms == new.open_ms:
                state.held[index] = new
        if new.open_ms == state.traded_ms or (new.open_ms > state.traded_ms and new.count):
            state.traded, state.traded_ms = new, new.open_ms
        for longer in state.longer:
            self._restate_longer(state, longer, old, new, facts)
        if new.source == Source.OFFICIAL:
            state.official_ms = max(state.official_ms, new.open_ms)
            state.official.add(new.open_ms, new.open_ms)
            if len(state.official) > OFFICIAL_SPANS_MAX:
                state.official.remove(*next(iter(state.official)))
        self._reprice(state, new.open_ms, new.close, facts)

    def _restate_longer(
        self, state: SymbolState, longer: _Longer, old: Bar | None, new: Bar, facts: Facts
    ) -> None:
        """Exchange a minute in the running bar of one interval, or in the one sealed before."""
        turned_official = (new.source == Source.OFFICIAL) - (
            old is not None and old.source == Source.OFFICIAL
        )
        previous = longer.previous
        if longer.bar.open_ms <= new.open_ms:
            exact = old is not None and longer.bar.replace(old, new)
            longer.unofficial_minutes -= turned_official
            if not exact and longer.bar.source != Source.SUSPECT:
                longer.bar.source = Source.SUSPECT
                text = f"{longer.interval.name} needs its official bar"
                facts.events.append(Event(new.open_ms, "inexact", state.symbol, text))
        elif previous is not None and previous.open_ms <= new.open_ms < previous.end_ms:
            restated = previous.copy()
            longer.previous = restated
            longer.previous_unofficial_minutes -= turned_official
            if old is None or not restated.replace(old, new):
                longer.previous = None  # the store has its minutes, and makes it from them
                return
            restated.source = self._source_of_longer(
                state, restated, longer.previous_unofficial_minutes
            )
            facts.restated.append(BarFact(state.symbol, longer.interval.name, restated))
            self.bars.restated += 1

    def _reprice(self, state: SymbolState, from_ms: int, price: Decimal, facts: Facts) -> None:
        """Carry the close of a restated minute into the flat bars after it, up to the next trade.

        Flat minutes that are not held are suspect themselves where this price is news.
        """
        newest = from_ms >= max(state.traded_ms, state.official_ms)
        if not newest and (not state.held or from_ms < state.held[0].open_ms):
            return
        stop_ms = NEVER_MS
        for index, held in enumerate(state.held):
            if held.open_ms <= from_ms:
                continue
            if held.count or held.source == Source.OFFICIAL:
                stop_ms = held.open_ms
                break
            if held.close != price:
                state.held[index] = _flat_at(held, price)
                facts.restated.append(BarFact(state.symbol, MINUTE.name, state.held[index]))
                self.bars.restated += 1
        for longer in state.longer:
            previous = longer.previous
            if previous is None or previous.count or previous.close == price:
                continue
            if from_ms < previous.end_ms <= stop_ms:
                longer.previous = _flat_at(previous, price)
                facts.restated.append(BarFact(state.symbol, longer.interval.name, longer.previous))
                self.bars.restated += 1
        if newest:
            state.last_close = price
            for bar in (state.minute, *(longer.bar for longer in state.longer)):
                if not bar.count:  # traded minutes that wait to be merged overwrite it
                    bar.open = bar.high = bar.low = bar.close = price

    # -- Doubting and clearing -----------------------------------------------------------------

    def _miss(self, state: SymbolState, first_ms: int, last_ms: int, facts: Facts) -> None:
        """Leave minutes to repair, sealed or not."""
        state.missing.add(first_ms, last_ms)
        self._doubt(state, first_ms, last_ms, facts)

    def _doubt(self, state: SymbolState, first_ms: int, last_ms: int, facts: Facts) -> None:
        """Call those of these minutes suspect that are sealed already."""
        last_ms = min(last_ms, self.minute_ms - MINUTE_MS)
        if first_ms > last_ms:
            return
        _suspect(state, first_ms, last_ms)
        facts.proven = _without(facts.proven, state.symbol, first_ms, last_ms)
        facts.doubted.append(MinuteSpan(state.symbol, first_ms, last_ms))
        self._relabel(state, first_ms, last_ms, facts)

    def _clear(self, state: SymbolState, first_ms: int, last_ms: int, facts: Facts) -> None:
        """Call those of these minutes right for which no reason to doubt is left."""
        last_ms = min(last_ms, self.minute_ms - MINUTE_MS)
        if first_ms > last_ms:
            return
        clear = Spans()
        clear.add(first_ms, last_ms)
        for spans in (state.missing, state.doubtful):
            for span in spans:
                clear.remove(*span)
        for gap in state.gaps:
            if gap.dated:
                clear.remove(*gap.minutes())
        for first_ms, last_ms in clear:
            state.suspects.remove(first_ms, last_ms)
            state.unknown.remove(first_ms, last_ms)
            for open_ms in [x for x in state.partials if first_ms <= x <= last_ms]:
                del state.partials[open_ms]
            facts.doubted = _without(facts.doubted, state.symbol, first_ms, last_ms)
            facts.proven.append(MinuteSpan(state.symbol, first_ms, last_ms))
            self._relabel(state, first_ms, last_ms, facts)

    def _relabel(self, state: SymbolState, first_ms: int, last_ms: int, facts: Facts) -> None:
        """Give held minutes and sealed longer bars the source that now holds for them."""
        for index, held in enumerate(state.held):
            if first_ms <= held.open_ms <= last_ms and held.source != Source.OFFICIAL:
                relabelled = held.copy()
                suspect = state.suspects.holds(held.open_ms)
                relabelled.source = combined_source(held.count, suspect, official=False)
                state.held[index] = relabelled
        for longer in state.longer:
            previous = longer.previous
            if previous is not None and previous.open_ms <= last_ms and previous.end_ms > first_ms:
                source = self._source_of_longer(state, previous, longer.previous_unofficial_minutes)
                if source != previous.source:
                    longer.previous = previous.copy()
                    longer.previous.source = source
                    facts.restated.append(
                        BarFact(state.symbol, longer.interval.name, longer.previous)
                    )

    # -- Reading -------------------------------------------------------------------------------

    def running_minutes(self) -> list[RunningBar]:
        """Return the running minutes of all symbols, as of the newest trade."""
        self._settle()
        return [
            RunningBar(state.symbol, MINUTE.name, self._open_minute(state), state.minute.open_ms)
            for state in self.states.values()
        ]

    def merged_bars(self) -> list[RunningBar]:
        """Return what the running longer bars of all symbols have merged: their sealed minutes."""
        self.merged_told = True
        self._merge_all()
        running = []
        for state in self.states.values():
            for longer in state.longer:
                bar = longer.bar.copy()
                if bar.source != Source.SUSPECT:
                    bar.source = self._source_of_longer(state, bar, 1 + longer.unofficial_minutes)
                running.append(
                    RunningBar(state.symbol, longer.interval.name, bar, state.minute.open_ms)
                )
        return running

    def _merge_all(self) -> None:
        """Bring the longer bars of all symbols up to date."""
        before = decimal.getcontext()
        decimal.setcontext(EXACT)
        try:
            for state in self.states.values():
                state.merge()
        finally:
            decimal.setcontext(before)

    def births(self) -> list[Births]:
        """Return which longer bars the last tick opened."""
        open_ms = self.minute_ms
        born: dict[tuple[str, int], list[str]] = {}
        for state in self.states.values():
            if state.longer_born_ms != open_ms:
                continue
            for longer in state.longer:
                if longer.bar.open_ms == open_ms:
                    key = longer.interval.name, longer.bar.end_ms
                    born.setdefault(key, []).append(state.symbol)
        return [Births(name, open_ms, end_ms, who) for (name, end_ms), who in born.items()]

    def open_bars(self) -> list[BarFact]:
        """Return the running bars of all symbols and intervals, as of the newest trade."""
        self._settle()
        self._merge_all()
        facts = []
        before = decimal.getcontext()
        decimal.setcontext(EXACT)
        try:
            for state in self.states.values():
                minute = self._open_minute(state)
                facts.append(BarFact(state.symbol, MINUTE.name, minute))
                for longer in state.longer:
                    bar = longer.bar.copy()
                    bar.absorb(minute)
                    if Source.SUSPECT not in (bar.source, minute.source):
                        bar.source = self._source_of_longer(
                            state, bar, 1 + longer.unofficial_minutes
                        )
                    else:
                        bar.source = Source.SUSPECT
                    facts.append(BarFact(state.symbol, longer.interval.name, bar))
        finally:
            decimal.setcontext(before)
        return facts

    def _open_minute(self, state: SymbolState) -> Bar:
        """Return a copy of the running minute with the source it would have if it ended now."""
        minute = state.minute.copy()
        minute.source = Source.TRADES if minute.count else Source.FLAT
        if self._unproven(state, minute) or self._incomplete(state, minute):
            minute.source = Source.SUSPECT
        return minute

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
        for gap in state.gaps:
            if gap.dated and gap.to_ms >= self.minute_ms:
                next_id = min(next_id, gap.first_id)
        if state.missing.meets(self.minute_ms, NEVER_MS):
            next_id = UNKNOWN_ID
        suspects = Spans(list(state.suspects))
        partials = [bar for bar in state.held if bar.source == Source.SUSPECT and bar.count]
        return Seed(
            symbol=state.symbol,
            onboard_ms=state.onboard_ms,
            delivery_ms=state.delivery_ms,
            last_close=state.last_close,
            next_id=None if next_id == UNKNOWN_ID else next_id,
            last_trade_ms=min(state.last_trade_ms, self.minute_ms - 1) or None,
            three_day_phase_ms=_three_day_phase_ms(state),
            open_bars=tuple(
                OpenBar(x.interval.name, x.bar.copy(), x.unofficial_minutes) for x in state.longer
            ),
            suspects=tuple(suspects),
            partials=(*state.partials.values(), *partials),
        )


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


def _three_day_phase_ms(state: SymbolState) -> int:
    return next((x.interval.phase_ms for x in state.longer if x.interval.name == "3d"), 0)


def _suspect(state: SymbolState, first_ms: int, last_ms: int) -> None:
    """Add sealed minutes to the suspects; keep, or at least note, what they gave to longer bars.

    Minutes that are held need no care, minutes after the newest trade are empty, and suspects of
    before were taken care of then. A minute that is official already is no suspect.
    """
    held_from_ms = state.held[0].open_ms if state.held else state.minute.open_ms
    unkept = Spans()
    unkept_last_ms = min(last_ms, held_from_ms - MINUTE_MS, state.traded_ms)
    if first_ms <= unkept_last_ms:
        unkept.add(first_ms, unkept_last_ms)
    for span in state.suspects:
        unkept.remove(*span)
    traded = state.traded
    if traded is not None and unkept.holds(traded.open_ms):
        unkept.remove(traded.open_ms, traded.open_ms)
        state.partials[traded.open_ms] = traded
    blurred = state.suspects.add(first_ms, last_ms)
    if blurred is not None:
        unkept.add(*blurred)
    for span in unkept:
        state.unknown.add(*span)
    for span in state.official:
        for spans in (state.suspects, state.unknown):
            spans.remove(*span)


def _decides(state: SymbolState, trade: Trade) -> bool:
    """Whether this trade, or one before it, was made while the feed of its symbol was live."""
    newest_ms = max(trade.time_ms, state.last_trade_ms)
    return state.lost_ms == NEVER_MS and newest_ms >= state.live_since_ms


def _flat_at(bar: Bar, price: Decimal) -> Bar:
    """Return a bar without trades at another price."""
    flat = newborn(bar.open_ms, bar.end_ms, price)
    flat.source = bar.source
    return flat


def _without(spans: list[MinuteSpan], symbol: str, first_ms: int, last_ms: int) -> list[MinuteSpan]:
    """Return the spans less some minutes of one symbol: what is said last of a minute holds."""
    kept = []
    for span in spans:
        if span.symbol != symbol:
            kept.append(span)
            continue
        rest = Spans([(span.first_ms, span.last_ms)])
        rest.remove(first_ms, last_ms)
        kept.extend(MinuteSpan(symbol, *piece) for piece in rest)
    return kept
