"""The terminal: a live picture of the running program, or one status line now and then.

`render` is pure: vitals and a size in, lines out. It lays the sections out in one column, or in two
where there is room, and leaves out what does not fit, the least important first; a line is cut at
the edge, never wrapped. Colour only repeats what a word says already.

The tasks look at the vitals, draw, and sleep. They read and never touch anything else, so the
program does the same with or without them. On accelerated time they draw no oftener than people
can see.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import trio
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from klagg_trio.core.facts import Event
from klagg_trio.vitals import ConnectionVitals, SymbolVitals, Vitals

FRAME_S: Final = 0.5
"""Between two frames: what changes faster cannot be read."""

STATUS_S: Final = 5.0
"""Between two status lines."""

REAL_FRAME_S: Final = 0.25
"""Real time between two frames at least, where the program's own time runs fast."""

REAL_STATUS_S: Final = 2.0

TWO_COLUMNS: Final = 120
"""Terminals this wide show symbols and events beside the rest."""

SPARKS: Final = "▁▂▃▄▅▆▇█"
SPARKS_MAX: Final = 24

WIDE_SYMBOLS: Final = 58
"""Columns from which a line of a symbol has room for its trades."""

HEALTH_STYLES: Final = {"good": "bold green", "degraded": "bold yellow", "bad": "bold red"}
QUIET: Final = "dim"

Section = list[Text]


def render(vitals: Vitals, *, width: int, height: int) -> Group:
    """Return the picture as at most `height` lines of at most `width` columns."""
    head = [_headline(vitals, width), _clock_line(vitals, width)]
    if width >= TWO_COLUMNS:
        body = _two_columns(vitals, width, height - len(head))
    else:
        body = _one_column(vitals, width, height - len(head))
    lines = (head + body)[:height]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return Group(*lines)


def status_line(vitals: Vitals) -> str:
    """Return the vitals in one line, for a log."""
    bars, writer = vitals.bars, vitals.writer
    live = sum(each.state == "live" for each in vitals.connections)
    rate = sum(each.messages_per_s for each in vitals.connections)
    inbox = max((each.inbox for each in vitals.shards), default=0)
    parts = [
        f"{_utc(vitals.clock.now_ms, '%Y-%m-%d %H:%M:%S')} UTC",
        vitals.health + (f" ({vitals.reason})" if vitals.reason else ""),
        f"tick in {max(0.0, vitals.clock.next_tick_s):.0f} s",
        f"{vitals.symbols} symbols",
        f"sealed {bars.sealed:,} flat {bars.flat:,} suspect {vitals.suspect_minutes:,}",
        f"{rate:,.0f} messages/s on {live}/{len(vitals.connections)} connections",
        f"inbox {inbox}",
        f"commit {writer.last_commit_ms:.0f} ms",
        f"weight {_percent(vitals.weight.used, vitals.weight.limit)}",
    ]
    return "  ".join(parts)


# -- Layout ------------------------------------------------------------------------------------


