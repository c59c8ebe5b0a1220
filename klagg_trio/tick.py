"""The exchange's time, and the minute clock that is the only thing to seal bars.

Theory of operation
-------------------
`ServerClock` asks the exchange for its time, several times in a row, and lets `core/clock.py` judge
the best answer against what else tells the time: a local clock that goes on through a suspend, the
event times of the streams, the wall clock. What the exchange alone says changes nothing.

`MinuteClock` sleeps until an absolute deadline, worked out anew each lap and whenever time is set
anew: the next minute's end on exchange time plus the grace. When it wakes late, after an overload
or a suspend, it sends every missed minute in order, in slices of whole minutes: a Tick for at most
`SLICE_MINUTES`, and the next one only once the last but one is on disk. So what waits between
here and the disk is bounded, whatever the time away was, and a stop comes between two slices.

Trio's clock stops while the machine sleeps, and nothing runs while the process is stopped. The
*sentinel* looks at both clocks twice a second, and whenever a feed has read or a tick is due. When
the local clock has run away from Trio's, or the look comes much too late, time has passed that
nobody watched. Then the feeds are lost as of what they had before, the shards are told so before
any tick, and the feeds connect anew. The ids of the next trades then tell what was missed. Exchange
time needs no new sample for that: the local clock has gone on.

The grace is how long after a minute's end its last trades may still be on their way: twice the
mean one-way delay that the feeds measure, plus the exchange's 100 ms aggregation window, plus the
pause between two reads, for which they may lie in the kernel (what the feeds measure is the delay
of the newest trade of each read).
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from klagg_trio import cmd
from klagg_trio.core.clock import ExchangeTime, Sample, Verdict
from klagg_trio.core.errors import RemoteError
from klagg_trio.core.facts import Event
from klagg_trio.core.intervals import DAY_MS, HOUR_MS, MINUTE, MINUTE_MS
from klagg_trio.exchange.clock_probe import TimeProbe, sample_offset, trio_ms
from klagg_trio.settings import Settings
from klagg_trio.vitals import ClockVitals

log = logging.getLogger(__name__)

AGGREGATION_WINDOW_MS: Final = 100
"""The exchange collects fills of one price and side for this long before it sends them."""

SLICE_MINUTES: Final = 120
"""Minutes sealed by one Tick when late. Where nobody watched they are told as spans, so a slice
holds the loop no longer than a tick, and is some 75,000 rows of 500 symbols on disk."""

SLICES_AHEAD: Final = 2
"""Slices on their way to the disk: one is written while the next one is made."""

COMMIT_LOOK_S: Final = 0.01
"""Between two looks at what is on disk, while catching up."""

BEHIND_TOLD_MS: Final = 5 * MINUTE_MS
"""Whoever is behind by more is told to be catching up."""

SYNC_ATTEMPTS: Final = 5
"""Tries for the first sample before giving up, two seconds apart."""

DOUBT_PAUSE_S: Final = 2.0
"""Between two samples while they contradict what is known, or nothing is known for sure."""

DOUBT_PAUSE_S_MAX: Final = 20.0
"""The same when that goes on: the pauses grow by a tenth."""

QUESTION_PAUSE_S: Final = 10.0
"""Streams that tell another time make us ask, but not more often than this."""


class ServerClock:
    """Exchange time. Read by everything; its samples are taken by `sync` and `refresh`."""

    def __init__(
        self,
        probe: TimeProbe,
        settings: Settings,
        *,
        local_ms: Callable[[], float] = trio_ms,
        wall_ms: Callable[[], float] | None = None,
    ) -> None:
        """Make a clock that knows no time yet: `sync` must come before `now_ms`.

        `local_ms` goes on through a suspend where that can be had. `wall_ms` is the local wall
        clock: a witness, never the judge.
        """
        self._probe = probe
        self._settings = settings
        self.local_ms = local_ms
        self._wall_ms = wall_ms
        self._time = ExchangeTime()
        self._round_trip_ms = 0.0
        self._confirmed_s = 0.0
        self._asked_s = -QUESTION_PAUSE_S
        self._changed = trio.Event()
        self._wanted = trio.Event()

    def now_ms(self) -> int:
        """Return exchange time, in ms since the epoch."""
        return int(self.local_ms() + self._time.offset_ms)

    def bounded_event_ms(self, event_ms: int) -> int:
        """Return an event time, cut to what it can be: now, with the error of that."""
        return min(event_ms, self.now_ms() + int(self.error_ms) + 1)

    def trio_time(self, at_ms: float) -> float:
        """Return the Trio time of a moment of exchange time, for `sleep_until`."""
        return trio.current_time() + (at_ms - self.local_ms() - self._time.offset_ms) / 1000

    @property
    def is_sure(self) -> bool:
        """Whether anybody but the exchange's REST has said that this is the time."""
        return self._time.is_sure

    @property
    def is_doubted(self) -> bool:
        """Whether samples contradict what is known, or nothing is known for sure."""
        return self._time.is_doubted

    @property
    def steps(self) -> int:
        """How often a step of the exchange's time was followed."""
        return self._time.steps

    @property
    def age_s(self) -> float:
        """Seconds, as this machine was awake, since a sample has confirmed the time."""
        return trio.current_time() - self._confirmed_s

    @property
    def error_ms(self) -> float:
        """Bound of the error of `now_ms`."""
        return self._time.error_ms(self.local_ms())

    @property
    def round_trip_ms(self) -> float:
        """Round trip of the newest sample."""
        return self._round_trip_ms

    # -- Witnesses -----------------------------------------------------------------------------

    async def sync(self) -> None:
        """Get the first sample. Raises RemoteError when the exchange cannot be asked."""
        for attempt in range(SYNC_ATTEMPTS):
            try:
                await self._ask()
            except RemoteError:
                if attempt == SYNC_ATTEMPTS - 1:
                    raise
                await trio.sleep(2)
            else:
                return

    async def refresh(self) -> Verdict:
        """Sample again. Returns what became of it."""
        return await self._ask(count=3)

    async def _ask(self, count: int = 5) -> Verdict:
        sample = await sample_offset(self._probe, count=count, local_ms=self.local_ms)
        self._round_trip_ms = sample.round_trip_ms
        known = Sample(self.local_ms(), sample.offset_ms, sample.round_trip_ms / 2)
        verdict = self._time.take_sample(known, wall_ms=self._wall_ms and self._wall_ms())
        if verdict is not Verdict.HELD or not self.is_sure:
            self._confirmed_s = trio.current_time()
            self.set_anew()
        return verdict

    def told_ms(self) -> int:
        """Return the time by the newest sample that is held; exchange time where none is."""
        held = self._time.held
        return int(self.local_ms() + held[-1].offset_ms) if held else self.now_ms()

    def take_event(self, stream: str, event_ms: int) -> None:
        """Take the event time of what a live stream has just brought, for a witness."""
        was_sure = self.is_sure
        local_ms = self.local_ms()
        self._time.take_event(stream, local_ms, event_ms)
        if self.is_sure != was_sure:
            self.set_anew()
        now_s = trio.current_time()
        if now_s - self._asked_s >= QUESTION_PAUSE_S and self._time.streams_disagree(local_ms):
            self._asked_s = now_s
            self._wanted.set()

    # -- Waiting -------------------------------------------------------------------------------

    def set_anew(self) -> None:
        """Wake whoever waits for a moment of exchange time, to look again."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_until_sure(self) -> None:
        """Wait until a second witness has said that this is the time."""
        while not self.is_sure:
            await self._changed.wait()

    async def wait_until(self, at_ms: float) -> None:
        """Wait for a moment of exchange time, or until time is set anew."""
        with trio.move_on_at(self.trio_time(at_ms)):
            await self._changed.wait()

    async def wait_for_question(self, pause_s: float) -> None:
        """Wait for the next sample's turn, or until the streams make one necessary."""
        with trio.move_on_after(pause_s):
            await self._wanted.wait()
        self._wanted = trio.Event()


