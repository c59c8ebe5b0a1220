"""Listings, pauses and ends: what the exchange says of contracts, brought to the shards that judge.

Theory of operation
-------------------
Two streams hint. `!contractInfo` announces a listing or a settlement as it happens, among much
noise; `!miniTicker@arr` shows every symbol whose ticker changed, so a new symbol shows up there
with its first price. Neither is believed alone: both carry coin-margined rows too (`st` 2),
quarterly contracts and the like. So a hint makes the task ask exchangeInfo, at most once in
`CONFIRM_PAUSE_S`; without any hint it is asked every `REFRESH_S`, and every `DOUBT_REFRESH_S` while
something about a kept contract is in doubt.

An answer that is empty, or much shorter than the one before, proposes nothing (`Wholeness`). Of a
whole one, every kept contract that is not quietly in trading becomes a `Sighting`: its shard judges
whether it pauses, has ended, or is back. Another listing date is held against the klines first, and
then proposed as `Redated`. A contract in trading that no shard keeps is taken up, from its stored
bars on where there are any.

The shards alone know who lives. `_reconcile` reads it from them and brings the subscriptions in
line, so the two never disagree for longer than a look.

The seed price is the miniTicker's close. A symbol without a ticker yet is seeded from its newest
official kline. Rolling 24 h volumes are never used for bars.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Final, TypeVar

import trio

from klagg_trio import cmd
from klagg_trio.core.errors import ConfigurationError, RemoteError
from klagg_trio.core.facts import Event, Listing
from klagg_trio.core.intervals import (
    DAY_MS,
    MINUTE,
    THREE_DAY_PHASE_MS,
    THREE_DAYS_MS,
)
from klagg_trio.core.shard import CONFIRM_MS, Shard, Stored
from klagg_trio.exchange import wire
from klagg_trio.exchange.frames import Frames
from klagg_trio.exchange.rest import Priority, Rest
from klagg_trio.exchange.stream import Dial, open_connection
from klagg_trio.exchange.universe import Universe, Wholeness, nearest
from klagg_trio.settings import Settings
from klagg_trio.store.contracts import StoredContract

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""Between two looks at who lives, and whether exchangeInfo is to be asked."""

CONFIRM_PAUSE_S: Final = 5.0
"""Between two requests for exchangeInfo: weight 1, but a megabyte."""

CONFIRM_PAUSE_S_MAX: Final = 60.0
"""Where hints keep proving to be nothing, the pause doubles up to this."""

REFRESH_S: Final = 600.0
"""Without a hint, exchangeInfo is read this often."""

DOUBT_REFRESH_S: Final = 60.0
"""While a kept contract is paused, not named, or its dates are in doubt."""

LEARN_EVERY_S: Final = 5.0
"""Between two requests for the first kline of a contract whose key is not final."""

SILENCE_LIMIT_S: Final = 20.0
"""The miniTicker array comes every second while anything trades at all."""

RECONNECT_S: Final = 2.0

STRANGERS_MAX: Final = 5_000
"""Symbols remembered that are not kept, with their prices: six times what the exchange has. Beyond,
the oldest are forgotten; that costs another look at exchangeInfo should they come again."""

KEPT_MAX: Final = 2_000
"""Contracts kept at a time: three times what the exchange has. More are told of and left alone."""

STREAMS: Final = ("!miniTicker@arr", "!contractInfo")

T = TypeVar("T")


