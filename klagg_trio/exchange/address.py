"""Where a URL leads: host, port, path, and whether by TLS. Plain text stays on this machine."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

from klagg_trio.core.errors import ConfigurationError

_SECURE: Final = {"https": "http", "wss": "ws"}
"""The schemes with TLS, and their plain twins."""


@dataclass(frozen=True, slots=True)
class Address:
    """A URL taken apart."""

    scheme: str
    host: str
    port: int
    tls: bool
    path: str
    """Percent-encoded, without a slash at the end; empty for the root."""

    @property
    def authority(self) -> str:
        """Host and port as a Host header has them."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return shown if self.port == (443 if self.tls else 80) else f"{shown}:{self.port}"

    @property
    def url(self) -> str:
        """The URL again, normalised."""
        return f"{self.scheme}://{self.authority}{self.path}"


def parse_address(url: str, secure: str) -> Address:
    """Take a URL apart. ConfigurationError unless its scheme is `secure` or it is on loopback."""
    plain = _SECURE[secure]
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{url!r} is not a URL: {error}; correct the setting") from error
    if parts.scheme not in (secure, plain) or not host:
        raise ConfigurationError(f"{url!r} is not a URL like {secure}://host; correct the setting")
    tls = parts.scheme == secure
    if not tls and not is_loopback(host):
        raise ConfigurationError(
            f"{url!r} would send plain text off this machine; use {secure}:// for {host}"
        )
    if port is None:
        port = 443 if tls else 80
    path = quote(parts.path.rstrip("/"), safe="/%!@:")
    return Address(parts.scheme, host, port, tls, path)


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine by its form, without asking a name server."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
