"""`klagg demo`: the simulator, a backfill and a run in one process, on accelerated time.

Everything runs under one Trio clock. With `speed` X it runs X times as fast as the real one, over
real loopback sockets; with infinite speed the clock jumps whenever nothing is left to do, over
memory streams. After the time asked for the faults end, and it goes on until everything up to then
is repaired and audited. Then the stored bars are checked (`judge.py`).
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
import trio.testing

from klagg_trio.backfill import run_backfill
from klagg_trio.core.errors import DamagedDataError, RemoteError
from klagg_trio.core.intervals import DAY_MS, DEFAULT_INTERVALS, INTERVALS, MINUTE_MS
from klagg_trio.core.seed import StartState
from klagg_trio.demo.announced import Announced
from klagg_trio.demo.judge import (
    DemoSummary,
    Promise,
    Record,
    check_bars,
    owed_bars,
    unknown_contracts,
)
from klagg_trio.demo.machine import DATABASE, SNAPSHOT, Copy, Machine
from klagg_trio.exchange.clock_probe import AsksProbe, FallbackProbe, RestProbe
from klagg_trio.exchange.rest import HttpxRest
from klagg_trio.exchange.stream import Dial, dial_tcp
from klagg_trio.exchange.weight import WeightGate
from klagg_trio.nursery_app import SHUTDOWN_LIMIT_S, App, Edge, Watch, run_app
from klagg_trio.settings import Settings
from klagg_trio.sim.faults import NONE, FaultRates, Faults, SkewedClock, drawn, drawn_lies
from klagg_trio.sim.server import SimExchange, SimOptions
from klagg_trio.store.database import Database
from klagg_trio.store.start import read_start, settle_start
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

SIM_STEP_MS: Final = 250
"""The simulator pushes in steps of this, on accelerated time."""

DRAIN_MINUTES_MAX: Final = 60
"""Simulated minutes after the end in which all has to be repaired and audited."""

REACH_TRIES: Final = 60
REACH_PAUSE_S: Final = 10.0
"""Before a start: longer than any ban that the faults draw."""

ROTATE_SHARE: Final = 0.6
"""Connections are rotated at this share of the life that the faults leave them."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the user asked for."""

    minutes: int = 10
    """Simulated minutes under live feed, after the one in which the run starts."""
    speed: float = 60.0
    """Simulated seconds a second; infinity for as fast as the processor allows."""
    symbols: int = 45
    seed: int = 1
    faults: FaultRates = NONE
    """What goes wrong from the start of the run to the end of the minutes."""
    intervals: tuple[str, ...] = tuple(INTERVALS)
    parallel_feeds: int = 1
    data_dir: Path | None = None
    """Where the database goes; None for a temporary folder."""
    market: SimOptions = field(default_factory=lambda: SimOptions(step_ms=SIM_STEP_MS))
    """Of the market; its seed, symbols and start are those of the demo."""


def drawn_options(seed: int, minutes: int = 30, *, lies: bool = False) -> DemoOptions:
    """Return a small, odd demo: the seed draws the market, what goes wrong, and how often."""
    rng = random.Random(f"simulation/{seed}")
    per_minute = rng.choice((20.0, 100.0, 400.0))
    return DemoOptions(
        minutes=minutes,
        speed=math.inf,
        symbols=rng.randint(3, 10),
        seed=seed,
        faults=drawn_lies(seed) if lies else drawn(seed),
        intervals=rng.choice((DEFAULT_INTERVALS, tuple(INTERVALS), ("1m", "3m", "15m", "1h"))),
        parallel_feeds=rng.choice((1, 1, 1, 2)),
        market=SimOptions(
            step_ms=2 * SIM_STEP_MS,
            trades_per_minute=per_minute,
            list_after_s=rng.uniform(60.0, 60.0 * minutes),
            three_day_phase_ms=rng.randrange(3) * DAY_MS,
        ),
    )


def run_demo(
    options: DemoOptions,
    *,
    watch: Watch | None = None,
    wait_signal: Callable[[trio.TaskStatus[None]], Awaitable[None]] | None = None,
) -> DemoSummary:
    """Run the demo and check its bars. `watch` draws what the function it is given reads.

    KeyboardInterrupt once `wait_signal` returns; everything is closed by then.
    """
    clock = (
        trio.testing.MockClock(autojump_threshold=0)
        if math.isinf(options.speed)
        else trio.testing.MockClock(rate=options.speed)
    )
    if options.data_dir is not None:
        options.data_dir.mkdir(parents=True, exist_ok=True)
        return trio.run(_stage, options, options.data_dir, watch, wait_signal, clock=clock)
    with tempfile.TemporaryDirectory(prefix="klagg-demo-") as folder:
        return trio.run(_stage, options, Path(folder), watch, wait_signal, clock=clock)


