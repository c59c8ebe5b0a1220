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

The parts are elsewhere: `statements` stores a bar, `labels` names contracts, `stretches` doubts and
proves spans, `fold` moves bars, `changes` is the log; `reading` is for everyone.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.errors import DamagedDataError, StoreError
from klagg_trio.core.facts import (
    BarFact,
    Births,
    Cut,
    Event,
    Facts,
    FlatSpan,
    Listing,
    MinuteSpan,
    RunningBar,
)
from klagg_trio.core.intervals import (
    INTERVALS,
    MINUTE,
    MINUTE_MS,
    THREE_DAY_PHASE_MS,
)
from klagg_trio.core.plain import plain
from klagg_trio.core.seed import StartState
from klagg_trio.store.absence import clear_absences, contracts_with_absences, put_absences
from klagg_trio.store.changes import (
    ADDED,
    DOUBTED,
    DROPPED,
    ENDED,
    RENAME_UNDONE,
    RESTATED,
    RESUMED,
    ChangeLog,
    Span,
    spans_of,
)
from klagg_trio.store.contracts import StoredContract, select_contract
from klagg_trio.store.damage import quick_look
from klagg_trio.store.filling import (
    bounds,
    owe_one,
)
from klagg_trio.store.flats import put_flats
from klagg_trio.store.fold import Folding
from klagg_trio.store.joining import (
    Pair,
    find_pair,
    join_bars,
    join_labels,
    refuse_disagreement,
)
from klagg_trio.store.labels import ENDED as STATUS_ENDED
from klagg_trio.store.labels import TRADING, Contracts
from klagg_trio.store.reading import Row, mapped, select_bars, stored_spans
from klagg_trio.store.remake import remade_bars
from klagg_trio.store.schema import INTERVAL_CODES, migrate, refuse_foreign
from klagg_trio.store.statements import (
    BORN,
    LACK,
    OPEN,
    PROVE,
    RESTATE,
    SEAL,
    TABLES,
    row_of,
)
from klagg_trio.store.stretches import Stretches
from klagg_trio.store.upgrade import Progress, forget_copy, is_old, upgrade

EVENTS_MAX: Final = 50_000
"""Events kept: months of a normal life, days of a very bad one: some 5 MB, 30 MB at the worst."""

WAL_BYTES_MAX: Final = 64 * 2**20
"""A backfill checkpoints when the write-ahead log is larger than this."""

BUSY_TIMEOUT_MS: Final = 5_000
"""SQLite waits this long for another program's lock; then the writer is told."""

OPEN_TIMEOUT_MS: Final = 1_000
"""The same while the database is opened, where a signal has to wait as long."""

CACHE_KIB: Final = 16_384

NEVER_MS: Final = 4_133_404_800_000
"""2100-12-25, what the exchange gives as the delivery time of a perpetual contract."""

_KEY_OF_RUNNING: Final = itemgetter(1, 0)
_fields: Final = attrgetter("symbol", "interval", "bar", "merged_until_ms")


