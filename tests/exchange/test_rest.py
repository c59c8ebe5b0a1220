"""The REST client: every kind of bad answer is mapped, halts are obeyed, pools survive."""

import gzip
import json
from decimal import Decimal

import httpx
import pytest
import trio

from klagg_trio.core.errors import BannedError, ConfigurationError, RemoteError
from klagg_trio.exchange import rest as rest_module
from klagg_trio.exchange.rest import ATTEMPTS, HttpxRest, Priority, klines_weight
from klagg_trio.exchange.weight import WeightGate

URL = "http://127.0.0.1:9"
NOW_MS = 1_791_382_992_000

left_in_the_middle = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
"""httpx reads through a chain of generators, and only the outermost is ours to close."""

KLINE = [
    *(60_000, "1000", "1100", "900", "1050", "3", 119_999, "3000", 5, "1", "1000", "0"),
]


class Exchange:
    """Answers requests from a list, the last answer again and again, and remembers them."""

    def __init__(self, *answers, latency_s=0.0):
        """Each answer is a response, an exception, or a function of the request."""
        self.answers = list(answers)
        self.requests = []
        self.times_s = []
        self.latency_s = latency_s
        self.gate = WeightGate()
        self.in_flight = self.in_flight_max = 0

    def rest(self, **options):
        """Return a client of this exchange."""
        return HttpxRest(URL, self.gate, transport=httpx.MockTransport(self.answer), **options)

    async def answer(self, request):
        """Give the next answer."""
        self.requests.append(request)
        self.times_s.append(trio.current_time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight, self.in_flight_max)
        try:
            await trio.sleep(self.latency_s)
        finally:
            self.in_flight -= 1
        if isinstance(answer, BaseException):
            raise answer
        return answer() if callable(answer) else answer


def server_time(**headers):
    """Return a good answer."""
    return httpx.Response(200, json={"serverTime": NOW_MS}, headers=headers)


def refusal(status, code=-1003, msg="no", **headers):
    """Return an error answer as the exchange words it."""
    return httpx.Response(status, json={"code": code, "msg": msg}, headers=headers)


async def time_of(rest):
    """Ask for the time."""
    return await rest.server_time(priority=Priority.TIME)


# -- Good answers ----------------------------------------------------------------------------------


async def test_the_time_is_asked_for(autojump_clock):
    """One request to the documented path, weight 1."""
    exchange = Exchange(server_time())
    assert await time_of(exchange.rest()) == NOW_MS
    assert [str(request.url) for request in exchange.requests] == [f"{URL}/fapi/v1/time"]
    assert exchange.gate.statistics().used == 1


async def test_klines_are_asked_for(autojump_clock):
    """Parameters go by their names, symbols percent-encoded, times only where given."""
    exchange = Exchange(httpx.Response(200, json=[KLINE]))
    rest = exchange.rest()
    (bar,) = (await rest.klines("币安人生USDT", "1m", limit=99, priority=Priority.AUDIT)).bars
    assert bar.close == Decimal(1050)
    await rest.klines("BTCUSDT", "1M", start_ms=5, end_ms=9, limit=499, priority=Priority.AUDIT)
    first, second = (request.url for request in exchange.requests)
    assert first.path == "/fapi/v1/klines"
    assert first.raw_path.isascii()
    assert dict(first.params) == {"symbol": "币安人生USDT", "interval": "1m", "limit": "99"}
    assert dict(second.params) == {
        "symbol": "BTCUSDT",
        "interval": "1M",
        "startTime": "5",
        "endTime": "9",
        "limit": "499",
    }
    assert exchange.gate.statistics().used == 1 + 2


def test_klines_cost_what_is_documented():
    """The weight is that of the documented bands at both of their ends."""
    limits = (1, 99, 100, 499, 500, 1000, 1001, 1500)
    assert [klines_weight(limit) for limit in limits] == [1, 1, 2, 2, 5, 5, 10, 10]


