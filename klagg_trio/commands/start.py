"""What commands need before they begin: settings, the log, the lock, signals, the edge."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click

from klagg_trio import interrupt
from klagg_trio.commands import leaves
from klagg_trio.core.errors import (
    BusyError,
    ConfigurationError,
    DamagedDataError,
    KlaggError,
    LockedError,
    StoreError,
)
from klagg_trio.core.intervals import INTERVALS
from klagg_trio.core.plain import plain
from klagg_trio.settings import (
    Loaded,
    Settings,
    is_loopback,
    load,
    parse_duration_s,
    parse_since,
    shown_values,
)

if TYPE_CHECKING:
    import sqlite3

    import trio

    from klagg_trio.exchange.clock_probe import AsksProbe
    from klagg_trio.exchange.proxy import Proxy
    from klagg_trio.exchange.rest import HttpxRest
    from klagg_trio.exchange.stream import Dial
    from klagg_trio.exchange.weight import WeightGate
    from klagg_trio.store.database import Database
    from klagg_trio.store.thread import RunInThread

LOCK_NAME: Final = "klagg.lock"
DATABASE_NAME: Final = "klagg.db"
SNAPSHOT_NAME: Final = "initial_state.cbor"

ASKED_FOR: Final = "asked_for"
"""Under which the database keeps the symbols that were asked for: a JSON list; empty: all."""

LOG_BYTES_MAX: Final = 10 * 2**20
"""Of a log file; then it is renamed to `.1`, in the place of the one before."""

UPGRADE_TOLD_S: Final = 1.0
"""Between two lines on how far a database has been brought up to date."""

LOG_LENGTH_MAX: Final = 1_000
"""Characters of one message in the log."""


def load_here(flags: Mapping[str, str | None]) -> Loaded:
    """Load the settings from the flags, this process's variables, and the files in their places."""
    return load(flags, os.environ, Path.cwd())


def command_here(command: str, loaded: Loaded) -> str:
    """Return a command to run next, with the flags that it needs to mean the same as this one.

    What a file or a variable says needs no flag: it will say so again.
    """
    return " ".join([command, *_flags(loaded, _FLAGS_OF[command])])


def _flags(loaded: Loaded, names: Iterable[str]) -> list[str]:
    """Return those of some settings that were given as flags, as they are written."""
    shown = shown_values(loaded.settings)
    return [
        f"{loaded.origin[name]} {shlex.quote(shown[name])}"
        for name in names
        if loaded.origin[name].startswith("--")
    ]


_FLAGS_OF: Final = {
    "klagg backfill": ("data_dir", "rest_url", "symbols", "intervals"),
    "klagg run": ("data_dir", "rest_url", "ws_url", "symbols", "intervals"),
    "klagg status": ("data_dir",),
}


@contextmanager
def advice_for(loaded: Loaded) -> Iterator[None]:
    """Where an error ends with a backfill to run, add the flags that it needs besides the folder.

    Who finds a file missing or damaged knows its folder, and nothing of the flags.
    """
    try:
        yield
    except KlaggError as error:
        _advise(error, loaded)
        raise
    except BaseExceptionGroup as group:
        for each in leaves(group):
            _advise(each, loaded)
        raise


def _advise(error: BaseException, loaded: Loaded) -> None:
    text = str(error)
    if isinstance(error, KlaggError) and re.search(r"klagg backfill --data-dir [^;]*$", text):
        more = _flags(loaded, ("rest_url", "symbols", "intervals"))
        error.args = (" ".join([text, *more]), *error.args[1:])


def settle_symbols(settings: Settings, database: Database) -> Settings:
    """Return the settings with the symbols that this data directory keeps to.

    Those are the ones that are named now, or all of them by the word `all`; else what was asked for
    before, which is told.
    """
    if settings.symbols:
        return dataclasses.replace(settings, symbols=settings.named_symbols)
    kept = database.meta(ASKED_FOR)
    try:
        names = tuple(map(str, json.loads(kept))) if kept else ()
    except (ValueError, TypeError) as error:
        raise DamagedDataError(
            f"{database.path} does not say which symbols it keeps ({error}); say it: --symbols all"
        ) from error
    if names:
        shown = plain(", ".join(names))
        click.echo(f"klagg: keeps to {shown}, as asked for before; all: --symbols all", err=True)
    return dataclasses.replace(settings, symbols=names)


