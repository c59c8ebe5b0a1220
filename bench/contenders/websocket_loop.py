"""trio-websocket's own loop: `get_message()`, with `--json` decoded by the standard library."""

from __future__ import annotations

import json
import ssl
import sys

import trio
import trio_websocket

from bench.contenders import LAG_EVERY_S, Meter, job


async def run(as_json: bool) -> None:
    task = job()
    meter = Meter()

    async def watch_lag() -> None:
        due_s = trio.current_time()
        while True:
            due_s = max(due_s + LAG_EVERY_S, trio.current_time())
            await trio.sleep_until(due_s)
            meter.lags_ms.append((trio.current_time() - due_s) * 1e3)

    context = ssl.create_default_context() if task.url.startswith("wss") else None
    url = f"{task.url}/stream"
    symbols: set[str] = set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_lag)
        async with trio_websocket.open_websocket_url(
            url, ssl_context=context, disconnect_timeout=0.5
        ) as connection:
            for _ in range(task.source.trades):
                message = await connection.get_message()
                meter.begin()
                if as_json:
                    symbols.add(json.loads(message)["data"]["s"])
            meter.end()
            nursery.cancel_scope.cancel()
    meter.tell(task.source.trades)


if __name__ == "__main__":
    as_json = "--json" in sys.argv
    if as_json:
        sys.argv.remove("--json")
    trio.run(run, as_json)
