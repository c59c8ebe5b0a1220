"""`klagg replay`: recorded trades to bars, on stdout or in a file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from klagg_trio.commands.output import whole_file
from klagg_trio.core.intervals import INTERVALS, select
from klagg_trio.core.plain import plain
from klagg_trio.replay import ReplayReport, run_replay


def run_command(file: str, *, symbol: str | None, intervals: str, out: str | None) -> int:
    """Replay one file. Returns the exit code."""
    names = tuple(INTERVALS) if intervals == "all" else tuple(intervals.replace(",", " ").split())
    try:
        select(names)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--intervals") from error
    if symbol is not None and not re.fullmatch(r"[^\W_]{1,40}(@[0-9T]{8,13})?", symbol):
        raise click.BadParameter("letters and digits are expected", param_hint="--symbol")
    if out is None:
        _tell(run_replay(Path(file), symbol=symbol, intervals=names, out=sys.stdout))
        return 0
    with (
        whole_file(out, apart=[Path(file)]) as part,
        part.open("w", encoding="utf-8", newline="") as target,
    ):
        report = run_replay(Path(file), symbol=symbol, intervals=names, out=target)
    _tell(report)
    return 0


def _tell(report: ReplayReport) -> None:
    """Say what was read, and whatever a person should know of it before using the bars."""
    noted = [
        f"{count:,} {words}"
        for count, words in (
            (report.duplicates, "repeats, each used once"),
            (report.skipped, "rows skipped, struck out by the archive itself"),
            (report.missing_ids, f"ids missing, in {report.gaps:,} gaps"),
            (report.suspect_minutes, "suspect minutes"),
        )
        if count
    ]
    if report.was_sorted:
        noted.append("rows not in order of their ids: sorted")
    line = f"{report.symbol}: {report.rows:,} rows, {report.trades:,} trades, {report.bars:,} bars"
    click.echo(f"klagg: {plain('; '.join([line, *noted]))}", err=True)
