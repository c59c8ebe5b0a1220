"""Websockets against a peer that means harm: in bytes, in frames and in time."""

import contextlib
import tracemalloc
from functools import partial

import pytest
import trio

from klagg_trio.core.errors import RemoteError
from klagg_trio.exchange import stream as module
from klagg_trio.exchange import wire
from klagg_trio.exchange.stream import BATCHES_MAX, open_connection
from klagg_trio.exchange.tap import (
    CHUNK_BYTES,
    CONTROLS_MAX,
    FRAGMENTS_MAX,
    FRAME_BYTES_MAX,
    HANDSHAKE_BYTES_MAX,
)

from .rawpeer import RawPeer, raw_frame, shake

URL = "ws://127.0.0.1:9/market/stream"


async def repeat(stream, piece, *, first=b"", shaken=False, pause_s=0.0):
    """Send a piece again and again, as fast as it is taken, or with pauses."""
    if shaken:
        await shake(stream)
    await stream.send_all(first)
    while True:
        await stream.send_all(piece)
        await trio.sleep(pause_s)


OK = b"HTTP/1.1 101 Switching Protocols\r\n"
REFUSED = b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n"

HANDSHAKES = {
    "head drips": partial(repeat, piece=b"a", first=OK + b"X: ", pause_s=0.5),
    "head does not end": partial(repeat, piece=b"X: " + b"b" * 900 + b"\r\n", first=OK),
    "one header does not end": partial(repeat, piece=b"b" * 9_000, first=OK + b"X: "),
    "interim answers": partial(repeat, piece=b"HTTP/1.1 103 Hints\r\n\r\n", pause_s=0.01),
    "refusal without end": partial(
        repeat, piece=b"4000\r\n" + b"x" * 16_384 + b"\r\n", first=REFUSED
    ),
    "refusal drips": partial(repeat, piece=b"1\r\nx\r\n", first=REFUSED, pause_s=0.5),
    "garbage": partial(repeat, piece=b"\x00\xff" * 5_000),
    "frames instead": partial(repeat, piece=raw_frame(b"{}")),
    "silence": partial(repeat, piece=b"", pause_s=1_000),
}


@pytest.mark.parametrize("harm", HANDSHAKES)
async def test_no_answer_to_the_handshake_holds_anybody_up(harm, autojump_clock):
    """Each is RemoteError within the time to connect, with little memory spent and few words."""
    tracemalloc.start()
    started_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        peer = RawPeer(nursery, HANDSHAKES[harm])
        with pytest.raises(RemoteError) as caught:
            async with open_connection(URL, peer.dial):
                pass
        nursery.cancel_scope.cancel()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert trio.current_time() - started_s <= 12
    assert peak < 16 * HANDSHAKE_BYTES_MAX
    assert len(str(caught.value)) < 1_000


FLOODS = {
    "pieces without end": partial(
        repeat,
        piece=raw_frame(b"", opcode=0, fin=False),
        first=raw_frame(b"x", fin=False),
        shaken=True,
    ),
    "large pieces without end": partial(
        repeat,
        piece=raw_frame(b"x" * 60_000, opcode=0, fin=False),
        first=raw_frame(b"x", fin=False),
        shaken=True,
    ),
    "a frame too long": partial(
        repeat, piece=b"\x81\x7f" + (FRAME_BYTES_MAX + 1).to_bytes(8, "big"), shaken=True
    ),
    "a frame of 2^63 bytes": partial(repeat, piece=b"\x81\x7f" + b"\xff" * 8, shaken=True),
    "pings without end": partial(
        repeat, piece=raw_frame(b"x" * 125, opcode=9) * (CONTROLS_MAX + 1), shaken=True
    ),
    "pongs without end": partial(repeat, piece=raw_frame(b"", opcode=10) * 100, shaken=True),
    "pings between data": partial(
        repeat, piece=(raw_frame(b"", opcode=9) + raw_frame(b"{}")) * CONTROLS_MAX, shaken=True
    ),
    "garbage": partial(repeat, piece=b"\xff" * 1_000, shaken=True),
}


@pytest.mark.parametrize("harm", FLOODS)
async def test_a_flood_ends_the_connection(harm, autojump_clock):
    """What no exchange sends ends the batches soon; nothing but RemoteError comes of it."""
    async with trio.open_nursery() as nursery:
        peer = RawPeer(nursery, FLOODS[harm])
        with trio.fail_after(30), contextlib.suppress(RemoteError):
            async with open_connection(URL, peer.dial) as connection:
                async for _ in connection.batches:
                    pass
        nursery.cancel_scope.cancel()


