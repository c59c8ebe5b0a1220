"""Ticks of a whole market made durable, while the feed of another one runs in the same loop.

Two sets of shards. The first is fed by a blaster at a set rate, by way of the program's own feed,
so that the loop and the processor have what they have in life. The second is the market that is
ticked: four shards whose every symbol has traded, `run_worker`, `Writer`, `Database`, one thread.
Latency is taken from the moment at which a Tick is due, boundary and grace having passed, to the
return of the commit.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gc
import itertools
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import trio

import klagg_trio.worker
from bench.big_database import END_MS, symbols_of
from bench.contenders import LAG_EVERY_S, FeedClock
from bench.measure import percentile
from klagg_trio import cmd
from klagg_trio.core.bar import newborn
from klagg_trio.core.facts import Event
from klagg_trio.core.intervals import DEFAULT_INTERVALS, INTERVALS, MINUTE_MS, select
from klagg_trio.core.seed import OpenBar, Seed
from klagg_trio.core.shard import NEVER_MS, Shard
from klagg_trio.exchange.stream import dial_tcp
from klagg_trio.exchange.wire import AggTrade
from klagg_trio.feed import Feeds, Router
from klagg_trio.settings import Settings
from klagg_trio.store.database import Database
from klagg_trio.store.thread import one_thread
from klagg_trio.worker import run_worker
from klagg_trio.writer import Writer

SHARDS = 4
PAGE = 4_096 + 24
"""A frame of the write-ahead log."""

apply_times: list[tuple[str, float]] = []


def _timed_apply(number: int, shard: Shard, message: cmd.Message) -> cmd.Record | None:
    if not isinstance(message, cmd.Tick):
        return _apply(number, shard, message)
    started = time.perf_counter()
    record = _apply(number, shard, message)
    apply_times.append(("tick", time.perf_counter() - started))
    return record


_apply = klagg_trio.worker.apply
klagg_trio.worker.apply = _timed_apply


def full_boundaries(after_ms: int) -> list[int]:
    """Return the moments at which all fifteen intervals end: months that begin on a Monday."""
    found = []
    for year, month in itertools.product(range(2024, 2100), range(1, 13)):
        day = dt.datetime(year, month, 1, tzinfo=dt.UTC)
        at_ms = int(day.timestamp() * 1000)
        if day.weekday() == 0 and at_ms > after_ms:
            found.append(at_ms)
    return found


class Market:
    """The market that is ticked."""

    def __init__(self, symbols: list[str], names: tuple[str, ...], database: Database) -> None:
        self.symbols = symbols
        self.names = names
        self.database = database
        self.ids = dict.fromkeys(symbols, 1)
        self.draw = random.Random(5)
        self.shards: list[Shard] = []
        self.minute_ms = 0

    def load(self, cut_ms: int) -> None:
        """Begin anew at a minute, with open bars that have traded."""
        intervals = select(self.names)
        self.minute_ms = cut_ms
        for number, shard in enumerate(self.shards):
            shard.__init__(intervals, cut_ms)  # type: ignore[misc]
            for symbol in self.symbols:
                if cmd.shard_of(symbol, SHARDS) == number:
                    shard.load(self._seed(symbol, cut_ms))
            shard.feed_live(list(shard.states), cut_ms)

    def _seed(self, symbol: str, cut_ms: int) -> Seed:
        price = Decimal(self.draw.randrange(10_000, 999_999)) / 1000
        open_bars = []
        for interval in select(self.names)[1:]:
            if interval.name == "3d":  # any grid is legal: this one ends with the boundary
                interval = interval.with_phase(cut_ms + MINUTE_MS)
            open_ms = interval.floor(cut_ms)
            bar = newborn(open_ms, interval.end(open_ms), price)
            if open_ms < cut_ms:
                bar.volume, bar.quote_volume = Decimal("123456.789"), Decimal("98765432.123456")
                bar.taker_buy_volume = Decimal("61234.567")
                bar.taker_buy_quote_volume = Decimal("49382716.061728")
                bar.count, bar.first, bar.last = 4_321, open_ms, cut_ms - MINUTE_MS
            open_bars.append(OpenBar(interval.name, bar, 1))
        phase_ms = INTERVALS["3d"].with_phase(cut_ms + MINUTE_MS).phase_ms
        next_id = self.ids[symbol]
        return Seed(symbol, 0, NEVER_MS, price, next_id, cut_ms - 1, phase_ms, tuple(open_bars))

    def trade(self) -> None:
        """Let every symbol trade twice in the running minute."""
        for shard in self.shards:
            trades = []
            for symbol, state in shard.states.items():
                for _ in range(2):
                    price = state.last_close + Decimal(self.draw.randrange(9)) / 1000
                    quantity = Decimal(self.draw.randrange(1, 90_000)) / 1000
                    number = self.ids[symbol]
                    self.ids[symbol] = number + 1
                    at_ms = self.minute_ms + 30_000
                    maker = self.draw.random() < 0.5
                    trades.append(
                        AggTrade(at_ms, number, symbol, price, quantity, 1, 3, at_ms, maker)
                    )
            assert shard.apply_trades(trades) is None


class Watched:
    """A database whose calls are timed, and whose log is counted."""

    def __init__(self, database: Database) -> None:
        self.times: dict[str, list[float]] = {"commit": [], "fold": [], "checkpoint": []}
        self.wal_commit: list[int] = []
        self.wal_fold: list[int] = []
        self.rows: list[int] = []
        self.done: dict[int, float] = {}
        self.amended_s = 0.0
        self.committing = False
        self.inner = database
        self.durable = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.Lock()
        """The log is also counted from outside the writer's thread."""
        self.connection: sqlite3.Connection = database._connection

    @property
    def busy(self) -> bool:
        """Whether fold and checkpoint of the last tick are still to come."""
        return len(self.times["checkpoint"]) < len(self.times["commit"])

    def frames(self) -> int:
        """Checkpoint; return the frames that were in the log."""
        with self._lock:
            return int(self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1])

    def commit(self, minute_ms: int | None, *what: Any) -> int:
        self.committing = True
        started = time.perf_counter()
        with self._lock:
            rows = self.inner.commit(minute_ms, *what)
        ended = time.perf_counter()
        self.committing = False
        if minute_ms is None:
            self.amended_s += ended - started
        else:
            self.times["commit"].append(ended - started)
            self.done[minute_ms] = ended
            self.rows.append(rows)
            self._token.run_sync_soon(lambda: self.durable.set())
        return rows

    def fold(self) -> int:
        self.wal_commit.append(self.frames())
        started = time.perf_counter()
        with self._lock:
            rows = self.inner.fold()
        self.times["fold"].append(time.perf_counter() - started)
        return rows

    def checkpoint(self) -> None:
        started = time.perf_counter()
        self.wal_fold.append(self.frames())
        self.times["checkpoint"].append(time.perf_counter() - started)


