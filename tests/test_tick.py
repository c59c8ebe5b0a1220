"""The exchange's time and the minute clock, under a mock clock."""

from __future__ import annotations

import pytest
import trio

from klagg_trio.core.errors import RemoteError
from klagg_trio.core.intervals import MINUTE_MS
from klagg_trio.settings import Settings
from klagg_trio.tick import Grace, MinuteClock, ServerClock, run_resync, run_sentinel

START_MS = 1_719_791_820_000


class Probe:
    """An exchange whose clock runs with Trio's, shifted, behind a link with a delay each way."""

    def __init__(self, there_s=0.02, back_s=0.02):
        """Take so long each way."""
        self.there_s = there_s
        self.back_s = back_s
        self.shift_ms = 0.0
        self.fails = False

    async def server_time_ms(self):
        """Answer with the time at which the request arrived."""
        await trio.sleep(self.there_s)
        if self.fails:
            raise RemoteError("no answer")
        answer = int(START_MS + trio.current_time() * 1000 + self.shift_ms)
        await trio.sleep(self.back_s)
        return answer


async def synced(probe):
    """Return a clock that knows the time."""
    clock = ServerClock(probe, Settings())
    await clock.sync()
    return clock


async def test_offset_halves_the_round_trip(autojump_clock):
    """On a symmetric link the clock is right to the millisecond, whatever the delay."""
    clock = await synced(Probe(0.1, 0.1))
    assert clock.now_ms() == pytest.approx(START_MS + trio.current_time() * 1000, abs=2)
    assert clock.round_trip_ms == pytest.approx(200, abs=1)


async def test_error_bound_holds_on_a_lopsided_link(autojump_clock):
    """On a lopsided link the clock is off, but not by more than the bound it reports."""
    clock = await synced(Probe(0.15, 0.01))
    off_ms = abs(clock.now_ms() - (START_MS + trio.current_time() * 1000))
    assert 0 < off_ms <= clock.error_ms + 1


async def test_worse_sample_does_not_replace_a_better_one(autojump_clock):
    """A slow answer is not believed while a quick one is still good."""
    probe = Probe(0.005, 0.005)
    clock = await synced(probe)
    probe.there_s = 0.4
    assert not await clock.refresh()
    assert clock.round_trip_ms == pytest.approx(10, abs=1)


async def test_step_of_time_is_noticed(autojump_clock):
    """A sample that contradicts the old one is believed, and said to be a step."""
    probe = Probe()
    clock = await synced(probe)
    probe.shift_ms = 300_000
    assert await clock.refresh()
    assert clock.steps == 1
    assert clock.now_ms() == pytest.approx(START_MS + 300_000 + trio.current_time() * 1000, abs=2)


async def test_first_sync_gives_up_with_the_reason(autojump_clock):
    """Without any answer at the start the program ends with a clear error."""
    probe = Probe()
    probe.fails = True
    with pytest.raises(RemoteError, match="no answer"):
        await synced(probe)


def grace(delay_ms):
    """Return the grace for a measured delay, with 20 ms between two reads."""
    return Grace(Settings(read_pause_ms=20), lambda: delay_ms).ms


def test_grace_follows_the_delay_within_its_bounds():
    """Twice the delay, the aggregation window, the pause between reads; within the bounds."""
    assert [grace(d) for d in (None, 0.0, 50.0, 400.0, 5_000.0, -80.0)] == [
        120,
        120,
        220,
        920,
        2_000,
        120,
    ]
    assert Grace(Settings(read_pause_ms=0, grace_floor_ms=150), lambda: None).ms == 150


async def ticks_of(clock, minute_clock, seconds, *, snapshot_every_s=1e9):
    """Run a minute clock for a while; return what two inboxes got, with the time of each."""
    got = []
    sends, receives = zip(*(trio.open_memory_channel(1000) for _ in range(2)), strict=True)
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: minute_clock.run(sends, snapshot_every_s=snapshot_every_s))

            async def collect(number):
                async for message in receives[number]:
                    got.append((number, message, clock.now_ms()))  # noqa: PERF401 - one at a time

            nursery.start_soon(collect, 0)
            nursery.start_soon(collect, 1)
    return got


