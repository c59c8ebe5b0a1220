"""Listings and delistings: from the exchange's all-market streams to AddSymbol and RemoveSymbol.

Theory of operation
-------------------
Two streams tell of new symbols. `!contractInfo` announces a listing or a settlement as it happens,
among much noise; `!miniTicker@arr` shows every symbol whose ticker changed, so a new symbol shows
up there with its first price. Neither is believed alone: both carry coin-margined rows too (`st`
2), quarterly contracts and the like, and a ticker may be reused by a new contract. So a hint makes
the task ask exchangeInfo, at most once in `CONFIRM_PAUSE_S`, and exchangeInfo decides.

The seed price is the miniTicker's close. A symbol that was announced but has no ticker yet is
seeded from its newest official kline. Rolling 24 h volumes are never used for bars.

As a safety net exchangeInfo is read every `REFRESH_S` without any hint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Final

import trio

from klagg_trio import cmd
from klagg_trio.core.errors import RemoteError
from klagg_trio.core.facts import Event
from klagg_trio.core.intervals import MINUTE, THREE_DAY_PHASE_MS
from klagg_trio.exchange import wire
from klagg_trio.exchange.frames import Frames
from klagg_trio.exchange.rest import Priority, Rest
from klagg_trio.exchange.stream import Dial, open_connection
from klagg_trio.settings import Settings

log = logging.getLogger(__name__)

CONFIRM_PAUSE_S: Final = 5.0
"""Between two requests for exchangeInfo: weight 1, but a megabyte."""

REFRESH_S: Final = 600.0
"""Without a hint, exchangeInfo is read this often."""

SILENCE_LIMIT_S: Final = 20.0
"""The miniTicker array comes every second while anything trades at all."""

RECONNECT_S: Final = 2.0

STREAMS: Final = ("!miniTicker@arr", "!contractInfo")


class Discovery:
    """Knows which symbols the program keeps, and hears of new ones and of the end of old ones."""

    def __init__(
        self,
        known: Iterable[tuple[str, int]],
        *,
        inboxes: Sequence[trio.MemorySendChannel[cmd.Message]],
        subscriptions: trio.MemorySendChannel[cmd.Subscription],
        rest: Rest,
        settings: Settings,
        dial: Dial,
        now_ms: Callable[[], int],
        note: Callable[[Event], None],
    ) -> None:
        """`known` are the symbols of the start state with their onboard times in ms."""
        self.known = dict(known)
        """Onboard time of every symbol that the program keeps."""
        self.added: list[str] = []
        """Symbols listed since the start, oldest first."""
        self.removed: list[str] = []
        self.traded_ms: dict[str, int] = {}
        """When each kept symbol traded last by its ticker, exchange time; not told of before a
        second ticker of the same connection."""
        self._tickers: dict[str, wire.MiniTicker] = {}
        self._inboxes = inboxes
        self._subscriptions = subscriptions
        self._rest = rest
        self._settings = settings
        self._dial = dial
        self._now_ms = now_ms
        self._note = note
        self._prices: dict[str, Decimal] = {}
        """Newest miniTicker close of symbols that are not known."""
        self._refused: set[tuple[str, str]] = set()
        """Hints that exchangeInfo did not confirm, so as not to ask again for each row."""
        self._confirm_s = 0.0
        self._refresh_s = 0.0
        self._hinted = False

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                async with open_connection(
                    f"{self._settings.ws_url}/stream", self._dial
                ) as connection:
                    self._tickers.clear()
                    await connection.send_text(wire.subscribe(list(STREAMS), 1))
                    await self._watch(connection.batches)
            except RemoteError as error:
                self._note(Event(self._now_ms(), "disconnect", "", f"discovery: {error}"))
            await trio.sleep(RECONNECT_S)

    async def _watch(self, batches: trio.MemoryReceiveChannel[Frames]) -> None:
        """Read hints until the connection is no good."""
        while True:
            with trio.move_on_after(SILENCE_LIMIT_S) as silence:
                try:
                    frames = await batches.receive()
                except trio.EndOfChannel:
                    return
            if silence.cancelled_caught:
                self._note(Event(self._now_ms(), "disconnect", "", "discovery: no data"))
                return
            for frame in frames:
                self._take(frame)
            now_s = trio.current_time()
            if now_s >= self._refresh_s or (self._hinted and now_s >= self._confirm_s):
                await self._confirm()

    def _take(self, frame: bytes) -> None:
        """Look for hints in one frame."""
        try:
            message = wire.decode_frame(frame)
        except RemoteError as error:
            self._note(Event(self._now_ms(), "rejected", "", f"discovery: {error}"))
            return
        match message:
            case wire.MiniTickers(rows):
                for row in rows:
                    if row.market != 1:
                        continue
                    if row.symbol in self.known:
                        self._compare(row)
                    else:
                        self._prices[row.symbol] = row.close
                        self._hint(row.symbol, "")
            case wire.ContractInfo() if message.market == 1:
                if message.symbol in self.known:
                    ended = message.status != "TRADING"
                    reused = message.onboard_ms != self.known[message.symbol]
                    self._hinted |= ended or reused
                else:
                    self._hint(message.symbol, message.status)

    def _compare(self, row: wire.MiniTicker) -> None:
        """Note that a symbol has traded, if its new ticker proves that."""
        before = self._tickers.get(row.symbol)
        self._tickers[row.symbol] = row
        if before and (row.close != before.close or row.volume > before.volume):
            self.traded_ms[row.symbol] = row.event_ms

    def _hint(self, symbol: str, status: str) -> None:
        if (symbol, status) not in self._refused:
            self._hinted = True

    async def _confirm(self) -> None:
        """Let exchangeInfo decide which symbols begin and which end."""
        now_s = trio.current_time()
        self._confirm_s = now_s + CONFIRM_PAUSE_S
        try:
            contracts = await self._rest.exchange_info(priority=Priority.DISCOVERY)
        except RemoteError as error:
            self._note(Event(self._now_ms(), "discovery", "", f"exchangeInfo: {error}"))
            return
        self._refresh_s = now_s + REFRESH_S
        self._hinted = False
        listed = {contract.symbol: contract for contract in contracts}
        for symbol in self._prices.keys() - listed.keys():
            self._refused.add((symbol, ""))
        for contract in contracts:
            onboard_ms = self.known.get(contract.symbol)
            if wire.is_ours(contract) and self._wanted(contract.symbol):
                if onboard_ms is None or onboard_ms < contract.onboard_ms:
                    await self._add(contract)
                elif contract.delivery_ms <= self._now_ms():
                    await self._remove(contract.symbol, contract.delivery_ms)
            elif onboard_ms is not None:
                await self._remove(contract.symbol, min(contract.delivery_ms, self._now_ms()))
            else:
                self._refused.update({(contract.symbol, ""), (contract.symbol, contract.status)})

    def _wanted(self, symbol: str) -> bool:
        return not self._settings.symbols or symbol in self._settings.symbols

    async def _add(self, contract: wire.Contract) -> None:
        """Seed the symbol's bars, then subscribe it."""
        symbol = contract.symbol
        price = self._prices.pop(symbol, None) or await self._kline_price(symbol)
        if price is None:
            self._hinted = True
            return
        self.known[symbol] = contract.onboard_ms
        self.added.append(symbol)
        inbox = self._inboxes[cmd.shard_of(symbol, len(self._inboxes))]
        await inbox.send(
            cmd.AddSymbol(
                symbol, price, contract.onboard_ms, contract.delivery_ms, THREE_DAY_PHASE_MS
            )
        )
        await self._subscriptions.send(cmd.Subscribe(symbol))

    async def _kline_price(self, symbol: str) -> Decimal | None:
        """Return the newest official price of a symbol without a ticker, or None."""
        try:
            klines = await self._rest.klines(
                symbol, MINUTE.name, limit=1, priority=Priority.DISCOVERY
            )
        except RemoteError as error:
            self._note(Event(self._now_ms(), "discovery", symbol, f"no seed price yet: {error}"))
            return None
        return klines.bars[-1].close if klines.bars else None

    async def _remove(self, symbol: str, delivery_ms: int) -> None:
        """Let the shard seal and freeze the symbol, and take it off its feed."""
        del self.known[symbol]
        self.removed.append(symbol)
        inbox = self._inboxes[cmd.shard_of(symbol, len(self._inboxes))]
        await inbox.send(cmd.RemoveSymbol(symbol, delivery_ms))
        await self._subscriptions.send(cmd.Unsubscribe(symbol))
