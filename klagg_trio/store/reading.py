"""Reading a database that may be in use: bars, spans, suspects, and what SQLite's errors mean."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.errors import BusyError, DamagedDataError, StoreError
from klagg_trio.core.facts import AbsenceNote
from klagg_trio.core.plain import plain
from klagg_trio.store.schema import VALUE_COLUMNS

BUSY_TIMEOUT_MS: Final = 5_000

LATER: Final = "; try again when it has let go"
"""What who only reads can do about another program's hold."""

FLOAT_DIGITS: Final = 15
"""Every decimal of up to 15 digits survives the way through a float64 (DBL_DIG of C)."""

Row = tuple[Any, ...]


_YOUNGER: Final = (
    *("no such column", "no such table: contracts", "no such table: changes"),
    "no such table: absences",
)
"""What SQLite says where an earlier klagg made the database."""


class _Cursor(sqlite3.Cursor):
    """Maps errors wherever they come up: a damaged page is met while rows are fetched."""

    connection: _Reader

    def execute(self, sql: str, parameters: Any = ()) -> _Cursor:  # noqa: ANN401
        with mapped(self.connection.path, LATER):
            super().execute(sql, parameters)
            return self

    def fetchone(self) -> Any:  # noqa: ANN401
        with mapped(self.connection.path, LATER):
            return super().fetchone()

    def fetchmany(self, size: int | None = 1) -> list[Any]:
        with mapped(self.connection.path, LATER):
            return super().fetchmany(size)

    def fetchall(self) -> list[Any]:
        with mapped(self.connection.path, LATER):
            return super().fetchall()

    def __next__(self) -> Any:  # noqa: ANN401
        with mapped(self.connection.path, LATER):
            return super().__next__()


class _Reader(sqlite3.Connection):
    """A connection whose cursors raise errors of ours."""

    path = Path()

    def cursor(self, factory: Any = _Cursor) -> Any:  # noqa: ANN401
        return super().cursor(factory)

    def execute(self, sql: str, parameters: Any = ()) -> Any:  # noqa: ANN401
        return self.cursor().execute(sql, parameters)


def reader_uri(path: Path) -> str:
    """Return how to name a database to SQLite in order to read it only.

    On a medium that cannot be written SQLite finds no place for what readers share; there nobody
    writes either, so that it needs none.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro"
    log = path.with_name(path.name + "-wal")
    try:
        is_fixed = os.statvfs(path).f_flag & os.ST_RDONLY and not (
            log.exists() and log.stat().st_size
        )
    except OSError:
        return uri
    return f"{uri}&immutable=1" if is_fixed else uri


def open_reader(path: Path) -> sqlite3.Connection:
    """Return a read-only connection to a database that may be in use.

    Raises DamagedDataError where there is none, or it is not klagg's. What is read through it
    raises errors of ours, never SQLite's.
    """
    if not path.exists():
        raise DamagedDataError(f"{path} is missing; run: klagg backfill --data-dir {path.parent}")
    with mapped(path, LATER):
        connection = sqlite3.connect(reader_uri(path), uri=True, factory=_Reader)
        connection.path = path
        try:
            connection.execute("PRAGMA query_only = ON")
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            connection.execute("SELECT 1 FROM klines LIMIT 0")
        except (sqlite3.Error, StoreError, DamagedDataError):
            connection.close()
            raise
        return connection


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Give a read-only connection, as `open_reader`, and close it."""
    connection = open_reader(path)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def mapped(path: Path, advice: str = "") -> Iterator[None]:
    """Turn SQLite's errors into ours, with the file and what to do.

    `advice` is what to do where another program holds the file.
    """
    try:
        yield
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            raise  # ours: a bar that cannot be, or a wrong statement
        raise _meaning(path, error, advice) from error


def _meaning(path: Path, error: Exception, advice: str) -> StoreError | DamagedDataError:
    code, words = getattr(error, "sqlite_errorname", ""), plain(str(error))
    # A damaged name of a column shows up in the text of SQLite's own error.
    is_no_text = isinstance(error, UnicodeDecodeError) or "decode to UTF-8" in words
    if code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")) or is_no_text:
        return DamagedDataError(
            f"{path} is damaged or not a database ({words}); it is left as it is: move it away "
            f"or restore a copy, then run: klagg backfill --data-dir {path.parent}"
        )
    if code == "SQLITE_ERROR" and words.startswith(_YOUNGER):
        return DamagedDataError(
            f"{path} is of another version of klagg ({words}); let klagg run or backfill open it"
        )
    if code == "SQLITE_ERROR" and "no such table" in words:
        return DamagedDataError(
            f"{path} is not a klagg database ({words}); choose another: --data-dir"
        )
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return BusyError(f"another program holds {path} for writing" + advice)
    advice = "make room" if code == "SQLITE_FULL" else "check the disk and its permissions"
    return StoreError(f"{path} cannot be used ({words}); {advice}, then start again")


