"""The writer: minutes of all shards in one commit, order kept, retries that lose nothing."""

from decimal import Decimal

import pytest
import trio
import trio.testing

from klagg_trio import cmd
from klagg_trio import writer as module
from klagg_trio.core.bar import Source
from klagg_trio.core.errors import StoreError
from klagg_trio.core.facts import Births, Event, Facts, FlatSpan
from klagg_trio.store.start_snapshot import read_snapshot
from klagg_trio.store.thread import run_inline
from klagg_trio.writer import RETRY_PAUSES_S, Writer

MINUTE_MS = 60_000


class Store:
    """Takes commits, and refuses some."""

    def __init__(self):
        """Refuse nothing yet."""
        self.commits = []
        self.identity = ("0123abcd", 1)
        self.births = []
        self.refusals = 0
        self.folds = 0
        self.meta = {}

    def commit(self, minute_ms, facts, running, births, meta):
        """Note one transaction as the minute and the texts of its events."""
        if self.refusals:
            self.refusals -= 1
            raise StoreError("the disk is full; make room")
        texts = [event.text for fact in facts for event in fact.events]
        self.commits.append((minute_ms, texts, [bar[:2] for bar in running]))
        self.births.extend(births)
        self.meta |= meta
        return len(texts)

    def fold(self):
        """Count it."""
        self.folds += 1

    def checkpoint(self):
        """Do nothing."""


def facts(*texts, ended=()):
    """Return facts that can be told apart."""
    return Facts(events=[Event(0, "note", "", text) for text in texts], ended=list(ended))


def sealed(shard, minute, *texts, running=(), births=(), ended=()):
    """Return what a tick did in one shard."""
    return cmd.Sealed(shard, minute * MINUTE_MS, facts(*texts, ended=ended), running, births)


def amended(shard, *texts):
    """Return what changed in one shard between ticks."""
    return cmd.Amended(shard, facts(*texts))


class Running(tuple):
    """Stands for a running bar."""

    __slots__ = ()
    symbol = property(lambda self: self[0])
    interval = property(lambda self: self[1])


class Line:
    """A writer at the end of a channel."""

    def __init__(self, tmp_path, shards=2):
        """Make it; nothing runs yet."""
        self.store = Store()
        self.heard = []
        self.send, receive = trio.open_memory_channel(100)
        self.path = tmp_path / "initial_state.cbor"
        self.writer = Writer(
            receive,
            self.store,
            shards=shards,
            snapshot_path=self.path,
            intervals=("1m",),
            run_in_thread=run_inline,
            on_commit=self.hear,
        )

    def hear(self, minute_ms, told):
        """Note what is told after a commit, and how many commits there were by then."""
        texts = [event.text for facts in told for event in facts.events]
        self.heard.append((minute_ms, texts, len(self.store.commits)))

    async def store_all(self, *records):
        """Send the records at once, close the channel, and let the writer end."""
        for record in records:
            self.send.send_nowait(record)
        self.send.close()
        await self.writer.run()
        return self.store.commits


async def test_minute_of_all_shards_is_one_commit(tmp_path):
    """A minute is stored when the last shard has sealed it, and all of it at once."""
    line = Line(tmp_path)
    commits = await line.store_all(sealed(0, 1, "a"), sealed(1, 1, "b"))
    assert commits == [(MINUTE_MS, ["a", "b"], [])]


async def test_what_a_commit_made_durable_is_told_after_it(tmp_path, autojump_clock):
    """Each commit is told of once it is stored, with its minute and its facts, and only then."""
    line = Line(tmp_path, shards=1)
    line.store.refusals = 2
    await line.store_all(amended(0, "a"), sealed(0, 1, "b"), amended(0, "c"))
    assert line.heard == [(MINUTE_MS, ["a", "b"], 1), (None, ["c"], 2)]


async def test_nothing_overtakes_a_minute(tmp_path, autojump_clock):
    """What a shard says after its part of a minute waits until the others have sent theirs."""
    line = Line(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.writer.run)
        line.send.send_nowait(amended(0, "before"))
        line.send.send_nowait(sealed(0, 1, "a"))
        line.send.send_nowait(amended(0, "after"))
        line.send.send_nowait(amended(1, "early"))
        await trio.testing.wait_all_tasks_blocked()
        assert line.store.commits == [(None, ["before", "early"], [])]
        await line.send.send(sealed(1, 1, "b"))
        await trio.testing.wait_all_tasks_blocked()
        assert line.store.commits[1:] == [(MINUTE_MS, ["a", "b"], []), (None, ["after"], [])]
        line.send.close()


