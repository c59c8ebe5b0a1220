"""A small market whose whole truth is known, and a line that loses, delays and repeats it.

A `World` draws trades from a seed, then plays them to a real shard as a list of messages: batches
of trades, ticks on time and late, losses and recoveries of the feed, repairs, listings, restarts.
What the line says of itself (FeedLost, FeedLive) is true; everything else may happen. In the end
the stored bars are held against the truth.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from decimal import Decimal

from klagg_trio.core.bar import Bar
from klagg_trio.core.facts import Listing
from klagg_trio.core.intervals import INTERVALS
from klagg_trio.core.seed import OpenBar, Seed
from klagg_trio.core.shard import Shard

from .naive import LENGTHS, MINUTE, ATrade, NaiveStore, Nine, nine_between, nine_of

START = 1_719_792_000_000
"""2024-07-01 00:00 UTC, where a bar of every interval opens."""

FAR = 1 << 62

LIVE_AFTER_MS = 2_000
"""From the end of an outage to the moment when the shard hears that the feed is live."""


@dataclass(frozen=True)
class Line:
    """How bad the line is. Rates are per trade, counts per symbol."""

    dropped: float = 0.0
    reordered: float = 0.0
    reordered_ms: int = 0
    repeated: float = 0.0
    outages: int = 0
    restarts: int = 0
    repairs: bool = False
    late_ticks: bool = False
    listings: int = 0
    delistings: int = 0
    ids_known: bool = True
    """Whether the seeds tell the id that continues, as after a restart."""


@dataclass
class Market:
    """One symbol's truth, and what became of it on the line."""

    symbol: str
    first_close: int
    onboard_ms: int
    trades: list[ATrade]
    delivered: list[ATrade] = field(default_factory=list)
    delivery_ms: int = FAR

    def official(self, open_ms: int, end_ms: int) -> Nine:
        """Return the exchange's own bar of [open_ms, end_ms)."""
        return nine_between(self.trades, open_ms, end_ms, self.first_close)


def draw_market(
    rng: random.Random, symbol: str, minutes: int, *, per_minute: float, onboard_ms: int = START
) -> Market:
    """Draw the truth of one symbol: ids without holes, times that never go back."""
    trades, at_ms, trade_id, cents = [], float(onboard_ms), rng.randrange(1, 1_000), 10_000
    first_close = cents + rng.randrange(-50, 50)
    while True:
        at_ms += rng.expovariate(per_minute / MINUTE)
        if at_ms >= START + minutes * MINUTE:
            return Market(symbol, first_close, onboard_ms, trades)
        cents = max(1, cents + rng.randrange(-30, 31))
        raw = rng.randrange(1, 4)
        trades.append(
            ATrade(
                symbol,
                trade_id,
                cents,
                rng.randrange(1, 5_000),
                int(at_ms),
                rng.random() < 0.5,
                trade_id * 10,
                trade_id * 10 + raw - 1,
            )
        )
        trade_id += 1


def official_bar(market: Market, open_ms: int) -> Bar:
    """Return one official minute as the edge would decode it."""
    values = market.official(open_ms, open_ms + MINUTE)
    digits = (2, 2, 2, 2, 3, 5, 0, 3, 5)
    numbers = [Decimal(v).scaleb(-d) for v, d in zip(values, digits, strict=True)]
    return Bar(
        open_ms, open_ms + MINUTE, *numbers[:6], values.count, *numbers[7:], open_ms, open_ms
    )


