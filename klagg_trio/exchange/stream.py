"""Websocket connections to the exchange, their data frames taken out in batches.

Theory of operation
-------------------
A connection is trio-websocket's, on a byte stream with a frame tap (`tap.py`). The tap puts the
text frames of each received chunk into `batches`; trio-websocket sees to handshake, pings and
closing, and what it puts together of fragments goes into `batches` too (`pump_rest`), so a reader
need not know.

Three things live within the context of `open_connection`: trio-websocket's reader, the pump, and
the caller's block. `batches` ends after the last list received when the peer is gone. Leaving the
context closes `batches` first, which frees a tap that waits for room, so that the closing handshake
gets its chance of `DISCONNECT_S`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import h11
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)
from wsproto.utilities import LocalProtocolError, ProtocolError

from klagg_trio.core.errors import KlaggError, RemoteError
from klagg_trio.core.plain import plain, plain_body
from klagg_trio.exchange.address import Address, parse_address
from klagg_trio.exchange.frames import Frames
from klagg_trio.exchange.tap import FRAME_BYTES_MAX, ConnectionStatistics, FrameTap
from klagg_trio.exchange.tls import DrainingTlsStream, network_reason

__all__ = [
    "Connection",
    "ConnectionStatistics",
    "Dial",
    "DrainingTlsStream",
    "FrameTap",
    "dial_tcp",
    "open_connection",
]

DISCONNECT_S: Final = 1.0
"""For the closing handshake; a peer that does not answer is left at that."""

BATCHES_MAX: Final = 8
"""Batches waiting. Above it the tap stops reading: at 50 ms a read that is half a second, and at
512 KiB a chunk 4 MB."""

SEND_S: Final = 10.0
"""To send a request: a peer that takes nothing any more is no good."""

Dial = Callable[[str, int, bool], Awaitable[trio.abc.Stream]]
"""Opens a byte stream to a host and port, with TLS or without."""


class Connection:
    """An open websocket. Made by `open_connection`."""

    def __init__(
        self,
        websocket: WebSocketConnection,
        tap: FrameTap,
        batches: trio.MemoryReceiveChannel[Frames],
        url: str,
    ) -> None:
        """Use a websocket that is up."""
        self.batches = batches
        """Received text messages, those of one chunk together. Ends when the peer is gone."""
        self._url = url
        self._websocket = websocket
        self._tap = tap

    async def send_text(self, text: str) -> None:
        """Send a message. RemoteError where the connection is gone, or takes nothing any more."""
        with trio.move_on_after(SEND_S):
            try:
                await self._websocket.send_message(text)
            except _FOREIGN as error:
                raise _remote_error(self._url, error) from error
            return
        raise RemoteError(f"the connection has taken nothing for {SEND_S:g} s")

    async def ping(self) -> None:
        """Send a ping and wait for its pong. RemoteError where the connection ends before."""
        with trio.CancelScope() as scope, self._tap.cancelling_at_end(scope):
            try:
                await self._websocket.ping()
            except _FOREIGN as error:
                raise _remote_error(self._url, error) from error
            return
        raise RemoteError("the connection ended before a ping was answered")

    async def pump_rest(self, sink: trio.MemorySendChannel[Frames]) -> None:
        """Bring to `batches` what trio-websocket had to put together, until it is closed."""
        async with sink:
            while True:
                try:
                    message = await self._websocket.get_message()
                except ConnectionClosed:
                    break
                data = message.encode() if isinstance(message, str) else message
                await self._tap.deliver_rest(sink, data)
        self._tap.end()

    async def leave(self) -> None:
        """Close, politely where that is quick. What nobody has taken is counted."""
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            while True:
                self._tap.count_dropped(self.batches.receive_nowait())
        self.batches.close()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + DISCONNECT_S):
            await self._websocket.aclose()
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._tap)

    def statistics(self) -> ConnectionStatistics:
        """Return what has been received so far."""
        return self._tap.statistics()


@asynccontextmanager
async def open_connection(
    url: str,
    dial: Dial | None = None,
    *,
    read_pause_s: float = 0.0,
    batches_max: int = BATCHES_MAX,
    connect_timeout_s: float = 10.0,
) -> AsyncIterator[Connection]:
    """Open a websocket; the context is left within `DISCONNECT_S`.

    Args:
        url: wss://, or ws:// on loopback; else ConfigurationError.
        dial: opens the byte stream; `dial_tcp` where it is None.
        read_pause_s: after data, wait for the next multiple of this time before reading on, so that
            chunks grow and wake-ups fall.
        batches_max: batches that may wait to be taken.
        connect_timeout_s: for name, TCP, TLS and websocket handshake together.

    Raises RemoteError where the connection cannot be made, and on leaving where the peer broke the
    protocol. A connection that just ends is told by the end of `batches`.
    """
    address = parse_address(url, "wss")
    send, receive = trio.open_memory_channel[Frames](batches_max)
    body_error: BaseException | None = None
    try:
        # The reader of trio-websocket and our pump live here, no longer than the context.
        async with trio.open_nursery() as nursery:
            tap = await _tapped(address, dial or dial_tcp, send, connect_timeout_s)
            try:
                websocket = await _shake_hands(nursery, tap, address)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(tap)
                raise
            tap.read_pause_s = read_pause_s
            connection = Connection(websocket, tap, receive, address.url)
            nursery.start_soon(connection.pump_rest, send.clone())
            try:
                yield connection
            except BaseException as error:
                body_error = error
                raise
            finally:
                await connection.leave()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if body_error is None and _is_only_late(group):
            return
        culprit = _culprit(group, body_error, address.url)
        if culprit is None:
            raise
        raise culprit from culprit.__cause__
    if tap.failure:
        raise RemoteError(f"{address.url}: {tap.failure}")


async def _tapped(
    address: Address, dial: Dial, sink: trio.MemorySendChannel[Frames], timeout_s: float
) -> FrameTap:
    """Open the byte stream and put the tap on it."""
    deadline_s = trio.current_time() + timeout_s
    with trio.move_on_at(deadline_s):
        try:
            stream = await dial(address.host, address.port, address.tls)
        except _FOREIGN as error:
            raise RemoteError(
                f"cannot connect to {address.url} ({_reason(error)}); check network and URL"
            ) from error
        return FrameTap(stream, sink, handshake_deadline_s=deadline_s)
    raise RemoteError(f"{address.url} did not answer within {timeout_s:g} s")


async def _shake_hands(
    nursery: trio.Nursery, tap: FrameTap, address: Address
) -> WebSocketConnection:
    """Make the websocket. Its reader task goes into `nursery`, which lives as long as it."""
    with (
        trio.CancelScope(deadline=tap.handshake_deadline_s) as scope,
        # trio-websocket waits for ever where the stream ends before the answer.
        tap.cancelling_at_end(scope),
    ):
        return await wrap_client_stream(
            nursery,
            tap,  # type: ignore[arg-type]
            address.authority,
            address.path or "/",
            max_message_size=FRAME_BYTES_MAX,
            receive_buffer_size=None,
        )
    if tap.failure:
        raise RemoteError(f"{address.url}: {tap.failure}")
    what = "closed the connection during" if tap.ended else "did not answer"
    raise RemoteError(f"{address.url} {what} the websocket handshake")


_FOREIGN: Final = (
    ConnectionClosed,
    HandshakeError,
    ProtocolError,
    h11.ProtocolError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    OSError,  # ssl.SSLError is one
)
"""What trio, ssl, sockets and trio-websocket raise for what the peer or the network did."""


def _remote_error(url: str, error: BaseException) -> RemoteError:
    return RemoteError(f"{url}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """Say in words what a foreign exception means."""
    match error:
        case ConnectionRejected():
            words = plain_body(error.body or b"")
            return f"the handshake was refused with HTTP status {error.status_code}" + (
                f": {words}" if words else ""
            )
        case ConnectionClosed() if error.reason is not None:
            reason = f" {plain(error.reason.reason)!r}" if error.reason.reason else ""
            return f"closed with code {error.reason.code}{reason}"
        case ProtocolError() | h11.ProtocolError():
            return f"what it sends is no websocket: {plain(str(error))}"
        case _:
            return network_reason(error)


def _is_only_late(group: BaseExceptionGroup[BaseException]) -> bool:
    """Whether all that went wrong is that trio-websocket answered a ping while we were leaving."""
    return all(isinstance(error, LocalProtocolError) for error in group.exceptions)


def _culprit(
    group: BaseExceptionGroup[BaseException], body_error: BaseException | None, url: str
) -> BaseException | None:
    """Return the one exception to raise for a group, or None where it has to go on as it is."""
    if body_error is not None and any(each is body_error for each in group.exceptions):
        return body_error
    culprit: BaseException | None = None
    for error in group.exceptions:
        if isinstance(error, KlaggError):
            culprit = error
        elif isinstance(error, _FOREIGN):
            culprit = culprit or _remote_error(url, error)
            culprit.__cause__ = culprit.__cause__ or error
        elif not isinstance(error, trio.Cancelled):
            return None
    return culprit


async def dial_tcp(host: str, port: int, tls: bool) -> trio.abc.Stream:
    """Open a TCP stream to whichever address of `host` answers first, with TLS if asked for."""
    stream = await trio.open_tcp_stream(host, port)  # sets TCP_NODELAY
    if not tls:
        return stream
    return await DrainingTlsStream.connect(stream, host)
