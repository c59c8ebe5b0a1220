"""A real `klagg run` of 800 symbols and 7 intervals against an exchange that means harm.

Whatever comes over REST and over websockets, resident memory stays at or below 300 MB, the journal
in megabytes, and in the end SIGTERM is obeyed within its time.
"""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
import zlib
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from klagg_trio.core.bar import Bar
from klagg_trio.core.facts import BarFact, Facts
from klagg_trio.core.intervals import MINUTE_MS, select
from klagg_trio.core.seed import OpenBar, Seed, StartState
from klagg_trio.store.database import Database
from klagg_trio.store.start_snapshot import write_snapshot

from .exchange.rawpeer import raw_frame
from .hostile import FAR_MS, ONBOARD_MS, HostileExchange, answer, now_ms

pytestmark = [pytest.mark.real, pytest.mark.slow]

RSS_MAX = 300 * 2**20
INTERVALS = ("1m", "3m", "5m", "15m", "1h", "4h", "1d")
SYMBOLS = [f"S{number}USDT" for number in range(800)]
START_S_MAX = 90.0
"""Until the status line tells of all connections."""

HARM_S = 3.0
"""How long each kind of harm goes on."""

ENDED_S_MAX = 10.0
KEPT_BYTES_MAX = 150 * 2**20
"""Database, write-ahead log and journal, after a minute and a half."""


def rss_bytes(pid: int) -> int:
    """What a process has resident now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def start_state(cut_ms: int) -> StartState:
    """All symbols at a cut, flat at 100."""
    price = Decimal(100)
    longer = select(INTERVALS)[1:]
    seeds = tuple(
        Seed(
            symbol,
            ONBOARD_MS,
            FAR_MS,
            price,
            None,
            None,
            0,
            tuple(
                OpenBar(i.name, Bar(i.floor(cut_ms), i.end(i.floor(cut_ms)), *[price] * 4), 0)
                for i in longer
            ),
        )
        for symbol in SYMBOLS
    )
    return StartState(cut_ms, INTERVALS, seeds)


def prepare(folder: Path) -> None:
    """Make the files of a run that begins now."""
    database = Database.open(folder / "klagg.db")
    life = {"onboard_ms": ONBOARD_MS, "delivery_ms": FAR_MS, "status": "TRADING"}
    database.put_symbols([SimpleNamespace(symbol=symbol, **life) for symbol in SYMBOLS], {})
    cut_ms = now_ms() // MINUTE_MS * MINUTE_MS
    price = Decimal(100)
    last = [
        BarFact(symbol, "1m", Bar(cut_ms - MINUTE_MS, cut_ms, *[price] * 4)) for symbol in SYMBOLS
    ]
    database.commit(cut_ms, [Facts(sealed=last)])
    database.close()
    write_snapshot(folder / "initial_state.cbor", start_state(cut_ms))


def bomb(megabytes: int, *, twice: bool = False) -> bytes:
    """An answer that inflates to so much."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    million = bytes(1 << 20)
    body = b"".join([pack.compress(million) for _ in range(megabytes)]) + pack.flush()
    body = gzip.compress(body) if twice else body
    return answer(body, f"Content-Encoding: gzip{', gzip' if twice else ''}")


async def send(stream, *, whole: bytes) -> None:
    """Answer with this."""
    await stream.send_all(whole)


async def drip(stream) -> None:
    """Answer without ever coming to an end."""
    await stream.send_all(b"HTTP/1.1 200 OK\r\n")
    while True:
        await stream.send_all(b"X-A: b\r\n")
        await trio.sleep(0.5)


async def flood(stream) -> None:
    """Answer with headers as fast as they are taken."""
    await stream.send_all(b"HTTP/1.1 200 OK\r\n")
    while True:
        await stream.send_all(b"X-A: " + b"b" * 60_000 + b"\r\n")


def listing(rows: int) -> bytes:
    """An exchangeInfo of made-up symbols with long names."""
    one = '{"symbol":"%s","pair":"","contractType":"PERPETUAL","deliveryDate":1,"onboardDate":1,'
    one += '"status":"TRADING","quoteAsset":"USDT"}'
    return answer(
        ('{"symbols":[' + ",".join(one % f"{n:040}" for n in range(rows)) + "]}").encode()
    )


def rest_harms() -> dict[str, partial]:
    """Answers by what is wrong with them."""
    empty = b"[" + b"0," * 4_000_000 + b"0]"
    return {
        "inflates to 2 GB": partial(send, whole=bomb(2_048)),
        "inflates twice": partial(send, whole=bomb(2_048, twice=True)),
        "a million contracts": partial(send, whole=listing(1_000_000)),
        "40,000 contracts": partial(send, whole=listing(40_000)),
        "millions of values": partial(send, whole=answer(b'{"symbols":' + empty + b"}")),
        "millions of rows": partial(send, whole=answer(b"[" + b"[]," * 600_000 + b"[]]")),
        "deep": partial(send, whole=answer(b"[" * 2_000_000)),
        "long numbers": partial(send, whole=answer(b"[[" + b"1" * 1_900_000 + b"]]")),
        "an error page": partial(send, whole=answer(b"x" * 1_900_000, status="400 Bad Request")),
        "headers drip": drip,
        "headers without end": flood,
        "weight": partial(send, whole=answer(b"[]", "X-MBX-USED-WEIGHT-1M: 999999999")),
    }


