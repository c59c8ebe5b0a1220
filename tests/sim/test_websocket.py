"""The websocket protocol, over streams in memory."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from itertools import pairwise

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from klagg_trio.sim import server
from klagg_trio.sim.klines import INTERVALS
from klagg_trio.sim.push import STREAMS_MAX, frame
from klagg_trio.sim.server import SimOptions


async def ends(client):
    """Return code and reason of the close that must come."""
    with pytest.raises(ConnectionClosed) as closed:
        await client.gather(30)
    return closed.value.reason.code, closed.value.reason.reason


@pytest.mark.parametrize(
    ("path", "wrapped"),
    [("/market/stream?streams=btcusdt@aggTrade/ethusdt@aggTrade", True), ("/market/ws", False)],
)
async def test_combined_streams_are_wrapped_and_raw_ones_are_not(
    autojump_clock, world, path, wrapped
):
    """`/stream` puts events into an envelope with the stream's name, `/ws` does not."""
    client = await world.connect(path)
    if not wrapped:
        await client.ask("SUBSCRIBE", ["btcusdt@aggTrade", "ethusdt@aggTrade"])
    found = await client.gather(10)
    assert found
    for each in found:
        event = each["data"] if wrapped else each
        assert event["e"] == "aggTrade"
        if wrapped:
            assert each["stream"] == f"{event['s'].lower()}@aggTrade"


async def test_streams_in_a_path_may_be_percent_encoded(autojump_clock, world):
    """`/market/ws/<a>/<b>` names streams, of any script."""
    name = "%E5%B8%81%E5%AE%89%E4%BA%BA%E7%94%9Fusdt@aggTrade"
    client = await world.connect(f"/market/ws/btcusdt@aggTrade/{name}")
    answer = await client.ask("LIST_SUBSCRIPTIONS")
    assert answer == {"result": ["btcusdt@aggTrade", "币安人生usdt@aggTrade"], "id": 1}
    found = {each["s"] for each in await client.gather(60)}
    assert found == {"BTCUSDT", "币安人生USDT"}


@pytest.mark.parametrize(
    "path",
    [
        "/market/ws/",
        "/market/stream/",
        "/ws/",
        "/junk/ws",
        "/market",
        "/",
        "/market/ws?btcusdt@aggTrade",
        "/market/stream/btcusdt@aggTrade",
    ],
)
async def test_other_paths_are_refused(autojump_clock, world, path):
    """No trailing slash, no query on ws, no junk before."""
    stream = await world.exchange.dialer(world.nursery)("127.0.0.1", 1, False)
    await stream.send_all(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n".encode()
    )
    assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("path", ["/ws", "/stream", "/public/stream", "/private/ws"])
async def test_other_tiers_acknowledge_and_stay_silent(autojump_clock, world, path):
    """The unrouted paths answer every SUBSCRIBE and never deliver."""
    client = await world.connect(path)
    answer = await client.ask("SUBSCRIBE", ["btcusdt@aggTrade", "!miniTicker@arr"], 7)
    assert answer == {"result": None, "id": 7}
    assert await client.gather(120) == []
    listed = await client.ask("LIST_SUBSCRIPTIONS")
    assert listed["result"] == ["btcusdt@aggTrade", "!miniTicker@arr"]


@pytest.mark.parametrize("name", ["BTCUSDT@aggTrade", "nonsense@aggTrade", "btcusdt@nonsense"])
async def test_anything_is_acknowledged_and_what_means_nothing_is_silent(
    autojump_clock, world, name
):
    """An acknowledgement proves nothing; LIST_SUBSCRIPTIONS echoes the name."""
    client = await world.connect()
    assert await client.ask("SUBSCRIBE", [name]) == {"result": None, "id": 1}
    assert await client.gather(60) == []
    assert (await client.ask("LIST_SUBSCRIPTIONS"))["result"] == [name]


