"""A database that already holds millions of bars, for the parts that need one: made once, kept.

The bars go straight into the table where a backfill puts them, in the order of its key. The first
symbol has a year of minutes; the others share the rest.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.market import CACHE, instruments
from klagg_trio.core.intervals import MINUTE_MS, THREE_DAY_PHASE_MS
from klagg_trio.store.database import NEVER_MS, Database
from klagg_trio.store.schema import INTERVAL_CODES

END_MS = 1_704_067_200_000
"""2024-01-01 00:00 UTC: the history ends here."""

YEAR_MINUTES = 365 * 1_440


@dataclass(frozen=True, slots=True)
class _Contract:
    symbol: str
    onboard_ms: int = 0
    delivery_ms: int = NEVER_MS
    status: str = "TRADING"


def symbols_of(count: int) -> list[str]:
    """Return the names of so many symbols."""
    return [each.symbol for each in instruments(count)]


def make(path: Path, symbols: int, bars: int) -> None:
    """Make a database with so many 1m bars, none of them recent."""
    names = symbols_of(symbols)
    database = Database.open(path)
    database.put_symbols(
        [_Contract(name) for name in names], dict.fromkeys(names, THREE_DAY_PHASE_MS)
    )
    database.close()
    if not bars:
        return
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -200000")
    connection.execute("PRAGMA wal_autocheckpoint = 20000")
    numbers = [row[0] for row in connection.execute("SELECT id FROM symbols ORDER BY id")]
    first = min(YEAR_MINUTES, bars // 4)
    each = (bars - first) // max(1, len(numbers) - 1)
    marks = ", ".join("?" * 15)
    for at, number in enumerate(numbers):
        connection.execute("BEGIN")
        rows = _rows(number, first if at == 0 else each)
        connection.executemany(f"INSERT INTO bars VALUES ({marks})", rows)
        connection.execute("COMMIT")
    connection.execute("UPDATE symbols SET folded_until = ?", (END_MS,))
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('last_tick', ?)", (str(END_MS),))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _rows(number: int, minutes: int) -> Iterator[tuple[object, ...]]:
    draw = random.Random(number)
    price = draw.uniform(0.01, 50_000)
    code = INTERVAL_CODES["1m"]
    for open_ms in range(END_MS - minutes * MINUTE_MS, END_MS, MINUTE_MS):
        volume = round(draw.random() * 5_000, 3)
        close = round(price * (0.999 + 0.002 * draw.random()), 6)
        yield (
            *(number, code, open_ms, open_ms + MINUTE_MS),
            *(price, max(price, close), min(price, close), close),
            *(volume, volume * price, int(volume), volume / 2, volume * price / 2, 0, 0),
        )
        price = close


def big_database(symbols: int, bars: int, name: str = "history") -> Path:
    """Return the folder of such a database, made now if it is not in the cache."""
    folder = CACHE / f"{name}-v2-{symbols}-{bars}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder / "klagg.db", symbols, bars)
        (folder / "ready").touch()
    return folder
