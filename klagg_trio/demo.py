"""`klagg demo`: the simulator, a backfill and a run in one process, on accelerated time.

Everything runs under one Trio clock. With `speed` X it runs X times as fast as the real one, over
real loopback sockets; with speed "max" the clock jumps whenever nothing is left to do, over memory
streams. Afterwards the stored bars are held against the simulator's official klines, which come
from its raw trades by code that shares nothing with klagg's.
"""

from __future__ import annotations

import dataclasses
import math
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio
import trio.testing

from klagg_trio.backfill import run_backfill
from klagg_trio.core.intervals import INTERVALS, MINUTE_MS
from klagg_trio.exchange.clock_probe import AsksProbe, FallbackProbe, RestProbe
from klagg_trio.exchange.rest import HttpxRest
from klagg_trio.exchange.stream import Dial, dial_tcp
from klagg_trio.exchange.weight import WeightGate
from klagg_trio.nursery_app import App, Edge, RunReport, Watch, run_app
from klagg_trio.settings import Settings
from klagg_trio.sim.server import SimExchange, SimOptions
from klagg_trio.store.database import Database, open_reader
from klagg_trio.store.start_snapshot import read_snapshot
from klagg_trio.store.thread import one_thread, run_inline

if TYPE_CHECKING:
    import httpx

START_MS: Final = 1_719_791_850_000
"""Sunday 2024-06-30 23:57:30 UTC: two and a half minutes later a minute, an hour, a day, a week
and a month end at once, so that even a short demo seals bars of every interval."""

HICCUP_S: Final = 0.5
"""Real seconds for which a busy machine may not run us, without anything being wrong."""

