"""The seeded market: raw trades, the aggregates made from them, and the life of each contract.

Theory of operation: a `Tape` writes the raw trades of one instrument minute by minute, always a
little ahead of time and always in the same order of random draws, so a market depends on its seed
and start alone, never on how often somebody looks. `Market.advance` moves the present: it hands out
the aggregates whose event time has come and the changes of contracts that are due. Klines come from
the raw trades by `klines`; what lies before the simulation comes from `history`.
"""

from __future__ import annotations

import heapq
import math
import random
from array import array
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from klagg_trio.sim.history import History
from klagg_trio.sim.klines import (
    HOUR_MS,
    MARKET,
    MINUTE_MS,
    Kline,
    Part,
    RawTrade,
    flat,
    join,
    kline_of,
    part_of,
    row_text,
    span_of,
)
from klagg_trio.sim.universe import (
    FOREVER_MS,
    Instrument,
    UniverseOptions,
    next_at_second,
    universe,
)

WINDOW_MS: Final = 100
"""Fills of one price and side within this time of the first are one aggregate."""

_JITTER_MS: Final = 50
"""How much later than the window's end an aggregate's event time may be."""

_BUCKET_MS: Final = 25
"""Aggregates fall due in steps of this."""

_AHEAD_FROM_MS: Final = 5_000
_AHEAD_SPAN_MS: Final = 45_000
"""The next minute is written between these moments of the running one, some tapes at a time, so
that no single moment has all the work."""

_WIDTH: Final = len(Part._fields)

_QUOTE_WORTH: Final = 300
"""What a common fill is worth, in the quote asset."""


class Aggregate(NamedTuple):
    """One aggTrade as it is published. Ordered by event time, then instrument, then id."""

    event_ms: int
    number: int
    """The instrument's."""
    id: int
    price: int
    quantity: int
    normal_quantity: int
    """Without the fills of retail price improvement orders."""
    first_id: int
    last_id: int
    time_ms: int
    buyer_is_maker: bool


class Straddle(NamedTuple):
    """What an aggregate takes out of the minute after its own: all of its price, exact."""

    price: int
    volume: int
    quote_volume: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    taker_buy_volume: int
    taker_buy_quote_volume: int


class Change(NamedTuple):
    """A contract's status or dates changed, or its margin brackets did (then `brackets` is set)."""

    at_ms: int
    instrument: Instrument
    brackets: bool = False


@dataclass(frozen=True, slots=True)
class SimOptions:
    """What a market is made from. The same options make the same market."""

    seed: int = 1
    symbols: int = 45
    """USDT perpetuals that trade from the start."""
    start_ms: int = 1_719_791_850_000
    """Sunday 2024-06-30 23:57:30 UTC: soon a minute, an hour, a week and a month end at once."""
    straddle: bool = False
    """Whether an aggregate may reach over a minute boundary, as on the real exchange."""
    list_after_s: float | None = 100.0
    """The announced contract is listed at the first second 40 of a minute after this; None: not."""
    list_quiet_s: float = 75.0
    """How long it then has no trade: a minute boundary at least."""
    trades_per_minute: float | None = None
    """Raw trades of all USDT perpetuals together; None for 2,000 and 8 a symbol."""
    others: bool = True
    """Whether there are contracts other than USDT perpetuals."""
    quiet_share: float = 0.0
    """Of the USDT perpetuals: they have no trade from before the start to some minutes after it."""
    warm_minutes: int = 3
    """Whole minutes of raw trades before the start, for aggTrades."""
    three_day_phase_ms: int = 86_400_000
    aggregates_kept: int = 3_000
    """For each symbol, for aggTrades."""
    step_ms: int = 100
    """The pump pushes events in steps of at least this, simulated."""
    connection_life_s: float = 86_400.0
    """A websocket is cut after this."""
    outbox_max: int = 4 << 20
    """Bytes waiting for one websocket; a slower reader is disconnected."""
    weight_limit: int = 2_400

    @property
    def total_per_minute(self) -> float:
        """Raw trades a minute that the perpetuals make together."""
        if self.trades_per_minute is not None:
            return self.trades_per_minute
        return 2_000.0 + 8.0 * self.symbols


