"""Lies in klines: rows that contradict themselves, are missing, unfinished, empty, or in disorder.

The rows that are so are made by `market`; here some are replaced on their way out. `Unserved` is
what the exchange never serves a usable row for: that is told apart by the judge.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from klagg_trio.sim.klines import INTERVALS, MINUTE_MS, part_of, row_text, span_of
from klagg_trio.sim.market import Market, Tape
from klagg_trio.sim.universe import Instrument

EVER_MS: Final = 1 << 60

FRESH_MS: Final = 12_000
"""For how long after its end a row may be unfinished, at most: users saw ten seconds."""

_OPEN_MS, _OPEN, _HIGH, _LOW, _CLOSE, _VOLUME, _CLOSE_MS, _QUOTE, _COUNT, _TAKER, _TAKER_QUOTE = (
    range(11)
)


class RowLies:
    """Lies in klines, each brought about by its name."""

    def __init__(
        self, seed: int, unfinished: Callable[[], float], count: Callable[[str], None]
    ) -> None:
        self._seed = seed
        self._count = count
        self._unfinished = unfinished
        self._wrong: dict[tuple[int, str, int], tuple[int, int]] = {}
        """By instrument, interval and open time: in which way it is wrong, and until when."""
        self._holes: dict[int, list[tuple[int, int]]] = {}
        """By instrument: first and last open time of 1m rows that are never served."""
        self._empty_until_ms: dict[int, int] = {}
        self._shuffled_until_ms: dict[int, int] = {}

    # -- What is told ------------------------------------------------------------------------

    def rows(
        self,
        market: Market,
        tape: Tape,
        interval: str,
        spans: list[tuple[int, int]],
        rows: list[str],
    ) -> list[str]:
        """Return what is told in place of the rows of some spans."""
        number, now_ms = tape.instrument.number, market.now_ms
        if now_ms < self._empty_until_ms.get(number, 0):
            return []
        told = []
        for span, row in zip(spans, rows, strict=True):
            if interval == "1m" and self._is_hole(number, span[0]):
                continue
            kind, until_ms = self._wrong.get((number, interval, span[0]), (0, 0))
            if now_ms < until_ms:
                row = wrong_row(kind, row, span)
            elif interval == "1m" and span[1] <= now_ms < span[1] + FRESH_MS:
                row = self._fresh(tape, span, row, now_ms)
            told.append(row)
        if told and now_ms < self._shuffled_until_ms.get(number, 0):
            rng = random.Random(f"shuffle/{self._seed}/{number}/{now_ms}")
            told += rng.choices(told, k=1 + len(told) // 4)
            rng.shuffle(told)
        return told

    def _is_hole(self, number: int, open_ms: int) -> bool:
        return any(first <= open_ms <= last for first, last in self._holes.get(number, ()))

    def _fresh(self, tape: Tape, span: tuple[int, int], row: str, now_ms: int) -> str:
        """Return a row that was over a moment ago, perhaps without its last trades."""
        rng = random.Random(f"fresh/{self._seed}/{tape.instrument.number}/{span[0]}")
        if rng.random() >= self._unfinished() or now_ms >= span[1] + rng.randrange(FRESH_MS):
            return row
        trades = tape.raw_trades(span[0])
        until_ms = span[0] + rng.randrange(MINUTE_MS)
        seen = trades[: bisect_right(trades, until_ms, key=lambda trade: trade.time_ms)]
        self._count("unfinished")
        return row_text(part_of(seen, tape.close_before(span[0])), span, tape.instrument.decimals)

    def heal(self) -> None:
        """Tell the truth from now on, but for what is wrong for good."""
        self._wrong = {key: lie for key, lie in self._wrong.items() if lie[1] == EVER_MS}
        self._empty_until_ms.clear()
        self._shuffled_until_ms.clear()

    def unserved(self, number: int) -> set[int]:
        """Return the minutes of an instrument for which no usable row is ever served."""
        found = {
            open_ms
            for (whose, interval, open_ms), (_, until_ms) in self._wrong.items()
            if whose == number and interval == "1m" and until_ms == EVER_MS
        }
        for first_ms, last_ms in self._holes.get(number, ()):
            found.update(range(first_ms, last_ms + 1, MINUTE_MS))
        return found

    # -- Lies --------------------------------------------------------------------------------

    def tell(
        self, kind: str, market: Market, told: Instrument, rng: random.Random, for_good: float
    ) -> None:
        """Bring one lie about."""
        now_ms, number = market.now_ms, told.number
        if kind == "row_wrong":
            until_ms = EVER_MS if rng.random() < for_good else now_ms + _minutes(rng, 1, 20)
            interval = "1m" if rng.random() < 0.7 else rng.choice(INTERVALS[1:])
            at_ms = now_ms - rng.randrange(-4, 10) * MINUTE_MS
            self.spoil(market, told, interval, at_ms, rng.randrange(len(WRONG)), until_ms)
        elif kind == "hole":
            first_ms = (now_ms // MINUTE_MS - rng.randrange(-3, 6)) * MINUTE_MS
            self.leave_out(told, first_ms, first_ms + _minutes(rng, 0, 20))
        elif kind == "pages_empty":
            self._empty_until_ms[number] = now_ms + _minutes(rng, 1, 5)
        else:
            assert kind == "rows_shuffled"
            self._shuffled_until_ms[number] = now_ms + _minutes(rng, 1, 20)

    def spoil(
        self,
        market: Market,
        told: Instrument,
        interval: str,
        at_ms: int,
        kind: int,
        until_ms: int = EVER_MS,
    ) -> int:
        """Have the row that contains a moment contradict itself. Returns its open time."""
        span = span_of(interval, at_ms, market.options.three_day_phase_ms)
        self._wrong[told.number, interval, span[0]] = kind, until_ms
        return span[0]

    def leave_out(self, told: Instrument, first_ms: int, last_ms: int) -> None:
        """Serve no 1m rows from one minute to another, for good."""
        span = (first_ms, last_ms // MINUTE_MS * MINUTE_MS)
        self._holes.setdefault(told.number, []).append(span)

    def wrong_past(self, market: Market, share: float) -> None:
        """Have rows of the last hours be missing, or wrong for good, for a share of contracts."""
        rng = random.Random(f"past/{self._seed}")
        for told in market.instruments:
            if not told.is_usdt_perpetual or rng.random() >= share:
                continue
            self._count("past_wrong")
            first_ms = (market.now_ms // MINUTE_MS - rng.randrange(5, 180)) * MINUTE_MS
            if rng.random() < 0.5:
                self.leave_out(told, first_ms, first_ms + _minutes(rng, 0, 90))
            else:
                interval = rng.choice(("1m", "1m", *INTERVALS[1:]))
                self.spoil(market, told, interval, first_ms, rng.randrange(len(WRONG)))


def _minutes(rng: random.Random, least: int, most: int) -> int:
    return rng.randrange(least, most + 1) * MINUTE_MS


def wrong_row(kind: int, row: str, span: tuple[int, int]) -> str:
    """Return a row that cannot be so, whichever the row was."""
    fields = row[1:-1].split(",")
    for place, text in WRONG[kind % len(WRONG)].items():
        fields[place] = text(fields, span)
    return f"[{','.join(fields)}]"


_Text = Callable[[list[str], tuple[int, int]], str]


def _always(text: str) -> _Text:
    return lambda fields, span: text


def _more_than(place: int) -> _Text:
    return lambda fields, span: f'"9{fields[place][1:-1]}"'


def _minus(place: int) -> _Text:
    return lambda fields, span: f'"-{fields[place][1:-1].replace("0", "1")}"'


WRONG: Final[tuple[dict[int, _Text], ...]] = (
    {_LOW: _more_than(_OPEN)},
    {_HIGH: _always('"0.0000001"')},
    {_TAKER: _more_than(_VOLUME)},
    {_TAKER_QUOTE: _more_than(_QUOTE)},
    {_QUOTE: _more_than(_QUOTE)},
    {_OPEN_MS: lambda fields, span: str(span[0] + 1_000)},
    {_CLOSE_MS: lambda fields, span: str(span[0])},
    {_CLOSE_MS: lambda fields, span: str(span[1])},
    {
        **dict.fromkeys((_VOLUME, _QUOTE, _TAKER, _TAKER_QUOTE), _always('"0"')),
        _COUNT: _always("5"),
    },
    {_COUNT: _always("0"), _VOLUME: _more_than(_VOLUME), _QUOTE: _more_than(_QUOTE)},
    {_COUNT: _always("9223372036854775808")},
    {_COUNT: _always("-1")},
    {_COUNT: _always("1.5")},
    {_OPEN: _always('"NaN"')},
    {_VOLUME: _always('"1e999"')},
    {_VOLUME: _minus(_VOLUME)},
    {_CLOSE: _always('"Infinity"')},
    {_QUOTE: _always(f'"{"9" * 60}"')},
    {_OPEN: _always("null")},
    {_OPEN: _always('"0"'), _LOW: _always('"0"')},
)
"""Ways in which a row cannot be so: which fields are replaced, and by what."""
