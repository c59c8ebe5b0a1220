"""The sweep: suspect minutes of ended contracts, served, unknown, or not there."""

import pytest
import trio

from klagg_trio.core.bar import Source, newborn
from klagg_trio.core.errors import RefusedError
from klagg_trio.core.facts import BarFact, Facts, Listing
from klagg_trio.core.intervals import MINUTE, MINUTE_MS
from klagg_trio.core.shard import Shard
from klagg_trio.store.database import Database
from klagg_trio.store.reading import reading, select_absences
from klagg_trio.sweep import Sweep

from .test_repair import NOON_MS, Exchange, at, official, seed

pytestmark = pytest.mark.real


class Ended(Exchange):
    """Does not know the symbol OLD any more."""

    async def klines(self, symbol, interval, **query):
        """Refuse the name, or answer."""
        if symbol == "OLD":
            await trio.lowlevel.checkpoint()
            raise RefusedError("Invalid symbol.", -1121)
        return await super().klines(symbol, interval, **query)


async def swept(tmp_path, exchange, seconds):
    """Sweep for so long over ten suspect minutes of OLD; return sources, and the events."""
    database = Database.open(tmp_path / "klagg.db")
    bars = [official(minute) for minute in range(3)]
    for minute in range(3, 13):
        suspect = newborn(at(minute), at(minute + 1), bars[0].close)
        suspect.source = Source.SUSPECT
        bars.append(suspect)
    facts = Facts(
        listings=[Listing("OLD", NOON_MS - MINUTE_MS, at(13), 0)],
        sealed=[BarFact("OLD", "1m", bar) for bar in bars],
        ended=["OLD"],
    )
    database.commit(at(13), [facts])
    shard = Shard([MINUTE], at(100))
    shard.load(seed("B", ()))
    send, receive = trio.open_memory_channel(1_000)
    events = []

    async def inline(function, *args):
        await trio.lowlevel.checkpoint()
        return function(*args)

    sweep = Sweep(
        [shard],
        send,
        rest=exchange,
        database_path=database.path,
        run_in_thread=inline,
        now_ms=exchange.now_ms,
        note=events.append,
    )
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sweep.run)
            async for record in receive:
                database.commit(None, [record.facts])
    database.close()
    with reading(database.path) as connection:
        rows = connection.execute(
            "SELECT source FROM klines WHERE symbol = 'OLD' ORDER BY open_time"
        )
        return [row[0] for row in rows], select_absences(connection)


@pytest.mark.parametrize("kind", ["unknown", "not there"])
async def test_minutes_that_nobody_serves_any_more_become_absent(autojump_clock, tmp_path, kind):
    """A contract that ended with minutes owed: absent at the second asking, not at the first."""
    made = Ended if kind == "unknown" else Exchange
    exchange = made(at(100) + 20_000)
    exchange.lacks |= {("OLD", minute) for minute in range(3, 13)}
    sources, notes = await swept(tmp_path, exchange, 100)
    assert sources == ["official"] * 3 + ["suspect"] * 10
    assert [note.askings for note in notes] == [1]
    (tmp_path / "again").mkdir()
    sources, notes = await swept(tmp_path / "again", made(at(100), exchange.lacks), 3 * 3_600)
    assert sources == ["official"] * 3 + ["absent"] * 10
    assert notes[0].askings >= 2


async def test_minutes_of_an_ended_contract_are_repaired(autojump_clock, tmp_path):
    """What is served replaces its placeholder."""
    sources, _ = await swept(tmp_path, Exchange(at(100) + 20_000), 100)
    assert sources == ["official"] * 13
