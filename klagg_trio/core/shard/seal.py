"""The tick: the only thing that seals bars and opens new ones."""

from __future__ import annotations

import decimal
from decimal import Decimal

from klagg_trio.core.bar import EXACT, Bar, Source, newborn
from klagg_trio.core.facts import BarFact, Event, Facts
from klagg_trio.core.intervals import MINUTE, MINUTE_MS
from klagg_trio.core.shard.evidence import judge
from klagg_trio.core.shard.restate import suspect
from klagg_trio.core.shard.state import HELD_MINUTES, UNMERGED_MAX, ShardState, SymbolState


def seal_until(shard: ShardState, minute_ms: int, facts: Facts) -> None:
    """Seal every bar that ends at or before `minute_ms`, in order, and open what begins."""
    shard.settle()
    shard.merged_told = False
    with decimal.localcontext(EXACT):
        while shard.minute_ms < minute_ms:
            shard.minute_ms += MINUTE_MS
            ended = []
            for state in shard.symbols.values():
                seal_minute(shard, state, facts)
                if state.delivery_ms <= shard.minute_ms:
                    ended.append(state)
            for state in ended:
                freeze(shard, state, facts)


def seal_minute(shard: ShardState, state: SymbolState, facts: Facts) -> None:
    """Seal a symbol's running minute and what ends with it; open what begins."""
    bar = state.minute
    end_ms = bar.end_ms
    bar.source = judge(state, bar)
    facts.sealed.append(BarFact(state.symbol, MINUTE.name, bar))
    counts = shard.bars
    counts.sealed += 1
    if bar.source == Source.SUSPECT:
        counts.suspect += 1
        suspect(state, bar.open_ms, bar.open_ms)
    elif bar.source == Source.FLAT:
        counts.flat += 1
    _hold(state, bar)
    if bar.count:
        state.traded, state.traded_ms = bar, bar.open_ms
    state.unmerged.append(bar)
    if state.longer_end_ms <= end_ms:
        state.merge()
        _seal_longer(shard, state, end_ms, bar.close, facts)
    elif len(state.unmerged) > UNMERGED_MAX:
        state.merge()
    state.last_close = bar.close
    state.minute = _next_minute(state, end_ms, bar.close)


def _seal_longer(
    shard: ShardState, state: SymbolState, end_ms: int, price: Decimal, facts: Facts
) -> None:
    """Seal the longer bars that end by `end_ms`; open those that follow."""
    for longer in state.longer:
        running = longer.bar
        if running.end_ms <= end_ms:
            longer.previous = running
            if running.source == Source.SUSPECT:
                longer.previous = None  # the store keeps it suspect until it is official
            else:
                running.source = state.source_of_longer(running, longer.unofficial_minutes)
            facts.sealed.append(BarFact(state.symbol, longer.interval.name, running))
            shard.bars.sealed += 1
            longer.bar = newborn(running.end_ms, longer.interval.end(running.end_ms), price)
            longer.previous_unofficial_minutes = longer.unofficial_minutes
            longer.unofficial_minutes = 0
    state.longer_born_ms = end_ms
    state.look_for_next_end()


def _next_minute(state: SymbolState, open_ms: int, price: Decimal) -> Bar:
    if state.ahead:
        ahead = state.ahead.pop(open_ms, None)
        if ahead is not None:
            return ahead
    return newborn(open_ms, open_ms + MINUTE_MS, price)


def _hold(state: SymbolState, bar: Bar) -> None:
    """Keep a sealed minute for late trades; forget what is too old for them."""
    held = state.held
    held.append(bar)
    if len(held) > HELD_MINUTES:
        oldest = held.pop(0)
        if oldest.source == Source.SUSPECT and oldest.count:
            state.keep_partial(oldest)


def freeze(shard: ShardState, state: SymbolState, facts: Facts) -> None:
    """Seal a symbol that has ended, with what its longer bars hold, and let it go."""
    state.merge()
    for longer in state.longer:
        if longer.bar.open_ms >= shard.minute_ms:
            continue  # it would have begun with the end
        bar = longer.bar.copy()
        if bar.source != Source.SUSPECT:
            bar.source = state.source_of_longer(bar, longer.unofficial_minutes)
        facts.sealed.append(BarFact(state.symbol, longer.interval.name, bar))
        shard.bars.sealed += 1
    del shard.symbols[state.symbol]
    facts.ended.append(state.symbol)
    facts.events.append(Event(shard.minute_ms, "delisted", state.symbol, "sealed and frozen"))
