"""A backfill against the simulator in memory, on a clock that jumps over every wait.

Weights, windows and answers are the simulator's; each answer takes 80 ms, as over the sea. The
alternative is what is common: pages of 1,000 or 1,500 klines, one after the other.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import Counter
from pathlib import Path

import httpx
import trio
import trio.testing

from klagg_trio.backfill import run_backfill
from klagg_trio.exchange.rest import HttpxRest, Priority
from klagg_trio.exchange.weight import WeightGate
from klagg_trio.settings import Settings
from klagg_trio.sim.market import SimOptions
from klagg_trio.sim.server import SimExchange
from klagg_trio.store.database import Database
from klagg_trio.store.thread import run_inline

LATENCY_S = 0.08
DAY_MS = 86_400_000


def weight_of(url: httpx.URL) -> int:
    """Return what the exchange charges (binance.md section 4)."""
    if url.path == "/fapi/v1/klines":
        limit = int(url.params.get("limit", 500))
        return next((w for top, w in ((100, 1), (500, 2), (1_000, 5)) if limit <= top), 10)
    return {"/fapi/v1/aggTrades": 20, "/fapi/v1/ticker/24hr": 40}.get(url.path, 1)


class Wire(httpx.AsyncBaseTransport):
    """Delays each answer, and notes what was asked for."""

    def __init__(self, inner: httpx.AsyncBaseTransport, now_ms) -> None:
        self._inner = inner
        self._now_ms = now_ms
        self.by_minute: Counter[int] = Counter()
        self.requests = 0
        self.weight = 0
        self.flying = 0
        self.flying_max = 0
        self.flying_s = 0.0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        began_s = trio.current_time()
        self.flying += 1
        self.flying_max = max(self.flying, self.flying_max)
        await trio.sleep(LATENCY_S / 2)
        weight = weight_of(request.url)
        self.by_minute[self._now_ms() // 60_000] += weight
        self.weight += weight
        self.requests += 1
        answer = await self._inner.handle_async_request(request)
        await trio.sleep(LATENCY_S / 2)
        self.flying -= 1
        self.flying_s += trio.current_time() - began_s
        return answer


async def run(options: argparse.Namespace) -> None:
    sim = SimOptions(symbols=options.symbols, list_after_s=None, step_ms=5_000, others=False)
    zero_s = trio.current_time()

    def now_ms() -> int:
        return sim.start_ms + int((trio.current_time() - zero_s) * 1000)

    exchange = SimExchange(sim, now_ms=now_ms)
    wire = Wire(exchange.http_transport(), now_ms)
    gate = WeightGate(share=options.share)
    rest = HttpxRest("http://127.0.0.1", gate, transport=wire)
    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)
        began_s = trio.current_time()
        if options.how == "klagg":
            bars = await backfill(options, rest)
        else:
            bars = await page(options, rest, now_ms())
        seconds = trio.current_time() - began_s
        nursery.cancel_scope.cancel()
    minutes = sorted(wire.by_minute)
    whole = [wire.by_minute[minute] for minute in minutes[1:-1]]
    allowed = 2_400 * options.share
    print(
        json.dumps(
            {
                "bars": bars,
                "requests": wire.requests,
                "weight": wire.weight,
                "bars_a_weight": bars / wire.weight,
                "simulated_s": seconds,
                "bars_a_minute": bars / seconds * 60,
                "whole_minutes": len(whole),
                "share_used": sum(whole) / len(whole) / allowed if whole else None,
                "peak_minute": max(wire.by_minute.values()),
                "in_flight_mean": wire.flying_s / seconds,
                "in_flight_max": wire.flying_max,
                "real_s": time.perf_counter() - started,
                "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


async def backfill(options: argparse.Namespace, rest: HttpxRest) -> int:
    folder = Path(options.folder)
    settings = Settings(
        data_dir=folder,
        rest_url="http://127.0.0.1",
        since=options.since,
        weight_share=options.share,
    )
    database = Database.open(folder / "klagg.db")
    report = await run_backfill(settings, rest, database=database, run_in_thread=run_inline)
    database.close()
    assert not report.failed, report.failed[:3]
    return report.bars


async def page(options: argparse.Namespace, rest: HttpxRest, now_ms: int) -> int:
    """Fetch the same 1m history, nothing more, a page after the other."""
    limit = int(options.how)
    info = await rest.exchange_info(priority=Priority.BACKFILL)
    days = int(options.since[:-1])
    bars = 0
    for contract in info[: options.symbols]:
        at_ms = now_ms - days * DAY_MS
        while at_ms < now_ms:
            page = await rest.klines(
                contract.symbol, "1m", start_ms=at_ms, limit=limit, priority=Priority.BACKFILL
            )
            some = page.bars
            bars += len(some)
            if len(some) < limit:
                break
            at_ms = some[-1].end_ms
    return bars


if __name__ == "__main__":
    parse = argparse.ArgumentParser()
    parse.add_argument("folder")
    parse.add_argument("how", help="klagg, 1000 or 1500")
    parse.add_argument("symbols", type=int)
    parse.add_argument("since")
    parse.add_argument("--share", type=float, default=0.8)
    trio.run(run, parse.parse_args(), clock=trio.testing.MockClock(autojump_threshold=0))
