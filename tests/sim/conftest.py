"""An exchange in memory, and raw websocket clients for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

from klagg_trio.sim.server import SimExchange, SimOptions


@dataclass
class Client:
    """One websocket, and short words for talking over it."""

    connection: WebSocketConnection
    stream: trio.abc.Stream

    async def send(self, message: Any) -> None:
        text = message if isinstance(message, str) else json.dumps(message)
        await self.connection.send_message(text)

    async def receive(self) -> Any:
        return json.loads(await self.connection.get_message())

    async def ask(self, method: str, params: list | None = None, number: object = 1) -> Any:
        message = {"method": method, "id": number}
        if params is not None:
            message["params"] = params
        await self.send(message)
        while True:
            answer = await self.receive()
            if "stream" not in answer and "e" not in answer:
                return answer

    async def gather(self, seconds: float) -> list[Any]:
        """Return what arrives within some simulated time."""
        found = []
        with trio.move_on_after(seconds):
            while True:
                found.append(await self.receive())
        return found


@dataclass
class World:
    """A running exchange and a nursery for its clients."""

    exchange: SimExchange
    nursery: trio.Nursery
    now_ms: Callable[[], int]

    async def connect(self, path: str = "/market/stream") -> Client:
        stream = await self.exchange.dialer(self.nursery)("127.0.0.1", 1, False)
        connection = await wrap_client_stream(self.nursery, stream, "127.0.0.1", path)
        return Client(connection, stream)

    def get(self, target: str) -> Any:
        """Return the JSON of a REST answer."""
        return json.loads(self.exchange.answer("GET", target).body)


@pytest.fixture
async def make_world(nursery):
    """Return a function that starts an exchange. Tests ask for the `autojump_clock` themselves."""

    async def make(options: SimOptions | None = None, **more: Any) -> World:
        options = options or SimOptions(symbols=8)
        zero_s = trio.current_time()

        def now_ms() -> int:
            return options.start_ms + int((trio.current_time() - zero_s) * 1000)

        exchange = SimExchange(options, now_ms=now_ms, **more)
        await nursery.start(exchange.run)
        return World(exchange, nursery, now_ms)

    return make


@pytest.fixture
async def world(make_world):
    """An exchange of eight symbols."""
    return await make_world()
