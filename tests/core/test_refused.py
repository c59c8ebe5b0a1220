"""Trades that are refused although they are ours: the minute that lacks them is never vouched for.

The clock of the shard may be far behind while it catches up, and a trade's time may be nonsense.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from klagg_trio.core.shard.trades import AHEAD_BARS_MAX

from .desk import Desk, ms, trade
from .naive import MINUTE


def sealed_after(lie_minutes, *, at=2.5, next_at=2.8, now=True):
    """Play four minutes with one trade whose time is wrong by this; return the sources."""
    desk = Desk("5m")
    for number, minute in enumerate((0.5, 1.5, at), 1):
        told = minute + lie_minutes if number == 3 else minute
        desk.take(desk.shard.apply_trades([trade(number, told)], ms(minute) + 50 if now else None))
        desk.tick(int(minute) + (number < 3))
    desk.take(desk.shard.apply_trades([trade(4, next_at)], ms(next_at) + 50 if now else None))
    desk.tick(30)
    return desk


@given(st.sampled_from([-525_600, -1_440, -60, -2, 0.6, 1, 5, 9, 11, 1_440, 525_600, 10**9]))
def test_minute_that_lacks_a_trade_of_nonsensical_time_is_owed(lie_minutes):
    """However far off its time is, ahead or behind: the minute it was made in is suspect."""
    desk = sealed_after(lie_minutes)
    assert desk.sources()[2] == "S"
    assert desk.sources()[:2].count("t") >= 1
    assert all(first >= ms(0) - 1_440 * MINUTE for first, _ in desk.shard.owed()["BTCUSDT"])
    total = desk.shard.trades
    assert total.total == 4


def test_trade_refused_in_the_grace_leaves_the_minute_after_owed():
    """The clock has not sealed minute 1 yet when a trade of minute 2 comes with a wrong time."""
    desk = Desk()
    desk.take(desk.shard.apply_trades([trade(1, 0.5)], ms(0.5)))
    desk.tick(1)
    desk.take(desk.shard.apply_trades([trade(2, 1.9)], ms(1.9)))
    desk.take(desk.shard.apply_trades([trade(3, 5_000)], ms(2.001)))
    desk.tick(2)
    desk.take(desk.shard.apply_trades([trade(4, 2.5)], ms(2.5)))
    desk.tick(3)
    assert desk.sources()[1:] == "SS"


def test_trades_wait_while_the_shard_catches_up():
    """Three days behind, under a live feed again: live trades wait in their own minutes."""
    desk = Desk("5m")
    days = 3 * 1_440
    desk.lose(0)
    desk.live(days + 0.5)
    number = 100
    for minute in range(3):
        at = days + minute + 0.7
        desk.take(desk.shard.apply_trades([trade(number + minute, at)], ms(at)))
        desk.tick((minute + 1) * 1_440)
    assert desk.shard.trades.rejected == 0
    desk.tick(days + 3)
    assert desk.sources() == "S" * days + "Stt"


def test_minutes_ahead_are_bounded_and_what_is_refused_is_owed():
    """A shard that cannot keep up takes no more than so many minutes; the others are owed."""
    desk = Desk()
    for minute in range(1, AHEAD_BARS_MAX + 5):
        desk.take(desk.shard.apply_trades([trade(minute, minute + 0.5)], ms(minute + 0.5)))
    assert len(desk.state.ahead) == AHEAD_BARS_MAX
    desk.tick(AHEAD_BARS_MAX + 5)
    assert "S" * 3 in desk.sources()[AHEAD_BARS_MAX + 1 :]
    assert desk.shard.trades.rejected == 4