class Discovery:
    """Hears of new contracts and of the end of old ones, and proposes both to the shards."""

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        universe: Universe,
        inboxes: Sequence[trio.MemorySendChannel[cmd.Message]],
        subscriptions: trio.MemorySendChannel[cmd.Subscription],
        rest: Rest,
        settings: Settings,
        dial: Dial,
        now_ms: Callable[[], int],
        bounded_event_ms: Callable[[int], int],
        is_sure: Callable[[], bool],
        note: Callable[[Event], None],
        stored: Callable[[str], Awaitable[StoredContract | None]],
    ) -> None:
        """`stored` tells what the files know of a symbol. What the shards keep is subscribed.

        `is_sure` says whether exchange time is corroborated: nothing is proposed by a time that is
        not. `bounded_event_ms` cuts an event time to it.
        """
        self.added: list[str] = []
        """Symbols taken up since the start, oldest first: the last KEPT_MAX of them."""
        self.removed: list[str] = []
        self.traded_ms: dict[str, int] = {}
        """When each kept symbol traded last by its ticker, exchange time; not told of before a
        second ticker of the same connection."""
        self._shards = shards
        self._universe = universe
        self._inboxes = inboxes
        self._subscriptions = subscriptions
        self._rest = rest
        self._settings = settings
        self._dial = dial
        self._now_ms = now_ms
        self._bounded_event_ms = bounded_event_ms
        self._is_sure = is_sure
        self._note = note
        self._stored = stored
        self._kept = self._living()
        """Symbols that the feeds have been told to carry."""
        self._wholeness = Wholeness(self._kept)
        self._tickers: dict[str, wire.MiniTicker] = {}
        """The newest of each kept symbol."""
        self._strangers: dict[str, Decimal] = {}
        """Symbols in the tickers that are not kept, and their prices."""
        self._told: dict[str, str] = {}
        """What was said of names that were asked for and are not kept, so as to say it once."""
        self._announced: dict[str, str] = {}
        """Statuses of strangers by contractInfo. Bounded like the strangers."""
        self._unknown_since_ms: dict[str, int] = {}
        """Names asked for that a whole answer did not have, and since when."""
        self._unserved_since_ms: dict[str, tuple[int, int]] = {}
        """By symbol: the listing date before which the exchange serves no klines, and when that was
        seen first."""
        self._first_klines: dict[str, tuple[int, int]] = {}
        """By symbol: the first kline as the exchange gave it, and when, until it is believed."""
        self._confirm_s = 0.0
        self._confirm_pause_s = CONFIRM_PAUSE_S
        self._refresh_s = 0.0
        self._learn_s = 0.0
        self._hinted = False

    @property
    def kept(self) -> frozenset[str]:
        """The symbols that the feeds have been told to carry."""
        return frozenset(self._kept)

    def _living(self) -> set[str]:
        return {symbol for shard in self._shards for symbol in shard.symbols()}

    def _shard_of(self, symbol: str) -> int:
        return cmd.shard_of(symbol, len(self._shards))

    async def _propose(self, symbol: str, message: cmd.Message) -> None:
        await self._inboxes[self._shard_of(symbol)].send(message)

    async def run(self) -> None:
        """Watch and propose until cancelled. ConfigurationError for a name that nobody knows."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            while True:
                await self._reconcile()
                now_s = trio.current_time()
                if not self._is_sure():
                    pass
                elif now_s >= self._refresh_s or (self._hinted and now_s >= self._confirm_s):
                    await self._confirm()
                elif now_s >= self._learn_s:
                    await self._learn_first_kline()
                await trio.sleep(LOOK_S)

    # -- Hints ---------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Keep the connection up that brings hints."""
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

    def _take(self, frame: bytes) -> None:
        """Look for hints in one frame."""
        try:
            message = wire.decode_frame(frame)
        except RemoteError as error:
            self._note(Event(self._now_ms(), "rejected", "", f"discovery: {error}"))
            return
        match message:
            case wire.MiniTickers(rows, rejected):
                if rejected:
                    text = f"discovery: {rejected:,} tickers of a frame make no sense"
                    self._note(Event(self._now_ms(), "rejected", "", text))
                for row in rows:
                    if row.market != 1:
                        continue
                    if row.symbol in self._kept:
                        self._compare(row)
                    else:
                        self._meet(row.symbol, row.close)
            case wire.ContractInfo() if message.market == 1:
                life = self._shards[self._shard_of(message.symbol)].life(message.symbol)
                if life is not None:
                    said = message.status, message.onboard_ms, message.delivery_ms
                    self._hinted |= not life.is_as(*said)
                elif self._announced.get(message.symbol) != message.status:
                    _remember(self._announced, message.symbol, message.status)
                    self._hinted = True

    def _compare(self, row: wire.MiniTicker) -> None:
        """Note that a symbol has traded, if its new ticker proves that."""
        before = self._tickers.get(row.symbol)
        self._tickers[row.symbol] = row
        if before and (row.close != before.close or row.volume > before.volume):
            self.traded_ms[row.symbol] = self._bounded_event_ms(row.event_ms)

    def _meet(self, symbol: str, price: Decimal) -> None:
        """Remember a symbol that is not kept; a new one is a hint."""
        if symbol not in self._strangers:
            self._hinted = True
        _remember(self._strangers, symbol, price)

    # -- Who lives -----------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        """Bring the subscriptions in line with what the shards keep."""
        living = self._living()
        for symbol in sorted(self._kept - living):
            self._kept.discard(symbol)
            self.removed.append(symbol)
            del self.removed[:-KEPT_MAX]
            self.traded_ms.pop(symbol, None)
            self._tickers.pop(symbol, None)
            await self._subscriptions.send(cmd.Unsubscribe(symbol))
        for symbol in sorted(living - self._kept):
            self._kept.add(symbol)
            self.added.append(symbol)
            del self.added[:-KEPT_MAX]
            await self._subscriptions.send(cmd.Subscribe(symbol))

    # -- Answers -------------------------------------------------------------------------------

    async def _confirm(self) -> None:
        """Ask exchangeInfo, and propose what follows from it."""
        now_s = trio.current_time()
        self._confirm_s = now_s + self._confirm_pause_s
        at_ms = self._now_ms()
        try:
            info = await self._rest.exchange_info(priority=Priority.DISCOVERY)
        except RemoteError as error:
            self._refresh_s = now_s + CONFIRM_PAUSE_S_MAX
            self._note(Event(at_ms, "discovery", "", f"exchangeInfo: {error}"))
            return
        flaw = self._wholeness.flaw(info.names, at_ms)
        self._refresh_s = now_s + (DOUBT_REFRESH_S if flaw else REFRESH_S)
        self._hinted = False
        if flaw:
            self._note(Event(at_ms, "discovery", "", f"exchangeInfo is not believed: {flaw}"))
            return
        news = 0
        for symbol in sorted(self._kept):
            news += await self._sight(symbol, info, at_ms)
        fresh = [
            contract
            for contract in info.contracts.values()
            if contract.symbol not in self._kept and self._universe.wants(contract)
        ]
        room = max(0, KEPT_MAX - len(self._kept))
        if len(fresh) > room:
            text = f"{len(fresh) - room:,} contracts are too many: at most {KEPT_MAX:,} are kept"
            self._note(Event(at_ms, "discovery", "", text))
        for contract in fresh[:room]:
            news += await self._take_up(contract, at_ms)
        await self._look_for_names(info, at_ms)
        if news:
            self._refresh_s = now_s + DOUBT_REFRESH_S
        # Hints that prove to be nothing again and again are asked about less and less.
        pause_s = CONFIRM_PAUSE_S if news else 2 * self._confirm_pause_s
        self._confirm_pause_s = min(pause_s, CONFIRM_PAUSE_S_MAX)

    async def _sight(self, symbol: str, info: wire.ExchangeInfo, at_ms: int) -> bool:
        """Propose what an answer says of a kept contract. Returns whether that is any news."""
        life = self._shards[self._shard_of(symbol)].life(symbol)
        contract = info.contracts.get(symbol)
        if life is None or symbol in info.unreadable or (contract is None and info.nameless):
            return False
        if contract is None:
            await self._propose(symbol, cmd.Sighting(symbol, None, life.delivery_ms, at_ms))
            return True
        if life.is_as(contract.status, contract.onboard_ms, contract.delivery_ms):
            self._unserved_since_ms.pop(symbol, None)
            return False
        sighting = cmd.Sighting(symbol, contract.status, contract.delivery_ms, at_ms)
        await self._propose(symbol, sighting)
        if contract.onboard_ms != life.onboard_ms:
            await self._propose_date(contract, at_ms)
        return True

    async def _propose_date(self, contract: wire.Contract, at_ms: int) -> None:
        """Hold another listing date against the klines, and propose it."""
        found = await self._served_before(contract, at_ms)
        if found is None:
            return
        served_before, confirmed, first_ms = found
        price = await self._price(contract.symbol)
        if price is not None:
            listing = await self._listing(contract, None if served_before else first_ms)
            await self._propose(
                contract.symbol, cmd.Redated(listing, served_before, confirmed, price)
            )

    async def _served_before(
        self, contract: wire.Contract, at_ms: int
    ) -> tuple[bool, bool, int] | None:
        """Return whether there are klines from before a listing date, and when the first opens.

        Between the two: whether there were none when that was asked before, a pause ago. None
        where nothing can be said: the exchange does not answer, or has no klines at all.
        """
        symbol, onboard_ms = contract.symbol, contract.onboard_ms
        first_ms = await self._first_kline_ms(symbol)
        if first_ms is None:
            return None
        if first_ms < MINUTE.floor(onboard_ms):
            self._unserved_since_ms.pop(symbol, None)
            return True, False, first_ms
        date_ms, since_ms = self._unserved_since_ms.get(symbol, (0, 0))
        if date_ms != onboard_ms:
            since_ms = at_ms
            _remember(self._unserved_since_ms, symbol, (onboard_ms, at_ms))
        return False, at_ms - since_ms >= CONFIRM_MS, first_ms

    async def _take_up(self, contract: wire.Contract, at_ms: int) -> bool:
        """Have a shard take up a contract in trading. Returns whether it is worth a look soon."""
        symbol = contract.symbol
        stored = await self._stored(symbol)
        goes_on, replaces = None, False
        if stored is not None and stored.end_ms is not None and stored.close is not None:
            goes_on = Stored(stored.end_ms, stored.close, stored.suspects)
            if contract.onboard_ms > stored.onboard_ms:
                found = await self._served_before(contract, at_ms)
                if found is None:
                    return True
                served_before, confirmed, first_ms = found
                # Another contract's first kline would be later than that of the stored one.
                same_first = stored.first_ms is not None and first_ms <= stored.first_ms
                replaces = not served_before and not same_first
                if replaces and not (stored.ended or confirmed):
                    return True
        if replaces:
            goes_on = None
        price = await self._price(symbol)
        if price is None:
            return True
        listing = await self._listing(contract, await self._first_kline_ms(symbol))
        await self._propose(symbol, cmd.AddSymbol(listing, price, goes_on, replaces))
        self._unserved_since_ms.pop(symbol, None)
        return True

    async def _look_for_names(self, info: wire.ExchangeInfo, at_ms: int) -> None:
        """Tell of names that were asked for and are not kept now; ConfigurationError for unknowns.

        One whole answer without a name is not enough: it takes two, a pause apart.
        """
        for symbol in self._universe.symbols:
            if symbol in self._kept or symbol in info.unreadable:
                continue
            contract = info.contracts.get(symbol)
            if contract is None:
                await self._doubt_name(symbol, info, at_ms)
                continue
            self._unknown_since_ms.pop(symbol, None)
            if self._universe.is_kept_kind(contract):
                said = f"it is {contract.status}; it is taken up when it trades"
            else:
                said = (
                    f"it is {contract.contract_type} in {contract.quote_asset}, which the settings "
                    "contracts and quotes leave out"
                )
            if not self._universe.wants(contract) and self._told.get(symbol) != said:
                _remember(self._told, symbol, said)
                self._note(Event(at_ms, "waiting", symbol, said))

    async def _doubt_name(self, symbol: str, info: wire.ExchangeInfo, at_ms: int) -> None:
        since_ms = self._unknown_since_ms.setdefault(symbol, at_ms)
        self._hinted = True
        if at_ms - since_ms < CONFIRM_PAUSE_S * 1_000 or await self._stored(symbol) is not None:
            return
        raise ConfigurationError(
            f"the exchange lists no symbol {symbol!r}; {nearest(symbol, info.contracts)}"
        )

    # -- What is asked of the exchange ---------------------------------------------------------

    async def _listing(self, contract: wire.Contract, first_ms: int | None) -> Listing:
        return Listing(
            contract.symbol,
            contract.onboard_ms,
            contract.delivery_ms,
            await self._three_day_phase_ms(contract.symbol),
            first_ms,
        )

    async def _three_day_phase_ms(self, symbol: str) -> int:
        """Return where a contract's 3d bars open, by its newest one; the usual grid without one."""
        if "3d" not in self._settings.intervals:
            return THREE_DAY_PHASE_MS
        try:
            answer = await self._rest.klines(symbol, "3d", limit=1, priority=Priority.DISCOVERY)
        except RemoteError as error:
            self._note(Event(self._now_ms(), "discovery", symbol, f"3d grid: {error}"))
            return THREE_DAY_PHASE_MS
        whole = [bar for bar in answer.bars if bar.open_ms % DAY_MS == 0]
        return whole[-1].open_ms % THREE_DAYS_MS if whole else THREE_DAY_PHASE_MS

    async def _price(self, symbol: str) -> Decimal | None:
        """Return the newest price of a symbol: its ticker's, or that of its newest kline."""
        ticker = self._tickers.get(symbol)
        price = ticker.close if ticker else self._strangers.get(symbol)
        if price is not None:
            return price
        try:
            klines = await self._rest.klines(
                symbol, MINUTE.name, limit=1, priority=Priority.DISCOVERY
            )
        except RemoteError as error:
            self._note(Event(self._now_ms(), "discovery", symbol, f"no seed price yet: {error}"))
            return None
        return klines.bars[-1].close if klines.bars else None

    async def _first_kline_ms(self, symbol: str) -> int | None:
        """Return when the first official 1m kline of a symbol opens; None where there is none."""
        try:
            klines = await self._rest.klines(
                symbol, MINUTE.name, start_ms=0, limit=1, priority=Priority.DISCOVERY
            )
        except RemoteError as error:
            self._note(Event(self._now_ms(), "discovery", symbol, f"first kline: {error}"))
            return None
        return klines.bars[0].open_ms if klines.bars else None

    async def _learn_first_kline(self) -> None:
        """Make the key of one contract final, where its first kline is not known.

        It never changes again: so one that opens far from the listing date is asked for twice.
        """
        now_s = trio.current_time()
        self._learn_s = now_s + LEARN_EVERY_S
        at_ms = self._now_ms()
        for symbol in sorted(self._kept):
            life = self._shards[self._shard_of(symbol)].life(symbol)
            _, asked_ms = self._first_klines.get(symbol, (0, 0))
            if life is None or life.first_ms is not None or at_ms - asked_ms < CONFIRM_MS:
                continue
            first_ms = await self._first_kline_ms(symbol)
            before_ms, _ = self._first_klines.get(symbol, (None, 0))
            _remember(self._first_klines, symbol, (-1 if first_ms is None else first_ms, at_ms))
            if first_ms is not None and (
                abs(first_ms - life.onboard_ms) <= DAY_MS or first_ms == before_ms
            ):
                self._first_klines.pop(symbol)
                await self._propose(symbol, cmd.FirstKline(symbol, first_ms))
            return
        self._learn_s = now_s + DOUBT_REFRESH_S


def _remember(container: dict[str, T], symbol: str, value: T) -> None:
    """Put something into a bounded container; the oldest goes where it is full."""
    container.pop(symbol, None)
    if len(container) >= STRANGERS_MAX:
        del container[next(iter(container))]
    container[symbol] = value
