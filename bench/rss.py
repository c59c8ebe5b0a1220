"""Part 8: resident size after an hour of simulated trading, and its slope."""

from __future__ import annotations

import shutil
from functools import partial

from bench.market import CACHE
from bench.measure import Figures, Part, interleaved, spawn, spread, table
from klagg_trio.store.database import Database

PER_MINUTE = 12_000
"""Trades a minute; a shard keeps none of them, so their number is of no matter."""


def run_one(symbols: int, minutes: int) -> Figures:
    folder = CACHE / "rss-now"
    shutil.rmtree(folder, ignore_errors=True)
    # The schema is made beforehand, as by `klagg backfill`: that loads what a run does not.
    Database.open(folder / "klagg.db").close()
    try:
        return spawn(
            "bench.contenders.hour",
            *(str(folder), str(symbols), str(minutes), str(PER_MINUTE)),
            timeout_s=600,
        )
    finally:
        shutil.rmtree(folder)


def main() -> None:
    part = Part("rss", "resident size after an hour of simulated trading, fifteen intervals")
    options = part.options(runs=1)
    sizes = ((100, 6),) if options.quick else ((500, 60), (5_000, 60))
    found = interleaved(
        {
            f"{symbols:,} x 15, {minutes} minutes": partial(run_one, symbols, minutes)
            for symbols, minutes in sizes
        },
        options.runs,
    )
    part.results["runs"] = found
    for name, runs in found.items():
        if "error" in runs[-1]:
            part.note(f"{name}: {runs[-1]['error']}")
    table(
        "Resident size (MiB), all modules of `klagg run` loaded",
        ("symbols x intervals", "modules", "first minute", "last minute", "peak", "slope/hour"),
        (
            [name]
            + [
                spread(runs, column, digits=1)
                for column in (
                    "loaded_mib",
                    "first_mib",
                    "last_mib",
                    "peak_mib",
                    "slope_mib_per_hour",
                )
            ]
            for name, runs in found.items()
        ),
    )
    part.finish()


if __name__ == "__main__":
    main()
