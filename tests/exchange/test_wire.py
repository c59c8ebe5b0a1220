"""The codec against captured frames, against nonsense, and against numbers that are not plain."""

import contextlib
import json
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klagg_trio.core.bar import Source
from klagg_trio.core.errors import RemoteError
from klagg_trio.core.intervals import INTERVALS
from klagg_trio.exchange import wire
from klagg_trio.exchange.universe import Universe

DATA = Path(__file__).parents[3] / "shared" / "data"
real_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the folder of real captures is missing: {DATA}"
)

TRADE = {
    "e": "aggTrade",
    "E": 1791382992488,
    "a": 3477868433,
    "s": "BTCUSDT",
    "p": "83091.70",
    "q": "0.022",
    "nq": "0.022",
    "f": 8153634393,
    "l": 8153634394,
    "T": 1791382992338,
    "m": False,
    "st": 1,
}

NOT_PLAIN = (
    *("NaN", "nan", "sNaN", "-NaN", "NaN1", "Infinity", "inf", "-inf", "1e5", "1E5", "1e999"),
    *("1_000", "+5", "-5", " 5", "5 ", "\t5", "5\n", "5.", ".5", ".", "", "1.2.3", "0x10", "1,5"),
    *("٣", "५", "５", "1٣", "²", "9" * 41, "0." + "1" * 39, "9" * 10_000, "5\u0000", "5\u00a0"),
)


def frame(stream="btcusdt@aggTrade", **changes):
    """Return a trade frame with some fields changed; None leaves a field out."""
    data = {name: value for name, value in (TRADE | changes).items() if value is not None}
    return json.dumps(
        {"stream": stream, "data": data}, separators=(",", ":"), ensure_ascii=False
    ).encode()


def envelope(stream, data):
    """Return a frame of the combined stream."""
    return json.dumps({"stream": stream, "data": data}).encode()


def captured():
    """Return the captured frames in order."""
    lines = (DATA / "um_ws_aggtrade_kline_20210722_2226.txt").read_bytes().splitlines()
    return [line.split(b": ", 1)[1] for line in lines if line]


# -- Trades ----------------------------------------------------------------------------------------


def test_a_trade_is_decoded_exactly():
    """Every field of a documented frame arrives exactly; unknown fields are ignored."""
    (trade,) = wire.decode_trades([frame()]).trades
    assert trade == wire.AggTrade(
        symbol="BTCUSDT",
        id=3477868433,
        price=Decimal("83091.70"),
        quantity=Decimal("0.022"),
        first_id=8153634393,
        last_id=8153634394,
        time_ms=1791382992338,
        buyer_is_maker=False,
        event_ms=1791382992488,
        market=1,
    )
    assert str(trade.price) == "83091.70"


@real_data
def test_captured_frames_are_decoded_like_json_does():
    """A real capture gives the trades that the standard library sees in it, in its order."""
    frames = captured()
    decoded = wire.decode_trades(frames)
    expected = [
        data for data in (json.loads(each)["data"] for each in frames) if data["e"] == "aggTrade"
    ]
    assert len(expected) > 50
    assert decoded.rejected == 0
    assert len(decoded.others) == len(frames) - len(expected)
    assert [
        (t.symbol, t.id, str(t.price), str(t.quantity), t.first_id, t.last_id, t.time_ms)
        for t in decoded.trades
    ] == [(d["s"], d["a"], d["p"], d["q"], d["f"], d["l"], d["T"]) for d in expected]
    assert [(t.event_ms, t.buyer_is_maker, t.market) for t in decoded.trades] == [
        (d["E"], d["m"], 1) for d in expected
    ]


def test_the_market_is_told():
    """Coin-margined rows carry market 2; a frame without the field is of market 1."""
    trades = wire.decode_trades([frame(st=2), frame(st=None)]).trades
    assert [trade.market for trade in trades] == [2, 1]


def test_symbols_in_any_script_are_decoded():
    """Names that are not ASCII work."""
    frames = [frame("币安人生usdt@aggTrade", s="币安人生USDT", a=each) for each in range(3)]
    for _ in range(2):
        decoded = wire.decode_trades(frames)
        assert [trade.symbol for trade in decoded.trades] == ["币安人生USDT"] * 3


