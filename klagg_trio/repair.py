"""Making bars right: suspect minutes are replaced by the exchange's own, and good ones audited.

Theory of operation
-------------------
The shards remember which sealed minutes of each symbol are suspect, as few merged spans. `Repair`
reads those sets; nothing is queued, so an outage of days costs no memory. It takes the most urgent
piece (newest first: those are what people look at), asks for the official 1m bars at the lowest
weight a bar, and sends them to the shard as ReplaceMinutes. The shard restates the minute and every
longer bar that it holds; the store restates the longer bars that have left the memory. A minute
is asked for only `SETTLE_MS` after its end, since the exchange's REST side lags behind its trades.

`Auditor` holds minutes that are not suspect against official ones too, a symbol at a time, the one
that waited longest first. What differs is judged (`core/audit.py`), counted for the score, and
replaced by the official bar in the same way.

Suspect bars that no shard remembers are found on disk, by a sweep now and then: longer bars whose
minutes are right but do not tell them exactly, and bars of symbols that have ended. Each of them is
replaced by the exchange's own bar of that interval, which goes straight to the writer.

Both spend REST weight through the one gate, repair before audit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from klagg_trio import cmd
from klagg_trio.core.audit import CHAIN_MAX, Verdict, judge
from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.errors import RemoteError, StoreError
from klagg_trio.core.facts import BarFact, Event, Facts
from klagg_trio.core.intervals import DAY_MS, HOUR_MS, MINUTE, MINUTE_MS
from klagg_trio.core.shard import Shard, SymbolState
from klagg_trio.exchange.rest import Priority, Rest
from klagg_trio.store.reading import bar_of, open_reader, select_bars, select_suspects
from klagg_trio.store.thread import RunInThread
from klagg_trio.vitals import AuditVitals

SETTLE_MS: Final = 5_000
"""How long after its end a minute is official. Some users saw REST lag by two to ten seconds; a
minute that is not there yet is simply asked for again."""

CHEAP_PAGE: Final = 99
"""Rows that cost weight 1."""

BEST_PAGE: Final = 499
"""Rows that cost weight 2: the most bars for the weight."""

FETCHERS: Final = 4
"""Requests in flight: enough to use the weight at 100 ms a request, few enough to be polite."""

IDLE_S: Final = 1.0

RETRY_S: Final = 30.0
"""Pause before a symbol is asked for again that the exchange had no bars for, or refused."""

SWEEP_S: Final = 60.0
"""Between two looks for suspect bars on disk."""

SWEEP_BARS_MAX: Final = 5_000
"""Bars looked at by one sweep; the next one goes on from there."""

SWEEP_RETRY_S: Final = 600.0
"""Pause before a series is asked for again that the exchange could not serve."""

AUDIT_PAGE: Final = CHEAP_PAGE - CHAIN_MAX
"""Minutes audited at once; the page also holds the minutes that a straddle may reach into."""


@dataclass(frozen=True, slots=True)
class RepairVitals:
    """What repair has done since the start."""

    owed_minutes: int
    repaired_minutes: int
    requests: int
    failures: int


class Repair:
    """Replaces suspect minutes by official ones."""

    def __init__(
        self,
        shards: Sequence[Shard],
        inboxes: Sequence[trio.MemorySendChannel[cmd.Message]],
        to_writer: trio.MemorySendChannel[cmd.Record],
        *,
        rest: Rest,
        database_path: Path,
        run_in_thread: RunInThread,
        now_ms: Callable[[], int],
        note: Callable[[Event], None],
    ) -> None:
        """Read the suspect sets of `shards`, send what replaces them to `inboxes`.

        What only the disk remembers goes to `to_writer`.
        """
        self._shards = shards
        self._inboxes = inboxes
        self._to_writer = to_writer
        self._database_path = database_path
        self._run_in_thread = run_in_thread
        self._rest = rest
        self._now_ms = now_ms
        self._note = note
        self._looking = trio.Lock()
        self._busy: set[str] = set()
        """Symbols with a request in flight."""
        self._deferred_s: dict[str, float] = {}
        """Symbols not to be asked for before this Trio time."""
        self._series_deferred_s: dict[tuple[str, str], float] = {}
        """Series not to be asked for by the sweep before this Trio time."""
        self.repaired_minutes = 0
        self.repaired_longer = 0
        self.requests = 0
        self.failures = 0

    async def run(self, nursery: trio.Nursery) -> None:
        """Start the fetchers in `nursery`, the one that all sources share."""
        for _ in range(FETCHERS):
            nursery.start_soon(self._fetch_forever)
        nursery.start_soon(self._sweep_forever)

    async def _fetch_forever(self) -> None:
        while True:
            async with self._looking:  # while nothing is owed, one fetcher looks for all
                piece = self.most_urgent()
                if piece is None:
                    await trio.sleep(IDLE_S)
                    continue
                symbol, first_ms, last_ms = piece
                self._busy.add(symbol)
            try:
                await self._repair(symbol, first_ms, last_ms)
            finally:
                self._busy.discard(symbol)

    def most_urgent(self) -> tuple[str, int, int] | None:
        """Return the symbol and the minutes to ask for next, or None: newest minute first."""
        settled_ms = MINUTE.floor(self._now_ms() - SETTLE_MS) - MINUTE_MS
        now_s = trio.current_time()
        best: tuple[int, str, SymbolState] | None = None
        for shard in self._shards:
            for state in shard.states.values():
                if not state.suspects or state.symbol in self._busy:
                    continue
                if self._deferred_s.get(state.symbol, 0.0) > now_s:
                    continue
                first_ms, last_ms = _newest(state, settled_ms)
                if first_ms <= last_ms and (best is None or last_ms > best[0]):
                    best = last_ms, state.symbol, state
        if best is None:
            return None
        last_ms, symbol, state = best
        oldest_ms = next(iter(state.suspects))[0]
        rows = CHEAP_PAGE if last_ms - oldest_ms < CHEAP_PAGE * MINUTE_MS else BEST_PAGE
        first_ms = max(oldest_ms, last_ms - (rows - 1) * MINUTE_MS)
        return symbol, first_ms, last_ms

    async def _repair(self, symbol: str, first_ms: int, last_ms: int) -> None:
        """Fetch one page of official minutes and hand the suspect ones among them to the shard."""
        self.requests += 1
        try:
            klines = await self._rest.klines(
                symbol,
                MINUTE.name,
                start_ms=first_ms,
                end_ms=last_ms,
                limit=(last_ms - first_ms) // MINUTE_MS + 1,
                priority=Priority.REPAIR,
            )
        except RemoteError as error:
            self.failures += 1
            self._deferred_s[symbol] = trio.current_time() + RETRY_S
            self._note(Event(self._now_ms(), "repair failed", symbol, str(error)))
            return
        number = cmd.shard_of(symbol, len(self._shards))
        state = self._shards[number].states.get(symbol)
        if state is None:
            return
        wanted = tuple(
            bar
            for bar in klines.bars
            if bar.end_ms <= self._now_ms() and state.suspects.holds(bar.open_ms)
        )
        if not wanted:
            self._deferred_s[symbol] = trio.current_time() + RETRY_S
            return
        self.repaired_minutes += len(wanted)
        await self._inboxes[number].send(cmd.ReplaceMinutes(symbol, wanted))
        text = f"{_count(wanted, 'minute')} from {_clock(wanted[0].open_ms)}"
        self._note(Event(self._now_ms(), "repaired", symbol, text))
        # Until the shard has taken the message its set still holds these minutes.
        self._deferred_s[symbol] = trio.current_time() + IDLE_S

    # -- The sweep -----------------------------------------------------------------------------

    async def _sweep_forever(self) -> None:
        while True:
            await trio.sleep(SWEEP_S)
            await self.sweep()

    async def sweep(self) -> None:
        """Replace the suspect bars on disk that no shard will."""
        try:
            suspects = await self._run_in_thread(suspect_bars, self._database_path, SWEEP_BARS_MAX)
        except StoreError as error:
            # A read that fails, no free handle: passing until shown otherwise.
            self._note(Event(self._now_ms(), "repair failed", "", str(error)))
            return
        settled_ms = self._now_ms() - SETTLE_MS
        for (symbol, interval), bars in suspects.items():
            wanted = [span for span in bars if span[1] <= settled_ms]
            wanted = [span for span in wanted if not self._is_remembered(symbol, span)]
            deferred_s = self._series_deferred_s.get((symbol, interval), 0.0)
            if wanted and deferred_s <= trio.current_time():
                await self._replace_stored(symbol, interval, wanted)

    def _is_remembered(self, symbol: str, span: tuple[int, int]) -> bool:
        """Whether a shard owes the minutes of a bar: they come first, and may make it right."""
        state = self._shards[cmd.shard_of(symbol, len(self._shards))].states.get(symbol)
        return state is not None and state.suspects.meets(*span)

    async def _replace_stored(
        self, symbol: str, interval: str, wanted: Sequence[tuple[int, int]]
    ) -> None:
        """Ask for the official bars from the oldest wanted one on, and store those wanted."""
        key = symbol, interval
        self.requests += 1
        try:
            klines = await self._rest.klines(
                symbol,
                interval,
                start_ms=wanted[0][0],
                limit=CHEAP_PAGE,
                priority=Priority.REPAIR,
            )
        except RemoteError as error:
            self.failures += 1
            self._series_deferred_s[key] = trio.current_time() + SWEEP_RETRY_S
            self._note(Event(self._now_ms(), "repair failed", symbol, str(error)))
            return
        opens = {open_ms for open_ms, _ in wanted}
        now_ms = self._now_ms()
        found = [bar for bar in klines.bars if bar.open_ms in opens and bar.end_ms <= now_ms]
        if not found:
            self._series_deferred_s[key] = trio.current_time() + SWEEP_RETRY_S
            return
        self.repaired_longer += len(found)
        text = f"{_count(found, interval + ' bar')} from {_clock(found[0].open_ms)}"
        facts = Facts(
            restated=[BarFact(symbol, interval, bar) for bar in found],
            events=[Event(now_ms, "repaired", symbol, text)],
        )
        number = cmd.shard_of(symbol, len(self._shards))
        await self._to_writer.send(cmd.Amended(number, facts))

    def statistics(self) -> RepairVitals:
        """Return what repair has done and still owes."""
        owed = sum(
            state.suspects.minutes for shard in self._shards for state in shard.states.values()
        )
        return RepairVitals(owed, self.repaired_minutes, self.requests, self.failures)


def _newest(state: SymbolState, settled_ms: int) -> tuple[int, int]:
    """Return the newest span of suspect minutes up to `settled_ms`; empty where first > last."""
    newest = (1, 0)
    for first_ms, last_ms in state.suspects:
        if first_ms <= settled_ms:
            newest = first_ms, min(last_ms, settled_ms)
    return newest


def _count(bars: Sequence[Bar], name: str) -> str:
    return f"{len(bars)} {name}{'' if len(bars) == 1 else 's'}"


def _clock(at_ms: int) -> str:
    minutes = at_ms // MINUTE_MS
    return f"{minutes // 60 % 24:02}:{minutes % 60:02}"


@dataclass(slots=True)
class Score:
    """Verdicts of one hour of audits."""

    hour_ms: int
    equal: int = 0
    straddle: int = 0
    unexplained: int = 0


class Auditor:
    """Holds sealed minutes against official ones and replaces those that differ."""

    def __init__(
        self,
        shards: Sequence[Shard],
        inboxes: Sequence[trio.MemorySendChannel[cmd.Message]],
        *,
        rest: Rest,
        database_path: Path,
        every_s: float,
        run_in_thread: RunInThread,
        now_ms: Callable[[], int],
        note: Callable[[Event], None],
        start_ms: int,
    ) -> None:
        """Audit each symbol's minutes from `start_ms` on, about every `every_s`."""
        self._shards = shards
        self._inboxes = inboxes
        self._rest = rest
        self._database_path = database_path
        self._every_ms = int(every_s * 1000)
        self._run_in_thread = run_in_thread
        self._now_ms = now_ms
        self._note = note
        self._start_ms = start_ms
        self._audited_ms: dict[str, int] = {}
        """Every minute of the symbol before this one has been audited, or is owed to repair."""
        self._after_own: set[str] = set()
        """Symbols whose last audited minute is as klagg sealed it, not replaced."""
        self._deferred_s: dict[str, float] = {}
        self._scores: deque[Score] = deque(maxlen=DAY_MS // HOUR_MS)

    async def run(self) -> None:
        """Audit until cancelled."""
        while True:
            symbol = self._longest_waiting()
            if symbol is None:
                await trio.sleep(IDLE_S)
            else:
                await self._audit(symbol)

    def _longest_waiting(self) -> str | None:
        """Return the symbol with the oldest minutes not audited, if they are old enough."""
        due_ms = self._now_ms() - SETTLE_MS - self._every_ms
        now_s = trio.current_time()
        best: tuple[int, str] | None = None
        for shard in self._shards:
            for symbol in shard.states:
                audited_ms = self._audited_ms.get(symbol, self._start_ms)
                if self._deferred_s.get(symbol, 0.0) > now_s:
                    continue
                if audited_ms <= due_ms and (best is None or audited_ms < best[0]):
                    best = audited_ms, symbol
        return best[1] if best else None

    async def _audit(self, symbol: str) -> None:
        """Audit one page of a symbol's minutes."""
        first_ms = self._audited_ms.get(symbol, self._start_ms)
        settled_ms = MINUTE.floor(self._now_ms() - SETTLE_MS) - MINUTE_MS
        last_ms = min(settled_ms, first_ms + (AUDIT_PAGE + CHAIN_MAX - 1) * MINUTE_MS)
        try:
            klines = await self._rest.klines(
                symbol,
                MINUTE.name,
                start_ms=first_ms,
                end_ms=last_ms,
                limit=CHEAP_PAGE,
                priority=Priority.AUDIT,
            )
        except RemoteError as error:
            self._deferred_s[symbol] = trio.current_time() + RETRY_S
            self._note(Event(self._now_ms(), "audit failed", symbol, str(error)))
            return
        try:
            stored = await self._run_in_thread(
                stored_minutes, self._database_path, symbol, first_ms, last_ms
            )
        except StoreError as error:
            self._deferred_s[symbol] = trio.current_time() + RETRY_S
            self._note(Event(self._now_ms(), "audit failed", symbol, str(error)))
            return
        await self._compare(symbol, klines.bars, stored, last_ms)

    async def _compare(
        self, symbol: str, official: Sequence[Bar], stored: dict[int, Bar], last_ms: int
    ) -> None:
        """Judge what is there on both sides; count it; replace what differs."""
        theirs = [bar for bar in official if bar.open_ms in stored]
        ours = [stored[bar.open_ms] for bar in theirs]
        after_replaced = symbol not in self._after_own
        verdicts = judge(ours, theirs, after_replaced=after_replaced)
        # A chain that is still open at the end may yet turn out to be a straddle.
        open_chain = 0
        while open_chain < min(CHAIN_MAX - 1, len(verdicts)):
            if verdicts[-1 - open_chain] != Verdict.UNEXPLAINED:
                break
            open_chain += 1
        decided = len(verdicts) - open_chain
        score = self._score()
        wrong: list[Bar] = []
        replaced: list[Bar] = []
        for bar, held, verdict in zip(
            theirs[:decided], ours[:decided], verdicts[:decided], strict=True
        ):
            if held.source in (Source.SUSPECT, Source.OFFICIAL):
                continue
            match verdict:
                case Verdict.EQUAL:
                    score.equal += 1
                    continue
                case Verdict.STRADDLE:
                    score.straddle += 1
                case Verdict.UNEXPLAINED:
                    score.unexplained += 1
                    self._note(Event(bar.open_ms, "unexplained", symbol, _difference(held, bar)))
            wrong.append(bar)
            replaced.append(held)
        if wrong:
            number = cmd.shard_of(symbol, len(self._shards))
            await self._inboxes[number].send(
                cmd.ReplaceMinutes(symbol, tuple(wrong), tuple(replaced))
            )
        if decided:
            self._audited_ms[symbol] = theirs[decided - 1].end_ms
            own = verdicts[decided - 1] == Verdict.EQUAL
            if own and ours[decided - 1].source not in (Source.SUSPECT, Source.OFFICIAL):
                self._after_own.add(symbol)
            else:
                self._after_own.discard(symbol)
        else:
            self._deferred_s[symbol] = trio.current_time() + RETRY_S
            if not stored and official:
                self._audited_ms[symbol] = last_ms + MINUTE_MS

    def _score(self) -> Score:
        """Return the running hour's score."""
        hour_ms = self._now_ms() // HOUR_MS * HOUR_MS
        if not self._scores or self._scores[-1].hour_ms != hour_ms:
            self._scores.append(Score(hour_ms))
        return self._scores[-1]

    def audited_until_ms(self) -> int:
        """Return the minute before which every symbol has been audited."""
        symbols = [symbol for shard in self._shards for symbol in shard.states]
        return min((self._audited_ms.get(s, self._start_ms) for s in symbols), default=0)

    def statistics(self) -> AuditVitals:
        """Return the figures of the last 24 hours."""
        recent = [s for s in self._scores if s.hour_ms > self._now_ms() - DAY_MS]
        return AuditVitals(
            equal=sum(score.equal for score in recent),
            straddle=sum(score.straddle for score in recent),
            unexplained=sum(score.unexplained for score in recent),
        )


def stored_minutes(path: Path, symbol: str, first_ms: int, last_ms: int) -> dict[int, Bar]:
    """Return the stored 1m bars of a symbol by open time, as exact numbers again."""
    connection = open_reader(path)
    try:
        rows = select_bars(connection, symbol, MINUTE.name, first_ms, last_ms)
    finally:
        connection.close()
    return {open_ms: bar_of(row, open_ms + MINUTE_MS) for open_ms, row in rows.items()}


def suspect_bars(path: Path, bars_max: int) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Return open time and end of stored suspect bars by symbol and interval, oldest first.

    Tickers that another contract has taken over are left out: the exchange does not serve the bars
    of the old one any more.
    """
    connection = open_reader(path)
    try:
        rows = select_suspects(connection, bars_max)
    finally:
        connection.close()
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for symbol, interval, open_ms, end_ms in rows:
        found.setdefault((symbol, interval), []).append((open_ms, end_ms))
    return found


def _difference(ours: Bar, official: Bar) -> str:
    """Say in words where two bars differ."""
    names = ("open", "high", "low", "close", "volume", "quote", "count", "taker", "taker quote")
    parts = [
        f"{name} {own} official {true}"
        for name, own, true in zip(names, ours.values(), official.values(), strict=True)
        if own != true
    ]
    return f"{_clock(official.open_ms)} " + ", ".join(parts)
