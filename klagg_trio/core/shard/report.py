"""What a shard says of itself: running bars, and the state that a start snapshot holds."""

from __future__ import annotations

import decimal
from collections.abc import Iterator

from klagg_trio.core.bar import EXACT, Bar, Source
from klagg_trio.core.facts import BarFact, Births, RunningBar
from klagg_trio.core.gaps import Spans
from klagg_trio.core.intervals import MINUTE
from klagg_trio.core.seed import OpenBar, Seed
from klagg_trio.core.shard.evidence import incomplete, unproven
from klagg_trio.core.shard.state import ShardState, SymbolState


def running_minutes(shard: ShardState) -> list[RunningBar]:
    """Return the running minutes of all symbols, as of the newest trade."""
    shard.settle()
    return [
        RunningBar(state.symbol, MINUTE.name, _open_minute(state), state.minute.open_ms)
        for state in shard.symbols.values()
    ]


def merged_bars(shard: ShardState) -> list[RunningBar]:
    """Return what the running longer bars of all symbols have merged: their sealed minutes."""
    shard.merged_told = True
    shard.merge_all()
    running = []
    for state in shard.symbols.values():
        for longer in state.longer:
            bar = longer.bar.copy()
            if bar.source != Source.SUSPECT:
                bar.source = state.source_of_longer(bar, 1 + longer.unofficial_minutes, 0)
            running.append(
                RunningBar(state.symbol, longer.interval.name, bar, state.minute.open_ms)
            )
    return running


def births(shard: ShardState) -> list[Births]:
    """Return which longer bars the last tick opened."""
    open_ms = shard.minute_ms
    born: dict[tuple[str, int], list[str]] = {}
    for state in shard.symbols.values():
        if state.longer_born_ms != open_ms:
            continue
        for longer in state.longer:
            if longer.bar.open_ms == open_ms:
                key = longer.interval.name, longer.bar.end_ms
                born.setdefault(key, []).append(state.symbol)
    return [Births(name, open_ms, end_ms, who) for (name, end_ms), who in born.items()]


def open_bars(shard: ShardState) -> list[BarFact]:
    """Return the running bars of all symbols and intervals, as of the newest trade."""
    shard.settle()
    shard.merge_all()
    with decimal.localcontext(EXACT):
        return [fact for state in shard.symbols.values() for fact in _open_bars_of(state)]


def _open_bars_of(state: SymbolState) -> Iterator[BarFact]:
    minute = _open_minute(state)
    yield BarFact(state.symbol, MINUTE.name, minute)
    for longer in state.longer:
        bar = longer.bar.copy()
        bar.absorb(minute)
        if Source.SUSPECT not in (bar.source, minute.source):
            bar.source = state.source_of_longer(bar, 1 + longer.unofficial_minutes, 0)
        else:
            bar.source = Source.SUSPECT
        yield BarFact(state.symbol, longer.interval.name, bar)


def _open_minute(state: SymbolState) -> Bar:
    """Return a copy of the running minute with the source it would have if it ended now."""
    minute = state.minute.copy()
    minute.source = Source.TRADES if minute.count else Source.FLAT
    if unproven(state, minute) or incomplete(state, minute):
        minute.source = Source.SUSPECT
    return minute


def seeds(shard: ShardState) -> list[Seed]:
    """Return the state of the symbols as of the running minute, as the start takes it.

    What the running minute already holds is left out: after a restart those trades are missing, so
    the id that continues is that of the first trade not in a sealed bar. A symbol whose own running
    minute is another one is left out: it goes on from what is stored.
    """
    shard.settle()
    shard.merge_all()
    return [
        _seed_of(shard, state)
        for state in shard.symbols.values()
        if state.minute.open_ms == shard.minute_ms
    ]


def _seed_of(shard: ShardState, state: SymbolState) -> Seed:
    last_trade_ms = state.last_trade_ms
    partials = [bar for bar in state.held if bar.source == Source.SUSPECT and bar.count]
    return Seed(
        symbol=state.symbol,
        onboard_ms=state.onboard_ms,
        delivery_ms=state.delivery_ms,
        last_close=state.last_close,
        next_id=_next_id(shard, state),
        last_trade_ms=None if last_trade_ms is None else min(last_trade_ms, shard.minute_ms - 1),
        three_day_phase_ms=state.three_day_phase_ms,
        open_bars=tuple(
            OpenBar(x.interval.name, x.bar.copy(), x.unofficial_minutes) for x in state.longer
        ),
        suspects=tuple(Spans(list(state.suspects))),
        partials=(*state.partials.values(), *partials),
        unknown=tuple(state.unknown),
        first_ms=state.first_ms,
    )


def _next_id(shard: ShardState, state: SymbolState) -> int | None:
    """Return the id of the first trade that is not in a sealed bar, where that is certain."""
    next_id = state.resume_id if state.in_doubt else state.next_id
    if next_id is None or state.missing.reaches(shard.minute_ms):
        return None
    unsealed = (state.minute, *state.ahead.values())
    next_id = min([next_id, *(bar.first for bar in unsealed if bar.count)])
    for gap in state.gaps:
        if gap.to_ms is not None and gap.to_ms >= shard.minute_ms:
            next_id = min(next_id, gap.first_id)
    return next_id
