"""The way out: which proxy the environment names, and tunnels through a real one on loopback."""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio_websocket import ConnectionClosed, wrap_server_stream

from klagg_trio.core.errors import ConfigurationError, RemoteError
from klagg_trio.exchange import proxy as proxy_module
from klagg_trio.exchange.address import parse_address
from klagg_trio.exchange.clock_probe import AsksProbe
from klagg_trio.exchange.proxy import dialer, find_proxy
from klagg_trio.exchange.rest import HttpxRest, Priority
from klagg_trio.exchange.stream import open_connection
from klagg_trio.exchange.tls import default_context
from klagg_trio.exchange.weight import WeightGate

REST = parse_address("https://fapi.binance.com", "https")

# -- Which one -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ({"https_proxy": "http://p:3128"}, "http://p:3128"),
        ({"https_proxy": "http://low:1", "HTTPS_PROXY": "http://up:2"}, "http://low:1"),
        ({"https_proxy": "", "HTTPS_PROXY": "http://up:2"}, None),
        ({"ALL_PROXY": "http://p:3128"}, "http://p:3128"),
        ({"all_proxy": "p:3128"}, "http://p:3128"),
        ({"ALL_PROXY": "http://a:1", "HTTPS_PROXY": "http://h:2"}, "http://h:2"),
        ({"HTTP_PROXY": "http://p:3128"}, None),
        ({"HTTPS_PROXY": "https://p"}, "https://p:443"),
        ({"HTTPS_PROXY": "http://p/"}, "http://p:80"),
        ({"HTTPS_PROXY": "http://[::1]:3128"}, "http://[::1]:3128"),
        ({"HTTPS_PROXY": "  "}, None),
    ],
)
def test_the_environment_names_the_proxy(environment, url):
    """HTTPS_PROXY before ALL_PROXY, small letters before capitals, http where none is given."""
    found = find_proxy(REST, environment)
    assert (found and found.url) == url


@pytest.mark.parametrize(
    ("listed", "excepted"),
    [
        ("*", True),
        ("fapi.binance.com", True),
        ("FAPI.Binance.com", True),
        ("binance.com", True),
        (".binance.com", True),
        ("*.binance.com", True),
        ("inance.com", False),
        ("com.", True),
        ("other.com, binance.com", True),
        ("other.com binance.com", True),
        ("binance.com:443", True),
        ("binance.com:8443", False),
        ("10.0.0.0/8", False),
        ("", False),
        (",,", False),
        ("https://binance.com", True),
    ],
)
def test_no_proxy_excepts_hosts_and_domains(listed, excepted):
    """A host, the domain that it is in, with a port or without, or all."""
    for variable in ("NO_PROXY", "no_proxy"):
        environment = {"HTTPS_PROXY": "http://p:1", variable: listed}
        assert (find_proxy(REST, environment) is None) == excepted


@pytest.mark.parametrize(
    ("host", "listed", "excepted"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3:8443", True),
        ("10.1.2.3", "10.1.2.3:443", False),
        ("[2001:db8::5]", "2001:db8::/32", True),
        ("[2001:db8::5]", "[2001:db8::5]:8443", True),
        ("[2001:db9::5]", "2001:db8::/32", False),
    ],
)
def test_no_proxy_excepts_networks(host, listed, excepted):
    """Addresses and networks of both families."""
    address = parse_address(f"https://{host}:8443", "https")
    environment = {"HTTPS_PROXY": "http://p:1", "NO_PROXY": listed}
    assert (find_proxy(address, environment) is None) == excepted


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_this_machine_is_reached_straight(host):
    """Loopback never goes through a proxy, by TLS or without."""
    environment = {"ALL_PROXY": "http://p:1", "HTTP_PROXY": "http://p:1"}
    for scheme in ("http", "https"):
        assert find_proxy(parse_address(f"{scheme}://{host}:1", "https"), environment) is None


@pytest.mark.parametrize(
    "value",
    ["socks5://me:secret@p:1080", "socks4://p", "ftp://p", "http://me:secret@:1", "http://p:99999"],
)
def test_a_proxy_that_cannot_be_used_is_told(value):
    """Another kind, or no URL: an error of the configuration that names the variable."""
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY") as caught:
        find_proxy(REST, {"HTTPS_PROXY": value})
    assert "secret" not in str(caught.value)


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_variables_give_a_proxy_none_or_a_clear_error(value, excepted):
    """Whatever the variables hold, and the password is never shown."""
    environment = {"HTTPS_PROXY": f"http://me:se%63ret@{value}", "NO_PROXY": excepted}
    try:
        found = find_proxy(REST, environment)
        shown = repr(found) + str(found)
    except ConfigurationError as error:
        shown = str(error)
    assert "se%63ret" not in shown
    assert "secret" not in shown


