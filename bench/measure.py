"""How benchmarks run, and how they tell: interleaved runs, medians with spread, tables, JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"

Figures = dict[str, Any]
"""What one run of one contender measured, by name."""


@dataclass(slots=True)
class Part:
    """One part of the suite: its options, its results, its report."""

    name: str
    what: str
    results: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    started_s: float = field(default_factory=time.perf_counter)

    def options(
        self, *, runs: int, add: Callable[[argparse.ArgumentParser], None] | None = None
    ) -> argparse.Namespace:
        """Read the command line that all parts share."""
        parse = argparse.ArgumentParser(prog=f"python -m bench.{self.name}", description=self.what)
        parse.add_argument("--quick", action="store_true", help="a smoke run; no figures to quote")
        parse.add_argument("--runs", type=int, default=None, help=f"default {runs}; quick: 1")
        parse.add_argument("--only", default="", help="contenders, with commas between them")
        if add is not None:
            add(parse)
        chosen = parse.parse_args()
        if chosen.runs is None:
            chosen.runs = 1 if chosen.quick else runs
        chosen.only = [name for name in chosen.only.split(",") if name]
        self.results["quick"] = chosen.quick
        self.results["runs"] = chosen.runs
        return chosen

    def note(self, text: str) -> None:
        """Say something beside the tables."""
        self.notes.append(text)
        print(text, flush=True)

    def finish(self) -> None:
        """Write the results."""
        self.results["notes"] = self.notes
        self.results["machine"] = machine()
        self.results["command"] = " ".join(["python", "-m", f"bench.{self.name}", *sys.argv[1:]])
        self.results["took_s"] = round(time.perf_counter() - self.started_s, 1)
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}{'.quick' if self.results['quick'] else ''}.json"
        path.write_text(json.dumps(self.results, indent=1, sort_keys=True) + "\n")
        print(f"\n{path.relative_to(ROOT)}; {self.results['took_s']} s")


def interleaved(
    contenders: Mapping[str, Callable[[], Figures]], runs: int
) -> dict[str, list[Figures]]:
    """Run every contender once, then every one again, and so on: they share the machine's moods.

    A contender that fails is reported with its error and left out of the following runs.
    """
    found: dict[str, list[Figures]] = {name: [] for name in contenders}
    failed: set[str] = set()
    for _ in range(runs):
        for name, run in contenders.items():
            if name in failed:
                continue
            try:
                found[name].append(run())
            except (RuntimeError, OSError, subprocess.SubprocessError, ImportError) as error:
                failed.add(name)
                found[name].append({"error": f"{type(error).__name__}: {error}"[:400]})
    return found


def median(runs: Iterable[Figures], name: str) -> float:
    """Return the median of one figure; NaN where no run has it."""
    values = [run[name] for run in runs if run.get(name) is not None]
    return statistics.median(values) if values else float("nan")


def spread(runs: Iterable[Figures], name: str, scale: float = 1.0, digits: int = 0) -> str:
    """Return median and range of one figure as text."""
    values = [run[name] * scale for run in runs if run.get(name) is not None]
    if not values:
        return "-"
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, in the form of Markdown."""
    texts = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in texts) for index in range(len(columns))]
    print(f"\n{title}\n")
    for number, row in enumerate(texts):
        cells = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("| " + " | ".join(cells) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    sys.stdout.flush()


def machine() -> Figures:
    """Say where this runs, and how busy it was."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    import sqlite3

    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": [round(each, 2) for each in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def spawn(
    module: str, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 150
):
    """Run a contender in a process of its own; return the JSON object it printed last."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        tail = " / ".join(done.stderr.strip().splitlines()[-12:])
        raise RuntimeError(f"{module} ended with {done.returncode}: {tail}")
    figures: Figures = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value with at least `share` of all at or below it."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
