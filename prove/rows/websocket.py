"""What comes over a websocket: every kind that is no good, and frames with bytes changed."""

from __future__ import annotations

import random
import time
from pathlib import Path

from prove import judge
from prove.chain import Scene, scene
from prove.evil_frames import KINDS, fuzzed
from prove.middle import Middle
from prove.process import Process, pause, wait_for
from prove.row import Outcome, Row, check

FUZZED = 1_000
"""Frames a run. Seeds of ten runs make the ten thousand."""

KINDS_A_RUN = 8
RUNS = -(-len(KINDS) // KINDS_A_RUN)

KIND_S = 5.0
RECONNECT_S_MAX = 45.0
"""A connection given up for silence, and its backoff after several refusals."""

MEMORY_MB_MAX = 300.0


def run(seed: int, folder: Path, outcome: Outcome) -> None:
    """Eight kinds, then a thousand fuzzed frames; seeds below `RUNS` go through all kinds."""
    rng = random.Random(f"websocket/{seed}")
    names = list(KINDS)
    chosen = names[seed::RUNS] if seed < RUNS else rng.sample(names, KINDS_A_RUN)
    with scene(folder, seed) as made, Middle(made.exchange) as middle:
        made.rest_url, made.ws_url = middle.rest_url, middle.ws_url
        with made.running() as klagg:
            made.wait_live(klagg)
            wait_for(lambda: middle.trades, "a trade", 20)
            for name in chosen:
                try_kind(made, middle, klagg, name, rng, outcome)
            fuzz(middle, klagg, rng)
            outcome.cases += FUZZED
            outcome.measure("resident memory, MB", klagg.peak_mb())
            made.settle(klagg)


def try_kind(
    made: Scene, middle: Middle, klagg: Process, name: str, rng: random.Random, outcome: Outcome
) -> None:
    """Do one kind for a few seconds, then wait until klagg is live again."""
    done = sum(middle.done.values())
    end_s = time.monotonic() + KIND_S
    while time.monotonic() < end_s:
        KINDS[name](middle, rng)
        pause(1.0)
    middle.heal()
    check(sum(middle.done.values()) > done, f"{name}: nothing of it was done")
    healed_s = time.monotonic()
    before = judge.running(made.database)

    def live() -> bool:
        check(klagg.alive, f"{name}: klagg has ended\n{klagg.tail(40)}")
        return middle.done["frames"] >= 0 and judge.running(made.database) != before

    wait_for(live, f"{name}: live again\n{klagg.tail()}", RECONNECT_S_MAX, every_s=0.1)
    outcome.measure("live again after a kind, s", time.monotonic() - healed_s)
    klagg.check_quiet()
    outcome.cases += 1


def fuzz(middle: Middle, klagg: Process, rng: random.Random) -> None:
    """Send frames with bytes changed, each after the true one, until there were enough."""
    count = [0]

    def true_and_fuzzed(each: bytes) -> list[bytes]:
        count[0] += 2
        return [each, fuzzed(each, rng), fuzzed(each, rng)]

    middle.frame = true_and_fuzzed
    try:
        wait_for(lambda: count[0] >= FUZZED or not klagg.alive, f"{FUZZED} fuzzed frames", 600)
    finally:
        middle.heal()
    check(klagg.alive, f"klagg has ended\n{klagg.tail(40)}")
    klagg.check_quiet()


ROW = Row(
    name="websocket",
    what=f"{len(KINDS)} kinds of frames and handshakes that are no good, and fuzzed frames",
    holds=f"live again, all bars right, no traceback, memory at or below {MEMORY_MB_MAX:.0f} MB",
    run=run,
    ci=10,
    release=100,
    lanes=4,
    limits={
        "resident memory, MB": ("max", MEMORY_MB_MAX),
        "live again after a kind, s": ("p95", 15.0),
    },
)
