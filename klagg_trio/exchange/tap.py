"""The frame tap: data frames leave the websocket's byte stream before trio-websocket sees them.

Theory of operation
-------------------
trio-websocket costs about 40 us a message, most of it in its state machine and one channel hop a
message. So it gets to see only what is rare. Between it and the network sits a `FrameTap`, a
stream that looks at every received chunk (`FrameScanner`, which does no I/O):

- up to the end of the HTTP answer to the handshake, everything passes;
- after that, complete, unmasked, final text frames are taken out, and those of one chunk are put
  into the sink together, not yet cut apart (`Frames`);
- everything else passes untouched: pings, pongs, close, binary frames, fragmented messages, and
  whatever is illegal, for trio-websocket to answer.

trio-websocket's own reader task drives the tap: there is one reader, hence one order. When the sink
is full the tap waits, nothing is read any more, and TCP holds the exchange back. Pings wait as well
then; the exchange allows ten minutes for them.

To wake up costs more than a hundred trades: the processor comes back slow and its caches cold. So
after a read that found data the tap rests until the next *beat*, a whole multiple of `read_pause_s`
on Trio's clock. All taps of a process have the same beats, hence they wake up together.

The tap *ends* when the peer closes, in either manner, or something breaks: the sink then ends after
the last list that was received.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import trio

from klagg_trio.exchange.frames import Frames, Positions

CHUNK_BYTES: Final = 512 * 1024
"""Asked for at a time: some 2,500 frames, 1.5 ms from their bytes to their bars."""

MANY_BYTES: Final = 8 * 1024
"""In a chunk of so many, frames are found all at once: that has a price of its own."""

PAUSE_BELOW_BYTES: Final = 192 * 1024
"""After a larger read there is no pause: the chunk is long enough, and the kernel's buffer may be
full. 900 trades; at 50 ms between reads, 18,000 a second."""

FRAME_BYTES_MAX: Final = 1024 * 1024
"""The largest frames are all-market arrays of some 150 KiB."""

HANDSHAKE_BYTES_MAX: Final = 64 * 1024
"""Of the answer to the handshake: its head, and the page that a refusal may bring along."""

FRAGMENTS_MAX: Final = 1_024
"""Of one message. The exchange sends none in pieces."""

CONTROLS_MAX: Final = 1_024
"""Control frames in one chunk, or without data between. The exchange pings every three minutes."""

PASSED_BYTES: Final = 16 * 1024
"""Handed to trio-websocket at a time, which takes a frame in some 40 us."""

_TEXT: Final = 0x81
_TEXT_16: Final = 0x817E
"""First two bytes of a final, unmasked text frame of 126 to 65,535 bytes: what trades come in."""

_CONTROL_BIT: Final = 0x08
_CLOSE: Final = 0x08
_PING: Final = 0x09
_FIN_BIT: Final = 0x80
_MASK_BIT: Final = 0x80

_NOWHERE: Final = np.empty(0, np.int64)
_NO_FRAMES: Final = Frames(b"", (), ())

_status_line = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")
_two_shorts = struct.Struct(">HH").unpack_from


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """What one connection has received."""

    frames: int
    """Data frames, fragmented messages counted as one."""
    bytes: int
    batches: int
    pings: int
    """From the peer; each was answered."""
    fragmented: int
    """Messages that did not come as one text frame, so by way of trio-websocket."""
    dropped: int
    """Frames that arrived while the connection was being left."""


class FrameScanner:
    """Cuts what a websocket server sends into frames to be taken out and bytes that pass."""

    def __init__(self) -> None:
        """Begin before the handshake's answer."""
        self.passed = bytearray()
        """What is for trio-websocket. The reader takes it away."""
        self.closing = False
        """A close frame has passed: there is no data after it."""
        self.error = ""
        """Why nothing more can be made of the stream, once that is so."""
        self.shaken = False
        """The handshake has been answered with "101 Switching Protocols"."""
        self.pings = 0
        self._head: bytearray | None = bytearray()
        """The answer so far; None once it has ended."""
        self._held = bytearray()
        """An incomplete frame."""
        self._need = 0
        """Length at which it is worth looking at `_held` again."""
        self._fragmented = False
        """Inside a fragmented message, whose frames all pass."""
        self._fragments = 0
        self._controls = 0
        self._refusal_bytes = 0
        """What came after the head of an answer that is no upgrade."""

    def feed(self, chunk: bytes) -> Frames:
        """Take a chunk in; return the payloads of the complete text frames in it."""
        if self._head is not None:
            chunk = self._pass_head(chunk)
        if not self.shaken:
            self._refusal_bytes += len(chunk)
            if self._refusal_bytes > HANDSHAKE_BYTES_MAX:
                self.error = self.error or "the answer to the handshake does not end"
                return _NO_FRAMES
            self.passed += chunk
            return _NO_FRAMES
        if self._held:
            self._held += chunk
            if len(self._held) < self._need:
                return _NO_FRAMES
            chunk = bytes(self._held)
            self._held.clear()
        return self._scan(chunk)

    def _pass_head(self, chunk: bytes) -> bytes:
        """Pass what belongs to the handshake's answer; return what comes after it."""
        head = self._head
        assert head is not None
        searched = max(0, len(head) - 3)
        head += chunk
        while (end := head.find(b"\r\n\r\n", searched)) >= 0:
            status = _status_line.match(head)
            self.shaken = status is not None and status[1] == b"101"
            rest_at = end + 4
            if self.shaken or status is None or status[1][:1] != b"1":
                rest = bytes(head[rest_at:])
                self._head = None
                self.passed += chunk[: len(chunk) - len(rest)]
                return rest
            del head[:rest_at]  # an interim answer: the real one follows
            searched = 0
        if len(head) > HANDSHAKE_BYTES_MAX:
            self.error = "the answer to the handshake does not end"
        self.passed += chunk
        return b""

    def _scan(self, data: bytes) -> Frames:
        """Take the frames out of `data`, which begins with one; hold what is incomplete."""
        starts: list[int] = []
        ends: list[int] = []
        usual_starts, usual_ends = _NOWHERE, _NOWHERE
        position, end = 0, len(data)
        if end >= MANY_BYTES and not self._fragmented:
            usual_starts, usual_ends = _find_usual(data)
            position = int(usual_ends[-1]) if len(usual_ends) else 0
        while position < end and not self.closing and not self.error:
            if not self._fragmented:
                position = _take_usual(data, position, starts, ends)
            stop = self._end_of_frame(data, position)
            if stop > end or self.error:
                self._held += data[position:]
                self._need = stop - position
                break
            self._take_any(data, position, stop, starts, ends)
            position = stop
        if starts or len(usual_starts):
            self._controls = 0
        if not len(usual_starts):
            return Frames(data, starts, ends)
        if not starts:
            return Frames(data, usual_starts, usual_ends)
        return Frames(data, np.append(usual_starts, starts), np.append(usual_ends, ends))

    def _end_of_frame(self, data: bytes, position: int) -> int:
        """Return where a frame ends, or at least how far it must be known to tell."""
        if position + 2 > len(data):
            return position + 2
        size = data[position + 1] & ~_MASK_BIT
        start = position + (2, 4, 10)[max(0, size - 125)]
        if data[position + 1] & _MASK_BIT:
            start += 4
        if start > len(data):
            return start
        if size == 126:
            size = int.from_bytes(data[position + 2 : position + 4], "big")
        elif size == 127:
            size = int.from_bytes(data[position + 2 : position + 10], "big")
        if size > FRAME_BYTES_MAX:
            self.error = f"sent a frame of {size:,} bytes, more than {FRAME_BYTES_MAX:,}"
        return start + size

    def _take_any(
        self, data: bytes, position: int, stop: int, starts: list[int], ends: list[int]
    ) -> None:
        """Take or pass one complete frame of any kind."""
        first, second = data[position], data[position + 1]
        if first == _TEXT and second < _MASK_BIT and not self._fragmented:
            starts.append(position + (2, 4, 10)[max(0, second - 125)])
            ends.append(stop)
            return
        self.passed += data[position:stop]
        if not first & _CONTROL_BIT:
            self._fragmented = not first & _FIN_BIT
            self._fragments = self._fragments + 1 if self._fragmented else 0
            if self._fragments > FRAGMENTS_MAX:
                self.error = f"sent a message in more than {FRAGMENTS_MAX:,} pieces"
            return
        self._controls += 1
        if self._controls > CONTROLS_MAX:
            self.error = f"sent more than {CONTROLS_MAX:,} control frames in a row"
        if first & 0x0F == _PING:
            self.pings += 1
        elif first & 0x0F == _CLOSE:
            self.closing = True


