"""Typed codec of the exchange's JSON: frames and REST bodies to exact values. No I/O.

Theory of operation
-------------------
Numbers come from outside and become Decimals, and Decimal takes more than the exchange means:
"NaN", "1_000", "1e999", " 5", digits of any script, ten thousand of them. So the *text* of each
number must be plain (`PLAIN`) before a value made from it is used.

What comes has bounds here, so that nothing behind this has to fear it: names, numbers and ids of a
length, so many fills in a trade, so many values in a body, texts of the exchange cut and cleaned. A
trade beyond them is refused; its symbol and time, where these can be read, go on (`Refusal`), since
a minute that lacks one of its trades is owed.

This is the codec for whatever may come. Trades in the exchange's own form, by the dozen, are read
by `bursts.py`, which leaves all others to `decode_trades`.

Everything raised here for what the exchange sent is RemoteError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec

from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.columns import TradeColumns
from klagg_trio.core.errors import RemoteError
from klagg_trio.core.intervals import Interval
from klagg_trio.core.plain import plain, plain_body
from klagg_trio.exchange.validate import TIME_MS_MAX, Klines, RefusedRow, sift

PLAIN: Final = re.compile(r"[0-9]+(\.[0-9]+)?")
"""The only form of a number, all of the text."""

NUMBER_LENGTH_MAX: Final = 40
"""The longest number seen has 20 characters; exact sums of products hold 60 digits."""

SYMBOL_LENGTH_MAX: Final = 40
"""The longest symbol seen has 17 characters."""

KLINES_BYTES_MAX: Final = 2**20
"""A page of klines: 1,500 rows, the most that can be asked for, have 300 kB."""

VALUE_MAX: Final = Decimal(10**16)
"""No price and no quantity is as large: the largest seen have ten digits before the point, and
sixteen characters are what columns read."""

FILLS_MAX: Final = 1_000_000
"""In one aggregate, which gathers 100 ms of one price: the busiest have had some thousands. The sum
over a month of 10,000 such aggregates a second is 2.6e16, and SQLite holds 9.2e18."""

ID_MAX: Final = 2**62
"""Of ids. The one after it, and the difference of any two, fit into 64 bits."""

VALUES_MAX: Final = 500_000
"""In one body or frame. exchangeInfo has 48,000; each may cost a hundred bytes of memory."""

LARGE_BYTES: Final = 64 * 1024
"""Bodies that are shorter have too few values to be counted."""

CONTRACTS_MAX: Final = 20_000
"""In one exchangeInfo, which has some 700."""

REFUSALS_MAX: Final = 10_000
"""Of one chunk: more symbols and minutes than there are."""

USD_M: Final = 1
"""`st` of our market; 2 is coin-margined."""

Id = Annotated[int, msgspec.Meta(ge=0, le=ID_MAX)]
TimeMs = Annotated[int, msgspec.Meta(gt=0, le=TIME_MS_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0, le=TIME_MS_MAX)]

_MALFORMED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be."""

_ASCII_LOWER: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}

T = TypeVar("T")


# -- Trades: the hot path --------------------------------------------------------------------------


class AggTrade(msgspec.Struct, gc=False):
    """One aggTrade, as `core.trade.Trade` wants it. Holds no references, so the GC skips it.

    The fields stand in the order in which the exchange sends them, which the decoder expects.
    """

    event_ms: TimeMs = msgspec.field(name="E")
    """When the exchange sent it: for measuring delay, never for the bar."""
    id: Id = msgspec.field(name="a")
    symbol: str = msgspec.field(name="s")
    price: Decimal = msgspec.field(name="p")
    quantity: Decimal = msgspec.field(name="q")
    first_id: Id = msgspec.field(name="f")
    last_id: Id = msgspec.field(name="l")
    time_ms: TimeMs = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")
    market: int = msgspec.field(name="st", default=USD_M)
    """1 is USD-M, 2 is COIN-M."""


class Refusal(NamedTuple):
    """What can be read of a trade that is refused: its minute may lack it."""

    symbol: str
    """Of the stream's name, in lower case, where the trade itself does not tell."""
    time_ms: int | None


