"""The exact state of a symbol as of a cut minute: what a snapshot holds and a shard starts from."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from klagg_trio.core.bar import Bar


@dataclass(frozen=True, slots=True)
class OpenBar:
    """A longer bar that is still open at the cut, and how much of it is not the exchange's own."""

    interval: str
    bar: Bar
    unofficial_minutes: int


@dataclass(frozen=True, slots=True)
class Seed:
    """One symbol at the cut. Times are exchange time in ms."""

    symbol: str
    onboard_ms: int
    """Start of trading; with the symbol, the identity of a contract (tickers are reused)."""
    delivery_ms: int
    """End of trading; far in the future for a live perpetual."""
    last_close: Decimal
    next_id: int | None
    """The aggregate id that continues what the bars hold; None where it is not known."""
    last_trade_ms: int | None
    """Time of the newest trade in the bars; None where it is not known."""
    three_day_phase_ms: int
    open_bars: tuple[OpenBar, ...]
    """One for each configured interval longer than a minute, shortest first."""
    suspects: tuple[tuple[int, int], ...] = ()
    """Minutes that repair still owes: first and last open time of each span."""
    partials: tuple[Bar, ...] = ()
    """Suspect minutes that hold trades; needed to take them out of longer bars exactly."""
    unknown: tuple[tuple[int, int], ...] = ()
    """Suspect minutes of which nobody knows what they gave to longer bars: spans as above."""
    first_ms: int | None = None
    """Open time of the first official 1m kline: with the ticker the permanent key."""


@dataclass(frozen=True, slots=True)
class StartState:
    """Every symbol at one cut: all minutes before `cut_ms` are in the bars, none after."""

    cut_ms: int
    intervals: tuple[str, ...]
    seeds: tuple[Seed, ...]
    database_id: str | None = None
    """Of the database that holds every bar before the cut; None where it was not written down."""
    generation: int | None = None
