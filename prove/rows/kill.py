"""kill -9 at random moments, and start again: ten kills in one data directory are one run."""

from __future__ import annotations

import random
from pathlib import Path

from prove import judge
from prove.chain import Scene, scene, until_next_minute_s
from prove.process import Process, pause, process, wait_for
from prove.row import Outcome, Row, check

KILLS = 10


def run(seed: int, folder: Path, outcome: Outcome) -> None:
    """Kill ten times, each at a moment of its own; look at the files; in the end hold all bars
    against the exchange's."""
    rng = random.Random(f"kill/{seed}")
    with scene(folder, seed) as made:
        for number in range(KILLS):
            kind = rng.choices(("running", "tick", "start", "backfill"), (5, 2, 2, 1))[0]
            seen = kill(made, kind, rng, number, outcome)
            outcome.cases += 1
            judge.check_whole(made.database)
            judge.check_snapshot(made.snapshot)
            after = judge.sealed(made.database)
            judge.check_kept(seen, after)
            judge.check_continuous(made.database, after)
        with made.running("last") as klagg:
            outcome.measure("restart to live, s", made.wait_live(klagg))
            compared = made.settle(klagg)
        check(compared > 0, "nothing was compared")
        outcome.measure("bars compared", compared)


def kill(
    made: Scene, kind: str, rng: random.Random, number: int, outcome: Outcome
) -> dict[judge.Key, judge.Bar]:
    """Start, and kill at a moment of one kind. Returns what readers saw just before."""
    name = f"{number}-{kind}"
    if kind == "backfill":
        since = ("backfill", "--data-dir", made.data, "--rest-url", made.rest_url, "--since", "9h")
        with process(made.folder, name, since) as filling:
            wait_for(filling.catches_signals, "the first line", 20)
            pause(rng.uniform(0.0, 1.5))
            return see_and_kill(made, filling)
    with made.running(name) as klagg:
        if kind == "start":
            wait_for(klagg.catches_signals, "the first line", 20)
            pause(rng.uniform(0.0, 1.2))
            return see_and_kill(made, klagg)
        live_s = made.wait_live(klagg)
        if number:
            outcome.measure("restart to live, s", live_s)
        if kind == "tick":
            pause(until_next_minute_s(before_s=0.2))
            pause(rng.uniform(0.0, 1.5))
        else:
            pause(rng.uniform(0.0, 4.0))
        return see_and_kill(made, klagg)


def see_and_kill(made: Scene, victim: Process) -> dict[judge.Key, judge.Bar]:
    """Read all that is announced, then kill."""
    seen = judge.sealed(made.database)
    victim.kill()
    return seen


ROW = Row(
    name="kill",
    what="kill -9 at random moments, restart",
    holds="no sealed bar lost or there twice, no hole; live within 3 s (p95) on a quiet machine",
    run=run,
    ci=20,
    release=200,
    lanes=4,
    limits={"restart to live, s": ("p95", 3.0)},
)
