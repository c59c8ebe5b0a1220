"""Repair: suspect minutes are replaced by the exchange's own.

Theory of operation
-------------------
The shards remember which sealed minutes of each symbol are owed, as few merged spans. Repair reads
those sets; nothing is queued, so an outage of days costs no memory. It takes the most urgent piece
(newest first: those are what people look at), asks for the official 1m bars at the lowest weight a
bar, and sends them to the shard as ReplaceMinutes. The shard restates the minute and every longer
bar that it holds; the store restates the longer bars that have left the memory. A minute is asked
for only `SETTLE_MS` after its end, since the exchange's REST side lags behind its trades.

What comes is used row by row. A refused row is told of once and its minute stays owed; it is asked
for again with growing pauses (`core/asking`), and so is a minute that is not there. A row that
counts less than was seen here may be unfinished: it is believed when it is served again.

A stretch that the exchange skips while it is well, twice, some minutes apart, is its own hole: the
shard is told that those minutes are absent. They are asked for again for a day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from klagg_trio import cmd
from klagg_trio.core.asking import (
    KEPT_SYMBOLS,
    Absences,
    FewerTrades,
    Patience,
    Span,
    skipped,
    without,
)
from klagg_trio.core.bar import Bar, Source, newborn
from klagg_trio.core.errors import RemoteError
from klagg_trio.core.facts import AbsenceNote, Event, Facts
from klagg_trio.core.intervals import MINUTE, MINUTE_MS, count_text, utc_text
from klagg_trio.core.shard import Shard
from klagg_trio.exchange.lacking import claimed_minutes, hole_around, is_well
from klagg_trio.exchange.rest import Priority, Rest
from klagg_trio.exchange.validate import Klines, RefusedRow

SETTLE_MS: Final = 15_000
"""How long after its end a minute is asked for. Some users saw REST lag by two to ten seconds; what
is served before may be unfinished, and longer bars that end soon would be made of it."""

CHEAP_PAGE: Final = 99
"""Rows that cost weight 1."""

BEST_PAGE: Final = 499
"""Rows that cost weight 2: the most bars for the weight."""

FETCHERS: Final = 4
"""Requests in flight: enough to use the weight at 100 ms a request, few enough to be polite."""

IDLE_S: Final = 1.0

RETRY_S: Final = 30.0
"""Pause before a symbol is asked for again that the exchange refused."""


@dataclass(frozen=True, slots=True)
class RepairVitals:
    """What repair has done since the start."""

    owed_minutes: int
    repaired_minutes: int
    requests: int
    failures: int
    refused_rows: int = 0
    """Official rows that contradicted themselves; their minutes are owed still."""
    absent_minutes: int = 0
    """Minutes that the exchange was found to lack."""


class Repair:
    """Replaces suspect minutes by official ones."""

    def __init__(
        self,
        shards: Sequence[Shard],
        inboxes: Sequence[trio.MemorySendChannel[cmd.Message]],
        to_writer: trio.MemorySendChannel[cmd.Record],
        *,
        rest: Rest,
        now_ms: Callable[[], int],
        note: Callable[[Event], None],
        absences: Iterable[AbsenceNote] = (),
    ) -> None:
        """Read what `shards` owe, send what replaces it to `inboxes`.

        `absences` are what an earlier run knew; what is learnt of them goes to `to_writer`.
        """
        self._shards = shards
        self._inboxes = inboxes
        self._to_writer = to_writer
        self._rest = rest
        self._now_ms = now_ms
        self._note = note
        self._looking = trio.Lock()
        self._busy: set[str] = set()
        """Symbols with a request in flight."""
        self._deferred_s: dict[str, float] = {}
        """Symbols not to be asked for before this Trio time."""
        self._patience = Patience()
        self._fewer = FewerTrades()
        self._absences = Absences(absences)
        self.repaired_minutes = 0
        self.requests = 0
        self.failures = 0
        self.refused_rows = 0
        self.absent_minutes = 0

    async def run(self, nursery: trio.Nursery) -> None:
        """Start the fetchers in `nursery`, the one that all sources share."""
        for _ in range(FETCHERS):
            nursery.start_soon(self._fetch_forever)

    async def _fetch_forever(self) -> None:
        while True:
            async with self._looking:  # while nothing is owed, one fetcher looks for all
                piece, work = self.most_urgent(), self._repair
                if piece is None:
                    piece, work = self._due_absence(), self._ask_for_absent
                if piece is None:
                    await trio.sleep(IDLE_S)
                    continue
                symbol, first_ms, last_ms = piece
                self._busy.add(symbol)
            try:
                await work(symbol, first_ms, last_ms)
            except RemoteError as error:
                self._fail(symbol, error)
            finally:
                self._busy.discard(symbol)

    def most_urgent(self) -> tuple[str, int, int] | None:
        """Return the symbol and the minutes to ask for next, or None: newest minute first."""
        now_ms, now_s = self._now_ms(), trio.current_time()
        settled_ms = MINUTE.floor(now_ms - SETTLE_MS) - MINUTE_MS
        best: tuple[int, str, list[Span]] | None = None
        for shard in self._shards:
            for symbol, owed in shard.owed().items():
                if not self._may_ask(symbol, now_s) or (best and owed[-1][1] <= best[0]):
                    continue
                spans = without(
                    ((first, min(last, settled_ms)) for first, last in owed if first <= settled_ms),
                    [
                        *self._patience.waiting(symbol, now_s),
                        *self._absences.waiting(symbol, now_ms),
                    ],
                )
                if spans and (best is None or spans[-1][1] > best[0]):
                    best = spans[-1][1], symbol, spans
        if best is None:
            return None
        last_ms, symbol, spans = best
        oldest_ms = spans[0][0]
        rows = CHEAP_PAGE if last_ms - oldest_ms < CHEAP_PAGE * MINUTE_MS else BEST_PAGE
        return symbol, max(oldest_ms, last_ms - (rows - 1) * MINUTE_MS), last_ms

    def _may_ask(self, symbol: str, now_s: float) -> bool:
        return symbol not in self._busy and self._deferred_s.get(symbol, 0.0) <= now_s

    def _defer(self, symbol: str, pause_s: float) -> None:
        now_s = trio.current_time()
        if len(self._deferred_s) >= KEPT_SYMBOLS:
            self._deferred_s = {s: until for s, until in self._deferred_s.items() if until > now_s}
        self._deferred_s[symbol] = now_s + pause_s

    def _fail(self, symbol: str, error: RemoteError) -> None:
        self.failures += 1
        self._defer(symbol, RETRY_S)
        self._note(Event(self._now_ms(), "repair failed", symbol, str(error)))

    async def _ask(self, symbol: str, first_ms: int, last_ms: int | None, limit: int) -> Klines:
        self.requests += 1
        return await self._rest.klines(
            symbol,
            MINUTE.name,
            start_ms=first_ms,
            end_ms=last_ms,
            limit=limit,
            priority=Priority.REPAIR,
        )

    async def _repair(self, symbol: str, first_ms: int, last_ms: int) -> None:
        """Fetch one page of official minutes and hand the owed ones among them to the shard."""
        limit = (last_ms - first_ms) // MINUTE_MS + 1
        klines = await self._ask(symbol, first_ms, last_ms, limit)
        now_ms, now_s = self._now_ms(), trio.current_time()
        shard = self._shard_of(symbol)
        wanted = []
        for bar in klines.bars:
            if bar.end_ms > now_ms or not shard.owes(symbol, bar.open_ms, bar.end_ms):
                continue
            if self._fewer.is_doubtful(symbol, bar, shard.kept_minute(symbol, bar.open_ms)):
                self._patience.fail(symbol, bar.open_ms, bar.open_ms, now_s)
            else:
                wanted.append(bar)
                self._patience.succeed(symbol, bar.open_ms, bar.open_ms)
        self._refuse(symbol, klines, shard)
        if wanted:
            await self._replace(symbol, wanted)
        served = claimed_minutes(klines)
        lacking = [
            span
            for span in skipped(served or [], first_ms, last_ms)
            if shard.owes(symbol, span[0], span[1] + MINUTE_MS)
        ]
        for span in lacking:
            self._patience.fail(symbol, *span, now_s)
        if served is not None and lacking:
            await self._look_into(symbol, lacking[-1], served)

    async def _replace(
        self, symbol: str, minutes: Sequence[Bar], stored: Sequence[Bar] = ()
    ) -> None:
        """Hand official minutes to the shard."""
        self.repaired_minutes += len(minutes)
        for bar in minutes:
            self._absences.serve(symbol, bar.open_ms, bar.open_ms)
        inbox = self._inboxes[cmd.shard_of(symbol, len(self._shards))]
        await inbox.send(cmd.ReplaceMinutes(symbol, tuple(minutes), tuple(stored)))
        text = f"{count_text(len(minutes), 'minute')} from {utc_text(minutes[0].open_ms)}"
        self._note(Event(self._now_ms(), "repaired", symbol, text))
        # Until the shard has taken the message its set still holds these minutes.
        self._defer(symbol, IDLE_S)

    def _shard_of(self, symbol: str) -> Shard:
        return self._shards[cmd.shard_of(symbol, len(self._shards))]

    # -- Refused rows ------------------------------------------------------------------------------

    def _refuse(self, symbol: str, klines: Klines, shard: Shard) -> None:
        """Leave the minutes of refused rows owed, and tell of them, once."""
        now_ms, now_s = self._now_ms(), trio.current_time()
        news: list[RefusedRow] = []
        for row in klines.refused:
            self.refused_rows += 1
            if row.open_ms is None:
                continue
            open_ms = MINUTE.floor(row.open_ms)
            if shard.owes(symbol, open_ms, open_ms + MINUTE_MS) and self._patience.fail(
                symbol, open_ms, open_ms, now_s
            ):
                news.append(row)
        if news:
            row = news[0]
            text = f"the kline of {utc_text(row.open_ms or 0)}: {row.reason}"
            if len(news) > 1:
                text += f" (and {len(news) - 1} more of this answer)"
            self._note(Event(now_ms, "row refused", symbol, text))

    # -- What the exchange lacks -------------------------------------------------------------------

    async def _look_into(self, symbol: str, span: Span, served: Sequence[int]) -> None:
        """Note a stretch that an answer skips, if it is a hole of the exchange's own."""
        now_ms = self._now_ms()
        if span[0] - MINUTE_MS not in served or span[1] + MINUTE_MS not in served:
            self.requests += 2
            hole = await hole_around(self._rest, symbol, span, now_ms, Priority.REPAIR)
            if hole is None:
                return
            span = self._within_what_is_owed(symbol, hole)
        self.requests += 1
        if not await is_well(self._rest, self._others(symbol), now_ms, Priority.REPAIR):
            return
        await self._note_absence(symbol, span)

    def _within_what_is_owed(self, symbol: str, hole: Span) -> Span:
        owed = self._shard_of(symbol).owed().get(symbol, (hole,))
        return max(hole[0], owed[0][0]), min(hole[1], owed[-1][1])

    def _others(self, symbol: str) -> list[str]:
        """Return symbols that tell whether the exchange is well: others first."""
        names = [name for shard in self._shards for name in shard.states if name != symbol]
        return [*names[:2], symbol]

    async def _note_absence(self, symbol: str, span: Span) -> None:
        """Store that a stretch was skipped; tell the shard where that is sure."""
        if span[0] > span[1]:
            return
        notes = self._absences.skip(symbol, *span, self._now_ms())
        self._patience.succeed(symbol, *span)  # from now on the note says when to ask
        if not notes:
            return
        number = cmd.shard_of(symbol, len(self._shards))
        await self._to_writer.send(cmd.Amended(number, Facts(absences=notes)))
        for each in notes:
            if each.askings < 2:
                continue
            await self._inboxes[number].send(cmd.AbsentMinutes(symbol, each.first_ms, each.last_ms))
            if each.askings == 2:
                minutes = (each.last_ms - each.first_ms) // MINUTE_MS + 1
                self.absent_minutes += minutes
                text = (
                    f"the exchange has no klines for {count_text(minutes, 'minute')} from "
                    f"{utc_text(each.first_ms)}, as it has said twice"
                )
                self._note(Event(self._now_ms(), "absent", symbol, text))

    def _due_absence(self) -> tuple[str, int, int] | None:
        """Return an absent stretch to be asked for again, or None."""
        now_s = trio.current_time()
        for each in self._absences.due(self._now_ms()):
            kept = each.symbol in self._shard_of(each.symbol).states
            if kept and self._may_ask(each.symbol, now_s):
                return each.symbol, each.first_ms, each.last_ms
        return None

    async def _ask_for_absent(self, symbol: str, first_ms: int, last_ms: int) -> None:
        """Ask once more for a stretch that is absent, from its beginning on."""
        # Whatever comes of it, others first.
        self._defer(symbol, RETRY_S)
        klines = await self._ask(symbol, first_ms, None, CHEAP_PAGE)
        served = claimed_minutes(klines)
        if served is None:
            return
        now_ms = self._now_ms()
        found = [bar for bar in klines.bars if bar.open_ms <= last_ms and bar.end_ms <= now_ms]
        if found:
            stored = [newborn(bar.open_ms, bar.end_ms, bar.open) for bar in found]
            for bar in stored:
                bar.source = Source.ABSENT
            await self._replace(symbol, found, stored)
        elif not served or served[0] > last_ms:
            self.requests += 1
            if await is_well(self._rest, self._others(symbol), now_ms, Priority.REPAIR):
                await self._note_absence(symbol, (first_ms, last_ms))

    def statistics(self) -> RepairVitals:
        """Return what repair has done and still owes."""
        owed = sum(
            (last - first) // MINUTE_MS + 1
            for shard in self._shards
            for spans in shard.owed().values()
            for first, last in spans
        )
        return RepairVitals(
            owed,
            self.repaired_minutes,
            self.requests,
            self.failures,
            self.refused_rows,
            self.absent_minutes,
        )