class Grace:
    """How long after a minute's end the tick waits, in ms. Follows the measured feed delay."""

    def __init__(self, settings: Settings, delay_ms: Callable[[], float | None]) -> None:
        """Follow `delay_ms`, the mean one-way delay, which is None while nothing was measured."""
        self._floor_ms = settings.grace_floor_ms
        self._ceiling_ms = settings.grace_ceiling_ms
        self._waiting_ms = AGGREGATION_WINDOW_MS + settings.read_pause_ms
        self._delay_ms = delay_ms

    @property
    def ms(self) -> int:
        """The grace in force."""
        delay_ms = self._delay_ms() or 0.0
        wanted_ms = 2 * max(delay_ms, 0.0) + self._waiting_ms
        return int(min(max(wanted_ms, self._floor_ms), self._ceiling_ms))


class MinuteClock:
    """Sends the Ticks. `minute_ms` is the last minute it has announced."""

    def __init__(
        self,
        clock: ServerClock,
        grace: Grace,
        start_ms: int,
        wall_ms: Callable[[], float],
        *,
        committed_ms: Callable[[], int] | None = None,
        watch: Callable[[], Awaitable[None]] | None = None,
        note: Callable[[Event], None] | None = None,
    ) -> None:
        """Start from a state in which every minute before `start_ms` is sealed.

        Args:
            clock: exchange time.
            grace: what a tick waits beyond it.
            start_ms: of the running minute.
            wall_ms: the local wall clock, for people: they want to see how far it is off.
            committed_ms: reads up to which minute all is on disk; 0 for nothing yet.
            watch: looks whether time has passed unwatched, and tells the shards, before any tick.
            note: takes what a person should know.
        """
        assert start_ms % MINUTE_MS == 0
        self.clock = clock
        self.grace = grace
        self.minute_ms = start_ms
        self._start_ms = start_ms
        self._wall_ms = wall_ms
        self._committed_ms = committed_ms
        self._watch = watch
        self._note = note

    @property
    def due_ms(self) -> int:
        """Exchange time of the next tick: never before the time is certain to have come."""
        return self.minute_ms + MINUTE_MS + self._margin_ms

    @property
    def _margin_ms(self) -> int:
        return max(self.grace.ms, int(self.clock.error_ms) + 1)

    @property
    def behind_ms(self) -> int:
        """How far the last announced minute is behind the one that could be."""
        return max(0, self._last_ms() - self.minute_ms)

    def _last_ms(self) -> int:
        return MINUTE.floor(self.clock.now_ms() - self._margin_ms)

    async def run(
        self,
        inboxes: Sequence[trio.MemorySendChannel[cmd.Message]],
        *,
        snapshot_every_s: float,
    ) -> None:
        """Tick until cancelled. Every shard gets each Tick, or none does."""
        await self.clock.wait_until_sure()
        snapshot_s = trio.current_time() + snapshot_every_s
        while True:
            await self.clock.wait_until(self.due_ms)
            if self._watch is not None:
                await self._watch()
            behind_ms = self.behind_ms
            if behind_ms > BEHIND_TOLD_MS:
                follows = "; official bars follow, newest first" if behind_ms > DAY_MS else ""
                text = f"{span_text(behind_ms)} behind{follows}"
                self._tell(Event(self.clock.now_ms(), "catching up", "", text))
            while self.minute_ms < (last_ms := self._last_ms()):
                await self._keep_pace()
                self.minute_ms = min(self.minute_ms + SLICE_MINUTES * MINUTE_MS, last_ms)
                messages: list[cmd.Message] = [cmd.Tick(self.minute_ms)]
                if trio.current_time() >= snapshot_s and self.minute_ms == last_ms:
                    # Right behind the tick, so that all shards report the same minute.
                    messages.append(cmd.ReportSeeds())
                    snapshot_s = trio.current_time() + snapshot_every_s
                # A minute is announced to all shards or to none, shutdown or not: half a tick
                # would be a minute that never becomes durable.
                with trio.CancelScope(shield=True):
                    for message in messages:
                        for inbox in inboxes:
                            await inbox.send(message)
                await trio.lowlevel.checkpoint()
            if behind_ms > BEHIND_TOLD_MS:
                text = f"{span_text(behind_ms)} in whole minutes; now live"
                self._tell(Event(self.clock.now_ms(), "caught up", "", text))

    async def _keep_pace(self) -> None:
        """Wait until no more than `SLICES_AHEAD` slices are on their way to the disk."""
        if self._committed_ms is None:
            return
        allowed_ms = SLICES_AHEAD * SLICE_MINUTES * MINUTE_MS
        while True:  # what the writer has done is read; it does not call back
            if self.minute_ms - max(self._committed_ms(), self._start_ms) < allowed_ms:
                return
            await trio.sleep(COMMIT_LOOK_S)

    def _tell(self, event: Event) -> None:
        if self._note is not None:
            self._note(event)

    def statistics(self) -> ClockVitals:
        """Return the clock's part of the picture."""
        clock = self.clock
        now_ms = clock.now_ms()
        return ClockVitals(
            now_ms=now_ms,
            offset_ms=now_ms - self._wall_ms(),
            round_trip_ms=clock.round_trip_ms,
            error_ms=clock.error_ms,
            sampled_s=clock.age_s,
            grace_ms=self.grace.ms,
            next_tick_s=(self.due_ms - now_ms) / 1000,
            minute_ms=self.minute_ms,
            is_sure=clock.is_sure,
        )


