"""A rename that was wrong is undone: one contract again, with every bar of both."""

from contextlib import closing
from decimal import Decimal

import filelock
import pytest

from klagg_trio import cli
from klagg_trio.core.bar import Bar, Source, newborn
from klagg_trio.core.errors import ConfigurationError
from klagg_trio.core.facts import BarFact, Facts, Listing, RunningBar
from klagg_trio.core.intervals import INTERVALS, MINUTE_MS
from klagg_trio.core.seed import OpenBar, Seed, StartState
from klagg_trio.store.database import NEVER_MS, Database
from klagg_trio.store.reading import open_reader
from klagg_trio.store.start_snapshot import read_snapshot, write_snapshot
from klagg_trio.store.verify import verify

pytestmark = pytest.mark.real

MIDNIGHT_MS = 1_735_689_600_000
KEY = "AUSDT@20250101T0000"


def at(minute):
    """The time of a minute after midnight."""
    return MIDNIGHT_MS + minute * MINUTE_MS


def bar(first, count=1, price=10, source=Source.TRADES):
    """One bar over so many minutes, each with the same volume."""
    made = Bar(at(first), at(first + count), *[Decimal(price)] * 4)
    made.volume, made.quote_volume = Decimal(2 * count), Decimal(2 * count * price)
    made.count, made.source = 3 * count, source
    return made


def facts(minutes, fives=(), **kwargs):
    """Sealed minutes, and 5m bars."""
    sealed = [BarFact("AUSDT", "1m", bar(minute, **kwargs)) for minute in minutes]
    sealed += [BarFact("AUSDT", "5m", bar(first, 5, **kwargs)) for first in fives]
    return Facts(sealed=sealed)


def listing(minute):
    """Facts of a listing."""
    return Facts(listings=[Listing("AUSDT", at(minute), NEVER_MS, 0)])


@pytest.fixture(params=[False, True], ids=["recent", "folded"])
def database(tmp_path, request):
    """A contract of thirteen minutes; its label goes to another one of minutes 16 to 24."""
    opened = Database.open(tmp_path / "klagg.db")
    opened.commit(at(13), [listing(0), facts(range(13), (0, 5))])
    # The 5m bar that was running is frozen with what it has.
    part = bar(10, 5)
    part.volume, part.quote_volume, part.count = Decimal(6), Decimal(60), 9
    opened.commit(None, [Facts(ended=["AUSDT"], sealed=[BarFact("AUSDT", "5m", part)])])
    opened.commit(at(16), [Facts(replaced=["AUSDT"]), listing(16)])
    later = facts(range(16, 25), (20,))
    running = newborn(at(25), at(26), Decimal(10))
    opened.commit(at(25), [later], [RunningBar("AUSDT", "1m", running, at(25))])
    if request.param:
        for number in (1, 2):
            with opened._transaction():
                opened._folding.move(number, at(24))
    yield opened
    opened.close()


