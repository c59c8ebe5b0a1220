"""REST: endpoints, limits, weights and errors, as measured on the real exchange."""

from __future__ import annotations

import json
from urllib.parse import quote

import httpx
import pytest
import trio

from klagg_trio.sim.klines import DAY_MS, MINUTE_MS
from klagg_trio.sim.market import Market, SimOptions
from klagg_trio.sim.rest import Endpoints

KLINES = "/fapi/v1/klines?symbol=BTCUSDT&interval=1m"


class Clock:
    """A clock that the test sets."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock():
    return Clock(SimOptions().start_ms)


@pytest.fixture
def endpoints(clock):
    return Endpoints(Market(SimOptions(symbols=8)), clock)


def refusal(reply):
    return reply.status, json.loads(reply.body)["code"]


def weight(endpoints, target):
    before = endpoints.weight.used
    reply = endpoints.answer("GET", target)
    assert ("X-MBX-USED-WEIGHT-1M", str(endpoints.weight.used)) in reply.headers
    return endpoints.weight.used - before


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", 5),
        ("&limit=1", 1),
        ("&limit=99", 1),
        ("&limit=100", 1),
        ("&limit=101", 2),
        ("&limit=500", 2),
        ("&limit=501", 5),
        ("&limit=1000", 5),
        ("&limit=1001", 10),
        ("&limit=1500", 10),
        ("&limit=1501", 10),
    ],
)
def test_klines_cost_by_bands_that_include_their_upper_end(endpoints, more, expected):
    """The measured bands; a call without a limit costs 5, a refused one what it asked for."""
    assert weight(endpoints, KLINES + more) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/fapi/v1/time", 1),
        ("/fapi/v1/exchangeInfo", 1),
        ("/fapi/v1/aggTrades?symbol=BTCUSDT", 20),
        ("/fapi/v1/aggTrades?symbol=NONSENSE", 20),
        ("/fapi/v1/ticker/24hr?symbol=BTCUSDT", 1),
        ("/fapi/v1/ticker/24hr", 40),
    ],
)
def test_other_calls_cost_what_they_cost(endpoints, target, expected):
    """Refused calls are charged, too."""
    assert weight(endpoints, target) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/fapi/v1/klines?interval=1m", (400, -1102)),
        ("/fapi/v1/klines?symbol=&interval=1m", (400, -1102)),
        ("/fapi/v1/klines?symbol=BTCUSDT", (400, -1102)),
        ("/fapi/v1/klines?symbol=NONSENSE&interval=1m", (400, -1121)),
        ("/fapi/v1/klines?symbol=BTCUSDT&interval=1s", (400, -1120)),
        ("/fapi/v1/klines?symbol=BTCUSDT&interval=1H", (400, -1120)),
        (KLINES + "&limit=1501", (400, -1130)),
        (KLINES + "&limit=0", (400, -1130)),
        (KLINES + "&limit=many", (400, -1102)),
        (KLINES + "&startTime=2&endTime=1", (400, -1023)),
        ("/fapi/v1/aggTrades?symbol=BTCUSDT&limit=1001", (400, -1130)),
        ("/fapi/v1/aggTrades?symbol=BTCUSDT&startTime=1", (400, -4166)),
        ("/fapi/v1/ticker/24hr?symbol=NOVAUSDT", (400, -1121)),
    ],
)
def test_faulty_requests_are_refused_with_the_exchanges_codes(endpoints, target, expected):
    """Status and code of every refusal that is known."""
    assert refusal(endpoints.answer("GET", target)) == expected


def test_unknown_path_and_method_are_not_answered(endpoints):
    """Nothing but GET on known paths."""
    assert endpoints.answer("GET", "/fapi/v1/klines/").status == 404
    assert endpoints.answer("GET", "//[").status == 404
    assert endpoints.answer("POST", "/fapi/v1/time").status == 405


def test_weight_is_counted_by_the_utc_minute(endpoints, clock):
    """The header falls back when the minute of the exchange's clock is over."""
    clock.now_ms += MINUTE_MS - clock.now_ms % MINUTE_MS - 1
    assert weight(endpoints, KLINES + "&limit=1500") == 10
    clock.now_ms += 1
    endpoints.answer("GET", "/fapi/v1/time")
    assert endpoints.weight.used == 1
    assert endpoints.weight.peak == 10


