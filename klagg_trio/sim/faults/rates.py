"""How often what goes wrong: the rates, the profiles, and swarms drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final


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
