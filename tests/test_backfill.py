"""Backfill: the exact state at the cut, history without holes, what a re-run asks for, failures.

The exchange here is a list of traded minutes a symbol, and naive code that makes a kline of any
length from it. It shares nothing with the code under test but the calendar.
"""

import bisect
import decimal
import itertools
import math
import random
import tempfile
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from klagg_trio.backfill import (
    FAILURES_MAX,
    Request,
    Roller,
    choose,
    filled,
    history_start_ms,
    ladder,
    pages,
    run_backfill,
    subtract,
)
from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.errors import BannedError, ConfigurationError, RemoteError, StoreError
from klagg_trio.core.intervals import (
    DAY_MS,
    DEFAULT_INTERVALS,
    HOUR_MS,
    INTERVALS,
    MINUTE,
    MINUTE_MS,
    THREE_DAY_PHASE_MS,
)
from klagg_trio.exchange import wire
from klagg_trio.exchange.universe import Universe
from klagg_trio.exchange.validate import sift
from klagg_trio.settings import Settings
from klagg_trio.store.contracts import StoredContract
from klagg_trio.store.start_snapshot import read_snapshot

NEW_YEAR_MS = 1_735_689_600_000
"""2025-01-01 00:00 UTC, a Wednesday."""

MONDAY_MS = 1_736_121_600_000
"""2025-01-06 00:00 UTC."""

YEARS_AGO_MS = NEW_YEAR_MS - 1_000 * DAY_MS


# -- The exchange ----------------------------------------------------------------------------------


