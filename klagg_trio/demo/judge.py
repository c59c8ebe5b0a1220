"""The demo's judge: stored bars, and announced ones, against the simulator's official klines.

Those come from the simulator's raw trades, by code that shares nothing with klagg's. Up to the
promised end every stored bar has to be equal to the official one in all nine values, whatever its
source says, and none may be suspect, but for those that the exchange never serves a usable row for.
After that end, and before it, there may be no hole. What was announced is judged in `witness`.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from klagg_trio.demo.announced import Announced
from klagg_trio.demo.truth import Truth
from klagg_trio.demo.witness import (
    LONGEST_SUSPECT_S,
    REPLACED_MARK,
    Verdict,
    is_right,
    judge_announced,
)
from klagg_trio.nursery_app import RunReport
from klagg_trio.sim.klines import MINUTE_MS, Kline
from klagg_trio.sim.server import SimExchange
from klagg_trio.sim.universe import Instrument
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


@dataclass(slots=True)
class Record:
    """What happened to one data directory: every life of the app that worked in it."""

    announced: Announced
    downs: list[tuple[int, int]]
    """When klagg did not run, in exchange time."""
    machine: dict[str, int]
    """What befell the machine, and how often."""
    cut_ms: int = 0
    """Where the first life started from."""
    starts: list[int] = dataclasses.field(default_factory=list)
    """The cut that each life started from."""
    reports: list[RunReport] = dataclasses.field(default_factory=list)
    """Of the lives that ended in an orderly way."""


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What came of it. `holes`, `differing_bars` and `suspect_bars` must be 0, and so must
    `missing_expected`, `announced_wrong` and `hidden`."""

    simulated_minutes: int
    symbols: int
    intervals: int
    starts: int
    """How often the app was started."""
    sealed_bars: int
    expected_bars: int
    holes: int
    missing_expected: int
    """Bars that should exist and do not, counted from the exchange's side; and contracts that lost
    their name without proof."""
    compared_bars: int
    differing_bars: int
    suspect_bars: int
    """Bars up to the promised end that are suspect still, or called absent though they are not."""
    unserved_minutes: int
    """Minutes that are owed or absent because the exchange never serves a usable row for them."""
    announced_bars: int
    """Bars as they were first committed."""
    announced_wrong: int
    """Those announced as trades, flat or official that were wrong by more than an aggregate across
    a boundary, and not called suspect within a minute after the next trade showed it."""
    announced_suspect: int
    """Minutes announced as suspect."""
    announced_hidden: int
    """Those of them that neither a fault, nor a start, nor a listing had touched."""
    touched_minutes: int
    """Minutes that one of these had touched."""
    longest_suspect_s: float
    """How long a minute was suspect at most, of those that the exchange serves."""
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
        """Whether nothing is missing, nothing wrong, nothing hidden, and every trade is found."""
        accounted = (
            self.trades_in_bars + self.duplicates + self.late + self.rejected + self.not_ours
        )
        wrong = (
            self.holes
            or self.missing_expected
            or self.differing_bars
            or self.suspect_bars
            or self.verify_findings
            or self.announced_wrong
            or self.announced_hidden
        )
        within = (
            self.unexplained <= self.touched_minutes and self.longest_suspect_s <= LONGEST_SUSPECT_S
        )
        return not wrong and within and accounted == self.trades_received

    def as_json(self) -> dict[str, Any]:
        """Return the summary for `--json`."""
        return {**dataclasses.asdict(self), "ok": self.ok}


@dataclass(slots=True)
class _Tally:
    """What the comparison has come to so far."""

    sealed: int = 0
    expected: int = 0
    holes: int = 0
    missing: int = 0
    compared: int = 0
    differing: int = 0
    suspect: int = 0
    unserved: int = 0
    told: list[str] = dataclasses.field(default_factory=list)

    def tell(self, text: str) -> None:
        if len(self.told) < DIFFERENCES_TOLD:
            self.told.append(text)


def check_bars(promise: Promise, path: Path, exchange: SimExchange, record: Record) -> DemoSummary:
    """Judge what is stored and what was announced; count what is missing by the exchange."""
    truth, tally = Truth(exchange), _Tally()
    report = record.reports[-1]
    last_ms = report.vitals.writer.committed_minute_ms
    connection = open_reader(path)
    try:
        stored = _Stored(connection, truth, promise.end_ms, last_ms, record.starts[-1])
        for series in stored.series:
            stored.check(series, tally)
        stored.count_missing(record.cut_ms, report.vitals.intervals, tally)
    finally:
        connection.close()
    findings = verify(path)
    for finding in findings:
        tally.tell(f"{finding.kind}: {finding.symbol} {finding.interval} {finding.text}")
    verdict = judge_announced(record.announced, truth, promise.end_ms, record.downs)
    record.announced.close()
    return _summary(promise, exchange, record, tally, verdict, len(findings))


