"""The auditor: what is stored is held against the exchange's own, and what differs is replaced.

Theory of operation
-------------------
Minutes that are not suspect are held against official ones, a symbol at a time, the one that waited
longest first. Both sides are compared as they are stored: as float64. What differs is judged
(`core/audit.py`), counted for the score, and replaced by the official bar, through the shard.

Official minutes are looked at too, once, since they may have been fetched before they were
finished: a later official row corrects an earlier one. A row that counts less than an unbroken run
of our own trades is asked for again before it takes their place.

Every request goes through the one weight gate, after all others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from klagg_trio import cmd
from klagg_trio.core.asking import KEPT_SYMBOLS, FewerTrades
from klagg_trio.core.audit import CHAIN_MAX, Verdict, judge
from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.errors import RemoteError, StoreError
from klagg_trio.core.facts import Event
from klagg_trio.core.intervals import DAY_MS, HOUR_MS, MINUTE, MINUTE_MS, utc_text
from klagg_trio.core.shard import Shard
from klagg_trio.exchange.rest import Priority, Rest
from klagg_trio.store.reading import as_stored, bar_of, open_reader, select_bars
from klagg_trio.store.thread import RunInThread
from klagg_trio.vitals import AuditVitals

SETTLE_MS: Final = 90_000
"""How long after its end a minute is audited: sooner, its official row may not be finished."""

UNSERVED_MS: Final = 10 * MINUTE_MS
"""Minutes older than this for which the exchange gives nothing, twice, are passed over."""

CHEAP_PAGE: Final = 99
"""Rows that cost weight 1."""

AGAIN_MS: Final = HOUR_MS
"""Minutes of so long before a start are audited by it: the run before may not have come to them."""

AGAIN_FIRST_S: Final = 120.0
AGAIN_MAX_S: Final = 600.0
HOPED_TIMES: Final = 4
AGAIN_TIMES: Final = 20
"""A minute that was passed by for want of a row is asked for again for some hours."""

IDLE_S: Final = 1.0

RETRY_S: Final = 30.0
"""Pause before a symbol is asked for again that the exchange refused or had no bars for."""

AUDIT_PAGE: Final = CHEAP_PAGE - CHAIN_MAX
"""Minutes audited at once; the page also holds the minutes that a straddle may reach into."""


@dataclass(frozen=True, slots=True)
class Missed:
    """A minute of our own that the exchange served no usable row of, and those after it."""

    first_ms: int
    due_s: float
    """When it is asked for again, Trio time."""
    times: int


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
        """Audit minutes from `AGAIN_MS` before `start_ms` on, each symbol about every `every_s`."""
        self._shards = shards
        self._inboxes = inboxes
        self._rest = rest
        self._database_path = database_path
        self._every_ms = int(every_s * 1000)
        self._run_in_thread = run_in_thread
        self._now_ms = now_ms
        self._note = note
        self._start_ms = start_ms - AGAIN_MS
        self._audited_ms: dict[str, int] = {}
        """Every minute of the symbol before this one has been audited, or is owed to repair."""
        self._after_own: set[str] = set()
        """Symbols whose last audited minute is as klagg sealed it, not replaced."""
        self._deferred_s: dict[str, float] = {}
        self._fewer = FewerTrades()
        self._unserved: dict[str, int] = {}
        """By symbol, the first minute of a page that came back with nothing to compare."""
        self._missed: dict[str, Missed] = {}
        """By symbol, minutes of our own that were passed by without an official row."""
        self._scores: deque[Score] = deque(maxlen=DAY_MS // HOUR_MS)

    async def run(self) -> None:
        """Audit until cancelled."""
        while True:
            if (missed := self._due_missed()) is not None:
                await self._audit(missed, again=True)
            elif (symbol := self._longest_waiting()) is not None:
                await self._audit(symbol)
            else:
                await trio.sleep(IDLE_S)

    def _due_missed(self) -> str | None:
        """Return a symbol with minutes to be asked for again now, if there is one."""
        now_s = trio.current_time()
        due = (symbol for symbol, missed in self._missed.items() if missed.due_s <= now_s)
        return next(due, None)

    def _longest_waiting(self) -> str | None:
        """Return the symbol with the oldest minutes not audited, if they are old enough."""
        due_ms = self._now_ms() - SETTLE_MS - self._every_ms
        now_s = trio.current_time()
        best: tuple[int, str] | None = None
        if len(self._audited_ms) > KEPT_SYMBOLS:
            self._forget_ended()
        for shard in self._shards:
            for symbol in shard.states:
                audited_ms = self._audited_ms.get(symbol, self._start_ms)
                if self._deferred_s.get(symbol, 0.0) > now_s:
                    continue
                if audited_ms <= due_ms and (best is None or audited_ms < best[0]):
                    best = audited_ms, symbol
        return best[1] if best else None

    def _forget_ended(self) -> None:
        """Keep nothing of symbols that no shard keeps any more."""
        living = {symbol for shard in self._shards for symbol in shard.states}
        self._after_own &= living
        for kept in (self._audited_ms, self._deferred_s, self._unserved, self._missed):
            for symbol in kept.keys() - living:
                del kept[symbol]

    async def _audit(self, symbol: str, *, again: bool = False) -> None:
        """Audit one page of a symbol's minutes: the next one, or one with rows that were missed."""
        first_ms = self._audited_ms.get(symbol, self._start_ms)
        if again:
            first_ms = self._missed[symbol].first_ms
            self._put_off(symbol)
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
        if again:
            last_ms = min(last_ms, self._audited_ms.get(symbol, self._start_ms) - MINUTE_MS)
            stored = {open_ms: bar for open_ms, bar in stored.items() if open_ms <= last_ms}
        await self._compare(symbol, klines.bars, stored, last_ms, again=again)

    def _put_off(self, symbol: str) -> None:
        """Let the minutes that were missed wait, each time for longer."""
        missed = self._missed[symbol]
        pause_s = min(AGAIN_FIRST_S * 2.0 ** min(missed.times, 10), AGAIN_MAX_S)
        due_s = trio.current_time() + pause_s
        self._missed[symbol] = Missed(missed.first_ms, due_s, missed.times + 1)

    def _note_missed(self, symbol: str, theirs: Sequence[Bar], stored: dict[int, Bar]) -> None:
        """Remember the first minute of our own, before the last row, that has no row."""
        answered = {bar.open_ms for bar in theirs}
        last_ms = max(answered, default=0)
        own = (Source.TRADES, Source.FLAT)
        without = (
            open_ms
            for open_ms, bar in stored.items()
            if bar.source in own and open_ms < last_ms and open_ms not in answered
        )
        first_ms = min(without, default=None)
        missed = self._missed.get(symbol)
        if first_ms is not None and (missed is None or first_ms < missed.first_ms):
            self._missed[symbol] = Missed(first_ms, trio.current_time() + AGAIN_FIRST_S, 0)

    async def _compare(
        self,
        symbol: str,
        official: Sequence[Bar],
        stored: dict[int, Bar],
        last_ms: int,
        *,
        again: bool = False,
    ) -> None:
        """Judge what is there on both sides; count it; replace what differs."""
        theirs = [bar for bar in official if bar.open_ms in stored]
        ours = [stored[bar.open_ms] for bar in theirs]
        after_replaced = symbol not in self._after_own
        as_they_would_be = [as_stored(bar) for bar in theirs]
        verdicts = judge(ours, as_they_would_be, after_replaced=after_replaced)
        # A chain that is still open at the end may yet turn out to be a straddle.
        open_chain = 0
        while open_chain < min(CHAIN_MAX - 1, len(verdicts)):
            if verdicts[-1 - open_chain] != Verdict.UNEXPLAINED:
                break
            open_chain += 1
        decided = len(verdicts) - open_chain
        wrong: list[Bar] = []
        replaced: list[Bar] = []
        for index in range(decided):
            held, bar = ours[index], as_they_would_be[index]
            if not self._differs(held, bar, verdicts[index]):
                self._count(symbol, held, bar, verdicts[index])
            elif verdicts[index] != Verdict.STRADDLE and self._fewer.is_doubtful(symbol, bar, held):
                decided = index
                self._deferred_s[symbol] = trio.current_time() + RETRY_S
                break
            else:
                self._count(symbol, held, bar, verdicts[index])
                wrong.append(theirs[index])
                replaced.append(held)
        if wrong:
            number = cmd.shard_of(symbol, len(self._shards))
            await self._inboxes[number].send(
                cmd.ReplaceMinutes(symbol, tuple(wrong), tuple(replaced))
            )
        if again:
            self._settle_missed(symbol, theirs, stored)
            return
        self._note_missed(symbol, theirs[:decided], stored)
        if decided:
            self._audited_ms[symbol] = theirs[decided - 1].end_ms
            own = verdicts[decided - 1] == Verdict.EQUAL
            if own and ours[decided - 1].source in (Source.TRADES, Source.FLAT):
                self._after_own.add(symbol)
            else:
                self._after_own.discard(symbol)
        else:
            self._deferred_s[symbol] = trio.current_time() + RETRY_S
            if not theirs:
                self._pass_over(symbol, bool(official) and not stored, last_ms)

    def _settle_missed(self, symbol: str, theirs: Sequence[Bar], stored: dict[int, Bar]) -> None:
        """Go on with what is still missed of a page, or with nothing where all is answered."""
        answered = {bar.open_ms for bar in theirs}
        own = (Source.TRADES, Source.FLAT)
        left = [
            open_ms
            for open_ms, bar in stored.items()
            if bar.source in own and open_ms not in answered
        ]
        missed = self._missed[symbol]
        if left and missed.times < AGAIN_TIMES:
            self._missed[symbol] = Missed(min(left), missed.due_s, missed.times)
        else:
            del self._missed[symbol]

    def _differs(self, held: Bar, bar: Bar, verdict: Verdict) -> bool:
        """Whether a stored minute is to be replaced by the official one."""
        match held.source:
            case Source.SUSPECT:
                return False  # repair's
            case Source.OFFICIAL:
                return held.values() != bar.values()
            case Source.ABSENT:
                return True
            case _:
                return verdict != Verdict.EQUAL

    def _count(self, symbol: str, held: Bar, bar: Bar, verdict: Verdict) -> None:
        """Keep the score of our own minutes; tell of what is more than a straddle."""
        score = self._score()
        if held.source in (Source.SUSPECT, Source.ABSENT):
            return
        if held.source == Source.OFFICIAL:
            if held.values() != bar.values():
                self._note(Event(bar.open_ms, "corrected", symbol, _difference(held, bar)))
        elif verdict == Verdict.EQUAL:
            score.equal += 1
        elif verdict == Verdict.STRADDLE:
            score.straddle += 1
        else:
            score.unexplained += 1
            self._note(Event(bar.open_ms, "unexplained", symbol, _difference(held, bar)))

    def _pass_over(self, symbol: str, nothing_stored: bool, last_ms: int) -> None:
        """Go on behind minutes that cannot be compared, where that will not change."""
        first_ms = self._audited_ms.get(symbol, self._start_ms)
        if not nothing_stored:
            if last_ms > self._now_ms() - UNSERVED_MS:
                return
            if self._unserved.get(symbol) != first_ms:
                self._unserved[symbol] = first_ms
                return
        self._unserved.pop(symbol, None)
        self._audited_ms[symbol] = last_ms + MINUTE_MS

    def _score(self) -> Score:
        """Return the running hour's score."""
        hour_ms = self._now_ms() // HOUR_MS * HOUR_MS
        if not self._scores or self._scores[-1].hour_ms != hour_ms:
            self._scores.append(Score(hour_ms))
        return self._scores[-1]

    def audited_until_ms(self) -> int:
        """Return the minute before which every symbol has been audited.

        A minute that was passed by counts as not audited for the first few times.
        """
        symbols = [symbol for shard in self._shards for symbol in shard.states]
        until_ms = min((self._audited_ms.get(s, self._start_ms) for s in symbols), default=0)
        missed = (each.first_ms for each in self._missed.values() if each.times < HOPED_TIMES)
        return min([until_ms, *missed])

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


def _difference(ours: Bar, official: Bar) -> str:
    """Say in words where two bars differ."""
    names = ("open", "high", "low", "close", "volume", "quote", "count", "taker", "taker quote")
    parts = [
        f"{name} {own} official {true}"
        for name, own, true in zip(names, ours.values(), official.values(), strict=True)
        if own != true
    ]
    return f"{utc_text(official.open_ms)} " + ", ".join(parts)
