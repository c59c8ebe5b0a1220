"""Databases as earlier versions of klagg made them, from the statements that they used."""

import sqlite3
from contextlib import closing
from pathlib import Path

from klagg_trio.core.intervals import MINUTE_MS

STATEMENTS = Path(__file__).parent / "old" / "schema.sql"

STEPS = ("0001 bars and names", "0002 running bars by parts")

MIDNIGHT_MS = 1_735_689_600_000
"""2025-01-01 00:00 UTC."""

ONE_MINUTE, FIVE_MINUTES = 0, 2
"""Codes of intervals."""


def statements(steps):
    """The statements of the first so many steps."""
    text = STATEMENTS.read_text(encoding="utf-8")
    parts = text.split("-- 0002 running bars by parts\n")
    return "".join(parts[:steps])


def make(path, *, steps=2, symbols=("AUSDT", "BUSDT"), minutes=30, folded=10):
    """Make a database with minutes of a few symbols, a part of them folded. Returns its path.

    One more contract lost its ticker to the first symbol: two minutes, long ago.
    """
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript("PRAGMA journal_mode = WAL;" + statements(steps))
        connection.execute(
            "CREATE TABLE _sqlite_migrations (id INTEGER PRIMARY KEY, migration_set TEXT,"
            " name TEXT, applied_at TEXT)"
        )
        connection.executemany(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
            " VALUES ('klagg', ?, '2026-11-24')",
            [(step,) for step in STEPS[:steps]],
        )
        _fill(connection, steps, symbols, minutes, MIDNIGHT_MS + folded * MINUTE_MS)
    return path


def _fill(connection, steps, symbols, minutes, folded_ms):
    execute = connection.execute
    execute(
        "INSERT INTO symbols VALUES (1, ?, ?, ?, 0, 'REPLACED', ?)",
        (f"{symbols[0]}@20240101T0000", 1_704_067_200_000, MIDNIGHT_MS - 7 * MINUTE_MS, folded_ms),
    )
    for minute in (-9, -8):
        execute(f"INSERT INTO bars VALUES (1, {ONE_MINUTE}, {_row(minute, 3)}, 0)")
    for number, symbol in enumerate(symbols, 2):
        execute(
            "INSERT INTO symbols VALUES (?, ?, ?, 4133404800000, 0, 'TRADING', ?)",
            (number, symbol, MIDNIGHT_MS + 30_000, folded_ms),
        )
        for minute in range(minutes):
            open_ms = MIDNIGHT_MS + minute * MINUTE_MS
            source = 2 if minute in (3, minutes - 1) else 0
            table = "bars" if open_ms + MINUTE_MS <= folded_ms else "recent_bars"
            row = _row(minute, source)
            execute(f"INSERT INTO {table} VALUES ({number}, {ONE_MINUTE}, {row}, 1)")
            execute(
                "INSERT OR IGNORE INTO recent_opens VALUES (0, ?, ?)",
                (open_ms, open_ms + MINUTE_MS),
            )
        last = "" if steps < 2 else f", {MIDNIGHT_MS + minutes * MINUTE_MS}"
        execute(f"INSERT INTO open_bars VALUES ({number}, 0, {_row(minutes, 0)}{last})")
    execute("INSERT INTO meta VALUES ('last_tick', ?)", (MIDNIGHT_MS + minutes * MINUTE_MS,))
    execute("INSERT INTO events VALUES (1, 5, 'gap', 'AUSDT', 'ids are missing')")


def _row(minute, source):
    open_ms = MIDNIGHT_MS + minute * MINUTE_MS
    values = "10.5, 11.0, 10.0, 10.75, 3.0, 32.0, 7, 1.0, 10.5"
    return f"{open_ms}, {open_ms + MINUTE_MS}, {values}, {source}"
