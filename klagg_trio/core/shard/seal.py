"""The tick: the only thing that seals bars and opens new ones."""

from __future__ import annotations

import decimal
from decimal import Decimal
from typing import Final

from klagg_trio.core.bar import EXACT, Bar, Source, newborn
from klagg_trio.core.facts import BarFact, Facts, Listing
from klagg_trio.core.intervals import MINUTE, MINUTE_MS
from klagg_trio.core.shard.evidence import judge
from klagg_trio.core.shard.restate import suspect
from klagg_trio.core.shard.state import HELD_MINUTES, UNMERGED_MAX, ShardState, SymbolState

LAG_MINUTES_MAX: Final = 1_440
"""Minutes by which a symbol that has come back is caught up with at one tick: some 20 ms."""


def seal_until(shard: ShardState, minute_ms: int, facts: Facts) -> None:
    """Seal every bar that ends at or before `minute_ms`, in order, and open what begins."""
    shard.settle()
    shard.merged_told = False
    with decimal.localcontext(EXACT):
        while shard.minute_ms < minute_ms:
            shard.minute_ms += MINUTE_MS
            for state in shard.symbols.values():
                if state.minute.end_ms == shard.minute_ms:
                    seal_minute(shard, state, facts)
        for state in shard.symbols.values():
            if state.minute.open_ms < shard.minute_ms:
                catch_up(shard, state, facts)


def catch_up(shard: ShardState, state: SymbolState, facts: Facts) -> None:
    """Seal the next of the minutes that a symbol missed while it was away. Runs under EXACT."""
    for _ in range(LAG_MINUTES_MAX):
        if state.minute.open_ms >= shard.minute_ms:
            return
        seal_minute(shard, state, facts)


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
                running.source = state.source_of_longer(
                    running, longer.unofficial_minutes, longer.absent_minutes
                )
            # What went on from what is stored has been stored in part: it is told anew.
            told = facts.restated if longer.resumed else facts.sealed
            told.append(BarFact(state.symbol, longer.interval.name, running))
            shard.bars.sealed += 1
            longer.bar = newborn(running.end_ms, longer.interval.end(running.end_ms), price)
            longer.previous_unofficial_minutes = longer.unofficial_minutes
            longer.previous_absent_minutes = longer.absent_minutes
            longer.unofficial_minutes = longer.absent_minutes = 0
            longer.resumed = False
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
    """Seal a symbol that has ended, with what its longer bars hold, and let it go.

    Its bars end with the minute sealed last: that is its delivery as far as anybody can tell.
    """
    state.merge()
    end_ms = state.minute.open_ms
    for longer in state.longer:
        if longer.bar.open_ms >= end_ms:
            continue  # it would have begun with the end
        bar = longer.bar.copy()
        if bar.source != Source.SUSPECT:
            bar.source = state.source_of_longer(bar, longer.unofficial_minutes, 0)
        told = facts.restated if longer.resumed else facts.sealed
        told.append(BarFact(state.symbol, longer.interval.name, bar))
        shard.bars.sealed += 1
    del shard.symbols[state.symbol]
    facts.ended.append(state.symbol)
    facts.listings.append(
        Listing(
            state.symbol,
            state.onboard_ms,
            end_ms,
            state.three_day_phase_ms,
            state.first_ms,
            "ENDED",
        )
    )
