"""REST against a server that means harm: over real sockets, in bytes and in time."""

import gzip
import tracemalloc
import zlib
from functools import partial

import httpx
import pytest
import trio

from klagg_trio.core.errors import BannedError, RemoteError
from klagg_trio.exchange import rest as rest_module
from klagg_trio.exchange.body import Unpacker
from klagg_trio.exchange.rest import HttpxRest, Priority
from klagg_trio.exchange.weight import PAUSE_S_MAX, THROTTLED_S_MAX, WeightGate

NOW_MS = 1_791_382_992_000
GOOD = b'{"serverTime":1791382992000}'
PACKED = gzip.compress(GOOD, mtime=0)
"""The same bytes in every process: they name tests."""
TRY_S = 0.3
"""Instead of `REQUEST_S_MAX`, so that nobody waits."""


async def serve(answer, *, task_status):
    """Answer every connection by `answer(stream)`, until cancelled."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(partial(_one, answer), listeners)


async def _one(answer, stream):
    """Read one request, then answer it as long as the peer takes it."""
    try:
        await stream.receive_some()
        await answer(stream)
        await stream.aclose()
    except trio.BrokenResourceError:
        pass


def whole(body, *headers, status="200 OK"):
    """Return an answer that is all right but for what it says."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def drip(stream, piece, *, first=b"", pause_s=0.02):
    """Send a piece again and again, each well within any timeout for a read."""
    await stream.send_all(first)
    while True:
        await stream.send_all(piece)
        await trio.sleep(pause_s)


async def flood(stream, piece, *, first=b""):
    """Send a piece again and again, as fast as it is taken."""
    await stream.send_all(first)
    while True:
        await stream.send_all(piece)


async def silent(stream):
    """Never answer."""
    await trio.sleep_forever()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PACKED = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
