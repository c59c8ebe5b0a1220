"""`klagg backfill`: history over REST into the database, then the start snapshot.

Theory of operation
-------------------
Two passes over the symbols, each with several requests in flight.

*History.* What is missing of the minutes since `since` is fetched in pages that cost the least
weight a bar, and a `Roller` merges longer bars from them as they come. A longer bar that begins
before the first of these minutes is led up to by a *ladder*: whole days, then whole hours, then
minutes. What the minutes at hand cannot give (they were stored by an earlier run) is fetched as it
is. So a re-run asks only for what is missing, and every request can be the last one.

*State.* Then the exchange's time is asked again, and the cut is its last whole minute, the same
for all symbols. One ladder a symbol (1d bars, 1h bars, 1m bars: three cheap calls) gives every
open bar at the cut, and with it the minutes that passed while history was fetched. All its
requests name both ends, and nothing that ends after the cut is taken: an hour, a day or a month
may end meanwhile.

USD-M has a kline for every interval since a symbol's listing, traded or not. One that is missing or
contradicts itself is asked for again, and then costs its own minute and no more: a suspect
placeholder is stored in its place, told of, and owed by the start snapshot, so that repair asks for
it. Longer bars over it are fetched as they are. A symbol is left out only where there is nothing.

Everything up to `Backfill` is pure.
"""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Final

import trio

from klagg_trio.core.bar import EXACT, Bar, Source, newborn
from klagg_trio.core.errors import BannedError, ConfigurationError, KlaggError, RemoteError
from klagg_trio.core.facts import BarFact, Event, Facts, RunningBar
from klagg_trio.core.gaps import Spans
from klagg_trio.core.intervals import (
    DAY_MS,
    HOUR_MS,
    INTERVALS,
    MINUTE,
    MINUTE_MS,
    THREE_DAY_PHASE_MS,
    THREE_DAYS_MS,
    Interval,
    count_text,
    select,
    utc_text,
)
from klagg_trio.core.seed import OpenBar, Seed, StartState
from klagg_trio.exchange import wire
from klagg_trio.exchange.rest import Priority, Rest
from klagg_trio.exchange.universe import Universe, nearest
from klagg_trio.settings import Settings, parse_since
from klagg_trio.store.database import Database
from klagg_trio.store.thread import RunInThread

SNAPSHOT_NAME: Final = "initial_state.cbor"

CHOSEN_MAX: Final = 2_000
"""Contracts kept at a time, as in a run: three times what the exchange has."""

PAGE_BARS: Final = 499
"""Rows for weight 2, the most a weight unit gives (binance.md 4.3: 499 for 2, 99 for 1)."""

SMALL_PAGE_BARS: Final = 99
"""Rows for weight 1."""

SETTLE_MS: Final = 15_000
"""The exchange closes its own kline some two seconds after the minute; earlier it may change."""

SYMBOLS_TOGETHER: Final = 8
"""Symbols at work at a time; the REST client bounds the requests in flight."""

PAGES_TOGETHER: Final = 4
"""Pages of one symbol asked for at a time, so that few symbols do not wait on latency."""

TAIL_RETRIES: Final = 3
"""Just after a boundary the newest kline may not be served yet: asked for again this often."""

TAIL_PAUSE_S: Final = 1.5

LISTING_SLACK_MS: Final = DAY_MS
"""How long after its onboard date a symbol's first kline may begin."""

STATE_WEIGHT: Final = 3
"""Of the calls for a symbol's state: 1d bars, 1h bars, 1m bars, each few enough for weight 1."""

SECOND_LOOK_S: Final = 3.0
"""Before exchangeInfo is asked again that lacked a name, or everything: nobody's single word ends
a contract."""

FAILURES_MAX: Final = 8
"""Symbols that fail one after the other: then it is not the symbols, it is the exchange."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is, for people."""

    phase: str
    """history or state"""
    symbols_done: int
    symbols: int
    bars: int
    """Stored so far."""
    weight: int
    """REST weight asked for so far."""
    eta_s: float
    """Seconds to go at the pace so far; infinite before there is one."""


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """What came of it."""

    cut_ms: int
    symbols: tuple[str, ...]
    """In the start snapshot."""
    failed: tuple[tuple[str, str], ...]
    """Symbols left out, each with the reason."""
    waiting: tuple[tuple[str, str], ...]
    """Symbols asked for by name that do not trade now: `run` takes them up when they do."""
    owing: tuple[tuple[str, str], ...]
    """Symbols with minutes that the exchange served no usable kline for, each with which."""
    bars: int
    weight: int
    snapshot: Path


