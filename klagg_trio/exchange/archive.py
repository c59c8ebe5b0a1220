"""Recorded aggregate trades: the archive's csv files, and lists of JSON objects, as trades.

What the exchange publishes differs by market and year: with and without a header line, seven
columns or eight, `true` or `True`, milliseconds or, for spot from 2025 on, microseconds. Where
there is a header it says which column is what (`layout.py`). Rows that the archive itself has
struck out (price and quantity 0, or ids of -1) are skipped and counted.

A chunk of csv is read in the fastest of three ways that it allows, all by the same rules:

- to columns (`_Columns`), all of its numbers at once, where each row is a trade of plain numbers of
  at most 16 characters;
- to single trades, by making one JSON text of it with three replacements and one decoder call,
  where the columns are in the archive's own order;
- line by line, which finds the line to complain about.
"""

from __future__ import annotations

import gzip
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from operator import attrgetter, le
from pathlib import Path
from typing import IO, ClassVar, Final, cast

import msgspec
import numpy as np

from klagg_trio.core.columns import (
    FIRST_ID,
    LAST_ID,
    PRICE,
    QUANTITY,
    TAKER,
    TIME_MS,
    Booleans,
    Integers,
    TradeColumns,
    Units,
)
from klagg_trio.core.errors import DamagedDataError, StoreError
from klagg_trio.core.plain import plain
from klagg_trio.core.trade import Trade
from klagg_trio.exchange.digits import DIGITS_MAX, parse_numbers, rescale, word, words_of
from klagg_trio.exchange.layout import (
    BYTE_ORDER_MARK,
    FIELDS,
    MICROSECONDS_FROM,
    NUMBER_LENGTH_MAX,
    TIME_MS_MAX,
    TIME_MS_MIN,
    WHOLE_MAX,
    Layout,
    flaw_of,
    in_ms,
    read_layout,
    split_row,
)

Batch = list[Trade] | TradeColumns

CHUNK_BYTES: Final = 1 << 20
"""Some 13,000 rows: enough to make the cost of a chunk vanish, little enough for the caches."""

COLUMNS_FROM_BYTES: Final = 8 * 1024
"""Chunks below this cost more as columns than they save."""

LINE_BYTES_MAX: Final = 64 * 1024
"""A row has some hundred."""

_ZEROED: Final = bytes.maketrans(b"123456789.", b"0000000000")
_TOO_LONG: Final = b"0" * (NUMBER_LENGTH_MAX + 1)
_TRUE, _FALSE = (np.uint64(word(text)) for text in (b"true", b"false"))
_FOUR_BYTES, _FIVE_BYTES = (np.uint64((1 << 8 * count) - 1) for count in (4, 5))
_LOWER_FIRST: Final = np.uint64(0x20)
_COMPRESSED: Final = {b"\x1f\x8b": "gz", b"PK": "zip"}
_TROUBLE: Final = (
    *(zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError),
    NotImplementedError,  # a way of compressing that zipfile does not know
)
_JUNK: Final = re.compile(
    r"(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$|desktop\.ini$)|/$|\.CHECKSUM$", re.IGNORECASE
)
"""What systems and people leave in a zip beside the file that it is for."""


class ArchiveTrade(msgspec.Struct, array_like=True, gc=False):
    """One row, as `core.trade.Trade` wants it. The symbol is the class's: see `trade_class`."""

    symbol: ClassVar[str] = ""
    id: int
    price: Decimal
    quantity: Decimal
    first_id: int
    last_id: int
    time_ms: int
    buyer_is_maker: bool


class _Info(msgspec.Struct):
    """The exchange's own object within a client library's trade."""

    id: int = msgspec.field(name="a")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    first_id: int = msgspec.field(name="f")
    last_id: int = msgspec.field(name="l")
    time_ms: int = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")


class _Wrapped(msgspec.Struct):
    info: _Info


@dataclass(slots=True)
class RowCounts:
    """What became of the rows of one file."""

    rows: int = 0
    skipped: int = 0
    """Struck out by the archive itself."""


