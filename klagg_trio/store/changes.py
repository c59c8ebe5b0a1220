"""The log of what cannot be told from time: changes in bars before the last tick.

A reader that goes on from (database, generation, tick, number) reads sealed minutes after the tick
by time, and everything else by number from here. So what a tick seals is not logged, and what is
logged is the newest state's whereabouts, not every state between: a span may be named although a
bar or two of it stayed as they were, never the other way round.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final

from klagg_trio.core.intervals import DAY_MS
from klagg_trio.store.reading import Row

RESTATED: Final = "restated"
DOUBTED: Final = "doubted"
ADDED: Final = "added"
DROPPED: Final = "dropped"
LISTED: Final = "listed"
ENDED: Final = "ended"
RESUMED: Final = "resumed"
RENAMED: Final = "renamed"
RENAME_UNDONE: Final = "rename undone"

CHANGES_MAX: Final = 250_000
"""Rows kept: some 20 MB. A reader who is further behind reads anew."""

AGE_MAX_MS: Final = 14 * DAY_MS
"""Rows that are older go, too."""

TRIMMED_TOGETHER: Final = 5_000
"""Rows that one commit clears away for their age, so that it stays short."""

Span = tuple[int, int]
"""First and last open time, both inclusive."""


def spans_of(opens: Iterable[int], length_ms: int) -> list[Span]:
    """Return open times as spans of neighbours."""
    spans: list[Span] = []
    first_ms = last_ms = None
    for open_ms in sorted(opens):
        if first_ms is None or last_ms is None or open_ms > last_ms + length_ms:
            if first_ms is not None and last_ms is not None:
                spans.append((first_ms, last_ms))
            first_ms = open_ms
        last_ms = open_ms
    if first_ms is not None and last_ms is not None:
        spans.append((first_ms, last_ms))
    return spans


class ChangeLog:
    """What one transaction has to say; written as its last act."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Nothing is said yet."""
        self._connection = connection
        self._rows: list[tuple[str, int, int | None, int, int, str]] = []

    def forget(self) -> None:
        """Drop what was said in a transaction that came to nothing."""
        self._rows.clear()

    def add(
        self,
        kind: str,
        contract: int,
        code: int | None,
        first_ms: int,
        last_ms: int,
        text: str = "",
    ) -> None:
        """Say that something changed from the bar at `first_ms` to that at `last_ms`."""
        self._rows.append((kind, contract, code, first_ms, last_ms, text))

    def add_bars(self, kind: str, rows: Iterable[Row]) -> None:
        """Say that these bars changed: one span for neighbours. Rows are those that are stored."""
        last: Row | None = None
        first_ms = 0
        for row in sorted(row[:4] for row in rows):
            if last is None or row[:2] != last[:2] or row[2] > last[3]:
                if last is not None:
                    self.add(kind, last[0], last[1], first_ms, last[2])
                first_ms = row[2]
            last = row
        if last is not None:
            self.add(kind, last[0], last[1], first_ms, last[2])

    def write(self, at_ms: int) -> None:
        """Write what was said, within the transaction it is said of; clear away what is old."""
        if not self._rows:
            return
        execute = self._connection.execute
        self._connection.executemany(
            "INSERT INTO change_log (at_ms, kind, contract, interval, first_ms, last_ms, text)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(at_ms, *row) for row in self._rows],
        )
        self._rows.clear()
        execute(
            "DELETE FROM change_log WHERE number <= (SELECT max(number) FROM change_log) - ?",
            (CHANGES_MAX,),
        )
        execute(
            "DELETE FROM change_log WHERE at_ms BETWEEN 1 AND ?"
            " AND number < (SELECT min(number) FROM change_log) + ?",
            (at_ms - AGE_MAX_MS - 1, TRIMMED_TOGETHER),
        )
