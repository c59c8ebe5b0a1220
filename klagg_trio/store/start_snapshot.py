"""The start snapshot: the exact state of every symbol at one cut, in one small file.

Theory of operation
-------------------
The file is a header (magic, format, length and SHA-256 of what follows) and then one CBOR map of
columns: each field of the bars of all symbols is one list. Columns, because decoding them costs a
tenth of what a map a bar would; decimals as plain text, because that is exact and was the cheapest
of the exact encodings (56,000 numbers: text 11 ms, mantissa and exponent 16 ms, CBOR's own
decimals 58 ms).

Nothing is believed that was not checked: header and digest catch damage, cattrs the shape, and
`flaws` whatever no run could have written. A state with such a flaw is not written either, so
what is written can be read. Suspect minutes from before a contract's life are left out: nobody owes
them. The format of 0.1.0 is read; there is no repair: history is fetched again.

Equal states give equal bytes: 1.50 is written as 1.5.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import operator
import os
import shlex
import struct
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path
from typing import Any, Final

import cattrs
import cbor2

from klagg_trio.core.bar import EXACT, Bar, Source
from klagg_trio.core.errors import DamagedDataError, StoreError
from klagg_trio.core.gaps import Spans
from klagg_trio.core.intervals import MINUTE
from klagg_trio.core.seed import OpenBar, Seed, StartState
from klagg_trio.store.snapshot_columns import (
    BAR_FIELDS,
    ID_MAX,
    SEED_FIELDS,
    SPAN_FIELDS,
    Columns,
    flaws,
)

MAGIC: Final = b"klaggst\n"

FORMAT: Final = 2
"""Raised with every change of the columns."""

OLDEST_FORMAT: Final = 1
"""Of 0.1.0: without identity, keys and unknown minutes; it wrote a number for what is not known."""

UNKNOWN_OF_OLDEST: Final = {"next_id": -1, "last_trade_ms": 0}

SNAPSHOT_BYTES_MAX: Final = 256 * 2**20
"""5,000 symbols of fifteen intervals are 30 MB."""

HEADER: Final = struct.Struct(">8sIQ32s")
"""Magic, format, bytes of CBOR that follow, their SHA-256."""

NUMBER_LENGTH_MAX: Final = 220
"""No sum of what the edge admits has more digits."""

_NUMBER_TEXT: Final = "0123456789."
"""All that a number is written with: no sign, no exponent, nothing else that Decimal would take."""

_SOURCES: Final = {int(source): source for source in Source}


def write_snapshot(path: Path, state: StartState) -> None:
    """Put the state in the place of the former one: all of it, or nothing. StoreError if not."""
    contents = encode(state)
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(
            f"cannot write the start snapshot {path}: {error.strerror or error}; make room on that "
            "disk, or make the folder writable; the former snapshot, if any, is untouched"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it is written over the next time
            fresh.unlink(missing_ok=True)


def read_snapshot(path: Path) -> StartState:
    """Return the state in a file. DamagedDataError, with the command that mends it, if it has not.

    Decoding makes a few objects a bar, none of them in a cycle: the garbage collector is left as
    it is (it takes a tenth of 34 ms for 500 symbols, a quarter of 0.5 s for 5,000).
    """
    try:
        if path.stat().st_size > SNAPSHOT_BYTES_MAX:
            raise _damaged(path, f"it is larger than any: over {SNAPSHOT_BYTES_MAX:,} bytes")
        contents = path.read_bytes()
    except FileNotFoundError as error:
        raise _damaged(path, "it does not exist") from error
    except OSError as error:
        raise StoreError(
            f"cannot read the start snapshot {path}: {error.strerror or error}; mend that first"
        ) from error
    return decode(contents, path)


def encode(state: StartState) -> bytes:
    """Return the contents of the file that holds this state."""
    columns = _columns_of(state)
    flaw = next(flaws(columns), None)
    assert flaw is None, f"the state to be written is impossible: {flaw}"
    payload = cbor2.dumps(_CONVERTER.unstructure(columns))
    digest = hashlib.sha256(payload).digest()
    return HEADER.pack(MAGIC, FORMAT, len(payload), digest) + payload


def decode(contents: bytes, path: Path) -> StartState:
    """Return the state in the contents of a file; `path` only names it in errors."""
    payload, version = _payload_of(contents, path)
    try:
        tree = cbor2.loads(payload, allow_duplicate_keys=False)
    except cbor2.CBORDecodeError as error:
        raise _damaged(path, f"it is no CBOR: {error}") from error
    if not isinstance(tree, dict) or not {str}.issuperset(map(type, tree)):
        raise _damaged(path, "it does not hold named columns")
    if version == OLDEST_FORMAT:
        _translate(tree)
    try:
        columns = _CONVERTER.structure(tree, Columns)
    except cattrs.ClassValidationError as error:
        raise _damaged(path, f"wrong shape: {cattrs.transform_error(error)[0]}") from error
    flaw = next(flaws(columns), None)
    if flaw is not None:
        raise _damaged(path, flaw)
    return _state_of(columns, guess_unknown=version == OLDEST_FORMAT)


def _translate(tree: dict[str, Any]) -> None:
    """Give the columns of 0.1.0 the form of today, as far as they are what they should be."""
    for field, unknown in UNKNOWN_OF_OLDEST.items():
        column = tree.get(field)
        if type(column) is list:
            tree[field] = [None if type(x) is int and x == unknown else x for x in column]
    symbols = len(tree["symbol"]) if type(tree.get("symbol")) is list else 0
    tree |= {
        "database_id": None,
        "generation": None,
        "first_ms": [None] * symbols,
        "unknown_spans": [0] * symbols,
        "unknown_first_ms": [],
        "unknown_last_ms": [],
    }


def _payload_of(contents: bytes, path: Path) -> tuple[bytes, int]:
    """Return what follows the header, proven whole and unaltered, and its format."""
    if len(contents) < HEADER.size:
        raise _damaged(path, f"it is cut short: {len(contents)} bytes")
    magic, version, length, digest = HEADER.unpack_from(contents)
    if magic != MAGIC:
        raise _damaged(path, "it is no start snapshot of klagg")
    if not OLDEST_FORMAT <= version <= FORMAT:
        age = "a newer" if version > FORMAT else "another"
        raise _damaged(path, f"{age} klagg wrote it: format {version}, this one reads {FORMAT}")
    payload = contents[HEADER.size :]
    if len(payload) < length:
        raise _damaged(path, f"it is cut short: {len(payload):,} of {length:,} bytes")
    if len(payload) > length:
        raise _damaged(path, f"{len(payload) - length:,} bytes too many follow its end")
    if hashlib.sha256(payload).digest() != digest:
        raise _damaged(path, "it was altered: its SHA-256 does not match")
    return payload, version


def _damaged(path: Path, flaw: str) -> DamagedDataError:
    folder = shlex.quote(str(path.parent))
    one_line = " ".join(flaw.split())
    return DamagedDataError(
        f"no usable start snapshot in {path}: {one_line}; run: klagg backfill --data-dir {folder}"
    )


def _sync_folder(folder: Path) -> None:
    """Make the renaming durable, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- Columns ---------------------------------------------------------------------------------------


