"""Reading a database that may be in use, and what SQLite's errors mean, for all who use it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from klagg_trio.core.errors import BusyError, DamagedDataError, StoreError
from klagg_trio.core.plain import plain

BUSY_TIMEOUT_MS: Final = 5_000


class _Cursor(sqlite3.Cursor):
    """Maps errors wherever they come up: a damaged page is met while rows are fetched."""

    connection: _Reader

    def execute(self, sql: str, parameters: Any = ()) -> _Cursor:  # noqa: ANN401
        with mapped(self.connection.path):
            super().execute(sql, parameters)
            return self

    def fetchone(self) -> Any:  # noqa: ANN401
        with mapped(self.connection.path):
            return super().fetchone()

    def fetchmany(self, size: int | None = 1) -> list[Any]:
        with mapped(self.connection.path):
            return super().fetchmany(size)

    def fetchall(self) -> list[Any]:
        with mapped(self.connection.path):
            return super().fetchall()

    def __next__(self) -> Any:  # noqa: ANN401
        with mapped(self.connection.path):
            return super().__next__()


class _Reader(sqlite3.Connection):
    """A connection whose cursors raise errors of ours."""

    path = Path()

    def cursor(self, factory: Any = _Cursor) -> Any:  # noqa: ANN401
        return super().cursor(factory)

    def execute(self, sql: str, parameters: Any = ()) -> Any:  # noqa: ANN401
        return self.cursor().execute(sql, parameters)


def open_reader(path: Path) -> sqlite3.Connection:
    """Return a read-only connection to a database that may be in use.

    Raises DamagedDataError where there is none, or it is not klagg's. What is read through it
    raises errors of ours, never SQLite's.
    """
    if not path.exists():
        raise DamagedDataError(f"{path} is missing; run: klagg backfill --data-dir {path.parent}")
    with mapped(path):
        uri = f"{path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, factory=_Reader)
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
def mapped(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, with the file and what to do."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            raise  # ours: a bar that cannot be, or a wrong statement
        raise _meaning(path, error) from error


def _meaning(path: Path, error: sqlite3.DatabaseError) -> StoreError | DamagedDataError:
    code, words = getattr(error, "sqlite_errorname", ""), plain(str(error))
    if code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")) or "decode to UTF-8" in words:
        return DamagedDataError(
            f"{path} is damaged or not a database ({words}); it is left as it is: move it away "
            f"or restore a copy, then run: klagg backfill --data-dir {path.parent}"
        )
    if code == "SQLITE_ERROR" and "no such table" in words:
        return DamagedDataError(
            f"{path} is not a klagg database ({words}); choose another: --data-dir"
        )
    if code == "SQLITE_ERROR" and "no such column" in words:
        return DamagedDataError(
            f"{path} is of another version of klagg ({words}); let klagg run or backfill open it"
        )
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return BusyError(f"another program holds {path} for writing; klagg waits for it")
    advice = "make room" if code == "SQLITE_FULL" else "check the disk and its permissions"
    return StoreError(f"{path} cannot be used ({words}); {advice}, then start again")
