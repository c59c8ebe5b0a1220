"""Composition root of `klagg run`: opens the channels, starts every task, orders the shutdown.

Theory of operation
-------------------
Two nurseries, one inside the other. The outer one holds the *line*: workers and writer, joined by
channels that only flow one way. The inner one holds the *sources*: feeds, minute clock, discovery,
resync, housekeeping and the dashboard. To stop, the sources are cancelled; their ends of the
inboxes close; each worker works off its inbox and closes its way to the writer; the writer commits
what is pending, writes the start snapshot and ends. Nothing that was received is lost, and a
deadline bounds the wait.

What goes the other way goes by reading: `App.read` puts the vitals together from the parts, and
repair reads the shards' suspect minutes.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from klagg_trio import cmd
from klagg_trio.auditor import Auditor
from klagg_trio.backlog import Backlog
from klagg_trio.core.errors import ConfigurationError, StoreError
from klagg_trio.core.facts import BarCounts, Event, Facts, TradeCounts
from klagg_trio.core.intervals import count_text, select
from klagg_trio.core.plain import plain
from klagg_trio.core.seed import StartState
from klagg_trio.core.shard import Shard, SymbolState
from klagg_trio.discovery import Discovery
from klagg_trio.exchange.clock_probe import TimeProbe, trio_ms
from klagg_trio.exchange.rest import Rest
from klagg_trio.exchange.stream import Dial
from klagg_trio.exchange.universe import Universe
from klagg_trio.exchange.weight import WeightGate
from klagg_trio.feed import Feeds, Router
from klagg_trio.repair import Repair
from klagg_trio.settings import Settings
from klagg_trio.silence import SilenceWatch
from klagg_trio.store.contracts import stored_contract
from klagg_trio.store.database import Database
from klagg_trio.store.reading import reading, select_absences
from klagg_trio.store.thread import RunInThread
from klagg_trio.sweep import Sweep
from klagg_trio.tick import (
    BEHIND_TOLD_MS,
    Grace,
    MinuteClock,
    Sentinel,
    ServerClock,
    run_resync,
    span_text,
)
from klagg_trio.vitals import ConnectionVitals, ShardVitals, SymbolVitals, Vitals
from klagg_trio.worker import run_worker
from klagg_trio.writer import OnCommit, Writer

SUBSCRIPTIONS_MAX: Final = 64
"""Listings come one by one; discovery waits where the feeds lag behind."""

EVENTS_PENDING_MAX: Final = 1_000
"""Notes of a second; what a storm brings above it is counted and not kept."""

REPEATED: Final = frozenset(
    ("repair failed", "audit failed", "check failed", "discovery", "rejected", "refused")
)
REPEATED_MS: Final = 60_000

REASON_LENGTH_MAX: Final = 160
"""Characters of why a connection is not up, in health's reason."""

EVENT_LENGTH_MAX: Final = 500
"""Characters of one event's text."""

FIGURES_S: Final = 10.0
"""Between two reports of the run's figures to the database."""

CLOSES_KEPT: Final = 30
"""Minutes of the spark lines."""

RANKED: Final = 20
"""Symbols in the lists of the busiest and the newest."""

SHUTDOWN_LIMIT_S: Final = 8.0
"""A disk that refuses must not keep the program for ever; normally the wave takes 0.1 s."""