class Identity(NamedTuple):
    """Which database a file is, wherever it is copied to."""

    database_id: str | None
    generation: int
    """New after a restore, and when a snapshot is found that is newer than the database."""


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
        self._log = ChangeLog(connection)
        self._contracts = Contracts(connection, self._log)
        self._folding = Folding(connection)
        self._stretches = Stretches(connection, self._contracts, self._folding, self._log)
        self._lacking: set[int] = set()
        """Contracts of which any stretch is noted that the exchange lacks."""
        self.identity = Identity(None, 0)
        self._tick_ms = 0
        """The last tick: what ends later is no news to a reader who goes by time."""
        self._running_written: dict[tuple[int, int], tuple[Any, ...]] = {}
        """What the row of a running bar was last written from."""
        self._load()

    @classmethod
    def open(cls, path: Path, on_upgrade: Progress | None = None) -> Database:
        """Open the database, making or migrating it where needed.

        `on_upgrade` is told how much of an earlier klagg's database has been brought up to date.
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
        try:
            with mapped(path):
                _bring_up_to_date(path, on_upgrade)
                connection = _connect(path)
        except ValueError as error:
            raise DamagedDataError(f"{path}: {error}") from error
        except OSError as error:
            raise StoreError(
                f"{path} cannot be brought up to date ({error.strerror or error}); it is as it "
                "was; mend that, then start again"
            ) from error
        try:
            with mapped(path):
                return cls(path, connection)
        except BaseException:
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
            self._log.write(max(self._tick_ms, minute_ms or 0))
            if minute_ms is not None:
                self._put_meta("last_tick", minute_ms)
        if minute_ms is not None:
            self._tick_ms = self._stretches.tick_ms = minute_ms
        return rows

    def _store(self, facts: Facts) -> int:
        self._store_lives(facts)
        rows = self._put(SEAL, facts.sealed, ADDED) + self._put_flats(facts.flats)
        rows += self._put(RESTATE, _last_of_each(facts.restated), RESTATED)
        touched = _minutes_restated(facts)
        told = {(f.symbol, f.interval, f.bar.open_ms) for f in (*facts.restated, *facts.sealed)}
        for span in facts.doubted:
            rows += self._stretches.doubt(span, told)
        for change, spans in ((PROVE, facts.proven), (LACK, facts.absent)):
            for span in spans:
                changed = (
                    self._stretches.relabel(change, span)
                    if change is PROVE
                    else self._stretches.lack(span)
                )
                rows += sum((last - first) // MINUTE_MS + 1 for first, last in changed)
                if changed:
                    touched.setdefault(span.symbol, []).extend(changed)
        rows += sum(map(self._cut, facts.cuts))
        for symbol, minutes in touched.items():
            rows += self._put(RESTATE, self._remade(symbol, sorted(minutes), told), RESTATED)
        if facts.absences:
            put_absences(self._connection, self._contracts.ids, facts.absences)
            self._lacking = contracts_with_absences(self._connection)
        if facts.events:
            self._put_events(facts.events)
        return rows

    def _cut(self, cut: Cut) -> int:
        """Drop the bars of a contract from a minute on, where it has any from before it.

        Longer bars that began before are made anew from the minutes that are left.
        """
        number = self._contracts.ids.get(cut.symbol)
        if number is None or not select_bars(
            self._connection, cut.symbol, MINUTE.name, cut.from_ms - MINUTE_MS, cut.from_ms
        ):
            return 0
        dropped = sum(
            self._connection.execute(
                f"DELETE FROM {table} WHERE symbol = ? AND open_time >= ?", (number, cut.from_ms)
            ).rowcount
            for table in TABLES
        )
        last_ms = cut.from_ms - MINUTE_MS
        remade = self._remade(cut.symbol, [(last_ms, last_ms)], set())
        self._log.add(DROPPED, number, None, cut.from_ms, max(self._tick_ms, cut.from_ms))
        return dropped + self._put(RESTATE, remade, RESTATED)

    def _store_lives(self, facts: Facts) -> None:
        contracts = self._contracts
        for symbol in facts.ended:
            self._forget_running(contracts.set_status(symbol, STATUS_ENDED, ENDED, self._tick_ms))
        for symbol in facts.replaced:
            self._forget_running(contracts.replace(symbol, self._tick_ms))
        for symbol in facts.resumed:
            contracts.set_status(symbol, TRADING, RESUMED, self._tick_ms)
        for listing in facts.listings:
            self._take_up(listing)

    def _take_up(self, listing: Listing) -> int:
        number = self._contracts.put(listing, self._tick_ms)
        self._folding.until.setdefault(number, 0)
        return number

    def _take_up_unknown(self, symbol: str) -> int:
        """Take up a symbol of which nothing is known but that it has bars."""
        return self._take_up(Listing(symbol, 0, NEVER_MS, THREE_DAY_PHASE_MS))

    def _forget_running(self, number: int | None) -> None:
        """Drop the running bars of a contract that has ended: it has none any more."""
        if number is not None:
            self._connection.execute("DELETE FROM open_bars WHERE symbol = ?", (number,))
            for key in [key for key in self._running_written if key[0] == number]:
                del self._running_written[key]

    def _put(self, statements: dict[str, str], facts: Iterable[BarFact], kind: str) -> int:
        """Store bars, each in the table where it belongs. What is past is logged as of a kind."""
        settled: list[Row] = []
        recent: list[Row] = []
        opens: set[tuple[int, int, int]] = set()
        ids, folded = self._contracts.ids, self._folding.until
        for fact in facts:
            bar = fact.bar
            number = ids.get(fact.symbol)
            if number is None:
                number = self._take_up_unknown(fact.symbol)
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
                changed = execute_many(statements[table], some).rowcount
                rows += changed
                # Of a tick's own bars, which are many, only the few opening times are looked at.
                if changed and (table == "bars" or any(x[2] <= self._tick_ms for x in opens)):
                    self._note_past(kind, some)
        return rows

    def _note_past(self, kind: str, rows: Iterable[Row]) -> None:
        """Log the bars that are past, and forget of official minutes that they were lacking."""
        past = [row for row in rows if row[3] <= self._tick_ms]
        self._log.add_bars(kind, past)
        minute = INTERVAL_CODES[MINUTE.name]
        for row in past if self._lacking else ():
            if row[0] in self._lacking and row[1] == minute and row[-1] == Source.OFFICIAL:
                clear_absences(self._connection, row[0], (row[2], row[2]))

    def _put_flats(self, spans: Sequence[FlatSpan]) -> int:
        """Store long stretches of flat bars. What is past is logged, a row a stretch."""
        ids = self._contracts.ids
        for symbol in {span.symbol for span in spans}.difference(ids):
            self._take_up_unknown(symbol)
        for symbol, interval, first_ms, end_ms, *_ in spans:
            length_ms = INTERVALS[interval].length_ms
            past_ms = min(end_ms, first_ms + (self._tick_ms - first_ms) // length_ms * length_ms)
            if first_ms < past_ms:
                code = INTERVAL_CODES[interval]
                self._log.add(ADDED, ids[symbol], code, first_ms, past_ms - length_ms)
        return put_flats(self._connection, spans, ids, self._folding.until)

    def _put_running(self, bars: Iterable[RunningBar]) -> int:
        """Store the running bars that changed since they were last stored.

        A longer bar that has merged more minutes without trades has not changed: they add nothing.
        """
        rows = []
        written, ids = self._running_written, self._contracts.ids
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
                number = self._contracts.ids.get(symbol)
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
        self, symbol: str, minutes: Sequence[Span], told: set[tuple[str, str, int]]
    ) -> list[BarFact]:
        number = self._contracts.ids.get(symbol)
        if number is None:
            return []  # nothing of it is stored yet
        life = self._contracts.lives[number]
        return list(remade_bars(self._connection, life, minutes, told))

    # -- Symbols -------------------------------------------------------------------------------

    def _load(self) -> None:
        """Read what is remembered of the tables, at the start and after a failed transaction."""
        self._log.forget()
        self._running_written.clear()
        self._folding.until.clear()
        self._folding.until.update(self._contracts.load())
        self._lacking = contracts_with_absences(self._connection)
        self._tick_ms = self._stretches.tick_ms = self.last_tick()
        self.identity = Identity(self.meta("database_id"), int(self.meta("generation") or 0))

    # -- What a backfill writes and reads ------------------------------------------------------

    def put_symbols(self, contracts: Iterable[ContractLike], phases: dict[str, int]) -> None:
        """Take up symbols, or what is new about them; `phases` are their 3d grids in ms."""
        with self._transaction():
            for contract in contracts:
                phase_ms = phases.get(contract.symbol, THREE_DAY_PHASE_MS)
                listing = Listing(
                    contract.symbol,
                    contract.onboard_ms,
                    contract.delivery_ms,
                    phase_ms,
                    status=contract.status,
                )
                self._take_up(listing)

    def put_history(self, symbol: str, interval: str, bars: Sequence[Bar]) -> int:
        """Store official bars of the past. Returns rows written; what is the same is not."""
        if not bars:
            return 0
        with self._transaction():
            number = self._contracts.ids[symbol]
            # Old bars belong into `bars` at once: nothing of them would be read as recent.
            self._folding.move(number, max(bar.end_ms for bar in bars))
            known = select_bars(
                self._connection, symbol, interval, bars[0].open_ms, bars[-1].open_ms
            )
            facts = [BarFact(symbol, interval, bar) for bar in bars]
            rows = self._put(RESTATE, (x for x in facts if x.bar.open_ms not in known), ADDED)
            rows += self._put(RESTATE, (x for x in facts if x.bar.open_ms in known), RESTATED)
            if known and interval == MINUTE.name:
                minutes = spans_of((x.open_ms for x in bars if x.open_ms in known), MINUTE_MS)
                rows += self._put(RESTATE, self._remade(symbol, minutes, set()), RESTATED)
        if self._wal_bytes() > WAL_BYTES_MAX:
            self.checkpoint()
        return rows

    def stored_spans(self, symbol: str, interval: str) -> list[tuple[int, int]]:
        """Return the stored bars that are not suspect, as spans from an open time to an end."""
        return stored_spans(self._connection, symbol, interval)

    def symbols(self) -> list[str]:
        """Return the labels of all contracts of which anything is known."""
        return list(self._contracts.ids)

    def contract(self, symbol: str) -> StoredContract | None:
        """Return what is stored of a symbol; None where nothing is."""
        with mapped(self.path):
            return select_contract(self._connection, symbol)

    def meta(self, key: str) -> str | None:
        """Return a text that was kept under this key; None where none was."""
        with mapped(self.path):
            row = self._connection.execute(
                "SELECT value FROM meta WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else str(row[0])

    def check(self, seconds: float) -> None:
        """Look for damage, for so long at most. DamagedDataError where any is found."""
        with mapped(self.path):
            flaw = quick_look(self._connection, self.path, seconds)
        if flaw is not None:
            raise DamagedDataError(
                f"{self.path} is damaged ({plain(flaw)}); it is left as it is: move it away or "
                f"restore a copy, then run: klagg backfill --data-dir {self.path.parent}"
            )

    def owe(self, start: StartState) -> int:
        """Make suspect bars from the last tick to the cut of a start state that is newer.

        For a copy that was restored. It gets a new generation, in the end: interrupted, it is all
        done again. Returns rows written.
        """
        from_ms, to_ms = self._tick_ms, start.cut_ms
        rows = 0
        for seed in start.seeds:
            with self._transaction():
                listing = Listing(*(getattr(seed, name) for name in Listing._fields[:5]))
                number = self._take_up(listing)
                rows += owe_one(self._connection, self._folding, number, seed, start, from_ms)
        with self._transaction():
            self._put_meta("last_tick", to_ms)
            text = f"bars up to minute {to_ms} are owed: the start snapshot was newer"
            self._put_events([Event(to_ms, "restored", "", text)])
            self._put_meta("generation", self.identity.generation + 1)
        self._load()
        return rows

    def find_pair(self, key: str) -> Pair:
        """Return the contract with a key, and who has its label. ConfigurationError where none."""
        with mapped(self.path):
            return find_pair(self._connection, key)

    def begins(self, number: int) -> int | None:
        """Return when the first stored minute of a contract opens."""
        with mapped(self.path):
            stored = bounds(self._connection, number)
        return None if stored is None else stored[0]

    def try_join(self, pair: Pair) -> None:
        """Raise ConfigurationError where `join` would. Nothing is changed but where bars lie."""
        with self._transaction():
            folded_ms = self._fold_both(pair)
            if pair.new is not None and folded_ms:
                refuse_disagreement(self._connection, pair)

    def _fold_both(self, pair: Pair) -> int:
        known = [number for number in (pair.old, pair.new) if number is not None]
        folded_ms = max(self._tick_ms, *(self._folding.until[number] for number in known))
        for number in known:
            self._folding.move(number, folded_ms)
        return folded_ms

    def join(self, pair: Pair) -> None:
        """Give a contract its label back, and the bars of the one that has it now.

        Raises ConfigurationError where the bars of both say that they are two.
        """
        with self._transaction():
            folded_ms = self._fold_both(pair)
            spans: list[Span] = []
            if pair.new is not None:
                refuse_disagreement(self._connection, pair)
                life = self._contracts.lives[pair.new]
                spans = join_bars(self._connection, pair, life)
            join_labels(self._connection, pair, folded_ms)
            self._folding.until.update(self._contracts.load())
            if pair.new is not None:
                self._folding.until.pop(pair.new, None)
            self._put(RESTATE, self._remade(pair.label, spans, set()), RESTATED)
            stored = bounds(self._connection, pair.old) or (self._tick_ms, self._tick_ms)
            self._log.add(RENAME_UNDONE, pair.old, None, *stored, pair.key)
            text = f"the contract {pair.key} has its label again"
            self._put_events([Event(self._tick_ms, "rename undone", pair.label, text)])
        self._load()

    def restated_since(self, cut_ms: int) -> list[MinuteSpan]:
        """Return the minutes before a cut that were restated or doubted after it."""
        rows = self._connection.execute(
            "SELECT symbol, first_ms, last_ms FROM changes"
            " WHERE at_ms >= ? AND kind IN (?, ?) AND interval = ? AND first_ms < ?",
            (cut_ms, RESTATED, DOUBTED, MINUTE.name, cut_ms),
        )
        return [MinuteSpan(*row) for row in rows]

    def begin_generation(self) -> None:
        """Tell those who read changes by number to read anew."""
        with self._transaction():
            self._put_meta("generation", self.identity.generation + 1)
        self._load()

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
                self._log.write(self._tick_ms)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._load()
                raise


def _bring_up_to_date(path: Path, on_upgrade: Progress | None) -> None:
    """Copy an earlier klagg's database into the present tables; clear away what is left of that."""
    if path.exists():
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA busy_timeout = {OPEN_TIMEOUT_MS}")
            refuse_foreign(connection)  # before anything in it is changed
            old = is_old(connection)
        if old:
            upgrade(path, on_upgrade)
    forget_copy(path)


def _connect(path: Path) -> sqlite3.Connection:
    # The writer calls from a worker thread, one call at a time.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA busy_timeout = {OPEN_TIMEOUT_MS}")
        if not connection.execute("PRAGMA page_count").fetchone()[0]:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # else it would be written to
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # `checkpoint` is called
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        migrate(connection)
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    except BaseException:
        connection.close()
        raise
    return connection


def _last_of_each(facts: Sequence[BarFact]) -> Iterable[BarFact]:
    """Return the facts with what is said last of each bar only."""
    return {(fact.symbol, fact.interval, fact.bar.open_ms): fact for fact in facts}.values()


def _minutes_restated(facts: Facts) -> dict[str, list[Span]]:
    """Return the minutes that facts restate, as spans by symbol."""
    opens: dict[str, list[int]] = {}
    for fact in facts.restated:
        if fact.interval == MINUTE.name:
            opens.setdefault(fact.symbol, []).append(fact.bar.open_ms)
    return {symbol: spans_of(found, MINUTE_MS) for symbol, found in opens.items()}
