"""Run rows of the matrix, write down what they bring, say what failed and how to see it again."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import platform
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from prove.ledger import RESULTS, Ledger, Result, commit_here
from prove.row import SUMMARIES, Broken, Outcome, Row, Skipped, summary
from prove.rows import ROWS

NOTHING_FAILED, FAILED = 0, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/prove", description="The fault matrix: docs/reliability.md."
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="default: every row")
    parser.add_argument("--release", action="store_true", help="a release's runs: hours")
    parser.add_argument("--seed", type=int, help="one run of one row")
    parser.add_argument("--runs", type=int, help="so many runs of each row")
    parser.add_argument("--lanes", type=int, help="runs side by side")
    parser.add_argument("--again", action="store_true", help="also what is in the results file")
    parser.add_argument("--list", action="store_true", help="say what rows there are")
    parser.add_argument(
        "--table", action="store_true", help="what is in the results file, for docs"
    )
    parser.add_argument("--results", type=Path, help="default: prove/results/ci.jsonl")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.rows) - ROWS.keys():
        parser.error(f"no row {', '.join(sorted(unknown))}; there are: {' '.join(ROWS)}")
    if chosen.seed is not None and len(chosen.rows) != 1:
        parser.error("--seed goes with one ROW")
    rows = [ROWS[name] for name in chosen.rows or ROWS]
    if chosen.list:
        for row in rows:
            print(f"{row.name:12} {row.ci:>5} / {row.release:<6} {row.what}")
        return NOTHING_FAILED
    column = "release" if chosen.release else "ci"
    ledger = Ledger(chosen.results or RESULTS / f"{column}.jsonl")
    if chosen.table:
        print_table(rows, list(ledger.of(commit_here()).values()))
        return NOTHING_FAILED
    return prove(rows, chosen, ledger)


def prove(rows: Sequence[Row], chosen: argparse.Namespace, ledger: Ledger) -> int:
    """Run every run of the rows that is not in the ledger yet."""
    commit = commit_here()
    print(f"commit {commit}, {platform.platform()}, Python {platform.python_version()}")
    done = {} if chosen.again or chosen.seed is not None else ledger.of(commit)
    plan = {row.name: seeds_of(row, chosen) for row in rows}
    todo = {
        row.name: [
            seed
            for seed in plan[row.name]
            if (row.name, seed) not in done or done[row.name, seed].failure
        ]
        for row in rows
    }
    progress = Progress(sum(map(len, todo.values())))
    results: list[Result] = []
    for row in rows:
        kept = [done[row.name, seed] for seed in plan[row.name] if seed not in todo[row.name]]
        if kept:
            print(f"{row.name}: {len(kept)} runs were done before ({ledger.path})")
        results += kept
        results += run_row(row, todo[row.name], commit, ledger, progress, chosen.lanes)
    return report(rows, results, whole=chosen.seed is None and chosen.runs is None)


def seeds_of(row: Row, chosen: argparse.Namespace) -> list[int]:
    """Return the seeds of a row's runs."""
    if chosen.seed is not None:
        return [chosen.seed]
    return list(range(chosen.runs or (row.release if chosen.release else row.ci)))


class Progress:
    """How far it is, and how long it will take at this pace."""

    def __init__(self, runs: int) -> None:
        """Nothing is done of so many runs."""
        self.runs, self.done, self.began_s = runs, 0, time.monotonic()

    def step(self) -> str:
        """Count a run; return where that leaves us."""
        self.done += 1
        took_s = time.monotonic() - self.began_s
        left_s = took_s / self.done * (self.runs - self.done)
        return f"[{self.done}/{self.runs}, {left_s / 60:.0f} min to go]"


def run_row(
    row: Row,
    seeds: Sequence[int],
    commit: str,
    ledger: Ledger,
    progress: Progress,
    lanes: int | None,
) -> Iterable[Result]:
    """Run some runs of a row side by side; say and write down what comes of each."""
    if seeds:
        print(f"{row.name}: {row.what}; seeds {seeds[0]} to {seeds[-1]}", flush=True)
    stopping = threading.Event()
    with ThreadPoolExecutor(lanes or row.lanes) as pool:
        futures = [pool.submit(run_once, row, seed, commit, stopping) for seed in seeds]
        try:
            for future in as_completed(futures):
                result = future.result()
                ledger.add(result)
                state = (result.failure and "FAILED") or (result.skipped and "skipped") or "ok"
                print(
                    f"{row.name} --seed {result.seed}: {state}, {result.cases} cases,"
                    f" {result.seconds:.0f} s  {progress.step()}",
                    flush=True,
                )
                if result.failure:
                    print(f"  {result.failure}\n  again: {replay_line(result)}", flush=True)
                elif result.skipped:
                    print(f"  {result.skipped}", flush=True)
                yield result
        except BaseException:
            stopping.set()
            for future in futures:
                future.cancel()
            raise