Watch = Callable[[Callable[[], Vitals]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Edge:
    """Everything outside the process that a run touches, so that tests can pass their own."""

    rest: Rest
    gate: WeightGate
    probe: TimeProbe
    dial: Dial
    run_in_thread: RunInThread
    """Runs a synchronous function off the event loop: `trio.to_thread.run_sync` or inline."""
    wall_ms: Callable[[], float]
    """The local wall clock: for people, and as one witness of several."""
    local_ms: Callable[[], float] | None = None
    """A local clock that goes on through a suspend; Trio's and the wall clock stand in for it."""
    shutdown_limit_s: float = SHUTDOWN_LIMIT_S
    """Of Trio's clock, which may run faster than the disk does."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did, once it has ended."""

    vitals: Vitals
    added: tuple[str, ...]
    removed: tuple[str, ...]


class App:
    """The parts of a running klagg, for reading. `run_app` makes and runs it."""

    def __init__(
        self,
        settings: Settings,
        edge: Edge,
        database: Database,
        start: StartState,
        data_dir: Path,
        *,
        on_commit: OnCommit | None = None,
    ) -> None:
        """Build every part; nothing runs and nothing is connected yet."""
        intervals = select(settings.intervals)
        names = tuple(interval.name for interval in intervals)
        if names != start.intervals:
            raise ConfigurationError(
                f"the start snapshot holds the intervals {' '.join(start.intervals)}, the settings "
                f"ask for {' '.join(names)}; run: klagg backfill --data-dir {data_dir}"
            )
        universe = Universe.of(settings)
        self.settings = settings
        self.edge = edge
        self.start = start
        self.database_path = database.path
        self.started_s = trio.current_time()
        local_ms = edge.local_ms or trio_ms
        self.clock = ServerClock(edge.probe, settings, local_ms=local_ms, wall_ms=edge.wall_ms)
        self.shards = [Shard(intervals, start.cut_ms) for _ in range(settings.shards)]
        for seed in start.seeds:
            if universe.names(seed.symbol):
                self.shards[cmd.shard_of(seed.symbol, settings.shards)].load(seed)
        inboxes = [trio.open_memory_channel[cmd.Message](settings.inbox_max) for _ in self.shards]
        self.backlog = Backlog()
        self.inboxes = [send for send, _ in inboxes]
        self.inbox_ends = [receive for _, receive in inboxes]
        self.to_writer, self.writer_end = trio.open_memory_channel[cmd.Record](
            settings.writer_queue_max
        )
        self.subscribe, self.subscriptions = trio.open_memory_channel[cmd.Subscription](
            SUBSCRIPTIONS_MAX
        )
        self.feeds = Feeds(
            router=Router(self.inboxes, self.backlog),
            settings=settings,
            dial=edge.dial,
            clock=self.clock,
            note=self.note,
        )
        self.sentinel = self._make_sentinel()
        self.feeds.look = self.sentinel.look
        self.router = self.feeds.router
        self.feeds.plan(symbol for shard in self.shards for symbol in shard.symbols())
        self.discovery = self._make_discovery(universe)
        self.minute_clock = self._make_minute_clock()
        self.writer = Writer(
            self.writer_end,
            database,
            shards=settings.shards,
            snapshot_path=data_dir / "initial_state.cbor",
            intervals=names,
            run_in_thread=edge.run_in_thread,
            on_commit=on_commit,
        )
        self.silence = self._make_silence_watch()
        self.repair = self._make_repair()
        self.sweep = self._make_sweep()
        self.auditor = self._make_auditor()
        self._events: deque[Event] = deque()
        self._told: dict[str, tuple[int, int]] = {}
        """By kind, when a repeated event was told last, and how many have not been since."""
        self.events_dropped = 0
        self.timed_out = False
        """Whether the end took too long and was cut short."""
        self._dropped_told = 0
        self._closes: dict[str, deque[float]] = {}
        self._closes_ms = 0

    def _make_sentinel(self) -> Sentinel:
        return Sentinel(
            self.clock,
            limit_s=self.settings.suspend_limit_s,
            local_ms=self.edge.local_ms or self.edge.wall_ms,
            freeze_feeds=self.feeds.freeze,
            tell_losses=self.feeds.tell_losses,
            note=self.note,
        )

    def _make_minute_clock(self) -> MinuteClock:
        return MinuteClock(
            self.clock,
            Grace(self.settings, self.feeds.mean_delay_ms),
            self.start.cut_ms,
            self.edge.wall_ms,
            committed_ms=lambda: self.writer.committed_ms,
            watch=self.sentinel.watch,
            note=self.note,
        )

    def _make_discovery(self, universe: Universe) -> Discovery:
        return Discovery(
            self.shards,
            universe=universe,
            inboxes=self.inboxes,
            subscriptions=self.subscribe,
            rest=self.edge.rest,
            settings=self.settings,
            dial=self.edge.dial,
            now_ms=self.clock.now_ms,
            bounded_event_ms=self.clock.bounded_event_ms,
            is_sure=lambda: self.clock.is_sure,
            note=self.note,
            stored=partial(self.edge.run_in_thread, stored_contract, self.database_path),
        )

    def _make_silence_watch(self) -> SilenceWatch:
        return SilenceWatch(
            self.shards,
            self.discovery.traded_ms,
            is_live=self.feeds.coverage.__contains__,
            lose_symbol=self.feeds.lose_symbol,
            rest=self.edge.rest,
            silence_s=self.settings.symbol_silence_s,
            now_ms=self.clock.now_ms,
            note=self.note,
        )

    def _make_repair(self) -> Repair:
        with reading(self.database_path) as connection:
            absences = select_absences(connection)
        return Repair(
            self.shards,
            self.inboxes,
            self.to_writer,
            rest=self.edge.rest,
            now_ms=self.clock.now_ms,
            note=self.note,
            absences=absences,
        )

    def _make_sweep(self) -> Sweep:
        with reading(self.database_path) as connection:
            absences = select_absences(connection)
        return Sweep(
            self.shards,
            self.to_writer,
            rest=self.edge.rest,
            database_path=self.database_path,
            run_in_thread=self.edge.run_in_thread,
            now_ms=self.clock.now_ms,
            note=self.note,
            absences=absences,
        )

    def _make_auditor(self) -> Auditor:
        return Auditor(
            self.shards,
            self.inboxes,
            rest=self.edge.rest,
            database_path=self.database_path,
            every_s=self.settings.audit_every_s,
            run_in_thread=self.edge.run_in_thread,
            now_ms=self.clock.now_ms,
            note=self.note,
            start_ms=self.start.cut_ms,
        )

    def note(self, event: Event) -> None:
        """Take an event for the journal. Synchronous, so that any part may note anything.

        What may fail for hundreds of symbols at once is told once a minute, with how often it was.
        Its words may come from outside: what cannot be shown is not kept either.
        """
        untold = 0
        if event.kind in REPEATED:
            told_ms, untold = self._told.get(event.kind, (0, 0))
            if abs(event.at_ms - told_ms) < REPEATED_MS:
                self._told[event.kind] = told_ms, untold + 1
                return
            self._told[event.kind] = event.at_ms, 0
        text = plain(event.text, EVENT_LENGTH_MAX) + (f" (and {untold} more before)" * bool(untold))
        event = event._replace(symbol=plain(event.symbol), text=text)
        if len(self._events) < EVENTS_PENDING_MAX:
            self._events.append(event)
        else:
            self.events_dropped += 1

    def _states(self) -> list[SymbolState]:
        return [state for shard in self.shards for state in shard.states.values()]

    # -- The picture ---------------------------------------------------------------------------

    def read(self) -> Vitals:
        """Put the picture of this moment together from the parts."""
        states = self._states()
        self._keep_closes(states)
        now_s = trio.current_time()
        clock = self.minute_clock.statistics()
        connections = tuple(feed.statistics() for feed in self.feeds.feeds)
        writer = self.writer.statistics()
        owed = sum(state.suspects.minutes for state in states)
        health, reason = "good", ""
        if down := [each for each in connections if each.state != "live"]:
            health, reason = "degraded", _connecting(down)
        elif owed:
            health, reason = "degraded", f"{count_text(owed, 'minute')} owed"
        elif not states:
            health, reason = "degraded", "no symbol is kept: none of those asked for trades"
        if clock.sampled_s > self.settings.offset_valid_s / 2:
            health, reason = "bad", f"exchange time is {clock.sampled_s:.0f} s old"
        elif writer.trouble:
            health, reason = "bad", writer.trouble
        elif not clock.is_sure:
            health, reason = "bad", "waiting for a second witness of the exchange's time"
        elif (behind_ms := self.minute_clock.behind_ms) > BEHIND_TOLD_MS:
            health, reason = "degraded", f"catching up: {span_text(behind_ms)} behind"
        elif clock.next_tick_s < -10:
            health, reason = "bad", f"the tick is {-clock.next_tick_s:.0f} s late"
        by_trades = sorted(states, key=lambda state: -state.minute.count)[:RANKED]
        by_age = sorted(states, key=lambda state: -state.onboard_ms)[:RANKED]
        return Vitals(
            health=health,
            reason=reason,
            uptime_s=now_s - self.started_s,
            clock=clock,
            connections=connections,
            shards=tuple(self._shard_vitals()),
            writer=writer,
            weight=self.edge.gate.statistics(),
            bars=self.bar_counts(),
            trades=self.trade_counts(),
            received=self.feeds.counts.received,
            symbols=len(states),
            intervals=self.start.intervals,
            owed_minutes=owed,
            repaired_minutes=self.repair.repaired_minutes,
            audit=self.auditor.statistics(),
            rotations=self.feeds.rotations,
            reconnects=self.feeds.counts.reconnects,
            busiest=tuple(map(self._symbol_vitals, by_trades)),
            newest=tuple(map(self._symbol_vitals, by_age)),
            events=tuple(self.writer.recent_events()),
        )

    def owes_before(self, end_ms: int) -> bool:
        """Whether a minute before `end_ms` is suspect."""
        return any(state.suspects.meets(0, end_ms) for state in self._states())

    def bar_counts(self) -> BarCounts:
        """Return the bars of all shards, added up."""
        total = BarCounts()
        for shard in self.shards:
            total.sealed += shard.bars.sealed
            total.flat += shard.bars.flat
            total.suspect += shard.bars.suspect
            total.official += shard.bars.official
            total.restated += shard.bars.restated
        return total

    def trade_counts(self) -> TradeCounts:
        """Return where every trade ended: the shards' counts and what never reached a shard."""
        total = TradeCounts(rejected=self.feeds.counts.rejected, not_ours=self.router.not_ours)
        for shard in self.shards:
            total.in_bars += shard.trades.in_bars
            total.duplicate += shard.trades.duplicate
            total.late += shard.trades.late
            total.rejected += shard.trades.rejected
            total.not_ours += shard.trades.not_ours
        return total

    def _shard_vitals(self) -> list[ShardVitals]:
        return [
            ShardVitals(
                shard=number,
                symbols=len(shard.states),
                inbox=end.statistics().current_buffer_used,
                inbox_cap=self.settings.inbox_max,
            )
            for number, (shard, end) in enumerate(zip(self.shards, self.inbox_ends, strict=True))
        ]

    def _symbol_vitals(self, state: SymbolState) -> SymbolVitals:
        price = float(state.minute.close)
        closes = (*self._closes.get(state.symbol, ()), price)
        change = 100 * (price / closes[0] - 1) if closes[0] else 0.0
        return SymbolVitals(state.symbol, price, change, state.minute.count, closes)

    def _keep_closes(self, states: Sequence[SymbolState]) -> None:
        """Remember the closes of the minutes sealed since the last look, for the spark lines."""
        if self.minute_clock.minute_ms == self._closes_ms:
            return
        self._closes_ms = self.minute_clock.minute_ms
        before, self._closes = self._closes, {}
        for state in states:
            kept = before.get(state.symbol) or deque(maxlen=CLOSES_KEPT)
            kept.append(float(state.last_close))
            self._closes[state.symbol] = kept

    # -- Tasks of its own ----------------------------------------------------------------------

    async def refresh_open_bars(self) -> None:
        """Have the running bars saved every `open_refresh_s`."""
        while True:
            await trio.sleep(self.settings.open_refresh_s)
            for inbox in self.inboxes:
                await inbox.send(cmd.ReportOpenBars())

    async def journal(self) -> None:
        """Bring the noted events to the writer once a second."""
        while True:
            await trio.sleep(1.0)
            await self.flush_events()

    async def report_figures(self) -> None:
        """Have the run's figures saved every `FIGURES_S`, for `klagg status`."""
        while True:
            await trio.sleep(FIGURES_S)
            await self.to_writer.send(self.figures())

    def figures(self) -> cmd.Figures:
        """Return what the run has counted so far."""
        audit = self.auditor.statistics()
        trades = {"received": self.feeds.counts.received} | asdict(self.trade_counts())
        return cmd.Figures(
            0,
            {
                "trades": json.dumps(trades),
                "unread_frames": str(self.feeds.counts.unread),
                "bars": json.dumps(asdict(self.bar_counts())),
                "audit": json.dumps(asdict(audit) | {"share_equal": audit.share_equal}),
                "repair": json.dumps(asdict(self.repair.statistics())),
            },
        )

    async def flush_events(self) -> None:
        """Bring the events noted so far to the writer; cancelled, it keeps them for the next."""
        if events := list(self._events):
            dropped = self.events_dropped - self._dropped_told
            if dropped:
                text = f"{dropped:,} events of a second were too many to keep"
                events.append(Event(events[-1].at_ms, "untold", "", text))
            kept = len(self._events)
            await self.to_writer.send(cmd.Amended(0, Facts(events=events)))
            self._dropped_told += dropped
            for _ in range(kept):
                self._events.popleft()


def _connecting(down: Sequence[ConnectionVitals]) -> str:
    """Say which connections are not up, and why: those with one reason together."""
    names: dict[str, list[str]] = {}
    for each in down:
        names.setdefault(plain(each.trouble, REASON_LENGTH_MAX), []).append(each.name)
    return "connecting: " + "; ".join(
        ", ".join(some) + (f" ({reason})" if reason else "") for reason, some in names.items()
    )


async def run_app(
    settings: Settings,
    edge: Edge,
    *,
    database: Database,
    start: StartState,
    stop: trio.Event,
    watch: Watch | None = None,
    on_commit: OnCommit | None = None,
    ending: Callable[[], None] = lambda: None,
    task_status: trio.TaskStatus[App] = trio.TASK_STATUS_IGNORED,
) -> RunReport:
    """Run klagg from a start state until `stop` is set. Raises what ends it otherwise.

    Args:
        settings: of the run.
        edge: everything outside the process.
        database: where bars go.
        start: the state to start from.
        stop: set from outside to end it.
        watch: the dashboard or the status line, an async function that is given `App.read`.
        on_commit: told what each transaction made durable.
        ending: called when the end begins, for whatever reason.
        task_status: told of the app once it runs.
    """
    app = App(settings, edge, database, start, settings.data_dir, on_commit=on_commit)
    await app.clock.sync()
    try:
        await _run_line(app, stop, watch, ending, task_status)
    except* trio.BrokenResourceError:
        if not app.timed_out:  # else the end of a line that was cut short
            raise
    if app.timed_out:
        raise StoreError(
            f"stopped, but the disk did not take everything within {edge.shutdown_limit_s:.0f} s"
            f"{app.writer.trouble and f' ({app.writer.trouble})'}; what is not stored is fetched "
            "anew at the next start"
        )
    vitals = app.read()
    return RunReport(
        vitals=replace(vitals, events=tuple(app.writer.recent_events())),
        added=tuple(app.discovery.added),
        removed=tuple(app.discovery.removed),
    )


async def _run_line(
    app: App,
    stop: trio.Event,
    watch: Watch | None,
    ending: Callable[[], None],
    task_status: trio.TaskStatus[App],
) -> None:
    """Run all tasks until `stop`, then let the wave go down the line, within its deadline."""
    deadline_s = math.inf
    try:
        async with trio.open_nursery() as line:
            line.start_soon(app.writer.run)
            for number, (shard, end) in enumerate(zip(app.shards, app.inbox_ends, strict=True)):
                send = app.to_writer.clone()
                line.start_soon(_run_worker, number, shard, end, send, app.backlog)
            async with trio.open_nursery() as sources:
                sources.start_soon(app.feeds.run, sources, app.subscriptions)
                sources.start_soon(_run_minute_clock, app)
                sources.start_soon(_run_resync, app)
                sources.start_soon(app.sentinel.run)
                sources.start_soon(_run_when_time_is_sure, app, sources)
                sources.start_soon(app.refresh_open_bars)
                sources.start_soon(app.journal)
                sources.start_soon(app.report_figures)
                if watch is not None:
                    sources.start_soon(watch, app.read)
                task_status.started(app)
                try:
                    await stop.wait()
                finally:
                    ending()
                # Now: a source that waits for room in an inbox is not cancelled before.
                line.cancel_scope.deadline = deadline_s = (
                    trio.current_time() + app.edge.shutdown_limit_s
                )
                sources.cancel_scope.cancel()
            await _close_line(app)
    finally:
        app.timed_out = trio.current_time() >= deadline_s


async def _close_line(app: App) -> None:
    """Send the wave down the line: last reports, then the end of every channel."""
    for inbox in app.inboxes:
        async with inbox:
            await inbox.send(cmd.ReportOpenBars())
            await inbox.send(cmd.ReportSeeds())
    await app.flush_events()
    await app.to_writer.send(app.figures())
    await app.to_writer.aclose()


async def _run_worker(
    number: int,
    shard: Shard,
    receive: trio.MemoryReceiveChannel[cmd.Message],
    send: trio.MemorySendChannel[cmd.Record],
    backlog: Backlog,
) -> None:
    await run_worker(receive, send, number=number, shard=shard, backlog=backlog)


async def _run_minute_clock(app: App) -> None:
    await app.minute_clock.run(app.inboxes, snapshot_every_s=app.settings.snapshot_every_s)


async def _run_resync(app: App) -> None:
    await run_resync(
        app.clock,
        refresh_s=app.settings.offset_refresh_s,
        valid_s=app.settings.offset_valid_s,
        note=app.note,
    )


async def _run_when_time_is_sure(app: App, sources: trio.Nursery) -> None:
    """Start, in the nursery of the sources, those that judge by what time it is."""
    await app.clock.wait_until_sure()
    sources.start_soon(app.discovery.run)
    sources.start_soon(app.repair.run, sources)
    sources.start_soon(app.sweep.run)
    sources.start_soon(app.auditor.run)
    sources.start_soon(app.silence.run)
