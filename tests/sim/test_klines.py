"""The oracle itself: calendar, bars of raw trades, text."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from klagg_trio.sim.klines import (
    DAY_MS,
    INTERVALS,
    MARKET,
    MINUTE_MS,
    Part,
    RawTrade,
    decimal_text,
    flat,
    join,
    kline_of,
    part_of,
    row_text,
    span_of,
)

CAPTURES = Path(__file__).parents[3] / "shared" / "data"
PHASE_MS = DAY_MS
FIELDS = (
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "taker_buy_volume",
    "taker_buy_quote_volume",
)


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def trade(number: int, price: int, quantity: int, *, maker: bool = False, kind: str = MARKET):
    return RawTrade(number, price, quantity, number, maker, kind)


@pytest.mark.parametrize(
    ("interval", "moment", "first", "end"),
    [
        ("1m", "2024-07-01T00:00:59.999", "2024-07-01T00:00", "2024-07-01T00:01"),
        ("3m", "2024-07-01T00:05", "2024-07-01T00:03", "2024-07-01T00:06"),
        ("8h", "2024-06-30T23:59", "2024-06-30T16:00", "2024-07-01T00:00"),
        ("12h", "2024-06-30T12:00", "2024-06-30T12:00", "2024-07-01T00:00"),
        ("1d", "2024-02-29T23:59", "2024-02-29T00:00", "2024-03-01T00:00"),
        ("1w", "2024-06-30T23:59", "2024-06-24T00:00", "2024-07-01T00:00"),
        ("1w", "2024-07-01T00:00", "2024-07-01T00:00", "2024-07-08T00:00"),
        ("1M", "2024-02-29T23:59", "2024-02-01T00:00", "2024-03-01T00:00"),
        ("1M", "2024-12-31T23:59", "2024-12-01T00:00", "2025-01-01T00:00"),
    ],
)
def test_span_follows_the_calendar(interval, moment, first, end):
    """A bar opens where the calendar says: weeks on Monday, months on the first."""
    assert span_of(interval, at(moment), PHASE_MS) == (at(first), at(end))


def test_three_day_bars_stand_where_the_real_ones_do():
    """The default phase is that of the real exchange's BTCUSDT bars."""
    for open_ms in (1765756800000, 1766016000000, 1766275200000):
        assert span_of("3d", open_ms + 2 * DAY_MS, PHASE_MS) == (open_ms, open_ms + 3 * DAY_MS)


def test_bar_counts_market_trades_only():
    """Records that only use up an id have no part in a bar."""
    trades = [
        trade(1, 999, 5, kind="INSURANCE_FUND"),
        trade(2, 100, 3),
        trade(3, 0, 0, kind="NA"),
        trade(4, 98, 2, maker=True),
    ]
    assert part_of(trades, 50) == Part(2, 100, 100, 98, 98, 5, 496, 3, 300)
    assert part_of(trades[:1], 50) == flat(50)


def test_idle_minutes_do_not_open_a_longer_bar():
    """A traded bar opens at its own first trade, not at the close before."""
    traded = part_of([trade(1, 100, 1), trade(2, 90, 1)], 0)
    assert join([flat(500), traded, flat(90)], 500) == traded
    assert join([flat(500), flat(500)], 500) == flat(500)


def test_numbers_have_the_decimals_of_the_instrument():
    """Prices and quantities are padded; a quote volume has the decimals of both."""
    assert decimal_text(5, 3) == "0.005"
    assert decimal_text(1230, 3) == "1.230"
    assert decimal_text(7, 0) == "7"
    part = part_of([trade(1, 6394390, 17)], 0)
    row = row_text(part, (0, MINUTE_MS), (2, 3))
    assert row == (
        '[0,"63943.90","63943.90","63943.90","63943.90","0.017",59999,'
        '"1087.04630",1,"0.017","1087.04630","0"]'
    )
    kline = kline_of(part, (0, MINUTE_MS), (2, 3))
    assert kline.quote_volume == Decimal("63943.90") * Decimal("0.017")
    assert kline.floats()[0] == 63943.9


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="the real captures are not at hand")
def test_oracle_agrees_with_the_real_exchange():
    """From real raw trades the oracle makes the exchange's own klines, in all nine fields."""
    folder = CAPTURES / "um_BTCUSDT_20240718_2357"
    with (folder / "trades.csv").open() as file:
        trades = [
            RawTrade(
                int(row["trade_id"]),
                int(Decimal(row["price"]) * 100),
                int(Decimal(row["qty"]) * 1000),
                int(row["trade_time_ms"]),
                row["is_buyer_maker"] == "true",
                row["X"],
            )
            for row in csv.DictReader(file)
        ]
    with (folder / "klines_1m_official.csv").open() as file:
        official = list(csv.DictReader(file))[1:-1]
    assert len(official) == 7
    for row in official:
        span = (int(row["open_time"]), int(row["close_time"]) + 1)
        assert span_of("1m", span[0], PHASE_MS) == span
        mine = sorted(each for each in trades if span[0] <= each.time_ms < span[1])
        kline = kline_of(part_of(mine, 0), span, (2, 3))
        for name in FIELDS:
            assert getattr(kline, name) == Decimal(row[name]), (span, name)
        assert kline.count == int(row["count"])


def test_all_intervals_are_there():
    """The exchange has fifteen intervals on futures, and no 1s."""
    assert " ".join(INTERVALS) == "1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M"
