"""The command line: what it prints where, its exit codes, how it starts and how it ends."""

import contextlib
import json
import logging
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path

import click
import filelock
import pytest

from klagg_trio import __version__, cli
from klagg_trio.commands import start
from klagg_trio.core import errors
from klagg_trio.core.bar import Bar, Source, newborn
from klagg_trio.core.intervals import MINUTE_MS
from klagg_trio.core.seed import OpenBar, Seed, StartState
from klagg_trio.settings import RULES, Settings
from klagg_trio.store.database import Database
from klagg_trio.store.start_snapshot import write_snapshot

CUT_MS = 1_735_689_600_000
"""2025-01-01 00:00 UTC."""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Run in an empty folder, with no settings of the machine's own and the log as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in RULES:
        monkeypatch.delenv(f"KLAGG_{name.upper()}", raising=False)
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield tmp_path
    root.handlers[:] = handlers


def klagg(*arguments):
    """Return the command that runs klagg in a process of its own."""
    return [sys.executable, "-m", "klagg_trio", *map(str, arguments)]


def snapshot_in(data_dir, intervals=("1m", "5m")):
    """Write a start snapshot of one symbol, and an empty database where there is none."""
    data_dir.mkdir(exist_ok=True)
    five = OpenBar("5m", newborn(CUT_MS, CUT_MS + 5 * MINUTE_MS, Decimal(10)), 0)
    seed = Seed(
        symbol="BTCUSDT",
        onboard_ms=CUT_MS - 10**9,
        delivery_ms=4_133_404_800_000,
        last_close=Decimal(10),
        next_id=None,
        last_trade_ms=None,
        three_day_phase_ms=0,
        open_bars=(five,),
    )
    path = data_dir / "initial_state.cbor"
    write_snapshot(path, StartState(CUT_MS, intervals, (seed,)))
    if not path.with_name("klagg.db").exists():
        database = Database.open(path.with_name("klagg.db"))
        database.commit(CUT_MS, ())
        database.close()
    return path


def complaint(capsys):
    """Return the one line on stderr; nothing may be on stdout."""
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("klagg: ")
    assert shown.err.count("\n") == 1
    return shown.err


# -- Starting --------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
def test_help_imports_little():
    """`klagg --help` loads click and nothing that does work: that is what keeps it quick."""
    code = (
        "import sys, contextlib, io; from klagg_trio import cli\n"
        "with contextlib.redirect_stdout(io.StringIO()): assert cli.execute(['--help']) == 0\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "click" in loaded, done.stderr
    heavy = {"trio", "httpx", "rich", "cattrs", "cbor2", "msgspec", "sqlite3", "asks", "logging"}
    assert not loaded & (heavy | {"sqlite_utils", "platformdirs", "filelock", "stamina"})


def test_version(capsys):
    """--version prints one line."""
    assert cli.execute(["--version"]) == 0
    assert capsys.readouterr().out == f"klagg {__version__}\n"


def commands(group=cli.cli, path=()):
    """Return the words of every command."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def test_commands_are_the_designs():
    """Every command that is promised is there."""
    names = {" ".join(words) for words in commands()}
    promised = {"demo", "backfill", "run", "sim", "replay", "verify", "status", "doctor", "export"}
    assert promised | {"config show"} <= names


@pytest.mark.parametrize("words", sorted(commands()), ids=" ".join)
def test_help_shows_an_example_first(words, capsys):
    """The help of each command gives an example before the options, and a word on each option."""
    assert cli.execute([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"klagg {' '.join(words)}" in text[text.index("\n") : text.index("Options:")]
    command = cli.cli
    for word in words:
        command = command.commands[word]
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help or option.show_default or isinstance(option.type, click.Choice)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run", "--nonsense"],
        ["run", "--duration", "soon"],
        ["demo", "--minutes", "0"],
        ["demo", "--speed", "warp"],
        ["demo", "--faults", "some"],
        ["replay", "no-such-file.csv"],
        ["export", "--format", "parquet"],
    ],
)
def test_usage_errors_exit_2(arguments, capsys):
    """What cannot be meant is exit 2, told on stderr."""
    assert cli.execute(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err


# -- Errors ----------------------------------------------------------------------------------------


def raising(error, monkeypatch):
    """Make a command raise this and return what `execute` says."""

    def fail(flags, **options):
        raise error

    monkeypatch.setattr("klagg_trio.commands.config_show.run_command", fail)
    return cli.execute(["config", "show"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.DamagedDataError("x; y"), 65),
        (errors.RemoteError("x; y"), 69),
        (errors.StoreError("x; y"), 74),
        (errors.LockedError("x; y"), 75),
        (errors.BannedError("x; y", 0), 75),
        (errors.ConfigurationError("x; y"), 78),
    ],
)
def test_errors_become_exit_codes(error, code, monkeypatch, capsys):
    """Each error a user can act on has its own exit code, alone or out of a nursery."""
    assert raising(error, monkeypatch) == code
    assert complaint(capsys) == "klagg: x; y\n"
    group = BaseExceptionGroup("", [BaseExceptionGroup("", [error]), error])
    assert raising(group, monkeypatch) == code
    assert complaint(capsys) == "klagg: x; y\n"


def test_errors_are_one_line_without_control_characters(monkeypatch, capsys):
    """Text from outside cannot break the line or reach the terminal as a command."""
    raising(errors.RemoteError("bad \x1b[31m\nname\r"), monkeypatch)
    assert complaint(capsys) == "klagg: bad name\n"


def test_interrupt_is_130(monkeypatch):
    """Ctrl-C before anything began is exit 130 without a traceback, out of a nursery too."""
    assert raising(KeyboardInterrupt(), monkeypatch) == 130
    group = BaseExceptionGroup("", [KeyboardInterrupt(), errors.RemoteError("x")])
    assert raising(group, monkeypatch) == 130


def test_our_own_bugs_are_not_hidden(monkeypatch):
    """Anything that is no error of klagg's goes on as a crash with its traceback."""
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError(), monkeypatch)
    with pytest.raises(BaseExceptionGroup):
        raising(BaseExceptionGroup("", [errors.RemoteError("x"), ZeroDivisionError()]), monkeypatch)


