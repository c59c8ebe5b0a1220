"""The demo's judge: stored bars held against the simulator's official klines.

Those come from the simulator's raw trades, by code that shares nothing with klagg's. Up to the
promised end every stored bar has to be equal to the official one in all nine values, whatever its
source says, and none may be suspect. After that end, and before it, there may be no hole.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from klagg_trio.nursery_app import RunReport
from klagg_trio.sim.server import SimExchange
from klagg_trio.store.database import REPLACED_MARK
from klagg_trio.store.reading import open_reader
from klagg_trio.store.schema import VALUE_COLUMNS
from klagg_trio.store.verify import verify

DIFFERENCES_TOLD: Final = 10

Values = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Promise:
    """What the demo was to bring about."""

    minutes: int
    end_ms: int
    """Every bar that ends by then has to be right."""


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What came of it. `holes`, `differing_bars` and `suspect_bars` must be 0."""

    simulated_minutes: int
    symbols: int
    intervals: int
    sealed_bars: int
    expected_bars: int
    holes: int
    compared_bars: int
    differing_bars: int
    suspect_bars: int
    """Bars up to the promised end that are suspect still."""
    suspects_marked: int
    """Minutes that were called suspect at any time."""
    repaired: int
    """Minutes replaced by official ones because they were suspect."""
    restated: int
    """Bars changed after they were sealed, for whatever reason."""
    straddles: int
    """Minutes that differed by an aggregate across their boundary; the audit replaced them."""
    unexplained: int
    """Minutes that the audit found different without such a reason, and replaced."""
    reconnects: int
    rotations: int
    trades_received: int
    trades_in_bars: int
    duplicates: int
    late: int
    rejected: int
    not_ours: int
    verify_findings: int
    """What `klagg verify` finds."""
    added_symbols: int
    removed_symbols: int
    weight_peak_percent: float
    """Of the exchange's limit a minute, as the exchange counts it."""
    faults: dict[str, int]
    """What went wrong, and how often."""
    differences: tuple[str, ...] = ()
    """The first few holes and differences, in words."""

    @property
    def ok(self) -> bool:
        """Whether nothing is missing, nothing differs, and every trade is accounted for."""
        accounted = (
            self.trades_in_bars + self.duplicates + self.late + self.rejected + self.not_ours
        )
        wrong = self.holes or self.differing_bars or self.suspect_bars or self.verify_findings
        return not wrong and accounted == self.trades_received

    def as_json(self) -> dict[str, Any]:
        """Return the summary for `--json`."""
        return {**dataclasses.asdict(self), "ok": self.ok}


@dataclass(slots=True)
class _Tally:
    """What the comparison has come to so far."""

    sealed: int = 0
    expected: int = 0
    holes: int = 0
    compared: int = 0
    differing: int = 0
    suspect: int = 0
    told: list[str] = dataclasses.field(default_factory=list)

    def tell(self, text: str) -> None:
        if len(self.told) < DIFFERENCES_TOLD:
            self.told.append(text)


def check_bars(
    promise: Promise, path: Path, exchange: SimExchange, report: RunReport
) -> DemoSummary:
    """Hold every sealed bar against the official one; count holes by the official calendar."""
    tally = _Tally()
    last_ms = report.vitals.writer.committed_minute_ms
    connection = open_reader(path)
    try:
        for series in _series(connection):
            _check_series(connection, series, exchange, (promise.end_ms, last_ms), tally)
    finally:
        connection.close()
    findings = verify(path)
    for finding in findings:
        tally.tell(f"{finding.kind}: {finding.symbol} {finding.interval} {finding.text}")
    vitals, simulated = report.vitals, exchange.statistics()
    audit = vitals.audit
    return DemoSummary(
        simulated_minutes=promise.minutes,
        symbols=vitals.symbols,
        intervals=len(vitals.intervals),
        sealed_bars=tally.sealed,
        expected_bars=tally.expected,
        holes=tally.holes,
        compared_bars=tally.compared,
        differing_bars=tally.differing,
        suspect_bars=tally.suspect,
        suspects_marked=vitals.bars.suspect,
        repaired=vitals.repaired_minutes,
        restated=vitals.bars.restated,
        straddles=audit.straddle if audit else 0,
        unexplained=audit.unexplained if audit else 0,
        reconnects=vitals.reconnects,
        rotations=vitals.rotations,
        trades_received=vitals.received,
        trades_in_bars=vitals.trades.in_bars,
        duplicates=vitals.trades.duplicate,
        late=vitals.trades.late,
        rejected=vitals.trades.rejected,
        not_ours=vitals.trades.not_ours,
        verify_findings=len(findings),
        added_symbols=len(report.added),
        removed_symbols=len(report.removed),
        weight_peak_percent=round(100 * simulated.weight_peak / exchange.options.weight_limit, 1),
        faults=simulated.faults,
        differences=tuple(tally.told),
    )


