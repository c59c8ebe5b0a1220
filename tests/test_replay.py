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

from klagg_trio import cli
from klagg_trio.core.columns import TradeColumns
from klagg_trio.core.errors import ConfigurationError, DamagedDataError, StoreError
from klagg_trio.exchange import archive, sorting
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


# -- Headers, and files that are something else ---------------------------------------------------


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_the_header_is_obeyed(tmp_path, extra):
    """Columns in any order, unknown ones between them, the archive's names or a library's."""
    names = HEADER.split(",")
    other = ["agg_trade_id", "price", "qty", "first_id", "lastTradeId", "timestamp", "isBuyerMaker"]
    for seed in range(12):
        rng = random.Random(seed)
        columns = [(name, index) for index, name in enumerate(rng.choice([names, other]))]
        columns += [(f"extra{number}", None) for number in range(extra)]
        rng.shuffle(columns)
        lines = [",".join(name for name, _ in columns)]
        for row in ROWS:
            cells = ["x 1" if index is None else _text(row[index]) for _, index in columns]
            lines.append(",".join(cells))
        path = tmp_path / "trades.csv"
        path.write_text("\n".join(lines) + "\n")
        check(path)


def test_quotes_and_commas_within_them_are_read(tmp_path):
    """As csv has them: around every cell, and a column of words beside those of the trade."""
    lines = [f'{HEADER},"a note"'] + [
        ",".join(f'"{_text(cell)}"' for cell in row) + ',"one, two"' for row in ROWS
    ]
    path = tmp_path / "trades.csv"
    path.write_text("\n".join(lines))
    check(path)
    path.write_text("\n".join(line.removesuffix(',"one, two"') for line in lines[1:]))
    check(path)


@pytest.mark.parametrize("text", [futures(), spot(), "[]"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, text):
    """As spreadsheets write one."""
    path = tmp_path / "trades.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    if text == "[]":
        with pytest.raises(DamagedDataError, match="holds no trades"):
            replay(path)
        return
    check(path)


@pytest.mark.parametrize("name", ["price", "transact_time"])
def test_two_columns_of_one_meaning_are_refused(tmp_path, name):
    """Which one is meant?"""
    path = tmp_path / "trades.csv"
    path.write_text(futures().replace(HEADER, f"{HEADER},{name}"))
    with pytest.raises(DamagedDataError, match="two columns of its header mean"):
        replay(path)


KLINE = "1719792000000,1,2,1,2,10,1719792059999,15,7,5,7,0"
KLINE_HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,"
    "taker_buy_quote_volume,ignore"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{KLINE_HEADER}\n{KLINE}\n", "is a klines file"),
        (f"{KLINE}\n", "is a klines file"),
        ("id,price,qty,quote_qty,time,is_buyer_maker\n1,1,1,1,1719792000000,true\n", "raw trades"),
        ("1,1,1,1,1719792000000,true\n", "raw trades"),
        ("1,1,1,1,1719792000000,true,true\n", "raw trades"),
        (HEADER.replace("price", "prize") + "\n", "its header lacks price"),
        (futures().replace(",", ";"), "not separated by commas"),
        (futures().replace(",", "\t"), "not separated by commas"),
        ("nothing of the kind\n", "no aggregate trade"),
    ],
)
def test_a_file_of_something_else_is_told_for_what_it_is(tmp_path, text, words):
    """Bars, raw trades, another separator."""
    path = tmp_path / "file.csv"
    path.write_text(text)
    with pytest.raises(DamagedDataError, match=words):
        replay(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_text_that_is_not_utf8_is_told(tmp_path, encoding):
    """Saved as "Unicode text"."""
    path = tmp_path / "file.csv"
    path.write_bytes(futures().encode(encoding))
    with pytest.raises(DamagedDataError, match="save it as csv in UTF-8"):
        replay(path)


def test_what_systems_leave_in_a_zip_is_passed_over(tmp_path):
    """__MACOSX, .DS_Store, checksums, folders."""
    path = tmp_path / "trades.zip"
    with zipfile.ZipFile(path, "w") as folder:
        folder.mkdir("in")
        folder.writestr("__MACOSX/._trades.csv", b"\0\5\x16\7junk")
        folder.writestr("in/.DS_Store", b"junk")
        folder.writestr("in/Thumbs.db", b"junk")
        folder.writestr("in/trades.csv", futures())
        folder.writestr("in/trades.zip.CHECKSUM", "0123  trades.zip")
    check(path)


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        (1, "1,05E+02", "columns instead of"),
        (1, "1.05E+02", "price is '1.05E\\+02', shortened by a spreadsheet"),
        (5, "1.71979E+12", "time is '1.71979E\\+12', shortened by a spreadsheet"),
        (5, "2024-07-01 00:00", "time is '2024-07-01 00:00'"),
        (5, "0", "before 2017 or after 2100"),
        (5, "1719792000", "before 2017 or after 2100"),
        (5, "9" * 15, "after 2100"),
        (2, "", "quantity is ''"),
        (0, "9" * 20, "id is beyond 63 bits"),
        (4, "9" * 20, "last id is beyond 63 bits"),
        (6, "WAHR", "buyer is maker is 'WAHR'"),
        (6, "#REF!", "buyer is maker is '#REF!'"),
    ],
)
def test_what_a_spreadsheet_has_damaged_is_refused(tmp_path, column, cell, words):
    """With the line and the reason, in the archive's order and in another."""
    for order in (range(7), reversed(range(7))):
        order = list(order)
        lines = [",".join(HEADER.split(",")[index] for index in order)]
        for number, row in enumerate(ROWS):
            cells = [_text(value) for value in row]
            if number == 2:
                cells[column] = cell
            lines.append(",".join(cells[index] for index in order))
        path = tmp_path / "trades.csv"
        path.write_text("\n".join(lines))
        with pytest.raises(DamagedDataError, match=f"line 4 is no aggregate trade.*{words}"):
            replay(path)


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    """It is never held in memory as a whole."""
    monkeypatch.setattr(archive, "LINE_BYTES_MAX", 1_000)
    monkeypatch.setattr(archive, "CHUNK_BYTES", 4_096)
    path = tmp_path / "trades.csv"
    path.write_bytes(futures().encode() + b"1" * 100_000)
    with pytest.raises(DamagedDataError, match="line 6 has no end"):
        replay(path)


