"""`klagg backfill`: the lock, the database, the progress bar, and what the user is told."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import click
import trio

from klagg_trio.backfill import BackfillReport, Progress, run_backfill
from klagg_trio.commands import EXIT_INTERRUPTED
from klagg_trio.commands.start import (
    SNAPSHOT_NAME,
    advice_for,
    command_here,
    load_here,
    locked,
    open_database,
    open_rest,
    patient,
    remember_symbols,
    set_up_log,
    settle_symbols,
    wait_signal,
)
from klagg_trio.core.plain import plain
from klagg_trio.exchange.weight import WeightGate
from klagg_trio.settings import Settings
from klagg_trio.store.database import Database
from klagg_trio.store.start import put_aside
from klagg_trio.store.thread import one_thread

LINE_EVERY_S: Final = 5.0
"""Between two progress lines where stderr is not a terminal."""


def run_command(flags: Mapping[str, str | None], *, as_json: bool) -> int:
    """Run the backfill. Returns the exit code."""
    loaded = load_here(flags)
    settings = loaded.settings
    set_up_log(settings)
    with advice_for(loaded), locked(settings.data_dir):
        database = open_database(settings.data_dir)
        try:
            if told := put_aside(database, settings.data_dir / SNAPSHOT_NAME):
                click.echo(f"klagg: {told}", err=True)
            asked, settings = settings, settle_symbols(settings, database)
            with _shown_progress() as on_progress:
                report = trio.run(_run, settings, database, on_progress)
            if report is not None:
                remember_symbols(asked, database)
        finally:
            database.close()
    if report is None:
        click.echo("klagg: stopped; what was fetched is stored: run it again to go on", err=True)
        return EXIT_INTERRUPTED
    run = command_here("klagg run", loaded)
    if "--rest-url" in run and "--ws-url" not in run:
        run += " --ws-url URL"  # of the same exchange: it is not asked for here
    _tell(report, as_json, run)
    return 0


async def _run(
    settings: Settings, database: Database, on_progress: Callable[[Progress], None]
) -> BackfillReport | None:
    """Run until done or until a signal, which gives None."""
    report = None
    async with trio.open_nursery() as nursery:

        async def stop_at_signal(task_status: trio.TaskStatus[None]) -> None:
            await wait_signal(task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(stop_at_signal)
        rest = open_rest(settings, WeightGate(share=settings.weight_share))
        try:
            report = await run_backfill(
                settings,
                rest,
                database=database,
                run_in_thread=patient(one_thread()),
                on_progress=on_progress,
            )
        finally:
            with trio.CancelScope(shield=True):
                await rest.aclose()
        nursery.cancel_scope.cancel()
    return report


def _tell(report: BackfillReport, as_json: bool, then: str) -> None:
    for symbol, reason in report.waiting:
        click.echo(
            f"klagg: {symbol} waits: {reason}; klagg run takes it up when it trades", err=True
        )
    for symbol, text in report.owing:
        click.echo(f"klagg: {symbol}: {text}; kept as suspect, klagg run asks again", err=True)
    for symbol, reason in report.failed:
        click.echo(f"klagg: {plain(f'{symbol} left out: {reason}', 500)}", err=True)
    if as_json:
        fields = dataclasses.asdict(report) | {
            "symbols": len(report.symbols),
            "failed": dict(report.failed),
            "owing": dict(report.owing),
            "waiting": dict(report.waiting),
            "snapshot": str(report.snapshot),
        }
        click.echo(json.dumps(fields, ensure_ascii=False))
        return
    click.echo(
        f"klagg: {len(report.symbols)} symbols, {report.bars:,} bars stored, weight "
        f"{report.weight:,}; start snapshot: {report.snapshot}; next: {then}",
        err=True,
    )


# -- Progress --------------------------------------------------------------------------------------


@contextmanager
def _shown_progress() -> Iterator[Callable[[Progress], None]]:
    """Give a function that shows progress: a bar on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[detail]}"),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
    ) as bar:
        task = bar.add_task("asking", total=1, detail="")
        shown_s = -math.inf

        def show(progress: Progress) -> None:
            nonlocal shown_s
            if trio.current_time() - shown_s < 0.25:
                return
            shown_s = trio.current_time()
            bar.update(
                task,
                description=progress.phase,
                completed=progress.symbols_done,
                total=progress.symbols,
                detail=_detail(progress),
            )
            bar.refresh()

        yield show


def _lines() -> Callable[[Progress], None]:
    told_s = 0.0

    def show(progress: Progress) -> None:
        nonlocal told_s
        if trio.current_time() - told_s < LINE_EVERY_S:
            return
        told_s = trio.current_time()
        click.echo(
            f"klagg: {progress.phase} {progress.symbols_done}/{progress.symbols} symbols, "
            f"{_detail(progress)}",
            err=True,
        )

    return show


def _detail(progress: Progress) -> str:
    eta = "" if math.isinf(progress.eta_s) else f", about {_span(progress.eta_s)} to go"
    return f"{progress.bars:,} bars, weight {progress.weight:,}{eta}"


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
