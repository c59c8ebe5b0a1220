"""How trades get into their minutes, one by one or as columns.

What only goes on, ids and minute, is the usual case and is written out once for each of the two. A
trade that does anything else is taken one by one, by the rules of `evidence`.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterable
from typing import Final

from klagg_trio.core.bar import EXACT, newborn
from klagg_trio.core.columns import (
    CONTINUES,
    NEVER,
    UNKNOWN,
    WHICH,
    Booleans,
    PendingMinute,
    TradeRuns,
)
from klagg_trio.core.facts import Event, Facts
from klagg_trio.core.intervals import MINUTE, MINUTE_MS
from klagg_trio.core.shard.evidence import Findings, admit, contradicts, feed_lost
from klagg_trio.core.shard.restate import apply_findings, apply_late
from klagg_trio.core.shard.state import ShardState, SymbolState
from klagg_trio.core.trade import Trade

AHEAD_MS_MAX: Final = 10 * MINUTE_MS
"""Where exchange time is not sure, a trade further ahead of the shard's clock is nonsense."""

LEAD_MS_MAX: Final = 5_000
"""Where it is sure, a trade further ahead of it is: however far behind the shard is."""

AHEAD_BARS_MAX: Final = 16
"""Minutes ahead of the shard's that a symbol may have trades in, while it catches up."""

BEHIND_MS_MAX: Final = 15 * MINUTE_MS
"""A trade further behind is nonsense too: streams repeat nothing, and ids tell what was missed."""


def apply_trades(shard: ShardState, trades: Iterable[Trade]) -> Facts | None:
    """Put trades into their minutes. Returns None where that is all there is to say.

    This loop is the hot path of the program: the common case, a trade that continues its symbol's
    ids within the running minute, is written out here and calls nothing.
    """
    if shard.pending is not None:
        trades = list(trades)
        shard.settle({trade.symbol for trade in trades})
    facts: Facts | None = None
    states, counts = shard.symbols, shard.trades
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
                _apply_unusual(shard, state, trade, facts)
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


def apply_runs(shard: ShardState, runs: TradeRuns) -> Facts | None:
    """Put trades that come as columns into their minutes: the same as `apply_trades`."""
    pending = shard.pending
    if pending is None or pending.units is not runs.units or pending.full:
        shard.settle()
        pending = shard.pending = PendingMinute(runs.units)
    usual = _go_on(shard, pending, runs)
    if not usual.all():
        _ask_next_ids(shard, pending, runs)
        usual = _go_on(shard, pending, runs)
    if usual.all():
        pending.add(runs)
        shard.trades.in_bars += runs.trades_count
        return None
    chosen = runs.part(usual)
    pending.add(chosen)
    shard.trades.in_bars += chosen.trades_count
    unusual = runs.part(~usual)
    one_by_one = [trade for run in range(len(unusual)) for trade in unusual.trades_of(run)]
    return apply_trades(shard, one_by_one)


def _go_on(shard: ShardState, pending: PendingMinute, runs: TradeRuns) -> Booleans:
    """Return which runs continue their symbols' ids within the running minute."""
    table, minute_ms = runs.runs, shard.minute_ms
    going_on: Booleans = table[CONTINUES] == pending.next_id.take(table[WHICH])
    if not runs.all_within(minute_ms, minute_ms + MINUTE_MS):
        going_on &= runs.within(minute_ms, minute_ms + MINUTE_MS)
    return going_on


def _ask_next_ids(shard: ShardState, pending: PendingMinute, runs: TradeRuns) -> None:
    """Look up which ids continue those symbols of these runs that nobody has asked about."""
    states, symbols, next_id = shard.symbols, runs.units.symbols, pending.next_id
    for index in runs.runs[WHICH].tolist():
        if next_id[index] == UNKNOWN:
            state = states.get(symbols[index])
            known = None
            if state is not None and state.minute.open_ms == shard.minute_ms:
                known = state.next_id
            next_id[index] = NEVER if known is None else known