async def test_minutes_are_committed_one_by_one(tmp_path):
    """Minutes that came together are still a transaction each, in order."""
    line = Line(tmp_path)
    commits = await line.store_all(
        sealed(1, 1, "b1"), sealed(1, 2, "b2"), sealed(0, 1, "a1"), sealed(0, 2, "a2")
    )
    assert [(minute_ms, texts) for minute_ms, texts, _ in commits] == [
        (MINUTE_MS, ["a1", "b1"]),
        (2 * MINUTE_MS, ["a2", "b2"]),
    ]
    assert line.writer.statistics().committed_minute_ms == 2 * MINUTE_MS
    assert line.store.folds == 2


async def test_what_came_back_from_weeks_away_is_several_commits(tmp_path):
    """Stretches told between minutes make transactions of bounded size, the minute after them."""
    span = FlatSpan("AUSDT", "1m", 0, 60_000 * MINUTE_MS, Decimal(1), Source.SUSPECT)
    records = []
    for number in range(5):
        told = amended(number % 2, f"back {number}")
        told.facts.flats.append(span)
        records.append(told)
    line = Line(tmp_path)
    await line.store_all(
        sealed(0, 1, "a"),
        *records,
        cmd.OpenBars(1, [Running(("AUSDT", "1m"))]),
        sealed(1, 1, "b"),
        sealed(0, 2),
        sealed(1, 2),
    )
    assert [(minute_ms, texts) for minute_ms, texts, _ in line.store.commits] == [
        (None, ["back 1", "back 3"]),
        (MINUTE_MS, ["a", "b"]),
        (None, ["back 0", "back 2"]),
        (2 * MINUTE_MS, ["back 4"]),
    ]


async def test_newest_running_bars_are_stored(tmp_path):
    """Of two reports on one running bar the later holds; an ended symbol has none."""
    line = Line(tmp_path, shards=1)
    old, new = ("A", "1m", "old"), ("A", "1m", "new")
    gone = ("B", "1m", "old")

    commits = await line.store_all(
        cmd.OpenBars(0, [Running(old), Running(gone)]),
        sealed(0, 1, "a", running=[Running(new)], ended=["B"]),
    )
    assert commits == [(MINUTE_MS, ["a"], [("A", "1m")])]


async def test_reports_of_before_a_birth_are_dropped_and_later_ones_kept(tmp_path):
    """What was said of the 5m bar before a new one began is not written over the new one."""
    line = Line(tmp_path, shards=1)

    five = Births("5m", 5 * MINUTE_MS, 10 * MINUTE_MS, ["A", "B"])
    commits = await line.store_all(
        cmd.OpenBars(0, [Running(("A", "5m", "old")), Running(("A", "1h", "old"))]),
        sealed(0, 5, "a", births=[five]),
    )
    assert commits == [(5 * MINUTE_MS, ["a"], [("A", "1h")])]
    assert line.store.births == [five]


async def test_running_bars_of_all_shards_are_one_commit(tmp_path, autojump_clock):
    """A report waits for those of the other shards, and holds nothing else back for long."""
    line = Line(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.writer.run)
        line.send.send_nowait(cmd.OpenBars(0, [Running(("A", "1m"))]))
        line.send.send_nowait(amended(1, "news"))
        await trio.testing.wait_all_tasks_blocked()
        assert line.store.commits == [(None, ["news"], [])]
        line.send.send_nowait(amended(0, "behind"))
        line.send.send_nowait(cmd.OpenBars(1, [Running(("B", "1m"))]))
        await trio.testing.wait_all_tasks_blocked()
        assert line.store.commits[1:] == [(None, ["behind"], [("A", "1m"), ("B", "1m")])]
        line.send.send_nowait(cmd.OpenBars(0, [Running(("A", "1m"))]))
        line.send.send_nowait(sealed(0, 1, "a"))
        await trio.testing.wait_all_tasks_blocked()
        line.send.send_nowait(sealed(1, 1, "b"))
        await trio.testing.wait_all_tasks_blocked()
        assert line.store.commits[2:] == [(MINUTE_MS, ["a", "b"], [("A", "1m")])]
        line.send.send_nowait(cmd.OpenBars(1, [Running(("B", "1m"))]))
        line.send.close()
    assert line.store.commits[3:] == [(None, [], [("B", "1m")])]


