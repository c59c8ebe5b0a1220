"""Trades at and beyond what the edge admits: none of them ends the program, none is lost silently.

Texts of frames are drawn, not numbers: what the codec passes goes through the shard, alone or as
columns, and on to the real tables. The context for decimals around all of it is a poor one, so that
a sum outside the exact one would show.
"""

from __future__ import annotations

import decimal
from decimal import Decimal
from fractions import Fraction
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klagg_trio.core.bar import Bar
from klagg_trio.core.columns import group
from klagg_trio.core.facts import RunningBar
from klagg_trio.core.intervals import INTERVALS, MINUTE_MS
from klagg_trio.core.seed import OpenBar, Seed
from klagg_trio.core.shard import Shard
from klagg_trio.exchange import bursts, wire
from klagg_trio.exchange.bursts import TradeDecoder
from klagg_trio.exchange.frames import Frames
from klagg_trio.store.database import NEVER_MS, Database

START = 1_719_792_000_000
"""2024-07-01 00:00 UTC, where a bar of every interval opens."""

PRICE, VOLUME = Decimal("9" * 40), Decimal("0." + "9" * 38)
QUOTE = decimal.Context(prec=100).multiply(PRICE, VOLUME)

POOR = decimal.Context(prec=3, traps=[])

NUMBERS = st.one_of(
    st.sampled_from(
        (
            *("9" * 40, "9" * 16, "0." + "0" * 37 + "1", "0.00000000000001", "1" + "0" * 39),
            *("0", "0.0", "1", "123.45", "9" * 41, "NaN", "1e9", "-1", "1_0", "٣", ""),
            *("9" * 20 + "." + "9" * 19, "1." + "0" * 38, "9" * 10_000),
        )
    ),
    st.from_regex(r"[0-9]{1,20}(\.[0-9]{1,19})?", fullmatch=True),
    st.decimals("0.00000001", "100000", places=8).map(str),
)
FILLS = st.sampled_from((1, 1, 1, 2, 1_000, wire.FILLS_MAX, wire.FILLS_MAX + 1, 0, -5, 2**63))
TIMES = st.one_of(
    st.integers(-2, 12 * 60_000),
    st.sampled_from((-START + 1, -3 * 86_400_000, 86_400_000, 2**53 - START, 2**60)),
)
STEPS = st.sampled_from((1, 1, 1, 1, 2, 0, -1, 100, 20_000_000, 2**61))

TRADE = st.tuples(NUMBERS, NUMBERS, STEPS, FILLS, TIMES, st.booleans())
OTHERS = st.sampled_from(("lost", "live", "official", "refused"))
EVENT = st.one_of(st.lists(TRADE, min_size=1, max_size=6), st.integers(1, 3), OTHERS)


def frame(symbol: str, trade) -> bytes:
    """The text of one trade, in the exchange's own form."""
    price, quantity, trade_id, fills, after_ms, maker = trade
    first = max(0, trade_id) % 2**61
    return (
        f'{{"stream":"{symbol.lower()}@aggTrade","data":{{"e":"aggTrade","E":{START},'
        f'"a":{trade_id},"s":"{symbol}","p":"{price}","q":"{quantity}","f":{first},'
        f'"l":{first + fills - 1},"T":{START + after_ms},"m":{str(maker).lower()}}}}}'
    ).encode()


def seeded(symbol: str) -> Shard:
    """A shard of one symbol with every interval, live from the start."""
    intervals = list(INTERVALS.values())
    shard = Shard(intervals, START)
    price = Decimal(100)
    bars = tuple(
        OpenBar(i.name, Bar(i.floor(START), i.end(i.floor(START)), *[price] * 4), 0)
        for i in intervals[1:]
    )
    shard.load(Seed(symbol, START, NEVER_MS, price, 1, None, 0, bars))
    shard.feed_live([symbol], START)
    return shard


