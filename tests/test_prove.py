"""The harness of ./scripts/prove, and the part of the matrix that every run of the tests does."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from argparse import Namespace
from contextlib import closing

import pytest

from prove import judge
from prove.__main__ import main, prove
from prove.ledger import Ledger, Result
from prove.middle import frame, payload_of, split_frames
from prove.row import Broken, Outcome, Row, Skipped, check, percentile
from prove.rows import ROWS

pytestmark = [pytest.mark.real, pytest.mark.slow]


# -- The harness -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Let the folders of runs that fail stay within the test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def row(run, **options):
    """Return a row that does what it is told."""
    return Row(name="row", what="", holds="", run=run, ci=3, release=6, **options)


def chosen(**options):
    """Return the choices of a command line."""
    defaults = {"seed": None, "again": False, "runs": None, "release": False, "lanes": None}
    return Namespace(**{**defaults, **options})


def test_a_failure_is_told_with_the_line_that_shows_it_again(tmp_path, capsys):
    """Exit 3, and the command for that one seed."""

    def run(seed, folder, outcome):
        outcome.cases = 1
        check(seed != 1, "it does not hold")

    assert prove([row(run)], chosen(), Ledger(tmp_path / "results")) == 3
    said = capsys.readouterr().out
    assert "it does not hold" in said
    assert "./scripts/prove row --seed 1" in said


def test_what_was_done_is_not_done_again(tmp_path):
    """A second night does what the first has not: what is new, and what has failed."""
    done = []

    def run(seed, folder, outcome):
        done.append(seed)
        check(len(done) > 3 or seed != 1, "the first time")

    ledger = Ledger(tmp_path / "results")
    assert prove([row(run)], chosen(), ledger) == 3
    with ledger.path.open("a") as file:
        file.write('{"row": "row", "seed": 9, "com')  # a night that ended in the middle of a line
    assert prove([row(run)], chosen(release=True), Ledger(ledger.path)) == 0
    assert sorted(done) == [0, 1, 1, 2, 3, 4, 5]


def test_what_cannot_be_tried_here_is_told(tmp_path, capsys):
    """A skipped run is no failure and no success."""

    def run(seed, folder, outcome):
        raise Skipped("needs a moon")

    assert prove([row(run)], chosen(), Ledger(tmp_path / "results")) == 0
    said = capsys.readouterr().out
    assert "needs a moon" in said
    assert "skipped" in said


def test_a_limit_is_judged_over_the_whole_column(tmp_path):
    """One slow run of many is none too many; a slow 95th percentile is."""

    def run(seed, folder, outcome):
        outcome.measure("s", 10.0 if seed < slow else 1.0)

    for slow, code in ((0, 0), (1, 0), (2, 3)):
        judged = Row("row", "", "", run, ci=20, release=20, limits={"s": ("p95", 3.0)})
        assert prove([judged], chosen(), Ledger(tmp_path / f"results {slow}")) == code


def test_percentiles():
    """The smallest value with at least that share at or below it."""
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile(list(map(float, range(1, 101))), 0.95) == 95.0
    assert percentile([7.0], 0.95) == 7.0


def test_results_come_back_as_they_were(tmp_path):
    """By the commit they were had at."""
    ledger = Ledger(tmp_path / "deep" / "results")
    result = Result("row", 3, "abc", "now", 1.5, 7, figures={"s": [1.0]})
    ledger.add(result)
    assert ledger.of("abc") == {("row", 3): result}
    assert ledger.of("abd") == {}
    assert json.loads(ledger.path.read_text())["cases"] == 7


def test_every_row_says_what_it_is(capsys):
    """Name, words, and more runs before a release than in CI."""
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    for name, each in ROWS.items():
        assert name == each.name
        assert name in said
        assert each.what
        assert each.holds
        assert 1 <= each.ci <= each.release


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
def test_frames_are_found_in_a_stream(size):
    """Whole ones, of every length; what is left is kept."""
    one = frame(b"x" * size)
    frames, rest = split_frames(one + one + one[:-1])
    assert frames == [one, one]
    assert rest == one[:-1]
    assert payload_of(one) == b"x" * size


# -- The judge -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return a database made by a short demo."""
    data = tmp_path_factory.mktemp("judged") / "data"
    arguments = ["demo", "--minutes", "3", "--speed", "max", "--symbols", "3", "--headless"]
    command = [sys.executable, "-m", "klagg_trio", *arguments, "--data-dir", str(data)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with closing(sqlite3.connect(data / "klagg.db")) as connection:
        connection.execute("DELETE FROM bars WHERE interval IN (12, 14)")  # 3d, 1M: no fixed length
        connection.execute("DELETE FROM recent_bars WHERE interval IN (12, 14)")
        connection.commit()
    return data


@pytest.fixture
def copy(stored, tmp_path):
    """Return a copy of it, to be spoilt."""
    shutil.copytree(stored, tmp_path / "data")
    return tmp_path / "data" / "klagg.db"


def spoil(path, statement):
    """Change a database behind klagg's back."""
    with closing(sqlite3.connect(path)) as connection:
        count = connection.execute(statement).rowcount
        connection.commit()
    assert count > 0


NEWEST = "(SELECT max(open_time) FROM recent_bars WHERE interval = 0)"


def test_the_judge_finds_nothing_in_what_is_right(copy):
    """What a demo leaves is whole and continuous."""
    judge.check_whole(copy)
    judge.check_snapshot(copy.with_name("initial_state.cbor"))
    bars = judge.sealed(copy)
    assert len(bars) > 100
    judge.check_continuous(copy, bars)
    judge.check_kept(bars, bars)


@pytest.mark.parametrize("where", [NEWEST, f"{NEWEST} - 60000"])
def test_the_judge_sees_a_hole(copy, where):
    """In the middle, and at the end."""
    before = judge.sealed(copy)
    spoil(copy, f"DELETE FROM recent_bars WHERE interval = 0 AND open_time = {where}")
    after = judge.sealed(copy)
    with pytest.raises(Broken, match=r"holes in|ends at"):
        judge.check_continuous(copy, after)
    with pytest.raises(Broken, match="lost"):
        judge.check_kept(before, after)


def test_the_judge_sees_a_silent_change(copy):
    """A value that changed needs a new revision."""
    before = judge.sealed(copy)
    spoil(copy, f"UPDATE recent_bars SET volume = volume + 1 WHERE open_time = {NEWEST}")
    with pytest.raises(Broken, match="without a revision"):
        judge.check_kept(before, judge.sealed(copy))
    spoil(copy, f"UPDATE recent_bars SET revision = revision + 1 WHERE open_time = {NEWEST}")
    judge.check_kept(before, judge.sealed(copy))
    with pytest.raises(Broken, match="older revision"):
        judge.check_kept(judge.sealed(copy), before)


def test_the_judge_tells_a_straddle_from_an_error():
    """What one minute gave to the next is none; what is missing is."""
    bar = judge.Bar(1.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5, 2.0, 2.0, "trades", 0)
    less, more = (bar._replace(volume=4.0, count=4), bar._replace(volume=6.0, count=6))
    official = dict.fromkeys(range(0, 240_000, 60_000), bar.values)
    around = dict.fromkeys(official, bar)
    inner = [60_000, 120_000]
    judge.check_straddles(
        "A", inner, around | dict(zip(inner, (less, more), strict=True)), official
    )
    with pytest.raises(Broken):
        judge.check_straddles("A", inner, around | {60_000: less}, official)
    with pytest.raises(Broken):
        judge.check_straddles("A", [60_000], around | {60_000: more}, official)
    judge.check_straddles("A", [0], around | {0: more}, official)  # what is before it is not known
    with pytest.raises(Broken):
        judge.check_straddles("A", [0], around | {0: more._replace(count=50)}, official)


# -- Part of the matrix ----------------------------------------------------------------------------

PART = ("tls", "asleep", "disk")


@pytest.mark.parametrize("name", PART)
def test_part_of_the_matrix(name, tmp_path):
    """One run of some rows, of which all the rest is done by ./scripts/prove."""
    outcome = Outcome()
    try:
        ROWS[name].run(0, tmp_path, outcome)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert outcome.cases > 0
