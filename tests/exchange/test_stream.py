"""The frame tap, connections over memory streams with a real websocket peer, and TLS."""

import contextlib
import itertools
import math
import shutil
import ssl
import subprocess
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio_websocket import ConnectionClosed, wrap_server_stream

from klagg_trio.core.errors import ConfigurationError, RemoteError
from klagg_trio.exchange import tap
from klagg_trio.exchange.stream import DISCONNECT_S, dial_tcp, open_connection
from klagg_trio.exchange.tap import FRAME_BYTES_MAX, FrameScanner
from klagg_trio.exchange.tls import DrainingTlsStream

URL = "ws://127.0.0.1:9/market/stream"

HEAD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def raw_frame(payload, *, opcode=1, fin=True, mask=False):
    """Return one websocket frame."""
    first = (0x80 if fin else 0) | opcode
    bit = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65_536:
        head = bytes((first, bit | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, bit | 127)) + size.to_bytes(8, "big")
    return head + (b"\0\0\0\0" if mask else b"") + payload


# -- The scanner -----------------------------------------------------------------------------------

payloads = st.one_of(
    st.binary(max_size=20),
    st.integers(0, 400).map(lambda size: b"x" * size),
    st.sampled_from([125, 126, 127, 65_535, 65_536, 70_000]).map(lambda size: b"y" * size),
)
pieces = st.one_of(
    payloads.map(lambda payload: ("text", raw_frame(payload), payload)),
    st.binary(max_size=125).map(lambda payload: ("ping", raw_frame(payload, opcode=9), b"")),
    st.binary(max_size=125).map(lambda payload: ("pong", raw_frame(payload, opcode=10), b"")),
    payloads.map(lambda payload: ("binary", raw_frame(payload, opcode=2), b"")),
    payloads.map(lambda payload: ("masked", raw_frame(payload, mask=True), b"")),
    st.lists(payloads, min_size=1, max_size=3).map(
        lambda parts: (
            "fragmented",
            raw_frame(parts[0], fin=False)
            + b"".join(raw_frame(part, opcode=0, fin=False) for part in parts[1:])
            + raw_frame(b"ping", opcode=9)
            + raw_frame(b"end", opcode=0),
            b"",
        )
    ),
)


def split(data, cuts):
    """Cut `data` at some places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


@pytest.mark.parametrize("many_bytes", [0, tap.MANY_BYTES])
@given(st.lists(pieces, max_size=12), st.lists(st.integers(0, 10**6), max_size=30))
def test_any_split_gives_the_same_frames(many_bytes, parts, cuts):
    """However the bytes are cut into chunks, the same frames are taken and the same bytes pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tap, "MANY_BYTES", many_bytes)
        check_split(parts, cuts)


def check_split(parts, cuts):
    """Cut, scan and compare."""
    scanner = FrameScanner()
    data = HEAD + b"".join(wire for _, wire, _ in parts)
    frames = [each for chunk in split(data, cuts) for each in scanner.feed(chunk)]
    assert frames == [payload for kind, _, payload in parts if kind == "text"]
    assert bytes(scanner.passed) == HEAD + b"".join(
        wire for kind, wire, _ in parts if kind != "text"
    )
    assert scanner.pings == sum(kind in ("ping", "fragmented") for kind, *_ in parts)
    assert not scanner.error


def test_a_burst_is_found_at_once_around_what_looks_like_a_frame():
    """Many frames in one chunk: texts with a frame's first bytes in them, a ping, a rest."""
    texts = [b"a" * 200, "b\u5e01~".encode() * 40, b"c" * 300, b"\x81~\x00\xc8" * 50, b"d" * 150]
    scanner = FrameScanner()
    scanner.feed(HEAD)
    burst = b"".join(map(raw_frame, texts)) * 20
    assert len(burst) > tap.MANY_BYTES
    frames = [*scanner.feed(burst + raw_frame(b"p", opcode=9) + burst[:-7])]
    frames += scanner.feed(burst[-7:])
    assert frames == texts * 40
    assert scanner.pings == 1


