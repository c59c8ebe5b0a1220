"""Part 3: an archive file of aggregate trades to 1m bars, end to end.

The file has the form of the exchange's archive (seven columns, header): one busy symbol, a week of
it. `klagg replay` writes exact decimals of nine values and judges every id; polars and DuckDB read
the same csv into floats and group it. Their open, high, low, close, volume and count are held
against klagg's.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from bench.market import CACHE, decimal_text, instruments, trades
from bench.measure import ROOT, Figures, Part, interleaved, median, spread, table

RATE = 16.5
"""Aggregates a second: 10 million are a week of the busiest contract."""

START_MS = 1_790_812_800_000

POLARS = """
import sys
import polars as pl
price, quantity = pl.col("price"), pl.col("quantity")
(
    pl.scan_csv(sys.argv[1])
    .with_columns(pl.from_epoch("transact_time", time_unit="ms"))
    .group_by_dynamic("transact_time", every="1m")
    .agg(
        open=price.first(), high=price.max(), low=price.min(), close=price.last(),
        volume=quantity.sum(), quote_volume=(price * quantity).sum(),
        count=(pl.col("last_trade_id") - pl.col("first_trade_id") + 1).sum(),
        taker_buy_volume=quantity.filter(~pl.col("is_buyer_maker")).sum(),
        taker_buy_quote_volume=(price * quantity).filter(~pl.col("is_buyer_maker")).sum(),
    )
    .with_columns(open_time=pl.col("transact_time").dt.epoch("ms"))
    .select("open_time", "open", "high", "low", "close", "volume", "count")
    .collect()
    .write_csv(sys.argv[2])
)
"""

DUCKDB = """
import sys
import duckdb
duckdb.sql("SET enable_progress_bar = false")
duckdb.sql(f'''
    COPY (
        SELECT transact_time // 60000 * 60000 AS open_time,
            arg_min(price, agg_trade_id) AS open, max(price) AS high, min(price) AS low,
            arg_max(price, agg_trade_id) AS close, sum(quantity) AS volume,
            sum(last_trade_id - first_trade_id + 1) AS count, sum(price * quantity) AS quote_volume,
            sum(quantity) FILTER (NOT is_buyer_maker) AS taker_buy_volume,
            sum(price * quantity) FILTER (NOT is_buyer_maker) AS taker_buy_quote_volume
        FROM read_csv('{sys.argv[1]}') GROUP BY open_time ORDER BY open_time
    ) TO '{sys.argv[2]}' (HEADER)
''')
"""


def archive(rows: int) -> Path:
    """Return an archive file with so many rows, made if it is not in the cache."""
    path = CACHE / f"BTCUSDT-aggTrades-{rows}.csv"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    made = instruments(1)
    each = made[0]
    unfinished = path.with_suffix(".part")
    with unfinished.open("w") as file:
        file.write(
            "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,"
            "is_buyer_maker\n"
        )
        for t in itertools.islice(trades(made, rate_per_s=RATE, start_ms=START_MS), rows):
            file.write(
                f"{t.id},{decimal_text(t.price, each.price_decimals)},"
                f"{decimal_text(t.quantity, each.quantity_decimals)},{t.first_id},{t.last_id},"
                f"{t.time_ms},{'true' if t.buyer_is_maker else 'false'}\n"
            )
    unfinished.rename(path)
    return path


def run_one(command: tuple[str, ...], rows: int) -> Figures:
    """Run a program to its end; take time, processor time and size from the system."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(errors.strip()[-300:])
    cpu_s = usage.ru_utime + usage.ru_stime
    return {
        "seconds": seconds,
        "per_s": rows / seconds,
        "cpu_us": cpu_s / rows * 1e6,
        "cpu_percent": 100 * cpu_s / seconds,
        "rss_mib": usage.ru_maxrss / 1024,
    }


def bars_of(path: Path) -> dict[int, tuple[float, ...]]:
    columns = ("open", "high", "low", "close", "volume", "count")
    with path.open() as file:
        return {
            int(row["open_time"]): tuple(float(row[name]) for name in columns)
            for row in csv.DictReader(file)
        }


def main() -> None:
    part = Part("replay", "an archive file of aggregate trades to 1m bars, end to end")

    def add(parse: argparse.ArgumentParser) -> None:
        parse.add_argument("--rows", type=int, default=10_000_000)

    options = part.options(runs=3, add=add)
    rows = 200_000 if options.quick else options.rows
    path = archive(rows)
    outs = {
        name: CACHE / f"replay-{name}.csv" for name in ("klagg", "klagg-15", "polars", "duckdb")
    }
    klagg = (sys.executable, "-m", "klagg_trio", "replay", str(path))
    one_thread = ("env", "POLARS_MAX_THREADS=1")
    commands = {
        "klagg replay, 1m": (*klagg, "--out", str(outs["klagg"])),
        "klagg replay, all 15": (*klagg, "--intervals", "all", "--out", str(outs["klagg-15"])),
        "polars": (sys.executable, "-c", POLARS, str(path), str(outs["polars"])),
        "polars, one thread": (
            *(*one_thread, sys.executable, "-c", POLARS),
            *(str(path), str(outs["polars"])),
        ),
        "duckdb": (sys.executable, "-c", DUCKDB, str(path), str(outs["duckdb"])),
    }
    if options.quick:
        commands = {"klagg replay, 1m": commands["klagg replay, 1m"]}
    found = interleaved(
        {name: partial(run_one, command, rows) for name, command in commands.items()}, options.runs
    )
    part.results["runs"] = found
    ours = bars_of(outs["klagg"])
    counted = sum(bar[5] for bar in ours.values())
    part.note(
        f"{rows:,} rows, {path.stat().st_size / 2**20:.0f} MiB; {len(ours):,} minutes, "
        f"{counted:,.0f} raw trades in bars"
    )
    for name in ("polars", "duckdb"):
        if name in commands and "error" not in found[name][-1]:
            theirs = bars_of(outs[name])
            differ = sum(
                key not in ours
                or any(
                    not math.isclose(a, b, rel_tol=1e-9)
                    for a, b in zip(ours[key], bar, strict=True)
                )
                for key, bar in theirs.items()
            )
            part.note(f"{name}: {differ} of {len(theirs):,} bars differ from klagg's")
    base = median(found["klagg replay, 1m"], "cpu_us")
    table(
        f"{rows:,} rows of csv to 1m bars",
        ("", "rows/s", "seconds", "CPU us/row", "cores", "klagg's CPU is x times", "MiB"),
        (
            (
                name,
                spread(runs, "per_s"),
                spread(runs, "seconds", digits=1),
                spread(runs, "cpu_us", digits=2),
                spread(runs, "cpu_percent", 0.01, 1),
                f"{base / median(runs, 'cpu_us'):.1f}",
                spread(runs, "rss_mib"),
            )
            for name, runs in found.items()
        ),
    )
    part.finish()


if __name__ == "__main__":
    main()