async def test_unsubscribe_ends_a_stream_and_is_acknowledged_for_any_name(autojump_clock, world):
    """Only the named stream ends; one that was never there is no error."""
    client = await world.connect()
    await client.ask("SUBSCRIBE", ["btcusdt@aggTrade", "ethusdt@aggTrade"])
    await client.gather(5)
    answer = await client.ask("UNSUBSCRIBE", ["btcusdt@aggTrade", "never@aggTrade"], "text-id")
    assert answer == {"result": None, "id": "text-id"}
    names = {each["stream"] for each in await client.gather(10)}
    assert names == {"ethusdt@aggTrade"}


async def test_combined_property_is_told_and_set(autojump_clock, world):
    """SET_PROPERTY switches the envelope of a running connection."""
    client = await world.connect("/market/ws")
    assert await client.ask("GET_PROPERTY", ["combined"]) == {"result": False, "id": 1}
    assert await client.ask("SET_PROPERTY", ["combined", True]) == {"result": None, "id": 1}
    assert await client.ask("GET_PROPERTY", ["combined"]) == {"result": True, "id": 1}
    await client.ask("SUBSCRIBE", ["btcusdt@aggTrade"])
    assert all("stream" in each for each in await client.gather(5))


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ([1, 2], 2),
        ({"method": "SUBSCRIBE", "params": "btcusdt@aggTrade", "id": 1}, 2),
        ({"method": "SUBSCRIBE", "params": [1], "id": 1}, 2),
        ({"method": "SUBSCRIBE", "params": [], "id": 1.5}, 2),
        ({"method": "DANCE", "params": [], "id": 1}, 2),
        ({"method": "SET_PROPERTY", "params": ["combined", "yes"], "id": 1}, 1),
        ({"method": "SET_PROPERTY", "params": ["colour", True], "id": 1}, 0),
    ],
)
async def test_faulty_requests_are_answered_with_an_error(autojump_clock, world, message, code):
    """The connection lives on after a request that makes no sense."""
    client = await world.connect()
    await client.send(message)
    assert (await client.receive())["error"]["code"] == code
    assert (await client.ask("LIST_SUBSCRIPTIONS"))["result"] == []


async def test_bad_json_is_an_error_and_the_end(autojump_clock, world):
    """Error 3, then the close."""
    client = await world.connect()
    await client.send('{"method":')
    assert (await client.receive())["error"]["code"] == 3
    assert await ends(client) == (1008, "Invalid request")


async def test_the_1025th_stream_is_refused_and_all_are_lost(autojump_clock, world):
    """1,024 streams are carried; one more brings error 4 and a close."""
    client = await world.connect()
    names = [f"name{number}@aggTrade" for number in range(STREAMS_MAX)]
    assert (await client.ask("SUBSCRIBE", names))["result"] is None
    assert (await client.ask("SUBSCRIBE", names[:5]))["result"] is None
    await client.send({"method": "SUBSCRIBE", "params": ["one@aggTrade"], "id": 2})
    assert await client.receive() == {"error": {"code": 4, "msg": "Too many subscriptions"}}
    assert await ends(client) == (1008, "Invalid request")
    await trio.sleep(1)
    assert world.exchange.statistics().connections == 0


async def test_more_than_fifteen_messages_at_once_end_the_connection(autojump_clock, world):
    """Fifteen are answered, the next is the end."""
    client = await world.connect()
    for number in range(16):
        await client.send({"method": "LIST_SUBSCRIPTIONS", "id": number})
    for number in range(15):
        assert await client.receive() == {"result": [], "id": number}
    assert await ends(client) == (1008, "Too many requests")


async def test_five_messages_a_second_are_welcome(autojump_clock, world):
    """A steady rate below ten a second goes on for ever."""
    client = await world.connect()
    for _ in range(60):
        assert (await client.ask("LIST_SUBSCRIPTIONS"))["result"] == []
        await trio.sleep(0.2)