def _one_column(vitals: Vitals, width: int, height: int) -> Section:
    """Stack the sections. What is left over goes to symbols and events, symbols first."""
    fixed: Section = []
    rows = max(1, min(len(vitals.connections), height - 14))
    for section in (
        _rule("connections", width) + _connections(vitals.connections, rows),
        _rule("bars and trades", width) + _bars(vitals),
        _rule("line", width) + _line(vitals),
    ):
        if len(fixed) + len(section) > height:
            break
        fixed += section
    room = height - len(fixed)
    symbols = min(5, max(0, (room - 2) // 2), max(len(vitals.busiest), len(vitals.newest)))
    if symbols > 0 and width >= 72:
        half = (width - 2) // 2
        fixed += _beside(
            _rule("busiest", half) + _symbols(vitals.busiest, symbols, half),
            _rule("newest", width - half - 2) + _symbols(vitals.newest, symbols, half),
            half,
        )
    room = height - len(fixed)
    if room >= 2:
        fixed += _rule("events", width) + _events(vitals.events, room - 1)
    return fixed


def _two_columns(vitals: Vitals, width: int, height: int) -> Section:
    """Put the state on the left; symbols and events on the right."""
    left_width = 78
    right_width = width - left_width - 2
    rows = max(1, min(len(vitals.connections), height // 2))
    left = _rule("connections", left_width) + _connections(vitals.connections, rows)
    left += _rule("bars and trades", left_width) + _bars(vitals)
    left += _rule("line", left_width) + _line(vitals)
    if (room := height - len(left)) >= 2:
        left += _rule("events", left_width) + _events(vitals.events, room - 1)
    each = max(1, (height - 2) // 2)
    right = _rule("busiest", right_width) + _symbols(vitals.busiest, each, right_width)
    right += _rule("newest", right_width) + _symbols(
        vitals.newest, max(1, height - len(right) - 1), right_width
    )
    return _beside(left[:height], right[:height], left_width)


def _beside(left: Section, right: Section, left_width: int) -> Section:
    """Return two sections next to each other."""
    lines = []
    for number in range(max(len(left), len(right))):
        line = left[number].copy() if number < len(left) else Text()
        line.truncate(left_width, overflow="ellipsis", pad=True)
        if number < len(right):
            line.append("  ")
            line.append_text(right[number])
        lines.append(line)
    return lines


def _rule(title: str, width: int) -> Section:
    return [Text(f"─ {title} {'─' * max(0, width - len(title) - 3)}", style=QUIET)]


# -- Sections ----------------------------------------------------------------------------------


def _headline(vitals: Vitals, width: int) -> Text:
    """Name, health in a word and why; the exchange's time at the right edge."""
    at = f"{_utc(vitals.clock.now_ms, '%Y-%m-%d %H:%M:%S')} UTC"
    line = Text("klagg  ", style="bold")
    line.append(vitals.health.upper(), style=HEALTH_STYLES.get(vitals.health, "bold red"))
    line.append(f"  {vitals.reason or 'every sealed bar is saved and vouched for'}")
    room = width - len(at) - 2
    if room > 16:
        line.truncate(room, overflow="ellipsis", pad=True)
        line.append(f"  {at}")
    return line


def _clock_line(vitals: Vitals, width: int) -> Text:
    clock = vitals.clock
    seconds = clock.next_tick_s
    return _fields(
        ("next tick", f"{seconds:.0f} s" if seconds >= 0 else f"late {-seconds:.0f} s"),
        ("offset", f"{clock.offset_ms:+,.0f} ± {clock.error_ms:.0f} ms"),
        ("round trip", f"{clock.round_trip_ms:,.0f} ms"),
        ("grace", f"{clock.grace_ms} ms"),
        ("up", _duration(vitals.uptime_s)),
        ("symbols", f"{vitals.symbols}"),
        ("intervals", f"{len(vitals.intervals)}"),
        width=width,
    )


def _connections(connections: Sequence[ConnectionVitals], rows: int) -> Section:
    lines = [
        Text("name   state        symbols       age    msg/s   delay  silent  reconnects", QUIET)
    ]
    # Those in trouble first: they are what a person looks for.
    ranked = sorted(connections, key=lambda each: (each.state == "live", each.name))
    for each in ranked[:rows]:
        line = Text(f"{each.name:<6} ")
        line.append(f"{each.state:<12}", style="green" if each.state == "live" else "yellow")
        line.append(
            f"{each.symbols:>8,}{_duration(each.age_s):>10}{each.messages_per_s:>9,.0f}"
            f"{each.delay_ms:>5,.0f} ms{each.silent_s:>6.1f} s{each.reconnects:>12,}"
        )
        lines.append(line)
    if len(connections) > rows:
        lines[-1] = Text(f"and {len(connections) - rows + 1} more connections", QUIET)
    return lines


def _bars(vitals: Vitals) -> Section:
    bars, trades, audit = vitals.bars, vitals.trades, vitals.audit
    sealed = _fields(("sealed", f"{bars.sealed:,}"), ("flat", f"{bars.flat:,}"))
    sealed.append("  suspect ", style=QUIET)
    sealed.append(
        f"{vitals.suspect_minutes:,} min", style="bold yellow" if vitals.suspect_minutes else ""
    )
    sealed.append("  ")
    sealed.append_text(
        _fields(
            ("repaired", f"{vitals.repaired_minutes:,}"),
            ("official", f"{bars.official:,}"),
            ("restated", f"{bars.restated:,}"),
        )
    )
    audited = audit.equal + audit.straddle + audit.unexplained if audit else 0
    share = f"{100 * audit.share_equal:.2f} %" if audit and audited else "-"
    return [
        sealed,
        _fields(
            ("trades", f"{vitals.received:,}"),
            ("in bars", f"{trades.in_bars:,}"),
            ("late", f"{trades.late:,}"),
            ("duplicate", f"{trades.duplicate:,}"),
            ("rejected", f"{trades.rejected:,}"),
        ),
        _fields(
            ("audited 24 h", f"{audited:,} min"),
            ("equal", share),
            ("straddle", f"{audit.straddle if audit else 0:,}"),
            ("unexplained", f"{audit.unexplained if audit else 0:,}"),
        ),
    ]


def _line(vitals: Vitals) -> Section:
    """The way of the data: inboxes, writer, and what REST may still be asked."""
    writer, weight = vitals.writer, vitals.weight
    cap = vitals.shards[0].inbox_cap if vitals.shards else 0
    depths = " ".join(f"{shard.inbox}" for shard in vitals.shards)
    age_s = writer.snapshot_age_s
    saved = _utc(writer.committed_minute_ms, "%H:%M") if writer.committed_minute_ms else "-"
    lines = [
        _fields(
            ("inboxes", f"{depths} of {cap:,}"),
            ("weight", f"{weight.used:,} of {weight.limit:,}"),
            ("snapshot", f"{_duration(age_s)} ago" if age_s >= 0 else "not yet"),
        ),
        _fields(
            ("writer queue", f"{writer.queue} of {writer.queue_cap}"),
            ("last commit", f"{writer.last_commit_ms:.1f} ms"),
            ("rows", f"{writer.rows:,}"),
            ("saved up to", saved),
        ),
    ]
    if writer.trouble:
        lines[-1] = Text(f"disk: {writer.trouble}", style="bold red")
    return lines


def _symbols(symbols: Sequence[SymbolVitals], rows: int, width: int) -> Section:
    """One symbol a line: name, price, change, spark line, and trades where there is room."""
    name_width = 10 if width < WIDE_SYMBOLS else 16
    sparks = width - name_width - len(" 12,345.678 +12.34% ")
    if width >= WIDE_SYMBOLS:
        sparks -= len(" 12,345 trades")
    lines = []
    for each in symbols[:rows]:
        line = Text(f"{_fit(each.symbol, name_width)} {_price(each.last_price):>10}")
        style = "green" if each.change_percent > 0 else "red" if each.change_percent < 0 else ""
        line.append(f"{each.change_percent:>+7.2f}% ", style=style)
        line.append(spark(each.closes, max(0, min(SPARKS_MAX, sparks))), style=style or QUIET)
        if width >= WIDE_SYMBOLS:
            line.append(f" {each.trades_minute:>6,} trades", style=QUIET)
        lines.append(line)
    return lines


def _events(events: Sequence[Event], rows: int) -> Section:
    """The newest events, newest last."""
    lines = []
    for event in events[-rows:] if rows > 0 else ():
        line = Text(f"{_utc(event.at_ms, '%H:%M:%S')} ", style=QUIET)
        line.append(f"{event.kind:<11}", style="yellow" if event.kind in TROUBLE else "")
        line.append(f" {event.symbol} " if event.symbol else " ")
        line.append("".join(c if c.isprintable() else "?" for c in event.text))
        lines.append(line)
    return lines or [Text("none yet", style=QUIET)]


TROUBLE: Final = frozenset(
    ("gap", "disconnect", "rejected", "refused", "repair failed", "audit failed", "unexplained")
)


# -- Words and numbers -------------------------------------------------------------------------


def _fields(*fields: tuple[str, str], width: int = 1_000) -> Text:
    """Return names and values, the values in bold; from the first on that does not fit, none."""
    line = Text()
    for name, value in fields:
        if len(line) + len(name) + len(value) + 3 > width:
            break
        if line:
            line.append("  ")
        line.append(f"{name} ", style=QUIET)
        line.append(value, style="bold")
    return line


def spark(closes: Iterable[float], width: int) -> str:
    """Return the newest prices as a line of blocks, oldest first, padded to its full width."""
    newest = list(closes)[-width:] if width else []
    if not newest:
        return " " * width
    low, high = min(newest), max(newest)
    span = high - low
    steps = len(SPARKS) - 1
    blocks = [
        SPARKS[round((close - low) / span * steps)] if span else SPARKS[0] for close in newest
    ]
    return "".join(blocks).rjust(width)


def _fit(text: str, width: int) -> str:
    """Return text in exactly so many columns; wide characters take two."""
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, width)


def _price(price: float) -> str:
    text = f"{price:,.8g}"
    return text if "e" not in text else f"{price:.8f}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _utc(at_ms: int, pattern: str) -> str:
    return datetime.datetime.fromtimestamp(at_ms / 1_000, datetime.UTC).strftime(pattern)


# -- Tasks -------------------------------------------------------------------------------------


async def run_dashboard(
    read: Callable[[], Vitals],
    *,
    console: Console | None = None,
    frame_s: float = FRAME_S,
    real_frame_s: float = REAL_FRAME_S,
) -> None:
    """Redraw until cancelled. The terminal is left as it was found."""
    console = console or Console(stderr=True)
    drawn_s = 0.0
    with Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        while True:
            now_s = time.perf_counter()
            if now_s - drawn_s >= real_frame_s:
                drawn_s = now_s
                width, height = console.size
                live.update(render(read(), width=width, height=height), refresh=True)
            await trio.sleep(frame_s)


async def run_status_line(
    read: Callable[[], Vitals],
    *,
    write: Callable[[str], object] | None = None,
    every_s: float = STATUS_S,
    real_every_s: float = REAL_STATUS_S,
) -> None:
    """Write one line every few seconds until cancelled."""
    write = write or sys.stderr.write
    written_s = 0.0
    while True:
        await trio.sleep(every_s)
        now_s = time.perf_counter()
        if now_s - written_s >= real_every_s:
            written_s = now_s
            write(status_line(read()) + "\n")
