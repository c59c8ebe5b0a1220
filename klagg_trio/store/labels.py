"""The contracts of a database: who has which label, under which permanent key.

Nothing is concluded here: that a contract ended, gave up its label or came back is a fact that the
shard has proof of, or a command of the user's. Dates are hints and are stored as they come.
"""

from __future__ import annotations

import sqlite3

from klagg_trio.core.facts import Listing
from klagg_trio.core.intervals import MINUTE, MINUTE_MS
from klagg_trio.store import changes
from klagg_trio.store.changes import ChangeLog
from klagg_trio.store.naming import key_text
from klagg_trio.store.schema import MARKET

TRADING = "TRADING"
ENDED = "ENDED"
REPLACED = "REPLACED"
"""Another contract has the label: the exchange serves that one's bars by it."""


class Contracts:
    """The table `symbols`, and what is remembered of it. Runs within its caller's transaction."""

    def __init__(self, connection: sqlite3.Connection, log: ChangeLog) -> None:
        """Nothing is read yet."""
        self._connection = connection
        self._log = log
        self.ids: dict[str, int] = {}
        """Numbers by label."""
        self.lives: dict[int, Listing] = {}

    def load(self) -> dict[int, int]:
        """Read the table. Returns up to where the bars of each contract are folded, by number."""
        self.ids.clear()
        self.lives.clear()
        folded = {}
        for (
            number,
            until_ms,
            label,
            onboard_ms,
            delivery_ms,
            phase_ms,
            first_ms,
            status,
        ) in self._connection.execute(
            "SELECT id, folded_until, symbol, onboard_ms, delivery_ms, three_day_phase_ms,"
            " CASE WHEN first_known THEN first_ms END, status FROM symbols"
        ):
            self.ids[label] = number
            self.lives[number] = Listing(label, onboard_ms, delivery_ms, phase_ms, first_ms, status)
            folded[number] = until_ms
        return folded

    def put(self, listing: Listing, tick_ms: int) -> int:
        """Take up a contract, or what is new about the one that has this label."""
        number = self.ids.get(listing.symbol)
        if number is None:
            return self._insert(listing, tick_ms)
        known = self.lives[number]
        if known.first_ms is not None:
            listing = listing._replace(first_ms=known.first_ms)
        elif listing.first_ms is not None:
            listing = listing._replace(first_ms=self._put_key(number, listing.first_ms, tick_ms))
        if listing != known:
            self._connection.execute(
                "UPDATE symbols SET onboard_ms = ?, delivery_ms = ?, three_day_phase_ms = ?,"
                " status = ? WHERE id = ?",
                (*listing[1:4], listing.status, number),
            )
            self.lives[number] = listing
        return number

    def _insert(self, listing: Listing, tick_ms: int) -> int:
        known = listing.first_ms is not None
        wanted_ms = MINUTE.floor(
            listing.onboard_ms if listing.first_ms is None else listing.first_ms
        )
        first_ms = wanted_ms
        while self._has_key(listing.symbol, first_ms):
            first_ms += MINUTE_MS  # another contract's: ours is not known after all
        known = known and first_ms == wanted_ms
        number: int = self._connection.execute(
            "INSERT INTO symbols (symbol, ticker, first_ms, first_known, market, onboard_ms,"
            " delivery_ms, three_day_phase_ms, status) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " RETURNING id",
            (
                listing.symbol,
                listing.symbol,
                first_ms,
                known,
                MARKET,
                *listing[1:4],
                listing.status,
            ),
        ).fetchone()[0]
        self.ids[listing.symbol] = number
        self.lives[number] = listing._replace(first_ms=first_ms if known else None)
        self._log.add(changes.LISTED, number, None, tick_ms, tick_ms)
        return number

    def _has_key(self, ticker: str, first_ms: int) -> bool:
        row = self._connection.execute(
            "SELECT 1 FROM symbols WHERE market = ? AND ticker = ? AND first_ms = ?",
            (MARKET, ticker, first_ms),
        ).fetchone()
        return row is not None

    def _put_key(self, number: int, first_ms: int, tick_ms: int) -> int | None:
        """Note when the first kline opened; None where another contract has that key."""
        ticker, before_ms = self._connection.execute(
            "SELECT ticker, first_ms FROM symbols WHERE id = ?", (number,)
        ).fetchone()
        if first_ms != before_ms and self._has_key(ticker, first_ms):
            return None
        self._connection.execute(
            "UPDATE symbols SET first_ms = ?, first_known = 1 WHERE id = ?", (first_ms, number)
        )
        if first_ms != before_ms:
            text = f"its key was {key_text(ticker, before_ms)} as long as that was not known"
            self._log.add(changes.LISTED, number, None, tick_ms, tick_ms, text)
        return first_ms

    def replace(self, label: str, tick_ms: int) -> int | None:
        """Free a label for another contract: the bars stay, the key becomes the label.

        What a new contract trades under an old ticker has nothing to do with the old one's prices;
        the exchange too serves the new one's bars only.
        """
        number = self.ids.pop(label, None)
        if number is None:
            return None
        ticker, first_ms = self._connection.execute(
            "SELECT ticker, first_ms FROM symbols WHERE id = ?", (number,)
        ).fetchone()
        name = key_text(ticker, first_ms)
        while name in self.ids:  # keys within one minute, which only stand-ins can be
            name += "+"
        self._set(number, name, REPLACED)
        self._log.add(changes.RENAMED, number, None, tick_ms, tick_ms, f"{label} is {name}")
        return number

    def set_status(self, label: str, status: str, kind: str, tick_ms: int) -> int | None:
        """Note that a contract has ended, or is back. Returns its number, if it is known."""
        number = self.ids.get(label)
        if number is not None and self.lives[number].status != status:
            self._set(number, label, status)
            self._log.add(kind, number, None, tick_ms, tick_ms)
        return number

    def _set(self, number: int, label: str, status: str) -> None:
        self._connection.execute(
            "UPDATE symbols SET symbol = ?, status = ? WHERE id = ?", (label, status, number)
        )
        self.ids[label] = number
        self.lives[number] = self.lives[number]._replace(symbol=label, status=status)