async def test_everything_else_is_asked_for(autojump_clock):
    """exchangeInfo, aggTrades and tickers go to their paths at their weights."""
    trade = {"a": 1, "p": "2", "q": "3", "f": 4, "l": 5, "T": 6, "m": True}
    exchange = Exchange(
        httpx.Response(200, json={"symbols": [{"symbol": "X"}]}),
        httpx.Response(200, json=[trade]),
        httpx.Response(200, json=[{"symbol": "BTCUSDT", "lastPrice": "1.5"}]),
    )
    rest = exchange.rest()
    assert not (await rest.exchange_info(priority=Priority.DISCOVERY)).contracts
    assert rest.statistics().rows_refused == 1
    (got,) = await rest.agg_trades("BTCUSDT", from_id=1, limit=1000, priority=Priority.REPAIR)
    assert (got.id, got.symbol) == (1, "BTCUSDT")
    assert await rest.tickers(priority=Priority.BACKFILL) == {"BTCUSDT": Decimal("1.5")}
    assert [request.url.path for request in exchange.requests] == [
        "/fapi/v1/exchangeInfo",
        "/fapi/v1/aggTrades",
        "/fapi/v1/ticker/24hr",
    ]
    assert exchange.gate.statistics().used == 1 + 20 + 40


async def test_a_path_in_the_base_url_is_kept(autojump_clock):
    """A root below a path works, with a slash at its end or without."""
    exchange = Exchange(server_time())
    transport = httpx.MockTransport(exchange.answer)
    await time_of(HttpxRest(f"{URL}/proxy/", exchange.gate, transport=transport))
    assert exchange.requests[0].url.path == "/proxy/fapi/v1/time"


@pytest.mark.parametrize("url", ["http://fapi.binance.com", "ftp://127.0.0.1", "", "https://"])
def test_plain_text_off_loopback_is_refused(url):
    """Only loopback may be asked without TLS."""
    with pytest.raises(ConfigurationError):
        HttpxRest(url, WeightGate())


async def test_the_used_weight_is_told_to_the_gate(autojump_clock):
    """The header counts, also in a refusal; nonsense in it does not."""
    exchange = Exchange(
        server_time(**{"X-MBX-USED-WEIGHT-1M": "77"}),
        refusal(400, **{"X-MBX-USED-WEIGHT-1M": "500"}),
        server_time(**{"X-MBX-USED-WEIGHT-1M": "-9"}),
    )
    rest = exchange.rest()
    await time_of(rest)
    assert exchange.gate.statistics().used == 77
    with pytest.raises(RemoteError):
        await time_of(rest)
    await time_of(rest)
    assert 500 <= exchange.gate.statistics().used <= 502


# -- Refusals --------------------------------------------------------------------------------------


async def test_a_refused_request_tells_why(autojump_clock):
    """A 400 is not tried again; its code and text are in the error."""
    exchange = Exchange(refusal(400, -1121, "Invalid symbol."))
    with pytest.raises(RemoteError, match=r"Invalid symbol\..*-1121"):
        await exchange.rest().klines("NOPE", "1m", limit=5, priority=Priority.REPAIR)
    assert len(exchange.requests) == 1
    assert exchange.gate.statistics().used == 1


@pytest.mark.parametrize(("headers", "pause_s"), [({"Retry-After": "17"}, 17), ({}, 60)])
async def test_429_is_obeyed(headers, pause_s, autojump_clock):
    """No request of any kind goes before Retry-After ends, or a minute; then it is tried again."""
    exchange = Exchange(refusal(429, **headers), server_time())
    rest = exchange.rest()
    got = []

    async def ask():
        got.append(await time_of(rest))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.01)
        nursery.start_soon(ask)
    assert got == [NOW_MS, NOW_MS]
    assert all(each - exchange.times_s[0] >= pause_s for each in exchange.times_s[1:])
    assert exchange.gate.throttlings == 1


async def test_requests_behind_the_limiter_obey_429_too(autojump_clock):
    """What has passed the gate and waits for a connection is held back by a halt all the same."""
    exchange = Exchange(refusal(429, **{"Retry-After": "30"}), server_time(), latency_s=1)
    rest = exchange.rest(connections=1)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(time_of, rest)
    assert exchange.times_s[1] - exchange.times_s[0] >= 31
    assert exchange.in_flight_max == 1


