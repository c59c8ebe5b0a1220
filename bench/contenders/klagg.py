"""klagg: its own feed, router, workers and shards; exact bars of all intervals, kept in memory.

Everything but the exchange's REST side and the disk is the program's own: `Feeds` subscribes and
reads, `FrameTap` and `decode_trades` make trades, `Router` sends them to four shards' inboxes,
`run_worker` applies them. The minute is ticked behind the first chunk that has a trade of the next
one, in the same inboxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal

import trio

from bench.contenders import LAG_EVERY_S, Job, Meter, check_exact, job
from klagg_trio import cmd
from klagg_trio.core.bar import newborn
from klagg_trio.core.facts import Event
from klagg_trio.core.intervals import INTERVALS, MINUTE, select
from klagg_trio.core.seed import OpenBar, Seed
from klagg_trio.core.shard import NEVER_MS, Shard
from klagg_trio.exchange.stream import dial_tcp
from klagg_trio.exchange.wire import AggTrade
from klagg_trio.feed import Feeds, Router
from klagg_trio.settings import Settings
from klagg_trio.worker import run_worker


class TickingRouter(Router):
    """Ticks each minute behind the chunk that shows that it is over."""

    def __init__(self, inboxes: list[trio.MemorySendChannel[cmd.Message]], start_ms: int) -> None:
        super().__init__(inboxes)
        self.newest_ms = start_ms
        self._due_ms = MINUTE.end(MINUTE.floor(start_ms))
        self.meter = Meter()

    async def send_trades(self, trades: Iterable[AggTrade]) -> None:
        self.meter.begin()
        await super().send_trades(trades)
        assert isinstance(trades, list)
        self.newest_ms = trades[-1].time_ms
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
        symbols_per_connection=1_000,
        read_pause_ms=task.options.read_pause_ms,
        silence_limit_s=60.0,
    )
    shards = [Shard(select(names), cut_ms) for _ in range(settings.shards)]
    for seed in seeds(task, cut_ms, names):
        shards[cmd.shard_of(seed.symbol, settings.shards)].load(seed)
    inboxes = [trio.open_memory_channel[cmd.Message](settings.inbox_max) for _ in shards]
    to_sink, sink = trio.open_memory_channel[cmd.Record](settings.writer_queue_max)
    router = TickingRouter([send for send, _ in inboxes], task.source.start_ms)
    meter = router.meter
    events: list[Event] = []
    feeds = Feeds(
        router=router,
        settings=settings,
        dial=dial_tcp,
        now_ms=lambda: router.newest_ms,
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
        nursery.start_soon(watch_lag)
        _, subscriptions = trio.open_memory_channel[cmd.Subscription](1)
        nursery.start_soon(feeds.run, nursery, subscriptions)

        def counted() -> int:
            return sum(shard.trades.total for shard in shards)

        with trio.move_on_after(math.inf):
            while feeds.counts.received < wanted or counted() < wanted:
                await trio.sleep(0.002)
                if feeds.counts.reconnects:
                    raise RuntimeError(f"the connection was lost: {events[-1].text}")
        meter.end()
        await trio.sleep(0.01)
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
    chunks = [feed._frames for feed in feeds.feeds]
    meter.tell(wanted, frames=sum(chunks), late=sum(s.trades.late for s in shards))


if __name__ == "__main__":
    trio.run(run, job())
