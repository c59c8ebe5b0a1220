"""Websocket feeds: connect, subscribe, watch, decode, route.

Theory of operation
-------------------
`Feeds` spreads the symbols over connections, at most `symbols_per_connection` on each, and takes
Subscribe and Unsubscribe from discovery. Each `Feed` keeps one connection up for ever: a session
subscribes, reads batches of frames, decodes them, and sends the trades of each shard to that
shard's inbox in one message: a TradeBatch, or the columns of a burst.

A connection is judged by data, never by acknowledgements, which the exchange gives for anything.
Every connection carries a *canary*: the mark price of one symbol, which the exchange sends every
second whatever the market does. So on a healthy connection data is never further away than a
second, however quiet its symbols are, and `silence_limit_s` without any means that it is dead.

A symbol is *live* on a connection from the moment its SUBSCRIBE was acknowledged, once data has
arrived after that. Only then does its shard hear FeedLive. When a session ends, the shards hear
FeedLost with the event time of the last data, less a margin for what was under way; but only for
symbols that no other connection has live (`Coverage`), so that overlapping connections lose
nothing.

A connection that delivers but stays more than `stale_limit_s` behind the exchange's time is as bad
as a silent one and is treated alike.

Event times are a witness of the exchange's time (`core/clock.py`), and are themselves believed only
as far as it reaches: one that is later than now, but for the slack of `EVENT_AHEAD_MS`, proves
nothing at all, whatever it says. Before the time is sure nobody is told to be live.

When time has passed unwatched, a suspend or a stop, the sessions are *frozen* before anything that
was read afterwards can vouch for it: the trades are delivered, their event times prove nothing, and
the shards hear FeedLost as of what came before.

Make before break: the exchange cuts connections at 24 h, so one that has reached `rotate_after_s`
gets a *twin* with the same symbols. Once the twin is live, and has been for `OVERLAP_S`, the old
one is retired. Both deliver meanwhile; the shards drop the repeats by id.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import trio

from klagg_trio import cmd
from klagg_trio.backlog import Backlog
from klagg_trio.core.columns import ShardSplit, TradeColumns
from klagg_trio.core.errors import RemoteError
from klagg_trio.core.facts import Event
from klagg_trio.core.trade import Trade
from klagg_trio.exchange import wire
from klagg_trio.exchange.bursts import TradeDecoder
from klagg_trio.exchange.frames import Frames
from klagg_trio.exchange.stream import Connection, Dial, open_connection
from klagg_trio.settings import Settings
from klagg_trio.vitals import ConnectionVitals

log = logging.getLogger(__name__)

NAMES_PER_REQUEST_MAX: Final = 200
"""Names in one SUBSCRIBE: 200 are known to be accepted."""

REQUEST_PACE_S: Final = 0.25
"""Between control messages: the exchange closes above ten a second, we keep to four."""

LOSS_MARGIN_MS: Final = 1_000
"""Trades this much older than the last event may still have been on their way when it ended."""

ANSWER_S: Final = 15.0
"""For the answer to a subscription. Symbols without one would never be live."""

NONSENSE_MAX: Final = 2_000
"""Frames refused on one connection beyond those that made sense: more is no exchange, and costs
more than to connect anew."""

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
"""Pauses between attempts double from the first to the last, with jitter."""

BACKOFF_DOUBLINGS: Final = 16
"""More change nothing: after weeks without a connection the power would overflow."""

OVERLAP_S: Final = 5.0
"""How long a connection and its twin both deliver before the old one goes."""

ROTATION_CHECK_S: Final = 1.0

EVENT_AHEAD_MS: Final = 1_000
"""Event times may be later than corroborated time by this, for clocks of the exchange's differ."""

DELAY_MS_MAX: Final = 60_000
"""A delay measured longer counts as this: a single frame from long ago is not to set the grace."""

DELAY_WEIGHT: Final = 0.05
"""Share of a new batch in the running mean of the one-way delay."""


class Clock(Protocol):
    """What feeds need of the exchange's time."""

    @property
    def is_sure(self) -> bool:
        """Whether a second witness has agreed with it."""

    def now_ms(self) -> int:
        """Return exchange time."""

    def bounded_event_ms(self, event_ms: int) -> int:
        """Return an event time, cut to what it can be."""

    def take_event(self, stream: str, event_ms: int) -> None:
        """Take an event time for a witness."""


