"""An httpx transport that asks the simulator in memory, its delays and broken bodies included."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

import httpx
import trio

from klagg_trio.sim.rest import Reply

_DRIP_PIECES: Final = 8


class MemoryTransport(httpx.AsyncBaseTransport):
    """Hands requests to `answer` and its replies back, as the network would."""

    def __init__(self, answer: Callable[[str, str], Reply]) -> None:
        self._answer = answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request; a delay longer than the read timeout is a timeout."""
        await trio.lowlevel.checkpoint()
        reply = self._answer(request.method, request.url.raw_path.decode("latin-1"))
        patience_s = request.extensions.get("timeout", {}).get("read")
        await _wait(reply.delay_s, patience_s, request)
        return httpx.Response(
            reply.status,
            headers=[
                ("Content-Type", reply.content_type),
                ("Content-Length", str(len(reply.body))),
                *reply.headers,
            ],
            stream=_Body(reply, patience_s, request),
            request=request,
        )


class _Body(httpx.AsyncByteStream):
    """The bytes of a reply, spoilt as the reply says."""

    def __init__(self, reply: Reply, patience_s: float | None, request: httpx.Request) -> None:
        self._reply = reply
        self._patience_s = patience_s
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reply = self._reply
        body = reply.body if reply.cut_at is None else reply.body[: reply.cut_at]
        size = max(1, -(-len(body) // _DRIP_PIECES)) if reply.drip_s else max(1, len(body))
        for at in range(0, len(body), size):
            await _wait(reply.drip_s / _DRIP_PIECES, self._patience_s, self._request)
            yield body[at : at + size]
        if reply.cut_at is not None:
            raise httpx.RemoteProtocolError(
                "peer closed connection without sending complete message body",
                request=self._request,
            )


async def _wait(seconds: float, patience_s: float | None, request: httpx.Request) -> None:
    if not seconds:
        return
    if patience_s is not None and seconds > patience_s:
        await trio.sleep(patience_s)
        raise httpx.ReadTimeout("timed out", request=request)
    await trio.sleep(seconds)
