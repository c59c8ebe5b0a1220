"""The machine sleeps, or the process is stopped: the missed minutes are there soon after."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from prove import judge
from prove.chain import scene, until_next_minute_s
from prove.process import ROOT, pause, wait_for
from prove.row import Outcome, Row, check

BEHIND_S_MAX = 2.0


def run_stopped(seed: int, folder: Path, outcome: Outcome) -> None:
    """SIGSTOP at some second of a minute, SIGCONT a minute or more later."""
    rng = random.Random(f"stopped/{seed}")
    with scene(folder, seed) as made, made.running() as klagg:
        made.wait_live(klagg)
        pause((until_next_minute_s() + seed % 60) % 60)
        os.kill(klagg.pid, signal.SIGSTOP)
        pause(rng.uniform(60.0, 100.0 if seed < 60 else 600.0))
        os.kill(klagg.pid, signal.SIGCONT)
        woken_s = time.monotonic()
        until_ms = made.exchange.now_ms() // judge.MINUTE_MS * judge.MINUTE_MS
        wait_for(lambda: judge.last_tick(made.database) >= until_ms, "the missed minutes", 30)
        outcome.measure("missed minutes on disk, s", time.monotonic() - woken_s)
        announced = {
            key: bar
            for key, bar in judge.sealed(made.database).items()
            if bar.source != "suspect" and key[1] == "1m"
        }
        judge.check_official(made.database, made.exchange, announced, until_ms - 600_000)
        made.settle(klagg)
        outcome.cases += 1


def run_asleep(seed: int, folder: Path, outcome: Outcome) -> None:
    """A real suspend: Trio's clock stands still, the exchange's and the local one go on."""
    command = [sys.executable, "-m", "prove.sleeper", str(seed), str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=1_800, check=False
    )
    check(done.returncode == 0, f"{' '.join(command)}\n{(done.stdout + done.stderr)[-3_000:]}")
    for line in done.stdout.splitlines():
        name, _, value = line.rpartition(": ")
        outcome.measure(name, float(value))
    outcome.cases += 1


STOPPED = Row(
    name="stopped",
    what="SIGSTOP, and SIGCONT a minute or more later, at every second of a minute",
    holds="missed minutes on disk within 2 s (p95), nothing announced wrong, all repaired",
    run=run_stopped,
    ci=60,
    release=180,
    lanes=6,
    limits={"missed minutes on disk, s": ("p95", BEHIND_S_MAX)},
)
ASLEEP = Row(
    name="asleep",
    what="a suspend of 1 min to 24 h (local clocks of the process stand still, others go on)",
    holds="missed minutes on disk within 2 s of waking, nothing announced wrong, all repaired",
    run=run_asleep,
    ci=60,
    release=600,
    lanes=2,
    limits={"missed minutes on disk, simulated s": ("max", BEHIND_S_MAX)},
)
