"""The auditor within a run, and `klagg audit` on what it has left."""

import sqlite3
from dataclasses import replace

import pytest
import trio

from klagg_trio.audit import Audit, stored_series
from klagg_trio.core.intervals import INTERVALS
from klagg_trio.store.database import Database
from klagg_trio.store.reading import open_reader

from .stage import MARKET, stage, until

pytestmark = pytest.mark.real  # the database is a file

BUSY = replace(MARKET, symbols=8, trades_per_minute=6_000)
"""Enough trades for aggregates that reach over minute boundaries."""


async def audited(it, database=None, since_ms=0, intervals=tuple(INTERVALS)):
    """Return the report of an audit of all that is stored."""
    connection = open_reader(it.path)
    try:
        series = stored_series(connection, (), intervals, since_ms)
        return await Audit(it.edge.rest, connection, database=database).run(series)
    finally:
        connection.close()


async def test_auditor_replaces_what_differs_and_keeps_the_score(autojump_clock, tmp_path):
    """Straddles are told from other differences; in the end all is as the exchange has it."""
    async with stage(tmp_path, BUSY, audit_every_s=60.0) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(20)
        score = app.auditor.statistics()
        assert score.straddle >= 2
        assert score.unexplained == 0
        assert score.equal > 100
        assert 0.9 < score.share_equal < 1
        assert app.read().audit == score
        last_ms = app.minute_clock.minute_ms
        await it.minutes(5)
        assert it.differing(last_ms) == []


async def test_auditor_leaves_the_weight_to_others(autojump_clock, tmp_path):
    """A minute of audits costs a symbol weight 1 at most."""
    async with stage(tmp_path, audit_every_s=60.0) as (it, nursery):
        await it.start(nursery)
        await it.minutes(3)
        before = dict(it.exchange.statistics().requests)
        await it.minutes(10)
        after = it.exchange.statistics().requests
        asked = after["/fapi/v1/klines"] - before["/fapi/v1/klines"]
        assert 6 * 8 <= asked <= 6 * 11


async def test_audit_finds_and_mends_what_was_altered(autojump_clock, tmp_path):
    """A wrong value, of any interval, is found with its fields; --repair puts the official bar."""
    async with stage(tmp_path, BUSY, audit_every_s=3_600.0) as (it, nursery):
        await it.start(nursery)
        await it.minutes(6)
        await it.repaired()
        await it.stop()
        await trio.sleep(10)
        connection = sqlite3.connect(it.path)
        for table in ("bars", "recent_bars"):
            connection.execute(
                f"UPDATE {table} SET volume = volume + 1, source = 0 WHERE (symbol, interval,"
                f" open_time) IN (SELECT symbol, interval, min(open_time) FROM {table}"
                " WHERE count > 0 GROUP BY symbol, interval)"
            )
        connection.commit()
        connection.close()
        found = await audited(it)
        assert found.unexplained >= 3
        assert found.failed == {}
        assert any(list(difference.fields) == ["volume"] for difference in found.differences)
        assert {d.interval for d in found.differences} == {"1m", "5m", "1h"}
        database = Database.open(it.path)
        mended = await audited(it, database)
        assert 0 < mended.repaired <= found.unexplained + found.straddle
        database.close()
        again = await audited(it)
        assert (again.unexplained, again.straddle, again.suspect) == (0, 0, 0)
        assert again.compared == found.compared


async def test_audit_counts_bars_that_should_be_there(autojump_clock, tmp_path):
    """Bars cut off at the end, or taken out of the middle, are missing; --repair stores them."""
    async with stage(tmp_path, BUSY) as (it, nursery):
        await it.start(nursery)
        await it.minutes(6)
        await it.repaired()
        await it.stop()
        await trio.sleep(10)
        connection = sqlite3.connect(it.path)
        last_ms = it.rows("SELECT max(open_time) AS last FROM klines WHERE interval = '1m'")[0][0]
        symbol = it.exchange.symbols_now()[0]
        gone = (last_ms, last_ms - 120_000)
        for table in ("bars", "recent_bars"):
            connection.execute(
                f"DELETE FROM {table} WHERE interval = 0 AND open_time IN (?, ?)"
                " AND symbol = (SELECT id FROM symbols WHERE symbol = ?)",
                (*gone, symbol),
            )
        connection.commit()
        connection.close()
        found = await audited(it)
        assert found.missing == 2
        told = [d for d in found.differences if d.verdict == "missing"]
        assert {(d.symbol, d.interval, d.open_ms) for d in told} == {
            (symbol, "1m", open_ms) for open_ms in gone
        }
        database = Database.open(it.path)
        await audited(it, database)
        database.close()
        assert (await audited(it)).missing == 0
        assert it.holes() == []


async def test_audit_counts_suspect_bars_apart(autojump_clock, tmp_path):
    """A bar that says itself that it is not to be trusted is no surprise."""
    async with stage(tmp_path) as (it, nursery):
        await it.start(nursery)
        await it.minutes(2)
        it.exchange.faults.rates = replace(it.exchange.faults.rates, failed=1.0)
        it.exchange.faults.inflict("silent", it.feed_peers(), seconds=60)
        await it.minutes(3)
        await it.stop()
        it.exchange.faults.rates = replace(it.exchange.faults.rates, failed=0.0)
        await trio.sleep(10)
        report = await audited(it)
        assert report.suspect > 0
        assert report.unexplained == 0
        assert it.holes() == []


async def test_a_minute_without_a_row_is_asked_for_again(autojump_clock, tmp_path):
    """The exchange serves no row of a minute for a while: it is passed by, and not for good."""
    async with stage(tmp_path, audit_every_s=60.0) as (it, nursery):
        straight, hidden, asked = it.edge.rest.klines, [], []

        async def klines(symbol, interval, **options):
            asked.append((symbol, options.get("start_ms")))
            found = await straight(symbol, interval, **options)
            kept = [bar for bar in found.bars if (symbol, bar.open_ms) not in hidden]
            return replace(found, bars=kept)

        it.edge.rest.klines = klines
        app = await it.start(nursery)
        await it.minutes(3)
        symbol = it.exchange.symbols_now()[0]
        missing = symbol, app.minute_clock.minute_ms
        hidden.append(missing)
        await it.minutes(6)
        asked.clear()
        hidden.clear()
        with trio.fail_after(15 * 60):
            await until(lambda: missing in asked)
