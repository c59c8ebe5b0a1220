"""The life of a contract in a shard: taken up, paused, ended, come back, its label given away.

Theory of operation
-------------------
Nobody's single word ends a contract, or says that it is another one. What an answer of the exchange
says of a contract comes as a *sighting*; the shard holds it against what it knows itself.

- Any status but TRADING *pauses*: the clock goes on and bars go on.
- It is *over* by one answer where its delivery time has passed and it is not in trading, or where a
  complete answer does not name it. It has *ended* when answers have said so without a break for
  `CONFIRM_MS`, and no trade was made meanwhile. Then it is sealed and frozen.
- Whoever comes back goes on from the last bar that is stored: every minute since then is sealed as
  suspect, a slice at each tick, and owed.
- A later listing date of the same ticker is a *correction*, unless it is proven that another
  contract has the ticker now: the exchange serves no klines from before that date any more, and a
  second witness agrees (the old one had ended, or its ids begin anew, or the exchange has said so
  twice with a pause).

How a contract is over is USD-M's rule, and stands in `is_over` alone.
"""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from klagg_trio.core.bar import EXACT, Source, newborn
from klagg_trio.core.facts import Cut, Event, Facts, Listing
from klagg_trio.core.intervals import DAY_MS, MINUTE, MINUTE_MS, Interval
from klagg_trio.core.seed import Seed
from klagg_trio.core.shard.restate import suspect
from klagg_trio.core.shard.seal import catch_up, freeze
from klagg_trio.core.shard.state import Longer, ShardState, SymbolState

SEED_FILL_MS_MAX: Final = DAY_MS
"""A symbol found later than this after its listing starts at the current minute instead."""

CONFIRM_MS: Final = 3 * MINUTE_MS
"""How long answers have to say the same before a contract has ended."""

LEAD_MS_MAX: Final = 10 * MINUTE_MS
"""A listing this far ahead of the shard's clock is one that the clock is late for. One further
ahead is a wrong date, or an early word: its bars begin now."""


@dataclass(frozen=True, slots=True)
class Life:
    """What a shard knows of a contract that lives: for discovery, which proposes."""

    onboard_ms: int
    delivery_ms: int
    first_ms: int | None
    paused: str | None
    last_sealed_ms: int
    """Open time of its minute sealed last."""

    def is_as(self, status: str | None, onboard_ms: int, delivery_ms: int) -> bool:
        """Whether an answer that says this says nothing new."""
        same = (onboard_ms, delivery_ms) == (self.onboard_ms, self.delivery_ms)
        return status == "TRADING" and self.paused is None and same


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the stored bars of a contract end, and at what price."""

    end_ms: int
    close: Decimal
    suspects: tuple[tuple[int, int], ...] = ()
    """Its newest suspect minutes, as spans of open times: they are owed still."""


def load(shard: ShardState, seed: Seed) -> None:
    """Take up a symbol from a start snapshot whose cut is the shard's running minute."""
    shard.settle([seed.symbol])
    longer = [
        Longer(
            _interval_of(shard, open_bar.interval, seed),
            open_bar.bar.copy(),
            open_bar.unofficial_minutes,
        )
        for open_bar in seed.open_bars
    ]
    state = SymbolState(
        symbol=seed.symbol,
        onboard_ms=seed.onboard_ms,
        delivery_ms=seed.delivery_ms,
        minute=newborn(shard.minute_ms, shard.minute_ms + MINUTE_MS, seed.last_close),
        last_close=seed.last_close,
        longer=longer,
        resume_id=seed.next_id,
        last_trade_ms=seed.last_trade_ms,
        trusted_since_ms=None if seed.next_id is None else shard.minute_ms,
        traded_ms=shard.minute_ms - MINUTE_MS,
        partials={bar.open_ms: bar for bar in seed.partials},
        first_ms=seed.first_ms,
    )
    for first_ms, last_ms in seed.suspects:
        state.suspects.add(first_ms, last_ms)
        state.missing.add(first_ms, last_ms)
    for first_ms, last_ms in seed.unknown:
        state.unknown.add(first_ms, last_ms)
    for each in state.longer:  # what is owed is not official, whatever the seed counts
        owed = state.suspects.minutes_within(each.bar.open_ms, shard.minute_ms)
        each.unofficial_minutes = max(each.unofficial_minutes, owed)
    shard.symbols[seed.symbol] = state


def _interval_of(shard: ShardState, name: str, seed: Seed) -> Interval:
    interval = next(i for i in shard.longer_intervals if i.name == name)
    return interval.with_phase(seed.three_day_phase_ms) if name == "3d" else interval


