"""`klagg replay`: every shape of file gives the same exact bars; bad ones a clear error."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import zipfile
from dataclasses import astuple
from decimal import Decimal
from pathlib import Path

import pytest

from klagg_trio.core.columns import TradeColumns
from klagg_trio.core.errors import ConfigurationError, DamagedDataError, StoreError
from klagg_trio.exchange import archive
from klagg_trio.exchange.archive import RowCounts, read_batches
from klagg_trio.replay import COLUMNS, run_replay, symbol_of

DAY = 1_719_792_000_000
"""2024-07-01 00:00 UTC."""

MINUTE = 60_000

HEADER = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker"

ROWS = [
    (100, "10.50", "1.000", 500, 501, DAY + 1_000, True),
    (101, "10.70", "2.000", 502, 502, DAY + 2_000, False),
    (102, "10.40", "0.500", 503, 509, DAY + MINUTE + 10, False),
    (103, "10.60", "1.500", 510, 510, DAY + 4 * MINUTE, True),
]

MINUTES = [
    "X,1m,1719792000000,10.50,10.70,10.50,10.70,3.000,1719792059999,31.90000,3,2.000,21.40000",
    "X,1m,1719792060000,10.40,10.40,10.40,10.40,0.500,1719792119999,5.20000,7,0.500,5.20000",
    "X,1m,1719792120000,10.40,10.40,10.40,10.40,0,1719792179999,0,0,0,0",
    "X,1m,1719792180000,10.40,10.40,10.40,10.40,0,1719792239999,0,0,0,0",
    "X,1m,1719792240000,10.60,10.60,10.60,10.60,1.500,1719792299999,15.90000,1,0,0",
]

SOURCES = ["trades", "trades", "flat", "flat", "trades"]


def futures(rows=ROWS) -> str:
    """Seven columns, lower-case truth values, with a header."""
    return HEADER + "\n" + "".join(",".join(map(_text, row)) + "\n" for row in rows)


def spot(rows=ROWS, scale=1) -> str:
    """Eight columns, `True` and `False`, no header."""
    return "".join(
        f"{a},{p},{q},{f},{last},{at * scale},{maker},True\n"
        for a, p, q, f, last, at, maker in rows
    )


def _text(value) -> str:
    return str(value).lower()


@pytest.fixture(autouse=True, params=["columns", "one by one"])
def _both_ways(request, monkeypatch):
    """Every file is read as columns where it can be, however small, and once trade by trade."""
    columns = request.param == "columns"
    monkeypatch.setattr(archive, "COLUMNS_FROM_BYTES", 0 if columns else 1 << 40)
    monkeypatch.setattr("klagg_trio.replay.MINUTE_TRADES_MIN", 1)


def replay(path: Path, *intervals: str, symbol: str | None = "X"):
    """Replay a file. Returns the report and the csv rows as dicts."""
    out = io.StringIO()
    report = run_replay(path, symbol=symbol, intervals=intervals or ("1m",), out=out)
    out.seek(0)
    return report, list(csv.DictReader(out))


def check(path: Path) -> None:
    """The bars of ROWS come out, text by text."""
    _, rows = replay(path)
    want = [f"{line},{source}" for line, source in zip(MINUTES, SOURCES, strict=True)]
    assert [",".join(row.values()) for row in rows] == want
    assert tuple(rows[0]) == COLUMNS


@pytest.mark.parametrize(
    "text",
    [
        futures(),
        futures().removeprefix(HEADER + "\n"),
        futures().rstrip("\n"),
        futures().replace("\n", "\r\n"),
        futures().replace("\n", "\r\n").rstrip("\r\n"),
        spot(),
        spot(scale=1_000),
        futures() + "\n\n",
    ],
    ids=["header", "bare", "no last newline", "crlf", "crlf cut", "spot", "microseconds", "blank"],
)
def test_every_shape_of_csv_gives_the_same_bars(tmp_path, text):
    """Header or not, seven columns or eight, any line end, milliseconds or microseconds."""
    path = tmp_path / "trades.csv"
    path.write_bytes(text.encode())
    check(path)


@pytest.mark.parametrize("text", [futures(), spot()])
def test_compressed_files_are_read_as_they_are(tmp_path, text):
    """gz and zip, told by their contents and not by their name."""
    packed = tmp_path / "trades.bin"
    packed.write_bytes(gzip.compress(text.encode()))
    check(packed)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as folder:
        folder.writestr("trades.csv", text)
    check(packed)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_list_of_json_objects_is_read_too(tmp_path, wrapped):
    """The exchange's own objects, bare or as the `info` of a client library's trades."""
    objects = [
        {"a": a, "p": p, "q": q, "f": f, "l": last, "T": at, "m": maker, "M": True}
        for a, p, q, f, last, at, maker in ROWS
    ]
    if wrapped:
        objects = [{"info": each, "symbol": "X/Y", "price": 1.5} for each in objects]
    path = tmp_path / "trades.json.gz"
    path.write_bytes(gzip.compress(json.dumps(objects).encode()))
    check(path)


def test_chunks_of_any_size_make_no_difference(tmp_path, monkeypatch):
    """Lines are cut by no chunk, wherever it ends."""
    path = tmp_path / "trades.csv"
    for size in range(1, 150, 7):
        monkeypatch.setattr(archive, "CHUNK_BYTES", size)
        for text in (futures(), spot().replace("\n", "\r\n")):
            path.write_bytes(text.encode())
            if size > len(HEADER):
                check(path)


def test_rows_out_of_order_are_sorted_by_id(tmp_path):
    """The file is read again and sorted; nothing is late, nothing suspect."""
    path = tmp_path / "trades.csv"
    path.write_text(futures([ROWS[2], ROWS[0], ROWS[3], ROWS[1]]))
    check(path)
    report, _ = replay(path)
    assert (report.rows, report.trades, report.suspect_minutes) == (4, 4, 0)


@pytest.mark.parametrize("order", ["beside", "apart"])
def test_repeated_rows_are_dropped_and_counted(tmp_path, order):
    """The same id twice, in order or not, is in the bars once."""
    rows = sorted(ROWS * 2) if order == "beside" else ROWS * 2
    path = tmp_path / "trades.csv"
    path.write_text(futures(rows))
    check(path)
    report, _ = replay(path)
    assert (report.rows, report.trades, report.duplicates) == (8, 4, 4)


def test_rows_that_the_archive_struck_out_are_skipped_and_counted(tmp_path):
    """Price and quantity 0, or ids of -1: marked as duplicates by the exchange itself."""
    struck = [
        (101, "0", "0.00000", -1, -1, DAY + 2_000, True),
        (-1, "10.0", "1.0", 5, 5, DAY + 2_000, True),
        (102, "0.0", "5.0", 503, 503, DAY + MINUTE, False),
    ]
    path = tmp_path / "trades.csv"
    path.write_text(futures([*ROWS[:2], *struck, *ROWS[2:]]))
    check(path)
    report, _ = replay(path)
    assert (report.rows, report.trades, report.skipped) == (7, 4, 3)


def test_missing_ids_make_the_minutes_around_them_suspect(tmp_path):
    """As live: from the last trade before the gap to the first after it."""
    path = tmp_path / "trades.csv"
    path.write_text(futures([*ROWS[:3], (104, *ROWS[3][1:])]))
    report, rows = replay(path, "1m", "3m", "5m")
    sources = {name: [r["source"] for r in rows if r["interval"] == name] for name in ("1m", "3m")}
    assert sources["1m"] == ["trades", "suspect", "suspect", "suspect", "suspect"]
    assert sources["3m"] == ["suspect", "suspect"]
    assert report.suspect_minutes == 4


def test_a_recording_that_begins_in_mid_day_has_a_suspect_first_minute(tmp_path):
    """Nobody knows what the minute, or the hour, held before."""
    later = [(a, p, q, f, last, at + 90 * MINUTE, m) for a, p, q, f, last, at, m in ROWS]
    path = tmp_path / "trades.csv"
    path.write_text(futures(later))
    _, rows = replay(path, "1m", "5m", "1h")
    assert [r["source"] for r in rows] == ["suspect", *SOURCES[1:], "suspect", "suspect"]
    assert [r["open_time"] for r in rows[-2:]] == [str(DAY + 90 * MINUTE), str(DAY + 60 * MINUTE)]


def test_longer_bars_are_merged_and_the_open_ones_written_as_they_are(tmp_path):
    """Intervals come shortest first, each from the first bar to the last."""
    path = tmp_path / "trades.csv"
    path.write_text(futures())
    _, rows = replay(path, "3m", "1m", "1M")
    assert [r["interval"] for r in rows] == ["1m"] * 5 + ["3m"] * 2 + ["1M"]
    month = rows[-1]
    assert (month["open"], month["high"], month["low"], month["close"]) == (
        "10.50",
        "10.70",
        "10.40",
        "10.60",
    )
    assert (month["volume"], month["count"], month["source"]) == ("5.000", "11", "trades")
    assert month["close_time"] == str(DAY + 31 * 1_440 * MINUTE - 1)


def test_time_that_goes_back_between_ids_restates_the_minute_before(tmp_path):
    """The bar goes by each trade's own time."""
    rows = [ROWS[0], ROWS[2], (103, "10.90", "1.000", 510, 510, DAY + 59_999, True)]
    rows[1] = (101, *ROWS[2][1:])
    rows[2] = (102, *rows[2][1:])
    path = tmp_path / "trades.csv"
    path.write_text(futures(rows))
    _, out = replay(path)
    assert [(r["close"], r["count"]) for r in out] == [("10.90", "3"), ("10.40", "7")]


