"""An immutable picture of the running program, for people: dashboard, status line, `status`.

Observation goes by reading: every part has a `statistics()` that returns one of these records, and
`nursery_app` puts them together. Nothing here knows how to draw. Times are exchange time in ms.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from klagg_trio.core.facts import BarCounts, Event, TradeCounts


@dataclass(frozen=True, slots=True)
class ClockVitals:
    """The exchange's time as the minute clock knows it."""

    now_ms: int
    offset_ms: float
    """Exchange time minus the local wall clock."""
    round_trip_ms: float
    error_ms: float
    """Bound of the offset's error: half the round trip plus the sampling resolution."""
    sampled_s: float
    """Seconds since the offset was last confirmed."""
    grace_ms: int
    next_tick_s: float
    """Seconds until the next tick is due; negative when late."""
    minute_ms: int
    """Open time of the running minute: all before it is sealed."""
    is_sure: bool = True
    """Whether a second witness has agreed with the exchange's time."""


@dataclass(frozen=True, slots=True)
class ConnectionVitals:
    """One websocket connection."""

    name: str
    state: str
    """connecting, subscribing, live, lost, closing"""
    symbols: int
    age_s: float
    messages_per_s: float
    silent_s: float
    """Seconds since the last data frame."""
    delay_ms: float
    """Mean one-way delay of recent trades, event time to receipt."""
    reconnects: int
    trouble: str = ""
    """Why it is not live: what ended the last attempt. Empty where nothing has."""


@dataclass(frozen=True, slots=True)
class ShardVitals:
    """One worker and its inbox."""

    shard: int
    symbols: int
    inbox: int
    inbox_cap: int


@dataclass(frozen=True, slots=True)
class WriterVitals:
    """The writer and what it has made durable."""

    queue: int
    queue_cap: int
    last_commit_ms: float
    rows: int
    """Rows written since the start."""
    committed_minute_ms: int
    """Every minute before this one is on disk; 0 before the first tick."""
    snapshot_age_s: float
    """Seconds since the start snapshot was last written; negative where it has not been."""
    trouble: str = ""
    """What the disk says while a refused commit waits to be tried again."""


@dataclass(frozen=True, slots=True)
class WeightVitals:
    """REST weight in the exchange's running minute."""

    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class SymbolVitals:
    """One line of the busiest or newest symbols."""

    symbol: str
    last_price: float
    change_percent: float
    """Of the closes kept for the spark line: last against first."""
    trades_minute: int
    """Raw trades in the running minute."""
    closes: tuple[float, ...] = ()
    """Closes of the last minutes, oldest first, the running one last."""


@dataclass(frozen=True, slots=True)
class AuditVitals:
    """Minutes held against official ones over the last 24 hours."""

    equal: int
    straddle: int
    """Differed by the trades of an aggregate that reaches over a minute boundary."""
    unexplained: int

    @property
    def share_equal(self) -> float:
        """Share of audited minutes that were right as sealed; 1 before the first audit."""
        audited = self.equal + self.straddle + self.unexplained
        return self.equal / audited if audited else 1.0


@dataclass(frozen=True, slots=True)
class Vitals:
    """The whole picture at one moment."""

    health: str
    """good, degraded (bars are suspect, a connection is down), or bad (clock or disk)."""
    reason: str
    """Why it is not good; empty where it is."""
    uptime_s: float
    clock: ClockVitals
    connections: tuple[ConnectionVitals, ...]
    shards: tuple[ShardVitals, ...]
    writer: WriterVitals
    weight: WeightVitals
    bars: BarCounts
    trades: TradeCounts
    received: int
    """Trades received over all connections, undecodable ones included."""
    symbols: int
    intervals: tuple[str, ...]
    owed_minutes: int
    """Minutes that repair owes now."""
    repaired_minutes: int = 0
    """Minutes replaced by official ones since the start."""
    audit: AuditVitals | None = None
    rotations: int = 0
    reconnects: int = 0
    busiest: tuple[SymbolVitals, ...] = ()
    newest: tuple[SymbolVitals, ...] = ()
    events: tuple[Event, ...] = field(default=())
    """Newest last."""
