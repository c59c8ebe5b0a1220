"""Part 7: a backfill under the exchange's real weights, on simulated time."""

from __future__ import annotations

import shutil
from functools import partial

from bench.market import CACHE
from bench.measure import Figures, Part, interleaved, median, spawn, spread, table


def run_one(how: str, symbols: int, since: str) -> Figures:
    folder = CACHE / "backfill-now"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return spawn(
            "bench.contenders.backfiller", str(folder), how, str(symbols), since, timeout_s=600
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    part = Part("backfill", "a backfill under the exchange's real weights, on simulated time")
    options = part.options(runs=1)
    jobs = {
        "state of 500 symbols": ("klagg", 500, "0d"),
        "klagg, 200 symbols, 3 days": ("klagg", 200, "3d"),
        "pages of 1,000 in turn, the same 1m": ("1000", 200, "3d"),
        "pages of 1,500 in turn, the same 1m": ("1500", 200, "3d"),
    }
    if options.quick:
        jobs = {"state of 45 symbols": ("klagg", 45, "0d")}
    found = interleaved({name: partial(run_one, *job) for name, job in jobs.items()}, options.runs)
    part.results["runs"] = found
    rows = []
    for name, runs in found.items():
        if "error" in runs[-1]:
            part.note(f"{name}: {runs[-1]['error']}")
            continue
        rows.append(
            (
                name,
                f"{median(runs, 'bars'):,.0f}",
                f"{median(runs, 'weight'):,.0f}",
                f"{median(runs, 'bars_a_weight'):.1f}",
                spread(runs, "simulated_s"),
                spread(runs, "bars_a_minute"),
                spread(runs, "share_used", 100, 1),
                f"{median(runs, 'peak_minute'):,.0f}",
                f"{median(runs, 'in_flight_mean'):.1f} / {median(runs, 'in_flight_max'):.0f}",
                spread(runs, "real_s", digits=1),
            )
        )
    table(
        "Weight limit 2,400 a minute, 80 % allowed, 80 ms a request",
        (
            "",
            "bars",
            "weight",
            "bars/weight",
            "simulated s",
            "bars/min",
            "allowed weight used, %",
            "most in a minute",
            "in flight mean / max",
            "real s",
        ),
        rows,
    )
    part.finish()


if __name__ == "__main__":
    main()
