"""The shard under a line that loses, delays and repeats trades, against the whole truth.

Each run draws a market and the faults of its line from one seed (see `world.py`) and checks what
klagg promises of stored bars: no minute without a bar; what is vouched for is what the exchange
has; everything else can be repaired, and then all is right; every trade is counted once.
"""

from __future__ import annotations

import pytest

from klagg_trio.core.shard import Shard

from .naive import MINUTE, SUSPECT, NaiveStore
from .world import START, Line, World

MILD = Line(dropped=0.05, reordered=0.1, reordered_ms=100_000, repeated=0.1)

LINES = {
    "clean": Line(),
    "first ids unknown": Line(ids_known=False),
    "outages": Line(outages=3),
    "dropped": Line(dropped=0.05),
    "overtaken": Line(reordered=0.1, reordered_ms=100_000),
    "overtaken by minutes": Line(reordered=0.1, reordered_ms=400_000),
    "repeated": Line(repeated=0.2),
    "late ticks": Line(late_ticks=True),
    "listings": Line(listings=2, delistings=1, repeated=0.1, late_ticks=True),
    "faults": Line(3 * 0.01, 0.05, 200_000, 0.05, outages=3, late_ticks=True),
    "faults and repairs": Line(
        dropped=0.03,
        reordered=0.05,
        reordered_ms=200_000,
        repeated=0.05,
        outages=3,
        repairs=True,
        late_ticks=True,
        ids_known=False,
    ),
    "restarts": Line(dropped=0.03, reordered=0.05, reordered_ms=200_000, restarts=2),
    "everything": Line(
        dropped=0.03,
        reordered=0.05,
        reordered_ms=300_000,
        repeated=0.05,
        outages=2,
        restarts=2,
        repairs=True,
        late_ticks=True,
        listings=1,
    ),
}

SEEDS = range(12)


@pytest.fixture(params=[(name, seed) for name in LINES for seed in SEEDS], ids=str)
def world(request):
    """One drawn history, played to its end."""
    name, seed = request.param
    world = World(seed, LINES[name])
    world.run()
    return world


def test_what_is_vouched_for_is_true_and_the_rest_heals(world):
    """No hole; vouched bars equal the exchange's; repair leaves nothing wrong and no suspect."""
    assert world.holes() == []
    assert world.shard.trades.total == world.received
    assert world.wrong_rows() == []
    for _ in range(2):
        world.repair_all()
    assert world.wrong_rows() == []
    assert world.wrong_open_bars() == []
    assert world.store.inexact == 0
    left = {key for key, row in world.store.rows.items() if row.source == SUSPECT}
    ended = {name for name in world.markets if name not in world.shard.states}
    assert {key for key in left if key[0] not in ended} == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_trade_is_counted_where_it_ended(seed):
    """A trade seen before is a duplicate, one of a sealed minute is late, all others in bars."""
    world = World(seed, MILD)
    world.run()
    counts = world.shard.trades
    repeats = sum(
        len(market.delivered) - len({trade.id for trade in market.delivered})
        for market in world.markets.values()
    )
    assert counts.duplicate == repeats
    assert counts.in_bars + counts.late == world.received - repeats
    assert counts.rejected == counts.not_ours == 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shards", [1, 3])
def test_batches_and_shards_make_no_difference(seed, shards):
    """The same messages in larger batches, spread over several shards, store the same bars."""
    world = World(seed, LINES["faults and repairs"])
    first_seeds = world.shard.seeds()
    world.run()
    store = NaiveStore()
    parts = [Shard(world.intervals, START) for _ in range(shards)]
    home = {seed.symbol: parts[n % shards] for n, seed in enumerate(first_seeds)}
    for first_seed in first_seeds:
        home[first_seed.symbol].load(first_seed)
    batches = {id(part): [] for part in parts}

    def flush():
        for part in parts:
            store.take(part.apply_trades(batches[id(part)]))
            batches[id(part)].clear()

    for method, arguments in world.log:
        if method == "apply_trades":
            (trade,) = arguments[0]
            batches[id(home[trade.symbol])].append(trade)
            continue
        flush()
        symbol = arguments[0][0] if isinstance(arguments[0], list) else arguments[0]
        symbol = getattr(symbol, "symbol", symbol)
        for part in parts if method == "tick" else [home[symbol]]:
            store.take(getattr(part, method)(*arguments))
    flush()
    assert store.rows == world.store.rows


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shard_that_is_saved_and_loaded_goes_on_as_before(seed):
    """Seeds taken at a tick and loaded at once change no bar, once each symbol has traded again."""
    plain = World(seed, Line(late_ticks=True))
    plain.run()
    saved = World(seed, Line(late_ticks=True))
    ticks = 0

    def tick_and_reload(minute_ms):
        nonlocal ticks
        saved.tell("tick", minute_ms)
        ticks += 1
        states = saved.shard.states.values()
        settled = all(s.next_id is not None and not s.minute.count and not s.ahead for s in states)
        if ticks % 7 == 0 and settled:
            live = {s.symbol: s.live_since_ms for s in states}
            saved.restart()
            for symbol, since_ms in live.items():
                saved.shard.feed_live([symbol], since_ms)

    saved.tick = tick_and_reload
    saved.run()
    assert {key: row.nine for key, row in saved.store.rows.items()} == {
        key: row.nine for key, row in plain.store.rows.items()
    }
    for (symbol, interval, open_ms), row in saved.store.rows.items():
        if row.source == SUSPECT and interval == "1m":
            traded = [t for t in saved.markets[symbol].trades if t.time_ms > open_ms + 4 * MINUTE]
            assert not traded or plain.store.rows[symbol, interval, open_ms].source == SUSPECT


def test_the_same_messages_make_the_same_facts():
    """A shard's whole life is its list of messages: played again, the same rows come out."""
    first, second = World(7, LINES["everything"]), World(7, LINES["everything"])
    first.run()
    second.run()
    assert first.log == second.log
    assert first.store.rows == second.store.rows
