"""What the simulator can make go wrong, and that it does so by seed and on demand."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import httpx
import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed

from klagg_trio.sim import faults as names
from klagg_trio.sim.faults import HARSH, MILD, NONE, FaultRates, Faults, SkewedClock, drawn, garbage
from klagg_trio.sim.klines import MINUTE_MS
from klagg_trio.sim.server import SimExchange, SimOptions

STREAM = "/market/ws/btcusdt@aggTrade"
HANDSHAKE = (
    f"GET {STREAM} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
).encode()


async def ids_for(client, seconds):
    """Return aggregate ids in the order in which they come."""
    return [event["a"] for event in await client.gather(seconds)]


async def prices_for(client, seconds):
    """Return prices; what is no plain event is a ValueError, KeyError or TypeError."""
    prices = []
    for event in await client.gather(seconds):
        if event["s"] != "BTCUSDT" or event["p"] in ("NaN", "-1.5", "1e5"):
            raise ValueError
        prices.append(event["p"])
    return prices


async def drained(stream):
    """Read to the end."""
    while await stream.receive_some():
        pass


def broken_pairs(ids):
    return sum(b != a + 1 for a, b in pairwise(ids))


@pytest.fixture
async def talk(autojump_clock, world):
    """A client that hears trades, and a function that makes it suffer."""
    client = await world.connect(STREAM)
    await client.gather(2)

    def suffer(kind, **more):
        world.exchange.faults.inflict(kind, list(world.exchange.board.peers), **more)

    return client, suffer, world


async def test_nothing_goes_wrong_by_itself(autojump_clock, talk):
    """Without rates every aggregate comes once, in order, for as long as one listens."""
    client, _, world = talk
    ids = await ids_for(client, 120)
    assert not broken_pairs(ids)
    assert world.exchange.statistics().faults == {}


async def test_reset_cuts_at_once(autojump_clock, talk):
    """The client's stream breaks without a close frame."""
    client, suffer, world = talk
    suffer("reset")
    with pytest.raises(ConnectionClosed) as closed:
        await client.gather(60)
    assert closed.value.reason.code == 1006
    await trio.sleep(1)
    assert world.exchange.statistics().connections == 0


async def test_torn_frame_is_the_last_thing_heard(autojump_clock, talk):
    """The connection ends in the middle of a frame."""
    client, suffer, _ = talk
    suffer("torn")
    with pytest.raises(ConnectionClosed) as closed:
        await client.gather(60)
    assert closed.value.reason.code == 1006


async def test_goodbye_is_a_close_frame(autojump_clock, talk):
    """1001, as a server that goes away sends it."""
    client, suffer, _ = talk
    suffer("goodbye")
    with pytest.raises(ConnectionClosed) as closed:
        await client.gather(60)
    assert closed.value.reason.code == 1001


async def test_half_open_is_deaf_and_mute_and_there(autojump_clock, talk):
    """No data, no acknowledgement, no pong; the connection looks alive."""
    client, suffer, world = talk
    suffer("half_open")
    await client.gather(1)
    await client.send({"method": "LIST_SUBSCRIPTIONS", "id": 1})
    assert await client.gather(60) == []
    with trio.move_on_after(30) as scope:
        await client.connection.ping()
    assert scope.cancelled_caught
    assert world.exchange.statistics().connections == 1
    await client.stream.aclose()
    await trio.sleep(1)
    assert world.exchange.statistics().connections == 0


async def test_silent_acknowledges_and_delivers_nothing(autojump_clock, talk):
    """Control messages and pings are answered; data comes again afterwards, with a gap."""
    client, suffer, _ = talk
    before = await ids_for(client, 5)
    suffer("silent", seconds=60)
    assert (await client.ask("LIST_SUBSCRIPTIONS"))["result"] == ["btcusdt@aggTrade"]
    await client.connection.ping()
    assert await client.gather(50) == []
    after = await ids_for(client, 30)
    assert after[0] > before[-1] + 10


@pytest.mark.slow
async def test_stale_comes_seconds_late_in_order(autojump_clock, talk):
    """Nothing is missing, nothing is out of order, everything is old."""
    client, suffer, world = talk
    suffer("stale", seconds=8)
    delays, ids = [], []
    with trio.move_on_after(1200):
        while True:
            event = await client.receive()
            ids.append(event["a"])
            delays.append(world.now_ms() - event["E"])
    assert not broken_pairs(ids)
    assert 7_900 <= max(delays) <= 9_000
    assert delays[-1] < 300


