"""The terminal: a live picture of the running program, or one status line now and then.

`render` is pure: vitals and a size in, lines out. It lays the sections out in one column, or in two
where there is room, and leaves out what does not fit, the least important first: whole fields and
whole columns, so that no number is ever cut. Colour only repeats what a word says already.

The tasks look at the vitals, draw, and sleep. They read and never touch anything else, so the
program does the same with or without them. On accelerated time they draw no oftener than people
can see. A terminal may take nothing for minutes (Ctrl-S, a stalled ssh), and a write to it would
hold the event loop as long; so a thread of its own writes, and while it is busy no frame is drawn.
"""

from __future__ import annotations

import datetime
import errno
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Final, cast

import trio
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from klagg_trio.core.facts import Event
from klagg_trio.core.plain import plain
from klagg_trio.vitals import ConnectionVitals, SymbolVitals, Vitals

FRAME_S: Final = 0.5
"""Between two frames: what changes faster cannot be read."""

STATUS_S: Final = 5.0
"""Between two status lines."""

REAL_FRAME_S: Final = 0.25
"""Real time between two frames at least, where the program's own time runs fast."""

REAL_STATUS_S: Final = 2.0

LAST_WRITE_S: Final = 1.0
"""Real time that a terminal has at the end to take what restores it; it needs a millisecond."""

TWO_COLUMNS: Final = 120
"""Terminals this wide show symbols and events beside the rest."""

LOW: Final = 20
"""Terminals with fewer lines show one line of fields where others may show two."""

SPARKS: Final = "▁▂▃▄▅▆▇█"
SPARKS_MAX: Final = 24

WIDE_SYMBOLS: Final = 58
"""Columns from which a line of a symbol has room for its trades."""

REASON_MIN: Final = 32
"""Columns that health's reason has before the time of day is shown."""

INBOXES_MAX: Final = 8
"""Shards up to which each is shown; of more, the fullest."""

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A file that the status lines go to is full: a line less, while the run goes on."""

HEALTH_STYLES: Final = {"good": "bold green", "degraded": "bold yellow", "bad": "bold red"}
QUIET: Final = "dim"

TROUBLE: Final = frozenset(
    ("gap", "disconnect", "rejected", "refused", "repair failed", "audit failed", "unexplained")
)
"""Kinds of events that stand out."""

Section = list[Text]
Field = tuple[str, str]


def render(vitals: Vitals, *, width: int, height: int) -> Group:
    """Return the picture as at most `height` lines of at most `width` columns."""
    head = [_headline(vitals, width), *_clock_line(vitals, width)]
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
    health, reason = _health(vitals)
    inbox = max((each.inbox for each in vitals.shards), default=0)
    parts = [
        f"{_utc(vitals.clock.now_ms, '%Y-%m-%d %H:%M:%S')} UTC",
        health + (f" ({reason})" if reason else ""),
        f"tick {_next_tick(vitals, before='in ')}",
        f"{vitals.symbols:,} symbols",
        f"sealed {bars.sealed:,} bars, {bars.flat:,} flat, {vitals.owed_minutes:,} minutes owed",
        f"{_rate(vitals)} on {_live(vitals)} connections",
        f"inbox {inbox:,}",
        f"commit {writer.last_commit_ms:,.0f} ms",
        f"weight {_percent(vitals.weight.used, vitals.weight.limit)}",
    ]
    return "  ".join(parts)


# -- Layout ------------------------------------------------------------------------------------


def _one_column(vitals: Vitals, width: int, height: int) -> Section:
    """Stack the sections. What is left over goes to symbols and events, symbols first."""
    fixed: Section = []
    rows = max(1, min(len(vitals.connections), height - 14))
    low = height < LOW
    for section in (
        _connections(vitals, rows, width),
        _rule("bars and trades", width) + _bars(vitals, width, low=low),
        _rule("inboxes and disk", width) + _disk(vitals, width, low=low),
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
        fixed += _rule("events", width) + _events(vitals.events, room - 1, width)
    return fixed


def _two_columns(vitals: Vitals, width: int, height: int) -> Section:
    """Put the state on the left; symbols and events on the right."""
    left_width = 78
    right_width = width - left_width - 2
    low = height < LOW
    rows = max(1, min(len(vitals.connections), height // 2))
    left = _connections(vitals, rows, left_width)
    left += _rule("bars and trades", left_width) + _bars(vitals, left_width, low=low)
    left += _rule("inboxes and disk", left_width) + _disk(vitals, left_width, low=low)
    if (room := height - len(left)) >= 2:
        left += _rule("events", left_width) + _events(vitals.events, room - 1, left_width)
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
    title = _cut(title, width - 4)
    return [Text(f"─ {title} {'─' * max(0, width - len(title) - 3)}", style=QUIET)]


# -- Sections ----------------------------------------------------------------------------------


def _health(vitals: Vitals) -> tuple[str, str]:
    """Health and why. It is not good while the disk refuses, whatever else is well."""
    reason, trouble = plain(vitals.reason), plain(vitals.writer.trouble)
    if not trouble:
        return vitals.health, reason
    return "bad", trouble if reason in ("", trouble) else f"{trouble}; {reason}"


def _praise(vitals: Vitals) -> str:
    """What may be said where nothing is wrong: saved is said only of what is on disk."""
    if vitals.writer.committed_minute_ms >= vitals.clock.minute_ms:
        return "every sealed bar is saved and vouched for"
    return "saving" if vitals.writer.committed_minute_ms else "before the first tick"


def _headline(vitals: Vitals, width: int) -> Text:
    """Name, health in a word and why; the exchange's time at the right edge."""
    health, reason = _health(vitals)
    line = Text("klagg  ", style="bold")
    line.append(health.upper(), style=HEALTH_STYLES.get(health, "bold red"))
    line.append("  ")
    room = width - line.cell_len
    text = reason or _praise(vitals)
    # Where it is narrow the date goes first, the reason last: it is what a person needs.
    full, short = (
        f"{_utc(vitals.clock.now_ms, pattern)} UTC" for pattern in ("%Y-%m-%d %H:%M:%S", "%H:%M:%S")
    )
    at = full if room >= cell_len(text) + len(full) + 2 else short
    if room < len(at) + REASON_MIN:
        line.append(_cut(text, room))
        return line
    line.append(_cut(text, room - len(at) - 2))
    line.append(" " * (width - line.cell_len - len(at)))
    line.append(at)
    return line


