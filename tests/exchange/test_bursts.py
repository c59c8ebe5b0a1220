"""Bursts decoded to columns against the same frames decoded one by one."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klagg_trio.core.columns import group
from klagg_trio.exchange import bursts, wire
from klagg_trio.exchange.bursts import BURST_LEFT, BURST_MIN, SKIPPED_CHUNKS, TradeDecoder
from klagg_trio.exchange.frames import Frames

SYMBOLS = ("BTCUSDT", "ETHUSDT", "1000PEPEUSDT", "币安人生USDT", "Q", "BTCUSDC", "BTCUSDT_261225")


def frame(
    symbol: str = "BTCUSDT",
    trade_id: int = 3477868433,
    *,
    price: str = "83091.70",
    quantity: str = "0.022",
    normal: str | None = "0.022",
    first: str = "8153634393",
    last: str = "8153634394",
    time: str = "1791382992338",
    event: str = "1791382992488",
    maker: str = "false",
    market: str | None = "1",
) -> bytes:
    """A frame in the exchange's own form, with texts for its numbers."""
    normal = "" if normal is None else f'"nq":"{normal}",'
    market = "" if market is None else f',"st":{market}'
    return (
        f'{{"stream":"{symbol.lower()}@aggTrade","data":{{"e":"aggTrade","E":{event},'
        f'"a":{trade_id},"s":"{symbol}","p":"{price}","q":"{quantity}",{normal}'
        f'"f":{first},"l":{last},"T":{time},"m":{maker}{market}}}}}'
    ).encode()


def burst(count: int = 2 * BURST_MIN, seed: int = 1, **changes) -> list[bytes]:
    """Frames of all symbols, each with numbers of its own."""
    draw = random.Random(seed)
    frames = []
    for _ in range(count):
        price = f"{draw.randrange(1, 10 ** draw.randrange(1, 8))}.{draw.randrange(100):02}"
        quantity = draw.choice((f"{draw.randrange(1, 9999)}", f"{draw.randrange(9)}.25", "0.001"))
        first = draw.randrange(10**11)
        fields = {
            "price": price,
            "quantity": quantity,
            "normal": quantity,
            "first": str(first),
            "last": str(first + draw.randrange(9)),
            "maker": draw.choice(("true", "false")),
        }
        frames.append(frame(draw.choice(SYMBOLS), draw.randrange(10**10), **fields | changes))
    return frames


def as_told(trades) -> list[tuple]:
    """The fields of trades of either kind, all that a bar can tell."""
    return [
        (
            *(trade.symbol, trade.id, trade.price, trade.quantity, trade.first_id, trade.last_id),
            *(trade.time_ms, trade.buyer_is_maker),
        )
        for trade in trades
    ]


def check_same(decoder: TradeDecoder, frames: list[bytes]) -> wire.Decoded:
    """Decode a chunk both ways; return what the decoder under test made of it."""
    found = decoder.decode(Frames.of(frames))
    expected = wire.decode_trades(frames)
    trades = found.trades if found.columns is None else found.columns.trades()
    assert as_told(trades) == as_told(expected.trades)
    assert (found.others, found.rejected) == (expected.others, expected.rejected)
    assert found.count == len(expected.trades)
    assert found.event_ms == expected.event_ms
    return found


@pytest.fixture
def decoder() -> TradeDecoder:
    """One that has seen every symbol."""
    return warm()


def warm(**changes) -> TradeDecoder:
    """Return a decoder that has seen every symbol in this form."""
    decoder = TradeDecoder()
    decoder.decode(Frames.of(burst(200, **changes)))
    return decoder


@pytest.mark.parametrize(
    "changes", [{}, {"normal": None}, {"market": None}, {"normal": None, "market": None}]
)
@pytest.mark.parametrize("seed", range(5))
def test_a_burst_is_the_same_as_its_frames(seed, changes):
    """Every form that the exchange has had gives the same trades, and gives them as columns."""
    decoder = warm(**changes)
    assert check_same(decoder, burst(seed=seed, **changes)).columns is not None