def _take_usual(data: bytes, position: int, starts: list[int], ends: list[int]) -> int:
    """Take text frames of the usual length out of `data`; return where that ends."""
    end = len(data)
    try:
        while True:
            head, size = _two_shorts(data, position)
            if head != _TEXT_16:
                return position
            start = position + 4
            stop = start + size
            if stop > end:
                return position
            starts.append(start)
            ends.append(stop)
            position = stop
    except struct.error:  # fewer than four bytes are left
        return position


def _find_usual(data: bytes) -> tuple[Positions, Positions]:
    """Find the text frames of the usual length that `data` begins with, all at once.

    The two bytes of `_TEXT_16` are hardly ever in a text, so wherever they are may be a frame; it
    is one when the frame before it ends there. What is not found here `_take_usual` finds.
    """
    octets = np.frombuffer(data, np.uint8)
    heads = (octets[:-3] == _TEXT).nonzero()[0]
    heads = heads[octets[heads + 1] == _TEXT_16 & 0xFF]
    starts = heads + 4
    ends = starts + (octets[heads + 2].astype(np.int64) << 8) + octets[heads + 3]
    usual = (ends <= len(data)) & (heads == np.append(0, ends[:-1])[: len(heads)])
    found = len(usual) if usual.all() else int(usual.argmin())
    return starts[:found], ends[:found]