class Market:
    """One symbol's official klines, by naive code from its traded minutes."""

    def __init__(self, seed, listed_ms, until_ms, traded=400, phase_ms=THREE_DAY_PHASE_MS):
        """Draw some traded minutes between the listing (or 40 days ago) and `until_ms`."""
        draw = random.Random(seed)
        self.listed_ms = MINUTE.floor(listed_ms)
        self.phase_ms = phase_ms
        first = max(self.listed_ms, until_ms - 40 * DAY_MS) // MINUTE_MS
        near = max(first, until_ms // MINUTE_MS - 200)
        places = [draw.randrange(first, until_ms // MINUTE_MS + 5) for _ in range(traded)]
        places += [draw.randrange(near, until_ms // MINUTE_MS + 5) for _ in range(traded // 4)]
        self.minutes = [self._traded(draw, at * MINUTE_MS) for at in sorted(set(places))]
        self._opens = [minute["open_ms"] for minute in self.minutes]

    @staticmethod
    def _traded(draw, open_ms):
        prices = [Decimal(draw.randrange(9_000, 11_000)) / 1_000 for _ in range(4)]
        volume = Decimal(draw.randrange(1, 10**9)) / 1_000
        return {
            "open_ms": open_ms,
            "open": prices[0],
            "close": prices[1],
            "high": max(prices),
            "low": min(prices),
            "sums": (
                volume,
                volume * prices[2],
                draw.randrange(1, 99),
                volume / 4,
                volume / 4 * prices[2],
            ),
        }

    def kline(self, open_ms, end_ms):
        """Return the kline of any span: open, high, low, close and the five sums, nothing else."""
        begin = bisect.bisect_left(self._opens, open_ms)
        inside = self.minutes[begin : bisect.bisect_left(self._opens, end_ms)]
        if not inside:
            flat = self.minutes[begin - 1]["close"] if begin else Decimal(10)
            zero = Decimal(0)
            return (flat, flat, flat, flat, zero, zero, 0, zero, zero)
        sums = tuple(sum(column) for column in zip(*(m["sums"] for m in inside), strict=True))
        return (
            inside[0]["open"],
            max(m["high"] for m in inside),
            min(m["low"] for m in inside),
            inside[-1]["close"],
            *sums,
        )

    def bar(self, interval, open_ms, now_ms):
        """Return the official bar; the one that is open at `now_ms` holds what has traded."""
        end_ms = interval.end(open_ms)
        values = self.kline(open_ms, min(end_ms, now_ms))
        return Bar(open_ms, end_ms, *values, source=Source.OFFICIAL)

    def interval(self, name):
        """Return an interval on this symbol's grid."""
        interval = INTERVALS[name]
        return interval.with_phase(self.phase_ms) if name == "3d" else interval


class Exchange:
    """A REST client's stand-in: answers from markets, on a clock that runs with Trio's."""

    def __init__(self, now_ms, markets, onboards=None):
        """`markets` by symbol; `onboards` overrides what exchangeInfo says of the listing."""
        self._start_ms = now_ms
        self.markets = markets
        self.onboards = onboards or {}
        self.contracts = [contract(name, self._onboard_ms(name)) for name in markets]
        self.calls = []
        self.in_flight = self.in_flight_max = 0
        self.latency_s = 0.05
        self.spoil = lambda symbol, interval, bars: bars

    def _onboard_ms(self, symbol):
        return self.onboards.get(symbol, self.markets[symbol].listed_ms)

    @property
    def now_ms(self):
        """Return the exchange's time."""
        return self._start_ms + int(trio.current_time() * 1_000)

    async def server_time(self, *, priority):
        """Answer /time."""
        await trio.sleep(self.latency_s)
        return self.now_ms

    async def exchange_info(self, *, priority):
        """Answer /exchangeInfo."""
        await trio.sleep(self.latency_s)
        return wire.ExchangeInfo({contract.symbol: contract for contract in self.contracts})

    async def klines(self, symbol, interval, *, start_ms=None, end_ms=None, limit, priority):
        """Answer /klines as binance.md 4.3 describes it, the still open bar included."""
        self.calls.append((symbol, interval, start_ms, end_ms, limit))
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight, self.in_flight_max)
        try:
            await trio.sleep(self.latency_s)
        finally:
            self.in_flight -= 1
        market = self.markets[symbol]
        grid = market.interval(interval)
        now_ms = self.now_ms
        newest_ms = grid.floor(now_ms if end_ms is None else min(end_ms, now_ms))
        if start_ms is None:
            opens = [newest_ms]
            assert limit == 1
        else:
            open_ms = max(grid.floor(start_ms), grid.floor(market.listed_ms))
            if open_ms < start_ms and open_ms != grid.floor(market.listed_ms):
                open_ms = grid.end(open_ms)
            opens = []
            while open_ms <= newest_ms and len(opens) < limit:
                if open_ms >= start_ms:
                    opens.append(open_ms)
                open_ms = grid.end(open_ms)
        bars = [market.bar(grid, open_ms, now_ms) for open_ms in opens]
        bars = self.spoil(symbol, interval, bars)
        return sift(bars, INTERVALS[interval], first_ms=start_ms, last_ms=end_ms)

    @property
    def weight(self):
        """Return what the klines calls so far cost."""
        return sum(1 if limit <= 99 else 2 if limit <= 499 else 5 for *_, limit in self.calls)


def contract(symbol, onboard_ms=YEARS_AGO_MS, **changes):
    """Return a row of exchangeInfo."""
    fields = {
        "symbol": symbol,
        "pair": symbol,
        "contract_type": "PERPETUAL",
        "delivery_ms": 4_133_404_800_000,
        "onboard_ms": onboard_ms,
        "status": "TRADING",
        "quote_asset": "USDT",
        "underlying_type": "COIN",
        "price_precision": 3,
        "quantity_precision": 3,
    }
    return wire.Contract(**(fields | changes))


# -- The database ----------------------------------------------------------------------------------


class MemoryDatabase:
    """The part of the store that a backfill uses, in dictionaries."""

    def __init__(self):
        """Hold nothing."""
        self.identity = ("0123abcd", 1)
        self.bars = {}
        self.phases = {}
        self.tick_ms = 0
        self.open_bars = []
        self.full = False
        self.events = []

    def put_symbols(self, contracts, phases):
        """Take the symbols with their 3d phases."""
        for row in contracts:
            self.phases[row.symbol] = phases.get(row.symbol)

    def stored_spans(self, symbol, interval):
        """Return the stored bars as spans of open time and end."""
        spans = []
        for bar in sorted(self.bars.get((symbol, interval), {}).values(), key=lambda b: b.open_ms):
            if bar.source == Source.SUSPECT:
                continue
            if spans and spans[-1][1] == bar.open_ms:
                spans[-1] = (spans[-1][0], bar.end_ms)
            else:
                spans.append((bar.open_ms, bar.end_ms))
        return spans

    def put_history(self, symbol, interval, bars):
        """Take bars."""
        if self.full:
            raise StoreError("the disk is full; make room")
        assert symbol in self.phases
        stored = self.bars.setdefault((symbol, interval), {})
        for bar in bars:
            assert bar.source in (Source.OFFICIAL, Source.SUSPECT)
            assert (
                bar.source == Source.OFFICIAL or stored.get(bar.open_ms, bar).source == bar.source
            )
            stored[bar.open_ms] = bar

    def symbols(self):
        """Return the names of all that is known."""
        return list(self.phases)

    def contract(self, symbol):
        """Return what is stored of a symbol: listed when its first bar opened."""
        bars = sorted(self.bars.get((symbol, "1m"), {}).values(), key=lambda bar: bar.open_ms)
        if not bars:
            return None
        last = bars[-1]
        return StoredContract(symbol, bars[0].open_ms, 0, 0, "TRADING", last.end_ms, last.close)

    def last_tick(self):
        """Return up to where all is sealed."""
        return self.tick_ms

    def commit(self, minute_ms, facts, open_bars=None):
        """Take the cut and its open bars, or a label that is given up."""
        for fact in facts:
            self.events += fact.events
            for symbol in fact.replaced:
                for key in [key for key in self.bars if key[0] == symbol]:
                    self.bars[f"{symbol}@old", key[1]] = self.bars.pop(key)
        if minute_ms is None:
            return 0
        self.tick_ms = minute_ms
        self.open_bars = list(open_bars)
        return len(self.open_bars)


async def run_inline(function, *args):
    """Run in this thread: a thread in flight would let the clock jump."""
    await trio.lowlevel.checkpoint()
    return function(*args)


async def fill(exchange, database, data_dir, **changes):
    """Run a backfill and return its report and the start state it wrote."""
    chosen = Settings(data_dir=Path(data_dir), **changes)
    report = await run_backfill(chosen, exchange, database=database, run_in_thread=run_inline)
    return report, read_snapshot(report.snapshot)


def assert_state_is_exact(state, exchange):
    """Every open bar of the start state is the naive merge of all minutes up to the cut."""
    for seed in state.seeds:
        market = exchange.markets[seed.symbol]
        assert seed.last_close == market.kline(state.cut_ms - MINUTE_MS, state.cut_ms)[3]
        assert [x.interval for x in seed.open_bars] == list(state.intervals[1:])
        for name, bar, unofficial_minutes in (
            (x.interval, x.bar, x.unofficial_minutes) for x in seed.open_bars
        ):
            grid = market.interval(name)
            assert bar.open_ms == grid.floor(state.cut_ms)
            assert bar.end_ms == grid.end(bar.open_ms)
            assert bar.values() == market.kline(bar.open_ms, state.cut_ms), name
            assert unofficial_minutes == 0


def assert_history_is_whole(database, exchange, state, since_ms):
    """From `since_ms` to the cut every bar of every interval is stored, and is the official one."""
    for symbol in (seed.symbol for seed in state.seeds):
        market = exchange.markets[symbol]
        first_ms = max(since_ms, market.listed_ms)
        for name in state.intervals:
            grid = market.interval(name)
            stored = database.bars.get((symbol, name), {})
            expected, open_ms = [], grid.floor(first_ms)
            while (end_ms := grid.end(open_ms)) <= state.cut_ms:
                expected.append(open_ms)
                open_ms = end_ms
            assert sorted(stored) == expected, (symbol, name)
            for open_ms, bar in stored.items():
                assert bar.values() == market.kline(open_ms, bar.end_ms), (symbol, name, open_ms)


# -- Pure parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minutes", "counts", "weight"),
    [
        (0, [], 0),
        (1, [1], 1),
        (99, [99], 1),
        (100, [100], 2),
        (499, [499], 2),
        (500, [499, 1], 3),
        (1_440, [499, 499, 442], 6),
    ],
)
def test_pages_cost_the_least_weight(minutes, counts, weight):
    """Pages hold at most 499 rows, and cover the span without overlap."""
    requests = pages(MINUTE, 0, minutes * MINUTE_MS)
    assert [request.count for request in requests] == counts
    assert sum(request.weight for request in requests) == weight
    ends = [0, *(request.end_ms for request in requests)]
    assert ends == [*(request.first_ms for request in requests), minutes * MINUTE_MS]


def test_pages_leave_out_what_does_not_end():
    """A bar that ends after the span is not asked for, whatever its length."""
    assert pages(INTERVALS["1d"], 0, DAY_MS - 1) == []
    months = pages(INTERVALS["1M"], NEW_YEAR_MS, NEW_YEAR_MS + 60 * DAY_MS)
    assert [request.count for request in months] == [2]


def test_ladder_is_three_cheap_calls():
    """The state of all intervals costs three calls of weight 1, at the end of a month too."""
    longer = tuple(INTERVALS.values())[1:]
    cut_ms = NEW_YEAR_MS + 30 * DAY_MS + 23 * HOUR_MS + 59 * MINUTE_MS
    requests = ladder(longer, cut_ms - MINUTE_MS, cut_ms)
    assert [request.interval.name for request in requests] == ["1d", "1h", "1m"]
    assert [request.weight for request in requests] == [1, 1, 1]


@given(st.sampled_from(sorted(INTERVALS)), st.integers(0, 40_000), st.integers(1, 2_000))
def test_ladder_has_no_gap(name, base, length):
    """A ladder begins where the interval's bar does, and its steps join up to the end."""
    interval = INTERVALS[name]
    base_ms = NEW_YEAR_MS + base * MINUTE_MS
    end_ms = base_ms + length * MINUTE_MS
    requests = ladder([interval], base_ms, end_ms)
    joints = [request.first_ms for request in requests] + [end_ms]
    assert joints[0] == interval.floor(base_ms)
    assert joints[1:] == [request.end_ms for request in requests]


@given(
    st.tuples(st.integers(0, 30), st.integers(0, 30)),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))),
)
def test_subtract_is_the_set_difference(whole, stored):
    """What is missing is exactly what is wanted and not stored, as few spans in order."""
    spans = [(first, end) for first, end in stored if first < end]
    missing = subtract(*whole, spans)
    wanted = set(range(*whole)) - {at for span in spans for at in range(*span)}
    assert {at for span in missing for at in range(*span)} == wanted
    assert missing == sorted(missing)
    assert all(first < end for first, end in missing)


