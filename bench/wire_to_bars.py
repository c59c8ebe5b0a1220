"""Part 1: frames from a socket to bars, side by side.

Saturation: the blaster sends one capture as fast as it is taken, in three shapes. Rates: it sends
one frame a TLS record at so many a second, in real time; processor time is then measured without
the timer, and loop lag in a run of its own with it. Each contender runs in its own process, and
what it makes is held against the bars to expect before its figures count.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench.blaster import RECORD_FRAMES_BURST, Blast, blasting, certificate
from bench.market import START_MS
from bench.measure import Figures, Part, interleaved, median, spawn, spread, table

SYMBOLS = 500
MARKET_RATE = 3_333.0
"""Trades to a second of exchange time where nothing is paced: five minutes to a million."""


@dataclass(frozen=True, slots=True)
class Contender:
    """What is run, and on how much."""

    label: str
    module: str
    trades: int
    """At saturation; slow ones get the beginning of what fast ones get."""
    arguments: tuple[str, ...] = ()
    needs: str = ""
    """A package that has to be installed."""
    subscribes: bool = False
    symbols: int = SYMBOLS
    """Some allow themselves 200 a connection; a trade costs them the same."""
    form: str = "aggTrade"
    """Which stream it reads."""
    tls_only: bool = False
    """It refuses ws:// addresses."""
    plain_only: bool = False
    """It trusts no authority but the public ones."""
    unnamed: int = 0
    """Streams that it names in the URL and not by SUBSCRIBE."""


CONTENDERS = {
    "klagg": Contender("klagg (exact, 15 intervals)", "klagg", 400_000, subscribes=True),
    "websocket": Contender("trio-websocket get_message()", "websocket_loop", 40_000),
    "websocket-json": Contender(
        "trio-websocket get_message() + json", "websocket_loop", 40_000, ("--json",)
    ),
    "ccxt": Contender("ccxt.pro + build_ohlcvc", "ccxt_pro", 20_000, (), "ccxt", True, 190),
    "cryptofeed": Contender(
        "cryptofeed + OHLCV",
        "cryptofeed_ohlcv",
        60_000,
        (),
        "cryptofeed",
        False,
        190,
        tls_only=True,
    ),
    "nautilus": Contender(
        "nautilus_trader live client",
        "nautilus_live",
        40_000,
        (),
        "nautilus_trader",
        True,
        190,
        plain_only=True,
        unnamed=1,
    ),
    "tardis": Contender(
        "tardis-dev trade bars (node)", "tardis_live", 200_000, (), "", True, form="trade"
    ),
    "picows": Contender("picows + msgspec, bare", "picows_msgspec", 400_000, (), "picows"),
    "drain": Contender("bare socket drain", "drain", 400_000),
}

SHAPES = {
    "plain, burst": {"tls": False, "frames_per_record": RECORD_FRAMES_BURST},
    "TLS, burst": {"tls": True, "frames_per_record": RECORD_FRAMES_BURST},
    "TLS, one frame a record": {"tls": True, "frames_per_record": 1},
}

BUSY_RATE = 10_000

CONNECTIONS = 3
"""What 500 symbols get with the program's own settings. One is the same work for everybody."""


def run_one(contender: Contender, blast: Blast, *arguments: str) -> Figures:
    """Run one contender against one blaster."""
    scheme = "wss" if blast.tls else "ws"
    with blasting(blast) as port:
        return spawn(
            f"bench.contenders.{contender.module}",
            f"{scheme}://127.0.0.1:{port}",
            *(str(blast.symbols), str(blast.trades), str(blast.market_rate), str(blast.start_ms)),
            *contender.arguments,
            *arguments,
            env={"SSL_CERT_FILE": str(certificate()[0])},
        )


def saturated(contender: Contender, shape: str, share: float) -> Figures:
    trades = int(contender.trades * share)
    blast = Blast(
        contender.symbols,
        trades,
        MARKET_RATE,
        START_MS,
        subscribe=contender.subscribes,
        form=contender.form,
        unnamed=contender.unnamed,
        **SHAPES[shape],
    )
    return run_one(contender, blast)


