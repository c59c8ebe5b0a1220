"""The simulator over real loopback sockets."""

from __future__ import annotations

import json
import socket

import httpx
import pytest
import trio
import trio.testing
from trio_websocket import open_websocket_url

from klagg_trio.sim.server import SimError, SimExchange, SimOptions, run_sim

pytestmark = pytest.mark.real


@pytest.fixture
def fast_clock():
    """Sixty simulated seconds a second."""
    return trio.testing.MockClock(rate=60)


@pytest.fixture
async def served(nursery):
    """A running exchange and its two URLs."""
    options = SimOptions(symbols=8)

    def now_ms() -> int:
        return options.start_ms + int(trio.current_time() * 1000)

    exchange = SimExchange(options, now_ms=now_ms)
    await nursery.start(exchange.run)
    rest_url, ws_url = await nursery.start(exchange.serve)
    return exchange, rest_url, ws_url


@pytest.mark.slow
async def test_rest_and_websocket_over_sockets(fast_clock, served):
    """One connection carries many requests; a websocket brings trades in order."""
    exchange, rest_url, ws_url = served
    async with httpx.AsyncClient(base_url=rest_url) as client:
        for number in range(3):
            reply = await client.get("/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=99")
            assert reply.headers["x-mbx-used-weight-1m"] == str(number + 1)
            assert len(reply.json()) == 99
        reply = await client.get("/fapi/v1/klines?symbol=BTCUSDT&interval=7m")
        assert (reply.status_code, reply.json()["code"]) == (400, -1120)
    assert ws_url.endswith("/market")
    async with open_websocket_url(f"{ws_url}/stream") as websocket:
        names = ["btcusdt@aggTrade", "ethusdt@aggTrade"]
        await websocket.send_message(json.dumps({"method": "SUBSCRIBE", "params": names, "id": 1}))
        assert json.loads(await websocket.get_message()) == {"result": None, "id": 1}
        ids = []
        while len(ids) < 100:
            event = json.loads(await websocket.get_message())
            if event["stream"] == names[0]:
                ids.append(event["data"]["a"])
        assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert exchange.statistics().requests == {"/fapi/v1/klines": 4}


async def test_broken_requests_are_refused(fast_clock, served):
    """What is no HTTP gets a 400 and the end of its connection; the server goes on."""
    _, rest_url, _ = served
    port = int(rest_url.rsplit(":", 1)[1])
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(b"\x00\x01\x02 nonsense\r\n\r\n")
    answer = b""
    while part := await stream.receive_some():
        answer += part
    assert answer.startswith(b"HTTP/1.1 400 ")
    await stream.aclose()
    async with httpx.AsyncClient(base_url=rest_url) as client:
        assert (await client.get("/fapi/v1/ping")).json() == {}


async def test_port_in_use_is_a_clear_error():
    """The text names host and port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        exchange = SimExchange(SimOptions(symbols=1), now_ms=lambda: SimOptions().start_ms)
        with pytest.raises(SimError, match=f"cannot listen on 127.0.0.1 port {port}"):
            await exchange.serve(ws_port=port)


async def test_run_sim_tells_its_urls_and_serves_until_cancelled(fast_clock):
    """The whole exchange in one call."""
    options = SimOptions(symbols=2)
    told = []
    with trio.move_on_after(60) as scope:

        def on_ready(rest_url, ws_url):
            told.append((rest_url, ws_url))
            scope.cancel()

        await run_sim(
            options,
            now_ms=lambda: options.start_ms + int(trio.current_time() * 1000),
            on_ready=on_ready,
        )
    (urls,) = told
    assert urls[0].startswith("http://127.0.0.1:")
    assert urls[1].startswith("ws://127.0.0.1:")
