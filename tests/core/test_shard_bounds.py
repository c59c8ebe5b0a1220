"""What a shard keeps of a symbol is bounded, however long nothing can be repaired."""

from __future__ import annotations

import random

import msgspec
import pytest

from klagg_trio.core.gaps import PIECES_MAX
from klagg_trio.core.shard.evidence import GAPS_MAX
from klagg_trio.core.shard.restate import OFFICIAL_SPANS_MAX
from klagg_trio.core.shard.state import HELD_MINUTES, PARTIALS_MAX, UNMERGED_MAX
from klagg_trio.core.shard.trades import AHEAD_MS_MAX

from .desk import Desk, trade
from .naive import MINUTE

START_MS = trade(1, 0).time_ms


def sizes(state) -> dict[str, int]:
    """How much is in each container of a symbol."""
    names = ("ahead", "unmerged", "held", "gaps", "suspects", "doubtful", "missing", "unknown")
    return {name: len(getattr(state, name)) for name in (*names, "official", "partials")}


BOUNDS = {
    "ahead": AHEAD_MS_MAX // MINUTE + 1,
    "unmerged": UNMERGED_MAX,
    "held": HELD_MINUTES,
    "gaps": GAPS_MAX,
    "suspects": PIECES_MAX,
    "doubtful": PIECES_MAX,
    "missing": PIECES_MAX,
    "unknown": PIECES_MAX,
    "official": OFFICIAL_SPANS_MAX,
    "partials": PARTIALS_MAX,
}


@pytest.mark.parametrize("seed", range(4))
def test_days_of_trouble_without_repair_are_bounded(seed):
    """Gaps, losses, trades ahead, late and refused, for two days: nothing passes its bound."""
    rng = random.Random(seed)
    desk = Desk("3m", "1h", "1d")
    trade_id = 1
    for minute in range(2 * 24 * 60):
        for _ in range(rng.choice((0, 1, 3))):
            trade_id += rng.choice((1, 1, 2, 50, -3, 10**9 if rng.random() < 0.01 else 1))
            at = minute + rng.random() + rng.choice((0, 0, 0, 1, 9, -1, -5, -2_000, 10**6))
            desk.shard.apply_trades([trade(max(1, trade_id), at)])
        if rng.random() < 0.2:
            desk.shard.feed_lost(["BTCUSDT"], START_MS + round((minute - rng.random()) * MINUTE))
        if rng.random() < 0.3:
            desk.live(minute + rng.random())
        if rng.random() < 0.1:
            desk.shard.refuse_trades([("BTCUSDT", None)])
        desk.shard.tick(START_MS + (minute + 1) * MINUTE)
        found = sizes(desk.state)
        assert all(found[name] <= bound for name, bound in BOUNDS.items()), found
    assert len(desk.shard.seeds()[0].partials) <= PARTIALS_MAX + HELD_MINUTES


def test_what_older_partials_gave_is_unknown_and_never_guessed():
    """Beyond the bound a suspect minute's share of longer bars is not taken for nothing."""
    desk = Desk("1h")
    minutes = PARTIALS_MAX + 10
    desk.shard.feed_lost(["BTCUSDT"], START_MS)
    for minute in range(minutes):
        desk.trades(trade(minute + 1, minute + 0.5))
        desk.tick(minute + 1)
    assert len(desk.state.partials) == PARTIALS_MAX
    assert desk.state.suspects.minutes == minutes
    oldest = next(iter(desk.state.unknown))[0]
    assert oldest == START_MS
    (bar,) = [fact.bar for fact in desk.shard.open_bars() if fact.interval == "1h"]
    assert bar.count == minutes
    official = msgspec.structs.replace(bar, open_ms=START_MS, end_ms=START_MS + MINUTE)
    desk.replace(official)
    (bar,) = [fact.bar for fact in desk.shard.open_bars() if fact.interval == "1h"]
    assert bar.source.label == "suspect"
