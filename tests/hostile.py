"""An exchange over real sockets that works, and now and then does what no exchange should.

It speaks just enough for `klagg run`: the time, exchangeInfo, klines that never change, tickers,
and websockets with a trade a second of every symbol. `rest_harm` and `stream_harm` stand in the
way while they are set.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from .exchange.rawpeer import raw_frame, shake

Harm = Callable[[trio.SocketStream], Awaitable[None]]

MINUTE_MS = 60_000
ONBOARD_MS = 1_569_398_400_000
FAR_MS = 4_133_404_800_000


def now_ms() -> int:
    """The exchange's time, which is the machine's."""
    return time.time_ns() // 1_000_000


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A whole HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def contract(symbol: str) -> dict:
    """A row of exchangeInfo."""
    return {
        "symbol": symbol,
        "pair": symbol,
        "contractType": "PERPETUAL",
        "deliveryDate": FAR_MS,
        "onboardDate": ONBOARD_MS,
        "status": "TRADING",
        "quoteAsset": "USDT",
    }


class HostileExchange:
    """See the module's description."""

    def __init__(self, symbols: list[str]) -> None:
        """Serve these symbols."""
        self.symbols = symbols
        self.rest_harm: Harm | None = None
        self.stream_harm: Harm | None = None
        self.harmed = 0
        """How often something was done that no exchange should do."""
        self.rest_port = self.stream_port = 0
        self._ids = dict.fromkeys(symbols, 1_000)
        self._info = json.dumps({"symbols": [contract(symbol) for symbol in symbols]}).encode()

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            ports = []
            for serve in (self._serve_rest, self._serve_stream):
                (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                ports.append(listener.socket.getsockname()[1])
                nursery.start_soon(trio.serve_listeners, partial(_guarded, serve), [listener])
            self.rest_port, self.stream_port = ports
            task_status.started()

    async def _serve_rest(self, stream: trio.SocketStream) -> None:
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                if not (data := await stream.receive_some()):
                    return
                buffer += data
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode()
            if self.rest_harm is not None and not target.startswith("/fapi/v1/time"):
                self.harmed += 1
                await self.rest_harm(stream)
                return
            await stream.send_all(answer(self._answer(target)))

    def _answer(self, target: str) -> bytes:
        path, _, query = target.partition("?")
        if path == "/fapi/v1/time":
            return json.dumps({"serverTime": now_ms()}).encode()
        if path == "/fapi/v1/exchangeInfo":
            return self._info
        if path == "/fapi/v1/klines":
            asked = dict(each.split("=") for each in query.split("&"))
            return json.dumps(self._klines(asked)).encode()
        return b"[]"

    def _klines(self, asked: dict[str, str]) -> list:
        if asked["interval"] != "1m":
            return []
        last_ms = min(int(asked.get("endTime", FAR_MS)), now_ms()) // MINUTE_MS * MINUTE_MS
        rows = min(int(asked["limit"]), 1_500)
        first_ms = max(int(asked.get("startTime", 0)), last_ms - (rows - 1) * MINUTE_MS)
        return [
            [open_ms, *["100"] * 4, "60", open_ms + MINUTE_MS - 1, "6000", 60, "0", "0", "0"]
            for open_ms in range(first_ms // MINUTE_MS * MINUTE_MS, last_ms + 1, MINUTE_MS)
        ]

    # -- Websockets ----------------------------------------------------------------------------

    async def _serve_stream(self, stream: trio.SocketStream) -> None:
        await shake(stream)
        names: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, stream, names, nursery.cancel_scope)
            while True:
                await trio.sleep(1.0)
                if self.stream_harm is not None and names:
                    self.harmed += 1
                    await self.stream_harm(stream)
                await stream.send_all(b"".join(self._frames(names)))

    async def _read(self, stream, names: list[str], scope: trio.CancelScope) -> None:
        """Read what the client sends: masked frames, of which only requests matter."""
        buffer = b""
        while data := await stream.receive_some():
            buffer += data
            while frame := _unmasked(buffer):
                opcode, payload, buffer = frame
                if opcode == 1:
                    request = json.loads(payload)
                    if request["method"] == "SUBSCRIBE":
                        names.extend(request["params"])
                    await stream.send_all(
                        raw_frame(json.dumps({"result": None, "id": request["id"]}).encode())
                    )
                elif opcode == 8:
                    scope.cancel()
                    return
        scope.cancel()

    def _frames(self, names: list[str]):
        at_ms = now_ms()
        for name in names:
            symbol = name.partition("@")[0].upper()
            if name.endswith("@aggTrade"):
                self._ids[symbol] += 1
                trade_id = self._ids[symbol]
                yield raw_frame(
                    f'{{"stream":"{name}","data":{{"e":"aggTrade","E":{at_ms},"a":{trade_id},'
                    f'"s":"{symbol}","p":"100.00","q":"1.000","nq":"1.000","f":{trade_id},'
                    f'"l":{trade_id},"T":{at_ms - 5},"m":true,"st":1}}}}'.encode()
                )
            elif name.endswith("@markPrice@1s"):
                data = {"e": "markPriceUpdate", "E": at_ms, "s": symbol, "p": "100"}
                yield raw_frame(json.dumps({"stream": name, "data": data}).encode())
            elif name == "!miniTicker@arr":
                rows = [{"s": s, "c": "100", "E": at_ms, "v": "1"} for s in self.symbols]
                yield raw_frame(json.dumps({"stream": name, "data": rows}).encode())


async def _guarded(serve, stream: trio.SocketStream) -> None:
    """Serve one connection; the client may leave whenever it likes."""
    try:
        async with stream:
            await serve(stream)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


def _unmasked(buffer: bytes) -> tuple[int, bytes, bytes] | None:
    """Return opcode and payload of the first frame of a client, and what is behind it."""
    if len(buffer) < 6:
        return None
    size, at = buffer[1] & 0x7F, 2
    if size == 126:
        size, at = int.from_bytes(buffer[2:4], "big"), 4
    elif size == 127:
        size, at = int.from_bytes(buffer[2:10], "big"), 10
    if len(buffer) < at + 4 + size:
        return None
    mask, data = buffer[at : at + 4], buffer[at + 4 : at + 4 + size]
    payload = bytes(byte ^ mask[number % 4] for number, byte in enumerate(data))
    return buffer[0] & 0x0F, payload, buffer[at + 4 + size :]