def minutes_of(first, count):
    """Return flat official minutes."""
    ten = Decimal(10)
    return [
        Bar(at * MINUTE_MS, (at + 1) * MINUTE_MS, ten, ten, ten, ten, source=Source.OFFICIAL)
        for at in range(first, first + count)
    ]


@given(st.sets(st.integers(0, 9)), st.booleans())
def test_what_is_missing_gets_a_placeholder(missing, is_price_known):
    """All that was asked for comes out in order; each missing bar is suspect and flat."""
    request = Request(MINUTE, 0, 10 * MINUTE_MS, 10)
    whole = minutes_of(0, 10)
    given_bars = [bar for index, bar in enumerate(whole) if index not in missing]
    price = Decimal(77) if is_price_known else None
    bars = filled([*minutes_of(-1, 1), *given_bars], request, -365 * DAY_MS, price)
    if not given_bars and not is_price_known:
        assert bars == []
        return
    assert [bar.open_ms for bar in bars] == [bar.open_ms for bar in whole]
    close = price or given_bars[0].open
    for index, bar in enumerate(bars):
        if index in missing:
            assert bar.source == Source.SUSPECT
            assert bar.values() == (close, close, close, close, 0, 0, 0, 0, 0)
        else:
            assert bar is whole[index]
        close = bar.close


