"""nautilus_trader's live Binance data client into its live data engine, with internal 1m bars.

Its live bars go by the time of arrival on the local clock, so they cannot be the exchange's; what
is checked is that every trade came out of the engine, and that every symbol has its aggregator.
"""

from __future__ import annotations

import asyncio
import gc
import os

from bench.contenders import LAG_EVERY_S, Wrong, job
from bench.contenders.in_memory import nautilus_instrument
from bench.market import instruments


async def main() -> None:
    from nautilus_trader.adapters.binance.common.enums import BinanceAccountType
    from nautilus_trader.adapters.binance.config import BinanceDataClientConfig
    from nautilus_trader.adapters.binance.futures.data import BinanceFuturesDataClient
    from nautilus_trader.adapters.binance.http.client import BinanceHttpClient
    from nautilus_trader.common.component import LiveClock, MessageBus
    from nautilus_trader.common.providers import InstrumentProvider
    from nautilus_trader.core.uuid import UUID4
    from nautilus_trader.data.messages import SubscribeBars
    from nautilus_trader.live.config import LiveDataEngineConfig
    from nautilus_trader.live.data_engine import LiveDataEngine
    from nautilus_trader.model.data import BarType
    from nautilus_trader.model.identifiers import TraderId, Venue
    from nautilus_trader.test_kit.stubs.component import TestComponentStubs

    task = job()
    meter = task.meter()
    wanted = task.source.trades
    loop = asyncio.get_running_loop()
    clock = LiveClock()
    bus = MessageBus(trader_id=TraderId("BENCH-001"), clock=clock)
    cache = TestComponentStubs.cache()
    engine = LiveDataEngine(
        loop=loop,
        msgbus=bus,
        cache=cache,
        clock=clock,
        config=LiveDataEngineConfig(qsize=1_000_000),
    )
    made = instruments(len(task.source.symbols))
    provider = InstrumentProvider()
    contracts = []
    for each in made:
        plain = nautilus_instrument(each).to_dict(nautilus_instrument(each))
        plain["id"] = f"{each.symbol}-PERP.BINANCE"
        contract = type(nautilus_instrument(each)).from_dict(plain)
        provider.add(contract)
        contracts.append(contract)
    client = BinanceFuturesDataClient(
        loop=loop,
        client=BinanceHttpClient(clock=clock, api_key="", api_secret="", base_url=task.url),
        msgbus=bus,
        cache=cache,
        clock=clock,
        instrument_provider=provider,
        base_url_ws=task.url,
        config=BinanceDataClientConfig(
            use_agg_trade_ticks=True, account_type=BinanceAccountType.USDT_FUTURES
        ),
        account_type=BinanceAccountType.USDT_FUTURES,
    )
    engine.register_client(client)
    received = 0
    done = loop.create_future()

    def count(tick) -> None:
        nonlocal received
        if not meter.began_s:
            meter.begin(received)
        received += 1
        if received == wanted:
            meter.end()
            done.set_result(None)

    bars = []
    engine.start()
    for contract in contracts:
        engine.process(contract)
        cache.add_instrument(contract)
    for contract in contracts:
        kind = BarType.from_str(f"{contract.id}-1-MINUTE-LAST-INTERNAL")
        engine.execute(
            SubscribeBars(
                bar_type=kind,
                client_id=client.id,
                venue=Venue("BINANCE"),
                command_id=UUID4(),
                ts_init=0,
            )
        )
        bus.subscribe(f"data.bars.{kind}", bars.append)
        bus.subscribe(f"data.trades.{contract.id.venue}.{contract.id.symbol}", count)

    async def watch_lag() -> None:
        while True:
            due_s = loop.time() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            meter.lags_ms.append((loop.time() - due_s) * 1e3)

    gc.collect()
    lag = asyncio.create_task(watch_lag()) if meter.timed else None
    await done
    if lag is not None:
        lag.cancel()
    if len(engine.subscribed_trade_ticks()) != len(contracts):
        raise Wrong("not every symbol is aggregated")
    meter.tell(wanted)

    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
