"""The one connection that writes: what a tick, a repair and a backfill make durable.

Theory of operation
-------------------
Every public method that writes is one transaction, committed with one fsync (WAL, synchronous =
FULL). All methods are synchronous; the caller runs them one at a time, in a thread of its choice.
A method that raises has changed nothing, so that it can be called again with the same arguments.

Where a bar lies follows from its end alone: up to the symbol's `folded_until` in `bars`, later in
`recent_bars` (see `schema`). What may replace what:

- a *sealed* bar replaces nothing but a stored suspect one, and only if it is better itself;
- a *restated* bar replaces anything, except that an official bar only gives way to an official one.

Each replacement adds 1 to the bar's revision; writing the same again does not.

A shard restates the longer bars that it holds. Longer bars that are older are restated here, in the
same transaction as their minutes, from the stored minutes. A stored float gives its decimal back as
long as that has no more than 15 digits. Where a minute is missing, has more digits, or the bar is
longer than a day, the bar becomes suspect instead: repair then asks for the official one.
"""

from __future__ import annotations

import datetime
import heapq
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Final, Protocol

from klagg_trio.core.bar import Bar, Source, combined_source, merge
from klagg_trio.core.errors import DamagedDataError, StoreError
from klagg_trio.core.facts import (
    BarFact,
    Births,
    Event,
    Facts,
    Listing,
    MinuteSpan,
    RunningBar,
)
from klagg_trio.core.intervals import (
    DAY_MS,
    INTERVALS,
    MINUTE,
    MINUTE_MS,
    THREE_DAY_PHASE_MS,
    Interval,
)
from klagg_trio.store.reading import mapped
from klagg_trio.store.schema import INTERVAL_CODES, VALUE_COLUMNS, migrate

EVENTS_MAX: Final = 100_000
"""Events kept: months of a normal life, days of a very bad one, some 10 MB."""

FOLD_TURN: Final = 480
"""Calls of `fold` until every symbol had its turn. One a minute: recent bars go back eight hours.
The longer the turn, the less is written in all, and the more a reader looks up one by one."""

OPENS_CLEARED: Final = 50
"""Opening times cleared away by one `fold`, so that catching up after an outage stays short."""

WAL_BYTES_MAX: Final = 64 * 2**20
"""A backfill checkpoints when the write-ahead log is larger than this."""

BUSY_TIMEOUT_MS: Final = 5_000
"""SQLite waits this long for another program's lock; then the writer is told."""

OPEN_TIMEOUT_MS: Final = 1_000
"""The same while the database is opened, where a signal has to wait as long."""

CACHE_KIB: Final = 16_384

FLOAT_DIGITS: Final = 15
"""Every decimal of up to 15 digits survives the way through a float64 (DBL_DIG of C)."""

REPLACED_MARK: Final = "@"
"""Between the ticker of a contract whose ticker was reused, and the date of its listing."""

NEVER_MS: Final = 4_133_404_800_000
"""2100-12-25, what the exchange gives as the delivery time of a perpetual contract."""

Row = tuple[Any, ...]

_KEY: Final = "symbol, interval, open_time"
_COLUMNS: Final = (*_KEY.split(", "), "end_time", *VALUE_COLUMNS, "source")
_MARKS: Final = ", ".join("?" * len(_COLUMNS))
_UPDATED: Final = ("end_time", *VALUE_COLUMNS, "source")
_SET: Final = ", ".join(f"{name} = excluded.{name}" for name in _UPDATED)


def _insert(table: str, condition: str) -> str:
    """Return the statement that stores a bar, replacing a stored one on `condition`."""
    return (
        f"INSERT INTO {table} ({', '.join(_COLUMNS)}, revision) VALUES ({_MARKS}, 0)"
        f" ON CONFLICT DO UPDATE SET {_SET}, revision = {table}.revision + 1 WHERE {condition}"
    )


def _changed(table: str) -> str:
    ours = ", ".join(f"{table}.{name}" for name in _UPDATED)
    theirs = ", ".join(f"excluded.{name}" for name in _UPDATED)
    return f"({ours}) IS NOT ({theirs})"


