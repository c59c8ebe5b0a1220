"""What commands need before they begin: settings, the log, the lock, signals, the edge."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from klagg_trio import interrupt
from klagg_trio.core.errors import LockedError, StoreError
from klagg_trio.core.intervals import INTERVALS
from klagg_trio.core.plain import plain
from klagg_trio.settings import Loaded, Settings, load, parse_duration_s

if TYPE_CHECKING:
    import trio

LOCK_NAME: Final = "klagg.lock"
DATABASE_NAME: Final = "klagg.db"
SNAPSHOT_NAME: Final = "initial_state.cbor"

LOG_LENGTH_MAX: Final = 1_000
"""Characters of one message in the log."""


def load_here(flags: Mapping[str, str | None]) -> Loaded:
    """Load the settings from the flags, this process's variables, and the files in their places."""
    return load(flags, os.environ, Path.cwd())


def duration_s(text: str | None) -> float | None:
    """Return the seconds of --duration, or None where it is not given."""
    if text is None:
        return None
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--duration") from error


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
    try:
        file = logging.FileHandler(settings.log_file, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"log file {settings.log_file} cannot be written ({error.strerror}); "
            "change the setting log_file"
        ) from error
    file.setFormatter(_JsonLines())
    root.addHandler(file)
    logging.getLogger("klagg_trio").setLevel(logging.INFO)


# -- Running ---------------------------------------------------------------------------------------


async def wait_signal(task_status: trio.TaskStatus[None]) -> None:
    """Return at the first SIGINT, SIGTERM or SIGHUP. A second one ends the program at once."""
    import trio

    with trio.open_signal_receiver(*interrupt.signals()) as received:
        task_status.started()
        async for _ in received:
            return


def wall_ms() -> float:
    """Return the local wall clock. Only people and the suspend sentinel go by it."""
    return time.time_ns() / 1e6
