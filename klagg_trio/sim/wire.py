"""Byte streams of the simulator's connections: one that writers share, and a bounded pipe."""

from __future__ import annotations

import struct
from typing import Final

import trio

PIPE_MAX: Final = 1 << 20
"""Bytes on their way in one direction of a pipe; then the writer waits, as for a full socket."""


class SharedStream(trio.abc.Stream):
    """A stream that several tasks may write to: what one sends is never torn by another."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._lock = trio.Lock()
        self._half_open = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, after those that came before."""
        async with self._lock:
            if self._half_open:
                await trio.lowlevel.checkpoint()
            else:
                await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the stream may take more."""
        async with self._lock:
            await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive. One task does."""
        while True:
            data = await self.stream.receive_some(max_bytes)
            if not data or not self._half_open:
                return data

    def half_open(self) -> None:
        """Drop whatever is sent or received from now on, and stay open."""
        self._half_open = True

    async def reset(self) -> None:
        """Cut the connection at once: the other end gets a reset, not an end."""
        if isinstance(self.stream, PipeStream):
            self.stream.reset()
        elif isinstance(self.stream, trio.SocketStream):
            linger = struct.pack("ii", 1, 0)
            self.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, linger)
        await trio.aclose_forcefully(self.stream)

    async def aclose(self) -> None:
        """Close both directions."""
        await self.stream.aclose()


class _Half:
    """One direction of a pipe."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.ended = False
        """The writer has closed: what is in the buffer is the last."""
        self.broken = False
        """The reader has closed, or the pipe was reset."""
        self.changed = trio.Event()

    def notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class PipeStream(trio.abc.Stream):
    """One end of an in-memory connection that holds at most `PIPE_MAX` bytes each way."""

    def __init__(self, outgoing: _Half, incoming: _Half) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all, waiting while the other end does not read."""
        await trio.lowlevel.checkpoint()
        rest = memoryview(bytes(data))
        half = self._outgoing
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if half.broken:
                raise trio.BrokenResourceError("the other end is gone")
            room = PIPE_MAX - len(half.buffer)
            if room > 0 and rest:
                half.buffer += rest[:room]
                rest = rest[room:]
                half.notify()
            if not rest:
                return
            await half.changed.wait()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for room."""
        await trio.lowlevel.checkpoint()
        half = self._outgoing
        while len(half.buffer) >= PIPE_MAX and not half.broken and not self._closed:
            await half.changed.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Read what there is; b"" at the end."""
        await trio.lowlevel.checkpoint()
        half = self._incoming
        while not half.buffer:
            if self._closed:
                raise trio.ClosedResourceError
            if half.broken:
                raise trio.BrokenResourceError("connection reset")
            if half.ended:
                return b""
            await half.changed.wait()
        if self._closed:
            raise trio.ClosedResourceError
        data = bytes(half.buffer[:max_bytes])
        del half.buffer[: len(data)]
        half.notify()
        return data

    def reset(self) -> None:
        """Break both directions at once, as a connection reset does: unread data is lost."""
        for half in (self._outgoing, self._incoming):
            half.buffer.clear()
            half.broken = True
            half.notify()

    async def aclose(self) -> None:
        """Close; the other end reads what is left, then the end."""
        if not self._closed:
            self._closed = True
            self._outgoing.ended = True
            self._incoming.broken = True
            self._incoming.buffer.clear()
            self._outgoing.notify()
            self._incoming.notify()
        await trio.lowlevel.checkpoint()


def pipe() -> tuple[PipeStream, PipeStream]:
    """Return the two ends of an in-memory connection."""
    there, back = _Half(), _Half()
    return PipeStream(there, back), PipeStream(back, there)