async def test_late_frames_come_after_newer_ones(autojump_clock, talk):
    """Every trade comes, some out of order."""
    client, suffer, _ = talk
    suffer("late", seconds=3)
    ids = await ids_for(client, 30)
    assert broken_pairs(ids)
    assert not broken_pairs(sorted(ids)[:-5])


@pytest.mark.parametrize(("kind", "kept"), [("reorder", True), ("lost", False)])
async def test_reordered_and_lost_frames(autojump_clock, talk, kind, kept):
    """Reordered ones all come, lost ones do not."""
    client, suffer, _ = talk
    suffer(kind, frames=6)
    ids = await ids_for(client, 30)
    if kept:
        assert ids != sorted(ids)
        assert not broken_pairs(sorted(ids))
    else:
        before = await ids_for(client, 5)
        suffer(kind, frames=6)
        after = await ids_for(client, 30)
        assert after[0] == before[-1] + 7


async def test_duplicates_come_twice(autojump_clock, talk):
    """As many as asked for."""
    client, suffer, _ = talk
    suffer("duplicate", frames=5)
    ids = await ids_for(client, 30)
    assert len(ids) - len(set(ids)) == 5


async def test_truncated_frame_is_whole_and_holds_half_a_text(autojump_clock, talk):
    """The framing survives; the JSON does not."""
    client, suffer, _ = talk
    suffer("truncated", frames=2)
    texts = []
    with trio.move_on_after(30):
        while True:
            texts.append(await client.connection.get_message())
    for text in texts[:2]:
        with pytest.raises(ValueError):
            json.loads(text)
    ids = [json.loads(text)["a"] for text in texts[2:]]
    assert ids
    assert not broken_pairs(ids)


async def test_garbage_comes_in_between(autojump_clock, talk):
    """Something that is no event comes; the events go on, if the connection bears it."""
    client, suffer, world = talk
    suffer("garbage")
    with pytest.raises((ValueError, KeyError, TypeError, ConnectionClosed)):
        await prices_for(client, 60)
    assert world.exchange.statistics().faults == {"garbage": 1}


def test_garbage_is_of_many_kinds():
    """No seed brings the same frame for ever."""
    rng = random.Random(1)
    assert len({garbage(rng) for _ in range(200)}) > 20


async def test_handshakes_are_refused_at_their_rate(autojump_clock, make_world):
    """A share of the clients is turned away with 403 or 503."""
    world = await make_world(SimOptions(symbols=2), faults=Faults(1, FaultRates(refused=0.5)))
    answers = []
    for _ in range(30):
        stream = await world.exchange.dialer(world.nursery)("h", 1, False)
        await stream.send_all(HANDSHAKE)
        answers.append(bytes(await stream.receive_some())[9:12])
        await stream.aclose()
    assert set(answers) == {b"101", b"403", b"503"}


async def test_lives_are_scaled_and_differ(autojump_clock, make_world):
    """The 24 h cut comes after about the time that is set, not for all at once."""
    world = await make_world(SimOptions(symbols=2), faults=Faults(1, FaultRates(life_s=100)))
    ages = []
    for _ in range(3):
        client = await world.connect()
        began = trio.current_time()
        with pytest.raises(ConnectionClosed):
            await client.gather(1000)
        ages.append(trio.current_time() - began)
    assert all(70 <= age <= 131 for age in ages)
    assert len(set(ages)) == 3


# -- REST --------------------------------------------------------------------------------------


async def spoilt(world, **rates):
    """Return the answer to a request that is sure to be spoilt."""
    world.exchange.faults.rates = FaultRates(**rates)
    async with httpx.AsyncClient(
        base_url="http://127.0.0.1", transport=world.exchange.http_transport(), timeout=10
    ) as client:
        return await client.get("/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=99")


async def test_throttled_for_some_seconds(autojump_clock, world):
    """429 to everybody until the time that Retry-After tells, where it does."""
    reply = await spoilt(world, throttled=1)
    assert reply.status_code == 429
    assert reply.json()["code"] == -1003
    assert (await spoilt(world)).status_code == 429
    await trio.sleep(int(reply.headers.get("Retry-After", "30")))
    assert (await spoilt(world)).status_code == 200