def refuse(shard: ShardState, state: SymbolState, time_ms: int | None, facts: Facts) -> None:
    """Doubt the minute that lacks a refused trade: that of its time, or else the last two.

    It is as if the feed had been lost for that minute. The price after it is doubtful too, and the
    next trade tells by its id whether something is missing; nothing else of the trade is believed.
    """
    at_ms = time_ms if time_ms is not None and _may_be(shard, time_ms) else None
    if at_ms is not None:
        open_ms = MINUTE.floor(at_ms)
        end_ms = open_ms + MINUTE_MS
    else:  # it came now, and was on its way for no longer than a minute
        open_ms, end_ms = state.last_sealed_ms, state.minute.end_ms
        if shard.now_ms is not None:  # the shard may be behind
            end_ms = max(end_ms, MINUTE.floor(shard.now_ms) + MINUTE_MS)
    if time_ms is not None and end_ms <= time_ms < end_ms + AHEAD_MS_MAX:
        # Should it be the clock that is wrong, that minute lacks it.
        state.missing.add(MINUTE.floor(time_ms), MINUTE.floor(time_ms))
    if state.live_since_ms is None or state.live_since_ms >= end_ms:
        return  # nobody vouches for that minute anyhow
    findings = Findings()
    was_live = state.lost_ms is None
    feed_lost(state, open_ms, findings)
    if was_live:
        state.live_since_ms, state.lost_ms = end_ms, None
    findings.events.append(
        Event(shard.minute_ms, "rejected", state.symbol, "a trade was refused; its minute is owed")
    )
    apply_findings(state, findings, facts)


def _may_be(shard: ShardState, time_ms: int) -> bool:
    """Whether a trade may have been made at that time, by the clock."""
    if shard.now_ms is not None:
        latest_ms = max(shard.now_ms + LEAD_MS_MAX, shard.minute_ms + MINUTE_MS)
    else:
        latest_ms = shard.minute_ms + MINUTE_MS + AHEAD_MS_MAX
    return shard.minute_ms - BEHIND_MS_MAX <= time_ms < latest_ms


def _is_one_too_far(state: SymbolState, trade: Trade) -> bool:
    """Whether a trade would need one more minute ahead than there may be."""
    if len(state.ahead) < AHEAD_BARS_MAX or trade.time_ms < state.minute.end_ms:
        return False
    return MINUTE.floor(trade.time_ms) not in state.ahead


def _apply_unusual(shard: ShardState, state: SymbolState, trade: Trade, facts: Facts) -> None:
    """Apply a trade that jumps, repeats, is out of order, or is not of the running minute."""
    if not _may_be(shard, trade.time_ms) or _is_one_too_far(state, trade):
        shard.trades.rejected += 1
        refuse(shard, state, trade.time_ms, facts)
        return
    if contradicts(state, trade):
        shard.trades.rejected += 1
        if trade.time_ms >= state.minute.open_ms:  # its own time may be right after all
            open_ms = MINUTE.floor(trade.time_ms)
            state.missing.add(open_ms, open_ms)
        refuse(shard, state, None, facts)
        return
    findings = Findings()
    admitted = admit(state, trade, findings)
    apply_findings(state, findings, facts)
    if not admitted:
        shard.trades.duplicate += 1
        return
    if state.last_trade_ms is None or trade.time_ms > state.last_trade_ms:
        state.last_trade_ms = trade.time_ms
    minute = state.minute
    if trade.time_ms < minute.open_ms:
        shard.trades.late += 1
        apply_late(shard, state, trade, facts)
        return
    if trade.time_ms >= minute.end_ms:
        open_ms = MINUTE.floor(trade.time_ms)
        minute = state.ahead.setdefault(
            open_ms, newborn(open_ms, open_ms + MINUTE_MS, state.last_close)
        )
    minute.add(trade)
    shard.trades.in_bars += 1
