"""Whether a database file is whole: a look that fits into a start, and one at all of it."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Final

_FIRST: Final = ("meta", "symbols", "intervals", "recent_opens", "open_bars", "recent_bars")
"""What a run needs at once, and is small; then everything."""

_STEPS: Final = 5_000
"""Of SQLite's machine, between two looks at the clock: well below a millisecond."""


def quick_look(connection: sqlite3.Connection, path: Path, seconds: float) -> str | None:
    """Return what is wrong, as far as can be seen in so many seconds; None where nothing is."""
    if short := _cut_short(connection, path):
        return short
    until_s = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > until_s, _STEPS)
    try:
        for table in (*_FIRST, ""):
            argument = f"('{table}')" if table else "(1)"
            flaw = connection.execute(f"PRAGMA quick_check{argument}").fetchone()[0]
            if flaw != "ok":
                return str(flaw)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
    finally:
        connection.set_progress_handler(None, 0)
    return None


def _cut_short(connection: sqlite3.Connection, path: Path) -> str | None:
    """Say whether pages are missing at the end; where a log is, they may be in there."""
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size:
        return None
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    if path.stat().st_size < pages * size:
        return f"it is cut short: {path.stat().st_size:,} of {pages * size:,} bytes"
    return None
