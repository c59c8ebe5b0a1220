"""Recorded-like trades for the benchmarks, as columns, as websocket frames, and as expected bars.

A market is drawn from a seed: the busiest of 500 symbols makes a thirteenth of all trades, the
quietest a two-hundredth of that; prices and quantities have the digits of their contract, an
aggregate holds one to a few raw trades, a frame has some 210 bytes, in the exchange's own form. The
bars to expect are added up here in whole numbers, by code that shares nothing with klagg.

A capture is made once for its parameters and kept in the cache folder; a smaller one is the
beginning of a larger one.
"""

from __future__ import annotations

import array
import itertools
import mmap
import os
import pickle
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

CACHE = Path(os.environ.get("KLAGG_BENCH_CACHE", "/tmp/klagg-bench"))
"""Captures and large databases are kept here between runs."""

MINUTE_MS = 60_000
MARKET_VERSION = 3
"""Raised with every change of what is drawn."""

START_MS = 1_790_812_800_000 + 50_000
"""2026-10-01 00:00:50 UTC: ten seconds before the end of a minute, so that small captures have
one too."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """One contract: how its numbers look."""

    symbol: str
    price_decimals: int
    quantity_decimals: int
    price: int
    """First price, in units of the last decimal."""
    lot: int
    """Typical quantity, in units of the last decimal."""
    first_id: int


class Trade(NamedTuple):
    """One aggregate; price and quantity in units of the last decimal."""

    instrument: int
    id: int
    price: int
    quantity: int
    first_id: int
    last_id: int
    time_ms: int
    buyer_is_maker: bool


def instruments(count: int, seed: int = 1) -> list[Instrument]:
    """Draw contracts, busiest first."""
    draw = random.Random(seed)
    made = []
    names = {"BTC": None, "ETH": None, "SOL": None, "1000PEPE": None, "XRP": None, "DOGE": None}
    while len(names) < count:
        names["".join(draw.choices("ABCDEFGHIJKLMNOPRSTUVXYZ", k=draw.choice((3, 3, 4, 4, 5))))] = (
            None
        )
    for name in itertools.islice(names, count):
        price_decimals = draw.choice((1, 2, 2, 3, 4, 4, 5, 5, 6, 7))
        made.append(
            Instrument(
                f"{name}USDT",
                price_decimals,
                draw.choice((0, 0, 0, 1, 1, 2, 3, 3)),
                draw.randrange(2_000, 900_000),
                draw.randrange(20, 5_000),
                draw.randrange(10_000_000, 4_000_000_000),
            )
        )
    return made


def weights(count: int) -> list[float]:
    """Return how often each contract trades, busiest first."""
    return [1 / (rank + 2.5) ** 1.0 for rank in range(count)]


def trades(
    made: list[Instrument],
    *,
    rate_per_s: float,
    start_ms: int = START_MS,
    seed: int = 1,
) -> Iterator[Trade]:
    """Draw trades for ever, `rate_per_s` to a second of exchange time."""
    draw = random.Random(seed * 7919)
    cumulative = list(itertools.accumulate(weights(len(made))))
    population = range(len(made))
    prices = [each.price for each in made]
    ids = [each.first_id for each in made]
    raw_ids = [each.first_id * 3 for each in made]
    uniform = draw.random
    drawn = 0
    while True:
        for which in draw.choices(population, cum_weights=cumulative, k=1_000):
            price = prices[which]
            step = uniform()
            if step < 0.3:
                price = max(1, price + (1 if step < 0.15 else -1) * (1 + int(uniform() * 3)))
                prices[which] = price
            size = uniform()
            quantity = 1 + int(made[which].lot * size * size * 4)
            raw = 1 if size < 0.7 else 1 + int(uniform() * 8)
            first = raw_ids[which]
            raw_ids[which] = first + raw
            yield Trade(
                which,
                ids[which],
                price,
                quantity,
                first,
                first + raw - 1,
                start_ms + int(drawn * 1000 / rate_per_s),
                uniform() < 0.5,
            )
            ids[which] += 1
            drawn += 1


def decimal_text(value: int, decimals: int) -> str:
    """Write a number of units of the last decimal."""
    if not decimals:
        return str(value)
    text = str(value).rjust(decimals + 1, "0")
    return f"{text[:-decimals]}.{text[-decimals:]}"


def payload(made: list[Instrument], trade: Trade) -> str:
    """Return the text of a combined-stream aggTrade frame, as the exchange sends it."""
    which = made[trade.instrument]
    quantity = decimal_text(trade.quantity, which.quantity_decimals)
    return (
        f'{{"stream":"{which.symbol.lower()}@aggTrade","data":{{"e":"aggTrade",'
        f'"E":{trade.time_ms + 105},"a":{trade.id},"s":"{which.symbol}",'
        f'"p":"{decimal_text(trade.price, which.price_decimals)}","q":"{quantity}",'
        f'"nq":"{quantity}","f":{trade.first_id},"l":{trade.last_id},"T":{trade.time_ms},'
        f'"m":{"true" if trade.buyer_is_maker else "false"},"st":1}}}}'
    )


def raw_payload(made: list[Instrument], trade: Trade) -> str:
    """Return the same trade as a frame of the raw trade stream, for those who read that one."""
    which = made[trade.instrument]
    return (
        f'{{"stream":"{which.symbol.lower()}@trade","data":{{"e":"trade","E":{trade.time_ms + 5},'
        f'"T":{trade.time_ms},"s":"{which.symbol}","t":{trade.first_id},'
        f'"p":"{decimal_text(trade.price, which.price_decimals)}",'
        f'"q":"{decimal_text(trade.quantity, which.quantity_decimals)}","X":"MARKET",'
        f'"m":{"true" if trade.buyer_is_maker else "false"},"st":1}}}}'
    )


# -- Expected bars ---------------------------------------------------------------------------------


class MinuteBar:
    """One expected 1m bar, in units: naive on purpose."""

    __slots__ = ("close", "count", "high", "low", "open", "quote", "taker", "taker_quote", "volume")

    def __init__(self, price: int) -> None:
        self.open = self.high = self.low = self.close = price
        self.volume = self.quote = self.count = self.taker = self.taker_quote = 0

    def add(self, trade: Trade) -> None:
        self.high = max(self.high, trade.price)
        self.low = min(self.low, trade.price)
        self.close = trade.price
        self.volume += trade.quantity
        self.quote += trade.price * trade.quantity
        self.count += trade.last_id - trade.first_id + 1
        if not trade.buyer_is_maker:
            self.taker += trade.quantity
            self.taker_quote += trade.price * trade.quantity


Expected = dict[tuple[str, int], tuple[str, str, str, str, str, str, int, str, str]]
"""By symbol and open time: open, high, low, close, volume, quote volume, count, taker buy volume,
taker buy quote volume, as exact decimal text."""


class Oracle:
    """Adds up the bars to expect."""

    def __init__(self, made: list[Instrument]) -> None:
        self._made = made
        self._bars: dict[tuple[int, int], MinuteBar] = {}

    def add(self, trade: Trade) -> None:
        key = trade.instrument, trade.time_ms - trade.time_ms % MINUTE_MS
        bar = self._bars.get(key)
        if bar is None:
            bar = self._bars[key] = MinuteBar(trade.price)
        bar.add(trade)

    def bars(self) -> Expected:
        expected: Expected = {}
        for (which, open_ms), bar in self._bars.items():
            each = self._made[which]
            price, quantity = each.price_decimals, each.quantity_decimals
            expected[each.symbol, open_ms] = (
                decimal_text(bar.open, price),
                decimal_text(bar.high, price),
                decimal_text(bar.low, price),
                decimal_text(bar.close, price),
                decimal_text(bar.volume, quantity),
                decimal_text(bar.quote, price + quantity),
                bar.count,
                decimal_text(bar.taker, quantity),
                decimal_text(bar.taker_quote, price + quantity),
            )
        return expected


# -- Captures --------------------------------------------------------------------------------------

_extended = struct.Struct(">BBH").pack


@dataclass(slots=True)
class Capture:
    """Frames on disk, and what must come out of them."""

    folder: Path
    symbols: list[str]
    first_ids: list[int]
    first_prices: list[str]
    trades: int
    start_ms: int
    rate_per_s: float
    last_ms: int

    def frames(self) -> memoryview:
        """Return all websocket frames, one after the other."""
        with (self.folder / "frames.bin").open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def lengths(self) -> array.array[int]:
        """Return the length of each frame, header and all."""
        lengths = array.array("H")
        lengths.frombytes((self.folder / "lengths.bin").read_bytes())
        return lengths

    def expected(self) -> Expected:
        """Return the 1m bars to expect."""
        bars: Expected = pickle.loads((self.folder / "expected.pickle").read_bytes())
        return bars

    def payloads(self) -> list[bytes]:
        """Return the text of every frame."""
        frames, position, found = self.frames(), 0, []
        for length in self.lengths():
            found.append(bytes(frames[position + 4 : position + length]))
            position += length
        return found


def capture(
    symbols: int,
    count: int,
    *,
    rate_per_s: float,
    start_ms: int = START_MS,
    form: str = "aggTrade",
) -> Capture:
    """Return the capture with these parameters, made now if it is not in the cache.

    `form` is "aggTrade", or "trade": the same trades as frames of the raw trade stream.
    """
    name = f"v{MARKET_VERSION}-{symbols}-{count}-{rate_per_s:g}-{start_ms}"
    folder = CACHE / (name if form == "aggTrade" else f"{name}-{form}")
    if not (folder / "capture.pickle").exists():
        _make(folder, symbols, count, rate_per_s, start_ms, form)
    made: Capture = pickle.loads((folder / "capture.pickle").read_bytes())
    made.folder = folder
    return made


def _make(
    folder: Path, symbols: int, count: int, rate_per_s: float, start_ms: int, form: str
) -> None:
    written = payload if form == "aggTrade" else raw_payload
    folder.mkdir(parents=True, exist_ok=True)
    made = instruments(symbols)
    oracle = Oracle(made)
    lengths = array.array("H")
    drawn = trades(made, rate_per_s=rate_per_s, start_ms=start_ms)
    with (folder / "frames.bin").open("wb") as file:
        for trade in itertools.islice(drawn, count):
            oracle.add(trade)
            text = written(made, trade).encode()
            assert 126 <= len(text) <= 65_535
            file.write(_extended(0x81, 126, len(text)))
            file.write(text)
            lengths.append(len(text) + 4)
    (folder / "lengths.bin").write_bytes(lengths.tobytes())
    (folder / "expected.pickle").write_bytes(pickle.dumps(oracle.bars()))
    whole = Capture(
        folder,
        [each.symbol for each in made],
        [each.first_id for each in made],
        [decimal_text(each.price, each.price_decimals) for each in made],
        count,
        start_ms,
        rate_per_s,
        start_ms + int((count - 1) * 1000 / rate_per_s),
    )
    (folder / "capture.pickle").write_bytes(pickle.dumps(whole))
