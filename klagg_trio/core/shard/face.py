"""The shard as others see it: every message it takes, and everything that may be read of it.

Whoever reads here reads settled state: what trades have added as columns is in it.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterable, Sequence
from decimal import Decimal

from klagg_trio.core.bar import EXACT, Bar, Source
from klagg_trio.core.columns import TradeRuns
from klagg_trio.core.facts import (
    BarCounts,
    BarFact,
    Births,
    Facts,
    Listing,
    RunningBar,
    TradeCounts,
)
from klagg_trio.core.intervals import MINUTE, MINUTE_MS, Interval
from klagg_trio.core.seed import Seed
from klagg_trio.core.shard import evidence, life, report, restate, seal, trades
from klagg_trio.core.shard.life import Life, Stored
from klagg_trio.core.shard.state import ShardState, SymbolState
from klagg_trio.core.trade import Trade


class Shard:
    """See the theory of operation in `core/shard`. All methods are synchronous and do no I/O."""

    def __init__(self, intervals: Sequence[Interval], cut_ms: int) -> None:
        """Make an empty shard whose running minute opens at `cut_ms`."""
        if intervals[0] != MINUTE or cut_ms % MINUTE_MS:
            raise ValueError("a shard begins on a minute, with 1m as its first interval")
        self._state = ShardState(cut_ms, tuple(intervals[1:]))

    # -- Symbols -------------------------------------------------------------------------------

    def load(self, seed: Seed) -> None:
        """Take up a symbol from a start snapshot whose cut is the shard's running minute."""
        life.load(self._state, seed)

    def add_symbol(
        self,
        listing: Listing,
        price: Decimal,
        *,
        stored: Stored | None = None,
        replaces: bool = False,
    ) -> Facts:
        """Take up a symbol that was listed, or has come back: see `life.add_symbol`."""
        return life.add_symbol(self._state, listing, price, stored=stored, replaces=replaces)

    def sight(self, symbol: str, status: str | None, delivery_ms: int, at_ms: int) -> Facts:
        """Take what one complete answer of the exchange says of a contract: see `life.sight`."""
        return life.sight(self._state, symbol, status, delivery_ms, at_ms)

    def redate(
        self, listing: Listing, *, served_before: bool, confirmed: bool, price: Decimal
    ) -> list[Facts]:
        """Judge another listing date of a ticker: see `life.redate`."""
        return life.redate(
            self._state, listing, served_before=served_before, confirmed=confirmed, price=price
        )

    def learn_first(self, symbol: str, first_ms: int) -> Facts:
        """Note the open time of a contract's first official kline."""
        return life.learn_first(self._state, symbol, first_ms)

    def life(self, symbol: str) -> Life | None:
        """Return what is known of a contract that lives; None where it does not live here."""
        return life.life_of(self._state, symbol)

    # -- What happens --------------------------------------------------------------------------

    def apply_trades(self, batch: Iterable[Trade], now_ms: int | None = None) -> Facts | None:
        """Put trades into their minutes. Returns None where that is all there is to say.

        `now_ms` is exchange time, where it is sure: no trade is from later.
        """
        self._state.now_ms = now_ms
        return trades.apply_trades(self._state, batch)

    def apply_runs(self, runs: TradeRuns, now_ms: int | None = None) -> Facts | None:
        """Put trades that come as columns into their minutes: the same as `apply_trades`."""
        self._state.now_ms = now_ms
        return trades.apply_runs(self._state, runs)

    def refuse_trades(self, refused: Iterable[tuple[str, int | None]]) -> Facts:
        """Owe the minutes of trades that the edge has refused: see `trades.refuse`."""
        facts = Facts()
        for symbol, time_ms in refused:
            if state := self._state.settled(symbol):
                trades.refuse(self._state, state, time_ms, facts)
        return facts

    def tick(self, minute_ms: int) -> Facts:
        """Seal every bar that ends at or before `minute_ms`, in order, and open what begins."""
        facts = Facts()
        seal.seal_until(self._state, minute_ms, facts)
        return facts

    def feed_live(self, symbols: Iterable[str], since_ms: int) -> None:
        """From `since_ms` on, the feed of these symbols is provably alive."""
        evidence.feed_live(self._state, symbols, since_ms)

    def feed_lost(self, symbols: Iterable[str], lost_ms: int) -> Facts:
        """Nothing after `lost_ms` is certain for these symbols until their feed is live again."""
        facts = Facts()
        for symbol in symbols:
            if state := self._state.settled(symbol):
                findings = evidence.Findings()
                evidence.feed_lost(state, lost_ms, findings)
                restate.apply_findings(state, findings, facts)
        return facts

    def replace_minutes(
        self, symbol: str, minutes: Iterable[Bar], stored: Iterable[Bar] = ()
    ) -> Facts:
        """Restate sealed minutes, and what holds them in memory, by the exchange's own bars.

        Minutes that are not sealed yet are left to the tick. Bars that have left the memory are
        restated by the store, from the minutes it holds. `stored` are the bars that are to be
        replaced though they are not suspect: they are needed to take them out of longer bars.
        """
        facts, counts = Facts(), self._state.bars
        replaced = {bar.open_ms: bar for bar in stored}
        state = self._state.settled(symbol)
        with decimal.localcontext(EXACT):
            for minute in minutes:
                if minute.open_ms >= (self.minute_ms if state is None else state.minute.open_ms):
                    continue
                official = minute.copy()
                official.source = Source.OFFICIAL
                if state is None:
                    facts.restated.append(BarFact(symbol, MINUTE.name, official))
                    counts.restated += 1
                    counts.official += 1
                else:
                    old = replaced.get(minute.open_ms)
                    restate.replace_minute(self._state, state, official, old, facts)
        return facts

    def make_absent(self, symbol: str, first_ms: int, last_ms: int) -> Facts:
        """Settle owed minutes for which the exchange itself has no klines."""
        facts = Facts()
        if state := self._state.settled(symbol):
            with decimal.localcontext(EXACT):
                restate.make_absent(state, first_ms, last_ms, facts)
        return facts

    # -- Reading -------------------------------------------------------------------------------

    @property
    def minute_ms(self) -> int:
        """Open time of the running minute: every minute before it is sealed."""
        return self._state.minute_ms

    @property
    def states(self) -> dict[str, SymbolState]:
        """The symbols by name. Owned by the shard; not settled."""
        return self._state.symbols

    def symbols(self) -> list[str]:
        """Return the symbols that live here."""
        return list(self._state.symbols)

    def owed(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Return the sealed minutes that repair owes, by symbol: spans of open times, oldest first.

        Symbols that owe nothing are left out.
        """
        return {
            symbol: tuple(state.suspects)
            for symbol, state in self._state.symbols.items()
            if state.suspects
        }

    def owes(self, symbol: str, from_ms: int, end_ms: int) -> bool:
        """Whether any minute of a symbol that opens in [from_ms, end_ms) is owed."""
        state = self._state.symbols.get(symbol)
        return state is not None and state.suspects.meets(from_ms, end_ms)

    def last_trade_ms(self, symbol: str) -> int | None:
        """Return when the newest trade of a symbol was made; None where that is not known."""
        state = self._state.settled(symbol)
        return None if state is None else state.last_trade_ms

    def watched_until(self, symbols: Iterable[str]) -> dict[str, int]:
        """Return up to when the trades of each symbol are here: its last one, or the feed's start.

        Symbols whose feed is not live are left out.
        """
        symbols = list(symbols)
        self._state.settle(symbols)
        until = {}
        for symbol in symbols:
            state = self._state.symbols.get(symbol)
            if state is not None and state.live_since_ms is not None and state.lost_ms is None:
                until[symbol] = max(state.live_since_ms, state.last_trade_ms or 0)
        return until

    def is_watched(self, symbol: str, from_ms: int) -> bool:
        """Whether the feed of a symbol has been live since a time."""
        state = self._state.symbols.get(symbol)
        return (
            state is not None and state.live_since_ms is not None and state.live_since_ms <= from_ms
        )

    def trades_in_minute(self, symbol: str, open_ms: int) -> int | None:
        """Return how many trades of a minute are here; None where it is not held any more."""
        state = self._state.settled(symbol)
        if state is None:
            return None
        held = (bar for bar in (*state.held, state.minute) if bar.open_ms == open_ms)
        return next((bar.count for bar in held), None)

    def kept_minute(self, symbol: str, open_ms: int) -> Bar | None:
        """Return what is here of a sealed minute: its own trades; None where nothing is."""
        state = self._state.settled(symbol)
        if state is None:
            return None
        held = next((bar for bar in state.held if bar.open_ms == open_ms), None)
        return held or state.partials.get(open_ms)

    @property
    def trades(self) -> TradeCounts:
        """Where every trade ended."""
        return self._state.trades

    @property
    def bars(self) -> BarCounts:
        """What has been handed out."""
        return self._state.bars

    @property
    def merged_told(self) -> bool:
        """Whether `merged_bars` has been asked since the last tick."""
        return self._state.merged_told

    @merged_told.setter
    def merged_told(self, told: bool) -> None:
        self._state.merged_told = told

    def seeds(self) -> list[Seed]:
        """Return the state of every symbol as of the running minute, as `load` takes it."""
        return report.seeds(self._state)

    def running_minutes(self) -> list[RunningBar]:
        """Return the running minutes of all symbols, as of the newest trade."""
        return report.running_minutes(self._state)

    def merged_bars(self) -> list[RunningBar]:
        """Return what the running longer bars of all symbols have merged: their sealed minutes."""
        return report.merged_bars(self._state)

    def births(self) -> list[Births]:
        """Return which longer bars the last tick opened."""
        return report.births(self._state)

    def open_bars(self) -> list[BarFact]:
        """Return the running bars of all symbols and intervals, as of the newest trade."""
        return report.open_bars(self._state)
