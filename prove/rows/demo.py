"""`klagg demo --faults lies` as anybody would run it, two hours a seed."""

from __future__ import annotations

import json
from pathlib import Path

from prove.process import process
from prove.row import Outcome, Row, check

MINUTES = 120
NONE = ("announced_wrong", "holes", "differing_bars", "suspect_bars", "verify_findings")


def run(seed: int, folder: Path, outcome: Outcome) -> None:
    """Exit 0, and nothing in the summary that should not be there."""
    arguments = ("demo", "--minutes", MINUTES, "--speed", "max", "--faults", "lies")
    arguments += ("--seed", seed, "--headless", "--json")
    with process(folder, "demo", arguments) as demo:
        code = demo.wait(3_000)
        said = demo.output.read_text()
        told = said[-1_500:] + demo.tail()
        check(code == 0, f"exit {code}: klagg {' '.join(map(str, arguments))}\n{told}")
        summary = json.loads(said)
    for name in NONE:
        check(summary[name] == 0, f"{name} is {summary[name]}")
    outcome.cases += 1


ROW = Row(
    name="demo",
    what=f"klagg demo --minutes {MINUTES} --speed max --faults lies",
    holds="exit 0; nothing announced wrong, no hole, no difference, nothing suspect in the end",
    run=run,
    ci=40,
    release=100,
    lanes=2,
)
