"""SIGTERM, SIGINT and SIGHUP at random points: ten in one data directory are one run."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from prove import judge
from prove.chain import Scene, scene
from prove.process import Process, pause, process, wait_for
from prove.row import Outcome, Row, check

SIGNALS = 10
KINDS = ("first second", "backfill", "running")
NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
END_S_MAX = 2.0
BUSY_S = 3.0
"""What this machine may add: several klaggs start at once on two cores."""


def run(seed: int, folder: Path, outcome: Outcome) -> None:
    """Send ten signals, each at a moment of its own; look at the files after each."""
    rng = random.Random(f"signals/{seed}")
    with scene(folder, seed) as made:
        for number in range(SIGNALS):
            kind = KINDS[(seed * SIGNALS + number) % len(KINDS)]
            sent = rng.choice(NUMBERS)
            seen = judge.sealed(made.database)
            end_s = stop_somewhere(made, kind, sent, rng, f"{number}-{kind.replace(' ', '-')}")
            outcome.cases += 1
            outcome.measure(f"end, {kind}, s", end_s)
            check(end_s <= END_S_MAX + BUSY_S, f"{end_s:.1f} s to the end ({kind})")
            judge.check_kept(seen, judge.sealed(made.database))
            made.judge()
        with made.running("last") as klagg:
            made.wait_live(klagg)
            made.settle(klagg)


def stop_somewhere(
    made: Scene, kind: str, sent: signal.Signals, rng: random.Random, name: str
) -> float:
    """Start, and send the signal at a moment of one kind. Returns the seconds to the end."""
    since = ("backfill", "--data-dir", made.data, "--rest-url", made.rest_url, "--since", "9h")
    filling = kind == "backfill" or (kind == "first second" and rng.random() < 0.3)
    arguments = since if filling else made.run_arguments()
    with process(made.folder, name, arguments) as klagg:
        wait_for(klagg.catches_signals, "the first line", 20)
        if kind == "running":
            made.wait_live(klagg)
            pause(rng.uniform(0.0, 6.0))
        else:
            pause(rng.uniform(0.0, 1.0 if kind == "first second" else 2.0))
        return end_of(klagg, sent)


def end_of(klagg: Process, sent: signal.Signals) -> float:
    """Send a signal; return how long it takes to a clean end. It may have ended before."""
    began_s = time.monotonic()
    klagg.send(sent)
    code = klagg.wait(END_S_MAX + 10.0, f"the end after {sent.name}")
    check(code in (0, 130), f"exit code {code} after {sent.name}\n{klagg.tail()}")
    klagg.check_quiet()
    return time.monotonic() - began_s


ROW = Row(
    name="signals",
    what="SIGTERM, SIGINT, SIGHUP at random points: running, in a backfill, in the first second",
    holds="the end within 2 s (p95), without a traceback; the files are whole",
    run=run,
    ci=6,
    release=50,
    lanes=3,
    limits={f"end, {kind}, s": ("p95", END_S_MAX) for kind in KINDS},
)
