"""The exchange's time, and the minute clock that is the only thing to seal bars.

Theory of operation
-------------------
`ServerClock` pairs Trio's clock with the exchange's: `offset_ms` is what must be added to
`trio.current_time()`, in ms, to get exchange time. It is sampled several times in a row, the
sample with the smallest round trip wins, and it is refreshed every few minutes. The error of an
offset is half its round trip, growing with age by the drift that a laptop's crystal may have. A
new sample replaces the old one when it is no worse than the old one has become, or when it
contradicts it (a clock was stepped). The local wall clock is never asked.

`run_minute_clock` sleeps until an absolute deadline, worked out anew each lap: the next minute's
end on exchange time plus the grace. When it wakes late, after an overload or a suspend, it sends
every missed minute in order, at most `CATCH_UP_MINUTES` in one Tick.

Trio's clock stops while the machine sleeps, and nothing runs while the process is stopped. The
*sentinel* looks at both clocks once a second. When the wall clock has moved away from Trio's, or
the look comes much too late, time has passed that nobody watched (or the wall clock was stepped,
which looks the same and costs no more): the offset is sampled anew and the feeds are dropped. The
ids of the next trades then tell what was missed, and the minute clock catches up.

The grace is how long after a minute's end its last trades may still be on their way: twice the
mean one-way delay that the feeds measure, plus the exchange's 100 ms aggregation window, plus the
pause between two reads, for which they may lie in the kernel (what the feeds measure is the delay
of the newest trade of each read).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import trio

from klagg_trio import cmd
from klagg_trio.core.errors import RemoteError
from klagg_trio.core.facts import Event
from klagg_trio.core.intervals import MINUTE, MINUTE_MS
from klagg_trio.exchange.clock_probe import Sample, TimeProbe, sample_offset
from klagg_trio.settings import Settings
from klagg_trio.vitals import ClockVitals

log = logging.getLogger(__name__)

AGGREGATION_WINDOW_MS: Final = 100
"""The exchange collects fills of one price and side for this long before it sends them."""

DRIFT_PPM: Final = 200
"""How fast a poor crystal runs away from true time: the growth of an offset's error."""

CATCH_UP_MINUTES: Final = 5
"""Minutes sealed by one Tick when late: 5 x 125 symbols x 15 intervals hold the loop for 20 ms."""

SYNC_ATTEMPTS: Final = 5
"""Tries for the first sample before giving up, two seconds apart."""


