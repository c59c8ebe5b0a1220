"""Moving bars from where a tick appends them to where readers want them (see `schema`)."""

from __future__ import annotations

import heapq
import sqlite3
from typing import Final

from klagg_trio.store.statements import COLUMNS

FOLD_TURN: Final = 480
"""Calls of `fold` until every symbol had its turn. One a minute: recent bars go back eight hours.
The longer the turn, the less is written in all, and the more a reader looks up one by one."""

OPENS_CLEARED: Final = 50
"""Opening times cleared away by one `fold`, so that catching up after an outage stays short."""


class Folding:
    """Up to where the bars of each symbol have been moved, and whose turn is next."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Every method runs within a transaction of its caller."""
        self._connection = connection
        self.until: dict[int, int] = {}
        """By number of the symbol: the end of the last bar that has been moved."""
        self._due = 0.0
        """Symbols to be folded; the fraction waits for the next turn."""

    def due(self, until_ms: int) -> int:
        """Move the bars of the symbols whose turn it is. Returns rows moved."""
        self._due += len(self.until) / FOLD_TURN
        count = int(self._due)
        self._due -= count
        turn = heapq.nsmallest(count, self.until, key=lambda x: (self.until[x], x))
        rows = sum(self.move(number, until_ms) for number in turn)
        self._clear_moved()
        return rows

    def move(self, number: int, until_ms: int) -> int:
        """Move what ends up to `until_ms` from `recent_bars` to `bars`; nothing is cleared yet."""
        moved_ms = self.until[number]
        if until_ms <= moved_ms:
            return 0
        columns = ", ".join(f"b.{name}" for name in (*COLUMNS, "revision"))
        rows = self._connection.execute(
            f"INSERT INTO bars ({', '.join(COLUMNS)}, revision) SELECT {columns}"
            " FROM recent_opens AS r CROSS JOIN recent_bars AS b ON b.open_time = r.open_time"
            " AND b.interval = r.interval AND b.symbol = ?"
            " WHERE r.end_time > ? AND r.end_time <= ?"
            " ORDER BY b.interval, b.open_time",
            (number, moved_ms, until_ms),
        ).rowcount
        self._connection.execute(
            "UPDATE symbols SET folded_until = ? WHERE id = ?", (until_ms, number)
        )
        self.until[number] = until_ms
        return rows

    def _clear_moved(self) -> None:
        """Delete recent bars that every symbol has moved."""
        until_ms = min(self.until.values(), default=0)
        execute = self._connection.execute
        gone = execute(
            "SELECT interval, open_time FROM recent_opens WHERE end_time <= ?"
            " ORDER BY open_time LIMIT ?",
            (until_ms, OPENS_CLEARED),
        ).fetchall()
        for key in gone:
            execute("DELETE FROM recent_bars WHERE interval = ? AND open_time = ?", key)
            execute("DELETE FROM recent_opens WHERE interval = ? AND open_time = ?", key)
