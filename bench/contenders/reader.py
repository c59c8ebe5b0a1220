"""A reader of the database, as people's scripts are: one symbol's last day, and its year."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from klagg_trio.store.reading import open_reader

DAY_MS = 86_400_000
QUERY = (
    "SELECT open_time, open, high, low, close, volume, quote_volume, count FROM klines"
    " WHERE symbol = ? AND interval = '1m' AND open_time >= ? AND open_time < ? ORDER BY open_time"
)


def main(path: Path, symbol: str, end_ms: int) -> None:
    found: dict[str, float] = {}
    connection = open_reader(path)
    for name, days, repeats in (("day", 1, 7), ("year", 365, 2)):
        times = []
        rows: list[object] = []
        for _ in range(repeats):
            started = time.perf_counter()
            rows = connection.execute(QUERY, (symbol, end_ms - days * DAY_MS, end_ms)).fetchall()
            times.append(time.perf_counter() - started)
        found[f"{name}_first_ms"] = times[0] * 1e3
        found[f"{name}_ms"] = statistics.median(times) * 1e3
        found[f"{name}_rows"] = len(rows)
    connection.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