async def test_a_few_pieces_and_pings_are_all_right(autojump_clock):
    """A message in as many pieces as are allowed, and pings among data, arrive as they should."""

    async def script(stream):
        await shake(stream)
        pieces = raw_frame(b"", opcode=0, fin=False) * (FRAGMENTS_MAX - 2)
        whole = raw_frame(b"a", fin=False) + pieces + raw_frame(b"b", opcode=0)
        await stream.send_all(whole)
        for _ in range(3):
            await stream.send_all(raw_frame(b"", opcode=9) * (CONTROLS_MAX - 1) + raw_frame(b"c"))
            await trio.sleep(1)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        peer = RawPeer(nursery, script)
        async with open_connection(URL, peer.dial) as connection:
            found = []
            while len(found) < 4:
                found += list(await connection.batches.receive())
        nursery.cancel_scope.cancel()
    assert sorted(found) == [b"ab", b"c", b"c", b"c"]


async def test_batches_that_nobody_takes_are_bounded_in_bytes(autojump_clock):
    """A reader that stands still costs a few chunks, however much the peer has to send."""
    taken = 0

    async def script(stream):
        nonlocal taken
        await shake(stream)
        piece = raw_frame(b"x" * 65_000) * 4
        while True:
            await stream.send_all(piece)
            taken += len(piece)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        # The pair of memory streams takes everything, so what the tap has read is what counts.
        peer = RawPeer(nursery, script)
        async with open_connection(URL, peer.dial) as connection:
            for _ in range(1_000):
                await trio.lowlevel.checkpoint()
            statistics = connection.statistics()
            nursery.cancel_scope.cancel()
    assert statistics.bytes <= (BATCHES_MAX + 2) * CHUNK_BYTES


async def test_a_peer_that_takes_nothing_is_given_up(autojump_clock):
    """A request that cannot be sent is RemoteError within its time."""

    class Stuck(trio.abc.Stream):
        """A stream that takes the handshake and nothing after it."""

        def __init__(self, stream):
            self.stream = stream
            self.sent = 0

        async def send_all(self, data):
            self.sent += 1
            if self.sent > 1:
                await trio.sleep_forever()
            await self.stream.send_all(data)

        async def wait_send_all_might_not_block(self):
            await trio.sleep_forever()

        async def receive_some(self, max_bytes=None):
            return await self.stream.receive_some(max_bytes)

        async def aclose(self):
            await self.stream.aclose()

    async def script(stream):
        await shake(stream)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        peer = RawPeer(nursery, script)

        async def dial(*where):
            return Stuck(await peer.dial(*where))

        started_s = trio.current_time()
        with pytest.raises(RemoteError, match="taken nothing"):
            async with open_connection(URL, dial) as connection:
                await connection.send_text("{}")
        assert trio.current_time() - started_s <= module.SEND_S + 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "frame",
    [
        b'{"error":{"code":2,"msg":"%s"},"id":1}',
        b'{"code":-1,"msg":"%s"}',
        b'{"code":-1,"msg":"%s","id":7}',
        b"%s",
        b'{"stream":"%s","data":{}}',
        b'{"stream":"btcusdt@aggTrade","data":{"s":"%s"}}',
        b'{"stream":"!miniTicker@arr","data":[{"s":"%s","c":"1","E":1}]}',
        b'{"stream":"!contractInfo","data":{"s":"%s","ct":"","dt":1,"ot":1,"cs":"","E":1}}',
        b'{"result":{"%s":1},"id":2}',
        b'{"id":"%s"}',
    ],
)
@pytest.mark.parametrize("text", [b"x" * 900_000, b"\\u001b[2J" * 100_000, b"[" * 900_000])
def test_texts_are_cut_at_the_edge(frame, text):
    """Whatever comes of a frame of 900 kB, error or message, is a few hundred characters long."""
    data = frame % text
    decoded = wire.decode_trades([data])
    assert len(decoded.error) < 1_000
    for other in decoded.others:
        try:
            said = repr(wire.decode_frame(other))
        except RemoteError as error:
            said = str(error)
        assert len(said) < 1_000
