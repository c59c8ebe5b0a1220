"""Reading the body of an answer under a limit, whatever it claims to be.

An answer of a megabyte may inflate to gigabytes, and one that is encoded twice does so twice over.
So a body is read as it comes, counted, and unpacked here, piece by piece, never beyond the limit.
klagg asks for gzip; what is encoded in any other way, or more than once, is refused unread.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import httpx

from klagg_trio.core.errors import RemoteError

ACCEPTED: Final = "gzip"
"""What is asked for in Accept-Encoding."""

_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_GZIP_NAMES: Final = frozenset(("gzip", "x-gzip"))


class Unpacker:
    """Takes the pieces of a body, and returns them unpacked. Refuses what passes its limit."""

    def __init__(self, encodings: Sequence[str], bytes_max: int) -> None:
        """`encodings` are those of Content-Encoding. RemoteError for any but none, or one gzip."""
        names = [name for each in encodings if (name := each.strip().lower()) != "identity"]
        if len(names) > 1 or not _GZIP_NAMES.issuperset(names):
            shown = ascii(", ".join(names)[:80])
            raise RemoteError(f"the answer is encoded as {shown}; only gzip, once, is understood")
        self._inflate = zlib.decompressobj(_GZIP_WINDOW) if names else None
        self._bytes_max = bytes_max
        self._received = 0
        self._body = bytearray()

    def feed(self, piece: bytes) -> None:
        """Take the next piece. RemoteError where it is no good, or makes the body too long."""
        self._received += len(piece)
        if self._inflate is None:
            self._body += piece
        else:
            self._unpack(self._inflate, piece)
        if max(self._received, len(self._body)) > self._bytes_max:
            raise RemoteError(
                f"the answer is longer than {self._bytes_max:,} bytes, which none should be"
            )

    def _unpack(self, inflate: zlib._Decompress, piece: bytes) -> None:
        if inflate.eof and piece:
            raise RemoteError("the answer is broken: it goes on after its end")
        room = self._bytes_max - len(self._body) + 1  # one more shows that it is too long
        try:
            self._body += inflate.decompress(piece, room)
        except zlib.error as error:
            raise RemoteError(f"the answer is broken: {error}") from error
        if inflate.unused_data:
            raise RemoteError("the answer is broken: it goes on after its end")

    def finish(self) -> bytes:
        """Return the whole body. RemoteError where it is not whole."""
        if self._inflate is not None and self._received and not self._inflate.eof:
            raise RemoteError("the answer is broken: its end is missing")
        return bytes(self._body)


async def read_body(response: httpx.Response, bytes_max: int) -> bytes:
    """Return the body of an answer, unpacked. RemoteError for one that is no good or too long."""
    encodings = response.headers.get_list("Content-Encoding", split_commas=True)
    unpacker = Unpacker(encodings, bytes_max)
    if response.is_stream_consumed:  # a stand-in for the network gave all of it at once, unpacked
        unpacker = Unpacker((), bytes_max)
        unpacker.feed(response.content)
        return unpacker.finish()
    async for piece in response.aiter_raw():
        unpacker.feed(piece)
    return unpacker.finish()
