"""How long it takes to catch up after a time away: minute clock, shards and writer as in a run.

    python -m bench.catch_up --days 7 --symbols 500
    python -m bench.catch_up --hours 1 --symbols 700 --asleep

A start state that is so old, or with --asleep a machine that slept so long in the midst of a run;
trades go on to come meanwhile. Prints one JSON object: seconds until all is on disk, what the loop
was held at most, the memory it took at most, and whether all that there should be is there.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from decimal import Decimal
from pathlib import Path

import trio

from bench.contenders import LAG_EVERY_S
from klagg_trio import cmd
from klagg_trio.core.bar import newborn
from klagg_trio.core.facts import Event
from klagg_trio.core.intervals import DAY_MS, DEFAULT_INTERVALS, HOUR_MS, MINUTE, MINUTE_MS, select
from klagg_trio.core.seed import OpenBar, Seed
from klagg_trio.core.shard import NEVER_MS, Shard
from klagg_trio.exchange.wire import AggTrade
from klagg_trio.settings import Settings
from klagg_trio.store.database import Database
from klagg_trio.store.thread import one_thread
from klagg_trio.tick import Grace, MinuteClock, ServerClock
from klagg_trio.worker import run_worker
from klagg_trio.writer import Writer

FEED_EVERY_S = 0.05


class Machine:
    """Clocks of a machine that may have slept, and an exchange that has not."""

    asleep_ms = 0.0

    def local_ms(self) -> float:
        return trio.current_time() * 1000 + self.asleep_ms

    def wall_ms(self) -> float:
        return time.time_ns() / 1e6 + self.asleep_ms

    async def server_time_ms(self) -> int:
        await trio.lowlevel.checkpoint()
        return int(self.wall_ms())


def seed_of(symbol: str, cut_ms: int) -> Seed:
    """Return the state of a symbol that has traded before, of the usual intervals."""
    price = Decimal("123.45")
    open_bars = []
    for interval in select(DEFAULT_INTERVALS)[1:]:
        open_ms = interval.floor(cut_ms)
        open_bars.append(OpenBar(interval.name, newborn(open_ms, interval.end(open_ms), price), 0))
    return Seed(symbol, 0, NEVER_MS, price, 100, cut_ms - 1, DAY_MS, tuple(open_bars))


async def feed(
    inboxes: list[trio.MemorySendChannel[cmd.Message]], clock: ServerClock, symbols: list[str]
) -> None:
    """Bring a trade of every tenth symbol, twenty times a second, made just now."""
    trade_id = 100
    while True:
        await trio.sleep(FEED_EVERY_S)
        now_ms = clock.now_ms()
        trade_id += 1
        parts: list[list[AggTrade]] = [[] for _ in inboxes]
        for symbol in symbols[::10]:
            price, quantity = Decimal("123.45"), Decimal("0.1")
            trade = AggTrade(
                now_ms, trade_id, symbol, price, quantity, trade_id, trade_id, now_ms, True
            )
            parts[cmd.shard_of(symbol, len(inboxes))].append(trade)
        for inbox, part in zip(inboxes, parts, strict=True):
            await inbox.send(cmd.TradeBatch(part, now_ms))


async def run(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Catch up; return the figures."""
    settings, machine, lags_ms = Settings(), Machine(), [0.0]
    away_ms = int(options.days * DAY_MS + options.hours * HOUR_MS)
    now_ms = int(machine.wall_ms())
    cut_ms = MINUTE.floor(now_ms) - (0 if options.asleep else away_ms)
    symbols = [f"S{number}USDT" for number in range(options.symbols)]
    shards = [Shard(select(DEFAULT_INTERVALS), cut_ms) for _ in range(settings.shards)]
    for symbol in symbols:
        shards[cmd.shard_of(symbol, len(shards))].load(seed_of(symbol, cut_ms))
    database = Database.open(folder / "klagg.db")
    inboxes = [trio.open_memory_channel[cmd.Message](settings.inbox_max) for _ in shards]
    to_writer, end = trio.open_memory_channel[cmd.Record](settings.writer_queue_max)
    writer = Writer(
        end,
        database,
        shards=len(shards),
        snapshot_path=folder / "initial_state.cbor",
        intervals=DEFAULT_INTERVALS,
        run_in_thread=one_thread(),
    )
    clock = ServerClock(machine, settings, local_ms=machine.local_ms, wall_ms=machine.wall_ms)
    await clock.sync()
    told: list[Event] = []
    sends = [send for send, _ in inboxes]

    async def watch() -> None:
        for number, shard in enumerate(shards):
            await sends[number].send(cmd.FeedLost(tuple(shard.states), cut_ms))

    minute_clock = MinuteClock(
        clock,
        Grace(settings, lambda: 50.0),
        cut_ms,
        machine.wall_ms,
        committed_ms=lambda: writer.committed_ms,
        watch=watch if options.asleep else None,
        note=told.append,
    )

    async def look_on() -> None:
        while True:
            due_s = trio.current_time() + LAG_EVERY_S
            await trio.sleep_until(due_s)
            lags_ms.append((trio.current_time() - due_s) * 1e3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        for number, (shard, (_, receive)) in enumerate(zip(shards, inboxes, strict=True)):
            nursery.start_soon(_work, number, shard, receive, to_writer.clone())
        if options.asleep:
            for number, shard in enumerate(shards):
                await sends[number].send(cmd.FeedLive(tuple(shard.states), cut_ms))
            await trio.sleep(1)
            machine.asleep_ms = away_ms
            clock.set_anew()
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began_s = trio.current_time()
        nursery.start_soon(look_on)
        nursery.start_soon(feed, sends, clock, symbols)
        nursery.start_soon(lambda: minute_clock.run(sends, snapshot_every_s=1e9))
        target_ms = MINUTE.floor(clock.now_ms()) - MINUTE_MS
        while writer.committed_ms < target_ms:  # noqa: ASYNC110 - read, as repair does
            await trio.sleep(0.01)
        seconds = trio.current_time() - began_s
        nursery.cancel_scope.cancel()
    database.close()
    return {
        "minutes": away_ms // MINUTE_MS,
        "seconds": round(seconds, 2),
        "rows": writer.statistics().rows,
        "held_ms_max": round(max(lags_ms), 1),
        "held_ms_p99": round(sorted(lags_ms)[int(len(lags_ms) * 0.99)], 1),
        "mb_before": before_kb // 1024,
        "mb_max": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "told": [event.text for event in told],
    }


async def _work(
    number: int,
    shard: Shard,
    receive: trio.MemoryReceiveChannel[cmd.Message],
    send: trio.MemorySendChannel[cmd.Record],
) -> None:
    await run_worker(receive, send, number=number, shard=shard)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=float, default=0)
    parser.add_argument("--hours", type=float, default=0)
    parser.add_argument("--symbols", type=int, default=500)
    parser.add_argument("--asleep", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="klagg-catch-up-") as folder:
        print(json.dumps(trio.run(run, options, Path(folder))))


if __name__ == "__main__":
    main()
