"""How many trades may be under way between the feeds and their bars: a bound in bytes for inboxes.

An inbox is bounded in messages, but one message may hold a single trade or some thousands. So who
sends trades enters their number here first, and waits while too many are under way; the worker that
has put them into their bars lets them leave. When the disk stands still this is what fills up, and
then the pressure goes back to the sockets.
"""

from __future__ import annotations

from typing import Final

import trio

TRADES_MAX: Final = 100_000
"""Ten seconds of a very busy market. A single trade takes some 500 bytes, so 50 MB."""


class Backlog:
    """Counts the trades between all feeds and all workers of a run."""

    def __init__(self, trades_max: int = TRADES_MAX) -> None:
        """Nothing is under way."""
        self.trades = 0
        self._trades_max = trades_max
        self._closed = False
        self._changed = trio.Event()

    async def enter(self, trades: int) -> None:
        """Wait until so many more may be under way. What is too many by itself goes alone."""
        while self.trades and self.trades + trades > self._trades_max and not self._closed:
            await self._changed.wait()
        self.trades += trades

    def leave(self, trades: int) -> None:
        """So many trades have reached their bars."""
        self.trades -= trades
        self._notify()

    def close(self) -> None:
        """A worker has ended, so nobody may wait for it any more."""
        self._closed = True
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
