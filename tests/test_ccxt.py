"""An unmodified client of another project works against the simulator.

Needs the optional dependency group `ccxt`: `uv sync --group ccxt`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from decimal import Decimal
from itertools import pairwise

import pytest

ccxt = pytest.importorskip("ccxt", reason="the dependency group ccxt is not installed")

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    # What that library or its own dependencies warn about is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]

SIMULATOR = """
import json, sys, time, trio, trio.testing
from klagg_trio.sim.server import SimOptions, run_sim

start_ms = int(time.time() * 1000)

def now_ms():
    return start_ms + int(trio.current_time() * 1000)

def on_ready(rest_url, ws_url):
    print(json.dumps([rest_url, ws_url]), flush=True)

async def main():
    async with trio.open_nursery() as nursery:
        options = SimOptions(symbols=20, start_ms=start_ms)
        nursery.start_soon(lambda: run_sim(options, now_ms=now_ms, on_ready=on_ready))
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()

trio.run(main, clock=trio.testing.MockClock(rate=10))
"""


@pytest.fixture(scope="module")
def urls():
    """A simulator in a process of its own, ten times as fast as the clock on the wall.

    It ends when its standard input does.
    """
    command = [sys.executable, "-c", SIMULATOR]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        try:
            yield json.loads(child.stdout.readline())
        finally:
            child.communicate(timeout=10)
    assert child.returncode == 0


def pointed(exchange, urls):
    """Point a client at the simulator; nothing else about it is changed."""
    rest_url, ws_url = urls
    exchange.urls["api"]["fapiPublic"] = f"{rest_url}/fapi/v1"
    if "ws" in exchange.urls["api"]:
        exchange.urls["api"]["ws"]["linear"] = ws_url.removesuffix("/market") + "/ws"
    return exchange


@pytest.fixture
def client(urls):
    return pointed(ccxt.binanceusdm(), urls)


def test_load_markets(client):
    """Perpetuals, futures, names of any script, and the tick sizes are understood."""
    markets = client.load_markets()
    bitcoin = markets["BTC/USDT:USDT"]
    assert bitcoin["swap"]
    assert bitcoin["active"]
    assert bitcoin["precision"]["price"] == 0.1
    assert markets["币安人生/USDT:USDT"]["active"]
    assert not markets["OLD/USDT:USDT"]["active"]
    assert any(market["future"] for market in markets.values())


def test_fetch_ohlcv(client):
    """Bars of a minute, a week and a month, by count and by time."""
    minutes = client.fetch_ohlcv("BTC/USDT:USDT", "1m", limit=99)
    assert len(minutes) == 99
    assert all(b[0] - a[0] == 60_000 for a, b in pairwise(minutes))
    for _, opened, high, low, close, volume in minutes:
        assert low <= opened <= high
        assert low <= close <= high
        assert volume >= 0
    since = client.fetch_ohlcv("币安人生/USDT:USDT", "1h", since=minutes[0][0], limit=5)
    assert since[0][0] >= minutes[0][0]
    for interval in ("1w", "1M"):
        assert client.fetch_ohlcv("ETH/USDT:USDT", interval, limit=2)


def test_fetch_trades(client):
    """Aggregates of the last minutes, in order."""
    trades = client.fetch_trades("BTC/USDT:USDT", limit=50)
    ids = [int(trade["id"]) for trade in trades]
    assert ids == list(range(ids[0], ids[0] + 50))
    assert all(trade["price"] > 0 and trade["amount"] > 0 for trade in trades)


def test_tickers_and_time(client):
    """The rest of what is simulated is understood, too."""
    assert client.fetch_ticker("BTC/USDT:USDT")["last"] > 0
    assert len(client.fetch_tickers()) > 20
    first_ms = client.fetch_time()
    assert first_ms < client.fetch_time() < first_ms + 600_000


def test_errors_are_those_that_clients_know(client):
    """An unknown symbol is the library's BadSymbol, a bad interval its BadRequest."""
    with pytest.raises(ccxt.BadSymbol):
        client.fapiPublicGetKlines({"symbol": "NONSENSE", "interval": "1m"})
    with pytest.raises(ccxt.BadRequest):
        client.fapiPublicGetKlines({"symbol": "BTCUSDT", "interval": "1s"})


def test_watch_trades(urls):
    """The live stream brings every aggregate, once and in order."""

    async def watch():
        import ccxt.pro

        options = {"watchTrades": {"name": "aggTrade"}}
        client = pointed(ccxt.pro.binanceusdm({"options": options, "newUpdates": True}), urls)
        try:
            found = []
            while len(found) < 30:
                found += await client.watch_trades("BTC/USDT:USDT")
            bars = await client.watch_ohlcv("BTC/USDT:USDT", "1m")
            return found, bars
        finally:
            await client.close()

    trades, bars = asyncio.run(asyncio.wait_for(watch(), 60))
    ids = [int(trade["id"]) for trade in trades]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert {trade["symbol"] for trade in trades} == {"BTC/USDT:USDT"}
    assert all(Decimal(trade["info"]["q"]) > 0 for trade in trades)
    assert bars[-1][5] > 0
