"""picows with msgspec, on asyncio and uvloop: a bare loop to 1m bars with Decimals, no more.

What a hand-written program of one page reaches: no ids are checked, nothing is sealed by a clock,
nothing can be wrong.
"""

from __future__ import annotations

import asyncio
import decimal
import ssl
from decimal import Decimal

import msgspec
import picows
import uvloop

from bench.contenders import LAG_EVERY_S, check_exact, job


class Trade(msgspec.Struct, gc=False):
    symbol: str = msgspec.field(name="s")
    price: Decimal = msgspec.field(name="p")
    quantity: Decimal = msgspec.field(name="q")
    first_id: int = msgspec.field(name="f")
    last_id: int = msgspec.field(name="l")
    time_ms: int = msgspec.field(name="T")
    maker: bool = msgspec.field(name="m")


class Envelope(msgspec.Struct, gc=False):
    data: Trade


async def main() -> None:
    task = job()
    decimal.setcontext(decimal.Context(prec=60))
    meter = task.meter()
    wanted = task.source.trades
    done = asyncio.get_running_loop().create_future()
    bars: dict[tuple[str, int], list] = {}
    decode = msgspec.json.Decoder(Envelope).decode
    zero = Decimal(0)
    count = 0

    class Listener(picows.WSListener):
        def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
            nonlocal count
            if frame.msg_type != picows.WSMsgType.TEXT:
                return
            if not meter.began_s:
                meter.begin(count)
            trade = decode(frame.get_payload_as_memoryview()).data
            price, quantity = trade.price, trade.quantity
            key = trade.symbol, trade.time_ms // 60_000
            bar = bars.get(key)
            if bar is None:
                bar = bars[key] = [price, price, price, price, zero, zero, 0, zero, zero]
            if price > bar[1]:
                bar[1] = price
            elif price < bar[2]:
                bar[2] = price
            quote = price * quantity
            bar[3] = price
            bar[4] += quantity
            bar[5] += quote
            bar[6] += trade.last_id - trade.first_id + 1
            if not trade.maker:
                bar[7] += quantity
                bar[8] += quote
            count += 1
            if count == wanted:
                meter.end()
                done.set_result(None)

    async def watch_lag() -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            meter.lags_ms.append((loop.time() - due_s) * 1e3)

    lag = asyncio.create_task(watch_lag()) if meter.timed else None
    context = ssl.create_default_context() if task.url.startswith("wss") else None
    transport, _ = await picows.ws_connect(Listener, f"{task.url}/stream", ssl_context=context)
    await done
    if lag is not None:
        lag.cancel()
    transport.disconnect()
    check_exact(
        task.source.expected(),
        {(symbol, minute * 60_000): tuple(bar) for (symbol, minute), bar in bars.items()},
    )
    meter.tell(wanted)


if __name__ == "__main__":
    uvloop.run(main())
