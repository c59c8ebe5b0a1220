"""The exchange simulator: the market behind REST and websocket, over real sockets or in memory.

Theory of operation: one pump task moves the market along with `now_ms()` and puts the frames of
each step into the outboxes of the connections (see `push`); a REST request moves it too, so that an
answer is never older than its question. All else waits: a connection's tasks for messages, for its
outbox, for its next ping. All waiting is Trio's and all times come from `now_ms`, so the exchange
runs under any clock that Trio runs under.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import h11
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream
from wsproto.utilities import LocalProtocolError

from klagg_trio.sim.faults import Faults
from klagg_trio.sim.klines import INTERVALS, Kline
from klagg_trio.sim.market import Market, SimOptions
from klagg_trio.sim.push import STREAMS_MAX, Board, Peer, frame
from klagg_trio.sim.rest import Endpoints, Reply
from klagg_trio.sim.universe import Instrument
from klagg_trio.sim.wire import SharedStream, pipe

if TYPE_CHECKING:
    import httpx

__all__ = ["SimError", "SimExchange", "SimOptions", "run_sim"]

Dial = Callable[[str, int, bool], Awaitable[trio.abc.Stream]]

HANDSHAKE_S: Final = 10.0
CLOSE_S: Final = 5.0
"""How long a client may take to answer a close frame."""

PING_MIN_S: Final = 140.0
PING_MAX_S: Final = 180.0
PONG_S: Final = 600.0
"""A client that has not answered a ping for this long is cut off."""

_HEADER_BYTES_MAX: Final = 64 << 10
_LISTED_MAX: Final = 10_000_000
"""More bars than any series has."""


_GONE: Final = (
    ConnectionClosed,
    LocalProtocolError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
"""How the end of a connection shows where it is written to or read from."""


class SimError(Exception):
    """The simulator cannot do what it was asked; the text says why."""


@dataclass(frozen=True, slots=True)
class SimStatistics:
    """What the exchange has done so far."""

    now_ms: int
    connections: int
    """Websockets that are open."""
    accepted: int
    """Websockets that were ever open."""
    slow: int
    """Websockets cut off because they did not read."""
    events: int
    frames: int
    requests: dict[str, int]
    statuses: dict[int, int]
    weight_used: int
    weight_peak: int
    faults: dict[str, int]
    """How often each fault came about."""


class SimExchange:
    """One exchange. Call `run` in a task of its own, then serve it over sockets or memory."""

    def __init__(
        self, options: SimOptions, *, now_ms: Callable[[], int], faults: Faults | None = None
    ) -> None:
        self.options = options
        self.market = Market(options)
        self.board = Board(self.market)
        self.faults = Faults(options.seed) if faults is None else faults
        """What goes wrong; its rates may be switched while the exchange runs."""
        self.board.filter = self.faults.spoil
        self._now_ms = now_ms
        self.endpoints = Endpoints(self.market, now_ms)
        self.endpoints.words = self.faults.lies
        self._accepted = 0
        self._slow = 0

    # -- Time --------------------------------------------------------------------------------

    def now_ms(self) -> int:
        """Return the exchange's time."""
        return self._now_ms()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move the market along with the clock, for ever."""
        self.step()
        task_status.started()
        step_ms = self.options.step_ms
        while True:
            now_ms = self._now_ms()
            due_ms = min(self.market.next_due_ms(now_ms + 1000), self.board.next_due_ms())
            due_ms = self.faults.next_due_ms(due_ms)
            due_ms = max(now_ms + 1, -(-due_ms // step_ms) * step_ms)
            # A little is added because `now_ms` rounds down.
            await trio.sleep((due_ms - now_ms) / 1000 + 0.000_5)
            now_ms = self._now_ms()
            # A step stands on the grid where it can, so that what is told does not depend on how
            # late the pump was woken.
            self._move(max(min(due_ms, now_ms), now_ms - now_ms % step_ms))

    def step(self) -> None:
        """Let everything happen that is due by now."""
        self._move(self._now_ms())

    def _move(self, now_ms: int) -> None:
        aggregates, changes = self.market.advance(now_ms)
        changes += self.faults.advance(self.market, self.board)
        self.board.publish(aggregates, changes, self.market.now_ms)

    # -- What others ask ---------------------------------------------------------------------

    def official_klines(
        self,
        symbol: str,
        interval: str,
        start_ms: int,
        end_ms: int,
        *,
        onboard_ms: int | None = None,
    ) -> list[Kline]:
        """Return the klines that open from `start_ms` to `end_ms`, the running one included.

        A ticker that was used again has several lives: `onboard_ms` picks one, None the present.
        """
        assert interval in INTERVALS
        self.step()
        tape = self.market.tape_of(symbol)
        if tape is not None and onboard_ms not in (None, tape.instrument.onboard_ms):
            numbers = [each.number for each in self.lives(symbol) if each.onboard_ms == onboard_ms]
            tape = self.market.tapes[numbers[0]] if numbers else None
        if tape is None:
            raise SimError(f"there is no contract {symbol}")
        spans = self.market.spans(tape, interval, start_ms, end_ms, _LISTED_MAX)
        return self.market.klines(tape, interval, spans)

    def lives(self, symbol: str) -> list[Instrument]:
        """Return every contract that has, had or will have a ticker, oldest first."""
        return [each for each in self.market.instruments if each.symbol == symbol]

    def symbols_now(self) -> list[str]:
        """Return the USDT perpetuals that trade now, busiest first."""
        self.step()
        return [each.symbol for each in self.market.current.values() if each.is_usdt_perpetual]

    def instrument(self, symbol: str) -> Instrument:
        """Return the present contract of a symbol."""
        return self.market.current[symbol]

    def statistics(self) -> SimStatistics:
        """Return what has been done so far."""
        return SimStatistics(
            now_ms=self.market.now_ms,
            connections=len(self.board.peers),
            accepted=self._accepted,
            slow=self._slow,
            events=self.board.events,
            frames=self.board.frames,
            requests=dict(self.endpoints.requests),
            statuses=dict(self.endpoints.statuses),
            weight_used=self.endpoints.weight.used,
            weight_peak=self.endpoints.weight.peak,
            faults=dict(self.faults.counts),
        )

    def answer(self, method: str, target: str) -> Reply:
        """Answer a REST request from the present."""
        self.step()
        return self.faults.answer(
            lambda: self.endpoints.answer(method, target), self.endpoints.weight, self._now_ms()
        )

    # -- Over real sockets -------------------------------------------------------------------

    async def serve(
        self,
        *,
        host: str = "127.0.0.1",
        rest_port: int = 0,
        ws_port: int = 0,
        task_status: trio.TaskStatus[tuple[str, str]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on two ports, for ever. The started value is the REST and the websocket URL."""
        rest = await _listen(host, rest_port)
        try:
            websocket = await _listen(host, ws_port)
        except SimError:
            await rest.aclose()
            raise
        shown = f"[{host}]" if ":" in host else host
        ports = [each.socket.getsockname()[1] for each in (rest, websocket)]
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self.serve_rest, [rest])
            await nursery.start(trio.serve_listeners, self.serve_websocket, [websocket])
            task_status.started((f"http://{shown}:{ports[0]}", f"ws://{shown}:{ports[1]}/market"))

    async def serve_rest(self, stream: trio.abc.Stream) -> None:
        """Serve HTTP on one connection until the client is done with it."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEADER_BYTES_MAX)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            try:
                while True:
                    request = await _next_request(connection, stream)
                    if request is None:
                        break
                    reply = self.answer(request.method.decode(), request.target.decode("latin-1"))
                    if not await _send_reply(connection, stream, reply):
                        break
                    if connection.our_state is not h11.DONE:
                        break
                    connection.start_next_cycle()
            except h11.RemoteProtocolError:
                if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await _send_reply(connection, stream, Reply(400, b"", [], "text/html"))
        await trio.aclose_forcefully(stream)

    async def serve_websocket(self, stream: trio.abc.Stream) -> None:
        """Serve a websocket on one connection until either side ends it."""
        shared = SharedStream(stream)
        try:
            async with trio.open_nursery() as nursery:
                await self._talk(shared, nursery)
                nursery.cancel_scope.cancel()
        except* _GONE:
            pass  # trio-websocket's reader may stumble over a connection that is being torn down
        await trio.aclose_forcefully(stream)

    async def _talk(self, shared: SharedStream, nursery: trio.Nursery) -> None:
        """Shake hands and obey. The nursery is the connection's own: its other tasks live there."""
        invited: tuple[Peer, list[str]] | None = None
        websocket: WebSocketConnection | None = None
        with trio.move_on_after(HANDSHAKE_S), suppress(*_GONE):
            request = await wrap_server_stream(nursery, shared)
            refused = self.faults.refuses()
            if refused is not None:
                await request.reject(refused, body=b"not now")
                return
            invited = self._invited(request.path)
            if invited is None:
                await request.reject(404, body=b"no such path")
                return
            websocket = await request.accept()
        if invited is None or websocket is None or websocket.closed:
            return
        peer, names = invited
        peer.scope = nursery.cancel_scope
        self.board.join(peer)
        self.board.add(peer, names)
        try:
            nursery.start_soon(self._drain, peer, websocket, shared)
            nursery.start_soon(self._ping, peer, websocket)
            life_s = self.faults.life_s(peer.number, self.options.connection_life_s)
            with trio.move_on_after(life_s), suppress(*_GONE):
                await self._obey(peer, websocket, shared)
        finally:
            self.board.leave(peer)
            self._slow += peer.overflowed

    def _invited(self, target: str) -> tuple[Peer, list[str]] | None:
        """Return the peer that a path stands for and the streams it names, if it is a path."""
        split = urlsplit(target)
        steps = split.path.split("/")[1:]
        tier = "legacy"
        if steps and steps[0] in ("market", "public", "private"):
            tier = steps.pop(0)
        if not steps or steps[0] not in ("ws", "stream") or "" in steps:
            return None
        form, names = steps[0], [unquote(step) for step in steps[1:]]
        if (split.query and form == "ws") or (names and form == "stream"):
            return None
        if form == "stream":
            query = dict(parse_qsl(split.query))
            names = [name for name in query.get("streams", "").split("/") if name]
        if len(names) > STREAMS_MAX:
            return None
        self._accepted += 1
        return (
            Peer(
                self._accepted,
                tier,
                form == "stream",
                self.options.outbox_max,
                tokens_at_ms=self.market.now_ms,
            ),
            names,
        )

    async def _obey(self, peer: Peer, websocket: WebSocketConnection, shared: SharedStream) -> None:
        """Obey the client's messages until one of them ends the connection."""
        while True:
            message = await websocket.get_message()
            text = message if isinstance(message, str) else message.decode("latin-1")
            self.step()
            verdict = self.board.control(peer, text, self.market.now_ms)
            answer = frame(verdict.answer.encode()) if verdict.answer else b""
            if verdict.close is None:
                peer.push(answer)
                continue
            self.board.leave(peer)
            code, reason = verdict.close
            with trio.move_on_after(CLOSE_S):
                await shared.send_all(b"".join([*peer.take(), answer]))
                await websocket.aclose(code, reason)
            return

    async def _drain(
        self, peer: Peer, websocket: WebSocketConnection, shared: SharedStream
    ) -> None:
        """Send what is in the outbox, all at once, whenever there is something."""
        with suppress(*_GONE):
            while True:
                await peer.wake.wait()
                if peer.ending and await self._end(peer, websocket, shared):
                    break
                await shared.send_all(b"".join(peer.take()))
        peer.scope.cancel()

    async def _end(self, peer: Peer, websocket: WebSocketConnection, shared: SharedStream) -> bool:
        """End a connection as a fault wants it; False where it is to go on, as good as dead."""
        if peer.ending == "half_open":
            shared.half_open()
            return False
        if peer.ending != "reset":
            await shared.send_all(b"".join(peer.take()))
        if peer.ending == "goodbye":
            with trio.move_on_after(CLOSE_S):
                await websocket.aclose(1001, "going away")
        else:
            await shared.reset()
        return True

    async def _ping(self, peer: Peer, websocket: WebSocketConnection) -> None:
        """Ping now and then, with the time as payload, and cut off a client that is deaf to it."""
        rng = random.Random(f"ping/{self.options.seed}/{peer.number}")
        with suppress(*_GONE):
            while True:
                await trio.sleep(rng.uniform(PING_MIN_S, PING_MAX_S))
                with trio.move_on_after(PONG_S) as deadline:
                    await websocket.ping(str(self._now_ms()).encode())
                if deadline.cancelled_caught:
                    peer.scope.cancel()
                    return

    # -- In memory ---------------------------------------------------------------------------

    def dialer(self, nursery: trio.Nursery) -> Dial:
        """Return a function that opens in-memory websockets; their servers live in `nursery`."""

        async def dial(host: str, port: int, tls: bool) -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            client, server = pipe()
            nursery.start_soon(self.serve_websocket, server)
            return client

        return dial

    def http_transport(self) -> httpx.AsyncBaseTransport:
        """Return a transport for httpx that asks this exchange without a socket."""
        from klagg_trio.sim.transport import MemoryTransport

        return MemoryTransport(self.answer)