def trade_class(symbol: str) -> type[ArchiveTrade]:
    """Return the class of one file's trades: a row does not repeat the symbol, nor need a trade."""
    made: type[ArchiveTrade] = msgspec.defstruct(  # type: ignore[assignment]
        "ArchiveTrade", [], bases=(ArchiveTrade,), namespace={"symbol": symbol}, gc=False
    )
    return made


def read_batches(path: Path, symbol: str, counts: RowCounts) -> Iterator[Batch]:
    """Yield the trades of a file, in its order, in batches.

    Raises DamagedDataError, with the line, for what cannot be read.
    """
    made = trade_class(symbol)
    try:
        with ExitStack() as stack:
            source = _open(path, stack)
            first = source.read(CHUNK_BYTES).removeprefix(BYTE_ORDER_MARK)
            if first.lstrip()[:1] in (b"[", b"{"):
                rows = _read_json(path, first + source.read(), made)
                yield cast("list[Trade]", _clean(rows, counts))
                return
            line, newline, rest = first.lstrip(b"\r\n").partition(b"\n")
            layout, has_header = read_layout(path, line) if line else (Layout(), False)
            skipped = 0
            if has_header:
                skipped = first[: len(first) - len(rest)].count(b"\n") if newline else 1
                first = rest or (source.read(CHUNK_BYTES) if newline else b"")
            columns = _Columns(symbol, layout)
            for number, chunk in _whole_lines(path, source, first, 1 + skipped):
                burst = columns.read(chunk) if len(chunk) >= COLUMNS_FROM_BYTES else None
                if burst is not None:
                    counts.rows += len(burst)
                    yield burst
                    continue
                rows = _read_lines(path, number, chunk, made, layout)
                yield cast("list[Trade]", _clean(rows, counts))
    except _TROUBLE as error:
        raise DamagedDataError(f"{path} is cut short or damaged: {error}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error


def _open(path: Path, stack: ExitStack) -> IO[bytes]:
    """Open a file for reading, through whatever it was compressed with."""
    raw = stack.enter_context(path.open("rb"))
    kind = _COMPRESSED.get(raw.read(2))
    raw.seek(0)
    if kind == "gz":
        return cast("IO[bytes]", stack.enter_context(gzip.open(raw)))
    if kind != "zip":
        return raw
    folder = stack.enter_context(zipfile.ZipFile(raw))
    files = [each for each in folder.infolist() if not _JUNK.search(each.filename)]
    if len(files) != 1:
        names = plain(", ".join(each.filename for each in files[:5]), 200)
        raise DamagedDataError(
            f"{path} holds {len(files)} files ({names}); one of trades is expected"
        )
    if files[0].flag_bits & 1:
        raise DamagedDataError(f"{path} is encrypted; unpack it first")
    return stack.enter_context(folder.open(files[0]))


def _whole_lines(
    path: Path, source: IO[bytes], first: bytes, number: int
) -> Iterator[tuple[int, bytes]]:
    """Yield chunks of whole lines, each with the number of its first line."""
    rest = b""
    chunk = first
    while chunk:
        lines, newline, tail = (rest + chunk).rpartition(b"\n")
        if newline:
            yield number, lines
            number += lines.count(b"\n") + 1
        rest = tail
        if len(rest) > LINE_BYTES_MAX + CHUNK_BYTES:
            raise DamagedDataError(f"{path}: line {number} has no end: this is no csv of trades")
        chunk = source.read(CHUNK_BYTES)
    if rest:
        yield number, rest


class _Columns:
    """Reads chunks of plain rows of one symbol as columns."""

    def __init__(self, symbol: str, layout: Layout) -> None:
        """Know of no decimals yet."""
        self._symbol = symbol
        self._layout = layout
        self._decimals = np.zeros(2, np.int64)
        """Most that were seen in a price and in a quantity."""
        self._units = self._make_units()

    def _make_units(self) -> Units:
        return Units((self._symbol,), self._decimals[:1].copy(), self._decimals[1:].copy())

    def read(self, chunk: bytes) -> TradeColumns | None:
        """Read whole lines; None where not every one is a trade of plain numbers."""
        # What is read of a number is 16 characters up to its end, of a truth value eight from its
        # beginning: no line may lie closer to an end of the text.
        data = b"\0" * DIGITS_MAX + chunk + b"\n" + b"\0" * 8
        octets = np.frombuffer(data, np.uint8)
        newlines = (octets == ord("\n")).nonzero()[0]
        commas = (octets == ord(",")).nonzero()[0]
        width, rest = divmod(len(commas), len(newlines))
        if rest or not self._layout.allows(width + 1):
            return None
        commas = np.ascontiguousarray(commas.reshape(-1, width).T)
        starts = np.append(DIGITS_MAX, newlines[:-1] + 1)
        ignores = self._layout.width not in (None, len(FIELDS))
        if ignores and ((commas[0] < starts).any() or (commas[-1] > newlines).any()):
            return None  # more commas than there should be in one row, less in another
        before = [starts - 1, *commas]
        ends = [*commas, newlines]
        place = self._layout.columns
        order = [place[field] for field in (1, 2, 0, 3, 4, 5)]
        begin = np.stack([before[column] for column in order]) + 1
        stop = np.stack([ends[column] for column in order])
        truths = [
            _truths(data, before[column] + 1, ends[column])
            for column in (place[6], *range(7, width + 1 if self._layout.width is None else 7))
        ]
        parsed = parse_numbers(data, begin, stop, fractions=2)
        if parsed is None or any(truth is None for truth in truths):
            return None
        numbers, decimals = parsed
        if not self._scale(numbers, decimals, stop - begin):
            return None
        table = np.empty((len(numbers) + 1, len(starts)), np.int64)
        table[:TAKER] = numbers
        table[TAKER] = ~truths[0] if truths[0] is not None else 0
        counts = table[PRICE].all() and table[QUANTITY].all()
        if not counts or (table[FIRST_ID] > table[LAST_ID]).any():
            return None  # struck out
        times = table[TIME_MS]
        if times.max() >= MICROSECONDS_FROM:
            times //= np.where(times >= MICROSECONDS_FROM, 1000, 1)
        if times.min() < TIME_MS_MIN or times.max() >= TIME_MS_MAX:
            return None  # no times: told with the line
        return TradeColumns(self._units, np.zeros(len(starts), np.int16), table)

    def _scale(self, numbers: Integers, decimals: Integers, length: Integers) -> bool:
        """Bring prices and quantities to one count of decimals each."""
        most = np.maximum(self._decimals, decimals.max(axis=1))
        if (most != self._decimals).any():
            self._decimals = most
            self._units = self._make_units()
        return all(
            rescale(numbers[row], most[row] - decimals[row], length[row])
            for row in (PRICE, QUANTITY)
        )


def _truths(data: bytes, begin: Integers, stop: Integers) -> Booleans | None:
    """Read truth values, `true` or `True`; None where there is something else."""
    texts = words_of(data)[begin] | _LOWER_FIRST
    true = (texts & _FOUR_BYTES == _TRUE) & (stop - begin == 4)
    false = (texts & _FIVE_BYTES == _FALSE) & (stop - begin == 5)
    return true if (true | false).all() else None


def _read_lines(
    path: Path, number: int, chunk: bytes, made: type[ArchiveTrade], layout: Layout
) -> list[ArchiveTrade]:
    """Read one chunk of rows: all at once where it is plain, else line by line."""
    if b"\r" in chunk:
        chunk = chunk.replace(b"\r\n", b"\n").removesuffix(b"\r")
    text = chunk.replace(b"True", b"true").replace(b"False", b"false")
    if layout.is_usual and _is_plain(text):
        try:
            rows: list[ArchiveTrade] = msgspec.json.decode(
                b"[[" + text.replace(b"\n", b"],[") + b"]]",
                type=list[made],  # type: ignore[valid-type]
            )
        except msgspec.MsgspecError:
            pass  # line by line then
        else:
            if all(map(_is_bounded, rows)):
                return rows
    rows = []
    for line in text.split(b"\n"):
        if line:
            rows.append(_read_line(path, number, line, made, layout))
        number += 1
    return rows


def _is_bounded(row: ArchiveTrade) -> bool:
    """Whether the whole numbers of a row are such as `flaw_of` lets pass."""
    return (
        TIME_MS_MIN <= in_ms(row.time_ms) < TIME_MS_MAX
        and max(row.id, row.last_id, -row.id, -row.first_id) <= WHOLE_MAX
    )


def _is_plain(text: bytes) -> bool:
    """Whether rows hold just as many numbers and truth values as they should, and nothing else."""
    zeroed = text.translate(_ZEROED)
    letters = zeroed.translate(None, b"0,\n")
    if letters.replace(b"true", b"").replace(b"false", b"") or _TOO_LONG in zeroed:
        return False
    lines = text.count(b"\n") + 1
    return text.count(b",") in (6 * lines, 7 * lines)


def _read_line(
    path: Path, number: int, line: bytes, made: type[ArchiveTrade], layout: Layout
) -> ArchiveTrade:
    """Read one row, looking at everything."""
    cells = split_row(line.decode("utf-8", "replace"))
    if flaw := flaw_of(cells, layout):
        shown = plain(line[:200].decode("utf-8", "replace"), 80)
        raise DamagedDataError(f"{path}: line {number} is no aggregate trade: {shown!r}: {flaw}")
    trade_id, price, quantity, first_id, last_id, time_ms, maker = (
        cells[column] for column in layout.columns
    )
    return made(
        int(trade_id),
        Decimal(price),
        Decimal(quantity),
        int(first_id),
        int(last_id),
        int(time_ms),
        maker.lower() == "true",
    )


def _read_json(path: Path, text: bytes, made: type[ArchiveTrade]) -> list[ArchiveTrade]:
    """Read a JSON list of the exchange's objects, bare or as `info` of a client library's."""
    try:
        try:
            rows = [row.info for row in msgspec.json.decode(text, type=list[_Wrapped])]
        except msgspec.ValidationError:
            rows = msgspec.json.decode(text, type=list[_Info])
    except msgspec.MsgspecError as error:
        raise DamagedDataError(f"{path} is no list of aggregate trades: {error}") from error
    return [_from_info(path, number, row, made) for number, row in enumerate(rows, 1)]


def _from_info(path: Path, number: int, row: _Info, made: type[ArchiveTrade]) -> ArchiveTrade:
    line = f"{row.id},{row.price},{row.quantity},{row.first_id},{row.last_id},{row.time_ms},"
    line += str(row.buyer_is_maker)
    return _read_line(path, number, line.encode(), made, Layout())


_id: Final[Callable[[ArchiveTrade], int]] = attrgetter("id")
_price: Final[Callable[[ArchiveTrade], Decimal]] = attrgetter("price")
_quantity: Final[Callable[[ArchiveTrade], Decimal]] = attrgetter("quantity")
_first_id: Final[Callable[[ArchiveTrade], int]] = attrgetter("first_id")
_last_id: Final[Callable[[ArchiveTrade], int]] = attrgetter("last_id")
_time_ms: Final[Callable[[ArchiveTrade], int]] = attrgetter("time_ms")


def _clean(rows: list[ArchiveTrade], counts: RowCounts) -> list[ArchiveTrade]:
    """Leave out rows that are struck out; turn microseconds into milliseconds."""
    counts.rows += len(rows)
    if not rows:
        return rows
    struck = (
        min(map(_id, rows)) < 0
        or min(map(_first_id, rows)) < 0
        or not all(map(_price, rows))
        or not all(map(_quantity, rows))
        or not all(map(le, map(_first_id, rows), map(_last_id, rows)))
    )
    if struck:
        kept = [row for row in rows if _counts(row)]
        counts.skipped += len(rows) - len(kept)
        rows = kept
    if max(map(_time_ms, rows), default=0) >= MICROSECONDS_FROM:
        for row in rows:
            if row.time_ms >= MICROSECONDS_FROM:
                row.time_ms //= 1000
    return rows


def _counts(row: ArchiveTrade) -> bool:
    return row.id >= 0 <= row.first_id <= row.last_id and row.price > 0 and row.quantity > 0