def test_single_bytes_give_the_same_frames():
    """A connection that drips one byte at a time loses nothing."""
    scanner = FrameScanner()
    data = HEAD + raw_frame(b"a" * 300) + raw_frame(b"p", opcode=9) + raw_frame(b"b")
    frames = [each for byte in data for each in scanner.feed(bytes([byte]))]
    assert frames == [b"a" * 300, b"b"]


@pytest.mark.parametrize("many_bytes", [0, tap.MANY_BYTES])
@given(st.lists(st.binary(max_size=200) | st.just(b"\x81~\x00\x80")))
def test_arbitrary_bytes_are_taken_or_passed(many_bytes, chunks):
    """No bytes whatever make the scanner raise, and it never holds more than one frame."""
    scanner = FrameScanner()
    scanner.feed(HEAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tap, "MANY_BYTES", many_bytes)
        for chunk in chunks:
            scanner.feed(chunk)
    assert len(scanner._held) <= sum(map(len, chunks))


def test_an_answer_without_upgrade_passes_whole():
    """Where the handshake is refused, the body of the answer is not taken for frames."""
    scanner = FrameScanner()
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\n\x81\x02hi\x81\x02hi"
    assert len(scanner.feed(answer)) == 0
    assert bytes(scanner.passed) == answer


def test_an_interim_answer_passes():
    """After 103 Early Hints the handshake still goes on."""
    scanner = FrameScanner()
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    assert len(scanner.feed(interim[:30])) == 0
    assert list(scanner.feed(interim[30:] + HEAD + raw_frame(b"hi"))) == [b"hi"]
    assert bytes(scanner.passed) == interim + HEAD


def test_frames_too_long_are_an_error_after_those_before():
    """A frame over the limit stops the scanner at its header; what came before it is kept."""
    scanner = FrameScanner()
    header = b"\x81\x7f" + (FRAME_BYTES_MAX + 1).to_bytes(8, "big")
    assert list(scanner.feed(HEAD + raw_frame(b"before") + header)) == [b"before"]
    assert "frame of 1,048,577 bytes" in scanner.error


def test_an_endless_answer_is_an_error():
    """A handshake whose answer does not end is given up."""
    scanner = FrameScanner()
    for _ in range(70):
        scanner.feed(b"HTTP/1.1 101 x\r\n" + b"h: " + b"x" * 1000)
    assert scanner.error


def test_nothing_is_taken_after_a_close_frame():
    """Frames behind a close frame are none: the peer has said that it was done."""
    scanner = FrameScanner()
    scanner.feed(HEAD)
    closing = raw_frame(b"1") + raw_frame(b"\x03\xe8", opcode=8) + raw_frame(b"2")
    assert list(scanner.feed(closing)) == [b"1"]
    assert scanner.closing


# -- Connections -----------------------------------------------------------------------------------


class Peer:
    """The exchange's end of one memory connection."""

    def __init__(self):
        """Make both ends; nothing is shaken yet."""
        self.client, self.stream = trio.testing.memory_stream_pair()
        self.received = []

    async def dial(self, host, port, tls):
        """Give the client its end."""
        await trio.lowlevel.checkpoint()
        return self.client

    async def serve(self, talk):
        """Shake hands, then do what `talk` does, then read until the client closes."""
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, self.stream)
            websocket = await request.accept()
            try:
                await talk(self, websocket)
                while True:
                    self.received.append(await websocket.get_message())
            except ConnectionClosed as closed:
                self.received.append(closed.reason.code)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the client was quicker


async def say_nothing(peer, websocket):
    """Keep the connection up."""


@asynccontextmanager
async def connected(talk=say_nothing, **options):
    """Open a connection to a peer that does what `talk` does."""
    peer = Peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.serve, talk)
        async with open_connection(URL, peer.dial, **options) as connection:
            yield peer, connection
        nursery.cancel_scope.cancel()


async def taken(connection):
    """Return all frames until the end."""
    return [frame async for batch in connection.batches for frame in batch]


