"""Trade frames by the hundred: a chunk decoded to columns, all of its frames at once. No I/O.

Theory of operation
-------------------
The exchange writes every trade in one form, with the same keys in the same order. So where the
form is known, a frame need not be parsed: it is enough to prove that each of its bytes is what the
form says, and to read the digits in between. Both are done here for all frames of a chunk at once,
by array operations on 64-bit words read out of the chunk, eight bytes of text in each:

1. The *head*, up to the digits of the event time, is the same for all trades of a symbol. It tells
   the symbol, and is compared with the one that is known, byte for byte.
2. Commas part the fields. Between two of them, the text that is no number is compared with what the
   form has there: `,"f":` and the like; `,"s":"BTCUSDT","p":"` is known with the symbol.
3. The words of the numbers have their point taken out, are proved to hold digits alone, and become
   whole numbers by three multiplications, as in the well-known SWAR parsing of eight digits.

Head, texts and numbers touch each other and end where the frame ends, so nothing in it has gone
unseen. What is not of the known form in every respect is left to `wire.decode_trades`, the whole
chunk of it: another symbol, another order of keys, numbers of more than 16 characters, prices with
more decimals than before. Then this decoder learns from the chunk, so that the next one passes.
Frames that are no trades are picked out first.

The decoder hands out prices and quantities in units of the last decimal that it has seen of a
symbol: see `core/columns.py`. One number with far more decimals than all before would make those
units so small that nothing fits any more. So where numbers do not fit, the units of the symbols at
fault are made as large as the chunk at hand allows: at most once in `COARSE_CHUNKS`, so that two
numbers that do not go together cannot make every chunk pay for new tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from klagg_trio.core.columns import PRICE, QUANTITY, SUM_MAX, Integers, TradeColumns, Units
from klagg_trio.exchange import wire
from klagg_trio.exchange.digits import (
    DIGITS_MAX,
    RESCALED_MAX,
    Words,
    have_leading_zeros,
    parse_numbers,
    rescale,
    spare_decimals,
    text_at,
    word,
    words_of,
)
from klagg_trio.exchange.frames import Frames, Positions

BURST_MIN: Final = 96
"""Frames in a chunk from which on it pays to decode them at once: with warm caches some 70, with
cold ones, as after a pause, some 120."""

BURST_LEFT: Final = 64
"""Frames in a chunk below which single trades follow columns. To and fro is dearer than either:
single trades have the bars of their symbols brought up to date."""

SYMBOLS_MAX: Final = 8_192
"""Symbols that are learnt. The exchange has had some 1,000. A stream that makes up more has all of
them forgotten, so that those that are real are learnt again."""

SKIPPED_CHUNKS: Final = 64
"""Chunks that are not even tried after one that taught nothing."""

COARSE_CHUNKS: Final = 64
"""Chunks between two times that units are made larger."""

_HEAD_BYTES: Final = 96
_MIDDLE_BYTES: Final = 64
_TIME_DIGITS: Final = 13
"""Of a time in ms, from 2001 to 2286."""

_FORM: Final = re.compile(
    rb'(?P<head>\{"stream":"[^"\\,]{1,40}@aggTrade","data":\{"e":"aggTrade","E":)\d{13}'
    rb',"a":\d+(?P<middle>,"s":"(?P<symbol>[^"\\,]{1,40})","p":")(?P<price>[0-9.]+)'
    rb'","q":"(?P<quantity>[0-9.]+)"(?P<normal>,"nq":"[0-9.]+")?,"f":\d+,"l":\d+,"T":\d{13}'
    rb',"m":(?:true|false)(?P<market>,"st":1)?\}\}'
)

_NORMAL_ROW, _PRICE_ROW, _QUANTITY_ROW, _ID_ROW, _FIRST_ROW, _LAST_ROW, _TIME_ROW, _EVENT_ROW = (
    range(8)
)
"""Rows of numbers as they are parsed: those with a point first; from the price on as in the table
of `TradeColumns`, where the last row is the taker's."""


_SPREAD: Final = tuple(map(np.uint64, (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)))
"""Odd numbers that spread three words of a head; whatever they are, heads are compared in full."""

_MAKER, _TAKER = (np.uint64(word(text)) for text in (b',"m":tru', b',"m":fal'))
_MAKER_MARKET, _TAKER_MARKET = (np.uint64(word(text)) for text in (b'true,"st', b'alse,"st'))
_MAKER_END, _TAKER_END = (np.uint64(word(text)) for text in (b'":true}}', b":false}}"))
_MARKET_END: Final = np.uint64(word(b'"st":1}}'))


