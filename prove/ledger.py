"""The results file: which runs of which row were done at which commit, and what they brought."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class Result:
    """One run, as it is written down."""

    row: str
    seed: int
    commit: str
    at: str
    """When it ended, UTC."""
    seconds: float
    cases: int
    failure: str = ""
    """Which promise did not hold; empty where all did."""
    skipped: str = ""
    """Why it could not be tried here."""
    figures: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether it was tried, and all promises held."""
        return not self.failure and not self.skipped


class Ledger:
    """One JSON line a run, appended as soon as it has ended: an interrupted night is not lost."""

    def __init__(self, path: Path) -> None:
        """Use a file, made with the first result."""
        self.path = path

    def add(self, result: Result) -> None:
        """Append a result."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")

    def of(self, commit: str) -> dict[tuple[str, int], Result]:
        """Return the last result of each run at a commit. A line cut short counts as not there."""
        found: dict[tuple[str, int], Result] = {}
        if not self.path.exists():
            return found
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                fields: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            result = Result(**fields)
            if result.commit == commit:
                found[result.row, result.seed] = result
        return found


def commit_here() -> str:
    """Return the commit of the sources, and a mark of what differs from it."""
    head = _git("rev-parse", "--short=12", "HEAD").strip() or "unknown"
    changed = _git("diff", "HEAD", "--", "klagg_trio", "prove", "pyproject.toml", "uv.lock")
    changed += _git("status", "--porcelain", "--", "klagg_trio", "prove")
    if not changed:
        return head
    return f"{head}+{hashlib.sha256(changed.encode()).hexdigest()[:8]}"


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else ""
