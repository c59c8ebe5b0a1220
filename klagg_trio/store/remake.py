"""Longer bars that no shard holds any more, made anew from their stored minutes.

A stored float gives its decimal back as long as that has no more than 15 digits. Where a minute is
missing, has more digits, or the bar is longer than a day, the bar becomes suspect instead: repair
then asks for the official one.

Dates of listing and delivery are hints. Minutes that are stored beyond them show that they are
wrong; then a bar needs all its minutes.
"""

from __future__ import annotations

import decimal
import sqlite3
from collections.abc import Iterable, Iterator

from klagg_trio.core.bar import EXACT, Bar, Source, combined_source, merge
from klagg_trio.core.facts import BarFact, Listing
from klagg_trio.core.intervals import DAY_MS, INTERVALS, MINUTE, MINUTE_MS, Interval
from klagg_trio.store.changes import Span
from klagg_trio.store.reading import Row, bar_of, is_exact, select_bars


def longer_intervals(life: Listing) -> Iterator[Interval]:
    """Return the intervals longer than a minute, 3d on the contract's own grid."""
    for interval in INTERVALS.values():
        if interval != MINUTE:
            is_own = interval.name == "3d"
            yield interval.with_phase(life.three_day_phase_ms) if is_own else interval


def remade_bars(
    connection: sqlite3.Connection,
    life: Listing,
    spans: Iterable[Span],
    told: set[tuple[str, str, int]],
) -> Iterator[BarFact]:
    """Make the stored longer bars over some minutes anew, but those that were told of.

    What is read follows from what is stored, however long the spans are.
    """
    spans = list(spans)
    for interval in longer_intervals(life):
        done_ms = -1
        for first_ms, last_ms in spans:
            stored = select_bars(
                connection, life.symbol, interval.name, interval.floor(first_ms), last_ms
            )
            for open_ms, row in stored.items():
                if open_ms <= done_ms or (life.symbol, interval.name, open_ms) in told:
                    continue
                done_ms = open_ms
                bar = bar_of(row, interval.end(open_ms))
                remade = _remade(connection, life, bar)
                # One that is the exchange's own changes only where its minutes are all that too:
                # the exchange has corrected one of them.
                if bar.source != Source.OFFICIAL or remade.source == Source.OFFICIAL:
                    yield BarFact(life.symbol, interval.name, remade)


def _remade(connection: sqlite3.Connection, life: Listing, bar: Bar) -> Bar:
    """Return the bar made anew from its stored minutes, or itself as suspect."""
    remade = bar.copy()
    remade.source = Source.SUSPECT
    if bar.end_ms - bar.open_ms > DAY_MS:
        return remade
    rows = select_bars(connection, life.symbol, MINUTE.name, bar.open_ms, bar.end_ms - MINUTE_MS)
    if not _are_whole(rows, life, bar):
        return remade
    parts = [bar_of(row, open_ms + MINUTE_MS) for open_ms, row in rows.items()]
    with decimal.localcontext(EXACT):
        merged = merge(parts, bar.open_ms, bar.end_ms, parts[0].open)
    known = [part for part in parts if part.source != Source.ABSENT]
    exact = all(is_exact(part) for part in parts)
    suspect = not exact or any(part.source == Source.SUSPECT for part in known)
    official = all(part.source == Source.OFFICIAL for part in known)
    merged.source = combined_source(merged.count, suspect, official, absent=not known)
    return merged


def _are_whole(rows: dict[int, Row], life: Listing, bar: Bar) -> bool:
    """Whether these are all the minutes that the contract had within a bar."""
    if not rows:
        return False
    opens = list(rows)
    listed_ms = life.onboard_ms if life.first_ms is None else life.first_ms
    first_ms = max(bar.open_ms, MINUTE.floor(listed_ms))
    end_ms = min(bar.end_ms, MINUTE.floor(life.delivery_ms + MINUTE_MS - 1))
    if opens[0] < first_ms:
        first_ms = bar.open_ms
    if opens[-1] >= end_ms:
        end_ms = bar.end_ms
    return (
        opens[0] == first_ms
        and opens[-1] == end_ms - MINUTE_MS
        and len(opens) * MINUTE_MS == end_ms - first_ms
    )
