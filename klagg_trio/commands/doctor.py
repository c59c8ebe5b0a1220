"""`klagg doctor`: why it would not work here. Each check is one line; the first bad one decides."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import click
import trio

from klagg_trio.commands.start import (
    DATABASE_NAME,
    SNAPSHOT_NAME,
    command_here,
    dial_here,
    load_here,
    locked,
    open_asks,
    open_rest,
    rest_proxy,
    wall_ms,
    ws_proxy,
)
from klagg_trio.core.errors import (
    DamagedDataError,
    KlaggError,
    LockedError,
    RemoteError,
    StoreError,
)
from klagg_trio.core.intervals import DAY_MS
from klagg_trio.core.plain import plain
from klagg_trio.settings import Loaded, Settings
from klagg_trio.store.reading import reading

OFFSET_MS_MAX: Final = 60_000
"""klagg goes by the exchange's time, but a clock this wrong breaks TLS before long."""

PATIENCE_S: Final = 15.0
"""For each question to the exchange."""


FREE_BYTES_MIN: Final = 256 * 2**20
"""Below this a checkpoint, a fold or an export may find no room."""

FULL_DAYS_MIN: Final = 7.0
"""A disk that is full sooner is told as bad: there should be time to act."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    text: str
    exit_code: int = 0


def run_command(flags: Mapping[str, str | None], *, as_json: bool) -> int:
    """Run all checks. Returns 0, or the exit code that the first bad one stands for."""
    loaded = load_here(flags)
    settings = loaded.settings
    checks = [
        _check("disk", lambda: _disk(settings)),
        _check("room", lambda: _room(settings)),
        _check("database", lambda: _database(loaded)),
        _check("snapshot", lambda: _look(settings)),
        _check("way", lambda: _way(settings)),
    ]
    if checks[-1].ok:
        checks += trio.run(_ask, settings)
    if as_json:
        told = [{"check": c.name, "ok": c.ok, "text": c.text} for c in checks]
        click.echo(json.dumps(told, ensure_ascii=False))
    else:
        for check in checks:
            click.echo(
                f"{'ok ' if check.ok else 'BAD'}  {check.name:<10} {plain(check.text, 1_000)}"
            )
    return next((check.exit_code for check in checks if not check.ok), 0)


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except KlaggError as error:
        return Check(name, False, str(error), error.exit_code)


# -- This machine ----------------------------------------------------------------------------------


def _disk(settings: Settings) -> str:
    """Take the lock for a moment: that writes, and tells whether a klagg is at work."""
    try:
        with locked(settings.data_dir):
            return f"{settings.data_dir} is writable"
    except LockedError:
        return f"{settings.data_dir} is in use by a running klagg"


def _room(settings: Settings) -> str:
    """Say how much is free, and for how long that lasts at the growth of the last stored day."""
    try:
        free = shutil.disk_usage(settings.data_dir).free
    except OSError as error:
        raise StoreError(f"{settings.data_dir} cannot be looked at ({error.strerror})") from error
    text, grown = f"{_bytes(free)} free", 0.0
    with contextlib.suppress(DamagedDataError, StoreError):  # the next check tells of it
        grown = _bytes_a_day(settings)
    days = free / grown if grown else math.inf
    if grown:
        text += f", full in {_days(days)} at {_bytes(grown)} a day"
    if free < FREE_BYTES_MIN or days < FULL_DAYS_MIN:
        raise StoreError(f"{text}; make room, or use another --data-dir")
    return text


def _bytes_a_day(settings: Settings) -> float:
    """Return what a day of all that is kept takes, by the bars of the last one; 0 if unknown."""
    path = settings.data_dir / DATABASE_NAME
    if not path.exists():
        return 0.0
    with reading(path) as connection:
        pages, page_bytes = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "page_size")
        )
        bars, until_ms = connection.execute(
            "SELECT count(*), max(open_time) FROM klines"
        ).fetchone()
        if not bars:
            return 0.0
        (since_ms,) = connection.execute("SELECT min(open_time) FROM klines").fetchone()
        recent = connection.execute(
            "SELECT count(*) FROM klines WHERE open_time > ?", (until_ms - DAY_MS,)
        ).fetchone()[0]
        days = min(1.0, max((until_ms - since_ms) / DAY_MS, 1 / 24))
    return float(pages * page_bytes / bars * recent / days)


def _database(loaded: Loaded) -> str:
    """Read the whole file: a damaged page is found here and not in the middle of a night."""
    path = loaded.settings.data_dir / DATABASE_NAME
    backfill = command_here("klagg backfill", loaded)
    if not path.exists():
        return f"{path} is not there yet; next: {backfill}"
    with reading(path) as connection:
        found = [text for (text,) in connection.execute("PRAGMA integrity_check(3)")]
    if found != ["ok"]:
        raise DamagedDataError(
            f"{path} is damaged ({plain('; '.join(found))}); move it away or restore a copy, then "
            f"run: {backfill}"
        )
    return f"{path} is whole, {_bytes(path.stat().st_size)}"


def _look(settings: Settings) -> str:
    from klagg_trio.store.start_snapshot import read_snapshot

    start = read_snapshot(settings.data_dir / SNAPSHOT_NAME)
    age_s = (wall_ms() - start.cut_ms) / 1_000
    return f"{len(start.seeds)} symbols, {len(start.intervals)} intervals, {age_s:,.0f} s old"


def _way(settings: Settings) -> str:
    """Say which way the exchange is asked by REST and by websocket."""
    ways = {"REST": rest_proxy(settings), "websocket": ws_proxy(settings)}
    return ", ".join(
        f"{name} {'straight' if proxy is None else f'through the proxy {proxy}'}"
        for name, proxy in ways.items()
    )


def _bytes(size: float) -> str:
    for unit, length in (("GB", 1e9), ("MB", 1e6)):
        if size >= length:
            return f"{size / length:,.1f} {unit}"
    return f"{size / 1e3:,.1f} kB"


def _days(days: float) -> str:
    return f"{days:,.0f} days" if days < 3_650 else "more than ten years"


# -- The exchange ----------------------------------------------------------------------------------


async def _ask(settings: Settings) -> list[Check]:
    """Ask the exchange by both HTTP clients, and over the websocket."""
    return [
        await _asked("REST", lambda: _rest(settings)),
        await _asked("time", lambda: _time(settings)),
        await _asked("websocket", lambda: _websocket(settings), "no data", "ws_url"),
    ]


async def _asked(
    name: str, ask: Callable[[], Awaitable[str]], what: str = "no answer", where: str = "rest_url"
) -> Check:
    try:
        with trio.fail_after(PATIENCE_S):
            return Check(name, True, await ask())
    except KlaggError as error:
        return Check(name, False, str(error), error.exit_code)
    except trio.TooSlowError:
        text = f"{what} within {PATIENCE_S:g} s; check the network and {where}, its path too"
        return Check(name, False, text, RemoteError.exit_code)


async def _rest(settings: Settings) -> str:
    from klagg_trio.exchange.rest import Priority
    from klagg_trio.exchange.weight import WeightGate

    rest = open_rest(settings, WeightGate(share=settings.weight_share))
    try:
        await rest.server_time(priority=Priority.TIME)
    finally:
        with trio.CancelScope(shield=True):
            await rest.aclose()
    return f"{settings.rest_url} answers"


async def _time(settings: Settings) -> str:
    from klagg_trio.exchange.clock_probe import sample_offset

    sample = await sample_offset(open_asks(settings))
    wrong_ms = sample.offset_ms + trio.current_time() * 1_000 - wall_ms()
    text = f"this clock is {-wrong_ms:+.0f} ms off, round trip {sample.round_trip_ms:.0f} ms"
    if math.fabs(wrong_ms) > OFFSET_MS_MAX:
        raise RemoteError(f"{text}; set the clock, by NTP for example")
    return text


async def _websocket(settings: Settings) -> str:
    """Wait for data: an acknowledgement proves nothing."""
    from klagg_trio.exchange import wire
    from klagg_trio.exchange.stream import open_connection

    async with open_connection(f"{settings.ws_url}/stream", dial_here()) as connection:
        await connection.send_text(wire.subscribe(["!miniTicker@arr"], 1))
        async for frames in connection.batches:
            if any(isinstance(wire.decode_frame(frame), wire.MiniTickers) for frame in frames):
                return f"{settings.ws_url} delivers"
    raise RemoteError(f"{settings.ws_url} closed the connection; is it a market stream root?")
