"""Event times of a feed: what a connection may be believed to have delivered, and what never."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from klagg_trio.exchange.stream import dial_tcp
from klagg_trio.feed import DELAY_MS_MAX, Feeds, Router, _Session
from klagg_trio.settings import Settings

NOW_MS = 1_735_732_800_000
YEAR_MS = 365 * 86_400_000


class Clock:
    """Corroborated time, a millisecond good."""

    def __init__(self):
        """Begin now, and sure."""
        self.is_sure = True
        self.at_ms = NOW_MS
        self.events = []

    def now_ms(self):
        """Return it."""
        return self.at_ms

    def bounded_event_ms(self, event_ms):
        """Cut an event time to now."""
        return min(event_ms, self.at_ms + 1)

    def take_event(self, stream, event_ms):
        """Note a witness."""
        self.events.append((stream, event_ms))


def feed_of(clock):
    """Return a feed that is not connected, and a session that was good a moment ago."""
    feeds = Feeds(
        router=Router([trio.open_memory_channel(1)[0]]),
        settings=Settings(),
        dial=dial_tcp,
        clock=clock,
        note=lambda event: None,
    )
    feeds.plan(["AUSDT"])
    now_s = trio.current_time()
    return feeds.feeds[0], _Session(None, now_s, data_s=now_s, fresh_s=now_s)


OFF_MS = st.one_of(
    st.integers(-YEAR_MS, YEAR_MS), st.sampled_from([0, -40, 900, 2**53 - NOW_MS, -NOW_MS + 1])
)


@given(st.lists(OFF_MS, min_size=1, max_size=30))
def test_no_event_time_vouches_for_more_than_now(offsets_ms):
    """Whatever times frames claim: nothing after now is vouched for, nothing is poisoned."""

    async def play():
        clock = Clock()
        feed, session = feed_of(clock)
        for off_ms in offsets_ms:
            clock.at_ms += 50
            feed._measure(session, clock.at_ms + off_ms)
            assert session.event_ms <= clock.at_ms + 1
            plausible = [x for x in offsets_ms if x <= 1_000]
            assert session.event_ms == 0 or plausible
            if feed.delay_ms is not None:
                assert -1_000 <= feed.delay_ms <= DELAY_MS_MAX

    trio.run(play)


async def test_frame_a_year_ahead_does_not_hide_an_outage(autojump_clock):
    """A connection that has fallen behind stays so, whatever a single frame says of the time."""
    clock = Clock()
    feed, session = feed_of(clock)
    feed._measure(session, clock.at_ms - 60)
    good_ms, fresh_s = session.event_ms, session.fresh_s
    await trio.sleep(30)
    clock.at_ms += 30_000
    feed._measure(session, clock.at_ms + YEAR_MS)
    assert (session.event_ms, session.fresh_s) == (good_ms, fresh_s)
    feed._measure(session, clock.at_ms - 25_000)
    assert session.is_stale
    assert session.fresh_s == fresh_s


@pytest.mark.parametrize("what", ["is_frozen", "not sure"])
async def test_nothing_is_proven_after_a_suspend_or_before_time_is_sure(autojump_clock, what):
    """Event times are witnesses of the time then, and vouch for no connection."""
    clock = Clock()
    feed, session = feed_of(clock)
    clock.is_sure = what != "not sure"
    session.is_frozen = what == "is_frozen"
    feed._measure(session, clock.at_ms)
    assert session.event_ms == 0
    assert feed.delay_ms is None
    assert clock.events == [("1.1", NOW_MS)]