async def test_text_messages_arrive_in_batches(autojump_clock):
    """What the peer sends in one go arrives as one batch, in order, byte for byte."""

    async def talk(peer, websocket):
        texts = ["a" * 200, "币安人生USDT", "c" * 70_000]
        await peer.stream.send_all(b"".join(raw_frame(text.encode()) for text in texts))
        await websocket.aclose()

    async with connected(talk) as (_, connection):
        batch = await connection.batches.receive()
        assert list(batch) == [b"a" * 200, "币安人生USDT".encode(), b"c" * 70_000]
        with pytest.raises(trio.EndOfChannel):
            await connection.batches.receive()
        counts = connection.statistics()
    assert (counts.frames, counts.batches, counts.dropped) == (3, 1, 0)
    assert counts.bytes > 70_000


async def test_messages_of_the_client_arrive(autojump_clock):
    """Requests are sent as text, and leaving is told to the peer by a close frame."""
    async with connected() as (peer, connection):
        await connection.send_text('{"id":1,"params":["币安"]}')
    assert peer.received == ['{"id":1,"params":["币安"]}', 1000]


async def test_pings_are_answered_between_data(autojump_clock):
    """The peer's ping is answered by trio-websocket while text frames go by it."""
    answered = []

    async def talk(peer, websocket):
        await peer.stream.send_all(raw_frame(b"x" * 200))
        with trio.fail_after(1):
            await websocket.ping(b"1791382992488")
        answered.append(True)
        await peer.stream.send_all(raw_frame(b"y" * 200))
        await websocket.aclose()

    async with connected(talk) as (_, connection):
        assert await taken(connection) == [b"x" * 200, b"y" * 200]
        assert connection.statistics().pings == 1
    assert answered


async def test_the_client_can_ping(autojump_clock):
    """A ping returns once the peer has answered it."""
    async with connected() as (_, connection):
        with trio.fail_after(1):
            await connection.ping()


async def test_a_ping_fails_when_the_connection_ends(autojump_clock):
    """A ping that can no more be answered raises RemoteError instead of waiting for ever."""

    async def talk(peer, websocket):
        await trio.sleep(1)
        await trio.aclose_forcefully(peer.stream)

    async with connected(talk) as (_, connection):
        await trio.sleep(2)
        with trio.fail_after(1), pytest.raises(RemoteError):
            await connection.ping()
        with pytest.raises(RemoteError):
            await connection.send_text("x")


async def test_fragments_and_binary_frames_arrive_too(autojump_clock):
    """Messages that trio-websocket has to put together come out of the same channel."""

    async def talk(peer, websocket):
        await peer.stream.send_all(
            raw_frame(b"one ", fin=False)
            + raw_frame(b"x", opcode=9)
            + raw_frame(b"message", opcode=0)
            + raw_frame(b"bytes", opcode=2)
        )
        await trio.sleep(0.1)
        await peer.stream.send_all(raw_frame(b"whole"))
        await websocket.aclose()

    async with connected(talk) as (_, connection):
        assert await taken(connection) == [b"one message", b"bytes", b"whole"]
        assert connection.statistics().fragmented == 2


async def test_fragments_without_end_are_cut_off(autojump_clock):
    """A fragmented message that grows over the limit ends the connection, not the memory."""

    async def talk(peer, websocket):
        part = raw_frame(b"x" * 60_000, opcode=0, fin=False)
        await peer.stream.send_all(raw_frame(b"x", fin=False) + part * 20)

    async with connected(talk) as (_, connection):
        assert await taken(connection) == []


async def test_a_frame_too_long_raises_on_leaving(autojump_clock):
    """What came before is delivered, the batches end, and leaving raises RemoteError."""

    async def talk(peer, websocket):
        header = b"\x81\x7f" + (FRAME_BYTES_MAX + 1).to_bytes(8, "big")
        await peer.stream.send_all(raw_frame(b"before") + header)

    frames = []
    with pytest.raises(RemoteError, match="1,048,577 bytes"):
        async with connected_alone(talk) as connection:
            frames = await taken(connection)
    assert frames == [b"before"]


@asynccontextmanager
async def connected_alone(talk, **options):
    """Open a connection; what the context raises is raised unwrapped."""
    peer = Peer()
    error = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.serve, talk)
        try:
            async with open_connection(URL, peer.dial, **options) as connection:
                yield connection
        except RemoteError as caught:
            error = caught
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error


