"""The whole program against an exchange whose klines have holes or contradict themselves."""

from dataclasses import replace

import msgspec
import trio

from klagg_trio.core.intervals import INTERVALS
from klagg_trio.exchange.validate import sift
from klagg_trio.store.verify import verify

from .stage import MINUTE_MS, stage


class Lying:
    """The simulator's REST, its 1m rows of some minutes taken out or changed."""

    def __init__(self, rest):
        """Change nothing yet."""
        self._rest = rest
        self.lacks = set()
        """Open times of minutes that are not served, whatever the interval."""
        self.spoiled = set()
        self.unfinished = False
        """Whether rows of minutes that ended less than a minute ago hold half of their trades."""

    def __getattr__(self, name):
        return getattr(self._rest, name)

    def right(self):
        """Serve everything as it is from now on."""
        self.lacks, self.spoiled = set(), set()

    async def klines(self, symbol, interval, **query):
        """Answer, lying where it is told to."""
        klines = await self._rest.klines(symbol, interval, **query)
        if interval != "1m" or symbol != self.symbol:
            return klines
        bars = [self._unfinished(bar) if self.unfinished else bar for bar in klines.bars]
        rows = [
            msgspec.structs.replace(bar, low=bar.high + 1) if bar.open_ms in self.spoiled else bar
            for bar in bars
            if bar.open_ms not in self.lacks
        ]
        return sift(rows, INTERVALS[interval])

    def _unfinished(self, bar):
        if bar.count < 2 or bar.end_ms < self.now_ms() - MINUTE_MS:
            return bar
        sums = ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")
        halves = {name: getattr(bar, name) / 2 for name in sums}
        return msgspec.structs.replace(bar, count=bar.count // 2, **halves)


def lie(it):
    """Put the liar between the program and the exchange, about the first symbol."""
    liar = Lying(it.edge.rest)
    liar.symbol = it.exchange.symbols_now()[0]
    liar.now_ms = lambda: it.now_ms
    it.edge = replace(it.edge, rest=liar)
    it.settings = replace(it.settings, since="8h")  # more than is stored already
    return liar


def sources(it, symbol, opens):
    """Return how minutes are called."""
    found = it.rows(
        "SELECT open_time, source FROM klines WHERE symbol = ? AND interval = '1m'", symbol
    )
    return {row[1] for row in found if row[0] in opens}


async def test_a_hole_in_official_history_is_absent_in_the_end(autojump_clock, tmp_path):
    """The symbol is kept, the rest stored; after two askings the minutes are absent, as one event.

    When the exchange has them after all, they become official.
    """
    async with stage(tmp_path) as (it, nursery):
        liar = lie(it)
        first_ms = (it.now_ms // MINUTE_MS - 300) * MINUTE_MS
        liar.lacks = {first_ms + at * MINUTE_MS for at in range(90)}
        report = await it.backfill()
        assert report.failed == ()
        assert [symbol for symbol, _ in report.owing] == [liar.symbol]
        await it.start(nursery)
        await it.minutes(8)
        assert sources(it, liar.symbol, liar.lacks) == {"absent"}
        assert len(it.events("absent")) == 1
        assert it.holes() == []
        assert not it.app.owes_before(first_ms + 200 * MINUTE_MS)
        opens = set(liar.lacks)
        liar.right()
        await it.minutes(20)
        assert sources(it, liar.symbol, opens) == {"official"}
        await it.stop()
        assert verify(it.path) == []


async def test_a_row_that_contradicts_itself_for_good_stays_owed(autojump_clock, tmp_path):
    """It is told of once, its minute stays suspect; all others are right, and so is it in the end.

    The longer bars over it are the exchange's own.
    """
    async with stage(tmp_path) as (it, nursery):
        liar = lie(it)
        wrong_ms = (it.now_ms // MINUTE_MS - 300) * MINUTE_MS
        liar.spoiled = {wrong_ms}
        report = await it.backfill()
        assert report.failed == ()
        await it.start(nursery)
        await it.minutes(15)
        assert sources(it, liar.symbol, {wrong_ms}) == {"suspect"}
        told = [event for event in it.events("row refused") if event[2] == liar.symbol]
        assert len(told or it.events("row refused")) == 1
        assert it.app.owes_before(wrong_ms + MINUTE_MS)
        longer = it.rows(
            "SELECT DISTINCT source FROM klines WHERE symbol = ? AND interval <> '1m'"
            " AND open_time <= ? AND close_time >= ?",
            *(liar.symbol, wrong_ms, wrong_ms),
        )
        assert {row[0] for row in longer} == {"official"}
        liar.right()
        with trio.fail_after(3_600):
            while it.app.owes_before(wrong_ms + MINUTE_MS):  # noqa: ASYNC110
                await trio.sleep(10)
        await it.minutes(1)
        assert sources(it, liar.symbol, {wrong_ms}) == {"official"}
        await it.stop()
        assert it.holes() == []
        assert verify(it.path) == []


async def test_an_official_row_fetched_too_early_is_corrected(autojump_clock, tmp_path):
    """What was stored as official before it was finished is as the exchange has it in the end.

    The longer bars over it too, and the change is told and counted as a revision.
    """
    async with stage(tmp_path) as (it, nursery):
        liar = lie(it)
        liar.unfinished = True
        await it.start(nursery, audit_every_s=120.0)
        for _ in range(3):
            await it.minutes(2)
            it.exchange.faults.inflict("silent", it.feed_peers(), seconds=30)
        await it.minutes(3)
        until_ms = it.app.minute_clock.minute_ms
        await it.minutes(12)
        assert it.events("corrected")
        assert it.differing(until_ms) == []
        assert it.holes() == []
        await it.stop()
        assert verify(it.path) == []
