"""Real klagg processes: started, watched from outside, stopped, killed by their id.

Every process ends by itself (`--duration`) even if this one is killed first.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from prove.row import Broken, check

KLAGG = (sys.executable, "-m", "klagg_trio")

ROOT = Path(__file__).resolve().parent.parent

LIFE_S = 900
"""After this a process that nobody has ended ends by itself."""

SETTINGS = {
    "KLAGG_OPEN_REFRESH_S": "0.5",
    "KLAGG_AUDIT_EVERY_S": "60",
    "KLAGG_SNAPSHOT_EVERY_S": "10",
    "KLAGG_INTERVALS": "1m,5m,30m,1h,4h,1d,1w",
}
"""More often than in life, so that a moment drawn at random has a chance to be in the middle of
one: running bars saved twice a second, a start snapshot every ten."""

SYMBOLS = 12


def pause(seconds: float) -> None:
    """Let some time pass."""
    if seconds > 0:
        select.select([], [], [], seconds)


def wait_for(reached: Callable[[], object], what: str, limit_s: float, every_s: float = 0.02):
    """Look until something is so, and return it. Broken where it takes too long."""
    end_s = time.monotonic() + limit_s
    while not (found := reached()):
        if time.monotonic() > end_s:
            raise Broken(f"not within {limit_s:g} s: {what}")
        pause(every_s)
    return found


def usual_signals() -> None:
    """Take signals as a terminal's program does: under nohup or `&` some are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Process:
    """One klagg process. What it says goes to a file, so that it never waits for a reader."""

    def __init__(
        self,
        folder: Path,
        name: str,
        arguments: Sequence[object],
        *,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        command: Sequence[str] = KLAGG,
    ) -> None:
        """Start it. `prefix` is a command that runs it, such as strace."""
        self.said = folder / f"{name}.err"
        self.output = folder / f"{name}.out"
        self.started_s = time.monotonic()
        with self.said.open("ab") as said, self.output.open("ab") as output:
            self.popen = subprocess.Popen(
                [*prefix, *command, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=said,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **SETTINGS, **(env or {})},
                preexec_fn=usual_signals,
            )

    @property
    def pid(self) -> int:
        """Return the process's id."""
        return self.popen.pid

    @property
    def text(self) -> str:
        """Return what it has said on stderr so far."""
        return self.said.read_text(encoding="utf-8", errors="replace")

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.popen.poll() is None

    def send(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        if self.alive:
            os.kill(self.pid, number)

    def wait(self, limit_s: float, what: str = "the end of the process") -> int:
        """Wait for its end and return the exit code. Broken where it does not come."""
        try:
            return self.popen.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Broken(f"not within {limit_s:g} s: {what}\n{self.tail()}") from None

    def stop(self, number: int = signal.SIGTERM, limit_s: float = 10.0) -> float:
        """End it by a signal, cleanly. Returns how long that took."""
        began_s = time.monotonic()
        self.send(number)
        code = self.wait(limit_s, f"the end after {signal.Signals(number).name}")
        check(code in (0, 130), f"exit code {code} after a signal\n{self.tail()}")
        self.check_quiet()
        return time.monotonic() - began_s

    def kill(self) -> None:
        """End it at once."""
        if self.alive:
            self.popen.kill()
        self.popen.wait(10)

    def check_quiet(self) -> None:
        """Broken where it has printed a traceback."""
        check("Traceback" not in self.text, f"a traceback\n{self.tail(60)}")

    def tail(self, lines: int = 12) -> str:
        """Return the last lines that it has said."""
        return "\n".join(self.text.splitlines()[-lines:])

    def catches_signals(self) -> bool:
        """Whether klagg's own first line has run: signals are in its hands."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        caught = [line for line in status.splitlines() if line.startswith("SigCgt")]
        return bool(int(caught[0].split()[1], 16) >> (signal.SIGTERM - 1) & 1)

    def peak_mb(self) -> float:
        """Return the most memory it has had resident, in MB; 0 where it has ended."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        peaks = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(peaks[0].split()[1]) / 1024 if peaks else 0.0


@contextmanager
def process(folder: Path, name: str, arguments: Sequence[object], **options) -> Iterator[Process]:
    """Start a klagg process; it is killed in the end, whatever happens."""
    started = Process(folder, name, arguments, **options)
    try:
        yield started
    finally:
        started.kill()


class Exchange:
    """A `klagg sim` that runs in a process of its own, as anybody would use it: by HTTP."""

    def __init__(self, rest_url: str, ws_url: str) -> None:
        """Take its two addresses."""
        self.rest_url = rest_url
        self.ws_url = ws_url

    def get(self, path: str) -> object:
        """Return the JSON of one answer. No proxy: it is on this machine."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.rest_url + path, timeout=20) as answer:
            return json.loads(answer.read())

    def now_ms(self) -> int:
        """Return the exchange's time."""
        return int(self.get("/fapi/v1/time")["serverTime"])  # type: ignore[index]

    def klines(self, symbol: str, interval: str, start_ms: int, end_ms: int) -> list[list]:
        """Return the official rows that open in a span, both ends inclusive."""
        name = urllib.request.quote(symbol)
        rows = []
        while start_ms <= end_ms:
            page = self.get(
                f"/fapi/v1/klines?symbol={name}&interval={interval}&startTime={start_ms}"
                f"&endTime={end_ms}&limit=499"
            )
            if not page:
                break
            rows += page
            start_ms = page[-1][6] + 1
        return rows


@contextmanager
def exchange(folder: Path, seed: int, symbols: int = SYMBOLS) -> Iterator[Exchange]:
    """Run `klagg sim` on two loopback ports."""
    ports = ("--rest-port", 0, "--ws-port", 0)
    arguments = ("sim", "--seed", seed, "--symbols", symbols, *ports, "--json")
    with process(folder, "sim", (*arguments, "--duration", f"{LIFE_S}s")) as sim:
        wait_for(lambda: sim.output.read_text().strip() or not sim.alive, "the simulator", 30)
        check(sim.alive, f"the simulator has ended\n{sim.tail()}")
        urls = json.loads(sim.output.read_text())
        yield Exchange(urls["rest_url"], urls["ws_url"])


def backfill(folder: Path, data: Path, rest_url: str, since: str = "2h", **options) -> None:
    """Fill a data directory, and insist that it works."""
    arguments = ("backfill", "--rest-url", rest_url, "--data-dir", data, "--since", since)
    with process(folder, "backfill", arguments, **options) as filling:
        code = filling.wait(120, "the end of the backfill")
        check(code == 0, f"backfill ends with {code}\n{filling.tail()}")


def run_arguments(data: Path, rest_url: str, ws_url: str) -> tuple[object, ...]:
    """Return the arguments of a `klagg run` that ends by itself."""
    urls = ("--rest-url", rest_url, "--ws-url", ws_url)
    return ("run", "--headless", "--data-dir", data, *urls, "--duration", f"{LIFE_S}s")
