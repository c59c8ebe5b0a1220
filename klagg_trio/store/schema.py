"""The tables, the views over them, and the migrations that lead there.

Sealed bars lie in two tables. A tick appends to `recent_bars`, whose key begins with the time: the
bars of one minute are neighbours, so a tick touches few pages however large the database is.
Readers want one symbol's years, which `bars` holds as neighbours: its key begins with the symbol.
The writer moves bars from the first to the second, a few symbols a minute (`Database.fold`).

A bar is in exactly one of the two by construction: `symbols.folded_until` says up to which end all
bars of a symbol are in `bars`; what ends later is in `recent_bars`. What has been moved is cleared
away later, many symbols at once, and does not count in the meantime.

People read the views: `klines` (sealed bars), `open_klines` (running bars), `klines_all` (both).
The order of the joins in `klines` is fixed (CROSS JOIN): symbol and interval lead to the recent
bars by one key lookup a bar, over the few opening times that `recent_opens` lists. Left to itself
the planner would scan all recent bars of all symbols.

Of a running longer bar, `open_bars` has what it has merged up to `merged_until`, written once a
minute and not with every trade. `open_klines` adds what came since: the minute sealed last, where
it is not among that, and the running minute. More than these two is never missing, but for minutes
without trades (`worker.apply`, `Database.fold`).
"""

from __future__ import annotations

import sqlite3
from typing import Final

from klagg_trio.core.bar import Source
from klagg_trio.core.intervals import INTERVALS, MINUTE, MINUTE_MS

INTERVAL_CODES: Final = {name: code for code, name in enumerate(INTERVALS)}
"""Numbers for the intervals. They are stored: new ones may only be added at the end."""

_MINUTE: Final = INTERVAL_CODES[MINUTE.name]

