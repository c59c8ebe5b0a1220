"""The exchange's clock says what it should not: a step, a lone jump, a drift, to and fro."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from prove import judge
from prove.chain import Scene, scene, until_next_minute_s
from prove.evil_answers import TIME, body
from prove.middle import Answer, Middle
from prove.process import Process, pause
from prove.row import Outcome, Row, check

FAULT_S = 15.0
EARLY_MS_MAX = 0
"""Before the exchange's minute has ended, nothing of it may be sealed."""


def shifted(by_ms: Callable[[float], float], client, answer: Answer) -> None:
    """Tell a time that is off by what a function of the seconds so far says."""
    true_ms = json.loads(answer.body)["serverTime"]
    told_ms = int(true_ms + by_ms(time.monotonic()))
    body(f'{{"serverTime":{told_ms}}}'.encode(), client, answer)


KINDS: dict[str, Callable[[float], float]] = {
    "five minutes ahead": lambda _: 300_000.0,
    "five minutes behind": lambda _: -300_000.0,
    "a day ahead": lambda _: 86_400_000.0,
    "forty seconds ahead": lambda _: 40_000.0,
    "three seconds ahead": lambda _: 3_000.0,
    "to and fro": lambda at_s: 90_000.0 * (-1) ** int(at_s),
    "running away": lambda at_s: (at_s % 60.0) * 500.0,
    "200 ppm fast": lambda at_s: (at_s % 600.0) * 0.2,
}


def run(seed: int, folder: Path, outcome: Outcome) -> None:
    """One kind, from a few seconds before a minute's end on; the exchange's klines know better."""
    name = list(KINDS)[seed % len(KINDS)]
    outcome.notes.append(name)
    with scene(folder, seed) as made, Middle(made.exchange) as middle:
        made.rest_url, made.ws_url = middle.rest_url, middle.ws_url
        with made.running(env={"KLAGG_OFFSET_REFRESH_S": "1"}) as klagg:
            made.wait_live(klagg)
            pause(until_next_minute_s(before_s=FAULT_S - 3.0))
            middle.rest_paths, middle.rest = (TIME,), partial(shifted, KINDS[name])
            watch(made, klagg, FAULT_S)
            check(middle.done["answers"] > 0, "no such time was told")
            middle.heal()
            watch(made, klagg, 5.0)
            made.settle(klagg)
        outcome.cases += 1


def watch(made: Scene, klagg: Process, seconds: float) -> None:
    """Look for bars that are sealed before their end."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        tick_ms = judge.last_tick(made.database)
        now_ms = made.exchange.now_ms()
        check(tick_ms <= now_ms + EARLY_MS_MAX, f"sealed {tick_ms - now_ms} ms early")
        check(klagg.alive, f"klagg has ended\n{klagg.tail(40)}")
        pause(0.05)
    klagg.check_quiet()


ROW = Row(
    name="clock",
    what="the exchange's /time steps, jumps, drifts, goes to and fro over a minute's end",
    holds="nothing sealed early, all bars right in the end",
    run=run,
    ci=len(KINDS),
    release=6 * len(KINDS),
    lanes=4,
)