def test_a_young_symbol_begins_late():
    """Before its first kline a symbol has none, and no placeholders; after it, it has."""
    request = Request(MINUTE, 0, 10 * MINUTE_MS, 10)
    assert filled(minutes_of(4, 6), request, 4 * MINUTE_MS, None) == minutes_of(4, 6)
    assert filled([], request, 4 * MINUTE_MS, None) == []
    bars = filled(minutes_of(4, 5), request, 4 * MINUTE_MS, None)
    assert [bar.source for bar in bars] == [Source.OFFICIAL] * 5 + [Source.SUSPECT]


def test_roller_leaves_out_what_a_hole_runs_through():
    """A longer bar comes out only when every minute of it went in."""
    roller = Roller([INTERVALS["3m"]], 0)
    facts = roller.roll("X", [*minutes_of(0, 4), *minutes_of(5, 4)])
    assert [fact.bar.open_ms // MINUTE_MS for fact in facts] == [0, 6]
    assert all(fact.bar.source == Source.OFFICIAL for fact in facts)


def test_roller_traps_a_sum_that_would_be_rounded():
    """Merging is exact or fails; the context of the caller is left as it was."""
    before = decimal.getcontext().prec
    roller = Roller([INTERVALS["3m"]], 0)
    parts = minutes_of(0, 2)
    parts = [
        msgspec.structs.replace(part, count=1, volume=Decimal(volume))
        for part, volume in zip(parts, ("1e120", "1e-120"), strict=True)
    ]
    with pytest.raises(decimal.Inexact):
        roller.roll("X", parts)
    assert decimal.getcontext().prec == before


def test_choose_names_what_cannot_be_kept():
    """An unknown symbol is named with the nearest one; one that is not ours with the reason."""
    rows = [
        contract("BTCUSDT"),
        contract("币安人生USDT"),
        contract("XAUUSDT", contract_type="TRADIFI_PERPETUAL"),
        contract("OMGUSDT", status="SETTLING"),
    ]

    def chosen(*symbols, rows=rows, known=()):
        info = wire.ExchangeInfo({row.symbol: row for row in rows})
        contracts, waiting = choose(info, Universe(symbols, ("PERPETUAL",), ("USDT",)), known)
        return [contract.symbol for contract in contracts], waiting

    assert chosen() == (["BTCUSDT", "币安人生USDT"], {})
    assert chosen("币安人生USDT") == (["币安人生USDT"], {})
    with pytest.raises(ConfigurationError, match=r"'btcusd'.*BTCUSDT"):
        chosen("btcusd")
    with pytest.raises(ConfigurationError, match=r"XAUUSDT.*TRADIFI_PERPETUAL"):
        chosen("XAUUSDT")
    assert chosen("BTCUSDT", "OMGUSDT") == (["BTCUSDT"], {"OMGUSDT": "it is SETTLING"})
    _, waiting = chosen("BTCUSDT", "GONEUSDT", known=["GONEUSDT"])
    assert waiting == {"GONEUSDT": "the exchange does not name it now"}
    with pytest.raises(RemoteError, match="no PERPETUAL in USDT"):
        chosen(rows=rows[2:])


def test_history_begins_on_a_whole_hour():
    """A duration goes back from now to the hour it falls in; zero asks for none."""
    now_ms = NEW_YEAR_MS + 90 * MINUTE_MS
    assert history_start_ms("1h", now_ms) == NEW_YEAR_MS
    assert history_start_ms("0d", now_ms) is None
    assert history_start_ms("2024-12-31", now_ms) == NEW_YEAR_MS - DAY_MS
    with pytest.raises(ConfigurationError, match="future"):
        history_start_ms("2025-01-02", now_ms)


# -- Whole backfills -------------------------------------------------------------------------------


EDGES_MS = (
    NEW_YEAR_MS,
    MONDAY_MS,
    NEW_YEAR_MS + 31 * DAY_MS,
    NEW_YEAR_MS + 5 * DAY_MS + 8 * HOUR_MS,
    NEW_YEAR_MS + 5 * DAY_MS + 13 * HOUR_MS + 30 * MINUTE_MS,
)
AGES_MIN = (1, 2, 30, 61, 600, 1_441, 4_000, 20_000, 60_000, 1_000_000)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    edge_ms=st.sampled_from(EDGES_MS),
    offset_s=st.integers(-200, 4_000) | st.integers(0, 3),
    ages_min=st.lists(st.sampled_from(AGES_MIN), min_size=1, max_size=3),
    seed=st.integers(0, 1_000),
    names=st.sampled_from(
        [DEFAULT_INTERVALS, tuple(INTERVALS), ("1m",), ("1m", "1h"), ("1m", "3d", "1w")]
    ),
    since=st.sampled_from(["0d", "1h", "7h", "1d", "2d"]),
    latency_s=st.sampled_from([0.01, 2.0]),
)
def test_state_and_history_are_exact(edge_ms, offset_s, ages_min, seed, names, since, latency_s):
    """Whatever the moment, the symbols' ages and the intervals: the open bars are the merge of all
    minutes, and history has no hole and no wrong bar."""
    now_ms = edge_ms + offset_s * 1_000
    markets = {
        f"{'ABC'[i]}USDT": Market(
            seed + i, now_ms - age * MINUTE_MS, now_ms, phase_ms=(i * DAY_MS) % (3 * DAY_MS)
        )
        for i, age in enumerate(ages_min)
    }
    exchange = Exchange(now_ms, markets)
    exchange.latency_s = latency_s
    database = MemoryDatabase()

    with tempfile.TemporaryDirectory() as data_dir:
        report, state = trio.run(
            lambda: fill(exchange, database, data_dir, intervals=names, since=since),
            clock=trio.testing.MockClock(autojump_threshold=0),
        )
    assert report.failed == ()
    assert state.intervals == tuple(name for name in INTERVALS if name in names)
    old_enough = {
        name for name, market in markets.items() if market.listed_ms < now_ms - 2 * MINUTE_MS
    }
    assert old_enough <= {seed.symbol for seed in state.seeds}
    assert_state_is_exact(state, exchange)
    start_ms = history_start_ms(since, now_ms + int(latency_s * 1_000))
    if start_ms is not None:
        assert_history_is_whole(database, exchange, state, start_ms)
    assert len(database.open_bars) == len(state.seeds) * len(names)
    assert database.tick_ms == state.cut_ms


