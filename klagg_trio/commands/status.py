"""`klagg status`: what the data directory holds, from a read-only look at the database."""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from klagg_trio.commands.start import (
    DATABASE_NAME,
    LOCK_NAME,
    SNAPSHOT_NAME,
    command_here,
    load_here,
    wall_ms,
)
from klagg_trio.core.errors import DamagedDataError
from klagg_trio.core.intervals import DAY_MS
from klagg_trio.core.plain import plain
from klagg_trio.settings import Loaded
from klagg_trio.store.reading import reading, select_suspects

EVENTS_SHOWN: Final = 5

SUSPECTS_MAX: Final = 100_000
"""Suspect bars counted; more of them is no better news."""


def run_command(flags: Mapping[str, str | None], *, as_json: bool) -> int:
    """Print the status. Returns the exit code."""
    loaded = load_here(flags)
    data_dir = loaded.settings.data_dir
    path = data_dir / DATABASE_NAME
    try:
        with reading(path) as connection:
            status = _read(connection, data_dir)
        if not as_json:
            _tell(status, loaded)
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise DamagedDataError(
            f"{path} holds what klagg never writes ({error}); see: klagg verify"
        ) from error
    if as_json:
        click.echo(json.dumps(status, ensure_ascii=False))
    return 0


def _read(connection: sqlite3.Connection, data_dir: Path) -> dict[str, Any]:
    """Return the figures. All counts are of the last day of 1m bars, which is quick to read."""
    meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    last_tick_ms = int(meta.get("last_tick", 0))
    day_ms = last_tick_ms - DAY_MS
    sources: dict[str, int] = {}
    symbols = [symbol for (symbol,) in connection.execute("SELECT symbol FROM symbols ORDER BY 1")]
    for symbol in symbols:
        for source, count in connection.execute(
            "SELECT source, count(*) FROM klines"
            " WHERE symbol = ? AND interval = '1m' AND open_time >= ? GROUP BY source",
            (symbol, day_ms),
        ):
            sources[source] = sources.get(source, 0) + count
    events = connection.execute(
        "SELECT at_ms, kind, symbol, text FROM events ORDER BY at_ms DESC LIMIT ?", (EVENTS_SHOWN,)
    ).fetchall()
    return {
        "data_dir": str(data_dir),
        "at_work": _at_work(data_dir),
        "last_tick_ms": last_tick_ms,
        "behind_s": round((wall_ms() - last_tick_ms) / 1_000, 1),
        "symbols": len(symbols),
        "minutes_of_last_day": sources,
        "suspect_bars_stored": len(select_suspects(connection, SUSPECTS_MAX)),
        "trades": json.loads(meta.get("trades", "{}")),
        "audit": json.loads(meta.get("audit", "{}")),
        "repair": json.loads(meta.get("repair", "{}")),
        "database_bytes": _size(data_dir / DATABASE_NAME),
        "snapshot_bytes": _size(data_dir / SNAPSHOT_NAME),
        "events": [
            {"at_ms": at_ms, "kind": kind, "symbol": symbol, "text": text}
            for at_ms, kind, symbol, text in reversed(events)
        ],
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _at_work(data_dir: Path) -> bool:
    """Whether a klagg holds the lock. Never makes the lock file: status only looks."""
    import filelock

    path = data_dir / LOCK_NAME
    if not path.exists():
        return False
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (filelock.Timeout, OSError):
        return True
    lock.release()
    return False


def _tell(status: dict[str, Any], loaded: Loaded) -> None:
    state = "at work" if status["at_work"] else "not running"
    click.echo(f"{status['data_dir']}: {state}, {status['symbols']} symbols")
    if status["last_tick_ms"]:
        click.echo(
            f"every bar up to {_utc(status['last_tick_ms'])} is stored "
            f"({_ago(status['behind_s'])} ago)"
        )
    else:
        backfill, run = (command_here(f"klagg {name}", loaded) for name in ("backfill", "run"))
        click.echo(f"no tick yet; next: {backfill}; then: {run}")
    sources = ", ".join(f"{n:,} {source}" for source, n in status["minutes_of_last_day"].items())
    click.echo(f"minutes stored of the last day, by source: {sources or 'none'}")
    suspects = status["suspect_bars_stored"]
    more = " or more" if suspects == SUSPECTS_MAX else ""
    click.echo(f"suspect bars stored, of any age and interval: {suspects:,}{more}")
    if trades := status["trades"]:
        parts = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in trades.items())
        ended = sum(n for name, n in trades.items() if name != "received")
        balance = trades["received"] - ended
        click.echo(
            f"trades of the last run: {parts}" + (f"; {balance:,} on the way" * (balance > 0))
        )
    if audit := status["audit"]:
        audited = audit["equal"] + audit["straddle"] + audit["unexplained"]
        click.echo(
            "audit of the last 24 hours: nothing yet"
            if not audited
            else f"audit of the last 24 hours: {100 * audit['share_equal']:.3f} % equal as sealed "
            f"({audit['equal']:,} equal, {audit['straddle']:,} straddle, "
            f"{audit['unexplained']:,} unexplained)"
        )
    if repair := status["repair"]:
        click.echo(
            f"repair in the last run: {repair['repaired_minutes']:,} minutes replaced, "
            f"{repair['owed_minutes']:,} minutes owed"
        )
    click.echo(
        f"database {status['database_bytes'] / 1e6:,.1f} MB, "
        f"start snapshot {status['snapshot_bytes'] / 1e3:,.1f} kB"
    )
    for event in status["events"]:
        words = (event["kind"], event["symbol"], event["text"])
        click.echo("  ".join([_utc(event["at_ms"]), *(plain(word, 500) for word in words)]))


def _ago(seconds: float) -> str:
    for unit, length_s in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _utc(at_ms: int) -> str:
    try:
        at = datetime.datetime.fromtimestamp(at_ms / 1_000, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms"
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