def test_a_new_form_is_learnt_from_one_chunk(decoder):
    """Where the exchange adds or drops a field, the next chunk is decoded at once again."""
    assert check_same(decoder, burst(normal=None)).columns is None
    assert check_same(decoder, burst(normal=None)).columns is not None


def test_a_new_symbol_is_learnt_from_one_chunk(decoder):
    """A chunk with a listing is decoded one by one, the next one at once."""
    frames = [*burst(), frame("NEWUSDT", price="0.00001234", quantity="1000000")]
    assert check_same(decoder, frames).columns is None
    assert check_same(decoder, frames).columns is not None


def test_more_decimals_are_learnt_and_fewer_are_the_same_number(decoder):
    """Prices come in units of the last decimal that was ever seen of a symbol."""
    frames = [*burst(), frame(price="83091.7123"), frame(price="83091")]
    assert check_same(decoder, frames).columns is None
    columns = check_same(decoder, frames).columns
    assert columns is not None
    assert columns.trades()[-1].price == Decimal(83091)
    assert columns.table[0, -1] == 830910000


def test_few_frames_are_decoded_one_by_one(decoder):
    """Columns begin at BURST_MIN, where they pay, and end below BURST_LEFT."""
    columns = [
        check_same(decoder, burst(count)).columns is not None
        for count in (BURST_LEFT - 1, BURST_MIN - 1, BURST_MIN, BURST_LEFT, BURST_LEFT - 1)
        for _ in range(2)
    ]
    assert columns == [False] * 4 + [True] * 4 + [False] * 2
    assert check_same(decoder, burst(BURST_MIN - 1)).columns is None


OTHERS = (
    b'{"result":null,"id":1}',
    b'{"stream":"btcusdt@markPrice@1s","data":{"e":"markPriceUpdate","E":1791382992488,'
    b'"s":"BTCUSDT","p":"83091.70","ap":"1","P":"2","i":"3","r":"4","T":1791382992338}}',
    b"[]",
    b"",
)


@pytest.mark.parametrize("place", [0, 7, 2 * BURST_MIN])
@pytest.mark.parametrize("other", OTHERS)
def test_frames_that_are_no_trades_are_picked_out(decoder, other, place):
    """Wherever they come, they are among the others, and the trades are decoded at once."""
    frames = burst()
    frames.insert(place, other)
    found = check_same(decoder, frames)
    assert found.others == [other]
    assert found.columns is not None or not other


def test_nothing_but_others(decoder):
    """A chunk without a trade."""
    found = check_same(decoder, list(OTHERS) * BURST_MIN)
    assert found.count == 0


TEXTS = (
    *("NaN", "1e5", "1E5", "1_000", "+5", "-5", " 5", "5 ", "5.", ".5", ".", "", "1.2.3", "0x10"),
    *("1,5", "٣", "5\\u0030", "0", "0.0", "00000000.000000", "00000.10", "9" * 15 + ".", "1..2"),
    *("1234567890.12345", "12345678901234567", "1234567.12345678", "12345678.1234567", "/", ":"),
    *("123456.7:", "1234567/.1", "9" * 16, "0." + "0" * 13 + "1", "0." + "0" * 14 + "1"),
)


@pytest.mark.parametrize("field", ["price", "quantity", "normal"])
@pytest.mark.parametrize("text", TEXTS)
def test_numbers_that_are_not_plain_are_found(decoder, field, text):
    """Whatever stands for a number, the same trades are refused or taken, with the same values."""
    for place in (0, 20):
        frames = burst(seed=2)
        frames.insert(place, frame(**{field: text}))
        check_same(decoder, frames)


@pytest.mark.parametrize("field", ["first", "last", "time", "event", "maker", "market"])
@pytest.mark.parametrize(
    "text",
    ["0", "-1", "1.5", "1e9", "", "null", "true", '"5"', "00", "9" * 13, "9" * 17, "9" * 20, "2"],
)
def test_other_fields_that_are_no_good_are_found(decoder, field, text):
    """The same for what is no decimal."""
    frames = burst(seed=3)
    frames.insert(9, frame(**{field: text}))
    check_same(decoder, frames)