def years_old(seed=1, until_ms=MONDAY_MS + 3 * DAY_MS):
    """Return the market of a symbol listed long ago."""
    return Market(seed, YEARS_AGO_MS, until_ms)


NOW_MS = MONDAY_MS + 2 * DAY_MS + 10 * HOUR_MS + 17 * MINUTE_MS + 20_000


async def test_state_alone_costs_three_weight_a_symbol(autojump_clock, tmp_path):
    """With `since` 0d, a symbol costs three calls of weight 1, and nothing is stored."""
    exchange = Exchange(NOW_MS, {f"S{i}USDT": years_old(i) for i in range(20)})
    database = MemoryDatabase()
    report, state = await fill(exchange, database, tmp_path, since="0d")
    assert exchange.weight == 60
    assert report.weight == 63  # and the time, twice, and exchangeInfo
    assert database.bars == {}
    assert len(state.seeds) == 20
    assert {seed.next_id for seed in state.seeds} == {None}


async def test_several_requests_are_in_flight(autojump_clock, tmp_path):
    """Symbols are worked on together, and so are the pages of one symbol."""
    exchange = Exchange(NOW_MS, {f"S{i}USDT": years_old(i) for i in range(20)})
    await fill(exchange, MemoryDatabase(), tmp_path, since="0d")
    assert exchange.in_flight_max >= 8
    exchange = Exchange(NOW_MS, {"BTCUSDT": years_old()})
    await fill(exchange, MemoryDatabase(), tmp_path, since="4d")
    assert exchange.in_flight_max >= 4


async def test_rerun_fetches_only_what_is_missing(autojump_clock, tmp_path):
    """A second backfill an hour later asks for that hour, and for the state."""
    exchange = Exchange(NOW_MS, {"BTCUSDT": years_old()})
    database = MemoryDatabase()
    await fill(exchange, database, tmp_path, since="2d")
    await trio.sleep(3_600)
    exchange.calls.clear()
    _, state = await fill(exchange, database, tmp_path, since="2d")
    assert exchange.weight <= 8
    assert_state_is_exact(state, exchange)
    assert_history_is_whole(database, exchange, state, history_start_ms("2d", NOW_MS))


async def test_longer_bars_cost_two_calls_beside_the_minutes(autojump_clock, tmp_path):
    """What leads up to the first minutes is two cheap calls, however many intervals there are."""
    exchange = Exchange(MONDAY_MS + 10 * HOUR_MS, {"BTCUSDT": years_old()})  # a week has ended
    await fill(exchange, MemoryDatabase(), tmp_path, since="1d", intervals=tuple(INTERVALS))
    state = 3 + 1  # one more for the 3d grid
    assert exchange.weight == state + 2 + 6