@pytest.mark.slow
async def test_server_pings_with_the_time_and_cuts_off_the_deaf(autojump_clock, world, monkeypatch):
    """A ping comes every 140 to 180 s with a ms timestamp; without a pong the end comes."""
    pings: list[tuple[float, bytes]] = []

    async def remember(connection, event):
        pings.append((trio.current_time(), bytes(event.payload)))

    monkeypatch.setattr(WebSocketConnection, "_handle_ping_event", remember)
    client = await world.connect()
    began = trio.current_time()
    with pytest.raises(ConnectionClosed):
        await client.connection.get_message()
    assert len(pings) == 1
    when, payload = pings[0]
    assert 140 <= when - began <= 181
    assert abs(int(payload) - world.exchange.options.start_ms - when * 1000) < 1000
    assert trio.current_time() - when == pytest.approx(server.PONG_S, abs=1)


@pytest.mark.slow
async def test_pongs_keep_a_connection_alive(autojump_clock, world):
    """A client that answers is served for longer than the deaf one."""
    client = await world.connect()
    await client.ask("SUBSCRIBE", ["!contractInfo"])
    await client.gather(20 * 60)
    assert (await client.ask("LIST_SUBSCRIPTIONS"))["result"] == ["!contractInfo"]


async def test_connection_is_cut_at_the_end_of_its_life(autojump_clock, make_world):
    """24 hours, or what is set."""
    world = await make_world(SimOptions(symbols=3, connection_life_s=90))
    client = await world.connect("/market/ws/btcusdt@aggTrade")
    began = trio.current_time()
    with pytest.raises(ConnectionClosed):
        await client.gather(1000)
    assert trio.current_time() - began == pytest.approx(90, abs=1)


@pytest.mark.slow
async def test_reader_that_does_not_read_is_cut_off(autojump_clock, make_world):
    """What waits for a client is bounded; then it is disconnected, and others are not."""
    world = await make_world(SimOptions(symbols=8, outbox_max=50_000))
    names = [f"{symbol.lower()}@kline_{i}" for symbol in ("BTCUSDT", "ETHUSDT") for i in INTERVALS]
    slow = await world.connect(f"/market/stream?streams={'/'.join(names)}")
    good = await world.connect("/market/stream?streams=btcusdt@aggTrade")
    for _ in range(600):
        await good.gather(1)
        if world.exchange.statistics().connections != 2:
            break
    statistics = world.exchange.statistics()
    assert (statistics.connections, statistics.slow) == (1, 1)
    with pytest.raises(ConnectionClosed):
        await slow.gather(1000)
    assert await good.gather(5)


async def test_agg_trades_are_told_once_in_order_soon_after_their_event_time(autojump_clock, world):
    """Ids have no gap, and E is at most one step old when the event arrives."""
    client = await world.connect("/market/ws/btcusdt@aggTrade")
    last = 0
    with trio.move_on_after(30):
        while True:
            event = await client.receive()
            assert set(event) == set("eEaspqnflTm") - {"n"} | {"nq", "st"}
            assert event["a"] == (last + 1 if last else event["a"])
            assert 0 <= world.now_ms() - event["E"] <= 200
            assert event["T"] + 100 <= event["E"]
            assert Decimal(event["nq"]) <= Decimal(event["q"])
            last = event["a"]
    assert last


async def test_mini_tickers_are_the_changed_ones_of_every_market(autojump_clock, world):
    """Once a second, in several frames, other markets and kinds among them, quiet ones absent."""
    client = await world.connect("/market/ws/!miniTicker@arr")
    frames = await client.gather(60)
    assert 60 <= len(frames) <= 121
    rows = [row for each in frames for row in each]
    assert {row["e"] for row in rows} == {"24hrMiniTicker"}
    assert {row["st"] for row in rows} == {1, 2}
    names = {row["s"] for row in rows}
    assert {"BTCUSDT", "XAUUSDT", "BTCUSD_PERP"} <= names
    assert "OLDUSDT" not in names
    for row in rows:
        assert Decimal(row["l"]) <= Decimal(row["c"]) <= Decimal(row["h"])