@given(st.data())
def test_any_broken_byte_is_noticed(data):
    """A burst in which one byte is another gives the same as its frames one by one."""
    decoder = warm()
    frames = burst(seed=4)
    number = data.draw(st.integers(0, len(frames) - 1))
    place = data.draw(st.integers(0, len(frames[number]) - 1))
    octet = data.draw(st.sampled_from(b'0123456789.,:"{}mtfalse\\ \x00\x81\xff'))
    frames[number] = frames[number][:place] + bytes([octet]) + frames[number][place + 1 :]
    check_same(decoder, frames)


@given(st.data())
def test_bytes_lost_or_doubled_are_noticed(data):
    """The same for a frame that lacks a piece, or has one twice."""
    decoder = warm()
    frames = burst(seed=5)
    number = data.draw(st.integers(0, len(frames) - 1))
    text = frames[number]
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    frames[number] = data.draw(
        st.sampled_from((text[:start] + text[stop:], text[:stop] + text[start:]))
    )
    check_same(decoder, frames)


def test_a_chunk_that_teaches_nothing_stops_the_trying_for_a_while(decoder):
    """Trades of a form that cannot be learnt do not cost every chunk an attempt."""
    frames = [*burst(), frame(market="2")]
    assert check_same(decoder, frames).columns is None
    for _ in range(SKIPPED_CHUNKS):
        assert check_same(decoder, burst()).columns is None
    assert check_same(decoder, burst()).columns is not None


def test_no_more_symbols_are_learnt_than_the_tables_hold(monkeypatch):
    """A line that makes symbols up does not fill the memory, nor keep real ones out for good."""
    monkeypatch.setattr(bursts, "SYMBOLS_MAX", BURST_MIN)
    decoder = TradeDecoder()
    frames = [frame(f"X{number}USDT") for number in range(3 * BURST_MIN)]
    check_same(decoder, frames)
    assert len(decoder._known) <= BURST_MIN
    real = frames[:BURST_MIN]
    check_same(decoder, real)
    assert check_same(decoder, real).columns is not None


@pytest.mark.parametrize(
    "outlier",
    [
        {"price": "0.00000000000001"},
        {"price": "83091.7000000001"},
        {"quantity": "0.00000000000001"},
        {"price": "0.00000000000001", "quantity": "0.00000000000001"},
        {"price": "9999999999999999", "quantity": "9999999999999999"},
        {"price": "99999999999999999999", "quantity": "9"},
    ],
)
def test_a_number_longer_than_all_before_does_not_switch_columns_off(outlier):
    """One odd number costs some chunks their columns, and never those for good."""
    decoder = warm()
    check_same(decoder, [*burst(), frame(**outlier)])
    units = set()
    last = 0
    for number in range(3 * SKIPPED_CHUNKS):
        columns = check_same(decoder, burst(seed=number)).columns
        if columns is None:
            last = number
            continue
        units.add(id(columns.units))
        if group(columns) is None:
            last = number
            decoder.make_coarse(columns)
    assert last < 2 * SKIPPED_CHUNKS
    assert len(units) <= 4


def test_numbers_that_do_not_go_together_do_not_make_every_chunk_pay():
    """Two prices of one symbol that no common unit fits cost few new tables."""
    decoder = warm()
    tables = set()
    kept = []
    for number in range(4 * SKIPPED_CHUNKS):
        price = "0.00000000000001" if number % 2 else "99999999999999.9"
        check_same(decoder, [*burst(), frame(price=price)])
        kept.append(decoder._tables)
        tables.add(id(decoder._tables))
    assert len(tables) <= 12


@pytest.mark.parametrize("fills", [wire.FILLS_MAX, wire.FILLS_MAX + 1, 10**14])
def test_as_many_fills_as_are_believed(decoder, fills):
    """A trade that claims more fills than the bound is refused, alone and in a burst alike."""
    frames = [*burst(), frame(first="1", last=str(fills))]
    found = check_same(decoder, frames)
    assert found.rejected == (fills > wire.FILLS_MAX)