@pytest.mark.parametrize("field", ["p", "q"])
@pytest.mark.parametrize("text", NOT_PLAIN)
def test_numbers_that_are_not_plain_are_rejected(field, text):
    """Whatever else Decimal would take for a number is rejected and counted, its neighbours not."""
    good = [frame(a=1), frame(a=2, q="7")]
    decoded = wire.decode_trades([good[0], frame(**{field: text}), good[1]])
    assert [trade.id for trade in decoded.trades] == [1, 2]
    assert decoded.rejected == 1
    assert decoded.error


@pytest.mark.parametrize(
    "changes",
    [
        {"p": "0"},
        {"p": "00000.00"},
        {"q": "0.000"},
        {"p": 83091.7},
        {"a": -1},
        {"f": -1},
        {"a": 2**63},
        {"l": 8153634392},
        {"T": 0},
        {"T": 2**53},
        {"T": -1},
        {"E": 0},
        {"m": 0},
        {"m": None},
        {"s": ""},
        {"s": "../../etc"},
        {"s": "A'; DROP TABLE klines"},
        {"s": "\x1b[31m"},
        {"s": "[red]X[/]"},
        {"s": "A\u202eB"},
        {"s": "X" * 41},
        {"s": None},
        {"T": "1791382992338"},
    ],
)
def test_values_that_cannot_be_are_rejected(changes):
    """Zero prices, impossible ids, times and names are rejected and counted, neighbours are not."""
    good = [frame(a=1), frame(a=2)]
    decoded = wire.decode_trades([good[0], frame(**changes), good[1]])
    assert [trade.id for trade in decoded.trades] == [1, 2]
    assert decoded.rejected == 1


def test_other_frames_are_set_apart_in_order():
    """Acknowledgements, errors and mark prices come out as they are, for the other decoder."""
    ack = b'{"result":null,"id":1}'
    listing = b'{"result":["btcusdt@aggTrade"],"id":2}'
    mark = envelope("btcusdt@markPrice@1s", {"e": "markPriceUpdate", "E": 1, "s": "BTCUSDT"})
    decoded = wire.decode_trades([ack, frame(a=1), mark, frame(a=2), listing, b"[1]", b""])
    assert decoded.others == [ack, mark, listing, b"[1]", b""]
    assert [trade.id for trade in decoded.trades] == [1, 2]
    assert decoded.rejected == 0


def test_a_truncated_trade_is_rejected_alone():
    """Each way to cut a trade frame short costs that frame and none beside it."""
    whole = frame(a=5)
    for end in range(whole.index(b'"data"'), len(whole)):
        decoded = wire.decode_trades([frame(a=1), whole[:end], frame(a=2)])
        assert [trade.id for trade in decoded.trades] == [1, 2]
        assert decoded.rejected == 1


def test_frames_do_not_complete_each_other():
    """Two halves of a trade in two frames are no trade; two trades in one frame are none either."""
    whole = frame(a=5)
    decoded = wire.decode_trades([whole[:80], whole[80:]])
    assert not decoded.trades
    decoded = wire.decode_trades([whole + b"\n" + whole])
    assert not decoded.trades
    assert decoded.rejected == 1
    decoded = wire.decode_trades([whole + b"\n" + whole, whole[:80] + b"\n", whole[80:]])
    assert not decoded.trades


def test_escapes_are_read():
    """Digits of an escape are a character, and judged as that."""
    escaped = frame().replace(b'"p":"83091.70"', b'"p":"\\u0038.70"')
    decoded = wire.decode_trades([escaped])
    assert decoded.trades[0].price == Decimal("8.70")
    decoded = wire.decode_trades([escaped.replace(b"0038", b"0020")])
    assert decoded.rejected == 1


def test_spaced_frames_are_decoded():
    """Any layout of the same JSON is understood, newlines included."""
    spaced = json.dumps({"stream": "btcusdt@aggTrade", "data": TRADE}, indent=1).encode()
    for _ in range(2):
        decoded = wire.decode_trades([spaced, frame()])
        assert len(decoded.trades) == 2


@given(st.lists(st.binary(max_size=60)))
@example([b'{"stream":"@aggTrade","data":' + b"[" * 100_000])
@example([b'{"stream":"x@aggTrade","data":"\xff"}'])
@example([b"\n", b"\n\n", b""])
def test_nonsense_never_raises_from_trades(frames):
    """Arbitrary bytes are other frames or rejected trades; none is lost and nothing is raised."""
    decoded = wire.decode_trades(frames)
    assert len(decoded.others) + decoded.rejected + len(decoded.trades) == len(frames)