def _summary(
    promise: Promise,
    exchange: SimExchange,
    record: Record,
    tally: _Tally,
    verdict: Verdict,
    findings: int,
) -> DemoSummary:
    lives = [report.vitals for report in record.reports]
    audits = [vitals.audit for vitals in lives if vitals.audit]
    vitals, simulated = lives[-1], exchange.statistics()
    return DemoSummary(
        simulated_minutes=promise.minutes,
        symbols=vitals.symbols,
        intervals=len(vitals.intervals),
        starts=len(record.starts),
        sealed_bars=tally.sealed,
        expected_bars=tally.expected,
        holes=tally.holes,
        missing_expected=tally.missing,
        compared_bars=tally.compared,
        differing_bars=tally.differing,
        suspect_bars=tally.suspect,
        unserved_minutes=tally.unserved,
        announced_bars=verdict.bars,
        announced_wrong=verdict.wrong,
        announced_suspect=verdict.suspect,
        announced_hidden=verdict.hidden,
        touched_minutes=verdict.touched,
        longest_suspect_s=verdict.longest_suspect_s,
        suspects_marked=sum(each.bars.suspect for each in lives),
        repaired=sum(each.repaired_minutes for each in lives),
        restated=sum(each.bars.restated for each in lives),
        straddles=sum(each.straddle for each in audits),
        unexplained=sum(each.unexplained for each in audits),
        reconnects=sum(each.reconnects for each in lives),
        rotations=sum(each.rotations for each in lives),
        trades_received=sum(each.received for each in lives),
        trades_in_bars=sum(each.trades.in_bars for each in lives),
        duplicates=sum(each.trades.duplicate for each in lives),
        late=sum(each.trades.late for each in lives),
        rejected=sum(each.trades.rejected for each in lives),
        not_ours=sum(each.trades.not_ours for each in lives),
        verify_findings=findings,
        added_symbols=sum(len(each.added) for each in record.reports),
        removed_symbols=sum(len(each.removed) for each in record.reports),
        weight_peak_percent=round(100 * simulated.weight_peak / exchange.options.weight_limit, 1),
        faults=simulated.faults | record.machine,
        differences=(*tally.told, *verdict.told),
    )


def owed_bars(path: Path, end_ms: int, exchange: SimExchange) -> int:
    """Return how many stored bars that end by `end_ms` are suspect and need not be any more."""
    truth = Truth(exchange)
    connection = open_reader(path)
    try:
        rows = connection.execute(
            "SELECT symbol, open_time, close_time FROM klines"
            " WHERE source = 'suspect' AND close_time < ?",
            (end_ms,),
        ).fetchall()
    finally:
        connection.close()
    return sum(
        REPLACED_MARK not in symbol and _can_be_right(truth, symbol, open_ms, close_ms + 1)
        for symbol, open_ms, close_ms in rows
    )


def unknown_contracts(path: Path, exchange: SimExchange) -> int:
    """Return how many contracts that trade now have no bar yet."""
    connection = open_reader(path)
    try:
        newest_ms = dict(
            connection.execute(
                "SELECT symbol, max(open_time) FROM klines WHERE interval = '1m' GROUP BY symbol"
            ).fetchall()
        )
    finally:
        connection.close()
    return sum(
        newest_ms.get(symbol, 0) < exchange.instrument(symbol).onboard_ms - MINUTE_MS
        for symbol in exchange.symbols_now()
    )


def _can_be_right(truth: Truth, symbol: str, open_ms: int, end_ms: int) -> bool:
    """Whether the exchange serves all that the bar is made of."""
    life = truth.life_at(symbol, max(open_ms, end_ms - MINUTE_MS))
    return life is not None and not truth.lacks(life, open_ms, end_ms)


@dataclass(frozen=True, slots=True)
class _Series:
    """One stored series, and the contract it belongs to."""

    symbol: str
    interval: str
    first_ms: int
    life: Instrument

    @property
    def replaced(self) -> bool:
        """Whether another contract has taken its label."""
        return REPLACED_MARK in self.symbol


Row = tuple[str, int, Values]
"""Source, revision and values."""


