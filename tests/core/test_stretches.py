"""Minutes sealed late, as stretches: the same bars as one by one, in a few facts."""

from __future__ import annotations

import pytest

from klagg_trio.core.bar import Source
from klagg_trio.core.intervals import DAY_MS, INTERVALS
from klagg_trio.core.shard import seal

from .desk import Desk, ms, trade
from .naive import MINUTE
from .test_shard_model import LINES
from .world import World

LATE = [name for name, line in LINES.items() if line.late_ticks]


def played(monkeypatch, seed, line, stretch_ms_min):
    """Return a world played to its end with stretches from this length on."""
    monkeypatch.setattr(seal, "STRETCH_MS_MIN", stretch_ms_min)
    world = World(seed, line)
    world.run()
    return world


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", LATE)
def test_stretches_change_nothing(monkeypatch, name, seed):
    """Whatever happened before: as a stretch or minute by minute, the same rows and state."""
    one_by_one = played(monkeypatch, seed, LINES[name], 1 << 60)
    at_once = played(monkeypatch, seed, LINES[name], 2 * MINUTE)
    assert at_once.store.rows == one_by_one.store.rows
    assert at_once.shard.seeds() == one_by_one.shard.seeds()
    assert at_once.shard.bars == one_by_one.shard.bars
    assert at_once.shard.owed() == one_by_one.shard.owed()


@pytest.mark.parametrize("days", [1, 31])
def test_weeks_away_are_a_few_facts(days):
    """A month that nobody watched takes as many facts as an hour; all is there, and owed."""
    names = ("5m", "15m", "1h", "4h", "1d", "1w", "1M")
    desk = Desk(*names, live=False)
    minutes = days * DAY_MS // MINUTE
    facts = desk.shard.tick(ms(minutes))
    assert len(facts.sealed) + len(facts.flats) <= 2 * len(names) + 8
    assert desk.shard.owed() == {"BTCUSDT": ((ms(0), ms(minutes - 1)),)}
    for name in ("1m", *names):
        interval = INTERVALS[name]
        bars = [fact.bar for fact in facts.sealed_bars() if fact.interval == name]
        expected, open_ms = [], interval.floor(ms(0))
        while interval.end(open_ms) <= ms(minutes):
            expected.append(open_ms)
            open_ms = interval.end(open_ms)
        assert sorted(bar.open_ms for bar in bars) == expected
        assert {bar.source for bar in bars} <= {Source.SUSPECT}


def test_trades_that_came_ahead_stand_in_their_minutes():
    """Trades of minutes far ahead of the clock wait, and the stretches before them end there."""
    desk = Desk("5m")
    desk.lose(0)
    desk.trades(trade(5, 9.5))
    desk.tick(40)
    assert desk.sources() == "S" * 40
    assert desk.row(9).nine.count == 1
