"""What goes over the wire: the exchange's JSON texts, written field by field in its order."""

from __future__ import annotations

from typing import Final

from klagg_trio.sim.klines import HOUR_MS, Part, decimal_text
from klagg_trio.sim.market import Aggregate, Change
from klagg_trio.sim.universe import Instrument

_FUNDING_MS: Final = 8 * HOUR_MS


def ascii_lower(symbol: str) -> str:
    """Lower the ASCII letters of a name and leave every other character as it is."""
    return "".join(chr(ord(each) | 32) if "A" <= each <= "Z" else each for each in symbol)


def agg_trade(instrument: Instrument, trade: Aggregate) -> str:
    """Return an aggTrade event."""
    price = decimal_text(trade.price, instrument.price_precision)
    quantity = decimal_text(trade.quantity, instrument.quantity_precision)
    normal = (
        quantity
        if trade.normal_quantity == trade.quantity
        else decimal_text(trade.normal_quantity, instrument.quantity_precision)
    )
    maker = "true" if trade.buyer_is_maker else "false"
    return (
        f'{{"e":"aggTrade","E":{trade.event_ms},"a":{trade.id},"s":"{instrument.symbol}",'
        f'"p":"{price}","q":"{quantity}","nq":"{normal}","f":{trade.first_id},'
        f'"l":{trade.last_id},"T":{trade.time_ms},"m":{maker},"st":{instrument.market}}}'
    )


def agg_trade_row(instrument: Instrument, trade: Aggregate) -> str:
    """Return an aggregate as REST has it."""
    decimals = instrument.quantity_precision
    maker = "true" if trade.buyer_is_maker else "false"
    return (
        f'{{"a":{trade.id},"p":"{decimal_text(trade.price, instrument.price_precision)}",'
        f'"q":"{decimal_text(trade.quantity, decimals)}",'
        f'"nq":"{decimal_text(trade.normal_quantity, decimals)}",'
        f'"f":{trade.first_id},"l":{trade.last_id},"T":{trade.time_ms},"m":{maker}}}'
    )


def kline(
    instrument: Instrument,
    interval: str,
    span: tuple[int, int],
    part: Part,
    *,
    ids: tuple[int, int],
    event_ms: int,
    closed: bool,
) -> str:
    """Return a kline event."""
    price, quantity = instrument.decimals
    quote = price + quantity
    return (
        f'{{"e":"kline","E":{event_ms},"s":"{instrument.symbol}","k":{{"t":{span[0]},'
        f'"T":{span[1] - 1},"s":"{instrument.symbol}","i":"{interval}","f":{ids[0]},"L":{ids[1]},'
        f'"o":"{decimal_text(part.open, price)}","c":"{decimal_text(part.close, price)}",'
        f'"h":"{decimal_text(part.high, price)}","l":"{decimal_text(part.low, price)}",'
        f'"v":"{decimal_text(part.volume, quantity)}","n":{part.count},'
        f'"x":{"true" if closed else "false"},"q":"{decimal_text(part.quote_volume, quote)}",'
        f'"V":"{decimal_text(part.taker_buy_volume, quantity)}",'
        f'"Q":"{decimal_text(part.taker_buy_quote_volume, quote)}","B":"0"}}}}'
    )


def mini_ticker(instrument: Instrument, event_ms: int, close: int, day_text: str) -> str:
    """Return a miniTicker row; `day_text` is that of `day_fields`."""
    return (
        f'{{"e":"24hrMiniTicker","E":{event_ms},"s":"{instrument.symbol}",'
        f'"c":"{decimal_text(close, instrument.price_precision)}",{day_text}}}'
    )


def day_fields(instrument: Instrument, day: Part, high: int, low: int) -> str:
    """Return the part of a miniTicker row that changes once a minute at most."""
    price, quantity = instrument.decimals
    return (
        f'"o":"{decimal_text(day.open, price)}","h":"{decimal_text(high, price)}",'
        f'"l":"{decimal_text(low, price)}","v":"{decimal_text(day.volume, quantity)}",'
        f'"q":"{decimal_text(day.quote_volume, price + quantity)}","ps":"{instrument.pair}",'
        f'"st":{instrument.market}'
    )


