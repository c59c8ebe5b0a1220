"""Start snapshot and database: held against each other, healed, or refused with what to do."""

import errno
import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klagg_trio.core.bar import Bar, Source, newborn
from klagg_trio.core.errors import DamagedDataError, StoreError
from klagg_trio.core.facts import BarFact, Facts, Listing, MinuteSpan
from klagg_trio.core.intervals import INTERVALS, MINUTE_MS
from klagg_trio.core.seed import OpenBar, Seed, StartState
from klagg_trio.store import start as module
from klagg_trio.store.database import NEVER_MS, Database
from klagg_trio.store.reading import open_reader, select_suspects
from klagg_trio.store.start import (
    Held,
    judge,
    patiently,
    put_aside,
    read_start,
    settle_start,
)
from klagg_trio.store.start_snapshot import write_snapshot
from klagg_trio.store.verify import verify

pytestmark = pytest.mark.real

MIDNIGHT_MS = 1_735_689_600_000
STORED = 20
"""Minutes in the database."""


def at(minute):
    """The time of a minute after midnight."""
    return MIDNIGHT_MS + minute * MINUTE_MS


def minutes(count):
    """The first minutes of a contract, and the 5m bars over them."""
    facts = []
    for name in ("1m", "5m"):
        open_ms, interval = MIDNIGHT_MS, INTERVALS[name]
        while (end_ms := interval.end(open_ms)) <= at(count):
            bar = Bar(open_ms, end_ms, *[Decimal(10)] * 4, Decimal(2), Decimal(20), 3)
            bar.source = Source.TRADES
            bar.volume = Decimal(2) * ((end_ms - open_ms) // MINUTE_MS)
            bar.quote_volume = bar.volume * 10
            bar.count = 3 * ((end_ms - open_ms) // MINUTE_MS)
            facts.append(BarFact("AUSDT", name, bar))
            open_ms = end_ms
    return facts


def state(cut, identity=(None, None)):
    """A start state with one contract."""
    open_ms = INTERVALS["5m"].floor(at(cut))
    bar = newborn(open_ms, open_ms + 5 * MINUTE_MS, Decimal(12))
    seed = Seed(
        "AUSDT",
        onboard_ms=MIDNIGHT_MS,
        delivery_ms=NEVER_MS,
        last_close=Decimal(12),
        next_id=None,
        last_trade_ms=None,
        three_day_phase_ms=0,
        open_bars=(OpenBar("5m", bar, 0),),
    )
    return StartState(at(cut), ("1m", "5m"), (seed,), *identity)


@pytest.fixture
def files(tmp_path):
    """Return where both files are: a database of twenty minutes, and no snapshot."""
    path = tmp_path / "klagg.db"
    database = Database.open(path)
    listing = Listing("AUSDT", MIDNIGHT_MS, NEVER_MS, 0)
    database.commit(at(STORED), [Facts(listings=[listing], sealed=minutes(STORED))])
    database.close()
    return path, tmp_path / "initial_state.cbor"


def begin(files):
    """What `run` does before anything else. Returns what the user was told."""
    path, snapshot = files
    told = []
    start = read_start(path, snapshot)
    database = Database.open(path)
    try:
        settle_start(database, start, snapshot, told.append)
        return told, database.identity, database.last_tick()
    finally:
        database.close()


def identity_of(path):
    """The identity of a database."""
    database = Database.open(path)
    database.close()
    return database.identity


@pytest.mark.parametrize("cut", [10, 15, 20])
def test_a_snapshot_of_the_same_database_fits(files, cut):
    """One that is as new, or older: what came since the cut is owed as after a crash."""
    path, snapshot = files
    identity = identity_of(path)
    write_snapshot(snapshot, state(cut, identity))
    assert begin(files) == ([], identity, at(STORED))


def test_a_snapshot_of_0_1_0_is_taken_on_trust(files):
    """It does not say which database it is of."""
    write_snapshot(files[1], state(20))
    assert begin(files)[0] == []


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("cut", [21, 23, 25, 60, 1500])
def test_a_restored_copy_is_healed(files, cut, named):
    """Every bar between is owed, in every interval; the database begins another generation."""
    path, snapshot = files
    database_id, generation = identity_of(path)
    write_snapshot(snapshot, state(cut, (database_id, generation) if named else (None, None)))

    told, identity, tick_ms = begin(files)

    assert "older than its start snapshot" in told[0]
    assert identity == (database_id, generation + 1)
    assert tick_ms == at(cut)
    with closing(open_reader(path)) as read:
        owed = select_suspects(read, 10_000)
        rows = read.execute(
            "SELECT interval, open_time, close FROM klines WHERE source = 'suspect'"
        )
        assert {row[2] for row in rows} == {10.0}
        changed = read.execute("SELECT kind FROM events").fetchall()
    assert changed == [("restored",)]
    assert [row[2] for row in owed if row[1] == "1m"] == [at(x) for x in range(STORED, cut)]
    assert [row[2] for row in owed if row[1] == "5m"] == [at(x) for x in range(20, cut // 5 * 5, 5)]
    assert verify(path) == []
    assert begin(files)[0] == []


def test_healing_that_was_interrupted_is_done_again(files, monkeypatch):
    """Nothing is taken for stored before all of it is."""
    path, snapshot = files
    write_snapshot(snapshot, state(60, identity_of(path)))
    with monkeypatch.context() as patch:
        patch.setattr(Database, "_put_events", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            begin(files)
    told, identity, tick_ms = begin(files)
    assert (len(told), identity.generation, tick_ms) == (1, 2, at(60))
    assert verify(path) == []


def refusal(files):
    """The text with which a start is refused; both files stay as they were."""
    before = [file.read_bytes() if file.exists() else None for file in files]
    with pytest.raises(DamagedDataError) as caught:
        begin(files)
    assert [file.read_bytes() if file.exists() else None for file in files] == before
    assert str(caught.value).endswith(f"run: klagg backfill --data-dir {files[0].parent}")
    return str(caught.value)


def test_a_copy_that_is_much_older_is_refused(files):
    """Then a backfill is the better way."""
    write_snapshot(files[1], state(20 + 8 * 1440, identity_of(files[0])))
    assert "older than its start snapshot" in (text := refusal(files))
    assert "by 8 days" in text
    assert "--since 9d" in text


@pytest.mark.parametrize(("cut", "older"), [(15, "the snapshot"), (25, "the database")])
def test_files_of_two_databases_are_refused(files, cut, older):
    """Saying which of them is older."""
    write_snapshot(files[1], state(cut, ("f" * 32, 1)))
    text = refusal(files)
    assert "of another database" in text
    assert f"{older} is older" in text


def test_an_empty_database_beside_a_snapshot_is_refused(files):
    """As when the file was made anew."""
    os.unlink(files[0])
    Database.open(files[0]).close()
    write_snapshot(files[1], state(20))
    assert "holds no bars" in refusal(files)


@pytest.mark.parametrize("contents", [None, b""])
def test_a_missing_database_is_refused(files, contents):
    """None is made in its place."""
    path, snapshot = files
    write_snapshot(snapshot, state(20))
    os.unlink(path)
    if contents is not None:
        path.write_bytes(contents)
    assert "is missing beside its start snapshot (up to 2025-01-01 00:20 UTC)" in refusal(files)


def test_a_missing_snapshot_is_refused(files):
    """The database is still good, which the text says."""
    text = refusal(files)
    assert "is missing beside the database" in text
    assert "only what the database lacks is fetched" in text


def test_another_market_is_refused(files):
    """One data directory is of one market."""
    with pytest.raises(DamagedDataError, match="holds the market 'spot'"):
        judge(Held("a", 1, "spot", at(20)), state(20), *files)


TIMES = st.integers(0, 30 * 1440).map(at) | st.just(0)
IDS = st.sampled_from([None, "a", "b"])


@given(TIMES, st.integers(0, 30 * 1440), IDS, st.sampled_from(["a", "b"]))
def test_a_start_leaves_no_hole(tick_ms, cut, of, database_id):
    """Whatever the figures are: refused, or every minute between is owed."""
    start = replace(state(cut), database_id=of)
    held = Held(database_id, 1, "um", tick_ms)
    paths = (module.Path("klagg.db"), module.Path("initial_state.cbor"))
    try:
        fits = judge(held, start, *paths)
    except DamagedDataError:
        gap_ms = start.cut_ms - tick_ms
        assert of not in (None, database_id) or not tick_ms or gap_ms > module.HEALED_MS_MAX
        return
    assert of in (None, database_id)
    assert max(tick_ms, fits.owed_until_ms) >= start.cut_ms
    assert fits.owed_until_ms in (0, start.cut_ms)


# -- Backfill ----------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", [("f" * 32, 1), (None, None)])
def test_a_backfill_keeps_what_it_cannot_use(files, identity):
    """A snapshot of another database is not overwritten."""
    path, snapshot = files
    write_snapshot(snapshot, state(20, identity))
    contents = snapshot.read_bytes()
    os.unlink(path)
    database = Database.open(path)
    told = put_aside(database, snapshot)
    database.close()
    assert "it is kept as initial_state.cbor.of-another-database" in told
    assert not snapshot.exists()
    assert snapshot.with_name(snapshot.name + module.ASIDE).read_bytes() == contents


def test_a_backfill_of_a_restored_copy_begins_a_generation(files):
    """Its own snapshot stays where it is until a new one is written."""
    path, snapshot = files
    write_snapshot(snapshot, state(60, identity_of(path)))
    database = Database.open(path)
    assert put_aside(database, snapshot) is None
    assert database.identity.generation == 2
    database.close()
    assert snapshot.exists()


# -- Damage and patience -----------------------------------------------------------------------


def test_a_file_that_is_cut_short_is_found(files):
    """Before going live, and it is left as it is."""
    path, snapshot = files
    write_snapshot(snapshot, state(20, identity_of(path)))
    os.truncate(path, path.stat().st_size // 2)
    before = path.read_bytes()
    with pytest.raises(DamagedDataError):
        begin(files)
    assert path.read_bytes() == before


def test_garbage_in_any_page_is_found(files, tmp_path):
    """In a small database the look of a third of a second is at all of it."""
    path, snapshot = files
    write_snapshot(snapshot, state(20, identity_of(path)))
    whole = path.read_bytes()
    unseen = 0
    with closing(sqlite3.connect(path)) as connection:
        free = connection.execute("PRAGMA freelist_count").fetchone()[0]
    for page in range(1, len(whole) // 4096):
        path.write_bytes(whole[: page * 4096] + b"\xff" * 4096 + whole[(page + 1) * 4096 :])
        try:
            begin(files)
        except DamagedDataError:
            continue
        unseen += 1
    assert unseen <= free


def test_the_look_ends_in_time(files):
    """However large the database is."""
    database = Database.open(files[0])
    database.check(0.0)
    database.check(5.0)
    database.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_a_read_that_fails_once_is_no_damage(monkeypatch, number):
    """It is tried again; then the disk is named."""
    monkeypatch.setattr(module, "PATIENCE_S", (0.0, 0.0, 0.0))
    failures = [StoreError("cannot read"), StoreError("cannot read")]

    def read():
        if failures:
            raise failures.pop() from OSError(number, "trouble")
        return "read"

    assert patiently(read) == "read"
    failures += [StoreError("cannot read")] * 9
    with pytest.raises(StoreError, match="cannot read"):
        patiently(read)


def test_what_a_restored_copy_lacks_is_owed_by_the_shards_too(files):
    """Else a longer bar that holds those minutes would be called right over suspect ones."""
    path, snapshot = files
    write_snapshot(snapshot, state(25))
    database = Database.open(path)
    start = settle_start(database, read_start(path, snapshot), snapshot, lambda _: None)
    database.close()
    span = (at(STORED), at(24))
    assert [(seed.suspects, seed.unknown) for seed in start.seeds] == [((span,), (span,))]


@pytest.mark.parametrize("kind", ["restated", "doubted"])
def test_minutes_that_changed_after_the_snapshot_are_owed(files, kind):
    """After a kill its longer bars hold what those minutes were; what lies before them is left."""
    path, snapshot = files
    write_snapshot(snapshot, state(19))
    database = Database.open(path)
    for minute in (12, 17):
        if kind == "restated":
            bar = busier(minutes(STORED)[minute].bar)
            changed = Facts(restated=[BarFact("AUSDT", "1m", bar)])
        else:
            changed = Facts(doubted=[MinuteSpan("AUSDT", at(minute), at(minute))])
        database.commit(None, [changed])
    start = settle_start(database, read_start(path, snapshot), snapshot, lambda _: None)
    database.close()
    span = (at(17), at(17))
    assert [(seed.suspects, seed.unknown) for seed in start.seeds] == [((span,), (span,))]


def busier(bar):
    """A bar with one trade more."""
    more = bar.copy()
    more.count, more.volume, more.quote_volume = 4, Decimal(3), Decimal(30)
    more.source = Source.OFFICIAL
    return more
