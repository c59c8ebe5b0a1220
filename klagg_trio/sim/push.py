"""Who gets what over websockets: subscriptions, and the frames of each step of market time.

Theory of operation: a `Peer` is one connection as the publisher sees it: its streams and an outbox
of frames. `Board.publish` is synchronous: it encodes each event once, appends the frame to the
outboxes of those subscribed and returns; the connection's own task sends what is in its outbox in
one go. An outbox is bounded in bytes: a reader too slow for it is cut off, never buffered for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from klagg_trio.sim import payloads
from klagg_trio.sim.klines import INTERVALS, MINUTE_MS, Part, flat, span_of
from klagg_trio.sim.market import Aggregate, Change, Market, Tape
from klagg_trio.sim.universe import USD_M, Instrument

STREAMS_MAX: Final = 1_024
"""The 1025th stream of a connection is refused, and the connection with it."""

BURST_MAX: Final = 15
MESSAGES_PER_S: Final = 10
"""Messages from a client: so many at once, and so many a second for ever."""

CLOSE_LATE_MS: Final = 2_000
"""How long after its end a kline is told to be closed."""

_KLINE_EVERY_MS: Final = 250
_ROWS_A_FRAME: Final = 200


def frame(payload: bytes) -> bytes:
    """Return an unmasked, final text frame."""
    length = len(payload)
    if length < 126:
        return bytes((0x81, length)) + payload
    if length < 65_536:
        return b"\x81\x7e" + length.to_bytes(2, "big") + payload
    return b"\x81\x7f" + length.to_bytes(8, "big") + payload


@dataclass(eq=False, slots=True)
class Peer:
    """One connection: what it is subscribed to, and what waits to be sent to it."""

    number: int
    """In order of arrival, from 1."""
    tier: str
    """market, public, or legacy: only the first has the streams that are simulated."""
    combined: bool
    outbox_max: int
    streams: dict[str, None] = field(default_factory=dict)
    outbox: list[bytes] = field(default_factory=list)
    outbox_bytes: int = 0
    overflowed: bool = False
    """It did not read fast enough and is being cut off."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Cancelling it cuts the connection."""
    silenced_until_ms: int = 0
    """It acknowledges and delivers nothing before this."""
    gone_ms: int = 0
    """When it was lost, to a fault or because it ended; 0 while it lives."""
    ending: str = ""
    """How the connection is to end once the outbox is sent: see `end`."""
    wake: trio.Event = field(default_factory=trio.Event)
    tokens: float = BURST_MAX
    tokens_at_ms: int = 0

    def push(self, data: bytes) -> None:
        """Put a frame into the outbox; past its bound the connection is lost."""
        self.outbox_bytes += len(data)
        if self.outbox_bytes > self.outbox_max:
            self.overflowed = True
            self.outbox.clear()
            self.scope.cancel()
        else:
            self.outbox.append(data)
        self.wake.set()

    def end(self, how: str) -> None:
        """End the connection: by `reset`, or `torn` (the same, once the outbox is sent), by a
        close frame (`goodbye`), or leave it `half_open`: there, deaf and mute."""
        self.ending = how
        self.wake.set()

    def take(self) -> list[bytes]:
        """Take what waits."""
        frames, self.outbox, self.outbox_bytes = self.outbox, [], 0
        self.wake = trio.Event()
        return frames

    def may_send(self, now_ms: int) -> bool:
        """Charge one message of the client against its rate."""
        passed_s = max(0, now_ms - self.tokens_at_ms) / 1000
        self.tokens = min(BURST_MAX, self.tokens + passed_s * MESSAGES_PER_S)
        self.tokens_at_ms = now_ms
        self.tokens -= 1
        return self.tokens >= 0


@dataclass(slots=True)
class Verdict:
    """What becomes of a client's message."""

    answer: str
    close: tuple[int, str] | None = None


@dataclass(slots=True)
class _Watched:
    """One stream with subscribers."""

    name: str
    kind: str
    tape: Tape | None
    peers: dict[Peer, None] = field(default_factory=dict)
    interval: str = ""
    sent: Part | None = None
    """The bar as it was last told."""
    span: tuple[int, int] = (0, 0)
    due_ms: int = 0
    """When a timed stream is next told."""


Filter = Callable[[Peer, str, bytes], Sequence[bytes]]
"""What is really sent to a peer in place of a frame of some stream."""


