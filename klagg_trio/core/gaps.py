"""Sets of minutes, kept as few, disjoint, sorted spans.

`Spans` is what a symbol's suspect minutes are remembered in. It is bounded: past `SPANS_MAX`
spans the two nearest are joined, which only asks for more repair than needed, never for less.
Taking minutes out may cut a span in two, and joining would put them back; so past `PIECES_MAX`
pieces the shortest is forgotten, and up to when that was done is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from klagg_trio.core.intervals import MINUTE_MS

SPANS_MAX: Final = 64
"""A symbol with more separate outages than this, all unrepaired, has larger problems."""

PIECES_MAX: Final = 192
"""Left of them where the exchange serves one minute and not the next. What is forgotten is suspect
on disk all the same, where the sweep finds it."""


@dataclass(slots=True)
class Spans:
    """Minutes by their open times. Every bound is a minute's open time, both ends inclusive."""

    _spans: list[tuple[int, int]] = field(default_factory=list)
    forgotten_ms: int | None = None
    """Minutes up to this one may have been forgotten."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __bool__(self) -> bool:
        return bool(self._spans)

    @property
    def minutes(self) -> int:
        """How many minutes the set holds."""
        return sum((last - first) // MINUTE_MS + 1 for first, last in self._spans)

    def add(self, first_ms: int, last_ms: int) -> tuple[int, int] | None:
        """Put the minutes from `first_ms` to `last_ms` into the set.

        Returns the minutes that came in with them because there were too many spans, if any.
        """
        assert first_ms <= last_ms
        kept = []
        for first, last in self._spans:
            if last + MINUTE_MS < first_ms or last_ms + MINUTE_MS < first:
                kept.append((first, last))
            else:
                first_ms, last_ms = min(first, first_ms), max(last, last_ms)
        kept.append((first_ms, last_ms))
        kept.sort()
        self._spans = kept
        if len(kept) <= SPANS_MAX:
            return None
        nearest = min(range(1, len(kept)), key=lambda i: kept[i][0] - kept[i - 1][1])
        (first, before), (after, last) = kept[nearest - 1 : nearest + 1]
        kept[nearest - 1 : nearest + 1] = [(first, last)]
        return before + MINUTE_MS, after - MINUTE_MS

    def remove(self, first_ms: int, last_ms: int) -> None:
        """Take the minutes from `first_ms` to `last_ms` out of the set."""
        kept = []
        for first, last in self._spans:
            if first < first_ms:
                kept.append((first, min(last, first_ms - MINUTE_MS)))
            if last > last_ms:
                kept.append((max(first, last_ms + MINUTE_MS), last))
        self._spans = [span for span in kept if span[0] <= span[1]]
        if len(self._spans) > PIECES_MAX:
            _, last = shortest = min(self._spans, key=lambda span: span[1] - span[0])
            self._spans.remove(shortest)
            self.forgotten_ms = max(last, self.forgotten_ms or last)

    def holds(self, open_ms: int) -> bool:
        """Whether the minute that opens at `open_ms` is in the set."""
        return any(first <= open_ms <= last for first, last in self._spans)

    def meets(self, from_ms: int, end_ms: int) -> bool:
        """Whether any minute that opens in [from_ms, end_ms) is in the set."""
        return any(first < end_ms and last >= from_ms for first, last in self._spans)

    def minutes_within(self, from_ms: int, end_ms: int) -> int:
        """How many minutes that open in [from_ms, end_ms) are in the set."""
        shared = ((max(first, from_ms), min(last + MINUTE_MS, end_ms)) for first, last in self)
        return sum(max(0, end - begin) // MINUTE_MS for begin, end in shared)

    def reaches(self, from_ms: int) -> bool:
        """Whether any minute that opens at `from_ms` or later is in the set."""
        return any(last >= from_ms for _, last in self._spans)