def ticker(instrument: Instrument, event_ms: int, close: int, day: Part) -> str:
    """Return a 24 h ticker event."""
    price, quantity = instrument.decimals
    return (
        f'{{"e":"24hrTicker","E":{event_ms},"s":"{instrument.symbol}",'
        f'"p":"{_signed(close - day.open, price)}","P":"{_percent(close, day.open)}",'
        f'"w":"{decimal_text(_mean_price(day, close), price)}",'
        f'"c":"{decimal_text(close, price)}","Q":"{decimal_text(1, quantity)}",'
        f'"o":"{decimal_text(day.open, price)}","h":"{decimal_text(max(day.high, close), price)}",'
        f'"l":"{decimal_text(min(day.low, close), price)}",'
        f'"v":"{decimal_text(day.volume, quantity)}",'
        f'"q":"{decimal_text(day.quote_volume, price + quantity)}",'
        f'"O":{event_ms - 24 * HOUR_MS},"C":{event_ms},"F":0,"L":{day.count},"n":{day.count},'
        f'"ps":"{instrument.pair}","st":{instrument.market}}}'
    )


def ticker_row(instrument: Instrument, now_ms: int, close: int, day: Part) -> str:
    """Return a 24 h ticker as REST has it."""
    price, quantity = instrument.decimals
    return (
        f'{{"symbol":"{instrument.symbol}","priceChange":"{_signed(close - day.open, price)}",'
        f'"priceChangePercent":"{_percent(close, day.open)}",'
        f'"weightedAvgPrice":"{decimal_text(_mean_price(day, close), price)}",'
        f'"lastPrice":"{decimal_text(close, price)}","lastQty":"{decimal_text(1, quantity)}",'
        f'"openPrice":"{decimal_text(day.open, price)}",'
        f'"highPrice":"{decimal_text(max(day.high, close), price)}",'
        f'"lowPrice":"{decimal_text(min(day.low, close), price)}",'
        f'"volume":"{decimal_text(day.volume, quantity)}",'
        f'"quoteVolume":"{decimal_text(day.quote_volume, price + quantity)}",'
        f'"openTime":{now_ms - 24 * HOUR_MS},"closeTime":{now_ms},"firstId":0,'
        f'"lastId":{day.count},"count":{day.count}}}'
    )


def _mean_price(day: Part, close: int) -> int:
    return day.quote_volume // day.volume if day.volume else close


def _signed(value: int, decimals: int) -> str:
    text = decimal_text(abs(value), decimals)
    return f"-{text}" if value < 0 else text


def _percent(close: int, opened: int) -> str:
    return _signed((close - opened) * 100_000 // opened, 3)


def mark_price(instrument: Instrument, event_ms: int, price: int) -> str:
    """Return a markPrice event."""
    text = decimal_text(price, instrument.price_precision)
    return (
        f'{{"e":"markPriceUpdate","E":{event_ms},"s":"{instrument.symbol}","p":"{text}",'
        f'"ap":"{text}","i":"{text}","P":"{text}","r":"0.00010000",'
        f'"T":{(event_ms // _FUNDING_MS + 1) * _FUNDING_MS},"st":{instrument.market}}}'
    )


def contract_info(change: Change) -> str:
    """Return a contractInfo event; the brackets are told only where they changed."""
    told = change.instrument
    brackets = (
        '"bks":[{"bs":1,"bnf":0,"bnc":5000,"mmr":0.01,"cf":0,"mi":21,"ma":50},'
        '{"bs":2,"bnf":5000,"bnc":25000,"mmr":0.025,"cf":75,"mi":11,"ma":20}],'
        if change.brackets
        else ""
    )
    return (
        f'{{"e":"contractInfo","E":{change.at_ms},"s":"{told.symbol}","ct":"{told.contract_type}",'
        f'"dt":{told.delivery_ms},"ot":{told.onboard_ms},"cs":"{told.status}",{brackets}'
        f'"st":{told.market}}}'
    )