class Router:
    """Sends to each shard what concerns its symbols. Shared by all feeds."""

    def __init__(
        self,
        inboxes: Sequence[trio.MemorySendChannel[cmd.Message]],
        backlog: Backlog | None = None,
    ) -> None:
        """Route over these inboxes, by `cmd.shard_of`. Trades enter the `backlog` on their way."""
        self._inboxes = inboxes
        self._backlog = backlog
        self._shard_of: dict[str, int] = {}
        self._of_stream: dict[str, str] = {}
        """Symbols by their names in those of streams."""
        self._split: ShardSplit | None = None
        self.not_ours = 0
        """Trades of symbols that nobody subscribed to."""

    def know(self, symbol: str) -> None:
        """Remember where a symbol's messages go."""
        self._shard_of[symbol] = cmd.shard_of(symbol, len(self._inboxes))
        self._of_stream[wire.stream_name(symbol, "").removesuffix("@")] = symbol
        self._split = None

    def forget(self, symbol: str) -> None:
        """Forget a symbol that nobody keeps any more: its trades are counted as not ours."""
        self._shard_of.pop(symbol, None)
        self._of_stream.pop(wire.stream_name(symbol, "").removesuffix("@"), None)
        self._split = None

    async def send_trades(self, trades: Iterable[Trade], now_ms: int | None = None) -> None:
        """Send each shard its part of a chunk, in order of arrival. Waits for full inboxes.

        `now_ms` is exchange time, where it is sure: no trade can be later.
        """
        parts: list[list[Trade]] = [[] for _ in self._inboxes]
        shard_of = self._shard_of
        for trade in trades:
            try:
                parts[shard_of[trade.symbol]].append(trade)
            except KeyError:
                self.not_ours += 1
        for inbox, part in zip(self._inboxes, parts, strict=True):
            if part:
                await self._enter(len(part))
                await inbox.send(cmd.TradeBatch(part, now_ms))

    async def send_columns(self, columns: TradeColumns, now_ms: int | None = None) -> bool:
        """Send each shard its part of a burst: a run for each symbol.

        Returns False where its sums would not fit, so that the trades went one by one.
        """
        if self._split is None or self._split.units is not columns.units:
            self._split = ShardSplit(columns.units, self._shard_of, len(self._inboxes))
        parts = self._split.split(columns)
        if parts is None:
            await self.send_trades(columns.trades(), now_ms)
            return False
        self.not_ours += parts.strangers
        for inbox, runs in zip(self._inboxes, parts.shards, strict=True):
            if len(runs):
                await self._enter(runs.trades_count)
                await inbox.send(cmd.TradeColumnsBatch(runs, now_ms))
        return True

    async def _enter(self, trades: int) -> None:
        if self._backlog is not None:
            await self._backlog.enter(trades)

    async def send_refusals(self, refusals: Iterable[wire.Refusal]) -> None:
        """Tell each shard which trades of its symbols were refused, and when they were made."""
        parts: dict[int, list[tuple[str, int | None]]] = {}
        for refusal in refusals:
            symbol = self._of_stream.get(refusal.symbol, refusal.symbol)
            if symbol in self._shard_of:
                parts.setdefault(self._shard_of[symbol], []).append((symbol, refusal.time_ms))
        for shard, trades in sorted(parts.items()):
            await self._inboxes[shard].send(cmd.TradesRefused(tuple(trades)))

    async def send(
        self, symbols: Iterable[str], message: Callable[[tuple[str, ...]], cmd.Message]
    ) -> None:
        """Send each shard one message made from its part of `symbols`."""
        parts: dict[int, list[str]] = {}
        for symbol in symbols:
            parts.setdefault(cmd.shard_of(symbol, len(self._inboxes)), []).append(symbol)
        for shard, part in sorted(parts.items()):
            await self._inboxes[shard].send(message(tuple(part)))


