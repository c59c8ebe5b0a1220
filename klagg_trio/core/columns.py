"""Trades as columns: many at once, exactly, in whole numbers.

Theory of operation
-------------------
A busy market makes thousands of trades a second of the same few hundred symbols, and what most of
them do to their bars is the same. So a burst of trades may come as *columns*: one row of numbers
for ids, one for prices, and so on. Prices and quantities are whole numbers there, in units of the
last decimal of their symbol (`Units`), so sums and products are exact as long as they fit into 63
bits, which is made sure of before anything is added.

- `group` sorts the trades of a burst by symbol and adds up what each symbol's *run* of them adds to
  a bar (`TradeRuns`).
- `PendingMinute` collects, for one shard, what runs have added to the running minute since its bars
  were last brought up to date.

Neither knows which run may be added like that: that the ids go on, that the minute is the running
one. `core/shard` decides it, and takes the trades of any other run one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

PRICE, QUANTITY, ID, FIRST_ID, LAST_ID, TIME_MS, TAKER = range(7)
"""Rows of a table of trades. TAKER is 1 where the taker bought."""

VOLUME, QUOTE_VOLUME, COUNT, TAKER_VOLUME, TAKER_QUOTE_VOLUME = range(5)
"""Rows of a table of sums, with which a table of runs begins. Then it has:"""

HIGH, LOW_NEGATED, CLOSE, LAST, LAST_MS, OPEN, FIRST = range(5, 12)
"""Extremes, so that both are a maximum; what the last trade tells; what the first one tells."""

CONTINUES, WHICH, START, END = range(12, 16)
"""The first id again, or BROKEN; the symbol's index; where the run's trades are in the table."""

BROKEN: Final = -4
"""Instead of the first id of a run in which an id is not the one before it plus 1."""

SUM_MAX: Final = 1 << 61
"""Of one run, and of what may be pending before the next: together they stay below 2^63."""

UNKNOWN: Final = -2
"""The next id of a symbol whose state has not been asked, or may have changed since."""

NEVER: Final = -3
"""The next id of a symbol that no run continues: it is in doubt, or not of this shard."""

_FIRST_TOLD: Final = [PRICE, ID]
_LAST_TOLD: Final = [PRICE, ID, TIME_MS]
_NO_LOW: Final = -((1 << 63) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """What the numbers in columns mean. Made once; other symbols or decimals make another one."""

    symbols: tuple[str, ...]
    """By their index in the columns."""
    price_decimals: Integers
    quantity_decimals: Integers
    index: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", {name: n for n, name in enumerate(self.symbols)})


@dataclass(slots=True)
class ColumnTrade:
    """One trade out of columns, as `core.trade.Trade` wants it."""

    symbol: str
    id: int
    price: Decimal
    quantity: Decimal
    first_id: int
    last_id: int
    time_ms: int
    buyer_is_maker: bool


@dataclass(slots=True, eq=False)
class TradeColumns:
    """Trades in order of arrival, valid each: numbers above zero, no raw ids that go back."""

    units: Units
    which: npt.NDArray[np.int16]
    """The symbol of each trade, as its index in `units`."""
    table: Integers
    """Seven rows, a column for each trade."""

    def __len__(self) -> int:
        return len(self.which)

    def part(self, chosen: slice) -> TradeColumns:
        """Return some of them, without copying any."""
        return TradeColumns(self.units, self.which[chosen], self.table[:, chosen])

    def trades(self) -> list[ColumnTrade]:
        """Return the trades one by one."""
        return _trades(self.units, self.which.tolist(), self.table)


def _trades(units: Units, which: Sequence[int], table: Integers) -> list[ColumnTrade]:
    price_decimals, quantity_decimals = units.price_decimals, units.quantity_decimals
    return [
        ColumnTrade(
            units.symbols[index],
            trade_id,
            _decimal(price, -int(price_decimals[index])),
            _decimal(quantity, -int(quantity_decimals[index])),
            first_id,
            last_id,
            time_ms,
            not taker,
        )
        for index, (price, quantity, trade_id, first_id, last_id, time_ms, taker) in zip(
            which, table.T.tolist(), strict=True
        )
    ]


def _decimal(units: int, exponent: int) -> Decimal:
    """Return a number of units of the last decimal; 0 is the same whatever its decimals."""
    return Decimal(units).scaleb(exponent)


@dataclass(slots=True, eq=False)
class TradeRuns:
    """The trades of a burst by symbol, and what each symbol's run of them adds to a bar."""

    units: Units
    table: Integers
    """All trades, those of one run together and in order of arrival."""
    runs: Integers
    """Sixteen rows, a column for each run. No symbol has two."""
    earliest_ms: int
    """Of all trades of the burst, in these runs or not."""
    latest_ms: int
    bound: float
    """No sum over the burst is larger."""
    trades_count: int
    """How many trades the runs hold."""

    def __len__(self) -> int:
        return len(self.runs[0])

    def all_within(self, open_ms: int, end_ms: int) -> bool:
        """Whether all trades of the burst were made from `open_ms` to before `end_ms`."""
        return open_ms <= self.earliest_ms and self.latest_ms < end_ms

    def within(self, open_ms: int, end_ms: int) -> Booleans:
        """Return for each run whether all of its trades were made in that time."""
        times = self.table[TIME_MS]
        inside = (times >= open_ms) & (times < end_ms)
        return np.array([inside[start:end].all() for start, end in self.runs[START:].T], np.bool_)

    def part(self, chosen: Booleans) -> TradeRuns:
        """Return some of the runs, over the same table."""
        runs = self.runs[:, chosen]
        count: np.int64 = (runs[END] - runs[START]).sum()
        return self._with(runs, int(count))

    def cut(self, start: int, end: int) -> TradeRuns:
        """Return the runs from one to before another."""
        runs = self.runs[:, start:end]
        return self._with(runs, int(runs[END, -1] - runs[START, 0]) if start < end else 0)

    def _with(self, runs: Integers, count: int) -> TradeRuns:
        return TradeRuns(
            *(self.units, self.table, runs, self.earliest_ms, self.latest_ms, self.bound, count)
        )

    def trades_of(self, run: int) -> list[ColumnTrade]:
        """Return the trades of one run, one by one."""
        which, start, end = self.runs[WHICH:, run].tolist()
        return _trades(self.units, [which] * (end - start), self.table[:, start:end])