async def test_429_for_ever_is_given_up(autojump_clock):
    """After a few tries, each after its pause, the caller hears of it."""
    exchange = Exchange(refusal(429, **{"Retry-After": "5"}))
    rest = exchange.rest()
    with pytest.raises(RemoteError, match="too many requests"):
        await time_of(rest)
    assert len(exchange.requests) == ATTEMPTS
    assert rest.statistics().failures == 1


BAN_TEXT = "Way too many requests; IP banned until 1791383192000. Please use the websocket."


@pytest.mark.parametrize(
    ("text", "headers", "wait_s"),
    [
        (BAN_TEXT, {}, 200),
        (BAN_TEXT, {"Retry-After": "300"}, 300),
        ("Way too many requests", {"Retry-After": "150"}, 150),
        ("Way too many requests", {}, 120),
        ("banned until 9999999999999", {}, 4 * 86_400),
    ],
)
async def test_418_is_obeyed(text, headers, wait_s, autojump_clock):
    """A ban is told at once, with its end, and no request goes before that."""
    exchange = Exchange(server_time(), refusal(418, msg=text, **headers), server_time())
    rest = exchange.rest()
    await time_of(rest)
    with pytest.raises(BannedError, match="banned") as caught:
        await time_of(rest)
    banned_s = trio.current_time()
    assert caught.value.until_ms > NOW_MS
    assert len(exchange.requests) == 2
    await time_of(rest)
    assert wait_s - 0.1 <= trio.current_time() - banned_s <= wait_s + 1


async def test_a_ban_is_understood_by_the_date_header(autojump_clock):
    """Where the exchange's time is not known yet, the answer's own date tells how long it lasts."""
    headers = {"Date": "Thu, 07 Oct 2026 14:23:12 GMT"}
    exchange = Exchange(refusal(418, msg=BAN_TEXT, **headers))
    with pytest.raises(BannedError, match="for 200 s"):
        await time_of(exchange.rest())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(403, html="<html>Request blocked</html>"), "firewall"),
        (httpx.Response(451, json={"code": 0, "msg": "Service unavailable"}), "region"),
        (httpx.Response(301, headers={"Location": "https://elsewhere/"}), "redirect"),
        (httpx.Response(302, headers={"Location": "//elsewhere"}), "not followed"),
        (httpx.Response(404, html="<html>"), "404"),
        (httpx.Response(204), "204"),
        (httpx.Response(200, html="<html>maintenance</html>"), "malformed"),
        (httpx.Response(200, json={"serverTime": "soon"}), "malformed"),
        (httpx.Response(200, json=[]), "malformed"),
        (httpx.Response(200, content=b""), "malformed"),
        (httpx.Response(200, content=b'{"serverTime":17'), "malformed"),
        (httpx.Response(200, content=b"\xff\xfe"), "malformed"),
    ],
)
async def test_other_bad_answers_are_remote_errors(answer, words, autojump_clock):
    """Web pages, redirections, regions, wrong JSON: RemoteError that says what it is, one try."""
    exchange = Exchange(answer)
    with pytest.raises(RemoteError, match=words):
        await time_of(exchange.rest())
    assert len(exchange.requests) == 1


HOSTILE = (
    "Service \x1b[31munavailable\x1b[0m\r\nfrom a restricted\x00 location\u202e " + "x" * 2_000
)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 429, 451, 500, 503])
@pytest.mark.parametrize("kind", ["json", "page", "text"])
async def test_the_exchanges_own_words_are_told(status, kind, autojump_clock):
    """Of every refusal, from JSON, a page or plain text: one line, shortened, nothing that steers.

    Where it was asked is told as it was written in the settings, with port and prefix.
    """
    answer = {
        "json": httpx.Response(status, json={"code": -1, "msg": HOSTILE}),
        "page": httpx.Response(status, html=f"<html><style>b{{}}</style><b>{HOSTILE}</b></html>"),
        "text": httpx.Response(status, text=HOSTILE),
    }[kind]
    exchange = Exchange(answer)
    transport = httpx.MockTransport(exchange.answer)
    rest = HttpxRest("https://gate.example:8443/prefix", exchange.gate, transport=transport)
    with pytest.raises(RemoteError) as caught:
        await time_of(rest)
    text = str(caught.value)
    assert "Service unavailable from a restricted location x" in text
    assert text.isprintable()
    assert len(text) < 700
    assert "https://gate.example:8443/prefix" in text


