"""A database of an earlier klagg, copied into the present tables.

Theory of operation
-------------------
What a table checks of its rows cannot be changed in place, and neither can the way a file gives
pages back. So everything is copied to a second file beside the first, `klagg.db.new`, in steps that
are each a transaction of its own, in the order of the keys. Where it stands follows from the last
row that was copied: killed in the middle, it goes on from there. The old file is not written to,
but for its write-ahead log, which is brought into it first so that it is whole by itself. In the
end the rows are counted, and the copy takes the place of the old file by one rename.

A copy is gone on with only if the old file is still the one it was begun from; else it is begun
anew. Nobody else may have the old file open: whoever does would go on reading a file that is gone.

Two million bars (205 MB) took 11 s on two busy cores, and as much room as the file again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from klagg_trio.core.errors import LockedError, StoreError
from klagg_trio.core.intervals import MINUTE
from klagg_trio.store.naming import key_text, ticker_of
from klagg_trio.store.schema import COPIED, MARKET, applied_steps, migrate, refuse_newer

ROWS_TOGETHER: Final = 50_000
"""Rows a transaction: a tenth of a second, which is what a kill costs."""

ROOM_SPARE_BYTES: Final = 8 * 2**20
"""Beyond a tenth more than the old file, for the pages that say what points where."""

Progress = Callable[[float], None]
"""Told the share that is done, from 0 to 1."""

_MARK: Final = "copied_from"
_TABLES: Final = {
    "recent_opens": "interval, open_time",
    "recent_bars": "open_time, interval, symbol",
    "bars": "symbol, interval, open_time",
    "open_bars": "interval, symbol",
}
"""Tables that are copied as they are, with their keys."""


def copy_name(path: Path) -> Path:
    """Return where the copy of a database is made."""
    return path.with_name(path.name + ".new")


def forget_copy(path: Path) -> None:
    """Remove what is left of a copy, its journal too: it would be played back into the next one."""
    fresh = copy_name(path)
    for name in (fresh.name, f"{fresh.name}-journal"):
        fresh.with_name(name).unlink(missing_ok=True)


def is_old(connection: sqlite3.Connection) -> bool:
    """Whether an earlier klagg made this database. ValueError where a newer one has."""
    applied = applied_steps(connection)
    refuse_newer(connection, applied)
    return bool(applied) and COPIED not in applied


def upgrade(path: Path, on_progress: Progress | None = None) -> None:
    """Put a copy with the present tables in the place of an old database.

    Raises StoreError where there is no room, LockedError where somebody else has it open.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        _make_whole(old, path)
        with_parts = "0002 running bars by parts" in applied_steps(old)
    _check_room(path)
    mark = _mark_of(path)
    fresh = copy_name(path)
    if not _goes_on(fresh, mark):
        forget_copy(path)
    tables = [name for name in _TABLES if name != "open_bars" or with_parts]
    with closing(_connected(fresh)) as connection:
        connection.execute("ATTACH ? AS old", (str(path),))
        if _mark_in(connection) is None:
            _copy_small(connection, mark)
        for name in tables:
            _copy(connection, name, on_progress)
        _check_whole(connection, tables, path)
        connection.execute("DELETE FROM main.meta WHERE key = ?", (_MARK,))
    os.replace(fresh, path)
    _sync_folder(path.parent)


def _make_whole(old: sqlite3.Connection, path: Path) -> None:
    """Bring the write-ahead log into the file, and do without one from here on."""
    try:
        old.execute("PRAGMA busy_timeout = 1000")
        mode = old.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise
        mode = "wal"
    if mode != "delete":
        raise LockedError(
            f"another program has {path} open, which an earlier klagg made and this one has to "
            "bring up to date; close that program, then start again"
        )


def _check_room(path: Path) -> None:
    size = path.stat().st_size
    fresh = copy_name(path)
    there = fresh.stat().st_size if fresh.exists() else 0
    needed = size + size // 10 + ROOM_SPARE_BYTES - there
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise StoreError(
            f"no room to bring {path} up to date: {needed:,} bytes are needed beside it, "
            f"{free:,} are free; make room, then start again (the database is as it was)"
        )


