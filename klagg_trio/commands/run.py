"""`klagg run`: the lock, the start snapshot, the edge, signals, and the way it is shown."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Mapping

import click
import trio

from klagg_trio.commands import EXIT_INTERRUPTED
from klagg_trio.commands.start import (
    DATABASE_NAME,
    SNAPSHOT_NAME,
    advice_for,
    dial_here,
    duration_s,
    going_on_ms,
    load_here,
    locked,
    open_asks,
    open_database,
    open_rest,
    remember_symbols,
    set_up_log,
    settle_symbols,
    tell_mixed_exchanges,
    wait_signal,
    wall_ms,
    ws_proxy,
)
from klagg_trio.core.seed import StartState
from klagg_trio.exchange.clock_probe import FallbackProbe, RestProbe, TimeProbe
from klagg_trio.exchange.rest import HttpxRest
from klagg_trio.exchange.weight import WeightGate
from klagg_trio.nursery_app import App, Edge, RunReport, Watch, run_app
from klagg_trio.settings import Settings
from klagg_trio.store.database import Database
from klagg_trio.store.start import read_start, settle_start
from klagg_trio.store.thread import one_thread
from klagg_trio.vitals import Vitals
from klagg_trio.watchdog import Watchdog


def run_command(flags: Mapping[str, str | None], *, headless: bool, duration: str | None) -> int:
    """Run until a signal or the end of --duration. Returns the exit code."""
    seconds = duration_s(duration)
    loaded = load_here(flags)
    set_up_log(loaded.settings)
    with advice_for(loaded):
        report = _run_here(loaded.settings, headless, seconds)
    if report is None:
        return EXIT_INTERRUPTED
    click.echo(f"klagg: stopped; {report.vitals.writer.rows:,} rows written", err=True)
    return 0


def _run_here(settings: Settings, headless: bool, seconds: float | None) -> RunReport | None:
    """Run from what lies in the data directory, under its lock."""
    path, snapshot = settings.data_dir / DATABASE_NAME, settings.data_dir / SNAPSHOT_NAME
    if not settings.data_dir.exists():
        read_start(path, snapshot)  # says what to do; a folder is not made for nothing
    with locked(settings.data_dir):
        start = read_start(path, snapshot)
        database = open_database(settings.data_dir)
        watchdog = Watchdog()
        try:
            start = settle_start(database, start, snapshot, _tell)
            remember_symbols(settings, database)
            settings = settle_symbols(settings, database)
            tell_mixed_exchanges(settings)
            return trio.run(_run, settings, database, start, _watch(headless), seconds, watchdog)
        finally:
            database.close()
            watchdog.ended()


def _tell(text: str) -> None:
    click.echo(f"klagg: {text}", err=True)


def _watch(headless: bool) -> Watch:
    """Choose between the dashboard and the status line."""
    from klagg_trio.dashboard import run_dashboard, run_status_line

    if headless or not sys.stderr.isatty():
        return run_status_line
    return run_dashboard


async def _run(
    settings: Settings,
    database: Database,
    start: StartState,
    watch: Watch,
    seconds: float | None,
    watchdog: Watchdog,
) -> RunReport | None:
    """Run to a clean stop. Returns None where it was interrupted before it had begun."""
    stop, ended = trio.Event(), trio.Event()
    ws_proxy(settings)  # a variable that names no proxy is told at once, not when a feed connects
    rest = open_rest(settings, gate := WeightGate(share=settings.weight_share))
    edge = Edge(
        rest=rest,
        gate=gate,
        probe=_probe(settings, rest),
        dial=dial_here(),
        run_in_thread=one_thread(),
        wall_ms=wall_ms,
        local_ms=going_on_ms(),
    )
    report: RunReport | None = None
    async with trio.open_nursery() as nursery:

        async def stop_at_signal(task_status: trio.TaskStatus[None]) -> None:
            await wait_signal(task_status)
            stop.set()
            watchdog.begin()
            if app is None:
                nursery.cancel_scope.cancel()

        async def watch_while_read(read: Callable[[], Vitals]) -> None:
            try:
                await watch(read)
            except OSError:  # `klagg run 2>&1 | head`, a terminal that is gone: nobody looks
                stop.set()

        async def run(task_status: trio.TaskStatus[App]) -> None:
            nonlocal report
            report = await run_app(
                settings,
                edge,
                database=database,
                start=start,
                stop=stop,
                watch=watch_while_read,
                ending=watchdog.begin,
                task_status=task_status,
            )
            ended.set()

        app: App | None = None
        await nursery.start(stop_at_signal)
        try:
            app = await nursery.start(run)
            freeze_start_state()
            with trio.move_on_after(math.inf if seconds is None else seconds):
                await stop.wait()
            stop.set()
            await ended.wait()
            nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await rest.aclose()
    return report


def freeze_start_state() -> None:
    """Spare the garbage collector what exists now: modules and start state stay to the end.

    A full collection that looks through them holds the event loop for 50 ms at 500 symbols.
    """
    gc.collect()
    gc.freeze()


def _probe(settings: Settings, rest: HttpxRest) -> TimeProbe:
    if settings.time_probe == "rest":
        return RestProbe(rest)
    return FallbackProbe(open_asks(settings), RestProbe(rest))