# -- Requests --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """One call for consecutive klines: those that open in [first_ms, end_ms)."""

    interval: Interval
    first_ms: int
    end_ms: int
    count: int

    @property
    def weight(self) -> int:
        """What the exchange charges."""
        return 1 if self.count <= SMALL_PAGE_BARS else 2


def pages(interval: Interval, first_ms: int, end_ms: int) -> list[Request]:
    """Cut the bars that lie within [first_ms, end_ms) into requests of the least weight."""
    requests = []
    page_ms, count, open_ms = first_ms, 0, first_ms
    while (next_ms := interval.end(open_ms)) <= end_ms:
        count += 1
        open_ms = next_ms
        if count == PAGE_BARS:
            requests.append(Request(interval, page_ms, open_ms, count))
            page_ms, count = open_ms, 0
    if count:
        requests.append(Request(interval, page_ms, open_ms, count))
    return requests


def ladder(intervals: Iterable[Interval], base_ms: int, end_ms: int) -> list[Request]:
    """Return the requests whose bars lead from the oldest open bar at `base_ms` up to `end_ms`.

    Whole days, then whole hours up to the hour of `base_ms`, then minutes. Every given interval's
    bar at `base_ms`, and every later one, can be merged from them.
    """
    first_ms = min((interval.floor(base_ms) for interval in intervals), default=base_ms)
    day_ms = max(first_ms, base_ms - base_ms % DAY_MS)
    hour_ms = max(first_ms, base_ms - base_ms % HOUR_MS)
    return [
        *pages(INTERVALS["1d"], first_ms, day_ms),
        *pages(INTERVALS["1h"], day_ms, hour_ms),
        *pages(MINUTE, hour_ms, end_ms),
    ]


def filled(
    bars: Sequence[Bar], request: Request, onboard_ms: int, price: Decimal | None
) -> list[Bar]:
    """Return the bars asked for, with a suspect placeholder in the place of each missing one.

    What is younger than the symbol's listing may be missing at the start, and is not filled.
    `price` is the close before the first bar, where it is known: what a placeholder is flat at.
    """
    interval = request.interval
    kept = [bar for bar in bars if request.first_ms <= bar.open_ms and bar.end_ms <= request.end_ms]
    kept = [bar for bar in kept if interval.is_open(bar.open_ms)]
    next_ms = request.first_ms
    if price is None:
        if not kept:
            return []
        price = kept[0].open
        if onboard_ms + LISTING_SLACK_MS > next_ms:
            next_ms = kept[0].open_ms
    by_time = {bar.open_ms: bar for bar in kept}
    whole = []
    while next_ms < request.end_ms:
        bar = by_time.get(next_ms)
        if bar is None:
            bar = newborn(next_ms, interval.end(next_ms), price)
            bar.source = Source.SUSPECT
        whole.append(bar)
        next_ms, price = bar.end_ms, bar.close
    return whole


# -- Merging ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Running:
    """A longer bar as far as its parts have come."""

    bar: Bar
    owed_minutes: int = 0
    """Minutes in it that are placeholders, and owed to repair one by one."""
    inexact: bool = False
    """Whether a part of it is a placeholder that nobody owes: only its official bar helps."""


