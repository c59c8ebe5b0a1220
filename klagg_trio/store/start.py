"""Whether start snapshot and database belong together, and what is done where they do not.

Theory of operation
-------------------
The snapshot is the state of every symbol at its cut; the database holds every bar up to its last
tick. They fit if they are of one database (by its id, which a snapshot of 0.1.0 lacks: then it is
taken on trust) and the cut is not beyond the last tick: what the snapshot does not know any more is
owed, as after a crash. `judge` decides that from figures alone.

A database that is older than its snapshot is a copy that was restored. The bars between are made as
suspect ones, so that repair fetches them, and the database gets a new generation: whoever reads its
changes by number reads anew. Past `HEALED_MS_MAX` a backfill is the better way.

What is damaged is not gone live with: as much of the file as `CHECK_S` allows is looked at, small
tables first; `klagg verify` and `klagg doctor` look at all of it.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import os
import shlex
import sqlite3
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from klagg_trio.core.bar import Bar
from klagg_trio.core.errors import BusyError, DamagedDataError, StoreError
from klagg_trio.core.facts import MinuteSpan
from klagg_trio.core.gaps import Spans
from klagg_trio.core.intervals import DAY_MS, MINUTE_MS
from klagg_trio.core.seed import StartState
from klagg_trio.store.database import Database
from klagg_trio.store.schema import MARKET
from klagg_trio.store.start_snapshot import read_snapshot

HEALED_MS_MAX: Final = 7 * DAY_MS
"""A restored copy that is older than this is brought up to date by a backfill."""

CHECK_S: Final = 0.3
"""For the look at the database before a run: a tenth of what a restart may take."""

PATIENCE_S: Final = (0.1, 0.4, 1.0)
"""Pauses after which a file is asked for again that could not be read."""

TRANSIENT: Final = {errno.EMFILE, errno.ENFILE, errno.EIO, errno.EAGAIN, errno.EINTR, errno.ENOMEM}
"""What may pass: too many open files, a read that failed once."""

ASIDE: Final = ".of-another-database"
"""What is added to the name of a snapshot that does not belong to the database."""

Result = TypeVar("Result")


class Held(NamedTuple):
    """What a database says of itself."""

    database_id: str | None
    generation: int
    market: str
    tick_ms: int


class Fits(NamedTuple):
    """They can be used as they are; bars up to `owed_until_ms` are owed where that is not 0."""

    owed_until_ms: int = 0


def judge(held: Held, start: StartState, database: Path, snapshot: Path) -> Fits:
    """Decide whether a snapshot and a database belong together. DamagedDataError if not."""
    again = _again(database)
    if held.market != MARKET:
        raise DamagedDataError(
            f"{database} holds the market {held.market!r}, this klagg keeps {MARKET!r}; choose "
            "another: --data-dir"
        )
    ends, cut = _utc(held.tick_ms), _utc(start.cut_ms)
    if start.database_id is not None and start.database_id != held.database_id:
        older = "the database" if held.tick_ms < start.cut_ms else "the snapshot"
        raise DamagedDataError(
            f"{snapshot} (up to {cut}) is of another database than {database} (up to {ends}); "
            f"{older} is older; put back what belongs together, or have a snapshot of this "
            f"database written; {again}"
        )
    if not held.tick_ms and start.seeds:
        raise DamagedDataError(
            f"{database} holds no bars, its start snapshot {snapshot} is of {cut}: the database is "
            f"older; put the one back that belongs to it, or begin anew; {again}"
        )
    behind_ms = start.cut_ms - held.tick_ms
    if start.seeds and behind_ms > HEALED_MS_MAX:
        days = -(-behind_ms // DAY_MS)
        raise DamagedDataError(
            f"{database} (up to {ends}) is older than its start snapshot {snapshot} (up to {cut}) "
            f"by {days} days; put a newer copy back, or fetch what lies between (--since "
            f"{days + 1}d); {again}"
        )
    return Fits(start.cut_ms if start.seeds and behind_ms > 0 else 0)


def read_start(database: Path, snapshot: Path) -> StartState:
    """Return what a run starts from. DamagedDataError where a file is missing or damaged."""
    if not snapshot.exists() and _holds_anything(database):
        raise DamagedDataError(
            f"the start snapshot {snapshot} is missing beside the database {database}; put it "
            "back, or have it written anew, for which only what the database lacks is fetched; "
            f"{_again(database)}"
        )
    start = patiently(lambda: read_snapshot(snapshot))
    if not _holds_anything(database):
        raise DamagedDataError(
            f"the database {database} is missing beside its start snapshot (up to "
            f"{_utc(start.cut_ms)}); put it back, or begin a new one; {_again(database)}"
        )
    return start


def settle_start(
    database: Database, start: StartState, snapshot: Path, tell: Callable[[str], None]
) -> StartState:
    """See that a run may start from these two: no damage, of one kind, no bar missing.

    `tell` gets a line for the user where something was healed. Returns the state to start from: it
    owes what the database lacked.
    """
    patiently(lambda: database.check(CHECK_S))
    held = held_by(database)
    if judge(held, start, database.path, snapshot).owed_until_ms:
        tell(
            f"{database.path} (up to {_utc(held.tick_ms)}) is older than its start snapshot "
            f"(up to {_utc(start.cut_ms)}): the bars between are owed"
        )
        database.owe(start)
        return _owing(start, held.tick_ms)
    return _doubting(start, database.restated_since(start.cut_ms))


def _owing(start: StartState, from_ms: int) -> StartState:
    """Return the state with all minutes from one on owed.

    What they gave to longer bars is in those already, but not known apart any more.
    """
    if from_ms >= start.cut_ms:
        return start
    span = (from_ms, start.cut_ms - MINUTE_MS)
    seeds = tuple(
        dataclasses.replace(
            seed, suspects=_joined(seed.suspects, span), unknown=_joined(seed.unknown, span)
        )
        for seed in start.seeds
    )
    return dataclasses.replace(start, seeds=seeds)


def _doubting(start: StartState, restated: Iterable[MinuteSpan]) -> StartState:
    """Return the state with the minutes owed that were restated after it was taken.

    Its longer bars hold what they were before: after a kill nobody else would put them right.
    """
    changed: dict[str, list[tuple[int, int]]] = {}
    for symbol, first_ms, last_ms in restated:
        changed.setdefault(symbol, []).append((first_ms, min(last_ms, start.cut_ms - MINUTE_MS)))
    if not changed:
        return start
    seeds = []
    for seed in start.seeds:
        for first_ms, last_ms in changed.get(seed.symbol, ()):
            oldest_ms = min((each.bar.open_ms for each in seed.open_bars), default=start.cut_ms)
            if (span := (max(first_ms, oldest_ms), last_ms))[0] <= last_ms:
                seed = dataclasses.replace(
                    seed,
                    suspects=_joined(seed.suspects, span),
                    unknown=_joined(seed.unknown, span),
                    partials=tuple(each for each in seed.partials if not _within(each, span)),
                )
        seeds.append(seed)
    return dataclasses.replace(start, seeds=tuple(seeds))


def _within(bar: Bar, span: tuple[int, int]) -> bool:
    return span[0] <= bar.open_ms <= span[1]


def _joined(spans: Iterable[tuple[int, int]], span: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    joined = Spans(list(spans))
    joined.add(*span)
    return tuple(joined)


def held_by(database: Database) -> Held:
    """Return what a database says of itself."""
    return Held(*database.identity, database.meta("market") or MARKET, database.last_tick())


def put_aside(database: Database, snapshot_path: Path) -> str | None:
    """Keep a snapshot from being overwritten that is not of this database. Returns what to tell.

    For a backfill, which writes a new one in the end.
    """
    try:
        start = read_snapshot(snapshot_path)
        if judge(held_by(database), start, database.path, snapshot_path).owed_until_ms:
            database.begin_generation()  # it is a copy that was restored
    except StoreError:
        return None
    except DamagedDataError:
        if not snapshot_path.exists():
            return None
    else:
        return None
    aside = snapshot_path.with_name(snapshot_path.name + ASIDE)
    os.replace(snapshot_path, aside)
    return f"{snapshot_path} does not go with {database.path}: it is kept as {aside.name}"


def patiently(function: Callable[[], Result]) -> Result:
    """Return what a function returns; try again where a file could not be read for a moment."""
    for pause_s in PATIENCE_S:
        try:
            return function()
        except BusyError:
            raise
        except StoreError as error:
            if not _may_pass(error.__cause__):
                raise
            threading.Event().wait(pause_s)
    return function()


def _may_pass(cause: BaseException | None) -> bool:
    if isinstance(cause, OSError):
        return cause.errno in TRANSIENT
    name = getattr(cause, "sqlite_errorname", "")
    return isinstance(cause, sqlite3.Error) and name.startswith(
        ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_NOMEM")
    )


def _again(database: Path) -> str:
    return f"run: klagg backfill --data-dir {shlex.quote(str(database.parent))}"


def _holds_anything(database: Path) -> bool:
    try:
        return database.stat().st_size > 0
    except OSError:
        return False


def _utc(at_ms: int) -> str:
    if at_ms <= 0:
        return "the beginning"
    return f"{datetime.datetime.fromtimestamp(at_ms / 1_000, datetime.UTC):%Y-%m-%d %H:%M} UTC"