class FrameTap(trio.abc.Stream):
    """A stream for trio-websocket that takes text frames out of what it reads."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        sink: trio.MemorySendChannel[Frames],
        *,
        read_pause_s: float = 0.0,
        handshake_deadline_s: float = float("inf"),
    ) -> None:
        """Read from `stream`, put what is taken out into `sink`, which is closed at the end."""
        self.read_pause_s = read_pause_s
        self.handshake_deadline_s = handshake_deadline_s
        self.ended = False
        """Nothing more will be taken out."""
        self.failure = ""
        """What the peer did that no websocket allows; empty where it did nothing of the kind."""
        self._stream = stream
        self._sink = sink
        self._scanner = FrameScanner()
        self._scopes: set[trio.CancelScope] = set()
        self._delivering = False
        self._pause_due = False
        self._frames = 0
        self._bytes = 0
        self._batches = 0
        self._fragmented = 0
        self._dropped = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next bytes that pass, taking out text frames on the way to them."""
        passed = self._scanner.passed
        while not passed:
            if not await self._read_on():
                return b""
        data = bytes(passed[: min(max_bytes or PASSED_BYTES, PASSED_BYTES)])
        del passed[: len(data)]
        return data

    async def _read_on(self) -> bool:
        """Read one chunk and deliver what is in it. Returns whether there may be more."""
        if self._pause_due:
            await trio.sleep_until(_next_beat_s(trio.current_time(), self.read_pause_s))
        try:
            chunk = bytes(await self._stream.receive_some(CHUNK_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.end()
            raise
        if not chunk:
            self.end()
            return False
        self._bytes += len(chunk)
        frames = self._scanner.feed(chunk)
        self._pause_due = (
            self.read_pause_s > 0 and len(frames) > 0 and len(chunk) < PAUSE_BELOW_BYTES
        )
        if len(frames):
            await self._deliver(frames)
        if self._scanner.error:
            self.failure = self._scanner.error
            self.end()
            raise trio.BrokenResourceError(self.failure)
        if self._scanner.closing:
            self.end()
        return True

    async def _deliver(self, frames: Frames) -> None:
        """Put a batch into the sink, waiting while it is full."""
        self._delivering = True
        try:
            try:
                self._sink.send_nowait(frames)
            except trio.WouldBlock:
                await self._sink.send(frames)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._dropped += len(frames)  # the context is being left
        except trio.Cancelled:
            self._dropped += len(frames)
            raise
        else:
            self._frames += len(frames)
            self._batches += 1
        finally:
            self._delivering = False
        if self.ended:
            self._sink.close()

    async def deliver_rest(self, sink: trio.MemorySendChannel[Frames], data: bytes) -> None:
        """Put a message that was not one text frame into `sink`."""
        self._fragmented += 1
        try:
            await sink.send(Frames.of([data]))
        except trio.BrokenResourceError:
            self._dropped += 1
        else:
            self._frames += 1
            self._batches += 1

    def count_dropped(self, frames: Frames) -> None:
        """Count frames that were put into the sink, and that nobody took."""
        self._dropped += len(frames)

    def end(self) -> None:
        """Take nothing out any more: let the sink end after what is on its way to it."""
        self.ended = True
        for scope in self._scopes:
            scope.cancel()
        if not self._delivering:
            self._sink.close()

    def cancelling_at_end(self, scope: trio.CancelScope) -> _CancelledAtEnd:
        """Return a context in which the end of the tap cancels `scope`."""
        return _CancelledAtEnd(self, self._scopes, scope)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes as they are."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the stream may take more."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the stream, and let the sink end."""
        self.end()
        await self._stream.aclose()

    def statistics(self) -> ConnectionStatistics:
        """Return what has been received so far."""
        return ConnectionStatistics(
            frames=self._frames,
            bytes=self._bytes,
            batches=self._batches,
            pings=self._scanner.pings,
            fragmented=self._fragmented,
            dropped=self._dropped,
        )


def _next_beat_s(now_s: float, beat_s: float) -> float:
    """Return the next whole multiple of `beat_s`; at one, though rounded, the one after it."""
    return (math.floor(now_s / beat_s + 1e-6) + 1) * beat_s


class _CancelledAtEnd:
    """Cancels a scope when a tap ends within the context, or has ended before it."""

    def __init__(
        self, tap: FrameTap, scopes: set[trio.CancelScope], scope: trio.CancelScope
    ) -> None:
        self._tap = tap
        self._scopes = scopes
        self._scope = scope

    def __enter__(self) -> None:
        self._scopes.add(self._scope)
        if self._tap.ended:
            self._scope.cancel()

    def __exit__(self, *_: object) -> None:
        self._scopes.discard(self._scope)
