"""Lies in frames: what is made of a frame that was right. Text in, text out."""

from __future__ import annotations

import random
import re
from typing import Final

DAY_MS: Final = 86_400_000

_EVENT_MS: Final = re.compile(rb'"E":(\d+)')
_TRADE_MS: Final = re.compile(rb'"T":(\d+)')
_LAST_ID: Final = re.compile(rb'"l":(\d+)')
_PRICE: Final = re.compile(rb'"p":"([0-9.]+)"')
_QUANTITY: Final = re.compile(rb'"q":"([0-9.]+)"')

EVENT_OFF_MS: Final = (-365 * DAY_MS, -DAY_MS, -3_600_000, 3_600_000, DAY_MS, 365 * DAY_MS)
"""How far off an event time may be."""

TRADE_OFF_MS: Final = (-3_650 * DAY_MS, -DAY_MS, -3_600_000, 3_600_000, DAY_MS, 3_650 * DAY_MS)
"""How far off the time of a trade may be: never so little that it might be so."""

LAST_IDS: Final = ("9223372036854775807", "18446744073709551616", "9" * 40, "0")
"""Last raw ids: beyond 63 bits, beyond 64, beyond everything, before the first."""

DIGITS: Final = 40
"""Of a number that ends in zeros: what it is worth does not change."""

TOO_MANY_DIGITS: Final = 60
"""Of a number that nothing is worth."""

_STRANGER: Final = (
    '{"stream":"%s@aggTrade","data":{"e":"aggTrade","E":%d,"a":%d,"s":"%s","p":"1.5","q":"2",'
    '"nq":"2","f":%d,"l":%d,"T":%d,"m":false,"st":1}}'
)


def with_event_time(payload: bytes, off_ms: int) -> bytes:
    """Return a frame with all its event times moved."""
    return _EVENT_MS.sub(lambda found: b'"E":%d' % max(0, int(found[1]) + off_ms), payload)


def trade_ms(payload: bytes) -> int:
    """Return the time that the frame of a trade claims."""
    found = _TRADE_MS.search(payload)
    return int(found[1]) if found else 0


def wrong_trade(kind: str, payload: bytes, rng: random.Random) -> bytes:
    """Return the frame of one trade with something in it that cannot be."""
    if kind == "trade_time":
        off_ms = rng.choice(TRADE_OFF_MS)
        return _TRADE_MS.sub(lambda found: b'"T":%d' % max(0, int(found[1]) + off_ms), payload)
    if kind == "trade_span":
        return _LAST_ID.sub(b'"l":%b' % rng.choice(LAST_IDS).encode(), payload)
    assert kind == "trade_digits"
    field, name = rng.choice(((_PRICE, b"p"), (_QUANTITY, b"q")))
    many = rng.random() < 0.5

    def lengthened(found: re.Match[bytes]) -> bytes:
        text = b"9" * TOO_MANY_DIGITS if many else _padded(found[1])
        return b'"%b":"%b"' % (name, text)

    return field.sub(lengthened, payload)


def _padded(text: bytes) -> bytes:
    """Return the same number in forty characters."""
    whole = text if b"." in text else text + b"."
    return whole.ljust(DIGITS, b"0")


def strangers(rng: random.Random, now_ms: int) -> list[bytes]:
    """Return trades of symbols that nobody has heard of."""
    found = []
    for _ in range(rng.randrange(1, 50)):
        symbol = f"ZZ{rng.randrange(10**6)}USDT"
        number = rng.randrange(10**9)
        shown = (symbol.lower(), now_ms, number, symbol, number, number, now_ms - 100)
        found.append((_STRANGER % shown).encode())
    return found