def test_too_much_weight_is_429_and_going_on_is_418(endpoints, clock):
    """429 says when to come back; those who go on are banned, longer each time."""
    statuses = []
    for _ in range(140):
        reply = endpoints.answer("GET", "/fapi/v1/aggTrades?symbol=BTCUSD_PERP&limit=1")
        statuses.append(reply.status)
    assert statuses == [200] * 120 + [429] * 10 + [418] * 10
    until_ms = clock.now_ms + 2 * MINUTE_MS
    body = json.loads(reply.body)
    assert body["code"] == -1003
    assert f"IP banned until {until_ms}." in body["msg"]
    assert ("Retry-After", "120") in reply.headers
    clock.now_ms = until_ms - 1
    assert endpoints.answer("GET", "/fapi/v1/time").status == 418
    clock.now_ms = until_ms
    assert endpoints.answer("GET", "/fapi/v1/time").status == 200
    for _ in range(140):
        endpoints.answer("GET", "/fapi/v1/aggTrades?symbol=BTCUSD_PERP&limit=1")
    assert endpoints.weight.banned_until_ms == clock.now_ms + 4 * MINUTE_MS


def test_retry_after_of_a_429_is_the_rest_of_the_minute(endpoints, clock):
    """Retry-After leads to the next window."""
    clock.now_ms += MINUTE_MS - clock.now_ms % MINUTE_MS + 15_500
    endpoints.weight.limit = 0
    reply = endpoints.answer("GET", "/fapi/v1/time")
    assert reply.status == 429
    assert ("Retry-After", "45") in reply.headers


def rows(endpoints, more, interval="1m", symbol="BTCUSDT"):
    target = f"/fapi/v1/klines?symbol={quote(symbol)}&interval={interval}{more}"
    reply = endpoints.answer("GET", target)
    assert reply.status == 200
    return json.loads(reply.body)


def test_klines_select_on_open_time_both_ends_inclusive(endpoints, clock):
    """An unaligned start goes up to the next open, an unaligned end down."""
    hour_ms = clock.now_ms // 3_600_000 * 3_600_000
    found = rows(endpoints, f"&startTime={hour_ms}&endTime={hour_ms + 5 * MINUTE_MS}")
    assert [row[0] for row in found] == [hour_ms + n * MINUTE_MS for n in range(6)]
    found = rows(endpoints, f"&startTime={hour_ms + 1}&endTime={hour_ms + 3 * MINUTE_MS - 1}")
    assert [row[0] for row in found] == [hour_ms + MINUTE_MS, hour_ms + 2 * MINUTE_MS]
    assert rows(endpoints, f"&startTime={hour_ms + 1}&endTime={hour_ms + 2}") == []


def test_klines_without_times_are_the_newest_with_the_open_one(endpoints, clock):
    """The last row's close time lies in the future; the default limit is 500."""
    found = rows(endpoints, "")
    assert len(found) == 500
    assert found[-1][6] > clock.now_ms >= found[-1][0]
    assert [type(value) for value in found[-1]] == [int, *[str] * 5, int, str, int, *[str] * 3]


def test_klines_with_a_start_are_the_oldest_and_with_an_end_the_newest(endpoints, clock):
    """startTime=0 finds the listing; end alone goes up to the end."""
    found = rows(endpoints, "&startTime=0&limit=2", "1d")
    assert found[0][0] < clock.now_ms - 30 * DAY_MS
    end_ms = clock.now_ms - 10 * MINUTE_MS
    found = rows(endpoints, f"&endTime={end_ms}&limit=3")
    assert [row[0] for row in found] == [
        end_ms // MINUTE_MS * MINUTE_MS - n * MINUTE_MS for n in (2, 1, 0)
    ]


@pytest.mark.parametrize(
    "more",
    [
        "&endTime=1000",
        "&startTime=0&endTime=1500000000000",
        "&startTime=99999999999999",
        "&endTime=-5",
    ],
)
def test_klines_out_of_reach_are_an_empty_list(endpoints, more):
    """Before the listing and in the future there is nothing, and that is no error."""
    assert rows(endpoints, more) == []


def test_pending_contract_has_no_klines_yet(endpoints):
    """An announced symbol is known and empty."""
    assert rows(endpoints, "", symbol="NOVAUSDT") == []


