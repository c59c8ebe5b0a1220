"""The terminal picture: what a person must be able to read, at every size."""

import io
import os
import re
from contextlib import suppress
from dataclasses import replace

import pytest
import trio
from rich.cells import cell_len
from rich.console import Console

from klagg_trio import dashboard
from klagg_trio.core.facts import BarCounts, Event, TradeCounts
from klagg_trio.dashboard import render, run_dashboard, run_status_line, spark, status_line
from klagg_trio.vitals import (
    AuditVitals,
    ClockVitals,
    ConnectionVitals,
    ShardVitals,
    SymbolVitals,
    Vitals,
    WeightVitals,
    WriterVitals,
)

NOON_MS = 1_735_732_800_000
"""2025-01-01 12:00 UTC."""

CONNECTION = ConnectionVitals(
    name="1.1",
    state="live",
    symbols=200,
    age_s=3_725.0,
    messages_per_s=1_234.5,
    silent_s=0.1,
    delay_ms=55.0,
    reconnects=2,
)

SYMBOL = SymbolVitals("BTCUSDT", 68_123.4, -0.25, 1_357, (68_200.0, 68_300.0, 68_123.4))

HEALTHY = Vitals(
    health="good",
    reason="",
    uptime_s=7_322.0,
    clock=ClockVitals(NOON_MS, 12.3, 8.0, 5.0, 30.0, 280, 25.4, NOON_MS),
    connections=(CONNECTION, replace(CONNECTION, name="1.2")),
    shards=tuple(ShardVitals(number, 125, number, 1_024) for number in range(4)),
    writer=WriterVitals(1, 256, 7.35, 123_456, NOON_MS, 100.0),
    weight=WeightVitals(123, 2_400),
    bars=BarCounts(sealed=98_765, flat=4_321, suspect=50, official=50, restated=77),
    trades=TradeCounts(in_bars=1_000_000, duplicate=12, late=34, rejected=5, not_ours=6),
    received=1_000_057,
    symbols=500,
    intervals=("1m", "5m"),
    owed_minutes=0,
    repaired_minutes=50,
    audit=AuditVitals(9_990, 10, 0),
    busiest=(SYMBOL, replace(SYMBOL, symbol="我踏马来了USDT"), replace(SYMBOL, symbol="[red]X[/]")),
    newest=(replace(SYMBOL, symbol="NOVAUSDT", closes=()),),
    events=tuple(Event(NOON_MS, "repaired", "ETHUSDT", f"number {n}") for n in range(60)),
)

TROUBLED = replace(
    HEALTHY,
    health="bad",
    reason="the tick is 14 s late",
    clock=replace(HEALTHY.clock, next_tick_s=-14.0),
    connections=(CONNECTION, replace(CONNECTION, name="1.2", state="connecting")),
    writer=replace(HEALTHY.writer, trouble="disk: the disk is full"),
    owed_minutes=1_234,
    events=(Event(NOON_MS, "gap", "BTCUSDT", "3 trades\x1b[2J missing"),),
)

LONG_RUN = replace(
    HEALTHY,
    uptime_s=3_000_000.0,
    connections=tuple(
        replace(
            CONNECTION,
            name=f"1.{number}",
            age_s=82_000.0,
            messages_per_s=123_456.0,
            silent_s=12_345.6,
            delay_ms=12_345.0,
            reconnects=1_234,
        )
        for number in range(3)
    ),
    shards=tuple(ShardVitals(number, 31, 1_000 + number, 1_024) for number in range(16)),
    writer=WriterVitals(255, 256, 12_345.6, 1_234_567_890, NOON_MS, 40_000.0),
    bars=BarCounts(sealed=12_345_678, flat=1_234_567, official=2_345_678, restated=345_678),
    trades=TradeCounts(in_bars=1_234_000_000, duplicate=567_890, late=123_456, rejected=12_345),
    received=1_234_703_691,
    owed_minutes=1_234_567,
    repaired_minutes=3_456_789,
)
"""Every number about as long as it can become."""

EMPTY = replace(
    HEALTHY,
    bars=BarCounts(),
    trades=TradeCounts(),
    received=0,
    connections=(),
    shards=(),
    writer=WriterVitals(0, 0, 0.0, 0, 0, -1.0),
    weight=WeightVitals(0, 0),
    audit=None,
    busiest=(),
    newest=(),
    events=(),
)

SIZES = [(80, 24), (160, 48), (120, 30), (100, 28), (72, 20), (40, 10), (20, 5)]


def numbers(lines):
    """Every run of digits and what joins them, above the events, whose text may be cut."""
    events = [n for n, line in enumerate(lines) if line.startswith("─ events")]
    state = lines[: events[0]] if events else lines
    return [n for line in state for n in re.findall(r"[0-9][0-9,.:]*…?", line)]


