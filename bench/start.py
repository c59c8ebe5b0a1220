"""Part 6: from process start to the first subscription sent, and to the first minute on disk.

`klagg run` is started as a user does, on a start snapshot of `klagg backfill`, against `klagg sim`
on loopback. A relay between the two notes when the first SUBSCRIBE of trades passes. Beside it: the
bare import of the libraries in one empty program, `klagg --help`, and the snapshot's size, encoding
and decoding by themselves.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from bench.blaster import client_frames
from bench.market import instruments
from bench.measure import ROOT, Figures, Part, interleaved, median, spread, table
from klagg_trio.core.bar import Source, newborn
from klagg_trio.core.intervals import INTERVALS, MINUTE_MS, select
from klagg_trio.core.seed import OpenBar, Seed, StartState
from klagg_trio.store.database import NEVER_MS
from klagg_trio.store.start_snapshot import decode, encode

LIBRARIES = (
    "trio, trio_websocket, httpx, asks, cattrs, msgspec, cbor2, sqlite3, click, filelock,"
    " platformdirs, stamina, rich"
)
KLAGG = (sys.executable, "-m", "klagg_trio")


# -- Processes -------------------------------------------------------------------------------------


def timed(command: tuple[str, ...]) -> Figures:
    """Run a program that ends by itself."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return {"ms": (time.perf_counter() - started) * 1e3}


@contextmanager
def simulator(symbols: int) -> Iterator[tuple[str, str]]:
    """Run `klagg sim`; give its two URLs."""
    process = subprocess.Popen(
        (
            *(*KLAGG, "sim", "--symbols", str(symbols), "--rest-port", "0", "--ws-port", "0"),
            *("--duration", "10m", "--json"),
        ),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        urls = json.loads(process.stdout.readline())
        yield urls["rest_url"], urls["ws_url"]
    finally:
        process.terminate()
        process.wait()


@dataclass(slots=True)
class Relay:
    """Passes bytes between klagg and the simulator; notes the first SUBSCRIBE of trades."""

    url: str
    subscribed_s: float = 0.0

    def take(self, client: socket.socket, target: tuple[str, int]) -> None:
        with suppress(OSError):
            server = socket.create_connection(target)
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()
            buffer, shaken = bytearray(), False
            while data := client.recv(65536):
                server.sendall(data)
                if self.subscribed_s:
                    continue
                buffer += data
                if not shaken and b"\r\n\r\n" in buffer:
                    del buffer[: buffer.index(b"\r\n\r\n") + 4]
                    shaken = True
                if shaken and any(b"@aggTrade" in body for _, body in client_frames(buffer)):
                    self.subscribed_s = time.perf_counter()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)


