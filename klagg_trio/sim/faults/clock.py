"""The exchange's clock where it is wrong: ahead, drifting, set forward and back."""

from __future__ import annotations

import random
from collections.abc import Callable

from klagg_trio.sim.faults.rates import FaultRates


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
