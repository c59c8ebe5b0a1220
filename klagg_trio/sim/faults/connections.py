"""What websockets suffer: cut, silent, behind; frames lost, twice, in another order, spoilt.

Theory of operation: each connection gathers hazard as market time passes; when it has enough, a
kind of fault is drawn and inflicted on it: at once (a reset), for a while (silence), or on its next
frames (duplicates). Draws come from the seed and a connection's number alone.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from klagg_trio.sim.faults import words
from klagg_trio.sim.faults.rates import ON_CONNECTION, FaultRates
from klagg_trio.sim.faults.touched import Touched
from klagg_trio.sim.push import Board, Peer, frame


@dataclass(slots=True)
class _Condition:
    """What one connection suffers from."""

    rng: random.Random
    hazard: float = 0.0
    threshold: float = 0.0
    clear: bool = True
    """Nothing below is in force: frames pass."""
    cut: bool = False
    """Its end is near; nothing more goes out."""
    stale_ms: int = 0
    stale_until_ms: int = 0
    free_ms: int = 0
    """When the last frame that was held in order goes out."""
    late_ms: int = 0
    late_until_ms: int = 0
    muted: str = ""
    """The stream that delivers nothing."""
    lose: int = 0
    repeat: int = 0
    shorten: int = 0
    tear: bool = False
    shuffle: int = 0
    shuffled: list[bytes] = field(default_factory=list)
    twist: str = ""
    """What its next trades lie about."""
    twists: int = 0
    event_off_ms: int = 0
    event_off_until_ms: int = 0
    touched_ms: int | None = None
    """Since when something has been in force."""
    had: dict[str, None] = field(default_factory=dict)
    """What it was subscribed to when something befell it: an end takes the streams with it."""


class ConnectionFaults:
    """Inflicts faults on websockets at the rates that are set."""

    def __init__(
        self,
        seed: int,
        rates: Callable[[], FaultRates],
        count: Callable[[str], None],
        touched: Touched,
    ) -> None:
        self._seed = seed
        self._touched = touched
        self._rates = rates
        self._count = count
        self._conditions: dict[Peer, _Condition] = {}
        self._held: list[tuple[int, int, Peer, bytes]] = []
        """Frames that go out later: when, in what order, to whom."""
        self._held_number = 0
        self._handshakes = random.Random(f"handshakes/{seed}")
        self._now_ms = 0

    def refuses(self) -> int | None:
        """Return the status that a handshake is refused with, if it is."""
        if self._handshakes.random() >= self._rates().refused:
            return None
        self._count("refused")
        self._touched.add(None, self._now_ms, self._now_ms)
        return self._handshakes.choice((403, 503))

    def life_s(self, number: int, usual_s: float) -> float:
        """Return when a connection is cut: not all at the same age."""
        if not self._rates().life_s:
            return usual_s
        rng = random.Random(f"life/{self._seed}/{number}")
        return self._rates().life_s * rng.uniform(0.7, 1.3)

    def _condition(self, peer: Peer) -> _Condition:
        condition = self._conditions.get(peer)
        if condition is None:
            rng = random.Random(f"peer/{self._seed}/{peer.number}")
            condition = _Condition(rng, threshold=rng.expovariate(1))
            self._conditions[peer] = condition
        return condition

    def advance(self, board: Board, now_ms: int, passed_hours: float) -> None:
        """Let time pass: new faults come, held frames go out."""
        self._now_ms = now_ms
        rates = self._rates()
        weights = [getattr(rates, kind) for kind in ON_CONNECTION]
        total = sum(weights)
        if total:
            for peer in list(board.peers):
                condition = self._condition(peer)
                condition.hazard += passed_hours * total
                if condition.hazard >= condition.threshold:
                    condition.hazard = 0.0
                    condition.threshold = condition.rng.expovariate(1)
                    self.inflict(condition.rng.choices(ON_CONNECTION, weights)[0], [peer])
        for peer, condition in list(self._conditions.items()):
            gone = peer not in board.peers
            if gone or condition.clear:
                self._note_touched(peer, condition)
            if gone:
                del self._conditions[peer]
        while self._held and self._held[0][0] <= now_ms:
            _, _, peer, data = heapq.heappop(self._held)
            if peer in board.peers and not self._condition(peer).cut:
                peer.push(data)

    def _note_touched(self, peer: Peer, condition: _Condition) -> None:
        """Note for whose trades it was that something was in force up to now."""
        if condition.touched_ms is None:
            return
        names = [*peer.streams, *condition.had]
        symbols = [name.partition("@")[0] for name in names if name.endswith("@aggTrade")]
        self._touched.add(symbols, condition.touched_ms, self._now_ms)
        condition.touched_ms = None

    def end(self, board: Board) -> None:
        """Note what is in force still as if it ended now."""
        for peer, condition in self._conditions.items():
            self._note_touched(peer, condition)

    def next_due_ms(self, until_ms: int) -> int:
        """Return when a held frame goes out next, at most `until_ms`."""
        return min(until_ms, self._held[0][0]) if self._held else until_ms

    def inflict(
        self, kind: str, peers: Iterable[Peer], *, seconds: float | None = None, frames: int = 0
    ) -> None:
        """Bring one fault of connections about.

        Args:
            kind: one of `ON_CONNECTION`.
            peers: who suffers it.
            seconds: how long a silence lasts; how far behind, or how late, frames come.
            frames: how many frames it concerns, where it concerns some.
        """
        for peer in peers:
            condition = self._condition(peer)
            if condition.cut:
                continue
            self._count(kind)
            self._inflict(kind, peer, condition, seconds, frames)
            condition.clear = False
            condition.had.update(peer.streams)
            if condition.touched_ms is None:
                condition.touched_ms = self._now_ms

    def _inflict(
        self, kind: str, peer: Peer, condition: _Condition, seconds: float | None, frames: int
    ) -> None:
        rng, now_ms = condition.rng, self._now_ms
        some = frames or rng.randrange(1, 20)
        if kind == "reset":
            condition.cut, peer.gone_ms = True, now_ms
            peer.end("reset")
        elif kind == "goodbye":
            condition.cut, peer.gone_ms = True, now_ms
            peer.end("goodbye")
        elif kind == "half_open":
            condition.cut, peer.gone_ms = True, now_ms
            peer.end("half_open")
        elif kind == "torn":
            condition.tear = True
        elif kind == "silent":
            lasts_s = rng.uniform(20, 900) if seconds is None else seconds
            peer.silenced_until_ms = now_ms + round(lasts_s * 1000)
        elif kind == "stale":
            behind_s = rng.uniform(4, 60) if seconds is None else seconds
            condition.stale_ms = round(behind_s * 1000)
            condition.stale_until_ms = now_ms + round(rng.uniform(30, 900) * 1000)
        elif kind == "late":
            behind_s = rng.uniform(0.5, 12) if seconds is None else seconds
            condition.late_ms = round(behind_s * 1000)
            condition.late_until_ms = now_ms + round(rng.uniform(0.2, 4) * 1000)
        elif kind == "mute":
            trades = [name for name in peer.streams if name.endswith("@aggTrade")]
            condition.muted = rng.choice(trades) if trades else ""
        elif kind == "lost":
            condition.lose = some
        elif kind == "duplicate":
            condition.repeat = some
        elif kind == "reorder":
            condition.shuffle = max(2, some)
        elif kind == "truncated":
            condition.shorten = frames or 1
        elif kind in ("trade_time", "trade_span", "trade_digits"):
            condition.twist, condition.twists = kind, frames or rng.randrange(1, 5)
        elif kind == "event_time":
            condition.event_off_ms = rng.choice(words.EVENT_OFF_MS)
            lasts_s = rng.uniform(1, 60) if seconds is None else seconds
            condition.event_off_until_ms = now_ms + round(lasts_s * 1000)
        elif kind == "stranger":
            for payload in words.strangers(rng, now_ms):
                peer.push(frame(payload))
        else:
            assert kind == "garbage"
            for _ in range(frames or 1):
                peer.push(garbage(rng))

    def spoil(self, peer: Peer, name: str, data: bytes) -> Sequence[bytes]:
        """Return what goes out now in place of one frame of a stream."""
        condition = self._conditions.get(peer)
        if condition is None or condition.clear:
            return (data,)
        if name == condition.muted:
            return ()
        return self._spoilt(peer, condition, self._twisted(condition, name, data))

    def _twisted(self, condition: _Condition, name: str, data: bytes) -> bytes:
        """Return a frame that lies, where one is to."""
        if condition.twists and name.endswith("@aggTrade"):
            condition.twists -= 1
            payload = data[_header_length(data) :]
            payload = words.wrong_trade(condition.twist, payload, condition.rng)
            self._touched.claim(name.partition("@")[0], words.trade_ms(payload))
            data = frame(payload)
        if self._now_ms < condition.event_off_until_ms and condition.rng.random() < 0.5:
            payload = data[_header_length(data) :]
            data = frame(words.with_event_time(payload, condition.event_off_ms))
        return data

    def _spoilt(self, peer: Peer, condition: _Condition, data: bytes) -> list[bytes]:
        now_ms = self._now_ms
        if condition.cut:
            return []
        if condition.lose:
            condition.lose -= 1
            return []
        if condition.tear:
            condition.tear, condition.cut, peer.gone_ms = False, True, now_ms
            peer.push(data[: max(1, condition.rng.randrange(len(data)))])
            peer.end("torn")
            return []
        if condition.shorten:
            condition.shorten -= 1
            payload = data[_header_length(data) :]
            data = frame(payload[: condition.rng.randrange(1, len(payload))])
        if condition.shuffle:
            condition.shuffled.append(data)
            if len(condition.shuffled) < condition.shuffle:
                return []
            found, condition.shuffled, condition.shuffle = condition.shuffled, [], 0
            condition.rng.shuffle(found)
        elif condition.repeat:
            condition.repeat -= 1
            found = [data, data]
        else:
            found = [data]
        if now_ms < condition.late_until_ms:
            self._hold(now_ms + condition.late_ms, peer, found)
            return []
        if now_ms < condition.stale_until_ms:
            condition.free_ms = max(condition.free_ms, now_ms + condition.stale_ms)
        if now_ms < condition.free_ms:
            self._hold(condition.free_ms, peer, found)
            return []
        condition.clear = not (
            condition.muted
            or condition.repeat
            or condition.shorten
            or condition.twists
            or now_ms < condition.stale_until_ms
            or now_ms < condition.event_off_until_ms
        )
        return found

    def _hold(self, due_ms: int, peer: Peer, frames: list[bytes]) -> None:
        for data in frames:
            self._held_number += 1
            heapq.heappush(self._held, (due_ms, self._held_number, peer, data))

    def heal(self) -> None:
        """End whatever stands, except for connections that are lost already."""
        for peer, condition in self._conditions.items():
            peer.silenced_until_ms = 0
            condition.stale_until_ms = condition.late_until_ms = 0
            condition.lose = condition.repeat = condition.shorten = condition.twists = 0
            condition.event_off_until_ms = 0
            condition.tear = False
            condition.muted = ""
            self._hold(self._now_ms, peer, condition.shuffled)
            condition.shuffled, condition.shuffle = [], 0


def _header_length(data: bytes) -> int:
    """Return the length of the header of a frame that `push.frame` made."""
    return {126: 4, 127: 10}.get(data[1], 2)


_TRADE: Final = (
    '{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":1,"a":%s,"s":%s,"p":%s,"q":%s,'
    '"nq":"1","f":1,"l":%s,"T":%s,"m":false,"st":1}}'
)
"""Placeholders: a, s, p, q, l, T."""


def garbage(rng: random.Random) -> bytes:
    """Return a frame that no client should make anything of."""
    ours, fine = '"BTCUSDT"', '"1.5"'
    texts = (
        "",
        "{",
        "null",
        '{"stream":1,"data":[]}',
        "[" * 5_000,
        '{"e":"aggTrade"}',
        _TRADE % (1, ours, '"NaN"', fine, 1, 1),
        _TRADE % (1, ours, '"-1.5"', fine, 1, 1),
        _TRADE % (1, ours, '"1e5"', fine, 1, 1),
        _TRADE % (1, ours, f'"{"9" * 10_000}"', fine, 1, 1),
        _TRADE % (1, ours, '"١٢٣"', fine, 1, 1),
        _TRADE % (1, ours, fine, '"0"', 1, 1),
        _TRADE % (-1, ours, fine, fine, 1, 1),
        _TRADE % (1, ours, fine, fine, 0, 1),
        _TRADE % (1, ours, fine, fine, 1, -5),
        _TRADE % (1, '"NOBODYUSDT"', fine, fine, 1, 1),
        _TRADE % (1, '"../../etc/passwd"', fine, fine, 1, 1),
        _TRADE % (1, '"x\'; DROP TABLE klines; --"', fine, fine, 1, 1),
        '{"stream":"!miniTicker@arr","data":[{"s":"\\u001b[2J[red]USDT","c":"1","E":1,"st":1}]}',
        '{"stream":"!contractInfo","data":{"e":"contractInfo","s":5}}',
    )
    draw = rng.randrange(len(texts) + 4)
    if draw < len(texts):
        return frame(texts[draw].encode())
    return (
        frame(b'{"stream":"\xff\xfe\xfd"}'),
        b"\x82\x03\x00\x01\x02",  # binary
        b"\x83\x00",  # an opcode that does not exist
        frame(b" " * 1_100_000),
    )[draw - len(texts)]
