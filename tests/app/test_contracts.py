"""Contracts of an exchange that corrects dates, halts, forgets and reuses: bars go on, names stay.

Each test stands for a kind of what an exchange says of a contract. The tape of trades goes on or
stops as the real one would; what klagg made of it is read from the database.
"""

from dataclasses import replace

import pytest
import trio

from klagg_trio.core.errors import ConfigurationError
from klagg_trio.store.contracts import stored_contract

from .stage import MARKET, MINUTE_MS, stage, until

pytestmark = pytest.mark.real  # the database is a file

INTERVALS = ("1m", "5m", "1h")

DAY_MS = 86_400_000

EVER_MS = 1 << 60


def say(it, symbol, until_ms=EVER_MS, **fields):
    """Have exchangeInfo say this of a contract from now on."""
    told = it.exchange.market.current[symbol]
    it.exchange.faults.lies.about_contracts._lay(told, until_ms, **fields)


def one_of(it, number=1):
    """A symbol that trades."""
    return it.exchange.symbols_now()[number]


def names(it):
    """All labels in the database."""
    return sorted(row["symbol"] for row in it.rows("SELECT symbol FROM symbols"))


def gaps(it):
    """Series in which a bar is missing between the first and the last, in any interval."""
    found = []
    for symbol, interval, bars, first_ms, end_ms in it.rows(
        "SELECT symbol, interval, count(*), min(open_time), max(close_time) + 1 FROM klines"
        " WHERE interval IN ('1m', '5m', '1h') GROUP BY symbol, interval"
    ):
        length_ms = {"1m": 1, "5m": 5, "1h": 60}[interval] * MINUTE_MS
        if bars * length_ms != end_ms - first_ms:
            found.append((symbol, interval))
    return found


async def test_a_corrected_listing_date_renames_nothing(autojump_clock, tmp_path):
    """The date of a live contract is raised: one series under its own name, the date corrected."""
    async with stage(tmp_path) as (it, nursery):
        await it.start(nursery)
        await it.minutes(2)
        symbol, before = one_of(it), names(it)
        raised_ms = it.exchange.market.current[symbol].onboard_ms + 20 * DAY_MS
        raised_ms = min(raised_ms, it.now_ms - 10 * MINUTE_MS)
        say(it, symbol, onboardDate=raised_ms)
        await it.minutes(14)
        assert names(it) == before
        assert stored_contract(it.path, symbol).onboard_ms == raised_ms
        assert [row["symbol"] for row in it.events("redated")] == [symbol]
        assert it.holes() == []
        await it.repaired()
        assert it.differing(it.now_ms - 2 * MINUTE_MS) == []


@pytest.mark.parametrize("status", ["TRADING_HALT", "SETTLING"])
async def test_a_halt_leaves_no_hole(autojump_clock, tmp_path, status):
    """Ten minutes of any status but TRADING: no end, no hole, in no interval."""
    async with stage(tmp_path, intervals=INTERVALS) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(1)
        symbol = one_of(it)
        say(it, symbol, it.now_ms + 12 * MINUTE_MS, status=status)
        await it.minutes(16)
        assert it.events("delisted") == []
        kinds = [row["kind"] for row in it.rows("SELECT kind FROM events WHERE symbol = ?", symbol)]
        assert {"paused", "trading"} <= set(kinds)
        assert it.holes() == gaps(it) == []
        assert app.discovery.removed == []


async def test_maintenance_freezes_nothing(autojump_clock, tmp_path):
    """For some answers not one contract is in trading: all go on."""
    async with stage(tmp_path) as (it, nursery):
        await it.start(nursery)
        await it.minutes(1)
        for symbol in it.exchange.symbols_now():
            say(it, symbol, it.now_ms + 11 * MINUTE_MS, status="AUCTION_MATCH")
        await it.minutes(14)
        assert it.events("delisted") == []
        assert it.holes() == []