def _mark_of(path: Path) -> str:
    """Return what tells this file from what it may become under another klagg."""
    about = path.stat()
    with path.open("rb") as file:
        head = hashlib.sha256(file.read(100)).hexdigest()[:16]
    return f"{about.st_size} {about.st_mtime_ns} {head}"


def _goes_on(fresh: Path, mark: str) -> bool:
    """Whether a copy has been begun, and from the same file."""
    if not fresh.exists():
        return False
    try:
        with closing(_connected(fresh, make=False)) as connection:
            return _mark_in(connection) == mark
    except sqlite3.DatabaseError:
        return False


def _connected(fresh: Path, *, make: bool = True) -> sqlite3.Connection:
    connection = sqlite3.connect(fresh, isolation_level=None)
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # Rows are appended, so there is little to be noted before it is written over.
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -65536")
        if make:
            migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _mark_in(connection: sqlite3.Connection) -> str | None:
    row = connection.execute("SELECT value FROM main.meta WHERE key = ?", (_MARK,)).fetchone()
    return None if row is None else str(row[0])


def _copy_small(connection: sqlite3.Connection, mark: str) -> None:
    """Copy what is few, in one transaction, and note what it was copied from."""
    execute = connection.execute
    execute("BEGIN IMMEDIATE")
    taken: set[tuple[str, int]] = set()
    for number, label, onboard_ms, *rest, status, folded in execute(
        "SELECT id, symbol, onboard_ms, delivery_ms, three_day_phase_ms, status, folded_until"
        " FROM old.symbols ORDER BY id"
    ).fetchall():
        ticker = ticker_of(label) if status == "REPLACED" else label
        first_ms = MINUTE.floor(onboard_ms)
        while (ticker, first_ms) in taken:
            first_ms += MINUTE.length_ms
        taken.add((ticker, first_ms))
        label = key_text(ticker, first_ms) if status == "REPLACED" else label
        execute(
            "INSERT INTO main.symbols (id, symbol, ticker, first_ms, first_known, market,"
            " onboard_ms, delivery_ms, three_day_phase_ms, status, folded_until)"
            " VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?)",
            (number, label, ticker, first_ms, MARKET, onboard_ms, *rest, status, folded),
        )
    execute("INSERT OR IGNORE INTO main.meta SELECT key, value FROM old.meta")
    execute("INSERT INTO main.events SELECT id, at_ms, kind, symbol, text FROM old.events")
    execute("INSERT INTO main.meta (key, value) VALUES (?, ?)", (_MARK, mark))
    execute("COMMIT")


def _copy(connection: sqlite3.Connection, table: str, on_progress: Progress | None) -> None:
    """Copy a table from behind the last row that has been copied."""
    key = _TABLES[table]
    columns = ", ".join(
        row[1] for row in connection.execute(f"PRAGMA main.table_info({table})").fetchall()
    )
    newest = ", ".join(f"{name} DESC" for name in key.split(", "))
    marks = ", ".join("?" * len(key.split(", ")))
    rows = ROWS_TOGETHER
    while rows == ROWS_TOGETHER:
        last = connection.execute(
            f"SELECT {key} FROM main.{table} ORDER BY {newest} LIMIT 1"
        ).fetchone()
        behind = f"WHERE ({key}) > ({marks})" if last else ""
        rows = connection.execute(
            f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM old.{table} {behind}"
            f" ORDER BY {key} LIMIT {ROWS_TOGETHER}",
            last or (),
        ).rowcount
        if on_progress is not None:
            done, of = (
                connection.execute(f"PRAGMA {schema}.page_count").fetchone()[0]
                for schema in ("main", "old")
            )
            on_progress(min(1.0, done / of))


def _check_whole(connection: sqlite3.Connection, tables: list[str], path: Path) -> None:
    """A copy that lacks rows never takes the place of what it was copied from."""
    for name in tables:
        copied, there = (
            connection.execute(f"SELECT count(*) FROM {schema}.{name}").fetchone()[0]
            for schema in ("main", "old")
        )
        if copied != there:
            raise StoreError(
                f"{path} changed while it was brought up to date ({copied:,} of {there:,} rows of "
                f"{name}); stop what writes to it, remove {copy_name(path).name}, start again"
            )


def _sync_folder(folder: Path) -> None:
    """Make the renaming durable, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