def shown(database, interval="1m"):
    """Opening minute, source and volume of all bars, by label."""
    with closing(open_reader(database.path)) as read:
        rows = read.execute(
            "SELECT symbol, open_time, source, volume FROM klines WHERE interval = ?"
            " ORDER BY symbol, open_time",
            (interval,),
        ).fetchall()
    return [(row[0], (row[1] - MIDNIGHT_MS) // MINUTE_MS, *row[2:]) for row in rows]


def test_both_are_one_again(database):
    """Nothing is lost, nothing is missing: what neither had is owed."""
    assert {row[0] for row in shown(database)} == {"AUSDT", KEY}
    database.join(database.find_pair(KEY))
    known = [("AUSDT", minute, "trades", 2.0) for minute in range(25)]
    owed = [("AUSDT", minute, "suspect", 0.0) for minute in (13, 14, 15)]
    assert shown(database) == known[:13] + owed + known[16:]
    fives = shown(database, "5m")
    assert [row[1:3] for row in fives] == [
        (0, "trades"), (5, "trades"), (10, "trades"), (15, "suspect"), (20, "trades"),
    ]  # fmt: skip
    with closing(open_reader(database.path)) as read:
        rows = read.execute("SELECT contract, symbol, status FROM contracts").fetchall()
        running = read.execute("SELECT symbol FROM open_klines").fetchall()
        kinds = read.execute("SELECT kind, contract FROM changes").fetchall()
    assert rows == [(KEY, "AUSDT", "TRADING")]
    assert running == [("AUSDT",)]
    assert ("rename undone", KEY) in kinds
    assert {row[1] for row in kinds} == {KEY}
    assert [finding for finding in verify(database.path) if finding.kind == "hole"] == []


def test_another_contract_has_nothing_of_theirs(database):
    """Even if it gets the number that has become free."""
    database.join(database.find_pair(KEY))
    database.commit(at(26), [Facts(listings=[Listing("BUSDT", at(25), NEVER_MS, 0)])])
    assert {row[0] for row in shown(database)} == {"AUSDT"}
    database.commit(at(26), [facts([25])])
    assert shown(database)[-1] == ("AUSDT", 25, "trades", 2.0)


def give_both(database, minute, source):
    """Let the newer contract have a minute that the older one has."""
    wrong = bar(minute, price=11, source=source)
    database.put_history("AUSDT", "1m", [wrong])


def test_contracts_that_disagree_stay_two(database):
    """On any minute that both claim to know."""
    give_both(database, 12, Source.OFFICIAL)
    before = shown(database), shown(database, "5m")
    with pytest.raises(ConfigurationError, match="their bars of 1 minutes differ"):
        database.join(database.find_pair(KEY))
    assert (shown(database), shown(database, "5m")) == before
    assert database.symbols() == ["AUSDT", KEY] or set(database.symbols()) == {"AUSDT", KEY}


def test_a_guess_gives_way(database):
    """A suspect minute claims nothing."""
    give_both(database, 12, Source.SUSPECT)
    database.join(database.find_pair(KEY))
    assert shown(database)[12] == ("AUSDT", 12, "trades", 2.0)


@pytest.mark.parametrize(
    ("key", "text"),
    [("AUSDT@20240101T0000", "no contract has"), ("AUSDT@20250101T0016", "has its label")],
)
def test_only_who_lost_a_label_gets_it_back(database, key, text):
    """Anything else is told, not tried."""
    with pytest.raises(ConfigurationError, match=text):
        database.find_pair(key)


def test_the_start_snapshot_owes_what_its_bars_lack(database, tmp_path, capsys):
    """The older contract's minutes are in none of its open bars."""
    open_ms = INTERVALS["1h"].floor(at(25))
    hour = OpenBar("1h", newborn(open_ms, INTERVALS["1h"].end(open_ms), Decimal(10)), 4)
    seed = Seed("AUSDT", at(16), NEVER_MS, Decimal(10), 7, None, 0, (hour,))
    path = tmp_path / "initial_state.cbor"
    write_snapshot(path, StartState(at(25), ("1m", "1h"), (seed,), *database.identity))
    database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert cli.execute(["contracts", "--data-dir", str(tmp_path), "--join", KEY]) == 0
    assert f"{KEY} AUSDT TRADING" in capsys.readouterr().out
    (seed,) = read_snapshot(path).seeds
    assert seed.suspects == ((at(0), at(15)),)
    assert seed.open_bars[0].unofficial_minutes == 4 + 16


def test_beside_a_run_it_waits_for_later(database, tmp_path):
    """Exit 75, like everything that writes."""
    with filelock.FileLock(tmp_path / "klagg.lock"):
        assert cli.execute(["contracts", "--data-dir", str(tmp_path), "--join", KEY]) == 75
        assert cli.execute(["contracts", "--data-dir", str(tmp_path), "--json"]) == 0
    assert {row[0] for row in shown(database)} == {"AUSDT", KEY}
