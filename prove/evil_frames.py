"""Every way in which what comes over a websocket can be wrong, by name.

A kind is given what stands in the middle and does its evil once; rows repeat it. None is a lie that
nobody could see through: an invented trade has a value that no trade can have.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial

from prove.middle import Middle, frame

Evil = Callable[[Middle, random.Random], None]

MB = 1 << 20
YEAR_MS = 365 * 86_400_000


# -- Frames as such --------------------------------------------------------------------------------


def send(data: bytes, middle: Middle, rng: random.Random) -> None:
    """Send some bytes between two frames."""
    middle.send(data)


def send_many(data: bytes, times: int, middle: Middle, rng: random.Random) -> None:
    """Send some bytes again and again."""
    for _ in range(times):
        middle.send(data)


def handshake(data: bytes, middle: Middle, rng: random.Random) -> None:
    """Cut all connections, and answer the next handshakes like this."""
    middle.handshake = data
    middle.cut()


def cut(reset: bool, middle: Middle, rng: random.Random) -> None:
    """Cut all connections."""
    middle.cut(reset=reset)
    middle.done["frames"] += 1


def half_open(middle: Middle, rng: random.Random) -> None:
    """Keep the connections, and deliver nothing."""
    middle.frame = lambda each: []


def each_frame(change: Callable[[bytes], list[bytes]], middle: Middle, rng: random.Random) -> None:
    """Let every frame pass only as something else."""
    middle.frame = change


def truncated(each: bytes) -> list[bytes]:
    """Cut a frame's payload short, with a length that fits."""
    payload = each[4 if each[1] & 0x7F == 126 else 2 :]
    return [frame(payload[: len(payload) // 2])]


def held_back() -> Callable[[bytes], list[bytes]]:
    """Return what delivers frames in another order: each third one after the next two."""
    held: list[bytes] = []

    def change(each: bytes) -> list[bytes]:
        held.append(each)
        if len(held) < 3:
            return []
        ready = [held[1], held[2], held[0]]
        held.clear()
        return ready

    return change


def reordered(middle: Middle, rng: random.Random) -> None:
    """Deliver frames in another order."""
    middle.frame = held_back()


PIECES = frame(b'{"e":"aggTr', 0x01) + frame(b"ade\xff", 0x80)
REFUSED = b"HTTP/1.1 %d No\r\nContent-Length: 4\r\n\r\nnope"
WRONG_KEY = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n"
)

FRAMES: dict[str, Evil] = {
    "garbage": partial(send, b"\xf3\x9c\x81\x00\xff" * 100),
    "http": partial(send, b"HTTP/1.1 200 OK\r\n\r\n"),
    "not-json": partial(send_many, frame(b"hello"), 50),
    "empty": partial(send_many, frame(b""), 50),
    "bad-utf8": partial(send, frame(b'{"e":"\xff\xfe\xc0"}')),
    "binary": partial(send_many, frame(b"\x00\x01\x02" * 100, 0x82), 20),
    "over-a-megabyte": partial(send, frame(b" " * (MB + 1))),
    "three-hundred-errors": partial(
        send_many, frame(b'{"error":{"code":2,"msg":"' + b"x" * 900_000 + b'"}}'), 300
    ),
    "pieces": partial(send, PIECES),
    "pieces-without-end": partial(send_many, frame(b"x" * 1_000, 0x01) + frame(b"", 0x00), 500),
    "continuation-of-nothing": partial(send, frame(b"x", 0x80)),
    "unknown-opcode": partial(send, frame(b"x", 0x83)),
    "reserved-bits": partial(send, frame(b"x", 0xF1)),
    "masked": partial(send, b"\x81\x85\x00\x00\x00\x00hello"),
    "long-ping": partial(send, frame(b"x" * 200, 0x89)),
    "ping-flood": partial(send_many, frame(b"x" * 100, 0x89), 5_000),
    "pong-unasked": partial(send_many, frame(b"", 0x8A), 500),
    "close-odd": partial(send, frame(b"\x03", 0x88)),
    "close-999": partial(send, frame(b"\x03\xe7", 0x88)),
    "close-bad-utf8": partial(send, frame(b"\x03\xe9\xff\xfe", 0x88)),
    "length-2-63": partial(send, b"\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff"),
    "length-a-gigabyte": partial(send, b"\x81\x7f\x00\x00\x00\x00\x40\x00\x00\x00" + b" " * 4_096),
    "reset": partial(cut, True),
    "closed": partial(cut, False),
    "half-open": half_open,
    "truncated": partial(each_frame, truncated),
    "twice": partial(each_frame, lambda each: [each, each]),
    "reordered": reordered,
    "handshake-403": partial(handshake, REFUSED % 403),
    "handshake-429": partial(handshake, REFUSED % 429),
    "handshake-503": partial(handshake, REFUSED % 503),
    "handshake-200": partial(handshake, REFUSED % 200),
    "handshake-closed": partial(handshake, b""),
    "handshake-key": partial(handshake, WRONG_KEY),
    "handshake-noise": partial(handshake, b"\x00\x01\x02\r\n\r\n"),
}

# -- What frames say -------------------------------------------------------------------------------


def wrapped(data: object, stream: str = "btcusdt@aggTrade") -> bytes:
    """Return a frame of the combined stream."""
    text = json.dumps({"stream": stream, "data": data}, ensure_ascii=False)
    return frame(text.replace('"LITERAL:', "").replace(':LITERAL"', "").encode())


def invented(middle: Middle, rng: random.Random, **changed: object) -> bytes:
    """Return a frame with a next trade of some symbol in which something is impossible."""
    symbol = rng.choice(sorted(middle.trades))
    trade = dict(middle.trades[symbol])
    after = trade["l"] + 1
    trade |= {"a": trade["a"] + 1, "f": after, "l": after} | changed
    trade = {name: value for name, value in trade.items() if value is not ...}
    return wrapped(trade, f"{symbol.lower()}@aggTrade")


def trade(middle: Middle, rng: random.Random, **changed: object) -> None:
    """Send a next trade in which something is impossible."""
    if middle.trades:
        middle.send(invented(middle, rng, **changed))


def trade_ahead(by_ms: int, names: str, middle: Middle, rng: random.Random) -> None:
    """Send a trade from another time."""
    newest = max(trade["T"] for trade in middle.trades.values())
    trade(middle, rng, **dict.fromkeys(names, newest + by_ms))


def unknown(times: int, middle: Middle, rng: random.Random) -> None:
    """Send trades of contracts that nobody has heard of, each another."""
    some = next(iter(middle.trades.values()))
    frames = [
        wrapped({**some, "s": f"X{rng.getrandbits(60):X}USDT"}, "x@aggTrade") for _ in range(times)
    ]
    middle.send(b"".join(frames))


def listings(times: int, middle: Middle, rng: random.Random) -> None:
    """Announce contracts that do not exist, under names that want to be more."""
    odd = ["../../etc/passwd", "'; DROP TABLE bars; --", "\x1b[2J", "[red]A[/]", "", "A" * 5_000]
    names = [rng.choice(odd) + f"{rng.getrandbits(40):X}" for _ in range(times)]
    tickers = [
        {"e": "24hrMiniTicker", "E": 1, "s": name, "c": "1", "o": "1", "h": "1", "l": "1", "st": 1}
        for name in names
    ]
    middle.send(wrapped(tickers, "!miniTicker@arr"))
    for name in names[:50]:
        told = {
            "e": "contractInfo",
            "E": 1,
            "s": name,
            "ps": name,
            "ct": "PERPETUAL",
            "cs": "TRADING",
        }
        middle.send(wrapped(told | {"dt": 1 << 70, "ot": -5, "st": 1}, "!contractInfo"))


def literal(text: str) -> str:
    """Return what becomes this text in the JSON, quotes taken away."""
    return f"LITERAL:{text}:LITERAL"


SAID: dict[str, Evil] = {
    **{
        f"trade-{name}": partial(trade, **changed)
        for name, changed in {
            "nan": {"p": "NaN"},
            "nan-literal": {"p": literal("NaN")},
            "infinite": {"p": "Infinity"},
            "1e999": {"q": "1e999"},
            "1e999-literal": {"q": literal("1e999")},
            "negative-price": {"p": "-1"},
            "negative-quantity": {"q": "-1", "nq": "-1"},
            "zero-price": {"p": "0"},
            "ten-thousand-digits": {"q": "9" * 10_000},
            "ten-thousand-decimals": {"p": "0." + "3" * 10_000},
            "exotic-digits": {"p": "١٢٣"},
            "underscores": {"p": "1_000"},
            "spaces": {"q": " 1 "},
            "empty": {"p": ""},
            "null": {"p": None},
            "no-price": {"p": ...},
            "no-id": {"a": ...},
            "no-time": {"T": ...},
            "id-negative": {"a": -1},
            "id-beyond": {"a": 1 << 70},
            "id-a-text": {"a": "5"},
            "last-before-first": {"f": 10, "l": 5},
            "count-beyond": {"f": 0, "l": (1 << 63) - 1},
            "time-beyond": {"T": 1 << 70},
            "time-negative": {"T": -1},
            "time-a-fraction": {"T": 1.5},
            "maker-a-text": {"m": "yes"},
            "deep": {"p": literal("[" * 20_000 + "]" * 20_000)},
        }.items()
    },
    "trade-a-year-ahead": partial(trade_ahead, YEAR_MS, "TE"),
    "trade-a-year-behind": partial(trade_ahead, -YEAR_MS, "TE"),
    "trade-an-hour-ahead": partial(trade_ahead, 3_600_000, "T"),
    "unknown-symbols": partial(unknown, 2_000),
    "listings": partial(listings, 400),
    "deep-json": partial(send, frame(b"[" * 500_000)),
    "an-answer-unasked": partial(send_many, frame(b'{"result":null,"id":99}'), 50),
    "an-error": partial(send_many, frame(b'{"error":{"code":3,"msg":"\\u001b[2J"},"id":1}'), 50),
    "wrapped-nothing": partial(send_many, wrapped(None), 50),
    "wrapped-a-list": partial(send_many, wrapped([1, 2]), 50),
    "other-events": partial(send_many, wrapped({"e": "forceOrder", "E": 1, "o": {}}), 50),
}

KINDS: dict[str, Evil] = {**FRAMES, **SAID}
"""Every kind."""


# -- Fuzz ------------------------------------------------------------------------------------------

NUMBERS = frozenset(b"0123456789.-+eE")


def fuzzed(each: bytes, rng: random.Random) -> bytes:
    """Return a frame with some bytes of its payload changed, its numbers left as they are.

    A number that has become another is a lie that nobody could see through.
    """
    start = 4 if each[1] & 0x7F == 126 else 2
    payload = bytearray(each[start:])
    places = [at for at, byte in enumerate(payload) if byte not in NUMBERS]
    for at in rng.sample(places, min(len(places), rng.choice((1, 1, 2, 5, 20)))):
        byte = rng.randrange(256)
        payload[at] = byte if byte not in NUMBERS else 0x7F
    return frame(bytes(payload), rng.choice((0x81,) * 40 + (0x82, 0x80, 0x01, 0xC1, 0x83)))
