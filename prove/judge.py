"""What is in a database, and whether it is right: by plain SQL, the calendar, and the exchange.

Nothing here comes from klagg. A mistake that klagg makes when it writes cannot be made again when
it is judged.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
import struct
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from prove.process import Exchange
from prove.row import Broken, check

MINUTE_MS = 60_000
FIXED_MS = {
    name: count * unit
    for unit, counts in (
        (MINUTE_MS, {"1m": 1, "3m": 3, "5m": 5, "15m": 15, "30m": 30}),
        (60 * MINUTE_MS, {"1h": 1, "2h": 2, "4h": 4, "6h": 6, "8h": 8, "12h": 12}),
        (1_440 * MINUTE_MS, {"1d": 1, "3d": 3, "1w": 7}),
    )
    for name, count in counts.items()
}
"""Months have no fixed length; no row keeps them."""

EDGE_FILLS_MAX = 40
"""Fills of the aggregates that reach over both ends of a stretch."""


class Bar(NamedTuple):
    """A stored bar, as its readers get it."""

    open: float
    high: float
    low: float
    close: float
    volume: float
    quote_volume: float
    count: int  # type: ignore[assignment]
    taker_buy_volume: float
    taker_buy_quote_volume: float
    source: str
    revision: int

    @property
    def values(self) -> tuple[float, ...]:
        """The nine values."""
        return self[:9]


Key = tuple[str, str, int]
"""Symbol, interval, open time."""


def ask(path: Path, query: str, *values: object) -> list[tuple]:
    """Ask a database as any reader would."""
    uri = f"file:{path}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=10)) as connection:
        return connection.execute(query, values).fetchall()


def last_tick(path: Path) -> int:
    """Return the minute before which every bar is stored; 0 where nothing can be read yet."""
    try:
        rows = ask(path, "SELECT value FROM meta WHERE key = 'last_tick'")
    except sqlite3.Error:
        return 0
    return int(rows[0][0]) if rows else 0


def sealed(path: Path) -> dict[Key, Bar]:
    """Return every sealed bar. Broken where one is there twice."""
    rows = ask(
        path,
        "SELECT symbol, interval, open_time, open, high, low, close, volume, quote_volume, count,"
        " taker_buy_volume, taker_buy_quote_volume, source, revision FROM klines",
    )
    bars = {row[:3]: Bar(*row[3:]) for row in rows}
    check(len(bars) == len(rows), f"{len(rows) - len(bars)} bars are stored twice")
    return bars


def running(path: Path) -> tuple[int, int]:
    """Return the newest opening time of the running minutes, and the trades in all of them."""
    try:
        rows = ask(path, "SELECT max(open_time), sum(count) FROM open_klines WHERE interval = '1m'")
    except sqlite3.Error:
        return 0, 0
    return rows[0][0] or 0, rows[0][1] or 0


def check_whole(path: Path) -> None:
    """Broken where SQLite itself finds the file damaged."""
    found = ask(path, "PRAGMA integrity_check(5)")
    check(found == [("ok",)], f"integrity_check: {found}")


def check_kept(before: dict[Key, Bar], after: dict[Key, Bar]) -> None:
    """Broken where a bar that readers had seen is gone, or has changed without a new revision."""
    for key, bar in before.items():
        kept = after.get(key)
        if kept is None:
            raise Broken(f"a sealed bar is lost: {key}")
        check(kept.revision >= bar.revision, f"an older revision again: {key} {bar} {kept}")
        same = kept.revision > bar.revision or kept == bar
        check(same, f"changed without a revision: {key} {bar} {kept}")


def check_continuous(path: Path, bars: dict[Key, Bar]) -> None:
    """Broken where a series has a hole, or does not reach the last tick."""
    tick_ms = last_tick(path)
    check(tick_ms > 0, "no last tick")
    ended = {
        symbol for (symbol,) in ask(path, "SELECT symbol FROM symbols WHERE status <> 'TRADING'")
    }
    series: dict[tuple[str, str], list[int]] = defaultdict(list)
    for symbol, interval, open_ms in bars:
        series[symbol, interval].append(open_ms)
    for (symbol, interval), opens in series.items():
        step_ms = FIXED_MS[interval]
        opens.sort()
        expected = range(opens[0], opens[-1] + 1, step_ms)
        if opens != list(expected):
            missing = sorted(set(expected) - set(opens))
            raise Broken(f"{len(missing)} holes in {symbol} {interval}, the first at {missing[:3]}")
        end_ms = opens[-1] + step_ms
        reaches = end_ms <= tick_ms < end_ms + step_ms
        check(
            reaches or symbol in ended,
            f"{symbol} {interval} ends at {end_ms}, the last tick is {tick_ms}",
        )


def suspects(path: Path, until_ms: int) -> int:
    """Return how many stored bars that end by then are suspect."""
    query = "SELECT count(*) FROM klines WHERE source = 'suspect' AND close_time < ?"
    return ask(path, query, until_ms)[0][0]


def check_official(path: Path, exchange: Exchange, bars: dict[Key, Bar], since_ms: int) -> int:
    """Hold the bars since some time against the exchange's own. Returns how many were compared.

    Broken where one differs. Only a minute made from trades may, and only by an aggregate that
    reaches over its end: then the minutes beside it make up for it.
    """
    compared = 0
    series: dict[tuple[str, str], list[int]] = defaultdict(list)
    for symbol, interval, open_ms in bars:
        if open_ms >= since_ms and interval in ("1m", "5m", "30m", "1h"):
            series[symbol, interval].append(open_ms)
    doubtful: dict[str, set[int]] = defaultdict(set)
    for symbol, interval in sorted(series, key=lambda key: FIXED_MS[key[1]]):
        opens = sorted(series[symbol, interval])
        rows = exchange.klines(symbol, interval, opens[0], opens[-1])
        official = {row[0]: _official(row) for row in rows}
        differing = []
        for open_ms in opens:
            bar = bars[symbol, interval, open_ms]
            compared += 1
            if bar.values == official.get(open_ms):
                continue
            text = f"{symbol} {interval} {open_ms}: {bar}, official {official.get(open_ms)}"
            check(bar.source not in ("official", "absent"), f"differs: {text}")
            differing.append(open_ms)
        if interval == "1m":
            stored = {open_ms: bars[symbol, interval, open_ms] for open_ms in opens}
            check_straddles(symbol, differing, stored, official)
            doubtful[symbol].update(differing)
            continue
        for open_ms in differing:  # the minute that gave or took an aggregate is in it
            end_ms = open_ms + FIXED_MS[interval]
            touched = any(open_ms <= each < end_ms for each in doubtful[symbol])
            check(touched, f"differs: {symbol} {interval} {open_ms}")
    return compared


def check_straddles(
    symbol: str, differing: Iterable[int], stored: dict[int, Bar], official: dict[int, tuple]
) -> None:
    """Broken where minutes differ by more than what one gave to the next.

    Where the minute beside them is not there to be looked at, an aggregate or two may be in it.
    """
    stretches: list[list[int]] = []
    for open_ms in differing:
        if stretches and stretches[-1][-1] == open_ms - MINUTE_MS:
            stretches[-1].append(open_ms)
        else:
            stretches.append([open_ms])
    for stretch in stretches:
        ours = [stored[open_ms] for open_ms in stretch]
        theirs = [official[open_ms] for open_ms in stretch]
        if not {stretch[0] - MINUTE_MS, stretch[-1] + MINUTE_MS} <= stored.keys():
            fills = abs(sum(bar.count for bar in ours) - sum(row[6] for row in theirs))
            check(fills <= EDGE_FILLS_MAX, f"differs: {symbol} 1m {stretch}: {ours}, {theirs}")
            continue
        for at in (4, 5, 6, 7, 8):
            equal = math.isclose(sum(b[at] for b in ours), sum(b[at] for b in theirs), rel_tol=1e-9)
            check(equal, f"differs: {symbol} 1m {stretch}: {ours}, official {theirs}")


def _official(row: list) -> tuple[float, ...]:
    values = (*row[1:6], row[7], row[8], row[9], row[10])
    return tuple(float(value) for value in values)


def check_snapshot(path: Path) -> None:
    """Broken where a start snapshot is not whole: magic, length, digest (docs/reference.md)."""
    contents = path.read_bytes()
    magic, _, length, digest = struct.unpack(">8sIQ32s", contents[:52])
    payload = contents[52:]
    check(magic == b"klaggst\n", f"the snapshot begins with {magic!r}")
    check(length == len(payload), f"the snapshot has {len(payload)} bytes, says {length}")
    check(digest == hashlib.sha256(payload).digest(), "the snapshot's digest is wrong")
