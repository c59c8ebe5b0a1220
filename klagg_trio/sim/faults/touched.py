"""Which minutes of which contracts the faults touched: nobody can know their trades in time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from klagg_trio.sim.klines import MINUTE_MS

RECOVERY_MS: Final = 120_000
"""After a fault has ended, or taken a connection with it: until that is noticed, another connection
is up, and the minute in which it came up is over."""


QUIET_MS: Final = 15 * MINUTE_MS
"""Of a contract without trades nobody knows the price of its flat minutes before its klines have
been had again: answers may be refused, empty and cut short for this long."""


class Touched:
    """Spans of time by ticker, and those that touch every ticker."""

    def __init__(self) -> None:
        self._of_all: list[tuple[int, int]] = []
        self._by_ticker: dict[str, list[tuple[int, int]]] = {}
        self._claimed: dict[str, set[int]] = {}
        """Minutes that a lie named, by ticker."""

    def claim(self, ticker: str, at_ms: int) -> None:
        """Note that a lie named a moment, however far off: what befalls its minute is its doing."""
        minute_ms = at_ms // MINUTE_MS * MINUTE_MS
        self._claimed.setdefault(ticker.upper(), set()).add(minute_ms)

    def add(self, tickers: Iterable[str] | None, from_ms: int, until_ms: int) -> None:
        """Note a span with the time that recovery takes; None for all tickers."""
        span = (from_ms, until_ms + RECOVERY_MS)
        if tickers is None:
            self._of_all.append(span)
            return
        for ticker in tickers:
            self._by_ticker.setdefault(ticker.upper(), []).append(span)

    def minutes(self, ticker: str, delivered_ms: Iterable[int]) -> set[int]:
        """Return the open times of the touched minutes of a ticker.

        What a fault took shows with the next trade that comes through: `delivered_ms` are the times
        of those, in order, the first one of each minute. Until then its end is not known, but from
        klines.
        """
        times_ms = list(delivered_ms)
        found = set(self._claimed.get(ticker.upper(), ()))
        for from_ms, until_ms in [*self._of_all, *self._by_ticker.get(ticker.upper(), ())]:
            shown_ms = next((each for each in times_ms if each >= until_ms), None)
            quiet_ms = until_ms + QUIET_MS
            end_ms = quiet_ms if shown_ms is None else min(shown_ms, quiet_ms)
            first_ms = from_ms // MINUTE_MS * MINUTE_MS - MINUTE_MS
            last_ms = end_ms // MINUTE_MS * MINUTE_MS
            found.update(range(first_ms, last_ms + 1, MINUTE_MS))
            if shown_ms is not None:
                found.add(shown_ms // MINUTE_MS * MINUTE_MS)
        return found
