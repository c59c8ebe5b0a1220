"""The terminal picture: what a person must be able to read, at every size."""

import io
from dataclasses import replace

import pytest
import trio
from rich.cells import cell_len
from rich.console import Console

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
    suspect_minutes=0,
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
    writer=replace(HEALTHY.writer, trouble="the disk is full"),
    suspect_minutes=1_234,
    events=(Event(NOON_MS, "gap", "BTCUSDT", "3 trades\x1b[2J missing"),),
)

EMPTY = replace(
    HEALTHY,
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


def drawn(vitals, width=80, height=24):
    """Return the lines of the picture as text."""
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None)
    console.print(render(vitals, width=width, height=height))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("vitals", [HEALTHY, TROUBLED, EMPTY], ids=["healthy", "bad", "empty"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_size_is_kept_to(vitals, width, height):
    """No line is wider than the terminal, and there are no more lines than it has."""
    lines = drawn(vitals, width, height)
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width


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
        "suspect 0 min",
        "trades 1,000,057",
        "late 34",
        "equal 99.90 %",
        "inboxes 0 1 2 3 of 1,024",
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


def test_connection_in_trouble_comes_first():
    """With more connections than lines the healthy ones are left out."""
    many = [replace(CONNECTION, name=f"1.{n}") for n in range(30)]
    many[17] = replace(CONNECTION, name="1.17", state="lost")
    lines = drawn(replace(HEALTHY, connections=tuple(many)))
    assert any(line.startswith("1.17") and "lost" in line for line in lines)
    assert any("more connections" in line for line in lines)


def test_names_are_data():
    """Markup and control characters in names and texts are shown, not obeyed."""
    assert any("[red]X[/]" in line for line in drawn(HEALTHY))
    assert not any("\x1b" in line for line in drawn(TROUBLED))


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
    for word in ("2025-01-01 12:00:00 UTC", "bad (the tick is 14 s late)", "suspect 1,234", "1/2"):
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
    assert output.rstrip().endswith("\x1b[?25h") or "\x1b[?1049l" in output


async def test_status_lines_come_at_their_pace(autojump_clock):
    """One line each time, the first after one pause."""
    lines = []
    with trio.move_on_after(11):
        await run_status_line(lambda: HEALTHY, write=lines.append, every_s=5.0, real_every_s=0.0)
    assert lines == [status_line(HEALTHY) + "\n"] * 2