def _clock_line(vitals: Vitals, width: int) -> Section:
    clock = vitals.clock
    return _fields(
        ("next tick", _next_tick(vitals)),
        ("offset", f"{clock.offset_ms:+,.0f} ± {clock.error_ms:,.0f} ms"),
        ("round trip", f"{clock.round_trip_ms:,.0f} ms"),
        ("grace", f"{clock.grace_ms:,} ms"),
        ("up", _duration(vitals.uptime_s)),
        ("symbols", f"{vitals.symbols:,}"),
        ("intervals", f"{len(vitals.intervals)}"),
        width=width,
    )


CONNECTION_COLUMNS: Final[tuple[tuple[str, int, Callable[[ConnectionVitals], str]], ...]] = (
    ("msg/s", 9, lambda each: f"{each.messages_per_s:,.0f}"),
    ("age", 10, lambda each: _duration(each.age_s)),
    ("symbols", 9, lambda each: f"{each.symbols:,}"),
    ("delay", 10, lambda each: f"{each.delay_ms:,.0f} ms"),
    ("silent", 9, lambda each: _seconds(each.silent_s)),
    ("reconnects", 12, lambda each: f"{each.reconnects:,}"),
)
"""Title, width and contents; the first ones stay where it is narrow."""


def _connections(vitals: Vitals, rows: int, width: int) -> Section:
    """The totals in the title; a line each, those in trouble first: a person looks for them."""
    connections = vitals.connections
    title = f"connections: {_live(vitals)} live, {_rate(vitals)}"
    columns, room = [], width - 19
    for column in CONNECTION_COLUMNS:
        if (room := room - column[1]) < 0:
            break
        columns.append(column)
    names = "".join(f"{name:>{size}}" for name, size, _ in columns)
    lines = [*_rule(title, width), Text(f"name   state       {names}", QUIET)]
    ranked = sorted(connections, key=lambda each: (each.state == "live", each.name))
    hidden = len(connections) - rows
    if hidden > 0 and rows > 1:
        rows, hidden = rows - 1, hidden + 1
    for each in ranked[:rows]:
        line = Text(f"{_fit(plain(each.name), 6)} ")
        line.append(f"{each.state:<12}", style="green" if each.state == "live" else "yellow")
        line.append("".join(f"{contents(each):>{size}}" for _, size, contents in columns))
        lines.append(line)
    if hidden > 0 and rows > 1:
        lines.append(Text(f"and {hidden:,} more connections", QUIET))
    return lines


