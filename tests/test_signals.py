"""Real processes and signals from the first moment on, and readers that go away."""

from __future__ import annotations

import ast
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import klagg_trio

pytestmark = [pytest.mark.real, pytest.mark.slow]

KLAGG = [sys.executable, "-m", "klagg_trio"]


def klagg(*arguments, **options):
    """Start klagg in a process of its own."""
    return subprocess.Popen(
        [*KLAGG, *map(str, arguments)], stderr=subprocess.PIPE, text=True, **options
    )


def is_running_klagg(pid):
    """Whether a process has taken the signals in hand: klagg's own first line."""
    with open(f"/proc/{pid}/status") as file:
        caught = next(line for line in file if line.startswith("SigCgt"))
    return int(caught.split()[1], 16) >> signal.SIGHUP - 1 & 1  # the last of the three


def wait_for_first_line(process):
    """Return when the first line has run."""
    end_s = time.monotonic() + 30
    while not is_running_klagg(process.pid):
        assert process.poll() is None
        assert time.monotonic() < end_s
        os.sched_yield()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return the folder of a real, tiny database with its start snapshot, made by a demo."""
    data_dir = tmp_path_factory.mktemp("stored") / "D"
    arguments = ["demo", "--minutes", 1, "--speed", "max", "--symbols", 3, "--headless"]
    done = klagg(*arguments, "--data-dir", data_dir, stdout=subprocess.DEVNULL)
    _, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    return data_dir


COMMANDS = ["run", "backfill", "demo", "verify", "export"]
NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.parametrize("command", COMMANDS)
def test_signals_in_the_first_second_end_quietly(command, stored, tmp_path):
    """Whatever is being imported or opened at that moment: 0 or 130, and not a word of Python."""
    nowhere = ["--rest-url", "http://127.0.0.1:9"]
    arguments = {
        "run": ["--data-dir", stored, "--headless", *nowhere, "--ws-url", "ws://127.0.0.1:9"],
        "backfill": ["--data-dir", tmp_path / "B", *nowhere],
        "demo": ["--headless", "--data-dir", tmp_path / "C"],
        "verify": ["--data-dir", stored],
        "export": ["--data-dir", stored, "--out", tmp_path / "bars.csv"],
    }[command]
    rng = random.Random(command)
    ended = {}
    for turn in range(4):
        process = klagg(command, *arguments, stdout=subprocess.DEVNULL)
        number = NUMBERS[turn % 3]
        wait_for_first_line(process)
        process_wait_s = rng.uniform(0.0, 1.0)
        try:
            process.wait(process_wait_s)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        ended[process.returncode] = ended.get(process.returncode, 0) + 1
        assert "Traceback" not in errors, errors
        assert "Exception" not in errors, errors
        may_end = {0, 130} | ({69} if command in ("run", "backfill") else set())
        assert process.returncode in may_end, (process_wait_s, number, errors)
    assert ended.get(130, 0) + ended.get(0, 0) > 0, ended
    assert [path.name for path in tmp_path.iterdir() if ".part" in path.name] == []


def test_a_hangup_is_a_clean_stop(tmp_path):
    """SIGHUP ends the simulator as SIGTERM does; under nohup it is nothing."""
    for ignored, code in ((False, 0), (True, None)):
        process = klagg(
            *("sim", "--rest-port", 0, "--ws-port", 0),
            stdout=subprocess.PIPE,
            preexec_fn=lambda ignored=ignored: ignored and signal.signal(signal.SIGHUP, 1),
        )
        assert process.stdout.readline().startswith("rest")
        process.send_signal(signal.SIGHUP)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1.5 if ignored else 30)
        assert process.returncode == code
        process.kill()
        process.communicate()


def test_a_second_signal_ends_what_hangs(tmp_path):
    """A stop that gets nowhere is cut short by the next signal."""
    code = (
        "import os, signal, time\n"
        "from klagg_trio import interrupt\n"
        "interrupt.leftovers.add('half')\n"
        "interrupt.end_at_signals()\n"
        "open('half', 'w').close()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=20)
    assert done.returncode == 130
    assert not (tmp_path / "half").exists()


PRINTING = [
    ["export"],
    ["status"],
    ["status", "--json"],
    ["verify"],
    ["verify", "--json"],
    ["config", "show", "--toml"],
    ["config", "show", "--json"],
    ["doctor", "--rest-url", "http://127.0.0.1:9", "--ws-url", "ws://127.0.0.1:9"],
    ["sim", "--rest-port", "0", "--ws-port", "0", "--duration", "1s"],
]


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_a_reader_that_goes_away_is_no_crash(arguments, stored):
    """`klagg ... | head`: no traceback, whatever command it is and wherever it writes."""
    data_dir = [] if arguments[0] == "sim" else ["--data-dir", stored]
    for closed in ("stdout", "stderr"):
        read, write = os.pipe()
        os.close(read)
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, closed: write}
        process = subprocess.Popen([*KLAGG, *map(str, [*arguments, *data_dir])], **streams)
        os.close(write)
        _, errors = process.communicate(timeout=60)
        assert b"Traceback" not in (errors or b""), errors
        assert b"BrokenPipe" not in (errors or b""), errors
        assert process.returncode in ((0,) if closed == "stdout" else (0, 65, 69)), errors


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["export"], ["config", "show"], ["status"]], ids=" ".join)
def test_a_full_disk_behind_stdout_is_told(arguments, stored):
    """What cannot be written is exit 74 with one line, also where it shows only in the end."""
    with open("/dev/full", "wb") as full:
        process = klagg(*arguments, "--data-dir", stored, stdout=full)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 74
    assert errors.count("\n") == 1, errors
    assert "No space left" in errors


@pytest.mark.parametrize("locale", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C"}])
def test_utf8_whatever_the_locale(locale, stored, tmp_path):
    """Names in any script reach stdout as UTF-8, by every command that prints them."""
    environment = os.environ | locale
    for arguments in (["replay", "{file}"], ["export"], ["status", "--json"]):
        file = tmp_path / "币安人生USDT-aggTrades-2025-07-01.csv"
        file.write_text("0,100.0,0.1,1000,1001,1751328000000,false\n")
        filled = [str(file) if each == "{file}" else each for each in arguments]
        if arguments[0] != "replay":
            filled += ["--data-dir", str(stored)]
        process = subprocess.run(
            [*KLAGG, *filled], capture_output=True, env=environment, timeout=60
        )
        assert process.returncode == 0, process.stderr
        text = process.stdout.decode("utf-8")
        assert arguments[0] != "replay" or "币安人生USDT,1m" in text


def test_nothing_is_imported_before_signals_are_in_hand():
    """What takes a millisecond to import could be interrupted with a traceback."""
    tree = ast.parse((Path(klagg_trio.__file__).parent / "__main__.py").read_text())
    loop = next(node.lineno for node in tree.body if isinstance(node, ast.For))
    before = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and node.lineno < loop
        for alias in node.names
    }
    assert before == {"_signal", "os"}