def add_symbol(
    shard: ShardState,
    listing: Listing,
    price: Decimal,
    *,
    stored: Stored | None = None,
    replaces: bool = False,
) -> Facts:
    """Take up a symbol that was listed, or has come back, while the program ran.

    Its bars of every interval exist from now on, flat at `price` until the first trade. The minutes
    from its listing up to now went unseen: they are stored as suspect, or at least owed to repair
    where the listing was long ago. Where bars of it are `stored`, it goes on where they end.

    `replaces` says that its label was another contract's.
    """
    facts = Facts()
    symbol = listing.symbol
    if shard.settled(symbol) is not None:
        return facts
    if replaces:
        facts.replaced.append(symbol)
    if stored is not None and stored.end_ms <= shard.minute_ms:
        state = _resumed(shard, listing, stored)
        facts.resumed.append(symbol)
        away = (shard.minute_ms - stored.end_ms) // MINUTE_MS
        text = f"goes on after {away} minutes away"
        facts.events.append(Event(shard.minute_ms, "back", symbol, text))
    else:
        state = _listed(shard, listing, price)
        facts.events.append(Event(shard.minute_ms, "listed", symbol, f"seeded at {price}"))
    shard.symbols[symbol] = state
    with decimal.localcontext(EXACT):
        catch_up(shard, state, facts)
    facts.listings.append(listing)
    return facts


def _listed(shard: ShardState, listing: Listing, price: Decimal) -> SymbolState:
    """Return the state of a contract of which nothing is stored."""
    listed_ms = MINUTE.floor(listing.onboard_ms)
    earliest_ms, latest_ms = shard.minute_ms - SEED_FILL_MS_MAX, shard.minute_ms + LEAD_MS_MAX
    first_ms = listed_ms if earliest_ms <= listed_ms <= latest_ms else shard.minute_ms
    state = _state_from(shard, listing, first_ms, price)
    for longer in state.longer:
        open_ms = longer.bar.open_ms
        longer.unofficial_minutes = max(0, first_ms - max(open_ms, listed_ms)) // MINUTE_MS
    oldest_ms = min((x.bar.open_ms for x in state.longer), default=first_ms)
    unseen_ms = max(listed_ms, oldest_ms)
    if unseen_ms < first_ms:
        state.missing.add(unseen_ms, first_ms - MINUTE_MS)
        suspect(state, unseen_ms, first_ms - MINUTE_MS)
    return state


def _resumed(shard: ShardState, listing: Listing, stored: Stored) -> SymbolState:
    """Return the state of a contract that goes on where its stored bars end.

    What its longer bars hold of the time before is on disk only: those that do not begin now are
    suspect until the exchange's own come.
    """
    state = _state_from(shard, listing, stored.end_ms, stored.close)
    for longer in state.longer:
        if longer.bar.open_ms < stored.end_ms:
            longer.unofficial_minutes = (stored.end_ms - longer.bar.open_ms) // MINUTE_MS
            longer.bar.source = Source.SUSPECT
            longer.resumed = True
    for span in stored.suspects:
        for spans in (state.suspects, state.missing, state.unknown):
            spans.add(*span)
    return state


def _state_from(shard: ShardState, listing: Listing, first_ms: int, price: Decimal) -> SymbolState:
    longer = []
    for interval in shard.longer_intervals:
        if interval.name == "3d":
            interval = interval.with_phase(listing.three_day_phase_ms)
        open_ms = interval.floor(first_ms)
        longer.append(Longer(interval, newborn(open_ms, interval.end(open_ms), price)))
    return SymbolState(
        symbol=listing.symbol,
        onboard_ms=listing.onboard_ms,
        delivery_ms=listing.delivery_ms,
        minute=newborn(first_ms, first_ms + MINUTE_MS, price),
        last_close=price,
        longer=longer,
        traded_ms=first_ms - MINUTE_MS,
        first_ms=listing.first_ms,
    )


# -- Sightings -------------------------------------------------------------------------------------


def is_over(status: str | None, delivery_ms: int, at_ms: int) -> bool:
    """Whether one answer says that a contract is over: not named, or delivered. USD-M's rule."""
    return status is None or (status != "TRADING" and delivery_ms <= at_ms)


def sight(
    shard: ShardState, symbol: str, status: str | None, delivery_ms: int, at_ms: int
) -> Facts:
    """Take what one complete answer says of a contract, asked at `at_ms` of exchange time."""
    facts = Facts()
    state = shard.settled(symbol)
    if state is None:
        return facts
    if status is not None and delivery_ms != state.delivery_ms:
        state.delivery_ms = delivery_ms
        facts.listings.append(_listing_of(state))
    _note_pause(state, status, at_ms, facts)
    traded_ms, over_ms = state.last_trade_ms, state.over_since_ms
    if not is_over(status, delivery_ms, at_ms):
        state.over_since_ms = None
    elif over_ms is None or (traded_ms is not None and over_ms <= traded_ms <= at_ms):
        state.over_since_ms = at_ms
    elif at_ms - over_ms >= CONFIRM_MS and state.minute.open_ms >= shard.minute_ms:
        why = "the exchange does not name it any more" if status is None else f"it is {status}"
        freeze(shard, state, facts)
        facts.events.append(Event(at_ms, "delisted", symbol, f"sealed and frozen: {why}"))
    return facts