def span_text(span_ms: int) -> str:
    """Return a span for people, as in `3 d 04:10`: days, hours and minutes."""
    days, rest_ms = divmod(span_ms, DAY_MS)
    hours, rest_ms = divmod(rest_ms, HOUR_MS)
    clock = f"{hours:02}:{rest_ms // MINUTE_MS:02}"
    return f"{days} d {clock}" if days else clock


async def run_resync(
    clock: ServerClock, *, refresh_s: float, valid_s: float, note: Callable[[Event], None]
) -> None:
    """Refresh the offset every `refresh_s`. Raises RemoteError once it is older than `valid_s`.

    A wrong clock would seal wrong minutes, so no clock is better than an old one.
    """
    doubted, doubt_pause_s = False, DOUBT_PAUSE_S
    while True:
        if clock.is_doubted:
            await clock.wait_for_question(min(doubt_pause_s, refresh_s))
            doubt_pause_s = min(doubt_pause_s * 1.1, DOUBT_PAUSE_S_MAX)
        else:
            await clock.wait_for_question(refresh_s)
            doubt_pause_s = DOUBT_PAUSE_S
        try:
            verdict = await clock.refresh()
        except RemoteError as error:
            if clock.age_s > valid_s:
                raise RemoteError(
                    f"the exchange's time could not be read for {clock.age_s:.0f} s ({error}); "
                    "stopped rather than seal minutes by a wrong clock"
                ) from error
            note(Event(clock.now_ms(), "clock", "", f"exchange time not readable: {error}"))
            continue
        if verdict is not Verdict.AGREES or doubted:
            text = _verdict_text(clock, verdict)
            if verdict is not Verdict.HELD or not doubted:
                note(Event(clock.now_ms(), "clock", "", text))
        doubted = verdict is Verdict.HELD


