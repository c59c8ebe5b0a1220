"""The judge of what was announced: it sees what is wrong, and what hides behind doubt."""

from __future__ import annotations

from decimal import Decimal

import pytest

from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.facts import BarFact, Facts, FlatSpan, MinuteSpan
from klagg_trio.demo.announced import Announced
from klagg_trio.demo.truth import Truth
from klagg_trio.demo.witness import judge_announced
from klagg_trio.sim.klines import MINUTE_MS
from klagg_trio.sim.market import Straddle
from klagg_trio.sim.push import Peer
from klagg_trio.sim.server import SimExchange, SimOptions

SYMBOL = "BTCUSDT"
MINUTES = 10


class Court:
    """An exchange that has run for a while, and what klagg is to have announced of it."""

    def __init__(self, **options) -> None:
        """Let ten minutes pass; every trade of them came through."""
        self.options = SimOptions(symbols=2, list_after_s=None, **options)
        self.time_ms = self.options.start_ms
        self.exchange = SimExchange(self.options, now_ms=lambda: self.time_ms)
        self.first_ms = self.options.start_ms // MINUTE_MS * MINUTE_MS
        self.time_ms = self.first_ms + (MINUTES + 2) * MINUTE_MS
        self.exchange.step()
        self.number = self.exchange.instrument(SYMBOL).number
        peer = Peer(1, "market", True, 1 << 20)
        self.exchange.board.delivered[self.number] = [
            (self.first_ms + each * MINUTE_MS + 500, peer) for each in range(MINUTES + 3)
        ]
        self.announced = Announced(lambda: self.time_ms)

    def end_ms(self, minute):
        """Return the end of one of the minutes."""
        return self.first_ms + (minute + 1) * MINUTE_MS

    def bar(self, minute, source=Source.TRADES, **wrong):
        """Return the bar of a minute, right but for what is said."""
        open_ms = self.first_ms + minute * MINUTE_MS
        (kline,) = self.exchange.official_klines(SYMBOL, "1m", open_ms, open_ms)
        values = kline._asdict() | wrong
        for name in ("open_time", "close_time"):
            del values[name]
        return Bar(open_ms, open_ms + MINUTE_MS, source=source, **values)

    def say(self, at_ms, **facts):
        """Have a commit heard at a moment of the exchange's time."""
        now_ms, self.time_ms = self.time_ms, at_ms
        self.announced.hear(None, [Facts(**facts)])
        self.time_ms = now_ms

    def seal(self, minute, source=Source.TRADES, **wrong):
        """Have a minute announced right after its end."""
        fact = BarFact(SYMBOL, "1m", self.bar(minute, source, **wrong))
        self.say(self.end_ms(minute) + 300, sealed=[fact])

    def doubt(self, minute, at_ms):
        """Have a minute called suspect."""
        open_ms = self.first_ms + minute * MINUTE_MS
        self.say(at_ms, doubted=[MinuteSpan(SYMBOL, open_ms, open_ms)])

    def verdict(self, downs=()):
        """Judge."""
        end_ms = self.first_ms + MINUTES * MINUTE_MS
        return judge_announced(self.announced, Truth(self.exchange), end_ms, downs)


@pytest.fixture
def court():
    """One without a straddle."""
    return Court()


def test_right_bars_are_right(court):
    """Equal in all nine values: nothing is wrong, whatever the source."""
    for minute, source in enumerate((Source.TRADES, Source.OFFICIAL, Source.TRADES)):
        court.seal(minute, source)
    verdict = court.verdict()
    assert (verdict.bars, verdict.wrong, verdict.suspect, verdict.hidden) == (3, 0, 0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 1},
        {"volume": Decimal("0.001")},
        {"high": Decimal(10**6)},
        {"close": Decimal(1)},
        {"taker_buy_quote_volume": Decimal(0)},
    ],
)
@pytest.mark.parametrize("source", [Source.TRADES, Source.FLAT, Source.OFFICIAL])
def test_wrong_bar_is_seen(court, source, wrong):
    """One value off and never doubted is announced wrong, whatever it was called."""
    court.seal(3, source, **wrong)
    assert court.verdict().wrong == 1