def remember_symbols(asked: Settings, database: Database) -> None:
    """Keep in the database what was asked for, where that was said and every name is known there.

    A name that nobody knows may be a slip: it is told, with the nearest one, and not remembered.
    """
    if not asked.symbols:
        return
    known = database.symbols()
    unknown = [name for name in asked.named_symbols if name not in known]
    for name in unknown:
        near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.5)
        advice = f" (did you mean {near[0]}?)" if near else ""
        click.echo(
            f"klagg: nothing is stored of {plain(name)}{advice}; looked for at the exchange",
            err=True,
        )
    text = json.dumps(asked.named_symbols, ensure_ascii=False)
    if not unknown and text != database.meta(ASKED_FOR):
        database.commit(None, (), meta={ASKED_FOR: text})


def tell_mixed_exchanges(settings: Settings) -> None:
    """Warn where one of the two addresses is on this machine and the other is not."""
    rest, ws = settings.rest_url, settings.ws_url
    if is_loopback(urlsplit(rest).hostname or "") != is_loopback(urlsplit(ws).hostname or ""):
        click.echo(
            f"klagg: rest_url is {rest}, ws_url is {ws}: one is on this machine, the other is not; "
            "if that is no intent, name both: --rest-url, --ws-url",
            err=True,
        )


def duration_s(text: str | None) -> float | None:
    """Return the seconds of --duration, or None where it is not given."""
    if text is None:
        return None
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--duration") from error


def since_last_tick_ms(connection: sqlite3.Connection, text: str) -> int:
    """Return where a span begins that ends at the last tick, or a date, in ms. ValueError.

    What is stored lies in the exchange's time. The local clock may be wrong, and klagg may not have
    run since yesterday: neither changes what the last two hours of the stored bars are.
    """
    kind, value_ms = parse_since(text)
    if kind == "at":
        return value_ms
    row = connection.execute("SELECT value FROM meta WHERE key = 'last_tick'").fetchone()
    if row is None:
        row = connection.execute("SELECT max(close_time) + 1 FROM klines").fetchone()
    if not re.fullmatch("[0-9]{1,18}", str(row[0] or 0)):
        raise DamagedDataError("the database does not say up to when its bars reach; see: verify")
    return max(0, int(row[0] or 0) - value_ms)


def intervals_of(text: str | None) -> tuple[str, ...]:
    """Return the intervals that are asked for by name; all where none are. 1m need not be among."""
    names = tuple(INTERVALS)
    if text is None or text == "all":
        return names
    chosen = [name.strip() for name in text.split(",")]
    for name in chosen:
        if name not in INTERVALS:
            known = " ".join(names)
            raise click.BadParameter(
                f"unknown interval {name!r}; known are: {known} (or: all)",
                param_hint="--intervals",
            )
    return tuple(name for name in names if name in chosen)


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the data directory, made where it is missing, against any other klagg that writes."""
    import filelock

    lock = filelock.FileLock(data_dir / LOCK_NAME)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise LockedError(
            f"another klagg is at work in {data_dir}; stop it, or use another --data-dir"
        ) from error
    except OSError as error:
        raise StoreError(
            f"the data directory {data_dir} cannot be written ({error.strerror or error}); make it "
            "writable, or use another --data-dir"
        ) from error
    try:
        yield
    finally:
        lock.release()


BUSY_S_MAX: Final = 120.0
"""How long another program's hold on the database is waited for before anything begins."""


def open_database(data_dir: Path) -> Database:
    """Open the database for writing. Says once where another program holds it, and waits for it."""
    from klagg_trio.store.database import Database
    from klagg_trio.store.start import patiently

    began_s, told = time.monotonic(), False
    while True:
        try:
            return patiently(lambda: Database.open(data_dir / DATABASE_NAME, _told_upgrade()))
        except BusyError as error:
            if time.monotonic() - began_s > BUSY_S_MAX:
                raise
            if not told:
                click.echo(f"klagg: {plain(str(error))}; klagg waits for it", err=True)
            told = True


def _told_upgrade() -> Callable[[float], None]:
    """Give a function that says now and then how far a database has been brought up to date."""
    told_s = -math.inf

    def tell(share: float) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= UPGRADE_TOLD_S or share >= 1:
            told_s = time.monotonic()
            click.echo(f"klagg: bringing the database up to date: {share:.0%}", err=True)

    return tell


