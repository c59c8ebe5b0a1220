"""The bare drain: a blocking socket read to its end, nothing looked at. The ceiling."""

from __future__ import annotations

import base64
import os
import socket
import ssl
from urllib.parse import urlsplit

from bench.contenders import job


def main() -> None:
    task = job()
    meter = task.meter()
    parts = urlsplit(task.url)
    assert parts.port is not None
    connection = socket.create_connection(("127.0.0.1", parts.port))
    if parts.scheme == "wss":
        connection = ssl.create_default_context().wrap_socket(
            connection, server_hostname="127.0.0.1"
        )
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    wanted = sum(task.source.lengths())
    buffer = bytearray(256 * 1024)
    while wanted:
        got = connection.recv_into(buffer)
        if not got:
            raise SystemExit("the blaster ended early")
        meter.begin()
        wanted -= got
    meter.end()
    meter.tell(task.source.trades)


if __name__ == "__main__":
    main()