def test_a_time_that_is_wrong_by_years_makes_no_bars_of_all_its_minutes(tmp_path):
    """It is told instead."""
    path = tmp_path / "trades.csv"
    path.write_text(
        futures([*ROWS, (104, "1", "1", 511, 511, DAY + 5 * 366 * 1_440 * MINUTE, True)])
    )
    with pytest.raises(DamagedDataError, match="more than 1000 days after"):
        replay(path)


# -- Order, and what is told -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_any_order_gives_the_same_bars(tmp_path, monkeypatch, seed):
    """Shuffled, doubled, in runs and slices of a few rows, numbers of any length among them."""
    monkeypatch.setattr(sorting, "RUN_ROWS", 64)
    monkeypatch.setattr(sorting, "SLICE_ROWS", 32)
    monkeypatch.setattr(sorting, "MARK_EVERY", 4)
    monkeypatch.setattr(archive, "CHUNK_BYTES", 700)
    rng = random.Random(seed)
    rows, at = [], DAY
    for number in range(1_000, 1_600):
        at += rng.randrange(4_000)
        decimals = rng.choice((0, 1, 2, 2, 2, 9 if seed % 2 else 1))
        price = f"{Decimal(rng.randrange(1, 10**7)).scaleb(-decimals):f}"
        if seed > 3 and not rng.randrange(40):
            price = f"12345678901.{rng.randrange(1, 10**9):09}"
        rows.append((number, price, f"{rng.randrange(1, 999)}.5", number, number, at, True))
    path = tmp_path / "trades.csv"
    path.write_text(futures(rows))
    want = replay(path, "1m", "5m")[1]
    doubled = rows + rng.sample(rows, 100)
    rng.shuffle(doubled)
    path.write_text(futures(doubled))
    report, got = replay(path, "1m", "5m")
    assert list(map(_values, got)) == list(map(_values, want))
    assert (report.rows, report.trades, report.duplicates) == (700, 600, 100)
    assert (report.was_sorted, report.gaps, report.suspect_minutes) == (True, 0, 0)


def _values(row):
    """A bar without how many zeros end its numbers: that goes by what was read together."""
    words = {"symbol", "interval", "source"}
    return {name: text if name in words else Decimal(text) for name, text in row.items()}


def test_one_row_for_ever_takes_no_room(tmp_path, monkeypatch):
    """Repeats are dropped before they are gathered in a slice."""
    monkeypatch.setattr(sorting, "RUN_ROWS", 64)
    path = tmp_path / "trades.csv"
    path.write_text(futures([ROWS[1], *[ROWS[0]] * 5_000, *ROWS[2:]]))
    report, _ = replay(path)
    assert (report.rows, report.trades, report.duplicates) == (5_003, 4, 4_999)
    check(path)


def test_gaps_and_missing_ids_are_counted(tmp_path):
    """Each jump, and how many are missing in all; sorted or not."""
    rows = [(a + 7 * (a > 101) + 3 * (a > 102), *rest) for a, *rest in ROWS]
    for order in (rows, rows[::-1]):
        path = tmp_path / "trades.csv"
        path.write_text(futures(order))
        report, _ = replay(path)
        assert (report.gaps, report.missing_ids) == (2, 10)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS, "X: 4 rows, 4 trades, 5 bars\n"),
        (sorted(ROWS * 2), "4 repeats"),
        (ROWS[::-1], "rows not in order of their ids: sorted"),
        ([*ROWS[:3], (104, *ROWS[3][1:])], "1 ids missing, in 1 gaps; 4 suspect minutes"),
        ([*ROWS, (105, "0", "0", -1, -1, DAY, True)], "1 rows skipped"),
    ],
)
def test_what_was_read_is_told(tmp_path, capsys, rows, words):
    """One line on stderr, with counts; stdout holds the bars."""
    path = tmp_path / "trades.csv"
    path.write_text(futures(rows))
    assert cli.execute(["replay", str(path), "--symbol", "X"]) == 0
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert len(shown.out.splitlines()) == 6


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
