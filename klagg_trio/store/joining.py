"""Undoing a rename: two contracts that turn out to be one are joined, under the older key.

The bars of the newer one go to the older one, which gets its label back. Where both have a minute,
the one that is not suspect stays; where both claim to know it and disagree they are two contracts
after all, and nothing is changed. Longer bars that both have a part of are made anew. Minutes that
neither has are made, and owed to repair. All in one transaction.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Final, NamedTuple

from klagg_trio.core.bar import Source
from klagg_trio.core.errors import ConfigurationError
from klagg_trio.core.facts import Listing
from klagg_trio.core.intervals import MINUTE, MINUTE_MS
from klagg_trio.core.seed import Seed, StartState
from klagg_trio.store.changes import Span
from klagg_trio.store.filling import bounds, close_before, fill
from klagg_trio.store.remake import longer_intervals
from klagg_trio.store.schema import INTERVAL_CODES, VALUE_COLUMNS

_VALUES: Final = [*VALUE_COLUMNS, "end_time"]
_DIFFER: Final = " OR ".join(f"a.{name} <> b.{name}" for name in _VALUES)
_BOTH: Final = (
    "FROM bars AS b CROSS JOIN bars AS a ON a.symbol = :old AND a.interval = b.interval"
    " AND a.open_time = b.open_time WHERE b.symbol = :new"
)
_GUESSED: Final = f"({Source.SUSPECT:d}, {Source.ABSENT:d})"


class Pair(NamedTuple):
    """Two rows of `symbols`: the one that lost its label, and the one that has it."""

    key: str
    old: int
    label: str
    new: int | None
    """None where nobody has the label now."""


def find_pair(connection: sqlite3.Connection, key: str) -> Pair:
    """Return the contract with this key, and who has its label. ConfigurationError where none."""
    row = connection.execute(
        "SELECT id, ticker, status FROM contracts WHERE contract = ?", (key,)
    ).fetchone()
    if row is None:
        raise ConfigurationError(f"no contract has the key {key!r}; see: klagg contracts")
    number, label, status = row
    if status != "REPLACED":
        raise ConfigurationError(f"{key} has its label; only who lost it can get it back")
    owner = connection.execute("SELECT id FROM symbols WHERE symbol = ?", (label,)).fetchone()
    return Pair(key, number, label, None if owner is None else owner[0])


def refuse_disagreement(connection: sqlite3.Connection, pair: Pair) -> None:
    """Raise ConfigurationError where both know a minute, and differently. All has to be folded."""
    count, first_ms = connection.execute(
        f"SELECT count(*), min(a.open_time) {_BOTH} AND b.interval = :minute"
        f" AND a.source NOT IN {_GUESSED} AND b.source NOT IN {_GUESSED} AND ({_DIFFER})",
        _numbers(pair),
    ).fetchone()
    if count:
        raise ConfigurationError(
            f"{pair.key} and {pair.label} are two contracts: their bars of {count:,} minutes "
            f"differ, the first of them at {first_ms}; nothing was changed"
        )


def join_bars(connection: sqlite3.Connection, pair: Pair, life: Listing) -> list[Span]:
    """Give the newer contract's bars to the older one. Returns minutes whose longer bars change.

    `life` is of the one that has the label.
    """
    assert pair.new is not None
    execute, numbers = connection.execute, _numbers(pair)
    ours, theirs = bounds(connection, pair.old), bounds(connection, pair.new)
    shared = execute(
        f"SELECT b.interval, b.open_time, b.end_time {_BOTH} AND b.interval <> :minute"
        f" AND b.source <> {Source.OFFICIAL:d}",
        numbers,
    ).fetchall()
    if ours and theirs:
        price = close_before(connection, pair.key, ours[1] + MINUTE_MS)
        for interval in (MINUTE, *longer_intervals(life)):
            code = INTERVAL_CODES[interval.name]
            before, after = (bounds(connection, x, code) for x in (pair.old, pair.new))
            if before and after and price is not None:
                between = interval.end(before[1]), interval.floor(after[0] - 1)
                fill(connection, pair.old, interval, between, price, Source.SUSPECT)
    execute(
        "DELETE FROM bars WHERE symbol = :new AND interval = :minute"
        f" AND source IN {_GUESSED} AND open_time IN (SELECT open_time FROM bars"
        " WHERE symbol = :old AND interval = :minute)",
        numbers,
    )
    execute("UPDATE OR REPLACE bars SET symbol = :old WHERE symbol = :new", numbers)
    # What has been folded is cleared away later; but the number may be another contract's by then.
    execute("DELETE FROM recent_bars WHERE symbol = :new", numbers)
    execute("DELETE FROM open_bars WHERE symbol = :old", numbers)
    execute("UPDATE open_bars SET symbol = :old WHERE symbol = :new", numbers)
    execute("UPDATE OR REPLACE absences SET contract = :old WHERE contract = :new", numbers)
    execute("UPDATE change_log SET contract = :old WHERE contract = :new", numbers)
    for code, open_ms, _ in shared:
        execute(
            f"UPDATE bars SET source = {Source.SUSPECT:d}, revision = revision + 1"
            " WHERE symbol = ? AND interval = ? AND open_time = ?",
            (pair.old, code, open_ms),
        )
    return sorted((open_ms, end_ms - MINUTE_MS) for _, open_ms, end_ms in shared)


def join_labels(connection: sqlite3.Connection, pair: Pair, folded_ms: int) -> None:
    """Let the older contract go on under the label; the newer one is no more."""
    execute, numbers = connection.execute, _numbers(pair) | {"folded": folded_ms}
    if pair.new is None:
        execute(
            "UPDATE symbols SET symbol = :label, status = 'ENDED' WHERE id = :old",
            numbers | {"label": pair.label},
        )
        return
    delivery_ms, phase_ms, status = execute(
        "SELECT delivery_ms, three_day_phase_ms, status FROM symbols WHERE id = :new", numbers
    ).fetchone()
    execute("DELETE FROM symbols WHERE id = :new", numbers)
    execute(
        "UPDATE symbols SET symbol = ?, delivery_ms = ?, three_day_phase_ms = ?, status = ?,"
        " folded_until = ? WHERE id = ?",
        (pair.label, delivery_ms, phase_ms, status, folded_ms, pair.old),
    )


def _numbers(pair: Pair) -> dict[str, object]:
    return {"old": pair.old, "new": pair.new, "minute": INTERVAL_CODES[MINUTE.name]}


def owing_before(
    state: StartState, label: str, begins_ms: int, first_ms: int | None, newest_ms: int
) -> StartState:
    """Return a start state whose open bars of one symbol lack the minutes before it began.

    Those are owed: what the older contract traded is in none of them. `begins_ms` is where the
    bars of the newer contract begin, `newest_ms` where those of the older one do.
    """

    def owing(seed: Seed) -> Seed:
        opens = [bar.bar.open_ms for bar in seed.open_bars if bar.bar.open_ms < begins_ms]
        if not opens:
            return replace(seed, first_ms=first_ms)
        from_ms = max(min(opens), newest_ms)
        if from_ms >= begins_ms:
            return replace(seed, first_ms=first_ms)
        return replace(
            seed,
            first_ms=first_ms,
            onboard_ms=min(seed.onboard_ms, newest_ms),
            suspects=((from_ms, begins_ms - MINUTE_MS), *seed.suspects),
            open_bars=tuple(
                replace(
                    bar,
                    unofficial_minutes=bar.unofficial_minutes
                    + max(0, begins_ms - max(bar.bar.open_ms, from_ms)) // MINUTE_MS,
                )
                for bar in seed.open_bars
            ),
        )

    seeds = (owing(seed) if seed.symbol == label else seed for seed in state.seeds)
    return replace(state, seeds=tuple(seeds))
