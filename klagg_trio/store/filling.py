"""Flat bars for stretches of which nothing is stored, made by the database itself.

However long a stretch is, it is never a list here.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from klagg_trio.core.bar import Source
from klagg_trio.core.intervals import MINUTE, Interval
from klagg_trio.store.changes import Span
from klagg_trio.store.schema import INTERVAL_CODES
from klagg_trio.store.statements import COLUMNS, TABLES

_MINUTE_CODE: Final = INTERVAL_CODES[MINUTE.name]

_FILL: Final = (
    "WITH RECURSIVE opens (at) AS (SELECT ? UNION ALL SELECT at + ? FROM opens WHERE at + ? <= ?)"
    f" INSERT OR IGNORE INTO bars ({', '.join(COLUMNS)}, revision)"
    " SELECT ?, ?, at, at + ?, ?, ?, ?, ?, 0, 0, 0, 0, 0, ?, 0 FROM opens"
)


def fill(
    connection: sqlite3.Connection,
    number: int,
    interval: Interval,
    span: Span,
    price: float,
    source: Source,
) -> int:
    """Store flat bars of one contract where none is, by first and last open time. Returns rows.

    All that ends by the end of the span must be folded: only then nothing is stored twice.
    """
    first_ms, last_ms = span
    if first_ms > last_ms:
        return 0
    code = INTERVAL_CODES[interval.name]
    prices = (price,) * 4
    if interval.length_ms:
        step = interval.length_ms
        return connection.execute(
            _FILL, (first_ms, step, step, last_ms, number, code, step, *prices, source)
        ).rowcount
    rows = []
    while first_ms <= last_ms:  # months, which are few
        end_ms = interval.end(first_ms)
        rows.append((number, code, first_ms, end_ms, *prices, 0, 0, 0, 0, 0, source))
        first_ms = end_ms
    marks = ", ".join("?" * len(COLUMNS))
    return connection.executemany(
        f"INSERT OR IGNORE INTO bars ({', '.join(COLUMNS)}, revision) VALUES ({marks}, 0)", rows
    ).rowcount


def bounds(connection: sqlite3.Connection, number: int, code: int = _MINUTE_CODE) -> Span | None:
    """Return the first and last open time of a contract's stored bars of one interval."""
    found = []
    for table in TABLES:
        first, last = connection.execute(
            f"SELECT min(open_time), max(open_time) FROM {table} WHERE symbol = ? AND interval = ?"
            if table == "bars"
            # The key begins with the time: walk over the few opening times, not over all bars.
            else "SELECT min(r.open_time), max(r.open_time) FROM recent_opens AS r"
            " CROSS JOIN recent_bars AS b ON b.open_time = r.open_time"
            " AND b.interval = r.interval AND b.symbol = ? WHERE r.interval = ?",
            (number, code),
        ).fetchone()
        if first is not None:
            found += [first, last]
    return (min(found), max(found)) if found else None


def close_before(connection: sqlite3.Connection, label: str, at_ms: int) -> float | None:
    """Return the close of the last stored minute that opens before a time."""
    row = connection.execute(
        "SELECT open_time, close FROM klines WHERE symbol = ? AND interval = ? AND open_time < ?"
        " ORDER BY open_time DESC LIMIT 1",
        (label, MINUTE.name, at_ms),
    ).fetchone()
    return None if row is None else float(row[1])


def open_from(connection: sqlite3.Connection, label: str, at_ms: int) -> float | None:
    """Return the open of the first stored minute that opens at a time or later."""
    row = connection.execute(
        "SELECT open_time, open FROM klines WHERE symbol = ? AND interval = ? AND open_time >= ?"
        " ORDER BY open_time LIMIT 1",
        (label, MINUTE.name, at_ms),
    ).fetchone()
    return None if row is None else float(row[1])


def count_between(connection: sqlite3.Connection, label: str, span: Span) -> int:
    """Return how many minutes are stored by first and last open time."""
    row = connection.execute(
        "SELECT count(*) FROM klines WHERE symbol = ? AND interval = ?"
        " AND open_time BETWEEN ? AND ?",
        (label, MINUTE.name, *span),
    ).fetchone()
    return int(row[0])