class Roller:
    """Merges longer bars from official parts that come in order of time, of any length.

    Only whole bars come out: one whose first part was not seen, or that a hole runs through, is
    left out until the next one of its interval begins. One with a placeholder in it is suspect.
    """

    def __init__(
        self, intervals: Iterable[Interval], first_ms: int, owed: Spans | None = None
    ) -> None:
        """`intervals` are those longer than a minute.

        Parts are wanted from `first_ms` on. Where they begin later, that is the symbol's own
        beginning, and every bar that holds the first part is whole. `owed` are the minutes that
        repair will be told of.
        """
        self._running: dict[Interval, _Running | None] = dict.fromkeys(intervals)
        self._first_ms = first_ms
        self._owed = Spans() if owed is None else owed
        self._next_ms: int | None = None
        self.last_close: Decimal | None = None

    def roll(self, symbol: str, parts: Iterable[Bar]) -> list[BarFact]:
        """Merge parts; return the longer bars that ended with them."""
        ended = []
        with decimal.localcontext(EXACT):
            for part in parts:
                born = self._next_ms is None and part.open_ms > self._first_ms
                if part.open_ms != self._next_ms:
                    self._running = dict.fromkeys(self._running)
                for interval in self._running:
                    bar = self._add(interval, part, born)
                    if bar is not None:
                        ended.append(BarFact(symbol, interval.name, bar))
                self._next_ms = part.end_ms
                self.last_close = part.close
        return ended

    def _add(self, interval: Interval, part: Bar, born: bool) -> Bar | None:
        """Merge a part into the running bar of one interval. Returns the bar if it ends so."""
        running = self._running[interval]
        if running is None:
            open_ms = interval.floor(part.open_ms)
            end_ms = interval.end(open_ms)
            if part.end_ms > end_ms or (part.open_ms != open_ms and not born):
                return None
            running = _Running(newborn(open_ms, end_ms, part.open))
            self._running[interval] = running
        bar = running.bar
        bar.absorb(part)
        if part.source == Source.SUSPECT:
            if _is_minute(part) and self._owed.holds(part.open_ms):
                running.owed_minutes += 1
            else:
                running.inexact = True
        if part.end_ms < bar.end_ms:
            return None
        whole = not running.owed_minutes and not running.inexact
        bar.source = Source.OFFICIAL if whole else Source.SUSPECT
        self._running[interval] = None
        return bar

    def open_bars(self, cut_ms: int) -> list[OpenBar]:
        """Return the bar of each interval that is open at the cut, which all parts lead up to."""
        if self._next_ms is None or self.last_close is None:
            raise RemoteError("it has no klines yet")
        if self._next_ms != cut_ms:
            raise RemoteError(f"its klines end at {self._next_ms} instead of {cut_ms}")
        open_bars = []
        for interval, running in self._running.items():
            if running is None:
                if not interval.is_open(cut_ms):
                    raise RemoteError(f"its klines do not reach back to the open {interval.name}")
                running = _Running(newborn(cut_ms, interval.end(cut_ms), self.last_close))
            bar = running.bar.copy()
            if running.inexact:
                bar.source = Source.SUSPECT
            open_bars.append(OpenBar(interval.name, bar, running.owed_minutes))
        return open_bars


# -- The plan of one symbol ------------------------------------------------------------------------

Span = tuple[int, int]
"""Open time of the first bar, end of the last one."""


def subtract(first_ms: int, end_ms: int, stored: Iterable[Span]) -> list[Span]:
    """Return what [first_ms, end_ms) holds beside the stored spans."""
    missing = []
    for stored_first_ms, stored_end_ms in sorted(stored):
        if stored_first_ms > first_ms:
            missing.append((first_ms, min(stored_first_ms, end_ms)))
        first_ms = max(first_ms, stored_end_ms)
        if first_ms >= end_ms:
            break
    if first_ms < end_ms:
        missing.append((first_ms, end_ms))
    return [span for span in missing if span[0] < span[1]]


