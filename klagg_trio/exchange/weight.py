"""The weight gate: everything that asks the exchange over REST waits here for its turn.

Theory of operation
-------------------
The exchange counts the weight of requests in each minute of its own clock. Where those minutes
begin need not be known: a request is held against the allowance from the moment it may be sent
until `WINDOW_S` after its answer. Whatever minute the exchange counted it in, all requests of that
minute are then held at once at its end, so their sum cannot pass the allowance. On average this
costs nothing: what was held comes free as fast as it was spent.

`observe` takes the exchange's own count. What it has above ours was spent by somebody else on this
address, and is held like a request answered now, up to the limit: more would hold up nobody longer.
Ours is never lowered by it. A count that cannot be is ignored.

Who waits goes by priority, then by order of arrival. Each priority has a cap: the last percents of
the allowance are kept for discovery and for time, so that an hour of repair at full weight delays
neither the clock nor a new listing. A request may pass one ahead of it that does not fit only
where its own cap is higher.

After a 429 nothing is sent until the pause that the exchange asked for has passed; after a 418, not
before the ban ends.
"""

from __future__ import annotations

import bisect
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import trio

from klagg_trio.vitals import WeightVitals

WINDOW_S: Final = 60.0
"""The exchange's window is a minute."""

THROTTLED_S: Final = 60.0
"""Pause after a 429 that does not say how long: then the minute is over."""

THROTTLED_S_MAX: Final = 3_600.0
"""The longest pause after a 429: the exchange's windows are minutes."""

PAUSE_S_MAX: Final = 4 * 86_400.0
"""The longest ban is three days; a longer pause is nonsense, or an attack."""

NONSENSE: Final = 10
"""A count of so many times the limit is none: the exchange refuses what passes the limit."""


class Priority(IntEnum):
    """What a request is for; lower numbers go first."""

    TIME = 0
    REPAIR = 1
    BACKFILL = 2
    DISCOVERY = 3
    AUDIT = 4


_CAPS: Final = {
    Priority.TIME: 1.0,
    Priority.REPAIR: 0.97,
    Priority.BACKFILL: 0.97,
    Priority.DISCOVERY: 0.99,
    Priority.AUDIT: 0.97,
}
"""Share of the allowance that each may fill. 1 % is 19: a clock sample costs 5."""


@dataclass(order=True, slots=True)
class _Waiter:
    priority: Priority
    number: int
    weight: int = field(compare=False)


class Charge:
    """The weight of one request that may be sent. Settle it when the answer is there."""

    def __init__(self, gate: WeightGate, weight: int) -> None:
        self._gate = gate
        self._weight = weight

    def settle(self) -> None:
        """The request has been answered, or has failed: its window begins to pass."""
        weight, self._weight = self._weight, 0
        self._gate.settle(weight)

    def refund(self) -> None:
        """The request was never sent."""
        weight, self._weight = self._weight, 0
        self._gate.refund(weight)


class WeightGate:
    """Keeps the weight of all requests within a share of the exchange's limit."""

    def __init__(self, limit_per_minute: int = 2_400, share: float = 0.8) -> None:
        """Allow `share` of the limit, which counts for the whole address."""
        self.limit = limit_per_minute
        self.allowance = int(limit_per_minute * share)
        self.throttlings = 0
        self.bans = 0
        self.nonsense = 0
        """Counts of the exchange that were ignored."""
        self._in_flight = 0
        self._settled: deque[tuple[float, int]] = deque()
        """Trio time of release, and weight, oldest first."""
        self._settled_sum = 0
        self._pause_until_s = 0.0
        self._waiters: list[_Waiter] = []
        self._numbers: Iterator[int] = itertools.count()
        self._changed = trio.Event()
        self._peak = 0

    # -- Asking ------------------------------------------------------------------------------------

    async def spend(self, weight: int, *, priority: Priority) -> Charge:
        """Wait until a request of this weight may be sent. Settle what is returned."""
        waiter = _Waiter(priority, next(self._numbers), weight)
        bisect.insort(self._waiters, waiter)
        try:
            await trio.lowlevel.checkpoint()
            while not self._may_go(waiter):
                with trio.move_on_at(self._next_release_s()):
                    await self._changed.wait()
            self._in_flight += weight
            self._peak = max(self._peak, self._held)
        finally:
            self._waiters.remove(waiter)
            self._notify()
        return Charge(self, weight)

    @property
    def paused(self) -> bool:
        """Whether nothing may be sent now, whatever its weight."""
        return trio.current_time() < self._pause_until_s

    def _may_go(self, waiter: _Waiter) -> bool:
        """Whether it is this one's turn."""
        self._release()
        if self.paused or not self._fits(waiter):
            return False
        ahead = itertools.takewhile(lambda each: each is not waiter, self._waiters)
        return all(
            _CAPS[each.priority] < _CAPS[waiter.priority] and not self._fits(each) for each in ahead
        )

    def _fits(self, waiter: _Waiter) -> bool:
        """Whether there is room. What is heavier than all the room there is goes alone."""
        held = self._held
        return not held or held + waiter.weight <= int(self.allowance * _CAPS[waiter.priority])

    # -- Hearing -----------------------------------------------------------------------------------

    def settle(self, weight: int) -> None:
        """A request has been answered. Called by its `Charge`."""
        self._in_flight -= weight
        self._hold(weight)
        self._notify()

    def refund(self, weight: int) -> None:
        """A request was not sent. Called by its `Charge`."""
        self._in_flight -= weight
        self._notify()

    def observe(self, used: int | None) -> None:
        """Take the exchange's count of this minute, from X-MBX-USED-WEIGHT-1M."""
        if used is None:
            return
        if used >= NONSENSE * self.limit:
            self.nonsense += 1
            return
        self._release()
        if min(used, self.limit) > self._held:
            self._hold(min(used, self.limit) - self._held)
        self._peak = max(self._peak, used)

    def throttled(self, retry_after_s: float | None) -> None:
        """The exchange has said 429: send nothing for as long as it asks."""
        self.throttlings += 1
        self._pause(THROTTLED_S if retry_after_s is None else min(retry_after_s, THROTTLED_S_MAX))

    def banned(self, wait_s: float) -> None:
        """The exchange has said 418: send nothing until the ban ends."""
        self.bans += 1
        self._pause(wait_s)

    def statistics(self) -> WeightVitals:
        """Return what is held now against the exchange's limit."""
        self._release()
        return WeightVitals(used=self._held, limit=self.limit)

    @property
    def peak_percent(self) -> float:
        """The most that was ever held, in percent of the exchange's limit."""
        return round(100 * self._peak / self.limit, 1)

    # -- Counting ----------------------------------------------------------------------------------

    @property
    def _held(self) -> int:
        return self._in_flight + self._settled_sum

    def _hold(self, weight: int) -> None:
        if weight:
            self._settled.append((trio.current_time() + WINDOW_S, weight))
            self._settled_sum += weight

    def _release(self) -> None:
        """Forget what no minute of the exchange can still count."""
        now_s = trio.current_time()
        while self._settled and self._settled[0][0] <= now_s:
            self._settled_sum -= self._settled.popleft()[1]

    def _next_release_s(self) -> float:
        """Return when it is worth looking again, if nobody notifies before."""
        if self.paused:
            return self._pause_until_s
        return self._settled[0][0] if self._settled else float("inf")

    def _pause(self, seconds: float) -> None:
        until_s = trio.current_time() + min(max(seconds, 1.0), PAUSE_S_MAX)
        self._pause_until_s = max(self._pause_until_s, until_s)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
