"""Feeds against an exchange that means harm: free again in time, and told in few words."""

from __future__ import annotations

import json
from functools import partial

import pytest
import trio

from klagg_trio import cmd
from klagg_trio.feed import ANSWER_S, BACKOFF_MAX_S, NONSENSE_MAX, Feeds, Router
from klagg_trio.settings import Settings

from .exchange.rawpeer import RawPeer, raw_frame, shake

SYMBOL = "BTCUSDT"
NOW_MS = 1_791_382_992_000


class TrioTime:
    """Exchange time by Trio's clock, always sure."""

    is_sure = True

    def now_ms(self):
        """The time."""
        return NOW_MS + int(trio.current_time() * 1_000)

    def bounded_event_ms(self, event_ms):
        """No event time lies."""
        return min(event_ms, self.now_ms())

    def take_event(self, stream, event_ms):
        """Nobody asks for witnesses."""


def text(value) -> bytes:
    """A frame of JSON."""
    return raw_frame(json.dumps(value).encode())


def mark() -> bytes:
    """What a healthy connection brings every second."""
    data = {"e": "markPriceUpdate", "E": TrioTime().now_ms(), "s": SYMBOL, "p": "1"}
    return text({"stream": "btcusdt@markPrice@1s", "data": data})


async def healthy(stream, *, more=b"", answer=None):
    """Send the mark price every second, and something more with it; answer the first request."""
    await shake(stream)
    if answer is not None:
        await stream.send_all(text(answer))
    while True:
        await stream.send_all(mark() + more)
        await trio.sleep(1)


class Line:
    """One feed of one symbol, the inbox of its shard, and what was noted."""

    def __init__(self, nursery, script):
        """Connect to a peer that does what `script` does."""
        self.peer = RawPeer(nursery, script)
        self.events = []
        self.sent, self.inbox = trio.open_memory_channel[cmd.Message](10_000)
        self.feeds = Feeds(
            router=Router([self.sent]),
            settings=Settings(),
            dial=self.peer.dial,
            clock=TrioTime(),
            note=self.events.append,
        )
        self.feeds.plan([SYMBOL])
        nursery.start_soon(self.feeds.feeds[0].run)

    @property
    def reasons(self):
        """Why connections were given up."""
        return [event.text for event in self.events if event.kind == "disconnect"]

    def messages(self):
        """What the shard was sent since the last look."""
        found = []
        while True:
            try:
                found.append(self.inbox.receive_nowait())
            except trio.WouldBlock:
                return found


async def watched(script, seconds):
    """Run a feed for so long. Returns its line."""
    async with trio.open_nursery() as nursery:
        line = Line(nursery, script)
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
    return line


async def test_the_backoff_is_finite_after_weeks(autojump_clock):
    """However often connecting has failed, the next pause is a pause: it does not overflow."""

    async def no_network(stream):
        raise trio.BrokenResourceError

    async with trio.open_nursery() as nursery:
        line = Line(nursery, no_network)
        (one,) = line.feeds.feeds
        pauses = []
        for one._failures in (1, 2, 1_024, 1_025, 10_000, 10**6, 10**12):
            pauses.append(one._pause_s())
        nursery.cancel_scope.cancel()
    assert all(0 < pause_s <= BACKOFF_MAX_S for pause_s in pauses)
    assert pauses[-1] >= BACKOFF_MAX_S / 2


async def test_a_subscription_without_an_answer_is_given_up(autojump_clock):
    """Data that flows proves nothing of the symbols that were asked for and never acknowledged."""
    line = await watched(healthy, 3 * ANSWER_S)
    assert any("no answer to a subscription" in reason for reason in line.reasons)
    assert line.peer.connections >= 2


async def test_a_subscription_that_is_refused_is_tried_anew(autojump_clock):
    """The exchange's words, cut, are the reason; the connection is made anew."""
    refusal = {"error": {"code": 2, "msg": "no " + "x" * 900_000}, "id": 1}
    line = await watched(partial(healthy, answer=refusal), 5)
    assert any("a subscription was refused: no xxx" in reason for reason in line.reasons)
    assert all(len(event.text) < 1_000 for event in line.events)


async def test_an_answer_makes_the_symbol_live(autojump_clock):
    """Nothing of this stands in the way of a healthy connection."""
    line = await watched(partial(healthy, answer={"result": None, "id": 1}), 60)
    assert cmd.FeedLive in {type(message) for message in line.messages()}
    assert line.reasons == []


async def test_nonsense_ends_a_connection(autojump_clock):
    """A peer that sends what makes no sense, again and again, is no exchange: it is left."""
    more = raw_frame(b"nonsense") * (NONSENSE_MAX // 4)
    answer = {"result": None, "id": 1}
    line = await watched(partial(healthy, more=more, answer=answer), 20)
    assert any("makes no sense" in reason for reason in line.reasons)
    counts = line.feeds.counts
    assert counts.rejected == counts.received > NONSENSE_MAX


async def test_some_nonsense_does_not_end_a_connection(autojump_clock):
    """A frame now and then that cannot be read costs itself and no more."""
    answer = {"result": None, "id": 1}
    script = partial(healthy, more=raw_frame(b"nonsense"), answer=answer)
    line = await watched(script, 2 * NONSENSE_MAX)
    assert line.reasons == []
    assert line.feeds.counts.rejected > NONSENSE_MAX


@pytest.mark.parametrize("market", ["", ',"st":1'])
async def test_a_trade_that_is_refused_is_told_to_its_shard(market, autojump_clock):
    """Whose it was, and its time, reach the shard; nothing is said of symbols that are not ours."""
    good = (
        '{"stream":"%s@aggTrade","data":{"e":"aggTrade","E":1791382992488,"a":1,"s":"%s","p":"%s",'
        '"q":"1","f":1,"l":1,"T":1791382992338,"m":false' + market + "}}"
    )
    frames = [
        good % ("btcusdt", "BTCUSDT", "NaN"),
        good % ("ethusdt", "ETHUSDT", "NaN"),
        '{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade"',
    ]
    more = b"".join(raw_frame(each.encode()) for each in frames)
    line = await watched(partial(healthy, more=more), 0.5)
    refused = [m.trades for m in line.messages() if isinstance(m, cmd.TradesRefused)]
    assert {trade for trades in refused for trade in trades} == {
        (SYMBOL, 1791382992338),
        (SYMBOL, None),
    }
    assert line.feeds.counts.rejected == 3


async def test_300_errors_of_900_kb_are_a_few_lines(autojump_clock):
    """What the exchange has to say, however long and however often, is told in few words."""
    error = text({"error": {"code": 1, "msg": "x" * 900_000}, "id": 99})

    async def script(stream):
        await shake(stream)
        for _ in range(300):
            await stream.send_all(error)
            await trio.sleep(0.01)
        await healthy_rest(stream)

    line = await watched(script, 9)
    assert sum(len(event.text) for event in line.events) < 300 * 500


async def healthy_rest(stream):
    """Go on as a healthy connection does."""
    while True:
        await stream.send_all(mark())
        await trio.sleep(1)