@dataclass(frozen=True, slots=True)
class _Form:
    """Which of the two fields that the exchange added later a trade has."""

    normal: bool
    """nq, the quantity that is not of the retail price improvement programme."""
    market: bool
    """st, the market."""

    @property
    def commas(self) -> int:
        """In one frame."""
        return 10 + self.normal + self.market


@dataclass(slots=True)
class _Known:
    """One symbol: what stands in its frames, and the decimals of its numbers."""

    head: bytes
    middle: bytes
    symbol: str
    price_decimals: int
    quantity_decimals: int


@dataclass(slots=True)
class _Tables:
    """What is known of all symbols, by their index, as arrays."""

    units: Units
    keys: Words
    """Of the heads, in ascending order."""
    index_of_key: npt.NDArray[np.int16]
    heads: Words
    heads_mask: Words
    head_lengths: Integers
    middles: Words
    middles_mask: Words
    middle_lengths: Integers


class TradeDecoder:
    """Decodes chunks of one or several connections; learns symbols as they come."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[bytes, _Known] = {}
        """By head."""
        self._tables: _Tables | None = None
        self._form = _Form(normal=True, market=True)
        self._least = BURST_MIN
        """Frames in a chunk that are decoded at once."""
        self._skip = 0
        self._fine = 0
        """Chunks until units may be made larger again."""

    def decode(self, frames: Frames) -> wire.Decoded:
        """Decode one chunk: to columns where it can be done at once, else to single trades.

        Never raises: what is no good is counted, with the reason.
        """
        self._fine = max(0, self._fine - 1)
        if len(frames) < self._least:
            self._least = BURST_MIN
            return wire.decode_trades(frames)
        if self._skip:
            self._skip -= 1
            return wire.decode_trades(frames)
        if self._tables is not None:
            decoded = _decode_burst(frames, self._tables, self._form)
            if decoded is not None:
                self._least = BURST_LEFT
                return decoded
        payloads = list(frames)
        decoded = wire.decode_trades(payloads)
        if not decoded.rejected and not self._learn(payloads):
            self._skip = SKIPPED_CHUNKS
        return decoded

    def _learn(self, payloads: list[bytes]) -> bool:
        """Take up what good frames show that is new. Returns whether there was anything."""
        learnt = False
        for payload in payloads:
            match = _FORM.fullmatch(payload)
            if match is None:
                continue
            form = _Form(match["normal"] is not None, match["market"] is not None)
            if form != self._form:
                self._form, learnt = form, True
            decimals = [len(match[name].partition(b".")[2]) for name in ("price", "quantity")]
            known = self._known.get(match["head"])
            if known is None:
                if _fits(match):
                    if len(self._known) >= SYMBOLS_MAX:
                        self._known.clear()
                    self._known[match["head"]] = _Known(
                        match["head"], match["middle"], match["symbol"].decode(), *decimals
                    )
                    learnt = True
            elif known.price_decimals < decimals[0] or known.quantity_decimals < decimals[1]:
                known.price_decimals = max(known.price_decimals, decimals[0])
                known.quantity_decimals = max(known.quantity_decimals, decimals[1])
                learnt = True
        learnt = learnt or self._make_coarse(payloads)
        if learnt and self._known:
            self._tables = _tabulate(list(self._known.values()))
        return learnt

    def _make_coarse(self, payloads: list[bytes]) -> bool:
        """Make units larger for symbols whose numbers get too long in them. Returns whether any."""
        if self._fine:
            return False
        found: dict[bytes, list[int]] = {}
        too_long: set[bytes] = set()
        for payload in payloads:
            match = _FORM.fullmatch(payload)
            if match is None or match["head"] not in self._known:
                continue
            known = self._known[match["head"]]
            needed = found.setdefault(match["head"], [0, 0])
            units = known.price_decimals, known.quantity_decimals
            for row, name in enumerate(("price", "quantity")):
                decimals = len(match[name].partition(b".")[2])
                needed[row] = max(needed[row], decimals)
                if len(match[name]) + units[row] - decimals >= RESCALED_MAX:
                    too_long.add(match["head"])
        for head in too_long:
            known = self._known[head]
            known.price_decimals, known.quantity_decimals = found[head]
        if too_long:
            self._fine = COARSE_CHUNKS
        return bool(too_long)

    def make_coarse(self, columns: TradeColumns) -> None:
        """Hear that sums over a chunk would not fit; make the units of those at fault larger."""
        if self._fine or self._tables is None or columns.units is not self._tables.units:
            return
        self._fine = COARSE_CHUNKS
        sizes = columns.table[PRICE].astype(np.float64) * columns.table[QUANTITY]
        share = SUM_MAX / len(columns)
        heavy = np.unique(columns.which[sizes >= share]).tolist()
        by_symbol = {known.symbol: known for known in self._known.values()}
        for index in heavy:
            known = by_symbol[columns.units.symbols[index]]
            numbers = columns.table[:, columns.which == index]
            known.price_decimals -= spare_decimals(numbers[PRICE], known.price_decimals)
            known.quantity_decimals -= spare_decimals(numbers[QUANTITY], known.quantity_decimals)
        if heavy:
            self._tables = _tabulate(list(self._known.values()))


def _fits(match: re.Match[bytes]) -> bool:
    """Whether a symbol's own texts are short enough, and its numbers too."""
    return (
        len(match["head"]) <= _HEAD_BYTES
        and len(match["middle"]) <= _MIDDLE_BYTES
        and max(len(match["price"]), len(match["quantity"])) <= DIGITS_MAX
    )


