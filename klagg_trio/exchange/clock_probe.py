"""Asking the exchange for its time, by either of two HTTP clients, and what an answer is worth.

asks is the one in regular use: it shares no code with httpx, which carries everything else, so a
fault of one shows up as a difference. It is no longer maintained, and it pins anyio 3, whose trio
backend needs a name that trio has dropped. The repository overrides that pin; an installed wheel
gets anyio 3, and `_load_asks` puts the name back before the backend looks for it. Should asks fail
all the same, `FallbackProbe` goes over to httpx.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Protocol

import trio

from klagg_trio.core.errors import RemoteError
from klagg_trio.core.plain import plain_body
from klagg_trio.exchange import wire
from klagg_trio.exchange.address import parse_address
from klagg_trio.exchange.rest import Rest
from klagg_trio.exchange.stream import Dial
from klagg_trio.exchange.tls import default_context, network_reason
from klagg_trio.exchange.weight import Priority

log = logging.getLogger(__name__)

SAMPLES: Final = 5
"""In a row. The first one opens the connection; the best of the others is a plain round trip."""

TIMEOUT_S: Final = 5.0
"""For one sample. One that takes longer would be worth nothing."""

BODY_BYTES_MAX: Final = 64 * 1024

CLOSE_S: Final = 1.0


class TimeProbe(Protocol):
    """Something that can ask for the exchange's time.

    One that is a `trio.abc.AsyncResource` too is closed after each series of samples, and may be
    used again.
    """

    async def server_time_ms(self) -> int:
        """Return the exchange's time, in ms. RemoteError where there is no answer."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """What one answer says of the exchange's clock."""

    offset_ms: float
    """The exchange's epoch time minus that of the local clock, in ms."""
    round_trip_ms: float
    """The offset is wrong by half of this at most."""


def trio_ms() -> float:
    """Return Trio's time in ms: a local clock where nothing better is at hand."""
    return trio.current_time() * 1000


async def sample_offset(
    probe: TimeProbe, *, count: int = SAMPLES, local_ms: Callable[[], float] = trio_ms
) -> Sample:
    """Ask `count` times and return the sample with the shortest round trip by the local clock.

    RemoteError only where the very first question fails: later on, what is there has to do.
    """
    best: Sample | None = None
    try:
        for _ in range(count):
            sent_ms = local_ms()
            try:
                server_ms = await probe.server_time_ms()
            except RemoteError:
                if best is None:
                    raise
                break
            received_ms = local_ms()
            sample = Sample(
                offset_ms=server_ms - (sent_ms + received_ms) / 2,
                round_trip_ms=received_ms - sent_ms,
            )
            if best is None or sample.round_trip_ms < best.round_trip_ms:
                best = sample
    finally:
        if isinstance(probe, trio.abc.AsyncResource):
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
                await probe.aclose()
    assert best is not None, "count is at least 1"
    return best


class RestProbe:
    """Asks through the REST client, and so by its connections and its weight gate."""

    def __init__(self, rest: Rest) -> None:
        """Use a client, which stays its owner's."""
        self._rest = rest

    async def server_time_ms(self) -> int:
        """Return the exchange's time, in ms."""
        return await self._rest.server_time(priority=Priority.TIME)