# -- Other frames ----------------------------------------------------------------------------------


def test_mini_tickers_are_decoded():
    """The array gives symbol, close, time and market of every row; bad rows are counted."""
    row = {"e": "24hrMiniTicker", "E": 9, "s": "ETHUSDT", "c": "1.50", "o": "1", "v": "3"}
    rows = [row, row | {"s": "BTCUSD_PERP", "st": 2}, row | {"c": "NaN"}, row | {"c": "0"}, 7]
    message = wire.decode_frame(envelope("!miniTicker@arr", rows))
    assert message == wire.MiniTickers(
        [
            wire.MiniTicker("ETHUSDT", Decimal("1.50"), 9, 1, Decimal(3)),
            wire.MiniTicker("BTCUSD_PERP", Decimal("1.50"), 9, 2, Decimal(3)),
        ],
        rejected=3,
    )


def test_contract_info_is_decoded():
    """A listing gives all that decides whether the symbol is ours."""
    data = {
        "e": "contractInfo",
        "E": 1791382992488,
        "s": "IOTAUSDT",
        "ct": "PERPETUAL",
        "dt": 4133404800000,
        "ot": 1569398400000,
        "cs": "TRADING",
        "bks": [{"bs": 1, "bnf": 0}],
        "st": 1,
    }
    message = wire.decode_frame(envelope("!contractInfo", data))
    assert isinstance(message, wire.ContractInfo)
    assert (message.symbol, message.contract_type, message.status) == (
        "IOTAUSDT",
        "PERPETUAL",
        "TRADING",
    )
    assert (message.delivery_ms, message.onboard_ms, message.market) == (
        4133404800000,
        1569398400000,
        1,
    )


def test_answers_are_decoded():
    """Acknowledgements and both forms of an error are told apart, with the request's id."""
    assert wire.decode_frame(b'{"result":null,"id":7}') == wire.Ack(7)
    assert wire.decode_frame(b'{"result":["a@b"],"id":"x"}') == wire.Ack(wire.NO_ID)
    refused = b'{"error":{"code":3,"msg":"Invalid JSON"}}'
    assert wire.decode_frame(refused) == wire.WireError(3, "Invalid JSON", wire.NO_ID)
    refused = b'{"code":2,"msg":"Invalid request","id":4}'
    assert wire.decode_frame(refused) == wire.WireError(2, "Invalid request", 4)


def test_a_mark_price_is_decoded():
    """The proof of life tells its symbol and when it was sent."""
    frame = envelope("币安人生usdt@markPrice@1s", {"E": 5, "s": "币安人生USDT", "p": "1"})
    assert wire.decode_frame(frame) == wire.MarkPrice("币安人生USDT", 5)


def test_unknown_frames_are_none():
    """A stream or a message that nobody asks for is nothing, not an error."""
    assert wire.decode_frame(envelope("btcusdt@kline_1m", {"k": {}})) is None
    assert wire.decode_frame(b'{"e":"serverShutdown","E":1}') is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
streams = st.sampled_from(
    ["!miniTicker@arr", "!contractInfo", "btcusdt@markPrice@1s", "btcusdt@aggTrade", "x"]
)
bodies = st.one_of(
    st.binary(max_size=80),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.builds(envelope, streams, json_values),
    st.fixed_dictionaries(
        {}, optional={"result": json_values, "error": json_values, "id": json_values}
    ).map(lambda value: json.dumps(value).encode()),
)

DECODERS = [
    wire.decode_frame,
    wire.decode_exchange_info,
    wire.decode_server_time,
    lambda body: wire.decode_klines(body, INTERVALS["1m"]),
    lambda body: wire.decode_agg_trades(body, "BTCUSDT"),
    wire.decode_tickers,
    wire.decode_error,
]


@pytest.mark.parametrize("decode", DECODERS)
@given(body=bodies)
@example(body=b"[" * 200_000)
@example(body=b'{"stream":"!miniTicker@arr","data":' + b"[" * 200_000)
@example(body=b'{"stream":"!contractInfo","data":{"s":"\xff"}}')
@example(body=b'{"code":1e400,"msg":""}')
@example(body=b"\xef\xbb\xbf{}")
def test_nonsense_raises_remote_error_only(decode, body):
    """Arbitrary bytes and arbitrary JSON never raise anything but RemoteError."""
    with contextlib.suppress(RemoteError):
        decode(body)