class SymbolPlan:
    """What one symbol lacks up to `until_ms`. Owned by the worker that has it in hand."""

    def __init__(
        self, contract: wire.Contract, intervals: tuple[Interval, ...], until_ms: int
    ) -> None:
        """Nothing is known to be missing yet: see `find_missing`."""
        self.contract = contract
        self.symbol = contract.symbol
        self.until_ms = until_ms
        self.minutes: list[Span] = []
        self._longer: dict[str, list[Span]] = {}
        """Missing longer bars, by interval."""
        self._had: dict[str, list[Span]] = {}
        """What of them has been stored meanwhile."""
        self._intervals = intervals
        self.three_day_phase_ms = THREE_DAY_PHASE_MS
        self.owed = Spans()
        """Minutes stored as placeholders: repair asks for them again."""
        self.unknown = Spans()
        """Minutes that came among those because there were too many spans of them."""
        self.reason = ""
        """What was wrong with the first of them."""
        self.price: Decimal | None = None
        """A price of the symbol's, where one was fetched."""
        self.doubtful: dict[tuple[str, int], Bar] = {}
        """Longer bars over placeholders, in case that their official ones are missing."""

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """The configured intervals, 3d on the symbol's own grid."""
        return tuple(
            interval.with_phase(self.three_day_phase_ms) if interval.name == "3d" else interval
            for interval in self._intervals
        )

    def find_missing(self, start_ms: int, stored: dict[str, list[Span]]) -> None:
        """Say what is missing of the bars since `start_ms`.

        Where older bars are stored, all since them is wanted: stored bars have no hole. What was
        stored before this contract's listing is an earlier contract's of the same name.
        """
        listed_ms = MINUTE.floor(self.contract.onboard_ms)
        known = [first_ms for first_ms, _ in stored[MINUTE.name] if first_ms >= listed_ms]
        first_ms = max(min([start_ms, *known]), listed_ms)
        self.minutes = subtract(first_ms, self.until_ms, stored[MINUTE.name])
        for interval in self.intervals[1:]:
            end_ms = interval.floor(self.until_ms)
            wanted_ms = interval.floor(first_ms) if first_ms < self.until_ms else end_ms
            self._longer[interval.name] = subtract(wanted_ms, end_ms, stored[interval.name])

    def lacks(self, interval: str, open_ms: int) -> bool:
        """Whether a longer bar is among those missing."""
        return any(first_ms <= open_ms < end_ms for first_ms, end_ms in self._longer[interval])

    def requests(self, span: Span) -> list[Request]:
        """Return the requests for one span of minutes, with what leads up to it."""
        first_ms = span[0]
        straddling = [
            interval
            for interval in self.intervals[1:]
            if self.lacks(interval.name, interval.floor(first_ms))
        ]
        return ladder(straddling, *span)

    @property
    def weight(self) -> int:
        """About what the missing minutes will cost."""
        return sum(request.weight for span in self.minutes for request in self.requests(span))

    def groups(self, requests: Sequence[Request]) -> list[Sequence[Request]]:
        """Return the requests to be made together; none for the time before the listing."""
        useful = [request for request in requests if request.end_ms > self.contract.onboard_ms]
        return [useful[i : i + PAGES_TOGETHER] for i in range(0, len(useful), PAGES_TOGETHER)]

    def owe(self, minutes: Iterable[Bar]) -> None:
        """Note the placeholders among minutes that are stored."""
        for bar in minutes:
            if bar.source == Source.SUSPECT:
                blurred = self.owed.add(bar.open_ms, bar.open_ms)
                if blurred is not None:
                    self.unknown.add(*blurred)

    def best(self, interval: str, bar: Bar) -> Bar:
        """Return a longer bar, or what minutes tell of it where it is a placeholder."""
        return (
            bar if bar.source != Source.SUSPECT else self.doubtful.get((interval, bar.open_ms), bar)
        )

    def have(self, interval: str, bar: Bar) -> None:
        """Note that a longer bar has been stored."""
        had = self._had.setdefault(interval, [])
        if had and had[-1][1] == bar.open_ms:
            had[-1] = (had[-1][0], bar.end_ms)
        else:
            had.append((bar.open_ms, bar.end_ms))

    def leftover(self, interval: str) -> list[Span]:
        """Return what is still missing of a longer interval."""
        had = self._had.get(interval, [])
        return [rest for span in self._longer[interval] for rest in subtract(*span, had)]


def choose(
    info: wire.ExchangeInfo, universe: Universe, known: Collection[str]
) -> tuple[list[wire.Contract], dict[str, str]]:
    """Return the contracts to keep, and names that were asked for and do not trade now, with why.

    `known` are symbols of which something is stored. Raises ConfigurationError for a name that
    nobody knows, or of a kind that is not kept; RemoteError where nothing trades at all.
    """
    chosen = [contract for contract in info.contracts.values() if universe.wants(contract)]
    waiting = {}
    for symbol in universe.symbols:
        contract = info.contracts.get(symbol)
        if contract is None:
            if symbol not in info.unreadable and symbol not in known:
                raise ConfigurationError(
                    f"the exchange lists no symbol {symbol!r}; {nearest(symbol, info.contracts)}"
                )
            waiting[symbol] = "the exchange does not name it now"
        elif not universe.is_kept_kind(contract):
            raise ConfigurationError(
                f"{symbol} is {contract.contract_type} in {contract.quote_asset}, kept are "
                f"{universe.kinds}; take it out of the symbols, or see the settings contracts, "
                "quotes"
            )
        elif not universe.wants(contract):
            waiting[symbol] = f"it is {contract.status}"
    if not chosen and not universe.symbols:
        raise RemoteError(f"the exchange lists no {universe.kinds} in trading; try again later")
    if len(chosen) > CHOSEN_MAX:
        raise RemoteError(
            f"the exchange lists {len(chosen):,} {universe.kinds} in trading, more than the "
            f"{CHOSEN_MAX:,} that can be kept; name some: --symbols"
        )
    return chosen, waiting


