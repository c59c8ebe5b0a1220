"""The rooms of the shard import one way, as the map in their door says."""

from __future__ import annotations

import ast
from pathlib import Path

ROOM = Path(__file__).parents[2] / "klagg_trio" / "core" / "shard"

ORDER = ("state", "evidence", "restate", "seal", "trades", "report", "life", "face")
"""Each may import those before it."""


def test_imports_run_one_way():
    """No module of the shard imports one that stands after it, and each has its place."""
    modules = {path.stem: path for path in ROOM.glob("*.py") if path.stem != "__init__"}
    assert set(modules) == set(ORDER)
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
                "klagg_trio.core.shard"
            ):
                continue
            parts = (node.module or "").split(".")
            used = parts[3:] or [alias.name for alias in node.names]
            for each in used:
                assert ORDER.index(each) < ORDER.index(name), f"{name} imports {each}"
