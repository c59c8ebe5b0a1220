"""`klagg audit`: what is compared, the findings, the exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from typing import Final

import click
import trio

from klagg_trio.audit import Audit, AuditReport, stored_series
from klagg_trio.commands import EXIT_FINDINGS, EXIT_INTERRUPTED
from klagg_trio.commands.start import (
    DATABASE_NAME,
    advice_for,
    intervals_of,
    load_here,
    locked,
    open_database,
    open_rest,
    set_up_log,
    since_last_tick_ms,
    wait_signal,
)
from klagg_trio.core.errors import ConfigurationError, RemoteError
from klagg_trio.core.plain import plain
from klagg_trio.exchange.weight import WeightGate
from klagg_trio.settings import Settings
from klagg_trio.store.database import Database
from klagg_trio.store.reading import reading

TOLD_MAX: Final = 20
"""Differences printed where nobody asked for JSON."""


def run_command(
    flags: Mapping[str, str | None], *, chosen: str | None, repair: bool, as_json: bool
) -> int:
    """Run the audit. Returns 3 where a bar differs for no known reason and was not replaced."""
    loaded = load_here(flags)
    settings = loaded.settings
    set_up_log(settings)
    intervals = intervals_of(chosen)
    path = settings.data_dir / DATABASE_NAME
    # Where there is no database, say so before a lock is made for one that repairs.
    with (
        advice_for(loaded),
        reading(path) as connection,
        _database(settings, repair) as database,
    ):
        report = trio.run(_run, settings, connection, database, intervals)
    if report is None:
        click.echo("klagg: stopped", err=True)
        return EXIT_INTERRUPTED
    if report.failed and not report.compared:
        raise RemoteError(next(iter(report.failed.values())))
    if as_json:
        fields = dataclasses.asdict(report) | {"compared": report.compared}
        click.echo(json.dumps(fields, ensure_ascii=False))
    else:
        _tell(report)
    wrong = report.unexplained + report.suspect + report.missing
    return EXIT_FINDINGS if wrong and not repair else 0


@contextlib.contextmanager
def _database(settings: Settings, repair: bool) -> Iterator[Database | None]:
    """Open the database for writing, under the lock, only where something is to be replaced."""
    if not repair:
        yield None
        return
    with locked(settings.data_dir):
        database = open_database(settings.data_dir)
        try:
            yield database
        finally:
            database.close()


async def _run(
    settings: Settings,
    connection: sqlite3.Connection,
    database: Database | None,
    intervals: tuple[str, ...],
) -> AuditReport | None:
    """Audit until done or until a signal, which gives None."""
    report = None
    async with trio.open_nursery() as nursery:

        async def stop_at_signal(task_status: trio.TaskStatus[None]) -> None:
            await wait_signal(task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(stop_at_signal)
        rest = open_rest(settings, WeightGate(share=settings.weight_share))
        try:
            since_ms = since_last_tick_ms(connection, settings.since)
            series = stored_series(connection, settings.named_symbols, intervals, since_ms)
            if not series:
                raise ConfigurationError(
                    f"no stored bars in {settings.data_dir} match; see: klagg status, and --since"
                )
            audit = Audit(rest, connection, database=database, on_progress=_progress)
            report = await audit.run(series)
        finally:
            with trio.CancelScope(shield=True):
                await rest.aclose()
        nursery.cancel_scope.cancel()
    return report


def _progress(done: int, total: int, report: AuditReport) -> None:
    if sys.stderr.isatty():
        end = "\r" if done < total else "\n"
        click.echo(f"{done}/{total} series, {report.compared:,} bars{end}", err=True, nl=False)


def _tell(report: AuditReport) -> None:
    for difference in report.differences[:TOLD_MAX]:
        fields = ", ".join(
            f"{name} {ours:.15g} official {theirs:.15g}"
            for name, (ours, theirs) in difference.fields.items()
        )
        where = f"{difference.symbol} {difference.interval} {difference.open_ms}"
        line = f"{difference.verdict}: {where} ({difference.source}): {fields or 'same values'}"
        click.echo(plain(line, 1_000))
    if len(report.differences) > TOLD_MAX:
        click.echo(f"and {len(report.differences) - TOLD_MAX} more: see --json")
    for series, reason in report.failed.items():
        click.echo(f"klagg: {plain(f'{series} not audited: {reason}', 500)}", err=True)
    share = 100 * report.equal / report.compared if report.compared else 100.0
    click.echo(
        f"{report.compared:,} bars compared: {report.equal:,} equal ({share:.3f} %), "
        f"{report.straddle:,} straddle, {report.unexplained:,} unexplained, "
        f"{report.suspect:,} suspect, {report.missing:,} missing; {report.repaired:,} replaced"
    )