async def test_batches_end_when_the_peer_breaks_off(autojump_clock):
    """A connection that is cut without a close frame ends its batches after the last frame."""

    async def talk(peer, websocket):
        await peer.stream.send_all(raw_frame(b"last") + raw_frame(b"cut")[:-1])
        await trio.aclose_forcefully(peer.stream)

    async with connected(talk) as (_, connection):
        assert await taken(connection) == [b"last"]


async def test_batches_end_at_a_close_frame(autojump_clock):
    """A peer that says it is closing and then leaves TCP open does not keep a reader waiting."""

    async def talk(peer, websocket):
        await peer.stream.send_all(raw_frame(b"last") + raw_frame(b"\x03\xf0bye", opcode=8))
        await trio.sleep(math.inf)

    async with connected(talk) as (_, connection):
        with trio.fail_after(1):
            assert await taken(connection) == [b"last"]


async def test_leaving_a_half_open_peer_is_quick(autojump_clock):
    """A peer that answers nothing any more is left within the limit, twenty times in a row."""

    async def deaf(peer, websocket):
        await trio.sleep(math.inf)

    for _ in range(20):
        peer = Peer()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.serve, deaf)
            async with open_connection(URL, peer.dial):
                await trio.testing.wait_all_tasks_blocked()
                # From here on the peer neither reads nor writes.
                peer.client.send_stream.send_all_hook = trio.sleep_forever
                started_s = trio.current_time()
            assert trio.current_time() - started_s <= DISCONNECT_S
            nursery.cancel_scope.cancel()


async def test_leaving_with_full_batches_is_quick(autojump_clock):
    """A tap that waits for room is freed, so that the closing handshake is done at once."""

    async def talk(peer, websocket):
        for number in range(10):
            await peer.stream.send_all(raw_frame(b"%d" % number))
            await trio.testing.wait_all_tasks_blocked()

    async with connected(talk, batches_max=2) as (_, connection):
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(1)
        started_s = trio.current_time()
    assert trio.current_time() - started_s < 0.1
    counts = connection.statistics()
    assert counts.frames <= 3
    assert counts.dropped >= 1


async def test_a_full_channel_holds_the_peer_back(autojump_clock):
    """While nobody takes batches no more than their number is read, and nothing is lost."""

    async def talk(peer, websocket):
        for number in range(50):
            await peer.stream.send_all(raw_frame(b"%d" % number))
            await trio.sleep(0.01)
        await websocket.aclose()

    async with connected(talk, batches_max=3) as (_, connection):
        await trio.sleep(10)
        assert connection.statistics().batches == 3
        assert await taken(connection) == [b"%d" % number for number in range(50)]


async def test_a_read_pause_gathers_frames(autojump_clock):
    """With a pause after each read, frames that trickle in come in fewer batches."""

    async def talk(peer, websocket):
        for number in range(100):
            await peer.stream.send_all(raw_frame(b"%d" % number))
            await trio.sleep(0.001)
        await websocket.aclose()

    async with connected(talk, read_pause_s=0.02) as (_, connection):
        assert await taken(connection) == [b"%d" % number for number in range(100)]
        assert connection.statistics().batches <= 8


async def test_all_connections_read_at_the_same_beats(autojump_clock):
    """Whenever their data comes, connections with one pause wake up together."""
    read_s = []

    def talk_after(first_s):
        async def talk(peer, websocket):
            await trio.sleep(first_s)
            for number in range(50):
                await peer.stream.send_all(raw_frame(b"%d" % number))
                await trio.sleep(0.003)

        return talk

    async def watch(first_s):
        async with connected(talk_after(first_s), read_pause_s=0.02) as (_, connection):
            await connection.batches.receive()  # there is no pause before the first read
            with trio.move_on_after(0.1):
                async for _ in connection.batches:
                    read_s.append(round(trio.current_time(), 6))  # noqa: PERF401 - as they come

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, 0.001)
        nursery.start_soon(watch, 0.008)
    assert len(read_s) >= 8
    assert {round(at_s / 0.02, 6) % 1 for at_s in read_s} == {0.0}


