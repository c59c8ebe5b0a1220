"""One real suspend, with its clocks injected: python -m prove.sleeper SEED FOLDER.

The whole application runs over memory streams under a clock that jumps. A suspend is time that the
exchange and the local clocks have and Trio's clock has not. Prints what was measured; exits 1 with
a traceback where a promise does not hold.
"""

from __future__ import annotations

import math
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import trio
import trio.testing

from klagg_trio.backfill import run_backfill
from klagg_trio.demo.stage import START_MS, DemoOptions, connect
from klagg_trio.nursery_app import App, run_app
from klagg_trio.sim.server import SimExchange, SimOptions
from klagg_trio.store.database import Database
from klagg_trio.store.start_snapshot import read_snapshot
from prove import judge
from prove.row import check

INTERVALS = ("1m", "5m", "1h", "1d")
MARKET = SimOptions(step_ms=250, symbols=6, trades_per_minute=60, list_after_s=None, straddle=True)
LONG = 20
"""One seed in so many sleeps for hours: the simulator has to live through each minute."""


class Official:
    """The exchange's own bars, for the judge."""

    def __init__(self, exchange: SimExchange) -> None:
        """Ask this one."""
        self._exchange = exchange

    def klines(self, symbol: str, interval: str, start_ms: int, end_ms: int) -> list:
        """Return the official rows that open in a span."""
        return self._exchange.official_klines(symbol, interval, start_ms, end_ms)


async def sleep_and_wake(seed: int, folder: Path) -> None:
    """Run, sleep, wake, and judge."""
    rng = random.Random(f"asleep/{seed}")
    slept_ms = 0

    def now_ms() -> int:
        return START_MS + slept_ms + int(trio.current_time() * 1_000)

    options = DemoOptions(
        speed=math.inf, symbols=MARKET.symbols, seed=seed, intervals=INTERVALS, market=MARKET
    )
    exchange = SimExchange(replace(MARKET, seed=seed, start_ms=START_MS), now_ms=now_ms)
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)
        settings, edge = await connect(options, folder, exchange, nursery, now_ms)
        edge = replace(edge, local_ms=lambda: float(now_ms()))
        path = folder / "klagg.db"
        database = Database.open(path)
        await run_backfill(settings, edge.rest, database=database, run_in_thread=edge.run_in_thread)
        stop, start = trio.Event(), read_snapshot(folder / "initial_state.cbor")

        async def run(task_status: trio.TaskStatus[App]) -> None:
            await run_app(
                settings, edge, database=database, start=start, stop=stop, task_status=task_status
            )
            ended.set()

        ended = trio.Event()
        await nursery.start(run)
        await trio.sleep(120 + seed % 60)
        hours = rng.uniform(1.0, 24.0) if seed % LONG == LONG - 1 else rng.uniform(1, 60) / 60
        slept_ms += int(hours * 3_600_000)
        woken_s, real_s = trio.current_time(), time.perf_counter()
        exchange.step()
        until_ms = now_ms() // judge.MINUTE_MS * judge.MINUTE_MS
        while judge.last_tick(path) < until_ms:
            check(trio.current_time() < woken_s + 300, "not caught up after 300 s")
            await trio.sleep(0.1)
        print(f"missed minutes on disk, simulated s: {trio.current_time() - woken_s:.3f}")
        print(f"hours asleep: {hours:.3f}")
        print(f"real s of both until then: {time.perf_counter() - real_s:.3f}")
        announced = {key: bar for key, bar in judge.sealed(path).items() if bar.source != "suspect"}
        since_ms = START_MS - 120 * judge.MINUTE_MS
        judge.check_official(path, Official(exchange), announced, since_ms)
        end_ms = until_ms + 2 * judge.MINUTE_MS
        with trio.fail_after(3_600 + hours * 3_600):
            while judge.last_tick(path) < end_ms or judge.suspects(path, end_ms):  # noqa: ASYNC110
                await trio.sleep(5.0)
        stop.set()
        await ended.wait()
        database.close()
        await edge.rest.aclose()
        bars = judge.sealed(path)
        judge.check_continuous(path, bars)
        judge.check_kept(announced, bars)
        kept = {key: bar for key, bar in bars.items() if key[2] + judge.FIXED_MS[key[1]] <= end_ms}
        print(f"bars compared: {judge.check_official(path, Official(exchange), kept, since_ms)}")
        nursery.cancel_scope.cancel()


def main() -> None:
    """Run one seed."""
    seed, folder = int(sys.argv[1]), Path(sys.argv[2])
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(sleep_and_wake, seed, folder, clock=clock)


if __name__ == "__main__":
    main()
