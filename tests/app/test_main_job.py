"""Listing, quiet symbols, restart, shutdown: the main job as its user sees it."""

import itertools
from dataclasses import replace

import pytest
import trio

from klagg_trio.core.intervals import INTERVALS

from .stage import MARKET, MINUTE_MS, stage, until

pytestmark = pytest.mark.real  # the database is a file


async def test_listed_symbol_has_its_bars_at_the_next_tick(autojump_clock, tmp_path):
    """Seed bars of every interval, then flat bars until the first trade, then traded ones."""
    market = replace(MARKET, list_after_s=60.0, list_quiet_s=75.0)
    async with stage(tmp_path, market, intervals=tuple(INTERVALS)) as (it, nursery):
        app = await it.start(nursery)
        await until(lambda: app.discovery.added)
        (symbol,) = app.discovery.added
        listed_ms = it.exchange.instrument(symbol).onboard_ms
        assert listed_ms % MINUTE_MS  # in the middle of a minute
        next_tick_ms = listed_ms - listed_ms % MINUTE_MS + MINUTE_MS
        await until(lambda: it.committed_ms >= next_tick_ms)
        found = it.rows("SELECT interval FROM open_klines WHERE symbol = ?", symbol)
        assert {row["interval"] for row in found} == set(INTERVALS)
        sealed = it.rows("SELECT * FROM klines WHERE symbol = ? AND interval = '1m'", symbol)
        assert [row["open_time"] for row in sealed] == [next_tick_ms - MINUTE_MS]
        await it.minutes(4)
        await it.repaired()
        rows = it.rows(
            "SELECT * FROM klines WHERE symbol = ? AND interval = '1m' ORDER BY open_time", symbol
        )
        counts = [row["count"] for row in rows]
        quiet = counts.index(next(count for count in counts if count))
        assert quiet >= 1
        first = rows[0]["open"]
        for row in rows[:quiet]:
            assert [row[name] for name in ("open", "high", "low", "close")] == [first] * 4
        assert it.holes() == []


async def test_quiet_symbol_has_a_flat_bar_a_minute(autojump_clock, tmp_path):
    """Ten minutes without a trade are ten flat bars, each carrying the last close."""
    market = replace(MARKET, trades_per_minute=3, symbols=5)
    async with stage(tmp_path, market) as (it, nursery):
        await it.start(nursery)
        await it.minutes(60)
        longest = 0
        for (symbol,) in it.rows("SELECT symbol FROM symbols"):
            rows = it.rows(
                "SELECT * FROM klines WHERE symbol = ? AND interval = '1m' ORDER BY open_time",
                symbol,
            )
            run = 0
            for before, row in itertools.pairwise(rows):
                assert row["open_time"] == before["open_time"] + MINUTE_MS
                if row["count"] or row["source"] != "flat":
                    run = 0
                    continue
                run += 1
                longest = max(longest, run)
                prices = {row[name] for name in ("open", "high", "low", "close")}
                assert prices == {before["close"]}
                sums = ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")
                assert {row[name] for name in sums} == {0.0}
        assert longest >= 10


@pytest.mark.parametrize("cleanly", [True, False])
async def test_restart_leaves_no_hole(autojump_clock, tmp_path, cleanly):
    """After five minutes without klagg the missed minutes are there at the first tick."""
    async with stage(tmp_path) as (it, nursery):
        await it.start(nursery, snapshot_every_s=60.0)
        await it.minutes(3)
        if cleanly:
            await it.stop()
        else:  # killed: nothing of the shutdown happens, the last snapshot is minutes old
            kept = (tmp_path / "initial_state.cbor").read_bytes()
            await it.minutes(2)
            await it.stop()
            (tmp_path / "initial_state.cbor").write_bytes(kept)
        (before,) = it.rows("SELECT value FROM meta WHERE key = 'last_tick'")
        await trio.sleep(300)
        await it.start(nursery)
        await it.minutes(1)
        assert it.holes() == []
        missed = it.rows(
            "SELECT source FROM klines WHERE interval = '1m' AND open_time >= ? AND open_time < ?",
            int(before["value"]),
            int(before["value"]) + 5 * MINUTE_MS,
        )
        assert len(missed) == 5 * 6
        assert {row["source"] for row in missed} <= {"suspect", "official"}
        await it.repaired()
        await it.minutes(1)
        await it.stop()
        assert it.differing(int(before["value"]) + 5 * MINUTE_MS) == []


async def test_shutdown_takes_no_time_and_loses_nothing(autojump_clock, tmp_path):
    """Two seconds at most; what was received is in the bars that were saved."""
    async with stage(tmp_path) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(2)
        await trio.sleep(25)
        assert await it.stop() <= 2.0
        vitals = it.report.vitals
        assert vitals.received == vitals.trades.total
        assert vitals.writer.queue == 0
        for shard in app.shards:
            for state in shard.states.values():
                (row,) = it.rows(
                    "SELECT * FROM open_klines WHERE symbol = ? AND interval = '1m'", state.symbol
                )
                assert row["count"] == state.minute.count
                assert row["volume"] == float(state.minute.volume)


async def test_run_may_keep_some_symbols_only(autojump_clock, tmp_path):
    """Settings that name symbols keep those, whatever the snapshot holds."""
    async with stage(tmp_path) as (it, nursery):
        app = await it.start(nursery, symbols=("BTCUSDT",))
        await it.minutes(2)
        assert [state.symbol for shard in app.shards for state in shard.states.values()] == [
            "BTCUSDT"
        ]