def select_bars(
    connection: sqlite3.Connection, symbol: str, interval: str, first_ms: int, last_ms: int
) -> dict[int, Row]:
    """Return the stored bars that open from `first_ms` to `last_ms`, for `bar_of`, by open time."""
    rows = connection.execute(
        f"SELECT open_time, {', '.join(VALUE_COLUMNS)}, source FROM klines"
        " WHERE symbol = ? AND interval = ? AND open_time BETWEEN ? AND ? ORDER BY open_time",
        (symbol, interval, first_ms, last_ms),
    )
    return {row[0]: row for row in rows}


def stored_spans(
    connection: sqlite3.Connection, symbol: str, interval: str
) -> list[tuple[int, int]]:
    """Return the stored bars that are not suspect, as spans from an open time to an end."""
    rows = connection.execute(
        "WITH bounds AS (SELECT open_time, close_time + 1 AS end_time, "
        " lag(close_time + 1) OVER (ORDER BY open_time) AS before FROM klines"
        " WHERE symbol = ? AND interval = ? AND source <> 'suspect'),"
        " numbered AS (SELECT open_time, end_time,"
        " sum(before IS NOT open_time) OVER (ORDER BY open_time) AS span FROM bounds)"
        " SELECT min(open_time), max(end_time) FROM numbered GROUP BY span ORDER BY 1",
        (symbol, interval),
    )
    return [(first_ms, end_ms) for first_ms, end_ms in rows]


def select_suspects(connection: sqlite3.Connection, limit: int) -> list[tuple[str, str, int, int]]:
    """Return symbol, interval, open time and end of suspect bars, in that order.

    Reads the tables, not the view: `suspect_bars` is a partial index of the few that there are, and
    of the recent bars all have to be looked at. Contracts whose label another one has are passed
    over: the exchange does not serve their bars any more.
    """
    rows = connection.execute(
        f"""
        SELECT s.symbol, i.interval, b.open_time, b.end_time, i.id
        FROM symbols AS s
        CROSS JOIN intervals AS i
        CROSS JOIN bars AS b INDEXED BY suspect_bars ON b.symbol = s.id AND b.interval = i.id
        WHERE s.status <> 'REPLACED' AND b.source = {Source.SUSPECT:d}
        UNION ALL
        SELECT s.symbol, i.interval, b.open_time, b.end_time, i.id
        FROM recent_bars AS b
        JOIN symbols AS s ON s.id = b.symbol AND b.end_time > s.folded_until
        JOIN intervals AS i ON i.id = b.interval
        WHERE s.status <> 'REPLACED' AND b.source = {Source.SUSPECT:d}
        ORDER BY 1, 5, 3 LIMIT ?
        """,
        (limit,),
    )
    return [row[:4] for row in rows]


def select_absences(connection: sqlite3.Connection) -> list[AbsenceNote]:
    """Return what is noted of stretches that the exchange lacks, of contracts that it may serve."""
    rows = connection.execute(
        "SELECT s.symbol, a.first_ms, a.last_ms, a.noticed_ms, a.asked_ms, a.askings, a.final"
        " FROM absences AS a JOIN symbols AS s ON s.id = a.contract"
        " WHERE s.status <> 'REPLACED' ORDER BY 1, 2"
    )
    return [AbsenceNote._make((*head, bool(final))) for *head, final in rows]


def bar_of(row: Row, end_ms: int) -> Bar:
    """Return a stored bar with exact values again, as far as floats tell (see `is_exact`)."""
    open_ms, *values, source = row
    bar = Bar(open_ms, end_ms, *map(_exact, values))  # type: ignore[arg-type]
    bar.first = bar.last = open_ms
    try:
        bar.source = Source[source.upper()]
    except KeyError:
        raise DamagedDataError(
            f"a stored bar is of {source!r}, which only a newer klagg knows; use that version"
        ) from None
    return bar


def as_stored(bar: Bar) -> Bar:
    """Return an official bar with the values that it reads back with once it is stored."""
    row: list[float] = [float(value) for value in bar.values()]
    row[6] = bar.count
    return bar_of((bar.open_ms, *row, Source.OFFICIAL.label), bar.end_ms)


def _exact(value: float) -> Decimal | int:
    return value if isinstance(value, int) else Decimal(repr(value))


def is_exact(bar: Bar) -> bool:
    """Whether every value has few enough digits to have come through a float unharmed."""
    return all(
        len(value.normalize().as_tuple().digits) <= FLOAT_DIGITS
        for value in bar.values()
        if isinstance(value, Decimal)
    )
