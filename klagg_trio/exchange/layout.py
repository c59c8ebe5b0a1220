"""Where the values of an aggregate trade stand in a row: by the header, or as the archive has it.

A header is obeyed: columns in another order, and columns that nobody knows beside them. A file of
something else is told for what it is. Without a header a row has seven or eight columns, in the
archive's order.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from klagg_trio.core.errors import DamagedDataError
from klagg_trio.core.plain import plain

FIELDS: Final = ("id", "price", "quantity", "first id", "last id", "time", "buyer is maker")

_NAMES: Final = {
    "id": ("aggtradeid", "aggregatetradeid", "aggid", "tradeid", "id"),
    "price": ("price",),
    "quantity": ("quantity", "qty", "size", "amount"),
    "first id": ("firsttradeid", "firstid"),
    "last id": ("lasttradeid", "lastid"),
    "time": ("transacttime", "timestamp", "time", "tradetime"),
    "buyer is maker": ("isbuyermaker", "buyerismaker", "wasthebuyerthemaker", "isbuyerthemaker"),
}
"""In small letters, without anything but letters."""

_LETTERS: Final = dict(zip(("a", "p", "q", "f", "l", "T", "m"), FIELDS, strict=True))
"""The exchange's own names in JSON. Capitals count: `M` is another thing than `m`."""

_CELL: Final = re.compile(r"-?[0-9.]*|true|false", re.IGNORECASE)
"""What may stand in the first row of a file without a header."""

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Layout:
    """The column of each of the `FIELDS`, and how many there are; None: seven or eight."""

    columns: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)
    width: int | None = None

    def allows(self, width: int) -> bool:
        """Whether a row may have so many columns."""
        return width == self.width if self.width is not None else width in (7, 8)

    @property
    def is_usual(self) -> bool:
        """Whether the archive's order holds and nothing unknown is beside it."""
        return self == Layout() or (self == Layout(width=self.width) and self.width in (7, 8))


def read_layout(path: Path, line: bytes) -> tuple[Layout, bool]:
    """Return the layout that a file's first line tells, and whether that line is a header.

    DamagedDataError where the file holds something else than aggregate trades.
    """
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
        raise DamagedDataError(f"{path} is no UTF-8 text: save it as csv in UTF-8")
    text = line.decode("utf-8", "replace").strip("\r\n")
    cells = [cell.strip() for cell in split_row(text)]
    if len(cells) == 1 and re.search(r"[;\t|]", text):
        raise DamagedDataError(
            f"{path}: its columns are not separated by commas but otherwise, as a spreadsheet may "
            "save them: save it as csv with commas"
        )
    if all(_CELL.fullmatch(cell) for cell in cells):
        _refuse_by_width(path, cells)
        return Layout(), False
    if len(cells) < 4 or any(re.match(r"[0-9]", cell) for cell in cells):
        return Layout(), False  # a row, and a bad one: it is told with its line
    return _by_names(path, cells), True


def _by_names(path: Path, names: Sequence[str]) -> Layout:
    found: dict[str, int] = {}
    for column, name in enumerate(names):
        meant = _LETTERS.get(name) or _meaning(name)
        if meant is not None and meant in found:
            raise DamagedDataError(f"{path}: two columns of its header mean {meant}")
        if meant is not None:
            found[meant] = column
    if missing := [field for field in FIELDS if field not in found]:
        raise DamagedDataError(f"{path} {_other_kind(names, missing)}")
    return Layout(tuple(found[field] for field in FIELDS), len(names))


def _meaning(name: str) -> str | None:
    letters = re.sub(r"[^a-z]", "", name.lower())
    return next((field for field, known in _NAMES.items() if letters in known), None)


def _other_kind(names: Sequence[str], missing: Sequence[str]) -> str:
    letters = {re.sub(r"[^a-z]", "", name.lower()) for name in names}
    if {"open", "high", "low", "close"} <= letters:
        return "is a klines file: it holds bars already; replay makes them from aggTrades files"
    if "quoteqty" in letters or {"price", "qty", "time"} <= letters:
        return "is a file of raw trades; replay needs the aggTrades file of the same day"
    return f"is no file of aggregate trades: its header lacks {', '.join(missing)}"


def _refuse_by_width(path: Path, cells: Sequence[str]) -> None:
    """Refuse a file without a header that is another one of the archive's."""
    if len(cells) in (11, 12) and _is_time(cells[0]) and _is_time(cells[6]):
        raise DamagedDataError(f"{path} {_other_kind(('open', 'high', 'low', 'close'), ())}")
    if len(cells) in (6, 7) and _is_time(cells[4]) and cells[5].lower() in ("true", "false"):
        raise DamagedDataError(f"{path} {_other_kind(('quote_qty',), ())}")


def _is_time(cell: str) -> bool:
    return re.fullmatch("[0-9]{13}|[0-9]{16}", cell) is not None


def split_row(text: str) -> list[str]:
    """Return the cells of a row, without the quotes around them."""
    if '"' not in text:
        return text.split(",")
    try:
        return next(csv.reader([text]), [])
    except csv.Error:
        return [text]


# -- What is wrong with a row ----------------------------------------------------------------------

_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_WHOLE: Final = re.compile(r"-?[0-9]+", re.ASCII)
_TRUTH: Final = re.compile(r"true|false", re.IGNORECASE | re.ASCII)
_PATTERNS: Final = (
    _WHOLE,
    _NUMBER,
    _NUMBER,
    _WHOLE,
    _WHOLE,
    re.compile(r"[0-9]+", re.ASCII),
    _TRUTH,
)
_SHORTENED: Final = re.compile(r"[0-9][.,]?[0-9]*[eE]\+?[0-9]+")

NUMBER_LENGTH_MAX: Final = 40
"""As on the wire. The longest number seen has 20 characters."""

WHOLE_MAX: Final = 2**63 - 1

TIME_MS_MIN: Final = 1_483_228_800_000
TIME_MS_MAX: Final = 4_102_444_800_000
"""2017, when the exchange began, and 2100: what lies outside was no time in ms or microseconds."""

MICROSECONDS_FROM: Final = 10**14
"""A time above this is in microseconds: as milliseconds it would lie beyond the year 5000."""


def flaw_of(cells: Sequence[str], layout: Layout) -> str:
    """Say what is wrong with a row; empty where nothing is."""
    if not layout.allows(len(cells)):
        wanted = "7 or 8" if layout.width is None else f"{layout.width}"
        return f"it has {len(cells)} columns instead of {wanted}: " + ", ".join(FIELDS)
    for field, column, pattern in zip(FIELDS, layout.columns, _PATTERNS, strict=True):
        cell = cells[column]
        if pattern.fullmatch(cell) is None or len(cell) > NUMBER_LENGTH_MAX:
            return f"{field} is {plain(cell, 40)!r}" + (
                ", shortened by a spreadsheet: use the file as it was published"
                if _SHORTENED.fullmatch(cell)
                else ""
            )
        if pattern in _PATTERNS[3:6] + _PATTERNS[:1] and abs(int(cell)) > WHOLE_MAX:
            return f"{field} is beyond 63 bits"
    time_ms = in_ms(int(cells[layout.columns[5]]))
    if not TIME_MS_MIN <= time_ms < TIME_MS_MAX:
        return f"time is {plain(cells[layout.columns[5]], 40)!r}, before 2017 or after 2100"
    return ""


def in_ms(time: int) -> int:
    """Return a time of a file in ms."""
    return time // 1_000 if time >= MICROSECONDS_FROM else time
