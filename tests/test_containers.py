"""Every container that lives as long as the run has a bound: the table of it is held to the source.

The containers are found in the source: attributes of classes that are made, or annotated, as dict,
set, list, deque and the like. Each is in the table of docs/ARCHITECTURE.md, or belongs to a class
whose instances come and go. For a selection a million entries are driven in.
"""

from __future__ import annotations

import ast
import importlib
import re
import tracemalloc
from collections import deque
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from klagg_trio import discovery, nursery_app, writer
from klagg_trio.backlog import Backlog
from klagg_trio.core import asking, clock, gaps
from klagg_trio.core.bar import Bar
from klagg_trio.core.facts import Event, Facts
from klagg_trio.exchange import bursts
from klagg_trio.exchange.bursts import TradeDecoder
from klagg_trio.exchange.frames import Frames
from klagg_trio.exchange.weight import Priority, WeightGate

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "klagg_trio"

NOT_OF_A_RUN = {
    *("sim", "demo", "commands", "backfill", "replay", "audit", "cli", "settings"),
    *("interrupt", "__init__", "__main__"),
}
"""Parts that `klagg run` is not made of."""

PASSING = {
    "core.facts.Facts": "a message: what one transaction brings about",
    "core.columns.Parts": "one burst, split by shards",
    "core.columns.Units": "made anew with the decoder's tables, and as large",
    "core.shard.evidence.Findings": "what one message brings about",
    "exchange.body.Unpacker": "one answer, under its limit",
    "exchange.sorting.Sorter": "replay only",
    "exchange.sorting._Run": "replay only",
    "exchange.validate.Klines": "one answer",
    "exchange.wire.Decoded": "one chunk",
    "exchange.wire.MiniTickers": "one frame",
    "exchange.wire.ExchangeInfo": "one answer",
    "exchange.wire._ExchangeInfo": "one answer",
    "store.snapshot_columns.Columns": "one snapshot, while it is read or written",
    "store.verify._Found": "verify only",
    "store.verify._Longer": "verify only",
    "writer.Batch": "one transaction",
}
"""Classes whose instances do not live as long as the run, and what they live for."""

CONTAINERS = {
    *("dict", "set", "list", "deque", "Counter", "defaultdict", "bytearray", "Spans"),
    *("open_memory_channel", "MemoryBIO"),
}
LITERALS = (ast.Dict, ast.Set, ast.List, ast.ListComp, ast.SetComp, ast.DictComp)
ROW = re.compile(r"^\| `([a-z_.]+\.[A-Za-z_.]+)` \| (.*?) \| (.*?) ?\|$", re.M)


def table() -> dict[str, tuple[str, str]]:
    """The rows of the table: what holds each container, and what happens there."""
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition("## What is kept as long as the run")[2].partition("\n## ")[0]
    return {name: (bound, there) for name, bound, there in ROW.findall(section)}


def makes_a_container(value: ast.expr | None) -> bool:
    """Whether an expression makes one."""
    if value is None or isinstance(value, ast.Constant):
        return False
    if isinstance(value, LITERALS):
        return True
    for node in ast.walk(value):
        if isinstance(node, ast.Call):
            made = node.func.value if isinstance(node.func, ast.Subscript) else node.func
            named = made.id if isinstance(made, ast.Name) else getattr(made, "attr", "")
            if named in CONTAINERS:
                return True
            if any(
                k.arg == "default_factory" and names(k.value) & CONTAINERS for k in node.keywords
            ):
                return True
    return False


def names(node: ast.expr) -> set[str]:
    """All names within an expression."""
    found = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return found | {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}