def group(columns: TradeColumns, rank: npt.NDArray[np.int16] | None = None) -> TradeRuns | None:
    """Sort trades by symbol, in the order of `rank` where it is given, and add each run up.

    Returns None where a sum might not fit: then the trades have to be taken one by one.
    """
    which = columns.which
    order = (which if rank is None else rank[which]).argsort(kind="stable")
    which = which.take(order)
    table = columns.table.take(order, axis=1)
    price, quantity, taker, ids = table[PRICE], table[QUANTITY], table[TAKER], table[ID]
    size = len(which)
    # In floats, since a product itself might overflow; the margin outweighs their rounding. Prices
    # are at least 1, so the volume is no more than the quote volume.
    bound = float(np.dot(price.astype(np.float64), quantity.astype(np.float64)))
    raw_trades = int((table[LAST_ID] - table[FIRST_ID]).max()) + 1
    bound = max(bound, float(raw_trades) * size)
    if bound > SUM_MAX:
        return None
    parts = np.empty((7, size), np.int64)
    parts[VOLUME] = quantity
    np.multiply(price, quantity, out=parts[QUOTE_VOLUME])
    np.subtract(table[LAST_ID], table[FIRST_ID] - 1, out=parts[COUNT])
    np.multiply(parts[:COUNT], taker, out=parts[TAKER_VOLUME:HIGH])
    parts[HIGH] = price
    np.negative(price, out=parts[LOW_NEGATED])
    begins = np.empty(size, np.bool_)
    begins[0] = True
    np.not_equal(which[1:], which[:-1], out=begins[1:])
    starts = begins.nonzero()[0]
    runs = np.empty((16, len(starts)), np.int64)
    runs[START] = starts
    runs[END, :-1] = starts[1:]
    runs[END, -1] = size
    runs[WHICH] = which.take(starts)
    np.add.reduceat(parts[:HIGH], starts, axis=1, out=runs[:HIGH])
    np.maximum.reduceat(parts[HIGH:], starts, axis=1, out=runs[HIGH:CLOSE])
    runs[CLOSE : LAST_MS + 1] = table[_LAST_TOLD].take(runs[END] - 1, axis=1)
    runs[OPEN : FIRST + 1] = table[_FIRST_TOLD].take(starts, axis=1)
    runs[CONTINUES] = runs[FIRST]
    begins[1:] |= ids[1:] == ids[:-1] + 1
    if not begins.all():
        runs[CONTINUES, ~np.logical_and.reduceat(begins, starts)] = BROKEN
    times = table[TIME_MS]
    return TradeRuns(columns.units, table, runs, int(times.min()), int(times.max()), bound, size)


@dataclass(frozen=True, slots=True)
class Parts:
    """A burst, shard by shard."""

    shards: list[TradeRuns]
    strangers: int
    """Trades of symbols that no shard has."""


