"""`klagg replay`: recorded trades through the same core as live ones, to bars as csv.

Theory of operation
-------------------
One shard keeps the one symbol. The clock is the trades' own: minute M is ticked when the first
trade at or after M comes, so the trades of a batch are cut at the minutes. A trade of an earlier
minute than the one before it (times go back now and then) restates the sealed minute. Batches come
as columns or as lists of trades (`exchange/archive.py` says when); a minute of few trades is taken
out of the columns one by one.

Rows are wanted in order of their ids. A file whose ids go back is read again and sorted, on disk
(`exchange/sorting.py`). Repeated ids are dropped and counted; ids that are missing are counted and
make the minutes suspect that held or border them, as they do live.

Every minute from the first trade's to the last trade's has a bar. A recording rarely begins with
a minute, so what holds the time before it is suspect: the first minute, and longer bars that opened
earlier. Where the first minute opens a UTC day it is taken to be whole, since the archive's files
begin there. At the end nothing tells of missing trades: the last minute, and longer bars that would
have gone on, are written as they are.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import Final, TextIO

import numpy as np

from klagg_trio.core.bar import Bar, Source, combined_source, newborn
from klagg_trio.core.columns import ID, TIME_MS, Integers, TradeColumns, group
from klagg_trio.core.errors import ConfigurationError, DamagedDataError
from klagg_trio.core.facts import Facts, MinuteSpan
from klagg_trio.core.intervals import DAY_MS, MINUTE, MINUTE_MS, Interval, select
from klagg_trio.core.seed import OpenBar, Seed
from klagg_trio.core.shard import NEVER_MS, Shard
from klagg_trio.core.trade import Trade
from klagg_trio.exchange.archive import Batch, RowCounts, read_batches
from klagg_trio.exchange.sorting import Sorter

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
)

_SYMBOL: Final = re.compile(r"[^\W_]{5,}")
"""What may be a symbol in a file's name: letters of any script and digits, no separators."""

_id: Final = attrgetter("id")
_time_ms: Final = attrgetter("time_ms")

MINUTE_TRADES_MIN: Final = 48
"""Trades in a minute from which on it pays to add them up as columns."""

