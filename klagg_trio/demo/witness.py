"""The judge of what was announced: each bar as first committed against the exchange's own.

A bar sealed as trades, flat or official is *right* if its nine values are the official ones, or
differ by nothing but aggregates that reach over a minute boundary. A wrong one is forgiven if its
minute was called suspect, or put right, within a minute after the next trade of the symbol that
came through: before that nobody could know. Sealing as suspect is no way out: every minute so
announced must be one that the faults, a start or a listing touched, and no doubt may last long.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from klagg_trio.demo.announced import Announced, AnnouncedBar, Values, Word
from klagg_trio.demo.truth import Truth
from klagg_trio.sim.klines import MINUTE_MS, Kline
from klagg_trio.sim.universe import Instrument

REPLACED_MARK: Final = "@"

FORGIVEN_MS: Final = 60_000
"""After the next trade showed that a bar was wrong, it has to be called suspect within this."""

LATE_MS: Final = 5_000
"""For the commit and the step of simulated time in which it is heard of."""

LONGEST_SUSPECT_S: Final = 7_200.0
"""No minute may be suspect for longer: docs/reliability.md says what this is made of."""

TOLD_MAX: Final = 10

Down = tuple[int, int]
"""Between these moments klagg did not run."""


@dataclass(slots=True)
class Verdict:
    """What became of what was announced."""

    bars: int = 0
    wrong: int = 0
    """Bars announced as trades, flat or official that were wrong and not doubted in time."""
    suspect: int = 0
    """Minutes announced as suspect."""
    hidden: int = 0
    """Those of them that nothing had touched."""
    touched: int = 0
    """Minutes that faults, starts and listings touched."""
    longest_suspect_s: float = 0.0
    told: list[str] = field(default_factory=list)

    def tell(self, text: str) -> None:
        """Keep the first few in words."""
        if len(self.told) < TOLD_MAX:
            self.told.append(text)


def judge_announced(
    announced: Announced, truth: Truth, end_ms: int, downs: Iterable[Down]
) -> Verdict:
    """Judge every bar that was announced and ends by `end_ms`."""
    verdict = Verdict()
    for ticker in truth.tickers():
        verdict.touched += sum(minute_ms < end_ms for minute_ms in truth.touched(ticker))
    for symbol, interval in announced.series():
        series = _Series(symbol, interval, announced, truth, end_ms, tuple(downs))
        series.judge(verdict)
    return verdict


class _Series:
    """The announced bars of one symbol and interval."""

    def __init__(
        self,
        symbol: str,
        interval: str,
        announced: Announced,
        truth: Truth,
        end_ms: int,
        downs: tuple[Down, ...],
    ) -> None:
        self.name = f"{symbol} {interval}"
        self.ticker = symbol.partition(REPLACED_MARK)[0]
        self.interval = interval
        self.truth = truth
        self.end_ms = end_ms
        self.downs = downs
        self.bars = [each for each in announced.bars(symbol, interval) if each.end_ms <= end_ms]
        self.words = announced.words(symbol)
        self._klines: dict[int, dict[int, Kline]] = {}
        self._traded_ms = [each.at_ms for each in self.bars if each.source == "trades"]

    def judge(self, verdict: Verdict) -> None:
        """Add what became of these bars."""
        verdict.bars += len(self.bars)
        for bar in self.bars:
            if bar.source in ("trades", "flat", "official"):
                self._judge_bar(bar, verdict)
        if self.interval == "1m":
            self._judge_doubts(verdict)

    def _judge_bar(self, bar: AnnouncedBar, verdict: Verdict) -> None:
        lives = self.truth.lives_within(self.ticker, bar.open_ms, bar.end_ms)
        if self.interval != "1m" and any(
            self.truth.lacks(life, bar.open_ms, bar.end_ms) for life in lives
        ):
            return  # it is what its minutes make, and not all of them can be had
        if not lives or any(self._is_right(bar, life) for life in lives):
            return
        if self._is_forgiven(bar, lives[0]):
            return
        verdict.wrong += 1
        kline = self._kline(lives[0], bar.open_ms)
        theirs = None if kline is None else kline.floats()
        verdict.tell(
            f"announced: {self.name} {bar.open_ms} {bar.source} {bar.values} official {theirs}"
        )

    def _kline(self, life: Instrument, open_ms: int) -> Kline | None:
        if life.number not in self._klines:
            first_ms, last_ms = self.bars[0].open_ms, self.bars[-1].open_ms
            klines = self.truth.klines(life, self.interval, first_ms, last_ms)
            self._klines[life.number] = {each.open_time: each for each in klines}
        return self._klines[life.number].get(open_ms)

    def _is_right(self, bar: AnnouncedBar, life: Instrument) -> bool:
        kline = self._kline(life, bar.open_ms)
        if kline is None:
            return False
        return is_right(bar.values, life, kline, self.truth)

    def _is_forgiven(self, bar: AnnouncedBar, life: Instrument) -> bool:
        """Whether a wrong bar was called suspect, or put right, as soon as that could be known."""
        shown = [
            each
            for each in (
                self.truth.shown_ms(life, max(bar.end_ms, bar.at_ms) + 2_000),
                next((at_ms for at_ms in self._traded_ms if at_ms > bar.at_ms), None),
            )
            if each is not None
        ]
        if not shown:
            return True  # the stored bars are judged as well, in the end
        deadline_ms = min(shown) + FORGIVEN_MS + LATE_MS
        for from_ms, until_ms in self.downs:
            if from_ms <= deadline_ms and until_ms > bar.at_ms:
                deadline_ms = max(deadline_ms, until_ms + FORGIVEN_MS + LATE_MS)
        return any(
            word.first_ms < bar.end_ms
            and word.last_ms >= bar.open_ms
            and bar.at_ms <= word.at_ms <= deadline_ms
            for word in self.words
        )

    def _judge_doubts(self, verdict: Verdict) -> None:
        """Count what was announced as suspect, and how long anything was."""
        touched = self.truth.touched(self.ticker)
        began: dict[int, int] = {}
        said = [
            *(
                (each.at_ms, 0, Word(each.open_ms, each.open_ms, True, each.at_ms))
                for each in self.bars
                if each.source == "suspect"
            ),
            *((each.at_ms, 1, each) for each in self.words),
        ]
        for bar in self.bars:
            if bar.source != "suspect":
                continue
            life = self.truth.life_at(self.ticker, bar.open_ms)
            if life is None or bar.open_ms >= life.delivery_ms:
                continue
            verdict.suspect += 1
            if bar.open_ms not in touched:
                verdict.hidden += 1
                verdict.tell(f"hidden: {self.name} {bar.open_ms} suspect, and nothing touched it")
        longest_ms = 0
        if not self.bars:  # doubts of minutes of which none was announced by this run
            return
        for at_ms, _, word in sorted(said, key=lambda each: each[:2]):
            first_ms = max(word.first_ms, self.bars[0].open_ms)
            for minute_ms in range(first_ms, min(word.last_ms, self.end_ms) + 1, MINUTE_MS):
                if word.doubt:
                    began.setdefault(minute_ms, at_ms)
                elif minute_ms in began:
                    longest_ms = self._longer(longest_ms, minute_ms, at_ms - began.pop(minute_ms))
        verdict.longest_suspect_s = max(verdict.longest_suspect_s, longest_ms / 1000)

    def _longer(self, longest_ms: int, minute_ms: int, length_ms: int) -> int:
        life = self.truth.life_at(self.ticker, minute_ms)
        if life is None or self.truth.lacks(life, minute_ms, minute_ms + MINUTE_MS):
            return longest_ms
        return max(longest_ms, length_ms)


def is_right(values: Values, life: Instrument, kline: Kline, truth: Truth) -> bool:
    """Whether nine values are the official ones, but for aggregates over a minute boundary."""
    theirs: Values = kline.floats()
    if values == theirs:
        return True
    straddles = truth.straddles(life, kline.open_time, kline.close_time + 1)
    if not straddles:
        return False
    by_price, by_quantity = life.decimals
    scales = (by_quantity, by_price + by_quantity, 0, by_quantity, by_price + by_quantity)
    sums = [0] * 5
    for each in straddles:
        for place, value in enumerate(each[1:]):
            sums[place] += value
    # Sums of floats nearest to the exact ones: a last digit of slack.
    slack = [1e-9 * abs(value) for value in theirs[4:]]
    for place, (total, scale) in enumerate(zip(sums, scales, strict=True)):
        most = total / 10**scale + slack[place]
        if abs(values[4 + place] - theirs[4 + place]) > most:
            return False
    prices = [each.price / 10**by_price for each in straddles]
    opened, high, low, closed = values[:4]
    return (
        theirs[2] <= low <= high <= theirs[1]
        and closed in (theirs[3], *prices)
        and theirs[2] <= opened <= theirs[1]
    )
