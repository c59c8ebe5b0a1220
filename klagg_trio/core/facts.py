"""What a shard tells the rest of the program: values, never references to state that changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

import msgspec

from klagg_trio.core.bar import Bar, Source, newborn
from klagg_trio.core.intervals import INTERVALS


class BarFact(msgspec.Struct, frozen=True, gc=False):
    """One bar of one symbol and interval. The bar is not changed after it is handed out."""

    symbol: str
    interval: str
    bar: Bar


class RunningBar(msgspec.Struct, frozen=True, gc=False):
    """A bar that is not sealed yet: the running minute, or what a longer one has merged so far.

    A running longer bar is what it has merged, the minutes sealed since, and the running minute.
    """

    symbol: str
    interval: str
    bar: Bar
    merged_until_ms: int
    """Every minute that ends by then is in it. For a minute, its own open time."""


class Births(NamedTuple):
    """Bars of one interval that open with a minute and have merged none yet."""

    interval: str
    open_ms: int
    end_ms: int
    symbols: Sequence[str]


class MinuteSpan(NamedTuple):
    """Consecutive minutes of a symbol, by open time, both ends inclusive."""

    symbol: str
    first_ms: int
    last_ms: int


class FlatSpan(NamedTuple):
    """Consecutive bars of one interval of fixed length, all flat at one price.

    What nobody watched for a week is a few of these, never ten thousand bars.
    """

    symbol: str
    interval: str
    first_ms: int
    """Open time of the first."""
    end_ms: int
    """End of the last."""
    price: Decimal
    source: Source

    @property
    def size(self) -> int:
        """How many bars there are."""
        return (self.end_ms - self.first_ms) // INTERVALS[self.interval].length_ms

    def bars(self) -> Iterator[Bar]:
        """Return them one by one."""
        length_ms = INTERVALS[self.interval].length_ms
        for open_ms in range(self.first_ms, self.end_ms, length_ms):
            bar = newborn(open_ms, open_ms + length_ms, self.price)
            bar.source = self.source
            yield bar


class Event(NamedTuple):
    """Something a person needs to know in order to trust the bars."""

    at_ms: int
    """Exchange time."""
    kind: str
    """One of the kinds in docs/reference.md: suspect, repaired, restated, disconnect, ..."""
    symbol: str
    """Empty where it concerns no single symbol."""
    text: str


class Listing(NamedTuple):
    """What is known of a contract that is new, or of which something has become known."""

    symbol: str
    """Its label: what people query by. It belongs to the contract that lives."""
    onboard_ms: int
    """A hint: the exchange corrects it now and then."""
    delivery_ms: int
    three_day_phase_ms: int
    first_ms: int | None = None
    """Open time of its first official 1m kline: with the ticker its permanent key. None while that
    is not known; the minute of its listing stands in until then."""
    status: str = "TRADING"


class Cut(NamedTuple):
    """Where the bars of a contract end whose ticker is another one's: later ones are not its."""

    symbol: str
    from_ms: int
    """The minute in which the other one was listed."""


class AbsenceNote(NamedTuple):
    """A stretch that the exchange itself has no klines for, and how often it was asked."""

    symbol: str
    first_ms: int
    last_ms: int
    noticed_ms: int
    asked_ms: int
    """When it was asked for last, exchange time."""
    askings: int
    final: bool
    """Nobody asks again."""


@dataclass(slots=True)
class Facts:
    """What one message to a shard brought about, in the order in which it is to be stored."""

    sealed: list[BarFact] = field(default_factory=list)
    """Bars that a tick closed. They never replace a stored bar that is better than suspect."""
    flats: list[FlatSpan] = field(default_factory=list)
    """The same for long stretches without a trade; no bar is in both."""
    restated: list[BarFact] = field(default_factory=list)
    """New contents, or a new source, of bars sealed before. They replace anything but an official
    bar. A bar may be told of twice; the last one holds."""
    doubted: list[MinuteSpan] = field(default_factory=list)
    """Stored minutes that turned out to be suspect; their values stay. No minute is both doubted
    and proven by one message."""
    proven: list[MinuteSpan] = field(default_factory=list)
    """Stored suspect minutes that turned out to be right; their values stay."""
    absent: list[MinuteSpan] = field(default_factory=list)
    """Stored minutes that the exchange itself lacks: flat at the close before the span."""
    absences: list[AbsenceNote] = field(default_factory=list)
    """What is known of such stretches, confirmed or not yet."""
    ended: list[str] = field(default_factory=list)
    """Symbols that were sealed and frozen; before the listings, where a ticker is reused."""
    cuts: list[Cut] = field(default_factory=list)
    """What was stored of a contract after another one had its ticker is dropped: the prices are the
    other one's."""
    replaced: list[str] = field(default_factory=list)
    """Symbols that another contract takes over by proof, before the listings of the same facts: the
    bars of the old one keep their key and lose the label."""
    resumed: list[str] = field(default_factory=list)
    """Symbols that had ended and live again."""
    listings: list[Listing] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__)

    def sealed_bars(self) -> Iterator[BarFact]:
        """Return every bar that was closed, those of long stretches too."""
        yield from self.sealed
        for span in self.flats:
            for bar in span.bars():
                yield BarFact(span.symbol, span.interval, bar)


@dataclass(slots=True)
class TradeCounts:
    """Where every trade that reached a shard ended. Each is counted in exactly one place.

    The feed adds `rejected` for what it could not decode; the sum of all is what was received.
    """

    in_bars: int = 0
    duplicate: int = 0
    late: int = 0
    """Came after its minute was sealed: restated the bar, or left the minute to repair, or was in
    its official bar already."""
    rejected: int = 0
    """Out of range: a time far ahead of the clock."""
    not_ours: int = 0
    """Of a symbol that this shard does not keep."""

    @property
    def total(self) -> int:
        """All trades that reached the shard."""
        return self.in_bars + self.duplicate + self.late + self.rejected + self.not_ours


@dataclass(slots=True)
class BarCounts:
    """Bars a shard has handed out since it started, by what they were when they were sealed."""

    sealed: int = 0
    flat: int = 0
    suspect: int = 0
    official: int = 0
    restated: int = 0
