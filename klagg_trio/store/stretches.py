"""Spans of minutes that get another source: doubted, proven, lacking at the exchange.

However long a span is, it costs what is stored of it: nothing here is a list of its minutes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Final

from klagg_trio.core.bar import Source
from klagg_trio.core.facts import MinuteSpan
from klagg_trio.core.intervals import DAY_MS, MINUTE, MINUTE_MS, Interval
from klagg_trio.store.changes import ADDED, DOUBTED, RESTATED, ChangeLog, Span, spans_of
from klagg_trio.store.filling import bounds, close_before, count_between, fill, open_from
from klagg_trio.store.fold import Folding
from klagg_trio.store.labels import Contracts
from klagg_trio.store.remake import longer_intervals
from klagg_trio.store.schema import INTERVAL_CODES
from klagg_trio.store.statements import DOUBT, DOUBT_LONGER, LACK, TABLES

MONTH_MS_MAX: Final = 31 * DAY_MS


class Stretches:
    """Runs within its caller's transaction."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        contracts: Contracts,
        folding: Folding,
        log: ChangeLog,
    ) -> None:
        """Work on the bars of these contracts."""
        self._connection = connection
        self._contracts = contracts
        self._folding = folding
        self._log = log
        self.tick_ms = 0
        """The last tick: what ends later is not logged."""

    def relabel(
        self,
        change: tuple[str, str],
        span: MinuteSpan,
        interval: Interval = MINUTE,
        told: Sequence[int] = (),
        price: float | None = None,
    ) -> list[Span]:
        """Give stored bars another source, but those that open when told. Returns which changed.

        However long a span is, it costs what is stored of it.
        """
        number = self._contracts.ids.get(span.symbol)
        if number is None:
            return []
        values, condition = change
        code = INTERVAL_CODES[interval.name]
        where = {
            "bars": "open_time BETWEEN :first AND :last",
            # The table's key begins with the time: look the few opening times up one by one.
            "recent_bars": "open_time IN (SELECT open_time FROM recent_opens"
            " WHERE interval = :code AND open_time BETWEEN :first AND :last)"
            " AND end_time > :folded",
        }
        parameters = {
            "number": number,
            "code": code,
            "first": interval.floor(max(0, span.first_ms)),
            "last": span.last_ms,
            "folded": self._folding.until[number],
            "told": json.dumps(told),
            "price": price,
        }
        opens: list[int] = []
        for table in TABLES:
            found = self._connection.execute(
                f"UPDATE {table} SET {values}, revision = revision + 1 WHERE symbol = :number"
                f" AND interval = :code AND {where[table]} AND {condition}"
                " AND open_time NOT IN (SELECT value FROM json_each(:told)) RETURNING open_time",
                parameters,
            )
            opens += [open_ms for (open_ms,) in found]
        spans = spans_of(opens, interval.length_ms or MONTH_MS_MAX)
        kind = DOUBTED if change in (DOUBT, DOUBT_LONGER) else RESTATED
        for first_ms, last_ms in spans:
            if first_ms < self.tick_ms:
                self._log.add(kind, number, code, first_ms, last_ms)
        return spans

    def doubt(self, span: MinuteSpan, told: set[tuple[str, str, int]]) -> int:
        """Call stored minutes suspect, and with them the longer bars that hold them."""
        changed = self.relabel(DOUBT, span)
        rows = sum((last - first) // MINUTE_MS + 1 for first, last in changed)
        if not changed:
            return rows
        life = self._contracts.lives[self._contracts.ids[span.symbol]]
        for interval in longer_intervals(life):
            opens = [key[2] for key in told if key[:2] == (span.symbol, interval.name)]
            for first_ms, last_ms in changed:
                minutes = MinuteSpan(span.symbol, first_ms, last_ms)
                rows += len(self.relabel(DOUBT_LONGER, minutes, interval, opens))
        return rows

    def lack(self, span: MinuteSpan) -> list[Span]:
        """Make minutes absent that the exchange lacks: flat at the close before them.

        What is missing within what is stored of the contract is made, too.
        """
        number = self._contracts.ids.get(span.symbol)
        stored = None if number is None else bounds(self._connection, number)
        if number is None or stored is None:
            return []
        first_ms, last_ms = max(span.first_ms, stored[0]), min(span.last_ms, stored[1])
        price = close_before(self._connection, span.symbol, first_ms)
        if price is None:
            price = open_from(self._connection, span.symbol, first_ms)
        if first_ms > last_ms or price is None:
            return []
        within = MinuteSpan(span.symbol, first_ms, last_ms)
        expected = (last_ms - first_ms) // MINUTE_MS + 1
        if count_between(self._connection, span.symbol, (first_ms, last_ms)) < expected:
            self._folding.move(number, last_ms + MINUTE_MS)
            if fill(self._connection, number, MINUTE, within[1:], price, Source.ABSENT):
                code = INTERVAL_CODES[MINUTE.name]
                self._log.add(ADDED, number, code, first_ms, last_ms)
        return self.relabel(LACK, within, price=price)
