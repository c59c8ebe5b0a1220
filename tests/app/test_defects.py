"""Eleven defects of services like this one, each with a test that fails on it.

D1 to D11 are what was found wrong with the program that klagg set out to replace: a dead address,
no continuity, late trades dropped, bars left open by a missed tick, bars lost in full queues, flat
bars of dead symbols, 24 h figures in newborn bars, a biased clock, disregard of the rate limit, an
audit of a part only, and months that cannot be told.
"""

from dataclasses import replace
from decimal import Decimal

import pytest
import trio

from klagg_trio.core.bar import Source, newborn
from klagg_trio.core.errors import StoreError
from klagg_trio.core.intervals import INTERVALS
from klagg_trio.core.seed import OpenBar, Seed
from klagg_trio.core.shard import NEVER_MS, Shard
from klagg_trio.exchange.clock_probe import sample_offset
from klagg_trio.exchange.wire import AggTrade
from klagg_trio.settings import Settings
from klagg_trio.store.database import Database

from .stage import MARKET, MINUTE_MS, stage, until

pytestmark = pytest.mark.real  # the database is a file

NOON_MS = 1_735_732_800_000
"""2025-01-01 12:00 UTC, a Wednesday."""


def shard_of(*names, at_ms=NOON_MS):
    """Return a shard of one quiet symbol, with these intervals, under a live feed."""
    intervals = [INTERVALS[name] for name in names]
    shard = Shard(intervals, at_ms)
    price = Decimal(10)
    open_bars = [
        OpenBar(i.name, newborn(i.floor(at_ms), i.end(i.floor(at_ms)), price), 0)
        for i in intervals[1:]
    ]
    shard.load(Seed("AUSDT", 0, NEVER_MS, price, 100, 0, 0, tuple(open_bars)))
    shard.feed_live(["AUSDT"], at_ms)
    return shard


def trade(number, at_ms, *, first=0, last=0, price="10"):
    """Return an aggregate of AUSDT."""
    return AggTrade(
        symbol="AUSDT",
        id=number,
        price=Decimal(price),
        quantity=Decimal(2),
        first_id=first,
        last_id=last,
        time_ms=at_ms,
        buyer_is_maker=False,
        event_ms=at_ms,
    )


async def test_d1_address_that_acknowledges_and_stays_silent(autojump_clock, tmp_path):
    """The unrouted address is not the default; on it every minute is suspect, and that is told."""
    assert Settings().ws_url.endswith("/market")
    async with stage(tmp_path) as (it, nursery):
        app = await it.start(nursery, ws_url=it.settings.ws_url.removesuffix("/market"))
        first_ms = app.minute_clock.minute_ms
        it.exchange.faults.rates = replace(it.exchange.faults.rates, failed=1.0)
        await it.minutes(3)
        assert len(app.feeds.coverage) == 0
        sources = it.rows(
            "SELECT DISTINCT source FROM klines WHERE interval = '1m' AND open_time >= ?", first_ms
        )
        assert [row["source"] for row in sources] == ["suspect"]
        assert any("no data" in row["text"] for row in it.events("disconnect"))
        assert app.read().health == "degraded"


def test_d2_missing_trades_are_noticed_and_trades_are_counted():
    """A jump of the id makes its minute suspect; an aggregate counts as many trades as it has."""
    shard = shard_of("1m", "5m")
    shard.apply_trades([trade(100, NOON_MS + 1_000, first=500, last=506)])
    first = {fact.interval: fact.bar for fact in shard.tick(NOON_MS + MINUTE_MS).sealed}
    assert (first["1m"].source, first["1m"].count) == (Source.TRADES, 7)
    shard.apply_trades([trade(102, NOON_MS + MINUTE_MS + 1_000)])
    second = {fact.interval: fact.bar for fact in shard.tick(NOON_MS + 2 * MINUTE_MS).sealed}
    assert second["1m"].source == Source.SUSPECT


