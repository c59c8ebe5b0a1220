"""One shard's task: take messages from the inbox, let the shard decide, hand the facts on.

The whole life of a shard is the list of messages that its inbox delivered. `apply` is all that
happens to one of them; the task around it only waits.

Running longer bars change with every trade, but what they have merged changes once a minute, and
seldom otherwise. So a report has the longer bars only where they have not been told since, and
readers add the minute that was sealed last and the running one (see `store/schema.py`).
"""

from __future__ import annotations

import trio

from klagg_trio import cmd
from klagg_trio.backlog import Backlog
from klagg_trio.core.facts import Facts
from klagg_trio.core.intervals import MINUTE_MS
from klagg_trio.core.shard import Shard


def apply(number: int, shard: Shard, message: cmd.Message) -> list[cmd.Record]:
    """Let shard `number` take one message. Returns what the writer has to know, in order."""
    facts: Facts | None = None
    parts: list[Facts] = []
    match message:
        case cmd.TradeBatch(trades, now_ms):
            facts = shard.apply_trades(trades, now_ms)
        case cmd.TradeColumnsBatch(runs, now_ms):
            facts = shard.apply_runs(runs, now_ms)
        case cmd.TradesRefused(refused):
            facts = shard.refuse_trades(refused)
        case cmd.Tick(minute_ms):
            one_minute = minute_ms - shard.minute_ms <= MINUTE_MS
            told = shard.merged_told and one_minute
            sealed = shard.tick(minute_ms)
            running = shard.running_minutes() + ([] if told else shard.merged_bars())
            return [cmd.Sealed(number, shard.minute_ms, sealed, running, shard.births())]
        case cmd.FeedLive(symbols, since_ms):
            shard.feed_live(symbols, since_ms)
        case cmd.FeedLost(symbols, lost_ms):
            facts = shard.feed_lost(symbols, lost_ms)
        case cmd.ReplaceMinutes(symbol, minutes, stored):
            facts = shard.replace_minutes(symbol, minutes, stored)
        case cmd.AbsentMinutes(symbol, first_ms, last_ms):
            facts = shard.make_absent(symbol, first_ms, last_ms)
        case cmd.AddSymbol(listing, price, stored_bars, replaces):
            facts = shard.add_symbol(listing, price, stored=stored_bars, replaces=replaces)
        case cmd.Sighting(symbol, status, delivery_ms, at_ms):
            facts = shard.sight(symbol, status, delivery_ms, at_ms)
        case cmd.Redated(listing, served_before, confirmed, price):
            # Two parts where another contract has the ticker: its bars are not the old one's.
            parts = shard.redate(
                listing, served_before=served_before, confirmed=confirmed, price=price
            )
        case cmd.FirstKline(symbol, first_ms):
            facts = shard.learn_first(symbol, first_ms)
        case cmd.ReportOpenBars():
            merged = [] if shard.merged_told else shard.merged_bars()
            return [cmd.OpenBars(number, shard.running_minutes() + merged)]
        case cmd.ReportSeeds():
            return [cmd.Seeds(number, shard.minute_ms, shard.seeds())]
    records: list[cmd.Record] = [cmd.Amended(number, part) for part in (*parts, facts) if part]
    if records:  # minutes may have changed that longer bars have merged
        shard.merged_told = False
    return records


async def run_worker(
    receive: trio.MemoryReceiveChannel[cmd.Message],
    send: trio.MemorySendChannel[cmd.Record],
    *,
    number: int,
    shard: Shard,
    backlog: Backlog | None = None,
) -> None:
    """Pump one inbox until its last sender has closed it, then close the way to the writer.

    A writer that cannot keep up makes the sends wait, the inbox fill, and the feeds stop reading:
    the pressure ends at the exchange's socket, and no message is dropped on the way.
    """
    try:
        async with receive, send:
            async for message in receive:
                records = apply(number, shard, message)
                if backlog is not None:
                    backlog.leave(_trades_in(message))
                for record in records:
                    await send.send(record)
    finally:
        if backlog is not None:
            backlog.close()


def _trades_in(message: cmd.Message) -> int:
    """Return how many trades a message has brought."""
    match message:
        case cmd.TradeBatch():
            return len(message.trades)
        case cmd.TradeColumnsBatch():
            return message.runs.trades_count
        case _:
            return 0
