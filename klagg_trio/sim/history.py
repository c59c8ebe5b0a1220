"""The past of an instrument, made up on demand: any hour in constant time, any minute within it.

Theory of operation: an hour is one of a few dozen patterns, made once from seeded trades (offsets
from a base price, and quantities), laid at the price level of that hour and scaled. All sums over
the pattern are kept with it, so an hour's exact totals need no look at its sixty minutes, a day's
no look at its 1,440, and yet the longer bar always equals the merge of the shorter ones.
"""

from __future__ import annotations

import functools
import math
import random
from typing import Final, NamedTuple

from klagg_trio.sim.klines import DAY_MS, HOUR_MS, MINUTE_MS, Part, flat, join
from klagg_trio.sim.universe import Instrument

_MINUTES: Final = HOUR_MS // MINUTE_MS
_PATTERNS: Final = 12
"""Patterns an activity class: enough that hours do not look alike, few enough to make quickly."""

_CLASSES: Final = (8.0, 2.0, 0.5, 0.05)
"""Trades a minute of the activity classes. Scaling makes up for what lies between."""

_REACH: Final = 50
"""How far a pattern's offsets go from its level, both ways."""

_DAYS_KEPT: Final = 1_000
_HOURS_KEPT: Final = 48
"""Day bars, and hours cut into minutes, remembered for each instrument: beyond, start anew."""


class _Pattern(NamedTuple):
    """One hour. Parts hold offsets as prices, and sums of offset x quantity as quote volumes."""

    minutes: tuple[Part, ...]
    whole: Part