def owed_bars(path: Path, end_ms: int) -> int:
    """Return how many stored bars that end by `end_ms` are suspect, of tickers still in use."""
    connection = open_reader(path)
    try:
        return sum(
            connection.execute(
                "SELECT count(*) FROM klines WHERE symbol = ? AND interval = ?"
                " AND source = 'suspect' AND close_time < ?",
                (series.symbol, series.interval, end_ms),
            ).fetchone()[0]
            for series in _series(connection)
            if series.replaced is False
        )
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class _Series:
    """One stored series, and the contract it belongs to."""

    symbol: str
    interval: str
    first_ms: int
    onboard_ms: int
    delivery_ms: int
    replaced: bool

    @property
    def ticker(self) -> str:
        """The name under which the exchange knew it."""
        return self.symbol.partition(REPLACED_MARK)[0]


def _series(connection: sqlite3.Connection) -> Iterator[_Series]:
    rows = connection.execute(
        "SELECT k.symbol, k.interval, min(k.open_time), s.onboard_ms, s.delivery_ms,"
        " s.status = 'REPLACED' FROM klines AS k JOIN symbols AS s ON s.symbol = k.symbol"
        " GROUP BY k.symbol, k.interval"
    ).fetchall()
    for symbol, interval, first_ms, onboard_ms, delivery_ms, replaced in rows:
        yield _Series(symbol, interval, first_ms, onboard_ms, delivery_ms, bool(replaced))


def _check_series(
    connection: sqlite3.Connection,
    series: _Series,
    exchange: SimExchange,
    ends: tuple[int, int],
    tally: _Tally,
) -> None:
    """Compare one series; `ends` are the promised one and that of the last tick."""
    end_ms, last_ms = ends
    stored = _stored(connection, series)
    tally.sealed += len(stored)
    name = f"{series.symbol} {series.interval}"
    for official in exchange.official_klines(
        series.ticker, series.interval, series.first_ms, last_ms, onboard_ms=series.onboard_ms
    ):
        if official.close_time >= last_ms or official.open_time >= series.delivery_ms:
            continue
        tally.expected += 1
        row = stored.get(official.open_time)
        if row is None:
            tally.holes += 1
            tally.tell(f"hole: {name} {official.open_time}")
            continue
        source, revision, values = row
        if official.close_time >= end_ms:
            continue
        if source == "suspect" and not series.replaced:
            tally.suspect += 1
            tally.tell(f"suspect: {name} {official.open_time} revision {revision}")
        if source == "suspect" and series.replaced:
            continue  # the exchange has only the new contract's bars: this one stays suspect
        tally.compared += 1
        if values != official.floats():
            tally.differing += 1
            tally.tell(
                f"differs: {name} {official.open_time} {source} revision {revision}: "
                + _difference(values, official.floats())
            )


def _stored(connection: sqlite3.Connection, series: _Series) -> dict[int, tuple[str, int, Values]]:
    """Return source, revision and values of the stored bars of one series, by open time."""
    rows = connection.execute(
        f"SELECT open_time, source, revision, {', '.join(VALUE_COLUMNS)} FROM klines"
        " WHERE symbol = ? AND interval = ?",
        (series.symbol, series.interval),
    )
    return {
        open_ms: (source, revision, tuple(values)) for open_ms, source, revision, *values in rows
    }


def _difference(values: Values, official: Values) -> str:
    return ", ".join(
        f"{name} {ours} official {theirs}"
        for name, ours, theirs in zip(VALUE_COLUMNS, values, official, strict=True)
        if ours != theirs
    )