class AsksProbe(trio.abc.AsyncResource):
    """Asks by asks. Keeps one connection during a series of samples."""

    def __init__(self, base_url: str, dial: Dial | None = None) -> None:
        """Connect to nothing yet. ConfigurationError for plain http off loopback.

        Connections are made by asks itself, unless `dial` is given: by the way through a proxy.
        """
        self._address = parse_address(base_url, "https")
        self._dial = dial
        self._url = f"{self._address.url}/fapi/v1/time"
        self._session: Any = None

    async def server_time_ms(self) -> int:
        """Return the exchange's time, in ms."""
        asks = _load_asks()
        foreign = _foreign_exceptions(asks)
        if self._session is None:
            context = default_context() if self._address.tls else None
            self._session = asks.Session(ssl_context=context)
            if self._dial is not None:
                self._session._open_connection_https = self._open
                self._session._open_connection_http = self._open
        body = bytearray()

        async def take(chunk: bytes) -> None:
            body.extend(chunk)
            if len(body) > BODY_BYTES_MAX:
                raise RemoteError(f"{self._url}: the answer is far too long")

        try:
            with trio.fail_after(TIMEOUT_S):
                response = await self._session.get(
                    self._url,
                    headers={
                        "Accept-Encoding": "identity",
                        "Connection": "keep-alive",  # asks would have it closed
                        "User-Agent": "klagg",
                    },
                    follow_redirects=False,
                    retries=0,
                    callback=take,
                )
        except trio.TooSlowError as error:
            raise RemoteError(f"{self._url}: no answer within {TIMEOUT_S:g} s") from error
        except foreign as error:
            raise RemoteError(f"{self._url}: {network_reason(error)}") from error
        if response.status_code != 200:
            words = plain_body(bytes(body))
            raise RemoteError(
                f"{self._url}: HTTP status {response.status_code}" + (f": {words}" if words else "")
            )
        try:
            return wire.decode_server_time(bytes(body))
        except RemoteError as error:
            raise RemoteError(f"{self._url}: {error}") from error

    async def _open(self, location: tuple[str, int]) -> _Socket:
        """Open a connection as asks wants one, by the way that was given."""
        assert self._dial is not None, "set before this is put in place"
        return _Socket(await self._dial(*location, self._address.tls))

    async def aclose(self) -> None:
        """Close the connection. The next question opens another."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class _Socket:
    """A byte stream as asks uses one: `send` and `receive` of anyio, and marks of its own."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._active = True  # asks keeps those that are
        self.host = ""
        self.port = 0

    async def send(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        import anyio

        if data := await self._stream.receive_some(max_bytes):
            return bytes(data)
        raise anyio.EndOfStream

    async def aclose(self) -> None:
        await self._stream.aclose()


class FallbackProbe(trio.abc.AsyncResource):
    """Asks by one probe, and by a second one for good where the first fails and that does not."""

    def __init__(self, first: TimeProbe, second: TimeProbe) -> None:
        """Prefer `first`."""
        self._first = first
        self._second = second
        self.fallen_back = False

    async def server_time_ms(self) -> int:
        """Return the exchange's time, in ms. RemoteError where neither has an answer."""
        if self.fallen_back:
            return await self._second.server_time_ms()
        try:
            return await self._first.server_time_ms()
        except RemoteError as error:
            server_ms = await self._second.server_time_ms()
            # The exchange does answer, so it is the client that is at fault.
            self.fallen_back = True
            log.warning("time is sampled by the second HTTP client from now on: %s", error)
            return server_ms

    async def aclose(self) -> None:
        """Close the connections of both."""
        for probe in (self._first, self._second):
            if isinstance(probe, trio.abc.AsyncResource):
                await probe.aclose()


def _load_asks() -> ModuleType:
    """Import asks, only when it is needed, so that it works with anyio 3 and with anyio 4."""
    import importlib.metadata

    anyio_major = int(importlib.metadata.version("anyio").split(".")[0])
    if anyio_major < 4 and not hasattr(trio, "MultiError"):
        # anyio 3 makes its own exception group from this name; any group class will do.
        trio.MultiError = BaseExceptionGroup  # type: ignore[attr-defined]
    import asks

    return asks  # type: ignore[no-any-return]


def _foreign_exceptions(asks: ModuleType) -> tuple[type[Exception], ...]:
    """Return what asks and what lies below it raise where there is no good answer."""
    import anyio
    import h11

    return (
        asks.errors.AsksException,
        h11.ProtocolError,
        anyio.EndOfStream,
        anyio.BrokenResourceError,
        anyio.ClosedResourceError,
        trio.BrokenResourceError,
        trio.ClosedResourceError,
        OSError,  # ssl.SSLError is one
        # What asks stumbles over in an answer that it did not expect.
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    )
