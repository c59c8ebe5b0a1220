"""`klagg verify`: what is wrong with the stored bars, found offline and without trusting anything.

Theory of operation
-------------------
Only the views and the tables that people read are looked at, in one read transaction, so that a
klagg at work on the same database does not disturb. One symbol after the other; of each, the bars
of an interval are streamed in order of time, so that memory does not grow with the database: a
million bars took 4 s and 25 MB, ten million would take 40 s.

- What one bar can be judged by (`CHECKS`) SQLite judges while it reads: a bar that is in order
  costs one comparison here.
- *Continuity*: each bar begins where the one before it ended, up to the last tick, or up to the
  delivery of a symbol that has ended. One gap is none: a ticker may be reused, and then the bars
  before and after it belong to two contracts. So a gap is allowed where what is before it ended by
  the time of the present contract's listing, and what is after it did not. Of contracts before
  the last two nothing is known any more: a gap between those is reported.
- *Merging*: minutes are merged into the bars of each longer interval that is stored, those into
  the next one, and held against what is stored. A longer bar is compared if all of its minutes
  are stored (those from the listing to the delivery, where these fall into it). A suspect one is
  not: it claims nothing, and repair owes it. Nor is an official one with minutes that are not all
  official: an aggregate of trades may straddle a minute (the exchange's own bars do not add up
  with ours then).

A bar that fails a check of its own counts as missing for the merging, not for continuity.
"""

from __future__ import annotations

import datetime
import math
import shlex
import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from klagg_trio.core.errors import BusyError, DamagedDataError, StoreError
from klagg_trio.core.intervals import DAY_MS, INTERVALS, MINUTE, MINUTE_MS, Interval
from klagg_trio.store.reading import LATER, reader_uri

FINDINGS_MAX: Final = 1_000
"""Findings told one by one. Who has more needs no longer list."""

ROWS_TOGETHER: Final = 1_440
"""Rows fetched at a time."""

TOLERANCE: Final = 2.0**-49
"""How far a stored sum may be from the sum of the stored minutes, as a share of it.

All terms are positive, so relative errors do not grow by adding. With u = 2**-53: each minute is
within u of its exact value, so their sum is within u of the exact sum; the stored bar is within u
of that, or of a sum of shortest decimals, which are again within u of the floats; and adding here
rounds once at each of at most nine steps from 1m to 1w (1m, 5m, 15m, 30m, 1h, 2h, 6h, 12h, 1d,
1w), each time by u at most, since `math.fsum` rounds but once. That makes 12 u; this is 16 u, or a
millionth of a dollar in half a billion."""

_NEVER_MS: Final = 1 << 62


class Finding(NamedTuple):
    """One thing that is wrong. `interval` is empty where it concerns no single bar."""

    kind: str
    """One of those in CHECKS; hole, behind, twice; merge, source; more."""
    symbol: str
    interval: str
    open_ms: int
    """Of the bar; of the first missing one for a hole and for what is behind."""
    text: str


class Tally(NamedTuple):
    """What the bars say of themselves."""

    source: str
    bars: int
    revised: int
    """Of these, changed after they were first stored."""


class Check(NamedTuple):
    """What must hold for every bar by itself, in SQL."""

    kind: str
    condition: str
    text: str


CHECKS: Final = (
    Check("calendar", "open_time = {floor}", "no bar of this interval opens then"),
    Check(
        "source",
        "source IN ('trades', 'flat', 'suspect', 'official', 'absent')",
        "there is no such source",
    ),
    Check(
        "prices",
        "0 < low AND low <= open AND low <= close AND open <= high AND close <= high"
        " AND high < 9e999",
        "not 0 < low <= open, close <= high",
    ),
    Check(
        "negative",
        "0 <= volume AND 0 <= quote_volume AND 0 <= count AND 0 <= taker_buy_volume"
        " AND 0 <= taker_buy_quote_volume AND volume < 9e999 AND quote_volume < 9e999",
        "a volume or the count is negative or infinite",
    ),
    Check(
        "taker",
        "taker_buy_volume <= volume AND taker_buy_quote_volume <= quote_volume",
        "takers bought more than was traded",
    ),
    Check(
        "flat",
        "source NOT IN ('flat', 'absent') OR (open = high AND high = low AND low = close"
        " AND volume = 0 AND quote_volume = 0 AND count = 0"
        " AND taker_buy_volume = 0 AND taker_buy_quote_volume = 0)",
        "called flat or absent, but it is not one price without trades",
    ),
    Check(
        "count",
        "source NOT IN ('trades', 'official') OR (count = 0) = (volume = 0)",
        "trades without volume, or volume without trades",
    ),
    Check("close_time", "close_time = {end} - 1", "not the last millisecond before the next bar"),
)
"""Of a bar that breaks several, only the first one is told."""