def test_reader_that_stops_reading_is_no_error(monkeypatch):
    """`klagg ... | head` ends quietly."""
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):  # its own descriptor
        assert raising(BrokenPipeError(), monkeypatch) == 0


# -- Data directory --------------------------------------------------------------------------------


def test_run_without_snapshot_says_what_to_do(place, capsys):
    """`run` without a start snapshot is exit 65 and the command that mends it; nothing is made."""
    assert cli.execute(["run", "--data-dir", "D"]) == 65
    line = complaint(capsys)
    assert "klagg backfill --data-dir D" in line
    assert not (place / "D").exists()


def test_run_with_a_flipped_bit_says_what_to_do(place, capsys):
    """One flipped bit in the start snapshot is exit 65 and the command that mends it."""
    path = snapshot_in(place / "D")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert cli.execute(["run", "--data-dir", "D"]) == 65
    assert "klagg backfill --data-dir D" in complaint(capsys)


def test_second_klagg_is_refused(place, capsys):
    """While a klagg writes in a data directory, `run` and `backfill` there are exit 75."""
    snapshot_in(place / "D")
    with filelock.FileLock(place / "D" / "klagg.lock"):
        assert cli.execute(["run", "--data-dir", "D"]) == 75
        assert "another klagg is at work in D" in complaint(capsys)
        assert cli.execute(["backfill", "--data-dir", "D"]) == 75
        assert "another klagg is at work in D" in complaint(capsys)


def test_unwritable_data_directory_is_told(place, capsys):
    """A data directory that cannot be made or written is exit 74 with a clear line."""
    (place / "file").write_text("")
    for command in ("backfill", "run"):
        data_dir = "file" if command == "run" else "file/D"
        assert cli.execute([command, "--data-dir", data_dir]) == 74
        assert "cannot be written" in complaint(capsys)


def test_run_with_other_intervals_than_the_snapshot(place, capsys):
    """A snapshot of other intervals than the settings ask for is an error that says so."""
    snapshot_in(place / "D")
    arguments = ["run", "--data-dir", "D", "--intervals", "1m,1h", "--headless"]
    urls = ["--rest-url", "http://127.0.0.1:9", "--ws-url", "ws://127.0.0.1:9"]
    assert cli.execute([*arguments, *urls]) == 78
    assert "klagg backfill --data-dir D" in complaint(capsys)


