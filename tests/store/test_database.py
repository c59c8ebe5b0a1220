"""The database: what replaces what, folding, longer bars, errors that lose nothing.

The model of the property test is a dictionary with the rules of the store's theory of operation.
"""

import os
import sqlite3
from contextlib import closing
from decimal import Decimal
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.errors import DamagedDataError, StoreError
from klagg_trio.core.facts import (
    AbsenceNote,
    BarFact,
    Births,
    Cut,
    Event,
    Facts,
    FlatSpan,
    Listing,
    MinuteSpan,
    RunningBar,
)
from klagg_trio.core.intervals import DAY_MS, INTERVALS, MINUTE_MS, THREE_DAY_PHASE_MS
from klagg_trio.store import changes as log
from klagg_trio.store import database as module
from klagg_trio.store import fold
from klagg_trio.store.database import NEVER_MS, Database
from klagg_trio.store.reading import open_reader, select_absences

pytestmark = pytest.mark.real

MIDNIGHT_MS = 1_735_689_600_000
"""2025-01-01 00:00 UTC, a Wednesday."""

COLUMNS = "symbol, interval, open_time, close, volume, count, source, revision"


@pytest.fixture
def path(tmp_path):
    """Return where the database of this test goes."""
    return tmp_path / "klagg.db"


@pytest.fixture
def database(path):
    """Open a new database; close it after the test."""
    opened = Database.open(path)
    yield opened
    opened.close()


def bar(minute, source=Source.TRADES, *, price="10", volume="2", count=3, interval="1m"):
    """Return the bar of an interval that opens `minute` minutes after midnight."""
    open_ms = MIDNIGHT_MS + minute * MINUTE_MS
    if source == Source.FLAT:
        volume, count = "0", 0
    values = [Decimal(price)] * 4
    amount = Decimal(volume)
    return Bar(
        open_ms,
        INTERVALS[interval].end(open_ms),
        *values,
        amount,
        amount * Decimal(price),
        count,
        amount / 2,
        amount * Decimal(price) / 2,
        open_ms,
        open_ms,
        source,
    )


def fact(*args, symbol="AUSDT", interval="1m", **kwargs):
    """Return a bar of a symbol."""
    return BarFact(symbol, interval, bar(*args, interval=interval, **kwargs))


def running(*args, merged=0, **kwargs):
    """Return a running bar that has merged so many minutes since midnight."""
    told = fact(*args, **kwargs)
    return RunningBar(told.symbol, told.interval, told.bar, MIDNIGHT_MS + merged * MINUTE_MS)


def sealed(*facts):
    """Return facts of a tick."""
    return Facts(sealed=list(facts))


def restated(*facts):
    """Return facts of a restatement."""
    return Facts(restated=list(facts))


def listing(symbol="AUSDT", onboard_ms=0, delivery_ms=NEVER_MS):
    """Return facts of a listing."""
    return Facts(listings=[Listing(symbol, onboard_ms, delivery_ms, THREE_DAY_PHASE_MS)])


