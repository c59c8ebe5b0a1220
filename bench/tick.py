"""Part 4: a tick, from the moment it is due to the return of its commit.

For each size: an ordinary minute (only 1m ends) and a minute with which all fifteen intervals end
(a month that begins on a Monday), in an empty database and in one of ten million bars, with a feed
running at 10,000 trades a second in the same event loop. The recent bars hold their usual amount.
Afterwards, one symbol's last day and year are read through the view `klines`.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
from functools import partial
from pathlib import Path

from bench.big_database import big_database
from bench.blaster import Blast, blasting
from bench.market import CACHE
from bench.measure import Figures, Part, interleaved, median, spawn, spread, table
from klagg_trio.store.fold import FOLD_TURN

FEED_RATE = 10_000
FEED_START_MS = 1_790_812_800_000 + 100
"""The fed market's capture begins with a minute: none ends while a tick is measured."""

RECENT_MINUTES = FOLD_TURN
"""What the recent bars hold when every symbol has had its turn of folding."""


LARGE = 30_000
"""Bars above which a tick takes seconds when all of them end."""


def prepared(symbols: int, intervals: int, bars: int) -> Path:
    """Return a database with its usual recent bars; made once, copied for every run."""
    folder = CACHE / f"tick-v3-{symbols}-{intervals}-{bars}-{RECENT_MINUTES}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(big_database(symbols, bars), folder)
        (folder / "ready").unlink()
        spawn(
            "bench.contenders.ticker",
            *(str(folder), str(symbols), str(intervals)),
            *("--ordinary", "0", "--full", "0", "--recent", str(RECENT_MINUTES)),
            timeout_s=1_200,
        )
        (folder / "ready").touch()
    return folder


def run_one(
    size: tuple[int, int, int], ordinary: int, full: int, *, feed: bool, collector: str
) -> Figures:
    """Measure one size once."""
    symbols, intervals, bars = size
    base = prepared(symbols, intervals, bars)
    folder = CACHE / "tick-now"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    os.sync()  # or the first commit would wait until the copy is on disk
    if symbols * intervals > LARGE:  # the feed's capture lasts a minute
        ordinary, full = ordinary // 3, full // 5
    arguments = [str(folder), str(symbols), str(intervals)]
    arguments += ["--ordinary", str(ordinary), "--full", str(full if intervals == 15 else 0)]
    arguments += ["--gc", collector]
    try:
        if not feed:
            return spawn("bench.contenders.ticker", *arguments)
        trades = FEED_RATE * 58
        blast = Blast(
            500,
            trades,
            float(FEED_RATE),
            FEED_START_MS,
            frames_per_record=1,
            rate=FEED_RATE,
        )
        with blasting(blast) as port:
            arguments += ["--url", f"ws://127.0.0.1:{port}", "--trades", str(trades)]
            arguments += ["--rate", str(FEED_RATE), "--start-ms", str(FEED_START_MS)]
            return spawn("bench.contenders.ticker", *arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


SIZES = (
    (500, 7, 0),
    (500, 15, 0),
    (1_000, 7, 0),
    (1_000, 15, 0),
    (5_000, 7, 0),
    (5_000, 15, 0),
    (500, 15, 10_000_000),
    (5_000, 7, 10_000_000),
)


def main() -> None:
    part = Part("tick", "a tick, from the moment it is due to the return of its commit")

    def add(parse: argparse.ArgumentParser) -> None:
        parse.add_argument("--sizes", default="", help="such as 500x15x10000000,5000x7x0")
        parse.add_argument("--no-feed", action="store_true")
        parse.add_argument("--gc", default="frozen", help="frozen, as klagg run has it; as is; off")
        parse.add_argument("--ordinary", type=int, default=30, help="ordinary ticks a run")
        parse.add_argument("--full", type=int, default=20, help="ticks with all ending a run")

    options = part.options(runs=1, add=add)
    sizes = SIZES
    if options.quick:
        sizes = ((50, 15, 0),)
        options.ordinary, options.full = 5, 3
    if options.sizes:
        sizes = tuple(tuple(map(int, size.split("x"))) for size in options.sizes.split(","))
    for size in sizes:
        prepared(*size)
    found = interleaved(
        {
            f"{symbols} x {intervals}, {bars / 1e6:g} M bars": partial(
                run_one,
                (symbols, intervals, bars),
                options.ordinary,
                options.full,
                feed=not options.no_feed,
                collector=options.gc,
            )
            for symbols, intervals, bars in sizes
        },
        options.runs,
    )
    part.results["ticks"] = found
    for kind, title in (
        ("ordinary", "An ordinary minute: only 1m ends"),
        ("full", "All fifteen intervals end"),
    ):
        rows = []
        for name, runs in found.items():
            if runs and "error" in runs[-1]:
                part.note(f"{name}: {runs[-1]['error']}")
                continue
            if math.isnan(median(runs, f"{kind}_durable_p50_ms")):
                continue
            rows.append(
                [name, f"{median(runs, f'{kind}_rows'):,.0f}"]
                + [
                    spread(runs, f"{kind}_{column}", digits=1)
                    for column in (
                        "python_ms",
                        "hold_ms",
                        "commit_ms",
                        "durable_p50_ms",
                        "durable_p99_ms",
                    )
                ]
                + [
                    spread(runs, f"{kind}_wal_bytes", 1e-6, 2),
                    spread(runs, f"{kind}_fold_ms", digits=1),
                    spread(runs, f"{kind}_wal_fold_bytes", 1e-6, 2),
                ]
            )
        if rows:
            table(
                f"{title} (ms; feed {0 if options.no_feed else FEED_RATE:,}/s beside it)",
                (
                    "symbols x intervals, database",
                    "rows",
                    "Python",
                    "longest hold",
                    "commit",
                    "durable p50",
                    "durable p99",
                    "WAL MB",
                    "fold ms",
                    "fold WAL MB",
                ),
                rows,
            )
    rows = []
    for name, runs in found.items():
        reads = [run["reads"] for run in runs if "reads" in run]
        if reads:
            rows.append(
                (
                    name,
                    spread(reads, "day_ms", digits=1),
                    f"{median(reads, 'day_rows'):,.0f}",
                    spread(reads, "year_ms", digits=0),
                    f"{median(reads, 'year_rows'):,.0f}",
                    spread(runs, "cpu_percent", digits=1),
                    spread(runs, "feed_per_s"),
                    spread(runs, "lag_ordinary_p999", digits=1),
                    spread(runs, "lag_ordinary_max", digits=1),
                    spread(runs, "lag_full_max", digits=1),
                    spread(runs, "report_first_ms", digits=0),
                    spread(runs, "report_first_wal_bytes", 1e-6, 2),
                    spread(runs, "report_next_ms", digits=1),
                    spread(runs, "report_next_wal_bytes", 1e-6, 2),
                    spread(runs, "minute_wal_bytes", 1e-6, 2),
                )
            )
    table(
        "One symbol read through `klines` (ms), and what else went on",
        (
            "",
            "day",
            "rows",
            "year",
            "rows",
            "CPU %",
            "feed/s",
            "lag p99.9 ms",
            "max",
            "all ending",
            "first report of running bars ms",
            "WAL MB",
            "next ms",
            "WAL MB",
            "WAL MB, the whole minute",
        ),
        rows,
    )
    part.finish()


if __name__ == "__main__":
    main()