@dataclass(slots=True)
class Decoded:
    """What one chunk of frames held."""

    trades: list[AggTrade] = field(default_factory=list)
    """In order of arrival."""
    columns: TradeColumns | None = None
    """Or all of them as columns."""
    event_ms: int = 0
    """When the exchange sent the last trade; 0 without trades."""
    others: list[bytes] = field(default_factory=list)
    """Frames that are no trades, for `decode_frame`."""
    rejected: int = 0
    """Trade frames that were refused."""
    error: str = ""
    """Why the last of them was."""
    refusals: set[Refusal] = field(default_factory=set)
    """Whose they may have been."""

    @property
    def count(self) -> int:
        """How many trades there are, in either form."""
        return len(self.trades) if self.columns is None else len(self.columns)


class _TradeEnvelope(msgspec.Struct, gc=False):
    data: AggTrade


class _NumberTexts(msgspec.Struct, gc=False):
    """The same trade, its numbers still text."""

    symbol: str = msgspec.field(name="s")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")


class _TextEnvelope(msgspec.Struct, gc=False):
    stream: str
    data: _NumberTexts


class _StreamName(msgspec.Struct, gc=False):
    stream: str = ""


_trade_decoder = msgspec.json.Decoder(_TradeEnvelope)
_text_decoder = msgspec.json.Decoder(_TextEnvelope)
_stream_decoder = msgspec.json.Decoder(_StreamName)


def decode_trades(frames: Iterable[bytes]) -> Decoded:
    """Decode frames one by one. Never raises: what is no good is counted, with the reason."""
    decoded = Decoded()
    for frame in frames:
        if not is_trade(frame):
            decoded.others.append(frame)
            continue
        try:
            decoded.trades.append(_decode_closely(frame))
        except RemoteError as error:
            decoded.rejected += 1
            decoded.error = str(error)
            refusal = _refusal_of(frame)
            if refusal is not None and len(decoded.refusals) < REFUSALS_MAX:
                decoded.refusals.add(refusal)
    if decoded.trades:
        decoded.event_ms = decoded.trades[-1].event_ms
    return decoded


def is_trade(frame: bytes) -> bool:
    """Whether a frame is meant to be a trade, good or not."""
    if b"aggTrade" not in frame:
        return False
    try:
        return _stream_decoder.decode(frame).stream.endswith("@aggTrade")
    except _MALFORMED:
        return frame.startswith(b'{"stream":') and b'@aggTrade"' in frame


def _decode_closely(frame: bytes) -> AggTrade:
    """Decode one trade, looking at everything."""
    texts = _decoded(_text_decoder, frame, "aggTrade frame").data
    _check_symbol(texts.symbol)
    _check_number(texts.price, "price")
    _check_number(texts.quantity, "quantity")
    trade = _decoded(_trade_decoder, frame, "aggTrade frame").data
    _check_trade(trade)
    return trade


def _check_trade(trade: AggTrade) -> None:
    if not trade.price or not trade.quantity:
        raise RemoteError(f"trade {trade.id} of {trade.symbol} has a price or quantity of zero")
    if max(trade.price, trade.quantity) >= VALUE_MAX:
        raise RemoteError(f"trade {trade.id} of {trade.symbol} has a price or quantity beyond all")
    if trade.last_id < trade.first_id:
        raise RemoteError(f"trade {trade.id} of {trade.symbol} ends before it begins")
    if trade.last_id - trade.first_id >= FILLS_MAX:
        fills = trade.last_id - trade.first_id + 1
        raise RemoteError(f"trade {trade.id} of {trade.symbol} claims {fills:,} fills")


_SYMBOL_IN_FRAME: Final = re.compile(rb'"s"\s{0,9}:\s{0,9}"([^"\\]{1,160})"')
_STREAM_IN_FRAME: Final = re.compile(rb'"stream"\s{0,9}:\s{0,9}"([^"\\]{1,160})@aggTrade"')
_TIME_IN_FRAME: Final = re.compile(rb'"T"\s{0,9}:\s{0,9}([0-9]{12,14})\b')


