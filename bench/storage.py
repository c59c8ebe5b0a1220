"""Part 5: bytes a bar, insert rate, and what readers wait for.

Inserts go through `Database.put_history`, as a backfill does, a thousand bars a call. Reads are of
one symbol's last day and of its year, through the view `klines`: by the sqlite3 module, by pandas
and by polars. WAL growth a minute is in part `tick`.
"""

from __future__ import annotations

import shutil
import statistics
import time
from decimal import Decimal
from functools import partial
from pathlib import Path

from bench.big_database import END_MS, big_database
from bench.market import CACHE, instruments
from bench.measure import Figures, Part, interleaved, median, spread, table
from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.intervals import MINUTE_MS
from klagg_trio.store.database import Database
from klagg_trio.store.reading import open_reader

CALL_BARS = 1_000
QUERY = (
    "SELECT open_time, open, high, low, close, volume, close_time, quote_volume, count,"
    " taker_buy_volume, taker_buy_quote_volume FROM klines WHERE symbol = '{symbol}'"
    " AND interval = '1m' AND open_time >= {first} AND open_time < {end} ORDER BY open_time"
)


def bars_of(first_ms: int, count: int) -> list[Bar]:
    """Return official bars as `decode_klines` would."""
    made = []
    for number in range(count):
        open_ms = first_ms + number * MINUTE_MS
        price = Decimal(60_000 + number % 977) / 10
        volume = Decimal(number % 9_973 + 1) / 1000
        made.append(
            Bar(
                *(
                    open_ms,
                    open_ms + MINUTE_MS,
                    price,
                    price + 1,
                    price - 1,
                    price + Decimal("0.5"),
                ),
                *(volume, volume * price, number % 500 + 1, volume / 2, volume * price / 2),
                source=Source.OFFICIAL,
            )
        )
    return made


def inserts(base: Path, bars: int, symbols: int) -> Figures:
    """Insert so many bars behind what is stored; count bytes and time."""
    folder = CACHE / "storage-now"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    path = folder / "klagg.db"
    before = path.stat().st_size
    database = Database.open(path)
    names = [each.symbol for each in instruments(symbols)]
    each = bars // symbols
    ready = [bars_of(END_MS + at * MINUTE_MS, CALL_BARS) for at in range(0, each, CALL_BARS)]
    started, cpu = time.perf_counter(), time.process_time()
    for symbol in names:
        for some in ready:
            assert database.put_history(symbol, "1m", some) == CALL_BARS
    database.close()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    rows = len(names) * len(ready) * CALL_BARS
    grown = path.stat().st_size - before
    shutil.rmtree(folder)
    return {"per_s": rows / seconds, "cpu_us": cpu / rows * 1e6, "bytes_a_bar": grown / rows}


def by_sqlite(path: Path, query: str) -> int:
    connection = open_reader(path)
    rows = connection.execute(query).fetchall()
    connection.close()
    return len(rows)


def by_pandas(path: Path, query: str) -> int:
    import pandas as pd

    connection = open_reader(path)
    frame = pd.read_sql_query(query, connection)
    connection.close()
    return len(frame)


def by_polars(path: Path, query: str) -> int:
    import polars as pl

    connection = open_reader(path)
    frame = pl.read_database(query, connection, infer_schema_length=None)
    connection.close()
    return len(frame)


def read(reader, path: Path, symbol: str, end_ms: int) -> Figures:
    """Read a day and a year. A first read, not counted, imports what has to be."""
    figures: Figures = {}
    for name, days, repeats in (("day", 1, 9), ("year", 365, 3)):
        query = QUERY.format(symbol=symbol, first=end_ms - days * 86_400_000, end=end_ms)
        reader(path, query + " LIMIT 1")
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            figures[f"{name}_rows"] = reader(path, query)
            times.append((time.perf_counter() - started) * 1e3)
        figures[f"{name}_ms"] = statistics.median(times)
    return figures


def main() -> None:
    part = Part("storage", "bytes a bar, insert rate, reads")
    options = part.options(runs=3)
    million = 20_000 if options.quick else 10_000_000
    count = 20_000 if options.quick else 250_000
    symbols = 10 if options.quick else 50
    empty = big_database(symbols, 0)
    full = big_database(500, million)
    found = interleaved(
        {
            "empty": partial(inserts, empty, count, symbols),
            f"{million:,} bars": partial(inserts, full, count, symbols),
        },
        options.runs,
    )
    part.results["inserts"] = found
    size = (full / "klagg.db").stat().st_size / million
    part.results["bytes_a_bar"] = size
    table(
        f"Inserts through put_history, {count:,} bars of {symbols} symbols",
        ("database", "bars/s", "CPU us/bar", "bytes a bar added"),
        (
            (
                name,
                spread(runs, "per_s"),
                spread(runs, "cpu_us", digits=2),
                spread(runs, "bytes_a_bar", digits=1),
            )
            for name, runs in found.items()
        ),
    )
    part.note(f"bytes a bar, all of a database of {million:,} bars: {size:.1f}")
    symbol = instruments(500)[0].symbol
    path = full / "klagg.db"
    found = interleaved(
        {
            "sqlite3": partial(read, by_sqlite, path, symbol, END_MS),
            "pandas": partial(read, by_pandas, path, symbol, END_MS),
            "polars": partial(read, by_polars, path, symbol, END_MS),
        },
        options.runs,
    )
    part.results["reads"] = found
    table(
        f"One symbol's 1m bars through `klines`, {million:,} bars stored",
        ("reader", "day ms", "rows", "year ms", "rows"),
        (
            (
                name,
                spread(runs, "day_ms", digits=1),
                f"{median(runs, 'day_rows'):,.0f}",
                spread(runs, "year_ms"),
                f"{median(runs, 'year_rows'):,.0f}",
            )
            for name, runs in found.items()
        ),
    )
    part.finish()


if __name__ == "__main__":
    main()
