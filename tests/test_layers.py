"""Imports point down only. The table below is the map of the package; keep it true and short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "klagg_trio"

PURE = {
    *("__future__", "collections", "copy", "dataclasses", "decimal", "enum", "itertools", "typing"),
    *("re", "msgspec", "numpy"),
}
"""All that `core` may use besides itself: no I/O, no clock, no chance, no log."""

CORE = {"core"}
EDGE = {"core", "settings", "vitals", "cmd", "backlog", "exchange", "store"}
TASKS = (
    *("worker", "tick", "feed", "discovery", "repair", "sweep", "auditor", "silence", "writer"),
    "dashboard",
)

MAY_IMPORT: dict[str, set[str]] = {
    "core": CORE,
    "cmd": CORE,
    "backlog": set(),
    "vitals": CORE,
    "settings": CORE,
    # The edges: one leads to the exchange, one to the disk; they do not know each other.
    "exchange": {"core", "settings", "vitals", "exchange"},
    "store": {"core", "settings", "vitals", "store"},
    # The tasks: they meet in channels, never in imports.
    **dict.fromkeys(TASKS, EDGE),
    # What puts parts together.
    "replay": {"core", "exchange"},
    "backfill": EDGE,
    "audit": EDGE | {"backfill"},
    "nursery_app": EDGE | set(TASKS),
    # The oracle shares nothing with what it is to judge.
    "sim": {"sim"},
    "demo": EDGE | set(TASKS) | {"sim", "backfill", "nursery_app", "demo"},
    "commands": {"*"},
    "interrupt": set(),
    "watchdog": {"core"},
    "cli": {"core", "settings", "commands", "interrupt"},
    "__main__": {"cli"},
    "__init__": set(),
}
"""For each part of the package (a module or a folder at its top), the parts it may import."""

FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The part of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Every module that a file imports, at its top or within a function, with the line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            if node.module == "klagg_trio":
                found += [(node.lineno, f"klagg_trio.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, node.module or ""))
    return found


def parts_imported(path: Path) -> list[tuple[int, str]]:
    """The parts of the package among what a file imports."""
    names = [(line, name.split(".")) for line, name in imports_of(path)]
    return [
        (line, name[1])
        for line, name in names
        if name[0] == "klagg_trio" and name[1:] and is_part(name[1])
    ]


def is_part(name: str) -> bool:
    """Whether a name is a module or a folder of the package, and not something in `__init__`."""
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    """Each module imports only what the table allows its part."""
    part = part_of(path)
    assert part in MAY_IMPORT, f"{path}: say in tests/test_layers.py what {part} may import"
    allowed = MAY_IMPORT[part]
    if "*" in allowed:
        return
    wrong = [
        f"{path}:{line} imports {name}"
        for line, name in parts_imported(path)
        if name not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if part_of(path) == "core"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_the_core_is_pure(path):
    """No module of the core can do I/O, read a clock, draw a number or write a log."""
    outside = [
        f"{path}:{line} imports {name}"
        for line, name in imports_of(path)
        if name.split(".")[0] not in PURE | {"klagg_trio"}
    ]
    assert outside == []


def test_the_table_has_no_way_up():
    """What a part may import, and what those may, never leads back to it, but for itself."""
    for part in MAY_IMPORT:
        reached, edge = set(), MAY_IMPORT[part] - {part, "*"}
        while edge:
            reached |= edge
            edge = {name for at in edge for name in MAY_IMPORT.get(at, set()) - {at}} - reached
        assert part not in reached, f"{part} can be reached from itself"


def test_tasks_do_not_know_each_other():
    """No task is in what another may import."""
    for task in TASKS:
        assert not MAY_IMPORT[task] & set(TASKS)
