"""The whole application against the simulator: memory streams, a clock that jumps, faults.

Every seed draws a market, fault rates and a clock error. The real feed, tap, workers, clock, repair
and writer run; only sockets and the disk thread are replaced. `scripts/simulate` runs more seeds.
"""

import hashlib
import random
import sqlite3
from dataclasses import replace

import pytest
import trio
import trio.testing

from klagg_trio.demo import drawn_options, run_stage
from klagg_trio.sim.faults import NONE

SEEDS = 200
MINUTES = 30

QUERIES = (
    "SELECT * FROM klines ORDER BY symbol, interval, open_time",
    "SELECT * FROM open_klines ORDER BY symbol, interval",
    "SELECT symbol, onboard_ms, delivery_ms, three_day_phase_ms, status FROM symbols ORDER BY 1",
    "SELECT at_ms, kind, symbol, text FROM events ORDER BY id",
    "SELECT key, value FROM meta ORDER BY key",
)


class Ledger:
    """Holds the trades received against where they ended, at every tick."""

    def __init__(self):
        """No tick has been seen."""
        self.ticks = 0

    async def watch(self, read):
        """Check each time the running minute has changed and all is quiet."""
        minute_ms = 0
        while True:
            await trio.sleep(1.0)
            vitals = read()
            if vitals.clock.minute_ms == minute_ms:
                continue
            minute_ms = vitals.clock.minute_ms
            await trio.testing.wait_all_tasks_blocked()
            vitals = read()
            assert vitals.received == vitals.trades.total, f"trades lost by {minute_ms}"
            self.ticks += 1


def run(options, folder, monkeypatch):
    """Run one simulation; the same options give the same one."""
    # Trio shuffles its tasks by this, and retries jitter by the global generator.
    monkeypatch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
    monkeypatch.setattr("trio._core._run._r", random.Random(options.seed))
    random.seed(options.seed)
    ledger = Ledger()
    clock = trio.testing.MockClock(autojump_threshold=0)
    summary = trio.run(run_stage, options, folder, ledger.watch, clock=clock)
    assert ledger.ticks >= options.minutes
    return summary


def export(path):
    """Return the digest of all that a database says, in a fixed order."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    digest = hashlib.sha256()
    for query in QUERIES:
        for row in connection.execute(query):
            digest.update(repr(row).encode())
    connection.close()
    return digest.hexdigest()


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_goes_wrong_all_bars_are_right_in_the_end(seed, tmp_path, monkeypatch):
    """No hole, no suspect left, every bar as the exchange has it, every trade accounted for."""
    options = drawn_options(seed, MINUTES)
    print(seed, options)  # noqa: T201 - the first thing to know of a failure
    summary = run(options, tmp_path, monkeypatch)
    assert summary.ok, summary
    assert summary.weight_peak_percent <= 80


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("seed", [3, 14, 159])
def test_same_seed_makes_the_same_database(seed, tmp_path, monkeypatch):
    """A run that failed can be looked at again."""
    digests = set()
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        run(drawn_options(seed, MINUTES), folder, monkeypatch)
        digests.add(export(folder / "klagg.db"))
    assert len(digests) == 1


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("seed", [1, 2])
def test_without_faults_only_the_start_is_suspect(seed, tmp_path, monkeypatch):
    """Where nothing goes wrong, nothing is doubted but the minute in which the feed came up."""
    options = replace(drawn_options(seed, MINUTES), faults=NONE)
    summary = run(options, tmp_path, monkeypatch)
    assert summary.ok, summary
    assert summary.suspects_marked <= summary.symbols
    assert (summary.unexplained, summary.reconnects) == (0, 0)
