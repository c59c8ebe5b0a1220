"""Long stretches of flat bars, made by the database itself from what they have in common.

What a week away leaves behind is millions of rows that differ in nothing but their times. As single
rows they would have to be made, held and handed over one by one. As spans they are a statement for
each interval, which runs outside of Python and takes no memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Final

from klagg_trio.core.bar import Source
from klagg_trio.core.facts import FlatSpan
from klagg_trio.core.intervals import INTERVALS
from klagg_trio.store.schema import INTERVAL_CODES
from klagg_trio.store.statements import SEAL_MANY

SYMBOLS_MAX: Final = 2_000
"""Symbols in one statement: it takes three parameters for each, and SQLite 32,766 in all."""

_OPENS: Final = (
    "opens(open_time) AS (SELECT :first_ms UNION ALL"
    " SELECT open_time + :length_ms FROM opens WHERE open_time + :length_ms < :end_ms)"
)


def put_flats(
    connection: sqlite3.Connection,
    spans: Iterable[FlatSpan],
    ids: Mapping[str, int],
    folded: Mapping[int, int],
) -> int:
    """Store the bars of these spans, each in the table where it belongs. Returns rows written.

    `ids` are the numbers of the symbols, `folded` says up to where the bars of each are in `bars`.
    """
    together: dict[tuple[str, int, int, Source], list[tuple[int, float, int]]] = {}
    for symbol, interval, first_ms, end_ms, price, source in spans:
        number = ids[symbol]
        some = together.setdefault((interval, first_ms, end_ms, source), [])
        some.append((number, float(price), folded[number]))
    rows = 0
    for (interval, first_ms, end_ms, source), symbols in sorted(together.items()):
        values = {
            "code": INTERVAL_CODES[interval],
            "length_ms": INTERVALS[interval].length_ms,
            "first_ms": first_ms,
            "end_ms": end_ms,
            "source": source,
        }
        connection.execute(
            f"INSERT OR IGNORE INTO recent_opens WITH RECURSIVE {_OPENS}"
            " SELECT :code, open_time, open_time + :length_ms FROM opens"
            " WHERE open_time + :length_ms > :folded_ms",
            values | {"folded_ms": min(folded_ms for _, _, folded_ms in symbols)},
        )
        symbols.sort()
        for start in range(0, len(symbols), SYMBOLS_MAX):
            rows += _put(connection, symbols[start : start + SYMBOLS_MAX], values)
    return rows


def _put(
    connection: sqlite3.Connection, symbols: list[tuple[int, float, int]], values: dict[str, int]
) -> int:
    """Store one span of several symbols: their numbers, prices, and how far they are folded."""
    marks = ", ".join(f"(:s{i}, :p{i}, :f{i})" for i in range(len(symbols)))
    given: dict[str, int | float] = dict(values)
    for i, (number, price, folded_ms) in enumerate(symbols):
        given |= {f"s{i}": number, f"p{i}": price, f"f{i}": folded_ms}
    some = f"some(symbol, price, folded_until) AS MATERIALIZED (VALUES {marks})"
    rows = 0
    for table, tables, where in (
        # In the order of each table's key.
        ("bars", "some CROSS JOIN opens", "<="),
        ("recent_bars", "opens CROSS JOIN some", ">"),
    ):
        if table == "bars" and all(values["first_ms"] >= each[2] for each in symbols):
            continue
        insert, on_conflict = SEAL_MANY[table]
        rows += connection.execute(
            f"{insert} WITH RECURSIVE {some}, {_OPENS}"
            " SELECT symbol, :code, open_time, open_time + :length_ms, price, price, price, price,"
            " 0.0, 0.0, 0, 0.0, 0.0, :source, 0"
            f" FROM {tables} WHERE open_time + :length_ms {where} folded_until {on_conflict}",
            given,
        ).rowcount
    return rows
