"""The guard against invented calm: a feed that does not deliver is noticed, and says so."""

from dataclasses import replace

import pytest
import trio

from klagg_trio.core.errors import StoreError
from klagg_trio.dashboard import status_line
from klagg_trio.store.reading import open_reader

from .stage import MARKET, MINUTE_MS, stage, until

pytestmark = pytest.mark.real  # the database is a file

NOTICED_WITHIN_S = 10.5
"""Ten seconds, and the half second of the mark price that may just have come."""


def sources(it, symbol, first_ms, last_ms):
    """Return the sources of a symbol's minutes, by open time."""
    rows = it.rows(
        "SELECT open_time, source FROM klines WHERE symbol = ? AND interval = '1m'"
        " AND open_time BETWEEN ? AND ?",
        symbol,
        first_ms,
        last_ms,
    )
    return {row["open_time"]: row["source"] for row in rows}


async def until_lost(app):
    """Wait until no feed is live; return how long it took."""
    began_s = trio.current_time()
    with trio.fail_after(60):
        await until(lambda: len(app.feeds.coverage) == 0)
    return trio.current_time() - began_s


@pytest.mark.parametrize("kind", ["silent", "half_open"])
async def test_connection_without_data_is_replaced(autojump_clock, tmp_path, kind):
    """Acknowledged and silent, or open and dead: noticed within ten seconds, never called flat."""
    async with stage(tmp_path) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(3)
        await it.repaired()
        sent = it.exchange.faults
        minute_ms = app.minute_clock.minute_ms
        await trio.sleep_until(app.clock.trio_time(minute_ms + 55_000))
        sent.inflict(kind, it.feed_peers(), seconds=3_600)
        assert await until_lost(app) <= NOTICED_WITHIN_S
        # REST goes down, so that the repair does not hide what the tick said.
        sent.rates = replace(sent.rates, failed=1.0)
        await until(lambda: it.committed_ms >= minute_ms + 2 * MINUTE_MS)
        for symbol in app.discovery.kept:
            found = sources(it, symbol, minute_ms, minute_ms + MINUTE_MS)
            assert found == dict.fromkeys(found, "suspect"), symbol
        sent.rates = replace(sent.rates, failed=0.0)
        await until(lambda: len(app.feeds.coverage) == len(app.discovery.kept))
        await it.minutes(2)
        await it.repaired()
        assert it.differing(minute_ms + 2 * MINUTE_MS) == []
        assert it.holes() == []


async def test_connection_that_falls_behind_is_replaced(autojump_clock, tmp_path):
    """A feed that comes seconds late, however steadily, is noticed within ten seconds."""
    async with stage(tmp_path) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(2)
        it.exchange.faults.inflict("stale", it.feed_peers(), seconds=6.0)
        assert await until_lost(app) <= NOTICED_WITHIN_S + 6.0
        (event,) = it.events("disconnect") or [{"text": "not durable yet"}]
        await until(lambda: it.events("disconnect"))
        (event,) = it.events("disconnect")
        assert "behind by" in event["text"]
        await it.minutes(2)
        await it.repaired()
        await it.minutes(1)
        assert it.holes() == []


async def test_silent_stream_of_one_symbol_is_noticed(autojump_clock, tmp_path):
    """One symbol without its trades, on a connection that is fine: found by REST in 30 seconds."""
    market = replace(MARKET, trades_per_minute=600)
    async with stage(tmp_path, market) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(2)
        await it.repaired()
        marked = app.bar_counts().suspect
        (peer,) = it.feed_peers()
        it.exchange.faults.inflict("mute", [peer])
        muted = f"{it.exchange.symbols_now()[0].lower()}@aggTrade"
        it.exchange.faults._connections._conditions[peer].muted = muted
        began_s = trio.current_time()
        with trio.fail_after(120):
            await until(lambda: app.silence.lost)
        assert trio.current_time() - began_s <= 30
        await until(lambda: it.events("silent"))
        (event,) = it.events("silent")
        assert f"{event['symbol'].lower()}@aggTrade" == muted
        # The connection was replaced with overlap: nothing else is doubted.
        await until(lambda: app.feeds.rotations == 1)
        await it.minutes(2)
        await it.repaired()
        doubted = {row["symbol"] for row in it.events("repaired")[6:]}
        assert doubted <= {event["symbol"], ""}
        assert app.bar_counts().suspect - marked <= 2
        await it.minutes(1)
        assert it.differing(app.minute_clock.minute_ms - 2 * MINUTE_MS) == []


async def test_quiet_symbols_are_left_alone(autojump_clock, tmp_path):
    """Where nothing trades nothing is asked for and nothing is replaced."""
    market = replace(MARKET, trades_per_minute=6)
    async with stage(tmp_path, market) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(20)
        assert app.silence.lost == 0
        assert app.feeds.rotations == 0
        flat = it.rows("SELECT count(*) FROM klines WHERE source = 'flat' AND interval = '1m'")
        assert flat[0][0] > 60


async def test_a_connection_that_does_not_come_up_says_why(autojump_clock, tmp_path):
    """In health's reason and the status line, not only in events; gone once it is up again."""
    async with stage(tmp_path) as (it, nursery):
        straight, broken = it.edge.dial, [""]

        async def dial(host, port, tls):
            if broken[0]:
                raise OSError(broken[0])
            return await straight(host, port, tls)

        it.edge = replace(it.edge, dial=dial)
        app = await it.start(nursery)
        await it.minutes(1)
        assert app.read().connections[0].trouble == ""
        broken[0] = "certificate \x1b[31mhas expired"
        app.feeds.feeds[0].drop("for the test")
        await trio.sleep(3)
        vitals = app.read()
        assert vitals.health == "degraded"
        assert "connecting: 1.1 (cannot connect to ws://127.0.0.1" in vitals.reason
        assert "certificate has expired" in status_line(vitals)
        broken[0] = ""
        await trio.sleep(60)
        assert "connecting" not in app.read().reason
        assert app.read().connections[0].trouble == ""
        await it.stop()


async def test_reads_that_fail_for_a_while_end_nothing(autojump_clock, tmp_path, monkeypatch):
    """No free handle, a read error: what repair and audit look up is looked up again later."""
    failing = [False]

    def open_sometimes(path):
        if failing[0]:
            raise StoreError("it cannot be used (unable to open database file)")
        return open_reader(path)

    monkeypatch.setattr("klagg_trio.sweep.open_reader", open_sometimes)
    monkeypatch.setattr("klagg_trio.auditor.open_reader", open_sometimes)
    async with stage(tmp_path) as (it, nursery):
        app = await it.start(nursery, audit_every_s=60)
        await it.minutes(2)
        failing[0] = True
        await it.minutes(4)
        failing[0] = False
        await it.minutes(4)
        assert app.auditor.statistics().equal > 0
        assert it.events("audit failed") or it.events("repair failed")
        assert it.holes() == []
        await it.stop()
