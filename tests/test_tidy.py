"""House rules that no tool checks: sizes, leftovers, docstrings, names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

COLUMNS_MAX = 100
FUNCTION_LINES_MAX = 70
"""Of its body, the docstring left out. Most functions have six."""

SCENARIO_LINES_MAX = 150
"""In bench/: a program that is measured is one scenario, told from its beginning to its end."""

LEFTOVER = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "handler", "service"}

FOLDERS = ("klagg_trio", "tests", "bench", "prove")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    """A file's name within the project."""
    return str(path.relative_to(ROOT))


@pytest.fixture(params=SOURCES, ids=name_of)
def source(request) -> tuple[str, str, ast.Module]:
    """The name, the text and the syntax tree of one file."""
    text = request.param.read_text(encoding="utf-8")
    return name_of(request.param), text, ast.parse(text)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, however deep."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_lines_are_not_too_long(source):
    """At most 100 columns."""
    name, text, _ = source
    long = [
        f"{name}:{number} has {len(line)} columns"
        for number, line in enumerate(text.splitlines(), 1)
        if len(line) > COLUMNS_MAX
    ]
    assert long == []


def test_functions_are_not_too_long(source):
    """At most 70 lines of body: a longer one says several things."""
    name, _, tree = source
    long = []
    for function in functions(tree):
        body = function.body[1:] if ast.get_docstring(function) else function.body
        lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        allowed = SCENARIO_LINES_MAX if name.startswith("bench/") else FUNCTION_LINES_MAX
        if lines > allowed:
            long.append(f"{name}:{function.lineno} {function.name} has {lines} lines")
    assert long == []


def test_nothing_is_left_for_later(source):
    """No notes of things to do: what is known to be missing belongs in a document."""
    name, text, _ = source
    left = [
        f"{name}:{number} {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        if LEFTOVER.search(line)
    ]
    assert left == []


def test_every_module_says_what_it_is_for(source):
    """The first thing in a file is its docstring; an empty `__init__` has nothing to say."""
    name, text, tree = source
    assert not text.strip() or ast.get_docstring(tree), f"{name} has no docstring"


def test_every_test_says_what_it_promises(source):
    """The first line of a test is the behaviour it promises."""
    name, _, tree = source
    if not name.startswith("tests/"):
        return
    silent = [
        f"{name}:{function.lineno} {function.name} has no docstring"
        for function in functions(tree)
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]
    assert silent == []


def test_no_error_is_caught_whatever_it_is(source):
    """No bare except, no `except Exception`: a bug of ours ends the program with a traceback.

    Cleaning up by `except BaseException` is fine where it ends with a bare `raise`.
    """
    name, _, tree = source
    if name.startswith("tests/"):
        return
    wide = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {each.id for each in caught if isinstance(each, ast.Name)}
            last = node.body[-1]
            if isinstance(last, ast.Raise) and last.exc is None:
                names.discard("BaseException")
            if node.type is None or names & {"Exception", "BaseException"}:
                wide.append(f"{name}:{node.lineno} catches everything")
    assert wide == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_are_named_after_what_they_hold(path):
    """No drawer for odds and ends."""
    vague = VAGUE & set(path.relative_to(ROOT).with_suffix("").parts)
    assert not vague, f"{name_of(path)}: {vague} says nothing"
