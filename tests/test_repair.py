"""Repair against an exchange that gives wrong rows, rows too early, or none: unit by unit.

The exchange here is a table of minutes, on a clock that runs with Trio's. The shard is a real one.
"""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal

import trio

from klagg_trio import cmd
from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.errors import RefusedError, RemoteError
from klagg_trio.core.facts import AbsenceNote
from klagg_trio.core.intervals import INTERVALS, MINUTE, MINUTE_MS
from klagg_trio.core.seed import Seed
from klagg_trio.core.shard import Shard
from klagg_trio.exchange.validate import RefusedRow, sift
from klagg_trio.repair import Repair
from klagg_trio.worker import apply

NOON_MS = 1_735_732_800_000
FAR_MS = 4_133_404_800_000


def at(minute):
    """Return the open time of a minute after noon."""
    return NOON_MS + minute * MINUTE_MS


def official(minute, count=5, **changes):
    """Return an official row that holds water."""
    ten, three = Decimal(10), Decimal(3)
    bar = Bar(
        at(minute),
        at(minute + 1),
        *(ten, ten, ten, ten, three, three * ten, count, Decimal(1), ten),
        source=Source.OFFICIAL,
    )
    for name, value in changes.items():
        setattr(bar, name, value)
    return bar


@dataclass
class Exchange:
    """Serves every minute up to now of every symbol, but for what it lacks or spoils."""

    start_ms: int
    lacks: set = field(default_factory=set)
    """Pairs of symbol and minute."""
    spoiled: dict = field(default_factory=dict)
    """Rows by symbol and minute, in place of the right one; a refused row or a function too."""
    sick: bool = False
    """It gives no fresh minutes."""
    first: int = -10_000
    asked: Counter = field(default_factory=Counter)
    """How often each minute was within what was asked for."""
    calls: list = field(default_factory=list)
    error: Exception | None = None

    def now_ms(self):
        """Return the exchange's time."""
        return self.start_ms + int(trio.current_time() * 1_000)

    async def klines(self, symbol, interval, *, start_ms=None, end_ms=None, limit, priority):
        """Answer as the exchange does: the oldest from a start on, else the newest."""
        await trio.sleep(0.05)
        self.calls.append((symbol, start_ms, end_ms, limit))
        if self.error:
            raise self.error
        newest = (self.now_ms() - NOON_MS) // MINUTE_MS - 30 * self.sick
        first = (
            self.first
            if start_ms is None
            else max(self.first, -(-(start_ms - NOON_MS) // MINUTE_MS))
        )
        last = newest if end_ms is None else min(newest, (end_ms - NOON_MS) // MINUTE_MS)
        there = [m for m in range(first, last + 1) if (symbol, m) not in self.lacks]
        chosen = there[:limit] if start_ms is not None else there[-limit:]
        self.asked.update((symbol, m) for m in range(first, min(last, first + limit) + 1))
        rows = []
        for minute in chosen:
            row = self.spoiled.get((symbol, minute)) or official(minute)
            rows.append(row() if callable(row) else row)
        return sift(rows, INTERVALS[interval], first_ms=start_ms, last_ms=end_ms)


@dataclass
class Bench:
    """A shard, an exchange, and a repair between them."""

    exchange: Exchange
    shard: Shard
    repair: Repair
    inbox: trio.MemoryReceiveChannel
    written: trio.MemoryReceiveChannel
    events: list
    absent: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    def pump(self):
        """Let the shard take what it was sent."""
        while self.inbox.statistics().current_buffer_used:
            message = self.inbox.receive_nowait()
            if isinstance(message, cmd.AbsentMinutes):
                self.absent.append((message.symbol, message.first_ms, message.last_ms))
            apply(0, self.shard, message)
        while self.written.statistics().current_buffer_used:
            self.notes += self.written.receive_nowait().facts.absences

    async def run(self, seconds):
        """Let time pass, the shard at work."""
        for _ in range(int(seconds * 2)):
            await trio.sleep(0.5)
            self.pump()

    def owed(self, symbol="A"):
        """Return the minutes still owed."""
        spans = self.shard.owed().get(symbol, ())
        return [
            m
            for a, b in spans
            for m in range((a - NOON_MS) // MINUTE_MS, (b - NOON_MS) // MINUTE_MS + 1)
        ]

    def told(self, kind):
        """Return the events of a kind."""
        return [event for event in self.events if event.kind == kind]


def seed(symbol, owed):
    """Return a symbol at minute 100 that owes the minutes of a span."""
    return Seed(
        symbol=symbol,
        onboard_ms=at(-10_000),
        delivery_ms=FAR_MS,
        last_close=Decimal(10),
        next_id=None,
        last_trade_ms=None,
        three_day_phase_ms=0,
        open_bars=(),
        suspects=tuple((at(first), at(last)) for first, last in owed),
    )


def bench(owed=((0, 99),), exchange=None, absences=(), symbols=("A", "B")):
    """Make a bench at minute 100 and some seconds; only the first symbol owes anything."""
    exchange = exchange or Exchange(at(100) + 20_000)
    shard = Shard([MINUTE], at(100))
    shard.load(seed(symbols[0], owed))
    for symbol in symbols[1:]:
        shard.load(seed(symbol, ()))
    to_shard, inbox = trio.open_memory_channel(1_000)
    to_writer, written = trio.open_memory_channel(1_000)
    events = []
    repair = Repair(
        [shard],
        [to_shard],
        to_writer,
        rest=exchange,
        now_ms=exchange.now_ms,
        note=events.append,
        absences=absences,
    )
    return Bench(exchange, shard, repair, inbox, written, events)


async def run(it, seconds):
    """Run the repair for so many seconds."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.repair.run, nursery)
        await it.run(seconds)
        nursery.cancel_scope.cancel()


async def test_what_is_owed_is_repaired(autojump_clock):
    """An ordinary outage: all of it is official soon, for few requests."""
    it = bench()
    await run(it, 30)
    assert it.owed() == []
    assert len(it.exchange.calls) <= 3
    assert it.repair.statistics().repaired_minutes == 100


async def test_one_row_that_contradicts_itself_costs_its_own_minute(autojump_clock):
    """All others are used; it stays owed, is told of once, and asked for with growing pauses."""
    it = bench()
    it.exchange.spoiled["A", 50] = official(50, low=Decimal(11))
    await run(it, 4 * 3_600)
    assert it.owed() == [50]
    (event,) = it.told("row refused")
    assert event.symbol == "A"
    assert "2025-01-01 12:50" in event.text
    assert "low" in event.text
    asked = it.exchange.asked["A", 50]
    assert 5 <= asked <= 15
    assert it.absent == []
    it.exchange.spoiled.clear()
    await run(it, 3_700)
    assert it.owed() == []


async def test_rows_that_cannot_be_read_leave_no_hole_noted(autojump_clock):
    """A row without a time may be any minute's: nothing is absent for want of it."""
    it = bench()
    it.exchange.spoiled["A", 50] = RefusedRow(None, "nonsense")
    await run(it, 3 * 3_600)
    assert it.owed() == [50]
    assert it.notes == []
    assert it.absent == []


async def test_a_hole_of_the_exchange_becomes_absent_at_the_second_asking(autojump_clock):
    """90 minutes are skipped twice: the shard is told once, as one span; the rest is repaired."""
    it = bench()
    it.exchange.lacks |= {("A", minute) for minute in range(5, 95)}
    await run(it, 60)
    assert it.owed() == list(range(5, 95))
    assert it.absent == []
    assert [(note.askings, note.first_ms, note.last_ms) for note in it.notes] == [
        (1, at(5), at(94))
    ]
    await run(it, 300)
    assert it.absent[0] == ("A", at(5), at(94))
    assert it.notes[-1].askings == 2
    assert len(it.told("absent")) == 1
    assert "90 minutes" in it.told("absent")[0].text


async def test_a_hole_longer_than_a_page_is_one_span(autojump_clock):
    """Three days without klines are found as a whole, for a handful of requests."""
    it = bench(owed=((-4_500, 99),))
    it.exchange.lacks |= {("A", minute) for minute in range(-4_400, 20)}
    await run(it, 600)
    assert it.absent[0] == ("A", at(-4_400), at(19))
    assert it.notes[0][1:3] == (at(-4_400), at(19))
    # Pages for what is there, and for the hole only its two ends, twice.
    assert len(it.exchange.calls) < 30


async def test_nothing_is_absent_while_the_exchange_is_not_well(autojump_clock):
    """An exchange that has no fresh minutes of any symbol says nothing about a hole."""
    it = bench()
    it.exchange.lacks |= {("A", minute) for minute in range(5, 95)}
    it.exchange.sick = True
    await run(it, 1_800)
    assert it.notes == []
    it.exchange.sick = False
    await run(it, 3_600)
    assert it.absent


async def test_one_lapse_makes_nothing_absent(autojump_clock):
    """What one answer skips and the next one has is simply repaired."""
    it = bench()
    it.exchange.lacks |= {("A", minute) for minute in range(5, 95)}
    await run(it, 60)
    assert it.notes
    it.exchange.lacks.clear()
    await run(it, 300)
    assert it.owed() == []
    assert it.absent == []


async def test_the_newest_minutes_are_late_and_not_absent(autojump_clock):
    """What the exchange does not serve yet at its end is asked for again; it is no hole."""
    it = bench(owed=((90, 99),))
    it.exchange.lacks |= {("A", minute) for minute in range(95, 120)}
    await run(it, 200)
    assert it.notes == []
    it.exchange.lacks.clear()
    await run(it, 600)
    assert it.owed() == []


async def test_what_turns_up_after_all_replaces_what_was_absent(autojump_clock):
    """An absence of an earlier run is asked for again; bars that come now go to the shard."""
    note = AbsenceNote("A", at(5), at(94), at(-100), at(-50), 3, final=False)
    it = bench(owed=(), absences=[note])
    await run(it, 30)
    assert it.repair.statistics().repaired_minutes == 90
    assert it.repair._absences.due(at(10_000)) == []


async def test_a_final_absence_is_not_asked_for(autojump_clock):
    """After a day nobody asks again."""
    note = AbsenceNote("A", at(5), at(94), at(-5_000), at(-50), 9, final=True)
    it = bench(owed=(), absences=[note])
    await run(it, 2 * 3_600)
    assert it.exchange.calls == []


async def test_a_row_with_less_than_was_seen_here_is_asked_for_again(autojump_clock):
    """An unfinished row does not replace trades that were seen; the finished one does."""
    it = bench(owed=((99, 99),))
    partial = official(99, count=7, source=Source.SUSPECT)
    it.shard.states["A"].partials[at(99)] = partial
    answers = [official(99, count=2), official(99, count=9)]
    it.exchange.spoiled["A", 99] = lambda: answers.pop(0) if len(answers) > 1 else answers[0]
    await run(it, 10)
    assert it.owed() == [99]
    await run(it, 60)
    assert it.owed() == []
    assert it.exchange.asked["A", 99] == 2


async def test_refusals_and_errors_defer_a_symbol_only(autojump_clock):
    """An error puts its symbol off for a while and ends nothing."""
    it = bench()
    it.exchange.error = RefusedError("no", -1_100)
    await run(it, 100)
    assert 2 <= len(it.exchange.calls) <= 5
    it.exchange.error = RemoteError("down")
    await run(it, 100)
    it.exchange.error = None
    await run(it, 60)
    assert it.owed() == []
