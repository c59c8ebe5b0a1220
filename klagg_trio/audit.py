"""`klagg audit`: stored bars of any interval and range, held against the exchange's own.

Reads the database through a read-only connection, so it may run beside `klagg run`. A pair of bars
that differ by an aggregate across their boundary is a straddle (see `core/audit.py`); bars that are
suspect are owed to repair and counted apart. With `repair` every bar that is not the exchange's is
replaced by it; that needs the database's write connection.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import trio

from klagg_trio.backfill import Request, pages
from klagg_trio.core.audit import Verdict, judge
from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.errors import RemoteError
from klagg_trio.core.facts import BarFact, Event, Facts
from klagg_trio.core.intervals import INTERVALS, Interval
from klagg_trio.exchange.rest import Priority, Rest
from klagg_trio.store.database import Database
from klagg_trio.store.reading import as_stored, bar_of, select_bars
from klagg_trio.store.schema import VALUE_COLUMNS

FINDINGS_MAX: Final = 1_000
"""Differences told one by one; the others are counted."""

SERIES_TOGETHER: Final = 4
"""Requests in flight."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One stored bar that is not the exchange's."""

    symbol: str
    interval: str
    open_ms: int
    source: str
    verdict: str
    """straddle, unexplained, suspect or missing"""
    fields: dict[str, tuple[float, float]]
    """Stored and official value of each field that differs."""


@dataclass(slots=True)
class AuditReport:
    """What came of it. Bars the exchange has not served are in none of the counts."""

    equal: int = 0
    straddle: int = 0
    unexplained: int = 0
    suspect: int = 0
    """Bars that say themselves that they are not to be trusted, or that the exchange lacks them
    though it does not."""
    missing: int = 0
    """Bars that should be stored, since the exchange has them, and are not."""
    repaired: int = 0
    unserved: int = 0
    """Stored bars that the exchange gave nothing for."""
    failed: dict[str, str] = field(default_factory=dict)
    """Series that could not be asked for, and why."""
    differences: list[Difference] = field(default_factory=list)

    @property
    def compared(self) -> int:
        """Bars held against official ones."""
        return self.equal + self.straddle + self.unexplained + self.suspect


@dataclass(frozen=True, slots=True)
class Series:
    """One stored series and the part of it to audit."""

    symbol: str
    interval: Interval
    first_ms: int
    end_ms: int


def stored_series(
    connection: sqlite3.Connection,
    symbols: Iterable[str],
    intervals: Iterable[str],
    since_ms: int,
) -> list[Series]:
    """Return the series to audit: those asked for, as far as they are stored."""
    wanted = set(symbols)
    found = []
    last_tick = connection.execute("SELECT value FROM meta WHERE key = 'last_tick'").fetchone()
    last_tick_ms = int(last_tick[0]) if last_tick else 0
    for symbol, phase_ms, status in connection.execute(
        "SELECT symbol, three_day_phase_ms, status FROM symbols WHERE status <> 'REPLACED'"
        " ORDER BY 1"
    ).fetchall():
        if wanted and symbol not in wanted:
            continue
        for name in intervals:
            interval = INTERVALS[name]
            interval = interval.with_phase(phase_ms) if name == "3d" else interval
            first_ms, last_ms = connection.execute(
                "SELECT min(open_time), max(open_time) FROM klines"
                " WHERE symbol = ? AND interval = ? AND open_time >= ?",
                (symbol, name, since_ms),
            ).fetchone()
            if first_ms is not None:
                end_ms = interval.end(last_ms)
                if status != "ENDED":  # bars that should be there, not only those that are
                    end_ms = max(end_ms, interval.floor(last_tick_ms))
                found.append(Series(symbol, interval, first_ms, end_ms))
    return found