class Coverage:
    """How many connections have each symbol live. Shared by all feeds."""

    def __init__(self) -> None:
        """Nothing is covered."""
        self._live: Counter[str] = Counter()

    def gain(self, symbols: Iterable[str]) -> list[str]:
        """One more connection has these. Returns those that none had before."""
        gained = []
        for symbol in symbols:
            self._live[symbol] += 1
            if self._live[symbol] == 1:
                gained.append(symbol)
        return gained

    def lose(self, symbols: Iterable[str]) -> list[str]:
        """One connection less has these. Returns those that none has now."""
        lost = []
        for symbol in symbols:
            self._live[symbol] -= 1
            if self._live[symbol] == 0:
                del self._live[symbol]
                lost.append(symbol)
        return lost

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._live

    def __len__(self) -> int:
        return len(self._live)


@dataclass(slots=True)
class FeedCounts:
    """What all feeds together have received, those that are gone included."""

    received: int = 0
    """Trades, decoded or not."""
    rejected: int = 0
    """Frames that could not be decoded."""
    reconnects: int = 0
    unread: int = 0
    """Frames that were received of connections that were given up before they were looked at. The
    minutes that they may belong to are in doubt like all others since then."""


@dataclass(slots=True)
class _Session:
    """What one connection has asked for and been given. Owned by its feed."""

    connection: Connection
    started_s: float
    asked: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Requests without an answer yet, by id: the symbols they subscribe."""
    asked_s: float = 0.0
    """When the last of them was made, or answered."""
    flaw: str = ""
    """Why the connection is no good, once that is so."""
    nonsense: int = 0
    """By how many the frames refused lately outnumber the others."""
    acknowledged: list[tuple[tuple[str, ...], float]] = field(default_factory=list)
    """Symbols whose request was answered, and when (Trio time), but without data since."""
    live: list[str] = field(default_factory=list)
    subscribed: set[str] = field(default_factory=set)
    symbols: list[str] = field(default_factory=list)
    """What the feed should carry, as of the last look."""
    canary: str | None = None
    """The symbol whose mark price proves that data flows."""
    next_id: int = 1
    data_s: float = 0.0
    """Trio time of the last data frame."""
    event_ms: int = 0
    """Exchange's event time of the newest data frame, as far as it can be true."""
    fresh_s: float = 0.0
    """Trio time of the last data frame that was not stale."""
    is_stale: bool = False
    """Whether the newest data frame was."""
    is_frozen: bool = False
    """Whether time has passed that nobody watched: nothing that comes now proves anything."""


