"""The exchange's REST endpoints: a request's target in, status, headers and body out. No I/O.

Rules and figures are those measured on the real exchange: weight windows are UTC minutes, refused
calls cost what answered ones do, the limit bands of klines include their upper end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl

from klagg_trio.sim import payloads
from klagg_trio.sim.klines import DAY_MS, INTERVALS, MINUTE_MS, decimal_text
from klagg_trio.sim.market import Market, Tape
from klagg_trio.sim.universe import COIN_M, Instrument

KLINES_MAX: Final = 1_500
AGGREGATES_MAX: Final = 1_000
LIMIT_DEFAULT: Final = 500
REACH_MS: Final = 2 * DAY_MS
"""How far back aggTrades goes."""

_WARNINGS_MAX: Final = 10
"""Requests answered with 429 in one minute before the address is banned."""

_BAN_MS: Final = 2 * MINUTE_MS
_BAN_MAX_MS: Final = 3 * DAY_MS

_WHOLE: Final = re.compile(r"-?[0-9]{1,15}")


@dataclass(slots=True)
class Reply:
    """An answer, and how it is to be spoilt on its way."""

    status: int
    body: bytes
    headers: list[tuple[str, str]] = field(default_factory=list)
    content_type: str = "application/json"
    delay_s: float = 0.0
    """Simulated seconds before the first byte."""
    cut_at: int | None = None
    """Close the connection after so many bytes of the body; what is promised is the whole."""
    drip_s: float = 0.0
    """Seconds over which the body is sent, in pieces."""


class Refusal(Exception):
    """A request that the exchange refuses."""

    def __init__(self, code: int, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.status = status


def _mandatory(name: str) -> Refusal:
    return Refusal(
        -1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed."
    )


class WeightWindow:
    """Used weight of the running UTC minute, and what becomes of those who ignore the limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.peak = 0
        """The most that was used in any one minute."""
        self.banned_until_ms = 0
        self._minute = 0
        self._warnings = 0
        self._ban_ms = _BAN_MS

    def spend(self, weight: int, now_ms: int) -> Refusal | None:
        """Charge a request; return why it must not be answered, if so."""
        minute = now_ms // MINUTE_MS
        if minute != self._minute:
            self._minute, self.used, self._warnings = minute, 0, 0
        self.used += weight
        self.peak = max(self.peak, self.used)
        if now_ms < self.banned_until_ms:
            return self._ban_text()
        if self.used <= self.limit:
            return None
        self._warnings += 1
        if self._warnings > _WARNINGS_MAX:
            self.ban(now_ms, self._ban_ms)
            self._ban_ms = min(2 * self._ban_ms, _BAN_MAX_MS)
            return self._ban_text()
        return Refusal(
            -1003,
            f"Too many requests; current limit is {self.limit} requests per minute. "
            "Please use the websocket for live updates to avoid polling the API.",
            429,
        )

    def ban(self, now_ms: int, length_ms: int) -> None:
        """Refuse everything until then."""
        self.banned_until_ms = now_ms + length_ms

    def _ban_text(self) -> Refusal:
        return Refusal(
            -1003,
            f"Way too many requests; IP banned until {self.banned_until_ms}. "
            "Please use the websocket for live updates to avoid bans.",
            418,
        )

    def retry_after_s(self, now_ms: int) -> int:
        """Return what Retry-After says: to the end of the ban, or of the minute."""
        end_ms = max(self.banned_until_ms, (now_ms // MINUTE_MS + 1) * MINUTE_MS)
        return max(1, -(-(end_ms - now_ms) // 1000))


Query = Mapping[str, str]


class Words(Protocol):
    """What an exchange that lies says in place of what is so."""

    def told_ms(self, now_ms: int) -> int:
        """Return what /time says."""

    def contracts(
        self, shown: list[Instrument], make: Callable[[Instrument], dict[str, object]]
    ) -> list[object] | None:
        """Return the rows of exchangeInfo, each made by `make`; None for the true ones."""

    def rows(
        self, tape: Tape, interval: str, spans: list[tuple[int, int]], rows: list[str]
    ) -> list[str]:
        """Return the rows of klines, given those that are so."""


class Endpoints:
    """Answers requests from the market's present."""

    def __init__(self, market: Market, now_ms: Callable[[], int]) -> None:
        self.weight = WeightWindow(market.options.weight_limit)
        self.requests: dict[str, int] = {}
        """Requests by path."""
        self.statuses: dict[int, int] = {}
        """Answers by status."""
        self.words: Words | None = None
        """Set by faults that lie."""
        self._market = market
        self._now_ms = now_ms
        self._listed: tuple[tuple[object, ...], str] = ((), "")
        """The symbols of exchangeInfo as JSON, and what they were made from."""
        self._routes: dict[str, tuple[Callable[[Query], int], Callable[[Query], str]]] = {
            "/fapi/v1/ping": (lambda query: 1, lambda query: "{}"),
            "/fapi/v1/time": (lambda query: 1, self._time),
            "/fapi/v1/exchangeInfo": (lambda query: 1, self._exchange_info),
            "/fapi/v1/klines": (_klines_weight, self._klines),
            "/fapi/v1/aggTrades": (lambda query: 20, self._agg_trades),
            "/fapi/v1/ticker/24hr": (lambda query: 1 if "symbol" in query else 40, self._tickers),
            "/fapi/v1/ticker/price": (lambda query: 1 if "symbol" in query else 2, self._prices),
        }

    def answer(self, method: str, target: str) -> Reply:
        """Answer one request; `target` is path and query as they stand in the request line."""
        reply = self._answer(method, target)
        self.statuses[reply.status] = self.statuses.get(reply.status, 0) + 1
        return reply

    def _answer(self, method: str, target: str) -> Reply:
        path, _, text = target.partition("?")
        route = self._routes.get(path)
        known = path if route else "other"
        self.requests[known] = self.requests.get(known, 0) + 1
        if route is None or method != "GET":
            return Reply(
                404 if route is None else 405, b"<html>nothing here</html>", [], "text/html"
            )
        query = dict(parse_qsl(text, keep_blank_values=True))
        now_ms = self._now_ms()
        weigh, make = route
        refusal = self.weight.spend(weigh(query), now_ms)
        headers = [("X-MBX-USED-WEIGHT-1M", str(self.weight.used))]
        if refusal is None:
            try:
                return Reply(200, make(query).encode(), headers)
            except Refusal as error:
                refusal = error
        if refusal.status in (418, 429):
            headers.append(("Retry-After", str(self.weight.retry_after_s(now_ms))))
        return Reply(refusal.status, error_body(refusal.code, refusal.text), headers)

    # -- Endpoints ---------------------------------------------------------------------------

    def _time(self, query: Query) -> str:
        now_ms = self._now_ms()
        told_ms = now_ms if self.words is None else self.words.told_ms(now_ms)
        return f'{{"serverTime":{told_ms}}}'

    def _exchange_info(self, query: Query) -> str:
        shown = [each for each in self._market.current.values() if each.market != COIN_M]
        head = json.dumps({**_INFO_HEAD, "serverTime": self._now_ms()}, **_COMPACT)
        told = None if self.words is None else self.words.contracts(shown, _contract)
        if told is not None:
            return f'{head[:-1]},"symbols":{json.dumps(told, **_COMPACT)}}}'
        made_from = tuple((each.number, each.status, each.delivery_ms) for each in shown)
        if self._listed[0] != made_from:
            text = json.dumps([_contract(each) for each in shown], **_COMPACT)
            self._listed = (made_from, text)
        return f'{head[:-1]},"symbols":{self._listed[1]}}}'

    def _klines(self, query: Query) -> str:
        tape = self._tape(query)
        interval = query.get("interval")
        if not interval:
            raise _mandatory("interval")
        if interval not in INTERVALS:
            raise Refusal(-1120, "Invalid interval.")
        limit = _limit(query, KLINES_MAX)
        start_ms, end_ms = _times(query)
        spans = self._market.spans(tape, interval, start_ms, end_ms, limit)
        rows = self._market.rows(tape, interval, spans)
        if self.words is not None:
            rows = self.words.rows(tape, interval, spans, rows)
        return f"[{','.join(rows)}]"

    def _agg_trades(self, query: Query) -> str:
        tape = self._tape(query)
        limit = _limit(query, AGGREGATES_MAX)
        start_ms, end_ms = _times(query)
        from_id = _whole(query, "fromId")
        now_ms = self._now_ms()
        for edge_ms in (start_ms, end_ms):
            if edge_ms is not None and edge_ms < now_ms - REACH_MS:
                raise Refusal(-4166, "Search window is restricted to recent 2 days only.")
        found = list(tape.published)
        if from_id is not None:
            found = [trade for trade in found if trade.id >= from_id]
        if start_ms is not None:
            found = [trade for trade in found if trade.time_ms >= start_ms]
        if end_ms is not None:
            found = [trade for trade in found if trade.time_ms <= end_ms]
        from_oldest = from_id is not None or start_ms is not None
        found = found[:limit] if from_oldest else found[-limit:]
        rows = [payloads.agg_trade_row(tape.instrument, trade) for trade in found]
        return f"[{','.join(rows)}]"

    def _tickers(self, query: Query) -> str:
        now_ms = self._market.now_ms

        def row(tape: Tape) -> str:
            close = tape.last_price(now_ms)
            return payloads.ticker_row(tape.instrument, now_ms, close, tape.day(now_ms))

        if "symbol" in query:
            return row(self._trading(query))
        return f"[{','.join(row(tape) for tape in self._shown())}]"

    def _prices(self, query: Query) -> str:
        now_ms = self._market.now_ms

        def row(tape: Tape) -> str:
            instrument = tape.instrument
            price = decimal_text(tape.last_price(now_ms), instrument.price_precision)
            return f'{{"symbol":"{instrument.symbol}","price":"{price}","time":{now_ms}}}'

        if "symbol" in query:
            return row(self._trading(query))
        return f"[{','.join(row(tape) for tape in self._shown())}]"

    def _shown(self) -> list[Tape]:
        """Return the tapes of the contracts that have begun to trade, of this market only."""
        return [
            self._market.tapes[each.number]
            for each in self._market.current.values()
            if each.market != COIN_M and each.onboard_ms <= self._market.now_ms
        ]

    def _trading(self, query: Query) -> Tape:
        tape = self._tape(query)
        if tape.instrument.onboard_ms > self._market.now_ms:
            raise Refusal(-1121, "Invalid symbol.")
        return tape

    def _tape(self, query: Query) -> Tape:
        symbol = query.get("symbol")
        if not symbol:
            raise _mandatory("symbol")
        tape = self._market.tape_of(symbol.upper())
        if tape is None:
            raise Refusal(-1121, "Invalid symbol.")
        return tape


def error_body(code: int, text: str) -> bytes:
    """Return an error as the exchange words it."""
    return json.dumps({"code": code, "msg": text}, **_COMPACT).encode()


_COMPACT: Final[dict[str, Any]] = {"ensure_ascii": False, "separators": (",", ":")}


def _klines_weight(query: Query) -> int:
    """Charge by the measured bands; a limit that cannot be read costs what a missing one does."""
    text = query.get("limit", "")
    limit = int(text) if _WHOLE.fullmatch(text) else LIMIT_DEFAULT + 1
    for top, weight in ((100, 1), (500, 2), (1_000, 5)):
        if limit <= top:
            return weight
    return 10


def _whole(query: Query, name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not _WHOLE.fullmatch(text):
        raise _mandatory(name)
    return int(text)


def _limit(query: Query, most: int) -> int:
    limit = _whole(query, "limit")
    if limit is None:
        return LIMIT_DEFAULT
    if not 1 <= limit <= most:
        raise Refusal(-1130, "Data sent for parameter 'limit' is not valid.")
    return limit


def _times(query: Query) -> tuple[int | None, int | None]:
    start_ms, end_ms = _whole(query, "startTime"), _whole(query, "endTime")
    if start_ms is not None and end_ms is not None and start_ms > end_ms:
        raise Refusal(-1023, "Start time is greater than end time.")
    return start_ms, end_ms


# -- exchangeInfo ------------------------------------------------------------------------------

_INFO_HEAD: Final = {
    "timezone": "UTC",
    "serverTime": 0,
    "futuresType": "U_MARGINED",
    "rateLimits": [
        {
            "rateLimitType": "REQUEST_WEIGHT",
            "interval": "MINUTE",
            "intervalNum": 1,
            "limit": 2400,
        },
        {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": 1200},
        {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 300},
    ],
    "exchangeFilters": [],
    "assets": [
        {"asset": "USDT", "marginAvailable": True, "autoAssetExchange": "-10000"},
        {"asset": "BTC", "marginAvailable": True, "autoAssetExchange": "-0.10000000"},
        {"asset": "USDC", "marginAvailable": True, "autoAssetExchange": "-10000"},
    ],
}


def _contract(each: Instrument) -> dict[str, object]:
    """Return one row of exchangeInfo."""
    tick = decimal_text(each.tick, each.price_precision)
    step = decimal_text(1, each.quantity_precision)
    most = decimal_text(10 ** (each.quantity_precision + 7), each.quantity_precision)
    return {
        "symbol": each.symbol,
        "pair": each.pair,
        "contractType": each.contract_type,
        "deliveryDate": each.delivery_ms,
        "onboardDate": each.onboard_ms,
        "status": each.status,
        "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000",
        "baseAsset": each.base_asset,
        "quoteAsset": each.quote_asset,
        "marginAsset": each.quote_asset,
        "pricePrecision": each.price_precision,
        "quantityPrecision": each.quantity_precision,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": each.underlying_type,
        "underlyingSubType": [],
        "triggerProtect": "0.0500",
        "liquidationFee": "0.012500",
        "marketTakeBound": "0.05",
        "maxMoveOrderLimit": 10000,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": tick,
                "maxPrice": decimal_text(each.price * 100, each.price_precision),
                "tickSize": tick,
            },
            {"maxQty": most, "filterType": "LOT_SIZE", "minQty": step, "stepSize": step},
            {"filterType": "MARKET_LOT_SIZE", "stepSize": step, "maxQty": most, "minQty": step},
            {"limit": 200, "filterType": "MAX_NUM_ORDERS"},
            {"notional": "5", "filterType": "MIN_NOTIONAL"},
            {
                "multiplierDecimal": "4",
                "multiplierUp": "1.0500",
                "filterType": "PERCENT_PRICE",
                "multiplierDown": "0.9500",
            },
            {"filterType": "POSITION_RISK_CONTROL", "positionControlSide": "NONE"},
        ],
        "orderTypes": ["LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT"],
        "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
        "permissionSets": ["GRID", "COPY"],
    }
