"""Rotation, parallel feeds, reconnects, suspends, long outages: what is missed, what is not."""

import math
from dataclasses import replace

import pytest
import trio

from klagg_trio.sim.server import SimOptions

from .stage import MARKET, MINUTE_MS, stage, until

pytestmark = pytest.mark.real  # the database is a file


async def test_rotation_loses_nothing(autojump_clock, tmp_path):
    """Connections are replaced before their time is out: no trade missed, no minute suspect."""
    async with stage(tmp_path, rotate_after_s=60.0, audit_every_s=60.0) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(2)
        await it.repaired()
        marked = app.bar_counts().suspect
        await it.minutes(20)
        assert app.feeds.rotations >= 10
        assert app.feeds.counts.reconnects == 0
        assert app.bar_counts().suspect == marked
        assert app.trade_counts().duplicate > 0  # both delivered for a while
        assert it.events("gap") == []
        assert app.auditor.statistics().unexplained == 0
        assert it.holes() == []


async def test_parallel_feeds_outlive_each_other(autojump_clock, tmp_path):
    """With two feeds of the same symbols one may die at any time: nothing is missed or doubted."""
    async with stage(tmp_path, parallel_feeds=2, audit_every_s=60.0) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(2)
        await it.repaired()
        marked = app.bar_counts().suspect
        for number in range(6):
            first, second = it.feed_peers()
            it.exchange.faults.inflict("reset", [first if number % 2 else second])
            await it.minutes(2)
        assert app.feeds.counts.reconnects == 6
        assert app.bar_counts().suspect == marked
        counts = app.trade_counts()
        assert counts.duplicate > counts.in_bars / 2
        assert app.feeds.counts.received == counts.total
        assert app.auditor.statistics().unexplained == 0


async def test_reconnect_doubts_only_what_it_missed(autojump_clock, tmp_path):
    """After a reset the first id tells of each symbol whether anything was missed."""
    market = replace(MARKET, symbols=25, trades_per_minute=None)
    async with stage(tmp_path, market) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(3)
        await it.repaired()
        states = [state for shard in app.shards for state in shard.states.values()]
        traded = [state for state in states if state.last_trade_ms]
        it.exchange.faults.rates = replace(it.exchange.faults.rates, failed=1.0)  # no repair
        it.exchange.faults.inflict("reset", it.feed_peers())
        await it.minutes(5)
        missed = {row["symbol"] for row in it.events("gap")}
        again = [state for state in traded if state.next_id is not None]
        assert {state.symbol for state in again if state.suspects} == missed
        assert 0 < len(missed) < len(again)
        assert all(state.suspects.minutes <= 2 for state in again)


async def test_suspend_is_noticed_and_caught_up(autojump_clock, tmp_path):
    """The machine stops for ten minutes: resumed, resynced, every minute there, all repaired."""
    async with stage(tmp_path) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(3)
        before_ms = app.minute_clock.minute_ms
        autojump_clock.jump(600)
        jumped_s = trio.current_time()
        await until(lambda: it.committed_ms >= before_ms + 10 * MINUTE_MS)
        assert trio.current_time() - jumped_s <= 10
        assert it.holes() == []
        await until(lambda: it.events("resumed"))
        await it.minutes(1)
        await it.repaired()
        await it.minutes(1)
        assert it.holes() == []
        assert it.differing(before_ms + 10 * MINUTE_MS) == []


@pytest.mark.parametrize("step_ms", [-300_000, 300_000])
async def test_step_of_the_local_clock_changes_no_bar(autojump_clock, tmp_path, step_ms):
    """The wall clock jumps by five minutes: the bars go by the exchange's time and stay right."""
    async with stage(tmp_path, audit_every_s=60.0) as (it, nursery):
        stepped = 0

        def wall_ms():
            return it.now_ms + stepped

        it.edge = replace(it.edge, wall_ms=wall_ms)
        app = await it.start(nursery)
        await it.minutes(2)
        stepped = step_ms
        await it.minutes(3)
        assert it.events("resumed") == []  # the clock that goes on through a suspend knows better
        await it.repaired()
        await it.minutes(2)
        assert it.holes() == []
        assert app.auditor.statistics().unexplained == 0
        early = it.rows("SELECT max(close_time) FROM klines")
        assert early[0][0] < it.now_ms


@pytest.mark.slow
async def test_outage_of_two_days_heals_within_the_weight(autojump_clock, tmp_path):
    """48 hours away: newest minutes first, never above 80 % of the weight, all right in the end."""
    market = SimOptions(
        step_ms=1_000, symbols=20, trades_per_minute=60, list_after_s=None, straddle=True
    )
    async with stage(tmp_path, market, intervals=("1m", "1h", "1d")) as (it, nursery):
        await it.start(nursery)
        await it.minutes(2)
        await it.stop()
        (before,) = it.rows("SELECT value FROM meta WHERE key = 'last_tick'")
        left_ms = int(before["value"])
        await trio.sleep(48 * 3_600)
        app = await it.start(nursery)
        await until(lambda: it.committed_ms >= left_ms + 48 * 60 * MINUTE_MS)
        assert it.holes() == []
        await it.minutes(1)
        await it.repaired(limit_s=1_200)
        await it.minutes(2)
        assert app.repair.repaired_minutes >= 20 * 48 * 60
        statistics = it.exchange.statistics()
        assert statistics.weight_peak <= 0.8 * market.weight_limit
        order = [
            (row["at_ms"], row["text"])
            for row in it.events("repaired")
            if row["at_ms"] > left_ms + 48 * 60 * MINUTE_MS
        ]
        assert len(order) > 20 * 5
        assert it.differing(it.now_ms - 5 * MINUTE_MS) == []


def test_weight_of_a_long_outage():
    """500 symbols, 48 hours: six pages of weight 2 for each are some minutes' worth."""
    pages = math.ceil(48 * 60 / 499)
    assert 500 * pages * 2 / (0.8 * 2_400) < 4