async def test_interval_added_later_is_fetched_as_it_is(autojump_clock, tmp_path):
    """Longer bars over minutes that are stored already are fetched; no minute is fetched again."""
    exchange = Exchange(NOW_MS, {"BTCUSDT": years_old()})
    database = MemoryDatabase()
    await fill(exchange, database, tmp_path, since="2d", intervals=("1m",))
    exchange.calls.clear()
    _, state = await fill(exchange, database, tmp_path, since="2d", intervals=tuple(INTERVALS))
    assert sum(limit for _, interval, *_, limit in exchange.calls if interval == "1m") <= 60
    assert_state_is_exact(state, exchange)
    assert_history_is_whole(database, exchange, state, history_start_ms("2d", NOW_MS))


async def test_hole_before_since_is_filled(autojump_clock, tmp_path):
    """Stored bars older than `since` are joined to it: what is stored has no hole."""
    exchange = Exchange(NOW_MS, {"BTCUSDT": years_old()})
    database = MemoryDatabase()
    await fill(exchange, database, tmp_path, since="2h")
    await trio.sleep(86_400)
    _, state = await fill(exchange, database, tmp_path, since="1h")
    assert_state_is_exact(state, exchange)
    assert_history_is_whole(database, exchange, state, history_start_ms("2h", NOW_MS))


@pytest.mark.parametrize("after_s", [0.06, 0.2, 0.5, 1.2, 1.3, 1.6, 2.0])
async def test_cancelled_backfill_is_taken_up(autojump_clock, tmp_path, after_s):
    """Cancelled at any moment, a backfill keeps what it stored; the next one ends it."""
    markets = {f"S{i}USDT": years_old(i) for i in range(9)}
    exchange = Exchange(NOW_MS, markets)
    exchange.latency_s = 0.2
    database = MemoryDatabase()
    with trio.move_on_after(after_s):
        await fill(exchange, database, tmp_path, since="1d", intervals=tuple(INTERVALS))
    stored = {key: dict(bars) for key, bars in database.bars.items()}
    _, state = await fill(exchange, database, tmp_path, since="1d", intervals=tuple(INTERVALS))
    for key, bars in stored.items():
        assert bars.items() <= database.bars[key].items()
    assert_state_is_exact(state, exchange)
    assert_history_is_whole(database, exchange, state, history_start_ms("1d", NOW_MS))


async def test_failing_symbol_is_left_out(autojump_clock, tmp_path):
    """A symbol that the exchange no longer answers for is reported; the others are complete."""
    exchange = Exchange(NOW_MS, {f"S{i}USDT": years_old(i) for i in range(5)})

    def spoil(symbol, interval, bars):
        if symbol == "S2USDT":
            raise RemoteError("the exchange refused: -1121 Invalid symbol.")
        return bars

    exchange.spoil = spoil
    report, state = await fill(exchange, MemoryDatabase(), tmp_path)
    assert report.failed == (("S2USDT", "the exchange refused: -1121 Invalid symbol."),)
    assert [seed.symbol for seed in state.seeds] == ["S0USDT", "S1USDT", "S3USDT", "S4USDT"]


def owed_minutes(seed):
    """Return the open times of all that a seed owes."""
    return [at for a, b in seed.suspects for at in range(a, b + 1, MINUTE_MS)]


def spoil_minutes(minutes, change):
    """Return a `spoil` that changes some 1m rows of BUSDT, or takes them out for None."""

    def spoil(symbol, interval, bars):
        if (symbol, interval) != ("BUSDT", "1m"):
            return bars
        changed = [change(bar) if bar.open_ms in minutes else bar for bar in bars]
        return [bar for bar in changed if bar is not None]

    return spoil


def contradicting(bar):
    """Return a row whose low is above its high."""
    return msgspec.structs.replace(bar, low=bar.high + 1)


HISTORY_MS = INTERVALS["1h"].floor(NOW_MS - DAY_MS)


