"""What goes wrong: connections, frames, answers, clocks and contracts, drawn from a seed.

Theory of operation: `Faults` stands between the exchange and its clients. Each connection gathers
hazard as market time passes; when it has enough, a kind of fault is drawn and inflicted on it: at
once (a reset), for a while (silence), or on its next frames (duplicates). Each REST request draws
whether it is spoilt. The rates may be switched at any moment, `heal` ends what stands, and
`inflict` brings one fault about by name. Draws come from the seed, a connection's number and the
order of requests alone.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final

from klagg_trio.sim.klines import HOUR_MS, MINUTE_MS
from klagg_trio.sim.market import Market
from klagg_trio.sim.push import Board, Peer, frame
from klagg_trio.sim.rest import Reply, WeightWindow, error_body


@dataclass(frozen=True, slots=True)
class FaultRates:
    """How often what goes wrong. Zero is never."""

    # Times an hour, for each websocket.
    reset: float = 0.0
    """Cut at once; what was on its way is lost."""
    torn: float = 0.0
    """Cut in the middle of a frame."""
    goodbye: float = 0.0
    """Closed with a close frame."""
    half_open: float = 0.0
    """It stays open, and nothing comes any more, nor is anything heard."""
    silent: float = 0.0
    """It goes on to acknowledge and to answer pings, and delivers nothing."""
    stale: float = 0.0
    """Everything comes some seconds late, in order."""
    late: float = 0.0
    """The frames of a moment come some seconds late, after newer ones."""
    mute: float = 0.0
    """One of its streams delivers nothing any more, the others go on."""
    lost: float = 0.0
    """Some frames never come."""
    duplicate: float = 0.0
    """Some frames come twice."""
    reorder: float = 0.0
    """Some frames come in another order."""
    truncated: float = 0.0
    """A frame comes whole, its text cut short."""
    garbage: float = 0.0
    """A frame that makes no sense comes in between."""

    # Of each websocket handshake, as a share.
    refused: float = 0.0
    """The handshake is answered with 403 or 503."""

    # Of each REST request, as a share.
    throttled: float = 0.0
    """429, and so for some seconds to all that follow."""
    banned: float = 0.0
    """418, and so for two minutes."""
    forbidden: float = 0.0
    """403 with a page of HTML."""
    failed: float = 0.0
    """Some status of 500 and more."""
    slow: float = 0.0
    """The answer takes seconds."""
    dripping: float = 0.0
    """The body comes in pieces over seconds."""
    partial: float = 0.0
    """The connection ends in the middle of the body."""
    nonsense: float = 0.0
    """A body that is not what was asked for."""
    redirected: float = 0.0
    """302 to another host."""

    # Times an hour, for the whole exchange.
    delisted: float = 0.0
    reused: float = 0.0
    """Share of delisted tickers that another contract gets some minutes later."""
    clock_step: float = 0.0
    """The exchange's clock jumps by up to half a second, either way."""

    # Standing.
    life_s: float = 0.0
    """A websocket is cut after about this; 0 for the exchange's own setting."""
    offset_ms: float = 0.0
    """The exchange's clock is ahead by up to this, or behind."""
    drift_ppm: float = 0.0
    """It goes too fast by up to this, or too slow."""

    def scaled(self, factor: float) -> FaultRates:
        """Return the same faults, so many times as often; what stands is left as it is."""
        standing = ("life_s", "offset_ms", "drift_ppm", "reused")
        return replace(
            self,
            **{
                each.name: getattr(self, each.name) * factor
                for each in fields(self)
                if each.name not in standing
            },
        )


ON_CONNECTION: Final = (
    "reset",
    "torn",
    "goodbye",
    "half_open",
    "silent",
    "stale",
    "late",
    "mute",
    "lost",
    "duplicate",
    "reorder",
    "truncated",
    "garbage",
)
ON_REQUEST: Final = (
    "throttled",
    "banned",
    "forbidden",
    "failed",
    "slow",
    "dripping",
    "partial",
    "nonsense",
    "redirected",
)

NONE: Final = FaultRates()

