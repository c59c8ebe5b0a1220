"""The rows of the matrix, in the order in which they are run."""

from __future__ import annotations

from prove.row import Row
from prove.rows import disk, kill, rest, second, signals, snapshot, websocket

ROWS: dict[str, Row] = {
    row.name: row
    for row in (kill.ROW, signals.ROW, second.ROW, snapshot.ROW, disk.ROW, rest.ROW, websocket.ROW)
}
"""By name."""