async def test_after_403_nothing_goes_for_a_while(autojump_clock):
    """The firewall bans by rate, so it is not asked again at once."""
    exchange = Exchange(httpx.Response(403, html="<html>"), server_time())
    rest = exchange.rest()
    with pytest.raises(RemoteError):
        await time_of(rest)
    await time_of(rest)
    assert exchange.times_s[1] - exchange.times_s[0] >= 60


# -- Faults worth another try ----------------------------------------------------------------------


class Torn(httpx.AsyncByteStream):
    """A body that breaks off."""

    async def __aiter__(self):
        yield b'{"server'
        raise httpx.RemoteProtocolError("peer closed connection")


class Dripping(httpx.AsyncByteStream):
    """A body that comes a byte at a time, each in time."""

    def __init__(self, pause_s):
        """Wait so long before each byte."""
        self.pause_s = pause_s

    async def __aiter__(self):
        while True:
            await trio.sleep(self.pause_s)
            yield b" "


class Endless(httpx.AsyncByteStream):
    """A body without end."""

    async def __aiter__(self):
        while True:
            await trio.lowlevel.checkpoint()
            yield b" " * 1_000_000


FAULTS = [
    lambda: httpx.Response(500, text="oops"),
    lambda: refusal(503, -1000, "Unknown error, please check your request or try again later."),
    lambda: refusal(503, -1008, "Request throttled by system-level protection."),
    lambda: httpx.Response(502, html="<html>bad gateway</html>"),
    lambda: refusal(408, -1007, "Timeout waiting for response from backend server."),
    lambda: httpx.Response(200, stream=Torn()),
    lambda: httpx.Response(200, stream=Dripping(9)),
    httpx.ConnectError("no route"),
    httpx.ReadTimeout("timed out"),
    httpx.ConnectTimeout("timed out"),
    httpx.ReadError("reset"),
    httpx.RemoteProtocolError("garbage"),
]


@left_in_the_middle
@pytest.mark.parametrize("fault", FAULTS)
async def test_passing_faults_are_tried_again(fault, autojump_clock):
    """A fault that passes is not seen by the caller, only in the counts."""
    exchange = Exchange(fault, fault, server_time())
    rest = exchange.rest()
    assert await time_of(rest) == NOW_MS
    counts = rest.statistics()
    assert (counts.requests, counts.retries, counts.failures) == (3, 2, 0)
    assert exchange.gate.peak_percent > 0


@left_in_the_middle
@pytest.mark.parametrize("fault", FAULTS)
async def test_lasting_faults_are_given_up(fault, autojump_clock):
    """A fault that stays is RemoteError after a few tries, with growing pauses between them."""
    exchange = Exchange(fault)
    rest = exchange.rest()
    with pytest.raises(RemoteError, match="try again later"):
        await time_of(rest)
    assert len(exchange.requests) == ATTEMPTS
    assert rest.statistics().failures == 1
    assert trio.current_time() < ATTEMPTS * 75


@left_in_the_middle
async def test_a_body_too_long_is_refused(autojump_clock, monkeypatch):
    """An endless body is given up at the limit, once and for all."""
    monkeypatch.setattr(rest_module, "BODY_BYTES_MAX", 5_000_000)
    exchange = Exchange(lambda: httpx.Response(200, stream=Endless()))
    with pytest.raises(RemoteError, match="longer than"):
        await time_of(exchange.rest())
    assert len(exchange.requests) == 1


@left_in_the_middle
async def test_a_body_too_long_when_unpacked_is_refused(autojump_clock, monkeypatch):
    """Compression does not get around the limit."""
    monkeypatch.setattr(rest_module, "BODY_BYTES_MAX", 5_000_000)
    bomb = gzip.compress(b" " * 50_000_000)
    headers = {"Content-Encoding": "gzip"}
    exchange = Exchange(lambda: httpx.Response(200, content=bomb, headers=headers))
    with pytest.raises(RemoteError, match="longer than"):
        await time_of(exchange.rest())


