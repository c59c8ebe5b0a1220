"""The whole application in simulation, ten seeds a run: faults, and an exchange that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from prove.process import ROOT
from prove.row import Broken, Outcome, Row, check

SEEDS = 10
SHORT_RUNS, SHORT_MINUTES, LONG_MINUTES = 20, 30, 120
LIES_FROM = 1_000_000
"""Seeds of an exchange that is wrong are others than those of one that only fails."""


def simulate(first: int, minutes: int, *more: str) -> list[dict]:
    """Run ten seeds; return what came of them."""
    last = first + SEEDS - 1
    command = [sys.executable, str(ROOT / "scripts" / "simulate"), "--seeds", f"{first}-{last}"]
    command += ["--minutes", str(minutes), "--jobs", "1", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=7_200)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    if len(results) != SEEDS or done.returncode not in (0, 3):
        raise Broken(f"{' '.join(command)}: {done.stderr[-2_000:]}")
    return results


def run_kind(seed: int, outcome: Outcome, *more: str, first: int = 0) -> list[dict]:
    """Run ten seeds of one kind; the first of them twice."""
    minutes = SHORT_MINUTES if seed < SHORT_RUNS else LONG_MINUTES
    results = simulate(first + seed * SEEDS, minutes, *more)
    for result in results:
        outcome.cases += 1
        if not result["ok"]:
            told = result.get("error") or json.dumps(result["summary"])
            again = (
                f"scripts/simulate --seeds {result['seed']} --minutes {minutes} {' '.join(more)}"
            )
            raise Broken(f"{again}\n  {told[-3_000:]}")
    return results


def run(seed: int, folder: Path, outcome: Outcome) -> None:
    """Faults of the lines, the clock and the exchange; the same seed makes the same database."""
    results = run_kind(seed, outcome)
    again = simulate(seed * SEEDS, SHORT_MINUTES if seed < SHORT_RUNS else LONG_MINUTES)
    digests = {result["seed"]: result["digest"] for result in results}
    for result in again:
        check(
            result["digest"] == digests[result["seed"]],
            f"seed {result['seed']} has made another database the second time",
        )


def run_lies(seed: int, folder: Path, outcome: Outcome) -> None:
    """An exchange that is wrong as well."""
    for result in run_kind(seed, outcome, "--lies", first=LIES_FROM):
        summary = result["summary"]
        wrong = ("announced_wrong", "missing_expected", "holes", "differing_bars", "suspect_bars")
        for name in wrong:
            check(summary[name] == 0, f"seed {result['seed']}: {name} is {summary[name]}")
        outcome.measure("longest suspect, s", summary["longest_suspect_s"])


ROW = Row(
    name="simulation",
    what="the whole application in simulation: seeds draw market, faults, clock drift and steps",
    holds="no rule broken; the same seed makes the same database, byte for byte",
    run=run,
    ci=SHORT_RUNS,
    release=SHORT_RUNS + 50,
    lanes=2,
)
LIES = Row(
    name="lies",
    what="an exchange that is wrong: contracts, time, rows, trades; alone and together",
    holds="nothing announced wrong, nothing missing, nothing owed but what the exchange lacks",
    run=run_lies,
    ci=4,
    release=SHORT_RUNS + 50,
    lanes=2,
)
