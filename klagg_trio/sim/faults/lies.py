"""An exchange that is wrong: what it says is not so, while the market goes on as it is.

Theory of operation: each kind of lie gathers hazard by its own rate and has its own draws, so that
one can be switched on alone and the others stay as they were. What is told of contracts stands in
`contracts_told`, of klines in `rows_told`; lies in frames are the connections' (`connections`,
`words`). The truth stays with the market: its klines never show any of this. What nobody could
know any better is kept: `touched`, and `unserved`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from klagg_trio.sim.faults.contracts_told import ContractLies
from klagg_trio.sim.faults.rates import LIES_TOLD, FaultRates
from klagg_trio.sim.faults.rows_told import RowLies
from klagg_trio.sim.faults.touched import Touched
from klagg_trio.sim.klines import DAY_MS, HOUR_MS, MINUTE_MS
from klagg_trio.sim.market import Change, Market, Tape
from klagg_trio.sim.universe import Instrument

_ABOUT_ROWS = ("row_wrong", "hole", "pages_empty", "rows_shuffled")


class Lies:
    """Tells lies at the rates that are set. It is the `Words` of the REST endpoints."""

    def __init__(
        self,
        seed: int,
        rates: Callable[[], FaultRates],
        count: Callable[[str], None],
        touched: Touched,
    ) -> None:
        self.about_contracts = ContractLies(seed, touched, lambda: rates().for_good)
        self.about_rows = RowLies(seed, lambda: rates().unfinished, count)
        self._rates = rates
        self._count = count
        self._touched = touched
        self._draws = {kind: random.Random(f"lie/{seed}/{kind}") for kind in LIES_TOLD}
        self._hazards = {kind: rng.expovariate(1) for kind, rng in self._draws.items()}
        self._market: Market | None = None
        self._time_off: tuple[int, int] = (0, 0)
        """How far off /time is, and until when."""

    def advance(self, market: Market, passed_hours: float) -> list[Change]:
        """Let time pass up to the market's present. Returns what contractInfo tells besides."""
        self._market = market
        rates = self._rates()
        for kind in LIES_TOLD:
            rate = getattr(rates, kind)
            if not rate:
                continue
            self._hazards[kind] -= passed_hours * rate
            if self._hazards[kind] <= 0:
                self._hazards[kind] = self._draws[kind].expovariate(1)
                self.tell(kind, market)
        self.about_contracts.advance(market.now_ms)
        changes, self.about_contracts.changes = self.about_contracts.changes, []
        return changes

    def tell(self, kind: str, market: Market, symbol: str = "") -> None:
        """Bring one lie about, of a contract or of any."""
        self._market = market
        rng = self._draws[kind]
        if kind == "time_told":
            off_ms = rng.choice((DAY_MS, -HOUR_MS, 10 * MINUTE_MS, -90_000))
            self._time_off = off_ms, market.now_ms + rng.randrange(2_000, 40_000)
        elif kind == "ids_restart" or kind in _ABOUT_ROWS:
            told = _any_of(market, rng, symbol)
            if told is None:
                return
            if kind == "ids_restart":
                self._restart_ids(market, told, rng)
            else:
                self.about_rows.tell(kind, market, told, rng, self._rates().for_good)
        elif not self.about_contracts.tell(kind, market, rng, symbol):
            return
        self._count(kind)

    def _restart_ids(self, market: Market, told: Instrument, rng: random.Random) -> None:
        from_ms = (market.now_ms // MINUTE_MS + 2) * MINUTE_MS
        tape = market.tapes[told.number]
        last_id = tape.published[-1].id if tape.published else 10**8
        first_id = rng.choice((1, rng.randrange(1, last_id), last_id + rng.randrange(10**6, 10**9)))
        tape.renumber(from_ms, first_id)
        self._touched.add([told.symbol], from_ms, from_ms + MINUTE_MS)

    def heal(self) -> None:
        """Tell the truth from now on, but for what is wrong for good."""
        self._time_off = (0, 0)
        self.about_contracts.heal()
        self.about_rows.heal()

    # -- What REST says ------------------------------------------------------------------------

    def told_ms(self, now_ms: int) -> int:
        """Return what /time says."""
        off_ms, until_ms = self._time_off
        return now_ms + off_ms if now_ms < until_ms else now_ms

    def contracts(
        self, shown: list[Instrument], make: Callable[[Instrument], dict[str, object]]
    ) -> list[object] | None:
        """Return the rows of exchangeInfo; None for the true ones."""
        return self.about_contracts.contracts(shown, make)

    def rows(
        self, tape: Tape, interval: str, spans: list[tuple[int, int]], rows: list[str]
    ) -> list[str]:
        """Return the rows of klines."""
        if self._market is None:
            return rows
        return self.about_rows.rows(self._market, tape, interval, spans, rows)


def _any_of(market: Market, rng: random.Random, symbol: str) -> Instrument | None:
    """Return a contract that klagg is for: the one named, or any."""
    candidates = [each for each in market.current.values() if each.is_usdt_perpetual]
    if symbol:
        candidates = [each for each in candidates if each.symbol == symbol]
    return rng.choice(candidates) if candidates else None