@pytest.mark.parametrize("change", [contradicting, lambda _: None], ids=["refused", "missing"])
@pytest.mark.parametrize(
    ("first", "count"),
    [(200, 1), (200, 90), (0, 1), (300, 700), (1_455, 1), (1_456, 1)],
    ids=["one", "ninety", "the oldest", "longer than a page", "within the hour", "the newest"],
)
async def test_a_minute_without_a_usable_kline_costs_no_symbol(
    autojump_clock, tmp_path, change, first, count
):
    """The rest is stored; it is a suspect placeholder, owed, and told of; other bars are exact."""
    exchange = Exchange(NOW_MS, {"AUSDT": years_old(1), "BUSDT": years_old(2)})
    opens = [HISTORY_MS + (first + at) * MINUTE_MS for at in range(count)]
    exchange.spoil = spoil_minutes(set(opens), change)
    database = MemoryDatabase()
    report, state = await fill(exchange, database, tmp_path)
    assert report.failed == ()
    whole, holed = state.seeds
    assert owed_minutes(whole) == []
    assert owed_minutes(holed) == opens
    ((symbol, text),) = report.owing
    assert symbol == "BUSDT"
    assert f"{count:,} minute" in text
    assert ("refused" in text) == (change is contradicting)
    (event,) = database.events
    assert event.symbol == "BUSDT"
    market = exchange.markets["BUSDT"]
    for name in state.intervals:
        grid = market.interval(name)
        stored = database.bars.get(("BUSDT", name), {})
        expected, open_ms = [], grid.floor(HISTORY_MS)
        while (end_ms := grid.end(open_ms)) <= state.cut_ms:
            expected.append(open_ms)
            open_ms = end_ms
        assert sorted(stored) == expected, name
        for open_ms, bar in stored.items():
            if bar.source == Source.OFFICIAL:
                assert bar.values() == market.kline(open_ms, bar.end_ms)
            elif name == "1m":
                assert open_ms in opens
            else:  # between history and cut: over a placeholder that is owed
                assert any(open_ms <= at < bar.end_ms for at in opens)
    for open_bar in holed.open_bars:
        inside = [at for at in opens if at >= open_bar.bar.open_ms]
        if open_bar.bar.source != Source.SUSPECT:
            missing = open_bar.unofficial_minutes
            assert missing <= len(inside)
            if not missing:
                bar = open_bar.bar
                assert bar.values() == market.kline(bar.open_ms, state.cut_ms)


async def test_a_rerun_asks_for_what_is_owed(autojump_clock, tmp_path):
    """Placeholders count as missing: the next backfill gets them once the exchange is right."""
    exchange = Exchange(NOW_MS, {"BUSDT": years_old(2)})
    opens = {HISTORY_MS + at * MINUTE_MS for at in range(200, 290)}
    exchange.spoil = spoil_minutes(opens, contradicting)
    database = MemoryDatabase()
    await fill(exchange, database, tmp_path)
    exchange.spoil = lambda symbol, interval, bars: bars
    report, state = await fill(exchange, database, tmp_path)
    assert report.owing == ()
    assert_state_is_exact(state, exchange)
    assert_history_is_whole(database, exchange, state, HISTORY_MS)


async def test_longer_bars_that_are_missing_too_are_suspect(autojump_clock, tmp_path):
    """Where neither a minute nor the longer bar over it can be had, both are placeholders."""
    exchange = Exchange(NOW_MS, {"BUSDT": years_old(2)})
    wrong_ms = HISTORY_MS + 200 * MINUTE_MS

    def spoil(symbol, interval, bars):
        return [contradicting(x) if x.open_ms <= wrong_ms < x.end_ms else x for x in bars]

    exchange.spoil = spoil
    database = MemoryDatabase()
    for _ in range(2):
        report, state = await fill(exchange, database, tmp_path)
        assert report.failed == ()
        for name in ("1m", "5m", "30m", "1h", "4h"):
            stored = database.bars["BUSDT", name]
            suspect = [at for at, bar in stored.items() if bar.source == Source.SUSPECT]
            assert suspect == [INTERVALS[name].floor(wrong_ms)]
        assert owed_minutes(state.seeds[0]) == [wrong_ms]


async def test_a_symbol_without_any_kline_is_left_out(autojump_clock, tmp_path):
    """There is no price to go on from: it is reported, and the others are complete."""
    exchange = Exchange(NOW_MS, {"AUSDT": years_old(1), "BUSDT": years_old(2)})
    exchange.spoil = lambda symbol, interval, bars: [] if symbol == "BUSDT" else bars
    report, state = await fill(exchange, MemoryDatabase(), tmp_path)
    assert [seed.symbol for seed in state.seeds] == ["AUSDT"]
    assert [symbol for symbol, _ in report.failed] == ["BUSDT"]


async def test_unreachable_exchange_ends_it(autojump_clock, tmp_path):
    """When symbol after symbol fails it is the exchange: one error, no endless list."""
    exchange = Exchange(NOW_MS, {f"S{i}USDT": years_old(i) for i in range(100)})

    def spoil(symbol, interval, bars):
        raise RemoteError("cannot connect")

    exchange.spoil = spoil
    with pytest.raises(RemoteError, match="cannot connect"):
        await fill(exchange, MemoryDatabase(), tmp_path)
    assert len({call[0] for call in exchange.calls}) <= 2 * FAILURES_MAX
    assert not (tmp_path / "initial_state.cbor").exists()


async def test_ban_ends_it_at_once(autojump_clock, tmp_path):
    """A ban is no symbol's fault: nothing more is asked."""
    exchange = Exchange(NOW_MS, {f"S{i}USDT": years_old(i) for i in range(50)})

    def spoil(symbol, interval, bars):
        raise BannedError("banned", NOW_MS + 60_000)

    exchange.spoil = spoil
    with pytest.raises(BannedError):
        await fill(exchange, MemoryDatabase(), tmp_path)


async def test_full_disk_ends_it(autojump_clock, tmp_path):
    """A disk that takes no more is an error of the store, not of a symbol."""
    exchange = Exchange(NOW_MS, {f"S{i}USDT": years_old(i) for i in range(5)})
    database = MemoryDatabase()
    database.full = True
    with pytest.raises(StoreError, match="disk is full"):
        await fill(exchange, database, tmp_path)


