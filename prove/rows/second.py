"""A second klagg on the same data directory: twenty tries are one run."""

from __future__ import annotations

import random
from pathlib import Path

from prove.chain import scene
from prove.process import process
from prove.row import Outcome, Row, check

TRIES = 20
EXIT_LOCKED = 75


def run(seed: int, folder: Path, outcome: Outcome) -> None:
    """While one runs, start others, one or two at a time; each has to give way at once."""
    rng = random.Random(f"second/{seed}")
    with scene(folder, seed) as made, made.running("first") as first:
        made.wait_live(first)
        others = (
            made.run_arguments(),
            ("backfill", "--data-dir", made.data, "--rest-url", made.rest_url),
            ("audit", "--repair", "--data-dir", made.data, "--rest-url", made.rest_url),
        )
        for number in range(TRIES):
            arguments = rng.choice(others)
            with process(folder, f"second-{number}", arguments) as second:
                code = second.wait(30)
                check(
                    code == EXIT_LOCKED, f"klagg {arguments[0]} ends with {code}\n{second.tail()}"
                )
                second.check_quiet()
                check(len(second.text.splitlines()) == 1, f"more than a line\n{second.tail()}")
            check(first.alive, "the first one has ended")
            outcome.cases += 1
        made.settle(first)


ROW = Row(
    name="second",
    what="a second klagg on the same data directory",
    holds=f"exit {EXIT_LOCKED} with one line; the first goes on",
    run=run,
    ci=5,
    release=10,
    lanes=2,
)