def paced(contender: Contender, rate: int, seconds: float, connections: int = 1) -> Figures:
    trades = int(rate * seconds)
    blast = Blast(
        contender.symbols,
        trades,
        float(rate),
        START_MS,
        tls=True,
        frames_per_record=1,
        rate=rate,
        subscribe=contender.subscribes,
        form=contender.form,
        unnamed=contender.unnamed,
        connections=connections,
    )
    warm_up: tuple[str, ...] = ("--warm-up", str(trades // 4))
    if connections > 1:
        warm_up += ("--symbols-per-connection", str(-(-contender.symbols // connections)))
    figures = run_one(contender, blast, *warm_up, "--untimed")
    timed = run_one(contender, blast, *warm_up)
    return figures | {name: value for name, value in timed.items() if name.startswith("lag_")}


def installed(contender: Contender) -> bool:
    return not contender.needs or importlib.util.find_spec(contender.needs) is not None


def main() -> None:
    part = Part("wire_to_bars", "frames from a socket to bars, side by side")

    def add(parse: argparse.ArgumentParser) -> None:
        parse.add_argument("--shapes", default="1,2,3", help="numbers from 1 to 3, commas between")
        parse.add_argument("--rates", default="2000,10000,30000,100000")
        parse.add_argument("--rate-runs", type=int, default=1)
        parse.add_argument("--rate-seconds", type=float, default=3.0)

    options = part.options(runs=3, add=add)
    names = options.only or (["klagg", "websocket", "drain"] if options.quick else list(CONTENDERS))
    chosen = {name: CONTENDERS[name] for name in names}
    for name, contender in list(chosen.items()):
        if not installed(contender):
            part.note(f"{contender.label}: {contender.needs} is not installed; left out")
            del chosen[name]
    numbers = "1" if options.quick else options.shapes
    shapes = [list(SHAPES)[int(number) - 1] for number in numbers.split(",")]
    share = 0.1 if options.quick else 1.0
    runs: dict[str, Callable[[], Figures]] = {
        f"{shape}|{name}": partial(saturated, contender, shape, share)
        for shape in shapes
        for name, contender in chosen.items()
        if not (contender.plain_only if SHAPES[shape]["tls"] else contender.tls_only)
    }
    found = interleaved(runs, options.runs)
    part.results["saturation"] = found
    for shape in shapes:
        told = {n: found[key] for n in chosen if (key := f"{shape}|{n}") in found}
        tell_saturation(part, shape, told, chosen)
    rates = (
        [] if options.quick else [int(rate) for rate in options.rates.split(",") if rate.strip("0")]
    )
    beside = ("websocket", "picows")
    """Rivals at the rate that a market of 500 symbols reaches."""
    runs = {
        f"{rate}|{name}": partial(paced, chosen[name], rate, options.rate_seconds)
        for rate in rates
        for name in chosen
        if name == "klagg" or (name in beside and rate == BUSY_RATE)
    }
    if "klagg" in chosen and BUSY_RATE in rates:
        runs[f"{BUSY_RATE}|klagg|{CONNECTIONS} connections"] = partial(
            paced, chosen["klagg"], BUSY_RATE, options.rate_seconds, CONNECTIONS
        )
    found = interleaved(runs, options.rate_runs)
    part.results["rates"] = found
    tell_rates(found, chosen)
    part.finish()


def tell_saturation(
    part: Part, shape: str, found: dict[str, list[Figures]], chosen: dict[str, Contender]
) -> None:
    ours = median(found.get("klagg", []), "per_s")
    rows = []
    for name, runs in found.items():
        if runs and "error" in runs[-1]:
            part.note(f"{chosen[name].label}, {shape}: {runs[-1]['error']}")
            continue
        theirs = median(runs, "per_s")
        rows.append(
            (
                chosen[name].label,
                spread(runs, "per_s"),
                spread(runs, "cpu_us", digits=2),
                spread(runs, "lag_p99", digits=1),
                spread(runs, "lag_p999", digits=1),
                f"{ours / theirs:.1f}",
            )
        )
    table(
        f"Saturation, {shape}: median (least-most)",
        ("", "trades/s", "CPU us/trade", "lag p99 ms", "lag p99.9 ms", "klagg is x times"),
        rows,
    )


def tell_rates(found: dict[str, list[Figures]], chosen: dict[str, Contender]) -> None:
    rows = []
    for key, runs in found.items():
        rate, name, *more = key.split("|")
        rows.append(
            (
                ", ".join((f"{int(rate):,}/s", chosen[name].label, *more)),
                spread(runs, "per_s"),
                spread(runs, "cpu_percent", digits=1),
                spread(runs, "cpu_us", digits=1),
                spread(runs, "lag_p50", digits=1),
                spread(runs, "lag_p99", digits=1),
                spread(runs, "lag_p999", digits=1),
            )
        )
    if rows:
        table(
            "Set rates over TLS, one frame a record",
            ("", "trades/s", "CPU %", "CPU us/trade", "lag p50 ms", "p99", "p99.9"),
            rows,
        )


if __name__ == "__main__":
    main()