@pytest.mark.parametrize("command", ["verify", "status", "export"])
def test_reading_without_database_says_what_to_do(command, capsys):
    """Commands that read stored bars say what to do where there are none."""
    assert cli.execute([command, "--data-dir", "D"]) == 65
    assert "klagg backfill" in complaint(capsys)


# -- Reading stored bars ---------------------------------------------------------------------------


@pytest.fixture
def stored(place):
    """Return a data directory with three minutes and one 3m bar of a symbol."""
    from klagg_trio.backfill import _put_symbols
    from klagg_trio.exchange import wire

    data_dir = place / "data"
    data_dir.mkdir()
    database = Database.open(data_dir / "klagg.db")
    contract = wire.Contract(
        symbol="币安人生USDT",
        pair="币安人生USDT",
        contract_type="PERPETUAL",
        delivery_ms=4_133_404_800_000,
        onboard_ms=CUT_MS - 10**9,
        status="TRADING",
        quote_asset="USDT",
        underlying_type="COIN",
        price_precision=2,
        quantity_precision=3,
    )
    _put_symbols(database, [contract], {})
    for name, length in (("1m", 1), ("3m", 3)):
        bars = [flat(at, length) for at in range(0, 3, length)]
        database.put_history("币安人生USDT", name, bars)
    database.commit(CUT_MS + 3 * MINUTE_MS, ())
    database.close()
    return data_dir


def flat(minute, length):
    """Return an official flat bar."""
    ten = Decimal(10)
    open_ms = CUT_MS + minute * MINUTE_MS
    end_ms = open_ms + length * MINUTE_MS
    return Bar(open_ms, end_ms, ten, ten, ten, ten, source=Source.OFFICIAL)


