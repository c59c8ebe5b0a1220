"""ccxt.pro: watch_trades_for_symbols, then build_ohlcvc over what it has cached."""

from __future__ import annotations

import asyncio
import os

from bench.contenders import LAG_EVERY_S, check_floats, job
from bench.market import instruments


def exchange_row(symbol: str, price_decimals: int, quantity_decimals: int) -> dict:
    return {
        "symbol": symbol,
        "pair": symbol,
        "contractType": "PERPETUAL",
        "deliveryDate": 4133404800000,
        "onboardDate": 1569398400000,
        "status": "TRADING",
        "baseAsset": symbol[:-4],
        "quoteAsset": "USDT",
        "marginAsset": "USDT",
        "pricePrecision": price_decimals,
        "quantityPrecision": quantity_decimals,
        "filters": [],
    }


async def main() -> None:
    import ccxt.pro

    task = job()
    meter = task.meter()
    wanted = task.source.trades

    class Counted(ccxt.pro.binanceusdm):
        received = 0

        def handle_trade(self, client, message):
            if not meter.began_s:
                meter.begin(self.received)
            super().handle_trade(client, message)
            self.received += 1

    exchange = Counted({"options": {"tradesLimit": 10**9}})
    exchange.cafile = os.environ.get("SSL_CERT_FILE", exchange.cafile)
    made = instruments(len(task.source.symbols))
    exchange.set_markets(
        [
            exchange.parse_market(
                exchange_row(each.symbol, each.price_decimals, each.quantity_decimals)
            )
            for each in made
        ]
    )
    exchange.urls["api"]["ws"]["linear"] = task.url
    names = {market["id"]: market["symbol"] for market in exchange.markets.values()}

    async def watch_lag() -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            meter.lags_ms.append((loop.time() - due_s) * 1e3)

    lag = asyncio.create_task(watch_lag()) if meter.timed else None
    symbols = list(names.values())
    while exchange.received < wanted:
        await exchange.watch_trades_for_symbols(symbols, params={"name": "aggTrade"})
    bars = {
        symbol: exchange.build_ohlcvc(exchange.trades[name], "1m")
        for symbol, name in names.items()
        if name in exchange.trades
    }
    meter.end()
    if lag is not None:
        lag.cancel()
    await exchange.close()
    found = {
        (symbol, int(bar[0])): tuple(map(float, bar[1:6]))
        for symbol, series in bars.items()
        for bar in series
    }
    check_floats(task.source.expected(), found)
    meter.tell(wanted)


if __name__ == "__main__":
    asyncio.run(main())
