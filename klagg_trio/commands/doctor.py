"""`klagg doctor`: why it would not work here. Each check is one line; the first bad one decides."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import click
import trio

from klagg_trio.commands.start import SNAPSHOT_NAME, load_here, locked, wall_ms
from klagg_trio.core.errors import KlaggError, LockedError, RemoteError
from klagg_trio.settings import Settings

OFFSET_MS_MAX: Final = 60_000
"""klagg goes by the exchange's time, but a clock this wrong breaks TLS before long."""

PATIENCE_S: Final = 15.0
"""For each question to the exchange."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    text: str
    exit_code: int = 0


def run_command(flags: Mapping[str, str | None], *, as_json: bool) -> int:
    """Run all checks. Returns 0, or the exit code that the first bad one stands for."""
    settings = load_here(flags).settings
    checks = [_check("disk", lambda: _disk(settings)), _check("snapshot", lambda: _look(settings))]
    checks += trio.run(_ask, settings)
    if as_json:
        click.echo(json.dumps([{"check": c.name, "ok": c.ok, "text": c.text} for c in checks]))
    else:
        for check in checks:
            click.echo(f"{'ok ' if check.ok else 'BAD'}  {check.name:<10} {check.text}")
    return next((check.exit_code for check in checks if not check.ok), 0)


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except KlaggError as error:
        return Check(name, False, str(error), error.exit_code)


def _disk(settings: Settings) -> str:
    """Take the lock for a moment: that writes, and tells whether a klagg is at work."""
    try:
        with locked(settings.data_dir):
            return f"{settings.data_dir} is writable"
    except LockedError:
        return f"{settings.data_dir} is in use by a running klagg"


def _look(settings: Settings) -> str:
    from klagg_trio.store.start_snapshot import read_snapshot

    start = read_snapshot(settings.data_dir / SNAPSHOT_NAME)
    age_s = (wall_ms() - start.cut_ms) / 1_000
    return f"{len(start.seeds)} symbols, {len(start.intervals)} intervals, {age_s:,.0f} s old"


async def _ask(settings: Settings) -> list[Check]:
    """Ask the exchange by both HTTP clients, and over the websocket."""
    return [
        await _asked("REST", lambda: _rest(settings)),
        await _asked("time", lambda: _time(settings)),
        await _asked("websocket", lambda: _websocket(settings)),
    ]


async def _asked(name: str, ask: Callable[[], Awaitable[str]]) -> Check:
    try:
        with trio.fail_after(PATIENCE_S):
            return Check(name, True, await ask())
    except KlaggError as error:
        return Check(name, False, str(error), error.exit_code)
    except trio.TooSlowError:
        text = f"no answer within {PATIENCE_S:g} s; check the network and the URL"
        return Check(name, False, text, RemoteError.exit_code)


async def _rest(settings: Settings) -> str:
    from klagg_trio.exchange.rest import HttpxRest, Priority
    from klagg_trio.exchange.weight import WeightGate

    rest = HttpxRest(settings.rest_url, WeightGate(share=settings.weight_share))
    try:
        await rest.server_time(priority=Priority.TIME)
    finally:
        with trio.CancelScope(shield=True):
            await rest.aclose()
    return f"{settings.rest_url} answers"


async def _time(settings: Settings) -> str:
    from klagg_trio.exchange.clock_probe import AsksProbe, sample_offset

    sample = await sample_offset(AsksProbe(settings.rest_url))
    wrong_ms = sample.offset_ms + trio.current_time() * 1_000 - wall_ms()
    text = f"this clock is {-wrong_ms:+.0f} ms off, round trip {sample.round_trip_ms:.0f} ms"
    if math.fabs(wrong_ms) > OFFSET_MS_MAX:
        raise RemoteError(f"{text}; set the clock, by NTP for example")
    return text


async def _websocket(settings: Settings) -> str:
    """Wait for data: an acknowledgement proves nothing."""
    from klagg_trio.exchange import wire
    from klagg_trio.exchange.stream import open_connection

    async with open_connection(f"{settings.ws_url}/stream") as connection:
        await connection.send_text(wire.subscribe(["!miniTicker@arr"], 1))
        async for frames in connection.batches:
            if any(isinstance(wire.decode_frame(frame), wire.MiniTickers) for frame in frames):
                return f"{settings.ws_url} delivers"
    raise RemoteError(f"{settings.ws_url} closed the connection; is it a market stream root?")
