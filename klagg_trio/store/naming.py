"""How a contract is named: by its label while it lives, by its permanent key always.

The key is the ticker and the open time of the first official 1m kline. `TICKER@YYYYMMDDTHHMM` is
its text, in UTC.
"""

from __future__ import annotations

import datetime
from typing import Final

MARK: Final = "@"
"""Between ticker and time. The exchange's own names do not have it."""


def key_text(ticker: str, first_ms: int) -> str:
    """Return a contract's permanent key as text."""
    try:
        at = datetime.datetime.fromtimestamp(first_ms / 1_000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{ticker}{MARK}{first_ms}"
    return f"{ticker}{MARK}{at:%Y%m%dT%H%M}"


def ticker_of(label: str) -> str:
    """Return the ticker of a label: of one that another contract has taken, what is before @."""
    return label.partition(MARK)[0] or label