async def test_listing_shows_in_contract_info_and_mini_ticker_at_once(autojump_clock, world):
    """The first row of a fresh contract has its starting price and no volume."""
    client = await world.connect("/market/stream?streams=!miniTicker@arr/!contractInfo")
    frames = await client.gather(140)
    told = [
        each["data"]
        for each in frames
        if each["stream"] == "!contractInfo" and each["data"]["s"] == "NOVAUSDT"
    ]
    assert [each["cs"] for each in told if "bks" not in each] == ["PENDING_TRADING", "TRADING"]
    assert {each["st"] for each in told} == {1}
    fresh = [
        row
        for each in frames
        if each["stream"] == "!miniTicker@arr"
        for row in each["data"]
        if row["s"] == "NOVAUSDT"
    ]
    assert len(fresh) == 1
    assert 0 <= fresh[0]["E"] - told[-1]["ot"] <= 1100
    assert Decimal(fresh[0]["v"]) == 0
    assert Decimal(fresh[0]["c"]) == Decimal(fresh[0]["o"]) > 0
    noise = [each for each in frames if each["stream"] == "!contractInfo" and "bks" in each["data"]]
    assert noise


async def test_mark_price_comes_every_second_even_for_the_quiet(autojump_clock, world):
    """The proof of life of a connection whose symbols rest."""
    client = await world.connect("/market/ws/1000pepeusdt@markPrice@1s")
    found = await client.gather(60)
    assert 59 <= len(found) <= 61
    assert {each["s"] for each in found} == {"1000PEPEUSDT"}