def _bars(vitals: Vitals, width: int, *, low: bool) -> Section:
    bars, trades, audit = vitals.bars, vitals.trades, vitals.audit
    audited = audit.equal + audit.straddle + audit.unexplained if audit else 0
    share = f"{100 * audit.share_equal:.2f} %" if audit and audited else "-"
    return _groups(
        width,
        (
            ("sealed", f"{bars.sealed:,}"),
            ("flat", f"{bars.flat:,}"),
            ("owed", f"{vitals.owed_minutes:,} min"),
            ("repaired", f"{vitals.repaired_minutes:,} min"),
            ("official", f"{bars.official:,}"),
            ("restated", f"{bars.restated:,}"),
        ),
        (
            ("trades", f"{vitals.received:,}"),
            ("in bars", f"{trades.in_bars:,}"),
            ("late", f"{trades.late:,}"),
            ("duplicate", f"{trades.duplicate:,}"),
            ("rejected", f"{trades.rejected:,}"),
        ),
        (
            ("audited 24 h", f"{audited:,} min"),
            ("equal", share),
            ("straddle", f"{audit.straddle if audit else 0:,}"),
            ("unexplained", f"{audit.unexplained if audit else 0:,}"),
        ),
        low=low,
    )


def _disk(vitals: Vitals, width: int, *, low: bool) -> Section:
    """The way of the data: inboxes, writer, and what REST may still be asked."""
    writer, weight, shards = vitals.writer, vitals.weight, vitals.shards
    depths, sizes = [each.inbox for each in shards], [each.symbols for each in shards]
    if len(shards) > INBOXES_MAX:
        inboxes = f"fullest {max(depths):,} of {shards[0].inbox_cap:,}"
        symbols = f"{min(sizes):,} to {max(sizes):,}"
    elif shards:
        inboxes = f"{' '.join(f'{depth:,}' for depth in depths)} of {shards[0].inbox_cap:,}"
        symbols = " ".join(f"{size:,}" for size in sizes)
    else:
        inboxes = symbols = "-"
    saved_ms, age_s = writer.committed_minute_ms, writer.snapshot_age_s
    return _groups(
        width,
        (("inboxes", inboxes), ("symbols a shard", symbols)),
        (
            ("writer queue", f"{writer.queue:,} of {writer.queue_cap:,}"),
            ("last commit", f"{writer.last_commit_ms:,.1f} ms"),
            ("rows", f"{writer.rows:,}"),
            ("saved up to", _utc(saved_ms, "%H:%M") if saved_ms else "-"),
        ),
        (
            ("weight", f"{weight.used:,} of {weight.limit:,} a minute"),
            ("snapshot", f"{_duration(age_s)} ago" if age_s >= 0 else "not yet"),
        ),
        low=low,
    )


def _symbols(symbols: Sequence[SymbolVitals], rows: int, width: int) -> Section:
    """One symbol a line: name, price, change, spark line, and trades where there is room."""
    name_width = 12 if width < WIDE_SYMBOLS else 16
    sparks = width - name_width - len(" 12,345.678 +12.34% ")
    if width >= WIDE_SYMBOLS:
        sparks -= len(" 12,345 trades")
    lines = []
    for each in symbols[:rows]:
        line = Text(f"{_fit(plain(each.symbol), name_width)} {_price(each.last_price):>10}")
        change = round(each.change_percent, 2) + 0.0  # of -0.0 it makes 0.0
        style = "green" if change > 0 else "red" if change < 0 else ""
        line.append(f"{_change(change):>8} ", style=style)
        line.append(spark(each.closes, max(0, min(SPARKS_MAX, sparks))), style=style or QUIET)
        if width >= WIDE_SYMBOLS:
            line.append(f" {each.trades_minute:>6,} trades", style=QUIET)
        lines.append(line)
    return lines or [Text("none yet", style=QUIET)]


def _events(events: Sequence[Event], rows: int, width: int) -> Section:
    """The newest events, newest last, with the exchange's time in UTC."""
    lines = []
    for event in events[-rows:] if rows > 0 else ():
        line = Text(f"{_utc(event.at_ms, '%H:%M:%S')} ", style=QUIET)
        line.append(f"{plain(event.kind):<13}", style="yellow" if event.kind in TROUBLE else "")
        text = f"{event.symbol} {event.text}" if event.symbol else event.text
        line.append(" " + _cut(plain(text), width - line.cell_len - 1))
        lines.append(line)
    return lines or [Text("none yet", style=QUIET)]


# -- Words and numbers -------------------------------------------------------------------------


def _fields(*fields: Field, width: int, lines: int = 1) -> Section:
    """Return names and values, the values in bold, on so many lines; the last ones may miss."""
    rows = [Text()]
    for name, value in fields:
        needed = len(name) + len(value) + 1
        if needed > width:
            continue
        if rows[-1] and len(rows[-1]) + needed + 2 > width:
            if len(rows) == lines:
                break
            rows.append(Text())
        if rows[-1]:
            rows[-1].append("  ")
        rows[-1].append(f"{name} ", style=QUIET)
        warned = name == "owed" and not value.startswith("0 ")
        rows[-1].append(value, style="bold yellow" if warned else "bold")
    return rows


