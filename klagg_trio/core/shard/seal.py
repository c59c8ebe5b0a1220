"""The tick: the only thing that seals bars and opens new ones."""

from __future__ import annotations

import decimal
from decimal import Decimal
from typing import Final

from klagg_trio.core.bar import EXACT, Bar, Source, newborn
from klagg_trio.core.facts import BarFact, Facts, FlatSpan, Listing
from klagg_trio.core.intervals import MINUTE, MINUTE_MS
from klagg_trio.core.shard.evidence import judge, judge_quiet
from klagg_trio.core.shard.restate import suspect
from klagg_trio.core.shard.state import HELD_MINUTES, UNMERGED_MAX, Longer, ShardState, SymbolState

STRETCH_MS_MIN: Final = 8 * MINUTE_MS
"""Minutes this many are looked at as a stretch: fewer are as quick one by one."""

LAG_MINUTES_MAX: Final = 1_440
"""Minutes by which a symbol that has come back is caught up with at one tick: some 20 ms."""


def seal_until(shard: ShardState, minute_ms: int, facts: Facts) -> None:
    """Seal every bar that ends at or before `minute_ms`, in order, and open what begins."""
    shard.settle()
    shard.merged_told = False
    with decimal.localcontext(EXACT):
        if minute_ms - shard.minute_ms >= STRETCH_MS_MIN:
            before_ms, shard.minute_ms = shard.minute_ms, minute_ms
            for state in shard.symbols.values():
                if state.minute.open_ms >= before_ms:
                    seal_through(shard, state, minute_ms, facts)
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
    slice_ms = state.minute.open_ms + LAG_MINUTES_MAX * MINUTE_MS
    seal_through(shard, state, min(shard.minute_ms, slice_ms), facts)


def seal_through(shard: ShardState, state: SymbolState, until_ms: int, facts: Facts) -> None:
    """Seal a symbol's minutes up to a time, long stretches without a trade as spans.

    Runs under EXACT.
    """
    while state.minute.open_ms < until_ms:
        quiet = None
        if until_ms - state.minute.open_ms >= STRETCH_MS_MIN:
            quiet = judge_quiet(state, until_ms)
        if quiet is None:
            seal_minute(shard, state, facts)
        else:
            _seal_quiet(shard, state, *quiet, facts)


def _seal_quiet(
    shard: ShardState, state: SymbolState, end_ms: int, source: Source, facts: Facts
) -> None:
    """Seal minutes without a trade, from the running one on, that are judged alike already."""
    first_ms, last_ms, price = state.minute.open_ms, end_ms - MINUTE_MS, state.minute.close
    state.merge()
    span = FlatSpan(state.symbol, MINUTE.name, first_ms, end_ms, price, source)
    _count(shard, span, facts)
    if source == Source.SUSPECT:
        suspect(state, first_ms, last_ms)
    held_ms = max(first_ms, end_ms - HELD_MINUTES * MINUTE_MS)
    for bar in span._replace(first_ms=held_ms).bars():
        _hold(state, bar)
    for longer in state.longer:
        _lengthen(shard, state, longer, span, facts)
        if longer.bar.open_ms == end_ms:
            state.longer_born_ms = end_ms
    state.look_for_next_end()
    state.last_close = price
    state.minute = _next_minute(state, end_ms, price)


def _lengthen(
    shard: ShardState, state: SymbolState, longer: Longer, span: FlatSpan, facts: Facts
) -> None:
    """Take a span of flat minutes into a longer bar, and into all that follow it."""
    interval, at_ms = longer.interval, span.first_ms
    while longer.bar.end_ms <= span.end_ms:
        whole_ms = 0
        if interval.length_ms and at_ms == longer.bar.open_ms and not longer.resumed:
            whole_ms = (span.end_ms - at_ms) // interval.length_ms * interval.length_ms
        if whole_ms <= interval.length_ms:
            longer.unofficial_minutes += (longer.bar.end_ms - at_ms) // MINUTE_MS
            at_ms = longer.bar.end_ms
            _seal_one_longer(shard, state, longer, span.price, facts)
            continue
        at_ms += whole_ms
        whole = span._replace(interval=interval.name, first_ms=longer.bar.open_ms, end_ms=at_ms)
        _count(shard, whole, facts)
        (longer.previous,) = whole._replace(first_ms=at_ms - interval.length_ms).bars()
        longer.previous_unofficial_minutes = interval.length_ms // MINUTE_MS
        longer.previous_absent_minutes = 0
        longer.bar = newborn(at_ms, interval.end(at_ms), span.price)
    longer.unofficial_minutes += (span.end_ms - at_ms) // MINUTE_MS


def _count(shard: ShardState, span: FlatSpan, facts: Facts) -> None:
    """Tell of a span of sealed bars."""
    facts.flats.append(span)
    shard.bars.sealed += span.size
    if span.interval == MINUTE.name:
        if span.source == Source.SUSPECT:
            shard.bars.suspect += span.size
        else:
            shard.bars.flat += span.size


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
        if longer.bar.end_ms <= end_ms:
            _seal_one_longer(shard, state, longer, price, facts)
    state.longer_born_ms = end_ms
    state.look_for_next_end()


def _seal_one_longer(
    shard: ShardState, state: SymbolState, longer: Longer, price: Decimal, facts: Facts
) -> None:
    running = longer.bar
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
