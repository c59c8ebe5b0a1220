"""TLS that hands out every record that has already been received, in one call.

`trio.SSLStream` returns one record a call. An exchange that sends a frame a record would make a
chunk, with its wake-ups and batches, of each message; this stream makes one of all that is there.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Final

import trio

from klagg_trio.core.errors import ConfigurationError
from klagg_trio.core.plain import plain

CHUNK_BYTES: Final = 256 * 1024
"""Received at a time; this bounds the buffers too."""

DRAINED_BYTES: Final = CHUNK_BYTES + 32 * 1024
"""Decrypted at a time: all that was received, and a record of 16 KiB begun before. With less room
every second call would return the few bytes that are left over, and cost as much as a full one."""


@functools.cache
def default_context() -> ssl.SSLContext:
    """Verifies certificates and host names. Made once: loading the authorities takes 10 ms.

    The authorities are the system's, or those of SSL_CERT_FILE or SSL_CERT_DIR where these are set.
    OpenSSL takes no notice of one that cannot be read, and then trusts nobody: it is told here.
    """
    for variable, readable in (("SSL_CERT_FILE", os.path.isfile), ("SSL_CERT_DIR", os.path.isdir)):
        path = os.environ.get(variable)
        if path and not (readable(path) and os.access(path, os.R_OK)):
            raise ConfigurationError(f"{variable} names {path}, which cannot be read; correct it")
    try:
        return ssl.create_default_context()
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"the certificates of SSL_CERT_FILE or SSL_CERT_DIR are none: {_words(error)}"
        ) from error


CAUSES_MAX: Final = 20
_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")

_NOT_TLS: Final = frozenset(
    (
        *("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"),
        *("RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "BAD_PROTOCOL_VERSION_NUMBER"),
        *("HTTPS_PROXY_REQUEST", "UNSUPPORTED_PROTOCOL", "BAD_RECORD_TYPE"),
    )
)
"""What OpenSSL says of a peer that speaks something else."""

_NO_AUTHORITY: Final = frozenset((18, 19, 20, 21))
"""X509_V_ERR codes: self-signed, or by an authority that is not known here."""


def network_reason(error: BaseException) -> str:
    """Say in words why a connection failed: of a TLS failure, what is wrong with whom.

    The reason is looked for down the chain of causes, since clients wrap it in errors of their own.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return tls_reason(cause)
    for cause in causes:
        if isinstance(cause, BaseExceptionGroup):  # one for each address of the host
            return plain("; ".join(dict.fromkeys(map(network_reason, cause.exceptions))))
        if isinstance(cause, socket.gaierror):
            return f"its name cannot be resolved: {plain(cause.strerror or str(cause))}"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
    return plain(str(error)) or _CAMEL.sub(" ", type(error).__name__).lower()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, the last first."""
    cause: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def tls_reason(error: ssl.SSLError) -> str:
    """Say what is wrong with the peer's TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"its certificate is not valid: {plain(error.verify_message).rstrip('.')}"
        if error.verify_code in _NO_AUTHORITY:
            text += " (if a firewall or proxy of yours signs it, name its file in SSL_CERT_FILE)"
        return text
    if error.reason in _NOT_TLS:
        return f"what answers there does not speak TLS ({_words(error)}); is it the right port?"
    return f"TLS failed: {_words(error)}"


def _words(error: ssl.SSLError) -> str:
    return (error.reason or plain(str(error))).lower().replace("_", " ")


class DrainingTlsStream(trio.abc.Stream):
    """The client's end of TLS that returns all records received so far in one call."""

    def __init__(self, transport: trio.abc.Stream, host: str, context: ssl.SSLContext) -> None:
        """Put TLS on a byte stream. Use `connect`, which also shakes hands."""
        self._transport = transport
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._send_lock = trio.StrictFIFOLock()
        self._receiving = trio.Lock()
        self._buffer = bytearray(DRAINED_BYTES)
        self._ended = False

    @classmethod
    async def connect(
        cls, transport: trio.abc.Stream, host: str, context: ssl.SSLContext | None = None
    ) -> DrainingTlsStream:
        """Shake hands. ssl.SSLError where the peer is not proved to be `host`."""
        stream = cls(transport, host, context or default_context())
        try:
            await stream._shake_hands()
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(transport)
            raise
        return stream

    async def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._fill():
                    raise trio.BrokenResourceError("closed during the TLS handshake") from None
            except ssl.SSLError:
                await self._flush()  # the alert tells the peer why
                raise
            else:
                await self._flush()
                return

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has been received, at least one byte, up to `max_bytes`; b"" at the end.

        A peer that ends the TCP stream without a closing record counts as ended too: what is read
        through this has its own framing, so a truncation shows there.
        """
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        limit = min(max_bytes or DRAINED_BYTES, DRAINED_BYTES)
        if self._receiving.locked():
            raise trio.BusyResourceError("another task is receiving")
        async with self._receiving:
            await trio.lowlevel.checkpoint_if_cancelled()
            while True:
                size = self._drain(limit)
                if self._outgoing.pending:
                    await self._flush()
                if size:
                    return bytes(memoryview(self._buffer)[:size])
                if self._ended or not await self._fill():
                    return b""

    def _drain(self, limit: int) -> int:
        """Decrypt records into the buffer, up to `limit` bytes. Returns how many."""
        read: Callable[[int, memoryview], int] = self._tls.read  # type: ignore[assignment]
        view = memoryview(self._buffer)
        size = 0
        try:
            while size < limit:
                count = read(limit - size, view[size:])
                if not count:
                    self._ended = True
                    break
                size += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended = True
        except ssl.SSLError as error:
            if not size:
                raise trio.BrokenResourceError(f"TLS: {error}") from error
            # What was decrypted before it is good; the error comes again with the next call.
        return size

    async def _fill(self) -> bool:
        """Receive encrypted bytes. Returns False at their end."""
        data = await self._transport.receive_some(CHUNK_BYTES)
        self._incoming.write(data)
        return bool(data)

    async def _flush(self) -> None:
        """Send what TLS has to say, in the order in which it said it."""
        async with self._send_lock:
            if data := self._outgoing.read():
                await self._transport.send_all(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            if len(data):
                self._tls.write(data)
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(f"TLS: {error}") from error
        await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport may take more."""
        async with self._send_lock:
            await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Send the closing record, do not wait for the peer's, and close."""
        with contextlib.suppress(ssl.SSLError):  # it wants the peer's closing record too
            self._tls.unwrap()
        try:
            if not self._send_lock.locked():
                await self._flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the transport is gone already: nobody is there to be told
        finally:
            await self._transport.aclose()
