"""What the core asks of a trade. The codec's struct has these names; so may anything else."""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol


class Trade(Protocol):
    """One aggregate trade of the exchange, validated at the edge."""

    symbol: str
    id: int
    """Aggregate id `a`: contiguous per symbol, hence the detector of missing trades."""
    price: Decimal
    """Above zero."""
    quantity: Decimal
    """In the base asset, above zero."""
    first_id: int
    last_id: int
    """Raw ids `f` and `l`. They have holes by nature: used for the trade count, never for loss."""
    time_ms: int
    """`T`, exchange time: the moment that decides the bar."""
    buyer_is_maker: bool
    """When false, the taker bought."""
