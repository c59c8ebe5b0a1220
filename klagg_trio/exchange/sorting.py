"""Recorded trades in order of their ids, however many there are and in whatever order they come.

Theory of operation
-------------------
Trades are gathered until there are `RUN_ROWS`, sorted, and written to a temporary file as one
*run*: a table of whole numbers, 56 bytes a trade. Of each run every `MARK_EVERY`-th id is kept in
memory. Those marks, sorted, cut the ids into *slices* of some `SLICE_ROWS` trades; of each slice
every run's part is read, and the parts are sorted together. So memory holds a run or a slice, and
the marks, for any number of trades.

The file has no name, so nothing of it is left, however the program ends.

Rows that are the same as another one of their run, number by number, are dropped and counted: a
file that repeats one row for ever costs no memory either. Trades with numbers too long for a table
wait in memory, `ODD_MAX` of them at most.
"""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from operator import attrgetter
from typing import IO, Final, cast

import numpy as np

from klagg_trio.core.columns import (
    ID,
    PRICE,
    QUANTITY,
    TIME_MS,
    Integers,
    TradeColumns,
    Units,
)
from klagg_trio.core.errors import DamagedDataError, StoreError
from klagg_trio.core.trade import Trade
from klagg_trio.exchange.archive import Batch

RUN_ROWS: Final = 1 << 19
SLICE_ROWS: Final = 1 << 18
MARK_EVERY: Final = 1 << 10

ODD_MAX: Final = 200_000

NUMBER_MAX: Final = 10**16
"""Of a price or quantity in a table, as `digits.py` reads them."""

ROWS: Final = 7

_id = attrgetter("id")


@dataclass(slots=True)
class _Run:
    """Sorted trades in the file."""

    offset: int
    size: int
    decimals: tuple[int, int]
    marks: list[int]
    """Every `MARK_EVERY`-th id."""
    done: int = 0
    """Trades that slices have taken."""