def _refusal_of(frame: bytes) -> Refusal | None:
    """Return what can be read of a trade that makes no sense; None where not even its symbol can.

    The frame may be torn, so it is searched and not parsed.
    """
    named = _SYMBOL_IN_FRAME.search(frame) or _STREAM_IN_FRAME.search(frame)
    if named is None:
        return None
    symbol = named[1].decode("utf-8", "replace")
    try:
        _check_symbol(symbol)
    except RemoteError:
        return None
    timed = _TIME_IN_FRAME.search(frame)
    return Refusal(symbol, int(timed[1]) if timed else None)


# -- Other frames ----------------------------------------------------------------------------------


class MiniTicker(msgspec.Struct, gc=False):
    """One row of `!miniTicker@arr`. Only symbols whose ticker changed are in it."""

    symbol: str
    close: Decimal
    event_ms: int
    market: int = USD_M
    volume: Decimal = Decimal(0)
    """Of the last 24 hours; zero where it is not told."""


@dataclass(frozen=True, slots=True)
class MiniTickers:
    """A frame of `!miniTicker@arr`: there may be several a second."""

    rows: list[MiniTicker]
    rejected: int = 0
    """Rows that were refused."""


class ContractInfo(msgspec.Struct, gc=False):
    """A frame of `!contractInfo`: a listing, a settlement, or, mostly, a bracket change."""

    symbol: str = msgspec.field(name="s")
    contract_type: str = msgspec.field(name="ct")
    delivery_ms: TimeMs = msgspec.field(name="dt")
    onboard_ms: Count = msgspec.field(name="ot")
    status: str = msgspec.field(name="cs")
    event_ms: TimeMs = msgspec.field(name="E")
    market: int = msgspec.field(name="st", default=USD_M)


class MarkPrice(msgspec.Struct, gc=False):
    """A frame of `<symbol>@markPrice@1s`: sent every second, whatever the market does."""

    symbol: str = msgspec.field(name="s")
    event_ms: TimeMs = msgspec.field(name="E")


NO_ID: Final = -1
"""Stands for the id of an answer that names none of ours, which are numbers."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a request. It proves that the request was read, and nothing more."""

    id: int


@dataclass(frozen=True, slots=True)
class WireError:
    """The exchange refused a request; it may close the connection next."""

    code: int
    message: str
    """In its own words, cut and cleaned."""
    id: int = NO_ID


Message = MiniTickers | ContractInfo | Ack | WireError | MarkPrice


class _ErrorBody(msgspec.Struct):
    code: int
    msg: str = ""


class _AnyFrame(msgspec.Struct):
    """Any frame: an event in its envelope, or the answer to a request."""

    stream: str | msgspec.UnsetType = msgspec.UNSET
    data: msgspec.Raw = msgspec.Raw()
    result: msgspec.Raw = msgspec.Raw()
    error: _ErrorBody | None = None
    code: int | msgspec.UnsetType = msgspec.UNSET
    msg: str = ""
    id: int | str | None = None


class _MiniTickerTexts(msgspec.Struct, gc=False):
    symbol: str = msgspec.field(name="s")
    close: str = msgspec.field(name="c")
    event_ms: TimeMs = msgspec.field(name="E")
    market: int = msgspec.field(name="st", default=USD_M)
    volume: str = msgspec.field(name="v", default="0")


_frame_decoder = msgspec.json.Decoder(_AnyFrame)
_rows_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_mini_ticker_decoder = msgspec.json.Decoder(_MiniTickerTexts)
_contract_info_decoder = msgspec.json.Decoder(ContractInfo)
_mark_price_decoder = msgspec.json.Decoder(MarkPrice)
_any_decoder = msgspec.json.Decoder()


def decode_frame(frame: bytes) -> Message | None:
    """Decode a frame that is no trade; None for a stream that nobody here asks for."""
    if frame.lstrip()[:1] != b"{":
        raise RemoteError(f"frame is no JSON object: {_shown(frame)}")
    envelope = _decoded(_frame_decoder, frame, "frame")
    if isinstance(envelope.stream, str):
        return _decode_event(envelope.stream, bytes(envelope.data))
    request_id = envelope.id if isinstance(envelope.id, int) else NO_ID
    if envelope.error is not None:
        return WireError(envelope.error.code, plain(envelope.error.msg), request_id)
    if isinstance(envelope.code, int):
        return WireError(envelope.code, plain(envelope.msg), request_id)
    return Ack(request_id) if bytes(envelope.result) else None


