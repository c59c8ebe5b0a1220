"""A websocket server that sends one capture to the client that asks for it: as fast as it is taken,
or at a set rate. The exchange of `wire_to_bars`, in a process of its own.

It must never be what a benchmark measures, so everything is made ready before the first byte goes
out: the frames lie in a file in their final form, and with TLS the records are encrypted into
memory while the client waits (`records` frames to a record). What is left is writing long buffers
to a socket, several million frames a second.

Subscriptions are acknowledged. Sending begins once `--names` aggTrade streams were asked for, or
half a second after the handshake of a client that names them in the URL. The process ends when all
is sent and the client has gone, and after `--timeout` in any case.
"""

from __future__ import annotations

import argparse
import base64
import bisect
import hashlib
import itertools
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.market import CACHE, Capture, capture

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
RECORD_FRAMES_BURST = 64
"""Frames to a record in the burst shape: some 13 kB, near the largest record."""


def certificate() -> tuple[Path, Path, Path]:
    """Return (authority, certificate, key) for loopback, made once with trustme."""
    folder = CACHE / "tls"
    paths = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    if not paths[2].exists():
        import trustme

        folder.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(str(paths[0]))
        paths[1].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(paths[2]))
    return paths


# -- The server's side -----------------------------------------------------------------------------


class Peer:
    """The connected client: bytes in and out, through TLS or not."""

    def __init__(self, connection: socket.socket, tls: bool) -> None:
        self.socket = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls: ssl.SSLObject | None = None
        if tls:
            _, chain, key = certificate()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(chain, key)
            self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = context.wrap_bio(self._in, self._out, server_side=True)
            self._shake_hands()

    def _shake_hands(self) -> None:
        assert self._tls is not None
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            else:
                self._flush()
                return

    def _flush(self) -> None:
        if data := self._out.read():
            self.socket.sendall(data)

    def _fill(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the client is gone")
        self._in.write(data)

    def receive(self) -> bytes:
        """Return the next bytes from the client, b"" at the end."""
        if self._tls is None:
            return self.socket.recv(65536)
        while True:
            try:
                return self._tls.read(65536)
            except ssl.SSLWantReadError:
                try:
                    self._fill()
                except ConnectionError:
                    return b""
            except ssl.SSLError:
                return b""

    def send(self, data: bytes) -> None:
        for piece in self.prepared([data]):
            self.socket.sendall(piece)

    def prepared(self, pieces: Iterator[bytes] | list[bytes]) -> Iterator[bytes]:
        """Yield pieces in the form in which they go to the socket: one record each with TLS."""
        if self._tls is None:
            yield from pieces
            return
        for piece in pieces:
            self._tls.write(piece)
            yield self._out.read()


def shake_hands(peer: Peer) -> bytes:
    """Answer the websocket handshake; return what came after it."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = peer.receive()
        if not data:
            raise ConnectionError("the client is gone")
        head += data
    head, _, rest = head.partition(b"\r\n\r\n")
    fields = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        fields[name.strip().lower()] = value.strip()
    accept = base64.b64encode(hashlib.sha1(fields[b"sec-websocket-key"] + GUID).digest())
    peer.send(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    return rest


def client_frames(buffer: bytearray) -> Iterator[tuple[int, bytes]]:
    """Take the whole frames of a client out of a buffer: opcode and contents."""
    while len(buffer) >= 6:
        size, start = buffer[1] & 0x7F, 2
        if size == 126:
            size, start = int.from_bytes(buffer[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(buffer[2:10], "big"), 10
        if len(buffer) < start + 4 + size:
            return
        mask = itertools.cycle(bytes(buffer[start : start + 4]))
        content = buffer[start + 4 : start + 4 + size]
        body = bytes(each ^ key for each, key in zip(content, mask, strict=False))
        yield buffer[0] & 0x0F, body
        del buffer[: start + 4 + size]


def take_subscriptions(peer: Peer, rest: bytes, names: int) -> set[str]:
    """Acknowledge requests until so many trade streams were asked for; return their symbols."""
    buffer = bytearray(rest)
    asked: set[str] = set()
    while len(asked) < names:
        for opcode, body in client_frames(buffer):
            if opcode == 9:
                peer.send(bytes((0x8A, len(body))) + body)
            if opcode not in (1, 2):
                continue
            request = json.loads(body)
            for name in request.get("params", ()):
                symbol, _, kind = name.partition("@")
                if "rade" in kind:
                    asked.add(symbol.upper())
            answer = json.dumps({"result": None, "id": request.get("id")}).encode()
            peer.send(bytes((0x81, len(answer))) + answer)
        if len(asked) < names:
            data = peer.receive()
            if not data:
                raise ConnectionError("the client is gone")
            buffer += data
    return asked


def send_at_once(peer: Peer, source: Capture, *, tls: bool, frames_per_record: int) -> None:
    """Send the whole capture as fast as it is taken."""
    frames = source.frames()
    if not tls:
        peer.socket.sendall(frames)
        return
    edges = [0, *itertools.accumulate(source.lengths())]
    stops = [*edges[::frames_per_record], edges[-1]]
    pieces = (bytes(frames[a:b]) for a, b in itertools.pairwise(stops) if a < b)
    ready = list(peer.prepared(pieces))
    joined = [b"".join(ready[at : at + 2_000]) for at in range(0, len(ready), 2_000)]
    for each in joined:
        peer.socket.sendall(each)


def send_part_at_rate(
    peer: Peer, source: Capture, rate_per_s: float, *, symbols: set[str], start_at_s: float
) -> None:
    """Send the frames of some symbols, a record each, when they are due."""
    frames = source.frames()
    edges = [0, *itertools.accumulate(source.lengths())]
    numbers, pieces = [], []
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        piece = bytes(frames[start:stop])
        at = piece.index(b'"s":"') + 5
        if piece[at : piece.index(b'"', at)].decode() in symbols:
            numbers.append(number)
            pieces.append(piece)
    ready = list(peer.prepared(pieces))
    start_s = max(start_at_s, time.monotonic() + 0.1)
    sent = 0
    while sent < len(ready):
        due = bisect.bisect_left(numbers, int((time.monotonic() - start_s) * rate_per_s))
        if due > sent:
            peer.socket.sendall(b"".join(ready[sent:due]))
            sent = due
        time.sleep(0.0005)


def send_at_rate(
    peer: Peer, source: Capture, rate_per_s: float, *, frames_per_record: int, start_at_s: float
) -> None:
    """Send the frames due at each millisecond; each record holds `frames_per_record`."""
    frames = source.frames()
    edges = [0, *itertools.accumulate(source.lengths())]
    stops = [*edges[::frames_per_record], edges[-1]]
    pieces = (bytes(frames[a:b]) for a, b in itertools.pairwise(stops) if a < b)
    ready = list(peer.prepared(pieces))
    records = len(ready)
    # Two milliseconds of lead, and never a burst longer than what fell due meanwhile.
    start_s = max(start_at_s, time.monotonic() + 0.1)
    sent = 0
    while sent < records:
        due = min(records, int((time.monotonic() - start_s) * rate_per_s / frames_per_record))
        if due > sent:
            peer.socket.sendall(b"".join(ready[sent:due]))
            sent = due
        time.sleep(0.0005)


def wait_for_end(peer: Peer) -> None:
    """Stay until the client goes."""
    peer.socket.settimeout(10)
    with suppress(OSError):
        while peer.socket.recv(65536):
            pass


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--symbols", type=int, required=True)
    parse.add_argument("--trades", type=int, required=True)
    parse.add_argument("--market-rate", type=float, required=True)
    parse.add_argument("--start-ms", type=int, required=True)
    parse.add_argument("--form", default="aggTrade")
    parse.add_argument("--names", type=int, default=0)
    parse.add_argument("--connections", type=int, default=1)
    parse.add_argument("--tls", action="store_true")
    parse.add_argument("--frames-per-record", type=int, default=RECORD_FRAMES_BURST)
    parse.add_argument("--rate", type=float, default=0.0, help="0: as fast as taken")
    parse.add_argument("--start-at", type=float, default=0.0, help="of the monotonic clock, s")
    parse.add_argument("--timeout", type=int, default=120)
    options = parse.parse_args()
    signal.alarm(options.timeout)  # whatever happens, this process ends
    source = capture(
        options.symbols,
        options.trades,
        rate_per_s=options.market_rate,
        start_ms=options.start_ms,
        form=options.form,
    )
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)

        def accept() -> None:
            while True:
                connection, _ = server.accept()
                threading.Thread(
                    target=serve, args=(connection, source, options, done), daemon=True
                ).start()

        threading.Thread(target=accept, daemon=True).start()
        done.wait()
        os._exit(0)


def serve(
    connection: socket.socket, source: Capture, options: argparse.Namespace, done: threading.Event
) -> None:
    """Serve one client; the one that wants the trades ends the process when it goes.

    Others, such as one that waits for listings, are acknowledged and hear nothing more.
    """
    with connection, suppress(ConnectionError):
        peer = Peer(connection, options.tls)
        rest = shake_hands(peer)
        asked = take_subscriptions(peer, rest, options.names)
        if not options.names:
            select.select([], [], [], 0.5)
        with suppress(OSError):
            if options.rate and options.connections > 1:
                send_part_at_rate(
                    peer, source, options.rate, symbols=asked, start_at_s=options.start_at
                )
            elif options.rate:
                send_at_rate(
                    peer,
                    source,
                    options.rate,
                    frames_per_record=options.frames_per_record,
                    start_at_s=options.start_at,
                )
            else:
                send_at_once(
                    peer, source, tls=options.tls, frames_per_record=options.frames_per_record
                )
            wait_for_end(peer)
        done.set()


# -- The caller's side -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blast:
    """What to send, and how."""

    symbols: int
    trades: int
    market_rate: float
    start_ms: int
    tls: bool = False
    frames_per_record: int = RECORD_FRAMES_BURST
    rate: float = 0.0
    subscribe: bool = True
    """Whether the client asks for its streams by SUBSCRIBE."""
    form: str = "aggTrade"
    unnamed: int = 0
    """Streams that the client asks for otherwise than by SUBSCRIBE."""
    connections: int = 1
    """Among which the client divides its symbols; each gets the frames of its own, at a rate."""

    def capture(self) -> Capture:
        """Return what is sent, made if it is not in the cache."""
        return capture(
            self.symbols,
            self.trades,
            rate_per_s=self.market_rate,
            start_ms=self.start_ms,
            form=self.form,
        )


@contextmanager
def blasting(blast: Blast, *, start_at_s: float = 0.0, timeout_s: int = 120) -> Iterator[int]:
    """Run a blaster; give its port. It is ended, by its id, when the context is left."""
    blast.capture()
    if blast.tls:
        certificate()
    names = (blast.symbols - blast.unnamed if blast.subscribe else 0) // blast.connections
    command = [
        *(sys.executable, "-m", "bench.blaster"),
        *("--symbols", str(blast.symbols), "--trades", str(blast.trades)),
        *("--market-rate", str(blast.market_rate), "--start-ms", str(blast.start_ms)),
        *("--names", str(names)),
        *("--connections", str(blast.connections)),
        *("--form", blast.form),
        *("--frames-per-record", str(blast.frames_per_record), "--rate", str(blast.rate)),
        *("--start-at", str(start_at_s), "--timeout", str(timeout_s)),
        *(("--tls",) if blast.tls else ()),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.strip():
            raise RuntimeError("the blaster did not start")
        yield int(line)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    main()
