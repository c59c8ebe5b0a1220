"""The life of a contract in a shard: taken up, listed, ended."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from klagg_trio.core.bar import newborn
from klagg_trio.core.facts import Event, Facts, Listing
from klagg_trio.core.intervals import DAY_MS, MINUTE, MINUTE_MS, Interval
from klagg_trio.core.seed import Seed
from klagg_trio.core.shard.restate import suspect
from klagg_trio.core.shard.seal import freeze, seal_minute
from klagg_trio.core.shard.state import Longer, ShardState, SymbolState

SEED_FILL_MS_MAX: Final = DAY_MS
"""A symbol found later than this after its listing starts at the current minute instead."""


def load(shard: ShardState, seed: Seed) -> None:
    """Take up a symbol from a start snapshot whose cut is the shard's running minute."""
    shard.settle([seed.symbol])
    longer = [
        Longer(
            _interval_of(shard, open_bar.interval, seed),
            open_bar.bar.copy(),
            open_bar.unofficial_minutes,
        )
        for open_bar in seed.open_bars
    ]
    state = SymbolState(
        symbol=seed.symbol,
        onboard_ms=seed.onboard_ms,
        delivery_ms=seed.delivery_ms,
        minute=newborn(shard.minute_ms, shard.minute_ms + MINUTE_MS, seed.last_close),
        last_close=seed.last_close,
        longer=longer,
        resume_id=seed.next_id,
        last_trade_ms=seed.last_trade_ms,
        trusted_since_ms=None if seed.next_id is None else shard.minute_ms,
        traded_ms=shard.last_sealed_ms,
        partials={bar.open_ms: bar for bar in seed.partials},
    )
    for first_ms, last_ms in seed.suspects:
        state.suspects.add(first_ms, last_ms)
        state.missing.add(first_ms, last_ms)
    for first_ms, last_ms in seed.unknown:
        state.unknown.add(first_ms, last_ms)
    shard.symbols[seed.symbol] = state


def _interval_of(shard: ShardState, name: str, seed: Seed) -> Interval:
    interval = next(i for i in shard.longer_intervals if i.name == name)
    return interval.with_phase(seed.three_day_phase_ms) if name == "3d" else interval


def add_symbol(
    shard: ShardState,
    symbol: str,
    price: Decimal,
    onboard_ms: int,
    delivery_ms: int,
    three_day_phase_ms: int,
) -> Facts:
    """Take up a symbol that was listed while the program ran.

    Its bars of every interval exist from now on, flat at `price` until the first trade. The minutes
    from its listing up to now went unseen: they are stored as suspect, or at least owed to repair
    where the listing was long ago.
    """
    facts = Facts()
    shard.settle([symbol])
    if symbol in shard.symbols:
        return facts
    listed_ms = MINUTE.floor(onboard_ms)
    recent = shard.minute_ms - SEED_FILL_MS_MAX <= listed_ms <= shard.minute_ms
    first_ms = listed_ms if recent else shard.minute_ms
    longer = []
    for interval in shard.longer_intervals:
        if interval.name == "3d":
            interval = interval.with_phase(three_day_phase_ms)
        open_ms = interval.floor(first_ms)
        unseen = max(0, first_ms - max(open_ms, listed_ms)) // MINUTE_MS
        bar = newborn(open_ms, interval.end(open_ms), price)
        longer.append(Longer(interval, bar, unofficial_minutes=unseen))
    state = SymbolState(
        symbol=symbol,
        onboard_ms=onboard_ms,
        delivery_ms=delivery_ms,
        minute=newborn(first_ms, first_ms + MINUTE_MS, price),
        last_close=price,
        longer=longer,
        traded_ms=first_ms - MINUTE_MS,
    )
    shard.symbols[symbol] = state
    unseen_ms = max(listed_ms, min((x.bar.open_ms for x in longer), default=first_ms))
    if unseen_ms < first_ms:
        state.missing.add(unseen_ms, first_ms - MINUTE_MS)
        suspect(state, unseen_ms, first_ms - MINUTE_MS)
    while state.minute.open_ms < shard.minute_ms:
        seal_minute(shard, state, facts)
    facts.listings.append(Listing(symbol, onboard_ms, delivery_ms, three_day_phase_ms))
    facts.events.append(Event(shard.minute_ms, "listed", symbol, f"seeded at {price}"))
    return facts


def end_symbol_before(shard: ShardState, symbol: str, onboard_ms: int) -> Facts:
    """Seal and freeze a symbol whose ticker a contract listed at `onboard_ms` has taken."""
    facts = Facts()
    state = shard.settled(symbol)
    if state is not None and state.onboard_ms < onboard_ms:
        freeze(shard, state, facts)
        facts.replaced.append(symbol)
    return facts


def remove_symbol(shard: ShardState, symbol: str, delivery_ms: int) -> Facts:
    """Note when a symbol ends. The tick that passes that moment seals and freezes it."""
    facts = Facts()
    state = shard.symbols.get(symbol)
    if state is not None and state.delivery_ms != delivery_ms:
        state.delivery_ms = delivery_ms
        facts.listings.append(
            Listing(symbol, state.onboard_ms, delivery_ms, state.three_day_phase_ms)
        )
    return facts
