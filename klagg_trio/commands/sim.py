"""`klagg sim`: the exchange simulator on two loopback ports, on real time."""

from __future__ import annotations

import json

import click
import trio

from klagg_trio.commands.start import duration_s, wait_signal, wall_ms
from klagg_trio.core.errors import ConfigurationError
from klagg_trio.settings import is_loopback
from klagg_trio.sim.server import SimError, SimExchange, SimOptions


def run_command(
    *,
    seed: int,
    symbols: int,
    host: str,
    rest_port: int,
    ws_port: int,
    duration: str | None,
    as_json: bool,
) -> int:
    """Serve until a signal or the end of --duration. Returns the exit code."""
    seconds = duration_s(duration)
    if not is_loopback(host):
        raise ConfigurationError(
            f"--host {host} is no loopback address; the simulator serves this machine only"
        )
    trio.run(_serve, seed, symbols, host, (rest_port, ws_port), seconds, as_json)
    return 0


async def _serve(
    seed: int,
    symbols: int,
    host: str,
    ports: tuple[int, int],
    seconds: float | None,
    as_json: bool,
) -> None:
    """Serve, on a clock that starts now and runs as fast as the real one."""
    start_ms = int(wall_ms())
    zero_s = trio.current_time()

    def now_ms() -> int:
        return start_ms + int((trio.current_time() - zero_s) * 1_000)

    options = SimOptions(seed=seed, symbols=symbols, start_ms=start_ms)
    exchange = SimExchange(options, now_ms=now_ms)
    async with trio.open_nursery() as nursery:

        async def stop_at_signal(task_status: trio.TaskStatus[None]) -> None:
            await wait_signal(task_status)
            nursery.cancel_scope.cancel()

        async def serve(task_status: trio.TaskStatus[tuple[str, str]]) -> None:
            try:
                await exchange.serve(
                    host=host, rest_port=ports[0], ws_port=ports[1], task_status=task_status
                )
            except SimError as error:
                raise ConfigurationError(f"{error}; choose --rest-port and --ws-port") from error

        await nursery.start(stop_at_signal)
        await nursery.start(exchange.run)
        rest_url, ws_url = await nursery.start(serve)
        if as_json:
            click.echo(json.dumps({"rest_url": rest_url, "ws_url": ws_url}))
        else:
            click.echo(f"rest  {rest_url}\nws    {ws_url}")
        if seconds is not None:
            await trio.sleep(seconds)
            nursery.cancel_scope.cancel()