class ShardSplit:
    """Splits columns of the same units by the shards that keep their symbols."""

    def __init__(self, units: Units, shard_of: Mapping[str, int], shards: int) -> None:
        """Put the symbols in order of their shards, of which there are so many."""
        self.units = units
        self._shards = np.array([shard_of.get(symbol, -1) for symbol in units.symbols], np.int16)
        self._rank = self._shards.argsort(kind="stable").argsort().astype(np.int16)
        self._bounds = np.arange(shards + 1, dtype=np.int16)

    def split(self, columns: TradeColumns) -> Parts | None:
        """Group a burst and split it; None where it cannot be grouped: see `group`."""
        runs = group(columns, self._rank)
        if runs is None:
            return None
        # Those of no shard come first, then those of each shard.
        starts = self._shards[runs.runs[WHICH]].searchsorted(self._bounds).tolist()
        return Parts(
            [runs.cut(start, end) for start, end in pairwise(starts)],
            runs.cut(0, starts[0]).trades_count,
        )


@dataclass(frozen=True, slots=True)
class Addition:
    """What the trades of one symbol since its bar was last up to date add to it."""

    symbol: str
    first_id: int
    last_id: int
    last_ms: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal
    count: int
    taker_buy_volume: Decimal
    taker_buy_quote_volume: Decimal


class PendingMinute:
    """What runs have added to a shard's running minute and no bar shows yet."""

    def __init__(self, units: Units) -> None:
        """Make one for columns of these units, without any trade."""
        size = len(units.symbols)
        self.units = units
        self.next_id = np.full(size, UNKNOWN, np.int64)
        """By symbol: the id that continues, UNKNOWN or NEVER. The shard keeps it true."""
        self._bound = 0.0
        """No sum that is pending is larger."""
        self._table = np.zeros((CONTINUES, size), np.int64)
        """The first twelve rows of a table of runs, a column for each symbol."""
        self._table[LOW_NEGATED] = _NO_LOW

    @property
    def full(self) -> bool:
        """Whether sums may have grown so large that the bars must be brought up to date."""
        return self._bound > SUM_MAX

    def add(self, runs: TradeRuns) -> None:
        """Add runs that continue their symbols' ids within the running minute."""
        added = runs.runs
        which = added[WHICH]
        pending = self._table.take(which, axis=1)
        fresh = pending[COUNT] == 0
        pending[:HIGH] += added[:HIGH]
        np.maximum(pending[HIGH:CLOSE], added[HIGH:CLOSE], out=pending[HIGH:CLOSE])
        pending[CLOSE:OPEN] = added[CLOSE:OPEN]
        np.copyto(pending[OPEN:], added[OPEN:CONTINUES], where=fresh)
        self._table[:, which] = pending
        self.next_id[which] = added[LAST] + 1
        self._bound += runs.bound

    def take(self, symbols: Sequence[str] | None = None) -> Iterator[Addition]:
        """Take out what is pending, of these symbols or of all; forget what their next ids are."""
        table = self._table
        if symbols is None:
            chosen = table[COUNT].nonzero()[0]
            self.next_id.fill(UNKNOWN)
            self._bound = 0.0
        else:
            index = self.units.index
            chosen = np.array([index[each] for each in symbols if each in index], np.int64)
            self.next_id[chosen] = UNKNOWN
            chosen = chosen[table[COUNT, chosen] > 0]
        if not len(chosen):
            return
        taken = table.take(chosen, axis=1)
        table[:, chosen] = 0
        table[LOW_NEGATED, chosen] = _NO_LOW
        yield from self._additions(chosen, taken)

    def _additions(self, chosen: Integers, taken: Integers) -> Iterator[Addition]:
        units = self.units
        for index, price_decimals, quantity_decimals, row in zip(
            chosen.tolist(),
            units.price_decimals[chosen].tolist(),
            units.quantity_decimals[chosen].tolist(),
            taken.T.tolist(),
            strict=True,
        ):
            volume, quote, count, taker, taker_quote, high, low_negated, *told = row
            close, last_id, last_ms, opened, first_id = told
            quote_exponent = -price_decimals - quantity_decimals
            yield Addition(
                units.symbols[index],
                first_id,
                last_id,
                last_ms,
                _decimal(opened, -price_decimals),
                _decimal(high, -price_decimals),
                _decimal(-low_negated, -price_decimals),
                _decimal(close, -price_decimals),
                _decimal(volume, -quantity_decimals),
                _decimal(quote, quote_exponent),
                count,
                _decimal(taker, -quantity_decimals),
                _decimal(taker_quote, quote_exponent),
            )
