"""The statements that store bars, and the rows that they take."""

from __future__ import annotations

from typing import Final

from klagg_trio.core.bar import Bar, Source
from klagg_trio.store.reading import Row
from klagg_trio.store.schema import VALUE_COLUMNS

_KEY: Final = "symbol, interval, open_time"
COLUMNS: Final = (*_KEY.split(", "), "end_time", *VALUE_COLUMNS, "source")
_MARKS: Final = ", ".join("?" * len(COLUMNS))
_UPDATED: Final = ("end_time", *VALUE_COLUMNS, "source")
_SET: Final = ", ".join(f"{name} = excluded.{name}" for name in _UPDATED)


def _insert(table: str, condition: str) -> str:
    """Return the statement that stores a bar, replacing a stored one on `condition`."""
    return (
        f"INSERT INTO {table} ({', '.join(COLUMNS)}, revision) VALUES ({_MARKS}, 0)"
        f" ON CONFLICT DO UPDATE SET {_SET}, revision = {table}.revision + 1 WHERE {condition}"
    )


def _changed(table: str) -> str:
    ours = ", ".join(f"{table}.{name}" for name in _UPDATED)
    theirs = ", ".join(f"excluded.{name}" for name in _UPDATED)
    return f"({ours}) IS NOT ({theirs})"


TABLES: Final = ("bars", "recent_bars")
_BETTER: Final = {
    t: f"{t}.source = {Source.SUSPECT:d} AND excluded.source <> {Source.SUSPECT:d}" for t in TABLES
}
SEAL: Final = {t: _insert(t, _BETTER[t]) for t in TABLES}
SEAL_MANY: Final = {
    t: (
        f"INSERT INTO {t} ({', '.join(COLUMNS)}, revision)",
        f"ON CONFLICT DO UPDATE SET {_SET}, revision = {t}.revision + 1 WHERE {_BETTER[t]}",
    )
    for t in TABLES
}
"""The same around a SELECT."""
RESTATE: Final = {
    t: _insert(
        t,
        f"({t}.source <> {Source.OFFICIAL:d} OR excluded.source = {Source.OFFICIAL:d})"
        f" AND {_changed(t)}",
    )
    for t in TABLES
}
OPEN: Final = (
    f"INSERT INTO open_bars ({', '.join(COLUMNS)}, merged_until) VALUES ({_MARKS}, ?)"
    f" ON CONFLICT DO UPDATE SET open_time = excluded.open_time, {_SET},"
    " merged_until = excluded.merged_until"
)
BORN: Final = (
    f"INSERT OR REPLACE INTO open_bars ({', '.join(COLUMNS)}, merged_until)"
    " SELECT symbol, ?, open_time, ?, open, open, open, open, 0, 0, 0, 0, 0,"
    f" {Source.FLAT:d}, open_time FROM open_bars"
    " WHERE interval = ? AND open_time = ? AND symbol IN (SELECT value FROM json_each(?))"
)
DOUBT: Final = (
    f"source = {Source.SUSPECT:d}",
    f"source IN ({Source.TRADES:d}, {Source.FLAT:d})",
)
DOUBT_LONGER: Final = (
    DOUBT[0],
    f"source IN ({Source.TRADES:d}, {Source.FLAT:d}, {Source.ABSENT:d})",
)
LACK: Final = (
    "open = :price, high = :price, low = :price, close = :price, volume = 0, quote_volume = 0,"
    f" count = 0, taker_buy_volume = 0, taker_buy_quote_volume = 0, source = {Source.ABSENT:d}",
    # Neither what the exchange served nor what we can vouch for gives way to what it lacks.
    f"(source = {Source.SUSPECT:d} OR (source = {Source.ABSENT:d} AND close <> :price))",
)
PROVE: Final = (
    f"source = CASE WHEN count > 0 THEN {Source.TRADES:d} ELSE {Source.FLAT:d} END",
    f"source = {Source.SUSPECT:d}",
)


def row_of(number: int, code: int, bar: Bar) -> Row:
    """Return a bar as it is stored: the float64 nearest to each exact value."""
    open_ = float(bar.open)
    if bar.count:
        return (
            number,
            code,
            bar.open_ms,
            bar.end_ms,
            open_,
            float(bar.high),
            float(bar.low),
            float(bar.close),
            float(bar.volume),
            float(bar.quote_volume),
            bar.count,
            float(bar.taker_buy_volume),
            float(bar.taker_buy_quote_volume),
            bar.source,
        )
    return (
        number,
        code,
        bar.open_ms,
        bar.end_ms,
        open_,
        open_,
        open_,
        open_,
        0.0,
        0.0,
        0,
        0.0,
        0.0,
        bar.source,
    )