# -- A real one ------------------------------------------------------------------------------------

HOST = "exchange.test"
TIME_MS = 1_750_000_000_000


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return paths of a certificate for the exchange's host, and of its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"), HOST)


def make_certificate(folder, host):
    """Make a self-signed certificate for a host, which may also be this machine's proxy."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl command is missing")
    paths = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-nodes", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2", "-subj", f"/CN={host}"),
            *("-addext", f"subjectAltName=DNS:{host},IP:127.0.0.1"),
            *("-out", str(paths[0]), "-keyout", str(paths[1])),
        ],
        check=True,
        capture_output=True,
    )
    return paths


@pytest.fixture
def _trusted(certificate, monkeypatch):
    """Trust the certificate, as users do theirs: by SSL_CERT_FILE."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    default_context.cache_clear()
    yield
    default_context.cache_clear()


def server_context(certificate):
    """Return the server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


async def serve_exchange(context, stream):
    """Answer /time for ever, or be a market stream, over TLS."""
    tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
    try:
        head = b""
        while True:
            while b"\r\n\r\n" not in head:
                if not (data := await tls.receive_some(4_096)):
                    return
                head += data
            if b"upgrade: websocket" in head.lower():
                await serve_websocket(Replayed(tls, head))
                return
            head = b""
            body = json.dumps({"serverTime": TIME_MS}).encode()
            await tls.send_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        await hang_up(stream)


async def hang_up(*streams):
    """Close, whatever the other side has to say."""
    with trio.CancelScope(shield=True):
        for stream in streams:
            await trio.aclose_forcefully(stream)


class Replayed(trio.abc.Stream):
    """A stream whose first bytes have been read already."""

    def __init__(self, stream, head):
        """Put them back."""
        self.stream, self.head = stream, head

    async def receive_some(self, max_bytes=None):
        """Return the first bytes first."""
        head, self.head = self.head, b""
        return head or await self.stream.receive_some(max_bytes)

    async def send_all(self, data):
        """Send."""
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self):
        """Wait."""
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self):
        """Close."""
        await self.stream.aclose()


async def serve_websocket(stream):
    """Acknowledge what comes, and send a ticker after it."""
    ticker = {
        "e": "24hrMiniTicker", "E": TIME_MS, "s": "BTCUSDT", "c": "1", "o": "1", "h": "1",
        "l": "1", "v": "1", "q": "1", "st": 1,
    }  # fmt: skip
    async with trio.open_nursery() as nursery:
        websocket = await (await wrap_server_stream(nursery, stream)).accept()
        try:
            while True:
                asked = json.loads(await websocket.get_message())
                await websocket.send_message(json.dumps({"result": None, "id": asked["id"]}))
                data = {"stream": "!miniTicker@arr", "data": [ticker]}
                await websocket.send_message(json.dumps(data))
        except ConnectionClosed:
            nursery.cancel_scope.cancel()


class LocalProxy:
    """A CONNECT proxy. It knows one exchange, wherever that is said to be."""

    def __init__(self, target_port, *, answer=None, wants="", tls=None):
        """Lead to a port of this machine, or give `answer` instead."""
        self.target_port = target_port
        self.answer = answer
        self.wants = wants
        self.tls = tls
        self.heads = []

    async def serve(self, stream):
        """Serve one connection."""
        if self.tls is not None:
            stream = trio.SSLStream(stream, self.tls, server_side=True, https_compatible=True)
        head, opened = b"", [stream]
        try:
            while b"\r\n\r\n" not in head:
                if not (data := await stream.receive_some(1)):
                    return
                head += data
            self.heads.append(head.decode())
            if self.answer is not None:
                await self.answer(stream)
                return
            if self.wants and self.wants not in head.decode():
                await stream.send_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            target = await trio.open_tcp_stream("127.0.0.1", self.target_port)
            opened.append(target)
            await stream.send_all(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump, stream, target, nursery)
                nursery.start_soon(pump, target, stream, nursery)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await hang_up(*opened)


async def pump(source, sink, nursery):
    """Bring bytes from one side to the other until one is gone."""
    try:
        while data := await source.receive_some(65_536):
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    nursery.cancel_scope.cancel()


async def listen(nursery, serve):
    """Serve on a free port of this machine. Returns the port."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(partial(trio.serve_listeners, serve, [listener]))
    return listener.socket.getsockname()[1]


