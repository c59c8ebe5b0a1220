"""Running bars as readers see them: put together by the database, held against the shard's own."""

import random
from collections import deque

import pytest

from klagg_trio import cmd
from klagg_trio.core.bar import Bar
from klagg_trio.core.facts import Facts, Listing
from klagg_trio.core.shard import Shard
from klagg_trio.store.database import Database
from klagg_trio.store.reading import open_reader
from klagg_trio.store.schema import VALUE_COLUMNS
from klagg_trio.worker import apply
from klagg_trio.writer import Batch

from .test_shard_model import LINES
from .world import FAR, START, World, official_bar

pytestmark = pytest.mark.real

MESSAGES = {
    "apply_trades": cmd.TradeBatch,
    "tick": cmd.Tick,
    "feed_live": cmd.FeedLive,
    "feed_lost": cmd.FeedLost,
    "replace_minutes": cmd.ReplaceMinutes,
    "add_symbol": cmd.AddSymbol,
    "sight": cmd.Sighting,
}


def shown(database):
    """Return the rows of open_klines by symbol and interval."""
    read = open_reader(database.path)
    found = {
        (symbol, interval): tuple(rest)
        for symbol, interval, *rest in read.execute(
            f"SELECT symbol, interval, open_time, close_time, {', '.join(VALUE_COLUMNS)}, source"
            " FROM open_klines"
        )
    }
    read.close()
    return found


def true_row(bar: Bar):
    """Return what is to be shown of a bar: the float64 nearest to each exact value."""
    return (bar.open_ms, bar.end_ms - 1, *map(float, bar.values()), bar.source.label)


def truth(shard: Shard):
    """Return what is to be shown of all running bars of a shard."""
    return {(fact.symbol, fact.interval): true_row(fact.bar) for fact in shard.open_bars()}


def store(database, records):
    """Commit what a shard says, as the writer does."""
    batch = Batch([deque(records)])
    database.commit(batch.minute_ms, batch.facts, batch.running.values(), batch.births, batch.meta)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [name for name, line in LINES.items() if not line.restarts])
def test_running_bars_are_what_the_shard_has(tmp_path, name, seed):
    """Whatever happens, a reader sees the exact running bars after each tick and each report."""
    world = World(seed, LINES[name])
    seeds = world.shard.seeds()
    world.run()
    draw = random.Random(seed)
    shard = Shard(world.intervals, START)
    for each in seeds:
        shard.load(each)
    database = Database.open(tmp_path / "klagg.db")
    database._connection.execute("PRAGMA synchronous = OFF")
    report_rate = draw.choice((0.0, 0.02, 0.2))
    compared = 0
    for method, arguments in world.log:
        for message in (
            *([cmd.ReportOpenBars()] if draw.random() < report_rate else []),
            MESSAGES[method](*arguments),
        ):
            records = apply(0, shard, message)
            if records:
                store(database, records)
            if isinstance(message, cmd.Tick | cmd.ReportOpenBars):
                assert shown(database) == truth(shard)
                compared += 1
                if draw.random() < 0.3:
                    database._folding._due = 1.0
                    database.fold()
    assert compared >= world.minutes
    database.close()


def test_a_report_has_longer_bars_once_a_minute(tmp_path):
    """Between two ticks only the running minutes are told again, unless something was restated."""
    world = World(1, LINES["clean"], minutes=5)
    shard = world.shard

    def told():
        (record,) = apply(0, shard, cmd.ReportOpenBars())
        return {each.interval for each in record.running}

    assert told() > {"1m"}
    assert told() == {"1m"}
    (sealed,) = apply(0, shard, cmd.Tick(START + 60_000))
    assert {each.interval for each in sealed.running} == {"1m"}
    (sealed,) = apply(0, shard, cmd.Tick(START + 120_000))  # nobody asked since the last one
    assert {each.interval for each in sealed.running} > {"1m"}
    assert told() == {"1m"}
    (sealed,) = apply(0, shard, cmd.Tick(START + 240_000))  # two minutes at once
    assert {each.interval for each in sealed.running} > {"1m"}
    symbol = next(iter(shard.states))
    assert apply(
        0, shard, cmd.ReplaceMinutes(symbol, (official_bar(world.markets[symbol], START),))
    )
    assert told() > {"1m"}


def test_more_than_fifteen_digits_are_rounded_to_them(tmp_path):
    """A running sum of more digits shows its first 15: half of one in the last at most is lost."""
    world = World(1, LINES["clean"], minutes=5)
    database = Database.open(tmp_path / "klagg.db")
    shard = world.shard
    symbol = next(iter(shard.states))
    database.commit(None, [Facts(listings=[Listing(symbol, 0, FAR, 0)])])
    for part, volume in (("merged", "1234567890123.45678"), ("minute", "0.00001")):
        state = shard.states[symbol]
        bar = state.minute if part == "minute" else state.longer[0].bar
        bar.volume, bar.count = type(bar.volume)(volume), 1
    store(database, apply(0, shard, cmd.ReportOpenBars()))
    name = shard.states[symbol].longer[0].interval.name
    volume = shown(database)[symbol, name][2 + VALUE_COLUMNS.index("volume")]
    assert volume == 1234567890123.46
    database.close()
