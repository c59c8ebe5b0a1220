"""Finding out what the exchange itself lacks: where a hole in its klines begins and ends.

An answer that has nothing for some minutes may be a hiccup, or lie within a hole that is longer
than the answer. The newest kline before it and the oldest after it show the hole as a whole, for
two requests of weight 1, however long it is. None of this counts while the exchange is not well:
while it cannot give the newest minutes of a symbol that is not concerned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from klagg_trio.core.errors import RefusedError
from klagg_trio.core.intervals import MINUTE, MINUTE_MS
from klagg_trio.exchange.rest import Priority, Rest
from klagg_trio.exchange.validate import Klines

INVALID_SYMBOL: Final = -1121
"""The exchange's code for a name that it does not know, or no more."""

SETTLED_MS: Final = 10 * MINUTE_MS
"""A hole may reach up to here before now: what is younger may only be late."""

FRESH_MS: Final = 3 * MINUTE_MS
"""The newest kline of an exchange that is well is not older."""


def is_unknown(error: Exception) -> bool:
    """Whether the exchange says that it has no such symbol."""
    return isinstance(error, RefusedError) and error.code == INVALID_SYMBOL


def claimed_minutes(klines: Klines) -> list[int] | None:
    """Return the minutes that an answer has rows for, refused ones too, in order.

    None where a row does not even tell its time: then nobody knows what is missing.
    """
    minutes = {bar.open_ms for bar in klines.bars}
    for row in klines.refused:
        if row.open_ms is None:
            return None
        minutes.add(MINUTE.floor(row.open_ms))
    return sorted(minutes)


async def is_well(rest: Rest, symbols: Sequence[str], now_ms: int, priority: Priority) -> bool:
    """Whether the exchange has fresh klines of any of the first few of these symbols."""
    for symbol in symbols[:3]:
        klines = await rest.klines(symbol, MINUTE.name, limit=2, priority=priority)
        if any(now_ms - FRESH_MS <= bar.open_ms <= now_ms for bar in klines.bars):
            return True
    return False


async def hole_around(
    rest: Rest, symbol: str, span: tuple[int, int], now_ms: int, priority: Priority
) -> tuple[int, int] | None:
    """Return the hole that a span of minutes without klines lies in; None where it is in none.

    Before a symbol's first kline there is none to be missed, and after its last one it is a hole
    only up to SETTLED_MS ago.
    """
    first_ms, last_ms = span
    settled_ms = MINUTE.floor(now_ms - SETTLED_MS)
    before = claimed_minutes(
        await rest.klines(
            symbol, MINUTE.name, end_ms=first_ms - MINUTE_MS, limit=2, priority=priority
        )
    )
    after = claimed_minutes(
        await rest.klines(symbol, MINUTE.name, start_ms=first_ms, limit=2, priority=priority)
    )
    if before is None or after is None:
        return None
    first_ms = before[-1] + MINUTE_MS if before else first_ms
    last_ms = after[0] - MINUTE_MS if after else min(last_ms, settled_ms)
    return (first_ms, last_ms) if first_ms <= last_ms else None