def test_requests_name_their_streams():
    """Names are sent as they are; only ASCII letters of a symbol are lowered."""
    assert wire.stream_name("1000PEPEUSDT", "aggTrade") == "1000pepeusdt@aggTrade"
    assert wire.stream_name("ÄÖÜИUSDT", "aggTrade") == "ÄÖÜИusdt@aggTrade"
    name = wire.stream_name("币安人生USDT", "markPrice@1s")
    assert json.loads(wire.subscribe([name], 3)) == {
        "method": "SUBSCRIBE",
        "params": ["币安人生usdt@markPrice@1s"],
        "id": 3,
    }
    assert json.loads(wire.unsubscribe(["a@b", "c@d"], 4)) == {
        "method": "UNSUBSCRIBE",
        "params": ["a@b", "c@d"],
        "id": 4,
    }


# -- REST bodies -----------------------------------------------------------------------------------


@real_data
def test_real_exchange_info_is_decoded():
    """A whole real exchangeInfo gives all its contracts, and ours among them."""
    body = (DATA / "fapi_exchangeInfo_2021-07-21.json").read_bytes()
    info = wire.decode_exchange_info(body)
    rows = json.loads(body)["symbols"]
    assert list(info.contracts) == [row["symbol"] for row in rows]
    assert (info.refused, info.unreadable, info.nameless) == ((), frozenset(), 0)
    usual = Universe((), ("PERPETUAL",), ("USDT",))
    ours = {symbol for symbol, contract in info.contracts.items() if usual.wants(contract)}
    assert ours == {
        row["symbol"]
        for row in rows
        if (row["contractType"], row["quoteAsset"], row["status"])
        == ("PERPETUAL", "USDT", "TRADING")
    }
    bitcoin = info.contracts["BTCUSDT"]
    assert (bitcoin.onboard_ms, bitcoin.price_precision, bitcoin.quantity_precision) == (
        next(row["onboardDate"] for row in rows if row["symbol"] == "BTCUSDT"),
        2,
        3,
    )


def test_a_bad_contract_is_left_out_alone():
    """A row that is no good costs itself, with its reason, and no other row."""
    row = {
        "symbol": "BTCUSDT",
        "pair": "BTCUSDT",
        "contractType": "PERPETUAL",
        "deliveryDate": 4133404800000,
        "onboardDate": 1569398400000,
        "status": "TRADING",
        "quoteAsset": "USDT",
    }
    rows = [row, row | {"symbol": "../x"}, row | {"onboardDate": "soon"}, 5, row | {"symbol": "B"}]
    rows.append(row | {"symbol": "CUSDT", "status": 7})
    info = wire.decode_exchange_info(json.dumps({"symbols": rows}).encode())
    assert list(info.contracts) == ["BTCUSDT", "B"]
    assert (len(info.refused), info.unreadable, info.nameless) == (4, {"CUSDT"}, 2)
    assert info.names == {"BTCUSDT", "B", "CUSDT"}


def test_the_captured_kline_row_is_decoded():
    """The REST layout gives nine exact values, an exclusive end, and where they came from."""
    row = (
        b'[[1499040000000,"83137.90","83140.0","83000.10","83091.7","102.437",1499040059999,'
        b'"8514292.61220",308,"51.2","4255146.3","0"]]'
    )
    (bar,) = wire.decode_klines(row, INTERVALS["1m"]).bars
    assert (bar.open_ms, bar.end_ms) == (1499040000000, 1499040060000)
    assert [str(value) for value in bar.values()] == [
        *("83137.90", "83140.0", "83000.10", "83091.7", "102.437", "8514292.61220", "308"),
        *("51.2", "4255146.3"),
    ]
    assert bar.source == Source.OFFICIAL
    assert (bar.first, bar.last) == (bar.open_ms, bar.open_ms)


@real_data
def test_real_klines_are_decoded():
    """Official 3d klines come out in order, three days each, their values unchanged."""
    body = (DATA / "um_BTCUSDT_3d.json").read_bytes()
    bars = wire.decode_klines(body, INTERVALS["3d"]).bars
    rows = json.loads(body)
    assert [(bar.open_ms, bar.end_ms - 1, str(bar.volume)) for bar in bars] == [
        (row[0], row[6], row[5]) for row in rows
    ]


