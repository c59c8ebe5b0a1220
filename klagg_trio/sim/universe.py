"""What is traded: seeded instruments, from busy to nearly dead, with all the odd ones among them.

USDT perpetuals come first, busiest first; then those that a client must tell apart: the other
market's (coin-margined), quarterlies, perpetuals on shares and metals, another quote asset, one
long delisted, and one that is announced but not yet trading.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from klagg_trio.sim.klines import DAY_MS, HOUR_MS, MINUTE_MS

FOREVER_MS: Final = 4_133_404_800_000
"""deliveryDate of a perpetual without end: 2100-12-25 08:00 UTC."""

USD_M: Final = 1
COIN_M: Final = 2

BUSIEST_PER_MINUTE: Final = 600.0
QUIETEST_PER_MINUTE: Final = 0.02
"""A raw trade every 50 minutes: most such minutes, and many runs of ten, are flat."""


@dataclass(slots=True)
class Instrument:
    """One contract, and one life of it: a reused ticker is another instrument."""

    number: int
    """Place in the market's list; decides the order of simultaneous events."""
    symbol: str
    pair: str
    base_asset: str
    quote_asset: str
    contract_type: str
    underlying_type: str
    status: str
    onboard_ms: int
    delivery_ms: int
    market: int
    """The tag `st`: 1 for USD-M, 2 for COIN-M."""
    price_precision: int
    quantity_precision: int
    tick: int
    """Price step, in the price's smallest decimals."""
    price: int
    """Where its price starts from, in its smallest decimals."""
    trades_per_minute: float
    first_trade_ms: int
    """No trade before: a fresh listing may wait for its first one."""

    @property
    def decimals(self) -> tuple[int, int]:
        """Decimals of price and of quantity."""
        return self.price_precision, self.quantity_precision

    @property
    def is_usdt_perpetual(self) -> bool:
        """Whether it is one of those that klagg is for."""
        return (
            self.contract_type == "PERPETUAL"
            and self.quote_asset == "USDT"
            and self.market == USD_M
            and self.status == "TRADING"
        )


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is written by hand about a base asset: price, decimals and tick."""

    base: str
    price: float
    price_precision: int
    quantity_precision: int
    tick: int = 1


# Decimals and ticks as on the exchange: a tick is not always one unit of the last decimal.
_KNOWN: Final = (
    _Kind("BTC", 62_400.0, 2, 3, 10),
    _Kind("ETH", 3_420.0, 2, 3),
    _Kind("SOL", 143.2, 4, 0, 10),
    _Kind("币安人生", 0.2317, 7, 0, 10),
    _Kind("1000PEPE", 0.01148, 7, 0),
    _Kind("XRP", 0.4731, 4, 1),
    _Kind("DOGE", 0.12436, 5, 0),
    _Kind("BNB", 577.6, 3, 2, 10),
    _Kind("1000000MOG", 1.7326, 4, 1),
    _Kind("0G", 3.142, 4, 0),
    _Kind("TRX", 0.12487, 5, 0),
    _Kind("LINK", 14.262, 3, 2),
    _Kind("AVAX", 28.471, 4, 0, 10),
    _Kind("ADA", 0.3902, 5, 0, 10),
    _Kind("XRPDOM", 1_043.5, 1, 3),
)

_NAMES: Final = """
LTC BCH DOT NEAR APT ARB OP SUI SEI TIA INJ WLD FIL ATOM ETC UNI AAVE MKR LDO CRV ICP HBAR VET ALGO
XLM EOS XTZ AXS SAND MANA GALA APE CHZ ENJ GMT FLOW DYDX IMX STX RUNE KAVA SNX COMP ZEC DASH XMR NEO
QTUM IOTA ONT ZIL BAT ZRX OMG KNC BAND RLC TRB RSR STORJ ANKR CELR HOT IOST SKL CTSI LINA REEF OGN
SFP ALICE CHR MTL DENT ONE ARPA AKRO LIT UNFI BEL CTK
"""


def _names() -> Iterator[str]:
    """Yield base assets without end: known ones, then made-up ones."""
    known = _NAMES.split()
    yield from known
    for number in range(17_576):
        first, rest = divmod(number, 26 * 26)
        second, third = divmod(rest, 26)
        made_up = f"K{chr(65 + first)}{chr(65 + second)}{chr(65 + third)}"
        if made_up not in known:
            yield made_up


def rates(count: int, total_per_minute: float) -> list[float]:
    """Return raw trades a minute of `count` symbols, busiest first, that add up to the total.

    The decline is exponential in (rank / last rank) to some power; the power is found by halving.
    """
    steps = max(count - 1, 1)
    depth = math.log(BUSIEST_PER_MINUTE / QUIETEST_PER_MINUTE)

    def with_power(power: float) -> list[float]:
        return [
            BUSIEST_PER_MINUTE * math.exp(-depth * (rank / steps) ** power) for rank in range(count)
        ]

    low, high = 0.05, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        if sum(with_power(middle)) < total_per_minute:
            low = middle
        else:
            high = middle
    return with_power(low)


@dataclass(frozen=True, slots=True)
class UniverseOptions:
    """What the universe is made from."""

    seed: int
    symbols: int
    start_ms: int
    total_per_minute: float
    list_ms: int
    """When the announced contract is listed; 0 for none."""
    quiet_ms: int
    """How long it then waits for its first trade."""
    others: bool
    """Whether there is anything but USDT perpetuals."""


def universe(options: UniverseOptions) -> list[Instrument]:
    """Return every instrument, the announced one last."""
    rng = random.Random(f"universe/{options.seed}")
    total = options.total_per_minute
    kinds = _kinds(rng, options.symbols)
    made = [
        _perpetual(rng, number, kind, options.start_ms, rate)
        for number, (kind, rate) in enumerate(
            zip(kinds, rates(options.symbols, total), strict=True)
        )
    ]
    if options.others:
        made.extend(_others(rng, len(made), options.start_ms))
    if options.list_ms:
        kind = _Kind("NOVA", 1.25 * rng.uniform(0.8, 1.25), 4, 0)
        fresh = _perpetual(rng, len(made), kind, options.start_ms, 12.0)
        fresh.status = "PENDING_TRADING"
        fresh.onboard_ms = options.list_ms
        fresh.first_trade_ms = options.list_ms + options.quiet_ms
        made.append(fresh)
    return made


def _kinds(rng: random.Random, count: int) -> list[_Kind]:
    kinds = list(_KNOWN[:count])
    for name in _names():
        if len(kinds) >= count:
            return kinds
        price = 10 ** rng.uniform(-2.5, 2.5)
        precision = min(7, max(2, math.ceil(math.log10(8_000 / price))))
        kinds.append(_Kind(name, price, precision, rng.choice((0, 0, 1, 2))))
    return kinds


def _perpetual(
    rng: random.Random, number: int, kind: _Kind, start_ms: int, rate: float
) -> Instrument:
    today_ms = start_ms - start_ms % DAY_MS
    onboard_ms = today_ms - rng.randrange(40, 700) * DAY_MS + rng.randrange(24) * HOUR_MS
    return _instrument(number, kind, rng, onboard_ms=onboard_ms, rate=rate)


def _instrument(
    number: int, kind: _Kind, rng: random.Random, *, onboard_ms: int, rate: float
) -> Instrument:
    """Return a USDT perpetual; what else it may be is set on it afterwards."""
    scale = 10**kind.price_precision
    price = round(kind.price * rng.uniform(0.85, 1.15) * scale / kind.tick) * kind.tick
    symbol = f"{kind.base}USDT"
    return Instrument(
        number=number,
        symbol=symbol,
        pair=symbol,
        base_asset=kind.base,
        quote_asset="USDT",
        contract_type="PERPETUAL",
        underlying_type="COIN",
        status="TRADING",
        onboard_ms=onboard_ms,
        delivery_ms=FOREVER_MS,
        market=USD_M,
        price_precision=kind.price_precision,
        quantity_precision=kind.quantity_precision,
        tick=kind.tick,
        price=price,
        trades_per_minute=rate,
        first_trade_ms=onboard_ms,
    )


def _others(rng: random.Random, number: int, start_ms: int) -> list[Instrument]:
    """Return what is not a live USDT perpetual."""
    today_ms = start_ms - start_ms % DAY_MS
    long_ago_ms = today_ms - 300 * DAY_MS
    found: list[Instrument] = []

    def make(kind: _Kind, rate: float) -> Instrument:
        made = _instrument(number + len(found), kind, rng, onboard_ms=long_ago_ms, rate=rate)
        found.append(made)
        return made

    for kind, underlying in (
        (_Kind("XAU", 2_331.0, 2, 3), "COMMODITY"),
        (_Kind("TSLA", 197.8, 2, 2), "EQUITY"),
    ):
        share = make(kind, 6.0)
        share.contract_type, share.underlying_type = "TRADIFI_PERPETUAL", underlying
    ends = _quarter_ends(start_ms)
    for kind, end_ms, contract_type in (
        (_KNOWN[0], ends[0], "CURRENT_QUARTER"),
        (_KNOWN[1], ends[1], "NEXT_QUARTER"),
    ):
        future = make(kind, 3.0)
        end = datetime.fromtimestamp(end_ms / 1000, UTC)
        future.symbol = f"{kind.base}USDT_{end:%y%m%d}"
        future.contract_type, future.delivery_ms = contract_type, end_ms
    dollar = make(_KNOWN[0], 2.0)
    dollar.symbol = dollar.pair = "BTCUSDC"
    dollar.quote_asset = "USDC"
    gone = make(_Kind("OLD", 0.3, 5, 0), 1.0)
    gone.status, gone.delivery_ms = "SETTLING", today_ms - 45 * DAY_MS + 9 * HOUR_MS
    for kind in _KNOWN[:2]:
        coin = make(_Kind(kind.base, kind.price, 1, 0), 4.0)
        coin.symbol, coin.pair = f"{kind.base}USD_PERP", f"{kind.base}USD"
        coin.quote_asset, coin.market = "USD", COIN_M
    return found


def _quarter_ends(start_ms: int) -> list[int]:
    """Return the next two last Fridays of a quarter, 08:00 UTC, at least a week away."""
    at = datetime.fromtimestamp(start_ms / 1000, UTC)
    ends: list[int] = []
    year, month = at.year, (at.month - 1) // 3 * 3 + 3
    while len(ends) < 2:
        following = datetime(year + month // 12, month % 12 + 1, 1, 8, tzinfo=UTC)
        last = following - timedelta(days=1)
        friday = last - timedelta(days=(last.weekday() - 4) % 7)
        if friday - at > timedelta(days=7):
            ends.append(int(friday.timestamp()) * 1000)
        month += 3
        if month > 12:
            year, month = year + 1, month - 12
    return ends


def next_at_second(after_ms: int, second: int) -> int:
    """Return the first moment at or after `after_ms` that stands at this second of a minute."""
    wanted = after_ms - after_ms % MINUTE_MS + second * 1000
    return wanted if wanted >= after_ms else wanted + MINUTE_MS
