"""The whole of `klagg run` in one process: run_app, its database, snapshot and dashboard.

Only what lies outside is not the exchange's: REST is answered in memory, the trades come from a
blaster in real time. The exchange's time begins with the capture.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import time
from decimal import Decimal
from pathlib import Path

import trio

from bench.contenders import LAG_EVERY_S, Job
from bench.contenders.klagg import seeds
from bench.market import MINUTE_MS, Capture, capture
from bench.measure import percentile
from klagg_trio import nursery_app
from klagg_trio.commands.run import freeze_start_state
from klagg_trio.core.intervals import INTERVALS
from klagg_trio.core.seed import StartState
from klagg_trio.exchange import wire
from klagg_trio.exchange.rest import RestStatistics
from klagg_trio.exchange.stream import dial_tcp
from klagg_trio.exchange.validate import Klines
from klagg_trio.exchange.weight import WeightGate
from klagg_trio.settings import Settings
from klagg_trio.store.database import NEVER_MS, Database
from klagg_trio.store.thread import one_thread


class Outside:
    """REST and time, as far as a run without trouble asks for them."""

    def __init__(self, source: Capture, start_at_s: float) -> None:
        self._source = source
        self._start_at_s = start_at_s

    def now_ms(self) -> float:
        return self._source.start_ms + (time.monotonic() - self._start_at_s) * 1000

    async def server_time_ms(self) -> int:
        await trio.lowlevel.checkpoint()
        return int(self.now_ms())

    async def server_time(self, *, priority: object) -> int:
        return await self.server_time_ms()

    async def exchange_info(self, *, priority: object) -> list[wire.Contract]:
        await trio.lowlevel.checkpoint()
        return [
            wire.Contract(symbol, symbol, "PERPETUAL", NEVER_MS, 0, "TRADING", "USDT")
            for symbol in self._source.symbols
        ]

    async def klines(self, symbol: str, interval: str, **_: object) -> Klines:
        await trio.lowlevel.checkpoint()
        return Klines()

    async def agg_trades(self, symbol: str, **_: object) -> list[wire.AggTrade]:
        await trio.lowlevel.checkpoint()
        return []

    async def tickers(self, *, priority: object) -> dict[str, Decimal]:
        await trio.lowlevel.checkpoint()
        return {}

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def statistics(self) -> RestStatistics:
        return RestStatistics(0, 0, 0, 0, 0, 0)


def watch_of(which: str):
    """Return what shows the run: the dashboard on a screen that nobody sees, the line, nothing."""
    from rich.console import Console

    from klagg_trio import dashboard

    if which == "none":
        return None
    if which == "line":
        return dashboard.run_status_line
    console = Console(
        file=io.TextIOWrapper(io.FileIO(os.open(os.devnull, os.O_WRONLY), "w")),
        force_terminal=True,
        width=160,
        height=50,
    )

    async def watch(read) -> None:
        await dashboard.run_dashboard(read, console=console)

    return watch


async def run(options: argparse.Namespace) -> None:
    source = capture(
        options.symbols, options.trades, rate_per_s=options.rate, start_ms=options.start_ms
    )
    names = tuple(INTERVALS)
    cut_ms = source.start_ms - source.start_ms % MINUTE_MS
    outside = Outside(source, options.start_at)
    settings = Settings(
        data_dir=Path(options.folder),
        ws_url=options.url,
        intervals=names,
        snapshot_every_s=30.0,
        silence_limit_s=60.0,  # the blaster takes its time to begin
    )
    start = StartState(cut_ms, names, tuple(seeds(Job("", source, options), cut_ms, names)))
    database = Database.open(settings.data_dir / "klagg.db")
    edge = nursery_app.Edge(
        rest=outside,
        gate=WeightGate(share=0.8),
        probe=outside,
        dial=dial_tcp,
        run_in_thread=one_thread(),
        wall_ms=lambda: time.time_ns() / 1e6,
    )
    stop = trio.Event()
    lags_ms: list[float] = []
    out: dict[str, object] = {}

    async def look_on() -> None:
        due_s = trio.current_time()
        while True:
            due_s = max(due_s + LAG_EVERY_S, trio.current_time())
            await trio.sleep_until(due_s)
            lags_ms.append((trio.current_time() - due_s) * 1e3)

    async with trio.open_nursery() as nursery:

        async def whole(task_status: trio.TaskStatus[nursery_app.App]) -> None:
            report = await nursery_app.run_app(
                settings,
                edge,
                database=database,
                start=start,
                stop=stop,
                watch=watch_of(options.watch),
                task_status=task_status,
            )
            out["sealed"] = report.vitals.bars.sealed
            out["suspect"] = report.vitals.bars.suspect
            out["rows"] = report.vitals.writer.rows

        app = await nursery.start(whole)
        if options.gc == "frozen":
            freeze_start_state()
        with trio.fail_after(30):
            while not app.feeds.counts.received:  # noqa: ASYNC110
                await trio.sleep(0.05)
        await trio.sleep(options.settled_s)
        before, cpu_s, began_s = (
            app.feeds.counts.received,
            time.process_time(),
            time.perf_counter(),
        )
        scope = trio.CancelScope()
        if options.timed:

            async def watch_lag() -> None:
                with scope:
                    await look_on()

            nursery.start_soon(watch_lag)
        await trio.sleep(options.seconds)
        seconds = time.perf_counter() - began_s
        out["cpu_percent"] = 100 * (time.process_time() - cpu_s) / seconds
        out["per_s"] = (app.feeds.counts.received - before) / seconds
        vitals = app.read()
        out["ticked_ms"] = vitals.clock.minute_ms - cut_ms
        out["last_commit_ms"] = vitals.writer.last_commit_ms
        out["reconnects"] = app.feeds.counts.reconnects
        scope.cancel()
        stop.set()
    database.close()
    if lags_ms:
        for share, name in ((0.5, "lag_p50"), (0.99, "lag_p99"), (0.999, "lag_p999")):
            out[name] = percentile(lags_ms, share)
        out["lag_max"] = max(lags_ms)
    out["rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(out))


if __name__ == "__main__":
    parse = argparse.ArgumentParser()
    parse.add_argument("folder")
    parse.add_argument("url")
    parse.add_argument("symbols", type=int)
    parse.add_argument("trades", type=int)
    parse.add_argument("rate", type=float)
    parse.add_argument("start_ms", type=int)
    parse.add_argument("start_at", type=float)
    parse.add_argument("--seconds", type=float, default=60.0)
    parse.add_argument("--settled-s", type=float, default=8.0, help="before measuring begins")
    parse.add_argument("--watch", default="none", choices=("none", "line", "dashboard"))
    parse.add_argument("--timed", action="store_true")
    parse.add_argument("--gc", default="frozen", choices=("as is", "frozen"))
    trio.run(run, parse.parse_args())