async def test_ticks_come_after_the_minute_and_its_grace(autojump_clock):
    """Each minute is announced once to each shard, never before its end plus the grace."""
    clock = await synced(Probe())
    settings = Settings(read_pause_ms=0)
    minute_clock = MinuteClock(clock, Grace(settings, lambda: 50.0), START_MS, lambda: 0.0)
    got = await ticks_of(clock, minute_clock, 190)
    for number in (0, 1):
        mine = [(m.minute_ms, at_ms) for n, m, at_ms in got if n == number]
        assert [minute for minute, _ in mine] == [START_MS + i * MINUTE_MS for i in (1, 2, 3)]
        for minute_ms, at_ms in mine:
            assert minute_ms + 200 <= at_ms <= minute_ms + 210


async def test_missed_minutes_are_announced_in_order(autojump_clock):
    """A clock that starts twelve minutes late catches up in steps of at most five."""
    clock = await synced(Probe())
    minute_clock = MinuteClock(
        clock, Grace(Settings(), lambda: None), START_MS - 12 * MINUTE_MS, lambda: 0.0
    )
    got = await ticks_of(clock, minute_clock, 1)
    mine = [(m.minute_ms - START_MS) // MINUTE_MS for n, m, _ in got if n == 0]
    assert mine == [-7, -2, 0]


async def test_snapshot_request_follows_its_tick(autojump_clock):
    """The request for seeds comes right behind a tick, the same in every inbox."""
    clock = await synced(Probe())
    minute_clock = MinuteClock(clock, Grace(Settings(), lambda: None), START_MS, lambda: 0.0)
    got = await ticks_of(clock, minute_clock, 250, snapshot_every_s=100)
    for number in (0, 1):
        kinds = [type(m).__name__ for n, m, _ in got if n == number]
        assert kinds == ["Tick", "Tick", "ReportSeeds", "Tick", "Tick", "ReportSeeds"][: len(kinds)]
        assert kinds.count("ReportSeeds") >= 1


async def test_old_time_stops_the_program(autojump_clock):
    """Without an answer for too long the program stops instead of sealing by a wrong clock."""
    probe = Probe()
    clock = await synced(probe)
    probe.fails = True
    notes = []
    with pytest.raises(RemoteError, match="rather than seal"):
        await run_resync(clock, refresh_s=60, valid_s=300, note=notes.append)
    assert [note.kind for note in notes] == ["clock"] * 4


async def watch_sentinel(clock, wall_ms, seconds):
    """Run the sentinel for a while; return why it dropped the feeds."""
    dropped = []
    with trio.move_on_after(seconds):
        await run_sentinel(
            clock,
            limit_s=2.0,
            wall_ms=wall_ms,
            drop_feeds=dropped.append,
            note=lambda event: None,
        )
    return dropped


async def test_sentinel_is_quiet_on_a_healthy_machine(autojump_clock):
    """Clocks that run together, with a little drift, are no suspend."""
    clock = await synced(Probe())
    dropped = await watch_sentinel(clock, lambda: trio.current_time() * 1000.2, 600)
    assert dropped == []


async def test_suspend_is_noticed_and_resynced(autojump_clock):
    """The wall clock ran on for ten minutes while Trio's stood still: feeds dropped, time right."""
    probe = Probe()
    clock = await synced(probe)
    asleep_ms = {"ms": 0.0}

    def wall_ms():
        if trio.current_time() > 30:
            asleep_ms["ms"] = 600_000.0
            probe.shift_ms = 600_000.0
        return trio.current_time() * 1000 + asleep_ms["ms"]

    dropped = await watch_sentinel(clock, wall_ms, 40)
    assert len(dropped) == 1
    assert "600 s" in dropped[0]
    now_ms = START_MS + 600_000 + trio.current_time() * 1000
    assert clock.now_ms() == pytest.approx(now_ms, abs=5)
