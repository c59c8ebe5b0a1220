"""The way to the exchange: straight, or through a proxy that the environment names.

Theory of operation
-------------------
The variables are those that other programs obey: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY,
in small letters too, which then are stronger. This machine is never reached through a proxy. Since
klagg speaks plain text to this machine only, every proxied connection is a tunnel: `CONNECT`, then
TLS with the exchange itself, so that the proxy sees host and port and nothing else.

httpx makes its tunnels itself, from the same `Proxy`; websockets and asks get theirs from `dialer`.
What a proxy answers is bounded, in bytes and in time. Its password is never shown.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

import trio

from klagg_trio.core.errors import ConfigurationError, RemoteError
from klagg_trio.core.plain import plain
from klagg_trio.exchange.address import Address, is_loopback
from klagg_trio.exchange.stream import Dial, dial_tcp
from klagg_trio.exchange.tls import DrainingTlsStream, network_reason

ANSWER_BYTES_MAX: Final = 16 * 1024
"""Of the answer to CONNECT. A status line and a few headers have some hundred."""

ANSWER_S: Final = 10.0
"""For that answer: the proxy has to reach the exchange meanwhile."""

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: ([^\r\n]*))?\r?\n")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy for one address."""

    scheme: str
    """http or https: how the proxy itself is spoken to."""
    host: str
    port: int
    variable: str
    """That names it."""
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """Where it is, without who we are."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.url} ({self.variable})"


def find_proxy(address: Address, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for an address, or None for the straight way.

    ConfigurationError where a variable names one that cannot be used.
    """
    if is_loopback(address.host) or _is_excepted(address, environment):
        return None
    for name in ("https_proxy" if address.tls else "http_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if (value := environment.get(variable)) is not None:
                if value.strip():
                    return _parse(variable, value.strip())
                break  # empty in small letters: none, whatever the other says
    return None


def _parse(variable: str, value: str) -> Proxy:
    """Return the proxy that a variable names. Its value may hold a password: it is not repeated."""
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(
            f"{variable} is no URL of a proxy; write http://host:port"
        ) from error
    if parts.scheme not in ("http", "https"):
        raise ConfigurationError(
            f"{variable} names a proxy of the kind {plain(parts.scheme, 20)}, which klagg cannot "
            "use; name an http or https one, or except the exchange's hosts in NO_PROXY"
        )
    if not host or not host.isprintable() or parts.path.strip("/") or parts.query:
        raise ConfigurationError(f"{variable} is no URL of a proxy; write http://host:port")
    return Proxy(
        scheme=parts.scheme,
        host=host,
        port=port or (443 if parts.scheme == "https" else 80),
        variable=variable,
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )


def _is_excepted(address: Address, environment: Mapping[str, str]) -> bool:
    """Whether NO_PROXY names the host: itself, a domain or a network it is in, or `*` for all."""
    listed = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    return any(_matches(address, entry) for entry in re.split(r"[\s,]+", listed.lower()) if entry)


def _matches(address: Address, entry: str) -> bool:
    if entry == "*":
        return True
    entry = entry.rpartition("://")[2]
    host = address.host.lower().rstrip(".")
    if match := re.fullmatch(r"(\[[^\]]*\]|[^:]*):([0-9]{1,5})", entry):
        if int(match[2]) != address.port:
            return False
        entry = match[1]
    entry = entry.strip("[]")
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        domain = entry.removeprefix("*").strip(".")
        return bool(domain) and (host == domain or host.endswith(f".{domain}"))


# -- The tunnel ------------------------------------------------------------------------------------


def dialer(environment: Mapping[str, str]) -> Dial:
    """Return what opens byte streams, by the way that the environment says for each host."""

    async def dial(host: str, port: int, tls: bool) -> trio.abc.Stream:
        address = Address("https" if tls else "http", host, port, tls, "")
        proxy = find_proxy(address, environment)
        if proxy is None:
            return await dial_tcp(host, port, tls)
        stream = await open_tunnel(proxy, host, port)
        return await DrainingTlsStream.connect(stream, host) if tls else stream

    return dial


async def open_tunnel(proxy: Proxy, host: str, port: int) -> trio.abc.Stream:
    """Return a byte stream to a host and port through a proxy. RemoteError where there is none."""
    try:
        stream = await dial_tcp(proxy.host, proxy.port, proxy.scheme == "https")
    except (OSError, trio.BrokenResourceError) as error:
        raise RemoteError(unreachable(proxy, network_reason(error))) from error
    try:
        await _connect(stream, proxy, host, port)
    except BaseException:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)
        raise
    return stream


async def _connect(stream: trio.abc.Stream, proxy: Proxy, host: str, port: int) -> None:
    """Ask for the tunnel and read the answer, which nothing may follow before we speak."""
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}", "User-Agent: klagg"]
    if proxy.username or proxy.password:
        pair = f"{proxy.username}:{proxy.password}".encode()
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}")
    answer = b""
    with trio.move_on_after(ANSWER_S) as scope:
        try:
            await stream.send_all("\r\n".join([*lines, "", ""]).encode())
            answer = await _read_answer(stream, proxy)
        except (OSError, trio.BrokenResourceError) as error:
            raise RemoteError(unreachable(proxy, network_reason(error))) from error
    if scope.cancelled_caught:
        raise RemoteError(unreachable(proxy, f"no answer to CONNECT within {ANSWER_S:g} s"))
    match = _STATUS.match(answer)
    if match is None:
        raise RemoteError(unreachable(proxy, "what answers there is no http proxy"))
    status = int(match[1])
    if not 200 <= status < 300:
        raise RemoteError(refused(proxy, status, (match[2] or b"").decode("latin-1"), authority))


async def _read_answer(stream: trio.abc.Stream, proxy: Proxy) -> bytes:
    """Return the head of the answer."""
    answer = bytearray()
    while True:
        data = await stream.receive_some(ANSWER_BYTES_MAX)
        if not data and not answer:
            raise RemoteError(unreachable(proxy, "it closed the connection"))
        answer += data
        head, blank, rest = bytes(answer).partition(b"\r\n\r\n")
        match = _STATUS.match(head + blank)
        if blank and match is not None and match[1].startswith(b"1"):
            answer[:] = rest  # an interim answer: the one that counts follows
            continue
        if blank and rest and match is not None and match[1].startswith(b"2"):
            raise RemoteError(unreachable(proxy, "it sends data that nobody has asked for"))
        if blank or not data:
            return head + blank
        if len(answer) > ANSWER_BYTES_MAX:
            raise RemoteError(
                unreachable(proxy, f"its answer is longer than {ANSWER_BYTES_MAX:,} bytes")
            )


def unreachable(proxy: Proxy, reason: str) -> str:
    """Say that nothing goes through a proxy."""
    return f"the proxy {proxy} does not work: {plain(reason)}; check {proxy.variable}"


def refused(proxy: Proxy, status: int, words: str, authority: str) -> str:
    """Say that a proxy does not let us through to an address, and what helps."""
    said = f"{status} {plain(words, 100)}".rstrip()
    if status == 407 and not (proxy.username or proxy.password):
        advice = f"it wants a name and a password: {proxy.variable}=http://user:password@host:port"
    elif status == 407:
        advice = f"it does not take the name and password in {proxy.variable}"
    else:
        advice = "have it allowed there, or except the host in NO_PROXY"
    return f"the proxy {proxy} refused the way to {authority} ({said}); {advice}"