MILD: Final = FaultRates(
    reset=0.5,
    goodbye=0.5,
    silent=0.25,
    stale=0.25,
    late=1.0,
    lost=0.5,
    duplicate=1.0,
    reorder=1.0,
    garbage=0.5,
    refused=0.02,
    throttled=0.002,
    failed=0.01,
    slow=0.02,
    partial=0.005,
    delisted=0.5,
    life_s=3_600.0,
    offset_ms=2_000.0,
    drift_ppm=20.0,
)
"""A bad week of the real exchange in a few hours."""

HARSH: Final = FaultRates(
    reset=1.5,
    torn=1.0,
    goodbye=0.5,
    half_open=1.0,
    silent=1.0,
    stale=1.0,
    late=2.0,
    mute=0.5,
    lost=1.5,
    duplicate=2.0,
    reorder=2.0,
    truncated=1.0,
    garbage=2.0,
    refused=0.1,
    throttled=0.01,
    banned=0.001,
    forbidden=0.01,
    failed=0.05,
    slow=0.05,
    dripping=0.02,
    partial=0.02,
    nonsense=0.01,
    redirected=0.005,
    delisted=1.5,
    reused=0.5,
    clock_step=1.0,
    life_s=1_500.0,
    offset_ms=300_000.0,
    drift_ppm=200.0,
)
"""More than anybody has seen: a connection suffers something every four minutes."""

PROFILES: Final[Mapping[str, FaultRates]] = {"none": NONE, "mild": MILD, "harsh": HARSH}


def drawn(seed: int) -> FaultRates:
    """Return some faults of the harsh ones, each much more or less often: a swarm has them all."""
    rng = random.Random(f"rates/{seed}")
    chosen = {
        each.name: getattr(HARSH, each.name) * rng.choice((0.0, 0.0, 0.5, 1.0, 3.0))
        for each in fields(HARSH)
        if each.name != "reused"
    }
    return FaultRates(**chosen, reused=rng.random())


class SkewedClock:
    """The exchange's clock: another one, with an offset, a drift, and steps."""

    def __init__(
        self, now_ms: Callable[[], int], *, offset_ms: float = 0.0, drift_ppm: float = 0.0
    ) -> None:
        self._now_ms = now_ms
        self._zero_ms = now_ms()
        self._offset_ms = offset_ms
        self._drift = drift_ppm / 1_000_000

    @classmethod
    def drawn(cls, now_ms: Callable[[], int], rates: FaultRates, seed: int) -> SkewedClock:
        """Return a clock as wrong as the rates allow."""
        rng = random.Random(f"clock/{seed}")
        return cls(
            now_ms,
            offset_ms=rng.uniform(-rates.offset_ms, rates.offset_ms),
            drift_ppm=rng.uniform(-rates.drift_ppm, rates.drift_ppm),
        )

    def __call__(self) -> int:
        true_ms = self._now_ms()
        return int(true_ms + self._offset_ms + (true_ms - self._zero_ms) * self._drift)

    def step(self, by_ms: float) -> None:
        """Set the clock forward, or back."""
        self._offset_ms += by_ms


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


