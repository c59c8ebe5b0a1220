"""What a row of the matrix is, and what one run of it brings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


class Broken(Exception):
    """A promise does not hold; the text says which, in words and figures."""


class Skipped(Exception):
    """This machine cannot do it; the text says why."""


def check(holds: object, text: str) -> None:
    """Raise Broken unless something holds."""
    if not holds:
        raise Broken(text)


@dataclass(slots=True)
class Outcome:
    """What one run has brought."""

    cases: int = 0
    """Faults that were tried in it: a run may be a chain of several."""
    figures: dict[str, list[float]] = field(default_factory=dict)
    """What was measured, by name; rows sum them up by median, 95th percentile and maximum."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the results should know."""

    def measure(self, name: str, value: float) -> None:
        """Keep a figure."""
        self.figures.setdefault(name, []).append(round(value, 3))


Run = Callable[[int, Path, Outcome], None]
"""Does one run by its seed, in a folder of its own. Fills the outcome as it goes; raises Broken
where a promise does not hold, Skipped where it cannot be tried here."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the matrix."""

    name: str
    what: str
    """What goes wrong, in a few words."""
    holds: str
    """What must hold."""
    run: Run
    ci: int
    """Runs in CI: seeds from 0."""
    release: int
    """Runs before a release: the same seeds and more."""
    lanes: int = 1
    """Runs side by side. Most of a run is waiting for a minute to end."""
    limits: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By figure, which summary of it (median, p95, max) must stay at or below which value."""


def needs(tool: str) -> str:
    """Return the path of a program. Skipped where there is none."""
    path = shutil.which(tool)
    if path is None:
        raise Skipped(f"needs {tool}: apt-get install {tool}")
    return path


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value with at least `share` of all at or below it."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


SUMMARIES = {"median": 0.5, "p95": 0.95, "max": 1.0}


def summary(values: list[float], which: str) -> float:
    """Return the median, the p95 or the max of some values."""
    return percentile(values, SUMMARIES[which])