def history_start_ms(since: str, now_ms: int) -> int | None:
    """Return where history is to begin, on a whole hour; None where none is asked for."""
    kind, value_ms = parse_since(since)
    if kind == "ago":
        return INTERVALS["1h"].floor(now_ms - value_ms) if value_ms else None
    if value_ms >= now_ms:
        raise ConfigurationError(f"since {since} is in the future; name a day that has begun")
    return value_ms


# -- Doing it --------------------------------------------------------------------------------------


async def run_backfill(
    settings: Settings,
    rest: Rest,
    *,
    database: Database,
    run_in_thread: RunInThread,
    on_progress: Callable[[Progress], None] | None = None,
) -> BackfillReport:
    """Fetch what is missing, then write the start snapshot. May be cancelled at any moment."""
    backfill = Backfill(settings, rest, database, run_in_thread, on_progress)
    return await backfill.run()


class Backfill:
    """One backfill at work: the counts, and what the two passes share."""

    def __init__(
        self,
        settings: Settings,
        rest: Rest,
        database: Database,
        run_in_thread: RunInThread,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        """Nothing is asked for yet."""
        self._settings = settings
        self._rest = rest
        self._database = database
        self._run_in_thread = run_in_thread
        self._on_progress = on_progress
        self._intervals = select(settings.intervals)
        self._failed: dict[str, str] = {}
        self._waiting: dict[str, str] = {}
        self._failures_running = 0
        self._phase = "history"
        self._symbols = 0
        self._symbols_done = 0
        self._bars = 0
        self._weight = 0
        self._weight_planned = 0
        self._started_s = 0.0

    async def run(self) -> BackfillReport:
        """Do both passes and write the snapshot."""
        self._started_s = trio.current_time()
        until_ms, now_ms = await self._ask_cut()
        plans = await self._plan(until_ms, history_start_ms(self._settings.since, now_ms))
        await self._each("history", self._fill_history, plans)
        plans = [plan for plan in plans if plan.symbol not in self._failed]

        cut_ms, _ = await self._ask_cut()
        seeds: dict[str, Seed] = {}

        async def fill_state(plan: SymbolPlan) -> None:
            seeds[plan.symbol] = await self._fill_state(plan, cut_ms)

        await self._each("state", fill_state, plans)
        in_order = tuple(seeds[plan.symbol] for plan in plans if plan.symbol in seeds)
        names = tuple(interval.name for interval in self._intervals)
        path = self._settings.data_dir / SNAPSHOT_NAME
        state = StartState(cut_ms, names, in_order)
        owing = [plan for plan in plans if plan.owed]
        events = [Event(cut_ms, "suspect", plan.symbol, _owed_text(plan)) for plan in owing]
        await self._run_in_thread(_finish, self._database, state, path, events)
        return BackfillReport(
            cut_ms=cut_ms,
            symbols=tuple(seed.symbol for seed in in_order),
            failed=tuple(self._failed.items()),
            waiting=tuple(self._waiting.items()),
            owing=tuple((plan.symbol, _owed_text(plan)) for plan in owing),
            bars=self._bars,
            weight=self._weight,
            snapshot=path,
        )

    async def _ask_cut(self) -> tuple[int, int]:
        """Return the end of the last whole minute, and the exchange's time.

        A cut before what a run has sealed already would take minutes back: that one is waited for.
        """
        sealed_ms: int = await self._run_in_thread(self._database.last_tick)
        while True:
            self._weight += 1
            now_ms = await self._rest.server_time(priority=Priority.TIME)
            if sealed_ms > now_ms:
                raise ConfigurationError(
                    f"the database in {self._settings.data_dir} goes on to {_utc(sealed_ms)}, the "
                    f"exchange's time is {_utc(now_ms)}: the data is of another exchange or "
                    "simulation; use another --data-dir"
                )
            cut_ms = MINUTE.floor(now_ms - SETTLE_MS)
            if cut_ms >= sealed_ms:
                return cut_ms, now_ms
            await trio.sleep((sealed_ms + SETTLE_MS - now_ms) / 1_000)

    async def _plan(self, until_ms: int, start_ms: int | None) -> list[SymbolPlan]:
        """Choose the symbols, learn their 3d grids, and say what each of them lacks."""
        contracts = await self._choose()
        # What is listed later than that is for the discovery of `run`.
        contracts = [c for c in contracts if MINUTE.floor(c.onboard_ms) < until_ms]
        for contract in contracts:
            await self._tell_apart(contract)
        stored = await self._run_in_thread(
            _read_stored, self._database, contracts, [i.name for i in self._intervals]
        )
        plans = [SymbolPlan(contract, self._intervals, until_ms) for contract in contracts]
        if any(interval.name == "3d" for interval in self._intervals):
            await self._each("calendar", self._learn_phase, plans)
            plans = [plan for plan in plans if plan.symbol not in self._failed]
        phases = {plan.symbol: plan.three_day_phase_ms for plan in plans}
        await self._run_in_thread(_put_symbols, self._database, contracts, phases)
        for plan in plans:
            plan.find_missing(until_ms if start_ms is None else start_ms, stored[plan.symbol])
        self._weight_planned = self._weight + sum(plan.weight + STATE_WEIGHT for plan in plans)
        return plans

    async def _choose(self) -> list[wire.Contract]:
        """Ask which contracts there are, a second time where the first answer lacks a name."""
        universe = Universe.of(self._settings)
        known = await self._run_in_thread(self._database.symbols)
        info = await self._ask_contracts()
        lacking = set(universe.symbols).difference(info.names)
        if not info.names or lacking or not any(map(universe.wants, info.contracts.values())):
            await trio.sleep(SECOND_LOOK_S)
            info = await self._ask_contracts()
        contracts, self._waiting = choose(info, universe, known)
        return contracts

    async def _ask_contracts(self) -> wire.ExchangeInfo:
        self._weight += 1
        return await self._rest.exchange_info(priority=Priority.BACKFILL)

    async def _tell_apart(self, contract: wire.Contract) -> None:
        """Free the label where another contract has the ticker now than the one that is stored.

        Two witnesses say so: the bars that are stored end before its listing, and the exchange
        serves no klines from before it. Anything less is a correction of the date.
        """
        stored = await self._run_in_thread(self._database.contract, contract.symbol)
        listed_ms = MINUTE.floor(contract.onboard_ms)
        if stored is None or stored.end_ms is None or contract.onboard_ms <= stored.onboard_ms:
            return
        if stored.end_ms > listed_ms:
            return
        self._weight += 1
        klines = await self._rest.klines(
            contract.symbol, MINUTE.name, start_ms=0, limit=1, priority=Priority.BACKFILL
        )
        if klines.bars and klines.bars[0].open_ms >= listed_ms:
            facts = Facts(replaced=[contract.symbol])
            await self._run_in_thread(self._database.commit, None, (facts,))

    # -- Many symbols at a time ----------------------------------------------------------------

    async def _each(
        self, phase: str, work: Callable[[SymbolPlan], Awaitable[None]], plans: list[SymbolPlan]
    ) -> None:
        """Do the work for every symbol, several at a time; note the symbols that fail."""
        self._phase, self._symbols, self._symbols_done = phase, len(plans), 0
        self._failures_running = 0
        waiting = iter(plans)
        fatal: list[KlaggError] = []

        async def work_off() -> None:
            for plan in waiting:
                try:
                    await work(plan)
                except RemoteError as error:
                    if isinstance(error, BannedError) or self._hopeless(plan, error):
                        raise
                else:
                    self._failures_running = 0
                self._symbols_done += 1
                self._tell()

        async def run_worker() -> None:
            try:
                await work_off()
            except KlaggError as error:
                fatal.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(SYMBOLS_TOGETHER, len(plans))):
                nursery.start_soon(run_worker)
        if fatal:
            raise fatal[0]

    def _hopeless(self, plan: SymbolPlan, error: RemoteError) -> bool:
        """Note that a symbol failed. True where it is the exchange that fails, not the symbol."""
        self._failed[plan.symbol] = str(error)
        self._failures_running += 1
        return self._failures_running >= min(FAILURES_MAX, self._symbols)

    def _tell(self) -> None:
        if self._on_progress is None:
            return
        elapsed_s = trio.current_time() - self._started_s
        left = max(0, self._weight_planned - self._weight)
        self._on_progress(
            Progress(
                phase=self._phase,
                symbols_done=self._symbols_done,
                symbols=self._symbols,
                bars=self._bars,
                weight=self._weight,
                eta_s=elapsed_s * left / self._weight if elapsed_s and self._weight else math.inf,
            )
        )

    # -- One symbol ----------------------------------------------------------------------------

    async def _learn_phase(self, plan: SymbolPlan) -> None:
        """Take the symbol's 3d grid from its newest official 3d bar."""
        self._weight += 1
        klines = await self._rest.klines(plan.symbol, "3d", limit=1, priority=Priority.BACKFILL)
        if klines.bars:
            plan.three_day_phase_ms = klines.bars[-1].open_ms % THREE_DAYS_MS

    async def _fill_history(self, plan: SymbolPlan) -> None:
        """Fetch and store what a symbol lacks up to the plan's end.

        A longer bar over placeholders is left to the second loop, which asks for its own official
        one. Where that is missing as well, a placeholder stands for it too.
        """
        for span in plan.minutes:
            requests = plan.requests(span)
            roller = Roller(plan.intervals[1:], requests[0].first_ms)
            for together in plan.groups(requests):
                bars = await self._fetch(plan, together, roller.last_close)
                minutes = [bar for bar in bars if _is_minute(bar) and bar.open_ms >= span[0]]
                ended = [
                    fact
                    for fact in roller.roll(plan.symbol, bars)
                    if plan.lacks(fact.interval, fact.bar.open_ms)
                ]
                longer = [fact for fact in ended if fact.bar.source == Source.OFFICIAL]
                for fact in ended:
                    if fact.bar.source == Source.SUSPECT:
                        plan.doubtful[fact.interval, fact.bar.open_ms] = fact.bar
                await self._store(plan, minutes, longer)
            plan.price = roller.last_close or plan.price
        for interval in plan.intervals[1:]:
            for first_ms, end_ms in plan.leftover(interval.name):
                for request in pages(interval, first_ms, end_ms):
                    bars = await self._fetch(plan, [request], await self._price_of(plan))
                    longer = [
                        BarFact(plan.symbol, interval.name, plan.best(interval.name, bar))
                        for bar in bars
                    ]
                    await self._store(plan, [], longer)

    async def _price_of(self, plan: SymbolPlan) -> Decimal | None:
        """Return a price of the symbol's, for placeholders: one that was fetched, or the newest."""
        if plan.price is None:
            self._weight += 1
            klines = await self._rest.klines(
                plan.symbol, MINUTE.name, limit=1, priority=Priority.BACKFILL
            )
            plan.price = klines.bars[-1].close if klines.bars else None
        return plan.price

    async def _fill_state(self, plan: SymbolPlan, cut_ms: int) -> Seed:
        """Return the symbol's exact state at the cut; store what has ended since the history."""
        base_ms = min(plan.until_ms, cut_ms - MINUTE_MS)  # one minute at least, for its close
        requests = ladder(plan.intervals[1:], base_ms, cut_ms)
        roller = Roller(plan.intervals[1:], requests[0].first_ms, plan.owed)
        for together in plan.groups(requests):
            bars = await self._fetch(plan, together, roller.last_close)
            minutes = [bar for bar in bars if _is_minute(bar) and bar.open_ms >= plan.until_ms]
            plan.owe(minutes)  # before they are merged: then it is known who owes them
            longer = [
                fact for fact in roller.roll(plan.symbol, bars) if fact.bar.end_ms > plan.until_ms
            ]
            await self._store(plan, minutes, longer)
        open_bars = tuple(roller.open_bars(cut_ms))
        assert roller.last_close is not None, "open_bars has looked"
        return Seed(
            symbol=plan.symbol,
            onboard_ms=plan.contract.onboard_ms,
            delivery_ms=plan.contract.delivery_ms,
            last_close=roller.last_close,
            next_id=None,
            last_trade_ms=None,
            three_day_phase_ms=plan.three_day_phase_ms,
            open_bars=open_bars,
            suspects=tuple(plan.owed),
            unknown=tuple(plan.unknown),
        )

    async def _fetch(
        self, plan: SymbolPlan, requests: Sequence[Request], price: Decimal | None
    ) -> list[Bar]:
        """Return the bars of several requests made at once, in the order of the requests.

        `price` is the close before them, where it is known.
        """
        answers: list[list[Bar]] = [[] for _ in requests]
        failures: list[KlaggError] = []

        async def fetch(index: int, request: Request) -> None:
            try:
                answers[index] = await self._fetch_one(plan, request)
            except KlaggError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for index, request in enumerate(requests):
                nursery.start_soon(fetch, index, request)
        if failures:
            raise failures[0]
        onboard_ms = plan.contract.onboard_ms
        if price is None and onboard_ms + LISTING_SLACK_MS <= requests[0].first_ms:
            price = next((bar.open for answer in answers for bar in answer), None)
            if price is None:
                first_ms, name = requests[0].first_ms, requests[0].interval.name
                raise RemoteError(f"it has no {name} klines from {utc_text(first_ms)} UTC on")
        bars: list[Bar] = []
        for request, answer in zip(requests, answers, strict=True):
            bars += filled(answer, request, onboard_ms, price)
            price = bars[-1].close if bars else price
        return bars

    async def _fetch_one(self, plan: SymbolPlan, request: Request) -> list[Bar]:
        """Return the bars of one request; ask again where some are missing or refused.

        The newest ones may not be served yet: those are worth a few more askings. Others are asked
        for once more.
        """
        onboard_ms = plan.contract.onboard_ms
        for attempt in range(1 + TAIL_RETRIES):
            self._weight += request.weight
            klines = await self._rest.klines(
                plan.symbol,
                request.interval.name,
                start_ms=request.first_ms,
                end_ms=request.end_ms - 1,
                limit=request.count,
                priority=Priority.BACKFILL,
            )
            whole = filled(klines.bars, request, onboard_ms, None)
            if whole and all(bar.source == Source.OFFICIAL for bar in whole):
                return klines.bars
            lacks_newest = not whole or whole[-1].source == Source.SUSPECT
            if attempt == TAIL_RETRIES or (attempt and not lacks_newest):
                break
            await trio.sleep(TAIL_PAUSE_S)
        if not plan.reason and klines.refused:
            row = klines.refused[0]
            at = "" if row.open_ms is None else f" of {utc_text(row.open_ms)}"
            plan.reason = f"; the {request.interval.name} kline{at} was refused: {row.reason}"
        return klines.bars

    async def _store(self, plan: SymbolPlan, minutes: list[Bar], longer: list[BarFact]) -> None:
        """Make bars durable, then count them."""
        plan.owe(minutes)
        by_interval: dict[str, list[Bar]] = {}
        if minutes:
            by_interval[MINUTE.name] = minutes
        for fact in longer:
            by_interval.setdefault(fact.interval, []).append(fact.bar)
            plan.have(fact.interval, fact.bar)
        if by_interval:
            await self._run_in_thread(_put_history, self._database, plan.symbol, by_interval)
        self._bars += len(minutes) + len(longer)
        self._tell()