HARM = {
    "status line drips": partial(drip, piece=b"1", first=b"HTTP/1."),
    "headers drip": partial(drip, piece=b"X-A: b\r\n", first=b"HTTP/1.1 200 OK\r\n"),
    "one header drips": partial(drip, piece=b"a", first=b"HTTP/1.1 200 OK\r\nX-A: "),
    "interim answers drip": partial(drip, piece=b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body drips": partial(drip, piece=b"1\r\n \r\n", first=CHUNKED),
    "chunk size drips": partial(drip, piece=b"0", first=CHUNKED),
    "trailers drip": partial(drip, piece=b"X-A: b\r\n", first=CHUNKED + b"0\r\n"),
    "packed body drips": partial(drip, piece=b"1\r\n\x1f\r\n", first=PACKED, pause_s=0.2),
    "no answer": silent,
    "header bomb": partial(flood, piece=b"X-A: " + b"b" * 8_000 + b"\r\n", first=CHUNKED[:17]),
    "interim answers without end": partial(flood, piece=b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "body without end": partial(flood, piece=b"10000\r\n" + b" " * 65_536 + b"\r\n", first=CHUNKED),
}


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # httpx's own inner ones
@pytest.mark.parametrize("harm", HARM)
async def test_a_fetcher_is_free_again_within_its_deadline(harm, monkeypatch):
    """Whatever an answer does to go on, each try ends, and the next request is answered."""
    monkeypatch.setattr(rest_module, "REQUEST_S_MAX", TRY_S)
    monkeypatch.setattr(rest_module, "RETRY_FIRST_S", 0.01)
    answers = [HARM[harm]]

    async def answer(stream):
        if answers:
            await answers[0](stream)
        await stream.send_all(whole(GOOD))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            port = await nursery.start(serve, answer)
            rest = HttpxRest(f"http://127.0.0.1:{port}", WeightGate(), connections=1)
            with trio.fail_after(rest_module.ATTEMPTS * (TRY_S + 1)), pytest.raises(RemoteError):
                await rest.server_time(priority=Priority.TIME)
            answers.clear()
            assert await rest.server_time(priority=Priority.TIME) == NOW_MS
            await rest.aclose()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "encodings",
    ["gzip, gzip", "gzip,gzip,gzip", "deflate", "br", "zstd", "identity, br", "gzip; q=1", "\xe9"],
)
async def test_other_encodings_are_refused_unread(encodings, autojump_clock):
    """Only gzip, and only once: what is packed in gzip again inflates twice over."""
    sent = []

    def answer(request):
        sent.append(request)
        body = gzip.compress(gzip.compress(GOOD))
        headers = {"Content-Encoding": encodings.encode("latin-1")}
        return httpx.Response(200, stream=Whole(body), headers=headers)

    rest = HttpxRest("http://127.0.0.1:9", WeightGate(), transport=httpx.MockTransport(answer))
    with pytest.raises(RemoteError, match="only gzip, once"):
        await rest.server_time(priority=Priority.TIME)
    assert [request.headers["Accept-Encoding"] for request in sent] == ["gzip"]


class Whole(httpx.AsyncByteStream):
    """A body in one piece."""

    def __init__(self, body):
        """Give this."""
        self.body = body

    async def __aiter__(self):
        yield self.body


async def test_a_packed_answer_is_read(autojump_clock):
    """gzip is what is asked for, in whatever pieces it comes."""

    def answer(request):
        headers = {"Content-Encoding": "GZip"}
        return httpx.Response(200, stream=Whole(gzip.compress(GOOD)), headers=headers)

    rest = HttpxRest("http://127.0.0.1:9", WeightGate(), transport=httpx.MockTransport(answer))
    assert await rest.server_time(priority=Priority.TIME) == NOW_MS


def test_what_inflates_to_gigabytes_costs_no_more_than_the_limit():
    """A bomb of a megabyte is given up at the limit: nothing beyond it is ever unpacked."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    million = bytes(1 << 20)
    bomb = b"".join([pack.compress(million) for _ in range(64)]) + pack.flush()
    # The same again and again is what gigabytes look like from here: the limit comes first.
    tracemalloc.start()
    unpacker = Unpacker(["gzip"], 1 << 20)
    with pytest.raises(RemoteError, match="longer than 1,048,576 bytes"):
        unpacker.feed(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize(
    "body",
    [
        PACKED[:-1],
        PACKED[:12],
        PACKED + b"more",
        PACKED + PACKED,
        PACKED[:20] + b"\xff" + PACKED[21:],
        zlib.compress(GOOD),
        b"{}",
    ],
    ids=["cut short", "cut in the head", "more", "twice", "damaged", "zlib", "plain"],
)
@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_a_broken_packing_is_refused(body, size):
    """Cut short, gone on after its end, altered, or no gzip at all: RemoteError, never another."""
    unpacker = Unpacker(["gzip"], 1 << 20)
    with pytest.raises(RemoteError, match="broken"):  # noqa: PT012
        for at in range(0, len(body), size):
            unpacker.feed(body[at : at + size])
        unpacker.finish()


DATE = "Thu, 07 Oct 2026 14:23:12 GMT"


@pytest.mark.parametrize(
    ("told", "pause_s"),
    [
        ("17", 17),
        ("0", 1),
        ("-5", 60),
        ("1e9", 60),
        ("soon", 60),
        ("", 60),
        ("999999999", THROTTLED_S_MAX),
        ("9" * 39, THROTTLED_S_MAX),
        ("9" * 5_000, 60),
        ("٣", 60),
        ("Thu, 07 Oct 2026 14:24:02 GMT", 50),
        ("Thu, 07 Oct 1999 14:24:02 GMT", 1),
        ("Thu, 07 Oct 9999 14:24:02 GMT", THROTTLED_S_MAX),
        ("Thu, 07 Oct 0000 14:24:02 GMT", 1),
        ("Thu, 99 Xxx 2026 99:99:99 GMT", 60),
    ],
)
async def test_however_long_a_429_asks_to_wait_it_is_bounded(told, pause_s, autojump_clock):
    """A number, a date by the answer's own, or nonsense: the pause is what could be meant."""
    headers = {"Retry-After": told.encode(), "Date": DATE}
    answers = [httpx.Response(429, headers=headers), httpx.Response(200, content=GOOD)]
    transport = httpx.MockTransport(lambda _: answers.pop(0))
    rest = HttpxRest("http://127.0.0.1:9", WeightGate(), transport=transport)
    await rest.server_time(priority=Priority.TIME)
    assert pause_s <= trio.current_time() < pause_s + 6


@pytest.mark.parametrize(
    "msg",
    [
        "banned until 9999999999999.",
        "banned until 32503680000000.",
        "banned until 0000000000000.",
        "banned until " + "9" * 10_000,
        "banned until ١٧٩١٣٨٣١٩٢٠٠٠",
        "\x1b[2J" * 100_000,
    ],
)
async def test_however_long_a_ban_is_said_to_be_it_is_bounded(msg, autojump_clock):
    """A year 3000, no digits, far too many: told in few words, and asked again in days at most."""
    answers = [
        httpx.Response(200, content=GOOD),
        httpx.Response(418, json={"code": -1003, "msg": msg}),
        httpx.Response(200, content=GOOD),
    ]
    transport = httpx.MockTransport(lambda _: answers.pop(0))
    rest = HttpxRest("http://127.0.0.1:9", WeightGate(), transport=transport)
    await rest.server_time(priority=Priority.TIME)
    with pytest.raises(BannedError) as caught:
        await rest.server_time(priority=Priority.TIME)
    assert len(str(caught.value)) < 1_000
    assert str(caught.value).isprintable()
    await rest.server_time(priority=Priority.TIME)
    assert trio.current_time() <= PAUSE_S_MAX + 1


@pytest.mark.parametrize("used", ["999999999", "9" * 39, "2500", "-1", "1e5", "12,5", ""])
async def test_a_weight_that_cannot_be_holds_nobody_up_for_long(used, autojump_clock):
    """Whatever is said to be used of the weight, the next request goes within the minute."""
    headers = {"X-MBX-USED-WEIGHT-1M": used}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=GOOD, headers=headers))
    rest = HttpxRest("http://127.0.0.1:9", WeightGate(), transport=transport)
    for _ in range(3):
        await rest.server_time(priority=Priority.TIME)
    assert trio.current_time() <= 2 * 61
