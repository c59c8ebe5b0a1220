"""The whole application and the exchange over memory streams, to be stopped and started at will."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from klagg_trio.backfill import run_backfill
from klagg_trio.demo.stage import START_MS, DemoOptions, connect
from klagg_trio.nursery_app import App, Edge, RunReport, run_app
from klagg_trio.settings import Settings
from klagg_trio.sim.server import SimExchange, SimOptions
from klagg_trio.store.database import Database
from klagg_trio.store.reading import open_reader
from klagg_trio.store.start_snapshot import read_snapshot

MINUTE_MS = 60_000

MARKET = SimOptions(step_ms=250, symbols=6, trades_per_minute=300, list_after_s=None, straddle=True)


async def until(reached):
    """Look twice a second: the parts of the app count, they do not call back."""
    while not reached():  # noqa: ASYNC110
        await trio.sleep(0.5)


@dataclass
class Asleep:
    """By how much all clocks but Trio's have gone on while the machine slept."""

    ms: int = 0


@dataclass
class Stage:
    """One exchange, one data directory, and the app that runs now, if any."""

    exchange: SimExchange
    settings: Settings
    edge: Edge
    app: App | None = None
    report: RunReport | None = None
    asleep: Asleep = field(default_factory=Asleep)
    _stop: trio.Event = field(default_factory=trio.Event)
    _ended: trio.Event = field(default_factory=trio.Event)

    @property
    def path(self):
        """Return the database file."""
        return self.settings.data_dir / "klagg.db"

    @property
    def now_ms(self):
        """Return the exchange's time."""
        return self.exchange._now_ms()

    @property
    def committed_ms(self):
        """Return the minute before which all is durable."""
        return self.app.writer.statistics().committed_minute_ms

    async def backfill(self):
        """Fill the data directory."""
        database = Database.open(self.path)
        try:
            return await run_backfill(
                self.settings,
                self.edge.rest,
                database=database,
                run_in_thread=self.edge.run_in_thread,
            )
        finally:
            database.close()

    async def start(self, nursery, **changes):
        """Start the app from the snapshot in `nursery`; it is running when this returns."""
        settings = replace(self.settings, **changes)
        self._stop, self._ended = trio.Event(), trio.Event()

        async def run(task_status):
            database = Database.open(self.path)
            try:
                self.report = await run_app(
                    settings,
                    self.edge,
                    database=database,
                    start=read_snapshot(settings.data_dir / "initial_state.cbor"),
                    stop=self._stop,
                    task_status=task_status,
                )
            finally:
                database.close()
                self._ended.set()

        self.app = await nursery.start(run)
        return self.app

    async def stop(self):
        """Stop the app cleanly; return the (simulated) seconds that it took."""
        began_s = trio.current_time()
        self._stop.set()
        await self._ended.wait()
        self.app = None
        return trio.current_time() - began_s

    def sleep(self, span_ms):
        """Let the machine sleep: Trio's clock stands still, all others and the exchange go on."""
        self.asleep.ms += span_ms
        self.exchange.step()

    async def minutes(self, count):
        """Wait for so many more minutes to be durable."""
        assert self.app is not None
        until_ms = self.app.minute_clock.minute_ms + count * MINUTE_MS
        await until(lambda: self.committed_ms >= until_ms)

    async def repaired(self, limit_s=600):
        """Wait until nothing is owed."""
        assert self.app is not None
        with trio.fail_after(limit_s):
            await until(lambda: not self.app.owes_before(self.now_ms))
            await trio.sleep(2.0)

    def feed_peers(self):
        """Return the exchange's ends of the feed connections, oldest first."""
        peers = [
            peer
            for peer in self.exchange.board.peers
            if any("@aggTrade" in name for name in peer.streams)
        ]
        return sorted(peers, key=lambda peer: peer.number)

    def rows(self, query, *values):
        """Ask the database as a user would."""
        connection = open_reader(self.path)
        connection.row_factory = sqlite3.Row
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def events(self, kind):
        """Return the durable events of a kind."""
        return self.rows("SELECT * FROM events WHERE kind = ? ORDER BY id", kind)

    def holes(self):
        """Return the places where a series has a hole, or does not reach the last tick."""
        (tick,) = self.rows("SELECT value FROM meta WHERE key = 'last_tick'")
        found = []
        for symbol, onboard_ms, delivery_ms in self.rows(
            "SELECT symbol, onboard_ms, delivery_ms FROM symbols"
        ):
            minutes = [
                row[0]
                for row in self.rows(
                    "SELECT open_time FROM klines WHERE symbol = ? AND interval = '1m'"
                    " ORDER BY open_time",
                    symbol,
                )
            ]
            end_ms = min(int(tick["value"]), delivery_ms)
            if onboard_ms >= end_ms:
                continue
            expected = range(minutes[0], end_ms, MINUTE_MS) if minutes else [onboard_ms]
            if minutes[: len(expected)] != list(expected):
                found.append((symbol, sorted(set(expected) - set(minutes))[:3]))
        return found

    def differing(self, until_ms):
        """Return stored bars up to a time that differ from the official ones, or are suspect."""
        found = []
        for symbol, interval, first_ms in self.rows(
            "SELECT symbol, interval, min(open_time) FROM klines GROUP BY symbol, interval"
        ):
            official = {
                kline.open_time: kline.floats()
                for kline in self.exchange.official_klines(symbol, interval, first_ms, until_ms)
            }
            for row in self.rows(
                "SELECT * FROM klines WHERE symbol = ? AND interval = ? AND close_time < ?",
                symbol,
                interval,
                until_ms,
            ):
                values = tuple(row[name] for name in VALUES)
                if row["source"] == "suspect" or values != official[row["open_time"]]:
                    found.append((symbol, interval, row["open_time"], row["source"]))
        return found


VALUES = (
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "count",
    "taker_buy_volume",
    "taker_buy_quote_volume",
)


@asynccontextmanager
async def stage(
    tmp_path, market: SimOptions = MARKET, *, seed: int = 1, intervals=("1m", "5m", "1h"), **changes
) -> AsyncIterator[tuple[Stage, trio.Nursery]]:
    """Bring up the exchange, fill the data directory; give the stage and a nursery for the app."""

    asleep = Asleep()

    def now_ms():
        return START_MS + int(trio.current_time() * 1000) + asleep.ms

    options = DemoOptions(
        speed=math.inf, symbols=market.symbols, seed=seed, intervals=intervals, market=market
    )
    market = replace(market, seed=seed, start_ms=START_MS)
    exchange = SimExchange(market, now_ms=now_ms)
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)
        settings, edge = await connect(options, tmp_path, exchange, nursery, now_ms)
        made = Stage(exchange, replace(settings, **changes), edge, asleep=asleep)
        await made.backfill()
        yield made, nursery
        if made.app is not None:
            await made.stop()
        await edge.rest.aclose()
        nursery.cancel_scope.cancel()
