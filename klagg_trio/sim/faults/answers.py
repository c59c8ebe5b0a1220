"""What becomes of REST answers: refused, slow, cut short, of another kind than asked for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from klagg_trio.sim.faults.rates import ON_REQUEST, FaultRates
from klagg_trio.sim.klines import MINUTE_MS
from klagg_trio.sim.rest import Reply, WeightWindow, error_body


class AnswerFaults:
    """Spoils answers at the rates that are set. Draws come from the order of requests alone."""

    def __init__(
        self, seed: int, rates: Callable[[], FaultRates], count: Callable[[str], None]
    ) -> None:
        self._rates = rates
        self._count = count
        self._rng = random.Random(f"requests/{seed}")
        self._throttled_until_ms = 0
        self._retry_told = True

    def heal(self) -> None:
        """End what stands, but for bans."""
        self._throttled_until_ms = 0

    def answer(
        self, make: Callable[[], Reply], weight: WeightWindow, now_ms: int, kind: str = ""
    ) -> Reply:
        """Return the answer that `make` makes, or what becomes of it.

        `kind` is drawn by the rates where it is empty.
        """
        rng = self._rng
        draw = rng.random()
        if not kind:
            rates = self._rates()
            for each in ON_REQUEST:
                draw -= getattr(rates, each)
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
        rng = self._rng
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
