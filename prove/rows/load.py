"""Ten times the trade of an ordinary simulated market, for minutes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from prove import judge
from prove.chain import Scene
from prove.process import LIFE_S, Exchange, backfill, pause, process, wait_for
from prove.row import Outcome, Row, check

SYMBOLS = 45
PER_MINUTE = 23_600
"""Ten times what `klagg sim` makes of as many symbols."""

MINUTES = 4
GROWTH_MB_MAX = 30.0
MEMORY_MB_MAX = 300.0


def run(seed: int, folder: Path, outcome: Outcome) -> None:
    """Watch memory, the delay of each tick on disk, and where every trade ended."""
    busy = (sys.executable, "-m", "prove.busy")
    with process(folder, "busy", (seed, SYMBOLS, PER_MINUTE, LIFE_S), command=busy) as market:
        wait_for(lambda: market.output.read_text().strip(), "the exchange", 30)
        urls = json.loads(market.output.read_text())
        exchange = Exchange(urls["rest_url"], urls["ws_url"])
        data = folder / "data"
        backfill(folder, data, exchange.rest_url)
        made = Scene(folder, exchange, data, exchange.rest_url, exchange.ws_url, exchange.now_ms())
        with made.running() as klagg:
            made.wait_live(klagg)
            peaks = [klagg.peak_mb()]
            tick_ms = judge.last_tick(made.database)
            end_s = time.monotonic() + MINUTES * 60
            while time.monotonic() < end_s:
                pause(0.05)
                check(klagg.alive, f"klagg has ended\n{klagg.tail()}")
                newest_ms = judge.last_tick(made.database)
                if newest_ms > tick_ms:
                    tick_ms = newest_ms
                    outcome.measure("minute on disk after its end, s", time.time() - tick_ms / 1e3)
                    peaks.append(klagg.peak_mb())
            outcome.measure("resident memory, MB", peaks[-1])
            outcome.measure("growth of the last minutes, MB", peaks[-1] - peaks[1])
            made.settle(klagg)
        check_accounted(made, outcome)
        outcome.cases += 1


def check_accounted(made: Scene, outcome: Outcome) -> None:
    """Broken where a trade ended nowhere: the figures of the run add up."""
    counts = json.loads(
        judge.ask(made.database, "SELECT value FROM meta WHERE key = 'trades'")[0][0]
    )
    received = counts.pop("received")
    outcome.measure("trades received", received)
    check(received == sum(counts.values()), f"{received} received, {counts}")
    check(counts["rejected"] == 0, f"rejected: {counts}")


ROW = Row(
    name="load",
    what=f"{PER_MINUTE:,} trades a minute, ten times an ordinary simulated market",
    holds=f"memory flat and at or below {MEMORY_MB_MAX:.0f} MB, every trade accounted for, on time",
    run=run,
    ci=1,
    release=5,
    limits={
        "resident memory, MB": ("max", MEMORY_MB_MAX),
        "growth of the last minutes, MB": ("max", GROWTH_MB_MAX),
        "minute on disk after its end, s": ("p95", 3.0),
    },
)