async def test_refused_commit_is_tried_again(tmp_path, autojump_clock):
    """A full disk delays a commit and what comes after it; nothing is lost or swapped."""
    line = Line(tmp_path, shards=1)
    line.store.refusals = 3
    commits = await line.store_all(sealed(0, 1, "a"), amended(0, "late"), sealed(0, 2, "b"))
    assert [texts for _, texts, _ in commits] == [["a"], ["late", "b"]]
    assert line.writer.retries == 3
    assert line.writer.statistics().trouble == ""
    assert trio.current_time() == pytest.approx(sum(RETRY_PAUSES_S[:3]))


async def test_disk_that_stays_full_ends_the_program(tmp_path, autojump_clock):
    """After two minutes of trying the disk's error comes out."""
    line = Line(tmp_path, shards=1)
    line.store.refusals = 1_000
    with pytest.raises(StoreError, match="make room"):
        await line.store_all(sealed(0, 1, "a"))
    assert trio.current_time() == pytest.approx(sum(RETRY_PAUSES_S))


async def test_trouble_is_told_while_it_lasts(tmp_path, autojump_clock):
    """The vitals say what the disk says."""
    line = Line(tmp_path, shards=1)
    line.store.refusals = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.store_all, sealed(0, 1, "a"))
        await trio.sleep(RETRY_PAUSES_S[0] / 2)
        assert "disk is full" in line.writer.statistics().trouble


async def test_snapshot_needs_every_shard_at_one_cut(tmp_path):
    """A snapshot is written once all shards told their state as of one minute."""
    line = Line(tmp_path)
    await line.store_all(
        sealed(0, 1),
        sealed(1, 1),
        cmd.Seeds(0, MINUTE_MS, []),
        sealed(0, 2),
        sealed(1, 2),
        cmd.Seeds(1, 2 * MINUTE_MS, []),
    )
    assert not line.path.exists()
    line = Line(tmp_path)
    await line.store_all(
        sealed(0, 1), sealed(1, 1), cmd.Seeds(0, MINUTE_MS, []), cmd.Seeds(1, MINUTE_MS, [])
    )
    assert read_snapshot(line.path).cut_ms == MINUTE_MS
    assert line.writer.statistics().snapshot_age_s >= 0


async def test_newest_figures_are_stored(tmp_path):
    """Figures reported twice are stored once, the newest ones."""
    line = Line(tmp_path, shards=1)
    await line.store_all(cmd.Figures(0, {"trades": "1"}), cmd.Figures(0, {"trades": "2"}))
    assert line.store.meta == {"trades": "2"}
    assert len(line.store.commits) == 1


async def test_events_are_told_once_they_are_durable(tmp_path, autojump_clock):
    """What the dashboard shows as happened is on disk."""
    line = Line(tmp_path, shards=1)
    line.store.refusals = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.store_all, amended(0, "seen"))
        await trio.sleep(RETRY_PAUSES_S[0] / 2)
        assert line.writer.recent_events() == []
    assert [event.text for event in line.writer.recent_events()] == ["seen"]


async def test_a_storm_of_events_is_bounded_and_told(tmp_path, autojump_clock):
    """A minute keeps so many events and no more; how many were left out is told after it."""
    line = Line(tmp_path, shards=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.writer.run)
        for _ in range(300):
            await line.send.send(amended(0, *["gap"] * 100))
        await trio.sleep(61)
        await line.send.send(amended(0, "later"))
        line.send.close()
    texts = [text for _, told, _ in line.store.commits for text in told]
    assert texts.count("gap") == module.EVENTS_A_MINUTE
    left_out = 300 * 100 - module.EVENTS_A_MINUTE
    assert texts[-2:] == [f"{left_out:,} events of a minute were too many to keep", "later"]
