"""What stands between klagg and the exchange, and may do anything to what passes.

Theory of operation
-------------------
Two listeners on loopback, a thread a connection. REST requests are read, asked of the exchange, and
answered: as they were, or by whatever `rest` does instead, which is given the socket and the true
answer. Websocket connections are relayed in both directions; frames from the exchange are found in
the stream, so that `frame` may change, drop, hold or repeat each, and so that others can be sent
between two of them. What was done is counted: an evil that never happened proves nothing.

It shares no code with klagg or with its simulator: HTTP and websocket frames are read by hand.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from prove.process import Exchange

WAIT_S = 60.0
"""A peer that says nothing for this long is given up."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A true answer to a request."""

    target: str
    status: int
    headers: dict[str, str]
    body: bytes

    def packed(self, body: bytes | None = None, status: int = 200, **headers: str) -> bytes:
        """Return an answer as bytes on the wire, with some of it replaced."""
        body = self.body if body is None else body
        named = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        weight = self.headers.get("x-mbx-used-weight-1m", "1")
        named |= {"X-MBX-USED-WEIGHT-1M": weight}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in named.items() if value)
        return f"HTTP/1.1 {status} Whatever\r\n{lines}\r\n".encode("latin-1") + body


EvilAnswer = Callable[[socket.socket, Answer], None]
"""Answers a request in its own way. The connection is closed afterwards."""

EvilFrame = Callable[[bytes], list[bytes]]
"""Returns what is sent in the place of one frame's bytes."""


