"""The writer: the end of the line. Everything that shards decide is made durable here.

Theory of operation
-------------------
Records come from all shards through one channel, those of one shard in its order. They wait in one
queue a shard. A minute is committed when every shard has sent its `Sealed` for it: one transaction
holds that minute of all shards, and whatever each shard said before. What a shard says after its
`Sealed` waits for that minute's commit. When nothing more is in the channel, the records that wait
for no minute are committed by themselves; running bars only when every shard has reported them,
since the bars of all shards share the pages that are written. While a commit runs in its thread,
the channel fills, and all that came meanwhile makes the next commit: under load transactions grow,
not queues.

A commit that the disk refuses changes nothing and is tried again, with the same records, until
`RETRIES` pauses have passed. Meanwhile the channel fills up, and the pressure goes back to the
sockets. Then the error ends the program; what is not stored is missing after the snapshot's cut and
is repaired after the restart like any other outage.

The start snapshot is written from `Seeds` of all shards with one cut, once everything before the
cut is stored: a restart never finds a snapshot that is ahead of the database.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from klagg_trio import cmd
from klagg_trio.core.errors import BusyError, StoreError
from klagg_trio.core.facts import Births, Event, Facts, RunningBar
from klagg_trio.core.seed import StartState
from klagg_trio.store.database import Database
from klagg_trio.store.start_snapshot import write_snapshot
from klagg_trio.store.thread import RunInThread
from klagg_trio.vitals import WriterVitals

log = logging.getLogger(__name__)

ROWS_MAX: Final = 100_000
"""Rows of stretches in one transaction, but for the last of them. Contracts that come back after
weeks bring millions, and nothing else waits for those."""

EVENTS_KEPT: Final = 200
"""Newest events, for the dashboard; the database has the others."""

BUSY: Final = "the database is held by another program: waiting"

TELL_AGAIN_S: Final = 300.0
"""Trouble that comes and goes is logged no oftener."""

RETRY_PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0)
"""Two minutes in all: enough to make room on a full disk, and for the feeds to stay open."""

EVENTS_A_MINUTE: Final = 5_000
"""Events that are kept of one minute: ten of each of 500 symbols. What a storm brings above it is
counted, and told once the minute is over."""

OnCommit = Callable[[int | None, Sequence[Facts]], None]
"""Told after each commit what it made durable: its minute, or None where it was no tick's, and all
facts in their order. It must neither block nor keep what it is given."""


class Writer:
    """See the module's theory of operation."""

    def __init__(
        self,
        receive: trio.MemoryReceiveChannel[cmd.Record],
        database: Database,
        *,
        shards: int,
        snapshot_path: Path,
        intervals: tuple[str, ...],
        run_in_thread: RunInThread,
        on_commit: OnCommit | None = None,
    ) -> None:
        """Store what `receive` delivers. `run_in_thread` runs the database's methods."""
        self._receive = receive
        self._database = database
        self._snapshot_path = snapshot_path
        self._intervals = intervals
        self._run_in_thread = run_in_thread
        self._on_commit = on_commit
        self._queues: list[deque[cmd.Record]] = [deque() for _ in range(shards)]
        self._seeds: dict[int, cmd.Seeds] = {}
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._events_room = EVENTS_A_MINUTE
        self._events_untold = 0
        self._events_until_s = -math.inf
        self._committed_ms = 0
        self._rows = 0
        self._last_commit_s = 0.0
        self._snapshot_at_s: float | None = None
        self.retries = 0
        self.trouble = ""
        """What the disk says while a commit waits to be tried again."""
        self._told = (-math.inf, "")
        """When trouble was logged last, and which."""

    async def run(self) -> None:
        """Store all that comes until every sender has closed the channel."""
        async with self._receive:
            async for record in self._receive:
                self._take(record)
                self._take_waiting()
                await self._save()
            await self._save(ended=True)
        assert not any(self._queues), "a shard ended in the middle of a minute"
        await self._try(self._database.checkpoint)

    def _take_waiting(self) -> None:
        """Take what is in the channel already, without waiting."""
        while True:
            try:
                self._take(self._receive.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                return

    def _take(self, record: cmd.Record) -> None:
        if isinstance(record, cmd.Sealed | cmd.Amended) and record.facts.events:
            self._bound_events(record.facts)
        self._queues[record.shard].append(record)

    def _bound_events(self, facts: Facts) -> None:
        """Leave out the events of a minute that has too many; say how many once it is over."""
        events = facts.events
        now_s = trio.current_time()
        if now_s >= self._events_until_s:
            untold, self._events_untold = self._events_untold, 0
            self._events_room, self._events_until_s = EVENTS_A_MINUTE, now_s + 60.0
            if untold:
                text = f"{untold:,} events of a minute were too many to keep"
                events.insert(0, Event(events[0].at_ms, "untold", "", text))
        self._events_untold += max(0, len(events) - self._events_room)
        del events[self._events_room :]
        self._events_room -= len(events)

    # -- Deciding ------------------------------------------------------------------------------

    async def _save(self, *, ended: bool = False) -> None:
        """Commit every minute that is complete, then what waits for none; once `ended`, all."""
        while True:
            batch = Batch(self._queues, ended=ended)
            if batch.empty:
                return
            started_s = time.perf_counter()
            rows = await self._try(
                self._database.commit,
                batch.minute_ms,
                batch.facts,
                batch.running.values(),
                batch.births,
                batch.meta,
            )
            self._last_commit_s = time.perf_counter() - started_s
            self._rows += rows
            if self._on_commit is not None:
                self._on_commit(batch.minute_ms, batch.facts)
            for facts in batch.facts:
                self._events.extend(facts.events)
            if batch.minute_ms is not None:
                self._committed_ms = batch.minute_ms
            for seeds in batch.seeds:
                self._seeds[seeds.shard] = seeds
            await self._save_snapshot()
            if batch.minute_ms is not None:
                await self._try(self._database.fold)
                await self._try(self._database.checkpoint)
            self._take_waiting()

    async def _save_snapshot(self) -> None:
        """Write the start snapshot if every shard has told its state as of one cut."""
        cuts = {seeds.cut_ms for seeds in self._seeds.values()}
        if len(self._seeds) < len(self._queues) or len(cuts) != 1:
            return
        parts = [self._seeds[shard] for shard in range(len(self._queues))]
        state = StartState(
            cuts.pop(),
            self._intervals,
            tuple(seed for part in parts for seed in part.seeds),
            *self._database.identity,
        )
        self._seeds.clear()
        await self._try(write_snapshot, self._snapshot_path, state)
        self._snapshot_at_s = trio.current_time()

    async def _try(self, function: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401
        """Run a store function in its thread; try again, for a while, what the disk refuses."""
        for pause_s in RETRY_PAUSES_S:
            try:
                result = await self._run_in_thread(function, *args)
            except StoreError as error:
                self.retries += 1
                self._tell(error)
                await trio.sleep(pause_s)
            else:
                self.trouble = ""
                return result
        try:
            return await self._run_in_thread(function, *args)
        except BusyError as error:
            raise BusyError(
                f"{error}, and has for {sum(RETRY_PAUSES_S) / 60:.0f} minutes: close it, then "
                "start again"
            ) from error

    def _tell(self, error: StoreError) -> None:
        """Keep what the disk says for the picture, and log it once while it goes on."""
        self.trouble = BUSY if isinstance(error, BusyError) else f"disk: {error}"
        now_s = trio.current_time()
        told_s, told = self._told
        if told != self.trouble or now_s - told_s > TELL_AGAIN_S:
            waiting = "; klagg waits for it" if isinstance(error, BusyError) else ""
            log.warning("%s%s", error, waiting)
            self._told = (now_s, self.trouble)

    # -- Reading -------------------------------------------------------------------------------

    @property
    def committed_ms(self) -> int:
        """Every minute before this one is on disk; 0 before the first tick."""
        return self._committed_ms

    def statistics(self) -> WriterVitals:
        """Return what is durable, and how the last commit went."""
        channel = self._receive.statistics()
        age_s = -1.0 if self._snapshot_at_s is None else trio.current_time() - self._snapshot_at_s
        return WriterVitals(
            queue=channel.current_buffer_used + sum(map(len, self._queues)),
            queue_cap=int(channel.max_buffer_size),
            last_commit_ms=self._last_commit_s * 1_000,
            rows=self._rows,
            committed_minute_ms=self._committed_ms,
            snapshot_age_s=age_s,
            trouble=self.trouble,
        )

    def recent_events(self) -> list[Event]:
        """Return the newest durable events, oldest first."""
        return list(self._events)


class Batch:
    """What one transaction holds: taken out of the shards' queues, in the order of each."""

    def __init__(self, queues: list[deque[cmd.Record]], *, ended: bool = False) -> None:
        """Take one complete minute with all before it, or else all that waits for nothing.

        Where that is too much for one transaction, take some of what comes before the minute.
        Once the channel has `ended` no report of running bars waits for others any more.
        """
        crowded = sum(map(_amended_rows, queues)) > ROWS_MAX
        self.minute_ms = None if crowded else _complete_minute(queues)
        reported = ended or crowded or self.minute_ms is not None or all(map(_has_report, queues))
        rows = 0
        self.facts: list[Facts] = []
        self.running: dict[tuple[str, str], RunningBar] = {}
        self.births: list[Births] = []
        self.seeds: list[cmd.Seeds] = []
        self.meta: dict[str, str] = {}
        for queue in queues:
            while queue:
                record = queue[0]
                if isinstance(record, cmd.Sealed):
                    if self.minute_ms is not None:
                        self._add(queue.popleft())
                    break
                if isinstance(record, cmd.OpenBars) and not reported:
                    break
                if rows > ROWS_MAX:
                    return
                rows += _stretch_rows(record)
                self._add(queue.popleft())

    @property
    def empty(self) -> bool:
        """Whether there is nothing to store."""
        return self.minute_ms is None and not (
            self.facts or self.running or self.seeds or self.meta
        )

    def _add(self, record: cmd.Record) -> None:
        match record:
            case cmd.Sealed(_, _, facts, running, births):
                self._add_facts(facts)
                for birth in births:  # what was reported of the bars before them is out of date
                    for symbol in birth.symbols:
                        self.running.pop((symbol, birth.interval), None)
                self.births.extend(births)
                self._add_running(running)
            case cmd.Amended(_, facts):
                self._add_facts(facts)
            case cmd.OpenBars(_, running):
                self._add_running(running)
            case cmd.Seeds():
                self.seeds.append(record)
            case cmd.Figures(_, meta):
                self.meta |= meta

    def _add_facts(self, facts: Facts) -> None:
        self.facts.append(facts)
        if facts.ended:  # what was reported of them before is no running bar any more
            for key in [key for key in self.running if key[0] in facts.ended]:
                del self.running[key]

    def _add_running(self, bars: Sequence[RunningBar]) -> None:
        for bar in bars:
            self.running[bar.symbol, bar.interval] = bar


def _stretch_rows(record: cmd.Record) -> int:
    """Return how many rows the stretches make that were told between two minutes."""
    if not isinstance(record, cmd.Amended):
        return 0
    return sum(span.size for span in record.facts.flats)


def _amended_rows(queue: deque[cmd.Record]) -> int:
    """Return how many such rows come before the next minute."""
    before = itertools.takewhile(lambda record: not isinstance(record, cmd.Sealed), queue)
    return sum(map(_stretch_rows, before))


def _has_report(queue: deque[cmd.Record]) -> bool:
    """Whether running bars are reported before the next minute is sealed."""
    for record in queue:
        if isinstance(record, cmd.OpenBars):
            return True
        if isinstance(record, cmd.Sealed):
            return False
    return False


def _complete_minute(queues: list[deque[cmd.Record]]) -> int | None:
    """Return the minute that every shard has sealed and that is not committed, or None."""
    minute_ms = None
    for queue in queues:
        sealed = next((record for record in queue if isinstance(record, cmd.Sealed)), None)
        if sealed is None:
            return None
        assert minute_ms in (None, sealed.minute_ms), "shards saw different ticks"
        minute_ms = sealed.minute_ms
    return minute_ms
