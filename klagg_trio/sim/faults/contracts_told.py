"""Lies about contracts: what exchangeInfo and contractInfo say of them that is not so.

Theory of operation: a lie is an *overlay*: some fields of one row, for a span of time or for some
answers. The instrument itself stays as it is, so that the market and its klines do not change.
What is true and merely unusual (a halt, a maintenance) is an overlay for the words and a pause of
the tapes for the deeds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from klagg_trio.sim.faults.touched import Touched
from klagg_trio.sim.klines import DAY_MS, HOUR_MS, MINUTE_MS
from klagg_trio.sim.market import Change, Market
from klagg_trio.sim.universe import COIN_M, FOREVER_MS, Instrument

STATUSES: Final = ("TRADING_HALT", "SETTLING", "PRE_DELIVERING", "CLOSE", "AUCTION_MATCH")
"""What a contract that does not trade is called; the last one is in no list of the exchange's."""

AHEAD_MINUTES: Final = 2
"""The tapes are written up to a minute ahead: what they are to leave out must be later."""

READ_AGAIN_MS: Final = 11 * MINUTE_MS
"""Within this exchangeInfo is read again, though no frame told of anything."""

EVER_MS: Final = 1 << 60


@dataclass(slots=True)
class _Overlay:
    """What is told of one contract in place of what is so."""

    number: int
    fields: dict[str, object]
    from_ms: int
    until_ms: int
    answers: int = 0
    """For so many answers only; 0 for all of its time."""
    omit: bool = False
    odd: int = 0
    """Not a row as rows are: how."""


