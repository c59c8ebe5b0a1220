"""Longer bars that no shard holds any more, made anew from their stored minutes.

A stored float gives its decimal back as long as that has no more than 15 digits. Where a minute is
missing, has more digits, or the bar is longer than a day, the bar becomes suspect instead: repair
then asks for the official one.
"""

from __future__ import annotations

import decimal
import sqlite3
from collections.abc import Iterator

from klagg_trio.core.bar import EXACT, Bar, Source, combined_source, merge
from klagg_trio.core.facts import BarFact, Listing
from klagg_trio.core.intervals import DAY_MS, INTERVALS, MINUTE, MINUTE_MS
from klagg_trio.store.reading import bar_of, is_exact, select_bars


def remade_bars(
    connection: sqlite3.Connection,
    life: Listing,
    minutes: set[int],
    told: set[tuple[str, str, int]],
) -> Iterator[BarFact]:
    """Make the stored longer bars over some minutes anew, but those that were told of."""
    for interval in INTERVALS.values():
        if interval == MINUTE:
            continue
        if interval.name == "3d":
            interval = interval.with_phase(life.three_day_phase_ms)
        opens = {interval.floor(minute_ms) for minute_ms in minutes}
        stored = select_bars(connection, life.symbol, interval.name, min(opens), max(opens))
        for open_ms, row in stored.items():
            if open_ms not in opens or (life.symbol, interval.name, open_ms) in told:
                continue
            bar = bar_of(row, interval.end(open_ms))
            if bar.source != Source.OFFICIAL:
                yield BarFact(life.symbol, interval.name, _remade(connection, life, bar))


def _remade(connection: sqlite3.Connection, life: Listing, bar: Bar) -> Bar:
    """Return the bar made anew from its stored minutes, or itself as suspect."""
    remade = bar.copy()
    remade.source = Source.SUSPECT
    if bar.end_ms - bar.open_ms > DAY_MS:
        return remade
    first_ms = max(bar.open_ms, MINUTE.floor(life.onboard_ms))
    end_ms = min(bar.end_ms, MINUTE.floor(life.delivery_ms + MINUTE_MS - 1))
    rows = select_bars(connection, life.symbol, MINUTE.name, first_ms, end_ms - MINUTE_MS)
    if not rows or len(rows) * MINUTE_MS != end_ms - first_ms:
        return remade
    parts = [bar_of(row, open_ms + MINUTE_MS) for open_ms, row in rows.items()]
    with decimal.localcontext(EXACT):
        merged = merge(parts, bar.open_ms, bar.end_ms, parts[0].open)
    exact = all(is_exact(part) for part in parts)
    suspect = not exact or any(part.source == Source.SUSPECT for part in parts)
    official = all(part.source == Source.OFFICIAL for part in parts)
    merged.source = combined_source(merged.count, suspect, official)
    return merged
