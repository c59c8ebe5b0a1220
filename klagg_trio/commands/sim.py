"""`klagg sim`: the exchange simulator on two loopback ports, on real time."""

from __future__ import annotations

import json
import math

import click
import trio

from klagg_trio.commands import leaves
from klagg_trio.commands.start import duration_s, wait_signal, wall_ms
from klagg_trio.core.errors import ConfigurationError
from klagg_trio.settings import is_loopback
from klagg_trio.sim.server import SimError, SimOptions, run_sim


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
    try:
        trio.run(_serve, seed, symbols, host, (rest_port, ws_port), seconds, as_json)
    except* SimError as group:
        text = "; ".join(str(error) for error in leaves(group))
        raise ConfigurationError(f"{text}; choose others: --rest-port, --ws-port") from group
    return 0


async def _serve(
    seed: int,
    symbols: int,
    host: str,
    ports: tuple[int, int],
    seconds: float | None,
    as_json: bool,
) -> None:
    """Serve, on a clock that starts with the real one and runs as fast."""
    start_ms = int(wall_ms())
    zero_s = trio.current_time()

    def now_ms() -> int:
        return start_ms + int((trio.current_time() - zero_s) * 1_000)

    def tell(rest_url: str, ws_url: str) -> None:
        if as_json:
            click.echo(json.dumps({"rest_url": rest_url, "ws_url": ws_url}))
        else:
            click.echo(f"rest  {rest_url}\nws    {ws_url}")

    async with trio.open_nursery() as nursery:

        async def stop_at_signal(task_status: trio.TaskStatus[None]) -> None:
            await wait_signal(task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(stop_at_signal)
        with trio.move_on_after(math.inf if seconds is None else seconds):
            await run_sim(
                SimOptions(seed=seed, symbols=symbols, start_ms=start_ms, straddle=True),
                now_ms=now_ms,
                host=host,
                rest_port=ports[0],
                ws_port=ports[1],
                on_ready=tell,
            )
        nursery.cancel_scope.cancel()
