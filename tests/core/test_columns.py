"""Trades as columns against the same trades one by one."""

from __future__ import annotations

import random
from decimal import Decimal

import numpy as np
import pytest

from klagg_trio.core import columns as c
from klagg_trio.core.columns import ShardSplit, TradeColumns, Units, group
from klagg_trio.core.shard import Shard

from .desk import SYMBOL, Desk, trade
from .naive import NaiveStore
from .test_shard_model import LINES, SEEDS
from .world import START, World

PLAYABLE = [name for name, line in LINES.items() if not line.restarts]


def columns_of(trades, units=None) -> TradeColumns:
    """The columns of trades whose prices have two decimals and whose quantities have three."""
    units = units or units_of(dict.fromkeys(trade.symbol for trade in trades))
    rows = [
        (
            int(trade.price.scaleb(2)),
            int(trade.quantity.scaleb(3)),
            trade.id,
            trade.first_id,
            trade.last_id,
            trade.time_ms,
            int(not trade.buyer_is_maker),
        )
        for trade in trades
    ]
    which = np.array([units.index[trade.symbol] for trade in trades], np.int16)
    return TradeColumns(units, which, np.array(rows, np.int64).T)


def units_of(symbols) -> Units:
    """Two decimals in every price, three in every quantity."""
    symbols = tuple(symbols)
    return Units(symbols, np.full(len(symbols), 2), np.full(len(symbols), 3))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", PLAYABLE)
def test_columns_make_no_difference(name, seed):
    """A history told in columns, in lists and in both by turns ends in the same bars and states."""
    world = World(seed, LINES[name])
    first_seeds = world.shard.seeds()
    world.run()
    draw = random.Random(seed)
    shard, store = Shard(world.intervals, START), NaiveStore()
    for first_seed in first_seeds:
        shard.load(first_seed)
    units = units_of([*world.markets, "ELSEUSDT"])
    batch: list = []

    def flush():
        nonlocal units
        if not batch:
            return
        if draw.random() < 0.1:
            units = units_of(draw.sample(units.symbols, len(units.symbols)))
        if draw.random() < 0.8:
            store.take(shard.apply_runs(group(columns_of(batch, units))))
        else:
            store.take(shard.apply_trades(batch))
        batch.clear()
        if draw.random() < 0.1:
            draw.choice((shard.open_bars, shard.running_minutes, shard.seeds))()

    for method, arguments in world.log:
        if method == "apply_trades":
            batch.extend(arguments[0])
            if draw.random() < 0.02:
                flush()
            continue
        flush()
        store.take(getattr(shard, method)(*arguments))
    flush()
    assert store.rows == world.store.rows
    assert shard.seeds() == world.shard.seeds()
    assert shard.trades == world.shard.trades
    assert shard.bars == world.shard.bars
    assert [fact.bar.values() for fact in shard.open_bars()] == [
        fact.bar.values() for fact in world.shard.open_bars()
    ]


def test_runs_are_pending_until_a_bar_is_read():
    """Trades that only go on change no bar until somebody looks; then it is all there."""
    desk = Desk()
    trades = [trade(1 + n, 0.1 + n / 100, 10_000 + n % 7) for n in range(20)]
    units = units_of([SYMBOL])
    assert desk.shard.apply_runs(group(columns_of(trades[:12], units))) is None
    assert desk.shard.apply_runs(group(columns_of(trades[12:], units))) is None
    assert desk.state.minute.count == 12  # the first ones were taken one by one: after the start
    assert desk.shard.trades.in_bars == 20
    (fact,) = desk.shard.open_bars()
    bar = fact.bar
    assert (bar.open, bar.high, bar.low, bar.close) == (
        *(Decimal("100.00"), Decimal("100.06"), Decimal("100.00"), Decimal("100.05")),
    )
    assert (bar.count, bar.volume, bar.first, bar.last) == (20, 20, 1, 20)
    assert bar.quote_volume == sum(each.price for each in trades)
    assert desk.state.next_id == 21


def test_other_units_lose_nothing():
    """What is pending in one set of units is in the bar when columns of another set come."""
    desk = Desk()
    desk.shard.apply_runs(group(columns_of([trade(1, 0.1)])))
    desk.shard.apply_runs(group(columns_of([trade(2, 0.2, 10_100)])))
    (fact,) = desk.shard.open_bars()
    assert (fact.bar.count, fact.bar.high) == (2, 101)


def test_a_rank_orders_the_runs():
    """Runs come in the order of the rank of their symbols, each with its trades as they arrived."""
    trades = [trade(1 + n // 3, n / 100, symbol=f"{'ABC'[n % 3]}USDT") for n in range(9)]
    runs = group(columns_of(trades), np.array([2, 0, 1], np.int16))
    assert [runs.units.symbols[n] for n in runs.runs[c.WHICH]] == ["BUSDT", "CUSDT", "AUSDT"]
    assert [[each.id for each in runs.trades_of(n)] for n in range(3)] == [[1, 2, 3]] * 3
    part = runs.cut(1, 3)
    assert [each.symbol for each in part.trades_of(1)] == ["AUSDT"] * 3
    assert (len(part), part.trades_count) == (2, 6)


@pytest.mark.parametrize(
    ("row", "number"),
    [(c.PRICE, 1 << 52), (c.QUANTITY, 1 << 50), (c.LAST_ID, 1 << 61)],
    ids=["price", "quantity", "raw trades"],
)
def test_what_may_not_fit_is_not_added_up(row, number):
    """Sums that might not fit into 63 bits are refused; the trades can be had one by one."""
    columns = columns_of([trade(1, 0.1), trade(2, 0.2)])
    columns.table[row, 1] = number
    assert group(columns) is None
    assert len(columns.trades()) == 2


def test_sums_that_grow_are_settled_in_time():
    """Bursts whose sums together would not fit into 63 bits are exact all the same."""
    desk = Desk()
    units = units_of([SYMBOL])
    for trade_id in range(1, 20):
        columns = columns_of([trade(trade_id, 0.1)], units)
        columns.table[c.QUANTITY] = 1 << 47
        assert group(columns) is not None
        desk.shard.apply_runs(group(columns))
    (fact,) = desk.shard.open_bars()
    assert fact.bar.volume == Decimal(19 << 47).scaleb(-3)
    assert fact.bar.quote_volume == 19 * 100 * Decimal(1 << 47).scaleb(-3)


def test_a_burst_is_split_by_shard():
    """Each shard gets its own symbols' runs; strangers are counted."""
    symbols = ("AUSDT", "BUSDT", "CUSDT", "DUSDT")
    trades = [trade(1 + n // 4, n / 100, symbol=symbols[n % 4]) for n in range(12)]
    columns = columns_of(trades, units_of(symbols))
    parts = ShardSplit(columns.units, {"AUSDT": 2, "BUSDT": 0, "DUSDT": 2}, 3).split(columns)
    assert parts.strangers == 3
    names = [[symbols[n] for n in runs.runs[c.WHICH]] for runs in parts.shards]
    assert names == [["BUSDT"], [], ["AUSDT", "DUSDT"]]
    assert [each.id for each in parts.shards[2].trades_of(1)] == [1, 2, 3]
