"""`Spans` against a plain set of minutes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from klagg_trio.core.gaps import PIECES_MAX, SPANS_MAX, Spans

from .naive import MINUTE

numbers = st.integers(0, 60)


def minutes_in(spans: Spans) -> set[int]:
    """Every minute of a set of spans, by number."""
    return {
        at // MINUTE for first_ms, last_ms in spans for at in range(first_ms, last_ms + 1, MINUTE)
    }


class SpansMachine(RuleBasedStateMachine):
    """Adds and removes spans of minutes beside a set that does it one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.spans = Spans()
        self.minutes: set[int] = set()

    @rule(first=numbers, length=st.integers(0, 9))
    def add(self, first, length):
        """Put a span in."""
        joined = self.spans.add(first * MINUTE, (first + length) * MINUTE)
        self.minutes |= set(range(first, first + length + 1))
        assert joined is None

    @rule(first=numbers, length=st.integers(0, 9))
    def remove(self, first, length):
        """Take a span out."""
        self.spans.remove(first * MINUTE, (first + length) * MINUTE)
        self.minutes -= set(range(first, first + length + 1))

    @rule(first=numbers, length=st.integers(1, 9))
    def ask(self, first, length):
        """Questions have the set's answers."""
        assert self.spans.holds(first * MINUTE) == (first in self.minutes)
        wanted = set(range(first, first + length))
        assert self.spans.meets(first * MINUTE, (first + length) * MINUTE) == bool(
            wanted & self.minutes
        )

    @invariant()
    def same_minutes_in_few_spans(self):
        """Sorted, disjoint, never touching, and the same minutes."""
        spans = list(self.spans)
        assert minutes_in(self.spans) == self.minutes
        assert self.spans.minutes == len(self.minutes)
        assert len(self.spans) == len(spans)
        assert bool(self.spans) == bool(self.minutes)
        assert all(first_ms <= last_ms for first_ms, last_ms in spans)
        for (_, last_ms), (first_ms, _) in pairwise(spans):
            assert first_ms > last_ms + MINUTE


TestSpans = pytest.mark.slow(SpansMachine.TestCase)
"""The set of spans and the set of minutes agree after any operations."""


@pytest.mark.slow
@given(st.sets(st.integers(0, 2_000), min_size=SPANS_MAX, max_size=4 * SPANS_MAX))
def test_too_many_spans_are_joined_and_it_says_which_minutes_came_in(numbers):
    """The set stays bounded, loses nothing, and names what it took in besides."""
    spans, wanted, extra = Spans(), set(), set()
    for number in numbers:
        joined = spans.add(number * MINUTE, number * MINUTE)
        wanted.add(number)
        if joined is not None:
            extra |= set(range(joined[0] // MINUTE, joined[1] // MINUTE + 1))
        assert len(spans) <= SPANS_MAX
    assert minutes_in(spans) == wanted | extra


def test_the_nearest_spans_are_the_ones_that_are_joined():
    """The hole that costs the fewest extra minutes is closed."""
    spans = Spans()
    for number in range(SPANS_MAX):
        spans.add(number * 10 * MINUTE, number * 10 * MINUTE)
    joined = spans.add(5 * 10 * MINUTE + 3 * MINUTE, 5 * 10 * MINUTE + 3 * MINUTE)
    assert joined == (51 * MINUTE, 52 * MINUTE)


def test_pieces_are_bounded_and_what_is_forgotten_is_told():
    """Every other minute taken out of a long span leaves the long pieces, and says since when."""
    spans = Spans()
    spans.add(0, 10_000 * MINUTE)
    for number in range(9_999, 5_000, -2):
        spans.remove(number * MINUTE, number * MINUTE)
        assert len(spans) <= PIECES_MAX
    assert spans.forgotten_ms is not None
    assert not spans.holds(spans.forgotten_ms)
    assert spans.holds(0)
    assert spans.holds(5_000 * MINUTE)


def test_minutes_within_a_time_are_counted():
    """Whole minutes, of every span that reaches into it."""
    spans = Spans()
    spans.add(2 * MINUTE, 4 * MINUTE)
    spans.add(8 * MINUTE, 8 * MINUTE)
    assert spans.minutes_within(0, 10 * MINUTE) == 4
    assert spans.minutes_within(3 * MINUTE, 8 * MINUTE) == 2
    assert spans.minutes_within(5 * MINUTE, 8 * MINUTE) == 0
