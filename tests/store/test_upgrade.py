"""Databases of earlier versions: brought up to date whole, or left as they are."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest

from klagg_trio import __version__, cli
from klagg_trio.core.errors import DamagedDataError, LockedError, StoreError
from klagg_trio.core.intervals import MINUTE_MS
from klagg_trio.store import upgrade as module
from klagg_trio.store.database import Database
from klagg_trio.store.reading import open_reader, select_suspects
from klagg_trio.store.verify import verify

from .old_databases import MIDNIGHT_MS, make

pytestmark = pytest.mark.real

KLINES = (
    "symbol, interval, open_time, open, high, low, close, volume, close_time, quote_volume,"
    " count, taker_buy_volume, taker_buy_quote_volume, source, revision"
)


@pytest.fixture
def path(tmp_path):
    """Where the database of this test goes."""
    return tmp_path / "klagg.db"


def shown(path):
    """Everything that people read of the bars."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return [
            connection.execute(f"SELECT {KLINES} FROM {view} ORDER BY 1, 2, 3").fetchall()
            for view in ("klines", "open_klines")
        ]


def value(path, query):
    """The one value that a query gives."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchone()[0]


@pytest.mark.parametrize("steps", [1, 2])
def test_all_bars_are_what_they_were(path, steps):
    """Those of 0.1.0 and those of its successor; running bars of 0.1.0 are stale, and go."""
    sealed, running = shown(make(path, steps=steps))

    Database.open(path).close()

    assert shown(path) == [sealed, running if steps == 2 else []]
    assert value(path, "PRAGMA auto_vacuum") == 2
    assert value(path, "PRAGMA integrity_check") == "ok"
    assert value(path, "SELECT value FROM meta WHERE key = 'made_by'") == f"klagg {__version__}"
    assert value(path, "SELECT text FROM events") == "ids are missing"
    assert list(path.parent.glob("*.new*")) == []


def test_a_second_opening_changes_nothing(path):
    """The identity is given once, and stays."""
    make(path)
    Database.open(path).close()
    first = value(path, "SELECT value FROM meta WHERE key = 'database_id'")
    database = Database.open(path)
    assert database.identity == (first, 1)
    assert len(first) == 32
    database.close()


def test_an_old_database_can_be_read_meanwhile(path, capsys):
    """What needs the present tables says who makes them."""
    make(path)
    arguments = ["--data-dir", str(path.parent)]
    for command in ("status", "verify"):
        assert cli.execute([command, *arguments]) == 0
    assert cli.execute(["contracts", *arguments]) == 65
    assert "let klagg run or backfill open it" in capsys.readouterr().err


def test_two_databases_are_two(tmp_path):
    """No two of them have one identity, new or old."""
    make(tmp_path / "old.db")
    ids = set()
    for name in ("old.db", "a.db", "b.db"):
        database = Database.open(tmp_path / name)
        ids.add(database.identity.database_id)
        database.close()
    assert len(ids) == 3


def test_contracts_get_their_keys(path):
    """The minute of the listing stands in; who lost a ticker keeps the name it had."""
    make(path)
    Database.open(path).close()
    with closing(open_reader(path)) as read:
        rows = read.execute(
            "SELECT contract, symbol, ticker, first_known, market FROM contracts ORDER BY id"
        ).fetchall()
        assert rows == [
            ("AUSDT@20240101T0000", "AUSDT@20240101T0000", "AUSDT", 0, "um"),
            ("AUSDT@20250101T0000", "AUSDT", "AUSDT", 0, "um"),
            ("BUSDT@20250101T0000", "BUSDT", "BUSDT", 0, "um"),
        ]
        suspects = [(row[0], (row[2] - MIDNIGHT_MS) // MINUTE_MS) for row in
                    select_suspects(read, 10)]  # fmt: skip
    assert suspects == [("AUSDT", 3), ("AUSDT", 29), ("BUSDT", 3), ("BUSDT", 29)]


def test_progress_is_told(path, monkeypatch):
    """Ever more, up to all."""
    monkeypatch.setattr(module, "ROWS_TOGETHER", 7)
    told = []
    Database.open(make(path), told.append).close()
    assert len(told) > 10
    assert told == sorted(told)
    assert 0 < told[0] <= told[-1] <= 1


class Killed(BaseException):
    """The end of a process, as far as the files can tell."""


@pytest.mark.parametrize("after", range(0, 14, 2))
def test_a_kill_in_the_middle_loses_nothing(path, monkeypatch, after):
    """The next opening goes on with what has been copied."""
    before = shown(make(path))
    monkeypatch.setattr(module, "ROWS_TOGETHER", 7)
    told = []

    def kill(share):
        told.append(share)
        if len(told) > after:
            raise Killed

    with pytest.raises(Killed):
        Database.open(path, kill)
    assert shown(path) == before
    again = []
    Database.open(path, again.append).close()
    assert shown(path) == before
    # Of each table the last step is told once more.
    assert len(told) + len(again) <= 20


def test_a_copy_of_another_state_is_begun_anew(path, monkeypatch):
    """What an earlier klagg wrote in the meantime is not lost."""
    make(path)
    monkeypatch.setattr(module, "ROWS_TOGETHER", 7)

    def kill(_):
        raise Killed

    with pytest.raises(Killed):
        Database.open(path, kill)
    with closing(sqlite3.connect(path)) as old, old:
        old.execute("UPDATE bars SET close = 10.25 WHERE symbol = 2")
        old.execute("DELETE FROM recent_bars WHERE symbol = 3")
    before = shown(path)
    Database.open(path).close()
    assert shown(path) == before


@pytest.mark.parametrize("contents", [b"", b"garbage" * 999, b"SQLite format 3\0" + bytes(5000)])
def test_a_copy_that_is_none_is_begun_anew(path, contents):
    """Whatever lies where the copy goes."""
    before = shown(make(path))
    module.copy_name(path).write_bytes(contents)
    Database.open(path).close()
    assert shown(path) == before


def test_room_is_looked_for_first(path, monkeypatch):
    """The error names the bytes; the database stays as it was."""
    before = shown(make(path))
    usage = SimpleNamespace(total=10**9, free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match=r"[\d,]{7,} bytes are needed beside it, 1,000 are free"):
        Database.open(path)
    assert shown(path) == before


def test_a_program_that_has_it_open_is_told_of(path):
    """A reader would go on reading a file that is gone."""
    before = shown(make(path))
    with closing(sqlite3.connect(path)) as other:
        other.execute("SELECT count(*) FROM klines").fetchone()
        with pytest.raises(LockedError, match="close that program"):
            Database.open(path)
    assert shown(path) == before
    Database.open(path).close()
    assert shown(path) == before


def test_a_damaged_database_is_left_as_it_is(path):
    """A page of garbage in the middle: nothing is copied over it."""
    make(path, minutes=3_000, folded=2_500)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(40 * 4096)
        file.write(b"\xff" * 8 * 4096)
    before = path.read_bytes()[4096:]
    with pytest.raises(DamagedDataError):
        Database.open(path)
    assert path.read_bytes()[4096:] == before


def test_what_was_migrated_is_sound(path):
    """`verify` has nothing to say of it."""
    make(path)
    Database.open(path).close()
    assert verify(path) == []


def test_a_newer_database_is_refused_with_its_maker(path):
    """The step that nobody knows, and the version that wrote it."""
    database = Database.open(path)
    database.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = 'klagg 9.1' WHERE key = 'made_by'")
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
            " VALUES ('klagg', '0009 the future', '2030')"
        )
    with pytest.raises(DamagedDataError, match=r"klagg 9\.1, step '0009 the future'"):
        Database.open(path)


def test_every_source_up_to_15_has_room(path):
    """Names for those that are known; a number for what only a newer klagg knows."""
    make(path)
    Database.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        names = []
        for source in range(16):
            connection.execute("UPDATE bars SET source = ? WHERE symbol = 3", (source,))
            names.append(
                connection.execute("SELECT source FROM klines WHERE symbol = 'BUSDT'").fetchone()[0]
            )
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute("UPDATE bars SET source = 16")
    assert names[:6] == ["trades", "flat", "suspect", "official", "absent", "source 5"]
    assert names[15] == "source 15"


UPGRADING = """
import sys
from pathlib import Path
from klagg_trio.store import upgrade
from klagg_trio.store.database import Database
upgrade.ROWS_TOGETHER = 50
Database.open(Path(sys.argv[1]), lambda share: print(share, flush=True)).close()
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_again_and_again_it_ends_whole(path):
    """A real kill, each time a little later: every start goes on from where the last one was."""
    before = shown(make(path, minutes=400, folded=300))
    for lines in range(1, 60):
        with subprocess.Popen(
            [sys.executable, "-c", UPGRADING, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            told = [process.stdout.readline() for _ in range(min(lines, 6))]
            process.kill()
        assert shown(path) == before
        if "done\n" in told:
            break
    else:
        pytest.fail("it never got further")
    Database.open(path).close()
    assert shown(path) == before
    assert value(path, "PRAGMA integrity_check") == "ok"