def test_d3_late_trade_restates_its_bar():
    """A trade that comes after its minute was sealed is in the bar after all."""
    shard = shard_of("1m", "5m")
    shard.apply_trades([trade(100, NOON_MS + 1_000)])
    shard.tick(NOON_MS + MINUTE_MS)
    facts = shard.apply_trades([trade(101, NOON_MS + 59_990, price="12")])
    (restated,) = [fact.bar for fact in facts.restated if fact.interval == "1m"]
    assert (restated.close, restated.volume, restated.count) == (Decimal(12), Decimal(4), 2)
    shard.tick(NOON_MS + 5 * MINUTE_MS)
    assert shard.trades.late == 1
    assert shard.states["AUSDT"].longer[0].previous.volume == Decimal(4)


@pytest.mark.parametrize("late_minutes", [1, 7, 61, 1_441])
def test_d4_missed_tick_leaves_no_bar_open(late_minutes):
    """Whatever tick comes next, every bar that ended by then is sealed, each in its own place."""
    names = ("1m", "3m", "5m", "15m", "1h", "4h", "1d")
    shard = shard_of(*names)
    end_ms = NOON_MS + late_minutes * MINUTE_MS
    facts = shard.tick(end_ms)
    for name in names:
        interval = INTERVALS[name]
        opens = [fact.bar.open_ms for fact in facts.sealed_bars() if fact.interval == name]
        expected = []
        open_ms = interval.floor(NOON_MS)
        while interval.end(open_ms) <= end_ms:
            expected.append(open_ms)
            open_ms = interval.end(open_ms)
        assert opens == expected, name


async def test_d5_full_queues_lose_nothing(autojump_clock, tmp_path, monkeypatch):
    """The disk refuses for a minute and a half, the smallest queues fill: every bar is stored."""
    async with stage(tmp_path) as (it, nursery):
        app = await it.start(nursery, inbox_max=16, writer_queue_max=16)
        await it.minutes(2)
        commit = Database.commit
        full_until_s = trio.current_time() + 60

        def refuse(self, *args):
            if trio.current_time() < full_until_s:
                raise StoreError("the disk is full; make room")
            return commit(self, *args)

        monkeypatch.setattr(Database, "commit", refuse)
        await trio.sleep(30)
        vitals = app.read()
        assert "the disk is full" in vitals.writer.trouble
        assert (vitals.health, vitals.reason.startswith("disk: ")) == ("bad", True)
        await it.minutes(3)
        await it.repaired()
        await it.minutes(1)
        assert app.writer.retries >= 5
        assert it.holes() == []
        assert it.differing(app.minute_clock.minute_ms - 2 * MINUTE_MS) == []
        await it.stop()
        vitals = it.report.vitals
        assert vitals.received == vitals.trades.total


async def test_d6_delisted_symbol_has_no_bars_after_its_end(autojump_clock, tmp_path):
    """A symbol that ends is sealed once that is certain, minutes after; no flat bars for ever."""
    async with stage(tmp_path) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(1)
        symbol = it.exchange.symbols_now()[2]
        delivery_ms = app.minute_clock.minute_ms + 5 * MINUTE_MS
        it.exchange.market.delist(symbol, delivery_ms)
        await it.minutes(12)
        (row,) = it.rows(
            "SELECT max(close_time) AS last FROM klines WHERE symbol = ? AND interval = '1m'",
            symbol,
        )
        assert delivery_ms <= row["last"] + 1 <= delivery_ms + 6 * MINUTE_MS
        assert it.rows("SELECT * FROM open_klines WHERE symbol = ?", symbol) == []
        (row,) = it.rows("SELECT status FROM symbols WHERE symbol = ?", symbol)
        assert row["status"] == "ENDED"
        assert it.holes() == []
        assert app.discovery.removed == [symbol]


