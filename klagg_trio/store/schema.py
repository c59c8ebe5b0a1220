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

A contract's permanent key is its ticker and `first_ms`, the open time of its first official 1m
kline; while that is not known (`first_known` is 0) the minute of its listing stands in. Its label
(`symbols.symbol`) is what people query by. It belongs to the contract that lives: one that lost it
has its key as its label. What is stored of a contract carries `id`, which never changes.

`change_log` says what cannot be told from time: what changed in bars before the last tick. With the
database's id and generation (`meta`) and the last tick, the number of its newest row is where a
reader goes on later. People read it as `changes`, with the contract's key and label.

What the sweep for suspect bars need not look at is not in its index, or not joined with it: minutes
that the exchange has been found to lack are `absent`, not suspect, and `absences` says when they
are asked for again, if ever; contracts whose label another one has are passed over as a whole
(`reading.select_suspects` begins with the contracts).

A database of an earlier klagg is copied into the present tables (`upgrade`): what is checked within
a table cannot be changed in place.
"""

from __future__ import annotations

import sqlite3
import uuid
from typing import Final

from klagg_trio import __version__
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
    source INTEGER NOT NULL CHECK (source BETWEEN 0 AND 15),
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

_KEY: Final = "s.ticker || '@' || strftime('%Y%m%dT%H%M', s.first_ms / 1000, 'unixepoch')"

_NAMED: Final = """
    s.symbol AS symbol, i.interval AS interval, {open_time} AS open_time,
    b.open AS open, b.high AS high, b.low AS low, b.close AS close, b.volume AS volume,
    b.end_time - 1 AS close_time, b.quote_volume AS quote_volume, b.count AS count,
    b.taker_buy_volume AS taker_buy_volume, b.taker_buy_quote_volume AS taker_buy_quote_volume,
    {source} AS source, {revision} AS revision
"""

# A number that only a newer klagg knows is shown as such.
_SOURCE_NAME: Final = "CASE b.source {} ELSE 'source ' || b.source END".format(
    " ".join(f"WHEN {source.value} THEN '{source.label}'" for source in Source)
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

_TABLES: Final = [
    """
    CREATE TABLE symbols (
        id INTEGER PRIMARY KEY,
        symbol TEXT NOT NULL UNIQUE,
        ticker TEXT NOT NULL,
        first_ms INTEGER NOT NULL,
        first_known INTEGER NOT NULL CHECK (first_known IN (0, 1)),
        market TEXT NOT NULL,
        onboard_ms INTEGER NOT NULL,
        delivery_ms INTEGER NOT NULL,
        three_day_phase_ms INTEGER NOT NULL,
        status TEXT NOT NULL,
        folded_until INTEGER NOT NULL DEFAULT 0,
        UNIQUE (market, ticker, first_ms)
    ) STRICT;
    """,
    f"""
    CREATE VIEW contracts AS
    SELECT s.id AS id, {_KEY} AS contract, s.symbol AS symbol, s.ticker AS ticker,
        s.first_ms AS first_ms, s.first_known AS first_known, s.market AS market,
        s.status AS status, s.onboard_ms AS onboard_ms, s.delivery_ms AS delivery_ms
    FROM symbols AS s;
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
    # Numbers are never used twice (AUTOINCREMENT), even where all rows were trimmed.
    """
    CREATE TABLE change_log (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        kind TEXT NOT NULL,
        contract INTEGER NOT NULL,
        interval INTEGER,
        first_ms INTEGER NOT NULL,
        last_ms INTEGER NOT NULL,
        text TEXT NOT NULL,
        CHECK (first_ms <= last_ms)
    ) STRICT;
    """,
    f"""
    CREATE VIEW changes AS
    SELECT c.number AS number, c.at_ms AS at_ms, c.kind AS kind, {_KEY} AS contract,
        s.symbol AS symbol, i.interval AS interval, c.first_ms AS first_ms, c.last_ms AS last_ms,
        c.text AS text
    FROM change_log AS c
    LEFT JOIN symbols AS s ON s.id = c.contract
    LEFT JOIN intervals AS i ON i.id = c.interval;
    """,
    """
    CREATE TABLE absences (
        contract INTEGER NOT NULL,
        first_ms INTEGER NOT NULL,
        last_ms INTEGER NOT NULL,
        noticed_ms INTEGER NOT NULL,
        asked_ms INTEGER NOT NULL,
        askings INTEGER NOT NULL,
        final INTEGER NOT NULL CHECK (final IN (0, 1)),
        PRIMARY KEY (contract, first_ms),
        CHECK (first_ms <= last_ms)
    ) STRICT, WITHOUT ROWID;
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
        revision="merged_until INTEGER NOT NULL,",
        key="interval, symbol",
        checks=_CHECKS,
    ),
    _view("klines", *_plain(_FOLDED_KLINES, _RECENT_KLINES)),
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
    "0001 bars and names": [],
    "0002 running bars by parts": [],
    "0003 contracts and changes": _TABLES,
}
"""What makes the schema, in order. A step that has been released is never changed; but the third
made all tables anew, so that of those before it only the names are left."""

COPIED: Final = "0003 contracts and changes"
"""A database that lacks this step is copied into new tables."""

MARKET: Final = "um"
"""USD-M perpetuals: what a data directory is of, unless it says otherwise."""

META_OF_NEW: Final = {"market": MARKET, "generation": "1"}


def migrate(connection: sqlite3.Connection) -> None:
    """Make the tables of a new database, or bring those of one that has them up to date.

    Each step is a transaction of its own. Raises ValueError, with a text for the user, for a
    database that a newer klagg has changed.
    """
    applied = applied_steps(connection)
    refuse_newer(connection, applied)
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
            if name == COPIED:
                for row in {**META_OF_NEW, "database_id": uuid.uuid4().hex}.items():
                    utilities.execute("INSERT INTO meta (key, value) VALUES (?, ?)", row)

    for name, statements in STEPS.items():
        register(name, statements)
    migrations.apply(Utilities(connection, execute_plugins=False))
    connection.execute(
        "INSERT INTO meta (key, value) VALUES ('made_by', ?)"
        " ON CONFLICT DO UPDATE SET value = excluded.value",
        (f"klagg {__version__}",),
    )


def refuse_foreign(connection: sqlite3.Connection) -> None:
    """Raise ValueError, with a text for the user, for a database of another program."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if tables and "_sqlite_migrations" not in tables:
        raise ValueError("it holds another program's tables; choose another: --data-dir")


def applied_steps(connection: sqlite3.Connection) -> set[str]:
    """Return the names of the steps that made this database; none where it is new."""
    table = "SELECT 1 FROM sqlite_master WHERE name = '_sqlite_migrations'"
    if connection.execute(table).fetchone() is None:
        return set()
    rows = connection.execute(
        "SELECT name FROM _sqlite_migrations WHERE migration_set = ?", (_MIGRATION_SET,)
    )
    return {name for (name,) in rows}


def refuse_newer(connection: sqlite3.Connection, applied: set[str]) -> None:
    """Raise ValueError, naming who made it, for a database with steps that nobody here knows."""
    if unknown := applied.difference(STEPS):
        row = connection.execute("SELECT value FROM meta WHERE key = 'made_by'").fetchone()
        who = f"{row[0]}, " if row else ""
        raise ValueError(f"a newer klagg made it ({who}step {min(unknown)!r}); use that version")
