"""An hour of trading of a whole market in one process without sleeping: what stays in memory.

Frames as they come from a socket go through decoder, Router, workers, Writer and Database;
running bars and the start snapshot are written as often as in life. The modules of `klagg run` are
all loaded, the dashboard's too. Only the network is missing.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
from pathlib import Path

import trio
import trio.testing

from bench.contenders import Job
from bench.contenders.klagg import seeds
from bench.market import START_MS, capture, instruments, payload, trades
from klagg_trio import cmd
from klagg_trio.core.intervals import INTERVALS, MINUTE_MS, select
from klagg_trio.core.shard import Shard
from klagg_trio.exchange.bursts import TradeDecoder
from klagg_trio.exchange.frames import Frames
from klagg_trio.feed import Router
from klagg_trio.store.database import Database
from klagg_trio.store.thread import one_thread
from klagg_trio.worker import run_worker
from klagg_trio.writer import Writer

SHARDS = 4
REPORTS_A_MINUTE = 12
"""Every five seconds the running bars are written."""

SNAPSHOT_MINUTES = 5


def resident_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


async def run(options: argparse.Namespace) -> None:
    for module in ("commands.run", "dashboard", "repair"):
        importlib.import_module(f"klagg_trio.{module}")
    loaded_mib = resident_mib()
    names = tuple(INTERVALS)
    chosen = select(names)
    cut_ms = START_MS - START_MS % MINUTE_MS
    rate = options.per_minute / 60
    source = capture(options.symbols, 10, rate_per_s=rate)
    folder = Path(options.folder)
    database = Database.open(folder / "klagg.db")
    shards = [Shard(chosen, cut_ms) for _ in range(SHARDS)]
    for seed in seeds(Job("", source, options), cut_ms, names):
        shards[cmd.shard_of(seed.symbol, SHARDS)].load(seed)
    for shard in shards:
        shard.feed_live(list(shard.states), cut_ms)
    inboxes = [trio.open_memory_channel[cmd.Message](1024) for _ in shards]
    to_writer, writer_end = trio.open_memory_channel[cmd.Record](256)
    thread, busy = one_thread(), 0

    async def run_in_thread(*arguments):
        nonlocal busy
        busy += 1
        try:
            return await thread(*arguments)
        finally:
            busy -= 1

    async def rest() -> None:
        """Wait until all that was sent is on disk: in life there is nothing for five seconds."""
        await trio.testing.wait_all_tasks_blocked()
        while busy or writer.statistics().queue:  # noqa: ASYNC110
            await trio.sleep(0.001)

    writer = Writer(
        writer_end,
        database,
        shards=SHARDS,
        snapshot_path=folder / "initial_state.cbor",
        intervals=names,
        run_in_thread=run_in_thread,
    )
    router = Router([send for send, _ in inboxes])
    for symbol in source.symbols:
        router.know(symbol)
    made = instruments(options.symbols)
    drawn = trades(made, rate_per_s=rate)
    decoder = TradeDecoder()
    sizes: list[float] = []

    async def send(*messages: cmd.Message) -> None:
        for message in messages:
            for inbox, _ in inboxes:
                await inbox.send(message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        for number, (shard, (_, end)) in enumerate(zip(shards, inboxes, strict=True)):

            async def work(
                number: int = number,
                shard: Shard = shard,
                end: trio.MemoryReceiveChannel[cmd.Message] = end,
            ) -> None:
                await run_worker(end, to_writer.clone(), number=number, shard=shard)

            nursery.start_soon(work)
        minute_ms = cut_ms
        for minute in range(options.minutes):
            minute_ms += MINUTE_MS
            size = options.per_minute // REPORTS_A_MINUTE
            part = list(itertools.islice(drawn, size * REPORTS_A_MINUTE))
            for step in range(REPORTS_A_MINUTE):
                some = part[step * size : (step + 1) * size]
                for at in range(0, len(some), 100):
                    frames = Frames.of(
                        payload(made, trade).encode() for trade in some[at : at + 100]
                    )
                    decoded = decoder.decode(frames)
                    if decoded.columns is None:
                        await router.send_trades(decoded.trades)
                    else:
                        await router.send_columns(decoded.columns)
                await send(cmd.ReportOpenBars())
                await rest()
            await send(cmd.Tick(minute_ms))
            if minute % SNAPSHOT_MINUTES == 0:
                await send(cmd.ReportSeeds())
            await rest()
            assert writer.statistics().committed_minute_ms == minute_ms
            sizes.append(resident_mib())
        for inbox, _ in inboxes:
            await inbox.aclose()
        await to_writer.aclose()
    database.close()
    late = sizes[len(sizes) // 3 :]
    middle = (len(late) - 1) / 2
    mean = sum(late) / len(late)
    slope = sum((i - middle) * (size - mean) for i, size in enumerate(late)) / max(
        1.0, sum((i - middle) ** 2 for i in range(len(late)))
    )
    print(
        json.dumps(
            {
                "loaded_mib": loaded_mib,
                "first_mib": sizes[0],
                "last_mib": sizes[-1],
                "peak_mib": max(sizes),
                "slope_mib_per_hour": slope * 60,
                "trades": sum(shard.trades.total for shard in shards),
                "not_in_bars": sum(shard.trades.total - shard.trades.in_bars for shard in shards),
                "sizes": sizes,
            }
        )
    )


if __name__ == "__main__":
    parse = argparse.ArgumentParser()
    parse.add_argument("folder")
    parse.add_argument("symbols", type=int)
    parse.add_argument("minutes", type=int)
    parse.add_argument("per_minute", type=int)
    trio.run(run, parse.parse_args())