@asynccontextmanager
async def behind_proxy(certificate, **options):
    """Run an exchange and a proxy before it. Yields the environment that names the proxy."""
    async with trio.open_nursery() as nursery:
        exchange = partial(serve_exchange, server_context(certificate))
        local = LocalProxy(await listen(nursery, exchange), **options)
        port = await listen(nursery, local.serve)
        scheme = "https" if local.tls else "http"
        with trio.fail_after(30):
            yield local, {"HTTPS_PROXY": f"{scheme}://127.0.0.1:{port}"}
        nursery.cancel_scope.cancel()


async def ask_rest(environment, port=8443):
    """Ask for the time by httpx."""
    url = f"https://{HOST}:{port}"
    proxy = find_proxy(parse_address(url, "https"), environment)
    rest = HttpxRest(url, WeightGate(share=0.8), proxy=proxy)
    try:
        return await rest.server_time(priority=Priority.TIME)
    finally:
        await rest.aclose()


async def ask_time(environment, port=8443):
    """Ask for the time by asks, twice over one connection."""
    probe = AsksProbe(f"https://{HOST}:{port}", dialer(environment))
    try:
        await probe.server_time_ms()
        return await probe.server_time_ms()
    finally:
        await probe.aclose()


async def ask_websocket(environment, port=8443):
    """Wait for a ticker over a websocket."""
    url = f"wss://{HOST}:{port}/market/stream"
    async with open_connection(url, dialer(environment)) as connection:
        await connection.send_text('{"method": "SUBSCRIBE", "params": [], "id": 1}')
        async for frames in connection.batches:
            if any(b"24hrMiniTicker" in frame for frame in frames):
                return TIME_MS
    raise AssertionError("it ended before")


ASKING = pytest.mark.parametrize("ask", [ask_rest, ask_time, ask_websocket])


@pytest.mark.real
@pytest.mark.usefixtures("_trusted")
@ASKING
async def test_everything_goes_through_the_proxy(ask, certificate):
    """REST, the time probe and websockets each open their own tunnel, to host and port as asked."""
    async with behind_proxy(certificate) as (local, environment):
        assert await ask(environment) == TIME_MS
    assert [head.splitlines()[0] for head in local.heads] == [f"CONNECT {HOST}:8443 HTTP/1.1"]
    assert not any("Proxy-Authorization" in head for head in local.heads)


@pytest.mark.real
@pytest.mark.usefixtures("_trusted")
@ASKING
async def test_a_proxy_may_be_spoken_to_by_tls(ask, certificate):
    """https://: TLS with the proxy, and within it TLS with the exchange."""
    async with behind_proxy(certificate, tls=server_context(certificate)) as (local, environment):
        assert await ask(environment) == TIME_MS
    assert len(local.heads) == 1


@pytest.mark.real
@pytest.mark.usefixtures("_trusted")
@ASKING
async def test_a_password_is_sent_and_not_shown(ask, certificate):
    """The name and the password of the variable, percent signs undone; 407 says what is missing."""
    basic = base64.b64encode(b"me:p@ss").decode()
    async with behind_proxy(certificate, wants=f"Basic {basic}") as (_, environment):
        straight = environment["HTTPS_PROXY"]
        environment["HTTPS_PROXY"] = straight.replace("://", "://me:p%40ss@")
        assert await ask(environment) == TIME_MS
        environment["HTTPS_PROXY"] = straight.replace("://", "://me:wr0ng@")
        with pytest.raises(
            RemoteError, match=r"407.*does not take the name and password"
        ) as caught:
            await ask(environment)
        assert "wr0ng" not in str(caught.value)
        with pytest.raises(RemoteError, match=r"407.*HTTPS_PROXY=http://user:password@host:port"):
            await ask({"HTTPS_PROXY": straight})


def saying(data):
    """Return an answer of these bytes, after which the proxy closes."""

    async def answer(stream):
        await stream.send_all(data)

    return answer


async def silent(stream):
    """Say nothing for ever."""
    await trio.sleep_forever()


