"""What goes wrong for the whole exchange: contracts end, tickers are reused, its clock steps."""

from __future__ import annotations

import random
from collections.abc import Callable

from klagg_trio.sim.faults.clock import SkewedClock
from klagg_trio.sim.faults.rates import FaultRates
from klagg_trio.sim.klines import MINUTE_MS
from klagg_trio.sim.market import Market
from klagg_trio.sim.universe import Instrument


class ContractFaults:
    """Ends contracts, and steps the exchange's clock, at the rates that are set."""

    def __init__(
        self,
        seed: int,
        rates: Callable[[], FaultRates],
        count: Callable[[str], None],
        drop: Callable[[Instrument, int], None],
    ) -> None:
        """`drop` has a contract left out of exchangeInfo from some moment on."""
        self.clock: SkewedClock | None = None
        """The clock that `clock_step` sets forward and back, where there is one."""
        self._rates = rates
        self._count = count
        self._drop = drop
        self._fates = random.Random(f"fates/{seed}")
        self._rng = random.Random(f"contracts/{seed}")
        self._delist_hazard = self._rng.expovariate(1)
        self._step_hazard = self._rng.expovariate(1)
        self._ended: dict[str, int] = {}
        """Delisted tickers and when they ended."""

    def advance(self, market: Market, passed_hours: float) -> None:
        """Let time pass up to the market's present."""
        rng, rates = self._rng, self._rates()
        self._delist_hazard -= passed_hours * rates.delisted
        if self._delist_hazard <= 0:
            self._delist_hazard = rng.expovariate(1)
            self.delist(market)
        self._step_hazard -= passed_hours * rates.clock_step
        if self._step_hazard <= 0:
            self._step_hazard = rng.expovariate(1)
            if self.clock is not None:
                self._count("clock_step")
                self.clock.step(rng.uniform(-500, 500))

    def delist(self, market: Market) -> None:
        """End some contract in a few minutes; its ticker may come to another one later."""
        rng, now_ms = self._rng, market.now_ms
        candidates = [
            each
            for each in market.current.values()
            if each.is_usdt_perpetual and each.symbol not in self._ended
        ]
        if len(candidates) < 4:
            return
        symbol = rng.choice(candidates[1:]).symbol
        delivery_ms = (now_ms // MINUTE_MS + rng.randrange(3, 8)) * MINUTE_MS
        ended = market.delist(symbol, delivery_ms)
        self._ended[symbol] = delivery_ms
        self._count("delisted")
        if rng.random() < self._rates().reused:
            onboard_ms = delivery_ms + rng.randrange(150_000, 900_000)
            anew = self._fates.random() < self._rates().ids_anew
            market.relist(symbol, onboard_ms, ids_anew=anew)
            self._count("ids_anew" if anew else "reused")
        elif self._fates.random() < self._rates().dropped:
            self._drop(ended, delivery_ms + self._fates.randrange(10) * MINUTE_MS)
            self._count("dropped")