def test_symbols_may_be_lower_case_or_of_any_script(endpoints):
    """Lower case is understood; other scripts come percent-encoded."""
    assert rows(endpoints, "&limit=2", symbol="btcusdt") == rows(endpoints, "&limit=2")
    assert len(rows(endpoints, "&limit=2", symbol="币安人生USDT")) == 2
    assert len(rows(endpoints, "&limit=2", symbol="BTCUSD_PERP")) == 2


def test_open_kline_grows_between_requests(endpoints, clock):
    """The running bar is a bar of what has happened by now."""
    first = rows(endpoints, "&limit=1")[0]
    clock.now_ms += 10_000
    endpoints._market.advance(clock.now_ms)
    second = rows(endpoints, "&limit=1")[0]
    assert first[0] == second[0]
    assert first[8] < second[8]


def agg_trades(endpoints, more=""):
    reply = endpoints.answer("GET", "/fapi/v1/aggTrades?symbol=BTCUSDT" + more)
    return json.loads(reply.body)


def test_agg_trades_by_id_and_by_time(endpoints, clock):
    """fromId is inclusive, and so are both times; without anything the newest are meant."""
    everything = agg_trades(endpoints, "&limit=1000")
    assert len(everything) > 600
    assert agg_trades(endpoints) == everything[-500:]
    ids = [row["a"] for row in everything]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert agg_trades(endpoints, f"&fromId={ids[7]}&limit=3") == everything[7:10]
    times = f"&startTime={everything[5]['T']}&endTime={everything[20]['T']}&limit=1000"
    found = agg_trades(endpoints, times)
    assert found == [
        row for row in everything if everything[5]["T"] <= row["T"] <= everything[20]["T"]
    ]
    assert set(everything[0]) == {"a", "p", "q", "nq", "f", "l", "T", "m"}
    assert all(row["T"] <= clock.now_ms for row in everything)


def test_exchange_info_tells_what_is_what(endpoints):
    """Perpetuals, quarterlies, shares, the settled and the announced one, and no coin-margined."""
    info = json.loads(endpoints.answer("GET", "/fapi/v1/exchangeInfo").body)
    by_name = {row["symbol"]: row for row in info["symbols"]}
    assert by_name["BTCUSDT"]["pricePrecision"] == 2
    assert by_name["BTCUSDT"]["filters"][0]["tickSize"] == "0.10"
    assert by_name["BTCUSDT"]["deliveryDate"] == 4133404800000
    assert by_name["XAUUSDT"]["contractType"] == "TRADIFI_PERPETUAL"
    assert by_name["BTCUSDT_240927"]["contractType"] == "CURRENT_QUARTER"
    assert by_name["NOVAUSDT"]["status"] == "PENDING_TRADING"
    assert by_name["OLDUSDT"]["status"] == "SETTLING"
    assert "BTCUSD_PERP" not in by_name
    assert "币安人生USDT" in by_name


def test_tickers_have_every_contract_that_trades(endpoints):
    """One row a symbol, with a possible day in it."""
    found = json.loads(endpoints.answer("GET", "/fapi/v1/ticker/24hr").body)
    names = [row["symbol"] for row in found]
    assert "BTCUSDT" in names
    assert "NOVAUSDT" not in names
    for row in found:
        assert float(row["lowPrice"]) <= float(row["lastPrice"]) <= float(row["highPrice"])


async def test_answers_over_memory_and_over_sockets_are_the_same(autojump_clock, make_world):
    """The transport for httpx runs the same code as the servers."""
    world = await make_world()
    async with httpx.AsyncClient(
        base_url="http://127.0.0.1", transport=world.exchange.http_transport()
    ) as client:
        reply = await client.get("/fapi/v1/time")
        assert reply.json() == {"serverTime": world.now_ms()}
        assert reply.headers["x-mbx-used-weight-1m"] == "1"
        symbol = {"symbol": "币安人生USDT", "interval": "1m", "limit": 2}
        reply = await client.get("/fapi/v1/klines", params=symbol)
        assert len(reply.json()) == 2
        await trio.sleep(30)
        reply = await client.get("/fapi/v1/time")
        assert reply.json() == {"serverTime": world.now_ms()}
