"""Trades that are in memory already, made into bars: one contender a run.

Every contender gets the same trades as the objects that it works on, made before the clock starts,
and its 1m bars are held against the expected ones. The clock is moved at each minute, as live.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal

from bench.contenders import check_exact, check_floats
from bench.market import (
    MINUTE_MS,
    START_MS,
    Expected,
    Instrument,
    Oracle,
    Trade,
    decimal_text,
    instruments,
    trades,
)

RATE = 10_000.0
"""Trades to a second of exchange time, so 600,000 to a tick."""

READ_TRADES = 2_500
"""Frames in one full read of the feed."""

TWELVE = ("1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d")


def drawn(symbols: int, count: int) -> tuple[list[Instrument], list[Trade], Expected]:
    made = instruments(symbols)
    some = list(itertools.islice(trades(made, rate_per_s=RATE), count))
    oracle = Oracle(made)
    for trade in some:
        oracle.add(trade)
    return made, some, oracle.bars()


def timed(work: Callable[[], float | None], count: int) -> None:
    """Run the work once and print how fast it was. The work may say how much of it were ticks."""
    gc.collect()
    gc.freeze()  # what was made beforehand is not the contender's to look through
    started, cpu = time.perf_counter(), time.process_time()
    ticks = work() or 0.0
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    figures = {"per_s": count / seconds, "us": cpu / count * 1e6}
    if ticks:
        figures |= {"trade_us": (seconds - ticks) / count * 1e6, "ticks_ms": ticks * 1e3}
    print(json.dumps(figures))


def tick_all(shards, minute_ms: int, sealed) -> float:
    """Tick every shard, and have the longer bars merged and told, as life does once a minute.

    Returns how long it took.
    """
    started = time.perf_counter()
    sealed.extend(shard.tick(minute_ms) for shard in shards)
    for shard in shards:
        shard.merged_bars()
    return time.perf_counter() - started


def in_batches(trades_of_it: Iterator[Trade]) -> Iterator[list[Trade]]:
    while batch := list(itertools.islice(trades_of_it, READ_TRADES)):
        yield batch


def klagg_shards(made: list[Instrument], intervals: int):
    """Four shards with every symbol flat and live, as after a start."""
    from klagg_trio import cmd
    from klagg_trio.core.bar import newborn
    from klagg_trio.core.intervals import INTERVALS, MINUTE, select
    from klagg_trio.core.seed import OpenBar, Seed
    from klagg_trio.core.shard import Shard
    from klagg_trio.store.database import NEVER_MS

    names = TWELVE if intervals == 12 else tuple(INTERVALS)[:intervals]
    chosen = select(names)
    cut_ms = MINUTE.floor(START_MS)
    shards = [Shard(chosen, cut_ms) for _ in range(4)]
    home = [cmd.shard_of(each.symbol, 4) for each in made]
    for number, each in enumerate(made):
        price = Decimal(decimal_text(each.price, each.price_decimals))
        open_bars = tuple(
            OpenBar(i.name, newborn(open_ms, i.end(open_ms), price), 0)
            for i in chosen[1:]
            for open_ms in (i.floor(cut_ms),)
        )
        shards[home[number]].load(
            Seed(
                *(each.symbol, 0, NEVER_MS, price, each.first_id, cut_ms - 1, 86_400_000),
                open_bars,
            )
        )
    for shard in shards:
        shard.feed_live(list(shard.states), cut_ms)
    return shards, home, cut_ms


def check_klagg(expected: Expected, sealed, shards) -> None:
    found = {
        (fact.symbol, fact.bar.open_ms): fact.bar.values()
        for facts in sealed
        for fact in facts.sealed
        if fact.interval == "1m"
    }
    for shard in shards:
        for fact in shard.open_bars():
            if fact.interval == "1m":
                found[fact.symbol, fact.bar.open_ms] = fact.bar.values()
    check_exact(expected, found)


def run_klagg_columns(symbols: int, count: int, intervals: int) -> None:
    """The trades as columns, 2,500 a batch as in a full read of the feed: split, applied."""
    import numpy as np

    from klagg_trio.core.columns import ShardSplit, TradeColumns, Units

    made, some, expected = drawn(symbols, count)
    shards, home, _ = klagg_shards(made, intervals)
    units = Units(
        tuple(each.symbol for each in made),
        np.array([each.price_decimals for each in made]),
        np.array([each.quantity_decimals for each in made]),
    )
    steps: list[TradeColumns | int] = []
    for minute_ms, trades_of_it in itertools.groupby(some, lambda t: t.time_ms // MINUTE_MS):
        if steps:
            steps.append(minute_ms * MINUTE_MS)
        for batch in in_batches(trades_of_it):
            rows = [
                (t.price, t.quantity, t.id, t.first_id, t.last_id, t.time_ms, not t.buyer_is_maker)
                for t in batch
            ]
            which = np.array([t.instrument for t in batch], np.int16)
            table = np.ascontiguousarray(np.array(rows, np.int64).T)
            steps.append(TradeColumns(units, which, table))
    del some
    split = ShardSplit(units, {each.symbol: home[n] for n, each in enumerate(made)}, len(shards))
    sealed = []

    def work() -> float:
        ticks = 0.0
        for step in steps:
            if isinstance(step, int):
                ticks += tick_all(shards, step, sealed)
                continue
            parts = split.split(step)
            assert parts is not None
            for shard, runs in zip(shards, parts.shards, strict=True):
                if len(runs):
                    shard.apply_runs(runs)
        return ticks

    timed(work, count)
    check_klagg(expected, sealed, shards)


def run_klagg(symbols: int, count: int, intervals: int) -> None:
    """Shard.apply_trades, a hundred trades a batch, four shards, and the ticks."""
    from klagg_trio.exchange.wire import AggTrade

    made, some, expected = drawn(symbols, count)
    shards, home, cut_ms = klagg_shards(made, intervals)
    steps: list[tuple[int, list[list[AggTrade]]] | int] = []
    batch: list[list[AggTrade]] = [[] for _ in shards]
    due_ms, held = cut_ms + MINUTE_MS, 0
    for trade in some:
        if trade.time_ms >= due_ms:
            steps.append((0, batch))
            steps.append(due_ms)
            batch, held, due_ms = [[] for _ in shards], 0, due_ms + MINUTE_MS
        each = made[trade.instrument]
        batch[home[trade.instrument]].append(
            AggTrade(
                event_ms=trade.time_ms,
                id=trade.id,
                symbol=each.symbol,
                price=Decimal(decimal_text(trade.price, each.price_decimals)),
                quantity=Decimal(decimal_text(trade.quantity, each.quantity_decimals)),
                first_id=trade.first_id,
                last_id=trade.last_id,
                time_ms=trade.time_ms,
                buyer_is_maker=trade.buyer_is_maker,
            )
        )
        held += 1
        if held == 100:
            steps.append((0, batch))
            batch, held = [[] for _ in shards], 0
    steps.append((0, batch))
    del some
    sealed = []

    def work() -> float:
        ticks = 0.0
        for step in steps:
            if isinstance(step, int):
                ticks += tick_all(shards, step, sealed)
            else:
                for shard, part in zip(shards, step[1], strict=True):
                    if part:
                        shard.apply_trades(part)
        return ticks

    timed(work, count)
    check_klagg(expected, sealed, shards)


def nautilus_instrument(each: Instrument):
    from nautilus_trader.model.currencies import USDT
    from nautilus_trader.model.enums import CurrencyType
    from nautilus_trader.model.identifiers import InstrumentId, Symbol, Venue
    from nautilus_trader.model.instruments import CryptoPerpetual
    from nautilus_trader.model.objects import Currency, Price, Quantity

    base = Currency(each.symbol[:-4], 8, 0, each.symbol[:-4], CurrencyType.CRYPTO)
    return CryptoPerpetual(
        instrument_id=InstrumentId(Symbol(each.symbol), Venue("BINANCE")),
        raw_symbol=Symbol(each.symbol),
        base_currency=base,
        quote_currency=USDT,
        settlement_currency=USDT,
        is_inverse=False,
        price_precision=each.price_decimals,
        size_precision=each.quantity_decimals,
        price_increment=Price(10.0**-each.price_decimals, each.price_decimals),
        size_increment=Quantity(10.0**-each.quantity_decimals, each.quantity_decimals),
        ts_event=0,
        ts_init=0,
    )


def nautilus_specification(name: str) -> str:
    words = {"m": "MINUTE", "h": "HOUR", "d": "DAY"}
    return f"{name[:-1]}-{words[name[-1]]}-LAST-INTERNAL"


def nautilus_ticks(made: list[Instrument], some: list[Trade], ids: list) -> list:
    from nautilus_trader.model.data import TradeTick
    from nautilus_trader.model.enums import AggressorSide
    from nautilus_trader.model.identifiers import TradeId
    from nautilus_trader.model.objects import Price, Quantity

    return [
        TradeTick(
            ids[t.instrument],
            Price.from_str(decimal_text(t.price, made[t.instrument].price_decimals)),
            Quantity.from_str(decimal_text(t.quantity, made[t.instrument].quantity_decimals)),
            AggressorSide.SELLER if t.buyer_is_maker else AggressorSide.BUYER,
            TradeId(str(t.id)),
            t.time_ms * 1_000_000,
            t.time_ms * 1_000_000,
        )
        for t in some
    ]


def check_nautilus(expected: Expected, bars: list, last_ms: int) -> None:
    """Complete minutes only: the last is not over. A right-open bar bears its open time."""
    found = {
        (bar.bar_type.instrument_id.symbol.value, bar.ts_event // 1_000_000): tuple(
            value.as_double() for value in (bar.open, bar.high, bar.low, bar.close, bar.volume)
        )
        for bar in bars
    }
    check_floats(
        {key: bar for key, bar in expected.items() if key[1] + MINUTE_MS <= last_ms}, found
    )


def run_nautilus(symbols: int, count: int, intervals: int) -> None:
    """TimeBarAggregator called directly, one a symbol and interval."""
    from nautilus_trader.common.component import TestClock
    from nautilus_trader.data.aggregation import TimeBarAggregator
    from nautilus_trader.model.data import BarType

    made, some, expected = drawn(symbols, count)
    clock = TestClock()
    clock.set_time((START_MS - START_MS % MINUTE_MS) * 1_000_000)
    contracts = [nautilus_instrument(each) for each in made]
    bars: list = []

    def keep(bar) -> None:
        if bar.bar_type.spec.step == 1 and bar.bar_type.spec.aggregation == minute:
            bars.append(bar)

    from nautilus_trader.model.enums import BarAggregation

    minute = BarAggregation.MINUTE
    per_symbol = []
    for contract in contracts:
        aggregators = []
        for name in TWELVE[:intervals]:
            kind = BarType.from_str(f"{contract.id}-{nautilus_specification(name)}")
            aggregators.append(
                TimeBarAggregator(contract, kind, keep, clock, interval_type="right-open")
            )
        per_symbol.append(aggregators)
    ticks = nautilus_ticks(made, some, [contract.id for contract in contracts])
    home = [trade.instrument for trade in some]
    edges = []
    due_ms = START_MS - START_MS % MINUTE_MS + MINUTE_MS
    for index, trade in enumerate(some):
        while trade.time_ms >= due_ms:
            edges.append((index, due_ms))
            due_ms += MINUTE_MS
    edges.append((len(some), 0))

    def work() -> None:
        start = 0
        for stop, at_ms in edges:
            for index in range(start, stop):
                tick = ticks[index]
                for aggregator in per_symbol[home[index]]:
                    aggregator.handle_trade_tick(tick)
            start = stop
            if at_ms:
                for event in clock.advance_time(at_ms * 1_000_000):
                    event.handle()

    timed(work, count)
    check_nautilus(expected, bars, some[-1].time_ms)


def run_nautilus_engine(symbols: int, count: int, intervals: int) -> None:
    """The DataEngine with its internal bars subscribed, fed with process(tick)."""
    from nautilus_trader.backtest.data_client import BacktestMarketDataClient
    from nautilus_trader.common.component import MessageBus, TestClock
    from nautilus_trader.core.uuid import UUID4
    from nautilus_trader.data.config import DataEngineConfig
    from nautilus_trader.data.engine import DataEngine
    from nautilus_trader.data.messages import SubscribeBars
    from nautilus_trader.model.data import BarType
    from nautilus_trader.model.identifiers import ClientId, TraderId, Venue
    from nautilus_trader.test_kit.stubs.component import TestComponentStubs

    made, some, expected = drawn(symbols, count)
    clock = TestClock()
    clock.set_time((START_MS - START_MS % MINUTE_MS) * 1_000_000)
    bus = MessageBus(trader_id=TraderId("BENCH-001"), clock=clock)
    cache = TestComponentStubs.cache()
    engine = DataEngine(
        msgbus=bus,
        cache=cache,
        clock=clock,
        config=DataEngineConfig(time_bars_interval_type="right-open"),
    )
    venue = Venue("BINANCE")
    engine.register_client(BacktestMarketDataClient(ClientId("BINANCE"), bus, cache, clock))
    contracts = [nautilus_instrument(each) for each in made]
    bars: list = []
    for contract in contracts:
        engine.process(contract)
        for name in TWELVE[:intervals]:
            kind = BarType.from_str(f"{contract.id}-{nautilus_specification(name)}")
            engine.execute(
                SubscribeBars(
                    bar_type=kind,
                    client_id=None,
                    venue=venue,
                    command_id=UUID4(),
                    ts_init=0,
                )
            )
            if name == "1m":
                bus.subscribe(f"data.bars.{kind}", bars.append)
    engine.start()
    ticks = nautilus_ticks(made, some, [contract.id for contract in contracts])
    edges = []
    due_ms = START_MS - START_MS % MINUTE_MS + MINUTE_MS
    for index, trade in enumerate(some):
        while trade.time_ms >= due_ms:
            edges.append((index, due_ms))
            due_ms += MINUTE_MS
    edges.append((len(some), 0))

    def work() -> None:
        start = 0
        process = engine.process
        for stop, at_ms in edges:
            for tick in ticks[start:stop]:
                process(tick)
            start = stop
            if at_ms:
                for event in clock.advance_time(at_ms * 1_000_000):
                    event.handle()

    timed(work, count)
    check_nautilus(expected, bars, some[-1].time_ms)


def run_ccxt(symbols: int, count: int, intervals: int) -> None:
    """build_ohlcvc over each symbol's trades: floats, one interval, no empty bars."""
    import ccxt

    made, some, expected = drawn(symbols, count)
    exchange = ccxt.binanceusdm()
    lists: list[list[dict]] = [[] for _ in made]
    for trade in some:
        each = made[trade.instrument]
        lists[trade.instrument].append(
            {
                "timestamp": trade.time_ms,
                "price": float(decimal_text(trade.price, each.price_decimals)),
                "amount": float(decimal_text(trade.quantity, each.quantity_decimals)),
            }
        )
    bars: list[list[list]] = []

    def work() -> None:
        bars.extend(exchange.build_ohlcvc(each, "1m") for each in lists)

    timed(work, count)
    found = {
        (each.symbol, int(bar[0])): tuple(map(float, bar[1:6]))
        for each, series in zip(made, bars, strict=True)
        for bar in series
    }
    check_floats(expected, found)


