"""The rows of the matrix, in the order in which they are run."""

from __future__ import annotations

from prove.row import Row
from prove.rows import (
    clock,
    demo,
    disk,
    files,
    kill,
    load,
    rest,
    second,
    signals,
    simulation,
    snapshot,
    suspend,
    tls,
    websocket,
)

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        kill.ROW,
        signals.ROW,
        second.ROW,
        snapshot.ROW,
        files.ROW,
        disk.ROW,
        rest.ROW,
        websocket.ROW,
        tls.ROW,
        load.ROW,
        clock.ROW,
        suspend.STOPPED,
        suspend.ASLEEP,
        simulation.ROW,
        simulation.LIES,
        demo.ROW,
    )
}
"""By name."""