class Feed:
    """One connection, kept up. `symbols` is what it should carry."""

    def __init__(
        self,
        name: str,
        symbols: Iterable[str],
        *,
        feeds: Feeds,
        settings: Settings,
        dial: Dial,
        clock: Clock,
        note: Callable[[Event], None],
    ) -> None:
        """Make a feed that is not connected yet."""
        self.name = name
        self.symbols = list(symbols)
        self.state = "connecting"
        self.reconnects = 0
        self.delay_ms: float | None = None
        """Running mean of receipt minus event time, or None."""
        self._router = feeds.router
        self._coverage = feeds.coverage
        self._counts = feeds.counts
        self._decoder = feeds.decoder
        self._settings = settings
        self._dial = dial
        self._feeds = feeds
        self._clock = clock
        self._now_ms = clock.now_ms
        self._note = note
        self.live_since_s: float | None = None
        """Trio time since when every symbol is live, or None."""
        self.retired = False
        """Whether a twin has taken over."""
        self._scope = trio.CancelScope()
        self._connection_scope = trio.CancelScope()
        self._dropped = ""
        self._session: _Session | None = None
        self._trouble = ""
        """What ended the last attempt, until a connection is live again."""
        self._failures = 0
        self._jitter = random.Random(name)
        self._frames = 0
        self._rate = 0.0
        self._rate_mark = (0.0, 0)

    async def run(self) -> None:
        """Keep the connection up until cancelled, or until a twin has taken over."""
        with self._scope:
            while True:
                self._dropped = ""
                reason = ""
                with trio.CancelScope() as self._connection_scope:
                    reason = await self._connect()
                reason = self._dropped or reason
                self._trouble = reason
                self.reconnects += 1
                self._counts.reconnects += 1
                self._failures += 1
                await self._lose(reason)
                await trio.sleep(self._pause_s())
        if self.retired:
            await self._lose("replaced before its time ran out")

    def drop(self, reason: str) -> None:
        """Give up the connection, if there is one, and make a new one."""
        self._dropped = reason
        self._connection_scope.cancel()

    def freeze(self, reason: str) -> None:
        """Let nothing that is read from now on vouch for the time before; connect anew."""
        if self._session is not None:
            self._session.is_frozen = True
        self.drop(reason)

    async def tell_loss(self) -> None:
        """Tell the shards what a frozen session has lost. Again, there is nothing to tell."""
        session = self._session
        if session is not None and session.is_frozen:
            await self._give_up(session)

    def forget(self, symbol: str) -> bool:
        """Take a symbol for not live on this connection. Returns whether it was."""
        session = self._session
        if session is None or symbol not in session.live:
            return False
        session.live.remove(symbol)
        return True

    def retire(self) -> None:
        """End this feed: another one has all of its symbols live."""
        self.retired = True
        self._scope.cancel()

    async def _connect(self) -> str:
        """Hold one connection as long as it is good. Returns why it is not any more."""
        self.state = "connecting"
        url = f"{self._settings.ws_url}/stream"
        pause_s = self._settings.read_pause_ms / 1000
        connection: Connection | None = None
        try:
            async with open_connection(url, self._dial, read_pause_s=pause_s) as connection:
                return await self._run_session(connection)
        except RemoteError as error:
            return str(error)
        finally:
            if connection is not None:
                self._counts.unread += connection.statistics().dropped

    async def _run_session(self, connection: Connection) -> str:
        """Subscribe and read until the connection is no good. Returns why."""
        now_s = trio.current_time()
        session = self._session = _Session(connection, now_s, data_s=now_s, fresh_s=now_s)
        self.state = "subscribing"
        while True:
            await self._subscribe_missing(session)
            deadline_s = session.data_s + self._settings.silence_limit_s
            with trio.move_on_at(deadline_s) as silence:
                try:
                    frames = await connection.batches.receive()
                except trio.EndOfChannel:
                    return "closed by the exchange"
            if silence.cancelled_caught:
                return f"no data for {self._settings.silence_limit_s:.0f} s"
            # Trades that were received are counted, so they are delivered, come what may.
            with trio.CancelScope(shield=True):
                await self._take(session, frames)
            if session.flaw:
                return session.flaw
            if session.asked and trio.current_time() > session.asked_s + ANSWER_S:
                return f"no answer to a subscription for {ANSWER_S:.0f} s"
            if session.nonsense > NONSENSE_MAX:
                return "what it sends makes no sense"
            behind_s = session.data_s - session.fresh_s
            if session.is_stale and behind_s > self._settings.silence_limit_s / 2:
                return f"behind by {(self._now_ms() - session.event_ms) / 1000:.1f} s"

    async def _subscribe_missing(self, session: _Session) -> None:
        """Ask for what the connection should carry and does not, and drop what it should not."""
        if session.symbols == self.symbols:
            return
        session.symbols = list(self.symbols)
        missing = [symbol for symbol in self.symbols if symbol not in session.subscribed]
        await self._drop_streams(session, set(self.symbols))
        for start in range(0, len(missing), NAMES_PER_REQUEST_MAX - 1):
            symbols = tuple(missing[start : start + NAMES_PER_REQUEST_MAX - 1])
            names = [wire.stream_name(symbol, "aggTrade") for symbol in symbols]
            if session.canary is None:
                session.canary = symbols[0]
                names.append(wire.stream_name(session.canary, "markPrice@1s"))
            session.asked[session.next_id] = symbols
            session.asked_s = trio.current_time()
            session.subscribed.update(symbols)
            await session.connection.send_text(wire.subscribe(names, session.next_id))
            session.next_id += 1
            if start:
                await trio.sleep(REQUEST_PACE_S)
        if session.canary is None and self.symbols:
            session.canary = self.symbols[0]
            name = wire.stream_name(session.canary, "markPrice@1s")
            await session.connection.send_text(wire.subscribe([name], session.next_id))
            session.next_id += 1

    async def _drop_streams(self, session: _Session, wanted: set[str]) -> None:
        """Unsubscribe what the connection is not to carry any more, the canary too."""
        names = [
            wire.stream_name(symbol, "aggTrade") for symbol in sorted(session.subscribed - wanted)
        ]
        session.subscribed &= wanted
        if session.canary is not None and session.canary not in wanted:
            names.append(wire.stream_name(session.canary, "markPrice@1s"))
            session.canary = None
        for start in range(0, len(names), NAMES_PER_REQUEST_MAX):
            part = names[start : start + NAMES_PER_REQUEST_MAX]
            await session.connection.send_text(wire.unsubscribe(part, session.next_id))
            session.next_id += 1
            if start:
                await trio.sleep(REQUEST_PACE_S)

    async def _take(self, session: _Session, frames: Frames) -> None:
        """Decode one chunk and pass it on."""
        self._feeds.look()
        decoded = self._decoder.decode(frames)
        self._frames += len(frames)
        self._counts.received += decoded.count + decoded.rejected
        if decoded.rejected:
            self._counts.rejected += decoded.rejected
            self._note(Event(self._now_ms(), "rejected", "", f"{self.name}: {decoded.error}"))
        refused = self._counts.rejected
        data = decoded.count > 0
        if data:
            self._measure(session, decoded.event_ms)
        if decoded.refusals:
            await self._router.send_refusals(decoded.refusals)
        now_ms = self._now_ms() if self._clock.is_sure else None
        if decoded.columns is not None:
            if not await self._router.send_columns(decoded.columns, now_ms):
                self._decoder.make_coarse(decoded.columns)
        elif decoded.trades:
            await self._router.send_trades(decoded.trades, now_ms)
        for frame in decoded.others:
            data |= self._take_other(session, frame)
        refused = decoded.rejected + self._counts.rejected - refused
        session.nonsense = max(0, session.nonsense + 2 * refused - len(frames))
        if data:
            session.data_s = trio.current_time()
            if session.acknowledged and not session.is_frozen and self._clock.is_sure:
                await self._become_live(session)

    def _take_other(self, session: _Session, frame: bytes) -> bool:
        """Take a frame that is not a trade. Returns whether it proves that data flows."""
        try:
            message = wire.decode_frame(frame)
        except RemoteError as error:
            self._counts.rejected += 1
            self._counts.received += 1
            self._note(Event(self._now_ms(), "rejected", "", f"{self.name}: {error}"))
            return False
        match message:
            case wire.MarkPrice():
                self._measure(session, message.event_ms)
                return True
            case wire.Ack():
                symbols = session.asked.pop(message.id, None)
                if symbols:
                    session.asked_s = trio.current_time()
                    session.acknowledged.append((symbols, trio.current_time()))
            case wire.WireError():
                text = f"{self.name}: the exchange refused a request: {message.message}"
                self._note(Event(self._now_ms(), "refused", "", text))
                if message.id in session.asked:
                    session.flaw = f"a subscription was refused: {message.message}"
        return False

    async def _become_live(self, session: _Session) -> None:
        for asked, since_s in session.acknowledged:
            symbols = [symbol for symbol in asked if symbol in session.subscribed]
            since_ms = self._now_ms() - int((trio.current_time() - since_s) * 1000)
            session.event_ms = max(session.event_ms, since_ms)
            session.live.extend(symbols)
            gained = self._coverage.gain(symbols)
            await self._router.send(gained, partial(cmd.FeedLive, since_ms=since_ms))
        session.acknowledged.clear()
        self._failures = 0
        if not session.asked:
            self.state = "live"
            self._trouble = ""
            self.live_since_s = self.live_since_s or trio.current_time()

    async def _lose(self, reason: str) -> None:
        """Tell the shards that the session is over, for the symbols that nobody else has."""
        session, self._session = self._session, None
        self.state = "lost"
        self.live_since_s = None
        self._note(Event(self._now_ms(), "disconnect", "", f"{self.name}: {reason}"))
        if session is not None:
            await self._give_up(session)

    async def _give_up(self, session: _Session) -> None:
        """Tell the shards that nothing is certain since the session's last event, but once.

        Whoever has to know that all losses are told waits for the lock.
        """
        async with self._feeds.losing:
            live, session.live = session.live, []
            session.acknowledged.clear()
            lost_ms = session.event_ms - LOSS_MARGIN_MS
            lost = self._coverage.lose(live)
            await self._router.send(lost, partial(cmd.FeedLost, lost_ms=lost_ms))

    def _pause_s(self) -> float:
        doublings = min(self._failures - 1, BACKOFF_DOUBLINGS)
        longest_s = min(BACKOFF_FIRST_S * 2.0**doublings, BACKOFF_MAX_S)
        return longest_s * self._jitter.uniform(0.5, 1.0)

    def _measure(self, session: _Session, event_ms: int) -> None:
        """Take the event time of what has come: a witness, and what it proves of the session."""
        self._clock.take_event(self.name, event_ms)
        if session.is_frozen or not self._clock.is_sure:
            session.fresh_s = trio.current_time()
            return
        delay_ms = min(self._now_ms() - event_ms, DELAY_MS_MAX)
        session.is_stale = delay_ms >= self._settings.stale_limit_s * 1000
        if delay_ms < -EVENT_AHEAD_MS:
            return
        session.event_ms = max(session.event_ms, self._clock.bounded_event_ms(event_ms))
        if not session.is_stale:
            session.fresh_s = trio.current_time()
        if self.delay_ms is None:
            self.delay_ms = float(delay_ms)
        else:
            self.delay_ms += DELAY_WEIGHT * (delay_ms - self.delay_ms)

    def statistics(self) -> ConnectionVitals:
        """Return this connection's line of the picture."""
        now_s = trio.current_time()
        marked_s, marked_frames = self._rate_mark
        if now_s - marked_s >= 1.0:
            self._rate = (self._frames - marked_frames) / (now_s - marked_s)
            self._rate_mark = (now_s, self._frames)
        session = self._session
        return ConnectionVitals(
            name=self.name,
            state=self.state,
            symbols=len(self.symbols),
            age_s=now_s - session.started_s if session else 0.0,
            messages_per_s=self._rate,
            silent_s=now_s - session.data_s if session else 0.0,
            delay_ms=self.delay_ms or 0.0,
            reconnects=self.reconnects,
            trouble=self._trouble,
        )