def _verdict_text(clock: ServerClock, verdict: Verdict) -> str:
    """Say what has become of a sample."""
    if verdict is Verdict.STEPPED:
        return "exchange time has stepped: samples and streams agree, so it is followed"
    if verdict is Verdict.AGREES:
        return "exchange time agrees with its other witnesses"
    if not clock.is_sure:
        return f"the exchange says it is {_date(clock.now_ms())}: not believed before others say so"
    told_ms = clock.told_ms()
    return (
        f"the exchange says it is {_date(told_ms)}, {(told_ms - clock.now_ms()) / 1000:+,.1f} s "
        "from what was known: not believed before others say so"
    )


def _date(at_ms: int) -> str:
    """Return a moment for people; also one that no calendar has."""
    try:
        return f"{datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{at_ms} ms"


SENTINEL_LOOK_S: Final = 0.5
SYNC_RETRY_S: Final = 1.0


class Sentinel:
    """Notices suspends and stops, whoever looks first: feeds, the minute clock, or its own task.

    A look `limit_s` too late, or clocks that far apart since the last look, mean one of these.
    """

    def __init__(
        self,
        clock: ServerClock,
        *,
        limit_s: float,
        local_ms: Callable[[], float],
        freeze_feeds: Callable[[str], None],
        tell_losses: Callable[[], Awaitable[None]],
        note: Callable[[Event], None],
    ) -> None:
        """Make one that has looked just now.

        Args:
            clock: to be set anew, and asked again.
            limit_s: how much too late a look may be.
            local_ms: the local clock that goes on through a suspend.
            freeze_feeds: makes the feeds lost as of what they had, and connect anew.
            tell_losses: brings that to the shards.
            note: takes what a person should know.
        """
        self._clock = clock
        self._limit_s = limit_s
        self._local_ms = local_ms
        self._freeze_feeds = freeze_feeds
        self._tell_losses = tell_losses
        self._note = note
        self._before_s, self._before_ms = trio.current_time(), local_ms()
        self._gone_s = 0.0
        self._found = trio.Event()
        self._resyncing = False

    def look(self) -> None:
        """Look at both clocks; where time has passed unwatched, have the feeds lost."""
        now_s, now_ms = trio.current_time(), self._local_ms()
        # While it waits for the exchange the sentinel itself does not look every second.
        late_s = 0.0 if self._resyncing else now_s - self._before_s - SENTINEL_LOOK_S
        apart_s = (now_ms - self._before_ms) / 1000 - (now_s - self._before_s)
        self._before_s, self._before_ms = now_s, now_ms
        if late_s < self._limit_s and abs(apart_s) < self._limit_s:
            return
        self._gone_s = max(late_s, 0.0) + apart_s
        self._freeze_feeds(f"{self._gone_s:.0f} s passed unwatched: suspend, stop or clock step")
        self._found.set()

    async def watch(self) -> None:
        """Look, and return when the shards know of what was lost: to be done before a tick."""
        self.look()
        await self._tell_losses()

    async def run(self) -> None:
        """Look until cancelled; after each find, have the missed minutes sealed, then resync."""
        self._before_s, self._before_ms = trio.current_time(), self._local_ms()
        while True:
            with trio.move_on_after(SENTINEL_LOOK_S):
                await self._found.wait()
            self.look()
            if not self._found.is_set():
                continue
            self._found = trio.Event()
            gone_s = self._gone_s
            await self._tell_losses()
            self._clock.set_anew()
            self._resyncing = True
            await self._resync()
            self.look()
            self._resyncing = False
            text = f"{gone_s:.0f} s passed unwatched; resynced"
            self._note(Event(self._clock.now_ms(), "resumed", "", text))

    async def _resync(self) -> None:
        while True:
            try:
                await self._clock.refresh()
            except RemoteError:
                await trio.sleep(SYNC_RETRY_S)
            else:
                return