def test_numbers_are_exact_and_written_plainly(tmp_path):
    """Nineteen digits, tiny quantities: no exponent, no rounding."""
    rows = [
        (1, "0.00000001", "9007199254740993.5", 1, 1, DAY, False),
        (2, "0.00000003", "0.00000001", 2, 2, DAY + 1, False),
    ]
    path = tmp_path / "trades.csv"
    path.write_text(futures(rows))
    _, (row,) = replay(path)
    assert row["volume"] == "9007199254740993.50000001"
    assert Decimal(row["quote_volume"]) == Decimal("90071992.5474099350000003")
    assert "E" not in "".join(row.values()).replace("X", "")


def test_random_trades_come_out_as_computed_one_by_one(tmp_path):
    """Two thousand rows over an hour, against sums made from the text."""
    rng = random.Random(5)
    rows, at, raw = [], DAY, 1
    for number in range(2_000):
        at += rng.randrange(4_000)
        count = rng.randrange(1, 4)
        price, quantity = f"{rng.randrange(1, 10**6) / 100:.2f}", f"{rng.randrange(1, 10**4)}.5"
        rows.append((number, price, quantity, raw, raw + count - 1, at, rng.random() < 0.5))
        raw += count
    path = tmp_path / "trades.csv"
    path.write_text(futures(rows))
    _, out = replay(path)
    assert len(out) == (at - DAY) // MINUTE + 1
    for bar in out:
        open_ms = int(bar["open_time"])
        inside = [row for row in rows if open_ms <= row[5] < open_ms + MINUTE]
        if not inside:
            assert bar["count"] == "0"
            continue
        prices = [Decimal(row[1]) for row in inside]
        assert [Decimal(bar[name]) for name in ("open", "high", "low", "close")] == [
            prices[0],
            max(prices),
            min(prices),
            prices[-1],
        ]
        assert Decimal(bar["volume"]) == sum(Decimal(row[2]) for row in inside)
        assert int(bar["count"]) == sum(row[4] - row[3] + 1 for row in inside)
        bought = [row for row in inside if not row[6]]
        assert Decimal(bar["taker_buy_quote_volume"]) == sum(
            Decimal(row[1]) * Decimal(row[2]) for row in bought
        )