async def test_a_body_that_cannot_be_unpacked_is_refused(autojump_clock):
    """Wrong compression is the exchange's fault, not a traceback."""
    headers = {"Content-Encoding": "gzip"}
    exchange = Exchange(lambda: httpx.Response(200, content=b"no gzip", headers=headers))
    with pytest.raises(RemoteError, match="broken answer"):
        await time_of(exchange.rest())


async def test_a_stuck_pool_is_replaced(autojump_clock):
    """PoolTimeout means that the pool has leaked: it is replaced, counted, and the try repeated."""
    exchange = Exchange(httpx.PoolTimeout("stuck"), server_time())
    rest = exchange.rest()
    assert await time_of(rest) == NOW_MS
    assert rest.statistics().pools_rebuilt == 1


async def test_requests_in_flight_are_bounded(autojump_clock):
    """However many ask, no more than the limiter's number are under way."""
    exchange = Exchange(server_time(), latency_s=0.1)
    rest = exchange.rest(connections=3)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(time_of, rest)
    assert exchange.in_flight_max == 3
    assert len(exchange.requests) == 20


async def test_those_who_wait_for_weight_hold_no_connection(autojump_clock):
    """A clock sample does not queue behind requests that wait for the next minute."""
    exchange = Exchange(httpx.Response(200, json=[]))
    exchange.gate = WeightGate(100, share=0.5)
    rest = exchange.rest(connections=2)
    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(lambda: rest.klines("A", "1m", limit=5, priority=Priority.REPAIR))
        await trio.sleep(1)
        exchange.answers = [server_time()]
        started_s = trio.current_time()
        assert await time_of(rest) == NOW_MS
        assert trio.current_time() - started_s < 0.1
        nursery.cancel_scope.cancel()


async def test_cancelled_requests_are_charged(autojump_clock):
    """Giving up on an answer does not give back what the exchange has counted."""
    exchange = Exchange(server_time(), latency_s=5)
    with trio.move_on_after(1):
        await time_of(exchange.rest())
    assert exchange.gate.statistics().used == 1
    await trio.sleep(60)
    assert exchange.gate.statistics().used == 0


# -- Over real sockets -----------------------------------------------------------------------------


async def serve_time(stream, *, latency_s):
    """Answer every request on one connection with the time."""
    body = json.dumps({"serverTime": NOW_MS}).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    buffer = b""
    try:
        while data := await stream.receive_some(65_536):
            buffer += data
            while b"\r\n\r\n" in buffer:
                buffer = buffer.split(b"\r\n\r\n", 1)[1]
                await trio.sleep(latency_s)
                await stream.send_all(answer)
    except trio.BrokenResourceError:
        pass  # the client has given up


@pytest.mark.real
@pytest.mark.slow
async def test_the_pool_survives_a_thousand_cancellations():
    """After a thousand requests were cancelled at any moment, a hundred of a hundred succeed."""
    gate = WeightGate(1_000_000)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def serve(stream):
            await serve_time(stream, latency_s=0.002)

        nursery.start_soon(trio.serve_listeners, serve, [listener])
        rest = HttpxRest(f"http://127.0.0.1:{listener.socket.getsockname()[1]}", gate)

        async def give_up(after_s):
            with trio.move_on_after(after_s):
                await time_of(rest)

        for start in range(0, 1_000, 50):
            async with trio.open_nursery() as crowd:
                for number in range(start, start + 50):
                    crowd.start_soon(give_up, number % 20 / 2_000)
        with trio.fail_after(30):
            got = [await time_of(rest) for _ in range(100)]
        assert got == [NOW_MS] * 100
        await rest.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.real
async def test_nobody_there_is_a_remote_error(autojump_clock):
    """A port where nobody listens is RemoteError, after the usual tries."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    rest = HttpxRest(f"http://127.0.0.1:{port}", WeightGate())
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1"):
        await time_of(rest)
    await rest.aclose()