def test_doubt_in_time_is_forgiven_and_late_doubt_is_not(court):
    """Within a minute after the next trade that came through; later is too late."""
    court.seal(3, count=1)
    court.doubt(3, court.end_ms(3) + 100_000)
    assert court.verdict().wrong == 0
    court.seal(5, count=1)
    court.doubt(5, court.end_ms(5) + 200_000)
    assert court.verdict().wrong == 1


def test_doubt_before_the_bar_was_sealed_is_none(court):
    """A bar that was doubted and then announced as right is announced wrong."""
    court.doubt(3, court.end_ms(3) - 10_000)
    court.seal(3, count=1)
    assert court.verdict().wrong == 1


def test_nothing_is_forgiven_for_a_trade_that_did_not_come(court):
    """Where nothing came through afterwards the time has not begun; nor while klagg was down."""
    times = court.exchange.board.delivered[court.number]
    del times[4:]
    court.seal(3, count=1)
    assert court.verdict().wrong == 0
    court.exchange.board.delivered[court.number] = [*times, (court.end_ms(4), times[0][1])]
    assert court.verdict().wrong == 1
    court.doubt(3, court.end_ms(8))
    assert court.verdict([(court.end_ms(3) + 1_000, court.end_ms(7) + 50_000)]).wrong == 0


def test_straddle_is_no_mistake(court):
    """A bar that counts an aggregate where it began is right, and nothing beyond that is."""
    minute, true = 3, court.bar(3)
    by_price, by_quantity = court.exchange.instrument(SYMBOL).decimals
    price = int(true.close.scaleb(by_price))
    straddle = Straddle(price, 5, 5 * price, 2, 0, 0)
    court.exchange.market.tapes[court.number].straddles[court.end_ms(minute)] = straddle
    more = {
        "volume": true.volume + Decimal(5).scaleb(-by_quantity),
        "quote_volume": true.quote_volume + Decimal(5 * price).scaleb(-by_price - by_quantity),
        "count": true.count + 2,
    }
    court.seal(minute, **more)
    assert court.verdict().wrong == 0
    court.seal(minute, **more | {"count": true.count + 3})
    court.seal(minute, **more | {"high": true.high + 1})
    assert court.verdict().wrong == 2


def test_suspect_without_a_reason_hides(court):
    """A minute announced as suspect that nothing touched is hiding; a touched one is not."""
    court.seal(3, Source.SUSPECT)
    verdict = court.verdict()
    assert (verdict.suspect, verdict.hidden) == (1, 1)
    touched_ms = court.first_ms + 3 * MINUTE_MS
    court.exchange.faults.touched.add([SYMBOL], touched_ms, touched_ms)
    verdict = court.verdict()
    assert (verdict.suspect, verdict.hidden) == (1, 0)


def test_stretches_are_bars_like_others(court):
    """A span of flat bars is judged bar by bar."""
    end_ms = court.first_ms + 4 * MINUTE_MS
    for source in (Source.FLAT, Source.SUSPECT):
        span = FlatSpan(SYMBOL, "1m", court.first_ms + MINUTE_MS, end_ms, Decimal(7), source)
        court.say(end_ms + 300, flats=[span])
    verdict = court.verdict()
    assert (verdict.bars, verdict.wrong, verdict.hidden) == (6, 3, 3)


def test_longest_doubt_is_measured(court):
    """From when a minute was called suspect to when it was called otherwise again."""
    court.seal(2, Source.SUSPECT)
    fact = BarFact(SYMBOL, "1m", court.bar(2, Source.OFFICIAL))
    court.say(court.end_ms(2) + 300 + 90_000, restated=[fact])
    court.seal(4)
    court.doubt(4, court.end_ms(5))
    open_ms = court.first_ms + 4 * MINUTE_MS
    court.say(court.end_ms(5) + 30_000, proven=[MinuteSpan(SYMBOL, open_ms, open_ms)])
    assert court.verdict().longest_suspect_s == 90