class Board:
    """All peers and their streams."""

    def __init__(self, market: Market) -> None:
        self.peers: dict[Peer, None] = {}
        self.events = 0
        """Events told, each once however many peers had it."""
        self.frames = 0
        self.delivered: dict[int, list[tuple[int, Peer]]] = {}
        """By instrument, when a trade went out to whom: the first one of each minute."""
        self.filter: Filter | None = None
        """Set by faults that spoil frames."""
        self._market = market
        self._streams: dict[str, _Watched] = {}
        self._agg_trades: list[_Watched | None] = []
        """The aggTrade stream of each instrument, by number, where anybody wants it."""
        self._klines: dict[str, _Watched] = {}
        self._timed: dict[str, _Watched] = {}
        self._closing: list[tuple[int, _Watched, tuple[int, int]]] = []
        """Klines that are over and not yet told to be: when, whose, which."""
        self._changed: dict[int, None] = {}
        """Instruments that traded since the last round of miniTickers, in order."""
        self._day_texts: dict[int, tuple[Part, int, int, str]] = {}
        self._next_second_ms = market.now_ms // 1000 * 1000 + 1000
        self._next_kline_ms = market.now_ms // _KLINE_EVERY_MS * _KLINE_EVERY_MS

    # -- Connections -------------------------------------------------------------------------

    def join(self, peer: Peer) -> None:
        """Let a connection in."""
        self.peers[peer] = None

    def leave(self, peer: Peer) -> None:
        """Forget a connection."""
        self.peers.pop(peer, None)
        peer.gone_ms = peer.gone_ms or self._market.now_ms
        self.remove(peer, list(peer.streams))

    def add(self, peer: Peer, names: Iterable[str]) -> bool:
        """Subscribe a peer. Any name will do; False past the bound."""
        for name in names:
            if name in peer.streams:
                continue
            if len(peer.streams) >= STREAMS_MAX:
                return False
            peer.streams[name] = None
            if peer.tier != "market":
                continue  # acknowledged, and silent for ever
            watched = self._streams.get(name)
            if watched is None:
                watched = self._watch(name)
            if watched is not None:
                watched.peers[peer] = None
        return True

    def remove(self, peer: Peer, names: Iterable[str]) -> None:
        """Unsubscribe a peer from what it may never have had."""
        for name in names:
            peer.streams.pop(name, None)
            watched = self._streams.get(name)
            if watched is None:
                continue
            watched.peers.pop(peer, None)
            if not watched.peers:
                del self._streams[name]
                self._klines.pop(name, None)
                self._timed.pop(name, None)
                if watched.kind == "aggTrade" and watched.tape is not None:
                    self._agg_trades[watched.tape.instrument.number] = None

    def _watch(self, name: str) -> _Watched | None:
        """Make a stream that exists; None for a name that means nothing."""
        if name in ("!miniTicker@arr", "!contractInfo"):
            self._streams[name] = watched = _Watched(name, name, None)
            return watched
        symbol, _, kind = name.partition("@")
        instrument = self._named(symbol)
        if instrument is None:
            return None
        tape = self._market.tapes[instrument.number]
        watched = _Watched(name, kind, tape)
        if kind == "aggTrade":
            missing = len(self._market.tapes) - len(self._agg_trades)
            self._agg_trades.extend([None] * missing)
            self._agg_trades[instrument.number] = watched
        elif kind.startswith("kline_") and kind[6:] in INTERVALS:
            watched.interval = kind[6:]
            self._klines[name] = watched
        elif kind in ("markPrice", "markPrice@1s", "miniTicker", "ticker"):
            self._timed[name] = watched
        else:
            return None
        self._streams[name] = watched
        return watched

    def _named(self, lowered: str) -> Instrument | None:
        """Return the instrument of a stream name's symbol. Lower case only, letter for letter."""
        instrument = self._market.current.get(lowered.upper())
        if instrument is None or payloads.ascii_lower(instrument.symbol) != lowered:
            return None
        return instrument

    # -- Control messages --------------------------------------------------------------------

    def control(self, peer: Peer, text: str, now_ms: int) -> Verdict:
        """Obey one message of a client."""
        if not peer.may_send(now_ms):
            return Verdict("", (1008, "Too many requests"))
        try:
            message: Any = json.loads(text)
        except ValueError:
            return Verdict(_error(3, "Invalid JSON: expected value"), (1008, "Invalid request"))
        if not isinstance(message, dict):
            return Verdict(_error(2, "Invalid request: request must be an object"))
        method, number = message.get("method"), message.get("id")
        names = message.get("params", [])
        if number is not None and not isinstance(number, int | str):
            return Verdict(_error(2, "Invalid request: request ID must be an integer or a string"))
        if not isinstance(names, list):
            return Verdict(_error(2, "Invalid request: params must be an array"))
        result: object = None
        if method in ("SUBSCRIBE", "UNSUBSCRIBE"):
            if not all(isinstance(name, str) for name in names):
                return Verdict(_error(2, "Invalid request: params must be strings"))
            if method == "UNSUBSCRIBE":
                self.remove(peer, names)
            elif not self.add(peer, names):
                return Verdict(_error(4, "Too many subscriptions"), (1008, "Invalid request"))
        elif method == "LIST_SUBSCRIPTIONS":
            result = list(peer.streams)
        elif method in ("SET_PROPERTY", "GET_PROPERTY"):
            if not names or names[0] != "combined":
                return Verdict(_error(0, "Unknown property"))
            if method == "GET_PROPERTY":
                result = peer.combined
            elif len(names) < 2 or not isinstance(names[1], bool):
                return Verdict(_error(1, "Invalid value type: expected Boolean"))
            else:
                peer.combined = names[1]
        else:
            return Verdict(_error(2, f"Invalid request: unknown method {method!s:.40}"))
        return Verdict(_compact({"result": result, "id": number}))

    # -- Publishing --------------------------------------------------------------------------

    def publish(self, aggregates: list[Aggregate], changes: list[Change], now_ms: int) -> None:
        """Tell everybody what happened up to `now_ms`."""
        if len(self._agg_trades) < len(self._market.tapes):
            missing = len(self._market.tapes) - len(self._agg_trades)
            self._agg_trades.extend([None] * missing)
        instruments, streams, changed = self._market.instruments, self._agg_trades, self._changed
        for aggregate in aggregates:
            number = aggregate.number
            changed[number] = None
            watched = streams[number]
            if watched is not None:
                self._tell(watched, payloads.agg_trade(instruments[number], aggregate))
        for change in changes:
            self._tell_change(change)
        if now_ms >= self._next_kline_ms:
            self._next_kline_ms = now_ms // _KLINE_EVERY_MS * _KLINE_EVERY_MS + _KLINE_EVERY_MS
            self._tell_klines(now_ms)
        if now_ms >= self._next_second_ms:
            self._next_second_ms = now_ms // 1000 * 1000 + 1000
            self._tell_mini_tickers(now_ms)
            self._tell_timed(now_ms)

    def next_due_ms(self) -> int:
        """Return when something is due that no trade calls for."""
        if self._klines or self._closing:
            return self._next_kline_ms
        return self._next_second_ms

    def _tell(self, watched: _Watched, payload: str) -> None:
        """Send one event to all who want it."""
        self.events += 1
        raw = payload.encode()
        wrapped = plain = b""
        for peer in watched.peers:
            if peer.combined:
                if not wrapped:
                    wrapped = frame(b'{"stream":"%b","data":%b}' % (watched.name.encode(), raw))
                data = wrapped
            else:
                plain = data = plain or frame(raw)
            if peer.silenced_until_ms > self._market.now_ms:
                continue
            self.frames += 1
            found: Sequence[bytes] = (data,)
            if self.filter is not None:
                found = self.filter(peer, watched.name, data)
            for spoilt in found:
                peer.push(spoilt)
            if watched.tape is not None and watched.kind == "aggTrade" and data in found:
                self._note_delivered(watched.tape.instrument.number, peer)

    def _note_delivered(self, number: int, peer: Peer) -> None:
        now_ms = self._market.now_ms
        known = self.delivered.setdefault(number, [])
        if not known or known[-1][0] // MINUTE_MS < now_ms // MINUTE_MS:
            known.append((now_ms, peer))

    def _tell_change(self, change: Change) -> None:
        told = change.instrument
        watched = self._streams.get("!contractInfo")
        if watched is not None:
            self._tell(watched, payloads.contract_info(change))
        if change.brackets or told.status != "TRADING":
            return
        self._changed[told.number] = None  # a fresh listing shows its first price
        prefix = f"{payloads.ascii_lower(told.symbol)}@"
        stale = [each for each in self._streams.values() if each.name.startswith(prefix)]
        for each in stale:  # those subscribed to a ticker that is used again hear the new contract
            if each.tape is not self._market.tapes[told.number]:
                peers = list(each.peers)
                for peer in peers:
                    self.remove(peer, [each.name])
                for peer in peers:
                    self.add(peer, [each.name])

    def _tell_mini_tickers(self, now_ms: int) -> None:
        """Tell the tickers that changed: ours, and in frames of their own all the others."""
        changed, self._changed = self._changed, {}
        watched = self._streams.get("!miniTicker@arr")
        if watched is None or not changed:
            return
        ours: list[str] = []
        others: list[str] = []
        for number in changed:
            instrument = self._market.instruments[number]
            if self._market.current[instrument.symbol] is not instrument:
                continue
            usual = instrument.market == USD_M and instrument.contract_type == "PERPETUAL"
            (ours if usual else others).append(self._mini_ticker(number, now_ms))
        for rows in (ours, others):
            for first in range(0, len(rows), _ROWS_A_FRAME):
                self._tell(watched, f"[{','.join(rows[first : first + _ROWS_A_FRAME])}]")

    def _mini_ticker(self, number: int, now_ms: int) -> str:
        tape = self._market.tapes[number]
        close = tape.last_price(now_ms)
        day = tape.day(now_ms)
        known = self._day_texts.get(number)
        if known is None or known[0] is not day or not known[2] <= close <= known[1]:
            high, low = max(day.high, close), min(day.low, close)
            known = (day, high, low, payloads.day_fields(tape.instrument, day, high, low))
            self._day_texts[number] = known
        return payloads.mini_ticker(tape.instrument, now_ms, close, known[3])

    def _tell_timed(self, now_ms: int) -> None:
        """Tell the streams of one symbol that come by the clock."""
        for watched in self._timed.values():
            tape = watched.tape
            if tape is None or now_ms < watched.due_ms or not _alive(tape.instrument, now_ms):
                continue
            every_s = {"markPrice@1s": 1, "markPrice": 3}.get(watched.kind, 2)
            watched.due_ms = now_ms // 1000 * 1000 + every_s * 1000
            close = tape.last_price(now_ms)
            if watched.kind.startswith("markPrice"):
                self._tell(watched, payloads.mark_price(tape.instrument, now_ms, close))
            elif watched.kind == "miniTicker":
                self._tell(watched, self._mini_ticker(tape.instrument.number, now_ms))
            else:
                day = tape.day(now_ms)
                self._tell(watched, payloads.ticker(tape.instrument, now_ms, close, day))

    # -- Klines ------------------------------------------------------------------------------

    def _tell_klines(self, now_ms: int) -> None:
        """Tell the running bars that changed, and those that ended about two seconds ago."""
        due = [each for each in self._closing if each[0] <= now_ms]
        self._closing = [each for each in self._closing if each[0] > now_ms]
        for _, watched, span in due:
            if watched.peers and watched.tape is not None:
                part = watched.tape.part(*span, now_ms)
                self._tell_kline(watched, span, part, now_ms, closed=True)
        for watched in self._klines.values():
            tape = watched.tape
            if tape is None or not _alive(tape.instrument, now_ms):
                continue
            if now_ms >= watched.span[1]:
                if watched.sent is not None:
                    late_ms = CLOSE_LATE_MS + watched.span[1] // 60_000 % 7
                    self._closing.append((watched.span[1] + late_ms, watched, watched.span))
                phase_ms = self._market.options.three_day_phase_ms
                watched.span = span_of(watched.interval, now_ms, phase_ms)
                watched.sent = flat(tape.close_before(watched.span[0]))
            part = tape.part(*watched.span, now_ms)
            if part != watched.sent:
                watched.sent = part
                self._tell_kline(watched, watched.span, part, now_ms, closed=False)

    def _tell_kline(
        self, watched: _Watched, span: tuple[int, int], part: Part, now_ms: int, *, closed: bool
    ) -> None:
        tape = watched.tape
        assert tape is not None
        text = payloads.kline(
            tape.instrument,
            watched.interval,
            span,
            part,
            ids=tape.raw_ids(part.count, now_ms),
            event_ms=now_ms,
            closed=closed,
        )
        self._tell(watched, text)


def _alive(instrument: Instrument, now_ms: int) -> bool:
    return instrument.onboard_ms <= now_ms < instrument.delivery_ms


def _error(code: int, text: str) -> str:
    return _compact({"error": {"code": code, "msg": text}})


def _compact(message: object) -> str:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))