# -- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        "102,abc,1,5,5,1,true",
        "102,1e5,1,5,5,1,true",
        "102,NaN,1,5,5,1,true",
        "102,1_0,1,5,5,1,true",
        "102,-1,1,5,5,1,true",
        "102, 1,1,5,5,1,true",
        "102,1.,1,5,5,1,true",
        "102,1,1,5,5,1",
        "102,1,1,5,5,1,maybe",
        "102,1,1,5,5,1,true,true,true",
        "102,1,1,5,5,1.5,true",
        "102,1,1,5,5,-1,true",
        "102," + "9" * 41 + ",1,5,5,1,true",
        "102,\u0661,1,5,5,1,true",
        "null,1,1,5,5,1,true",
        "]],[[",
    ],
)
def test_a_row_that_is_no_trade_is_refused_with_its_line(tmp_path, bad):
    """Line 4 of the file, and what it says."""
    lines = futures().splitlines()
    lines[3] = bad
    path = tmp_path / "trades.csv"
    path.write_bytes(("\n".join(lines) + "\n").encode())
    with pytest.raises(DamagedDataError, match=r"trades\.csv: line 4 is no aggregate trade"):
        replay(path)


def test_the_line_is_right_in_a_later_chunk_too(tmp_path, monkeypatch):
    """Lines are counted over chunks, blank ones and the header included."""
    monkeypatch.setattr(archive, "CHUNK_BYTES", 100)
    path = tmp_path / "trades.csv"
    path.write_text(futures() + "\n" + "garbage\n")
    with pytest.raises(DamagedDataError, match="line 7 is no aggregate trade: 'garbage'"):
        replay(path)


