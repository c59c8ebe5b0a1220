"""`klagg replay`: recorded trades to bars, on stdout or in a file."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from klagg_trio.commands.output import whole_file
from klagg_trio.core.intervals import INTERVALS, select
from klagg_trio.replay import run_replay


def run_command(file: str, *, symbol: str | None, intervals: str, out: str | None) -> int:
    """Replay one file. Returns the exit code."""
    names = tuple(INTERVALS) if intervals == "all" else tuple(intervals.replace(",", " ").split())
    try:
        select(names)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--intervals") from error
    if out is None:
        run_replay(Path(file), symbol=symbol, intervals=names, out=sys.stdout)
        return 0
    with (
        whole_file(out, apart=[Path(file)]) as part,
        part.open("w", encoding="utf-8", newline="") as target,
    ):
        run_replay(Path(file), symbol=symbol, intervals=names, out=target)
    return 0
