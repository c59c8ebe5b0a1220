"""A shard of one symbol on the desk: trades by minute and price, and what is stored of them."""

from __future__ import annotations

from decimal import Decimal

from klagg_trio.core.bar import newborn
from klagg_trio.core.intervals import INTERVALS
from klagg_trio.core.seed import OpenBar, Seed
from klagg_trio.core.shard import Shard

from .naive import MINUTE, ATrade, NaiveStore
from .world import FAR, START, Market, official_bar

SYMBOL = "BTCUSDT"


def ms(minute: float) -> int:
    """The moment that many minutes after the start, in exchange time."""
    return START + round(minute * MINUTE)


def trade(trade_id: int, minute: float, cents: int = 10_000, *, symbol: str = SYMBOL) -> ATrade:
    """A trade of one unit at that many minutes after the start."""
    return ATrade(symbol, trade_id, cents, 1_000, ms(minute), True, trade_id, trade_id)


class Desk:
    """A shard that starts at minute 0, with the id that continues known to be `next_id`."""

    def __init__(
        self, *names: str, next_id: int | None = 1, live: bool = True, cents: int = 10_000
    ) -> None:
        self.intervals = [INTERVALS[name] for name in ("1m", *names)]
        self.shard = Shard(self.intervals, START)
        self.store = NaiveStore()
        price = Decimal(cents).scaleb(-2)
        bars = tuple(
            OpenBar(i.name, _flat(i.floor(START), i.end(i.floor(START)), price), 0)
            for i in self.intervals[1:]
        )
        self.shard.load(Seed(SYMBOL, 0, FAR, price, next_id, None, 0, bars))
        if live:
            self.live(0)

    @property
    def state(self):
        """What the shard keeps of the symbol."""
        return self.shard.states[SYMBOL]

    def take(self, facts):
        """Store the facts of one message and hand them on."""
        self.store.take(facts)
        return facts

    def trades(self, *trades: ATrade):
        """Apply one batch."""
        return self.take(self.shard.apply_trades(trades))

    def tick(self, minute: int):
        """Tick that minute."""
        return self.take(self.shard.tick(ms(minute)))

    def live(self, minute: float) -> None:
        """The feed is live since then."""
        self.shard.feed_live([SYMBOL], ms(minute))

    def lose(self, minute: float):
        """The feed cannot be trusted after."""
        return self.take(self.shard.feed_lost([SYMBOL], ms(minute)))

    def replace(self, *bars):
        """Official minutes come."""
        return self.take(self.shard.replace_minutes(SYMBOL, bars))

    def sources(self, interval: str = "1m") -> str:
        """A letter a stored bar, oldest first: t(rades), f(lat), S(uspect), O(fficial)."""
        rows = sorted((key[2], row) for key, row in self.store.rows.items() if key[1] == interval)
        return "".join("tfSO"[row.source] for _, row in rows)

    def closes(self, interval: str = "1m") -> list[int]:
        """The stored closes, oldest first, in hundredths."""
        rows = sorted((key[2], row) for key, row in self.store.rows.items() if key[1] == interval)
        return [row.nine.close for _, row in rows]

    def row(self, minute: int, interval: str = "1m"):
        """One stored bar by the number of its first minute."""
        return self.store.rows[SYMBOL, interval, ms(minute)]


def _flat(open_ms: int, end_ms: int, price: Decimal):
    """A bar of official minutes without trades."""
    return newborn(open_ms, end_ms, price)


def official(minute: int, *trades: ATrade, close_before: int = 10_000):
    """The exchange's own bar of a minute that had these trades."""
    return official_bar(Market(SYMBOL, close_before, 0, list(trades)), ms(minute))
