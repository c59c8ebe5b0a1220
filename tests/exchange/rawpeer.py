"""The other end of a websocket, by bytes: it does what no library would let it do."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable

import trio
import trio.testing

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def raw_frame(payload: bytes, *, opcode: int = 1, fin: bool = True) -> bytes:
    """Return one unmasked websocket frame."""
    first = (0x80 if fin else 0) | opcode
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65_536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


async def shake(stream: trio.abc.Stream) -> None:
    """Answer the handshake of a client as it should be."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += await stream.receive_some()
    found = re.search(rb"(?i)sec-websocket-key: *([^\r]+)", request)
    assert found is not None
    accept = base64.b64encode(hashlib.sha1(found[1].strip() + GUID).digest())
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


class RawPeer:
    """Dials to a script: one task for each connection, which has its end of a memory stream."""

    def __init__(
        self, nursery: trio.Nursery, script: Callable[[trio.abc.Stream], Awaitable[None]]
    ) -> None:
        """Run `script(stream)` in `nursery` for each connection that is made."""
        self.connections = 0
        self._nursery = nursery
        self._script = script

    async def dial(self, host: str, port: int, tls: bool) -> trio.abc.Stream:
        """Make a connection."""
        await trio.lowlevel.checkpoint()
        self.connections += 1
        client, server = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._serve, server)
        return client

    async def _serve(self, stream: trio.abc.Stream) -> None:
        try:
            await self._script(stream)
            await stream.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has had enough