async def dripping(stream):
    """Send a header without end, a byte at a time."""
    await stream.send_all(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        await stream.send_all(b"x")
        await trio.sleep(0.05)


async def endless(stream):
    """Send headers without end."""
    await stream.send_all(b"HTTP/1.1 200 OK\r\n")
    while True:
        await stream.send_all(b"X: " + b"x" * 4_000 + b"\r\n")


@pytest.mark.real
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (saying(b"HTTP/1.1 403 Not \x1b[31mallowed\r\n\r\n"), r"403 Not allowed.*NO_PROXY"),
        (saying(b"HTTP/1.1 502 Bad Gateway\r\n\r\nhtml"), "502 Bad Gateway"),
        (saying(b"SSH-2.0-OpenSSH\r\n\r\n"), "no http proxy"),
        (saying(b"HTTP/1.1 200 OK\r\n\r\nsurprise"), "nobody has asked for"),
        (saying(b""), "closed the connection"),
        (silent, "no answer to CONNECT"),
        (dripping, "no answer to CONNECT"),
        (endless, "longer than"),
    ],
)
async def test_a_proxy_that_is_no_good_is_told(answer, words, certificate, monkeypatch):
    """What it says, that it says nothing, too much or too slowly: with host and port as asked."""
    monkeypatch.setattr(proxy_module, "ANSWER_S", 0.5)
    async with behind_proxy(certificate, answer=answer) as (_, environment):
        for ask in (ask_websocket, ask_time):
            with pytest.raises(RemoteError, match=words) as caught:
                await ask(environment)
            text = str(caught.value)
            assert text.isprintable()
            assert environment["HTTPS_PROXY"] in text
            assert "(HTTPS_PROXY)" in text


@pytest.mark.real
@ASKING
async def test_a_refusal_names_host_and_port(ask, certificate):
    """By every client alike."""
    answer = saying(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    async with behind_proxy(certificate, answer=answer) as (_, environment):
        with pytest.raises(RemoteError, match=rf"{HOST}:8443 \(403 Forbidden\)"):
            await ask(environment)


@pytest.mark.real
@ASKING
async def test_a_proxy_that_is_not_there_is_told(ask, monkeypatch):
    """Nobody listens: the proxy is named, and why."""
    monkeypatch.setattr("klagg_trio.exchange.rest.ATTEMPTS", 1)
    with pytest.raises(RemoteError, match=r"http://127\.0\.0\.1:9 \(HTTPS_PROXY\).*refused"):
        await ask({"HTTPS_PROXY": "http://127.0.0.1:9"})


@pytest.mark.real
@ASKING
@pytest.mark.parametrize("kind", ["self-signed", "another host", "no TLS"])
async def test_the_reason_of_a_tls_failure_is_told(ask, kind, certificate, tmp_path, monkeypatch):
    """What is wrong with whom, for REST, the time and the websocket alike."""
    monkeypatch.setattr("klagg_trio.exchange.rest.ATTEMPTS", 1)
    default_context.cache_clear()
    words = {
        "self-signed": "its certificate is not valid: self-signed certificate.*SSL_CERT_FILE",
        "another host": "certificate is not valid: Hostname mismatch.*exchange.test",
        "no TLS": "does not speak TLS",
    }[kind]
    served = certificate
    if kind == "another host":
        served = make_certificate(tmp_path, "other.test")
        monkeypatch.setenv("SSL_CERT_FILE", str(served[0]))

    async def serve_plain(stream):
        await stream.receive_some(10)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\nplain text here")
        await stream.aclose()

    async with behind_proxy(served) as (local, environment), trio.open_nursery() as nursery:
        if kind == "no TLS":
            local.target_port = await listen(nursery, serve_plain)
        with pytest.raises(RemoteError, match=words):
            await ask(environment)
        nursery.cancel_scope.cancel()
    default_context.cache_clear()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_authorities_that_cannot_be_read_are_told(variable, monkeypatch, tmp_path):
    """OpenSSL would trust nobody and not say why."""
    default_context.cache_clear()
    monkeypatch.setenv(variable, str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match=f"{variable} names .*missing"):
        default_context()
    default_context.cache_clear()


@pytest.mark.real
@pytest.mark.slow
async def test_doctor_says_which_way_it_goes(certificate, tmp_path):
    """The whole command, with the proxy as the only way out: REST, time and websocket work."""
    async with behind_proxy(certificate) as (local, environment):
        environment["HTTPS_PROXY"] = environment["HTTPS_PROXY"].replace("://", "://me:s3cret@")
        done = await trio.run_process(
            [
                *(sys.executable, "-m", "klagg_trio", "doctor", "--json"),
                *("--data-dir", str(tmp_path / "D"), "--rest-url", f"https://{HOST}"),
                *("--ws-url", f"wss://{HOST}/market"),
            ],
            env=os.environ | environment | {"SSL_CERT_FILE": str(certificate[0])},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    checks = {each["check"]: each for each in json.loads(done.stdout)}
    way = checks["way"]["text"]
    assert "REST through the proxy http://127.0.0.1:" in way
    assert "websocket through the proxy http://127.0.0.1:" in way
    assert "s3cret" not in done.stdout.decode() + done.stderr.decode()
    assert checks["REST"]["ok"], checks
    assert checks["websocket"]["ok"], checks
    assert "clock" in checks["time"]["text"]
    assert {head.split()[1] for head in local.heads} == {f"{HOST}:443"}