class World:
    """Plays one drawn history to a shard and keeps what it stored."""

    def __init__(self, seed: int, line: Line, *, minutes: int = 40, symbols: int = 3) -> None:
        self.rng = rng = random.Random(seed)
        self.line = line
        self.minutes = minutes
        self.store = NaiveStore()
        self.intervals = [INTERVALS[name] for name in LENGTHS]
        self.shard = Shard(self.intervals, START)
        self.markets = {
            name: draw_market(rng, name, minutes, per_minute=rng.choice((0.2, 1, 6)))
            for name in (f"S{n}USDT" for n in range(symbols))
        }
        for market in self.markets.values():
            self.shard.load(self._seed(market))
        self.last_ms = START + minutes * MINUTE
        self.received = 0
        self.log: list[tuple[str, tuple]] = []
        """What the shard was told: the method and its arguments."""
        self._agenda: list[tuple[int, int, object]] = []
        self._order = 0

    def _seed(self, market: Market) -> Seed:
        next_id = market.trades[0].id if market.trades and self.line.ids_known else None
        price = Decimal(market.first_close).scaleb(-2)
        bars = (
            Bar(START, interval.end(START), price, price, price, price)
            for interval in self.intervals[1:]
        )
        open_bars = tuple(
            OpenBar(interval.name, bar, 0)
            for interval, bar in zip(self.intervals[1:], bars, strict=True)
        )
        return Seed(market.symbol, 0, FAR, price, next_id, None, 0, open_bars)

    # -- The line ------------------------------------------------------------------------------

    def _at(self, at_ms: int, action) -> None:
        self._order += 1
        heapq.heappush(self._agenda, (at_ms, self._order, action))

    def plan(self) -> None:
        """Draw everything that is going to happen."""
        end_ms = START + self.minutes * MINUTE
        for minute_ms in range(START + MINUTE, end_ms + 1, MINUTE):
            late = self.line.late_ticks and self.rng.random() < 0.2
            lag_ms = self.rng.randrange(MINUTE, 4 * MINUTE) if late else 300
            self._at(minute_ms + lag_ms, lambda m=minute_ms: self.tick(m))
            if self.line.repairs and self.rng.random() < 0.5:
                self._at(minute_ms + self.rng.randrange(MINUTE), self.repair_some)
        restarts = [
            self.rng.randrange(START, end_ms - 2 * MINUTE) for _ in range(self.line.restarts)
        ]
        for market in list(self.markets.values()):
            self._plan_symbol(market, restarts)
        for number in range(self.line.listings):
            self._plan_listing(f"NEW{number}USDT")
        for symbol in list(self.markets)[: self.line.delistings]:
            self._plan_delisting(self.markets[symbol])
        for restart_ms in restarts:
            self._at(restart_ms, self.restart)

    def _plan_symbol(self, market: Market, restarts: list[int]) -> None:
        rng, symbol = self.rng, market.symbol
        end_ms = START + self.minutes * MINUTE
        outages = [(START, START + rng.randrange(90_000), False)]
        for _ in range(self.line.outages):
            begin = rng.randrange(START + 2 * MINUTE, end_ms - 2 * MINUTE)
            outages.append((begin, begin + rng.choice((50, 900, 20_000, 200_000)), True))
        outages.extend((at, at + rng.randrange(100, 150_000), False) for at in restarts)
        for begin, end, told in _disjoint(outages):
            if told:
                noticed = begin + rng.choice((1, 10_000, 70_000, 250_000))
                noticed = min(noticed, end)
                if restarts:
                    noticed = begin + 1  # a loss that a stop hides stays hidden
                lost_ms = begin - 1 - rng.choice((0, 1_000))
                self._at(noticed, lambda lost=lost_ms: self.lose(symbol, lost))
            live_ms = end + rng.choice((0, 0, 700))
            self._at(end + LIVE_AFTER_MS, lambda since=live_ms: self.live(symbol, since))
        self._plan_trades(market, _disjoint(outages))

    def _plan_listing(self, symbol: str) -> None:
        """A symbol is listed, found a little later, and subscribed to a little later still."""
        rng = self.rng
        onboard_ms = START + rng.randrange(5 * MINUTE, (self.minutes - 5) * MINUTE)
        market = draw_market(
            rng, symbol, self.minutes, per_minute=rng.choice((0.2, 4)), onboard_ms=onboard_ms
        )
        self.markets[symbol] = market
        found_ms = onboard_ms + rng.choice((0, 500, 20_000, 200_000))
        live_ms = found_ms + rng.randrange(1, 3_000)
        self._at(found_ms, lambda: self.add(market))
        self._at(live_ms + LIVE_AFTER_MS, lambda: self.live(symbol, live_ms))
        self._plan_trades(market, [(onboard_ms, live_ms, False)])

    def _plan_delisting(self, market: Market) -> None:
        """A symbol ends, as announced before or noticed after."""
        rng = self.rng
        market.delivery_ms = START + rng.randrange(5 * MINUTE, (self.minutes - 5) * MINUTE)
        market.trades[:] = [t for t in market.trades if t.time_ms < market.delivery_ms]
        told_ms = market.delivery_ms + rng.choice((-3 * MINUTE, -100, 20_000, 100_000))
        for again in range(8):  # it is over by two words, some minutes apart
            self._at(told_ms + again * MINUTE, lambda: self.sight(market))

    def _plan_trades(self, market: Market, outages: list[tuple[int, int, bool]]) -> None:
        rng = self.rng
        anchor_ms = START - 1  # the newest trade that came through in order under a live feed
        for index, trade in enumerate(market.trades):
            following = market.trades[index + 1] if index + 1 < len(market.trades) else None
            at_ms = trade.time_ms
            ended_ms = max((end for _, end, _ in outages if end <= at_ms), default=START)
            if any(begin <= at_ms < end for begin, end, _ in outages):
                continue
            # What the line says of itself is true: a trade is dropped or overtaken only between
            # two that get through under one live feed, so that the ids tell.
            tells = (
                anchor_ms >= ended_ms
                and following is not None
                and not any(begin <= following.time_ms and at_ms < end for begin, end, _ in outages)
            )
            draw = rng.random()
            if tells and draw < self.line.dropped:
                continue
            arrives = at_ms
            if tells and draw < self.line.dropped + self.line.reordered:
                arrives += rng.randrange(1, self.line.reordered_ms)
                if any(begin <= arrives < end for begin, end, _ in outages):
                    continue
            elif at_ms >= ended_ms + LIVE_AFTER_MS:
                anchor_ms = at_ms
            self._at(arrives, lambda t=trade: self.deliver(market, t))
            if rng.random() < self.line.repeated:
                again = arrives + rng.randrange(200_000)
                self._at(again, lambda t=trade: self.deliver(market, t))

    # -- What happens --------------------------------------------------------------------------

    def run(self) -> None:
        """Let it all happen, in order."""
        self.plan()
        end_ms = START + self.minutes * MINUTE
        while self._agenda:
            at_ms, _, action = heapq.heappop(self._agenda)
            self.now_ms = at_ms
            action()
        self.now_ms = end_ms + MINUTE

    def tell(self, method: str, *arguments) -> None:
        """Tell the shard something; keep what it says to the store."""
        self.log.append((method, arguments))
        self.store.take(getattr(self.shard, method)(*arguments))

    def deliver(self, market: Market, trade: ATrade) -> None:
        """Hand one trade to the shard, unless the exchange never made it."""
        if trade.time_ms >= market.delivery_ms:
            return
        self.received += 1
        market.delivered.append(trade)
        self.tell("apply_trades", [trade])

    def tick(self, minute_ms: int) -> None:
        """Tick, late or on time."""
        self.tell("tick", minute_ms)

    def lose(self, symbol: str, lost_ms: int) -> None:
        """Say that the feed of a symbol cannot be trusted after `lost_ms`."""
        self.tell("feed_lost", [symbol], lost_ms)

    def live(self, symbol: str, since_ms: int) -> None:
        """Say that the feed of a symbol has delivered everything since `since_ms`."""
        self.tell("feed_live", [symbol], since_ms)

    def add(self, market: Market) -> None:
        """List a symbol at its price of this moment."""
        cents = market.official(self.now_ms, self.now_ms + 1).open
        if not any(trade.time_ms < self.now_ms for trade in market.trades):
            cents = market.first_close
        price = Decimal(cents).scaleb(-2)
        self.tell("add_symbol", Listing(market.symbol, market.onboard_ms, FAR, 0), price)

    def sight(self, market: Market) -> None:
        """Say what the exchange says of a symbol that is delivered one day."""
        status = "TRADING" if self.now_ms < market.delivery_ms else "SETTLING"
        self.tell("sight", market.symbol, status, market.delivery_ms, self.now_ms)

    def restart(self) -> None:
        """Stop and start again from the state of this moment."""
        seeds = self.shard.seeds()
        trades, self.shard = self.shard.trades, Shard(self.intervals, self.shard.minute_ms)
        for seed in seeds:
            self.shard.load(seed)
        for name in trades.__slots__:  # the counts go on
            setattr(self.shard.trades, name, getattr(trades, name))

    def repair_some(self) -> None:
        """Replace some of the suspect minutes by official ones."""
        for symbol, state in list(self.shard.states.items()):
            for span in list(state.suspects):
                if self.rng.random() < 0.5:
                    self.repair(symbol, *span)

    def repair(self, symbol: str, first_ms: int, last_ms: int) -> None:
        """Replace a span of minutes by official ones, as far as the exchange has them."""
        market = self.markets[symbol]
        opens = range(first_ms, last_ms + 1, MINUTE)
        bars = [official_bar(market, at) for at in opens if at + MINUTE <= self.now_ms]
        self.tell("replace_minutes", symbol, bars)

    def repair_all(self) -> None:
        """Replace every suspect minute, newest span first, as repair does."""
        for symbol, state in self.shard.states.items():
            for span in reversed(list(state.suspects)):
                self.repair(symbol, *span)

    # -- What must be true ---------------------------------------------------------------------

    def wrong_rows(self) -> list[str]:
        """Return every stored bar that is vouched for and is not the exchange's."""
        wrong = []
        for (symbol, interval, open_ms), row in sorted(self.store.rows.items()):
            if row.source == 2:
                continue
            end_ms = open_ms + LENGTHS[interval] * MINUTE
            true = self.markets[symbol].official(open_ms, end_ms)
            if end_ms <= self.markets[symbol].onboard_ms:
                continue  # of a symbol that was found before a late tick; the exchange has none
            if row.nine != true:
                minute = (open_ms - START) // MINUTE
                wrong.append(f"{symbol} {interval} {minute} {row.source}: {row.nine} not {true}")
        return wrong

    def wrong_open_bars(self) -> list[str]:
        """Return every running bar that is not what the exchange would show of sealed minutes."""
        wrong = []
        for fact in self.shard.open_bars():
            symbol, interval, bar = fact.symbol, fact.interval, fact.bar
            row = self.markets[symbol].official(bar.open_ms, bar.end_ms)
            if (row[4:] if row.count else row) != _whole(bar)[4 if row.count else 0 :]:
                wrong.append(f"{symbol} {interval}: {_whole(bar)} not {row}")
        return wrong

    def holes(self) -> list[str]:
        """Return every minute that was not sealed, or not in order, or more than once."""
        wrong = []
        for symbol, market in self.markets.items():
            sealed = [at for name, at in self.store.sealed_minutes if name == symbol]
            last_ms = sealed[-1] if market.delivery_ms < FAR else self.shard.minute_ms - MINUTE
            if market.delivery_ms < FAR and last_ms + MINUTE < market.delivery_ms:
                wrong.append(f"{symbol} ends early")
            listed_ms = market.onboard_ms - market.onboard_ms % MINUTE
            if sealed[0] > listed_ms or sealed != list(range(sealed[0], last_ms + 1, MINUTE)):
                wrong.append(f"{symbol} {[(at - START) // MINUTE for at in sealed]}")
        return wrong

    def suspect_minutes(self, symbol: str) -> set[int]:
        """Return the stored suspect minutes of a symbol, by number from the start."""
        return {
            (open_ms - START) // MINUTE
            for (name, interval, open_ms), row in self.store.rows.items()
            if name == symbol and interval == "1m" and row.source == 2
        }


def _whole(bar: Bar) -> Nine:
    return nine_of(bar.values())


def _disjoint(outages: list[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
    """Join outages that touch; one that was told of stays told of."""
    joined: list[tuple[int, int, bool]] = []
    for begin, end, told in sorted(outages):
        if joined and begin <= joined[-1][1] + 10_000:
            last = joined.pop()
            joined.append((last[0], max(last[1], end), last[2] or told))
        else:
            joined.append((begin, end, told))
    return joined