def _utc(at_ms: int) -> str:
    at = datetime.datetime.fromtimestamp(at_ms / 1_000, datetime.UTC)
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _owed_text(plan: SymbolPlan) -> str:
    """Say which minutes of a symbol have no usable kline."""
    first_ms, _ = next(iter(plan.owed))
    count = count_text(plan.owed.minutes, "minute")
    return f"no usable kline for {count} from {utc_text(first_ms)} UTC on{plan.reason}"


def _is_minute(bar: Bar) -> bool:
    return bar.end_ms - bar.open_ms == MINUTE_MS


# What runs in the database's thread.


def _read_stored(
    database: Database, contracts: Iterable[wire.Contract], intervals: Iterable[str]
) -> dict[str, dict[str, list[Span]]]:
    return {
        contract.symbol: {
            name: list(database.stored_spans(contract.symbol, name)) for name in intervals
        }
        for contract in contracts
    }


def _put_symbols(
    database: Database, contracts: Iterable[wire.Contract], phases: dict[str, int]
) -> None:
    database.put_symbols(contracts, phases)


def _put_history(database: Database, symbol: str, by_interval: dict[str, list[Bar]]) -> None:
    for interval, bars in by_interval.items():
        database.put_history(symbol, interval, bars)


def _finish(database: Database, state: StartState, path: Path, events: list[Event]) -> None:
    """Show the open bars of the cut, then write the snapshot: with it the backfill is done."""
    from klagg_trio.store.start_snapshot import write_snapshot

    cut_ms = state.cut_ms
    running = []
    for seed in state.seeds:
        minute = newborn(cut_ms, cut_ms + MINUTE_MS, seed.last_close)
        running.append(RunningBar(seed.symbol, MINUTE.name, minute, cut_ms))
        running += [RunningBar(seed.symbol, x.interval, x.bar, cut_ms) for x in seed.open_bars]
    database.commit(cut_ms, [Facts(events=events)] if events else (), running)
    database_id, generation = database.identity
    write_snapshot(path, replace(state, database_id=database_id, generation=generation))