def patient(run: RunInThread) -> RunInThread:
    """Have each call wait while another program holds the database, and say so once."""
    told = False

    async def run_patiently(function: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401
        import trio

        nonlocal told
        until_s = time.monotonic() + BUSY_S_MAX
        while True:
            try:
                return await run(function, *args)
            except BusyError as error:
                if time.monotonic() > until_s:
                    raise
                if not told:
                    click.echo(f"klagg: {plain(str(error))}; klagg waits for it", err=True)
                told = True
                await trio.sleep(1.0)

    return run_patiently


# -- Log -------------------------------------------------------------------------------------------


class _Lines(logging.Formatter):
    """One line a message, for people."""

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_info:
            return super().format(record)
        return f"klagg: {plain(record.getMessage(), LOG_LENGTH_MAX)}"


class _JsonLines(logging.Formatter):
    """One JSON object a line, for programs."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "at": self.formatTime(record),
            "level": record.levelname.lower(),
            "from": record.name,
            "text": plain(record.getMessage(), LOG_LENGTH_MAX),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up_log(settings: Settings) -> None:
    """Send warnings to stderr, and everything to the log file where one is set."""
    root = logging.getLogger()
    warnings = logging.lastResort
    assert warnings is not None
    warnings.setFormatter(_Lines())
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback
    root.addHandler(warnings)
    if settings.log_file is None:
        return
    from logging.handlers import RotatingFileHandler

    from klagg_trio.commands.output import is_own

    if is_own(settings.log_file):
        raise ConfigurationError(
            f"log_file {settings.log_file} is a file that klagg keeps; name another one"
        )
    try:
        file = RotatingFileHandler(
            settings.log_file, maxBytes=LOG_BYTES_MAX, backupCount=1, encoding="utf-8"
        )
    except OSError as error:
        raise StoreError(
            f"log file {settings.log_file} cannot be written ({error.strerror}); "
            "change the setting log_file"
        ) from error
    file.setFormatter(_JsonLines())
    root.addHandler(file)
    logging.getLogger("klagg_trio").setLevel(logging.INFO)


# -- The edge --------------------------------------------------------------------------------------


def rest_proxy(settings: Settings) -> Proxy | None:
    """Return the proxy that REST goes through here, if any."""
    from klagg_trio.exchange.address import parse_address
    from klagg_trio.exchange.proxy import find_proxy

    return find_proxy(parse_address(settings.rest_url, "https"), os.environ)


def ws_proxy(settings: Settings) -> Proxy | None:
    """Return the proxy that websockets go through here, if any."""
    from klagg_trio.exchange.address import parse_address
    from klagg_trio.exchange.proxy import find_proxy

    return find_proxy(parse_address(settings.ws_url, "wss"), os.environ)


def open_rest(settings: Settings, gate: WeightGate) -> HttpxRest:
    """Return the REST client, by the way that the environment names."""
    from klagg_trio.exchange.rest import HttpxRest

    return HttpxRest(settings.rest_url, gate, proxy=rest_proxy(settings))


def open_asks(settings: Settings) -> AsksProbe:
    """Return the second HTTP client, by the same way."""
    from klagg_trio.exchange.clock_probe import AsksProbe

    return AsksProbe(settings.rest_url, dial_here() if rest_proxy(settings) else None)


def dial_here() -> Dial:
    """Return what opens byte streams, by the way that the environment names for each host."""
    from klagg_trio.exchange.proxy import dialer

    return dialer(os.environ)


# -- Running ---------------------------------------------------------------------------------------


async def wait_signal(task_status: trio.TaskStatus[None]) -> None:
    """Return at the first SIGINT, SIGTERM or SIGHUP. A second one ends the program at once."""
    import trio

    with trio.open_signal_receiver(*interrupt.signals()) as received:
        task_status.started()
        async for _ in received:
            return


def wall_ms() -> float:
    """Return the local wall clock: for people, and as one witness of several."""
    return time.time_ns() / 1e6


_GOES_ON: Final = getattr(
    time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC_RAW if sys.platform == "darwin" else None
)
"""The clock of this system that goes on through a suspend, if there is one."""


def going_on_ms() -> Callable[[], float] | None:
    """Return a reader of the local clock that goes on through a suspend, where there is one."""
    clock = _GOES_ON
    if clock is None:
        return None
    return lambda: time.clock_gettime_ns(clock) / 1e6
