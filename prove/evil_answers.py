"""Every way in which an answer to a REST request can be wrong, by name.

Each is given the connection and the true answer, and sends something else. `ANY` go for every path,
the others for the one whose contents they twist. None is a lie that nobody could see through.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable
from functools import partial

from prove.middle import Answer, EvilAnswer

TIME, INFO, KLINES = "/fapi/v1/time", "/fapi/v1/exchangeInfo", "/fapi/v1/klines"

MB = 1 << 20
DAY_MS = 86_400_000


# -- Statuses --------------------------------------------------------------------------------------


def status(
    code: int, client: socket.socket, answer: Answer, body: bytes = b"", **headers: str
) -> None:
    """Answer with a status."""
    client.sendall(answer.packed(body, code, **headers))


HTML = b"<html><body><h1>\x1b[31mDenied\x1b[0m [bold]here[/]</h1></body></html>"
TOLD = b'{"code":-1003,"msg":"Too many requests; \x1b]0;title\x07 current limit is 2400"}'

STATUSES: dict[str, EvilAnswer] = {
    "400-json": partial(status, 400, body=b'{"code":-1121,"msg":"Invalid symbol."}'),
    "401": partial(status, 401),
    "403-html": partial(status, 403, body=HTML, Content_Type="text/html"),
    "404": partial(status, 404, body=HTML, Content_Type="text/html"),
    "418": partial(status, 418, body=TOLD, Retry_After="3"),
    "418-without-a-word": partial(status, 418),
    "429": partial(status, 429, body=TOLD, Retry_After="2"),
    "429-without-a-word": partial(status, 429),
    "429-retry-nonsense": partial(status, 429, body=TOLD, Retry_After="soon"),
    "429-retry-negative": partial(status, 429, body=TOLD, Retry_After="-5"),
    "429-retry-for-ever": partial(status, 429, body=TOLD, Retry_After="1" + "0" * 30),
    "451": partial(status, 451, body=b'{"code":0,"msg":"Service unavailable from here"}'),
    "500": partial(status, 500),
    "502-html": partial(status, 502, body=HTML, Content_Type="text/html"),
    "503": partial(status, 503, body=b"Unknown error, please check your request"),
    "504": partial(status, 504),
    "301-elsewhere": partial(status, 301, Location="http://127.0.0.1:9/"),
    "302-to-itself": partial(status, 302, Location=TIME),
    "204-nothing": partial(status, 204),
    "206-part": partial(status, 206, body=b'{"serverTime'),
    "999": partial(status, 999),
}

# -- What carries an answer ------------------------------------------------------------------------


def raw(data: bytes, client: socket.socket, answer: Answer) -> None:
    """Send some bytes and close."""
    client.sendall(data)


def reset(client: socket.socket, answer: Answer) -> None:
    """Reset the connection without an answer."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent(client: socket.socket, answer: Answer) -> None:
    """Say nothing until the client goes."""
    client.settimeout(40)
    with contextlib.suppress(OSError):
        client.recv(1)


def dripped(data: bytes, client: socket.socket, answer: Answer) -> None:
    """Send the bytes one by one, slowly."""
    for at in range(len(data)):
        client.sendall(data[at : at + 1])
        time.sleep(0.25)


def endless_headers(client: socket.socket, answer: Answer) -> None:
    """Send headers without end, slowly enough for each read to be in time."""
    client.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(120):
        client.sendall(b"X-%d: y\r\n" % number)
        time.sleep(0.5)


