"""Flat bars for stretches of which nothing is stored, made by the database itself.

However long a stretch is, it is never a list here.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from klagg_trio.core.bar import Source
from klagg_trio.core.intervals import INTERVALS, MINUTE, Interval
from klagg_trio.core.seed import Seed, StartState
from klagg_trio.store.changes import Span
from klagg_trio.store.fold import Folding
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


def owe_one(
    connection: sqlite3.Connection,
    folding: Folding,
    number: int,
    seed: Seed,
    start: StartState,
    from_ms: int,
) -> int:
    """Make the bars of a contract that ended between two times suspect ones, where none is stored.

    They are flat at the last stored close. Returns rows written.
    """
    to_ms = start.cut_ms
    price = close_before(connection, seed.symbol, from_ms)
    life_ms = MINUTE.floor(seed.onboard_ms if seed.first_ms is None else seed.first_ms)
    if price is None:
        from_ms, price = max(from_ms, life_ms), float(seed.last_close)
    folding.move(number, to_ms)
    rows = 0
    for name in start.intervals:
        interval = INTERVALS[name]
        if name == "3d":
            interval = interval.with_phase(seed.three_day_phase_ms)
        running_ms = interval.floor(to_ms)
        span = interval.floor(from_ms), interval.floor(running_ms - 1)
        rows += fill(connection, number, interval, span, price, Source.SUSPECT)
    return rows
