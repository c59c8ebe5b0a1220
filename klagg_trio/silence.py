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

A symbol that has not traded since its feed is live is lost since then, never since earlier.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import trio

from klagg_trio import cmd
from klagg_trio.core.asking import KEPT_SYMBOLS
from klagg_trio.core.errors import RemoteError
from klagg_trio.core.facts import Event
from klagg_trio.core.intervals import MINUTE, MINUTE_MS
from klagg_trio.core.shard import Shard
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
            for symbol in self.doubtful()[:DOUBTS_PER_LOOK]:
                await self._examine(symbol)

    def doubtful(self) -> list[str]:
        """Return the symbols that have waited too long for a trade that a ticker told of."""
        found = []
        now_ms, now_s = self._now_ms(), trio.current_time()
        if len(self._waiting) > KEPT_SYMBOLS:  # of ended ones, mostly
            self._waiting.clear()
        for shard in self._shards:
            told = {
                symbol: self._traded_ms[symbol]
                for symbol in shard.states
                if symbol in self._traded_ms and self._is_live(symbol)
            }
            for symbol in self._waiting.keys() & shard.states.keys() - told.keys():
                del self._waiting[symbol]
            # All at once: what trades have added as columns is settled before it is looked at.
            for symbol, known_ms in shard.watched_until(told).items():
                known_ms += TICKER_LAG_MS
                if told[symbol] <= known_ms:
                    self._waiting.pop(symbol, None)
                    continue
                since_ms = self._waiting.get(symbol)
                if since_ms is None or since_ms <= known_ms:
                    self._waiting[symbol] = told[symbol]
                elif (
                    now_ms - since_ms >= self._silence_ms
                    and self._deferred_s.get(symbol, 0.0) <= now_s
                ):
                    found.append(symbol)
        return found

    async def _examine(self, symbol: str) -> None:
        """Ask the exchange what the symbol traded since its last trade here.

        Only what was traded while the feed was live can be missed: where no trade came since the
        feed is, the first whole minute since then is the first that is counted.
        """
        shard = self._shards[cmd.shard_of(symbol, len(self._shards))]
        known_ms = shard.watched_until([symbol]).get(symbol)
        if known_ms is None:
            return
        self._defer(symbol, AGAIN_S)
        now_ms = self._now_ms()
        first_ms = max(MINUTE.floor(known_ms), MINUTE.floor(now_ms) - (MINUTES_MAX - 1) * MINUTE_MS)
        ours = None
        if shard.is_watched(symbol, first_ms):
            ours = shard.trades_in_minute(symbol, first_ms)
        try:
            klines = await self._rest.klines(
                symbol,
                MINUTE.name,
                start_ms=first_ms,
                limit=MINUTES_MAX,
                priority=Priority.REPAIR,
            )
        except RemoteError as error:
            self._defer(symbol, LOOK_S)
            self._note(Event(now_ms, "check failed", symbol, str(error)))
            return
        later = [bar for bar in klines.bars if bar.open_ms > first_ms or ours is not None]
        missing = sum(bar.count for bar in later) - (ours or 0)
        await trio.sleep(self._silence_ms / 1_000 * ARRIVAL_SHARE)
        if missing <= 0 or shard.watched_until([symbol]).get(symbol) != known_ms:
            return
        self.lost += 1
        text = f"its stream is silent, {missing} trades are missing"
        self._note(Event(self._now_ms(), "silent", symbol, text))
        await self._lose_symbol(symbol, known_ms)

    def _defer(self, symbol: str, pause_s: float) -> None:
        """Ask for a symbol again only after a pause. What has passed is forgotten."""
        now_s = trio.current_time()
        self._deferred_s = {s: until for s, until in self._deferred_s.items() if until > now_s}
        self._deferred_s[symbol] = now_s + pause_s
