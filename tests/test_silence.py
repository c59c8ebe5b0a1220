"""The guard of single symbols: what it may call silent, and since when."""

from decimal import Decimal

import pytest
import trio
import trio.lowlevel

from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.intervals import INTERVALS, MINUTE, MINUTE_MS
from klagg_trio.core.seed import Seed
from klagg_trio.core.shard import Shard
from klagg_trio.exchange import wire
from klagg_trio.exchange.validate import sift
from klagg_trio.silence import SilenceWatch

NOON_MS = 1_735_732_800_000
LIVE_MS = NOON_MS + 10 * MINUTE_MS + 30_000
"""When the feed went live: within the eleventh minute."""


class Exchange:
    """Counts so many trades a minute in what it serves."""

    def __init__(self, counts):
        """`counts` by minute after noon; any other has none."""
        self.counts = counts
        self.asked = []

    async def klines(self, symbol, interval, *, start_ms, limit, priority):
        """Answer from `start_ms` on, as the exchange does."""
        self.asked.append(start_ms)
        await trio.sleep(0.05)
        rows = []
        for minute in range((start_ms - NOON_MS) // MINUTE_MS, 30):
            count = self.counts.get(minute, 0)
            ten, volume = Decimal(10), Decimal(count)
            rows.append(
                Bar(
                    NOON_MS + minute * MINUTE_MS,
                    NOON_MS + (minute + 1) * MINUTE_MS,
                    *(ten, ten, ten, ten, volume, volume * 10, count, Decimal(0), Decimal(0)),
                    source=Source.OFFICIAL,
                )
            )
        return sift(rows[:limit], INTERVALS[interval], first_ms=start_ms)


def watch(exchange, last_trade_ms, trades=()):
    """Make a watch over one symbol whose ticker told of a trade at minute 12."""
    shard = Shard([MINUTE], NOON_MS + 10 * MINUTE_MS)
    ten = Decimal(10)
    shard.load(Seed("A", 0, 2**50, ten, 5, last_trade_ms, 0, ()))
    shard.feed_live(["A"], LIVE_MS)
    shard.apply_trades(trades)
    lost = []

    async def lose(symbol, since_ms):
        await trio.lowlevel.checkpoint()
        lost.append((symbol, since_ms))

    made = SilenceWatch(
        [shard],
        {"A": NOON_MS + 12 * MINUTE_MS},
        is_live=lambda _: True,
        lose_symbol=lose,
        rest=exchange,
        silence_s=10,
        now_ms=lambda: NOON_MS + 12 * MINUTE_MS + int(trio.current_time() * 1_000),
        note=lambda _: None,
    )
    return made, lost


async def run(made, seconds=40):
    """Let the watch look for so long."""
    with trio.move_on_after(seconds):
        await made.run()


@pytest.mark.parametrize("last_trade_ms", [None, NOON_MS - 5_000 * MINUTE_MS, LIVE_MS - 1])
async def test_without_a_trade_since_the_feed_is_live_it_is_lost_since_then(
    autojump_clock, last_trade_ms
):
    """Never since 1970, nor since the last trade of the snapshot: only a watched time is lost."""
    exchange = Exchange({12: 4})
    made, lost = watch(exchange, last_trade_ms)
    await run(made)
    assert lost[0] == ("A", LIVE_MS)
    assert min(exchange.asked) >= NOON_MS + 10 * MINUTE_MS


@pytest.mark.parametrize("last_trade_ms", [None, NOON_MS, LIVE_MS - 1])
async def test_trades_of_before_the_feed_are_no_sign_of_silence(autojump_clock, last_trade_ms):
    """What was traded in minutes that were not watched wholly is not missing."""
    made, lost = watch(Exchange({5: 10, 10: 1_000}), last_trade_ms)
    await run(made)
    assert lost == []


async def test_a_symbol_whose_trades_are_here_is_not_silent(autojump_clock):
    """The trades of the exchange's minute are ours: nothing is missing."""
    at_ms = NOON_MS + 12 * MINUTE_MS - 1_000
    ten, one = Decimal(10), Decimal(1)
    trade = wire.AggTrade(at_ms, 5, "A", ten, one, 5, 5, at_ms, buyer_is_maker=False)
    made, lost = watch(Exchange({11: 1}), None, [trade])
    await run(made)
    assert lost == []