async def test_d7_newborn_bars_hold_no_rolling_figures(autojump_clock, tmp_path):
    """However late a listing is found out, its bars hold its own trades: never 24 h volumes."""
    market = replace(MARKET, list_after_s=60.0, list_quiet_s=5.0, trades_per_minute=3_000)
    async with stage(tmp_path, market) as (it, nursery):
        # Discovery is deaf until some minutes after the listing.
        app = await it.start(nursery)
        peers = [p for p in it.exchange.board.peers if "!miniTicker@arr" in p.streams]
        it.exchange.faults.inflict("silent", peers, seconds=300)
        it.exchange.faults.rates = replace(it.exchange.faults.rates, refused=1.0)
        await trio.sleep(240)
        it.exchange.faults.rates = replace(it.exchange.faults.rates, refused=0.0)
        await until(lambda: app.discovery.added)
        (symbol,) = app.discovery.added
        await it.minutes(3)
        await it.repaired()
        await it.minutes(1)
        rows = it.rows(
            "SELECT * FROM klines WHERE symbol = ? AND interval = '1m' ORDER BY open_time", symbol
        )
        onboard_ms = it.exchange.instrument(symbol).onboard_ms
        assert rows[0]["open_time"] == onboard_ms - onboard_ms % MINUTE_MS
        official = {
            kline.open_time: kline
            for kline in it.exchange.official_klines(symbol, "1m", onboard_ms, it.now_ms)
        }
        for row in rows[1:-1]:
            assert row["volume"] == float(official[row["open_time"]].volume)
            assert row["count"] == official[row["open_time"]].count


@pytest.mark.parametrize("one_way_s", [0.0, 0.04, 0.9])
async def test_d8_clock_is_not_biased_by_the_delay(autojump_clock, one_way_s):
    """Half the round trip is taken off: the offset is right however far away the exchange is."""

    class Probe:
        async def server_time_ms(self):
            await trio.sleep(one_way_s)
            told_ms = NOON_MS + trio.current_time() * 1_000
            await trio.sleep(one_way_s)
            return round(told_ms)

    sample = await sample_offset(Probe())
    assert abs(sample.offset_ms - NOON_MS) <= 1


async def test_d9_rate_limit_is_obeyed(autojump_clock, tmp_path):
    """Told to wait, klagg waits: no request before Retry-After ends, none while it is banned."""
    async with stage(tmp_path) as (it, nursery):
        await it.start(nursery)
        await it.minutes(2)
        faults = it.exchange.faults

        def asked():
            return sum(it.exchange.statistics().requests.values())

        for kind in ("throttled", "banned"):
            faults.rates = replace(faults.rates, **{kind: 1.0})
            await until(lambda kind=kind: faults.counts.get(kind))
            faults._retry_told = True
            faults.rates = replace(faults.rates, **{kind: 0.0})
            until_ms = it.now_ms + 119_000
            if kind == "throttled":
                until_ms = faults._answers._throttled_until_ms
            await trio.sleep(0.2)  # what was on its way has arrived
            before = asked()
            await trio.sleep((until_ms - it.now_ms) / 1_000 - 0.5)
            assert asked() == before, kind
            await it.minutes(2)
            assert asked() > before, kind
        assert it.exchange.statistics().weight_peak <= 0.8 * it.exchange.options.weight_limit


async def test_d10_audit_is_of_everything_and_runs_by_itself(autojump_clock, tmp_path):
    """Nine fields, every interval, within the run: what differs is replaced, not only reported."""
    market = replace(MARKET, symbols=8, trades_per_minute=6_000)
    async with stage(tmp_path, market, audit_every_s=60.0) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(20)
        assert app.auditor.statistics().straddle > 0
        until_ms = app.minute_clock.minute_ms
        await it.minutes(4)
        assert it.differing(until_ms) == []  # every field of every interval
        audited = app.auditor.statistics()
        assert audited.equal + audited.straddle >= 8 * 18


def test_d11_months_and_all_other_intervals_are_told():
    """Fifteen intervals, calendar months among them: December ends at the New Year."""
    december_ms = 1_733_011_200_000
    shard = shard_of(*INTERVALS, at_ms=1_735_689_600_000 - MINUTE_MS)
    sealed = {fact.interval: fact.bar for fact in shard.tick(1_735_689_600_000).sealed}
    assert set(sealed) == set(INTERVALS) - {"1w"}
    assert (sealed["1M"].open_ms, sealed["1M"].end_ms) == (december_ms, 1_735_689_600_000)
    assert len(INTERVALS) == 15
