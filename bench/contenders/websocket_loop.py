"""trio-websocket's own loop: `get_message()`, with `--json` decoded by the standard library."""

from __future__ import annotations

import json
import ssl

import trio
import trio_websocket

from bench.contenders import LAG_EVERY_S, job


async def run() -> None:
    task = job()
    meter = task.meter()

    async def watch_lag() -> None:
        due_s = trio.current_time()
        while True:
            due_s = max(due_s + LAG_EVERY_S, trio.current_time())
            await trio.sleep_until(due_s)
            meter.lags_ms.append((trio.current_time() - due_s) * 1e3)

    context = ssl.create_default_context() if task.url.startswith("wss") else None
    as_json = task.options.json
    symbols: set[str] = set()
    async with trio.open_nursery() as nursery:
        if meter.timed:
            nursery.start_soon(watch_lag)
        async with trio_websocket.open_websocket_url(
            f"{task.url}/stream", ssl_context=context, disconnect_timeout=0.5
        ) as connection:
            for number in range(task.source.trades):
                message = await connection.get_message()
                meter.begin(number)
                if as_json:
                    symbols.add(json.loads(message)["data"]["s"])
            meter.end()
            nursery.cancel_scope.cancel()
    meter.tell(task.source.trades)


if __name__ == "__main__":
    trio.run(run)