def replay_line(result: Result) -> str:
    """Return the command that does a run again."""
    return f"./scripts/prove {result.row} --seed {result.seed}"


def run_once(row: Row, seed: int, commit: str, stopping: threading.Event) -> Result:
    """Do one run. Its folder stays where it has failed."""
    outcome, failure, skipped = Outcome(), "", ""
    began_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"klagg-prove-{row.name}-{seed}-"))
    try:
        row.run(seed, folder, outcome)
    except Skipped as reason:
        skipped = str(reason)
    except (Broken, AssertionError) as broken:
        failure = str(broken) or repr(broken)
    except (OSError, ValueError, LookupError, ArithmeticError, sqlite3.Error) as error:
        failure = f"the harness itself: {''.join(traceback.format_exception(error))}"
    if failure and not stopping.is_set():
        failure += f"\n  files: {folder}"
    else:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
    return Result(
        row=row.name,
        seed=seed,
        commit=commit,
        at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began_s, 1),
        cases=outcome.cases,
        failure=failure,
        skipped=skipped,
        figures=outcome.figures,
        notes=outcome.notes,
    )


def report(rows: Sequence[Row], results: Sequence[Result], *, whole: bool) -> int:
    """Print a line a row with its figures. Returns the exit code.

    Limits on figures are judged over a whole column only: one run has no 95th percentile.
    """
    failed = False
    print()
    for row in rows:
        runs = [result for result in results if result.row == row.name]
        failures = [run for run in runs if run.failure]
        skips = [run for run in runs if run.skipped]
        figures = figures_of(runs)
        told = [
            f"{name}: median {summary(values, 'median'):g}, p95 {summary(values, 'p95'):g},"
            f" max {summary(values, 'max'):g}"
            for name, values in figures.items()
        ]
        over = [
            f"{name}: {which} {summary(figures[name], which):g} is over {limit:g}"
            for name, (which, limit) in row.limits.items()
            if whole and name in figures and summary(figures[name], which) > limit
        ]
        failed = failed or bool(failures or over)
        state = "FAILED" if failures or over else "ok"
        if runs and len(skips) == len(runs):
            state = "skipped"
        cases = sum(run.cases for run in runs)
        print(
            f"{row.name:12} {state:8} {len(runs)} runs, {cases} cases, {len(failures)} failed,"
            f" {len(skips)} skipped"
        )
        for line in (*over, *told, *{run.skipped for run in skips}):
            print(f"{'':14}{line}")
        for run in failures:
            print(f"{'':14}again: {replay_line(run)}")
    return FAILED if failed else NOTHING_FAILED


def figures_of(runs: Sequence[Result]) -> dict[str, list[float]]:
    """Return the figures of several runs together."""
    figures: dict[str, list[float]] = {}
    for run in runs:
        for name, values in run.figures.items():
            figures.setdefault(name, []).extend(values)
    return figures


def print_table(rows: Sequence[Row], results: Sequence[Result]) -> None:
    """Print what is in the results file as a table in Markdown, a line a row."""
    print("| row | runs | cases | failed | skipped | measured: median, p95, most |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        runs = [result for result in results if result.row == row.name]
        if not runs:
            continue
        told = [
            f"{name}: " + ", ".join(f"{summary(values, which):g}" for which in SUMMARIES)
            for name, values in figures_of(runs).items()
        ]
        counts = (
            len(runs),
            sum(run.cases for run in runs),
            sum(bool(run.failure) for run in runs),
            sum(bool(run.skipped) for run in runs),
        )
        print(
            f"| `{row.name}` | {' | '.join(f'{each:,}' for each in counts)} | {'; '.join(told)} |"
        )


if __name__ == "__main__":
    sys.exit(main())