async def test_errors_of_the_body_come_out_as_they_are(autojump_clock):
    """What the caller raises inside is neither wrapped nor taken for the exchange's fault."""

    class Ours(Exception):
        pass

    peer = Peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.serve, say_nothing)
        for error in (Ours(), OSError("disk"), trio.BrokenResourceError()):
            with pytest.raises(type(error)) as caught:
                async with open_connection(URL, peer.dial):
                    raise error
            assert caught.value is error
            peer = Peer()
            nursery.start_soon(peer.serve, say_nothing)
        nursery.cancel_scope.cancel()


async def test_cancelling_leaves_politely(autojump_clock):
    """A cancelled connection still says goodbye, and the cancellation arrives."""
    with trio.move_on_after(1) as scope:
        async with connected():
            await trio.sleep(math.inf)
    assert scope.cancelled_caught
    assert trio.current_time() < 1 + DISCONNECT_S + 0.1


async def refused(talk, match, **options):
    """Expect that a connection to a peer that does raw things cannot be made."""
    peer = Peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk, peer)
        with pytest.raises(RemoteError, match=match):
            async with open_connection(URL, peer.dial, **options):
                raise AssertionError("it must not come up")
        nursery.cancel_scope.cancel()


async def test_a_refused_handshake_tells_the_status(autojump_clock):
    """An HTTP error instead of an upgrade is RemoteError with its status."""

    async def talk(peer):
        await peer.stream.receive_some(4096)
        await peer.stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")

    await refused(talk, "404")


async def test_a_refused_handshake_tells_the_words_and_the_address(autojump_clock):
    """What a firewall or the exchange says in its page, where it was asked, as it was asked."""
    page = b"<html><h1>Not \x1b[31mserved\x1b[0m</h1>in your region</html>"

    async def talk(peer):
        await peer.stream.receive_some(4096)
        head = b"HTTP/1.1 451 Unavailable\r\nContent-Length: %d\r\n\r\n" % len(page)
        await peer.stream.send_all(head + page)

    await refused(talk, r"^ws://127.*/stream: .*HTTP status 451: Not served in your region$")


async def test_an_end_during_the_handshake_is_noticed(autojump_clock):
    """A peer that closes before it answers is noticed at once, not at the timeout."""

    async def talk(peer):
        await peer.stream.receive_some(4096)
        await peer.stream.aclose()

    await refused(talk, "closed the connection")
    assert trio.current_time() < 1


async def test_silence_during_the_handshake_times_out(autojump_clock):
    """A peer that never answers the handshake is given up after the connect timeout."""

    async def talk(peer):
        await trio.sleep(math.inf)

    started_s = trio.current_time()
    await refused(talk, "did not answer", connect_timeout_s=7)
    assert 7 <= trio.current_time() - started_s <= 7.1


