"""`klagg demo`: options to `DemoOptions`, the summary to a table or to JSON."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Final

import click

from klagg_trio.commands import EXIT_FINDINGS
from klagg_trio.commands.start import locked, wait_signal
from klagg_trio.dashboard import run_dashboard, run_status_line
from klagg_trio.demo.judge import DemoSummary
from klagg_trio.demo.stage import DemoOptions, run_demo
from klagg_trio.sim.faults import PROFILES

CHECK_MINUTES: Final = 10
"""Simulated minutes where nothing is watched: enough for a check."""

WATCHED_MINUTES: Final = 120
"""Simulated minutes where a person watches: two real ones at the usual speed."""


def run_command(
    *,
    minutes: int | None,
    speed: str,
    symbols: int,
    seed: int,
    faults: str,
    headless: bool,
    as_json: bool,
    data_dir: str | None,
) -> int:
    """Run the demo. Returns 0 only if no bar is missing and none differs."""
    watched = not headless and sys.stderr.isatty()
    options = DemoOptions(
        minutes=minutes or (WATCHED_MINUTES if watched else CHECK_MINUTES),
        speed=_speed(speed),
        symbols=symbols,
        seed=seed,
        faults=PROFILES[faults],
        data_dir=None if data_dir is None else Path(data_dir),
    )
    watch = run_dashboard if watched else run_status_line
    if options.data_dir is None:
        summary = run_demo(options, watch=watch, wait_signal=wait_signal)
    else:
        with locked(options.data_dir):
            summary = run_demo(options, watch=watch, wait_signal=wait_signal)
    if as_json:
        click.echo(json.dumps(summary.as_json(), ensure_ascii=False))
    else:
        _tell(summary)
    return 0 if summary.ok else EXIT_FINDINGS


def _speed(text: str) -> float:
    if text == "max":
        return math.inf
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) or not 0.1 <= float(text) <= 3_600:
        raise click.BadParameter(f"must be 0.1 to 3600, or max, not {text!r}", param_hint="--speed")
    return float(text)


def _tell(summary: DemoSummary) -> None:
    for name, value in summary.as_json().items():
        if isinstance(value, list | tuple):
            for line in value:
                click.echo(f"  {line}")
        else:
            click.echo(f"{name.replace('_', ' '):<22} {value}")
    click.echo(
        "nothing missing, nothing different" if summary.ok else "NOT as it must be: see above"
    )