async def test_banned_for_two_minutes(autojump_clock, world):
    """418 with the end of the ban in the text."""
    reply = await spoilt(world, banned=1)
    assert reply.status_code == 418
    until_ms = world.now_ms() + 2 * MINUTE_MS
    assert f"banned until {until_ms}." in reply.json()["msg"]
    await trio.sleep(119)
    assert (await spoilt(world)).status_code == 418
    await trio.sleep(1)
    assert (await spoilt(world)).status_code == 200


async def test_forbidden_redirected_failed(autojump_clock, world):
    """A page of HTML, another host, and the many ways to fail."""
    reply = await spoilt(world, forbidden=1)
    assert (reply.status_code, reply.text[:6]) == (403, "<html>")
    reply = await spoilt(world, redirected=1)
    assert reply.status_code == 302
    statuses = {(await spoilt(world, failed=1)).status_code for _ in range(40)}
    assert statuses == {500, 502, 503, 504, 408}


async def test_slow_answers_and_timeouts(autojump_clock, world):
    """Some take seconds, some longer than anybody waits."""
    times, failed = [], 0
    for _ in range(20):
        began = trio.current_time()
        try:
            assert (await spoilt(world, slow=1)).status_code == 200
        except httpx.ReadTimeout:
            failed += 1
        times.append(round(trio.current_time() - began, 1))
    assert set(times) == {0.5, 2, 6, 10}
    assert failed == times.count(10)


async def test_bodies_in_pieces_in_part_and_of_another_kind(autojump_clock, world):
    """Dripping ones are whole, partial ones are an error, nonsense is a 200."""
    began = trio.current_time()
    assert len((await spoilt(world, dripping=1)).json()) == 99
    assert trio.current_time() - began >= 1
    with pytest.raises(httpx.RemoteProtocolError):
        await spoilt(world, partial=1)
    reply = await spoilt(world, nonsense=1)
    assert reply.status_code == 200


@pytest.mark.real
async def test_broken_bodies_and_resets_over_sockets(nursery):
    """What is simulated in memory happens on real sockets, too."""
    options = SimOptions(symbols=2)
    zero_s = trio.current_time()

    def now_ms():
        return options.start_ms + int((trio.current_time() - zero_s) * 1000)

    exchange = SimExchange(options, now_ms=now_ms)
    await nursery.start(exchange.run)
    rest_url, ws_url = await nursery.start(exchange.serve)
    async with httpx.AsyncClient(base_url=rest_url) as client:
        exchange.faults.rates = FaultRates(partial=1)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/fapi/v1/exchangeInfo")
        exchange.faults.rates = NONE
        assert (await client.get("/fapi/v1/time")).status_code == 200
    port = int(ws_url.split(":")[2].split("/")[0])
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(HANDSHAKE)
    assert b" 101 " in bytes(await stream.receive_some())
    with trio.fail_after(10):
        while not exchange.board.peers:
            await trio.lowlevel.checkpoint()
        exchange.faults.inflict("reset", list(exchange.board.peers))
        with pytest.raises(trio.BrokenResourceError):
            await drained(stream)
    await stream.aclose()


# -- Seeds, rates, clocks, contracts -----------------------------------------------------------


async def listen(seed, rates, minutes):
    """Listen for a while, reconnecting when it ends; return what was heard and what went wrong."""
    options = SimOptions(symbols=6, seed=seed)
    exchange = SimExchange(
        options,
        now_ms=lambda: options.start_ms + int(trio.current_time() * 1000),
        faults=Faults(seed, rates),
    )
    heard = []
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)
        dial = exchange.dialer(nursery)
        with trio.move_on_after(minutes * 60):
            while True:
                stream = await dial("h", 1, False)
                await stream.send_all(HANDSHAKE)
                try:
                    while data := await stream.receive_some():
                        heard.append(bytes(data))
                except trio.BrokenResourceError:
                    heard.append(b"reset")
                await stream.aclose()
                exchange.answer("GET", "/fapi/v1/time")
                await trio.sleep(1)
        nursery.cancel_scope.cancel()
    return heard, exchange.statistics()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_harsh_hours_pass_and_repeat_by_seed(monkeypatch, seed):
    """The exchange survives its own faults, and the same seed brings the same ones."""
    monkeypatch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
    found = []
    for _ in range(2):
        monkeypatch.setattr("trio._core._run._r", random.Random(seed))
        clock = trio.testing.MockClock(autojump_threshold=0)
        found.append(trio.run(listen, seed, HARSH.scaled(4), 30, clock=clock))
    assert found[0] == found[1]
    assert sum(found[0][1].faults.values()) > 5