VALUE_COLUMNS: Final = (
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

_VALUES: Final = """
    end_time INTEGER NOT NULL,
    open REAL NOT NULL,
    high REAL NOT NULL,
    low REAL NOT NULL,
    close REAL NOT NULL,
    volume REAL NOT NULL,
    quote_volume REAL NOT NULL,
    count INTEGER NOT NULL,
    taker_buy_volume REAL NOT NULL,
    taker_buy_quote_volume REAL NOT NULL,
    source INTEGER NOT NULL CHECK (source BETWEEN 0 AND 3),
"""

# NaN is stored as NULL, which NOT NULL refuses; infinity is what no comparison with 9e999 passes.
_CHECKS: Final = """
    CHECK (open_time < end_time),
    CHECK (0 < low AND low <= open AND low <= close AND low <= high),
    CHECK (open <= high AND close <= high AND high < 9e999),
    CHECK (0 <= volume AND volume < 9e999 AND 0 <= quote_volume AND quote_volume < 9e999),
    CHECK (0 <= taker_buy_volume AND taker_buy_volume <= volume),
    CHECK (0 <= taker_buy_quote_volume AND taker_buy_quote_volume <= quote_volume),
    CHECK (count >= 0)
"""

_BAR_TABLE: Final = """
CREATE TABLE {name} (
    symbol INTEGER NOT NULL,
    interval INTEGER NOT NULL,
    open_time INTEGER NOT NULL,
    {values}
    {revision}
    PRIMARY KEY ({key}),
    {checks}
) STRICT, WITHOUT ROWID;
"""

_NAMED: Final = """
    s.symbol AS symbol, i.interval AS interval, {open_time} AS open_time,
    b.open AS open, b.high AS high, b.low AS low, b.close AS close, b.volume AS volume,
    b.end_time - 1 AS close_time, b.quote_volume AS quote_volume, b.count AS count,
    b.taker_buy_volume AS taker_buy_volume, b.taker_buy_quote_volume AS taker_buy_quote_volume,
    {source} AS source, {revision} AS revision
"""

_SOURCE_NAME: Final = "CASE b.source {} END".format(
    " ".join(f"WHEN {source.value} THEN '{source.label}'" for source in tuple(Source)[:4])
)

_FOLDED_KLINES: Final = f"""
    SELECT {_NAMED.format(open_time="b.open_time", source=_SOURCE_NAME, revision="b.revision")}
    {{sealed}}
    FROM symbols AS s
    CROSS JOIN intervals AS i
    CROSS JOIN bars AS b ON b.symbol = s.id AND b.interval = i.id
"""
_RECENT_KLINES: Final = f"""
    SELECT {_NAMED.format(open_time="r.open_time", source=_SOURCE_NAME, revision="b.revision")}
    {{sealed}}
    FROM symbols AS s
    CROSS JOIN intervals AS i
    CROSS JOIN recent_opens AS r ON r.interval = i.id
    CROSS JOIN recent_bars AS b
        ON b.open_time = r.open_time AND b.interval = r.interval AND b.symbol = s.id
        AND b.end_time > s.folded_until
"""


def _view(name: str, *parts: str) -> str:
    """Return the statement that makes a view of these parts."""
    return f"CREATE VIEW {name} AS {'UNION ALL'.join(parts)};"


def _plain(*parts: str) -> list[str]:
    """Return the parts of a view as they are."""
    return [part.format(sealed="") for part in parts]


def _marked(sealed: int, *parts: str) -> list[str]:
    """Return the parts of a view with a last column that says whether their bars are sealed."""
    return [part.format(sealed=f", {sealed} AS sealed") for part in parts]


_BARS_AND_NAMES: Final = [
    """
    CREATE TABLE symbols (
        id INTEGER PRIMARY KEY,
        symbol TEXT NOT NULL UNIQUE,
        onboard_ms INTEGER NOT NULL,
        delivery_ms INTEGER NOT NULL,
        three_day_phase_ms INTEGER NOT NULL,
        status TEXT NOT NULL,
        folded_until INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    """,
    """
    CREATE TABLE intervals (
        id INTEGER PRIMARY KEY,
        interval TEXT NOT NULL UNIQUE
    ) STRICT;
    """,
    "INSERT INTO intervals (id, interval) VALUES "
    + ", ".join(f"({code}, '{name}')" for name, code in INTERVAL_CODES.items()),
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;",
    """
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        at_ms INTEGER NOT NULL,
        kind TEXT NOT NULL,
        symbol TEXT NOT NULL,
        text TEXT NOT NULL
    ) STRICT;
    """,
    _BAR_TABLE.format(
        name="bars",
        values=_VALUES,
        revision="revision INTEGER NOT NULL,",
        key="symbol, interval, open_time",
        checks=_CHECKS,
    ),
    # Suspect bars are few and every one of them is owed to repair, which finds them by this.
    "CREATE INDEX suspect_bars ON bars (symbol, interval, open_time) WHERE source = 2;",
    _BAR_TABLE.format(
        name="recent_bars",
        values=_VALUES,
        revision="revision INTEGER NOT NULL,",
        key="open_time, interval, symbol",
        checks=_CHECKS,
    ),
    """
    CREATE TABLE recent_opens (
        interval INTEGER NOT NULL,
        open_time INTEGER NOT NULL,
        end_time INTEGER NOT NULL,
        PRIMARY KEY (interval, open_time)
    ) STRICT, WITHOUT ROWID;
    """,
    _BAR_TABLE.format(
        name="open_bars",
        values=_VALUES,
        revision="",
        key="interval, symbol",
        checks=_CHECKS,
    ),
    _view("klines", *_plain(_FOLDED_KLINES, _RECENT_KLINES)),
    f"""
    CREATE VIEW open_klines AS
    SELECT {_NAMED.format(open_time="b.open_time", source=_SOURCE_NAME, revision="0")}
    FROM symbols AS s
    CROSS JOIN intervals AS i
    CROSS JOIN open_bars AS b ON b.symbol = s.id AND b.interval = i.id;
    """,
    """
    CREATE VIEW klines_all AS
    SELECT *, 1 AS sealed FROM klines
    UNION ALL
    SELECT *, 0 AS sealed FROM open_klines;
    """,
]


def _of_traded(parts: str, name: str) -> str:
    """Return the value of the first of these parts that has trades, or of the running minute."""
    cases = " ".join(f"WHEN {x}.count THEN {x}.{name}" for x in parts)
    return f"CAST(CASE {cases} ELSE m.{name} END AS REAL)"


def _extreme(which: str, name: str, none: str) -> str:
    """Return the largest or smallest value of the parts that have trades."""
    parts = ", ".join(f"CASE WHEN {x}.count THEN {x}.{name} ELSE {none} END" for x in "bpm")
    value = f"CASE WHEN b.count OR p.count OR m.count THEN {which}({parts}) ELSE m.close END"
    return f"CAST({value} AS REAL)"


def _sum(name: str) -> str:
    """Return the sum over the parts, to the 15 digits that floats carry unharmed."""
    total = f"b.{name} + ifnull(p.{name}, 0) + m.{name}"
    return f"CAST(printf('%.15g', {total}) AS REAL)"


# Only where each column has the same affinity in all parts of a view are its parts merged in order.
_NO_REVISION: Final = "CAST(0 AS INTEGER)"
_RUNNING_MINUTES: Final = f"""
    SELECT {_NAMED.format(open_time="b.open_time", source=_SOURCE_NAME, revision=_NO_REVISION)}
    {{sealed}}
    FROM symbols AS s
    CROSS JOIN intervals AS i
    CROSS JOIN open_bars AS b ON b.interval = i.id AND b.symbol = s.id
    WHERE i.id = {_MINUTE}
"""
# b: what has been merged. p: the minute sealed last, where it has not. m: the running minute.
_RUNNING_LONGER: Final = f"""
    SELECT
        s.symbol, i.interval, b.open_time,
        {_of_traded("bpm", "open")},
        {_extreme("max", "high", "0")},
        {_extreme("min", "low", "9e999")},
        {_of_traded("mpb", "close")},
        {_sum("volume")},
        b.end_time - 1,
        {_sum("quote_volume")},
        CAST(b.count + ifnull(p.count, 0) + m.count AS INTEGER),
        {_sum("taker_buy_volume")},
        {_sum("taker_buy_quote_volume")},
        CASE
            WHEN {Source.SUSPECT:d} IN (b.source, ifnull(p.source, -1), m.source) THEN 'suspect'
            WHEN b.count OR p.count OR m.count THEN 'trades'
            ELSE 'flat'
        END,
        {_NO_REVISION}
        {{sealed}}
    FROM symbols AS s
    CROSS JOIN intervals AS i
    CROSS JOIN open_bars AS b ON b.interval = i.id AND b.symbol = s.id
    CROSS JOIN open_bars AS m ON m.interval = {_MINUTE} AND m.symbol = s.id
    LEFT JOIN recent_bars AS p
        ON p.open_time = m.open_time - {MINUTE_MS} AND p.interval = {_MINUTE} AND p.symbol = s.id
        AND p.open_time >= b.merged_until
    WHERE i.id <> {_MINUTE}
"""

_RUNNING_BARS_BY_PARTS: Final = [
    "DROP VIEW klines_all",
    "DROP VIEW open_klines",
    "DROP TABLE open_bars",  # a run writes all of them anew
    _BAR_TABLE.format(
        name="open_bars",
        values=_VALUES,
        revision="merged_until INTEGER NOT NULL,",
        key="interval, symbol",
        checks=_CHECKS,
    ),
    _view("open_klines", *_plain(_RUNNING_MINUTES, _RUNNING_LONGER)),
    # One list of parts: were it nested, the planner would sort all bars of a symbol.
    _view(
        "klines_all",
        *_marked(1, _FOLDED_KLINES, _RECENT_KLINES),
        *_marked(0, _RUNNING_MINUTES, _RUNNING_LONGER),
    ),
]

_MIGRATION_SET: Final = "klagg"

STEPS: Final[dict[str, list[str]]] = {
    "0001 bars and names": _BARS_AND_NAMES,
    "0002 running bars by parts": _RUNNING_BARS_BY_PARTS,
}
"""What makes the schema, in order. A step that has been released is never changed."""


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the database up to this program's schema, each step in a transaction of its own.

    Raises ValueError, with a text for the user, for a database that a newer klagg has changed.
    """
    applied = _applied(connection)
    if unknown := applied.difference(STEPS):
        raise ValueError(f"a newer klagg made it (step {min(unknown)!r}); use that version")
    if applied.issuperset(STEPS):
        return  # without the import, which takes a fifth of a second
    from sqlite_utils import Database as Utilities
    from sqlite_utils import Migrations

    migrations = Migrations(_MIGRATION_SET)

    def register(name: str, statements: list[str]) -> None:
        @migrations(name=name)
        def _apply(utilities: Utilities) -> None:
            for statement in statements:
                utilities.execute(statement)

    for name, statements in STEPS.items():
        register(name, statements)
    migrations.apply(Utilities(connection, execute_plugins=False))


def refuse_foreign(connection: sqlite3.Connection) -> None:
    """Raise ValueError, with a text for the user, for a database of another program."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if tables and "_sqlite_migrations" not in tables:
        raise ValueError("it holds another program's tables; choose another: --data-dir")


def _applied(connection: sqlite3.Connection) -> set[str]:
    table = "SELECT 1 FROM sqlite_master WHERE name = '_sqlite_migrations'"
    if connection.execute(table).fetchone() is None:
        return set()
    rows = connection.execute(
        "SELECT name FROM _sqlite_migrations WHERE migration_set = ?", (_MIGRATION_SET,)
    )
    return {name for (name,) in rows}
