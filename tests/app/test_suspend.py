"""A machine that sleeps: Trio's clock stands still, the exchange's and the local clock go on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from klagg_trio.demo.stage import START_MS

from .stage import MARKET, MINUTE_MS, stage, until

pytestmark = pytest.mark.real


def announced(app):
    """Return what the writer is told from now on: minutes by symbol and time, as first sealed."""
    first = {}
    commit = app.writer._database.commit

    def keep(minute_ms, facts, *args):
        for fact in facts:
            for sealed in fact.sealed_bars():
                if sealed.interval == "1m":
                    first.setdefault((sealed.symbol, sealed.bar.open_ms), sealed.bar)
        return commit(minute_ms, facts, *args)

    app.writer._database.commit = keep
    return first


@pytest.mark.parametrize(
    ("minutes", "second"), [(1, 31), (12, 3), (12, 59.6), (60, 3), (60, 59.6), (300, 31)]
)
async def test_real_suspend(autojump_clock, tmp_path, minutes, second):
    """Missed minutes are on disk within two seconds of waking, none called what it is not.

    Its connections are alive all the same, and bring all at once what was traded meanwhile.
    """
    async with stage(tmp_path) as (it, nursery):
        app = await it.start(nursery)
        first = announced(app)
        await it.minutes(3)
        await trio.sleep(second)
        before_ms = app.minute_clock.minute_ms
        slept_ms = minutes * MINUTE_MS
        it.sleep(slept_ms)
        woke_s = trio.current_time()
        await until(lambda: it.committed_ms >= before_ms + slept_ms)
        assert trio.current_time() - woke_s <= 2.5  # `until` looks twice a second
        await it.minutes(3)
        await it.repaired()
        end_ms = app.minute_clock.minute_ms - 2 * MINUTE_MS
        assert it.holes() == []
        assert it.differing(end_ms) == []
        assert it.events("resumed")
        wrong = []
        for symbol in {symbol for symbol, _ in first}:
            official = {
                kline.open_time: kline.floats()
                for kline in it.exchange.official_klines(symbol, "1m", START_MS, end_ms)
            }
            for (name, open_ms), bar in first.items():
                if name == symbol and open_ms in official and bar.source.label != "suspect":
                    values = tuple(map(float, bar.values()))
                    if values != official[open_ms]:
                        wrong.append((symbol, open_ms, bar.source.label))
        assert wrong == []


async def test_stop_between_two_slices_loses_nothing(autojump_clock, tmp_path):
    """Twenty hours away, stopped in the midst of catching up, started again: all is there."""
    quiet = replace(MARKET, symbols=3, trades_per_minute=3)
    async with stage(tmp_path, quiet, intervals=("1m", "5m", "1h", "1d")) as (it, nursery):
        app = await it.start(nursery)
        await it.minutes(2)
        await it.stop()
        before_ms = app.minute_clock.minute_ms
        it.sleep(20 * 60 * MINUTE_MS)
        app = await it.start(nursery)
        await until_soon(lambda: it.committed_ms > before_ms + 120 * MINUTE_MS)
        await it.stop()
        stopped_ms = int(it.rows("SELECT value FROM meta WHERE key = 'last_tick'")[0][0])
        assert before_ms + 240 * MINUTE_MS <= stopped_ms < before_ms + 1_000 * MINUTE_MS
        assert it.holes() == []
        app = await it.start(nursery)
        await until(lambda: it.committed_ms >= it.now_ms - 2 * MINUTE_MS)
        await it.repaired(3_600)
        assert [row["text"] for row in it.events("caught up")]
        # Longer bars whose minutes were not known apart are the sweep's.
        await until(lambda: not it.rows("SELECT 1 FROM klines WHERE source = 'suspect' LIMIT 1"))
        assert it.holes() == []
        assert it.differing(app.minute_clock.minute_ms - 2 * MINUTE_MS) == []


async def until_soon(reached):
    """Look at every turn of the loop, so that something is caught while it is under way."""
    while not reached():  # noqa: ASYNC110
        await trio.sleep(0.005)