def attributes(defined: ast.ClassDef) -> Iterator[str]:
    """The attributes of a class that hold containers."""
    for node in ast.walk(defined):
        targets: list[ast.expr] = []
        if isinstance(node, ast.AnnAssign):
            if names(node.annotation) & CONTAINERS or makes_a_container(node.value):
                targets = [node.target]
        elif isinstance(node, ast.Assign) and makes_a_container(node.value):
            targets = node.targets
        for target in targets:
            for each in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(each, ast.Attribute) and names(each.value) == {"self"}:
                    yield each.attr
                elif isinstance(each, ast.Name) and node in defined.body:
                    yield each.id


def containers() -> set[tuple[str, str]]:
    """Class and attribute of every container in the parts that a run is made of."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        within = path.relative_to(PACKAGE).with_suffix("").parts
        if within[0] in NOT_OF_A_RUN:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                name = ".".join((*within, node.name))
                found |= {(name, attribute) for attribute in attributes(node)}
    return found


def test_every_container_has_its_bound_in_the_table():
    """What is made as a container and lives as long as the run is in the table, with a bound."""
    told = table()
    missing = sorted(
        f"{name}.{attribute}"
        for name, attribute in containers()
        if name not in PASSING and f"{name}.{attribute}" not in told
    )
    assert missing == [], "say in docs/ARCHITECTURE.md what bounds them, and what happens there"
    assert [name for name, (bound, _) in told.items() if not bound.strip()] == []


def test_the_table_names_nothing_that_is_gone():
    """Every row, and every exception here, is about something that there is."""
    there = {f"{name}.{attribute}" for name, attribute in containers()}
    others = {"exchange.stream.batches", "backlog.Backlog", "core.columns.PendingMinute"}
    assert sorted(set(table()) - there - others) == []
    assert sorted(set(PASSING) - {name for name, _ in containers()}) == []


def test_bounds_that_are_constants_exist():
    """A bound by name is a number in the module of the container, or in the one it names."""
    wrong = []
    for name, (bound, _) in table().items():
        parts = name.split(".")
        if name != "exchange.stream.batches":
            parts = parts[: next(n for n, part in enumerate(parts) if part.strip("_")[0].isupper())]
        else:
            parts = parts[:-1]
        for constant in re.findall(r"`([a-z_.]*[A-Z][A-Z_]+)`", bound):
            *where, last = constant.split(".")
            places = [[*parts], [*parts[:-1], *where], where] if where else [parts]
            if not any(number_in(place, last) for place in places if place):
                wrong.append(f"{name}: {constant}")
    assert wrong == []


def number_in(place: list[str], constant: str) -> bool:
    """Whether a module of the package has a number of that name."""
    try:
        module = importlib.import_module(".".join(("klagg_trio", *place)))
    except ImportError:
        return False
    return isinstance(getattr(module, constant, None), int | float)


# -- A million entries -----------------------------------------------------------------------------

MILLION = 1_000_000
MUCH = 8 << 20
"""Bytes that a container may keep of a million entries that are all different."""


def strangers_in_tickers() -> object:
    """A million symbols that nobody has heard of."""
    kept: dict[str, Decimal] = {}
    price = Decimal(1)
    for number in range(MILLION):
        discovery._remember(kept, f"{number:040}", price)
    assert len(kept) <= discovery.STRANGERS_MAX
    return kept


def strangers_in_trades() -> object:
    """Trades of ever new symbols, a burst of them again and again."""
    decoder = TradeDecoder()
    for burst in range(60):
        frames = [
            f'{{"stream":"x{n}@aggTrade","data":{{"e":"aggTrade","E":1791382992488,"a":1,'
            f'"s":"X{n}","p":"1","q":"1","nq":"1","f":1,"l":1,"T":1791382992488,'
            f'"m":true,"st":1}}}}'.encode()
            for n in range(burst * 500, burst * 500 + 500)
        ]
        decoder._skip = 0
        decoder.decode(Frames.of(frames))
    assert len(decoder._known) <= bursts.SYMBOLS_MAX
    return decoder


def owed_minutes() -> object:
    """Every third minute of years, added one by one, and others taken out."""
    spans = gaps.Spans()
    for number in range(MILLION // 100):
        spans.add(number * 180_000, number * 180_000)
    spans.add(0, MILLION * 60_000)
    for number in range(0, MILLION // 100, 7):
        spans.remove(number * 60_000, number * 60_000)
    assert len(spans) <= gaps.PIECES_MAX
    return spans


def failed_askings() -> object:
    """Symbols that the exchange does not serve."""
    patience, fewer = asking.Patience(), asking.FewerTrades()
    official = Bar(0, 60_000, *[Decimal(1)] * 4, Decimal(1), Decimal(1), 1)
    ours = Bar(0, 60_000, *[Decimal(1)] * 4, Decimal(2), Decimal(2), 2)
    for number in range(MILLION // 20):
        patience.fail(f"{number:040}", 0, 0, 0.0)
        fewer.is_doubtful(f"{number:040}", official, ours)
    return patience, fewer


def streams_that_tell_the_time() -> object:
    """Event times of ever new streams."""
    time = clock.ExchangeTime()
    time.take_sample(clock.Sample(0.0, 1.0, 0.0))
    for number in range(MILLION // 5):
        time.take_event(f"{number:040}", float(number), number)
    return time


def noted_events() -> object:
    """Notes of a storm, each of its own kind of words."""
    app = SimpleNamespace(_told={}, _events=deque(), events_dropped=0)
    for number in range(MILLION // 500):
        event = Event(number, "disconnect", "", f"{number} " + "x" * 10_000)
        nursery_app.App.note(app, event)  # type: ignore[arg-type]
    assert len(app._events) + app.events_dropped == MILLION // 500
    return app


@pytest.mark.parametrize(
    "drive",
    [
        strangers_in_tickers,
        strangers_in_trades,
        owed_minutes,
        failed_askings,
        streams_that_tell_the_time,
        noted_events,
    ],
)
@pytest.mark.slow
def test_a_million_entries_cost_no_more_than_the_bound(drive):
    """What is left of a million different entries is as much as the bound says."""
    tracemalloc.start()
    try:
        kept = drive()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept is not None
    assert used < MUCH, f"{used:,} bytes"


@pytest.mark.slow
async def test_a_million_events_cost_no_more_than_a_minute_has_room_for(autojump_clock):
    """The writer keeps so many events of a minute, whatever shards have to say."""
    kept = SimpleNamespace(_events_until_s=-1.0, _events_untold=0, _events_room=0)
    left = 0
    for number in range(MILLION // 100):
        facts = Facts(events=[Event(number, "gap", "", "")] * 100)
        writer.Writer._bound_events(kept, facts)  # type: ignore[arg-type]
        left += len(facts.events)
    assert left == writer.EVENTS_A_MINUTE
    assert kept._events_untold == MILLION - left


async def test_a_million_absurd_counts_hold_nobody_up(autojump_clock):
    """The weight gate keeps no more than the limit of what the exchange claims."""
    gate = WeightGate()
    for number in range(MILLION // 10):
        gate.observe(number)
    assert len(gate._settled) <= gate.limit
    (await gate.spend(1, priority=Priority.TIME)).settle()
    assert trio.current_time() <= 61


async def test_trades_under_way_are_bounded(autojump_clock):
    """Who sends more trades than may be under way waits until some have reached their bars."""
    backlog = Backlog(trades_max=1_000)
    sent = 0

    async def feed():
        nonlocal sent
        for _ in range(100):
            await backlog.enter(300)
            sent += 300

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(feed)
        await trio.testing.wait_all_tasks_blocked()
        assert backlog.trades == sent == 900
        while sent < 5 * 100 * 300:
            backlog.leave(300)
            await trio.testing.wait_all_tasks_blocked()
            assert backlog.trades <= 1_000
        nursery.start_soon(backlog.enter, 5_000)
        await trio.testing.wait_all_tasks_blocked()
        backlog.close()