SPAN_DAYS_MAX: Final = 1_000
"""Between the first trade and the last. One whose time is wrong by years would make bars for each
of their minutes, half a million a year."""


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay read and wrote."""

    symbol: str
    rows: int
    """Rows of the file, the header left out."""
    trades: int
    """Rows that are in bars."""
    duplicates: int
    skipped: int
    """Rows that the archive itself has struck out."""
    gaps: int
    """Jumps of the ids, and how many are missing in them."""
    missing_ids: int
    bars: int
    flat_minutes: int
    suspect_minutes: int
    was_sorted: bool
    """Whether the rows were not in order of their ids."""


@dataclass(slots=True)
class _Order:
    """What was noticed of the ids, in order."""

    last_id: int | None = None
    gaps: int = 0
    missing: int = 0
    repeats: int = 0
    """Dropped before they reached the shard."""
    was_sorted: bool = False


class _IdsGoBack(Exception):
    """The rows are not in order of their ids."""


def run_replay(
    path: Path, *, symbol: str | None, intervals: tuple[str, ...], out: TextIO
) -> ReplayReport:
    """Make bars of these intervals from a file of recorded trades and write them to `out`.

    The symbol is taken from the file's name, or its folder's, where it is not given.
    """
    if symbol is None:
        symbol = symbol_of(path)
    chosen = select(intervals)
    try:
        recording = _replay(path, symbol, chosen, sort=False)
    except _IdsGoBack:
        recording = _replay(path, symbol, chosen, sort=True)
    out.write(",".join(COLUMNS) + "\n")
    out.writelines(recording.lines())
    return recording.report()


def symbol_of(path: Path) -> str:
    """Return the symbol that a file is named after, as in BTCUSDT-aggTrades-2026-10-01.zip."""
    for name in map(_as_utf8, (path.name, path.absolute().parent.name)):
        for word in _SYMBOL.findall(name):
            if word.isupper():
                return str(word)
    raise ConfigurationError(f"the name of {path} does not tell the symbol: give it with --symbol")


def _as_utf8(name: str) -> str:
    """Return a name as it was meant where the locale is none that knows its letters."""
    return os.fsencode(name).decode("utf-8", "replace")


def _replay(path: Path, symbol: str, intervals: tuple[Interval, ...], *, sort: bool) -> Recording:
    """Play a whole file to a fresh shard."""
    counts, order = RowCounts(), _Order(was_sorted=sort)
    recording: Recording | None = None
    batches = read_batches(path, symbol, counts)
    sorter = Sorter() if sort else None
    for batch in _in_order(batches if sorter is None else sorter.sorted(batches), order):
        if recording is None:
            first = batch.part(slice(1)).trades() if isinstance(batch, TradeColumns) else batch
            recording = Recording(first[0], intervals, counts, order)
        recording.play(batch)
    if recording is None:
        raise DamagedDataError(f"{path} holds no trades")
    order.repeats = 0 if sorter is None else sorter.repeats
    recording.finish()
    return recording


class Recording:
    """The bars of one recording, as they come."""

    def __init__(
        self, first: Trade, intervals: tuple[Interval, ...], counts: RowCounts, order: _Order
    ) -> None:
        """Begin at the minute of the first trade."""
        self.symbol = first.symbol
        self._counts = counts
        self._order = order
        self._intervals = intervals
        self._first_ms = MINUTE.floor(first.time_ms)
        self._whole_start = self._first_ms % DAY_MS == 0
        self._shard = Shard(intervals, self._first_ms)
        open_bars = tuple(
            OpenBar(i.name, newborn(open_ms, i.end(open_ms), first.price), 0)
            for i in intervals[1:]
            for open_ms in (i.floor(self._first_ms),)
        )
        # Only the first id of a day can be known to continue what came before.
        next_id = first.id if self._whole_start else None
        self._shard.load(Seed(self.symbol, 0, NEVER_MS, first.price, next_id, None, 0, open_bars))
        live_ms = self._first_ms if self._whole_start else first.time_ms
        self._shard.feed_live([self.symbol], live_ms)
        self._bars: dict[str, dict[int, Bar]] = {interval.name: {} for interval in intervals}
        self._suspects: set[int] = set()
        """Open times. A live shard remembers few spans; here every minute counts."""

    def play(self, batch: Batch) -> None:
        """Apply one batch, ticking before the first trade of each new minute."""
        if isinstance(batch, TradeColumns):
            self._play_columns(batch)
            return
        shard = self._shard
        times = list(accumulate(map(_time_ms, batch), max))
        self._check_span(times[-1])
        start = 0
        while start < len(batch):
            if times[start] >= shard.minute_ms + MINUTE_MS:
                self._take(shard.tick(MINUTE.floor(times[start])))
            end = bisect_left(times, shard.minute_ms + MINUTE_MS, start)
            self._take(shard.apply_trades(batch[start:end]))
            start = end

    def _play_columns(self, columns: TradeColumns) -> None:
        shard = self._shard
        times = np.maximum.accumulate(columns.table[TIME_MS])
        self._check_span(int(times[-1]))
        start = 0
        while start < len(columns):
            if times[start] >= shard.minute_ms + MINUTE_MS:
                self._take(shard.tick(MINUTE.floor(int(times[start]))))
            end = start + int(times[start:].searchsorted(shard.minute_ms + MINUTE_MS))
            part = columns.part(slice(start, end))
            runs = group(part) if len(part) >= MINUTE_TRADES_MIN else None
            self._take(
                shard.apply_trades(part.trades()) if runs is None else shard.apply_runs(runs)
            )
            start = end

    def _check_span(self, time_ms: int) -> None:
        if time_ms - self._first_ms > SPAN_DAYS_MAX * DAY_MS:
            raise DamagedDataError(
                f"a trade at {time_ms} ms lies more than {SPAN_DAYS_MAX} days after the first one, "
                f"at {self._first_ms} ms: is a time damaged? Replay the parts one by one"
            )

    def _take(self, facts: Facts | None) -> None:
        """Keep the bars that one message sealed or changed, and which minutes are suspect."""
        if facts is None:
            return
        for fact in (*facts.sealed_bars(), *facts.restated):
            bar = fact.bar
            self._bars[fact.interval][bar.open_ms] = bar
            if fact.interval == MINUTE.name:
                (self._suspects.add if bar.source == Source.SUSPECT else self._suspects.discard)(
                    bar.open_ms
                )
        for span in facts.doubted:
            self._suspects.update(_minutes(span))
        for span in facts.proven:
            self._suspects.difference_update(_minutes(span))

    def finish(self) -> None:
        """Seal the last minute, add the longer bars that are open, and set every bar's source."""
        self._take(self._shard.tick(self._shard.minute_ms + MINUTE_MS))
        for fact in self._shard.open_bars():
            if fact.bar.open_ms < self._shard.minute_ms:
                self._bars[fact.interval][fact.bar.open_ms] = fact.bar
        suspects = sorted(self._suspects)
        for bars in self._bars.values():
            for open_ms, bar in bars.items():
                nearest = bisect_left(suspects, open_ms)
                suspect = open_ms < self._first_ms or (
                    nearest < len(suspects) and suspects[nearest] < bar.end_ms
                )
                bars[open_ms] = bar.copy()
                bars[open_ms].source = combined_source(bar.count, suspect, official=False)

    def lines(self) -> Iterator[str]:
        """Yield the csv lines, interval by interval, shortest first."""
        for interval, bars in self._bars.items():
            for _, bar in sorted(bars.items()):
                yield _line(self.symbol, interval, bar)

    def report(self) -> ReplayReport:
        """Say what was read and written."""
        trades = self._shard.trades
        minutes = self._bars[MINUTE.name].values()
        return ReplayReport(
            symbol=self.symbol,
            rows=self._counts.rows,
            trades=trades.in_bars + trades.late,
            duplicates=trades.duplicate + self._order.repeats,
            skipped=self._counts.skipped,
            gaps=self._order.gaps,
            missing_ids=self._order.missing,
            bars=sum(map(len, self._bars.values())),
            flat_minutes=sum(not bar.count for bar in minutes),
            suspect_minutes=len(self._suspects),
            was_sorted=self._order.was_sorted,
        )