@pytest.mark.parametrize(
    "answer",
    [
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_nonsense_during_the_handshake_is_a_remote_error(answer, autojump_clock):
    """Whatever answers that is no websocket, it is the other end's fault."""

    async def talk(peer):
        await peer.stream.receive_some(4096)
        await peer.stream.send_all(answer)
        await peer.stream.aclose()

    await refused(talk, None)


@pytest.mark.slow
@given(st.lists(st.one_of(st.binary(max_size=300), pieces.map(lambda piece: piece[1]))))
def test_nonsense_after_the_handshake_is_a_remote_error(chunks):
    """Arbitrary bytes on an open connection end it or do nothing; only RemoteError may come out."""

    async def talk(peer, websocket):
        for chunk in chunks:
            await peer.stream.send_all(chunk)
        await trio.sleep(1)
        await trio.aclose_forcefully(peer.stream)

    async def scenario():
        with contextlib.suppress(RemoteError):
            async with connected_alone(talk) as connection:
                with trio.fail_after(10):
                    await taken(connection)
        assert trio.current_time() < 5

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_failing_dial_is_a_remote_error(autojump_clock):
    """What prevents TCP or TLS says where and why."""

    async def dial(host, port, tls):
        raise OSError("no route to host")

    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9/market/stream .no route to host"):
        async with open_connection(URL, dial):
            pass


async def test_a_hanging_dial_times_out(autojump_clock):
    """A dial that does not come back is given up after the connect timeout."""

    async def dial(host, port, tls):
        await trio.sleep(math.inf)

    with pytest.raises(RemoteError, match="within 10 s"):
        async with open_connection(URL, dial):
            pass


@pytest.mark.parametrize(
    "url",
    ["ws://fstream.binance.com/market/stream", "http://127.0.0.1/", "wss://", "nonsense", ""],
)
async def test_plain_text_off_loopback_is_refused(url):
    """Only loopback may be spoken to without TLS, and only websocket URLs are any good."""
    with pytest.raises(ConfigurationError):
        async with open_connection(url):
            pass


async def test_the_dial_is_told_where_to(autojump_clock):
    """Host, port and TLS come from the URL, with the usual ports where it names none."""
    dialled = []

    async def dial(host, port, tls):
        dialled.append((host, port, tls))
        raise OSError("enough")

    for url in ("wss://fstream.binance.com/market", "ws://[::1]:81/x", "ws://localhost"):
        with pytest.raises(RemoteError):
            async with open_connection(url, dial):
                pass
    assert dialled == [
        ("fstream.binance.com", 443, True),
        ("::1", 81, False),
        ("localhost", 80, False),
    ]


@pytest.mark.real
async def test_a_real_socket_works():
    """Over TCP on loopback text goes both ways, and leaving is clean."""
    async with trio.open_nursery() as nursery:

        async def serve(stream):
            async with trio.open_nursery() as inner:
                websocket = await (await wrap_server_stream(inner, stream)).accept()
                await websocket.send_message("echo " + await websocket.get_message())
                with pytest.raises(ConnectionClosed):
                    await websocket.get_message()

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        with trio.fail_after(5):
            async with open_connection(f"ws://127.0.0.1:{port}/stream", dial_tcp) as connection:
                await connection.send_text("hello")
                assert list(await connection.batches.receive()) == [b"echo hello"]
        nursery.cancel_scope.cancel()


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return paths of a self-signed certificate for localhost, and of its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl command is missing")
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-nodes", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
            *("-out", str(paths[0]), "-keyout", str(paths[1])),
        ],
        check=True,
        capture_output=True,
    )
    return paths


@pytest.fixture
def server_context(certificate):
    """Return the server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@pytest.fixture
def trusting(certificate):
    """Return a client's context that trusts the certificate, as if an authority had signed it."""
    return ssl.create_default_context(cafile=str(certificate[0]))


class Wire(trio.abc.Stream):
    """A stream that gathers what is sent to it, and lets it go on when told to."""

    def __init__(self, stream):
        """Put it on a stream."""
        self.stream = stream
        self.held = None

    async def send_all(self, data):
        """Send, or hold."""
        if self.held is None:
            await self.stream.send_all(data)
        else:
            self.held += data

    async def wait_send_all_might_not_block(self):
        """Never blocks."""

    async def receive_some(self, max_bytes=None):
        """Receive."""
        return await self.stream.receive_some(max_bytes)

    async def aclose(self):
        """Close."""
        await self.stream.aclose()