def _tabulate(known: list[_Known]) -> _Tables:
    """Lay out what is known of symbols for reading by index."""
    heads, heads_mask = _texts([each.head for each in known], _HEAD_BYTES)
    middles, middles_mask = _texts([each.middle for each in known], _MIDDLE_BYTES)
    keys = _keys(heads)
    order = keys.argsort()
    return _Tables(
        units=Units(
            tuple(each.symbol for each in known),
            np.array([each.price_decimals for each in known], np.int64),
            np.array([each.quantity_decimals for each in known], np.int64),
        ),
        keys=keys[order],
        index_of_key=order.astype(np.int16),
        heads=heads,
        heads_mask=heads_mask,
        head_lengths=np.array([len(each.head) for each in known], np.int64),
        middles=middles,
        middles_mask=middles_mask,
        middle_lengths=np.array([len(each.middle) for each in known], np.int64),
    )


def _texts(texts: list[bytes], width: int) -> tuple[Words, Words]:
    """Return texts as rows of words, and which of their bits count."""
    padded = b"".join(text.ljust(width, b"\0") for text in texts)
    mask = b"".join((b"\xff" * len(text)).ljust(width, b"\0") for text in texts)
    return (
        np.frombuffer(padded, "<u8").reshape(len(texts), -1),
        np.frombuffer(mask, "<u8").reshape(len(texts), -1),
    )


def _keys(heads: Words) -> Words:
    """Mix the words of heads in which symbols differ: characters 8 to 31."""
    keys: Words = heads[:, 1] * _SPREAD[0] + heads[:, 2] * _SPREAD[1] + heads[:, 3] * _SPREAD[2]
    return keys


def _decode_burst(frames: Frames, tables: _Tables, form: _Form) -> wire.Decoded | None:
    """Decode a chunk to columns; None where not every trade in it is of the known form."""
    data, starts, ends = frames.data, frames.starts, frames.ends
    if int(starts[-1]) + _HEAD_BYTES > len(data):
        data += bytes(_HEAD_BYTES)
    heads = text_at(data, starts, _HEAD_BYTES)
    keys = _keys(heads)
    places = tables.keys.searchsorted(keys).clip(max=len(tables.keys) - 1)
    which = tables.index_of_key[places]
    known = tables.keys[places] == keys
    others: list[bytes] = []
    if not known.all():
        others = [data[start:end] for start, end in zip(starts[~known], ends[~known], strict=True)]
        if any(map(wire.is_trade, others)):
            return None
        starts, ends, heads, which = starts[known], ends[known], heads[known], which[known]
        if not len(starts):
            return wire.Decoded(others=others)
    if ((heads ^ tables.heads.take(which, axis=0)) & tables.heads_mask.take(which, axis=0)).any():
        return None
    found = _numbers(data, starts, ends, which, tables, form)
    if found is None:
        return None
    table, event_ms = found
    columns = TradeColumns(tables.units, which, table)
    return wire.Decoded(others=others, columns=columns, event_ms=event_ms)