class Tape:
    """All that one instrument does: its trades from some minute on, and its bars of all times."""

    def __init__(self, instrument: Instrument, options: SimOptions, first_minute_ms: int) -> None:
        self.instrument = instrument
        self.first_minute_ms = first_minute_ms
        """The first minute written; what lies before comes from the history."""
        self.published: deque[Aggregate] = deque(maxlen=options.aggregates_kept)
        self._options = options
        self._history: History | None = None
        if instrument.onboard_ms < first_minute_ms:
            self._history = History(instrument, options.seed)
        self._rng = random.Random(
            f"tape/{options.seed}/{instrument.symbol}/{instrument.onboard_ms}"
        )
        self._rows = array("q")
        """Finished minutes, `_WIDTH` numbers each."""
        self._raw: dict[int, list[RawTrade]] = {}
        """Raw trades of the last few minutes, for the bar that is still open."""
        self._hours: dict[int, Part] = {}
        """Finished hours of written minutes, merged once."""
        self._run: list[RawTrade] = []
        """Fills of the aggregate that is still open."""
        self._close = self._first_close()
        self._mid = self._anchor = self._close
        self._raw_id = self._rng.randrange(10**8, 10**9)
        self._aggregate_id = self._rng.randrange(10**7, 10**8)
        self._event_ms = 0
        self._day = flat(self._close)
        self._day_until_ms = 0
        self.straddles: dict[int, Straddle] = {}
        """By the minute boundary that an aggregate reaches over."""
        self._pauses: list[tuple[int, int]] = []
        self._renumbered: tuple[int, int] | None = None

    def _first_close(self) -> int:
        if self._history is None:
            return self.instrument.price
        return self._history.close_before(min(self.first_minute_ms, self._settled_ms()))

    def _settled_ms(self) -> int:
        """Return the end of the minute in which the contract ends."""
        return -(-self.instrument.delivery_ms // MINUTE_MS) * MINUTE_MS

    # -- Writing -----------------------------------------------------------------------------

    def pause(self, from_ms: int, until_ms: int) -> None:
        """Have no trades between two moments. What is written already stays: two minutes ahead."""
        self._pauses.append((from_ms, until_ms))

    def renumber(self, from_ms: int, first_id: int) -> None:
        """Have the aggregate ids go on from another number, from a minute at least two ahead."""
        self._renumbered = from_ms, first_id

    def write_minute(self, minute_ms: int) -> list[Aggregate]:
        """Write the next minute. Returns the aggregates that are complete by it."""
        if self._renumbered is not None and minute_ms >= self._renumbered[0]:
            self._aggregate_id = self._renumbered[1] - 1
            self._renumbered = None
        trades = self._draw(minute_ms)
        part = part_of(trades, self._close)
        self._close = part.close
        self._rows.extend(part)
        self._raw[minute_ms] = trades
        self._raw.pop(minute_ms - 3 * MINUTE_MS, None)
        return self._aggregated(trades, minute_ms + MINUTE_MS)

    def _draw(self, minute_ms: int) -> list[RawTrade]:
        """Draw the raw trades of a minute: orders, each filled at once, often in clusters."""
        instrument, rng = self.instrument, self._rng
        first_ms = max(minute_ms, instrument.first_trade_ms)
        end_ms = min(minute_ms + MINUTE_MS, instrument.delivery_ms)
        if first_ms >= end_ms:
            return []
        expected = instrument.trades_per_minute * (end_ms - first_ms) / MINUTE_MS / 2.7
        times = self._times(expected * rng.lognormvariate(0, 0.4), first_ms, end_ms)
        for from_ms, until_ms in self._pauses:
            times = [time_ms for time_ms in times if not from_ms <= time_ms < until_ms]
        if not times:
            return []
        random_, tick = rng.random, instrument.tick
        stride = max(1, self._mid // tick // 9_000) * tick
        worth = _QUOTE_WORTH * 10 ** (instrument.price_precision + instrument.quantity_precision)
        common = max(1.0, worth / self._mid)
        rise = 0.5 - max(-0.2, min(0.2, (self._mid / self._anchor - 1) * 2))
        mid, number, maker = self._mid, self._raw_id, random_() < 0.5
        trades: list[RawTrade] = []
        for time_ms in times:
            if random_() < 0.4:
                maker = random_() < 0.5
                mid += stride if random_() < rise else -stride
            price = mid if maker else mid + tick
            chance = random_()
            if chance < 0.003:  # records that use up an id and are no market trade
                kind = "INSURANCE_FUND" if chance < 0.0015 else "NA"
                odd = (price + price // 50 + 1, 1 + int(common)) if chance < 0.0015 else (0, 0)
                trades.append(RawTrade(number, *odd, time_ms, maker, kind))
                number += 1
            fills = 1 if chance < 0.6 else 2 + int(random_() * 4)
            for _ in range(fills):
                quantity = 1 + int(common * random_() * random_() * 4)
                trades.append(RawTrade(number, price, quantity, time_ms, maker, MARKET))
                number += 1
                if random_() < 0.15:  # the order eats into the next level
                    price += -tick if maker else tick
        self._mid, self._raw_id = mid, number
        return trades

    def _times(self, expected: float, first_ms: int, end_ms: int) -> list[int]:
        """Draw when orders come: evenly, sometimes in a burst, often one close after another."""
        rng = self._rng
        length_ms = end_ms - first_ms
        if expected > 30:
            count = max(0, round(rng.gauss(expected, math.sqrt(expected))))
        else:
            count, level, product = 0, math.exp(-expected), rng.random()
            while product > level:
                count += 1
                product *= rng.random()
        times = [first_ms + int(rng.random() * length_ms) for _ in range(count)]
        if count and rng.random() < 0.03:
            burst_ms = first_ms + int(rng.random() * length_ms)
            span_ms = min(3_000, end_ms - burst_ms)
            times.extend(burst_ms + int(rng.random() * span_ms) for _ in range(4 * count + 5))
        times += [
            min(end_ms - 1, time_ms + int(rng.random() * WINDOW_MS))
            for time_ms in times
            if rng.random() < 0.35
        ]
        times.sort()
        return times

    def _aggregated(self, trades: list[RawTrade], end_ms: int) -> list[Aggregate]:
        """Aggregate fills of one price and side within the window; ids within are unbroken."""
        made: list[Aggregate] = []
        run = self._run
        for trade in trades:
            if run:
                first = run[0]
                if (
                    trade.kind == MARKET
                    and trade.price == first.price
                    and trade.buyer_is_maker == first.buyer_is_maker
                    and trade.time_ms - first.time_ms < WINDOW_MS
                ):
                    run.append(trade)
                    continue
                made.append(self._aggregate(run))
                run.clear()
            if trade.kind == MARKET:
                run.append(trade)
        if run and not (self._options.straddle and run[0].time_ms + WINDOW_MS > end_ms):
            made.append(self._aggregate(run))
            run.clear()
        return made

    def _aggregate(self, run: list[RawTrade]) -> Aggregate:
        first, rng = run[0], self._rng
        quantity = sum(trade.quantity for trade in run)
        boundary_ms = first.time_ms - first.time_ms % MINUTE_MS + MINUTE_MS
        if run[-1].time_ms >= boundary_ms:
            self.straddles[boundary_ms] = _straddle(run, boundary_ms)
        event_ms = first.time_ms + WINDOW_MS + int(rng.random() * _JITTER_MS)
        self._event_ms = max(self._event_ms, event_ms)
        self._aggregate_id += 1
        return Aggregate(
            self._event_ms,
            self.instrument.number,
            self._aggregate_id,
            first.price,
            quantity,
            quantity if rng.random() < 0.95 else quantity - quantity // 3,
            first.id,
            run[-1].id,
            first.time_ms,
            first.buyer_is_maker,
        )

    # -- Reading -----------------------------------------------------------------------------

    def raw_trades(self, minute_ms: int) -> list[RawTrade]:
        """Return the raw trades of one of the last minutes."""
        return self._raw.get(minute_ms, [])

    def _written(self, minute_ms: int) -> Part:
        """Return a minute as written, whether or not it has ended yet."""
        at = (minute_ms - self.first_minute_ms) // MINUTE_MS * _WIDTH
        return Part(*self._rows[at : at + _WIDTH])

    def _running(self, minute_ms: int, now_ms: int) -> Part:
        """Return what there is at `now_ms` of the minute that is not over."""
        trades = self._raw[minute_ms]
        seen = trades[: bisect_right(trades, now_ms, key=lambda trade: trade.time_ms)]
        return part_of(seen, self.close_before(minute_ms))

    def close_before(self, minute_ms: int) -> int:
        """Return the last price before a minute, 0 where there was none."""
        if minute_ms > self.first_minute_ms:
            return self._written(minute_ms - MINUTE_MS).close
        if self._history is None:
            return self.instrument.price
        return self._history.close_before(min(minute_ms, self._settled_ms()))

    def part(self, first_ms: int, end_ms: int, now_ms: int) -> Part:
        """Return the bar over whole minutes from `first_ms` to `end_ms`, as known at `now_ms`."""
        if end_ms - first_ms == MINUTE_MS:
            return self._minute(first_ms, now_ms)
        first_ms = max(first_ms, self.instrument.onboard_ms // MINUTE_MS * MINUTE_MS)
        parts: list[Part] = []
        live_ms = self.first_minute_ms
        if first_ms < live_ms and self._history is not None:
            past_ms = min(end_ms, live_ms, self._settled_ms())
            parts = self._history.parts(first_ms, past_ms)
        at_ms = max(first_ms, live_ms)
        running_ms = now_ms - now_ms % MINUTE_MS
        over_ms = min(end_ms, running_ms)
        while at_ms < over_ms:
            if at_ms % HOUR_MS == 0 and at_ms + HOUR_MS <= over_ms:
                parts.append(self._hour(at_ms))
                at_ms += HOUR_MS
            else:
                parts.append(self._written(at_ms))
                at_ms += MINUTE_MS
        if first_ms <= running_ms < end_ms and running_ms >= live_ms:
            parts.append(self._running(running_ms, now_ms))
        for part in parts:
            if part.count:
                return join(parts, part.open)
        return flat(self.close_before(first_ms))

    def _minute(self, minute_ms: int, now_ms: int) -> Part:
        """Return one minute, over or running."""
        if minute_ms < self.first_minute_ms:
            if self._history is None or minute_ms >= self._settled_ms():
                return flat(self.close_before(minute_ms))
            return self._history.minute(minute_ms)
        if minute_ms + MINUTE_MS <= now_ms:
            return self._written(minute_ms)
        return self._running(minute_ms, now_ms)

    def _hour(self, hour_ms: int) -> Part:
        """Return an hour of written minutes that is over."""
        part = self._hours.get(hour_ms)
        if part is None:
            minutes = range(hour_ms, hour_ms + HOUR_MS, MINUTE_MS)
            parts = [self._written(minute_ms) for minute_ms in minutes]
            part = self._hours[hour_ms] = join(parts, self.close_before(hour_ms))
        return part

    def day(self, now_ms: int) -> Part:
        """Return the bar of the last 24 hours, in steps of a minute, without the running one."""
        hour_ms, minute_ms = now_ms - now_ms % HOUR_MS, now_ms - now_ms % MINUTE_MS
        if self._day_until_ms < hour_ms:
            self._day = self.part(hour_ms - 23 * HOUR_MS, hour_ms, now_ms)
            self._day_until_ms = hour_ms
        at_ms = max(self._day_until_ms, self.first_minute_ms)
        if self._day_until_ms < minute_ms:
            parts = [self._day]
            if self._day_until_ms < at_ms and self._history is not None:
                parts += self._history.parts(self._day_until_ms, min(at_ms, self._settled_ms()))
            parts += [self._written(each_ms) for each_ms in range(at_ms, minute_ms, MINUTE_MS)]
            self._day = join(parts, self.close_before(minute_ms))
            self._day_until_ms = minute_ms
        return self._day

    def last_price(self, now_ms: int) -> int:
        """Return the last price published by `now_ms`, or what the contract starts from."""
        if self.published:
            return self.published[-1].price
        return self.close_before(now_ms - now_ms % MINUTE_MS)

    def raw_ids(self, count: int, now_ms: int) -> tuple[int, int]:
        """Return about what the first raw id of the last `count` trades is, and the last one."""
        trades = self._raw[now_ms - now_ms % MINUTE_MS]
        seen = bisect_right(trades, now_ms, key=lambda trade: trade.time_ms)
        next_id = trades[0].id if trades else self._raw_id
        last = trades[seen - 1].id if seen else next_id - 1
        return last - max(count, 1) + 1, last


def _straddle(run: list[RawTrade], boundary_ms: int) -> Straddle:
    beyond = [trade for trade in run if trade.time_ms >= boundary_ms]
    price, bought = run[0].price, not run[0].buyer_is_maker
    volume = sum(trade.quantity for trade in beyond)
    quote = price * volume
    return Straddle(price, volume, quote, len(beyond), volume * bought, quote * bought)


class Market:
    """All instruments under one clock."""

    def __init__(self, options: SimOptions) -> None:
        self.options = options
        start_ms = options.start_ms
        self.now_ms = start_ms - start_ms % MINUTE_MS - options.warm_minutes * MINUTE_MS
        """The present: nothing later has been handed out."""
        list_ms = 0
        if options.list_after_s is not None:
            list_ms = next_at_second(start_ms + round(options.list_after_s * 1_000), 40)
        self.instruments = universe(
            UniverseOptions(
                seed=options.seed,
                symbols=options.symbols,
                start_ms=start_ms,
                total_per_minute=options.total_per_minute,
                list_ms=list_ms,
                quiet_ms=round(options.list_quiet_s * 1_000),
                others=options.others,
            )
        )
        """Every life of every contract, by its number."""
        self.current: dict[str, Instrument] = {each.symbol: each for each in self.instruments}
        """The life that a symbol stands for now."""
        self.tapes: list[Tape] = []
        """By instrument number."""
        for instrument in self.instruments:
            onboard_minute_ms = instrument.onboard_ms // MINUTE_MS * MINUTE_MS
            first_ms = max(self.now_ms, onboard_minute_ms)
            self.tapes.append(Tape(instrument, options, first_ms))
        self._quieten()
        self._due: dict[int, list[Aggregate]] = {}
        self._written_ms = self.now_ms
        """Every minute before this one is written on every tape."""
        self._ahead = 0
        """Tapes that also have the minute at `_written_ms`."""
        self._changes: list[tuple[int, int, Change]] = []
        self._change_number = 0
        if list_ms:
            fresh = self.instruments[-1]
            announced_ms = max(start_ms, list_ms - 60_000)
            self._plan(Change(announced_ms, replace(fresh)))
            self._plan(Change(list_ms, replace(fresh, status="TRADING")))
        self._noise = random.Random(f"brackets/{options.seed}")
        self._plan_noise(start_ms)
        self.advance(start_ms)

    def _quieten(self) -> None:
        """Have some contracts without a trade until some minutes after the start."""
        rng = random.Random(f"quiet/{self.options.seed}")
        for tape in self.tapes:
            if tape.instrument.is_usdt_perpetual and rng.random() < self.options.quiet_share:
                until_ms = self.options.start_ms + rng.randrange(3, 25) * MINUTE_MS
                tape.pause(self.now_ms, until_ms)

    # -- Moving on ---------------------------------------------------------------------------

    def advance(self, now_ms: int) -> tuple[list[Aggregate], list[Change]]:
        """Move the present; return what is published by then, in order. Never moves back."""
        now_ms = max(self.now_ms, now_ms)
        self._write(now_ms)
        aggregates: list[Aggregate] = []
        due = self._due
        first, end = self.now_ms // _BUCKET_MS, now_ms // _BUCKET_MS
        if end - first > len(due):
            keys = sorted(key for key in due if key < end)
        else:
            keys = [key for key in range(first, end) if key in due]
        for key in keys:
            bucket = due.pop(key)
            bucket.sort()
            aggregates += bucket
        for aggregate in aggregates:
            self.tapes[aggregate.number].published.append(aggregate)
        self.now_ms = now_ms
        return aggregates, self._changes_until(now_ms)

    def next_due_ms(self, until_ms: int) -> int:
        """Return when something may be published next, at most `until_ms`."""
        if self._changes:
            until_ms = min(until_ms, self._changes[0][0])
        for key in range(self.now_ms // _BUCKET_MS, until_ms // _BUCKET_MS):
            if key in self._due:
                return (key + 1) * _BUCKET_MS
        return until_ms

    def _write(self, now_ms: int) -> None:
        """Write what must be known by `now_ms`, and some of the minute after the running one."""
        running_ms = now_ms - now_ms % MINUTE_MS
        while self._written_ms <= running_ms:
            self._write_tapes(len(self.tapes))
        if self._written_ms == running_ms + MINUTE_MS:
            share = (now_ms - running_ms - _AHEAD_FROM_MS) / _AHEAD_SPAN_MS
            if share > 0:
                self._write_tapes(min(len(self.tapes), 1 + int(share * len(self.tapes))))

    def _write_tapes(self, until: int) -> None:
        """Write the minute at `_written_ms` on the tapes before `until`."""
        minute_ms, due = self._written_ms, self._due
        for tape in self.tapes[self._ahead : until]:
            if tape.first_minute_ms > minute_ms:
                continue
            for aggregate in tape.write_minute(minute_ms):
                due.setdefault(aggregate.event_ms // _BUCKET_MS, []).append(aggregate)
        self._ahead = max(self._ahead, until)
        if self._ahead >= len(self.tapes):
            self._written_ms += MINUTE_MS
            self._ahead = 0

    # -- Changes of contracts ----------------------------------------------------------------

    def _plan(self, change: Change) -> None:
        self._change_number += 1
        heapq.heappush(self._changes, (change.at_ms, self._change_number, change))

    def _changes_until(self, now_ms: int) -> list[Change]:
        """Put due changes into force and return them, with the noise that goes along."""
        changes = []
        while self._changes and self._changes[0][0] <= now_ms:
            change = heapq.heappop(self._changes)[2]
            told = change.instrument
            if change.brackets:
                self._plan_noise(change.at_ms + 1)
                instrument = self.instruments[told.number]
                if instrument.status == "TRADING":
                    changes.append(change._replace(instrument=replace(instrument)))
                continue
            instrument = self.instruments[told.number]
            instrument.status, instrument.delivery_ms = told.status, told.delivery_ms
            self.current[told.symbol] = instrument
            changes.append(change)
        return changes

    def _plan_noise(self, after_ms: int) -> None:
        """Plan the next change of somebody's margin brackets: most contractInfo is that."""
        at_ms = after_ms + 10_000 + self._noise.randrange(20_000)
        self._plan(Change(at_ms, self._noise.choice(self.instruments), brackets=True))

    def delist(self, symbol: str, delivery_ms: int) -> Instrument:
        """End a contract: its date is told now, trading stops then, and it is settled.

        The date must be at least two minutes ahead: what is written is not unwritten.
        """
        assert delivery_ms >= self.now_ms + 2 * MINUTE_MS
        instrument = self.current[symbol]
        instrument.delivery_ms = delivery_ms
        self._plan(Change(self.now_ms, replace(instrument)))
        self._plan(Change(delivery_ms, replace(instrument, status="SETTLING")))
        return instrument

    def relist(self, symbol: str, onboard_ms: int, *, ids_anew: bool = False) -> Instrument:
        """Give a delisted ticker to another contract, listed at `onboard_ms`.

        Its aggregate ids are others, or begin at 1.
        """
        assert onboard_ms >= self.now_ms + 2 * MINUTE_MS
        old = self.current[symbol]
        assert old.delivery_ms < onboard_ms
        fresh = replace(
            old,
            number=len(self.instruments),
            onboard_ms=onboard_ms,
            delivery_ms=FOREVER_MS,
            first_trade_ms=onboard_ms + round(self.options.list_quiet_s * 1_000),
            price=old.price * 3,
            status="PENDING_TRADING",
        )
        self.instruments.append(fresh)
        self.tapes.append(Tape(fresh, self.options, onboard_ms // MINUTE_MS * MINUTE_MS))
        if ids_anew:
            self.tapes[-1].renumber(0, 1)
        self._plan(Change(onboard_ms, replace(fresh, status="TRADING")))
        return fresh

    # -- Klines ------------------------------------------------------------------------------

    def tape_of(self, symbol: str) -> Tape | None:
        """Return the tape of a symbol's present life."""
        instrument = self.current.get(symbol)
        return None if instrument is None else self.tapes[instrument.number]

    def spans(
        self, tape: Tape, interval: str, start_ms: int | None, end_ms: int | None, limit: int
    ) -> list[tuple[int, int]]:
        """Return the spans of the bars that a request asks for, oldest first.

        Both times select on the open time, inclusive. Without a start the newest bars are meant.
        """
        now_ms, phase_ms = self.now_ms, self.options.three_day_phase_ms
        last_ms = now_ms if end_ms is None else min(end_ms, now_ms)
        if now_ms < tape.instrument.onboard_ms or last_ms < 0:
            return []
        if start_ms is not None and start_ms > last_ms:
            return []
        first_open_ms = span_of(interval, tape.instrument.onboard_ms, phase_ms)[0]
        spans: list[tuple[int, int]] = []
        if start_ms is None:
            span = span_of(interval, last_ms, phase_ms)
            while span[0] >= first_open_ms and len(spans) < limit:
                spans.append(span)
                span = span_of(interval, span[0] - 1, phase_ms)
            spans.reverse()
            return spans
        span = span_of(interval, max(start_ms, first_open_ms), phase_ms)
        if span[0] < start_ms:
            span = span_of(interval, span[1], phase_ms)
        while span[0] <= last_ms and len(spans) < limit:
            spans.append(span)
            span = span_of(interval, span[1], phase_ms)
        return spans

    def rows(self, tape: Tape, interval: str, spans: list[tuple[int, int]]) -> list[str]:
        """Return klines as the exchange's JSON has them."""
        decimals = tape.instrument.decimals
        return [row_text(part, span, decimals) for part, span in self._parts(tape, interval, spans)]

    def klines(self, tape: Tape, interval: str, spans: list[tuple[int, int]]) -> list[Kline]:
        """Return klines with exact values."""
        decimals = tape.instrument.decimals
        return [kline_of(part, span, decimals) for part, span in self._parts(tape, interval, spans)]

    def _parts(
        self, tape: Tape, interval: str, spans: list[tuple[int, int]]
    ) -> list[tuple[Part, tuple[int, int]]]:
        now_ms = self.now_ms
        return [
            (tape.part(first_ms, end_ms, now_ms), (first_ms, end_ms)) for first_ms, end_ms in spans
        ]
