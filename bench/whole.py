"""Part 9: the whole of `klagg run` at 10,000 trades a second: processor time, and loop lag.

run_app with its three feeds over TLS (one frame a record), database, snapshot every 30 s, running
bars every 5 s; 500 symbols, fifteen intervals, a minute's end or two in each run. Without the
dashboard for the processor time; with it, and a 5 ms timer, for the lag of the event loop.
"""

from __future__ import annotations

import argparse
import shutil
import time
from functools import partial

from bench.blaster import Blast, blasting, certificate
from bench.market import CACHE, START_MS
from bench.measure import Figures, Part, interleaved, spawn, spread, table
from klagg_trio.store.database import Database

RATE = 10_000

CONNECTIONS = 3
"""What 500 symbols need with the program's own settings."""

START_UP_S = 12.0
"""Until the blaster's first frame: it makes its records ready while klagg starts."""

QUICK_START_UP_S = 5.0


def run_one(seconds: float, watch: str, timed: bool, *, collector: str, quick: bool) -> Figures:
    folder = CACHE / "whole-now"
    shutil.rmtree(folder, ignore_errors=True)
    Database.open(folder / "klagg.db").close()
    trades = int(RATE * (seconds + 15))
    blast = Blast(
        500,
        trades,
        float(RATE),
        START_MS,
        tls=True,
        frames_per_record=1,
        rate=RATE,
        connections=CONNECTIONS,
    )
    blast.capture()
    start_at_s = time.monotonic() + (QUICK_START_UP_S if quick else START_UP_S)
    try:
        with blasting(blast, start_at_s=start_at_s, timeout_s=int(seconds) + 60) as port:
            return spawn(
                "bench.contenders.whole",
                *(str(folder), f"wss://127.0.0.1:{port}", "500", str(trades), str(RATE)),
                *(str(START_MS), str(start_at_s), "--seconds", str(seconds), "--watch", watch),
                *(("--timed",) if timed else ()),
                *("--gc", collector, "--settled-s", "1" if quick else "8"),
                env={"SSL_CERT_FILE": str(certificate()[0])},
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    part = Part("whole", "the whole of klagg run at 10,000 trades a second")

    def add(parse: argparse.ArgumentParser) -> None:
        parse.add_argument("--seconds", type=float, default=60.0)
        parse.add_argument("--gc", default="frozen", help="frozen, as klagg run has it, or: as is")

    options = part.options(runs=1, add=add)
    seconds = 3.0 if options.quick else options.seconds
    jobs = {
        "no dashboard": ("none", False),
        "dashboard, with the timer": ("dashboard", True),
    }
    if options.quick:
        del jobs["no dashboard"]
    found = interleaved(
        {
            name: partial(run_one, seconds, *job, collector=options.gc, quick=options.quick)
            for name, job in jobs.items()
        },
        options.runs,
    )
    part.results["runs"] = found
    for name, runs in found.items():
        if "error" in runs[-1]:
            part.note(f"{name}: {runs[-1]['error']}")
    table(
        f"klagg run, {RATE:,} trades/s over TLS, 500 symbols x 15, {seconds:.0f} s",
        ("", "trades/s", "CPU %", "lag p50 ms", "p99", "p99.9", "max", "commit ms", "MiB"),
        (
            [name, spread(runs, "per_s")]
            + [
                spread(runs, column, digits=1)
                for column in (
                    "cpu_percent",
                    "lag_p50",
                    "lag_p99",
                    "lag_p999",
                    "lag_max",
                    "last_commit_ms",
                    "rss_mib",
                )
            ]
            for name, runs in found.items()
        ),
    )
    part.finish()


if __name__ == "__main__":
    main()
