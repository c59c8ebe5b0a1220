"""REST answers of every kind that is no good: to a backfill from its beginning, to a running klagg
for a while."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from prove.chain import Scene, scene
from prove.evil_answers import KINDS
from prove.middle import Middle
from prove.process import backfill, pause, process, wait_for
from prove.row import Outcome, Row, check

KINDS_A_RUN = 8
RUNS = -(-len(KINDS) // KINDS_A_RUN)

EVILS_MAX = 6
PAUSES_MAX = 2
"""Answers of a kind that a backfill gets, before the exchange is itself again; fewer of those after
which it has to wait for up to a minute."""

RUNNING_S = 6.0
"""For how long a running klagg gets them."""

BACKFILL_S_MAX = 240.0
MEMORY_MB_MAX = 300.0
ENDINGS = (0, 69, 75)
"""Ends of a backfill that met such answers: it made it, or says that the exchange is at fault."""


def run(seed: int, folder: Path, outcome: Outcome) -> None:
    """Try eight kinds; the seeds below `RUNS` go through all of them, later ones draw."""
    names = list(KINDS)
    if seed < RUNS:
        chosen = names[seed::RUNS]
    else:
        chosen = random.Random(f"rest/{seed}").sample(names, KINDS_A_RUN)
    with scene(folder, seed) as made, Middle(made.exchange) as middle:
        for name in chosen:
            fill_through(made, middle, name, outcome)
        made.rest_url, made.ws_url = middle.rest_url, middle.ws_url
        with made.running(env={"KLAGG_OFFSET_REFRESH_S": "1"}) as klagg:
            made.wait_live(klagg)
            for name in chosen:
                middle.rest_paths, middle.rest = KINDS[name]
                pause(RUNNING_S)
                middle.heal()
                check(klagg.alive, f"{name}: klagg has ended\n{klagg.tail(40)}")
                klagg.check_quiet()
            middle.cut()
            outcome.measure("resident memory of a run, MB", klagg.peak_mb())
            made.settle(klagg)


def fill_through(made: Scene, middle: Middle, name: str, outcome: Outcome) -> None:
    """Let a backfill meet a few answers of a kind first; then let another finish."""
    paths, evil = KINDS[name]
    counting = threading.Lock()
    left = [PAUSES_MAX if name.startswith(("418", "429")) else EVILS_MAX]

    def a_few(client, answer) -> None:
        with counting:
            left[0] -= 1
            if left[0] <= 0:
                middle.heal()
        evil(client, answer)

    before, data = made.data, made.folder / f"data-{name}"
    arguments = ("backfill", "--data-dir", data, "--rest-url", middle.rest_url, "--since", "2h")
    answers = middle.done["answers"]
    middle.rest_paths, middle.rest = paths, a_few
    with process(made.folder, f"backfill-{name}", arguments) as filling:
        peaks = [0.0]

        def ended() -> bool:
            if filling.alive:
                peaks.append(filling.peak_mb())
            return not filling.alive

        wait_for(ended, f"{name}: the end of a backfill\n{filling.tail()}", BACKFILL_S_MAX)
        code = filling.popen.returncode
        check(code in ENDINGS, f"{name}: a backfill ends with {code}\n{filling.tail()}")
        filling.check_quiet()
        check("\x1b" not in filling.text, f"{name}: control characters on the terminal")
    outcome.measure("resident memory of a backfill, MB", max(peaks))
    check(middle.done["answers"] > answers, f"{name}: no such answer was given")
    middle.heal()
    backfill(made.folder, data, middle.rest_url)
    try:
        made.data = data
        made.judge(made.exchange.now_ms() // 60_000 * 60_000 - 60_000)
    finally:
        made.data = before
    outcome.cases += 1


ROW = Row(
    name="rest",
    what=f"{len(KINDS)} kinds of answers that are no good: statuses, HTTP, bodies, rows, times",
    holds=f"nothing wrong is stored, no traceback, memory at or below {MEMORY_MB_MAX:.0f} MB",
    run=run,
    ci=RUNS,
    release=6 * RUNS,
    lanes=3,
    limits={
        "resident memory of a run, MB": ("max", MEMORY_MB_MAX),
        "resident memory of a backfill, MB": ("max", MEMORY_MB_MAX),
    },
)