def figures(name: str, latencies: list[float], watched: Watched, applied: list[float]) -> dict:
    """Put the figures of one kind of tick together, in ms and bytes."""
    commits = watched.times["commit"]
    per_tick = [sum(applied[i : i + SHARDS]) for i in range(0, len(applied), SHARDS)]
    ms = 1e3
    median = percentile
    return {
        f"{name}_ticks": len(latencies),
        f"{name}_python_ms": median(per_tick, 0.5) * ms,
        f"{name}_python_p99_ms": median(per_tick, 0.99) * ms,
        f"{name}_hold_ms": max(applied) * ms,
        f"{name}_commit_ms": median(commits, 0.5) * ms,
        f"{name}_commit_p99_ms": median(commits, 0.99) * ms,
        f"{name}_durable_p50_ms": median(latencies, 0.5) * ms,
        f"{name}_durable_p99_ms": median(latencies, 0.99) * ms,
        f"{name}_wal_bytes": median(watched.wal_commit, 0.5) * PAGE,
        f"{name}_wal_fold_bytes": median(watched.wal_fold, 0.5) * PAGE,
        f"{name}_fold_ms": median(watched.times["fold"], 0.5) * ms,
        f"{name}_rows": median(watched.rows, 0.5),
    }


class Collector:
    """How long the garbage collector held the interpreter."""

    def __init__(self) -> None:
        self.pauses_ms: list[tuple[int, float]] = []
        self._started_s = 0.0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, what: dict[str, int]) -> None:
        if phase == "start":
            self._started_s = time.perf_counter()
        else:
            pause_ms = (time.perf_counter() - self._started_s) * 1e3
            self.pauses_ms.append((what["generation"], pause_ms))

    def tell(self) -> dict[str, float]:
        return {
            f"gc_{generation}_{name}": value
            for generation in range(3)
            for pauses in ([ms for g, ms in self.pauses_ms if g == generation],)
            for name, value in (
                ("times", len(pauses)),
                ("sum_ms", sum(pauses)),
                ("max_ms", max(pauses, default=0.0)),
            )
        }