_OFF_CALENDAR: Final = 0

_FIXED: Final = {
    "floor": "open_time - (open_time - :phase_ms) % :length_ms",
    "end": "open_time + :length_ms",
}
_MONTH: Final = {"floor": "month_floor(open_time)", "end": "month_end(open_time)"}

# Sources by how little they say of their bar: a longer bar is as weak as its weakest minute. What
# the exchange lacks does not count, unless there is nothing else.
_ABSENT, _OFFICIAL, _TRADES, _FLAT, _SUSPECT = range(5)
_SOURCES: Final = ("absent", "official", "trades", "flat", "suspect")
_WEAKNESS: Final = "CASE source {} ELSE 4 END".format(
    " ".join(f"WHEN '{source}' THEN {weakness}" for weakness, source in enumerate(_SOURCES))
)

_VALUES: Final = (
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "count",
    "taker_buy_volume",
    "taker_buy_quote_volume",
)
_PRICES: Final = _VALUES[:4]

Row = tuple[Any, ...]
"""Open time and the nine values; how many minutes are in them, and the open time of the first and
the last of these; weakness; the number of the check that fails, or -1."""

_OPEN_TIME, _COUNT = 0, 1 + _VALUES.index("count")
_MINUTES, _FIRST, _LAST, _WEAK, _FAILED = range(10, 15)

_WHOLE: Final = -1
_LACKING: Final = -2
"""In the place of the check that fails, of a merged bar: the exchange lacks minutes of it."""


def verify(path: Path) -> list[Finding]:
    """Return what is wrong with the bars in a database: all of it, or the first thousand.

    Raises DamagedDataError where there is no database of klagg to look at.
    """
    if not path.exists():
        raise _damaged(path, "it does not exist")
    with _mapped(path), closing(_opened(path)) as connection:
        flaw = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if flaw != "ok":
            raise _damaged(path, f"SQLite finds: {flaw}")
        connection.execute("BEGIN")
        return _found(connection)


def tally(path: Path) -> list[Tally]:
    """Return how many bars there are of each source."""
    with _mapped(path), closing(_opened(path)) as connection:
        rows = connection.execute(
            "SELECT source, count(*), sum(revision > 0) FROM klines GROUP BY source ORDER BY 2 DESC"
        )
        return [Tally(*row) for row in rows]


def _found(connection: sqlite3.Connection) -> list[Finding]:
    found = _Found()
    last_tick = connection.execute(
        "SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'last_tick'"
    ).fetchone()
    last_tick_ms = last_tick[0] if last_tick else None
    listings = connection.execute(
        "SELECT symbol, onboard_ms, delivery_ms, three_day_phase_ms FROM symbols ORDER BY symbol"
    ).fetchall()
    for listing in listings:
        _SymbolCheck(connection, _Listing(*listing), found).run(last_tick_ms)
    return found.all()


@dataclass(slots=True)
class _Found:
    """The findings so far: the first of them, and how many."""

    first: list[Finding] = field(default_factory=list)
    count: int = 0

    def add(self, finding: Finding) -> None:
        self.count += 1
        if self.count <= FINDINGS_MAX:
            self.first.append(finding)

    def all(self) -> list[Finding]:
        """Return the findings; the last one says how many were left out, if any."""
        if self.count <= FINDINGS_MAX:
            return self.first
        text = f"{self.count - FINDINGS_MAX:,} more findings; these are the first {FINDINGS_MAX:,}"
        return [*self.first, Finding("more", "", "", 0, text)]


# -- One symbol ------------------------------------------------------------------------------------


class _Listing(NamedTuple):
    """A row of `symbols`."""

    symbol: str
    onboard_ms: int
    delivery_ms: int
    three_day_phase_ms: int

    @property
    def first_ms(self) -> int:
        """Open time of its first minute."""
        return MINUTE.floor(self.onboard_ms)

    @property
    def end_ms(self) -> int:
        """End of its last minute."""
        return MINUTE.floor(self.delivery_ms + MINUTE_MS - 1)

    def span_within(self, open_ms: int, end_ms: int) -> tuple[int, int]:
        """Return what of a bar's span was traded in. Of an earlier contract's it is all."""
        if open_ms < self.first_ms < end_ms:
            open_ms = self.first_ms
        if open_ms < self.end_ms < end_ms:
            end_ms = self.end_ms
        return open_ms, end_ms


