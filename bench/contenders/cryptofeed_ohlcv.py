"""cryptofeed: its websocket feed with its OHLCV aggregation, whose window goes by the wall clock.

So its bars cannot be the exchange's minutes; what is checked is the volume of each symbol.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import Counter
from decimal import Decimal

from bench.contenders import LAG_EVERY_S, Wrong, job


def main() -> None:
    from cryptofeed import FeedHandler
    from cryptofeed.backends.aggregate import OHLCV
    from cryptofeed.connection import WebsocketEndpoint
    from cryptofeed.defines import TRADES
    from cryptofeed.exchanges import BinanceFutures
    from cryptofeed.symbols import Symbols

    task = job()
    meter = task.meter()
    wanted = task.source.trades
    handler = FeedHandler()  # makes uvloop the policy
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    volumes: Counter[str] = Counter()
    received = 0

    async def keep(data) -> None:
        for symbol, bar in data.items():
            volumes[symbol] += bar["volume"]

    class Counted(OHLCV):
        async def __call__(self, trade, receipt_timestamp: float):
            nonlocal received
            if not meter.began_s:
                meter.begin(received)
            await super().__call__(trade, receipt_timestamp)
            received += 1
            if received == wanted:
                await keep(self.data)
                meter.end()
                loop.stop()

    names = {f"{symbol[:-4]}-USDT-PERP": symbol for symbol in task.source.symbols}
    Symbols.set(BinanceFutures.id, names, {"instrument_type": dict.fromkeys(names, "perpetual")})
    BinanceFutures.websocket_endpoints = [
        WebsocketEndpoint(
            task.url,
            options={"compression": None, "ssl": ssl.create_default_context()}
            if task.url.startswith("wss")
            else {"compression": None},
        )
    ]
    handler.add_feed(
        BinanceFutures(
            symbols=list(names), channels=[TRADES], callbacks={TRADES: Counted(keep, window=60)}
        )
    )

    async def watch_lag() -> None:
        while True:
            due_s = loop.time() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            meter.lags_ms.append((loop.time() - due_s) * 1e3)

    tasks = []
    if meter.timed:
        tasks.append(loop.create_task(watch_lag()))
    handler.run(start_loop=False, install_signal_handlers=False)
    loop.run_forever()
    wanted_volumes: Counter[str] = Counter()
    for (symbol, _), bar in task.source.expected().items():
        wanted_volumes[f"{symbol[:-4]}-USDT-PERP"] += Decimal(bar[4])
    if volumes != wanted_volumes:
        raise Wrong("the volumes differ")
    meter.tell(wanted)
    os._exit(0)  # its tasks would each report that they were cancelled


if __name__ == "__main__":
    main()
