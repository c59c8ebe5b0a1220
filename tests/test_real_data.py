"""Real recordings of the exchange against its own official klines, which nobody here computed.

The files lie beside the project, in ../shared/data, and are read in place. Where they are missing
these tests skip.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import defaultdict
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest

from klagg_trio.replay import run_replay

DATA = Path(__file__).parents[2] / "shared" / "data"

MINUTE = 60_000

FIELDS = (
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "count",
    "taker_buy_volume",
    "taker_buy_quote_volume",
)


def data(name: str) -> Path:
    """A file of real data, or a skip that says so."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no real data: {path} is not there")
    return path


def replay(path: Path, *intervals: str, symbol: str | None = None) -> list[dict[str, str]]:
    """The bars of a recording, as rows of csv."""
    out = io.StringIO()
    run_replay(path, symbol=symbol, intervals=intervals or ("1m",), out=out)
    out.seek(0)
    return list(csv.DictReader(out))


def nine(row: dict[str, str]) -> list[Decimal]:
    """The nine values of a row."""
    return [Decimal(row[name]) for name in FIELDS]


def official_rows(path: Path) -> list[dict[str, str]]:
    """Official klines of a capture."""
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def check_complete_minutes(bars: list[dict[str, str]], official: list[dict[str, str]]) -> None:
    """All but the first and the last minute, which the captures cut, are equal in nine fields."""
    assert [bar["open_time"] for bar in bars] == [row["open_time"] for row in official]
    complete = list(zip(bars, official, strict=True))[1:-1]
    assert len(complete) == 7
    for bar, row in complete:
        assert bar["close_time"] == row["close_time"]
        assert nine(bar) == nine(row)


def test_spot_bitcoin_equals_its_official_klines():
    """A thousand real aggregates: seven complete minutes, exact in all nine fields."""
    folder = data("spot_BTCUSDT_20200102_1510")
    bars = replay(folder / "aggtrades.csv")
    check_complete_minutes(bars, official_rows(folder / "klines_1m_official.csv"))
    assert {bar["symbol"] for bar in bars} == {"BTCUSDT"}
    assert [bar["source"] for bar in bars] == ["suspect"] + ["trades"] * 8


def test_futures_bitcoin_equals_its_official_klines(tmp_path):
    """Raw trades as aggregates of one, without those that are not MARKET: exact again."""
    folder = data("um_BTCUSDT_20240718_2357")
    path = tmp_path / "BTCUSDT-aggTrades-2024-07-18.csv"
    with (folder / "trades.csv").open(newline="") as raw, path.open("w") as out:
        for row in csv.DictReader(raw):
            if row["X"] == "MARKET":
                trade_id = row["trade_id"]
                out.write(f"{trade_id},{row['price']},{row['qty']},{trade_id},{trade_id},")
                out.write(f"{row['trade_time_ms']},{row['is_buyer_maker']}\n")
    check_complete_minutes(replay(path), official_rows(folder / "klines_1m_official.csv"))


def xrpeth() -> list[dict]:
    """The sparse capture's aggregates, in order of their ids."""
    text = gzip.decompress(data("spot_XRPETH_20191011_aggtrades.json.gz").read_bytes())
    return sorted((row["info"] for row in json.loads(text)), key=lambda row: row["a"])


def test_a_sparse_symbol_has_a_bar_for_every_minute():
    """3,560 minutes, 1,091 of them without a trade: flat at the close before."""
    trades = xrpeth()
    bars = replay(data("spot_XRPETH_20191011_aggtrades.json.gz"))
    first = trades[0]["T"] // MINUTE * MINUTE
    last = trades[-1]["T"] // MINUTE * MINUTE
    assert [int(bar["open_time"]) for bar in bars] == list(range(first, last + 1, MINUTE))
    assert len(bars) == 3_560
    flat = [(before, bar) for before, bar in pairwise(bars) if bar["source"] == "flat"]
    assert len(flat) == 1_091
    for before, bar in flat:
        assert len({bar[name] for name in FIELDS[:4]} | {before["close"]}) == 1
        assert {Decimal(bar[name]) for name in FIELDS[4:]} == {0}
    assert {bar["source"] for bar in bars} == {"flat", "trades"}
    assert sum(int(bar["count"]) for bar in bars) == sum(t["l"] - t["f"] + 1 for t in trades)


