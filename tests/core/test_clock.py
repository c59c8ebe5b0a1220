"""Whose time is believed: over all histories, nothing later than what two witnesses say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klagg_trio.core.clock import (
    EVENT_AGE_MS,
    EVENT_EARLY_MS,
    EVENT_LATE_MS,
    SPREAD_MS,
    WALL_MS,
    ExchangeTime,
    Sample,
    Verdict,
)

START_MS = 1_735_732_800_000
DAY_MS = 86_400_000

JUMPS = st.sampled_from(
    [0, 0, 0, 1, -400, 500, 3_000, -300_000, 300_000, DAY_MS, -DAY_MS, 365 * DAY_MS, 1 << 60]
)


class World:
    """A true time, a local clock, and what each witness makes of it."""

    def __init__(self, wall_off_ms=0):
        """Begin in agreement, but for the wall clock."""
        self.local_ms = 5_000.0
        self.zero_ms = START_MS - self.local_ms
        self.wall_off_ms = wall_off_ms
        self.time = ExchangeTime()

    @property
    def true_ms(self):
        """Return what time it is at the exchange."""
        return self.local_ms + self.zero_ms

    def sample(self, lie_ms=0, error_ms=10.0):
        """Ask the exchange, which may lie."""
        return self.time.take_sample(
            Sample(self.local_ms, self.zero_ms + lie_ms, error_ms),
            wall_ms=self.true_ms + self.wall_off_ms,
        )

    def event(self, stream="a", lie_ms=0, delay_ms=50):
        """Have a stream bring something."""
        self.time.take_event(stream, self.local_ms, self.true_ms - delay_ms + lie_ms)

    def wrong_ms(self):
        """Return how far the time believed is ahead of the true one."""
        return self.local_ms + self.time.offset_ms - self.true_ms


STEPS = st.one_of(
    st.tuples(st.just("pass"), st.sampled_from([200, 2_000, 15_000, 180_000, 43_200_000])),
    st.tuples(st.just("sample"), JUMPS),
    st.tuples(st.just("liar"), JUMPS),
)


@given(st.lists(STEPS, max_size=60), st.sampled_from([0, 500, 7_200_000]))
def test_nothing_that_one_witness_says_is_believed(steps, wall_off_ms):
    """Samples lie as they like, one of three streams too: sure time is never ahead of the truth.

    But for the error that is told, and what a sample may be off within it.
    """
    world = World(wall_off_ms)
    lie_ms = 0
    for kind, value in steps:
        if kind == "pass":
            world.local_ms += value
            for stream in ("a", "b"):
                world.event(stream)
            world.event("liar", lie_ms)
        elif kind == "sample":
            world.sample(value)
        else:
            lie_ms = value
        if world.time.is_sure:
            # A first sample may be off by what its witness allows; later ones add their error.
            allowed_ms = WALL_MS + EVENT_LATE_MS + EVENT_EARLY_MS + 100
            assert abs(world.wrong_ms()) <= allowed_ms + world.time.error_ms(world.local_ms)


@given(st.lists(st.tuples(st.integers(1, 9), JUMPS), max_size=30))
def test_lone_jumps_pass_by(bursts):
    """A jump that does not last is never followed, whatever its size and however often it comes."""
    world = World()
    assert world.sample() is Verdict.AGREES
    for count, lie_ms in bursts:
        for _ in range(count):
            world.local_ms += 100
            world.event()
            world.sample(lie_ms)
        world.local_ms += 60_000
        assert world.sample() is Verdict.AGREES
        assert abs(world.wrong_ms()) <= 50
    assert world.time.steps == 0


@given(st.integers(-300_000, 300_000).filter(lambda x: abs(x) > 100), st.integers(2, 8))
def test_true_step_is_followed_within_seconds(step_ms, streams):
    """The exchange corrects its clock: samples and streams say so, and are believed."""
    world = World()
    world.sample()
    for _ in range(20):
        world.local_ms += 500
        world.event()
    world.zero_ms += step_ms
    world.wall_off_ms -= step_ms
    verdicts = []
    for number in range(80):
        world.local_ms += 250
        for stream in range(streams):
            world.event(str(stream))
        if number % 8 == 0:
            verdicts.append(world.sample())
    assert verdicts[0] is Verdict.HELD
    assert Verdict.STEPPED in verdicts
    assert abs(world.wrong_ms()) <= 30
    assert world.time.held == []


@given(st.integers(-300_000, 300_000).filter(lambda x: abs(x) > 500), st.integers(0, 2_000))
def test_samples_that_run_away_from_the_streams_are_never_followed(lie_ms, delay_ms):
    """For minutes the exchange's answers say so, and event times may be seconds late."""
    world = World()
    world.event(delay_ms=delay_ms)
    world.sample()
    for number in range(300):
        world.local_ms += 250
        world.event(delay_ms=delay_ms)
        if number % 4 == 0:
            assert world.sample(lie_ms) is Verdict.HELD
    assert abs(world.wrong_ms()) <= 10
    assert world.sample() is Verdict.AGREES


def test_step_needs_samples_over_time_and_streams():
    """Many samples in one burst are one witness; without any stream they stay one."""
    world = World()
    world.sample()
    for _ in range(50):
        world.local_ms += 50
        assert world.sample(300_000) is Verdict.HELD
    world.local_ms += SPREAD_MS + EVENT_AGE_MS
    assert world.sample(300_000) is Verdict.HELD
    world.event(lie_ms=300_000)
    assert world.sample(300_000) is Verdict.STEPPED


def test_suspend_without_a_clock_that_goes_on():
    """The local clock stood still: sample and wall clock moved alike, and are believed at once."""
    world = World(wall_off_ms=700)
    world.sample()
    world.zero_ms += 3_600_000
    assert world.sample() is Verdict.STEPPED
    assert abs(world.wrong_ms()) <= 10


@pytest.mark.parametrize("hours", [1, 12, 72])
def test_error_grows_with_age_and_is_healed_by_a_sample(hours):
    """After a long suspend time is as good as the crystal; the next sample makes it good again."""
    world = World()
    world.sample()
    world.local_ms += hours * 3_600_000
    assert world.time.error_ms(world.local_ms) >= hours * 720
    assert world.sample(300) is Verdict.AGREES
    assert world.time.error_ms(world.local_ms) == 10


def test_streams_that_lie_alone_are_outvoted_and_forgotten():
    """One of three streams is a year ahead; streams by the thousand leave no memory behind."""
    world = World()
    world.sample()
    for number in range(5_000):
        world.local_ms += 10
        world.event("a")
        world.event("b")
        world.event(f"liar {number}", 365 * DAY_MS)
    assert len(world.time._events) <= 64
    world.local_ms += EVENT_AGE_MS + 1
    world.event("a")
    world.event("b")
    world.event("liar", 365 * DAY_MS)
    assert not world.time.streams_disagree(world.local_ms)
