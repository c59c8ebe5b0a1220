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
same transaction as their minutes, from the stored minutes (`remake`).

The parts are elsewhere: `statements` stores a bar, `fold` moves bars, `reading` is for everyone.
"""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Final, Protocol

from klagg_trio.core.bar import Bar, Source
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
from klagg_trio.core.intervals import MINUTE, MINUTE_MS, THREE_DAY_PHASE_MS
from klagg_trio.store.fold import Folding
from klagg_trio.store.reading import Row, mapped, select_bars, stored_spans
from klagg_trio.store.remake import remade_bars
from klagg_trio.store.schema import INTERVAL_CODES, migrate, refuse_foreign
from klagg_trio.store.statements import (
    BORN,
    DOUBT,
    OPEN,
    PROVE,
    RESTATE,
    SEAL,
    TABLES,
    row_of,
)

EVENTS_MAX: Final = 100_000
"""Events kept: months of a normal life, days of a very bad one, some 10 MB."""

WAL_BYTES_MAX: Final = 64 * 2**20
"""A backfill checkpoints when the write-ahead log is larger than this."""

BUSY_TIMEOUT_MS: Final = 5_000
"""SQLite waits this long for another program's lock; then the writer is told."""

OPEN_TIMEOUT_MS: Final = 1_000
"""The same while the database is opened, where a signal has to wait as long."""

CACHE_KIB: Final = 16_384

REPLACED_MARK: Final = "@"
"""Between the ticker of a contract whose ticker was reused, and the date of its listing."""

NEVER_MS: Final = 4_133_404_800_000
"""2100-12-25, what the exchange gives as the delivery time of a perpetual contract."""

_KEY_OF_RUNNING: Final = itemgetter(1, 0)
_fields: Final = attrgetter("symbol", "interval", "bar", "merged_until_ms")


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
        self._folding = Folding(connection)
        self._lives: dict[int, Listing] = {}
        self._running_written: dict[tuple[int, int], tuple[Any, ...]] = {}
        """What the row of a running bar was last written from."""
        self._load_symbols()

    @classmethod
    def open(cls, path: Path) -> Database:
        """Open the database, making or migrating it where needed.

        Raises StoreError where the disk refuses or another program holds the file (BusyError),
        DamagedDataError where the file is not a klagg database, or not whole. Such a file is left
        as it is.
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
                refuse_foreign(connection)  # before anything in it is changed
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
        rows = self._put(SEAL, facts.sealed)
        rows += self._put(RESTATE, _last_of_each(facts.restated))
        for span in facts.doubted:
            rows += self._relabel(DOUBT, span)
        for span in facts.proven:
            rows += self._relabel(PROVE, span)
        told = {(f.symbol, f.interval, f.bar.open_ms) for f in (*facts.restated, *facts.sealed)}
        for symbol, minutes in _minutes_touched(facts).items():
            rows += self._put(RESTATE, self._remade(symbol, minutes, told))
        if facts.events:
            self._put_events(facts.events)
        return rows

    def _put(self, statements: dict[str, str], facts: Iterable[BarFact]) -> int:
        """Store bars, each in the table where it belongs."""
        settled: list[Row] = []
        recent: list[Row] = []
        opens: set[tuple[int, int, int]] = set()
        ids, folded = self._ids, self._folding.until
        for fact in facts:
            bar = fact.bar
            number = ids.get(fact.symbol)
            if number is None:
                listing = Listing(fact.symbol, 0, NEVER_MS, THREE_DAY_PHASE_MS)
                number = self._put_symbol(listing, "")
            code = INTERVAL_CODES[fact.interval]
            if bar.end_ms > folded[number]:
                recent.append(row_of(number, code, bar))
                opens.add((code, bar.open_ms, bar.end_ms))
            else:
                settled.append(row_of(number, code, bar))
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
            f" AND end_time > {self._folding.until[number]}",
        }
        return sum(
            self._connection.execute(
                f"UPDATE {table} SET {values}, revision = revision + 1 WHERE symbol = ?"
                f" AND interval = {INTERVAL_CODES[MINUTE.name]} AND {where[table]} AND {condition}",
                (number, span.first_ms, span.last_ms),
            ).rowcount
            for table in TABLES
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
                rows.append((*row_of(number, code, bar), merged_until_ms))
        if rows:
            # In the order of the key, so that neighbours are written one after the other.
            self._connection.executemany(OPEN, sorted(rows, key=_KEY_OF_RUNNING))
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
                BORN,
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

    def _remade(
        self, symbol: str, minutes: set[int], told: set[tuple[str, str, int]]
    ) -> list[BarFact]:
        number = self._ids.get(symbol)
        if number is None:
            return []  # nothing of it is stored yet
        life = self._lives[number]
        return list(remade_bars(self._connection, life, minutes, told))

    # -- Symbols -------------------------------------------------------------------------------

    def _load_symbols(self) -> None:
        """Read what is remembered of the symbols, at the start and after a failed transaction."""
        self._ids.clear()
        self._folding.until.clear()
        self._lives.clear()
        self._running_written.clear()
        for number, folded_until, *listing in self._connection.execute(
            "SELECT id, folded_until, symbol, onboard_ms, delivery_ms, three_day_phase_ms"
            " FROM symbols"
        ):
            self._ids[listing[0]] = number
            self._folding.until[number] = folded_until
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
        self._folding.until.setdefault(number, 0)
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
            self._folding.move(number, max(bar.end_ms for bar in bars))
            known = select_bars(
                self._connection, symbol, interval, bars[0].open_ms, bars[-1].open_ms
            )
            rows = self._put(RESTATE, [BarFact(symbol, interval, bar) for bar in bars])
            if known and interval == MINUTE.name:
                minutes = {bar.open_ms for bar in bars if bar.open_ms in known}
                rows += self._put(RESTATE, self._remade(symbol, minutes, set()))
        if self._wal_bytes() > WAL_BYTES_MAX:
            self.checkpoint()
        return rows

    def stored_spans(self, symbol: str, interval: str) -> list[tuple[int, int]]:
        """Return the stored bars that are not suspect, as spans from an open time to an end."""
        return stored_spans(self._connection, symbol, interval)

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
        with self._transaction():
            return self._folding.due(until_ms)

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