def _decode_event(stream: str, data: bytes) -> Message | None:
    if stream == "!miniTicker@arr":
        return _decode_mini_tickers(data)
    if stream == "!contractInfo":
        info = _decoded(_contract_info_decoder, data, "contractInfo")
        _check_symbol(info.symbol)
        return info
    if stream.endswith(("@markPrice@1s", "@markPrice")):
        mark = _decoded(_mark_price_decoder, data, "markPrice")
        _check_symbol(mark.symbol)
        return mark
    return None


def _decode_mini_tickers(data: bytes) -> MiniTickers:
    rows: list[MiniTicker] = []
    rejected = 0
    for raw in _decoded(_rows_decoder, data, "miniTicker array"):
        try:
            texts = _decoded(_mini_ticker_decoder, raw, "miniTicker")
            _check_symbol(texts.symbol)
            close = _positive(texts.close, "close")
            volume = _number(texts.volume, "volume")
        except RemoteError:
            rejected += 1
        else:
            rows.append(MiniTicker(texts.symbol, close, texts.event_ms, texts.market, volume))
    return MiniTickers(rows, rejected)


def stream_name(symbol: str, kind: str) -> str:
    """Return the name of a symbol's stream. Only ASCII letters are lowered, as the exchange does.

    A name in upper case would be acknowledged and stay silent.
    """
    return f"{symbol.translate(_ASCII_LOWER)}@{kind}"


def subscribe(names: Sequence[str], request_id: int) -> str:
    """Return the text that asks for streams."""
    return _request("SUBSCRIBE", names, request_id)


def unsubscribe(names: Sequence[str], request_id: int) -> str:
    """Return the text that asks for streams to end."""
    return _request("UNSUBSCRIBE", names, request_id)


def _request(method: str, names: Sequence[str], request_id: int) -> str:
    return msgspec.json.encode({"method": method, "params": list(names), "id": request_id}).decode()


# -- REST bodies -----------------------------------------------------------------------------------


class Contract(msgspec.Struct, frozen=True):
    """One row of exchangeInfo."""

    symbol: str
    pair: str
    contract_type: str = msgspec.field(name="contractType")
    delivery_ms: TimeMs = msgspec.field(name="deliveryDate")
    """2100-12-25 while no delisting is announced."""
    onboard_ms: Count = msgspec.field(name="onboardDate")
    """Start of trading. A ticker may be used again: symbol and this are the identity."""
    status: str
    quote_asset: str = msgspec.field(name="quoteAsset")
    underlying_type: str = msgspec.field(name="underlyingType", default="")
    price_precision: Count = msgspec.field(name="pricePrecision", default=0)
    """Decimals in texts; not the tick size."""
    quantity_precision: Count = msgspec.field(name="quantityPrecision", default=0)


class _ExchangeInfo(msgspec.Struct):
    symbols: list[msgspec.Raw]


class _ServerTime(msgspec.Struct):
    server_ms: TimeMs = msgspec.field(name="serverTime")


class _KlineRow(msgspec.Struct, array_like=True, gc=False):
    open_ms: Count
    open: str
    high: str
    low: str
    close: str
    volume: str
    close_ms: Count
    quote_volume: str
    count: Count
    taker_buy_volume: str
    taker_buy_quote_volume: str


class _AggTradeRow(msgspec.Struct, gc=False):
    id: Id = msgspec.field(name="a")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    first_id: Id = msgspec.field(name="f")
    last_id: Id = msgspec.field(name="l")
    time_ms: TimeMs = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")


class _TickerRow(msgspec.Struct, gc=False):
    symbol: str
    last_price: str = msgspec.field(name="lastPrice")