@pytest.mark.usefixtures("stored")
def test_verify_finds_nothing_wrong(capsys):
    """A sound database is exit 0 and an empty list."""
    assert cli.execute(["verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_verify_finds_a_hole(stored, capsys):
    """A missing minute is exit 3 and a finding on stdout."""
    database = Database.open(stored / "klagg.db")
    database.commit(CUT_MS + 5 * MINUTE_MS, ())
    database.close()
    assert cli.execute(["verify", "--json"]) == 3
    findings = json.loads(capsys.readouterr().out)
    assert findings
    assert {finding["symbol"] for finding in findings} == {"币安人生USDT"}
    assert cli.execute(["verify"]) == 3
    assert "币安人生USDT 1m" in capsys.readouterr().out


@pytest.mark.usefixtures("stored")
def test_status_tells_what_is_stored(capsys):
    """Status counts the minutes of the last day by source, and says whether a klagg is at work."""
    assert cli.execute(["status", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["last_tick_ms"] == CUT_MS + 3 * MINUTE_MS
    assert status["symbols"] == 1
    assert status["minutes_of_last_day"] == {"official": 3}
    assert status["at_work"] is False
    with filelock.FileLock("data/klagg.lock"):
        assert cli.execute(["status"]) == 0
    assert "at work, 1 symbols" in capsys.readouterr().out


@pytest.mark.usefixtures("stored")
def test_export_csv(capsys):
    """Stored bars come out as csv with the columns of the view, on stdout or in a file."""
    assert cli.execute(["export", "--intervals", "1m,3m"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("symbol,interval,open_time,open,high,low,close,volume,close_time")
    assert len(lines) == 1 + 3 + 1
    first = f"币安人生USDT,1m,{CUT_MS},10.0,10.0,10.0,10.0,0.0,{CUT_MS + MINUTE_MS - 1},0.0,0"
    assert lines[1].startswith(first)
    assert cli.execute(["export", "--intervals", "1m", "--out", "bars.csv"]) == 0
    assert len(Path("bars.csv").read_text().splitlines()) == 4


@pytest.mark.usefixtures("stored")
def test_export_of_one_interval_needs_no_minutes(capsys):
    """What is stored may be taken out by itself; an interval that does not exist is named."""
    assert cli.execute(["export", "--intervals", "3m"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert cli.execute(["export", "--intervals", "1h,7m"]) == 2
    assert "unknown interval '7m'" in capsys.readouterr().err


@pytest.mark.usefixtures("stored")
def test_export_says_what_it_lacks(capsys):
    """An unknown symbol, a file that cannot be made and a missing library are each one line."""
    assert cli.execute(["export", "--symbols", "NOPE"]) == 78
    assert "'NOPE'" in complaint(capsys)
    assert cli.execute(["export", "--out", "no/such/folder.csv"]) == 74
    assert "no/such/folder.csv" in complaint(capsys)


@pytest.mark.usefixtures("stored")
def test_export_without_its_extra(monkeypatch, capsys):
    """parquet and feather need the export extra: the error gives the command that installs it."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.execute(["export", "--format", "parquet", "--out", "bars.parquet"]) == 78
    assert "klagg[export]" in complaint(capsys)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_export_arrow(kind):
    """parquet and feather hold the same rows, where the export extra is installed."""
    pyarrow = pytest.importorskip("pyarrow", reason="the export extra is not installed")
    from pyarrow import feather, parquet

    assert cli.execute(["export", "--format", kind, "--out", "bars", "--intervals", "1m"]) == 0
    table = parquet.read_table("bars") if kind == "parquet" else feather.read_table("bars")
    assert table.num_rows == 3
    assert table.schema.field("open").type == pyarrow.float64()


# -- Log and lock ----------------------------------------------------------------------------------


def test_lock_is_let_go(place):
    """The lock is free again once the command has ended, even by an error."""
    with pytest.raises(ZeroDivisionError), start.locked(place / "D"):
        raise ZeroDivisionError
    with start.locked(place / "D"):
        pass


@pytest.mark.real
@pytest.mark.slow
def test_log_file_holds_json_lines(place):
    """The log file gets one JSON object a line; an unwritable one is an error of the disk."""
    path = place / "klagg.log"
    code = (
        "import logging, sys; from pathlib import Path\n"
        "from klagg_trio.commands.start import set_up_log\n"
        "from klagg_trio.settings import Settings\n"
        "set_up_log(Settings(log_file=Path(sys.argv[1])))\n"
        "logging.getLogger('klagg_trio.x').info('half\\nway')\n"
        "logging.getLogger('klagg_trio.x').warning('look')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == "klagg: look\n"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(entry["level"], entry["text"]) for entry in entries] == [
        ("info", "half way"),
        ("warning", "look"),
    ]


# -- Whole processes -------------------------------------------------------------------------------


@pytest.fixture
def simulator(place):
    """Run `klagg sim` on free ports; return the flags that lead to it."""
    command = klagg("sim", "--json", "--rest-port", 0, "--ws-port", 0, "--symbols", 8)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=place) as process:
        try:
            urls = json.loads(process.stdout.readline())
            yield ["--rest-url", urls["rest_url"], "--ws-url", urls["ws_url"]]
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()


@pytest.mark.real
@pytest.mark.slow
def test_backfill_run_and_stop(place, simulator):
    """Backfill, run, a second run that is refused, Ctrl-C within 2 s, and nothing wrong after."""
    rest = simulator[:2]
    done = subprocess.run(
        klagg("backfill", "--json", "--since", "1h", "--data-dir", "D", *rest),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["symbols"] >= 5
    run = klagg("run", "--headless", "--data-dir", "D", *simulator)
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True, cwd=place) as process:
        try:
            assert process.stderr.readline()  # a status line: it is at work
            second = subprocess.run(run, capture_output=True, text=True, timeout=60, cwd=place)
            assert second.returncode == 75
            assert second.stderr.startswith("klagg: another klagg is at work")
            began_s = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) == 0
            assert time.monotonic() - began_s < 2
        finally:
            process.kill()
    assert cli.execute(["verify", "--data-dir", "D"]) == 0


@pytest.mark.real
@pytest.mark.slow
def test_run_for_a_duration(place, simulator):
    """--duration ends a run cleanly by itself; so do a hangup, and a reader that goes away."""
    flags = ["--data-dir", "D", *simulator]
    assert subprocess.run(klagg("backfill", *flags[:4]), timeout=60, cwd=place).returncode == 0
    run = klagg("run", "--headless", "--duration", "2s", *flags)
    assert subprocess.run(run, timeout=60, cwd=place, capture_output=True).returncode == 0
    run = klagg("run", "--headless", *flags)
    for hangup in (True, False):
        with subprocess.Popen(run, stderr=subprocess.PIPE, text=True, cwd=place) as process:
            try:
                assert process.stderr.readline()  # a status line: it is at work
                if hangup:
                    process.send_signal(signal.SIGHUP)
                    assert "Traceback" not in process.stderr.read()
                process.stderr.close()
                assert process.wait(timeout=20) == 0
            finally:
                process.kill()


@pytest.mark.real
@pytest.mark.slow
def test_port_in_use_is_told(place):
    """A port that is taken is exit 78 and one line, for the simulator."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = klagg("sim", "--rest-port", port, "--ws-port", 0)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=place)
    assert done.returncode == 78
    assert done.stderr.startswith("klagg: ")
    assert str(port) in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.real
@pytest.mark.slow
def test_unreachable_exchange_is_told(place):
    """An exchange that does not answer is exit 69 and one line."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    command = klagg("backfill", "--rest-url", f"http://127.0.0.1:{port}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=place)
    assert done.returncode == 69, done.stderr
    assert done.stderr.count("\n") == 1


def test_simulator_serves_this_machine_only(capsys):
    """The simulator refuses to listen where others could reach it."""
    assert cli.execute(["sim", "--host", "0.0.0.0"]) == 78
    assert "loopback" in complaint(capsys)


def test_settings_default_matches_help(capsys):
    """The help names the default data directory that the settings have."""
    cli.execute(["run", "--help"])
    assert f"[default: {Settings().data_dir}]" in capsys.readouterr().out


# -- Damage, locks, outputs ------------------------------------------------------------------------

NOWHERE = ["--rest-url", "http://127.0.0.1:9"]
NO_FEED = ["--ws-url", "ws://127.0.0.1:9"]

READERS = {
    "status": [],
    "export": [],
    "verify": [],
    "audit": NOWHERE,
    "doctor": [*NOWHERE, *NO_FEED],
}
WRITERS = {"run": ["--headless", "--intervals", "1m,5m", *NOWHERE, *NO_FEED], "backfill": NOWHERE}


@pytest.fixture
def _no_second_try(monkeypatch):
    """Nobody is there: ask once."""
    monkeypatch.setattr("klagg_trio.exchange.rest.ATTEMPTS", 1)


def flipped(content):
    """Every third page has lost its head."""
    damaged = bytearray(content)
    for at in range(2 * 4_096, len(content), 3 * 4_096):
        damaged[at : at + 8] = bytes(octet ^ 0xFF for octet in damaged[at : at + 8])
    return bytes(damaged)


DAMAGE = {
    "flipped pages": flipped,
    "truncated": lambda content: content[: len(content) // 2],
    "cut within a page": lambda content: content[: 10 * 4_096 + 77],
    "no database": lambda content: b"this is no database at all\n" * 999,
    "a flipped header": lambda content: content[:20] + b"\xff" + content[21:],
}


@pytest.mark.usefixtures("_no_second_try")
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", [*READERS, *WRITERS])
def test_damage_is_65_for_every_command(command, damage, place, stored, capsys):
    """One line that says so, never a traceback, and the file is left as it is."""
    path = stored / "klagg.db"
    damaged = DAMAGE[damage](path.read_bytes())
    path.write_bytes(damaged)
    snapshot_in(stored)
    arguments = [command, "--data-dir", str(stored), *READERS.get(command, WRITERS.get(command))]
    assert cli.execute(arguments) == 65
    shown = capsys.readouterr()
    assert "damaged" in shown.err + shown.out or "no usable database" in shown.err
    assert path.read_bytes() == damaged


@pytest.mark.usefixtures("_no_second_try")
@pytest.mark.parametrize("command", WRITERS)
def test_another_programs_database_is_left_as_it_is(command, place, capsys):
    """Nobody's tables get klagg's beside them."""
    path = snapshot_in(place / "D").with_name("klagg.db")
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE x (a)")
        connection.commit()
    before = path.read_bytes()
    assert cli.execute([command, "--data-dir", "D", *WRITERS[command]]) == 65
    assert "another program's tables" in complaint(capsys)
    assert path.read_bytes() == before


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("content", [b"", "sqlite"])
def test_a_database_of_something_else_is_65(command, content, place, capsys):
    """An empty file, or tables of another program."""
    data_dir = place / "D"
    data_dir.mkdir()
    path = data_dir / "klagg.db"
    if content == "sqlite":
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE x (a)")
            connection.commit()
    else:
        path.write_bytes(content)
    assert cli.execute([command, "--data-dir", str(data_dir), *READERS[command]]) == 65


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("_no_second_try")
def test_whatever_bits_are_flipped_no_command_fails_with_a_traceback(stored, capsys):
    """Any bits anywhere in the file: found bars, findings, damage, or a clear error."""
    path = stored / "klagg.db"
    whole = path.read_bytes()
    for seed in range(60):
        rng = random.Random(seed)
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20, 200))):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged[: rng.randrange(len(damaged))] if seed % 7 == 0 else damaged)
        for name in ("klagg.db-wal", "klagg.db-shm"):
            (stored / name).unlink(missing_ok=True)
        for command in ("status", "export", "verify", "audit"):
            arguments = [command, "--data-dir", str(stored), *READERS[command]]
            since = ["--since", "1h"] if command == "export" else []
            code = cli.execute([*arguments, *since])
            assert code in (0, 3, 65, 69, 74, 78), (seed, command, code)
    capsys.readouterr()


def test_any_flipped_bit_is_no_traceback(stored, capsys):
    """Status reads what klagg wrote as JSON and numbers: damage there is told too."""
    path = stored / "klagg.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for key, value in (("last_tick", "12a"), ("trades", "{"), ("audit", "[1]")):
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
            connection.commit()
            assert cli.execute(["status", "--data-dir", str(stored)]) == 65
            connection.execute("DELETE FROM meta WHERE key = ?", (key,))
            connection.commit()
    assert "Traceback" not in capsys.readouterr().err


@contextlib.contextmanager
def held(path):
    """Hold a database for writing, as another program would."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    finally:
        connection.close()


def test_another_programs_hold_is_told_once_and_waited_for(stored, capsys, monkeypatch):
    """Not "check the disk": who is in the way, that klagg waits; then it goes on."""
    monkeypatch.setattr("klagg_trio.store.database.OPEN_TIMEOUT_MS", 50)
    path = stored / "klagg.db"
    with held(path) as other:
        # An older database has to be brought up to date, for which it has to be written.
        monkeypatch.setattr("klagg_trio.store.database.migrate", write_something)
        threading.Timer(0.4, other.rollback).start()
        start.open_database(stored).close()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "another program holds" in told
    assert "waits" in told
    assert "disk" not in told


def write_something(connection):
    """Do what a migration does first."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("COMMIT")


def test_a_hold_that_does_not_end_is_75(stored, monkeypatch):
    """Like any other lock: later."""
    monkeypatch.setattr("klagg_trio.store.database.OPEN_TIMEOUT_MS", 10)
    monkeypatch.setattr("klagg_trio.store.database.migrate", write_something)
    monkeypatch.setattr(start, "BUSY_S_MAX", 0.1)
    with held(stored / "klagg.db"), pytest.raises(errors.BusyError) as caught:
        start.open_database(stored)
    assert caught.value.exit_code == 75


async def test_a_backfill_waits_for_another_program(stored, capsys, autojump_clock):
    """Each of its writes, and says so once."""
    calls = []

    async def run(function):
        calls.append(function)
        if len(calls) in (1, 2, 4):
            raise errors.BusyError("another program holds it")
        return len(calls)

    patiently = start.patient(run)
    assert await patiently(print) == 3
    assert await patiently(print) == 5
    assert capsys.readouterr().err.count("another program holds") == 1


def test_readers_do_not_mind_a_writer(stored, capsys):
    """A hold for writing hides nothing from those who read."""
    with held(stored / "klagg.db"):
        for command in ("status", "export", "verify"):
            assert cli.execute([command, "--data-dir", str(stored)]) == 0


OWN = ["klagg.db", "klagg.db-wal", "klagg.db-shm", "initial_state.cbor", "klagg.lock"]


def ways_to(path, place):
    """Return names that lead to a file: its own, links, and a way round."""
    yield str(path)
    yield f"{path.parent}/../{path.parent.name}/{path.name}"
    (place / "soft.csv").symlink_to(path)
    yield "soft.csv"
    if path.suffix == ".db" and path.exists():
        os.link(path, place / "hard.csv")
        yield "hard.csv"


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("command", ["export", "replay"])
def test_no_output_overwrites_klaggs_own_files(command, name, stored, place, capsys):
    """By any name, also where it does not exist yet."""
    path = stored / name
    before = path.read_bytes() if path.exists() else None
    trades = place / "AAAUSDT.csv"
    trades.write_text("0,100.0,0.1,1000,1001,1751328000000,false\n")
    arguments = ["export", "--data-dir", str(stored)] if command == "export" else []
    arguments = arguments or ["replay", str(trades)]
    for out in ways_to(path, place):
        assert cli.execute([*arguments, "--out", out]) == 2, out
        assert "klagg reads or keeps" in capsys.readouterr().err
    assert before is None or path.read_bytes() == before


def test_the_log_is_no_output_over_the_database_either(stored, monkeypatch, capsys):
    """A log_file that names it is an error of the configuration."""
    monkeypatch.setenv("KLAGG_LOG_FILE", str(stored / "klagg.db"))
    before = (stored / "klagg.db").read_bytes()
    assert cli.execute(["backfill", "--data-dir", str(stored), *NOWHERE]) == 78
    assert (stored / "klagg.db").read_bytes() == before


def test_an_output_is_whole_or_not_there(stored, place, monkeypatch, capsys):
    """A failure in the middle leaves what was there before, and nothing beside it."""
    out = place / "bars.csv"
    out.write_text("before")
    out.chmod(0o640)
    real = Path.replace

    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    assert cli.execute(["export", "--data-dir", str(stored), "--out", str(out)]) == 74
    assert "No space left" in complaint(capsys)
    assert out.read_text() == "before"
    assert sorted(each.name for each in place.iterdir()) == ["bars.csv", "data"]
    monkeypatch.setattr(Path, "replace", real)
    (place / "link.csv").symlink_to(out)
    assert cli.execute(["export", "--data-dir", str(stored), "--out", "link.csv"]) == 0
    assert (place / "link.csv").is_symlink()
    assert out.read_text().startswith("symbol,")
    assert out.stat().st_mode & 0o777 == 0o640


def test_a_replay_does_not_overwrite_what_it_reads(place, capsys):
    """--out that is the file of trades itself."""
    trades = place / "AAAUSDT.csv"
    trades.write_text("0,100.0,0.1,1000,1001,1751328000000,false\n")
    assert cli.execute(["replay", str(trades), "--out", str(trades)]) == 2
    assert trades.read_text().startswith("0,100.0")
    trades.write_text("garbage\n")
    assert cli.execute(["replay", str(trades), "--out", "bars.csv"]) == 65
    assert not (place / "bars.csv").exists()


def test_devices_are_written_directly(stored, capfd):
    """/dev/stdout and pipes cannot be replaced by another file."""
    assert cli.execute(["export", "--data-dir", str(stored), "--out", "/dev/stdout"]) == 0
    assert capfd.readouterr().out.startswith("symbol,interval")


@pytest.mark.usefixtures("_no_second_try")
@pytest.mark.parametrize("command", ["export", "audit"])
def test_spans_count_from_the_last_tick(command, stored, monkeypatch, capsys):
    """A laptop's clock that is a year ahead, or klagg off for a year, changes nothing."""
    monkeypatch.setattr(start, "wall_ms", lambda: CUT_MS + 400 * 86_400_000)
    arguments = ["--data-dir", str(stored), "--since", "2m", "--intervals", "1m"]
    if command == "export":
        assert cli.execute(["export", *arguments]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1 + 2
    else:
        assert cli.execute(["audit", *arguments, *NOWHERE]) == 69  # there are bars to ask about


def test_what_comes_next_has_the_flags_that_are_needed(place, stored, capsys, monkeypatch):
    """Those that were given as flags; what a variable says needs none."""
    from klagg_trio.settings import load

    flags = {"data_dir": "my data", "rest_url": "http://127.0.0.1:9", "symbols": "A"}
    loaded = load(flags, {"KLAGG_WS_URL": "ws://127.0.0.1:8"}, place)
    assert start.command_here("klagg run", loaded) == (
        "klagg run --data-dir 'my data' --rest-url http://127.0.0.1:9 --symbols A"
    )
    assert start.command_here("klagg status", loaded) == "klagg status --data-dir 'my data'"
    assert start.command_here("klagg run", load({}, {}, place)) == "klagg run"


def test_advice_to_backfill_has_the_flags_that_were_given(place, capsys):
    """Who misses a file knows its folder only: the rest is added, out of a nursery too."""
    more = ["--intervals", "1m,1h", *NOWHERE]
    assert cli.execute(["run", "--data-dir", "D", *more]) == 65
    wanted = "klagg backfill --data-dir D --rest-url http://127.0.0.1:9 --intervals 1m,1h\n"
    assert complaint(capsys).endswith(wanted)
    snapshot_in(place / "D")
    assert cli.execute(["run", "--data-dir", "D", "--headless", *more, *NO_FEED]) == 78
    assert complaint(capsys).endswith(wanted)
    assert cli.execute(["audit", "--data-dir", "E", *NOWHERE]) == 65
    assert "--data-dir E --rest-url http://127.0.0.1:9\n" in complaint(capsys)


def test_home_is_meant_by_a_tilde(place, monkeypatch):
    """In flags, variables and files alike."""
    from klagg_trio.settings import load

    monkeypatch.setenv("HOME", "/home/me")
    (place / "klagg.toml").write_text('log_file = "~/klagg.log"\n')
    for flags, environment in (({"data_dir": "~/bars"}, {}), ({}, {"KLAGG_DATA_DIR": "~/bars"})):
        settings = load(flags, environment, place).settings
        assert settings.data_dir == Path("/home/me/bars")
        assert settings.log_file == Path("/home/me/klagg.log")
    with pytest.raises(errors.ConfigurationError, match="home"):
        load({"data_dir": "~nobody-of-that-name/x"}, {}, place)


# -- Doctor ----------------------------------------------------------------------------------------


def doctor(stored, capsys):
    """Return doctor's checks by name, and its exit code."""
    code = cli.execute(["doctor", "--json", "--data-dir", str(stored), *NOWHERE, *NO_FEED])
    return {each["check"]: each for each in json.loads(capsys.readouterr().out)}, code


@pytest.mark.usefixtures("_no_second_try")
def test_doctor_knows_room_and_how_long_it_lasts(stored, capsys, monkeypatch):
    """Free space, and the days until it is full at the growth of the last stored day."""
    usage = shutil.disk_usage(stored)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=10**12))
    checks, _ = doctor(stored, capsys)
    assert checks["room"]["ok"]
    assert "1,000.0 GB free, full in" in checks["room"]["text"]
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=2 * 2**20))
    checks, code = doctor(stored, capsys)
    assert not checks["room"]["ok"]
    assert "make room" in checks["room"]["text"]
    assert code == 74


@pytest.mark.usefixtures("_no_second_try")
def test_doctor_finds_damage_wherever_it_is(stored, capsys):
    """A page in the middle of the file, which no question of a day's work would meet."""
    snapshot_in(stored)
    path = stored / "klagg.db"
    content = bytearray(path.read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        page = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'events'"
        ).fetchone()[0]
    content[(page - 1) * 4_096] ^= 0xFF
    path.write_bytes(content)
    checks, code = doctor(stored, capsys)
    assert not checks["database"]["ok"]
    assert code == 65


@pytest.mark.usefixtures("_no_second_try")
def test_doctor_shows_the_way_and_a_proxy_that_cannot_be_used(stored, capsys, monkeypatch):
    """Straight to this machine; a socks proxy is an error of the configuration."""
    checks, _ = doctor(stored, capsys)
    assert checks["way"]["text"] == "REST straight, websocket straight"
    monkeypatch.setenv("HTTPS_PROXY", "socks5://me:secret@p:1080")
    arguments = ["--data-dir", str(stored), "--rest-url", "https://x.test"]
    snapshot_in(stored)
    for command in ("run", "backfill", "audit"):
        more = ["--intervals", "1m,5m"] if command == "run" else []
        assert cli.execute([command, *arguments, *more]) == 78
        told = capsys.readouterr().err
        assert "HTTPS_PROXY" in told
        assert "secret" not in told