@asynccontextmanager
async def tls_pair(server_context, client_context, host="localhost"):
    """Return both ends of a TLS connection in memory, and the wire on the server's side."""
    left, right = trio.testing.memory_stream_pair()
    wire = Wire(right)
    server = trio.SSLStream(wire, server_context, server_side=True, https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        client = await DrainingTlsStream.connect(left, host, client_context)
    yield client, server, wire


@pytest.mark.real
async def test_many_records_are_returned_at_once(server_context, trusting):
    """Records that have been received together come out of one call, in order."""
    async with tls_pair(server_context, trusting) as (client, server, wire):
        wire.held = b""
        messages = [b"%03d" % number * 70 for number in range(300)]
        for message in messages:
            await server.send_all(message)
        held, wire.held = wire.held, None
        await wire.send_all(held)
        assert await client.receive_some() == b"".join(messages)


@pytest.mark.real
async def test_more_than_was_asked_for_is_kept(server_context, trusting):
    """A limit on one call leaves the rest for the next, without reading the network."""
    async with tls_pair(server_context, trusting) as (client, server, _):
        await server.send_all(b"0123456789" * 5_000)
        got = b""
        while len(got) < 50_000:
            piece = await client.receive_some(7_000)
            assert 0 < len(piece) <= 7_000
            got += piece
        assert got == b"0123456789" * 5_000


@pytest.mark.real
async def test_tls_sends_and_ends(server_context, trusting):
    """What is sent arrives; after the peer's goodbye, receiving gives the end again and again."""
    async with tls_pair(server_context, trusting) as (client, server, _):
        await client.send_all(b"x" * 100_000)
        got = b""
        while len(got) < 100_000:
            got += await server.receive_some()
        assert got == b"x" * 100_000
        await server.send_all(b"last")
        await server.aclose()
        assert await client.receive_some() == b"last"
        assert await client.receive_some() == b""
        assert await client.receive_some() == b""
        await client.aclose()


@pytest.mark.real
async def test_a_torn_record_breaks_the_stream(server_context, trusting):
    """Bytes that are not TLS are BrokenResourceError, after what was good before them."""
    async with tls_pair(server_context, trusting) as (client, server, wire):
        wire.held = b""
        await server.send_all(b"good")
        held, wire.held = wire.held, None
        await wire.send_all(held + b"\x17\x03\x03\x00\x20" + b"\0" * 32)
        assert await client.receive_some() == b"good"
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
        await client.aclose()


async def refused_by_client(server_context, client_context, host):
    """Return why a client does not go on with a server."""
    left, right = trio.testing.memory_stream_pair()
    server = trio.SSLStream(right, server_context, server_side=True, https_compatible=True)

    async def serve():
        with pytest.raises(trio.BrokenResourceError):
            await server.do_handshake()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await DrainingTlsStream.connect(left, host, client_context)
    return caught.value.verify_message


@pytest.mark.real
async def test_a_self_signed_certificate_is_refused(server_context):
    """Without an authority behind it a certificate counts for nothing."""
    assert "self-signed" in await refused_by_client(server_context, None, "localhost")


@pytest.mark.real
async def test_another_hosts_certificate_is_refused(server_context, trusting):
    """A valid certificate of another host is refused."""
    reason = await refused_by_client(server_context, trusting, "fstream.binance.com")
    assert "Hostname mismatch" in reason


@pytest.mark.real
async def test_a_bad_certificate_is_a_remote_error(server_context):
    """A websocket that cannot prove who it is raises RemoteError, which says so."""
    left, right = trio.testing.memory_stream_pair()
    server = trio.SSLStream(right, server_context, server_side=True)

    async def serve():
        with pytest.raises(trio.BrokenResourceError):
            await server.do_handshake()

    async def dial(host, port, tls):
        assert tls
        return await DrainingTlsStream.connect(left, host)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(RemoteError, match="certificate is not valid: self-signed"):
            async with open_connection("wss://localhost/stream", dial):
                pass


@pytest.mark.real
async def test_a_websocket_works_over_tls(server_context, trusting):
    """Handshake, requests, batches and closing all work over the draining stream."""
    left, right = trio.testing.memory_stream_pair()
    tls_server = trio.SSLStream(right, server_context, server_side=True, https_compatible=True)

    async def serve():
        async with trio.open_nursery() as inner:
            websocket = await (await wrap_server_stream(inner, tls_server)).accept()
            assert await websocket.get_message() == "hello"
            for number in range(100):
                await websocket.send_message(str(number) * 200)
            await websocket.aclose()

    async def dial(host, port, tls):
        return await DrainingTlsStream.connect(left, host, trusting)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with trio.fail_after(5):
            async with open_connection("wss://localhost/stream", dial) as connection:
                await connection.send_text("hello")
                frames = await taken(connection)
    assert frames == [str(number).encode() * 200 for number in range(100)]