@pytest.mark.parametrize("share", [0.0, 0.3])
async def test_an_empty_or_short_answer_ends_nothing(autojump_clock, tmp_path, share):
    """Nor do several of them."""
    async with stage(tmp_path) as (it, nursery):
        await it.start(nursery)
        await it.minutes(1)
        it.exchange.faults.lies.about_contracts._short += [share] * 8
        await it.minutes(14)
        assert it.events("delisted") == []
        assert it.holes() == []


async def test_a_contract_that_vanished_while_away_ends(autojump_clock, tmp_path):
    """Delisted and dropped while klagg was off: ended in the end, no endless flats."""
    async with stage(tmp_path) as (it, nursery):
        await it.start(nursery)
        await it.minutes(2)
        symbol = one_of(it)
        await it.stop()
        told = it.exchange.market.current[symbol]
        it.exchange.market.delist(symbol, it.now_ms // MINUTE_MS * MINUTE_MS + 3 * MINUTE_MS)
        it.exchange.faults.lies.about_contracts.drop(told, it.now_ms)
        await trio.sleep(20 * 60)
        app = await it.start(nursery)
        with trio.fail_after(8 * 60):
            await until(lambda: stored_contract(it.path, symbol).ended)
        await it.minutes(7)
        (row,) = it.rows(
            "SELECT max(close_time) AS last FROM klines WHERE symbol = ? AND interval = '1m'",
            symbol,
        )
        assert row["last"] < it.now_ms - 5 * MINUTE_MS
        assert symbol not in app.feeds.coverage
        assert app.discovery.removed == [symbol]


async def test_a_delivery_that_is_put_back_leaves_no_hole(autojump_clock, tmp_path):
    """Ended by two words, and then back in trading: everything between is stored and owed."""
    market = replace(MARKET, trades_per_minute=6)
    async with stage(tmp_path, market, intervals=INTERVALS) as (it, nursery):
        await it.start(nursery)
        await it.minutes(1)
        symbol = it.exchange.symbols_now()[-1]
        tape = it.exchange.market.tape_of(symbol)
        from_ms = (it.now_ms // MINUTE_MS + 3) * MINUTE_MS
        tape.pause(from_ms, from_ms + 30 * MINUTE_MS)
        say(it, symbol, from_ms + 17 * MINUTE_MS, deliveryDate=from_ms, status="SETTLING")
        await until(lambda: it.events("delisted"))
        await until(lambda: it.events("back"))
        await it.minutes(12)
        assert it.holes() == gaps(it) == []
        await it.repaired()
        await it.minutes(3)
        assert it.differing(it.now_ms - 3 * MINUTE_MS) == []


async def test_a_symbol_left_out_and_added_again_has_all_its_bars(autojump_clock, tmp_path):
    """A run without it, over minutes at which longer bars end; then a run with it."""
    async with stage(tmp_path, intervals=INTERVALS) as (it, nursery):
        kept, left_out = one_of(it, 0), one_of(it, 1)
        await it.start(nursery, symbols=(kept, left_out))
        await it.minutes(3)
        await it.stop()
        await it.start(nursery, symbols=(kept,))
        await it.minutes(8)
        await it.stop()
        await it.start(nursery, symbols=(kept, left_out))
        await it.minutes(12)
        assert gaps(it) == []
        ends = {
            row["symbol"]: row["last"]
            for row in it.rows(
                "SELECT symbol, max(close_time) AS last FROM klines WHERE interval = '5m'"
                " AND symbol IN (?, ?) GROUP BY symbol",
                kept,
                left_out,
            )
        }
        assert ends[kept] == ends[left_out]
        await it.repaired()
        await until(lambda: not it.rows("SELECT 1 FROM klines WHERE source = 'suspect' LIMIT 1"))
        wrong = it.differing(it.now_ms - 3 * MINUTE_MS)
        assert [each for each in wrong if each[0] in (kept, left_out)] == []


@pytest.mark.parametrize("ids_anew", [False, True])
async def test_a_reused_ticker_on_a_live_connection_is_live_at_once(
    autojump_clock, tmp_path, ids_anew
):
    """Its old bars keep another name; the new contract's minutes are vouched for straight away."""
    async with stage(tmp_path) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(2)
        symbol = one_of(it, 2)
        end_ms = (it.now_ms // MINUTE_MS + 3) * MINUTE_MS
        it.exchange.market.delist(symbol, end_ms)
        it.exchange.market.relist(symbol, end_ms + 4 * MINUTE_MS, ids_anew=ids_anew)
        await until(lambda: any(name.startswith(f"{symbol}@") for name in names(it)))
        await it.minutes(5)
        assert symbol in app.feeds.coverage
        rows = it.rows(
            "SELECT source FROM klines WHERE symbol = ? AND interval = '1m'"
            " ORDER BY open_time DESC LIMIT 2",
            symbol,
        )
        assert {row["source"] for row in rows} <= {"trades", "flat", "official"}
        onboard_ms = end_ms + 4 * MINUTE_MS
        (first,) = it.rows("SELECT min(open_time) AS at FROM klines WHERE symbol = ?", symbol)
        assert first["at"] >= onboard_ms - 3_600_000


async def test_names_that_do_not_trade_wait_and_are_taken_up(autojump_clock, tmp_path):
    """One of two symbols is halted at the start: the other is fetched; it comes when it trades."""
    async with stage(tmp_path) as (it, nursery):
        going, halted = one_of(it, 0), one_of(it, 1)
        say(it, halted, it.now_ms + 9 * MINUTE_MS, status="TRADING_HALT")
        it.settings = replace(it.settings, symbols=(going, halted), data_dir=tmp_path / "named")
        report = await it.backfill()
        assert report.symbols == (going,)
        assert dict(report.waiting) == {halted: "it is TRADING_HALT"}
        await it.start(nursery)
        await until(lambda: it.rows("SELECT 1 FROM klines WHERE symbol = ? LIMIT 1", halted))
        assert [row["symbol"] for row in it.events("waiting")] == [halted]


async def test_what_a_symbol_owed_when_it_was_left_out_is_owed_again(autojump_clock, tmp_path):
    """The state that is saved has kept symbols only; the bars say what is owed of the others."""
    async with stage(tmp_path) as (it, nursery):
        kept, left_out = one_of(it, 0), one_of(it, 1)
        await it.start(nursery, symbols=(kept, left_out))
        await it.minutes(1)
        await it.stop()  # before the minute of the start is repaired
        await it.start(nursery, symbols=(kept,))
        await it.minutes(1)
        await it.stop()
        stored = stored_contract(it.path, left_out)
        assert stored.suspects
        app = await it.start(nursery, symbols=(kept, left_out))
        await until(lambda: any(left_out in each.symbols() for each in app.shards))
        assert any(each.owes(left_out, 0, stored.suspects[0][1] + 1) for each in app.shards)
        await it.repaired()
        assert stored_contract(it.path, left_out).suspects == ()


async def test_a_name_that_nobody_knows_ends_the_run(autojump_clock, tmp_path):
    """Two complete answers without it, and nothing stored: an error with the nearest known name."""
    async with stage(tmp_path) as (it, _):
        known = one_of(it, 0)
        with pytest.RaisesGroup(
            pytest.RaisesExc(ConfigurationError, match=known), flatten_subgroups=True
        ):
            async with trio.open_nursery() as inner:
                await it.start(inner, symbols=(known, known[:-1]))
                await trio.sleep(120)
        it.app = None


async def test_the_first_kline_becomes_part_of_the_key(autojump_clock, tmp_path):
    """It is asked for once a contract, and stays."""
    async with stage(tmp_path) as (it, nursery):
        app = await it.start(nursery)
        symbol = one_of(it, 0)
        shard = next(shard for shard in app.shards if symbol in shard.symbols())
        await until(lambda: shard.life(symbol).first_ms is not None)
        first = it.exchange.market.current[symbol].onboard_ms // MINUTE_MS * MINUTE_MS
        assert shard.life(symbol).first_ms >= first