def _numbers(
    data: bytes,
    starts: Positions,
    ends: Positions,
    which: npt.NDArray[np.int16],
    tables: _Tables,
    form: _Form,
) -> tuple[Integers, int] | None:
    """Read the numbers of trades whose heads are good; the table and the last event time."""
    commas = _commas(data, starts, ends, form)
    after_id, after_price, after_quantity = commas[3], commas[5], commas[6]
    before_first, after_first, after_last, after_time = commas[6 + form.normal :][:4]
    if int(after_id.max()) + _MIDDLE_BYTES > len(data):
        return None
    middles = text_at(data, after_id, _MIDDLE_BYTES)
    if (
        (middles ^ tables.middles.take(which, axis=0)) & tables.middles_mask.take(which, axis=0)
    ).any():
        return None
    words = words_of(data)
    event = starts + tables.head_lengths[which]
    after_event = event + _TIME_DIGITS
    taker = _takers(words, commas, ends, form)
    texts = [(after_event, b',"a":'), (after_price - 1, b'","q":"')]
    if form.normal:
        texts.append((after_quantity - 1, b'","nq":"'))
    texts += [(before_first - 1, b'","f":'), (after_first, b',"l":'), (after_last, b',"T":')]
    if taker is None or not _stand(words, texts):
        return None
    quantity = after_price + 6
    begin = np.stack(
        (
            after_quantity + 7 if form.normal else quantity,
            after_id + tables.middle_lengths[which],
            quantity,
            after_event + 5,
            before_first + 5,
            after_first + 5,
            after_last + 5,
            event,
        )
    )
    stop = np.stack(
        (
            before_first - 1,
            after_price - 1,
            after_quantity - 1,
            after_id,
            after_first,
            after_last,
            after_time,
            after_event,
        )
    )
    parsed = parse_numbers(data, begin, stop, fractions=_QUANTITY_ROW + 1)
    if parsed is None or (after_time - after_last != 5 + _TIME_DIGITS).any():
        return None
    numbers, decimals = parsed
    length = stop - begin
    if have_leading_zeros(numbers[_ID_ROW:], length[_ID_ROW:]):
        return None
    event_ms = int(numbers[_EVENT_ROW, -1])
    numbers[_EVENT_ROW] = taker
    table = numbers[_PRICE_ROW:]
    units = tables.units
    for row, known in (
        (_PRICE_ROW, units.price_decimals[which]),
        (_QUANTITY_ROW, units.quantity_decimals[which]),
    ):
        if not rescale(numbers[row], known - decimals[row], length[row]):
            return None
    good = (  # a last id below the first is a huge number without a sign
        numbers[_PRICE_ROW].all()
        and numbers[_QUANTITY_ROW].all()
        and ((numbers[_LAST_ROW] - numbers[_FIRST_ROW]).view(np.uint64) < wire.FILLS_MAX).all()
        and numbers[_TIME_ROW].all()
        and event_ms
    )
    return (table, event_ms) if good else None


def _commas(data: bytes, starts: Positions, ends: Positions, form: _Form) -> Positions:
    """Return where the commas of each frame are: a row for each, a column for each frame.

    Where a frame has another number of them, what is returned is of no use and proves to be.
    """
    octets = np.frombuffer(data, np.uint8, int(ends[-1]))
    commas = (octets == ord(",")).nonzero()[0]
    if len(commas) == len(starts) * form.commas:
        return np.ascontiguousarray(commas.reshape(-1, form.commas).T)
    first = commas.searchsorted(starts)
    at: Positions = commas.take(first + np.arange(form.commas)[:, np.newaxis], mode="clip")
    return at


def _stand(words: Words, texts: list[tuple[Positions, bytes]]) -> bool:
    """Whether each text stands at its position in every frame."""
    positions = np.stack([position for position, _ in texts]).clip(max=len(words) - 1)
    expected = np.array([[word(text)] for _, text in texts], np.uint64)
    mask = np.array([[word(b"\xff" * len(text))] for _, text in texts], np.uint64)
    return not ((words[positions] ^ expected) & mask).any()


def _takers(
    words: Words, commas: Positions, ends: Positions, form: _Form
) -> npt.NDArray[np.bool_] | None:
    """Return where the taker bought; None where a frame does not end as it should."""
    after_time = commas[9 + form.normal]
    last = len(words) - 1
    maker_words = words[after_time.clip(max=last)]
    taker = maker_words == _TAKER
    end_words = words[ends - 8]
    if form.market:
        after_maker = commas[10 + form.normal]
        market_words = words[(after_maker - 4).clip(max=last)]
        good = (
            (market_words == np.where(taker, _TAKER_MARKET, _MAKER_MARKET)).all()
            and (end_words == _MARKET_END).all()
            and (after_maker - after_time == 9 + taker).all()
            and (ends - after_maker == 9).all()
        )
    else:
        good = (end_words == np.where(taker, _TAKER_END, _MAKER_END)).all() and (
            ends - after_time == 11 + taker
        ).all()
    return taker if good and (taker | (maker_words == _MAKER)).all() else None