def _minutes(span: MinuteSpan) -> range:
    return range(span.first_ms, span.last_ms + 1, MINUTE_MS)


def _line(symbol: str, interval: str, bar: Bar) -> str:
    """Return one line of csv: numbers as exact text, never with an exponent."""
    return (
        f"{symbol},{interval},{bar.open_ms},{bar.open:f},{bar.high:f},{bar.low:f},{bar.close:f},"
        f"{bar.volume:f},{bar.end_ms - 1},{bar.quote_volume:f},{bar.count},"
        f"{bar.taker_buy_volume:f},{bar.taker_buy_quote_volume:f},{bar.source.label}\n"
    )


def _in_order(batches: Iterable[Batch], order: _Order) -> Iterator[Batch]:
    """Pass on batches whose ids never go back, and count; raise _IdsGoBack at the first that does.

    Where the ids begin does not tell whether any are missing before them.
    """
    for batch in batches:
        if not len(batch):
            continue
        if isinstance(batch, TradeColumns):
            row = batch.table[ID]
        else:
            row = np.array(list(map(_id, batch)), np.int64)
        if order.last_id is not None:
            _note_steps(np.array([int(row[0]) - order.last_id]), order)
        if len(row) > 1:
            _note_steps(row[1:] - row[:-1], order)
        order.last_id = int(row[-1])
        yield batch


def _note_steps(steps: Integers, order: _Order) -> None:
    if steps.min() < 0:
        raise _IdsGoBack
    if steps.max() > 1:
        jumps = steps[steps > 1]
        order.gaps += len(jumps)
        order.missing += int((jumps - 1).sum())