class ServerClock:
    """Exchange time on Trio's clock. Read by everything, written by its own two methods."""

    def __init__(self, probe: TimeProbe, settings: Settings) -> None:
        """Make a clock that knows no time yet: `sync` must come before `now_ms`."""
        self._probe = probe
        self._settings = settings
        self._sample: Sample | None = None
        self._sampled_s = 0.0
        self.steps = 0
        """How often a sample contradicted the one before it."""

    def now_ms(self) -> int:
        """Return exchange time, in ms since the epoch."""
        return int(trio.current_time() * 1000 + self._known.offset_ms)

    def trio_time(self, at_ms: float) -> float:
        """Return the Trio time of a moment of exchange time, for `sleep_until`."""
        return (at_ms - self._known.offset_ms) / 1000

    @property
    def age_s(self) -> float:
        """Seconds since the offset was last confirmed."""
        return trio.current_time() - self._sampled_s

    @property
    def error_ms(self) -> float:
        """Bound of the error of `now_ms`."""
        return self._known.round_trip_ms / 2 + self.age_s * DRIFT_PPM / 1000

    @property
    def offset_ms(self) -> float:
        """What is added to Trio's time, in ms."""
        return self._known.offset_ms

    @property
    def round_trip_ms(self) -> float:
        """Round trip of the sample in force."""
        return self._known.round_trip_ms

    @property
    def _known(self) -> Sample:
        assert self._sample is not None, "sync() comes first"
        return self._sample

    async def sync(self) -> None:
        """Get the first offset. Raises RemoteError when the exchange cannot be asked."""
        for attempt in range(SYNC_ATTEMPTS):
            try:
                self._take(await sample_offset(self._probe))
            except RemoteError:
                if attempt == SYNC_ATTEMPTS - 1:
                    raise
                await trio.sleep(2)
            else:
                return

    async def refresh(self) -> bool:
        """Sample again. Returns whether time was found to have stepped."""
        return self._take(await sample_offset(self._probe, count=3))

    def _take(self, sample: Sample) -> bool:
        """Take a new sample where it is better, or where it shows that the old one is wrong."""
        old = self._sample
        stepped = False
        if old is not None:
            apart_ms = abs(sample.offset_ms - old.offset_ms)
            stepped = apart_ms > self.error_ms + sample.round_trip_ms / 2 + 1
            if stepped:
                self.steps += 1
            elif sample.round_trip_ms / 2 > self.error_ms:
                return False
        self._sample = sample
        self._sampled_s = trio.current_time()
        return stepped


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
        self, clock: ServerClock, grace: Grace, start_ms: int, wall_ms: Callable[[], float]
    ) -> None:
        """Start from a state in which every minute before `start_ms` is sealed.

        `wall_ms` is the local wall clock, read for people only: they want to see how far it is off.
        """
        assert start_ms % MINUTE_MS == 0
        self.clock = clock
        self.grace = grace
        self.minute_ms = start_ms
        self._wall_ms = wall_ms

    @property
    def due_ms(self) -> int:
        """Exchange time of the next tick."""
        return self.minute_ms + MINUTE_MS + self.grace.ms

    async def run(
        self,
        inboxes: Sequence[trio.MemorySendChannel[cmd.Message]],
        *,
        snapshot_every_s: float,
    ) -> None:
        """Tick until cancelled. Every shard gets each Tick, or none does."""
        snapshot_s = trio.current_time() + snapshot_every_s
        while True:
            await trio.sleep_until(self.clock.trio_time(self.due_ms))
            last_ms = MINUTE.floor(self.clock.now_ms() - self.grace.ms)
            while self.minute_ms < last_ms:
                self.minute_ms = min(self.minute_ms + CATCH_UP_MINUTES * MINUTE_MS, last_ms)
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
        )


async def run_resync(
    clock: ServerClock, *, refresh_s: float, valid_s: float, note: Callable[[Event], None]
) -> None:
    """Refresh the offset every `refresh_s`. Raises RemoteError once it is older than `valid_s`.

    A wrong clock would seal wrong minutes, so no clock is better than an old one.
    """
    while True:
        await trio.sleep(refresh_s)
        try:
            stepped = await clock.refresh()
        except RemoteError as error:
            if clock.age_s > valid_s:
                raise RemoteError(
                    f"the exchange's time could not be read for {clock.age_s:.0f} s ({error}); "
                    "stopped rather than seal minutes by a wrong clock"
                ) from error
            note(Event(clock.now_ms(), "clock", "", f"exchange time not readable: {error}"))
        else:
            if stepped:
                note(Event(clock.now_ms(), "clock", "", "exchange time and local clock stepped"))


SENTINEL_LOOK_S: Final = 1.0
SYNC_RETRY_S: Final = 1.0


async def run_sentinel(
    clock: ServerClock,
    *,
    limit_s: float,
    wall_ms: Callable[[], float],
    drop_feeds: Callable[[str], None],
    note: Callable[[Event], None],
) -> None:
    """Notice suspends, stops and clock steps; resync and have the feeds connect anew.

    A look `limit_s` too late, or clocks that far apart since the last look, mean one of these.
    """
    before_s, before_ms = trio.current_time(), wall_ms()
    while True:
        await trio.sleep_until(before_s + SENTINEL_LOOK_S)
        now_s, now_wall_ms = trio.current_time(), wall_ms()
        late_s = now_s - before_s - SENTINEL_LOOK_S
        apart_s = (now_wall_ms - before_ms) / 1000 - (now_s - before_s)
        before_s, before_ms = now_s, now_wall_ms
        if late_s < limit_s and abs(apart_s) < limit_s:
            continue
        gone_s = max(late_s, 0.0) + apart_s
        drop_feeds(f"{gone_s:.0f} s passed unwatched: suspend, stop or clock step")
        while True:
            try:
                await clock.refresh()
                break
            except RemoteError:
                await trio.sleep(SYNC_RETRY_S)
        before_s, before_ms = trio.current_time(), wall_ms()
        note(Event(clock.now_ms(), "resumed", "", f"{gone_s:.0f} s passed unwatched; resynced"))