class ContractLies:
    """Lies about contracts, each brought about by its name."""

    def __init__(self, seed: int, touched: Touched, for_good: Callable[[], float]) -> None:
        self.changes: list[Change] = []
        """Frames of contractInfo that are to go out."""
        self._seed = seed
        self._touched = touched
        self._for_good = for_good
        self._overlays: list[_Overlay] = []
        self._short: list[float] = []
        """Of the next answers, the share of rows that each has."""
        self._now_ms = 0
        self._frames: list[tuple[int, Change]] = []
        """Frames for later: when, what."""

    # -- What is told ------------------------------------------------------------------------

    def contracts(
        self, shown: list[Instrument], make: Callable[[Instrument], dict[str, object]]
    ) -> list[object] | None:
        """Return the rows of one answer; None where nothing but the truth is told."""
        now_ms = self._now_ms
        live = [each for each in self._overlays if each.from_ms <= now_ms < each.until_ms]
        if not live and not self._short:
            return None
        rows: list[object] = []
        for instrument in shown:
            row: object = make(instrument)
            for overlay in live:
                if overlay.number == instrument.number and row is not None:
                    row = _covered(overlay, row)
            if row is not None:
                rows.append(row)
        for overlay in live:
            overlay.answers -= 1
            if overlay.answers == 0:
                overlay.until_ms = now_ms
        if self._short:
            rows = rows[: int(len(rows) * self._short.pop())]
        return rows

    def advance(self, now_ms: int) -> None:
        """Let time pass: overlays end, frames fall due."""
        self._now_ms = now_ms
        self._overlays = [each for each in self._overlays if each.until_ms > now_ms]
        due = [each for each in self._frames if each[0] <= now_ms]
        self._frames = [each for each in self._frames if each[0] > now_ms]
        self.changes += [change for _, change in sorted(due, key=lambda each: each[0])]

    def heal(self) -> None:
        """Tell the truth from now on, but for what was corrected for good."""
        self._overlays = [each for each in self._overlays if each.until_ms == EVER_MS]
        self._short.clear()
        self._frames.clear()

    # -- Lies --------------------------------------------------------------------------------

    def tell(self, kind: str, market: Market, rng: random.Random, symbol: str = "") -> bool:
        """Bring one lie about, of this contract or of any. False where there is none for it."""
        self._now_ms = market.now_ms
        candidates = [
            each
            for each in market.current.values()
            if each.is_usdt_perpetual and each.delivery_ms == FOREVER_MS
        ]
        if symbol:
            candidates = [each for each in candidates if each.symbol == symbol]
        if not candidates:
            return False
        getattr(self, f"_{kind}")(market, rng.choice(candidates), rng)
        return True

    def _lay(self, told: Instrument, until_ms: int, from_ms: int = 0, **fields: object) -> None:
        self._overlays.append(_Overlay(told.number, fields, from_ms, until_ms))

    def _frame(self, told: Instrument, at_ms: int = 0, /, **fields: object) -> None:
        at_ms = max(at_ms, self._now_ms)
        shown = replace(told, **fields)  # type: ignore[arg-type]
        self._frames.append((at_ms, Change(at_ms, shown)))

    def _length_ms(self, rng: random.Random, least: int, most: int) -> int:
        return rng.randrange(least, most + 1) * MINUTE_MS + rng.randrange(MINUTE_MS)

    def _onboard(self, told: Instrument, rng: random.Random, onboard_ms: int) -> None:
        ever = rng.random() < self._for_good()
        until_ms = EVER_MS if ever else self._now_ms + self._length_ms(rng, 2, 30)
        self._lay(told, until_ms, onboardDate=onboard_ms)
        if rng.random() < 0.5:
            self._frame(told, onboard_ms=onboard_ms)

    def _onboard_raised(self, market: Market, told: Instrument, rng: random.Random) -> None:
        later_ms = told.onboard_ms + rng.randrange(1, 21) * DAY_MS
        self._onboard(told, rng, min(later_ms, market.now_ms - market.now_ms % HOUR_MS))

    def _onboard_lowered(self, market: Market, told: Instrument, rng: random.Random) -> None:
        self._onboard(told, rng, told.onboard_ms - rng.randrange(1, 21) * DAY_MS)

    def _delivery_moved(self, market: Market, told: Instrument, rng: random.Random) -> None:
        date_ms = (self._now_ms // MINUTE_MS + rng.randrange(2, 12)) * MINUTE_MS
        back_ms = date_ms + rng.randrange(-1, 12) * MINUTE_MS + 1
        self._lay(told, back_ms, deliveryDate=date_ms)
        self._frame(told, delivery_ms=date_ms)
        if rng.random() < 0.5:
            # That is what an end looks like: who believes it is back once the list is read again.
            self._touched.add([told.symbol], date_ms, back_ms + READ_AGAIN_MS)
            self._lay(told, back_ms, date_ms, status="SETTLING")
            self._frame(told, date_ms, delivery_ms=date_ms, status="SETTLING")
        self._frame(told, back_ms)

    def _mislabelled(self, market: Market, told: Instrument, rng: random.Random) -> None:
        until_ms, status = self._now_ms + self._length_ms(rng, 1, 40), rng.choice(STATUSES)
        self._lay(told, until_ms, status=status)
        if rng.random() < 0.5:
            self._frame(told, status=status)
            self._frame(told, until_ms)

    def _halted(self, market: Market, told: Instrument, rng: random.Random) -> None:
        from_ms = (self._now_ms // MINUTE_MS + AHEAD_MINUTES) * MINUTE_MS
        from_ms += rng.randrange(MINUTE_MS)
        until_ms, status = from_ms + self._length_ms(rng, 1, 40), rng.choice(STATUSES)
        market.tapes[told.number].pause(from_ms, until_ms)
        self._lay(told, until_ms, from_ms, status=status)
        self._frame(told, from_ms, status=status)
        self._frame(told, until_ms)
        self._touched.add([told.symbol], from_ms, until_ms)

    def _maintenance(self, market: Market, told: Instrument, rng: random.Random) -> None:
        from_ms = (self._now_ms // MINUTE_MS + AHEAD_MINUTES) * MINUTE_MS
        from_ms += rng.randrange(MINUTE_MS)
        until_ms, status = from_ms + self._length_ms(rng, 1, 12), rng.choice(STATUSES)
        for instrument in market.current.values():
            market.tapes[instrument.number].pause(from_ms, until_ms)
            if instrument.market != COIN_M and instrument.status == "TRADING":
                self._lay(instrument, until_ms, from_ms, status=status)
        self._touched.add(None, from_ms, until_ms)

    def _omitted(self, market: Market, told: Instrument, rng: random.Random) -> None:
        answers = rng.choice((1, 1, 2, 3))
        self._overlays.append(_Overlay(told.number, {}, 0, EVER_MS - 1, answers, omit=True))

    def _info_empty(self, market: Market, told: Instrument, rng: random.Random) -> None:
        self._short += [0.0] * rng.choice((1, 1, 2))

    def _info_short(self, market: Market, told: Instrument, rng: random.Random) -> None:
        self._short += [rng.uniform(0.1, 0.9) for _ in range(rng.choice((1, 1, 2)))]

    def _info_odd(self, market: Market, told: Instrument, rng: random.Random) -> None:
        until_ms = self._now_ms + self._length_ms(rng, 1, 30)
        overlay = _Overlay(told.number, {}, 0, until_ms, odd=rng.randrange(len(_ODD)))
        self._overlays.append(overlay)

    def _contract_info(self, market: Market, told: Instrument, rng: random.Random) -> None:
        ways: tuple[dict[str, object], ...] = (
            {"status": rng.choice(STATUSES)},
            {"delivery_ms": self._now_ms - rng.randrange(DAY_MS)},
            {"delivery_ms": self._now_ms - MINUTE_MS, "status": "SETTLING"},
            {"onboard_ms": self._now_ms},
            {"onboard_ms": self._now_ms + DAY_MS, "status": "PENDING_TRADING"},
        )
        self._frame(told, 0, **rng.choice(ways))

    def drop(self, told: Instrument, at_ms: int) -> None:
        """Leave a contract that ended out of exchangeInfo, from then on for ever."""
        self._overlays.append(_Overlay(told.number, {}, at_ms, EVER_MS, omit=True))


def _covered(overlay: _Overlay, row: object) -> object:
    """Return a row as an overlay has it; None where it is left out."""
    if overlay.omit:
        return None
    if not isinstance(row, dict):
        return row
    if overlay.fields:
        return row | overlay.fields
    return _ODD[overlay.odd](row)


def _without(name: str) -> Callable[[dict[str, object]], object]:
    return lambda row: {key: value for key, value in row.items() if key != name}


def _having(**fields: object) -> Callable[[dict[str, object]], object]:
    return lambda row: row | fields


_ODD: Final[tuple[Callable[[dict[str, object]], object], ...]] = (
    *map(_without, ("status", "onboardDate", "deliveryDate", "contractType", "quoteAsset")),
    _having(onboardDate=None),
    _having(onboardDate="yesterday"),
    _having(deliveryDate=-1),
    _having(deliveryDate=10**30),
    _having(onboardDate=True, deliveryDate=1.5),
    _having(status=5),
    _having(status=None, contractType=[]),
    _having(symbol=None),
    _having(symbol={"name": "x"}),
    lambda row: [row],
    lambda row: "row",
    lambda row: 7,
)
"""Rows that are not as rows are."""