class Faults:
    """Inflicts faults on an exchange at the rates that are set."""

    def __init__(self, seed: int = 1, rates: FaultRates = NONE) -> None:
        self.seed = seed
        self.rates = rates
        """May be switched at any moment."""
        self.counts: dict[str, int] = {}
        """How often each fault came about."""
        self.clock: SkewedClock | None = None
        """The clock that `clock_step` sets forward and back, where there is one."""
        self._conditions: dict[Peer, _Condition] = {}
        self._held: list[tuple[int, int, Peer, bytes]] = []
        """Frames that go out later: when, in what order, to whom."""
        self._held_number = 0
        self._requests = random.Random(f"requests/{seed}")
        self._handshakes = random.Random(f"handshakes/{seed}")
        self._contracts = random.Random(f"contracts/{seed}")
        self._delist_hazard = self._contracts.expovariate(1)
        self._step_hazard = self._contracts.expovariate(1)
        self._ended: dict[str, int] = {}
        """Delisted tickers and when they ended."""
        self._now_ms = 0
        self._throttled_until_ms = 0
        self._retry_told = True

    def _count(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    # -- Connections -------------------------------------------------------------------------

    def refuses(self) -> int | None:
        """Return the status that a handshake is refused with, if it is."""
        if self._handshakes.random() >= self.rates.refused:
            return None
        self._count("refused")
        return self._handshakes.choice((403, 503))

    def life_s(self, number: int, usual_s: float) -> float:
        """Return when a connection is cut: not all at the same age."""
        if not self.rates.life_s:
            return usual_s
        rng = random.Random(f"life/{self.seed}/{number}")
        return self.rates.life_s * rng.uniform(0.7, 1.3)

    def _condition(self, peer: Peer) -> _Condition:
        condition = self._conditions.get(peer)
        if condition is None:
            rng = random.Random(f"peer/{self.seed}/{peer.number}")
            condition = _Condition(rng, threshold=rng.expovariate(1))
            self._conditions[peer] = condition
        return condition

    def advance(self, market: Market, board: Board) -> None:
        """Let time pass up to the market's present: new faults come, held frames go out."""
        now_ms = market.now_ms
        passed_hours = (now_ms - self._now_ms) / HOUR_MS if self._now_ms else 0.0
        self._now_ms = now_ms
        total = sum(getattr(self.rates, kind) for kind in ON_CONNECTION)
        if total:
            for peer in list(board.peers):
                condition = self._condition(peer)
                condition.hazard += passed_hours * total
                if condition.hazard >= condition.threshold:
                    condition.hazard = 0.0
                    condition.threshold = condition.rng.expovariate(1)
                    weights = [getattr(self.rates, kind) for kind in ON_CONNECTION]
                    self.inflict(condition.rng.choices(ON_CONNECTION, weights)[0], [peer])
        for peer in [each for each in self._conditions if each not in board.peers]:
            del self._conditions[peer]
        while self._held and self._held[0][0] <= now_ms:
            _, _, peer, data = heapq.heappop(self._held)
            if peer in board.peers and not self._condition(peer).cut:
                peer.push(data)
        self._advance_exchange(market, passed_hours)

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

    def _inflict(
        self, kind: str, peer: Peer, condition: _Condition, seconds: float | None, frames: int
    ) -> None:
        rng, now_ms = condition.rng, self._now_ms
        some = frames or rng.randrange(1, 20)
        if kind == "reset":
            condition.cut = True
            peer.end("reset")
        elif kind == "goodbye":
            condition.cut = True
            peer.end("goodbye")
        elif kind == "half_open":
            condition.cut = True
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
        else:
            assert kind == "garbage"
            for _ in range(frames or 1):
                peer.push(garbage(rng))

    def spoil(self, peer: Peer, name: str, data: bytes) -> Iterable[bytes]:
        """Return what goes out now in place of one frame of a stream."""
        condition = self._conditions.get(peer)
        if condition is None or condition.clear:
            return (data,)
        if name == condition.muted:
            return ()
        return self._spoilt(peer, condition, data)

    def _spoilt(self, peer: Peer, condition: _Condition, data: bytes) -> list[bytes]:
        now_ms = self._now_ms
        if condition.cut:
            return []
        if condition.lose:
            condition.lose -= 1
            return []
        if condition.tear:
            condition.tear, condition.cut = False, True
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
            or now_ms < condition.stale_until_ms
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
            condition.lose = condition.repeat = condition.shorten = 0
            condition.tear = False
            condition.muted = ""
            self._hold(self._now_ms, peer, condition.shuffled)
            condition.shuffled, condition.shuffle = [], 0
        self._throttled_until_ms = 0

    # -- Requests ----------------------------------------------------------------------------

    def answer(
        self, make: Callable[[], Reply], weight: WeightWindow, now_ms: int, kind: str = ""
    ) -> Reply:
        """Return the answer that `make` makes, or what becomes of it.

        `kind` is drawn by the rates where it is empty.
        """
        rng = self._requests
        draw = rng.random()
        if not kind:
            for each in ON_REQUEST:
                draw -= getattr(self.rates, each)
                if draw < 0:
                    kind = each
                    break
        if kind:
            self._count(kind)
        if kind == "throttled":
            self._throttled_until_ms = now_ms + rng.randrange(3_000, 30_000)
            self._retry_told = rng.random() < 0.7
        if kind == "banned":
            weight.ban(now_ms, 2 * MINUTE_MS)
        reply = make()
        if now_ms < self._throttled_until_ms and reply.status != 418:
            return self._throttle(reply, now_ms)
        return self._spoil_reply(kind, reply)

    def _throttle(self, reply: Reply, now_ms: int) -> Reply:
        headers = [each for each in reply.headers if each[0] != "Retry-After"]
        if self._retry_told:
            after_s = -(-(self._throttled_until_ms - now_ms) // 1000)
            headers.append(("Retry-After", str(after_s)))
        text = (
            "Too many requests; current limit is 2400 requests per minute. "
            "Please use the websocket for live updates to avoid polling the API."
        )
        return Reply(429, error_body(-1003, text), headers)

    def _spoil_reply(self, kind: str, reply: Reply) -> Reply:
        rng = self._requests
        if kind == "banned" and rng.random() < 0.3:
            reply.headers = [each for each in reply.headers if each[0] != "Retry-After"]
        elif kind == "forbidden":
            reply = Reply(403, _FORBIDDEN, reply.headers, "text/html")
        elif kind == "failed":
            reply = replace(rng.choice(_FAILURES), headers=reply.headers)
            reply.delay_s = rng.choice((0.0, 0.0, 2.0))
        elif kind == "slow":
            reply.delay_s = rng.choice((0.5, 2.0, 6.0, 45.0))
        elif kind == "dripping":
            reply.drip_s = rng.uniform(1, 12)
        elif kind == "partial":
            reply.cut_at = rng.randrange(len(reply.body) + 1)
        elif kind == "nonsense":
            whole = reply.body
            bodies = (b"", b"<html>", whole[: len(whole) // 2], b"null", b'{"code":0}', b"\xff\xfe")
            reply = Reply(200, rng.choice(bodies), reply.headers)
        elif kind == "redirected":
            headers = [*reply.headers, ("Location", "https://elsewhere.invalid/")]
            reply = Reply(302, b"", headers, "text/html")
        return reply

    # -- The exchange as a whole -------------------------------------------------------------

    def _advance_exchange(self, market: Market, passed_hours: float) -> None:
        rng = self._contracts
        self._delist_hazard -= passed_hours * self.rates.delisted
        if self._delist_hazard <= 0:
            self._delist_hazard = rng.expovariate(1)
            self.delist(market)
        self._step_hazard -= passed_hours * self.rates.clock_step
        if self._step_hazard <= 0:
            self._step_hazard = rng.expovariate(1)
            if self.clock is not None:
                self._count("clock_step")
                self.clock.step(rng.uniform(-500, 500))

    def delist(self, market: Market) -> None:
        """End some contract in a few minutes; its ticker may come to another one later."""
        rng, now_ms = self._contracts, market.now_ms
        candidates = [
            each
            for each in market.current.values()
            if each.is_usdt_perpetual and each.symbol not in self._ended
        ]
        if len(candidates) < 4:
            return
        symbol = rng.choice(candidates[1:]).symbol
        delivery_ms = (now_ms // MINUTE_MS + rng.randrange(3, 8)) * MINUTE_MS
        market.delist(symbol, delivery_ms)
        self._ended[symbol] = delivery_ms
        self._count("delisted")
        if rng.random() < self.rates.reused:
            market.relist(symbol, delivery_ms + rng.randrange(150_000, 900_000))
            self._count("reused")


def _header_length(data: bytes) -> int:
    """Return the length of the header of a frame that `push.frame` made."""
    return {126: 4, 127: 10}.get(data[1], 2)


_FORBIDDEN: Final = b"<html><head><title>403 Forbidden</title></head><body>WAF</body></html>"

_FAILURES: Final = (
    Reply(500, error_body(-1000, "An unknown error occurred while processing the request.")),
    Reply(502, b"<html><body>502 Bad Gateway</body></html>", [], "text/html"),
    Reply(503, error_body(-1000, "Unknown error, please check your request or try again later.")),
    Reply(503, b"Service Unavailable.", [], "text/plain"),
    Reply(503, error_body(-1008, "Server is currently overloaded with other requests.")),
    Reply(504, b"", [], "text/html"),
    Reply(408, error_body(-1007, "Timeout waiting for response from backend server.")),
)

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