async def frames(stream, *, payloads: list[bytes]) -> None:
    """Send text frames."""
    for payload in payloads:
        await stream.send_all(raw_frame(payload))


async def strangers(stream, *, rows: int) -> None:
    """Tell of so many symbols that nobody has heard of, in tickers and in trades."""
    at_ms = now_ms()
    for start in range(0, rows, 8_000):
        texts = (
            f'{{"s":"{at_ms}{n:027}","c":"1","E":{at_ms}}}' for n in range(start, start + 8_000)
        )
        whole = '{"stream":"!miniTicker@arr","data":[' + ",".join(texts) + "]}"
        await stream.send_all(raw_frame(whole.encode()))
    trades = (
        f'{{"stream":"{at_ms}{n:027}@aggTrade","data":{{"e":"aggTrade","E":{at_ms},"a":1,'
        f'"s":"{at_ms}{n:027}","p":"1","q":"1","nq":"1","f":1,"l":1,"T":{at_ms},"m":true,"st":1}}}}'
        for n in range(rows // 8)
    )
    for trade in trades:
        await stream.send_all(raw_frame(trade.encode()))


STREAM_HARMS = {
    "300 errors of 900 kB": partial(
        frames, payloads=[b'{"error":{"code":1,"msg":"' + b"x" * 900_000 + b'"},"id":9}'] * 300
    ),
    "frames of 1 MB": partial(frames, payloads=[b"{" + b" " * 1_000_000 + b"}"] * 100),
    "unknown symbols": partial(strangers, rows=400_000),
    "empty frames": partial(frames, payloads=[b""] * 100_000),
    "deep": partial(frames, payloads=[b"[" * 900_000] * 50),
    "trades that make no sense": partial(
        frames,
        payloads=[b'{"stream":"s1usdt@aggTrade","data":{"s":"S1USDT","p":"' + b"9" * 900_000] * 100,
    ),
}


def started(folder: Path, exchange: HostileExchange, errors) -> subprocess.Popen:
    """Start `klagg run` on a prepared folder."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "klagg_trio", "run", "--headless"),
            *("--data-dir", str(folder), "--intervals", ",".join(INTERVALS)),
            *("--rest-url", f"http://127.0.0.1:{exchange.rest_port}"),
            *("--ws-url", f"ws://127.0.0.1:{exchange.stream_port}"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=errors,
    )


async def harm(
    process, exchange: HostileExchange, peaks: dict[str, int], errors_path: Path
) -> float:
    """Do one thing after the other to a running klagg, then stop it. Returns how long that took."""
    name = "start"
    peaks[name] = 0

    async def watch() -> None:
        while True:
            peaks[name] = max(peaks[name], rss_bytes(process.pid))
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        with trio.fail_after(START_S_MAX):
            while b"4/4 connections" not in errors_path.read_bytes():  # noqa: ASYNC110, ASYNC240
                await trio.sleep(0.5)
        harms = [(kind, what, None) for kind, what in rest_harms().items()]
        harms += [(kind, None, what) for kind, what in STREAM_HARMS.items()]
        for kind, exchange.rest_harm, exchange.stream_harm in harms:
            name, peaks[kind] = kind, 0
            await trio.sleep(HARM_S)
            assert process.poll() is None, f"it ended at: {kind}"
        exchange.rest_harm = exchange.stream_harm = None
        await trio.sleep(HARM_S)
        process.send_signal(signal.SIGTERM)
        told_s = time.monotonic()
        nursery.cancel_scope.cancel()
    with trio.fail_after(30):
        await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
    return time.monotonic() - told_s


async def test_memory_is_bounded_whatever_the_exchange_sends(tmp_path):
    """Each kind of harm, over REST and over websockets, leaves resident memory within its bound."""
    prepare(tmp_path)
    exchange = HostileExchange(SYMBOLS)
    peaks: dict[str, int] = {}
    errors_path = tmp_path / "errors"
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)
        with errors_path.open("wb") as errors:
            process = started(tmp_path, exchange, errors)
            try:
                ended_s = await harm(process, exchange, peaks, errors_path)
            finally:
                process.kill()
                process.wait()
        nursery.cancel_scope.cancel()
    told = "\n".join(f"{name}: {peak / 2**20:.0f} MB" for name, peak in peaks.items())
    (tmp_path / "peaks").write_text(told)
    assert process.returncode == 0, errors_path.read_text()[-3_000:]
    assert max(peaks.values()) <= RSS_MAX, told
    assert exchange.harmed > len(peaks)
    assert ended_s < ENDED_S_MAX
    kept = sum(path.stat().st_size for path in tmp_path.iterdir() if path.name.startswith("klagg"))
    assert kept < KEPT_BYTES_MAX, f"{kept:,} bytes"
