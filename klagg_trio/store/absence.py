"""What the exchange itself lacks: minutes of source absent, and when they are asked for again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final

from klagg_trio.core.facts import AbsenceNote
from klagg_trio.core.intervals import MINUTE_MS
from klagg_trio.store.changes import Span

_COLUMNS: Final = "contract, first_ms, last_ms, noticed_ms, asked_ms, askings, final"


def put_absences(
    connection: sqlite3.Connection, ids: dict[str, int], notes: Iterable[AbsenceNote]
) -> None:
    """Keep what is known of some stretches, in place of what was known of them before."""
    for note in notes:
        number = ids.get(note.symbol)
        if number is None or note.first_ms > note.last_ms:
            continue
        clear_absences(connection, number, (note.first_ms, note.last_ms))
        connection.execute(
            f"INSERT INTO absences ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (number, *note[1:6], int(note.final)),
        )


def clear_absences(connection: sqlite3.Connection, number: int, span: Span) -> None:
    """Forget what is noted of these minutes of a contract; what is left of a stretch stays."""
    first_ms, last_ms = span
    met = connection.execute(
        f"SELECT {_COLUMNS} FROM absences WHERE contract = ? AND first_ms <= ? AND last_ms >= ?",
        (number, last_ms, first_ms),
    ).fetchall()
    for _, begin_ms, end_ms, *rest in met:
        connection.execute(
            "DELETE FROM absences WHERE contract = ? AND first_ms = ?", (number, begin_ms)
        )
        for left in ((begin_ms, first_ms - MINUTE_MS), (last_ms + MINUTE_MS, end_ms)):
            if left[0] <= left[1]:
                connection.execute(
                    f"INSERT INTO absences ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (number, *left, *rest),
                )


def contracts_with_absences(connection: sqlite3.Connection) -> set[int]:
    """Return the numbers of the contracts of which any stretch is noted."""
    return {row[0] for row in connection.execute("SELECT DISTINCT contract FROM absences")}