def run_polars(symbols: int, count: int, intervals: int) -> None:
    """group_by_dynamic over columns that lie ready: the batch ceiling, floats, all cores."""
    import polars as pl

    made, some, expected = drawn(symbols, count)
    frame = pl.DataFrame(
        {
            "symbol": [made[t.instrument].symbol for t in some],
            "at": [t.time_ms for t in some],
            "price": [
                float(decimal_text(t.price, made[t.instrument].price_decimals)) for t in some
            ],
            "quantity": [
                float(decimal_text(t.quantity, made[t.instrument].quantity_decimals)) for t in some
            ],
            "raw": [t.last_id - t.first_id + 1 for t in some],
            "maker": [t.buyer_is_maker for t in some],
        }
    ).with_columns(pl.from_epoch("at", time_unit="ms"))
    out = []

    def work() -> None:
        quote = pl.col("price") * pl.col("quantity")
        out.append(
            frame.sort("symbol", "at", maintain_order=True)
            .group_by_dynamic("at", every="1m", group_by="symbol")
            .agg(
                open=pl.col("price").first(),
                high=pl.col("price").max(),
                low=pl.col("price").min(),
                close=pl.col("price").last(),
                volume=pl.col("quantity").sum(),
                quote=quote.sum(),
                count=pl.col("raw").sum(),
                taker=pl.col("quantity").filter(~pl.col("maker")).sum(),
                taker_quote=quote.filter(~pl.col("maker")).sum(),
            )
        )

    timed(work, count)
    found = {
        (row[0], int(row[1].timestamp() * 1000)): row[2:7]
        for row in out[0].with_columns(pl.col("at").dt.replace_time_zone("UTC")).iter_rows()
    }
    check_floats(expected, found)