def _columns_of(state: StartState) -> Columns:
    seeds = state.seeds
    longer = list(state.intervals[1:])
    for seed in seeds:
        assert [open_bar.interval for open_bar in seed.open_bars] == longer, seed.symbol
    open_bars = [open_bar for seed in seeds for open_bar in seed.open_bars]
    bars = [open_bar.bar for open_bar in open_bars]
    bars += [bar for seed in seeds for bar in seed.partials]
    suspects = [span for seed in seeds for span in seed.suspects]
    unknown = [span for seed in seeds for span in seed.unknown]
    return Columns(
        database_id=state.database_id,
        generation=state.generation,
        cut_ms=state.cut_ms,
        intervals=list(state.intervals),
        **_transposed(seeds, SEED_FIELDS),
        suspect_spans=[len(seed.suspects) for seed in seeds],
        partials=[len(seed.partials) for seed in seeds],
        unknown_spans=[len(seed.unknown) for seed in seeds],
        suspect_first_ms=[first_ms for first_ms, _ in suspects],
        suspect_last_ms=[last_ms for _, last_ms in suspects],
        unknown_first_ms=[first_ms for first_ms, _ in unknown],
        unknown_last_ms=[last_ms for _, last_ms in unknown],
        unofficial_minutes=[open_bar.unofficial_minutes for open_bar in open_bars],
        **_transposed(bars, BAR_FIELDS),
    )


def _transposed(rows: Sequence[object], fields: Iterable[str]) -> dict[str, Any]:
    return {field: list(map(operator.attrgetter(field), rows)) for field in fields}