class _Stored:
    """The bars of one database."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        truth: Truth,
        end_ms: int,
        last_ms: int,
        start_ms: int,
    ) -> None:
        """`start_ms` is where the last life of the app began: what is older nobody audited."""
        self.connection = connection
        self.truth = truth
        self.end_ms = end_ms
        self.last_ms = last_ms
        self.start_ms = start_ms
        self.series = list(self._find())

    def _find(self) -> Iterator[_Series]:
        rows = self.connection.execute(
            "SELECT symbol, interval, min(open_time) FROM klines GROUP BY symbol, interval"
        ).fetchall()
        minutes = {symbol: first_ms for symbol, interval, first_ms in rows if interval == "1m"}
        for symbol, interval, first_ms in rows:
            ticker = symbol.partition(REPLACED_MARK)[0]
            life = self.truth.life_at(ticker, minutes.get(symbol, first_ms))
            if life is not None:
                yield _Series(symbol, interval, first_ms, life)

    def rows(self, symbol: str, interval: str) -> dict[int, Row]:
        """Return the stored bars of one series, by open time."""
        rows = self.connection.execute(
            f"SELECT open_time, source, revision, {', '.join(VALUE_COLUMNS)} FROM klines"
            " WHERE symbol = ? AND interval = ?",
            (symbol, interval),
        )
        return {
            open_ms: (source, revision, tuple(values))
            for open_ms, source, revision, *values in rows
        }

    def check(self, series: _Series, tally: _Tally) -> None:
        """Compare one series."""
        stored = self.rows(series.symbol, series.interval)
        tally.sealed += len(stored)
        owed = self._owed_minutes(series)
        for official in self.truth.klines(
            series.life, series.interval, series.first_ms, self.last_ms
        ):
            if official.close_time >= self.last_ms or official.open_time >= series.life.delivery_ms:
                continue
            tally.expected += 1
            row = stored.get(official.open_time)
            if row is None:
                tally.holes += 1
                tally.tell(f"hole: {series.symbol} {series.interval} {official.open_time}")
            elif official.close_time < self.end_ms:
                if any(official.open_time <= each <= official.close_time for each in owed):
                    tally.unserved += series.interval == "1m"
                else:
                    self._compare(series, official, row, tally)

    def _owed_minutes(self, series: _Series) -> list[int]:
        """Return the minutes that are owed or absent because no usable row is ever served."""
        unserved = self.truth.unserved(series.life)
        if not unserved:
            return []
        minutes = self.rows(series.symbol, "1m")
        return [
            open_ms
            for open_ms in unserved
            if open_ms not in minutes or minutes[open_ms][0] in ("suspect", "absent")
        ]

    def _compare(self, series: _Series, official: Kline, row: Row, tally: _Tally) -> None:
        source, revision, values = row
        name = f"{series.symbol} {series.interval} {official.open_time}"
        if source in ("suspect", "absent"):
            if not series.replaced:  # the exchange has only the new contract's bars
                tally.suspect += 1
                tally.tell(f"{source}: {name} revision {revision}")
            return
        tally.compared += 1
        theirs: Values = official.floats()
        if values == theirs:
            return
        # What no audit can reach may differ by a straddle: of before the run, or never served.
        beyond_audit = official.open_time < self.start_ms or self.truth.lacks(
            series.life, official.open_time, official.close_time + 1
        )
        if beyond_audit and is_right(values, series.life, official, self.truth):
            return
        tally.differing += 1
        tally.tell(f"differs: {name} {source} revision {revision}: " + _difference(values, theirs))

    def count_missing(self, cut_ms: int, intervals: tuple[str, ...], tally: _Tally) -> None:
        """Count the bars that should exist and do not, by the exchange's contracts alone."""
        labels: dict[int, set[str]] = {}
        for series in self.series:
            labels.setdefault(series.life.number, set()).add(series.symbol)
        for ticker in self.truth.tickers():
            for life in self.truth.lives(ticker):
                known = sorted(labels.get(life.number, ()))
                if len(known) > 1:
                    tally.missing += 1
                    tally.tell(f"renamed without proof: {known}")
                for interval in intervals:
                    self._count_missing(life, known, interval, cut_ms, tally)

    def _count_missing(
        self, life: Instrument, labels: list[str], interval: str, cut_ms: int, tally: _Tally
    ) -> None:
        first_ms = self.truth.span(interval, max(cut_ms, life.onboard_ms))[0]
        if first_ms < cut_ms and life.onboard_ms < cut_ms:
            first_ms = self.truth.span(interval, cut_ms)[1]
        stored = {open_ms for label in labels for open_ms in self.rows(label, interval)}
        for official in self.truth.klines(life, interval, first_ms, self.last_ms):
            over = official.close_time < self.last_ms and official.open_time < life.delivery_ms
            if over and official.open_time not in stored:
                tally.missing += 1
                tally.tell(f"missing: {life.symbol} {interval} {official.open_time}")


def _difference(values: Values, official: Values) -> str:
    return ", ".join(
        f"{name} {ours} official {theirs}"
        for name, ours, theirs in zip(VALUE_COLUMNS, values, official, strict=True)
        if ours != theirs
    )
