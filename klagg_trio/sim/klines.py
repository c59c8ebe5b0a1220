"""Official klines, the naive way: every bar from the raw trades of its own time, by the calendar.

This is the oracle of the project. It shares nothing with `klagg_trio.core`: calendar arithmetic is
`datetime`'s, numbers are whole multiples of an instrument's smallest decimals (a price of 83137.90
with two decimals is 8313790; a quote volume has the decimals of price and quantity together), so
that sums are exact by nature and text is a matter of placing the point.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Final, NamedTuple

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000

SHORT_MS: Final = {
    "1m": MINUTE_MS,
    "3m": 3 * MINUTE_MS,
    "5m": 5 * MINUTE_MS,
    "15m": 15 * MINUTE_MS,
    "30m": 30 * MINUTE_MS,
    "1h": HOUR_MS,
    "2h": 2 * HOUR_MS,
    "4h": 4 * HOUR_MS,
    "6h": 6 * HOUR_MS,
    "8h": 8 * HOUR_MS,
    "12h": 12 * HOUR_MS,
    "1d": DAY_MS,
}
"""The intervals that divide a UTC day."""

INTERVALS: Final = (*SHORT_MS, "3d", "1w", "1M")

_WIDE: Final = Context(prec=60, traps=[Inexact, InvalidOperation])
"""Placing a point is exact; anything else here is a bug."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

MARKET: Final = "MARKET"
"""The only kind of raw trade that counts. Others use up an id and nothing more."""


class RawTrade(NamedTuple):
    """One fill. Price and quantity are in the instrument's smallest decimals."""

    id: int
    price: int
    quantity: int
    time_ms: int
    buyer_is_maker: bool
    kind: str


class Part(NamedTuple):
    """What a bar holds, without its times. `count` 0 means flat at the previous close."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    open: int
    high: int
    low: int
    close: int
    volume: int
    quote_volume: int
    taker_buy_volume: int
    taker_buy_quote_volume: int


class Kline(NamedTuple):
    """One official kline with exact values, in the order of the exchange's rows."""

    open_time: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    close_time: int
    quote_volume: Decimal
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    taker_buy_volume: Decimal
    taker_buy_quote_volume: Decimal

    def floats(self) -> tuple[float, float, float, float, float, float, int, float, float]:
        """Return the nine values, times left out, as the floats nearest to them."""
        return (
            float(self.open),
            float(self.high),
            float(self.low),
            float(self.close),
            float(self.volume),
            float(self.quote_volume),
            self.count,
            float(self.taker_buy_volume),
            float(self.taker_buy_quote_volume),
        )


def flat(price: int) -> Part:
    """Return what a bar without trades holds."""
    return Part(0, price, price, price, price, 0, 0, 0, 0)


def part_of(trades: Iterable[RawTrade], previous_close: int) -> Part:
    """Return the bar of some raw trades, in order of their ids; flat where none counts."""
    market = [trade for trade in trades if trade.kind == MARKET]
    if not market:
        return flat(previous_close)
    bought = [trade for trade in market if not trade.buyer_is_maker]
    prices = [trade.price for trade in market]
    return Part(
        count=len(market),
        open=prices[0],
        high=max(prices),
        low=min(prices),
        close=prices[-1],
        volume=sum(trade.quantity for trade in market),
        quote_volume=sum(trade.price * trade.quantity for trade in market),
        taker_buy_volume=sum(trade.quantity for trade in bought),
        taker_buy_quote_volume=sum(trade.price * trade.quantity for trade in bought),
    )


def join(parts: Iterable[Part], previous_close: int) -> Part:
    """Return the bar of consecutive shorter bars. Idle ones have no say in open, high or low."""
    traded = [part for part in parts if part[0]]
    if not traded:
        return flat(previous_close)
    count, opens, highs, lows, closes, volume, quote, bought, bought_quote = zip(
        *traded, strict=True
    )
    return Part(
        sum(count),
        opens[0],
        max(highs),
        min(lows),
        closes[-1],
        sum(volume),
        sum(quote),
        sum(bought),
        sum(bought_quote),
    )


def span_of(interval: str, at_ms: int, three_day_phase_ms: int) -> tuple[int, int]:
    """Return open time and end (the next open time) of the bar that contains `at_ms`."""
    length_ms = SHORT_MS.get(interval)
    moment = _EPOCH + timedelta(milliseconds=at_ms)
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if length_ms is not None:
        day_ms = _epoch_ms(day)
        open_ms = at_ms - (at_ms - day_ms) % length_ms
        return open_ms, open_ms + length_ms
    if interval == "3d":
        anchor = _EPOCH + timedelta(milliseconds=three_day_phase_ms)
        first = day - timedelta(days=(day - anchor).days % 3)
        return _epoch_ms(first), _epoch_ms(first + timedelta(days=3))
    if interval == "1w":
        monday = day - timedelta(days=day.weekday())
        return _epoch_ms(monday), _epoch_ms(monday + timedelta(days=7))
    assert interval == "1M"
    first = day.replace(day=1)
    return _epoch_ms(first), _epoch_ms((first + timedelta(days=32)).replace(day=1))


def _epoch_ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def decimal_text(value: int, decimals: int) -> str:
    """Return a scaled whole number as the exchange prints it."""
    if not decimals:
        return str(value)
    digits = f"{value:0{decimals + 1}d}"
    return f"{digits[:-decimals]}.{digits[-decimals:]}"


def kline_of(part: Part, span: tuple[int, int], decimals: tuple[int, int]) -> Kline:
    """Return the exact kline of a span; `decimals` are those of price and quantity."""
    price, quantity = decimals
    quote = price + quantity
    return Kline(
        span[0],
        _exact(part.open, price),
        _exact(part.high, price),
        _exact(part.low, price),
        _exact(part.close, price),
        _exact(part.volume, quantity),
        span[1] - 1,
        _exact(part.quote_volume, quote),
        part.count,
        _exact(part.taker_buy_volume, quantity),
        _exact(part.taker_buy_quote_volume, quote),
    )


def _exact(value: int, decimals: int) -> Decimal:
    return Decimal(value).scaleb(-decimals, _WIDE)


def row_text(part: Part, span: tuple[int, int], decimals: tuple[int, int]) -> str:
    """Return the row of a span as the exchange's JSON has it."""
    price, quantity = decimals
    quote = price + quantity
    return (
        f'[{span[0]},"{decimal_text(part.open, price)}","{decimal_text(part.high, price)}",'
        f'"{decimal_text(part.low, price)}","{decimal_text(part.close, price)}",'
        f'"{decimal_text(part.volume, quantity)}",{span[1] - 1},'
        f'"{decimal_text(part.quote_volume, quote)}",{part.count},'
        f'"{decimal_text(part.taker_buy_volume, quantity)}",'
        f'"{decimal_text(part.taker_buy_quote_volume, quote)}","0"]'
    )
