"""What was announced: every bar as it was first committed, and what was said of it afterwards.

The writer tells it after each commit (`hear`). It keeps the bars in a temporary SQLite file that
nobody sees, so that a long demo takes no more memory than a short one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from klagg_trio.core.facts import BarFact, Facts, FlatSpan, MinuteSpan

_SCHEMA: Final = """
CREATE TABLE bars (symbol TEXT, interval TEXT, open_ms INTEGER, end_ms INTEGER, source TEXT,
    at_ms INTEGER, open REAL, high REAL, low REAL, close REAL, volume REAL, quote_volume REAL,
    count INTEGER, taker_buy_volume REAL, taker_buy_quote_volume REAL);
CREATE TABLE words (symbol TEXT, first_ms INTEGER, last_ms INTEGER, doubt INTEGER, at_ms INTEGER);
"""

Values = tuple[float, ...]


class AnnouncedBar(NamedTuple):
    """One bar as first committed."""

    symbol: str
    interval: str
    open_ms: int
    end_ms: int
    source: str
    at_ms: int
    """Exchange time of the commit."""
    values: Values
    """Open, high, low, close, volume, quote volume, count, and the taker's two volumes."""


class Word(NamedTuple):
    """Minutes were called suspect at some moment, or called otherwise again."""

    first_ms: int
    last_ms: int
    doubt: bool
    at_ms: int


class Announced:
    """Hears commits, and tells of them later."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        """`now_ms` is the exchange's own time."""
        self._now_ms = now_ms
        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.executescript(_SCHEMA)

    def hear(self, minute_ms: int | None, told: Sequence[Facts]) -> None:
        """Take what one commit made durable."""
        at_ms = self._now_ms()
        execute = self._connection.executemany
        for facts in told:
            if facts.sealed or facts.flats:
                execute(
                    f"INSERT INTO bars VALUES ({','.join('?' * 15)})",
                    [_row(fact, at_ms) for fact in facts.sealed_bars()],
                )
            words = [
                *(_word(span, True, at_ms) for span in facts.doubted),
                *(_word(span, False, at_ms) for span in (*facts.proven, *facts.absent)),
                *(_restated(fact, at_ms) for fact in facts.restated if fact.interval == "1m"),
            ]
            if words:
                execute("INSERT INTO words VALUES (?, ?, ?, ?, ?)", words)

    def close(self) -> None:
        """Forget everything."""
        self._connection.close()

    # -- Reading -------------------------------------------------------------------------------

    def series(self) -> list[tuple[str, str]]:
        """Return every symbol and interval of which a bar was announced."""
        return self._connection.execute(
            "SELECT DISTINCT symbol, interval FROM bars ORDER BY symbol, interval"
        ).fetchall()

    def bars(self, symbol: str, interval: str) -> Iterator[AnnouncedBar]:
        """Return the bars of one series, in order."""
        rows = self._connection.execute(
            "SELECT * FROM bars WHERE symbol = ? AND interval = ? ORDER BY open_ms, rowid",
            (symbol, interval),
        ).fetchall()
        for name, kept, open_ms, end_ms, source, at_ms, *values in rows:
            yield AnnouncedBar(name, kept, open_ms, end_ms, source, at_ms, tuple(values))

    def words(self, symbol: str) -> list[Word]:
        """Return what was said of the minutes of a symbol after they were sealed, in order."""
        rows = self._connection.execute(
            "SELECT first_ms, last_ms, doubt, at_ms FROM words WHERE symbol = ? ORDER BY rowid",
            (symbol,),
        ).fetchall()
        return [
            Word(first_ms, last_ms, bool(doubt), at_ms) for first_ms, last_ms, doubt, at_ms in rows
        ]


def _row(fact: BarFact, at_ms: int) -> tuple[object, ...]:
    bar = fact.bar
    return (
        *(fact.symbol, fact.interval, bar.open_ms, bar.end_ms, bar.source.label, at_ms),
        *(float(bar.open), float(bar.high), float(bar.low), float(bar.close)),
        *(float(bar.volume), float(bar.quote_volume), bar.count),
        *(float(bar.taker_buy_volume), float(bar.taker_buy_quote_volume)),
    )


def _flat_rows(span: FlatSpan, at_ms: int) -> Iterator[tuple[object, ...]]:
    """Return the bars of a stretch without trades; a demo has no longer ones than hours."""
    length_ms, price = (span.end_ms - span.first_ms) // span.size, float(span.price)
    for open_ms in range(span.first_ms, span.end_ms, length_ms):
        yield (
            *(span.symbol, span.interval, open_ms, open_ms + length_ms, span.source.label, at_ms),
            *(price, price, price, price, 0.0, 0.0, 0, 0.0, 0.0),
        )


def _word(span: MinuteSpan, doubt: bool, at_ms: int) -> tuple[str, int, int, bool, int]:
    return span.symbol, span.first_ms, span.last_ms, doubt, at_ms


def _restated(fact: BarFact, at_ms: int) -> tuple[str, int, int, bool, int]:
    open_ms = fact.bar.open_ms
    return fact.symbol, open_ms, open_ms, fact.bar.source.label == "suspect", at_ms