def test_longer_bars_of_a_sparse_symbol_add_up():
    """Every interval up to a day: the same trades, the same sums, open and close in their place."""
    bars = replay(data("spot_XRPETH_20191011_aggtrades.json.gz"), "1m", "15m", "4h", "1d")
    minutes = [bar for bar in bars if bar["interval"] == "1m"]
    for length, name in ((15, "15m"), (240, "4h"), (1_440, "1d")):
        for bar in (bar for bar in bars if bar["interval"] == name):
            open_ms = int(bar["open_time"])
            end_ms = open_ms + length * MINUTE
            inside = [m for m in minutes if open_ms <= int(m["open_time"]) < end_ms]
            traded = [m for m in inside if m["count"] != "0"]
            assert bar["open"] == traded[0]["open"]
            assert bar["close"] == traded[-1]["close"]
            assert Decimal(bar["high"]) == max(Decimal(m["high"]) for m in traded)
            assert Decimal(bar["low"]) == min(Decimal(m["low"]) for m in traded)
            for field in FIELDS[4:]:
                assert Decimal(bar[field]) == sum(Decimal(m[field]) for m in traded)


@pytest.mark.parametrize("every", [50, 7, 1_000])
def test_left_out_aggregates_mark_exactly_the_minutes_around_them(tmp_path, every):
    """Every 50th left out: the minutes that held or bordered a missing id, and no other."""
    trades = xrpeth()
    kept = [trade for number, trade in enumerate(trades, 1) if number % every]
    expected = set()
    for a, b in pairwise(kept):
        if b["a"] - a["a"] > 1:
            expected |= set(range(a["T"] // MINUTE, b["T"] // MINUTE + 1))
    held = {t["T"] // MINUTE for n, t in enumerate(trades, 1) if not n % every and n < len(trades)}
    assert held <= expected
    path = tmp_path / "XRPETH.json"
    path.write_text(json.dumps([{"info": trade} for trade in kept]))
    bars = replay(path)
    suspect = {int(bar["open_time"]) // MINUTE for bar in bars if bar["source"] == "suspect"}
    assert suspect == expected


# -- The stream -----------------------------------------------------------------------------------


def frames() -> list[bytes]:
    """Thirty seconds of real combined-stream frames of four USD-M symbols, over a minute's end."""
    lines = data("um_ws_aggtrade_kline_20210722_2226.txt").read_bytes().splitlines()
    return [line.partition(b": ")[2] for line in lines if line]


def test_every_aggregate_of_the_captured_stream_is_decoded():
    """Field by field, against the plain JSON of each frame."""
    wire = pytest.importorskip("klagg_trio.exchange.wire", exc_type=ImportError)
    decoded = wire.decode_trades(frames())
    plain = [json.loads(frame, parse_float=Decimal) for frame in frames()]
    true = [each["data"] for each in plain if each["stream"].endswith("@aggTrade")]
    assert decoded.rejected == 0
    assert len(decoded.others) == len(plain) - len(true)
    for trade, row in zip(decoded.trades, true, strict=True):
        assert (trade.symbol, trade.id, trade.price, trade.quantity) == (
            row["s"],
            row["a"],
            Decimal(row["p"]),
            Decimal(row["q"]),
        )
        assert (trade.first_id, trade.last_id, trade.time_ms, trade.buyer_is_maker) == (
            row["f"],
            row["l"],
            row["T"],
            row["m"],
        )


def test_aggregates_explain_how_the_captured_klines_grow():
    """Between two kline events of a bar, volume grew by just the aggregates between their ids."""
    wire = pytest.importorskip("klagg_trio.exchange.wire", exc_type=ImportError)
    trades = defaultdict(list)
    for trade in wire.decode_trades(frames()).trades:
        trades[trade.symbol].append(trade)
    klines = defaultdict(list)
    for frame in frames():
        message = json.loads(frame)
        if "@kline_1m" in message["stream"]:
            kline = message["data"]["k"]
            klines[kline["s"], kline["t"]].append(kline)
    compared = 0
    for (symbol, open_ms), events in klines.items():
        for before, after in pairwise(events):
            first, last = before["L"] + 1, after["L"]
            inside = [t for t in trades[symbol] if first <= t.first_id and t.last_id <= last]
            if not inside or sum(t.last_id - t.first_id + 1 for t in inside) != last - first + 1:
                continue  # the capture began in between, or ids that are no market trades
            compared += 1
            assert all(open_ms <= t.time_ms < open_ms + MINUTE for t in inside)
            bought = [t for t in inside if not t.buyer_is_maker]
            for field, grown in (
                ("v", sum(t.quantity for t in inside)),
                ("q", sum(t.price * t.quantity for t in inside)),
                ("n", last - first + 1),
                ("V", sum(t.quantity for t in bought)),
                ("Q", sum(t.price * t.quantity for t in bought)),
            ):
                assert Decimal(after[field]) - Decimal(before[field]) == grown
            assert Decimal(after["c"]) == inside[-1].price
    assert compared >= 20
