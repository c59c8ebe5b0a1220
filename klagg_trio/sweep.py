"""The sweep: suspect bars on disk that no shard remembers.

Theory of operation
-------------------
Some suspect bars are in no shard's memory: longer bars whose minutes are right but do not tell them
exactly, and bars of symbols that have ended. They are looked for in the database now and then. Each
of them is replaced by the exchange's own bar of that interval, which goes straight to the writer.

What is refused or not there is asked for again with growing pauses. Minutes of an ended contract
that the exchange does not serve, or whose name it does not know any more, become absent after a
second asking, as with repair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import trio

from klagg_trio import cmd
from klagg_trio.core.asking import Absences, Patience, Span
from klagg_trio.core.errors import RemoteError, StoreError
from klagg_trio.core.facts import AbsenceNote, BarFact, Event, Facts, MinuteSpan
from klagg_trio.core.intervals import MINUTE, MINUTE_MS, count_text, utc_text
from klagg_trio.core.shard import Shard
from klagg_trio.exchange.lacking import claimed_minutes, hole_around, is_unknown, is_well
from klagg_trio.exchange.rest import Priority, Rest
from klagg_trio.exchange.validate import Klines
from klagg_trio.store.reading import open_reader, select_suspects
from klagg_trio.store.thread import RunInThread

SWEEP_S: Final = 60.0
"""Between two looks for suspect bars on disk."""

SWEEP_BARS_MAX: Final = 5_000
"""Bars looked at by one sweep; the next one goes on from there."""

CHEAP_PAGE: Final = 99
"""Rows that cost weight 1."""

SETTLE_MS: Final = 15_000
"""How long after its end a bar is asked for."""

PAUSES_S: Final = (600.0, 1_200.0, 3_600.0)
"""Before a series is asked for again that the exchange could not serve."""


class Sweep:
    """Replaces suspect bars that only the disk remembers."""

    def __init__(
        self,
        shards: Sequence[Shard],
        to_writer: trio.MemorySendChannel[cmd.Record],
        *,
        rest: Rest,
        database_path: Path,
        run_in_thread: RunInThread,
        now_ms: Callable[[], int],
        note: Callable[[Event], None],
        absences: Iterable[AbsenceNote] = (),
    ) -> None:
        """Look in the database at `database_path`; send what replaces bars to `to_writer`."""
        self._shards = shards
        self._to_writer = to_writer
        self._rest = rest
        self._database_path = database_path
        self._run_in_thread = run_in_thread
        self._now_ms = now_ms
        self._note = note
        self._patience = Patience(PAUSES_S)
        self._absences = Absences(absences)
        self.replaced = 0

    async def run(self) -> None:
        """Sweep now and then, until cancelled."""
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
            wanted = [
                span
                for span in bars
                if span[1] <= settled_ms and not self._is_remembered(symbol, interval, span)
            ]
            waiting = self._patience.waiting(_key(symbol, interval), trio.current_time())
            wanted = [(a, b) for a, b in wanted if not any(x <= a <= y for x, y in waiting)]
            if wanted:
                try:
                    await self._replace_stored(symbol, interval, wanted)
                except RemoteError as error:
                    self._put_off(symbol, interval, wanted)
                    self._note(Event(self._now_ms(), "repair failed", symbol, str(error)))

    def _is_remembered(self, symbol: str, interval: str, span: tuple[int, int]) -> bool:
        """Whether a shard owes the minutes of a bar: they come first, and may make it right."""
        return self._shard_of(symbol).owes(symbol, *span)

    def _shard_of(self, symbol: str) -> Shard:
        return self._shards[cmd.shard_of(symbol, len(self._shards))]

    def _put_off(self, symbol: str, interval: str, bars: Sequence[tuple[int, int]]) -> bool:
        """Ask for bars again later. Returns whether it is the first time."""
        key, now_s = _key(symbol, interval), trio.current_time()
        return self._patience.fail(key, bars[0][0], bars[-1][0], now_s)

    async def _replace_stored(
        self, symbol: str, interval: str, wanted: Sequence[tuple[int, int]]
    ) -> None:
        """Ask for the official bars from the oldest wanted one on, and store those wanted."""
        ended = interval == MINUTE.name and symbol not in self._shard_of(symbol).states
        try:
            klines = await self._rest.klines(
                symbol,
                interval,
                start_ms=wanted[0][0],
                limit=CHEAP_PAGE,
                priority=Priority.REPAIR,
            )
        except RemoteError as error:
            if not ended or not is_unknown(error):
                raise
            await self._note_absences(symbol, _runs(wanted))
            return
        opens = {open_ms for open_ms, _ in wanted}
        now_ms = self._now_ms()
        found = [bar for bar in klines.bars if bar.open_ms in opens and bar.end_ms <= now_ms]
        if found:
            self.replaced += len(found)
            name = "minute" if interval == MINUTE.name else f"{interval} bar"
            text = f"{count_text(len(found), name)} from {utc_text(found[0].open_ms)}"
            await self._send(
                symbol,
                Facts(
                    restated=[BarFact(symbol, interval, bar) for bar in found],
                    events=[Event(now_ms, "repaired", symbol, text)],
                ),
            )
        got = {bar.open_ms for bar in found}
        # What lies beyond the page is asked for by the next sweep.
        reached_ms = klines.bars[-1].open_ms if len(klines.bars) >= CHEAP_PAGE else now_ms
        lacking = [span for span in wanted if span[0] not in got and span[0] <= reached_ms]
        if lacking:
            if self._put_off(symbol, interval, lacking):
                self._tell_refused(symbol, interval, klines, lacking)
            if ended:
                await self._look_into(symbol, klines, lacking)

    def _tell_refused(
        self, symbol: str, interval: str, klines: Klines, lacking: Sequence[tuple[int, int]]
    ) -> None:
        for row in klines.refused_within(lacking[0][0], lacking[-1][0])[:1]:
            text = f"the {interval} kline of {utc_text(row.open_ms or 0)}: {row.reason}"
            self._note(Event(self._now_ms(), "row refused", symbol, text))

    async def _send(self, symbol: str, facts: Facts) -> None:
        number = cmd.shard_of(symbol, len(self._shards))
        await self._to_writer.send(cmd.Amended(number, facts))

    async def _look_into(
        self, symbol: str, klines: Klines, lacking: Sequence[tuple[int, int]]
    ) -> None:
        """Note the minutes of an ended contract that the exchange has no rows for."""
        served = claimed_minutes(klines)
        if served is None:
            return
        runs = [run for run in _runs(lacking) if not any(run[0] <= x <= run[1] for x in served)]
        holes = []
        for run in runs[:1]:
            hole = await hole_around(self._rest, symbol, run, self._now_ms(), Priority.REPAIR)
            if hole is not None:
                holes.append((max(run[0], hole[0]), min(run[1], hole[1])))
        await self._note_absences(symbol, holes)

    async def _note_absences(self, symbol: str, holes: Iterable[Span]) -> None:
        """Store what is absent: at a second asking, with the exchange well."""
        now_ms = self._now_ms()
        holes = list(holes)
        others = [name for shard in self._shards for name in shard.states]
        if not holes or not await is_well(self._rest, others, now_ms, Priority.REPAIR):
            return
        for hole in holes:
            notes = self._absences.skip(symbol, *hole, now_ms)
            absent = [MinuteSpan(symbol, x.first_ms, x.last_ms) for x in notes if x.askings > 1]
            if notes:
                events = [
                    Event(now_ms, "absent", symbol, f"no klines from {utc_text(span.first_ms)}")
                    for span in absent
                ]
                await self._send(symbol, Facts(absent=absent, absences=notes, events=events))


def _key(symbol: str, interval: str) -> str:
    return f"{symbol} {interval}"


def _runs(bars: Iterable[tuple[int, int]]) -> list[Span]:
    """Return minutes, given by open time and end, as few spans of open times."""
    runs: list[Span] = []
    for open_ms, end_ms in bars:
        if runs and runs[-1][1] + MINUTE_MS == open_ms:
            runs[-1] = runs[-1][0], open_ms
        else:
            runs.append((open_ms, end_ms - MINUTE_MS))
    return runs


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
