"""`klagg export`: stored bars as csv, parquet or feather, one series after the other.

Reads through a read-only connection, a batch at a time: a database of any size takes little
memory, and a running klagg is not disturbed.
"""

from __future__ import annotations

import csv
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

import click

from klagg_trio.commands.output import OWN_NAMES, whole_file
from klagg_trio.commands.start import (
    DATABASE_NAME,
    intervals_of,
    load_here,
    since_last_tick_ms,
)
from klagg_trio.core.errors import ConfigurationError
from klagg_trio.settings import Settings
from klagg_trio.store.reading import reading

if TYPE_CHECKING:
    import pyarrow

COLUMNS: Final = (
    "symbol",
    "interval",
    "open_time",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "close_time",
    "quote_volume",
    "count",
    "taker_buy_volume",
    "taker_buy_quote_volume",
    "source",
    "revision",
)
"""The columns of the view `klines`, in its order."""

_WHOLE: Final = ("open_time", "close_time", "count", "revision")
_WORDS: Final = ("symbol", "interval", "source")

BATCH_ROWS: Final = 50_000
"""A batch of this many rows is some 10 MB in Python and a well-sized parquet row group."""

Rows = Iterator[list[tuple[object, ...]]]


def run_command(
    flags: Mapping[str, str | None],
    *,
    chosen: str | None,
    kind: str,
    out: str | None,
    since: str | None,
) -> int:
    """Export what is asked for. Returns the exit code."""
    settings = load_here(flags).settings
    intervals = intervals_of(chosen)
    if kind != "csv" and out is None:
        raise click.UsageError(f"{kind} needs a file: --out FILE")
    path = settings.data_dir / DATABASE_NAME
    with reading(path) as connection:
        symbols = _symbols(connection, settings)
        rows = _batches(connection, symbols, intervals, _since_ms(connection, since))
        if out is None:
            _csv_to(sys.stdout, rows)
            return 0
        own = [settings.data_dir / name for name in OWN_NAMES]
        with whole_file(out, apart=own) as part:
            if kind == "csv":
                with part.open("w", encoding="utf-8", newline="") as file:
                    _csv_to(file, rows)
            else:
                _write_arrow(rows, part, kind)
    return 0


def _since_ms(connection: sqlite3.Connection, since: str | None) -> int:
    if since is None:
        return 0
    try:
        return since_last_tick_ms(connection, since)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--since") from error


def _symbols(connection: sqlite3.Connection, settings: Settings) -> Sequence[str]:
    """Return the symbols asked for, or all that are stored."""
    stored = [symbol for (symbol,) in connection.execute("SELECT symbol FROM symbols ORDER BY 1")]
    for symbol in settings.named_symbols:
        if symbol not in stored:
            raise ConfigurationError(
                f"no bars of {symbol!r} are stored in {settings.data_dir}; see: klagg status"
            )
    return settings.named_symbols or stored


def _batches(
    connection: sqlite3.Connection, symbols: Sequence[str], intervals: Sequence[str], since_ms: int
) -> Rows:
    """Yield the rows of every series asked for, by symbol, interval and time."""
    for symbol in symbols:
        for interval in intervals:
            cursor = connection.execute(
                f"SELECT {', '.join(COLUMNS)} FROM klines"
                " WHERE symbol = ? AND interval = ? AND open_time >= ? ORDER BY open_time",
                (symbol, interval, since_ms),
            )
            while batch := cursor.fetchmany(BATCH_ROWS):
                yield batch


def _csv_to(file: TextIO, rows: Rows) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for batch in rows:
        writer.writerows(batch)


def _write_arrow(rows: Rows, out: Path, kind: str) -> None:
    try:
        import pyarrow
        from pyarrow import feather, parquet
    except ImportError as error:
        raise ConfigurationError(
            f"{kind} needs the export extra; run: pip install 'klagg[export]'"
        ) from error
    schema = pyarrow.schema([(name, _arrow_type(pyarrow, name)) for name in COLUMNS])
    batches = (
        pyarrow.RecordBatch.from_arrays(
            [
                pyarrow.array(column, type=schema.field(index).type)
                for index, column in enumerate(zip(*batch, strict=True))
            ],
            schema=schema,
        )
        for batch in rows
    )
    if kind == "parquet":
        with parquet.ParquetWriter(out, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
    else:
        feather.write_feather(pyarrow.Table.from_batches(batches, schema=schema), str(out))


def _arrow_type(pyarrow: pyarrow, name: str) -> pyarrow.DataType:
    if name in _WHOLE:
        return pyarrow.int64()
    return pyarrow.string() if name in _WORDS else pyarrow.float64()