def clear(watched: Watched) -> None:
    for series in (*watched.times.values(), watched.wal_commit, watched.wal_fold, watched.rows):
        series.clear()
    apply_times.clear()


async def run(options: argparse.Namespace) -> None:
    folder = Path(options.folder)
    database = Database.open(folder / "klagg.db")
    watched = Watched(database)
    names = tuple(INTERVALS) if options.intervals == 15 else DEFAULT_INTERVALS
    market = Market(symbols_of(options.symbols), names, database)
    market.shards = [Shard(select(names), 0) for _ in range(SHARDS)]
    inboxes = [trio.open_memory_channel[cmd.Message](1024) for _ in range(SHARDS)]
    to_writer, writer_end = trio.open_memory_channel[cmd.Record](256)
    writer = Writer(
        writer_end,
        watched,  # type: ignore[arg-type]
        shards=SHARDS,
        snapshot_path=folder / "initial_state.cbor",
        intervals=names,
        run_in_thread=one_thread(),
    )
    lags_ms: list[float] = []
    out: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        for number, (shard, (_, end)) in enumerate(zip(market.shards, inboxes, strict=True)):

            async def work(
                number: int = number,
                shard: Shard = shard,
                end: trio.MemoryReceiveChannel[cmd.Message] = end,
            ) -> None:
                await run_worker(end, to_writer.clone(), number=number, shard=shard)

            nursery.start_soon(work)

        sends = [send for send, _ in inboxes]

        async def trade() -> None:
            """Let all symbols trade, and the running bars be written."""
            market.trade()
            await report_running(sends)

        async def tick(minute_ms: int) -> float:
            due_s = time.perf_counter()
            for inbox, _ in inboxes:
                await inbox.send(cmd.Tick(minute_ms))
            market.minute_ms = minute_ms
            await watched.durable.wait()
            watched.durable = trio.Event()
            return watched.done[minute_ms] - due_s

        async def settle() -> None:
            """Wait until fold and checkpoint of the last tick, and every report, are over."""
            quiet = 0
            while quiet < 3:  # a report is on its way through the workers before it is in the queue
                busy = watched.busy or watched.committing or writer.statistics().queue
                quiet = 0 if busy else quiet + 1
                await trio.sleep(0.02)
            await trio.sleep(options.gap_s)
            watched.frames()  # the log is counted from here

        start_ms = max(database.last_tick(), END_MS)
        # The minutes of a whole turn of folding first: the recent bars hold their usual amount.
        market.load(start_ms)
        wanted = options.recent - recent_minutes(database)
        for _ in range(max(0, wanted)):
            await trade()
            await tick(market.minute_ms + MINUTE_MS)
        await settle()
        out["recent_minutes"] = recent_minutes(database)
        feed = None
        if options.url:
            feed = start_feed(options, nursery)
            with trio.fail_after(30):
                while not feed.counts.received:  # noqa: ASYNC110
                    await trio.sleep(0.01)
        gc.collect()
        collector = Collector()
        if options.gc == "frozen":
            gc.freeze()
        elif options.gc == "off":
            gc.disable()
        clear(watched)
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        received = feed.counts.received if feed else 0
        latencies: list[float] = []
        while len(latencies) < options.ordinary:
            await trade()
            await settle()
            minute_ms = market.minute_ms + MINUTE_MS
            latency = await tick(minute_ms)
            if minute_ms // MINUTE_MS % 3 and minute_ms // MINUTE_MS % 5:
                latencies.append(latency)
            else:  # more than 1m ended: not an ordinary minute
                await settle()
                for series in (*watched.times.values(), watched.wal_commit, watched.wal_fold):
                    series.pop()
                watched.rows.pop()
                del apply_times[-SHARDS:]
        await settle()
        if latencies:
            out |= figures("ordinary", latencies, watched, [seconds for _, seconds in apply_times])
        out["reads"] = read_back(folder / "klagg.db", market.symbols, market.minute_ms)
        out["gc_ordinary"] = collector.tell()
        collector.pauses_ms.clear()
        # The timer costs what it measures: it runs beside ticks whose latency is not taken.
        scope = trio.CancelScope()
        nursery.start_soon(watch_lag, lags_ms, scope)
        for _ in range(max(1, options.ordinary // 4) if options.ordinary else 0):
            await trade()
            await settle()
            await tick(market.minute_ms + MINUTE_MS)
        out["lag_ordinary_p999"] = percentile(lags_ms, 0.999)
        out["lag_ordinary_max"] = max(lags_ms, default=0.0)
        scope.cancel()
        await settle()
        if options.ordinary:
            out |= await whole_minutes(market, watched, tick, settle, sends)
        clear(watched)
        collector.pauses_ms.clear()
        latencies.clear()
        for boundary_ms in full_boundaries(market.minute_ms)[: options.full]:
            market.load(boundary_ms - MINUTE_MS)
            await trade()
            await settle()
            latencies.append(await tick(boundary_ms))
        if latencies:
            await settle()
            out |= figures("full", latencies, watched, [seconds for _, seconds in apply_times])
            out["gc_full"] = collector.tell()
            scope = trio.CancelScope()
            nursery.start_soon(watch_lag, lags_ms, scope)
            held_ms = []
            for boundary_ms in full_boundaries(market.minute_ms)[: max(1, options.full // 4)]:
                market.load(boundary_ms - MINUTE_MS)
                await trade()
                await settle()
                lags_ms.clear()
                await tick(boundary_ms)
                held_ms.append(max(lags_ms, default=0.0))
            out["lag_full_max"] = max(held_ms)
            scope.cancel()
        if feed:
            seconds = time.perf_counter() - began_s
            out["feed_per_s"] = (feed.counts.received - received) / seconds
            out["cpu_percent"] = 100 * (time.process_time() - began_cpu_s) / seconds
        nursery.cancel_scope.cancel()
    database.close()
    out["database_mib"] = (folder / "klagg.db").stat().st_size / 2**20
    print(json.dumps(out))


async def watch_lag(lags_ms: list[float], scope: trio.CancelScope) -> None:
    """Note how late a 5 ms timer is."""
    with scope:
        due_s = trio.current_time()
        while True:
            due_s = max(due_s + LAG_EVERY_S, trio.current_time())
            await trio.sleep_until(due_s)
            lags_ms.append((trio.current_time() - due_s) * 1e3)


REPORTS = 12
"""Of the running bars in a minute: every five seconds."""


async def report_running(inboxes: list[trio.MemorySendChannel[cmd.Message]]) -> None:
    """Have the running bars written, as happens every few seconds."""
    for inbox in inboxes:
        await inbox.send(cmd.ReportOpenBars())


async def whole_minutes(
    market: Market,
    watched: Watched,
    tick: Callable[[int], Awaitable[float]],
    settle: Callable[[], Awaitable[None]],
    inboxes: list[trio.MemorySendChannel[cmd.Message]],
) -> dict[str, float]:
    """Write what a minute writes, every symbol trading between two reports of the running bars.

    The first report after a tick has the longer bars too.
    """
    seconds: dict[str, list[float]] = {"first": [], "next": []}
    log_bytes: dict[str, list[int]] = {"first": [], "next": [], "minute": []}
    while len(log_bytes["minute"]) < 5:
        minute_ms = market.minute_ms + MINUTE_MS
        await tick(minute_ms)
        await settle()
        total = (watched.wal_commit[-1] + watched.wal_fold[-1]) * PAGE
        for number in range(REPORTS):
            market.trade()
            watched.frames()
            watched.amended_s = 0.0
            await report_running(inboxes)
            await trio.sleep(0.05)
            await settle()
            which = "next" if number else "first"
            seconds[which].append(watched.amended_s)
            log_bytes[which].append(watched.frames() * PAGE)
            total += log_bytes[which][-1]
        if minute_ms // MINUTE_MS % 3 and minute_ms // MINUTE_MS % 5:
            log_bytes["minute"].append(total)
    found = {f"report_{name}_ms": percentile(each, 0.5) * 1e3 for name, each in seconds.items()}
    return found | {
        f"{name}_wal_bytes" if name == "minute" else f"report_{name}_wal_bytes": percentile(
            each, 0.5
        )
        for name, each in log_bytes.items()
    }


def start_feed(options: argparse.Namespace, nursery: trio.Nursery) -> Feeds:
    """Run the fed market: its bars are made and dropped."""
    from bench.market import capture

    source = capture(500, options.trades, rate_per_s=options.rate, start_ms=options.start_ms)
    cut_ms = options.start_ms - options.start_ms % MINUTE_MS
    shards = [Shard(select(tuple(INTERVALS)), cut_ms) for _ in range(SHARDS)]
    for symbol, price in zip(source.symbols, source.first_prices, strict=True):
        shards[cmd.shard_of(symbol, SHARDS)].add_symbol(
            symbol, Decimal(price), cut_ms, NEVER_MS, 86_400_000
        )
    inboxes = [trio.open_memory_channel[cmd.Message](1024) for _ in shards]
    sink, sink_end = trio.open_memory_channel[cmd.Record](1024)

    async def drop() -> None:
        async for _ in sink_end:
            pass

    nursery.start_soon(drop)
    for number, (shard, (_, end)) in enumerate(zip(shards, inboxes, strict=True)):

        async def work(
            number: int = number,
            shard: Shard = shard,
            end: trio.MemoryReceiveChannel[cmd.Message] = end,
        ) -> None:
            await run_worker(end, sink.clone(), number=number, shard=shard)

        nursery.start_soon(work)
    events: list[Event] = []
    feeds = Feeds(
        router=Router([send for send, _ in inboxes]),
        settings=Settings(ws_url=options.url, symbols_per_connection=1_000),
        dial=dial_tcp,
        clock=FeedClock(lambda: options.start_ms + 1),
        note=events.append,
    )
    feeds.plan(source.symbols)
    _, subscriptions = trio.open_memory_channel[cmd.Subscription](1)
    nursery.start_soon(feeds.run, nursery, subscriptions)
    return feeds


def recent_minutes(database: Database) -> int:
    sql = "SELECT count(*) FROM recent_opens WHERE interval = 0"
    return int(database._connection.execute(sql).fetchone()[0])


def read_back(path: Path, symbols: list[str], minute_ms: int) -> dict[str, float]:
    """Time what people ask: one symbol's last day, and its year, through the view.

    A process of its own, as theirs would be.
    """
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "bench.contenders.reader", str(path), symbols[0], str(minute_ms)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    parse = argparse.ArgumentParser()
    parse.add_argument("folder")
    parse.add_argument("symbols", type=int)
    parse.add_argument("intervals", type=int)
    parse.add_argument("--url", default="")
    parse.add_argument("--trades", type=int, default=0)
    parse.add_argument("--rate", type=float, default=0)
    parse.add_argument("--start-ms", type=int, default=0)
    parse.add_argument("--ordinary", type=int, default=40)
    parse.add_argument("--full", type=int, default=20)
    parse.add_argument("--recent", type=int, default=240)
    parse.add_argument("--gc", default="frozen", choices=("as is", "frozen", "off"))
    parse.add_argument("--gap-s", type=float, default=0.1)
    trio.run(run, parse.parse_args())