def write_for_node(symbols: int, count: int, path: str) -> None:
    """Write the trades, and the bars to expect, for the node contender."""
    made, some, expected = drawn(symbols, count)
    with open(path, "w") as file:
        json.dump(
            {
                "symbols": [each.symbol for each in made],
                "trades": [
                    [
                        t.instrument,
                        float(decimal_text(t.price, made[t.instrument].price_decimals)),
                        float(decimal_text(t.quantity, made[t.instrument].quantity_decimals)),
                        t.time_ms,
                        "sell" if t.buyer_is_maker else "buy",
                    ]
                    for t in some
                ],
                "bars": [[*key, *map(float, bar[:5])] for key, bar in expected.items()],
            },
            file,
        )


RUNS = {
    "klagg": run_klagg,
    "klagg-columns": run_klagg_columns,
    "nautilus": run_nautilus,
    "nautilus-engine": run_nautilus_engine,
    "ccxt": run_ccxt,
    "polars": run_polars,
}


if __name__ == "__main__":
    parse = argparse.ArgumentParser()
    parse.add_argument("which", choices=[*RUNS, "node-file"])
    parse.add_argument("symbols", type=int)
    parse.add_argument("trades", type=int)
    parse.add_argument("--intervals", type=int, default=1)
    parse.add_argument("--path", default="")
    options = parse.parse_args()
    if options.which == "node-file":
        sys.exit(write_for_node(options.symbols, options.trades, options.path))
    RUNS[options.which](options.symbols, options.trades, options.intervals)