_exchange_info_decoder = msgspec.json.Decoder(_ExchangeInfo)
_contract_decoder = msgspec.json.Decoder(Contract)
_server_time_decoder = msgspec.json.Decoder(_ServerTime)
_klines_decoder = msgspec.json.Decoder(list[_KlineRow])
_kline_decoder = msgspec.json.Decoder(_KlineRow)
_agg_trades_decoder = msgspec.json.Decoder(list[_AggTradeRow])
_tickers_decoder = msgspec.json.Decoder(list[_TickerRow])
_error_decoder = msgspec.json.Decoder(_ErrorBody)


@dataclass(frozen=True, slots=True)
class ExchangeInfo:
    """An answer of exchangeInfo."""

    contracts: dict[str, Contract]
    """The rows that make sense, by symbol, in the order of the answer."""
    unreadable: frozenset[str] = frozenset()
    """Symbols of rows that do not: nothing is known of them."""
    nameless: int = 0
    """Rows of which not even the symbol can be read."""
    refused: tuple[str, ...] = ()
    """Why rows make no sense: the first few."""

    @property
    def names(self) -> frozenset[str]:
        """All symbols that are named."""
        return self.unreadable.union(self.contracts)


class _Named(msgspec.Struct):
    symbol: str


_named_decoder = msgspec.json.Decoder(_Named)

REASONS_MAX: Final = 20


def decode_exchange_info(body: bytes) -> ExchangeInfo:
    """Return the contracts of exchangeInfo.

    A row that is no good costs no other: it is left out, and its symbol is told of where it can be
    read. A symbol that is named twice keeps its last row. An answer of far too many rows is none.
    """
    contracts: dict[str, Contract] = {}
    unreadable: set[str] = set()
    refused: list[str] = []
    nameless = 0
    for raw in _decoded(_exchange_info_decoder, body, "exchangeInfo").symbols:
        try:
            contract = _decoded(_contract_decoder, raw, "contract")
            _check_symbol(contract.symbol)
        except RemoteError as error:
            if len(refused) < REASONS_MAX:
                refused.append(str(error))
            name = _name_of(raw)
            if name is None:
                nameless += 1
            else:
                unreadable.add(name)
        else:
            contracts[contract.symbol] = contract
        if len(contracts) + len(unreadable) + nameless > CONTRACTS_MAX:
            raise RemoteError(f"exchangeInfo lists more than {CONTRACTS_MAX:,} contracts")
    unreadable.difference_update(contracts)
    return ExchangeInfo(contracts, frozenset(unreadable), nameless, tuple(refused))


def _name_of(row: msgspec.Raw) -> str | None:
    """Return the symbol of a row that makes no sense otherwise; None where it has none."""
    try:
        name = _named_decoder.decode(row).symbol
        _check_symbol(name)
    except (*_MALFORMED, RemoteError):
        return None
    return name


def decode_server_time(body: bytes) -> int:
    """Return the exchange's time, in ms."""
    return _decoded(_server_time_decoder, body, "server time").server_ms


def decode_klines(
    body: bytes, interval: Interval, *, first_ms: int | None = None, last_ms: int | None = None
) -> Klines:
    """Return the official bars of an answer, the one that still runs included, and what is refused.

    RemoteError only where the answer is no list of rows at all. The times are those asked for.
    """
    if len(body) > KLINES_BYTES_MAX:
        raise RemoteError(f"an answer of {len(body):,} bytes is no page of klines")
    return sift(_kline_rows(body), interval, first_ms=first_ms, last_ms=last_ms)


def _kline_rows(body: bytes) -> Iterator[Bar | RefusedRow]:
    """Yield the rows of an answer: each as a bar, or why it is none."""
    try:
        rows = _klines_decoder.decode(body)
    except _MALFORMED:
        # Something is wrong with one of them at least: one by one, then.
        for raw in _decoded(_rows_decoder, body, "klines"):
            try:
                yield _checked(_decoded(_kline_decoder, raw, "kline"))
            except RemoteError as error:
                yield RefusedRow(_open_time_of(raw), str(error))
    else:
        yield from map(_checked, rows)


def _checked(row: _KlineRow) -> Bar | RefusedRow:
    """Return a row as a bar, or why it is none."""
    try:
        return _bar_of(row)
    except RemoteError as error:
        return RefusedRow(row.open_ms, str(error))