@functools.cache
def _pattern(rate: float, number: int) -> _Pattern:
    """Make one pattern. At least one trade is in it, so that the close before is never far."""
    rng = random.Random(f"pattern/{rate}/{number}")
    surely = rng.randrange(_MINUTES)
    offset = rng.randrange(-8, 9)
    minutes: list[Part] = []
    for minute in range(_MINUTES):
        expected = rate * rng.lognormvariate(0, 0.7)
        count = int(expected) + (rng.random() < expected % 1)
        if minute == surely and not count:
            count = 1
        if not count:
            minutes.append(flat(offset))
            continue
        offsets = []
        for _ in range(min(count, 6)):
            offset = max(-_REACH, min(_REACH, offset + rng.randrange(-4, 5) - offset // 12))
            offsets.append((offset, rng.randrange(1, 2 + 3 * count), rng.random() < 0.5))
        extra = sum(quantity for _, quantity, _ in offsets) - count
        if extra < 0:  # at least one unit of quantity a trade
            last, quantity, bought = offsets[-1]
            offsets[-1] = (last, quantity - extra, bought)
        levels = [level for level, _, _ in offsets]
        minutes.append(
            Part(
                count,
                levels[0],
                max(levels),
                min(levels),
                levels[-1],
                sum(quantity for _, quantity, _ in offsets),
                sum(level * quantity for level, quantity, _ in offsets),
                sum(quantity for _, quantity, bought in offsets if bought),
                sum(level * quantity for level, quantity, bought in offsets if bought),
            )
        )
    return _Pattern(tuple(minutes), join(minutes, offset))


class History:
    """The bars of one instrument from its listing on, as they were before the simulation."""

    def __init__(self, instrument: Instrument, seed: int) -> None:
        self._instrument = instrument
        self._first_hour_ms = instrument.onboard_ms - instrument.onboard_ms % HOUR_MS
        rng = random.Random(f"history/{seed}/{instrument.symbol}/{instrument.onboard_ms}")
        self._phases = [rng.uniform(0, math.tau) for _ in range(3)]
        self._salt = rng.getrandbits(61) | 1
        rate = instrument.trades_per_minute
        self._rate = next((each for each in _CLASSES if each <= rate), _CLASSES[-1])
        self._count_scale = max(1, round(rate / self._rate))
        self._price_scale = max(1, instrument.price // 12_000 // instrument.tick) * instrument.tick
        worth = 300 * 10 ** (instrument.price_precision + instrument.quantity_precision)
        self._quantity_scale = max(self._count_scale, round(worth / instrument.price / 4))
        self._days: dict[int, Part] = {}
        self._hours: dict[int, tuple[Part, ...]] = {}

    def _level(self, hour: int) -> int:
        """Return the price level of an hour: slow waves, and a little noise."""
        first, second, third = self._phases
        wave = (
            0.06 * math.sin(hour / 61.7 + first)
            + 0.03 * math.sin(hour / 17.3 + second)
            + 0.004 * math.sin(hour / 1.9 + third)
        )
        tick = self._instrument.tick
        return round(self._instrument.price * (1 + wave) / tick) * tick

    def _shape(self, hour: int) -> _Pattern:
        mixed = (hour * self._salt) & 0x1FFF_FFFF_FFFF_FFFF
        return _pattern(self._rate, (mixed >> 40) % _PATTERNS)

    def _laid(self, part: Part, level: int) -> Part:
        """Return a pattern's part at a price level, in the instrument's own decimals."""
        by_price, by_quantity = self._price_scale, self._quantity_scale
        count, opened, high, low, close, volume, quote, bought, bought_quote = part
        return Part(
            count * self._count_scale,
            level + opened * by_price,
            level + high * by_price,
            level + low * by_price,
            level + close * by_price,
            volume * by_quantity,
            (level * volume + by_price * quote) * by_quantity,
            bought * by_quantity,
            (level * bought + by_price * bought_quote) * by_quantity,
        )

    def hour(self, open_ms: int) -> Part:
        """Return the bar of one hour; never flat."""
        hour = open_ms // HOUR_MS
        return self._laid(self._shape(hour).whole, self._level(hour))

    def minutes(self, hour_ms: int) -> tuple[Part, ...]:
        """Return the sixty minutes of one hour, the idle ones flat at the close before."""
        known = self._hours.get(hour_ms)
        if known is not None:
            return known
        hour = hour_ms // HOUR_MS
        level = self._level(hour)
        made = []
        close = (
            self.hour(hour_ms - HOUR_MS).close
            if hour_ms > self._first_hour_ms
            else self.hour(hour_ms).open
        )
        for part in self._shape(hour).minutes:
            laid = self._laid(part, level) if part.count else flat(close)
            close = laid.close
            made.append(laid)
        if len(self._hours) >= _HOURS_KEPT:
            self._hours.clear()
        self._hours[hour_ms] = tuple(made)
        return self._hours[hour_ms]

    def day(self, open_ms: int) -> Part:
        """Return the bar of one whole day, or of what there is of it since the listing."""
        known = self._days.get(open_ms)
        if known is None:
            if len(self._days) >= _DAYS_KEPT:
                self._days.clear()
            first_ms = max(open_ms, self._first_hour_ms)
            hours = [self.hour(hour_ms) for hour_ms in range(first_ms, open_ms + DAY_MS, HOUR_MS)]
            known = self._days[open_ms] = join(hours, hours[0].open)
        return known

    def minute(self, open_ms: int) -> Part:
        """Return the bar of one minute."""
        within_ms = open_ms % HOUR_MS
        return self.minutes(open_ms - within_ms)[within_ms // MINUTE_MS]

    def close_before(self, minute_ms: int) -> int:
        """Return the last price before a minute, the first one known where there is none."""
        return self.minute(max(minute_ms - MINUTE_MS, self._first_hour_ms)).close

    def parts(self, first_ms: int, end_ms: int) -> list[Part]:
        """Return disjoint bars that make up a span of whole minutes, as few as possible."""
        parts: list[Part] = []
        at_ms = max(first_ms, self._first_hour_ms)
        while at_ms < end_ms:
            if at_ms % DAY_MS == 0 and at_ms + DAY_MS <= end_ms:
                parts.append(self.day(at_ms))
                at_ms += DAY_MS
            elif at_ms % HOUR_MS == 0 and at_ms + HOUR_MS <= end_ms:
                parts.append(self.hour(at_ms))
                at_ms += HOUR_MS
            else:
                hour_ms = at_ms - at_ms % HOUR_MS
                minutes = self.minutes(hour_ms)
                stop_ms = min(hour_ms + HOUR_MS, end_ms)
                parts.extend(
                    minutes[(at_ms - hour_ms) // MINUTE_MS : (stop_ms - hour_ms) // MINUTE_MS]
                )
                at_ms = stop_ms
        return parts
