"""Changes to bars that are sealed: what evidence found, late trades, the exchange's own minutes.

To restate a longer bar one has to know what the old minute gave to it. So a suspect minute that
holds trades is kept until it is repaired: in `held`, or as `traded`, or among the `partials`. All
others gave nothing, but for the few in `unknown`. All sealed suspect minutes of a symbol together
are its `suspects`; the source of a longer bar is derived from them.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from klagg_trio.core.bar import Bar, Source, combined_source, newborn
from klagg_trio.core.facts import BarFact, Event, Facts, MinuteSpan
from klagg_trio.core.gaps import Spans
from klagg_trio.core.intervals import MINUTE, MINUTE_MS
from klagg_trio.core.shard.evidence import Findings
from klagg_trio.core.shard.state import Longer, ShardState, SymbolState, flat_at
from klagg_trio.core.trade import Trade

OFFICIAL_SPANS_MAX: Final = 32
"""Spans of official minutes remembered per symbol. Doubt never reaches back further than a few."""


# -- Doubting and clearing -------------------------------------------------------------------------


def apply_findings(state: SymbolState, findings: Findings, facts: Facts) -> None:
    """Do to sealed bars what evidence has found, in its order."""
    for is_doubt, first_ms, last_ms in findings.steps:
        (doubt if is_doubt else clear)(state, first_ms, last_ms, facts)
    facts.events.extend(findings.events)


def doubt(state: SymbolState, first_ms: int, last_ms: int, facts: Facts) -> None:
    """Call those of these minutes suspect that are sealed already."""
    last_ms = min(last_ms, state.last_sealed_ms)
    if first_ms > last_ms:
        return
    suspect(state, first_ms, last_ms)
    facts.proven = _without(facts.proven, state.symbol, first_ms, last_ms)
    facts.doubted.append(MinuteSpan(state.symbol, first_ms, last_ms))
    _relabel(state, first_ms, last_ms, facts)


def clear(state: SymbolState, first_ms: int, last_ms: int, facts: Facts) -> None:
    """Call those of these minutes right for which no reason to doubt is left."""
    last_ms = min(last_ms, state.last_sealed_ms)
    if first_ms > last_ms:
        return
    right = Spans()
    right.add(first_ms, last_ms)
    for spans in (state.missing, state.doubtful):
        for span in spans:
            right.remove(*span)
    for gap in state.gaps:
        if span_of_gap := gap.minutes():
            right.remove(*span_of_gap)
    for first_ms, last_ms in right:
        state.suspects.remove(first_ms, last_ms)
        state.unknown.remove(first_ms, last_ms)
        for open_ms in [x for x in state.partials if first_ms <= x <= last_ms]:
            del state.partials[open_ms]
        facts.doubted = _without(facts.doubted, state.symbol, first_ms, last_ms)
        facts.proven.append(MinuteSpan(state.symbol, first_ms, last_ms))
        _relabel(state, first_ms, last_ms, facts)


def suspect(state: SymbolState, first_ms: int, last_ms: int) -> None:
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
        state.keep_partial(traded)
    blurred = state.suspects.add(first_ms, last_ms)
    if blurred is not None:
        unkept.add(*blurred)
    for span in unkept:
        state.unknown.add(*span)
    for span in state.official:
        for spans in (state.suspects, state.unknown):
            spans.remove(*span)


def _relabel(state: SymbolState, first_ms: int, last_ms: int, facts: Facts) -> None:
    """Give held minutes and sealed longer bars the source that now holds for them."""
    for index, held in enumerate(state.held):
        settled = held.source in (Source.OFFICIAL, Source.ABSENT)
        if first_ms <= held.open_ms <= last_ms and (
            not settled or state.suspects.holds(held.open_ms)
        ):
            relabelled = held.copy()
            is_suspect = state.suspects.holds(held.open_ms)
            relabelled.source = combined_source(held.count, is_suspect, official=False)
            state.held[index] = relabelled
    for longer in state.longer:
        previous = longer.previous
        if previous is not None and previous.open_ms <= last_ms and previous.end_ms > first_ms:
            source = state.source_of_longer(
                previous, longer.previous_unofficial_minutes, longer.previous_absent_minutes
            )
            if source != previous.source:
                longer.previous = previous.copy()
                longer.previous.source = source
                facts.restated.append(BarFact(state.symbol, longer.interval.name, longer.previous))


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


# -- Late trades -----------------------------------------------------------------------------------


def apply_late(shard: ShardState, state: SymbolState, trade: Trade, facts: Facts) -> None:
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
            restate(shard, state, held, restated, facts)
            return
    if trade.id + 1 not in (state.next_id, state.resume_id):
        return  # it filled a gap, whose minutes are suspect already
    last_ms = open_ms
    if state.tells_the_close(open_ms):
        last_ms = state.last_sealed_ms  # all since was flat, but not at this price
        _reprice(shard, state, open_ms, trade.price, facts)
    state.missing.add(open_ms, last_ms)
    doubt(state, open_ms, last_ms, facts)


# -- The exchange's own minutes --------------------------------------------------------------------


def replace_minute(
    shard: ShardState, state: SymbolState, official: Bar, stored: Bar | None, facts: Facts
) -> None:
    """Put one official minute in the place of what is there.

    An official minute gives way only to another official one with other values: the exchange has
    corrected it. A suspect minute that is not kept anywhere gave nothing to longer bars, unless it
    is among the unknown: then only `stored` can tell what it gave.
    """
    open_ms = official.open_ms
    is_suspect = state.suspects.holds(open_ms)
    held = next((held for held in state.held if held.open_ms == open_ms), None)
    old = held or state.partials.pop(open_ms, None)
    if old is None and is_suspect and not state.unknown.holds(open_ms):
        old = newborn(open_ms, official.end_ms, official.open)
    old = old or stored
    was_official = old is not None and old.source == Source.OFFICIAL
    if state.official.holds(open_ms) and not was_official:
        return  # two who asked for it at once
    if old is None and not is_suspect:
        return
    if was_official and old is not None and old.values() == official.values():
        return
    shard.bars.official += not was_official
    for spans in (state.suspects, state.doubtful, state.missing, state.unknown):
        spans.remove(open_ms, open_ms)
    restate(shard, state, old, official, facts)


def make_absent(state: SymbolState, first_ms: int, last_ms: int, facts: Facts) -> None:
    """Settle those of these minutes that are owed: the exchange itself has no klines for them.

    A minute of which trades were received is none of them: two witnesses contradict each other, so
    it stays owed.
    """
    state.merge()
    absent = Spans()
    for first, last in state.suspects:
        if first <= last_ms and last >= first_ms:
            absent.add(max(first, first_ms), min(last, last_ms))
    traded = {bar.open_ms for bar in state.held if bar.count} | state.partials.keys()
    for open_ms in traded:
        absent.remove(open_ms, open_ms)
    for first, last in absent:
        for spans in (state.suspects, state.doubtful, state.missing, state.unknown):
            spans.remove(first, last)
        for index, held in enumerate(state.held):
            if first <= held.open_ms <= last:
                state.held[index] = flat_at(held, held.close)
                state.held[index].source = Source.ABSENT
        for longer in state.longer:
            _lack(longer, first, last)
        facts.absent.append(MinuteSpan(state.symbol, first, last))
        _relabel(state, first, last, facts)


def _lack(longer: Longer, first_ms: int, last_ms: int) -> None:
    """Take absent minutes out of those that make a longer bar unofficial."""
    minutes = _minutes_within(longer.bar, first_ms, last_ms)
    longer.absent_minutes += minutes
    longer.unofficial_minutes -= minutes
    if longer.previous is not None:
        minutes = _minutes_within(longer.previous, first_ms, last_ms)
        longer.previous_absent_minutes += minutes
        longer.previous_unofficial_minutes -= minutes


def _minutes_within(bar: Bar, first_ms: int, last_ms: int) -> int:
    shared_ms = min(last_ms + MINUTE_MS, bar.end_ms) - max(first_ms, bar.open_ms)
    return max(0, shared_ms // MINUTE_MS)


def restate(shard: ShardState, state: SymbolState, old: Bar | None, new: Bar, facts: Facts) -> None:
    """Exchange a sealed minute, wherever the memory holds it, for its restatement."""
    state.merge()
    facts.restated.append(BarFact(state.symbol, MINUTE.name, new))
    shard.bars.restated += 1
    for index, held in enumerate(state.held):
        if held.open_ms == new.open_ms:
            state.held[index] = new
    if new.open_ms == state.traded_ms or (new.open_ms > state.traded_ms and new.count):
        state.traded, state.traded_ms = new, new.open_ms
    for longer in state.longer:
        _restate_longer(shard, state, longer, old, new, facts)
    if new.source == Source.OFFICIAL:
        if state.official_ms is None or new.open_ms > state.official_ms:
            state.official_ms = new.open_ms
        state.official.add(new.open_ms, new.open_ms)
        if len(state.official) > OFFICIAL_SPANS_MAX:
            state.official.remove(*next(iter(state.official)))
    _reprice(shard, state, new.open_ms, new.close, facts)


def _restate_longer(
    shard: ShardState, state: SymbolState, longer: Longer, old: Bar | None, new: Bar, facts: Facts
) -> None:
    """Exchange a minute in the running bar of one interval, or in the one sealed before."""
    turned_official = (new.source == Source.OFFICIAL) - (
        old is not None and old.source == Source.OFFICIAL
    )
    was_absent = old is not None and old.source == Source.ABSENT
    turned_official -= was_absent  # it had left the unofficial ones before
    previous = longer.previous
    if longer.bar.open_ms <= new.open_ms:
        exact = old is not None and longer.bar.replace(old, new)
        longer.unofficial_minutes -= turned_official
        longer.absent_minutes -= was_absent
        if not exact and longer.bar.source != Source.SUSPECT:
            longer.bar.source = Source.SUSPECT
            text = f"{longer.interval.name} needs its official bar"
            facts.events.append(Event(new.open_ms, "inexact", state.symbol, text))
    elif previous is not None and previous.open_ms <= new.open_ms < previous.end_ms:
        restated = previous.copy()
        longer.previous = restated
        longer.previous_unofficial_minutes -= turned_official
        longer.previous_absent_minutes -= was_absent
        if old is None or not restated.replace(old, new):
            longer.previous = None  # the store has its minutes, and makes it from them
            return
        restated.source = state.source_of_longer(
            restated, longer.previous_unofficial_minutes, longer.previous_absent_minutes
        )
        facts.restated.append(BarFact(state.symbol, longer.interval.name, restated))
        shard.bars.restated += 1


def _reprice(
    shard: ShardState, state: SymbolState, from_ms: int, price: Decimal, facts: Facts
) -> None:
    """Carry the close of a restated minute into the flat bars after it, up to the next trade.

    Flat minutes that are not held are suspect themselves where this price is news.
    """
    newest = state.tells_the_close(from_ms)
    if not newest and (not state.held or from_ms < state.held[0].open_ms):
        return
    stop_ms: int | None = None
    for index, held in enumerate(state.held):
        if held.open_ms <= from_ms:
            continue
        if held.count or held.source == Source.OFFICIAL:
            stop_ms = held.open_ms
            break
        if held.close != price:
            state.held[index] = flat_at(held, price)
            facts.restated.append(BarFact(state.symbol, MINUTE.name, state.held[index]))
            shard.bars.restated += 1
    for longer in state.longer:
        previous = longer.previous
        if previous is None or previous.count or previous.close == price:
            continue
        if from_ms < previous.end_ms and (stop_ms is None or previous.end_ms <= stop_ms):
            longer.previous = flat_at(previous, price)
            facts.restated.append(BarFact(state.symbol, longer.interval.name, longer.previous))
            shard.bars.restated += 1
    if newest:
        state.last_close = price
        for bar in (state.minute, *(longer.bar for longer in state.longer)):
            if not bar.count:  # traded minutes that wait to be merged overwrite it
                bar.open = bar.high = bar.low = bar.close = price