def _open_time_of(row: msgspec.Raw) -> int | None:
    """Return the time of a row that is no good otherwise."""
    try:
        values = _any_decoder.decode(row)
    except _MALFORMED:
        return None
    first = values[0] if isinstance(values, list) and values else None
    return first if type(first) is int and 0 <= first <= TIME_MS_MAX else None


def _bar_of(row: _KlineRow) -> Bar:
    bar = Bar(
        row.open_ms,
        row.close_ms + 1,
        _number(row.open, "open"),
        _number(row.high, "high"),
        _number(row.low, "low"),
        _number(row.close, "close"),
        _number(row.volume, "volume"),
        _number(row.quote_volume, "quote volume"),
        row.count,
        _number(row.taker_buy_volume, "taker buy volume"),
        _number(row.taker_buy_quote_volume, "taker buy quote volume"),
        source=Source.OFFICIAL,
    )
    if row.count:
        bar.first = bar.last = row.open_ms
    return bar


def decode_agg_trades(body: bytes, symbol: str) -> list[AggTrade]:
    """Return past trades of a symbol. REST gives no event time: it is the trade's own here."""
    trades = []
    for row in _decoded(_agg_trades_decoder, body, "aggTrades"):
        trade = AggTrade(
            event_ms=row.time_ms,
            id=row.id,
            symbol=symbol,
            price=_number(row.price, "price"),
            quantity=_number(row.quantity, "quantity"),
            first_id=row.first_id,
            last_id=row.last_id,
            time_ms=row.time_ms,
            buyer_is_maker=row.buyer_is_maker,
        )
        _check_trade(trade)
        trades.append(trade)
    return trades


def decode_tickers(body: bytes) -> dict[str, Decimal]:
    """Return the last price by symbol. A symbol that never traded has the price 0: left out."""
    prices = {}
    for row in _decoded(_tickers_decoder, body, "tickers"):
        _check_symbol(row.symbol)
        price = _number(row.last_price, "last price")
        if price:
            prices[row.symbol] = price
    return prices


def decode_error(body: bytes) -> tuple[int, str] | None:
    """Return code and text of an error body, or None where it is something else."""
    try:
        error = _error_decoder.decode(body)
    except _MALFORMED:
        return None
    return error.code, plain(error.msg)


# -- Checks ----------------------------------------------------------------------------------------


def _decoded(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw, what: str) -> T:
    if len(data) > LARGE_BYTES and bytes(data).count(b",") >= VALUES_MAX:
        raise RemoteError(f"{what} has more than {VALUES_MAX:,} values: {_shown(data)}")
    try:
        return decoder.decode(data)
    except _MALFORMED as error:
        raise RemoteError(f"{what} is malformed ({plain(str(error))}): {_shown(data)}") from error


def _shown(data: bytes | msgspec.Raw) -> str:
    """Return the beginning of what was received, safe to print."""
    return repr(plain_body(bytes(memoryview(data)[:400]), 80))


def _check_symbol(symbol: str) -> None:
    """Refuse what cannot be a name: it goes to screens, logs and URLs."""
    name = symbol[: SYMBOL_LENGTH_MAX + 1].replace("_", "")
    harmless = all(
        each.isalnum() if each.isascii() else each.isprintable() and not each.isspace()
        for each in name
    )
    if not name or not harmless or len(symbol) > SYMBOL_LENGTH_MAX:
        shown = _shown(symbol[:80].encode("utf-8", "replace"))
        raise RemoteError(f"{shown} is no name of a symbol")


def _check_number(text: str, what: str) -> None:
    if len(text) > NUMBER_LENGTH_MAX or PLAIN.fullmatch(text) is None:
        shown = ascii(text[:NUMBER_LENGTH_MAX])
        raise RemoteError(f"{what} {shown} is no plain decimal number")


def _number(text: str, what: str) -> Decimal:
    _check_number(text, what)
    return Decimal(text)


def _positive(text: str, what: str) -> Decimal:
    value = _number(text, what)
    if not value:
        raise RemoteError(f"{what} is zero")
    return value
