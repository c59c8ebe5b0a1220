"""Files that a command is told to write: whole or not at all, and never one of klagg's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from klagg_trio.commands.start import DATABASE_NAME, LOCK_NAME, SNAPSHOT_NAME
from klagg_trio.core.errors import StoreError
from klagg_trio.interrupt import leftovers

OWN_NAMES: Final = frozenset(
    (
        *(DATABASE_NAME + suffix for suffix in ("", "-wal", "-shm", "-journal")),
        *(SNAPSHOT_NAME, LOCK_NAME),
    )
)

_OWN_STARTS: Final = (
    b"SQLite format 3\0",
    b"\x37\x7f\x06\x82",  # a write-ahead log, in both orders of bytes
    b"\x37\x7f\x06\x83",
    b"klaggcbr",
)
"""How files begin that nobody wants overwritten, under whatever name they lie."""

PART: Final = ".part"
"""Ends the name of a file that is not finished."""


@contextmanager
def whole_file(out: str, *, option: str = "--out", apart: Iterable[Path] = ()) -> Iterator[Path]:
    """Give the name to write to. The file takes its place, on disk, when the block ends well.

    `apart` are files that it must not be. What is no plain file (a pipe, a device) is written
    directly. Links are followed.

    Raises click.BadParameter for one of klagg's own, StoreError where the disk refuses.
    """
    refuse_own(out, option, apart)
    target = Path(os.path.realpath(out))
    try:
        # What /dev/stdout leads to may be a file, but not one to put another in the place of.
        is_device = os.path.abspath(out).startswith(("/dev/", "/proc/"))
        if is_device or (target.exists() and not target.is_file()):
            yield Path(out)
            return
        part = target.with_name(f".{target.name}.{os.getpid()}{PART}")
        leftovers.add(str(part))
        try:
            yield part
            _keep_mode(target, part)
            _sync(part)
            part.replace(target)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            leftovers.discard(str(part))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise StoreError(
            f"{out} cannot be written ({error.strerror or error}); see {option}"
        ) from error


def refuse_own(out: str, option: str, apart: Iterable[Path] = ()) -> None:
    """Raise click.BadParameter where `out` is a file of klagg's own, or one of `apart`."""
    if is_own(Path(out), apart):
        raise click.BadParameter(
            f"{out} is a file that klagg reads or keeps; name another one", param_hint=option
        )


def is_own(path: Path, apart: Iterable[Path] = ()) -> bool:
    """Whether a path leads to a file of klagg's own, by name, contents or as the same file."""
    target = Path(os.path.realpath(path))
    if target.name in OWN_NAMES or _starts_like_ours(target):
        return True
    for other in apart:
        with contextlib.suppress(OSError):
            if target == Path(os.path.realpath(other)) or target.samefile(other):
                return True
    return False


def _starts_like_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(16).startswith(_OWN_STARTS)
    except OSError:
        return False  # to write it fails too, and says so


def _keep_mode(target: Path, part: Path) -> None:
    """Give the new file the permissions of the one that it replaces."""
    if target.exists():
        os.chmod(part, target.stat().st_mode & 0o7777)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