@pytest.mark.slow
async def test_klines_are_told_when_they_change_and_when_they_are_over(autojump_clock, world):
    """Four times a second at most; `x` is true about two seconds after the end, once, with the
    bar that REST gives."""
    client = await world.connect("/market/ws/ethusdt@kline_1m/ethusdt@kline_1M/ethusdt@kline_5m")
    found = await client.gather(200)
    closed = [each for each in found if each["k"]["x"]]
    assert Counter(each["k"]["i"] for each in closed) == {"1m": 3, "5m": 1, "1M": 1}
    for each in closed:
        bar = each["k"]
        assert 2000 <= each["E"] - bar["T"] <= 2500
        target = f"/fapi/v1/klines?symbol=ETHUSDT&interval={bar['i']}&startTime={bar['t']}&limit=1"
        row = world.get(target)[0]
        assert row[:-1] == [bar[key] for key in ("t", *"ohlcv", "T", "q", "n", "V", "Q")]
    opened = [each for each in found if not each["k"]["x"] and each["k"]["i"] == "1m"]
    per_second = Counter(each["E"] // 1000 for each in opened)
    assert max(per_second.values()) <= 4
    assert all(a["k"] != b["k"] for a, b in pairwise(opened))


async def test_single_tickers_come_by_the_clock(autojump_clock, world):
    """`<s>@miniTicker` and `<s>@ticker`, every two seconds."""
    client = await world.connect("/market/ws/btcusdt@miniTicker/btcusdt@ticker")
    kinds = Counter(each["e"] for each in await client.gather(20))
    assert kinds == {"24hrMiniTicker": 10, "24hrTicker": 10}


@pytest.mark.slow
async def test_reused_ticker_is_heard_by_those_who_wait_for_it(autojump_clock, world):
    """Who is subscribed to a name hears the contract that has it now."""
    market = world.exchange.market
    market.delist("ETHUSDT", market.now_ms + 150_000)
    fresh = market.relist("ETHUSDT", market.now_ms + 300_000)
    client = await world.connect("/market/ws/ethusdt@aggTrade")
    found = await client.gather(500)
    assert any(each["T"] < fresh.onboard_ms for each in found)
    assert any(each["T"] >= fresh.onboard_ms for each in found)


def minutes_of(events):
    """Return, by symbol and minute, the nine values that the aggregates' own times make."""
    bars: dict[tuple[str, int], list] = {}
    for event in events:
        price, quantity = Decimal(event["p"]), Decimal(event["q"])
        count, quote = event["l"] - event["f"] + 1, price * quantity
        bought = not event["m"]
        bar = bars.setdefault(
            (event["s"], event["T"] // 60_000 * 60_000),
            [price, price, price, price, Decimal(0), Decimal(0), 0, Decimal(0), Decimal(0)],
        )
        bar[1:4] = max(bar[1], price), min(bar[2], price), price
        bar[4:7] = bar[4] + quantity, bar[5] + quote, bar[6] + count
        bar[7:9] = bar[7] + quantity * bought, bar[8] + quote * bought
    return bars


@pytest.mark.slow
@pytest.mark.parametrize("straddle", [False, True])
async def test_bars_of_the_stream_are_the_official_ones(autojump_clock, make_world, straddle):
    """With windows that end at minute boundaries all nine values are equal; with those of the real
    exchange some differ from minute to minute, and the sums agree over time."""
    world = await make_world(SimOptions(symbols=12, straddle=straddle))
    symbols = world.exchange.symbols_now()
    names = "/".join(f"{symbol.lower()}@aggTrade" for symbol in symbols if symbol.isascii())
    client = await world.connect(f"/market/ws/{names}")
    bars = minutes_of(await client.gather(8 * 60))
    first_ms, last_ms = min(key[1] for key in bars), max(key[1] for key in bars)
    differing = 0
    told, official = Counter(), Counter()
    for (symbol, open_ms), bar in bars.items():
        if not first_ms < open_ms < last_ms:
            continue
        target = f"/fapi/v1/klines?symbol={symbol}&interval=1m&startTime={open_ms}&limit=1"
        row = world.get(target)[0]
        values = [Decimal(row[at]) for at in (1, 2, 3, 4, 5, 7, 8, 9, 10)]
        differing += values != bar
        told[symbol] += bar[6]
        official[symbol] += values[6]
    assert told.total() > 3000
    assert bool(differing) is straddle
    for symbol, count in told.items():
        assert abs(count - official[symbol]) <= (20 if straddle else 0)


@pytest.mark.slow
async def test_same_seed_sends_the_same_bytes(autojump_clock, make_world):
    """Two exchanges of one seed tell two clients the same, in the same order."""
    told = []
    for _ in range(2):
        world = await make_world(SimOptions(symbols=6, seed=9))
        path = "/market/stream?streams=btcusdt@aggTrade/!miniTicker@arr/ethusdt@kline_3m"
        client = await world.connect(path)
        texts = []
        with trio.move_on_after(70):
            while True:
                texts.append(await client.connection.get_message())
        told.append(texts)
    assert told[0] == told[1]
    assert len(told[0]) > 100


def test_frames_have_the_length_that_their_header_says():
    """One byte, two or eight for the length, and no mask."""
    for size in (0, 125, 126, 65_535, 65_536):
        data = frame(b"x" * size)
        assert data[0] == 0x81
        header = {True: 2, False: 4 if size < 65_536 else 10}[size < 126]
        assert len(data) == size + header


async def test_garbage_from_a_client_harms_nobody_else(autojump_clock, world):
    """Bytes that are no websocket end that connection and nothing more."""
    good = await world.connect("/market/ws/btcusdt@aggTrade")
    bad = await world.connect()
    await bad.stream.send_all(b"\xff\xfe garbage")
    stream = await world.exchange.dialer(world.nursery)("h", 1, False)
    await stream.send_all(b"GET / nonsense\r\n\r\n\x00\x01")
    gone = await world.connect()
    await gone.stream.aclose()
    assert await good.gather(20)
    assert world.exchange.statistics().connections == 1
    assert json.loads(world.exchange.answer("GET", "/fapi/v1/time").body)