async def _stage(
    options: DemoOptions,
    data_dir: Path,
    watch: Watch | None,
    wait_signal: Callable[[trio.TaskStatus[None]], Awaitable[None]] | None,
) -> DemoSummary:
    """Run the stage until it is done or a signal comes."""
    if wait_signal is None:
        return await run_stage(options, data_dir, watch)
    summary: DemoSummary | None = None
    async with trio.open_nursery() as nursery:

        async def cancel_at_signal(task_status: trio.TaskStatus[None]) -> None:
            await wait_signal(task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(cancel_at_signal)
        summary = await run_stage(options, data_dir, watch)
        nursery.cancel_scope.cancel()
    if summary is None:
        raise KeyboardInterrupt
    return summary


async def run_stage(
    options: DemoOptions, data_dir: Path, watch: Watch | None = None
) -> DemoSummary:
    """Bring up the exchange, fill, run, drain, and check, on the Trio clock that is running."""
    faults = Faults(options.seed)
    machine = Machine(options.seed, START_MS, lambda: faults.rates)
    clock = SkewedClock.drawn(machine.wall_ms, options.faults, options.seed)
    market = replace(
        options.market,
        seed=options.seed,
        symbols=options.symbols,
        start_ms=clock(),
        straddle=True,
        quiet_share=options.faults.quiet_start,
    )
    exchange = SimExchange(market, now_ms=clock, faults=faults)
    faults.clock = clock
    faults.lies.about_rows.wrong_past(exchange.market, options.faults.past_wrong)
    async with trio.open_nursery() as outside:
        await outside.start(exchange.run)
        settings, edge = await connect(options, data_dir, exchange, outside, machine.wall_ms)
        try:
            run = _Run(options, settings, edge, exchange, machine, watch)
            await run.fill()
            promise = await run.through()
        finally:
            await edge.rest.aclose()
        summary = check_bars(promise, data_dir / DATABASE, exchange, run.record)
        outside.cancel_scope.cancel()
    return summary


class _Run:
    """One data directory from its first backfill on: every life of the app that works in it."""

    def __init__(
        self,
        options: DemoOptions,
        settings: Settings,
        edge: Edge,
        exchange: SimExchange,
        machine: Machine,
        watch: Watch | None,
    ) -> None:
        self.record = Record(Announced(exchange.now_ms), machine.downs, machine.counts)
        self._options = options
        self._settings = settings
        self._edge = edge
        self._exchange = exchange
        self._machine = machine
        self._watch = watch
        self._path = settings.data_dir / DATABASE
        self._end_ms = 0
        self._copy: Copy | None = None
        self._restore_ms = 0
        self._told: list[str] = []
        """What the starts said."""

    async def fill(self) -> None:
        """Run the backfill."""
        database = Database.open(self._path)
        try:
            await run_backfill(
                self._settings,
                self._edge.rest,
                database=database,
                run_in_thread=self._edge.run_in_thread,
            )
        finally:
            database.close()

    async def through(self) -> Promise:
        """Run the app for the minutes asked for, end the faults, and wait until nothing is owed."""
        exchange = self._exchange
        cut_ms = read_snapshot(self._settings.data_dir / SNAPSHOT).cut_ms
        self.record.cut_ms = cut_ms
        self._end_ms = cut_ms + (self._options.minutes + 1) * MINUTE_MS
        while True:
            ending = await self._live()
            if not ending:
                break
            down_ms = exchange.now_ms()
            await trio.sleep(self._machine.random.uniform(1, 120))
            if ending == "restored" and self._copy is not None:
                self._restore()
            self._machine.downs.append((down_ms, exchange.now_ms()))
        return Promise(self._options.minutes, self._end_ms)

    async def _live(self) -> str:
        """Run the app once. Returns what ended it; nothing where it came to the end."""
        self._exchange.faults.rates = NONE
        await self._reach()
        start, database = await self._open()
        began_ms = self._exchange.now_ms()
        self.record.starts.append(start.cut_ms)
        self._exchange.faults.touched.add(None, start.cut_ms, began_ms)
        stop = trio.Event()
        ending = ""
        try:
            async with trio.open_nursery() as nursery:

                async def run(task_status: trio.TaskStatus[App]) -> None:
                    report = await run_app(
                        self._settings,
                        self._edge,
                        database=database,
                        start=start,
                        stop=stop,
                        watch=self._watch,
                        on_commit=self.record.announced.hear,
                        task_status=task_status,
                    )
                    self.record.reports.append(report)

                app = await nursery.start(run)
                self._exchange.faults.rates = self._options.faults
                ending = await self._suffer(app)
                if not ending:
                    await self._drain(app)
                if ending == "killed":
                    nursery.cancel_scope.cancel()
                stop.set()
        finally:
            database.close()
        return ending

    async def _open(self) -> tuple[StartState, Database]:
        """Open what there is as `klagg run` does; where that says so, fill it anew first."""
        snapshot = self._settings.data_dir / SNAPSHOT
        while True:
            database: Database | None = None
            try:
                start = read_start(self._path, snapshot)
                database = Database.open(self._path)
                start = settle_start(database, start, snapshot, self._told.append)
            except DamagedDataError as error:
                if database is not None:
                    database.close()
                self._told.append(str(error))
                await self.fill()
            else:
                return start, database

    async def _reach(self) -> None:
        """Wait until the exchange answers: a start while it does not is an error, not a fault."""
        for _ in range(REACH_TRIES):
            try:
                await self._edge.probe.server_time_ms()
            except RemoteError:
                await trio.sleep(REACH_PAUSE_S)
            else:
                return

    async def _suffer(self, app: App) -> str:
        """Let the minutes pass. Returns early with what ends this life of the app, if that came."""
        machine, exchange = self._machine, self._exchange
        while app.writer.statistics().committed_minute_ms < self._end_ms:
            await trio.sleep(1.0)
            kind = machine.due()
            before_ms = exchange.now_ms()
            if kind == "suspended":
                machine.suspend()
            elif kind == "stopped":
                machine.stop()
            elif kind in ("restarted", "killed"):
                return kind
            elif kind == "restored" and self._copy is None:
                self._copy = Copy(self._settings.data_dir)
                self._restore_ms = before_ms + machine.random.randrange(2, 10) * MINUTE_MS
            elif self._copy is not None and before_ms >= self._restore_ms:
                return "restored"
            if kind in ("suspended", "stopped"):
                exchange.step()
                after_ms = exchange.now_ms()
                machine.downs.append((before_ms, after_ms))
                exchange.faults.touched.add(None, before_ms, after_ms)
        return ""

    def _restore(self) -> None:
        """Put one of the two files of some minutes ago back, and leave the other as it is."""
        assert self._copy is not None
        if self._machine.random.random() < 0.5:
            self._copy.restore_database()
        else:
            self._copy.restore_snapshot()
        self._copy = None

    async def _drain(self, app: App) -> None:
        """End the faults and wait until everything is repaired and audited."""
        faults = self._exchange.faults
        faults.rates = NONE
        faults.heal()
        with trio.move_on_after(DRAIN_MINUTES_MAX * 60):
            await _wait_until(lambda: self._is_drained(app))

    def _is_drained(self, app: App) -> bool:
        """Whether everything before the end is repaired and audited, in memory and on disk."""
        return (
            app.auditor.audited_until_ms() >= self._end_ms
            and not owed_bars(self._path, self._end_ms, self._exchange)
            and not unknown_contracts(self._path, self._exchange)
        )


async def connect(
    options: DemoOptions,
    data_dir: Path,
    exchange: SimExchange,
    nursery: trio.Nursery,
    wall_ms: Callable[[], int],
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
        symbol_silence_s=max(15.0, 2 * hiccup_s),
        since="2h",
        shards=min(4, 1 + options.symbols // 8),
        open_refresh_s=20.0 if in_memory else 5.0,  # nobody reads between two of them
        offset_refresh_s=60.0,
        snapshot_every_s=120.0,
        parallel_feeds=options.parallel_feeds,
        audit_every_s=max(60.0, options.symbols / 10),
        rotate_after_s=max(60.0, (options.faults.life_s or 86_400.0) * ROTATE_SHARE),
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
        wall_ms=wall_ms,
        local_ms=wall_ms,
        shutdown_limit_s=SHUTDOWN_LIMIT_S * (1.0 if in_memory else max(1.0, options.speed)),
    )
    return settings, edge


async def _wait_until(reached: Callable[[], bool]) -> None:
    """Look every second: the parts of the app count, they do not call back."""
    while not reached():  # noqa: ASYNC110
        await trio.sleep(1.0)
