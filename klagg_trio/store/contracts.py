"""What the files know of one contract: for those who decide whether it is the same one."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from klagg_trio.core.bar import Source
from klagg_trio.core.gaps import Spans
from klagg_trio.core.intervals import MINUTE
from klagg_trio.store.reading import open_reader
from klagg_trio.store.schema import INTERVAL_CODES

SUSPECTS_MAX: Final = 1_440
"""Suspect minutes told of at once; the sweep finds older ones."""


@dataclass(frozen=True, slots=True)
class StoredContract:
    """The contract that has a label now, or had it last. Times are exchange time in ms."""

    symbol: str
    onboard_ms: int
    delivery_ms: int
    three_day_phase_ms: int
    status: str
    end_ms: int | None
    """Where its stored minutes end; None where there are none."""
    close: Decimal | None
    """The close of the last of them."""
    first_ms: int | None = None
    """When its first official kline opens; None while that is not known."""
    suspects: tuple[tuple[int, int], ...] = ()
    """Its newest suspect minutes, as spans of open times."""

    @property
    def ended(self) -> bool:
        """Whether it has been sealed and frozen."""
        return self.status == "ENDED"


def stored_contract(path: Path, symbol: str) -> StoredContract | None:
    """Return what is stored of a symbol; None where nothing is. Runs in the store's thread."""
    connection = open_reader(path)
    try:
        return select_contract(connection, symbol)
    finally:
        connection.close()


def select_contract(connection: sqlite3.Connection, symbol: str) -> StoredContract | None:
    """Return what is stored of a symbol; None where nothing is."""
    row = connection.execute(
        "SELECT onboard_ms, delivery_ms, three_day_phase_ms, status,"
        " CASE WHEN first_known THEN first_ms END FROM symbols WHERE symbol = ?",
        (symbol,),
    ).fetchone()
    if row is None:
        return None
    last = connection.execute(
        "SELECT close_time + 1, close FROM klines WHERE symbol = ? AND interval = ?"
        " ORDER BY open_time DESC LIMIT 1",
        (symbol, MINUTE.name),
    ).fetchone()
    end_ms, close = last or (None, None)
    price = None if close is None else Decimal(repr(close))
    onboard_ms, delivery_ms, phase_ms, status, first_ms = row
    suspects = _suspects(connection, symbol)
    return StoredContract(
        symbol, onboard_ms, delivery_ms, phase_ms, status, end_ms, price, first_ms, suspects
    )


def _suspects(connection: sqlite3.Connection, symbol: str) -> tuple[tuple[int, int], ...]:
    """Return the newest suspect minutes of a contract. Every bar is found by a key."""
    minute = INTERVAL_CODES[MINUTE.name]
    rows = connection.execute(
        f"""
        SELECT b.open_time AS open_time FROM symbols AS s
        CROSS JOIN bars AS b INDEXED BY suspect_bars ON b.symbol = s.id AND b.interval = {minute}
        WHERE s.symbol = :symbol AND b.source = {Source.SUSPECT:d}
        UNION ALL
        SELECT b.open_time FROM symbols AS s
        CROSS JOIN recent_opens AS r ON r.interval = {minute}
        CROSS JOIN recent_bars AS b ON b.open_time = r.open_time AND b.interval = r.interval
            AND b.symbol = s.id AND b.end_time > s.folded_until
        WHERE s.symbol = :symbol AND b.source = {Source.SUSPECT:d}
        ORDER BY open_time DESC LIMIT {SUSPECTS_MAX}
        """,
        {"symbol": symbol},
    )
    spans = Spans()
    for (open_ms,) in rows:
        spans.add(open_ms, open_ms)
    return tuple(spans)