def _groups(width: int, *groups: tuple[Field, ...], low: bool) -> Section:
    """Return groups of fields, each from a new line on."""
    return [row for group in groups for row in _fields(*group, width=width, lines=2 - low)]


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
        return set_cell_size(set_cell_size(text, width - 1).rstrip() + "…", width)
    return set_cell_size(text, width)


def _cut(text: str, width: int) -> str:
    """Return text in at most so many columns, cut between words: half a number misleads."""
    if cell_len(text) <= width:
        return text
    words = set_cell_size(text, max(0, width - 1)).rpartition(" ")[0].rstrip()
    return f"{words} …" if words else set_cell_size("…", max(0, width)).rstrip()


def _next_tick(vitals: Vitals, before: str = "") -> str:
    seconds = vitals.clock.next_tick_s
    return f"{before}{seconds:.0f} s" if seconds >= 0 else f"late {-seconds:,.0f} s"


def _live(vitals: Vitals) -> str:
    live = sum(each.state == "live" for each in vitals.connections)
    return f"{live:,}/{len(vitals.connections):,}"


def _rate(vitals: Vitals) -> str:
    return f"{sum(each.messages_per_s for each in vitals.connections):,.0f} messages/s"


def _price(price: float) -> str:
    text = f"{price:,.8g}"
    return text if "e" not in text else f"{price:.8f}"


def _change(percent: float) -> str:
    return f"{percent:+.2f}%" if abs(percent) < 1_000 else f"{percent:+,.0f}%"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
    with (
        _never_waiting(console) as is_idle,
        Live(console=console, screen=True, auto_refresh=False, transient=True) as live,
    ):
        drawn_s = -math.inf
        while True:
            now_s = time.perf_counter()
            is_first = math.isinf(drawn_s)
            if is_first or (now_s - drawn_s >= real_frame_s and is_idle()):
                drawn_s = now_s
                width, height = console.size
                live.update(render(read(), width=width, height=height), refresh=True)
            await trio.sleep(frame_s)


class _Outlet:
    """A file that never makes the caller wait: a thread writes what it is given.

    It holds one frame at most, because its user asks `is_idle` before it draws the next one. The
    two counts are each written by one thread only.
    """

    def __init__(self, file: IO[str]) -> None:
        self.encoding: str = getattr(file, "encoding", None) or "utf-8"
        self._file = file
        self._texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._given = 0
        self._taken = 0
        self._error: OSError | None = None
        # A daemon, so that a terminal that takes nothing cannot keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="terminal", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Take text to write; returns at once."""
        self._given += 1
        self._texts.put(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def isatty(self) -> bool:
        """Return what the file behind it says."""
        return self._file.isatty()

    def fileno(self) -> int:
        """Return that of the file behind it."""
        return self._file.fileno()

    def is_idle(self) -> bool:
        """Whether all is written. Raises the OSError of a terminal that is gone."""
        if self._error is not None:
            raise self._error
        return self._given == self._taken

    def close(self) -> None:
        """Wait until all is written, but not for ever."""
        self._texts.put(None)
        self._thread.join(LAST_WRITE_S)

    def _run(self) -> None:
        for text in iter(self._texts.get, None):
            if self._error is None:
                try:
                    self._put(text.encode(self.encoding, "replace"))
                except OSError as error:
                    self._error = error
            self._taken += 1

    def _put(self, rest: bytes) -> None:
        """Write to the descriptor: a thread that is stuck here holds no lock of the file's."""
        while rest:
            rest = rest[os.write(self._file.fileno(), rest) :]


@contextmanager
def _never_waiting(console: Console) -> Iterator[Callable[[], bool]]:
    """Have a thread write what the console prints; yields whether all is written.

    A file in memory has no descriptor, takes everything at once, and needs no thread.
    """
    file = console.file
    try:
        file.fileno()
    except OSError:
        yield lambda: True
        return
    file.flush()
    outlet = _Outlet(file)
    console.file = cast(IO[str], outlet)
    try:
        yield outlet.is_idle
    finally:
        outlet.close()
        console.file = file


async def run_status_line(
    read: Callable[[], Vitals],
    *,
    write: Callable[[str], object] | None = None,
    every_s: float = STATUS_S,
    real_every_s: float = REAL_STATUS_S,
) -> None:
    """Write one line every few seconds until cancelled."""
    write = write or sys.stderr.write
    written_s = -math.inf
    while True:
        await trio.sleep(every_s)
        now_s = time.perf_counter()
        if now_s - written_s >= real_every_s:
            written_s = now_s
            try:
                write(status_line(read()) + "\n")
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise  # nobody reads any more