class Sorter:
    """Takes the batches of one symbol in any order, gives them in order of ids."""

    def __init__(self) -> None:
        """Make the file, which has no name."""
        self.repeats = 0
        """Rows that were the same as another one in every number."""
        self._runs: list[_Run] = []
        self._odd: list[Trade] = []
        self._waiting: list[TradeColumns] = []
        self._waiting_rows = 0
        self._symbol = ""
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _no_room(error) from error

    def sorted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the trades of all batches in order of their ids."""
        with self._file:
            try:
                for batch in batches:
                    self._take(batch)
                self._write_run()
            except OSError as error:
                raise _no_room(error) from error
            self._odd.sort(key=_id)
            yield from self._slices()

    # -- Taking --------------------------------------------------------------------------------

    def _take(self, batch: Batch) -> None:
        if not len(batch):
            return
        if isinstance(batch, TradeColumns):
            columns: TradeColumns | None = batch
            self._symbol = batch.units.symbols[0]
        else:
            self._symbol = batch[0].symbol
            columns = _columns_of(self._symbol, batch)
        if columns is None:
            self._odd += cast("list[Trade]", batch)
            if len(self._odd) > ODD_MAX:
                raise DamagedDataError(
                    f"more than {ODD_MAX:,} trades have very long numbers and are out of order: "
                    "sort the file by its ids first"
                )
            return
        self._waiting.append(columns)
        self._waiting_rows += len(columns)
        if self._waiting_rows >= RUN_ROWS:
            self._write_run()

    def _write_run(self) -> None:
        """Sort what waits and write it to the file."""
        waiting, self._waiting, self._waiting_rows = self._waiting, [], 0
        if not waiting:
            return
        parts = _rescaled([(part.table, _decimals(part.units)) for part in waiting])
        if parts is None:  # too long together: each by itself then
            for part in waiting:
                self._write(part.table, _decimals(part.units))
            return
        self._write(*parts)

    def _write(self, table: Integers, decimals: tuple[int, int]) -> None:
        table, repeats = _in_order(table)
        self.repeats += repeats
        offset = self._file.seek(0, os.SEEK_END)
        view = memoryview(np.ascontiguousarray(table).tobytes())
        while view:
            view = view[self._file.write(view) :]
        marks = table[ID, ::MARK_EVERY].tolist()
        self._runs.append(_Run(offset, table.shape[1], decimals, marks))

    # -- Giving --------------------------------------------------------------------------------

    def _slices(self) -> Iterator[Batch]:
        marks = sorted(mark for run in self._runs for mark in run.marks)
        cuts = sorted(set(marks[:: max(1, SLICE_ROWS // MARK_EVERY)][1:]))
        odd_done = 0
        for before in (*cuts, None):
            odd_end = len(self._odd)
            if before is not None:
                odd_end = bisect_left(self._odd, before, odd_done, key=_id)
            odd, odd_done = self._odd[odd_done:odd_end], odd_end
            parts = [
                (table, run.decimals)
                for run in self._runs
                if (table := self._next_of(run, before)).shape[1]
            ]
            yield from self._merged(parts, odd)

    def _merged(
        self, parts: list[tuple[Integers, tuple[int, int]]], odd: list[Trade]
    ) -> Iterator[Batch]:
        together = _rescaled(parts) if parts else None
        if together is not None:
            table, repeats = _in_order(together[0])
            self.repeats += repeats
            columns = self._as_columns(table, together[1])
            if not odd:
                yield columns
                return
            tables = [columns]
        else:
            tables = [self._as_columns(*part) for part in parts]
        trades = [cast(Trade, trade) for part in tables for trade in part.trades()] + odd
        if trades:
            yield sorted(trades, key=_id)

    def _next_of(self, run: _Run, before: int | None) -> Integers:
        """Return the trades of a run that have not been taken and whose ids are below `before`."""
        first, end = run.done, run.size
        if before is not None:
            # The marks tell the block in which the first id that is not below lies.
            block = max(0, bisect_left(run.marks, before) - 1)
            start = max(first, block * MARK_EVERY)
            stop = min(run.size, (block + 1) * MARK_EVERY)
            if start < stop:
                ids = self._read(run, ID, start, stop)
                end = start + int(ids.searchsorted(before))
            else:
                end = first
        run.done = end
        return np.stack([self._read(run, row, first, end) for row in range(ROWS)])

    def _read(self, run: _Run, row: int, start: int, end: int) -> Integers:
        at = run.offset + 8 * (row * run.size + start)
        data = bytearray()
        while len(data) < 8 * (end - start):
            try:
                part = os.pread(self._file.fileno(), 8 * (end - start) - len(data), at + len(data))
            except OSError as error:
                raise _no_room(error) from error
            assert part, "the file holds what was written"
            data += part
        return np.frombuffer(data, np.int64)

    def _as_columns(self, table: Integers, decimals: tuple[int, int]) -> TradeColumns:
        price, quantity = (np.array([count], np.int64) for count in decimals)
        which = np.zeros(table.shape[1], np.int16)
        return TradeColumns(Units((self._symbol,), price, quantity), which, table)


def _no_room(error: OSError) -> StoreError:
    return StoreError(
        f"the folder for temporary files, {tempfile.gettempdir()}, cannot be used "
        f"({error.strerror}): trades that are out of order are sorted there; make room, or name "
        "another one in TMPDIR"
    )


def _decimals(units: Units) -> tuple[int, int]:
    return int(units.price_decimals[0]), int(units.quantity_decimals[0])


def _rescaled(
    parts: list[tuple[Integers, tuple[int, int]]],
) -> tuple[Integers, tuple[int, int]] | None:
    """Return the tables as one, of one count of decimals; None where a number gets too long."""
    most = max(price for _, (price, _) in parts), max(quantity for _, (_, quantity) in parts)
    scaled = []
    for table, decimals in parts:
        if decimals != most:
            table = table.copy()
            for row, more in ((PRICE, most[0] - decimals[0]), (QUANTITY, most[1] - decimals[1])):
                factor = 10**more
                if int(table[row].max()) * factor >= NUMBER_MAX:
                    return None
                table[row] *= factor
        scaled.append(table)
    return np.concatenate(scaled, axis=1), most


def _in_order(table: Integers) -> tuple[Integers, int]:
    """Return a table in order of ids, without rows that are the same, and how many those were.

    Trades of one id that are not the same stay as they came.
    """
    order = np.lexsort(table[[PRICE, QUANTITY, TIME_MS, ID]])
    table = table.take(order, axis=1)
    same = (table[:, 1:] == table[:, :-1]).all(axis=0)
    if not same.any():
        return table, 0
    return table[:, np.append(True, ~same)], int(same.sum())


def _columns_of(symbol: str, trades: list[Trade]) -> TradeColumns | None:
    """Return trades as columns; None where a number is too long for them."""
    prices = _whole([trade.price for trade in trades])
    quantities = _whole([trade.quantity for trade in trades])
    if prices is None or quantities is None:
        return None
    table = np.array(
        [
            *(prices[0], quantities[0]),
            *([getattr(trade, name) for trade in trades] for name in ("id", "first_id", "last_id")),
            [trade.time_ms for trade in trades],
            [not trade.buyer_is_maker for trade in trades],
        ],
        np.int64,
    )
    decimals = (np.array([each[1]], np.int64) for each in (prices, quantities))
    return TradeColumns(Units((symbol,), *decimals), np.zeros(len(trades), np.int16), table)


def _whole(numbers: list[Decimal]) -> tuple[list[int], int] | None:
    """Return numbers in units of the last decimal of any, and how many decimals that is."""
    decimals = max(max(0, -cast(int, number.as_tuple().exponent)) for number in numbers)
    units = [int(number.scaleb(decimals)) for number in numbers]
    if decimals >= 16 or max(units) >= NUMBER_MAX:
        return None
    return units, decimals