def _state_of(columns: Columns, *, guess_unknown: bool = False) -> StartState:
    """Return the state. What 0.1.0 did not say to be unknown is guessed, too much rather."""
    bars = list(map(Bar, *(getattr(columns, field) for field in BAR_FIELDS)))
    longer = columns.intervals[1:]
    open_bars = map(OpenBar, itertools.cycle(longer), bars, columns.unofficial_minutes)
    partials = iter(bars[len(columns.unofficial_minutes) :])
    suspects = zip(columns.suspect_first_ms, columns.suspect_last_ms, strict=True)
    unknown = zip(columns.unknown_first_ms, columns.unknown_last_ms, strict=True)
    rows = zip(*(getattr(columns, field) for field in SEED_FIELDS), strict=True)
    counts = zip(*(getattr(columns, field) for field in SPAN_FIELDS), strict=True)
    seeds = []
    for row, (suspect_spans, partial_minutes, unknown_spans) in zip(rows, counts, strict=True):
        fields = dict(zip(SEED_FIELDS, row, strict=True))
        own_bars = tuple(itertools.islice(open_bars, len(longer)))
        own_suspects = list(itertools.islice(suspects, suspect_spans))
        own_partials = tuple(itertools.islice(partials, partial_minutes))
        own_unknown = list(itertools.islice(unknown, unknown_spans))
        if guess_unknown:
            own_unknown = _without(own_suspects, own_partials)
        life_ms = _life_ms(fields["first_ms"], fields["onboard_ms"], own_partials)
        seeds.append(
            Seed(
                **fields,
                open_bars=own_bars,
                suspects=_since(life_ms, own_suspects),
                partials=own_partials,
                unknown=_since(life_ms, own_unknown),
            )
        )
    return StartState(
        columns.cut_ms,
        tuple(columns.intervals),
        tuple(seeds),
        columns.database_id,
        columns.generation,
    )


def _without(spans: Iterable[tuple[int, int]], minutes: Iterable[Bar]) -> list[tuple[int, int]]:
    """Return the minutes of some spans of which no bar is known."""
    left = Spans()
    for first_ms, last_ms in spans:
        left.add(first_ms, last_ms)
    for minute in minutes:
        left.remove(minute.open_ms, minute.open_ms)
    return list(left)


def _life_ms(first_ms: int | None, onboard_ms: int, partials: Iterable[Bar]) -> int:
    """Return the first minute that a contract can owe: a listing is a hint, trades are none."""
    if first_ms is not None:
        return first_ms
    return min([MINUTE.floor(onboard_ms), *(bar.open_ms for bar in partials)])


def _since(from_ms: int, spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple((max(first, from_ms), last) for first, last in spans if last >= from_ms)


# -- Structuring -----------------------------------------------------------------------------------


def _integers(column: object, _: object) -> list[int]:
    if type(column) is not list or not {int}.issuperset(map(type, column)):
        raise ValueError("a list of integers was expected")
    return column


def _integer(value: object, _: object) -> int:
    if type(value) is not int:
        raise ValueError("an integer was expected")
    return value


def _integers_or_none(column: object, _: object) -> list[int | None]:
    if type(column) is not list or not {int, type(None)}.issuperset(map(type, column)):
        raise ValueError("a list of integers was expected")
    return column


def _integer_or_none(value: object, _: object) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value < ID_MAX):
        raise ValueError("an integer was expected")
    return value


def _text_or_none(value: object, _: object) -> str | None:
    if value is not None and (type(value) is not str or not value.isalnum()):
        raise ValueError("a name was expected")
    return value


def _texts(column: object, _: object) -> list[str]:
    if type(column) is not list or not {str}.issuperset(map(type, column)):
        raise ValueError("a list of texts was expected")
    return column


def _numbers(column: object, hint: object) -> list[Decimal]:
    texts = _texts(column, hint)
    if max(map(len, texts), default=0) > NUMBER_LENGTH_MAX:
        raise ValueError("numbers were expected")
    # strip() takes every character of a good column, and stops at the first one of a bad number.
    if "".join(texts).strip(_NUMBER_TEXT):
        raise ValueError("numbers were expected")
    try:
        return list(map(Decimal, texts))
    except InvalidOperation:
        raise ValueError("numbers were expected") from None


def _sources(column: object, hint: object) -> list[Source]:
    try:
        return [_SOURCES[code] for code in _integers(column, hint)]
    except KeyError as error:
        raise ValueError(f"there is no source {error}") from None


def _number_texts(column: list[Decimal]) -> list[str]:
    """Write each number in the one way that all its equals are written."""
    shortest = EXACT.normalize
    return [format(shortest(number), "f") if number else "0" for number in column]


def _source_codes(column: list[Source]) -> list[int]:
    return list(map(int, column))


def _as_it_is(value: Any) -> Any:  # noqa: ANN401
    return value


def _make_converter() -> cattrs.Converter:
    """Make a converter that takes a column as a whole, and nothing for what it is not."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(int, _integer)
    for hint, structure, unstructure in (
        (list[int], _integers, _as_it_is),
        (list[int | None], _integers_or_none, _as_it_is),
        (int | None, _integer_or_none, _as_it_is),
        (str | None, _text_or_none, _as_it_is),
        (list[str], _texts, _as_it_is),
        (list[Decimal], _numbers, _number_texts),
        (list[Source], _sources, _source_codes),
    ):
        is_hint = partial(operator.eq, hint)
        converter.register_structure_hook_func(is_hint, structure)
        converter.register_unstructure_hook_func(is_hint, unstructure)
    return converter


_CONVERTER: Final = _make_converter()