class Audit:
    """One audit at work."""

    def __init__(
        self,
        rest: Rest,
        connection: sqlite3.Connection,
        *,
        database: Database | None,
        on_progress: Callable[[int, int, AuditReport], None] | None = None,
    ) -> None:
        """Compare what `connection` reads; repair through `database`, where one is given."""
        self._rest = rest
        self._connection = connection
        self._database = database
        self._on_progress = on_progress
        self.report = AuditReport()

    async def run(self, series: Sequence[Series]) -> AuditReport:
        """Audit all the series, several at a time."""
        waiting = iter(series)
        done = 0

        async def work_off() -> None:
            nonlocal done
            for each in waiting:
                try:
                    await self._audit(each)
                except RemoteError as error:
                    self.report.failed[f"{each.symbol} {each.interval.name}"] = str(error)
                done += 1
                if self._on_progress:
                    self._on_progress(done, len(series), self.report)

        async with trio.open_nursery() as nursery:
            for _ in range(min(SERIES_TOGETHER, len(series))):
                nursery.start_soon(work_off)
        return self.report

    async def _audit(self, series: Series) -> None:
        """Audit one series: all of it at once, so that no straddle is cut by a page."""
        official: dict[int, Bar] = {}
        for request in pages(series.interval, series.first_ms, series.end_ms):
            official |= await self._fetch(series, request)
        rows = select_bars(
            self._connection,
            series.symbol,
            series.interval.name,
            series.first_ms,
            series.end_ms - 1,
        )
        stored = {
            open_ms: bar_of(row, series.interval.end(open_ms)) for open_ms, row in rows.items()
        }
        common = [open_ms for open_ms in stored if open_ms in official]
        self.report.unserved += len(stored) - len(common)
        missing = [open_ms for open_ms in official if open_ms not in stored]
        missing = [open_ms for open_ms in missing if official[open_ms].end_ms <= series.end_ms]
        self._count_missing(series, missing)
        ours = [stored[open_ms] for open_ms in common]
        theirs = [as_stored(official[open_ms]) for open_ms in common]
        wrong = sorted(self._count(series, ours, theirs) + missing)
        if wrong and self._database is not None:
            self._repair(series, [official[open_ms] for open_ms in wrong])

    async def _fetch(self, series: Series, request: Request) -> dict[int, Bar]:
        klines = await self._rest.klines(
            series.symbol,
            series.interval.name,
            start_ms=request.first_ms,
            end_ms=request.end_ms - 1,
            limit=request.count,
            priority=Priority.AUDIT,
        )
        return {bar.open_ms: bar for bar in klines.bars}

    def _count_missing(self, series: Series, missing: Sequence[int]) -> None:
        """Add bars that the exchange has and the database has not."""
        self.report.missing += len(missing)
        for open_ms in missing[: max(0, FINDINGS_MAX - len(self.report.differences))]:
            self.report.differences.append(
                Difference(series.symbol, series.interval.name, open_ms, "none", "missing", {})
            )

    def _count(self, series: Series, ours: Sequence[Bar], theirs: Sequence[Bar]) -> list[int]:
        """Add the verdicts to the report. Returns the open times of the bars to be replaced."""
        wrong: list[int] = []
        counts: Counter[str] = Counter()
        for bar, true, verdict in zip(ours, theirs, judge(ours, theirs), strict=True):
            doubtful = bar.source in (Source.SUSPECT, Source.ABSENT)
            name = "suspect" if doubtful else verdict.value
            counts[name] += 1
            if name == Verdict.EQUAL.value:
                continue
            wrong.append(bar.open_ms)
            if len(self.report.differences) < FINDINGS_MAX:
                self.report.differences.append(_difference(series, bar, true, name))
        self.report.equal += counts["equal"]
        self.report.straddle += counts["straddle"]
        self.report.unexplained += counts["unexplained"]
        self.report.suspect += counts["suspect"]
        return wrong

    def _repair(self, series: Series, bars: Sequence[Bar]) -> None:
        """Replace bars by the exchange's, and what follows from them."""
        assert self._database is not None
        name = series.interval.name
        facts = Facts(
            restated=[BarFact(series.symbol, name, bar) for bar in bars],
            events=[
                Event(bars[-1].end_ms, "repaired", series.symbol, f"{len(bars)} of {name} by audit")
            ],
        )
        self._database.commit(None, [facts])
        self.report.repaired += len(bars)


def _difference(series: Series, bar: Bar, official: Bar, verdict: str) -> Difference:
    values: zip[tuple[str, Decimal | int, Decimal | int]] = zip(
        VALUE_COLUMNS, bar.values(), official.values(), strict=True
    )
    fields = {name: (float(own), float(true)) for name, own, true in values if own != true}
    return Difference(
        series.symbol, series.interval.name, bar.open_ms, bar.source.label, verdict, fields
    )