FEED_PAUSE_MS: Final = 100
"""Rest after a read, on accelerated time: 60 times faster this is the usual pause."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the user asked for."""

    minutes: int = 10
    """Simulated minutes under live feed, after the one in which the run starts."""
    speed: float = 60.0
    """Simulated seconds a second; infinity for as fast as the processor allows."""
    symbols: int = 45
    seed: int = 1
    faults: str = "none"
    intervals: tuple[str, ...] = tuple(INTERVALS)
    data_dir: Path | None = None
    """Where the database goes; None for a temporary folder."""


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What came of it. `holes` and `differing_bars` must be 0."""

    simulated_minutes: int
    symbols: int
    intervals: int
    sealed_bars: int
    expected_bars: int
    holes: int
    compared_bars: int
    differing_bars: int
    suspect_bars: int
    trades_received: int
    trades_in_bars: int
    duplicates: int
    late: int
    rejected: int
    not_ours: int
    added_symbols: int
    weight_peak_percent: float
    differences: tuple[str, ...] = ()
    """The first few holes and differences, in words."""

    @property
    def ok(self) -> bool:
        """Whether nothing is missing, nothing differs, and every trade is accounted for."""
        accounted = (
            self.trades_in_bars + self.duplicates + self.late + self.rejected + self.not_ours
        )
        return not self.holes and not self.differing_bars and accounted == self.trades_received

    def as_json(self) -> dict[str, Any]:
        """Return the summary for `--json`."""
        return {**dataclasses.asdict(self), "ok": self.ok}


def run_demo(options: DemoOptions, *, watch: Watch | None = None) -> DemoSummary:
    """Run the demo and check its bars. `watch` draws what the function it is given reads."""
    in_memory = math.isinf(options.speed)
    clock = (
        trio.testing.MockClock(autojump_threshold=0)
        if in_memory
        else trio.testing.MockClock(rate=options.speed)
    )
    if options.data_dir is not None:
        options.data_dir.mkdir(parents=True, exist_ok=True)
        return trio.run(_run, options, options.data_dir, watch, clock=clock)
    with tempfile.TemporaryDirectory(prefix="klagg-demo-") as folder:
        return trio.run(_run, options, Path(folder), watch, clock=clock)


async def _run(options: DemoOptions, data_dir: Path, watch: Watch | None) -> DemoSummary:
    """Bring up the exchange, fill, run, and compare."""

    def now_ms() -> int:
        return START_MS + int(trio.current_time() * 1000)

    exchange = SimExchange(
        SimOptions(seed=options.seed, symbols=options.symbols, start_ms=START_MS), now_ms=now_ms
    )
    async with trio.open_nursery() as outside:
        await outside.start(exchange.run)
        settings, edge = await _connect(options, data_dir, exchange, outside, now_ms)
        database = Database.open(data_dir / "klagg.db")
        try:
            await run_backfill(
                settings, edge.rest, database=database, run_in_thread=edge.run_in_thread
            )
            start = read_snapshot(data_dir / "initial_state.cbor")
            end_ms = start.cut_ms + (options.minutes + 1) * MINUTE_MS
            stop = trio.Event()
            report: RunReport | None = None
            async with trio.open_nursery() as inside:
                app = None

                async def run(task_status: trio.TaskStatus[App]) -> None:
                    nonlocal report
                    report = await run_app(
                        settings,
                        edge,
                        database=database,
                        start=start,
                        stop=stop,
                        watch=watch,
                        task_status=task_status,
                    )

                app = await inside.start(run)
                await _wait_until(lambda: app.writer.statistics().committed_minute_ms >= end_ms)
                stop.set()
            assert report is not None
        finally:
            database.close()
            await edge.rest.aclose()
        summary = _check(options, data_dir, exchange, report, edge)
        outside.cancel_scope.cancel()
    return summary


async def _connect(
    options: DemoOptions,
    data_dir: Path,
    exchange: SimExchange,
    nursery: trio.Nursery,
    now_ms: Callable[[], int],
) -> tuple[Settings, Edge]:
    """Make the settings and the edge that lead to the simulator, over sockets or memory.

    The nursery is that of the simulator: its servers live in it.
    """
    transport: httpx.AsyncBaseTransport | None = None
    dial: Dial = dial_tcp
    run_in_thread = one_thread()
    in_memory = math.isinf(options.speed)
    if in_memory:
        rest_url, ws_url = "http://127.0.0.1", "ws://127.0.0.1/market"
        transport = exchange.http_transport()
        dial = exchange.dialer(nursery)
        run_in_thread = run_inline
    else:
        rest_url, ws_url = await nursery.start(exchange.serve)
    hiccup_s = 0.0 if in_memory else HICCUP_S * options.speed
    settings = Settings(
        data_dir=data_dir,
        rest_url=rest_url,
        ws_url=ws_url,
        intervals=options.intervals,
        read_pause_ms=FEED_PAUSE_MS,
        # Limits in seconds of simulated time. On accelerated time a hiccup of this machine counts
        # `speed` times, so they are at least a part of a real second.
        silence_limit_s=max(10.0, hiccup_s),
        stale_limit_s=max(3.0, hiccup_s),
        suspend_limit_s=max(2.0, hiccup_s),
        since="2h",
        offset_refresh_s=60.0,
        snapshot_every_s=120.0,
    )
    gate = WeightGate(share=settings.weight_share)
    rest = HttpxRest(rest_url, gate, transport=transport)
    probe = RestProbe(rest)
    edge = Edge(
        rest=rest,
        gate=gate,
        probe=probe if in_memory else FallbackProbe(AsksProbe(rest_url), probe),
        dial=dial,
        run_in_thread=run_in_thread,
        wall_ms=now_ms,
    )
    return settings, edge


async def _wait_until(reached: Callable[[], bool]) -> None:
    """Look every half second: the parts of the app count, they do not call back."""
    while not reached():  # noqa: ASYNC110
        await trio.sleep(0.5)


# -- The check: stored bars against the simulator's official klines ---------------------------

_FIELDS: Final = (
    "open, high, low, close, volume, quote_volume, count, taker_buy_volume, taker_buy_quote_volume"
)
_DIFFERENCES_TOLD: Final = 10


def _check(
    options: DemoOptions, data_dir: Path, exchange: SimExchange, report: RunReport, edge: Edge
) -> DemoSummary:
    """Hold every sealed bar against the official one; count holes by the official calendar."""
    vitals = report.vitals
    last_ms = vitals.writer.committed_minute_ms
    connection = open_reader(data_dir / "klagg.db")
    told: list[str] = []
    sealed = expected = holes = compared = differing = suspect = 0
    try:
        pairs = connection.execute(
            "SELECT symbol, interval, min(open_time) FROM klines GROUP BY symbol, interval"
        ).fetchall()
        for symbol, interval, first_ms in pairs:
            stored = _stored(connection, symbol, interval)
            sealed += len(stored)
            suspect += sum(source == "suspect" for source, _ in stored.values())
            for official in exchange.official_klines(symbol, interval, first_ms, last_ms):
                if official.close_time >= last_ms:
                    continue
                expected += 1
                row = stored.get(official.open_time)
                if row is None:
                    holes += 1
                    told.append(f"hole: {symbol} {interval} {official.open_time}")
                    continue
                source, values = row
                if source in ("suspect", "official"):
                    continue
                compared += 1
                if values != official.floats():
                    differing += 1
                    told.append(
                        f"differs: {symbol} {interval} {official.open_time} {source} "
                        f"stored {values} official {official.floats()}"
                    )
    finally:
        connection.close()
    trades = vitals.trades
    return DemoSummary(
        simulated_minutes=options.minutes,
        symbols=vitals.symbols,
        intervals=len(vitals.intervals),
        sealed_bars=sealed,
        expected_bars=expected,
        holes=holes,
        compared_bars=compared,
        differing_bars=differing,
        suspect_bars=suspect,
        trades_received=vitals.received,
        trades_in_bars=trades.in_bars,
        duplicates=trades.duplicate,
        late=trades.late,
        rejected=trades.rejected,
        not_ours=trades.not_ours,
        added_symbols=len(report.added),
        weight_peak_percent=edge.gate.peak_percent,
        differences=tuple(told[:_DIFFERENCES_TOLD]),
    )


def _stored(
    connection: sqlite3.Connection, symbol: str, interval: str
) -> dict[int, tuple[str, tuple[float, ...]]]:
    """Return source and values of the stored bars of one series, by open time."""
    rows = connection.execute(
        f"SELECT open_time, source, {_FIELDS} FROM klines WHERE symbol = ? AND interval = ?",
        (symbol, interval),
    )
    return {open_ms: (source, tuple(values)) for open_ms, source, *values in rows}
