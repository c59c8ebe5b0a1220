"""The whole application against the simulator, by `scripts/simulate`: see there for what it checks.

One process runs all seeds, on as many processors as there are; each seed is one test here, so that
a failure names it. To look at seed 17 again: `.venv/bin/python scripts/simulate --seeds 17`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from klagg_trio.sim.faults import LIES_TOLD, ON_MACHINE

SCRIPT = Path(__file__).parents[1] / "scripts" / "simulate"
SEEDS = 200
MINUTES = 30
LIES_SEEDS = 12
"""docs/reliability.md says how many more are run for a release."""

pytestmark = [pytest.mark.slow, pytest.mark.real]


def simulate(*arguments):
    """Run the script, after whatever else wants the processors; return its results by seed."""
    command = ["nice", sys.executable, str(SCRIPT), "--minutes", str(MINUTES), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1_800, check=False)
    assert done.returncode in (0, 3), done.stderr[-4_000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return {result["seed"]: result for result in results}


@pytest.fixture(scope="module")
def results():
    """Return what came of every seed."""
    return simulate("--seeds", f"0-{SEEDS - 1}")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_goes_wrong_all_bars_are_right_in_the_end(results, seed):
    """No hole, no suspect left, every bar as the exchange has it, every trade accounted for."""
    assert results[seed]["ok"], results[seed]


def test_what_can_go_wrong_did(results):
    """The seeds together bring about every kind of fault, and what is done about them."""
    faults, counts = set(), {}
    for result in results.values():
        summary = result["summary"]
        faults |= summary["faults"].keys()
        for name in ("suspects_marked", "repaired", "straddles", "reconnects", "rotations"):
            counts[name] = counts.get(name, 0) + summary[name]
        for name in ("late", "duplicates", "rejected", "added_symbols", "removed_symbols"):
            counts[name] = counts.get(name, 0) + summary[name]
    assert len(faults) >= 22, sorted(faults)
    assert all(counts.values()), counts


@pytest.fixture(scope="module")
def lies():
    """Return what came of every seed of an exchange that is wrong."""
    return simulate("--lies", "--seeds", f"0-{LIES_SEEDS - 1}")


@pytest.mark.parametrize("seed", range(LIES_SEEDS))
def test_whatever_the_exchange_says_nothing_wrong_is_announced(lies, seed):
    """On a machine that sleeps and stops: no bar announced wrong, none missing, no doubt to hide
    in, and in the end every bar as the exchange has it, but for those that it never serves."""
    assert lies[seed]["ok"], lies[seed]


def test_lies_were_told(lies):
    """The seeds together bring about most kinds of lies, and what befalls the machine."""
    told = set().union(*(result["summary"]["faults"] for result in lies.values()))
    assert len(told & {*LIES_TOLD, *ON_MACHINE}) >= 14, sorted(told)


def test_same_seed_makes_the_same_database(results):
    """A run that failed can be looked at again: byte for byte the same in the canonical export."""
    again = simulate("--seeds", "3-6")
    assert len(again) == 4
    for seed, result in again.items():
        assert result["digest"] == results[seed]["digest"], seed


def test_bursts_end_as_well():
    """The same where every chunk is taken for a burst: a simulated market is too quiet for one."""
    results = simulate("--seeds", "200-239", "--columns")
    assert [seed for seed, result in results.items() if not result["ok"]] == []
    assert len(results) == 40


def test_without_faults_only_the_start_is_suspect():
    """Where nothing goes wrong, nothing is doubted but the minute in which the feed came up."""
    for result in simulate("--seeds", "0-3", "--no-faults").values():
        summary = result["summary"]
        assert result["ok"], result
        assert summary["suspects_marked"] <= summary["symbols"]
        assert (summary["unexplained"], summary["reconnects"]) == (0, 0)
