"""The guard of single symbols: one whose trades do not come while the exchange says it trades.

Theory of operation
-------------------
A dead connection is noticed by its feed. But one stream of a healthy connection may be silent, and
then its symbol looks quiet: minutes would be called flat that are not. So the tickers, which come
over a connection of their own, are a second witness. A ticker whose close has changed or whose
volume has grown is a trade. If `symbol_silence_s` after such a trade the feed has brought none, the
official minutes are asked for (weight 1). If they count trades that are not in ours, and still
nothing has come, the symbol is *lost* since its last trade, and its connection is replaced, with
overlap, so that the other symbols lose nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import trio

from klagg_trio.core.errors import RemoteError
from klagg_trio.core.facts import Event
from klagg_trio.core.intervals import MINUTE, MINUTE_MS
from klagg_trio.core.shard import Shard, SymbolState
from klagg_trio.exchange.rest import Priority, Rest

LOOK_S: Final = 2.0

TICKER_LAG_MS: Final = 3_000
"""A ticker may come this much later than the trade that it tells of."""

ARRIVAL_SHARE: Final = 0.2
"""Of the silence limit: how long a trade that REST counts already may take on the feed."""

MINUTES_MAX: Final = 99
"""Rows that cost weight 1; a symbol quiet for longer than this is held against these."""

DOUBTS_PER_LOOK: Final = 5
"""Symbols asked for at one look, so that a broken ticker stream cannot eat the weight."""

AGAIN_S: Final = 120.0
"""A symbol is not suspected again for this long."""


class SilenceWatch:
    """Holds the feed against the tickers, symbol by symbol."""

    def __init__(
        self,
        shards: Sequence[Shard],
        traded_ms: Mapping[str, int],
        *,
        is_live: Callable[[str], bool],
        lose_symbol: Callable[[str, int], Awaitable[None]],
        rest: Rest,
        silence_s: float,
        now_ms: Callable[[], int],
        note: Callable[[Event], None],
    ) -> None:
        """`traded_ms` says when each symbol traded last by its ticker, in exchange time.

        `is_live` tells whether a feed has a symbol live; `lose_symbol` takes a symbol's stream for
        dead since a time of the exchange.
        """
        self._shards = shards
        self._is_live = is_live
        self._lose_symbol = lose_symbol
        self._traded_ms = traded_ms
        self._rest = rest
        self._silence_ms = int(silence_s * 1_000)
        self._now_ms = now_ms
        self._note = note
        self._waiting: dict[str, int] = {}
        """By symbol, when the first trade was told of that the feed has not brought."""
        self._deferred_s: dict[str, float] = {}
        self.lost = 0
        """How often a symbol was found silent."""

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            for state in self.doubtful()[:DOUBTS_PER_LOOK]:
                await self._examine(state)

    def doubtful(self) -> list[SymbolState]:
        """Return the symbols that have waited too long for a trade that a ticker told of."""
        found = []
        now_ms, now_s = self._now_ms(), trio.current_time()
        for shard in self._shards:
            for symbol, state in shard.states.items():
                told_ms = self._traded_ms.get(symbol, 0)
                if state.last_trade_ms is None:
                    continue
                known_ms = state.last_trade_ms + TICKER_LAG_MS
                if told_ms <= known_ms or not self._is_live(symbol):
                    self._waiting.pop(symbol, None)
                    continue
                since_ms = self._waiting.get(symbol, 0)
                if since_ms <= known_ms:
                    self._waiting[symbol] = told_ms
                elif (
                    now_ms - since_ms >= self._silence_ms
                    and self._deferred_s.get(symbol, 0.0) <= now_s
                ):
                    found.append(state)
        return found

    async def _examine(self, state: SymbolState) -> None:
        """Ask the exchange what the symbol traded since its last trade here."""
        symbol, last_ms = state.symbol, state.last_trade_ms
        if last_ms is None:
            return
        self._deferred_s[symbol] = trio.current_time() + AGAIN_S
        now_ms = self._now_ms()
        first_ms = max(MINUTE.floor(last_ms), MINUTE.floor(now_ms) - (MINUTES_MAX - 1) * MINUTE_MS)
        ours = _count(state, first_ms)
        try:
            klines = await self._rest.klines(
                symbol,
                MINUTE.name,
                start_ms=first_ms,
                limit=MINUTES_MAX,
                priority=Priority.REPAIR,
            )
        except RemoteError as error:
            self._deferred_s[symbol] = trio.current_time() + LOOK_S
            self._note(Event(now_ms, "check failed", symbol, str(error)))
            return
        later = [bar for bar in klines.bars if bar.open_ms > first_ms or ours is not None]
        missing = sum(bar.count for bar in later) - (ours or 0)
        await trio.sleep(self._silence_ms / 1_000 * ARRIVAL_SHARE)
        if missing <= 0 or state.last_trade_ms != last_ms:
            return
        self.lost += 1
        text = f"its stream is silent, {missing} trades are missing"
        self._note(Event(self._now_ms(), "silent", symbol, text))
        await self._lose_symbol(symbol, last_ms)


def _count(state: SymbolState, open_ms: int) -> int | None:
    """Return how many trades of a minute are here, or None where it is not held any more."""
    held = [bar for bar in (*state.held, state.minute) if bar.open_ms == open_ms]
    return held[0].count if held else None
