"""klagg: its own feed, router, workers and shards; exact bars of all intervals, kept in memory.

Everything but the exchange's REST side and the disk is the program's own: `Feeds` subscribes and
reads, `FrameTap` and `decode_trades` make trades, `Router` sends them to four shards' inboxes,
`run_worker` applies them. The minute is ticked behind the first chunk that has a trade of the next
one, in the same inboxes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from decimal import Decimal

import trio
import trio.testing

from bench.contenders import LAG_EVERY_S, FeedClock, Job, Meter, check_exact, job
from klagg_trio import cmd
from klagg_trio.core.bar import newborn
from klagg_trio.core.columns import TIME_MS, TradeColumns
from klagg_trio.core.facts import Event
from klagg_trio.core.intervals import INTERVALS, MINUTE, select
from klagg_trio.core.seed import OpenBar, Seed
from klagg_trio.core.shard import NEVER_MS, Shard
from klagg_trio.core.trade import Trade
from klagg_trio.exchange.stream import dial_tcp
from klagg_trio.feed import Feeds, Router
from klagg_trio.settings import Settings
from klagg_trio.worker import run_worker


class TickingRouter(Router):
    """Ticks each minute behind the chunk that shows that it is over."""

    def __init__(
        self, inboxes: list[trio.MemorySendChannel[cmd.Message]], task: Job, meter: Meter
    ) -> None:
        super().__init__(inboxes)
        self.newest_ms = task.source.start_ms
        self.ended = trio.Event()
        self._due_ms = MINUTE.end(MINUTE.floor(task.source.start_ms))
        self._meter = meter
        self._sent = 0
        self._wanted = task.source.trades

    async def send_trades(self, trades: Iterable[Trade], now_ms: int | None = None) -> None:
        assert isinstance(trades, list)
        self._begin(len(trades))
        await super().send_trades(trades, now_ms)
        await self._end(trades[-1].time_ms)

    async def send_columns(self, columns: TradeColumns, now_ms: int | None = None) -> bool:
        self._begin(len(columns))
        fits = await super().send_columns(columns, now_ms)
        await self._end(int(columns.table[TIME_MS, -1]))
        return fits

    def _begin(self, count: int) -> None:
        self._meter.begin(self._sent)
        self._sent += count

    async def _end(self, newest_ms: int) -> None:
        if self._sent >= self._wanted:
            self.ended.set()
        self.newest_ms = newest_ms
        if self.newest_ms >= self._due_ms:
            for inbox in self._inboxes:
                await inbox.send(cmd.Tick(self._due_ms))
            self._due_ms += 60_000


def seeds(task: Job, cut_ms: int, names: tuple[str, ...]) -> list[Seed]:
    """Return the start state: every symbol flat at its first price, ids known."""
    made = []
    for symbol, first_id, price_text in zip(
        task.source.symbols, task.source.first_ids, task.source.first_prices, strict=True
    ):
        price = Decimal(price_text)
        open_bars = tuple(
            OpenBar(i.name, newborn(open_ms, i.end(open_ms), price), 0)
            for i in select(names)[1:]
            for open_ms in (i.floor(cut_ms),)
        )
        made.append(Seed(symbol, 0, NEVER_MS, price, first_id, cut_ms - 1, 86_400_000, open_bars))
    return made


async def run(task: Job) -> None:
    names = tuple(INTERVALS)[: task.options.intervals]
    cut_ms = MINUTE.floor(task.source.start_ms)
    settings = Settings(
        ws_url=task.url,
        intervals=names,
        symbols_per_connection=task.options.symbols_per_connection,
        silence_limit_s=60.0,
    )
    if task.options.read_pause_ms is not None:
        settings = dataclasses.replace(settings, read_pause_ms=task.options.read_pause_ms)
    shards = [Shard(select(names), cut_ms) for _ in range(settings.shards)]
    for seed in seeds(task, cut_ms, names):
        shards[cmd.shard_of(seed.symbol, settings.shards)].load(seed)
    inboxes = [trio.open_memory_channel[cmd.Message](settings.inbox_max) for _ in shards]
    to_sink, sink = trio.open_memory_channel[cmd.Record](settings.writer_queue_max)
    meter = task.meter()
    router = TickingRouter([send for send, _ in inboxes], task, meter)
    events: list[Event] = []
    feeds = Feeds(
        router=router,
        settings=settings,
        dial=dial_tcp,
        clock=FeedClock(lambda: router.newest_ms),
        note=events.append,
    )
    feeds.plan(task.source.symbols)
    bars: dict[tuple[str, int], tuple[object, ...]] = {}

    async def collect() -> None:
        async for record in sink:
            if isinstance(record, cmd.Sealed):
                for fact in record.facts.sealed:
                    if fact.interval == "1m":
                        bars[fact.symbol, fact.bar.open_ms] = fact.bar.values()

    async def watch_lag() -> None:
        due_s = trio.current_time()
        while True:
            due_s = max(due_s + LAG_EVERY_S, trio.current_time())
            await trio.sleep_until(due_s)
            meter.lags_ms.append((trio.current_time() - due_s) * 1e3)

    wanted = task.source.trades
    async with trio.open_nursery() as nursery:
        for number, (shard, (_, receive)) in enumerate(zip(shards, inboxes, strict=True)):

            async def work(
                number: int = number,
                shard: Shard = shard,
                receive: trio.MemoryReceiveChannel[cmd.Message] = receive,
            ) -> None:
                await run_worker(receive, to_sink.clone(), number=number, shard=shard)

            nursery.start_soon(work)
        nursery.start_soon(collect)
        if meter.timed:
            nursery.start_soon(watch_lag)
        _, subscriptions = trio.open_memory_channel[cmd.Subscription](1)
        nursery.start_soon(feeds.run, nursery, subscriptions)

        # Trades that were received are applied within two rounds of the loop.
        with trio.fail_after(100):
            await router.ended.wait()
            while sum(shard.trades.total for shard in shards) < wanted:
                await trio.lowlevel.checkpoint()
        meter.end()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    for shard in shards:
        for fact in shard.open_bars():
            if fact.interval == "1m":
                bars[fact.symbol, fact.bar.open_ms] = fact.bar.values()
        for state in shard.states.values():
            for bar in state.ahead.values():
                bars[state.symbol, bar.open_ms] = bar.values()
    check_exact(task.source.expected(), bars)
    in_bars = sum(shard.trades.in_bars + shard.trades.late for shard in shards)
    if in_bars != wanted:
        raise RuntimeError(f"{in_bars} trades in bars instead of {wanted}")
    meter.tell(wanted, reconnects=feeds.counts.reconnects)


if __name__ == "__main__":
    trio.run(run, job())