class Middle:
    """See the module's theory of operation. A context manager."""

    def __init__(self, exchange: Exchange) -> None:
        """Stand before an exchange; let everything pass."""
        self.rest: EvilAnswer | None = None
        self.rest_paths: tuple[str, ...] = ()
        """The paths to which `rest` answers; none: all."""
        self.handshake: bytes | None = None
        """What answers a websocket handshake instead of the exchange."""
        self.frame: EvilFrame | None = None
        self.done: Counter[str] = Counter()
        """What was done: answers, frames, handshakes."""
        self.trades: dict[str, dict] = {}
        """The newest trade of each symbol that has passed."""
        self._exchange = exchange
        self._listeners: list[socket.socket] = []
        self._clients: dict[socket.socket, threading.Lock] = {}
        self._threads: list[threading.Thread] = []
        self._ending = False

    def __enter__(self) -> Self:
        self.rest_url = f"http://127.0.0.1:{self._listen(self._serve_rest)}"
        path = urlsplit(self._exchange.ws_url).path
        self.ws_url = f"ws://127.0.0.1:{self._listen(self._serve_websocket)}{path}"
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    # -- What rows do --------------------------------------------------------------------------

    def heal(self) -> None:
        """Let everything pass again."""
        self.rest, self.rest_paths, self.handshake, self.frame = None, (), None, None

    def cut(self, *, reset: bool = True) -> None:
        """Cut every websocket connection."""
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                if reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.shutdown(socket.SHUT_RDWR)

    def send(self, data: bytes) -> int:
        """Send bytes on every websocket connection, between two frames. Returns on how many."""
        sent = 0
        for client, lock in list(self._clients.items()):
            with contextlib.suppress(OSError), lock:
                client.sendall(data)
                sent += 1
        self.done["frames"] += sent
        return sent

    # -- REST ----------------------------------------------------------------------------------

    def _serve_rest(self, client: socket.socket) -> None:
        """Answer requests until the client goes or is answered in an evil way."""
        while True:
            head = _read_head(client)
            if not head:
                return
            answer = self._asked(head.split(b" ")[1].decode("latin-1"))
            evil = self.rest
            path = urlsplit(answer.target).path
            if evil is None or (self.rest_paths and path not in self.rest_paths):
                client.sendall(answer.packed(status=answer.status))
                continue
            self.done["answers"] += 1
            evil(client, answer)
            return

    def _asked(self, target: str) -> Answer:
        """Ask the exchange itself."""
        split = urlsplit(self._exchange.rest_url)
        connection = http.client.HTTPConnection(split.hostname or "", split.port, timeout=WAIT_S)
        try:
            connection.request("GET", target)
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(target, answer.status, headers, answer.read())
        finally:
            connection.close()

    # -- Websocket -----------------------------------------------------------------------------

    def _serve_websocket(self, client: socket.socket) -> None:
        """Relay one connection."""
        head = _read_head(client)
        if not head:
            return
        if self.handshake is not None:
            self.done["handshakes"] += 1
            client.sendall(self.handshake)
            return
        split = urlsplit(self._exchange.ws_url)
        with socket.create_connection((split.hostname, split.port), timeout=WAIT_S) as upstream:
            upstream.sendall(head)
            answer = _read_head(upstream)
            client.sendall(answer)
            self._clients[client] = threading.Lock()
            self._start(self._relay_up, client, upstream)
            try:
                self._relay_down(upstream, client)
            finally:
                self._clients.pop(client, None)

    def _relay_up(self, client: socket.socket, upstream: socket.socket) -> None:
        """Pass on what the client says."""
        try:
            while data := client.recv(65_536):
                upstream.sendall(data)
        finally:
            upstream.shutdown(socket.SHUT_RDWR)

    def _relay_down(self, upstream: socket.socket, client: socket.socket) -> None:
        """Pass on frames of the exchange, or what becomes of them."""
        buffer = b""
        while data := upstream.recv(65_536):
            buffer += data
            frames, buffer = split_frames(buffer)
            for each in frames:
                self._look_at(each)
                evil = self.frame
                passed = [each] if evil is None else evil(each)
                if passed != [each]:
                    self.done["frames"] += 1
                with self._clients[client]:
                    for piece in passed:
                        client.sendall(piece)

    def _look_at(self, each: bytes) -> None:
        """Remember the newest trade of each symbol."""
        payload = payload_of(each)
        if b'"aggTrade"' in payload:
            trade = json.loads(payload)
            trade = trade.get("data", trade)
            self.trades[trade["s"]] = trade

    # -- Sockets -------------------------------------------------------------------------------

    def _listen(self, serve: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        self._listeners.append(listener)

        def accept() -> None:
            while not self._ending:
                client, _ = listener.accept()
                client.settimeout(None)
                self._start(self._serve_and_close, serve, client)

        self._start(accept)
        return int(listener.getsockname()[1])

    def _serve_and_close(
        self, serve: Callable[[socket.socket], None], client: socket.socket
    ) -> None:
        with client:
            serve(client)

    def _start(self, function: Callable[..., None], *arguments: object) -> None:
        """Run something in a thread that ends when its peer is gone."""

        def run() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException, KeyError):
                function(*arguments)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()


def _read_head(peer: socket.socket) -> bytes:
    """Return all up to an empty line; nothing where the peer has gone."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = peer.recv(1)
        if not data:
            return b""
        head += data
    return head


# -- Frames ----------------------------------------------------------------------------------------


def frame(payload: bytes, first: int = 0x81) -> bytes:
    """Return a frame as a server sends it. `first` holds FIN, the reserved bits and the opcode."""
    if len(payload) < 126:
        return bytes((first, len(payload))) + payload
    if len(payload) < 65_536:
        return bytes((first, 126)) + struct.pack(">H", len(payload)) + payload
    return bytes((first, 127)) + struct.pack(">Q", len(payload)) + payload


def payload_of(each: bytes) -> bytes:
    """Return what a server's frame carries."""
    short = each[1] & 0x7F
    return each[{126: 4, 127: 10}.get(short, 2) :]


def split_frames(buffer: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole frames at the start of a stream, and what is left."""
    frames, at = [], 0
    while len(buffer) - at >= 2:
        length, start = buffer[at + 1] & 0x7F, at + 2
        if length == 126:
            length, start = int.from_bytes(buffer[at + 2 : at + 4], "big"), at + 4
        elif length == 127:
            length, start = int.from_bytes(buffer[at + 2 : at + 10], "big"), at + 10
        if start + length > len(buffer):
            break
        frames.append(buffer[at : start + length])
        at = start + length
    return frames, buffer[at:]