def drawn(vitals, width=80, height=24):
    """Return the lines of the picture as text."""
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None)
    console.print(render(vitals, width=width, height=height))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(
    "vitals", [HEALTHY, TROUBLED, LONG_RUN, EMPTY], ids=["healthy", "bad", "long", "empty"]
)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_size_is_kept_to(vitals, width, height):
    """No line is wider than the terminal, and there are no more lines than it has."""
    lines = drawn(vitals, width, height)
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("vitals", [HEALTHY, TROUBLED, LONG_RUN], ids=["healthy", "bad", "long"])
@pytest.mark.parametrize("width", [*range(20, 125), 160])
def test_no_number_is_cut(vitals, width):
    """Every number is whole at every width: what does not fit is left out."""
    whole = set(numbers(drawn(vitals, 400, 100)))
    for height in (10, 24, 48):
        assert set(numbers(drawn(vitals, width, height))) <= whole


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 48)])
def test_nothing_is_lost_in_a_long_run(width, height):
    """However large the numbers get, all of them are there and stand apart."""
    lines = drawn(LONG_RUN, width, height)
    text = "\n".join(lines)
    for word in (
        "3/3 live, 370,368 messages/s",
        "sealed 12,345,678",
        "owed 1,234,567 min",
        "repaired 3,456,789",
        "official 2,345,678",
        "restated 345,678",
        "duplicate 567,890",
        "rejected 12,345",
        "fullest 1,015 of 1,024",
        "rows 1,234,567,890",
        "saved up to 12:00",
    ):
        assert word in text, word
    row = next(line for line in lines if line.startswith("1.0"))
    fields = "1.0 live 123,456 22:46:40 200 12,345 ms 12,346 s 1,234"
    assert " ".join(row.split()).startswith(fields)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 48)])
def test_what_a_person_wants_to_know_is_there(width, height):
    """Health, clock, connections, bars, trades, writer, weight, score, symbols, events."""
    text = "\n".join(drawn(HEALTHY, width, height))
    for word in (
        "GOOD",
        "2025-01-01 12:00:00 UTC",
        "next tick 25 s",
        "offset +12 ± 5 ms",
        "round trip 8 ms",
        "grace 280 ms",
        "live",
        "1:02:05",
        "sealed 98,765",
        "flat 4,321",
        "owed 0 min",
        "trades 1,000,057",
        "late 34",
        "equal 99.90 %",
        "inboxes 0 1 2 3 of 1,024",
        "symbols a shard 125 125 125 125",
        "2/2 live, 2,469 messages/s",
        "reconnects",
        "weight 123 of 2,400",
        "queue 1 of 256",
        "7.3 ms",
        "rows 123,456",
        "saved up to 12:00",
        "BTCUSDT",
        "68,123.4",
        "-0.25%",
        "NOVAUSDT",
        "number 59",
    ):
        assert word in text, word


def test_trouble_is_said_in_words():
    """What is wrong does not depend on colours."""
    text = "\n".join(drawn(TROUBLED))
    for word in ("BAD", "the tick is 14 s late", "late 14 s", "connecting", "1,234 min"):
        assert word in text, word
    assert "disk: the disk is full" in text


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10)])
def test_it_is_not_good_while_the_disk_refuses(width, height):
    """A commit that waits to be tried again is trouble, even where all else is well."""
    vitals = replace(HEALTHY, writer=replace(HEALTHY.writer, trouble="disk: the disk is full"))
    text = "\n".join(drawn(vitals, width, height))
    assert "BAD  disk: the disk is full" in text
    assert "GOOD" not in text
    assert "saved and vouched for" not in text
    assert "bad (disk: the disk is full)" in status_line(vitals)


def test_saved_is_said_only_of_what_is_on_disk():
    """Before the commit of the last tick nobody is told that everything is saved."""
    assert "every sealed bar is saved" in drawn(HEALTHY)[0]
    behind = replace(HEALTHY.writer, committed_minute_ms=NOON_MS - 60_000)
    assert "every sealed bar is saved" not in drawn(replace(HEALTHY, writer=behind))[0]
    assert "before the first tick" in drawn(EMPTY)[0]


def test_no_colour_is_respected():
    """With NO_COLOR no colour is sent to a terminal; the words are all there."""
    for environ, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        console = Console(
            file=io.StringIO(),
            force_terminal=True,
            color_system="standard",
            width=80,
            height=24,
            _environ=environ,
        )
        console.print(render(TROUBLED, width=80, height=24))
        text = console.file.getvalue()
        codes = {
            code for found in re.findall(r"\x1b\[([0-9;]*)m", text) for code in found.split(";")
        }
        assert bool(codes & {str(n) for n in range(30, 50)}) == coloured
        assert "BAD" in text


def test_connection_in_trouble_comes_first():
    """With more connections than lines the healthy ones are left out."""
    many = [replace(CONNECTION, name=f"1.{n}") for n in range(30)]
    many[17] = replace(CONNECTION, name="1.17", state="lost")
    lines = drawn(replace(HEALTHY, connections=tuple(many)))
    assert any(line.startswith("1.17") and "lost" in line for line in lines)
    assert any("more connections" in line for line in lines)
    assert any("30/31" in line or "29/30" in line for line in lines)
    small = drawn(replace(HEALTHY, connections=tuple(many)), 40, 10)
    assert any(line.startswith("1.17") and "lost" in line for line in small)


