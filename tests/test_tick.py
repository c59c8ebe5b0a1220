"""The exchange's time and the minute clock, under a mock clock."""

from __future__ import annotations

import pytest
import trio

from klagg_trio import cmd
from klagg_trio.core.clock import Verdict
from klagg_trio.core.errors import RemoteError
from klagg_trio.core.intervals import MINUTE_MS
from klagg_trio.settings import Settings
from klagg_trio.tick import SLICE_MINUTES, Grace, MinuteClock, Sentinel, ServerClock, run_resync

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


async def synced(probe, **more):
    """Return a clock that knows the time."""
    clock = ServerClock(
        probe, Settings(), wall_ms=lambda: START_MS + trio.current_time() * 1000, **more
    )
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
    assert await clock.refresh() is Verdict.AGREES
    assert clock.error_ms == pytest.approx(5, abs=2)


async def streams_of(clock, true_ms):
    """Bring the event times of a live stream, twice a second, for ever."""
    while True:
        clock.take_event("1.1", int(true_ms() - 30))
        await trio.sleep(0.5)


async def resync(clock, seconds, *, true_ms=None):
    """Have the clock refreshed for a while, with a stream where `true_ms` is given; what it says"""
    notes = []
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            if true_ms is not None:
                nursery.start_soon(streams_of, clock, true_ms)
            await run_resync(clock, refresh_s=60, valid_s=3_600, note=notes.append)
    return notes


@pytest.mark.parametrize("step_ms", [-300_000, -500, 500, 300_000])
async def test_true_step_is_followed(autojump_clock, step_ms):
    """What samples and streams both say over some seconds is believed, and said to be a step."""
    probe = Probe()
    clock = await synced(probe)
    probe.shift_ms = step_ms

    def true_ms():
        return START_MS + step_ms + trio.current_time() * 1000

    notes = await resync(clock, 90, true_ms=true_ms)
    assert clock.steps == 1
    assert clock.now_ms() == pytest.approx(true_ms(), abs=2)
    assert ["not believed" in notes[0].text, "followed" in notes[-1].text] == [True, True]


@pytest.mark.parametrize("with_streams", [True, False])
async def test_lone_jump_of_the_samples_changes_nothing(autojump_clock, with_streams):
    """A day ahead for a quarter of an hour, and nobody else says so: told once, never believed."""
    probe = Probe()
    clock = await synced(probe)

    def true_ms():
        return START_MS + trio.current_time() * 1000

    probe.shift_ms = 86_400_000
    notes = await resync(clock, 900, true_ms=true_ms if with_streams else None)
    assert clock.now_ms() == pytest.approx(true_ms(), abs=2)
    assert [note.kind for note in notes] == ["clock"]
    probe.shift_ms = 0
    notes = await resync(clock, 61, true_ms=true_ms)
    assert clock.steps == 0
    assert not clock.is_doubted


async def test_start_a_day_ahead_seals_nothing(autojump_clock):
    """The exchange's word is a day ahead at the start: no tick before it agrees with others."""
    probe = Probe()
    probe.shift_ms = 86_400_000
    clock = await synced(probe)
    assert not clock.is_sure
    minute_clock = MinuteClock(clock, Grace(Settings(), lambda: None), START_MS, lambda: 0.0)
    got = []

    async def look():
        got.extend(await ticks_of(clock, minute_clock, 200))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        nursery.start_soon(resync, clock, 200)
        await trio.sleep(15)
        assert minute_clock.minute_ms == START_MS
        probe.shift_ms = 0
    mine = [message.minute_ms for number, message, _ in got if number == 0]
    assert mine == [START_MS + i * MINUTE_MS for i in (1, 2, 3)]


async def test_start_with_a_wrong_wall_clock_waits_for_a_stream(autojump_clock):
    """The laptop's clock is an hour off: the first event time of a stream settles it."""
    probe = Probe()
    probe.shift_ms = 3_600_000
    clock = await synced(probe)
    assert not clock.is_sure
    clock.take_event("1.1", clock.now_ms() - 40)
    assert clock.is_sure