@contextmanager
def relayed(ws_url: str) -> Iterator[Relay]:
    parts = urlsplit(ws_url)
    assert parts.hostname is not None
    assert parts.port is not None
    target = parts.hostname, parts.port
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(f"ws://127.0.0.1:{server.getsockname()[1]}{parts.path}")

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    threading.Thread(target=relay.take, args=(client, target), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield relay


def last_tick_ms(path: Path) -> int:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        row = connection.execute("SELECT value FROM meta WHERE key = 'last_tick'").fetchone()
    finally:
        connection.close()
    return int(row[0]) if row else 0


def run_klagg(data: Path, rest_url: str, ws_url: str, *, to_durable: bool) -> Figures:
    """Start `klagg run`; measure to its first subscription, and to its first minute on disk."""
    folder = Path(tempfile.mkdtemp(prefix="klagg-bench-"))
    shutil.copytree(data, folder, dirs_exist_ok=True)
    figures: Figures = {}
    with relayed(ws_url) as relay:
        began_ms = time.time() * 1000
        started = time.perf_counter()
        process = subprocess.Popen(
            (
                *(*KLAGG, "run", "--headless", "--duration", "100s", "--data-dir", str(folder)),
                *("--intervals", "all", "--rest-url", rest_url, "--ws-url", relay.url),
            ),
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            while not relay.subscribed_s and process.poll() is None:
                time.sleep(0.001)
            if process.poll() is not None:
                assert process.stderr is not None
                raise RuntimeError(f"klagg run ended: {process.stderr.read().strip()[-300:]}")
            figures["subscribed_ms"] = (relay.subscribed_s - started) * 1e3
            if to_durable:
                while last_tick_ms(folder / "klagg.db") <= began_ms:
                    time.sleep(0.005)
                now_ms = time.time() * 1000
                figures["durable_s"] = time.perf_counter() - started
                figures["behind_minute_ms"] = now_ms - last_tick_ms(folder / "klagg.db")
            stopped = time.perf_counter()
            process.terminate()
            process.wait(timeout=30)
            figures["stop_ms"] = (time.perf_counter() - stopped) * 1e3
            figures["exit_code"] = process.returncode
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    shutil.rmtree(folder)
    return figures


# -- The snapshot by itself ------------------------------------------------------------------------


def state_of(symbols: int) -> StartState:
    """Return a start state with the digits of life, fifteen intervals."""
    cut_ms = 1_790_812_800_000 + 754 * MINUTE_MS
    seeds = []
    for number, each in enumerate(instruments(symbols)):
        price = Decimal(each.price).scaleb(-each.price_decimals)
        open_bars = []
        for interval in select(tuple(INTERVALS))[1:]:
            open_ms = interval.floor(cut_ms)
            bar = newborn(open_ms, interval.end(open_ms), price)
            bar.high, bar.low = price * Decimal("1.0213"), price * Decimal("0.9871")
            bar.volume = Decimal(each.lot * 977 + number).scaleb(-each.quantity_decimals)
            bar.quote_volume = bar.volume * price
            bar.taker_buy_volume, bar.taker_buy_quote_volume = (
                bar.volume / 2,
                bar.volume * price / 2,
            )
            bar.count, bar.first, bar.last = 4_000 + number, open_ms, cut_ms - MINUTE_MS
            bar.source = Source.TRADES
            open_bars.append(OpenBar(interval.name, bar, 3))
        seeds.append(
            Seed(
                *(each.symbol, 1_600_000_000_000, NEVER_MS, price),
                *(each.first_id, cut_ms - 1, 86_400_000, tuple(open_bars)),
            )
        )
    return StartState(cut_ms, tuple(INTERVALS), tuple(seeds))


def snapshot(symbols: int) -> Figures:
    state = state_of(symbols)
    started = time.perf_counter()
    contents = encode(state)
    encoded = time.perf_counter()
    decode(contents, Path("bench"))
    decoded = time.perf_counter()
    return {
        "bytes": len(contents),
        "encode_ms": (encoded - started) * 1e3,
        "decode_ms": (decoded - encoded) * 1e3,
    }


def main() -> None:
    part = Part(
        "start", "from process start to the first subscription, to the first minute on disk"
    )

    def add(parse: argparse.ArgumentParser) -> None:
        parse.add_argument("--no-durable", action="store_true", help="skip the wait for a minute")

    options = part.options(runs=5, add=add)
    found = interleaved(
        {
            "python -c pass": partial(timed, (sys.executable, "-c", "pass")),
            "klagg --help": partial(timed, (*KLAGG, "--help")),
            "import of the libraries": partial(
                timed, (sys.executable, "-c", f"import {LIBRARIES}")
            ),
        },
        options.runs,
    )
    part.results["programs"] = found
    libraries_ms = median(found["import of the libraries"], "ms")
    rows = [(name, spread(runs, "ms")) for name, runs in found.items()]
    symbols = 45 if options.quick else 500
    data = Path(tempfile.mkdtemp(prefix="klagg-bench-"))
    with simulator(symbols) as (rest_url, ws_url):
        started = time.perf_counter()
        subprocess.run(
            (
                *(*KLAGG, "backfill", "--since", "0d", "--intervals", "all"),
                *("--data-dir", str(data), "--rest-url", rest_url),
            ),
            check=True,
            capture_output=True,
            cwd=ROOT,
        )
        part.note(
            f"backfill of the start state, {symbols} symbols: {time.perf_counter() - started:.1f} s"
        )
        runs = [run_klagg(data, rest_url, ws_url, to_durable=False) for _ in range(options.runs)]
        if not options.quick and not options.no_durable:
            runs.append(run_klagg(data, rest_url, ws_url, to_durable=True))
    shutil.rmtree(data)
    part.results["run"] = runs
    rows.append((f"klagg run, {symbols} x 15: first SUBSCRIBE", spread(runs, "subscribed_ms")))
    rows.append(("SIGTERM to exit", spread(runs, "stop_ms")))
    table("Programs (ms)", ("", "ms"), rows)
    allowed = 1.5 * libraries_ms + 200
    part.note(
        f"allowed to the first subscription: 1.5 x {libraries_ms:.0f} + 200 = {allowed:.0f} ms"
    )
    if not math.isnan(median(runs, "durable_s")):
        part.note(
            f"first minute on disk {median(runs, 'durable_s'):.1f} s after process start, "
            f"{median(runs, 'behind_minute_ms'):.0f} ms after the minute's end"
        )
    sizes = (45,) if options.quick else (500, 5_000)
    found = interleaved(
        {f"{size:,} x 15": partial(snapshot, size) for size in sizes}, max(options.runs, 3)
    )
    part.results["snapshot"] = found
    table(
        "Start snapshot",
        ("symbols x intervals", "bytes", "encode ms", "decode ms"),
        (
            (
                name,
                f"{median(runs, 'bytes'):,.0f}",
                spread(runs, "encode_ms"),
                spread(runs, "decode_ms"),
            )
            for name, runs in found.items()
        ),
    )
    part.results["medians"] = {
        "libraries_ms": libraries_ms,
        "subscribed_ms": statistics.median(run["subscribed_ms"] for run in runs),
    }
    part.finish()


if __name__ == "__main__":
    main()