async def _listen(host: str, port: int) -> trio.SocketListener:
    try:
        (listener,) = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise SimError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


async def _next_request(connection: h11.Connection, stream: trio.abc.Stream) -> h11.Request | None:
    """Read one request, its body included; None where the client is done."""
    request: h11.Request | None = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage):
            return request
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            return None


_DRIP_PIECES: Final = 8


async def _send_reply(connection: h11.Connection, stream: trio.abc.Stream, reply: Reply) -> bool:
    """Send an answer. False where the connection is to be closed in the middle of it."""
    if reply.delay_s:
        await trio.sleep(reply.delay_s)
    head = h11.Response(
        status_code=reply.status,
        headers=[
            ("Content-Type", reply.content_type),
            ("Content-Length", str(len(reply.body))),
            *reply.headers,
        ],
    )
    body = reply.body if reply.cut_at is None else reply.body[: reply.cut_at]
    data = connection.send(head) or b""
    if reply.drip_s:
        await stream.send_all(data)
        size = max(1, -(-len(body) // _DRIP_PIECES))
        for at in range(0, len(body), size):
            await trio.sleep(reply.drip_s / _DRIP_PIECES)
            await stream.send_all(connection.send(h11.Data(data=body[at : at + size])) or b"")
        data = b""
    else:
        data += connection.send(h11.Data(data=body)) or b""
    if reply.cut_at is not None:
        await stream.send_all(data)
        return False
    await stream.send_all(data + (connection.send(h11.EndOfMessage()) or b""))
    return True


async def run_sim(
    options: SimOptions,
    *,
    now_ms: Callable[[], int],
    host: str = "127.0.0.1",
    rest_port: int = 0,
    ws_port: int = 0,
    faults: Faults | None = None,
    on_ready: Callable[[str, str], None],
) -> None:
    """Run an exchange on two ports until cancelled; `on_ready` is told the two URLs."""
    exchange = SimExchange(options, now_ms=now_ms, faults=faults)
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)

        async def serve(task_status: trio.TaskStatus[tuple[str, str]]) -> None:
            await exchange.serve(
                host=host, rest_port=rest_port, ws_port=ws_port, task_status=task_status
            )

        on_ready(*await nursery.start(serve))