def test_a_file_that_is_cut_short_says_so(tmp_path):
    """Half a gz, half a zip."""
    path = tmp_path / "trades.csv.gz"
    path.write_bytes(gzip.compress(futures().encode())[:-20])
    with pytest.raises(DamagedDataError, match="cut short or damaged"):
        replay(path)
    path.write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(DamagedDataError, match="cut short or damaged"):
        replay(path)


@pytest.mark.parametrize("text", ["", HEADER + "\n", "\n\n", "[]"])
def test_a_file_without_trades_says_so(tmp_path, text):
    """Empty, or a header only."""
    path = tmp_path / "trades.csv"
    path.write_text(text)
    with pytest.raises(DamagedDataError, match="holds no trades"):
        replay(path)


@pytest.mark.parametrize("text", ['{"code":-1121}', '[{"x":1}]', "[1,2", '[{"info":{"a":"1"}}]'])
def test_json_that_is_no_list_of_trades_says_so(tmp_path, text):
    """An error body that was saved by mistake, another object, half a file."""
    path = tmp_path / "trades.json"
    path.write_text(text)
    with pytest.raises(DamagedDataError, match="no list of aggregate trades"):
        replay(path)


def test_a_zip_of_several_files_is_refused(tmp_path):
    """Which one is meant?"""
    path = tmp_path / "trades.zip"
    with zipfile.ZipFile(path, "w") as folder:
        folder.writestr("a.csv", futures())
        folder.writestr("b.csv", futures())
    with pytest.raises(DamagedDataError, match="holds 2 files"):
        replay(path)


def test_a_file_that_cannot_be_read_is_a_store_error(tmp_path):
    """A folder, or nothing at all."""
    with pytest.raises(StoreError, match="cannot be read"):
        replay(tmp_path)
    with pytest.raises(StoreError, match="cannot be read"):
        replay(tmp_path / "missing.csv")


