"""Part 2: trades that are in memory already, to bars.

The same trades for all, as the objects that each works on; 1m bars checked against the expected
ones. klagg makes nine exact values a bar and judges every id; the others make five or six.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from bench.market import CACHE
from bench.measure import Figures, Part, interleaved, median, spawn, spread, table

NODE = Path(__file__).resolve().parent / "node"
MODULE = "bench.contenders.in_memory"

CONTENDERS = {
    "klagg-1": ("klagg's shard, 1m", "klagg", 1, ""),
    "klagg-12": ("klagg's shard, 12 intervals", "klagg", 12, ""),
    "klagg-15": ("klagg's shard, 15 intervals", "klagg", 15, ""),
    "columns-1": ("klagg's shard, columns, 1m", "klagg-columns", 1, ""),
    "columns-12": ("klagg's shard, columns, 12 intervals", "klagg-columns", 12, ""),
    "columns-15": ("klagg's shard, columns, 15 intervals", "klagg-columns", 15, ""),
    "nautilus-1": ("nautilus TimeBarAggregator, 1m", "nautilus", 1, "nautilus_trader"),
    "nautilus-12": ("nautilus TimeBarAggregator, 12", "nautilus", 12, "nautilus_trader"),
    "engine-1": ("nautilus DataEngine, 1m", "nautilus-engine", 1, "nautilus_trader"),
    "engine-12": ("nautilus DataEngine, 12", "nautilus-engine", 12, "nautilus_trader"),
    "ccxt": ("ccxt build_ohlcvc, 1m", "ccxt", 1, "ccxt"),
    "tardis": ("tardis-dev computed bars, 1m (node)", "tardis", 1, ""),
    "polars": ("polars group_by_dynamic, 1m, batch", "polars", 1, "polars"),
}


def run_one(which: str, intervals: int, symbols: int, count: int) -> Figures:
    if which == "tardis":
        return run_tardis(symbols, count)
    return spawn(MODULE, which, str(symbols), str(count), "--intervals", str(intervals))


def run_tardis(symbols: int, count: int) -> Figures:
    if not (NODE / "node_modules").exists() or shutil.which("node") is None:
        raise RuntimeError("node or bench/node/node_modules is missing: see scripts/bench")
    path = CACHE / f"node-{symbols}-{count}.json"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                *(sys.executable, "-m", MODULE, "node-file"),
                *(str(symbols), str(count), "--path", str(path)),
            ],
            check=True,
            cwd=NODE.parent.parent,
        )
    done = subprocess.run(
        ["node", str(NODE / "in_memory.js"), str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    figures: Figures = json.loads(done.stdout)
    return figures


def main() -> None:
    part = Part("memory", "trades that are in memory already, to bars")

    def add(parse: argparse.ArgumentParser) -> None:
        parse.add_argument("--trades", type=int, default=300_000)

    options = part.options(runs=3, add=add)
    names = options.only or (["klagg-1", "klagg-15"] if options.quick else list(CONTENDERS))
    count = 50_000 if options.quick else options.trades
    runs = {}
    for name in names:
        label, which, intervals, needs = CONTENDERS[name]
        if needs and importlib.util.find_spec(needs) is None:
            part.note(f"{label}: {needs} is not installed; left out")
            continue
        runs[name] = partial(run_one, which, intervals, 500, count)
    found = interleaved(runs, options.runs)
    part.results["contenders"] = found
    ours = {n: median(found.get(f"columns-{n}", []), "us") for n in (1, 12)}
    rows = []
    for name, each in found.items():
        label, _, intervals, _ = CONTENDERS[name]
        if "error" in each[-1]:
            part.note(f"{label}: {each[-1]['error']}")
            continue
        ratio = median(each, "us") / ours[12 if intervals > 1 else 1]
        rows.append(
            (
                label,
                spread(each, "per_s"),
                spread(each, "us", digits=2),
                spread(each, "trade_us", digits=3),
                spread(each, "ticks_ms", digits=1),
                f"{ratio:.1f}",
            )
        )
    table(
        f"Trades in memory to bars, 500 symbols, {count:,} trades",
        (
            *("", "trades/s", "CPU us/trade", "us/trade without ticks", "ticks, ms"),
            "CPU against klagg's columns at as many intervals",
        ),
        rows,
    )
    part.finish()


if __name__ == "__main__":
    main()
