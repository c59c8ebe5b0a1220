"""When to ask the exchange again for what it did not give: pauses that grow, and what is absent.

Theory of operation
-------------------
Two things may go wrong with a minute that is asked for. A row may be refused, or not be there yet:
then it is asked for again, after pauses that grow up to an hour, for as long as it is owed.
`Patience` remembers which spans that are.

Or the exchange has no kline for it at all. An answer is *complete* when every row of it has a time,
and a stretch is *skipped* when a complete answer has rows on both sides of it (or where the
contract's life, or what is settled, ends). `Absences` notes the first time. When it is skipped once
more after a pause, that is two witnesses: the stretch is `absent`. It is asked for again for a day,
with growing pauses; then that is final.

Spans stay spans, however long they are, and every container here is bounded. Times are Trio's in s
for pauses, the exchange's in ms for absences, since those outlive the process. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from klagg_trio.core.bar import Bar
from klagg_trio.core.facts import AbsenceNote
from klagg_trio.core.gaps import Spans
from klagg_trio.core.intervals import DAY_MS, MINUTE_MS

Span = tuple[int, int]
"""First and last minute, by open time, both inclusive."""

PAUSES_S: Final = (30.0, 60.0, 120.0, 300.0, 600.0, 1_200.0, 3_600.0)
"""Before a span is asked for again, by how often it was. The last one holds for good."""

KEPT_PER_SYMBOL: Final = 64
KEPT_SYMBOLS: Final = 4_096
"""Spans and symbols remembered; the oldest are forgotten, which only asks for them too early."""

CONFIRM_MS: Final = 2 * MINUTE_MS
"""Between the two askings that make a stretch absent: a hiccup is over by then."""

ABSENT_PAUSES_MS: Final = tuple(minutes * MINUTE_MS for minutes in (10, 30, 60, 180, 360, 720))
"""Between askings for a stretch that is absent already."""

FINAL_MS: Final = DAY_MS
"""After so long an absence is final."""

ABSENCES_MAX: Final = 1_024
"""Absences that are not final remembered in all; more than that are a fault of another kind, and
stay owed."""


# -- Pauses ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Asked:
    """A span that was asked for in vain."""

    first_ms: int
    last_ms: int
    askings: int
    again_s: float


class Patience:
    """Spans that were asked for in vain, and when each may be asked for again."""

    def __init__(self, pauses_s: Sequence[float] = PAUSES_S) -> None:
        """Remember nothing yet."""
        self._pauses_s = pauses_s
        self._asked: dict[str, list[_Asked]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._asked.values()))

    def fail(self, key: str, first_ms: int, last_ms: int, now_s: float) -> bool:
        """Note that a span was asked for in vain. Returns whether that is news."""
        kept, askings, is_news = [], 0, True
        for asked in self._asked.pop(key, ()):
            if asked.last_ms < first_ms or last_ms < asked.first_ms:
                kept.append(asked)
            else:
                is_news &= asked.first_ms > first_ms or asked.last_ms < last_ms
                # Asked for before its time, beside something else: no reason to wait for longer.
                askings = max(askings, asked.askings - (asked.again_s > now_s))
                first_ms, last_ms = min(first_ms, asked.first_ms), max(last_ms, asked.last_ms)
        pause_s = self._pauses_s[min(askings, len(self._pauses_s) - 1)]
        kept.append(_Asked(first_ms, last_ms, askings + 1, now_s + pause_s))
        while len(self._asked) >= KEPT_SYMBOLS:
            del self._asked[next(iter(self._asked))]
        self._asked[key] = kept[-KEPT_PER_SYMBOL:]
        return is_news

    def succeed(self, key: str, first_ms: int, last_ms: int) -> None:
        """Forget what was noted within a span."""
        left = []
        for asked in self._asked.pop(key, ()):
            if asked.first_ms < first_ms:
                left.append(replace(asked, last_ms=min(asked.last_ms, first_ms - MINUTE_MS)))
            if asked.last_ms > last_ms:
                left.append(replace(asked, first_ms=max(asked.first_ms, last_ms + MINUTE_MS)))
        if left:
            self._asked[key] = left[-KEPT_PER_SYMBOL:]

    def waiting(self, key: str, now_s: float) -> list[Span]:
        """Return the spans that are not to be asked for now."""
        return [
            (asked.first_ms, asked.last_ms)
            for asked in self._asked.get(key, ())
            if asked.again_s > now_s
        ]


def without(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """Return sorted spans less other ones."""
    rest = Spans(list(spans))
    for span in others:
        rest.remove(*span)
    return list(rest)


# -- Answers ---------------------------------------------------------------------------------------


def skipped(served_ms: Sequence[int], first_ms: int, last_ms: int) -> Iterator[Span]:
    """Yield the stretches between two minutes of which an answer has none.

    `served_ms` are the open times of all its rows in order, of refused ones too.
    """
    next_ms = first_ms
    for open_ms in served_ms:
        if open_ms > last_ms:
            break
        if next_ms < open_ms:
            yield next_ms, open_ms - MINUTE_MS
        next_ms = max(next_ms, open_ms + MINUTE_MS)
    if next_ms <= last_ms:
        yield next_ms, last_ms


class FewerTrades:
    """Official rows that count less than we saw: asked for once more before they are believed.

    The exchange may serve a row that is not finished, and an aggregate over the boundary may be
    counted in the minute before: what it says twice is so.
    """

    def __init__(self) -> None:
        """Doubt nothing yet."""
        self._told: dict[tuple[str, int], Bar] = {}

    def is_doubtful(self, symbol: str, official: Bar, ours: Bar | None) -> bool:
        """Whether a row is to be asked for again before it takes the place of ours."""
        key = symbol, official.open_ms
        fewer = ours is not None and (official.count < ours.count or official.volume < ours.volume)
        before = self._told.pop(key, None)
        if not fewer or (before is not None and before.values() == official.values()):
            return False
        while len(self._told) >= KEPT_SYMBOLS:
            del self._told[next(iter(self._told))]
        self._told[key] = official
        return True


# -- Absences --------------------------------------------------------------------------------------


class Absences:
    """The stretches that the exchange was found to lack, confirmed or not yet."""

    def __init__(self, notes: Iterable[AbsenceNote] = ()) -> None:
        """Go on from what was known before."""
        self._notes: dict[str, list[AbsenceNote]] = {}
        for note in notes:
            if not note.final:
                self._notes.setdefault(note.symbol, []).append(note)

    def __len__(self) -> int:
        return sum(map(len, self._notes.values()))

    def __iter__(self) -> Iterator[AbsenceNote]:
        for notes in self._notes.values():
            yield from notes

    def skip(self, symbol: str, first_ms: int, last_ms: int, now_ms: int) -> list[AbsenceNote]:
        """Note that a complete answer skips a stretch. Returns what is to be stored of it now.

        Those with two askings or more are absent. One that was skipped a moment ago already says
        nothing new.
        """
        changed = []
        news = Spans([(first_ms, last_ms)])
        kept = []
        for note in self._notes.get(symbol, []):
            if note.last_ms < first_ms or last_ms < note.first_ms:
                kept.append(note)
                continue
            news.remove(note.first_ms, note.last_ms)
            inside = max(first_ms, note.first_ms), min(last_ms, note.last_ms)
            kept += _outside(note, *inside)
            within = note._replace(first_ms=inside[0], last_ms=inside[1])
            if now_ms >= _due_ms(note):
                within = within._replace(
                    asked_ms=now_ms,
                    askings=note.askings + 1,
                    final=now_ms - note.noticed_ms >= FINAL_MS,
                )
                changed.append(within)
            if not within.final:  # nobody asks again: the store knows
                kept.append(within)
        for first_ms, last_ms in news:
            if len(self) < ABSENCES_MAX:
                note = AbsenceNote(symbol, first_ms, last_ms, now_ms, now_ms, 1, final=False)
                changed.append(note)
                kept.append(note)
        if kept:
            self._notes[symbol] = sorted(kept)
        else:
            self._notes.pop(symbol, None)
        return changed

    def serve(self, symbol: str, first_ms: int, last_ms: int) -> None:
        """Forget what was noted of minutes that the exchange has served after all."""
        kept = []
        for note in self._notes.get(symbol, []):
            kept += _outside(note, first_ms, last_ms)
        if kept:
            self._notes[symbol] = kept
        else:
            self._notes.pop(symbol, None)

    def forget(self, symbol: str) -> None:
        """Forget a symbol: its label has gone to another contract."""
        self._notes.pop(symbol, None)

    def waiting(self, symbol: str, now_ms: int) -> list[Span]:
        """Return the stretches that are not to be asked for now."""
        return [
            (note.first_ms, note.last_ms)
            for note in self._notes.get(symbol, [])
            if now_ms < _due_ms(note)
        ]

    def covers(self, symbol: str, open_ms: int) -> bool:
        """Whether a minute is in a stretch that was noted."""
        return any(note.first_ms <= open_ms <= note.last_ms for note in self._notes.get(symbol, []))

    def due(self, now_ms: int) -> list[AbsenceNote]:
        """Return the absent stretches that are to be asked for again."""
        return [note for note in self if note.askings > 1 and now_ms >= _due_ms(note)]


def _due_ms(note: AbsenceNote) -> int:
    """Return when a stretch is to be asked for again."""
    if note.askings < 2:
        return note.asked_ms + CONFIRM_MS
    return note.asked_ms + ABSENT_PAUSES_MS[min(note.askings - 2, len(ABSENT_PAUSES_MS) - 1)]


def _outside(note: AbsenceNote, first_ms: int, last_ms: int) -> list[AbsenceNote]:
    """Return what of a note lies outside of a span."""
    pieces = []
    if note.first_ms < first_ms:
        pieces.append(note._replace(last_ms=min(note.last_ms, first_ms - MINUTE_MS)))
    if note.last_ms > last_ms:
        pieces.append(note._replace(first_ms=max(note.first_ms, last_ms + MINUTE_MS)))
    return pieces
