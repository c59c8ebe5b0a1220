"""docs/reference.md says what the program does: generated parts are current, the rest is whole."""

import ast
import importlib.machinery
import importlib.util
import re
from pathlib import Path

import pytest

from klagg_trio.demo.judge import DemoSummary

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def generator():
    """Return scripts/reference as a module."""
    loader = importlib.machinery.SourceFileLoader("reference", str(ROOT / "scripts/reference"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("reference", loader))
    loader.exec_module(module)
    return module


def first_column(section):
    """Return the words in backquotes in the first column of a section's tables."""
    part = REFERENCE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| ([^|]*)\|", part, re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.real
def test_generated_parts_are_current():
    """Commands, settings, exit codes and views are those of the program."""
    assert generator().rewritten(REFERENCE) == REFERENCE, "run: .venv/bin/python scripts/reference"


def test_every_kind_of_event_is_listed():
    """The table of events names every kind that the code writes, and no other."""
    kinds = set()
    for path in (ROOT / "klagg_trio").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Event":
                kind = node.args[1]
                assert isinstance(kind, ast.Constant), f"{path}:{node.lineno}: kind not literal"
                kinds.add(kind.value)
    assert first_column("Events") == kinds


def test_every_field_of_the_demo_is_listed():
    """The table of `demo --json` names every field, and no other."""
    fields = {*DemoSummary.__dataclass_fields__, "ok"}
    assert first_column("JSON") == fields


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(path):
    """Relative links of the documents lead to files of the project."""
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in link:
            assert (path.parent / link).exists(), f"{path.name}: {link}"