def _note_pause(state: SymbolState, status: str | None, at_ms: int, facts: Facts) -> None:
    """Tell when a contract stops and begins to be in trading."""
    called = None if status == "TRADING" else status or "not named"
    if called == state.paused:
        return
    state.paused = called
    if called is None:
        facts.events.append(Event(at_ms, "trading", state.symbol, "in trading again"))
    else:
        facts.events.append(Event(at_ms, "paused", state.symbol, called))


def _listing_of(state: SymbolState) -> Listing:
    return Listing(
        state.symbol,
        state.onboard_ms,
        state.delivery_ms,
        state.three_day_phase_ms,
        state.first_ms,
        state.paused or "TRADING",
    )


# -- Dates -----------------------------------------------------------------------------------------


def redate(
    shard: ShardState, listing: Listing, *, served_before: bool, confirmed: bool, price: Decimal
) -> list[Facts]:
    """Judge another listing date of a ticker: a correction, another contract, or not yet clear.

    Args:
        listing: what the exchange says of the ticker now.
        served_before: whether the exchange has klines from before that date.
        confirmed: whether it had none when it was asked before, a pause ago.
        price: what the bars of another contract are flat at.

    Returns the facts in the order in which they are to be stored; none where it is not clear.
    """
    state = shard.settled(listing.symbol)
    if state is None or listing.onboard_ms == state.onboard_ms:
        return []
    onboard_ms = listing.onboard_ms
    goes_on = (
        state.last_trade_ms is not None
        and state.last_trade_ms >= onboard_ms
        and not state.in_doubt
        and (state.renumbered_ms is None or state.renumbered_ms < onboard_ms)
    )
    # Another contract's first kline would be later than that of the one that is kept.
    same_first = (
        state.first_ms is not None
        and listing.first_ms is not None
        and listing.first_ms <= state.first_ms
    )
    if onboard_ms < state.onboard_ms or served_before or goes_on or same_first:
        return [_correct(shard, state, listing)]
    begins_anew = state.renumbered_ms is not None and state.renumbered_ms >= onboard_ms
    if not (confirmed or begins_anew or state.over_since_ms is not None):
        return []
    return _replace(shard, state, listing, price)


def _correct(shard: ShardState, state: SymbolState, listing: Listing) -> Facts:
    text = f"listing date corrected from {state.onboard_ms} to {listing.onboard_ms}"
    state.onboard_ms = listing.onboard_ms
    event = Event(shard.minute_ms, "redated", state.symbol, text)
    return Facts(listings=[_listing_of(state)], events=[event])


def _replace(
    shard: ShardState, state: SymbolState, listing: Listing, price: Decimal
) -> list[Facts]:
    """Freeze the contract that had the ticker, and begin with the one that has it.

    What the old one's series holds from the new one's listing on is not its own.
    """
    taken_ms = [bar.open_ms for bar in (state.minute, *state.ahead.values()) if bar.count]
    ended = Facts()
    freeze(shard, state, ended)
    end_ms, first_ms = state.minute.open_ms, MINUTE.floor(listing.onboard_ms)
    if first_ms < end_ms:
        ended.cuts.append(Cut(state.symbol, first_ms))
        ended.listings[-1] = ended.listings[-1]._replace(delivery_ms=first_ms)
    text = f"its ticker is another contract's, listed at {listing.onboard_ms}"
    ended.events.append(Event(shard.minute_ms, "delisted", state.symbol, text))
    began = add_symbol(shard, listing, price, replaces=True)
    fresh = shard.symbols[listing.symbol]
    # The stream has the ticker's name, and has been watched all the while.
    fresh.live_since_ms, fresh.lost_ms = state.live_since_ms, state.lost_ms
    for open_ms in taken_ms:  # what the old one took of minutes that are not over is lost to it
        fresh.missing.add(open_ms, open_ms)
    return [ended, began]


def life_of(shard: ShardState, symbol: str) -> Life | None:
    """Return what is known of a contract that lives; None where it does not."""
    state = shard.symbols.get(symbol)
    if state is None:
        return None
    return Life(
        state.onboard_ms, state.delivery_ms, state.first_ms, state.paused, state.last_sealed_ms
    )


def learn_first(shard: ShardState, symbol: str, first_ms: int) -> Facts:
    """Note the open time of a contract's first official kline: its key never changes again."""
    facts = Facts()
    state = shard.symbols.get(symbol)
    if state is not None and state.first_ms is None:
        state.first_ms = first_ms
        facts.listings.append(_listing_of(state))
    return facts