_TABLES: Final = ("bars", "recent_bars")
_SEAL: Final = {
    t: _insert(t, f"{t}.source = {Source.SUSPECT:d} AND excluded.source <> {Source.SUSPECT:d}")
    for t in _TABLES
}
_RESTATE: Final = {
    t: _insert(
        t,
        f"({t}.source <> {Source.OFFICIAL:d} OR excluded.source = {Source.OFFICIAL:d})"
        f" AND {_changed(t)}",
    )
    for t in _TABLES
}
_OPEN: Final = (
    f"INSERT INTO open_bars ({', '.join(_COLUMNS)}, merged_until) VALUES ({_MARKS}, ?)"
    f" ON CONFLICT DO UPDATE SET open_time = excluded.open_time, {_SET},"
    " merged_until = excluded.merged_until"
)
_BORN: Final = (
    f"INSERT OR REPLACE INTO open_bars ({', '.join(_COLUMNS)}, merged_until)"
    " SELECT symbol, ?, open_time, ?, open, open, open, open, 0, 0, 0, 0, 0,"
    f" {Source.FLAT:d}, open_time FROM open_bars"
    " WHERE interval = ? AND open_time = ? AND symbol IN (SELECT value FROM json_each(?))"
)
_KEY_OF_RUNNING: Final = itemgetter(1, 0)
_fields: Final = attrgetter("symbol", "interval", "bar", "merged_until_ms")
_DOUBT: Final = (
    f"source = {Source.SUSPECT:d}",
    f"source IN ({Source.TRADES:d}, {Source.FLAT:d})",
)
_PROVE: Final = (
    f"source = CASE WHEN count > 0 THEN {Source.TRADES:d} ELSE {Source.FLAT:d} END",
    f"source = {Source.SUSPECT:d}",
)


class ContractLike(Protocol):
    """A row of exchangeInfo, as far as the store keeps it."""

    @property
    def symbol(self) -> str: ...
    @property
    def onboard_ms(self) -> int: ...
    @property
    def delivery_ms(self) -> int: ...
    @property
    def status(self) -> str: ...