def test_names_are_data():
    """Markup and control characters in names and texts are shown, not obeyed."""
    assert any("[red]X[/]" in line for line in drawn(HEALTHY))
    assert not any("\x1b" in line for line in drawn(TROUBLED))
    evil = "\x1b[2J\nX"
    vitals = replace(
        HEALTHY,
        reason=evil,
        busiest=(replace(SYMBOL, symbol=evil),),
        writer=replace(HEALTHY.writer, trouble=evil),
        events=(Event(NOON_MS, evil, evil, evil),),
    )
    harmless = replace(vitals, reason="r", busiest=HEALTHY.busiest[:1], events=HEALTHY.events[:1])
    assert len(drawn(vitals)) == len(drawn(harmless))
    assert not any("\x1b" in line for line in drawn(vitals))
    assert status_line(vitals).isprintable()


def test_columns_of_wide_names_align():
    """A name in characters of two columns takes no more room than any other."""
    rows = [line for line in drawn(HEALTHY) if "68,123.4" in line]
    assert len(rows) == 3
    assert len({cell_len(row.split("68,123.4")[0]) for row in rows}) == 1


def test_spark_line_shows_lowest_and_highest():
    """The newest prices, the lowest as the lowest block; flat prices are a flat line."""
    assert spark([1.0, 3.0, 2.0], 5) == "  ▁█▅"
    assert spark([5.0, 5.0], 2) == "▁▁"
    assert spark([], 3) == "   "


def test_status_line_is_one_line():
    """Where there is no terminal, one line says how it is."""
    line = status_line(TROUBLED)
    assert "\n" not in line
    for word in ("2025-01-01 12:00:00 UTC", "the tick is 14 s late)", "1,234 minutes owed", "1/2"):
        assert word in line, word


async def test_dashboard_redraws_and_restores_the_terminal(autojump_clock):
    """It draws on the alternate screen, and leaves it when it is cancelled."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    reads = []

    def read():
        reads.append(trio.current_time())
        return HEALTHY

    with trio.move_on_after(2.2):
        await run_dashboard(read, console=console, frame_s=0.5, real_frame_s=0.0)
    assert len(reads) == 5
    output = console.file.getvalue()
    assert output.count("\x1b[?1049h") == 1
    assert output.count("\x1b[?1049l") == 1
    assert output.index("\x1b[?1049h") < output.index("GOOD") < output.index("\x1b[?1049l")
    assert output.rindex("\x1b[?25h") > output.rindex("GOOD")


async def test_dashboard_follows_the_size_of_the_terminal(autojump_clock):
    """A terminal made smaller gets smaller frames from the next one on."""
    console = Console(file=io.StringIO(), force_terminal=True, width=160, height=48)
    sizes = []

    def read():
        sizes.append(console.size)
        return HEALTHY

    with trio.move_on_after(0.7):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: run_dashboard(read, console=console, real_frame_s=0.0))
            await trio.sleep(0.2)
            console.file.truncate(0)
            console.size = (40, 10)
    assert sizes == [(160, 48), (40, 10)]
    frame = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x00", "", console.file.getvalue())
    assert max(map(cell_len, frame.splitlines())) <= 40


@pytest.mark.real
async def test_terminal_gets_what_restores_it(autojump_clock):
    """A real terminal is back on its usual screen, with its cursor, when the task has ended."""
    near, far = os.openpty()
    with os.fdopen(far, "w") as file:
        console = Console(file=file, force_terminal=True, width=80, height=24)
        with trio.move_on_after(2.2):
            await run_dashboard(lambda: HEALTHY, console=console, real_frame_s=3_600.0)
        assert console.file is file
        output = os.read(near, 65_536).decode()
    os.close(near)
    assert output.index("\x1b[?1049h") < output.index("GOOD") < output.index("\x1b[?1049l")
    assert "\x1b[?25h" in output


@pytest.mark.real
async def test_terminal_that_takes_nothing_holds_nobody_up(autojump_clock, monkeypatch):
    """The loop goes on while a terminal is stopped; no frames pile up, and the task can end."""
    monkeypatch.setattr(dashboard, "LAST_WRITE_S", 0.01)
    near, far = os.openpty()
    os.set_blocking(far, False)
    with suppress(BlockingIOError):
        while True:
            os.write(far, b"x" * 4_096)
    os.set_blocking(far, True)
    reads = []
    with os.fdopen(far, "w") as file:
        console = Console(file=file, force_terminal=True, width=80, height=24)
        with trio.move_on_after(100.0):
            await run_dashboard(
                lambda: reads.append(1) or HEALTHY, console=console, real_frame_s=0.0
            )
        assert trio.current_time() >= 100.0
        assert len(reads) == 1
        os.close(near)


async def test_status_lines_come_at_their_pace(autojump_clock):
    """One line each time, the first after one pause."""
    lines = []
    with trio.move_on_after(11):
        await run_status_line(lambda: HEALTHY, write=lines.append, every_s=5.0, real_every_s=0.0)
    assert lines == [status_line(HEALTHY) + "\n"] * 2
