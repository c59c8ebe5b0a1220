"""`klagg contracts`: who has which label under which key, and the way back from a rename."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from klagg_trio.commands.start import (
    DATABASE_NAME,
    SNAPSHOT_NAME,
    load_here,
    locked,
    open_database,
)
from klagg_trio.core.plain import plain
from klagg_trio.store.database import Database
from klagg_trio.store.joining import owing_before
from klagg_trio.store.reading import reading
from klagg_trio.store.start_snapshot import read_snapshot, write_snapshot

COLUMNS = ("contract", "symbol", "status", "first_known", "market", "onboard_ms", "delivery_ms")


def run_command(flags: Mapping[str, str | None], *, key: str | None, as_json: bool) -> int:
    """List the contracts, or join two. Returns the exit code."""
    data_dir = load_here(flags).settings.data_dir
    path = data_dir / DATABASE_NAME
    if key is not None:
        with reading(path):
            pass  # says what to do where there is none; a folder is not made for nothing
        with locked(data_dir):
            database = open_database(data_dir)
            try:
                _join(database, data_dir / SNAPSHOT_NAME, key)
            finally:
                database.close()
        click.echo(f"klagg: {plain(key)} has its label again", err=True)
    rows = _read(path)
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return 0
    for row in rows:
        stand_in = "" if row["first_known"] else " (the minute of its listing stands in)"
        click.echo(plain(f"{row['contract']} {row['symbol']} {row['status']}{stand_in}", 300))
    return 0


def _read(path: Path) -> list[dict[str, Any]]:
    with reading(path) as connection:
        rows = connection.execute(
            f"SELECT {', '.join(COLUMNS)} FROM contracts ORDER BY 1"
        ).fetchall()
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def _join(database: Database, snapshot: Path, key: str) -> None:
    """Join two contracts, and let the start snapshot owe what the open bars lack then.

    The snapshot goes first: to owe too much does no harm, to owe too little does.
    """
    pair = database.find_pair(key)
    database.try_join(pair)
    begins_ms = None if pair.new is None else database.begins(pair.new)
    older_ms = database.begins(pair.old)
    if snapshot.exists() and begins_ms is not None and older_ms is not None:
        state = read_snapshot(snapshot)
        write_snapshot(snapshot, owing_before(state, pair.label, begins_ms, None, older_ms))
    database.join(pair)