class Database:
    """The read-write connection to one klagg.db. See the module's theory of operation."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Use `Database.open`."""
        self.path = path
        self._connection = connection
        self._ids: dict[str, int] = {}
        self._folded: dict[int, int] = {}
        self._lives: dict[int, Listing] = {}
        self._fold_due = 0.0
        """Symbols to be folded; the fraction waits for the next call."""
        self._running_written: dict[tuple[int, int], tuple[Any, ...]] = {}
        """What the row of a running bar was last written from."""
        self._load_symbols()

    @classmethod
    def open(cls, path: Path) -> Database:
        """Open the database, making or migrating it where needed.

        Raises StoreError where the disk refuses or another program holds the file (BusyError),
        DamagedDataError where the file is not a klagg
        database, or not whole. Such a file is left as it is.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the data directory {path.parent} cannot be made ({error.strerror}); "
                "choose another: --data-dir"
            ) from error
        with mapped(path):
            # The writer calls from a worker thread, one call at a time.
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                connection.execute(f"PRAGMA busy_timeout = {OPEN_TIMEOUT_MS}")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA wal_autocheckpoint = 0")  # `checkpoint` is called
                connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
                connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
                migrate(connection)
                connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
                return cls(path, connection)
            except ValueError as error:
                connection.close()
                raise DamagedDataError(f"{path}: {error}") from error
            except sqlite3.Error:
                connection.close()
                raise

    def close(self) -> None:
        """Bring all into the database file, and let it go."""
        with mapped(self.path):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.close()

    # -- What a run writes ---------------------------------------------------------------------

    def commit(
        self,
        minute_ms: int | None,
        facts: Sequence[Facts],
        running: Iterable[RunningBar] = (),
        births: Iterable[Births] = (),
        meta: Mapping[str, str] | None = None,
    ) -> int:
        """Store facts, in their order, and running bars in one transaction. Returns rows written.

        `births` are running bars too; what is among `running` of the same interval is newer.
        `minute_ms` says that every bar that ends by then is among them, or stored already. `meta`
        are figures for the table of that name.
        """
        with self._transaction():
            rows = sum(self._store(fact) for fact in facts)
            running = list(running)
            rows += self._put_running(x for x in running if x.interval == MINUTE.name)
            rows += self._put_births(births)
            rows += self._put_running(x for x in running if x.interval != MINUTE.name)
            for key, value in (meta or {}).items():
                self._put_meta(key, value)
            if minute_ms is not None:
                self._put_meta("last_tick", minute_ms)
            return rows

    def _store(self, facts: Facts) -> int:
        for symbol in facts.ended:
            self._end(symbol)
        for listing in facts.listings:
            self._put_symbol(listing, "TRADING")
        rows = self._put(_SEAL, facts.sealed)
        rows += self._put(_RESTATE, _last_of_each(facts.restated))
        for span in facts.doubted:
            rows += self._relabel(_DOUBT, span)
        for span in facts.proven:
            rows += self._relabel(_PROVE, span)
        told = {(f.symbol, f.interval, f.bar.open_ms) for f in (*facts.restated, *facts.sealed)}
        for symbol, minutes in _minutes_touched(facts).items():
            rows += self._remake_longer(symbol, minutes, told)
        if facts.events:
            self._put_events(facts.events)
        return rows

    def _put(self, statements: dict[str, str], facts: Iterable[BarFact]) -> int:
        """Store bars, each in the table where it belongs."""
        settled: list[Row] = []
        recent: list[Row] = []
        opens: set[tuple[int, int, int]] = set()
        ids, folded = self._ids, self._folded
        for fact in facts:
            bar = fact.bar
            number = ids.get(fact.symbol)
            if number is None:
                listing = Listing(fact.symbol, 0, NEVER_MS, THREE_DAY_PHASE_MS)
                number = self._put_symbol(listing, "")
            code = INTERVAL_CODES[fact.interval]
            if bar.end_ms > folded[number]:
                recent.append(_row(number, code, bar))
                opens.add((code, bar.open_ms, bar.end_ms))
            else:
                settled.append(_row(number, code, bar))
        execute_many = self._connection.executemany
        if opens:
            execute_many("INSERT OR IGNORE INTO recent_opens VALUES (?, ?, ?)", sorted(opens))
        rows = 0
        for table, some in (("bars", settled), ("recent_bars", recent)):
            if some:
                rows += execute_many(statements[table], some).rowcount
        return rows

    def _relabel(self, change: tuple[str, str], span: MinuteSpan) -> int:
        """Give stored minutes another source; their values stay."""
        number = self._ids.get(span.symbol)
        if number is None:
            return 0
        values, condition = change
        where = {
            "bars": "open_time BETWEEN ? AND ?",
            # The table's key begins with the time: look the few minutes up one by one.
            "recent_bars": "open_time IN (SELECT open_time FROM recent_opens"
            f" WHERE interval = {INTERVAL_CODES[MINUTE.name]} AND open_time BETWEEN ? AND ?)"
            f" AND end_time > {self._folded[number]}",
        }
        return sum(
            self._connection.execute(
                f"UPDATE {table} SET {values}, revision = revision + 1 WHERE symbol = ?"
                f" AND interval = {INTERVAL_CODES[MINUTE.name]} AND {where[table]} AND {condition}",
                (number, span.first_ms, span.last_ms),
            ).rowcount
            for table in _TABLES
        )

    def _put_running(self, bars: Iterable[RunningBar]) -> int:
        """Store the running bars that changed since they were last stored.

        A longer bar that has merged more minutes without trades has not changed: they add nothing.
        """
        rows = []
        written, ids = self._running_written, self._ids
        for symbol, interval, bar, merged_until_ms in map(_fields, bars):
            number = ids.get(symbol)
            if number is None:
                continue  # a symbol that ended while the report was under way
            code = INTERVAL_CODES[interval]
            state: tuple[Any, ...] = (bar.open_ms, bar.source)
            if bar.count or interval == MINUTE.name:
                state += bar.values()
            if written.get((number, code)) != state:
                written[number, code] = state
                rows.append((*_row(number, code, bar), merged_until_ms))
        if rows:
            # In the order of the key, so that neighbours are written one after the other.
            self._connection.executemany(_OPEN, sorted(rows, key=_KEY_OF_RUNNING))
        return len(rows)

    def _put_births(self, births: Iterable[Births]) -> int:
        """Store longer bars that have merged no minute yet.

        The database copies them from their 1m bars by itself: where many intervals begin at once
        they are as many rows as the sealed bars, and would otherwise be made one by one. The price
        is only there to be valid: without trades, that of the minutes is shown.
        """
        together: dict[tuple[str, int, int], list[int]] = {}
        written, minute_code = self._running_written, INTERVAL_CODES[MINUTE.name]
        for birth in births:
            numbers = together.setdefault((birth.interval, birth.open_ms, birth.end_ms), [])
            code = INTERVAL_CODES[birth.interval]
            for symbol in birth.symbols:
                number = self._ids.get(symbol)
                state = None if number is None else written.get((number, minute_code))
                if number is not None and state is not None and state[0] == birth.open_ms:
                    written[number, code] = (birth.open_ms, Source.FLAT)
                    numbers.append(number)
        return sum(
            self._connection.execute(
                _BORN,
                (INTERVAL_CODES[interval], end_ms, minute_code, open_ms, json.dumps(numbers)),
            ).rowcount
            for (interval, open_ms, end_ms), numbers in together.items()
        )

    def _put_events(self, events: Iterable[Event]) -> None:
        execute = self._connection.executemany
        execute("INSERT INTO events (at_ms, kind, symbol, text) VALUES (?, ?, ?, ?)", events)
        self._connection.execute(
            "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", (EVENTS_MAX,)
        )

    def _put_meta(self, key: str, value: object) -> None:
        self._connection.execute(
            "INSERT INTO meta (key, value) VALUES (?, ?)"
            " ON CONFLICT DO UPDATE SET value = excluded.value",
            (key, str(value)),
        )

    # -- Longer bars that no shard holds any more ----------------------------------------------

    def _remake_longer(
        self, symbol: str, minutes: set[int], told: set[tuple[str, str, int]]
    ) -> int:
        """Restate the stored longer bars over some minutes, but those that were told of."""
        remade: list[BarFact] = []
        for interval in INTERVALS.values():
            if interval == MINUTE:
                continue
            if interval.name == "3d":
                interval = interval.with_phase(self._lives[self._ids[symbol]].three_day_phase_ms)
            opens = {interval.floor(minute_ms) for minute_ms in minutes}
            for open_ms, row in self._stored(symbol, interval, min(opens), max(opens)).items():
                if open_ms not in opens or (symbol, interval.name, open_ms) in told:
                    continue
                bar = bar_of(row, interval.end(open_ms))
                if bar.source != Source.OFFICIAL:
                    bar = self._remake(symbol, interval, bar)
                    remade.append(BarFact(symbol, interval.name, bar))
        return self._put(_RESTATE, remade)

    def _remake(self, symbol: str, interval: Interval, bar: Bar) -> Bar:
        """Return the bar made anew from its stored minutes, or itself as suspect."""
        remade = bar.copy()
        remade.source = Source.SUSPECT
        if bar.end_ms - bar.open_ms > DAY_MS:
            return remade
        life = self._lives[self._ids[symbol]]
        first_ms = max(bar.open_ms, MINUTE.floor(life.onboard_ms))
        end_ms = min(bar.end_ms, MINUTE.floor(life.delivery_ms + MINUTE_MS - 1))
        rows = self._stored(symbol, MINUTE, first_ms, end_ms - MINUTE_MS)
        if not rows or len(rows) * MINUTE_MS != end_ms - first_ms:
            return remade
        parts = [bar_of(row, open_ms + MINUTE_MS) for open_ms, row in rows.items()]
        merged = merge(parts, bar.open_ms, bar.end_ms, parts[0].open)
        exact = all(_is_exact(part) for part in parts)
        suspect = not exact or any(part.source == Source.SUSPECT for part in parts)
        official = all(part.source == Source.OFFICIAL for part in parts)
        merged.source = combined_source(merged.count, suspect, official)
        return merged

    def _stored(
        self, symbol: str, interval: Interval, first_ms: int, last_ms: int
    ) -> dict[int, Row]:
        return select_bars(self._connection, symbol, interval.name, first_ms, last_ms)

    # -- Symbols -------------------------------------------------------------------------------

    def _load_symbols(self) -> None:
        """Read what is remembered of the symbols, at the start and after a failed transaction."""
        self._ids.clear()
        self._folded.clear()
        self._lives.clear()
        self._running_written.clear()
        for number, folded_until, *listing in self._connection.execute(
            "SELECT id, folded_until, symbol, onboard_ms, delivery_ms, three_day_phase_ms"
            " FROM symbols"
        ):
            self._ids[listing[0]] = number
            self._folded[number] = folded_until
            self._lives[number] = Listing(*listing)

    def _put_symbol(self, listing: Listing, status: str) -> int:
        """Take up a symbol, or what is new about it. A reused ticker is a new symbol."""
        known = self._ids.get(listing.symbol)
        if known is not None and 0 < self._lives[known].onboard_ms < listing.onboard_ms:
            self._rename(known)
        number: int = self._connection.execute(
            "INSERT INTO symbols (symbol, onboard_ms, delivery_ms, three_day_phase_ms, status)"
            " VALUES (?, ?, ?, ?, ?) ON CONFLICT (symbol) DO UPDATE SET"
            " onboard_ms = excluded.onboard_ms, delivery_ms = excluded.delivery_ms,"
            " three_day_phase_ms = excluded.three_day_phase_ms, status = excluded.status"
            " RETURNING id",
            (*listing[:4], status),
        ).fetchone()[0]
        self._ids[listing.symbol] = number
        self._folded.setdefault(number, 0)
        self._lives[number] = listing
        return number

    def _rename(self, number: int) -> None:
        """Free the ticker of a contract that is gone: its bars stay, under another name.

        What a new contract trades under an old ticker has nothing to do with the old one's prices;
        the exchange too serves the new one's bars only.
        """
        life = self._lives[number]
        self._end(life.symbol)
        name = f"{life.symbol}{REPLACED_MARK}{_date(life.onboard_ms)}"
        self._connection.execute(
            "UPDATE symbols SET symbol = ?, status = 'REPLACED' WHERE id = ?", (name, number)
        )
        del self._ids[life.symbol]
        self._ids[name] = number
        self._lives[number] = life._replace(symbol=name)

    def _end(self, symbol: str) -> None:
        """Note that a symbol has ended: it has no running bars any more."""
        number = self._ids.get(symbol)
        if number is not None:
            execute = self._connection.execute
            execute("UPDATE symbols SET status = 'ENDED' WHERE id = ?", (number,))
            execute("DELETE FROM open_bars WHERE symbol = ?", (number,))
            for key in [key for key in self._running_written if key[0] == number]:
                del self._running_written[key]

    # -- What a backfill writes and reads ------------------------------------------------------

    def put_symbols(self, contracts: Iterable[ContractLike], phases: dict[str, int]) -> None:
        """Take up symbols, or what is new about them; `phases` are their 3d grids in ms."""
        with self._transaction():
            for contract in contracts:
                phase_ms = phases.get(contract.symbol, THREE_DAY_PHASE_MS)
                listing = Listing(
                    contract.symbol, contract.onboard_ms, contract.delivery_ms, phase_ms
                )
                self._put_symbol(listing, contract.status)

    def put_history(self, symbol: str, interval: str, bars: Sequence[Bar]) -> int:
        """Store official bars of the past. Returns rows written; what is the same is not."""
        if not bars:
            return 0
        with self._transaction():
            number = self._ids[symbol]
            # Old bars belong into `bars` at once: nothing of them would be read as recent.
            self._fold_symbol(number, max(bar.end_ms for bar in bars))
            known = self._stored(symbol, INTERVALS[interval], bars[0].open_ms, bars[-1].open_ms)
            rows = self._put(_RESTATE, [BarFact(symbol, interval, bar) for bar in bars])
            if known and interval == MINUTE.name:
                minutes = {bar.open_ms for bar in bars if bar.open_ms in known}
                rows += self._remake_longer(symbol, minutes, set())
        if self._wal_bytes() > WAL_BYTES_MAX:
            self.checkpoint()
        return rows

    def stored_spans(self, symbol: str, interval: str) -> list[tuple[int, int]]:
        """Return the stored bars that are not suspect, as spans from an open time to an end."""
        rows = self._connection.execute(
            "WITH bounds AS (SELECT open_time, close_time + 1 AS end_time, "
            " lag(close_time + 1) OVER (ORDER BY open_time) AS before FROM klines"
            " WHERE symbol = ? AND interval = ? AND source <> 'suspect'),"
            " numbered AS (SELECT open_time, end_time,"
            " sum(before IS NOT open_time) OVER (ORDER BY open_time) AS span FROM bounds)"
            " SELECT min(open_time), max(end_time) FROM numbered GROUP BY span ORDER BY 1",
            (symbol, interval),
        )
        return [(first_ms, end_ms) for first_ms, end_ms in rows]

    def last_tick(self) -> int:
        """Return the minute before which every bar is stored; 0 in a new database."""
        row = self._connection.execute("SELECT value FROM meta WHERE key = 'last_tick'").fetchone()
        return int(row[0]) if row else 0

    # -- Upkeep --------------------------------------------------------------------------------

    def fold(self) -> int:
        """Move the recent bars of a few symbols to where readers want them. Returns rows moved.

        Called once a minute, it brings every symbol's turn every `FOLD_TURN` minutes.
        """
        # The minute sealed last stays: the view of the running bars looks for it there.
        until_ms = self.last_tick() - MINUTE_MS
        self._fold_due += len(self._folded) / FOLD_TURN
        count = int(self._fold_due)
        self._fold_due -= count
        turn = heapq.nsmallest(count, self._folded, key=lambda x: (self._folded[x], x))
        with self._transaction():
            rows = sum(self._fold_symbol(number, until_ms) for number in turn)
            self._clear_folded()
        return rows

    def _fold_symbol(self, number: int, until_ms: int) -> int:
        """Move what ends up to `until_ms` from `recent_bars` to `bars`; nothing is cleared yet."""
        folded_ms = self._folded[number]
        if until_ms <= folded_ms:
            return 0
        columns = ", ".join(f"b.{name}" for name in (*_COLUMNS, "revision"))
        rows = self._connection.execute(
            f"INSERT INTO bars ({', '.join(_COLUMNS)}, revision) SELECT {columns}"
            " FROM recent_opens AS r CROSS JOIN recent_bars AS b ON b.open_time = r.open_time"
            " AND b.interval = r.interval AND b.symbol = ?"
            " WHERE r.end_time > ? AND r.end_time <= ?"
            " ORDER BY b.interval, b.open_time",
            (number, folded_ms, until_ms),
        ).rowcount
        self._connection.execute(
            "UPDATE symbols SET folded_until = ? WHERE id = ?", (until_ms, number)
        )
        self._folded[number] = until_ms
        return rows

    def _clear_folded(self) -> None:
        """Delete recent bars that every symbol has moved."""
        until_ms = min(self._folded.values(), default=0)
        execute = self._connection.execute
        gone = execute(
            "SELECT interval, open_time FROM recent_opens WHERE end_time <= ?"
            " ORDER BY open_time LIMIT ?",
            (until_ms, OPENS_CLEARED),
        ).fetchall()
        for key in gone:
            execute("DELETE FROM recent_bars WHERE interval = ? AND open_time = ?", key)
            execute("DELETE FROM recent_opens WHERE interval = ? AND open_time = ?", key)

    def checkpoint(self) -> None:
        """Bring what readers allow from the write-ahead log into the database file."""
        with mapped(self.path):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _wal_bytes(self) -> int:
        # Only the name is looked at: to open the file would drop SQLite's locks on it.
        try:
            return self.path.with_name(self.path.name + "-wal").stat().st_size
        except OSError:
            return 0

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with mapped(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._load_symbols()
                raise


def _date(at_ms: int) -> str:
    """Return the UTC date and time of a listing, as part of a name."""
    return f"{datetime.datetime.fromtimestamp(at_ms / 1_000, datetime.UTC):%Y%m%dT%H%M}"


def _row(number: int, code: int, bar: Bar) -> Row:
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


def select_bars(
    connection: sqlite3.Connection, symbol: str, interval: str, first_ms: int, last_ms: int
) -> dict[int, Row]:
    """Return the stored bars that open from `first_ms` to `last_ms`, for `bar_of`, by open time."""
    rows = connection.execute(
        f"SELECT open_time, {', '.join(VALUE_COLUMNS)}, source FROM klines"
        " WHERE symbol = ? AND interval = ? AND open_time BETWEEN ? AND ? ORDER BY open_time",
        (symbol, interval, first_ms, last_ms),
    )
    return {row[0]: row for row in rows}


def select_suspects(connection: sqlite3.Connection, limit: int) -> list[tuple[str, str, int, int]]:
    """Return symbol, interval, open time and end of suspect bars, in that order.

    Reads the tables, not the view: `suspect_bars` is a partial index of the few that there are, and
    of the recent bars all have to be looked at.
    """
    return connection.execute(
        f"""
        SELECT s.symbol, i.interval, found.open_time, found.end_time FROM (
            SELECT symbol, interval, open_time, end_time FROM bars
            WHERE source = {Source.SUSPECT:d}
            UNION ALL
            SELECT b.symbol, b.interval, b.open_time, b.end_time FROM recent_bars AS b
            JOIN symbols ON symbols.id = b.symbol AND b.end_time > symbols.folded_until
            WHERE b.source = {Source.SUSPECT:d}
        ) AS found
        JOIN symbols AS s ON s.id = found.symbol AND s.status <> 'REPLACED'
        JOIN intervals AS i ON i.id = found.interval
        ORDER BY 1, found.interval, 3 LIMIT ?
        """,
        (limit,),
    ).fetchall()


def bar_of(row: Row, end_ms: int) -> Bar:
    """Return a stored bar with exact values again, as far as floats tell (see `_is_exact`)."""
    open_ms, *values, source = row
    bar = Bar(open_ms, end_ms, *map(_exact, values))  # type: ignore[arg-type]
    bar.first = bar.last = open_ms
    bar.source = Source[source.upper()]
    return bar


def _exact(value: float) -> Decimal | int:
    return value if isinstance(value, int) else Decimal(repr(value))


def _is_exact(bar: Bar) -> bool:
    """Whether every value has few enough digits to have come through a float unharmed."""
    return all(
        len(value.normalize().as_tuple().digits) <= FLOAT_DIGITS
        for value in bar.values()
        if isinstance(value, Decimal)
    )


def _last_of_each(facts: Sequence[BarFact]) -> Iterable[BarFact]:
    """Return the facts with what is said last of each bar only."""
    return {(fact.symbol, fact.interval, fact.bar.open_ms): fact for fact in facts}.values()


def _minutes_touched(facts: Facts) -> dict[str, set[int]]:
    """Return the stored minutes that facts change, by symbol."""
    touched: dict[str, set[int]] = {}
    for fact in facts.restated:
        if fact.interval == MINUTE.name:
            touched.setdefault(fact.symbol, set()).add(fact.bar.open_ms)
    for span in (*facts.doubted, *facts.proven):
        minutes = range(span.first_ms, span.last_ms + MINUTE_MS, MINUTE_MS)
        touched.setdefault(span.symbol, set()).update(minutes)
    return touched