class Feeds:
    """All connections. Started once; the nursery it is given runs them."""

    def __init__(
        self,
        *,
        router: Router,
        settings: Settings,
        dial: Dial,
        clock: Clock,
        note: Callable[[Event], None],
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """Make no connection yet. `look` notices, before a chunk counts, that time has passed
        unwatched, and calls `freeze` then."""
        self.feeds: list[Feed] = []
        self.coverage = Coverage()
        self.counts = FeedCounts()
        self.decoder = TradeDecoder()
        """One for all, so that columns of all connections have the same units."""
        self.rotations = 0
        self._made = 0
        self._due: set[str] = set()
        """Names of feeds to be replaced before their time."""
        self._twins: dict[str, Feed] = {}
        """The feed that is to replace one, by the old one's name."""
        self.router = router
        self.look = look
        self.losing = trio.Lock()
        """Held while shards are told of a loss."""
        self._settings = settings
        self._dial = dial
        self._clock = clock
        self._note = note

    def plan(self, symbols: Iterable[str]) -> None:
        """Spread the symbols known at the start evenly over as few connections as allowed."""
        symbols = sorted(symbols)
        cap = self._settings.symbols_per_connection
        count = -(-len(symbols) // cap)
        for copy_number in range(self._settings.parallel_feeds):
            for number in range(count):
                self._make(copy_number, symbols[number::count])

    async def run(
        self, nursery: trio.Nursery, receive: trio.MemoryReceiveChannel[cmd.Subscription]
    ) -> None:
        """Start every feed in `nursery`, the one that all sources share, then obey discovery.

        The nursery is passed because a listing may need one more connection later, and that feed
        has to live as long as the others.
        """
        for feed in self.feeds:
            nursery.start_soon(feed.run)
        nursery.start_soon(self._rotate, nursery)
        async with receive:
            async for message in receive:
                match message:
                    case cmd.Subscribe(symbol):
                        await self._subscribe(symbol, nursery)
                    case cmd.Unsubscribe(symbol):
                        self._unsubscribe(symbol)

    async def _subscribe(self, symbol: str, nursery: trio.Nursery) -> None:
        """Put a symbol on the emptiest connection of each copy; make one where all are full."""
        for copy_number in range(self._settings.parallel_feeds):
            copies = [feed for feed in self.feeds if feed.name.startswith(f"{copy_number + 1}.")]
            if any(symbol in feed.symbols for feed in copies):
                continue
            feed = min(copies, key=lambda feed: len(feed.symbols), default=None)
            if feed is not None and len(feed.symbols) < self._settings.symbols_per_connection:
                feed.symbols.append(symbol)
            else:
                nursery.start_soon(self._make(copy_number, [symbol]).run)
        self.router.know(symbol)
        if symbol in self.coverage:  # its stream has been on all the while
            live = partial(cmd.FeedLive, since_ms=self._clock.now_ms())
            await self.router.send([symbol], live)

    def _unsubscribe(self, symbol: str) -> None:
        """Take a symbol off every connection; one that carries nothing any more ends."""
        for feed in list(self.feeds):
            if feed.forget(symbol):
                self.coverage.lose([symbol])
            if symbol in feed.symbols:
                feed.symbols.remove(symbol)
            if not feed.symbols:
                self._dismiss(feed)
        self.router.forget(symbol)

    def _dismiss(self, feed: Feed) -> None:
        """End a feed for good."""
        self.feeds.remove(feed)
        self._due.discard(feed.name)
        self._twins = {
            name: twin
            for name, twin in self._twins.items()
            if name != feed.name and twin is not feed
        }
        feed.retire()

    async def _rotate(self, nursery: trio.Nursery) -> None:
        """Replace each connection before the exchange cuts it, without a gap."""
        while True:
            await trio.sleep(ROTATION_CHECK_S)
            now_s = trio.current_time()
            for feed in list(self.feeds):
                since_s = feed.live_since_s
                twin = self._twins.get(feed.name)
                if twin is not None:
                    if twin.live_since_s is not None and now_s >= twin.live_since_s + OVERLAP_S:
                        del self._twins[feed.name]
                        self._due.discard(feed.name)
                        self.feeds.remove(feed)
                        self.rotations += 1
                        feed.retire()
                elif (
                    since_s is not None
                    and (now_s >= since_s + self._settings.rotate_after_s or feed.name in self._due)
                    and feed not in self._twins.values()
                ):
                    twin = self._make(int(feed.name.split(".")[0]) - 1, feed.symbols)
                    twin.symbols = feed.symbols  # one list: a listing concerns both
                    self._twins[feed.name] = twin
                    nursery.start_soon(twin.run)

    def _make(self, copy_number: int, symbols: list[str]) -> Feed:
        self._made += 1
        feed = Feed(
            f"{copy_number + 1}.{self._made}",
            symbols,
            feeds=self,
            settings=self._settings,
            dial=self._dial,
            clock=self._clock,
            note=self._note,
        )
        for symbol in symbols:
            self.router.know(symbol)
        self.feeds.append(feed)
        return feed

    async def lose_symbol(self, symbol: str, lost_ms: int) -> None:
        """Take a symbol's stream for dead since `lost_ms`, and replace the connections it is on."""
        for feed in self.feeds:
            if feed.forget(symbol):
                self._due.add(feed.name)
                if self.coverage.lose([symbol]):
                    await self.router.send([symbol], partial(cmd.FeedLost, lost_ms=lost_ms))

    def freeze(self, reason: str) -> None:
        """Have every feed give up its connection, as of what it had, and make a new one."""
        for feed in self.feeds:
            feed.freeze(reason)

    async def tell_losses(self) -> None:
        """Return when the shards know of everything that is lost by now."""
        for feed in self.feeds:
            await feed.tell_loss()
        async with self.losing:
            pass

    def mean_delay_ms(self) -> float | None:
        """Return the mean one-way delay over the connections that measured one, or None."""
        delays = [feed.delay_ms for feed in self.feeds if feed.delay_ms is not None]
        return sum(delays) / len(delays) if delays else None