def rows(database, where="1", columns="open_time, source, revision"):
    """Return stored bars, times in minutes after midnight."""
    read = open_reader(database.path)
    try:
        found = read.execute(
            f"SELECT {columns} FROM klines WHERE {where} ORDER BY symbol, interval, open_time"
        ).fetchall()
    finally:
        read.close()
    if columns.startswith("open_time"):
        return [((row[0] - MIDNIGHT_MS) // MINUTE_MS, *row[1:]) for row in found]
    return found


# -- Opening -----------------------------------------------------------------------------------


def test_every_commit_is_synced(database):
    """WAL with synchronous = FULL: one fsync a transaction."""
    connection = database._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_opening_again_finds_everything(path):
    """What was committed is there after the database was closed and opened."""
    first = Database.open(path)
    first.commit(MIDNIGHT_MS, [listing(), sealed(fact(0))])
    first.close()
    second = Database.open(path)
    second.commit(MIDNIGHT_MS + MINUTE_MS, [sealed(fact(1))])
    assert second.last_tick() == MIDNIGHT_MS + MINUTE_MS
    assert rows(second) == [(0, "trades", 0), (1, "trades", 0)]
    second.close()


def test_file_that_is_no_database_is_left_alone(path):
    """A file that SQLite does not know is an error that says so; nothing is written to it."""
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(DamagedDataError, match="not a database"):
        Database.open(path)
    assert path.read_bytes() == b"something else entirely" * 100


def test_database_of_a_newer_klagg_is_refused(path):
    """An unknown migration step means that this program does not know the tables."""
    Database.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute(
        "UPDATE _sqlite_migrations SET name = '9999 the future' WHERE name LIKE '0001%'"
    )
    connection.commit()
    connection.close()
    with pytest.raises(DamagedDataError, match="a newer klagg made it"):
        Database.open(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_may_not_be_written_is_named(tmp_path):
    """A read-only folder is an error of the disk, with its name."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(StoreError, match="locked"):
        Database.open(folder / "klagg.db")


def test_folder_under_a_file_is_named(tmp_path):
    """A data directory that cannot be made is an error of the disk, with its name."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        Database.open(tmp_path / "file" / "klagg.db")


def test_reader_of_a_missing_database_is_told_what_to_run(path):
    """Reading never makes a database."""
    with pytest.raises(DamagedDataError, match="klagg backfill --data-dir"):
        open_reader(path)
    assert not path.exists()


def test_reader_refuses_a_foreign_database(path):
    """A SQLite database without klagg's views is not read as an empty one."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text)")
    connection.commit()
    connection.close()
    with pytest.raises(DamagedDataError, match="not a klagg database"):
        open_reader(path)


def test_reader_cannot_write(database):
    """A reader's connection refuses to change anything."""
    database.commit(MIDNIGHT_MS, [listing()])
    read = open_reader(database.path)
    with pytest.raises(StoreError, match="readonly"):
        read.execute("DELETE FROM symbols")
    read.close()


# -- What replaces what ------------------------------------------------------------------------

SEALED_OVER = [
    # stored, sealed again as, what is stored then
    (Source.TRADES, Source.SUSPECT, ("trades", 0)),
    (Source.TRADES, Source.FLAT, ("trades", 0)),
    (Source.FLAT, Source.TRADES, ("flat", 0)),
    (Source.OFFICIAL, Source.TRADES, ("official", 0)),
    (Source.SUSPECT, Source.SUSPECT, ("suspect", 0)),
    (Source.SUSPECT, Source.TRADES, ("trades", 1)),
    (Source.SUSPECT, Source.FLAT, ("flat", 1)),
    (Source.SUSPECT, Source.OFFICIAL, ("official", 1)),
]


@pytest.mark.parametrize(("stored", "again", "expected"), SEALED_OVER)
@pytest.mark.parametrize("folded", [False, True])
def test_tick_replaces_only_suspect_bars(database, stored, again, expected, folded):
    """A bar sealed again, after a restart, only takes the place of a suspect one."""
    database.commit(MIDNIGHT_MS + MINUTE_MS, [listing(), sealed(fact(0, stored))])
    if folded:
        fold_all(database)
    database.commit(None, [sealed(fact(0, again, price="11"))])
    assert rows(database) == [(0, *expected)]


RESTATED_OVER = [
    (Source.TRADES, Source.OFFICIAL, ("official", 1)),
    (Source.SUSPECT, Source.OFFICIAL, ("official", 1)),
    (Source.FLAT, Source.TRADES, ("trades", 1)),
    (Source.TRADES, Source.SUSPECT, ("suspect", 1)),
    (Source.OFFICIAL, Source.TRADES, ("official", 0)),
    (Source.OFFICIAL, Source.SUSPECT, ("official", 0)),
    (Source.OFFICIAL, Source.OFFICIAL, ("official", 1)),
]


@pytest.mark.parametrize(("stored", "again", "expected"), RESTATED_OVER)
@pytest.mark.parametrize("folded", [False, True])
def test_restatement_replaces_all_but_official_bars(database, stored, again, expected, folded):
    """An official bar only gives way to an official one."""
    database.commit(MIDNIGHT_MS + MINUTE_MS, [listing(), sealed(fact(0, stored))])
    if folded:
        fold_all(database)
    database.commit(None, [restated(fact(0, again, price="11"))])
    assert rows(database) == [(0, *expected)]


def test_same_restatement_is_no_revision(database):
    """Writing what is stored already changes nothing."""
    database.commit(MIDNIGHT_MS, [listing(), sealed(fact(0))])
    assert database.commit(None, [restated(fact(0))]) == 0
    assert rows(database) == [(0, "trades", 0)]


def test_last_restatement_of_a_bar_holds(database):
    """A bar told of twice in one message is stored once, with what was said last."""
    twice = restated(fact(0, price="11"), fact(0, price="12"))
    database.commit(MIDNIGHT_MS, [listing(), sealed(fact(0)), twice])
    assert rows(database, columns="close, revision") == [(12.0, 1)]


def test_doubted_minutes_keep_their_values(database):
    """Doubt changes the source of trades and flat minutes, and of nothing else."""
    facts = sealed(fact(0), fact(1, Source.FLAT), fact(2, Source.OFFICIAL), fact(3))
    doubt = Facts(doubted=[MinuteSpan("AUSDT", MIDNIGHT_MS, MIDNIGHT_MS + 2 * MINUTE_MS)])
    database.commit(MIDNIGHT_MS + 4 * MINUTE_MS, [listing(), facts, doubt])
    assert rows(database, columns="open_time, volume, source, revision") == [
        (0, 2.0, "suspect", 1),
        (1, 0.0, "suspect", 1),
        (2, 2.0, "official", 0),
        (3, 2.0, "trades", 0),
    ]


@pytest.mark.parametrize("folded", [False, True])
def test_proven_minutes_get_their_source_back(database, folded):
    """A suspect minute that turns out right is trades or flat by its count."""
    facts = sealed(fact(0, Source.SUSPECT), fact(1, Source.SUSPECT, volume="0", count=0))
    database.commit(MIDNIGHT_MS + 2 * MINUTE_MS, [listing(), facts])
    if folded:
        fold_all(database)
    span = MinuteSpan("AUSDT", MIDNIGHT_MS, MIDNIGHT_MS + MINUTE_MS)
    database.commit(None, [Facts(proven=[span])])
    assert rows(database) == [(0, "trades", 1), (1, "flat", 1)]


# -- Folding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("folded_minutes", [0, 13, 60])
@pytest.mark.parametrize("source", [Source.SUSPECT, Source.FLAT])
def test_stretch_is_stored_as_its_bars_would_be(tmp_path, source, folded_minutes):
    """A span of flat bars leaves the same rows as its bars one by one, over what is there too."""
    spans = [
        FlatSpan(symbol, name, MIDNIGHT_MS, MIDNIGHT_MS + 60 * MINUTE_MS, Decimal(price), source)
        for symbol, price in (("AUSDT", "10.1"), ("BUSDT", "0.000123"))
        for name in ("1m", "5m", "1h")
    ]
    before = [
        fact(3, Source.SUSPECT, count=2),
        fact(4, Source.OFFICIAL),
        fact(5, Source.FLAT, interval="5m"),
        fact(7, symbol="BUSDT"),
    ]
    found = []
    for name, facts in (
        ("many", Facts(flats=spans)),
        ("one by one", Facts(sealed=list(Facts(flats=spans).sealed_bars()))),
    ):
        database = Database.open(tmp_path / name)
        database.commit(None, [Facts(sealed=before)])
        with database._transaction():
            database._folding.move(1, MIDNIGHT_MS + folded_minutes * MINUTE_MS)
        database.commit(MIDNIGHT_MS + 60 * MINUTE_MS, [facts])
        tables = ("klines", "recent_opens", "bars", "recent_bars")
        execute = database._connection.execute
        found.append([sorted(map(tuple, execute(f"SELECT * FROM {t}"))) for t in tables])
        database.close()
    assert found[0] == found[1]


def fold_all(database):
    """Let a minute pass, and give every symbol its turn."""
    database.commit(database.last_tick() + MINUTE_MS, [])
    database._folding._due = float(len(database._folding.until))
    assert database.fold() > 0


SYMBOLS = ("AUSDT", "BUSDT", "我踏马来了USDT")

steps = st.lists(
    st.one_of(
        st.tuples(st.just("tick"), st.sets(st.sampled_from(SYMBOLS))),
        st.tuples(st.just("restate"), st.sampled_from(SYMBOLS), st.integers(0, 12)),
        st.tuples(st.just("doubt"), st.sampled_from(SYMBOLS), st.integers(0, 12)),
        st.tuples(st.just("fold")),
        st.tuples(st.just("reopen")),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(steps, st.sampled_from([1, 2, 240]))
def test_no_reader_sees_where_a_bar_lies(tmp_path_factory, steps, turn):
    """Whatever is folded when, the view holds every bar once, with its newest contents."""
    path = tmp_path_factory.mktemp("fold") / "klagg.db"
    database = Database.open(path)
    database.commit(None, [listing(symbol) for symbol in SYMBOLS])
    model = {}
    minute = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "FOLD_TURN", turn)
        for step in steps:
            match step:
                case ("tick", traded):
                    facts = Facts()
                    for symbol in SYMBOLS:
                        source = Source.TRADES if symbol in traded else Source.FLAT
                        facts.sealed.append(fact(minute, source, symbol=symbol))
                        model[symbol, minute] = [source.label, 0, 10.0]
                    minute += 1
                    database.commit(MIDNIGHT_MS + minute * MINUTE_MS, [facts])
                case ("restate", symbol, at) if (symbol, at) in model:
                    row = model[symbol, at]
                    price = f"{11 + row[1]}"
                    database.commit(None, [restated(fact(at, symbol=symbol, price=price))])
                    row[:] = ["trades", row[1] + 1, float(price)]
                case ("doubt", symbol, at):
                    at_ms = MIDNIGHT_MS + at * MINUTE_MS
                    database.commit(None, [Facts(doubted=[MinuteSpan(symbol, at_ms, at_ms)])])
                    row = model.get((symbol, at))
                    if row and row[0] != "suspect":
                        row[:2] = ["suspect", row[1] + 1]
                case ("fold",):
                    database.fold()
                case ("reopen",):
                    database.close()
                    database = Database.open(path)
            stored = {
                (symbol, (open_ms - MIDNIGHT_MS) // MINUTE_MS): [source, revision, close]
                for symbol, open_ms, source, revision, close in rows(
                    database, columns="symbol, open_time, source, revision, close"
                )
            }
            assert stored == model
    database.close()


def all_open(database):
    """Return the columns of the stored running bars, by symbol and interval."""
    cursor = database._connection.execute("SELECT * FROM open_klines")
    names = [column for column, *_ in cursor.description]
    made = [dict(zip(names, row, strict=True)) for row in cursor]
    return {(row["symbol"], row.pop("interval")): row for row in made}


def test_bars_that_are_born_show_their_minute(database):
    """The database makes the rows of the longer bars that begin; they are their minute so far."""
    minutes = [running(5), running(5, Source.SUSPECT, symbol="BUSDT", price="7.25")]
    database.commit(MIDNIGHT_MS + 5 * MINUTE_MS, [listing(), listing("BUSDT")], minutes)
    ends = {"5m": 10, "1h": 65}
    births = [
        Births(name, MIDNIGHT_MS + 5 * MINUTE_MS, MIDNIGHT_MS + end * MINUTE_MS, [symbol])
        for name, end in ends.items()
        for symbol in ("AUSDT", "BUSDT", "GONEUSDT")
    ]
    assert database.commit(None, [], [], births) == 4
    shown = all_open(database)
    for symbol in ("AUSDT", "BUSDT"):
        minute = shown.pop((symbol, "1m"))
        for name, end in ends.items():
            longer = shown.pop((symbol, name))
            assert longer.pop("close_time") == MIDNIGHT_MS + end * MINUTE_MS - 1
            assert longer.items() <= minute.items()
    assert not shown
    empty = [
        running(5, Source.FLAT, symbol=symbol, interval=name, price="1", merged=6)
        for symbol in ("AUSDT", "BUSDT")
        for name in ends
    ]
    empty = [
        msgspec.structs.replace(
            each, bar=msgspec.structs.replace(each.bar, end_ms=MIDNIGHT_MS + 65 * MINUTE_MS)
        )
        for each in empty
    ]
    assert database.commit(None, [], empty) == 0  # a minute without trades changes nothing


def test_a_birth_is_not_copied_from_another_minute(database):
    """Where the stored 1m bar is not of the minute in which a bar begins, there is none yet."""
    database.commit(MIDNIGHT_MS, [listing()], [running(4)])
    birth = Births("5m", MIDNIGHT_MS + 5 * MINUTE_MS, MIDNIGHT_MS + 10 * MINUTE_MS, ["AUSDT"])
    assert database.commit(None, [], [], [birth]) == 0
    assert len(all_open(database)) == 1


def test_what_is_reported_of_a_bar_holds_over_its_birth(database):
    """A report of the same transaction is newer than the copy."""
    birth = Births("5m", MIDNIGHT_MS, MIDNIGHT_MS + 5 * MINUTE_MS, ["AUSDT"])
    newer = running(0, price="99", interval="5m")
    database.commit(MIDNIGHT_MS, [listing()], [newer, running(0)], [birth])
    assert all_open(database)["AUSDT", "5m"]["high"] == 99.0


def test_folding_leaves_nothing_behind(database, monkeypatch):
    """Once every symbol had its turn, what was moved is cleared away."""
    monkeypatch.setattr(fold, "FOLD_TURN", 1)
    for minute in range(5):
        database.commit(
            MIDNIGHT_MS + (minute + 1) * MINUTE_MS,
            [listing(), listing("BUSDT"), sealed(fact(minute), fact(minute, symbol="BUSDT"))],
        )
    assert database.fold() == 8  # the minute sealed last stays, for the running bars
    counts = [
        database._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        for table in ("bars", "recent_bars", "recent_opens")
    ]
    assert counts == [8, 2, 1]


SERIES = "symbol = 'AUSDT' AND interval = '1m'"


@pytest.mark.parametrize(
    "query",
    [
        f"SELECT * FROM klines WHERE {SERIES} AND open_time >= 5 ORDER BY open_time",
        f"SELECT open_time, close FROM klines WHERE {SERIES} ORDER BY open_time DESC LIMIT 9",
        "SELECT symbol, close FROM klines WHERE interval = '1m' AND open_time = 60000",
    ],
)
def test_reading_uses_the_keys(database, query):
    """No query of a series, or of a moment, scans bars or sorts them."""
    plan = [row[3] for row in database._connection.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert not [step for step in plan if step.startswith(("SCAN b", "SCAN r", "USE TEMP"))], plan
    assert [step for step in plan if step.startswith("SEARCH b USING PRIMARY KEY")]


def test_all_bars_of_a_series_are_merged_in_order(database):
    """Nor does a query of sealed and running bars together look at more than it returns."""
    query = f"SELECT * FROM klines_all WHERE {SERIES} ORDER BY open_time DESC LIMIT 9"
    plan = [row[3] for row in database._connection.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert plan[0] == "MERGE (UNION ALL)", plan
    assert not [step for step in plan if step.startswith(("SCAN", "CO-ROUTINE"))], plan


# -- Longer bars -------------------------------------------------------------------------------


def five_minutes(database, *minutes, longer=Source.TRADES, **changes):
    """Store some minutes and the 5m bar over them; return what restating the first one changes."""
    facts = sealed(*minutes, fact(0, longer, interval="5m", volume="10", count=15))
    database.commit(MIDNIGHT_MS + 5 * MINUTE_MS, [listing(**changes), facts])


LONGER = "interval = '5m'"
LONGER_COLUMNS = "volume, count, source, revision"


@pytest.mark.parametrize("folded", [False, True])
def test_longer_bar_follows_its_minutes(database, folded):
    """A longer bar that no shard tells of is made from its stored minutes."""
    five_minutes(database, *(fact(minute) for minute in range(5)))
    if folded:
        fold_all(database)
    database.commit(None, [restated(fact(0, Source.OFFICIAL, volume="7", count=4))])
    assert rows(database, LONGER, LONGER_COLUMNS) == [(15.0, 16, "trades", 1)]


@pytest.mark.parametrize("folded", [False, True])
def test_what_another_contract_traded_is_cut_off(database, folded):
    """From its listing on no bar is left; the longer bar before it is what its minutes give."""
    five_minutes(database, *(fact(minute) for minute in range(5)))
    database.commit(None, [sealed(fact(5), fact(6))])
    if folded:
        fold_all(database)
    facts = listing(delivery_ms=MIDNIGHT_MS + 3 * MINUTE_MS)
    facts.cuts.append(Cut("AUSDT", MIDNIGHT_MS + 3 * MINUTE_MS))
    database.commit(None, [facts])
    opens = [minute for minute, _ in rows(database, columns="open_time, interval")]
    assert sorted(opens) == [0, 0, 1, 2]
    (five,) = rows(database, "interval = '5m'", "count, volume, source")
    assert five == (9, 6.0, "trades")


def test_a_cut_before_the_first_bar_drops_nothing(database):
    """Then the date is wrong: all that is stored is one contract's."""
    database.commit(None, [sealed(fact(5), fact(6))])
    database.commit(None, [Facts(cuts=[Cut("AUSDT", MIDNIGHT_MS)])])
    assert len(rows(database)) == 2


def test_longer_bar_that_is_told_of_is_left_alone(database):
    """What the shard says of a longer bar holds."""
    five_minutes(database, *(fact(minute) for minute in range(5)))
    told = restated(fact(0, volume="7"), fact(0, interval="5m", volume="99", count=1))
    database.commit(None, [told])
    assert rows(database, LONGER, LONGER_COLUMNS) == [(99.0, 1, "trades", 1)]


def test_longer_bar_is_official_when_all_its_minutes_are(database):
    """The weakest minute decides."""
    five_minutes(database, *(fact(minute) for minute in range(5)))
    for minute in range(5):
        expected = rows(database, LONGER, "source") == [("trades",)]
        assert expected
        database.commit(None, [restated(fact(minute, Source.OFFICIAL))])
    assert rows(database, LONGER, "source") == [("official",)]


def test_official_longer_bar_is_never_changed(database):
    """An official longer bar does not follow a restated minute."""
    five_minutes(database, *(fact(minute) for minute in range(5)), longer=Source.OFFICIAL)
    database.commit(None, [restated(fact(0, volume="7"))])
    assert rows(database, LONGER, LONGER_COLUMNS) == [(10.0, 15, "official", 0)]


def test_longer_bar_with_a_minute_missing_becomes_suspect(database):
    """Where the minutes cannot tell, the official bar is owed."""
    five_minutes(database, *(fact(minute) for minute in range(4)))
    database.commit(None, [restated(fact(0, volume="7"))])
    assert rows(database, LONGER, LONGER_COLUMNS) == [(10.0, 15, "suspect", 1)]


def test_longer_bar_of_unknown_digits_becomes_suspect(database):
    """A float of more than 15 digits does not tell its decimal: the official bar is owed."""
    long = fact(1, volume="1234567.8901234567")
    five_minutes(database, fact(0), long, fact(2), fact(3), fact(4))
    database.commit(None, [restated(fact(0, volume="7"))])
    ((volume, count, source, _),) = rows(database, LONGER, LONGER_COLUMNS)
    assert (volume, count, source) == (pytest.approx(1234580.89), 15, "suspect")


def test_bar_longer_than_a_day_becomes_suspect(database):
    """A week of minutes is not read for one restatement: the official bar costs less."""
    facts = sealed(fact(0), fact(-2 * 1440, interval="1w"))
    database.commit(MIDNIGHT_MS + 7 * DAY_MS, [listing(), facts])
    database.commit(None, [restated(fact(0, volume="7"))])
    assert rows(database, "interval = '1w'", "source") == [("suspect",)]


def test_longer_bar_of_a_young_symbol_begins_with_its_listing(database):
    """Minutes before the listing are not missing."""
    minutes = [fact(minute) for minute in (3, 4)]
    five_minutes(database, *minutes, onboard_ms=MIDNIGHT_MS + 3 * MINUTE_MS)
    database.commit(None, [restated(fact(3, volume="7"))])
    assert rows(database, LONGER, LONGER_COLUMNS) == [(9.0, 6, "trades", 1)]


def test_doubted_minute_makes_its_longer_bar_suspect(database):
    """Doubt reaches the longer bars too."""
    five_minutes(database, *(fact(minute) for minute in range(5)))
    database.commit(None, [Facts(doubted=[MinuteSpan("AUSDT", MIDNIGHT_MS, MIDNIGHT_MS)])])
    assert rows(database, LONGER, LONGER_COLUMNS) == [(10.0, 15, "suspect", 1)]


# -- Failure -----------------------------------------------------------------------------------


def test_commit_that_fails_changes_nothing(database):
    """All of a commit is stored, or none of it; it can be repeated."""
    database.commit(MIDNIGHT_MS, [listing()])
    broken = fact(1)
    broken = BarFact("NEWUSDT", "1m", msgspec.structs.replace(broken.bar, low=Decimal("NaN")))
    with pytest.raises(sqlite3.IntegrityError):
        database.commit(MIDNIGHT_MS + MINUTE_MS, [sealed(fact(0), broken)])
    assert rows(database) == []
    assert database.last_tick() == MIDNIGHT_MS
    database.commit(MIDNIGHT_MS + MINUTE_MS, [sealed(fact(0), fact(0, symbol="NEWUSDT"))])
    assert len(rows(database)) == 2


def test_full_disk_is_a_store_error(database):
    """A disk that is full says so, and the same commit works once there is room."""
    database.commit(MIDNIGHT_MS, [listing()])
    connection = database._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    many = sealed(*(fact(minute) for minute in range(500)))
    with pytest.raises(StoreError, match="make room"):
        database.commit(MIDNIGHT_MS + MINUTE_MS, [many])
    connection.execute("PRAGMA max_page_count = 1000000")
    database.commit(MIDNIGHT_MS + MINUTE_MS, [many])
    assert len(rows(database)) == 500


@pytest.mark.parametrize("value", ["Infinity", "-1"])
def test_impossible_numbers_are_refused(database, value):
    """No infinity and no negative volume can be stored."""
    wrong = BarFact("AUSDT", "1m", msgspec.structs.replace(bar(0), volume=Decimal(value)))
    with pytest.raises(sqlite3.IntegrityError):
        database.commit(None, [listing(), sealed(wrong)])


# -- Running bars, symbols, events -------------------------------------------------------------


def open_rows(database):
    """Return the running bars."""
    read = open_reader(database.path)
    found = read.execute("SELECT symbol, interval, close FROM open_klines").fetchall()
    read.close()
    return sorted(found)


def test_running_bars_are_replaced(database):
    """There is one running bar a symbol and interval; what did not change is not written."""
    first = [running(0), running(0, interval="5m")]
    assert database.commit(None, [listing()], first) == 2
    second = [running(0), running(0, interval="5m", price="11")]
    assert database.commit(None, [], second) == 1
    assert open_rows(database) == [("AUSDT", "1m", 10.0), ("AUSDT", "5m", 10.0)]
    third = [running(0, Source.FLAT, price="12")]
    assert database.commit(None, [], third) == 1
    assert open_rows(database) == [("AUSDT", "1m", 12.0), ("AUSDT", "5m", 11.0)]


@pytest.mark.parametrize(
    "changes",
    [
        {"high": "11"},
        {"low": "9"},
        {"open": "9", "low": "9"},
        {"quote_volume": "21"},
        {"taker_buy_volume": "2"},
        {"taker_buy_quote_volume": "11"},
    ],
)
def test_a_running_bar_that_changed_in_any_value_is_written(database, changes):
    """An official minute may change nothing but a high, or what takers bought."""
    five = running(0, interval="5m", merged=3)
    database.commit(None, [listing()], [running(3, Source.FLAT), five])
    values = {name: Decimal(text) for name, text in changes.items()}
    changed = msgspec.structs.replace(five, bar=msgspec.structs.replace(five.bar, **values))
    assert database.commit(None, [], [changed]) == 1
    shown = all_open(database)["AUSDT", "5m"]
    assert {name: shown[name] for name in values} == {n: float(v) for n, v in values.items()}


def test_symbol_that_ended_has_no_running_bars(database):
    """Freezing a symbol takes its running bars away; a late report does not bring them back."""
    both = [running(0), running(0, symbol="BUSDT")]
    database.commit(None, [listing(), listing("BUSDT")], both)
    database.commit(None, [Facts(ended=["AUSDT"])])
    assert open_rows(database) == [("BUSDT", "1m", 10.0)]
    status = database._connection.execute("SELECT symbol, status FROM symbols ORDER BY 1")
    assert status.fetchall() == [("AUSDT", "ENDED"), ("BUSDT", "TRADING")]


def test_reused_ticker_is_a_new_symbol(database):
    """By proof only. The old bars keep their key, the new ones begin under the ticker."""
    old = listing(onboard_ms=MIDNIGHT_MS)
    database.commit(None, [old, sealed(fact(0))], [running(1)])
    new = listing(onboard_ms=MIDNIGHT_MS + 2 * MINUTE_MS)
    database.commit(None, [Facts(replaced=["AUSDT"]), new, sealed(fact(2), fact(3))])
    assert rows(database, columns="symbol, open_time") == [
        ("AUSDT", MIDNIGHT_MS + 2 * MINUTE_MS),
        ("AUSDT", MIDNIGHT_MS + 3 * MINUTE_MS),
        ("AUSDT@20250101T0000", MIDNIGHT_MS),
    ]
    assert open_rows(database) == []
    status = database._connection.execute("SELECT symbol, status FROM symbols ORDER BY 1")
    assert status.fetchall() == [("AUSDT", "TRADING"), ("AUSDT@20250101T0000", "REPLACED")]


def test_newest_events_are_kept(database, monkeypatch):
    """The journal is bounded; the oldest go."""
    monkeypatch.setattr(module, "EVENTS_MAX", 3)
    events = [Event(at, "gap", "", str(at)) for at in range(5)]
    database.commit(None, [Facts(events=events)])
    texts = database._connection.execute("SELECT text FROM events ORDER BY id").fetchall()
    assert texts == [("2",), ("3",), ("4",)]


# -- Backfill ----------------------------------------------------------------------------------


def contract(symbol="AUSDT"):
    """Return a row of exchangeInfo."""
    return SimpleNamespace(symbol=symbol, onboard_ms=0, delivery_ms=NEVER_MS, status="TRADING")


def official(*minutes, **changes):
    """Return official minutes."""
    return [bar(minute, Source.OFFICIAL, **changes) for minute in minutes]


def test_history_is_stored_once(database):
    """Fetching the same again writes nothing."""
    database.put_symbols([contract()], {"AUSDT": 0})
    assert database.put_history("AUSDT", "1m", official(0, 1, 2)) == 3
    assert database.put_history("AUSDT", "1m", official(1, 2, 3)) == 1
    assert [row[0] for row in rows(database)] == [0, 1, 2, 3]


def test_spans_tell_what_is_stored(database):
    """Bars that touch are one span; suspect ones count as missing."""
    database.put_symbols([contract()], {})
    database.put_history("AUSDT", "1m", official(0, 1, 2, 5, 6))
    database.commit(None, [sealed(fact(3, Source.SUSPECT), fact(8))])
    at = [MIDNIGHT_MS + minute * MINUTE_MS for minute in (0, 3, 5, 7, 8, 9)]
    assert database.stored_spans("AUSDT", "1m") == list(zip(at[::2], at[1::2], strict=True))
    assert database.stored_spans("AUSDT", "5m") == []
    assert database.stored_spans("NOUSDT", "1m") == []


def test_history_mends_suspect_bars(database):
    """A backfill over an outage replaces its placeholders, and restates their longer bars."""
    database.put_symbols([contract()], {})
    minutes = [fact(0), fact(1), fact(2, Source.SUSPECT), fact(3), fact(4)]
    five_minutes(database, *minutes, longer=Source.SUSPECT)
    database.put_history("AUSDT", "1m", official(2, volume="7"))
    assert rows(database, "interval = '1m' AND source = 'official'") == [(2, "official", 1)]
    assert rows(database, LONGER, LONGER_COLUMNS) == [(15.0, 15, "trades", 1)]


def test_a_corrected_minute_corrects_longer_bars_that_are_official(database):
    """The exchange changed a minute: a longer bar whose minutes are all its own follows it."""
    database.put_symbols([contract()], {})
    minutes = [fact(minute, Source.OFFICIAL) for minute in range(5)]
    five_minutes(database, *minutes, longer=Source.OFFICIAL)
    database.commit(None, [restated(fact(2, Source.OFFICIAL, volume="7", count=9))])
    assert rows(database, LONGER, LONGER_COLUMNS) == [(15.0, 21, "official", 1)]


def test_an_official_longer_bar_does_not_follow_minutes_of_our_own(database):
    """Where one of its minutes is not the exchange's, nothing is more official than it is."""
    database.put_symbols([contract()], {})
    minutes = [fact(0), *(fact(minute, Source.OFFICIAL) for minute in range(1, 5))]
    five_minutes(database, *minutes, longer=Source.OFFICIAL)
    database.commit(None, [restated(fact(2, Source.OFFICIAL, volume="7", count=9))])
    assert rows(database, LONGER, LONGER_COLUMNS) == [(10.0, 15, "official", 0)]


def test_history_goes_where_readers_want_it(database):
    """Old bars are not recent: they are stored by symbol at once."""
    database.put_symbols([contract()], {})
    database.commit(MIDNIGHT_MS + MINUTE_MS, [sealed(fact(0))])
    database.put_history("AUSDT", "1m", official(1, 2))
    count = database._connection.execute("SELECT count(*) FROM bars").fetchone()
    assert count == (3,)
    assert [row[0] for row in rows(database)] == [0, 1, 2]


# -- Changes, absences, long spans -----------------------------------------------------------------


def changes(database):
    """Return the log: kind, interval, first and last minute after midnight."""
    with closing(open_reader(database.path)) as read:
        rows = read.execute(
            "SELECT kind, interval, first_ms, last_ms FROM changes WHERE interval IS NOT NULL"
            " ORDER BY number"
        ).fetchall()
    return [(*row[:2], *((ms - MIDNIGHT_MS) // MINUTE_MS for ms in row[2:])) for row in rows]


def ticked(database, minutes=10):
    """Store minutes one tick after the other, with the 5m bars over them."""
    database.commit(None, [listing()])
    for minute in range(minutes):
        ended = [fact(minute)]
        if minute % 5 == 4:
            ended.append(fact(minute - 4, interval="5m", volume="10", count=15))
        database.commit(MIDNIGHT_MS + (minute + 1) * MINUTE_MS, [sealed(*ended)])


def test_a_tick_s_own_bars_are_not_logged(database):
    """They are found by time."""
    ticked(database)
    assert changes(database) == []


def test_what_changes_the_past_is_logged(database):
    """One row a span of neighbours, by interval; what nothing changed is not."""
    ticked(database)
    again = restated(fact(1, price="11"), fact(2, price="11"), fact(7, price="11"))
    database.commit(None, [again])
    database.commit(None, [again])
    assert changes(database) == [
        ("restated", "1m", 1, 2),
        ("restated", "1m", 7, 7),
        ("restated", "5m", 0, 5),
    ]
    database.commit(None, [Facts(doubted=[MinuteSpan("AUSDT", MIDNIGHT_MS, MIDNIGHT_MS)])])
    assert changes(database)[3:] == [("doubted", "1m", 0, 0), ("doubted", "5m", 0, 0)]


def test_bars_of_the_past_that_are_new_are_added(database):
    """A listing seals minutes from before the last tick; a backfill brings older ones."""
    ticked(database)
    database.commit(None, [listing("BUSDT"), sealed(*(fact(x, symbol="BUSDT") for x in (7, 8, 9)))])
    database.put_history("AUSDT", "1m", official(-3, -2, -1))
    assert changes(database) == [("added", "1m", 7, 9), ("added", "1m", -3, -1)]


def test_the_log_is_bounded(database, monkeypatch):
    """By number and by age; numbers are never used again."""
    ticked(database)
    monkeypatch.setattr(log, "CHANGES_MAX", 3)
    for price in range(11, 21):
        database.commit(None, [restated(fact(1, price=str(price)))])
    numbers = "SELECT min(number), max(number), count(*) FROM change_log"
    first, last, count = database._connection.execute(numbers).fetchone()
    assert (count, last - first) == (3, 2)
    monkeypatch.setattr(log, "AGE_MAX_MS", 0)
    database.commit(MIDNIGHT_MS + 11 * MINUTE_MS, [sealed(fact(10))])
    database.commit(None, [restated(fact(1, price="30"))])
    assert database._connection.execute(numbers).fetchone() == (last + 1, last + 2, 2)


def test_a_transaction_that_fails_logs_nothing(database):
    """The log is part of it."""
    ticked(database)
    wrong = fact(2)
    wrong.bar.high = Decimal(1)
    with pytest.raises(sqlite3.IntegrityError):
        database.commit(None, [restated(fact(1, price="11")), restated(wrong)])
    database.commit(None, [restated(fact(3, price="11"))])
    assert changes(database) == [("restated", "1m", 3, 3), ("restated", "5m", 0, 0)]


@pytest.mark.parametrize("kind", ["doubted", "proven", "absent"])
def test_a_span_costs_what_is_stored_of_it(database, kind):
    """Sixty years of minutes, of which ten exist: nobody makes a list of them."""
    ticked(database)
    for round_ in range(2):
        facts = Facts(**{kind: [MinuteSpan("AUSDT", 0, MIDNIGHT_MS * 2)]})
        steps = []
        database._connection.set_progress_handler(lambda: steps.append(1), 1_000)  # noqa: B023
        database.commit(None, [facts])
        database._connection.set_progress_handler(None, 0)
        assert len(steps) < 500, round_


def absent(first, last):
    """Return facts of minutes that the exchange lacks."""
    span = MinuteSpan("AUSDT", *(MIDNIGHT_MS + x * MINUTE_MS for x in (first, last)))
    return Facts(absent=[span])


@pytest.mark.parametrize("folded", [False, True])
def test_absent_minutes_are_flat_at_the_close_before(database, folded):
    """Only suspect ones give way; a longer bar is absent if all of it is."""
    database.commit(None, [listing(), sealed(fact(0, price="9"))])
    many = [fact(x, Source.SUSPECT) for x in range(1, 10)]
    longer = [fact(x, Source.SUSPECT, interval="5m") for x in (0, 5)]
    database.commit(MIDNIGHT_MS + 10 * MINUTE_MS, [sealed(*many, *longer)])
    if folded:
        database.put_history("AUSDT", "1m", official(9))
        database._connection.execute("UPDATE bars SET source = 2 WHERE source = 3")
    database.commit(None, [absent(0, 9)])
    expected = [("trades", 9.0, 2.0)] + [("absent", 9.0, 0.0)] * 9
    shown = "source, close, volume"
    assert rows(database, "interval = '1m'", shown) == expected
    assert rows(database, "interval = '5m'", shown) == [("trades", 9.0, 2.0), ("absent", 9.0, 0.0)]
    before = rows(database)
    database.commit(None, [absent(0, 9)])
    assert rows(database) == before


def test_missing_minutes_within_what_is_stored_become_absent(database):
    """A hole in official history is no hole in ours; nothing is made beyond what is stored."""
    database.commit(None, [listing()])
    database.put_history("AUSDT", "1m", official(0, 1, 6, 7))
    database.commit(MIDNIGHT_MS + 8 * MINUTE_MS, ())
    database.commit(None, [absent(-(10**6), 10**6)])
    sources = ["official"] * 2 + ["absent"] * 4 + ["official"] * 2
    assert rows(database) == [(minute, source, 0) for minute, source in enumerate(sources)]


def test_an_official_bar_is_never_absent(database):
    """Nor does one that is absent keep an official one out."""
    database.commit(None, [listing()])
    database.put_history("AUSDT", "1m", official(0, 1))
    database.commit(MIDNIGHT_MS + 2 * MINUTE_MS, [absent(0, 1)])
    assert rows(database) == [(0, "official", 0), (1, "official", 0)]
    suspect = fact(2, Source.SUSPECT)
    database.commit(MIDNIGHT_MS + 3 * MINUTE_MS, [sealed(suspect), absent(2, 2)])
    assert rows(database)[2] == (2, "absent", 1)
    database.commit(None, [restated(fact(2, Source.OFFICIAL))])
    assert rows(database)[2] == (2, "official", 2)
    database.commit(None, [restated(fact(2, Source.OFFICIAL, price="11"))])
    assert rows(database)[2] == (2, "official", 3)


def note(first, last, askings=1, final=False):
    """Return what is known of a stretch that the exchange lacks."""
    times = (MIDNIGHT_MS + x * MINUTE_MS for x in (first, last))
    return AbsenceNote("AUSDT", *times, MIDNIGHT_MS, MIDNIGHT_MS + askings, askings, final)


def test_absences_are_kept_until_they_are_none(database):
    """A new note takes the place of those that it meets; official minutes end one."""
    ticked(database)

    def noted():
        return select_absences(database._connection)

    database.commit(None, [Facts(absences=[note(0, 3), note(6, 8)])])
    assert noted() == [note(0, 3), note(6, 8)]
    database.commit(None, [Facts(absences=[note(0, 3, askings=2, final=True)])])
    assert noted() == [note(0, 3, askings=2, final=True), note(6, 8)]
    database.commit(None, [restated(fact(7, Source.OFFICIAL))])
    assert noted()[1:] == [note(6, 6), note(8, 8)]


# -- The life of a contract ------------------------------------------------------------------------


def test_a_later_date_renames_nothing(database):
    """A listing date is a hint: the exchange corrects it."""
    database.commit(None, [listing(onboard_ms=MIDNIGHT_MS), sealed(fact(0))])
    database.commit(None, [listing(onboard_ms=MIDNIGHT_MS + 20 * DAY_MS), sealed(fact(1))])
    assert rows(database, columns="symbol, open_time") == [
        ("AUSDT", MIDNIGHT_MS),
        ("AUSDT", MIDNIGHT_MS + MINUTE_MS),
    ]


def test_who_ended_may_come_back(database):
    """The same series, under the same number."""
    ticked(database)
    database.commit(None, [Facts(ended=["AUSDT"])])
    database.commit(None, [Facts(resumed=["AUSDT"])])
    read = database._connection.execute("SELECT status FROM symbols").fetchall()
    assert read == [("TRADING",)]
    kinds = database._connection.execute(
        "SELECT kind FROM changes WHERE interval IS NULL ORDER BY number"
    ).fetchall()
    assert kinds == [("listed",), ("ended",), ("resumed",)]


def test_a_key_that_becomes_known_stays(database):
    """Its first kline says it once; nothing changes it afterwards."""
    keys = []
    for first_ms in (None, MIDNIGHT_MS - DAY_MS, MIDNIGHT_MS, None):
        told = Listing("AUSDT", MIDNIGHT_MS + 5, NEVER_MS, 0, first_ms)
        database.commit(None, [Facts(listings=[told])])
        row = database._connection.execute("SELECT contract, first_known FROM contracts").fetchall()
        keys += row
    known = ("AUSDT@20241231T0000", 1)
    assert keys == [("AUSDT@20250101T0000", 0), known, known, known]


@given(st.lists(st.sampled_from(["list", "replace", "end", "resume"]), max_size=12), st.data())
@settings(max_examples=50)
def test_labels_and_keys_are_of_one_contract_each(tmp_path_factory, steps, data):
    """Whatever is told of one ticker, in any order, no constraint is met by chance."""
    database = Database.open(tmp_path_factory.mktemp("lives") / "klagg.db")
    for step in steps:
        first_ms = data.draw(st.sampled_from([None, 0, MIDNIGHT_MS, MIDNIGHT_MS + DAY_MS]))
        onboard_ms = data.draw(st.sampled_from([0, MIDNIGHT_MS, MIDNIGHT_MS + DAY_MS]))
        told = {
            "list": Facts(listings=[Listing("AUSDT", onboard_ms, NEVER_MS, 0, first_ms)]),
            "replace": Facts(replaced=["AUSDT"]),
            "end": Facts(ended=["AUSDT"]),
            "resume": Facts(resumed=["AUSDT"]),
        }
        database.commit(None, [told[step]])
    rows_ = database._connection.execute(
        "SELECT symbol, contract, status FROM contracts"
    ).fetchall()
    database.close()
    assert len({row[1] for row in rows_}) == len(rows_)
    assert all(row[0].startswith(row[1]) for row in rows_ if row[2] == "REPLACED")