def test_numbers_of_more_digits_than_the_wire_may_have_are_refused(tmp_path):
    """Beyond what sums can hold: an error, never a rounded bar."""
    rows = [
        (1, "1", "9" * 41, 1, 1, 1, "true"),
        (2, "0." + "0" * 38 + "1", "0.001", 2, 2, 1, "true"),
    ]
    path = tmp_path / "trades.csv"
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    with pytest.raises(DamagedDataError):
        replay(path)


# -- The symbol -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "symbol"),
    [
        ("BTCUSDT-aggTrades-2026-10-01.zip", "BTCUSDT"),
        ("1000PEPEUSDT-aggTrades-2026-10.csv", "1000PEPEUSDT"),
        ("币安人生USDT-aggTrades-2026-10-01.csv", "币安人生USDT"),
        ("spot_XRPETH_20191011_aggtrades.json.gz", "XRPETH"),
        ("spot_BTCUSDT_20200102_1510/aggtrades.csv", "BTCUSDT"),
    ],
)
def test_the_symbol_is_in_the_name_of_the_file_or_of_its_folder(path, symbol):
    """The archive's way of naming, and that of captures."""
    assert symbol_of(Path("/data") / path) == symbol


def test_a_name_without_a_symbol_asks_for_one(tmp_path):
    """The text says which flag to use."""
    path = tmp_path / "x" / "trades.csv"
    with pytest.raises(ConfigurationError, match="--symbol"):
        symbol_of(path)


def test_every_trade_of_a_file_has_its_symbol(tmp_path):
    """Two files do not mix."""
    path = tmp_path / "trades.csv"
    path.write_text(futures())
    for name in ("A", "B"):
        batch = next(read_batches(path, name, RowCounts()))
        trades = batch.trades() if isinstance(batch, TradeColumns) else batch
        assert {trade.symbol for trade in trades} == {name}


@pytest.mark.parametrize("text", [futures(), spot(), spot(scale=1_000)], ids=["um", "spot", "us"])
def test_plain_rows_are_read_as_columns(tmp_path, monkeypatch, text):
    """What the archive has is read the fast way, and is the same as read the slow way."""
    path = tmp_path / "X.csv"
    path.write_text(text)
    monkeypatch.setattr(archive, "COLUMNS_FROM_BYTES", 0)
    (columns,) = read_batches(path, "X", RowCounts())
    monkeypatch.setattr(archive, "COLUMNS_FROM_BYTES", 1 << 40)
    (trades,) = read_batches(path, "X", RowCounts())
    assert isinstance(columns, TradeColumns)
    assert [astuple(each) for each in columns.trades()] == [
        (
            *("X", each.id, each.price, each.quantity, each.first_id, each.last_id),
            *(each.time_ms, each.buyer_is_maker),
        )
        for each in trades
    ]


@pytest.mark.parametrize("seed", range(40))
def test_one_other_character_gives_the_same_either_way(tmp_path, monkeypatch, seed):
    """A file with a character changed is refused, or read, by both ways alike."""
    draw = random.Random(seed)
    text = draw.choice((futures, spot))(ROWS * 5)
    found = []
    # Not in a time, where a digit may mean a thousand years of minutes.
    times = {at for match in re.finditer(r"\d{13,}", text) for at in range(*match.span())}
    place = draw.choice([at for at in range(len(text)) if at not in times])
    text = text[:place] + draw.choice("0123456789.,-e\ntf x") + text[place + 1 :]
    path = tmp_path / "X.csv"
    path.write_text(text)
    for least in (0, 1 << 40):
        monkeypatch.setattr(archive, "COLUMNS_FROM_BYTES", least)
        try:
            found.append([row | {"source": ""} for row in replay(path)[1]])
        except DamagedDataError as error:
            found.append(str(error))
    assert numbers_of(found[0]) == numbers_of(found[1])


def numbers_of(found):
    """Rows with their numbers as numbers: how many zeros end them may differ."""
    if isinstance(found, str):
        return found
    return [
        [Decimal(text) if text[:1].isdigit() and text != "1m" else text for text in row.values()]
        for row in found
    ]