async def test_start_without_any_other_witness_takes_its_time(autojump_clock):
    """No stream, a wrong wall clock: samples that agree over most of a minute are believed."""
    probe = Probe()
    probe.shift_ms = 3_600_000
    clock = await synced(probe)
    await resync(clock, 30)
    assert not clock.is_sure
    await resync(clock, 30)
    assert clock.is_sure


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
    """A clock that starts late catches up in slices, the next once the last but one is on disk."""
    clock = await synced(Probe())
    behind, slices_on_disk = 5 * SLICE_MINUTES - 7, 0
    start_ms = START_MS - behind * MINUTE_MS

    def committed_ms():
        return start_ms + slices_on_disk * SLICE_MINUTES * MINUTE_MS if slices_on_disk else 0

    notes = []
    minute_clock = MinuteClock(
        clock,
        Grace(Settings(), lambda: None),
        start_ms,
        lambda: 0.0,
        committed_ms=committed_ms,
        note=notes.append,
    )
    got = await ticks_of(clock, minute_clock, 1)
    mine = [(m.minute_ms - start_ms) // MINUTE_MS for n, m, _ in got if n == 0]
    assert mine == [SLICE_MINUTES, 2 * SLICE_MINUTES]
    assert [note.text for note in notes] == ["09:53 behind"]
    slices_on_disk = 3
    got = await ticks_of(clock, minute_clock, 1)
    mine = [(m.minute_ms - start_ms) // MINUTE_MS for n, m, _ in got if n == 0]
    assert mine == [3 * SLICE_MINUTES, 4 * SLICE_MINUTES, behind]


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


class Suspended:
    """The local clock of a machine that sleeps: Trio's time stands still, this one goes on."""

    asleep_ms = 0.0

    def __call__(self):
        """Return the local time in ms."""
        return trio.current_time() * 1000 + self.asleep_ms


def sentinel_of(clock, local_ms, order, **more):
    """Return a sentinel that writes down, in order, what it does."""

    async def tell_losses():
        order.append("told")

    return Sentinel(
        clock,
        limit_s=2.0,
        local_ms=local_ms,
        freeze_feeds=lambda reason: order.append(reason),
        tell_losses=tell_losses,
        note=lambda event: order.append(event.kind),
        **more,
    )


async def test_sentinel_is_quiet_on_a_healthy_machine(autojump_clock):
    """Clocks that run together, with a little drift, are no suspend."""
    clock = await synced(Probe())
    order = []
    with trio.move_on_after(600):
        await sentinel_of(clock, lambda: trio.current_time() * 1000.2, order).run()
    assert order == []


async def test_suspend_of_a_machine_whose_local_clock_goes_on(autojump_clock):
    """Feeds are lost, and told so, before the tick; missed minutes come within a second, unasked.

    The exchange does not answer for a while, as is usual after a suspend.
    """
    probe, local_ms = Probe(), Suspended()
    clock = await synced(probe, local_ms=local_ms)
    order = []
    sentinel = sentinel_of(clock, local_ms, order)
    minute_clock = MinuteClock(
        clock,
        Grace(Settings(), lambda: None),
        START_MS,
        lambda: 0.0,
        watch=sentinel.watch,
    )
    send, receive = trio.open_memory_channel(1000)
    with trio.move_on_after(32):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sentinel.run)
            nursery.start_soon(lambda: minute_clock.run([send], snapshot_every_s=1e9))
            await trio.sleep(30)
            order.clear()
            local_ms.asleep_ms = probe.shift_ms = 3_600_000.0
            probe.fails = True
            await trio.sleep(1)
            assert minute_clock.minute_ms == START_MS + 60 * MINUTE_MS
            assert order[0].startswith("3600 s passed unwatched")
            assert "told" in order
            assert receive.receive_nowait() == cmd.Tick(START_MS + 60 * MINUTE_MS)


async def test_slow_resync_is_no_second_suspend(autojump_clock):
    """Answers that take long after a suspend keep nobody from looking: one loss, not two."""
    probe, asleep = Probe(), Suspended()
    clock = await synced(probe, local_ms=asleep)
    order = []
    with trio.move_on_after(120):
        async with trio.open_nursery() as nursery:
            sentinel = sentinel_of(clock, asleep, order)
            nursery.start_soon(sentinel.run)
            await trio.sleep(30)
            asleep.asleep_ms = probe.shift_ms = 600_000.0
            probe.there_s = 4.0
            await trio.sleep(7)
            sentinel.look()  # as feeds do when they read
    assert [each for each in order if "unwatched" in each] == [order[0]]
    assert order[-1] == "resumed"


async def test_tick_that_is_due_at_waking_comes_after_the_loss(autojump_clock):
    """The minute clock may wake first: it looks itself, and the shards hear of the loss before."""
    probe, local_ms = Probe(), Suspended()
    clock = await synced(probe, local_ms=local_ms)
    order = []
    sentinel = sentinel_of(clock, local_ms, order)
    send, receive = trio.open_memory_channel(1000)
    minute_clock = MinuteClock(
        clock, Grace(Settings(), lambda: None), START_MS, lambda: 0.0, watch=sentinel.watch
    )
    with trio.move_on_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: minute_clock.run([send], snapshot_every_s=1e9))
            await trio.sleep(30)
            local_ms.asleep_ms = probe.shift_ms = 3_600_000.0
            clock.set_anew()
            await receive.receive()
            assert ["unwatched" in order[0], order[1]] == [True, "told"]
            nursery.cancel_scope.cancel()


async def test_suspend_where_only_the_wall_clock_goes_on(autojump_clock):
    """The local clock stood still with Trio's: sample and wall clock agree, and are believed."""
    probe = Probe()
    asleep = Suspended()
    clock = ServerClock(probe, Settings(), wall_ms=lambda: START_MS + asleep())
    await clock.sync()
    order = []
    with trio.move_on_after(40):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sentinel_of(clock, asleep, order).run)
            await trio.sleep(30)
            asleep.asleep_ms = probe.shift_ms = 600_000.0
    assert order[0].startswith("600 s")
    assert order[-1] == "resumed"
    now_ms = START_MS + 600_000 + trio.current_time() * 1000
    assert clock.now_ms() == pytest.approx(now_ms, abs=5)