GOOD_ROW = [60_000, "1000", "1100", "900", "1050", "3", 119_999, "3000", 5, "1", "1000", "0"]


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, "60000"),
        (0, -60_000),
        (1, "0"),
        (1, "NaN"),
        (1, "1_000"),
        (2, "1e3"),
        (3, "१"),
        (4, 5.0),
        (5, "-1"),
        (6, 2**63),
        (8, -1),
        (8, "3"),
        (8, 2**63),
        (9, None),
        (10, "1" * 41),
    ],
)
def test_a_row_that_cannot_be_read_costs_no_other(position, value):
    """One malformed row is refused, with its time where that can be read; its neighbours are used.

    However the row is malformed: by a type, a number beyond 64 bits, or a text that is no number.
    """
    rows = [[60_000 * at, *GOOD_ROW[1:6], 60_000 * (at + 1) - 1, *GOOD_ROW[7:]] for at in (1, 2, 3)]
    rows[1][position] = value
    klines = wire.decode_klines(json.dumps(rows).encode(), INTERVALS["1m"])
    assert [bar.open_ms for bar in klines.bars] == [60_000, 180_000]
    (refused,) = klines.refused
    assert refused.open_ms == (None if position == 0 else 120_000)
    assert refused.reason.isprintable()
    assert len(refused.reason) < 300


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"null", b'{"code":-1,"msg":""}', b"[[1]", b"[" * 2**21, b"\xff"]
)
def test_an_answer_that_is_no_list_is_an_error(body):
    """Only where there are no rows at all is the whole answer refused."""
    with pytest.raises(RemoteError):
        wire.decode_klines(body, INTERVALS["1m"])


def test_past_trades_are_decoded():
    """REST rows become the same trades, with the symbol asked for and their own time as event's."""
    row = {name: TRADE[name] for name in ("a", "p", "q", "nq", "f", "l", "T", "m")}
    (trade,) = wire.decode_agg_trades(json.dumps([row]).encode(), "BTCUSDT")
    (streamed,) = wire.decode_trades([frame(E=TRADE["T"])]).trades
    assert trade == streamed


@pytest.mark.parametrize("changes", [{"p": "0", "q": "0", "f": -1, "l": -1}, {"p": "NaN"}])
def test_past_trades_that_cannot_be_are_refused(changes):
    """The ghost trades of old archives, and numbers that are not plain, are refused."""
    row = {name: TRADE[name] for name in ("a", "p", "q", "f", "l", "T", "m")} | changes
    with pytest.raises(RemoteError):
        wire.decode_agg_trades(json.dumps([row]).encode(), "BTCUSDT")


def test_tickers_give_prices():
    """The last price of each symbol; one that never traded has none."""
    rows = [
        {"symbol": "A", "lastPrice": "1.50", "volume": "3"},
        {"symbol": "B", "lastPrice": "0.00"},
    ]
    assert wire.decode_tickers(json.dumps(rows).encode()) == {"A": Decimal("1.50")}


def test_error_bodies_are_told_from_others():
    """An error body gives code and text; a web page gives nothing."""
    assert wire.decode_error(b'{"code":-1121,"msg":"Invalid symbol."}') == (
        -1121,
        "Invalid symbol.",
    )
    assert wire.decode_error(b"<html>Forbidden</html>") is None
    assert wire.decode_error(b"[]") is None


def test_structs_match_like_classes():
    """Messages can be taken apart by match, rows by position."""
    match wire.decode_frame(envelope("!miniTicker@arr", [])):
        case wire.MiniTickers(rows):
            assert rows == []
    assert issubclass(wire.AggTrade, msgspec.Struct)


@pytest.mark.parametrize("field", ["p", "q"])
@pytest.mark.parametrize("text", ["1" + 16 * "0", 40 * "9"])
def test_a_trade_beyond_all_is_refused_with_its_symbol(field, text):
    """What no price and no quantity can be: counted, and its minute can be owed."""
    data = {"e": "aggTrade", "E": 1_700_000_000_100, "a": 5, "s": "BTCUSDT", "p": "1", "q": "1"}
    data |= {"f": 1, "l": 1, "T": 1_700_000_000_000, "m": True, field: text}
    frame = json.dumps({"stream": "btcusdt@aggTrade", "data": data}).encode()
    decoded = wire.decode_trades([frame])
    assert (decoded.rejected, decoded.count) == (1, 0)
    assert [refusal.symbol for refusal in decoded.refusals] == ["BTCUSDT"]
