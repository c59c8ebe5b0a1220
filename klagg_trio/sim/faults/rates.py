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

    # Lies in frames: times an hour, for each websocket.
    event_time: float = 0.0
    """Some frames of some seconds carry an event time that is a year off, or far back."""
    trade_time: float = 0.0
    """Some trades carry a time far ahead, or long ago."""
    trade_span: float = 0.0
    """Some trades hold more raw ones than 64 bits can count, or fewer than none."""
    trade_digits: float = 0.0
    """Some trades have a price or a quantity of sixty digits, which none has, or one in forty that
    ends in zeros, which change nothing."""
    stranger: float = 0.0
    """Trades of symbols that do not exist come in between."""

    # Lies: times an hour, for the whole exchange.
    onboard_raised: float = 0.0
    """A live contract's onboardDate is corrected to later, for a while or for good."""
    onboard_lowered: float = 0.0
    """The same to earlier."""
    delivery_moved: float = 0.0
    """A live contract's deliveryDate is brought forward, and put back before it or after."""
    mislabelled: float = 0.0
    """A contract is told not to trade, for minutes to tens of minutes, and trades on."""
    halted: float = 0.0
    """A contract is halted for minutes to tens of minutes, and then trades again."""
    maintenance: float = 0.0
    """No contract trades, nor is told to, for some minutes."""
    omitted: float = 0.0
    """A contract is missing from an answer of exchangeInfo, or from a few."""
    info_empty: float = 0.0
    """An answer of exchangeInfo lists nothing."""
    info_short: float = 0.0
    """An answer of exchangeInfo ends early."""
    info_odd: float = 0.0
    """Rows of exchangeInfo lack fields, or have them of other types, for some minutes."""
    contract_info: float = 0.0
    """A contractInfo frame tells a wrong status or a wrong date."""
    time_told: float = 0.0
    """/time alone is a day ahead, or an hour back, for some seconds."""
    row_wrong: float = 0.0
    """A row of klines contradicts itself, for a while or for good."""
    hole: float = 0.0
    """Some 1m rows of a contract are never served."""
    pages_empty: float = 0.0
    """A contract's klines are empty answers for some minutes."""
    rows_shuffled: float = 0.0
    """A contract's klines come repeated and in any order for some minutes."""
    ids_restart: float = 0.0
    """A contract's aggregate ids begin anew, or leap ahead."""

    # Lies, as shares.
    dropped: float = 0.0
    """Of the contracts that ended: they leave exchangeInfo some minutes later."""
    ids_anew: float = 0.0
    """Of the tickers used again: their aggregate ids begin at 1."""
    unfinished: float = 0.0
    """Of all 1m rows: they lack trades when asked for within a minute of their end."""
    past_wrong: float = 0.0
    """Of all contracts: rows of the last hours are missing or contradict themselves for good."""
    quiet_start: float = 0.0
    """Of all contracts: they do not trade for the first minutes."""
    for_good: float = 0.0
    """Of the rows that contradict themselves, and of the corrected dates: they stay so."""

    # The machine that klagg runs on: times an hour. The exchange has no part in it.
    suspended: float = 0.0
    """It sleeps for minutes: its monotonic clock stands still, the exchange's goes on."""
    stopped: float = 0.0
    """The process is stopped for some seconds or minutes, and goes on."""
    restarted: float = 0.0
    """The program ends in an orderly way and is started again."""
    killed: float = 0.0
    """It ends at once, with nothing written any more, and is started again."""
    restored: float = 0.0
    """Started again with the database of some minutes ago, or with the start snapshot of then."""

    def scaled(self, factor: float) -> FaultRates:
        """Return the same faults, so many times as often; what stands is left as it is."""
        return replace(
            self,
            **{
                each.name: getattr(self, each.name) * factor
                for each in fields(self)
                if each.name not in STANDING
            },
        )


STANDING: Final = (
    *("life_s", "offset_ms", "drift_ppm", "reused"),
    *("dropped", "ids_anew", "unfinished", "past_wrong", "quiet_start", "for_good"),
)
"""What is no rate: lengths and shares."""

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
    "event_time",
    "trade_time",
    "trade_span",
    "trade_digits",
    "stranger",
)
LIES_TOLD: Final = (
    "onboard_raised",
    "onboard_lowered",
    "delivery_moved",
    "mislabelled",
    "halted",
    "maintenance",
    "omitted",
    "info_empty",
    "info_short",
    "info_odd",
    "contract_info",
    "time_told",
    "row_wrong",
    "hole",
    "pages_empty",
    "rows_shuffled",
    "ids_restart",
)
ON_MACHINE: Final = ("suspended", "stopped", "restarted", "killed", "restored")
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

LIES: Final = replace(
    HARSH,
    event_time=0.5,
    trade_time=0.5,
    trade_span=0.5,
    trade_digits=0.5,
    stranger=0.5,
    onboard_raised=0.7,
    onboard_lowered=0.7,
    delivery_moved=0.7,
    mislabelled=1.5,
    halted=0.7,
    maintenance=0.4,
    omitted=1.5,
    info_empty=1.0,
    info_short=1.0,
    info_odd=1.0,
    contract_info=1.5,
    time_told=1.0,
    row_wrong=4.0,
    hole=0.7,
    pages_empty=1.0,
    rows_shuffled=1.0,
    ids_restart=0.7,
    dropped=0.5,
    ids_anew=0.5,
    unfinished=0.05,
    past_wrong=0.05,
    quiet_start=0.1,
    for_good=0.3,
    suspended=0.4,
    stopped=0.7,
    restarted=0.4,
    killed=0.4,
    restored=0.2,
)
"""The harsh ones, and an exchange that is wrong now and then: docs/reliability.md says how."""

PROFILES: Final[Mapping[str, FaultRates]] = {
    "none": NONE,
    "mild": MILD,
    "harsh": HARSH,
    "lies": LIES,
}


def drawn(seed: int) -> FaultRates:
    """Return some faults of the harsh ones, each much more or less often: a swarm has them all."""
    rng = random.Random(f"rates/{seed}")
    chosen = {
        each.name: getattr(HARSH, each.name) * rng.choice((0.0, 0.0, 0.5, 1.0, 3.0))
        for each in fields(HARSH)
        if each.name != "reused" and getattr(HARSH, each.name)
    }
    return FaultRates(**chosen, reused=rng.random())


def drawn_lies(seed: int) -> FaultRates:
    """Return the same for the lies: some of them much more often, on some of the harsh faults."""
    rng = random.Random(f"lies/{seed}")
    chosen = {
        each.name: getattr(LIES, each.name) * rng.choice((0.0, 0.5, 1.0, 3.0))
        for each in fields(LIES)
        if not getattr(HARSH, each.name)
    }
    for name in STANDING:
        if name in chosen:
            chosen[name] = min(1.0, chosen[name])
    return replace(drawn(seed), **chosen)