def other(shard: Shard, symbol: str, event: str, minute_ms: int):
    """Let something else happen to a symbol; return its facts."""
    match event:
        case "lost":
            return shard.feed_lost([symbol], minute_ms - 30_000)
        case "refused":
            return shard.refuse_trades([(symbol, None), (symbol, minute_ms), ("ELSE", 1)])
        case "official":
            values = [PRICE] * 4 + [VOLUME, QUOTE, 10**12, VOLUME, Decimal(1)]
            minute = Bar(minute_ms - MINUTE_MS, minute_ms, *values)
            return shard.replace_minutes(symbol, [minute])
        case _:
            shard.feed_live([symbol], minute_ms)
            return None


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One for all examples: each has a symbol of its own."""
    opened = Database.open(tmp_path_factory.mktemp("bounds") / "klagg.db")
    yield opened
    opened.close()


names = (f"S{number}USDT" for number in count())


@settings(deadline=None, max_examples=60)
@given(events=st.lists(EVENT, max_size=14), columns=st.booleans())
def test_no_admitted_trade_raises_and_every_bar_is_stored(database, events, columns):
    """Whatever a stream sends, the bars that come of it are taken by the tables, and exact."""
    symbol = next(names)
    decoder = TradeDecoder()
    shard = seeded(symbol)
    trade_id, minute_ms = 0, START
    admitted: list = []
    happened: set[str] = set()
    with pytest.MonkeyPatch.context() as patch, decimal.localcontext(POOR):
        if columns:
            for name in ("BURST_MIN", "BURST_LEFT"):
                patch.setattr(bursts, name, 1)
            patch.setattr(bursts, "SKIPPED_CHUNKS", 0)
            decoder._least = 1
        for event in events:
            facts = []
            if isinstance(event, int):
                minute_ms += event * MINUTE_MS
                facts.append(shard.tick(minute_ms))
            elif isinstance(event, str):
                happened.add(event)
                facts.append(other(shard, symbol, event, minute_ms))
            else:
                frames = []
                for price, quantity, step, *others in event:
                    trade_id += step
                    frames.append(frame(symbol, (price, quantity, trade_id, *others)))
                decoded = decoder.decode(Frames.of(frames))
                assert decoded.count + decoded.rejected == len(frames)
                facts.append(shard.refuse_trades(decoded.refusals))
                admitted += decoded.trades or (decoded.columns and decoded.columns.trades()) or []
                runs = group(decoded.columns) if decoded.columns is not None else None
                if runs is not None:
                    facts.append(shard.apply_runs(runs))
                else:
                    trades = decoded.columns.trades() if decoded.columns else decoded.trades
                    facts.append(shard.apply_trades(trades))
            shard.seeds()
            told = shard.running_minutes() + shard.merged_bars()
            database.commit(minute_ms, [each for each in facts if each], told)
        opened = {fact.interval: fact.bar for fact in shard.open_bars()}
        bars = [RunningBar(symbol, name, bar, bar.open_ms) for name, bar in opened.items()]
        database.commit(minute_ms, [], bars)
    assert shard.trades.total == len(admitted)
    if shard.trades.in_bars == len(admitted) and "official" not in happened:
        check_exact(shard, opened, admitted)


def check_exact(shard: Shard, opened: dict[str, Bar], admitted: list) -> None:
    """Hold the month against its trades, as fractions."""
    month = opened["1M"]
    ahead = [t for t in admitted if t.time_ms >= shard.minute_ms + MINUTE_MS]
    within = [trade for trade in admitted if trade not in ahead]
    volume = sum(Fraction(trade.quantity) for trade in within)
    quote = sum(Fraction(trade.quantity) * Fraction(trade.price) for trade in within)
    assert Fraction(month.volume) == volume
    assert Fraction(month.quote_volume) == quote
    assert month.count == sum(trade.last_id - trade.first_id + 1 for trade in within)


def sources(facts) -> list[str]:
    """What the minutes are that a tick has sealed."""
    return [fact.bar.source.label for fact in facts.sealed if fact.interval == "1m"]


@pytest.mark.parametrize("next_id", [2, 3])
@pytest.mark.parametrize("time_known", [True, False])
@pytest.mark.parametrize("text", ['"p":"NaN"', '"q":"0"', '"l":4611686018427387904', '"m":3'])
def test_a_refused_trade_leaves_its_minute_owed(text, time_known, next_id):
    """Its minute is suspect when it is sealed, and owed unless ids show that none is missing."""
    symbol = "BTCUSDT"
    shard = seeded(symbol)
    shard.apply_trades(wire.decode_trades([frame(symbol, ("1", "1", 1, 1, 4_000, False))]).trades)
    shard.tick(START + MINUTE_MS)
    good = frame(symbol, ("1", "1", 2, 1, MINUTE_MS + 5_000, False))
    name = text.partition(":")[0].encode()
    start = good.index(name + b":")
    stop = min(at for mark in (b",", b"}") if (at := good.find(mark, start)) > 0)
    bad = good[:start] + text.encode() + good[stop:]
    if not time_known:
        bad = bad.replace(b'"T":', b'"t":')
    decoded = wire.decode_trades([bad])
    assert decoded.rejected == 1
    told = [shard.refuse_trades(decoded.refusals).events for _ in range(3)]
    assert [len(each) for each in told] == [1, 0, 0]
    facts = shard.tick(START + 3 * MINUTE_MS)
    assert sources(facts) == ["suspect", "suspect"], "the second has a price that nobody knows"
    after = frame(symbol, ("1", "1", next_id, 1, 3 * MINUTE_MS + 1, False))
    shard.apply_trades(wire.decode_trades([after]).trades)
    facts = shard.tick(START + 4 * MINUTE_MS)
    assert sources(facts) == ["trades"]
    first_ms = START + MINUTE_MS * time_known
    owed = {symbol: ((first_ms, START + 2 * MINUTE_MS),)}
    assert shard.owed() == (owed if next_id != 2 else {})


@pytest.mark.parametrize("after_ms", [-START + 1, -2 * 86_400_000, 3_600_000, 2**53 - START - 1])
def test_a_time_that_cannot_be_costs_the_running_minute(after_ms):
    """A trade of 1970 or of next year is refused, and told once; two minutes are owed."""
    symbol = "BTCUSDT"
    shard = seeded(symbol)
    shard.apply_trades(wire.decode_trades([frame(symbol, ("1", "1", 1, 1, 4_000, False))]).trades)
    shard.tick(START + MINUTE_MS)
    events = []
    for trade_id in (2, 3, 4):
        bad = frame(symbol, ("1", "1", trade_id, 1, after_ms, False))
        facts = shard.apply_trades(wire.decode_trades([bad]).trades)
        events += facts.events if facts else []
    assert [event.kind for event in events] == ["rejected"]
    assert shard.trades.rejected == 3
    shard.tick(START + 2 * MINUTE_MS)
    owed = {symbol: ((START, START + MINUTE_MS),)}
    assert shard.owed() == owed
    good = frame(symbol, ("1", "1", 5, 1, 130_000, False))
    shard.apply_trades(wire.decode_trades([good]).trades)
    shard.tick(START + 3 * MINUTE_MS)
    assert shard.owed() == owed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"stream":"btcusdt@aggTrade","data":{"s":"BTCUSDT","T":1719792000000', 1719792000000),
        ('{"stream":"btcusdt@aggTrade","data":{', None),
        ('{"stream":"btcusdt@aggTrade","data":{"s":"BTCUSDT","T":"1719792000000"}}', None),
        ('{"stream":"btcusdt@aggTrade","data":{"s":"BTCUSDT","T":17197920000000000}}', None),
    ],
)
def test_torn_frames_tell_whose_they_were(text, expected):
    """What can be read of a broken frame goes on, by the stream's name where there is no other."""
    decoded = wire.decode_trades([text.encode()])
    assert decoded.rejected == 1
    ((symbol, time_ms),) = decoded.refusals
    assert symbol.upper() == "BTCUSDT"
    assert time_ms == expected
