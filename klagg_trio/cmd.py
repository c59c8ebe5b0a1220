"""The vocabulary of a shard's inbox, and of what goes on from there to the writer.

A shard's whole life is a list of these messages in one order: record it, replay it, and the same
bars come out. Messages are made once and never changed. All times are exchange time in ms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from zlib import crc32

from klagg_trio.core.bar import Bar
from klagg_trio.core.columns import TradeRuns
from klagg_trio.core.facts import Births, Facts, Listing, RunningBar
from klagg_trio.core.seed import Seed
from klagg_trio.core.shard import Stored
from klagg_trio.core.trade import Trade


@dataclass(frozen=True, slots=True)
class Tick:
    """Server time has passed `minute_ms` plus the grace: seal every bar that ends by then."""

    minute_ms: int


@dataclass(frozen=True, slots=True)
class TradeBatch:
    """The trades of one received chunk that belong to one shard, in order of arrival."""

    trades: Sequence[Trade]
    now_ms: int | None = None
    """Exchange time when they came, where it is sure: none can be from later."""


@dataclass(frozen=True, slots=True)
class TradeColumnsBatch:
    """The same as columns: a burst is cheaper that way."""

    runs: TradeRuns
    now_ms: int | None = None
    """As above."""


@dataclass(frozen=True, slots=True)
class TradesRefused:
    """Trades of these symbols were refused at the edge: the minutes they belong to lack them."""

    trades: tuple[tuple[str, int | None], ...]
    """Each symbol, and the time that its trade claims, where that could be read."""


@dataclass(frozen=True, slots=True)
class AddSymbol:
    """A contract was listed, or has come back: make its bars at once, in the running minute."""

    listing: Listing
    price: Decimal
    """What its bars are flat at until the first trade: the close of its miniTicker."""
    stored: Stored | None = None
    """Where its stored bars end, if there are any: it goes on from there."""
    replaces: bool = False
    """Whether its label was that of another contract, which has ended."""

    @property
    def symbol(self) -> str:
        """Its label."""
        return self.listing.symbol


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one complete answer of the exchange says of a contract. A proposal, never a verdict."""

    symbol: str
    status: str | None
    """None where the answer does not name it."""
    delivery_ms: int
    at_ms: int
    """When it was asked, exchange time."""


@dataclass(frozen=True, slots=True)
class Redated:
    """The exchange gives another listing date for a ticker: the shard judges what that means."""

    listing: Listing
    served_before: bool
    """Whether the exchange has klines from before that date."""
    confirmed: bool
    """Whether it had none when it was asked before, a pause ago."""
    price: Decimal
    """What the bars are flat at, should it be another contract."""


@dataclass(frozen=True, slots=True)
class FirstKline:
    """When a contract's first official 1m kline opens: with the ticker its permanent key."""

    symbol: str
    first_ms: int


@dataclass(frozen=True, slots=True)
class FeedLive:
    """The feed of these symbols has provably delivered everything since `since_ms`."""

    symbols: tuple[str, ...]
    since_ms: int


@dataclass(frozen=True, slots=True)
class FeedLost:
    """The feed of these symbols cannot be trusted after `lost_ms`."""

    symbols: tuple[str, ...]
    lost_ms: int


@dataclass(frozen=True, slots=True)
class ReplaceMinutes:
    """The exchange's own 1m bars of one symbol, to replace what is stored and what is held."""

    symbol: str
    minutes: tuple[Bar, ...]
    stored: tuple[Bar, ...] = ()
    """The bars to be replaced that are not suspect, as they are stored."""


@dataclass(frozen=True, slots=True)
class AbsentMinutes:
    """The exchange has no klines for these minutes, as it has said twice: both ends inclusive."""

    symbol: str
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class ReportOpenBars:
    """Hand the running bars to the writer, for `open_klines`."""


@dataclass(frozen=True, slots=True)
class ReportSeeds:
    """Hand the state of every symbol to the writer, for the start snapshot."""


Message = (
    Tick
    | TradeBatch
    | TradeColumnsBatch
    | TradesRefused
    | AddSymbol
    | Sighting
    | Redated
    | FirstKline
    | FeedLive
    | FeedLost
    | ReplaceMinutes
    | AbsentMinutes
    | ReportOpenBars
    | ReportSeeds
)


# What discovery sends to the feeds.


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Put a symbol on a feed connection."""

    symbol: str


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Take a symbol off its feed connection."""

    symbol: str


Subscription = Subscribe | Unsubscribe


def shard_of(symbol: str, shards: int) -> int:
    """Return the number of the shard that keeps a symbol: the same in every run."""
    return crc32(symbol.encode()) % shards


# What workers send on to the writer. `shard` is the worker's number, from 0.


@dataclass(frozen=True, slots=True)
class Sealed:
    """All that one tick did in one shard. The writer commits when every shard has sent its part."""

    shard: int
    minute_ms: int
    facts: Facts
    running: Sequence[RunningBar] = ()
    """The 1m bars that open at `minute_ms`: saved with the sealed ones. The longer ones too, where
    the last report does not have all minutes but the one that was sealed now."""
    births: Sequence[Births] = ()
    """The longer bars that open then."""


@dataclass(frozen=True, slots=True)
class Amended:
    """What changed in stored bars between two ticks."""

    shard: int
    facts: Facts


@dataclass(frozen=True, slots=True)
class OpenBars:
    """The running bars of one shard, for `open_klines`."""

    shard: int
    running: Sequence[RunningBar]


@dataclass(frozen=True, slots=True)
class Seeds:
    """One shard's part of the start state: every minute before `cut_ms` is in it."""

    shard: int
    cut_ms: int
    seeds: Sequence[Seed]


@dataclass(frozen=True, slots=True)
class Figures:
    """What the run has counted so far, for those who read the database: names and JSON texts."""

    shard: int
    meta: Mapping[str, str]


Record = Sealed | Amended | OpenBars | Seeds | Figures
