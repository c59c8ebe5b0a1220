"""Everything that goes wrong with one exchange, at rates that may be switched at any moment."""

from __future__ import annotations

from klagg_trio.sim.faults.answers import AnswerFaults
from klagg_trio.sim.faults.clock import SkewedClock
from klagg_trio.sim.faults.connections import ConnectionFaults
from klagg_trio.sim.faults.contracts import ContractFaults
from klagg_trio.sim.faults.lies import Lies
from klagg_trio.sim.faults.rates import NONE, FaultRates
from klagg_trio.sim.faults.touched import Touched
from klagg_trio.sim.klines import HOUR_MS
from klagg_trio.sim.market import Change, Market
from klagg_trio.sim.push import Board


class Faults:
    """Inflicts faults on an exchange at the rates that are set."""

    def __init__(self, seed: int = 1, rates: FaultRates = NONE) -> None:
        self.seed = seed
        self.rates = rates
        """May be switched at any moment."""
        self.counts: dict[str, int] = {}
        """How often each fault came about."""
        self.touched = Touched()
        """Which minutes nobody could know in time."""
        self.lies = Lies(seed, self._rates_now, self._count, self.touched)
        self._connections = ConnectionFaults(seed, self._rates_now, self._count, self.touched)
        self._answers = AnswerFaults(seed, self._rates_now, self._count)
        drop = self.lies.about_contracts.drop
        self._contracts = ContractFaults(seed, self._rates_now, self._count, drop)
        self.refuses = self._connections.refuses
        self.life_s = self._connections.life_s
        self.next_due_ms = self._connections.next_due_ms
        self.inflict = self._connections.inflict
        self.spoil = self._connections.spoil
        self.answer = self._answers.answer
        self.delist = self._contracts.delist
        self._now_ms = 0

    @property
    def clock(self) -> SkewedClock | None:
        """The clock that `clock_step` sets forward and back, where there is one."""
        return self._contracts.clock

    @clock.setter
    def clock(self, clock: SkewedClock | None) -> None:
        self._contracts.clock = clock

    def _rates_now(self) -> FaultRates:
        return self.rates

    def _count(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def advance(self, market: Market, board: Board) -> list[Change]:
        """Let time pass up to the market's present. Returns what contractInfo tells besides."""
        now_ms = market.now_ms
        passed_hours = (now_ms - self._now_ms) / HOUR_MS if self._now_ms else 0.0
        self._now_ms = now_ms
        self._connections.advance(board, now_ms, passed_hours)
        self._contracts.advance(market, passed_hours)
        return self.lies.advance(market, passed_hours)

    def heal(self) -> None:
        """End whatever stands, except for connections that are lost already."""
        self._connections.heal()
        self._answers.heal()
        self.lies.heal()