async def test_newest_kline_may_come_late(autojump_clock, tmp_path):
    """A kline not yet served just after its end is asked for again, not skipped."""
    exchange = Exchange(NOW_MS, {"BTCUSDT": years_old()})
    late = {"left": 2}

    def spoil(symbol, interval, bars):
        if interval == "1m" and late["left"]:
            late["left"] -= 1
            return bars[:-1]
        return bars

    exchange.spoil = spoil
    _, state = await fill(exchange, MemoryDatabase(), tmp_path, since="0d")
    assert late["left"] == 0
    assert_state_is_exact(state, exchange)


async def test_three_day_phase_is_learnt(autojump_clock, tmp_path):
    """The 3d grid of a symbol comes from an official bar, and goes into snapshot and database."""
    market = Market(1, YEARS_AGO_MS, NOW_MS, phase_ms=2 * DAY_MS)
    exchange = Exchange(NOW_MS, {"BTCUSDT": market})
    database = MemoryDatabase()
    _, state = await fill(exchange, database, tmp_path, intervals=("1m", "3d"))
    assert state.seeds[0].three_day_phase_ms == 2 * DAY_MS
    assert database.phases == {"BTCUSDT": 2 * DAY_MS}
    assert_state_is_exact(state, exchange)


async def test_reused_ticker_is_a_new_symbol(autojump_clock, tmp_path):
    """Bars of an earlier contract of the same name are not joined to the new one's."""
    database = MemoryDatabase()
    database.phases["LITUSDT"] = 0
    database.put_history("LITUSDT", "1m", minutes_of((NOW_MS - 90 * DAY_MS) // MINUTE_MS, 5))
    market = Market(1, NOW_MS - 3 * HOUR_MS, NOW_MS)
    exchange = Exchange(NOW_MS, {"LITUSDT": market})
    _, state = await fill(exchange, database, tmp_path)
    stored = [open_ms for open_ms in database.bars["LITUSDT", "1m"] if open_ms >= market.listed_ms]
    assert len(stored) == (state.cut_ms - market.listed_ms) // MINUTE_MS
    assert len(database.bars["LITUSDT", "1m"]) == len(stored)
    assert len(database.bars["LITUSDT@old", "1m"]) == 5
    assert_state_is_exact(state, exchange)


async def test_symbol_listed_this_minute_is_left_to_discovery(autojump_clock, tmp_path):
    """A symbol without a whole minute yet is in no snapshot, and no failure either."""
    exchange = Exchange(NOW_MS, {"AUSDT": years_old(), "BUSDT": Market(2, NOW_MS, NOW_MS)})
    report, _ = await fill(exchange, MemoryDatabase(), tmp_path)
    assert report.symbols == ("AUSDT",)
    assert report.failed == ()


async def test_unknown_symbol_is_named(autojump_clock, tmp_path):
    """A symbol setting that the exchange does not list ends it before anything is fetched."""
    exchange = Exchange(NOW_MS, {"BTCUSDT": years_old()})
    with pytest.raises(ConfigurationError, match="NOPEUSDT"):
        await fill(exchange, MemoryDatabase(), tmp_path, symbols=("NOPEUSDT",))
    assert exchange.calls == []


async def test_cut_waits_for_what_is_sealed(autojump_clock, tmp_path):
    """Right after a run the cut is not before its last tick."""
    now_ms = NOW_MS - NOW_MS % MINUTE_MS + 500
    database = MemoryDatabase()
    database.tick_ms = now_ms - 500
    exchange = Exchange(now_ms, {"BTCUSDT": years_old()})
    _, state = await fill(exchange, database, tmp_path)
    assert state.cut_ms == now_ms - 500
    assert_state_is_exact(state, exchange)


async def test_database_of_another_exchange_is_refused(autojump_clock, tmp_path):
    """A database that goes on beyond the exchange's time is not mixed with it."""
    database = MemoryDatabase()
    database.tick_ms = NOW_MS + DAY_MS
    with pytest.raises(ConfigurationError, match="--data-dir"):
        await fill(Exchange(NOW_MS, {"BTCUSDT": years_old()}), database, tmp_path)


async def test_progress_goes_up_to_the_end(autojump_clock, tmp_path):
    """Progress tells both passes, counts up to all symbols, and its ETA comes down."""
    exchange = Exchange(NOW_MS, {f"S{i}USDT": years_old(i) for i in range(20)})
    seen = []
    report = await run_backfill(
        Settings(data_dir=tmp_path),
        exchange,
        database=MemoryDatabase(),
        run_in_thread=run_inline,
        on_progress=seen.append,
    )
    assert list(dict.fromkeys(progress.phase for progress in seen)) == ["history", "state"]
    assert seen[-1].symbols_done == seen[-1].symbols == 20
    assert (seen[-1].bars, seen[-1].weight) == (report.bars, report.weight)
    assert all(a.weight <= b.weight for a, b in itertools.pairwise(seen))
    assert math.isfinite(seen[0].eta_s)
    assert seen[-1].eta_s <= 0.1