async def test_rates_are_switched_while_it_runs_and_what_stands_is_healed(autojump_clock, talk):
    """With the rates at zero and all healed the stream is whole again."""
    client, suffer, world = talk
    faults = world.exchange.faults
    suffer("silent", seconds=3600)
    suffer("stale", seconds=100)
    faults.rates = FaultRates(lost=3600)
    assert await client.gather(20) == []
    faults.rates = NONE
    faults.heal()
    await client.gather(200)
    assert not broken_pairs(await ids_for(client, 30))


def test_profiles_have_names_and_swarms_differ():
    """Each by name; a seed draws some faults much, some little, some never."""
    assert names.PROFILES == {"none": NONE, "mild": MILD, "harsh": HARSH, "lies": names.LIES}
    swarms = [drawn(seed) for seed in range(20)]
    assert len(set(swarms)) == 20
    assert any(not each.reset for each in swarms)
    assert any(each.reset > HARSH.reset for each in swarms)
    assert sum(getattr(HARSH, kind) for kind in names.ON_REQUEST) < 0.3


def test_clock_is_ahead_drifts_and_steps():
    """Offset at once, drift with time, a step when told."""
    true = [1_000_000]
    clock = SkewedClock(lambda: true[0], offset_ms=500, drift_ppm=100)
    assert clock() == 1_000_500
    true[0] += 10_000_000
    assert clock() == 11_001_500
    clock.step(-2_000)
    assert clock() == 10_999_500
    rates = FaultRates(offset_ms=1000, drift_ppm=50)
    assert SkewedClock.drawn(lambda: 0, rates, 7)() == SkewedClock.drawn(lambda: 0, rates, 7)()


async def test_exchange_on_a_clock_that_steps_goes_on(autojump_clock, make_world):
    """Set forward it catches up, set back it waits; no trade is told twice or never."""
    options = SimOptions(symbols=3)
    world = await make_world(options)
    clock = SkewedClock(world.exchange._now_ms)
    world.exchange._now_ms = clock
    client = await world.connect(STREAM)
    ids = await ids_for(client, 20)
    clock.step(5 * 60_000)
    ids += await ids_for(client, 20)
    clock.step(-30_000)
    ids += await ids_for(client, 60)
    assert len(ids) > 100
    assert not broken_pairs(ids)


@pytest.mark.slow
async def test_contracts_are_delisted_and_tickers_reused(autojump_clock, make_world):
    """Some end, told ahead; some tickers come back as another contract, whose bars are its own."""
    rates = FaultRates(delisted=20, reused=1)
    world = await make_world(SimOptions(symbols=12), faults=Faults(3, rates))
    client = await world.connect("/market/ws/!contractInfo")
    told = [each for each in await client.gather(3000) if "bks" not in each]
    ended = [each["s"] for each in told if each["cs"] == "SETTLING"]
    assert ended
    again = [each["s"] for each in told if each["cs"] == "TRADING" and each["s"] in ended[:-1]]
    assert again
    symbol = next(each for each in ended if world.exchange.instrument(each).status == "TRADING")
    old, new = world.exchange.lives(symbol)
    now_ms = world.now_ms()
    klines = world.exchange.official_klines(symbol, "1m", 0, now_ms)
    assert klines[0].open_time == new.onboard_ms // MINUTE_MS * MINUTE_MS
    before = world.exchange.official_klines(
        symbol, "1m", old.delivery_ms - 5 * MINUTE_MS, now_ms, onboard_ms=old.onboard_ms
    )
    assert before[0].open_time == old.delivery_ms - 5 * MINUTE_MS
    assert all(not kline.count for kline in before if kline.open_time >= old.delivery_ms)