class _SymbolCheck:
    """All bars of one symbol, each interval read once and at the same pace."""

    def __init__(self, connection: sqlite3.Connection, listing: _Listing, found: _Found) -> None:
        """Nothing is read yet."""
        self._connection = connection
        self._listing = listing
        self._found = found

    def run(self, last_tick_ms: int | None) -> None:
        """Read and judge every bar."""
        minutes = self._series(MINUTE)
        longer: list[_Longer] = []
        for interval in list(INTERVALS.values())[1:]:
            if interval.name == "3d":
                interval = interval.with_phase(self._listing.three_day_phase_ms)
            series = self._series(interval)
            if series.is_empty:  # this one is not kept
                continue
            shorter = [MINUTE, *(each.series.interval for each in longer)]
            base = next(each for each in reversed(shorter) if _divides(each, interval))
            longer.append(_Longer(series, base.name))
        for day in minutes.days():
            _merge_up(day, longer, day[-1][_OPEN_TIME] // DAY_MS * DAY_MS + DAY_MS)
        _merge_up([], longer, _NEVER_MS)
        for series in (minutes, *(each.series for each in longer)):
            series.finish(last_tick_ms)

    def _series(self, interval: Interval) -> _Series:
        """Open the sealed bars of one interval; look at the running one."""
        for row in self._rows("open_klines", interval):
            if row[_FAILED] >= 0:
                self._found.add(_failed(row, self._listing.symbol, interval, "running bar: "))
        return _Series(interval, self._listing, self._rows("klines", interval), self._found)

    def _rows(self, view: str, interval: Interval) -> Iterator[Row]:
        grid = _FIXED if interval.length_ms else _MONTH
        conditions = [f"({check.condition.format_map(grid)})" for check in CHECKS]
        failed = " ".join(
            f"WHEN {condition} IS NOT 1 THEN {number}"
            for number, condition in enumerate(conditions)
        )
        cursor = self._connection.execute(
            f"SELECT open_time, {', '.join(_VALUES)}, 1, open_time, open_time, {_WEAKNESS},"
            f" CASE WHEN {' AND '.join(conditions)} THEN -1 {failed} END"
            f" FROM {view} WHERE symbol = :symbol AND interval = :interval ORDER BY open_time",
            {
                "symbol": self._listing.symbol,
                "interval": interval.name,
                "phase_ms": interval.phase_ms,
                "length_ms": interval.length_ms,
            },
        )
        while rows := cursor.fetchmany(ROWS_TOGETHER):
            yield from rows


def _divides(shorter: Interval, longer: Interval) -> bool:
    """Whether every bar of the longer interval is made of whole bars of the shorter one."""
    if not longer.length_ms:
        return DAY_MS % shorter.length_ms == 0
    if not shorter.length_ms:
        return False
    in_phase = (longer.phase_ms - shorter.phase_ms) % shorter.length_ms == 0
    return in_phase and longer.length_ms % shorter.length_ms == 0


def _merge_up(minutes: Sequence[Row], longer: Iterable[_Longer], until_ms: int) -> None:
    """Merge all stored minutes up to `until_ms` into longer bars, and those into longer ones."""
    merged = {MINUTE.name: minutes}
    for each in longer:
        merged[each.series.interval.name] = each.merge(merged[each.base], until_ms)


def _failed(row: Row, symbol: str, interval: Interval, what: str = "") -> Finding:
    check = CHECKS[row[_FAILED]]
    values = ", ".join(f"{name} {row[1 + place]}" for place, name in enumerate(_VALUES))
    text = f"{what}{check.text}: {values}"
    return Finding(check.kind, symbol, interval.name, row[_OPEN_TIME], text)


# -- One interval of a symbol ----------------------------------------------------------------------


class _Series:
    """The sealed bars of one symbol and interval, read once from the oldest to the newest."""

    def __init__(
        self, interval: Interval, listing: _Listing, rows: Iterator[Row], found: _Found
    ) -> None:
        """Read the first bar."""
        self.interval = interval
        self.listing = listing
        self._found = found
        self._next = next(rows, None)
        self._rows = rows
        self._end_ms: int | None = None
        """Where the newest bar so far ended."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left."""
        return self._next is None

    def take(self, last_open_ms: int) -> list[Row]:
        """Read and judge the bars up to that open time; return those that are in order."""
        taken = []
        row = self._next
        while row is not None and row[_OPEN_TIME] <= last_open_ms:
            taken.append(row)
            row = next(self._rows, None)
        self._next = row
        return self._judged(taken)

    def pass_by(self, open_ms: int) -> None:
        """Read and judge the bars that open before that time."""
        while self._next is not None and (next_ms := self._next[_OPEN_TIME]) < open_ms:
            self.take(min(open_ms - 1, next_ms + ROWS_TOGETHER * self.interval.length_ms))

    def days(self) -> Iterator[list[Row]]:
        """Read and judge all bars, day by day; yield those that are in order."""
        while self._next is not None:
            open_ms = self._next[_OPEN_TIME]
            good = self.take(open_ms - open_ms % DAY_MS + DAY_MS - 1)
            if good:
                yield good

    def finish(self, last_tick_ms: int | None) -> None:
        """Judge the rest, and whether the bars go as far as they have to."""
        self.pass_by(_NEVER_MS)
        if last_tick_ms is None or self._end_ms is None or self._end_ms <= self.listing.first_ms:
            return  # no clock has run yet, or all this is an earlier contract's
        if self.listing.end_ms <= last_tick_ms:
            end_ms = self.interval.end(self.interval.floor(self.listing.end_ms - 1))
            # It may not be frozen yet, if ever: the date is a hint, and its bars go on.
            end_ms = min(end_ms, self.interval.floor(last_tick_ms))
            until = f"it was delivered at {_utc(self.listing.delivery_ms)}"
        else:
            end_ms = self.interval.floor(last_tick_ms)
            until = f"the last tick was {_utc(last_tick_ms)}"
        if self._end_ms < end_ms:
            self.report("behind", self._end_ms, f"bars end at {_utc(self._end_ms)}, {until}")

    def report(self, kind: str, open_ms: int, text: str) -> None:
        """Add a finding."""
        self._found.add(Finding(kind, self.listing.symbol, self.interval.name, open_ms, text))

    def _judged(self, rows: list[Row]) -> list[Row]:
        """Look for failed checks and holes; return the bars that are in order."""
        if not rows:
            return rows
        opens = [row[_OPEN_TIME] for row in rows]
        failed = [row[_FAILED] for row in rows]
        if max(failed) < 0:
            self._continue(opens)
            return rows
        for row in rows:
            if row[_FAILED] >= 0:
                self._found.add(_failed(row, self.listing.symbol, self.interval))
        self._continue(
            [at for at, check in zip(opens, failed, strict=True) if check != _OFF_CALENDAR]
        )
        return [row for row in rows if row[_FAILED] < 0]

    def _continue(self, opens: Sequence[int]) -> None:
        """Report where bars, which are on the calendar, do not follow each other."""
        length_ms = self.interval.length_ms
        if opens and length_ms and self._end_ms is not None:
            expected = range(self._end_ms, self._end_ms + len(opens) * length_ms, length_ms)
            if opens == list(expected):
                self._end_ms = expected.stop
                return
        for open_ms in opens:
            if self._end_ms is not None and open_ms != self._end_ms:
                self._break(self._end_ms, open_ms)
            self._end_ms = self.interval.end(open_ms)

    def _break(self, end_ms: int, open_ms: int) -> None:
        """Report a hole, unless it lies between two contracts of the same name."""
        if open_ms < end_ms:
            self.report("twice", open_ms, "there are two bars of that time")
        elif not end_ms <= self.listing.first_ms < self.interval.end(open_ms):
            self.report("hole", end_ms, f"no bars from {_utc(end_ms)} to {_utc(open_ms)}")


class _Longer:
    """The stored bars of a longer interval, held against what the minutes give."""

    def __init__(self, series: _Series, base: str) -> None:
        """`base` is the interval that these bars are merged from here."""
        self.series = series
        self.base = base
        self._pending: list[Row] = []
        """Parts of the bar that is not whole yet."""

    def merge(self, parts: Sequence[Row], until_ms: int) -> list[Row]:
        """Merge parts into all bars that end by `until_ms`; compare and return them."""
        pending = [*self._pending, *parts]
        if not pending:
            return []
        interval = self.series.interval
        columns = list(zip(*pending, strict=True))
        opens = columns[_OPEN_TIME]
        merged = []
        first = 0
        while first < len(opens):
            open_ms = interval.floor(opens[first])
            end_ms = interval.end(open_ms)
            if end_ms > until_ms:
                break
            after = bisect_left(opens, end_ms, first)
            merged.append(_merged(columns, first, after, open_ms))
            first = after
        self._pending = pending[first:]
        self._compare(merged)
        return merged

    def _compare(self, merged: Sequence[Row]) -> None:
        if not merged:
            return
        self.series.pass_by(merged[0][_OPEN_TIME])
        by_time = {bar[_OPEN_TIME]: bar for bar in merged}
        for stored in self.series.take(merged[-1][_OPEN_TIME]):
            bar = by_time.get(stored[_OPEN_TIME])
            if bar is not None and self._is_whole(bar):
                self._compare_one(stored, bar)

    def _is_whole(self, bar: Row) -> bool:
        """Whether all of its minutes are stored, and none of another contract's."""
        open_ms = bar[_OPEN_TIME]
        end_ms = self.series.interval.end(open_ms)
        first_ms, end_ms = self.series.listing.span_within(open_ms, end_ms)
        minutes = (end_ms - first_ms) // MINUTE_MS
        return bar[_MINUTES : _LAST + 1] == (minutes, first_ms, end_ms - MINUTE_MS)

    def _compare_one(self, stored: Row, merged: Row) -> None:
        weak, weakest = stored[_WEAK], merged[_WEAK]
        if weak == _SUSPECT or (weak == _OFFICIAL and weakest != _OFFICIAL):
            return
        if merged[_FAILED] == _LACKING and stored[_COUNT] > merged[_COUNT]:
            return  # the exchange has no klines of some minutes; its longer ones had their trades
        if weakest in (_TRADES, _FLAT):
            weakest = _TRADES if merged[_COUNT] else _FLAT
        if weak not in (_OFFICIAL, weakest):
            text = f"called {_SOURCES[weak]}, its minutes make it {_SOURCES[weakest]}"
            self.series.report("source", stored[_OPEN_TIME], text)
        differences = _differences(stored, merged)
        if differences:
            self.series.report("merge", stored[_OPEN_TIME], "; ".join(differences))


def _merged(columns: Sequence[Row], first: int, after: int, open_ms: int) -> Row:
    """Return the bar of the parts from `first` to before `after`.

    Without trades its prices are the range of what its flat parts are at: after a repair they need
    not all be at the same price.
    """
    _, opens, highs, lows, closes, *sums, minutes, firsts, lasts, weakness, failed = columns
    volumes, quote_volumes, counts, taker_volumes, taker_quote_volumes = sums
    count = sum(counts[first:after])
    if count and 0 in counts[first:after]:
        traded = [place for place in range(first, after) if counts[place]]
        high = max(highs[place] for place in traded)
        low = min(lows[place] for place in traded)
        prices = (opens[traded[0]], high, low, closes[traded[-1]])
    else:
        prices = (
            opens[first],
            max(highs[first:after]),
            min(lows[first:after]),
            closes[after - 1],
        )
    return (
        open_ms,
        *prices,
        math.fsum(volumes[first:after]),
        math.fsum(quote_volumes[first:after]),
        count,
        math.fsum(taker_volumes[first:after]),
        math.fsum(taker_quote_volumes[first:after]),
        sum(minutes[first:after]),
        firsts[first],
        lasts[after - 1],
        max(weakness[first:after]),
        _LACKING if _ABSENT in weakness[first:after] or _LACKING in failed[first:after] else _WHOLE,
    )


def _differences(stored: Row, merged: Row) -> list[str]:
    """Say where a stored bar differs from what its minutes give."""
    if stored[1:_MINUTES] == merged[1:_MINUTES]:
        return []
    differences = []
    flat = not merged[_COUNT]
    for name, has, gives in zip(_VALUES, stored[1:], merged[1:], strict=False):
        if name in _PRICES:
            same = merged[3] <= has <= merged[2] if flat else has == gives
        elif name == "count":
            same = has == gives
        else:
            same = abs(has - gives) <= TOLERANCE * gives
        if not same:
            differences.append(f"{name} {has}, its minutes give {gives}")
    return differences


# -- The file --------------------------------------------------------------------------------------


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(reader_uri(path), uri=True, isolation_level=None)
    connection.execute("PRAGMA query_only = ON")
    month = INTERVALS["1M"]
    connection.create_function("month_floor", 1, month.floor, deterministic=True)
    connection.create_function("month_end", 1, month.end, deterministic=True)
    return connection


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:  # a damaged name of a column, in SQLite's own error
        raise _damaged(path, "it holds text that is none") from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise BusyError(f"another program holds {path} for writing{LATER}") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
            raise _damaged(path, str(error)) from error
        raise StoreError(f"cannot read the database {path}: {error}; mend that first") from error


def _damaged(path: Path, flaw: str) -> DamagedDataError:
    folder = shlex.quote(str(path.parent))
    aside = "move it away, then " if path.exists() else ""
    return DamagedDataError(
        f"no usable database in {path}: {' '.join(flaw.split())}; {aside}run: "
        f"klagg backfill --data-dir {folder}"
    )


def _utc(at_ms: int) -> str:
    try:
        at = datetime.datetime.fromtimestamp(at_ms / 1_000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{at_ms} ms"
    return f"{at:%Y-%m-%d %H:%M} UTC"