def half(client: socket.socket, answer: Answer) -> None:
    """Close in the middle of the body."""
    whole = answer.packed()
    client.sendall(whole[: len(whole) - max(1, len(answer.body) // 2)])


def chunked(chunks: bytes, client: socket.socket, answer: Answer) -> None:
    """Answer in chunks of which something is wrong."""
    client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)


def continued(client: socket.socket, answer: Answer) -> None:
    """Send a hundred thousand interim answers."""
    for _ in range(100):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000)


CARRIED: dict[str, EvilAnswer] = {
    "closed": partial(raw, b""),
    "reset": reset,
    "silent": silent,
    "no-http": partial(raw, b"\x16\x03\x01\x00\xa5\x01\x00\x00 nonsense\r\n\r\n"),
    "http-0.9": partial(raw, b'{"serverTime":1}'),
    "status-line": partial(raw, b"HTTP/1.1 two hundred\r\n\r\n"),
    "header-drip": partial(dripped, b"HTTP/1.1 200 OK\r\nX-Header: something\r\n" * 4),
    "headers-without-end": endless_headers,
    "header-of-a-megabyte": partial(raw, b"HTTP/1.1 200 OK\r\nX: " + b"y" * MB + b"\r\n\r\n"),
    "ten-thousand-headers": partial(
        raw, b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 10_000 + b"Content-Length: 2\r\n\r\n{}"
    ),
    "length-nonsense": partial(raw, b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n{}"),
    "length-beyond": partial(raw, b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n{}"),
    "half-a-body": half,
    "chunk-nonsense": partial(chunked, b"zz\r\n{}\r\n0\r\n\r\n"),
    "chunk-huge": partial(chunked, b"ffffffffffffffff\r\n{}"),
    "chunks-cut": partial(chunked, b'5\r\n{"ser'),
    "continue-flood": continued,
}

# -- What an answer holds --------------------------------------------------------------------------


def body(contents: bytes, client: socket.socket, answer: Answer, **headers: str) -> None:
    """Answer 200 with some contents."""
    client.sendall(answer.packed(contents, **headers))


def packed(contents: Callable[[], bytes], encoding: str, client: socket.socket, answer: Answer):
    """Answer with contents in an encoding, made when they are first needed."""
    body(contents(), client, answer, Content_Encoding=encoding)


_MADE: dict[str, bytes] = {}


def bomb(rounds: int) -> bytes:
    """Return what becomes a gigabyte when it is unpacked as often as this."""
    name = f"bomb {rounds}"
    if name not in _MADE:
        deflate = zlib.compressobj(9, wbits=31)
        blown = b"".join(deflate.compress(bytes(MB)) for _ in range(1_024)) + deflate.flush()
        for _ in range(rounds - 1):
            blown = gzip.compress(blown)
        _MADE[name] = blown
    return _MADE[name]


def weight(text: str, client: socket.socket, answer: Answer) -> None:
    """Say something else of the weight used."""
    body(answer.body, client, answer, X_MBX_USED_WEIGHT_1M=text)


HELD: dict[str, EvilAnswer] = {
    "empty": partial(body, b""),
    "null": partial(body, b"null"),
    "true": partial(body, b"true"),
    "number": partial(body, b"1e999"),
    "nan": partial(body, b"NaN"),
    "object": partial(body, b"{}"),
    "list": partial(body, b"[]"),
    "list-in-list": partial(body, b"[[]]"),
    "html": partial(body, HTML),
    "cut-json": partial(body, b'{"serverTime":17'),
    "bad-utf8": partial(body, b'{"serverTime":"\xff\xfe\xc0"}'),
    "byte-order-mark": partial(body, b"\xef\xbb\xbf{}"),
    "deep-lists": partial(body, b"[" * MB),
    "deep-objects": partial(body, b'{"a":' * 200_000),
    "forty-megabytes": partial(body, b" " * (40 * MB)),
    "bomb": partial(packed, partial(bomb, 1), "gzip"),
    "bomb-in-a-bomb": partial(packed, partial(bomb, 2), "gzip, gzip"),
    "no-gzip": partial(body, b"{}", Content_Encoding="gzip"),
    "brotli": partial(body, b"\x1b\x02\x00\xf8", Content_Encoding="br"),
    "unknown-encoding": partial(body, b"{}", Content_Encoding="rot13"),
    "weight-nonsense": partial(weight, "lots"),
    "weight-negative": partial(weight, "-5"),
    "weight-endless": partial(weight, "9" * 40),
}

# -- Rows, contracts, times ------------------------------------------------------------------------

Row = list


def rows(change: Callable[[list[Row]], object], client: socket.socket, answer: Answer) -> None:
    """Answer with klines of which some are wrong."""
    listed = json.loads(answer.body)
    if not isinstance(listed, list) or not listed:
        client.sendall(answer.packed(status=answer.status))
        return
    changed = change(listed)
    text = json.dumps(listed if changed is None else changed)
    body(text.replace('"LITERAL:', "").replace(':LITERAL"', "").encode(), client, answer)


def put(column: int, value: object, listed: list[Row]) -> None:
    """Put a value into every third row."""
    for row in listed[::3]:
        row[column] = value


def crossed(listed: list[Row]) -> None:
    """Let the low of every third row be above its high."""
    for row in listed[::3]:
        row[2], row[3] = row[3], str(float(row[2]) + 1)


def shifted(by_ms: int, listed: list[Row]) -> None:
    """Move every third row off the grid."""
    for row in listed[::3]:
        row[0] += by_ms
        row[6] += by_ms


def taker_above(listed: list[Row]) -> None:
    """Let the takers have bought more than there was."""
    for row in listed[::3]:
        row[9] = str(float(row[5]) * 2 + 1)


def empty_with_count(listed: list[Row]) -> None:
    """Let a row have trades without volume."""
    for row in listed[::3]:
        row[5], row[7], row[8], row[9], row[10] = "0", "0", 5, "0", "0"


def quote_off(listed: list[Row]) -> None:
    """Let the quote volume be what no price of the row explains."""
    for row in listed[::3]:
        row[7] = str(float(row[7]) * 1_000 + 1)


def literal(text: str) -> str:
    """Return what becomes this text in the JSON, quotes taken away."""
    return f"LITERAL:{text}:LITERAL"


ROWS: dict[str, EvilAnswer] = {
    f"row-{name}": partial(rows, change)
    for name, change in {
        "low-above-high": crossed,
        "second-off-the-grid": partial(shifted, 1_000),
        "a-century-ahead": partial(shifted, 36_525 * DAY_MS),
        "before-1970": partial(shifted, -30_000 * DAY_MS),
        "taker-above-volume": taker_above,
        "count-without-volume": empty_with_count,
        "quote-unexplained": quote_off,
        "close-time-is-open": lambda listed: (
            [row.__setitem__(6, row[0]) for row in listed] and None
        ),
        "negative-price": partial(put, 3, "-1"),
        "zero-price": partial(put, 3, "0"),
        "nan": partial(put, 4, "NaN"),
        "nan-literal": partial(put, 4, literal("NaN")),
        "infinite": partial(put, 2, "1e999"),
        "exponent": partial(put, 2, literal("1e400")),
        "ten-thousand-digits": partial(put, 5, "9" * 10_000),
        "ten-thousand-decimals": partial(put, 5, "0." + "3" * 10_000),
        "exotic-digits": partial(put, 1, "١٢٣"),
        "underscores": partial(put, 1, "1_000"),
        "spaces": partial(put, 1, " 1 "),
        "count-beyond-64-bits": partial(put, 8, 1 << 70),
        "count-negative": partial(put, 8, -1),
        "count-a-fraction": partial(put, 8, 1.5),
        "time-a-text": partial(put, 0, "today"),
        "time-beyond-64-bits": partial(put, 0, 1 << 70),
        "null": partial(put, 4, None),
        "short": lambda listed: [row[:7] for row in listed],
        "long": lambda listed: [[*row, "x", {}, []] for row in listed],
        "twice": lambda listed: [row for row in listed for _ in range(2)],
        "backwards": lambda listed: listed[::-1],
        "not-lists": lambda listed: [dict(enumerate(row)) for row in listed],
    }.items()
}


def contracts(change: Callable[[dict], object], client: socket.socket, answer: Answer) -> None:
    """Answer with an exchangeInfo that is wrong."""
    info = json.loads(answer.body)
    changed = change(info)
    body(json.dumps(info if changed is None else changed).encode(), client, answer)


def add_names(info: dict) -> None:
    """List contracts under names that want to be more than a name."""
    for name in (
        "../../etc/passwd",
        "'; DROP TABLE bars; --",
        "\x1b[2J\x1b]0;x\x07",
        "[red]A[/]",
        "",
    ):
        info["symbols"].append({**info["symbols"][0], "symbol": name, "pair": name})


def add_many(info: dict) -> None:
    """List a hundred thousand contracts more."""
    few = ("contractType", "deliveryDate", "onboardDate", "status", "quoteAsset", "marginAsset")
    first = {name: info["symbols"][0][name] for name in few}
    for number in range(100_000):
        info["symbols"].append({**first, "symbol": f"N{number}USDT", "status": "BREAK"})


def put_all(name: str, value: object, info: dict) -> None:
    """Put a value into every contract."""
    for each in info["symbols"]:
        each[name] = value


INFOS: dict[str, EvilAnswer] = {
    f"info-{name}": partial(contracts, change)
    for name, change in {
        "no-symbols": lambda info: info.update(symbols=[]),
        "no-list": lambda info: info.pop("symbols") and None,
        "not-a-list": lambda info: info.update(symbols={"a": 1}),
        "names": add_names,
        "a-hundred-thousand": add_many,
        "twice": lambda info: info["symbols"].extend(list(info["symbols"])),
        "nothing-trades": partial(put_all, "status", "TRADING_HALT"),
        "status-null": partial(put_all, "status", None),
        "onboard-beyond": partial(put_all, "onboardDate", 1 << 70),
        "onboard-negative": partial(put_all, "onboardDate", -5),
        "delivery-text": partial(put_all, "deliveryDate", "tomorrow"),
    }.items()
}


def server_time(text: Callable[[int], str], client: socket.socket, answer: Answer) -> None:
    """Tell another time."""
    true_ms = json.loads(answer.body)["serverTime"]
    body(f'{{"serverTime":{text(true_ms)}}}'.encode(), client, answer)


TIMES: dict[str, EvilAnswer] = {
    f"time-{name}": partial(server_time, text)
    for name, text in {
        "zero": lambda _: "0",
        "negative": lambda _: "-1",
        "text": lambda _: '"now"',
        "fraction": lambda at: f"{at}.5",
        "beyond": lambda _: "1" + "0" * 40,
        "a-day-ahead": lambda at: str(at + DAY_MS),
        "a-year-behind": lambda at: str(at - 365 * DAY_MS),
        "five-minutes-ahead": lambda at: str(at + 300_000),
        "null": lambda _: "null",
    }.items()
}

KINDS: dict[str, tuple[tuple[str, ...], EvilAnswer]] = {
    **{name: ((), evil) for name, evil in {**STATUSES, **CARRIED, **HELD}.items()},
    **{name: ((KLINES,), evil) for name, evil in ROWS.items()},
    **{name: ((INFO,), evil) for name, evil in INFOS.items()},
    **{name: ((TIME,), evil) for name, evil in TIMES.items()},
}
"""Every kind: the paths it goes for (none: all), and what answers."""
