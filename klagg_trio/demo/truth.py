"""What the simulated exchange knows of itself: the judge's only source of truth.

Everything here comes from the simulator's raw trades and its own records of what it inflicted, by
code that shares nothing with what is judged.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from klagg_trio.sim.klines import INTERVALS, MINUTE_MS, Kline, span_of
from klagg_trio.sim.market import Straddle
from klagg_trio.sim.push import Peer
from klagg_trio.sim.server import SimExchange
from klagg_trio.sim.universe import Instrument

SURELY_MS: Final = 10_000
"""A frame has come through if its connection lived this much longer."""

LISTED_WITHIN_MS: Final = 5 * MINUTE_MS
"""A contract has to be taken up within this time of its listing, or of what kept it from view."""


class Truth:
    """Answers of one exchange about itself."""

    def __init__(self, exchange: SimExchange) -> None:
        self._exchange = exchange
        self._shown: dict[int, list[int]] = {}
        self._touched: dict[str, set[int]] = {}
        self._unserved: dict[int, set[int]] = {}

    def lives(self, ticker: str) -> list[Instrument]:
        """Return every contract that has had a ticker up to now, oldest first."""
        now_ms = self._exchange.market.now_ms
        return [each for each in self._exchange.lives(ticker) if each.onboard_ms <= now_ms]

    def tickers(self) -> list[str]:
        """Return the tickers of all contracts that were to be kept at any time."""
        now_ms = self._exchange.market.now_ms
        found = {
            each.symbol: None
            for each in self._exchange.market.instruments
            if each.contract_type == "PERPETUAL"
            and each.quote_asset == "USDT"
            and each.market == 1
            and each.onboard_ms <= now_ms
        }
        return list(found)

    def klines(self, life: Instrument, interval: str, first_ms: int, last_ms: int) -> list[Kline]:
        """Return official klines that open between two moments, the running one included."""
        return self._exchange.official_klines(
            life.symbol, interval, first_ms, last_ms, onboard_ms=life.onboard_ms
        )

    def span(self, interval: str, at_ms: int) -> tuple[int, int]:
        """Return open time and end of the bar that contains a moment."""
        return span_of(interval, at_ms, self._exchange.options.three_day_phase_ms)

    def straddles(self, life: Instrument, open_ms: int, end_ms: int) -> list[Straddle]:
        """Return the aggregates over a minute boundary of a bar, its two ends included."""
        known = self._exchange.market.tapes[life.number].straddles
        return [each for at_ms, each in known.items() if open_ms <= at_ms <= end_ms]

    def shown_ms(self, life: Instrument, after_ms: int) -> int | None:
        """Return when a trade of a contract came through next after a moment."""
        times_ms = self._shown_of(life.number)
        at = bisect_left(times_ms, after_ms)
        return times_ms[at] if at < len(times_ms) else None

    def _shown_of(self, number: int) -> list[int]:
        if number not in self._shown:
            delivered = self._exchange.board.delivered.get(number, [])
            self._shown[number] = [at_ms for at_ms, peer in delivered if _came(at_ms, peer)]
        return self._shown[number]

    def touched(self, ticker: str) -> set[int]:
        """Return the minutes of a ticker that a fault, start or listing touched."""
        if ticker not in self._touched:
            faults, lives = self._exchange.faults, self.lives(ticker)
            shown: list[int] = sorted(
                at_ms for life in lives for at_ms in self._shown_of(life.number)
            )
            for life in lives:
                if life.onboard_ms >= self._exchange.options.start_ms:
                    until_ms = life.onboard_ms + LISTED_WITHIN_MS
                    faults.touched.add([ticker], life.onboard_ms, until_ms)
            found = faults.touched.minutes(ticker, shown)
            for life in lives:
                found |= self.unserved(life)
            self._touched[ticker] = found
        return self._touched[ticker]

    def unserved(self, life: Instrument) -> set[int]:
        """Return the minutes of a contract for which no usable row is ever served."""
        if life.number not in self._unserved:
            rows = self._exchange.faults.lies.about_rows
            self._unserved[life.number] = rows.unserved(life.number)
        return self._unserved[life.number]

    def lacks(self, life: Instrument, open_ms: int, end_ms: int) -> bool:
        """Whether any minute of a bar is one that is never served."""
        return any(open_ms <= minute_ms < end_ms for minute_ms in self.unserved(life))

    def life_at(self, ticker: str, at_ms: int) -> Instrument | None:
        """Return the contract that a ticker stood for at some moment."""
        return _last(each for each in self.lives(ticker) if _minute(each.onboard_ms) <= at_ms)

    def lives_within(self, ticker: str, open_ms: int, end_ms: int) -> list[Instrument]:
        """Return the contracts whose bar a bar of a ticker may be, the latest first."""
        begun = [each for each in self.lives(ticker) if _minute(each.onboard_ms) < end_ms]
        return begun[::-1]


def _came(at_ms: int, peer: Peer) -> bool:
    return not peer.gone_ms or peer.gone_ms > at_ms + SURELY_MS


def _minute(at_ms: int) -> int:
    return at_ms // MINUTE_MS * MINUTE_MS


def _last(lives: Iterable[Instrument]) -> Instrument | None:
    found = list(lives)
    return found[-1] if found else None


__all__ = ["INTERVALS", "Truth"]
