"""A sound database gives no findings; whatever is wrong with one bar is found, and only that."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import pytest

from klagg_trio.core.errors import DamagedDataError, StoreError
from klagg_trio.core.intervals import DAY_MS, HOUR_MS, INTERVALS, MINUTE_MS, THREE_DAYS_MS, WEEK_MS
from klagg_trio.store import verify as verify_module
from klagg_trio.store.verify import FINDINGS_MAX, Finding, verify

START = 1_722_463_200_000
"""2024-07-31 22:00 UTC: two hours before the end of a month."""

FAR = 4_133_404_800_000

COLUMNS = (
    "symbol",
    "interval",
    "open_time",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "close_time",
    "quote_volume",
    "count",
    "taker_buy_volume",
    "taker_buy_quote_volume",
    "source",
    "revision",
)
SUMS = ("volume", "quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume")


class Store:
    """What a database holds, to be spoilt here and there and written to a file."""

    def __init__(self, last_tick_ms=None):
        self.bars = {}
        self.open_bars = []
        self.twice = []
        self.symbols = {}
        self.last_tick_ms = last_tick_ms

    def list(self, symbol, onboard_ms=START - DAY_MS, delivery_ms=FAR, phase_ms=DAY_MS):
        """Put a symbol into the list, or change it there."""
        self.symbols[symbol] = (symbol, onboard_ms, delivery_ms, phase_ms, "TRADING")

    def fill(self, symbol, first_ms, end_ms, longer=()):
        """Store minutes, one in four without trades, and the whole longer bars over them."""
        for open_ms in range(first_ms, end_ms, MINUTE_MS):
            self.put(symbol, "1m", open_ms, **minute(open_ms))
        phase_ms = self.symbols[symbol][3]
        for name in longer:
            interval = INTERVALS[name]
            if name == "3d":
                interval = interval.with_phase(phase_ms)
            open_ms = interval.floor(first_ms)
            while (next_ms := interval.end(open_ms)) <= end_ms:
                self.put_longer(symbol, name, open_ms, next_ms)
                open_ms = next_ms

    def put(self, symbol, interval, open_ms, end_ms=None, **values):
        """Store one bar."""
        close_ms = (end_ms or open_ms + MINUTE_MS) - 1
        bar = {"symbol": symbol, "interval": interval, "open_time": open_ms}
        self.bars[symbol, interval, open_ms] = bar | values | {"close_time": close_ms}

    def put_longer(self, symbol, interval, open_ms, end_ms):
        """Store what the stored minutes of a span give, worked out in the simplest way."""
        spans = range(open_ms, end_ms, MINUTE_MS)
        minutes = [self.bars[symbol, "1m", at] for at in spans if (symbol, "1m", at) in self.bars]
        traded = [bar for bar in minutes if bar["count"]] or minutes[:1]
        sources = {bar["source"] for bar in minutes}
        sums = {name: sum(Fraction(str(bar[name])) for bar in minutes) for name in SUMS}
        weakest = "trades" if sums["count"] else "flat"
        self.put(
            symbol,
            interval,
            open_ms,
            end_ms,
            open=traded[0]["open"],
            high=max(bar["high"] for bar in traded),
            low=min(bar["low"] for bar in traded),
            close=traded[-1]["close"],
            source="suspect" if "suspect" in sources else weakest,
            revision=0,
            **{name: float(value) for name, value in sums.items() if name != "count"},
            count=int(sums["count"]),
        )

    def change(self, symbol, interval, open_ms, **values):
        """Change some values of a stored bar."""
        self.bars[symbol, interval, open_ms].update(values)

    def keep(self, symbol, *intervals):
        """Leave out everything else."""
        for key in list(self.bars):
            if key[0] != symbol or key[1] not in intervals:
                del self.bars[key]

    def write(self, path: Path) -> Path:
        """Make the database."""
        columns = ", ".join(COLUMNS)
        marks = ", ".join("?" * len(COLUMNS))
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.executescript(
                f"""
                CREATE TABLE sealed ({columns});
                CREATE TABLE running ({columns});
                CREATE VIEW klines AS SELECT * FROM sealed;
                CREATE VIEW open_klines AS SELECT * FROM running;
                CREATE TABLE symbols (
                    symbol TEXT, onboard_ms INTEGER, delivery_ms INTEGER,
                    three_day_phase_ms INTEGER, status TEXT
                );
                CREATE TABLE meta (key TEXT, value TEXT);
                """
            )
            for table, bars in (
                ("sealed", [*self.bars.values(), *self.twice]),
                ("running", self.open_bars),
            ):
                rows = [[bar[name] for name in COLUMNS] for bar in bars]
                connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
            connection.executemany(
                "INSERT INTO symbols VALUES (?, ?, ?, ?, ?)", self.symbols.values()
            )
            if self.last_tick_ms is not None:
                connection.execute(
                    "INSERT INTO meta VALUES ('last_tick', ?)", (str(self.last_tick_ms),)
                )
        return path


def minute(open_ms):
    """A minute's values, which depend on its time alone; every fourth one has no trades."""
    number = open_ms // MINUTE_MS
    if number % 4 == 0:
        return flat(100 + (number - 1) % 7)
    volume = round(0.1 + number % 13 * 0.01, 2)
    return {
        "open": 99.5 + number % 5,
        "high": 108.25 + number % 3,
        "low": 95.1 - number % 2,
        "close": 100 + number % 7,
        "volume": volume,
        "quote_volume": round(volume * 101.3, 3),
        "count": 1 + number % 9,
        "taker_buy_volume": round(volume / 2, 2),
        "taker_buy_quote_volume": round(volume * 50, 3),
        "source": "trades",
        "revision": 0,
    }


def flat(price):
    """A minute's values without trades."""
    prices = dict.fromkeys(("open", "high", "low", "close"), price)
    return prices | dict.fromkeys(SUMS, 0) | {"source": "flat", "revision": 0}


END = START + 6 * HOUR_MS

HOUR = START + HOUR_MS
"""Open time of an hour that lies in the middle."""

SYMBOL = "BTCUSDT"
ENDED = "币安人生USDT"


@pytest.fixture
def store():
    """Six hours of a symbol, over the end of a month, and some of another one that has ended."""
    store = Store(last_tick_ms=END)
    store.list(SYMBOL)
    store.fill(SYMBOL, START, END, ["3m", "5m", "15m", "1h", "2h"])
    store.put_longer(SYMBOL, "4h", START + 2 * HOUR_MS, END)
    for name in ("1d", "1M"):  # they began before the first minute
        interval = INTERVALS[name]
        open_ms = interval.floor(START)
        store.put_longer(SYMBOL, name, open_ms, interval.end(open_ms))
    store.list(ENDED, delivery_ms=START + 90 * MINUTE_MS - 30_000)
    store.fill(ENDED, START, START + 90 * MINUTE_MS, ["5m", "1h"])
    store.put_longer(ENDED, "1h", HOUR, HOUR + HOUR_MS)
    store.open_bars.append(store.bars[SYMBOL, "1m", START])
    return store


@pytest.fixture
def found(tmp_path):
    """Verify a store."""

    def found(store: Store) -> list[Finding]:
        return verify(store.write(tmp_path / "klagg.db"))

    return found


def kinds(findings):
    """What was found where, without the texts."""
    return [(finding.kind, finding.interval, finding.open_ms) for finding in findings]


# -- Nothing to find -------------------------------------------------------------------------------


def test_a_sound_database_has_no_findings(store, found):
    """Flat minutes, ends of months, ended symbols and open bars are all in order."""
    assert found(store) == []


def test_an_empty_database_has_no_findings(found):
    """No symbols, no bars, no tick yet."""
    assert found(Store()) == []


def test_a_database_without_a_tick_is_judged_all_the_same(store, found):
    """Before the first tick bars may end anywhere, but holes are holes."""
    store.last_tick_ms = None
    for open_ms in range(HOUR, END, MINUTE_MS):
        del store.bars[SYMBOL, "1m", open_ms]
    del store.bars[SYMBOL, "1m", START + MINUTE_MS]

    assert kinds(found(store)) == [("hole", "1m", START + MINUTE_MS)]


@pytest.mark.slow
def test_weeks_and_three_days_are_merged_and_lie_on_their_calendar(found):
    """A week on Monday, 3d bars on the symbol's own grid, both from the days of minutes."""
    monday_ms = INTERVALS["1w"].floor(START)
    phase_ms = monday_ms % THREE_DAYS_MS
    store = Store(last_tick_ms=monday_ms + WEEK_MS)
    store.list(SYMBOL, onboard_ms=0, phase_ms=phase_ms)
    for open_ms in range(monday_ms, monday_ms + WEEK_MS, MINUTE_MS):
        store.put(SYMBOL, "1m", open_ms, **flat(5))
    values = {"volume": 1, "quote_volume": 5, "count": 1, "source": "trades"}
    store.change(SYMBOL, "1m", monday_ms + 4 * DAY_MS, **values)
    for name, open_ms, days in (("3d", monday_ms, 3), ("3d", monday_ms + THREE_DAYS_MS, 3)):
        store.put_longer(SYMBOL, name, open_ms, open_ms + days * DAY_MS)
    store.put_longer(SYMBOL, "1w", monday_ms, monday_ms + WEEK_MS)
    store.change(SYMBOL, "1w", monday_ms, count=2)
    store.change(SYMBOL, "3d", monday_ms + THREE_DAYS_MS, count=3)

    assert kinds(found(store)) == [
        ("merge", "3d", monday_ms + THREE_DAYS_MS),
        ("merge", "1w", monday_ms),
    ]


# -- One bar by itself -----------------------------------------------------------------------------

TRADED = HOUR + MINUTE_MS
FLAT = HOUR + next(n for n in range(4) if (HOUR // MINUTE_MS + n) % 4 == 0) * MINUTE_MS


@pytest.mark.parametrize(
    ("open_ms", "kind", "values"),
    [
        (TRADED, "prices", {"low": 99.9, "open": 99.8}),
        (TRADED, "prices", {"low": 0}),
        (TRADED, "prices", {"high": 100, "close": 100.5}),
        (TRADED, "prices", {"high": math.inf}),
        (TRADED, "prices", {"high": None}),
        (TRADED, "prices", {"high": "much"}),
        (TRADED, "negative", {"volume": -1.0, "taker_buy_volume": -1.0}),
        (TRADED, "negative", {"count": -1}),
        (TRADED, "negative", {"quote_volume": math.inf}),
        (TRADED, "taker", {"taker_buy_volume": 1e9}),
        (TRADED, "taker", {"taker_buy_quote_volume": 1e9}),
        (FLAT, "flat", {"high": 1_000}),
        (FLAT, "flat", {"volume": 1.0}),
        (FLAT, "flat", {"count": 1}),
        (FLAT, "count", {"source": "trades", "count": 1}),
        (FLAT, "count", {"source": "official", "volume": 1.0}),
        (TRADED, "source", {"source": "rumour"}),
        (TRADED, "source", {"source": None}),
        (TRADED, "close_time", {"close_time": TRADED + MINUTE_MS}),
    ],
)
def test_a_bar_that_cannot_be_is_found(store, found, open_ms, kind, values):
    """Each check of a single bar finds what it is for, once."""
    store.change(SYMBOL, "1m", open_ms, **values)

    findings = found(store)

    assert kinds(findings) == [(kind, "1m", open_ms)]
    assert findings[0].symbol == SYMBOL
    assert "open " in findings[0].text


@pytest.mark.parametrize(("name", "off_ms"), [("5m", MINUTE_MS), ("1d", HOUR_MS), ("1M", DAY_MS)])
def test_a_bar_off_the_calendar_is_found(store, found, name, off_ms):
    """A bar that opens between two bars of its interval is told, and does not count as one."""
    open_ms = INTERVALS[name].floor(START) + off_ms
    store.put(SYMBOL, name, open_ms, **minute(1))

    assert kinds(found(store)) == [("calendar", name, open_ms)]


def test_three_day_bars_lie_on_the_symbol_s_own_grid(store, found):
    """The same bar is in order for one symbol, and off the calendar for another."""
    open_ms = INTERVALS["3d"].floor(START) - THREE_DAYS_MS
    store.put(SYMBOL, "3d", open_ms, open_ms + THREE_DAYS_MS, **minute(1))
    store.list(SYMBOL, phase_ms=2 * DAY_MS)

    assert kinds(found(store)) == [("calendar", "3d", open_ms)]


def test_the_end_of_a_month_is_its_own(store, found):
    """July has 31 days."""
    open_ms = INTERVALS["1M"].floor(START)
    store.change(SYMBOL, "1M", open_ms, close_time=open_ms + 30 * DAY_MS - 1)

    assert kinds(found(store)) == [("close_time", "1M", open_ms)]


def test_a_running_bar_is_judged_too(store, found):
    """An impossible bar is one before it is sealed."""
    store.open_bars.append(store.bars[SYMBOL, "5m", HOUR] | {"low": 1_000})

    findings = found(store)

    assert kinds(findings) == [("prices", "5m", HOUR)]
    assert findings[0].text.startswith("running bar: ")


# -- Continuity ------------------------------------------------------------------------------------


def test_a_hole_is_found_once(store, found):
    """However many bars are missing in a row, it is one hole, told by its first bar."""
    for number in range(7, 10):
        del store.bars[SYMBOL, "1m", HOUR + number * MINUTE_MS]
    del store.bars[SYMBOL, "5m", START + HOUR_MS]

    findings = found(store)

    assert kinds(findings) == [("hole", "1m", HOUR + 7 * MINUTE_MS), ("hole", "5m", HOUR)]
    assert findings[0].text == "no bars from 2024-07-31 23:07 UTC to 2024-07-31 23:10 UTC"


def test_a_missing_month_is_a_hole(store, found):
    """Months follow each other by the calendar."""
    store.list(SYMBOL, onboard_ms=0)
    store.put(SYMBOL, "1M", 1_714_521_600_000, 1_717_200_000_000, **minute(1))  # May 2024

    assert kinds(found(store)) == [("hole", "1M", 1_717_200_000_000)]


def test_a_bar_stored_twice_is_found(store, found):
    """One bar a time, whichever tables the view reads."""
    store.twice.append(store.bars[SYMBOL, "1h", HOUR])

    assert kinds(found(store)) == [("twice", "1h", HOUR)]


def test_bars_that_end_before_the_last_tick_are_behind(store, found):
    """Every live symbol goes on to the last tick, each interval to its last bar before it."""
    del store.bars[SYMBOL, "1m", END - MINUTE_MS]
    del store.bars[SYMBOL, "1h", END - HOUR_MS]

    findings = found(store)

    assert kinds(findings) == [
        ("behind", "1m", END - MINUTE_MS),
        ("behind", "1h", END - HOUR_MS),
    ]
    assert findings[1].text == (
        "bars end at 2024-08-01 03:00 UTC, the last tick was 2024-08-01 04:00 UTC"
    )


def test_an_ended_symbol_goes_on_to_its_delivery(store, found):
    """The minute and the hour that hold the delivery are the last ones, and have to be there."""
    del store.bars[ENDED, "1m", START + 89 * MINUTE_MS]
    del store.bars[ENDED, "1h", HOUR]

    findings = found(store)

    assert kinds(findings) == [("behind", "1m", START + 89 * MINUTE_MS), ("behind", "1h", HOUR)]
    assert findings[0].text.endswith("it was delivered at 2024-07-31 23:29 UTC")


def test_a_delivery_date_alone_makes_no_bar_end_early(store, found):
    """Past its date a contract may go on: its running hour is not behind before it is over."""
    store.list(SYMBOL, delivery_ms=END - HOUR_MS + MINUTE_MS)
    store.last_tick_ms = END - MINUTE_MS
    for name in ("1m", "5m", "1h"):
        for bars in [key for key in store.bars if key[1] == name and key[0] == SYMBOL]:
            if INTERVALS[name].end(bars[2]) > END - MINUTE_MS:
                del store.bars[bars]

    assert found(store) == []


@pytest.mark.parametrize("before_ms", [23 * HOUR_MS, 5 * MINUTE_MS + 1, HOUR_MS, 0, -30_000])
def test_a_ticker_that_is_used_again_may_start_anew(store, found, before_ms):
    """The time between two contracts of the same name is no hole, whenever bars began again."""
    store.fill(SYMBOL, START - DAY_MS, START - DAY_MS + HOUR_MS, ["5m", "1h"])
    store.list(SYMBOL, onboard_ms=START - before_ms)

    assert found(store) == []


def test_a_hole_within_a_contract_is_none_between_two(store, found):
    """Only the gap that ends before the present listing is allowed: not one after it."""
    store.list(SYMBOL, onboard_ms=START - 2 * DAY_MS)
    store.put(SYMBOL, "1m", START - DAY_MS, **minute(START - DAY_MS))

    assert kinds(found(store)) == [("hole", "1m", START - DAY_MS + MINUTE_MS)]


def test_a_hole_within_an_earlier_contract_is_found(store, found):
    """What is missing between bars that both ended before the present listing is missing."""
    store.list(SYMBOL, onboard_ms=START)
    for open_ms in (START - DAY_MS, START - DAY_MS + 2 * MINUTE_MS):
        store.put(SYMBOL, "1m", open_ms, **minute(open_ms))

    assert kinds(found(store)) == [("hole", "1m", START - DAY_MS + MINUTE_MS)]


def test_a_contract_without_bars_yet_is_not_behind(store, found):
    """A ticker was listed again; all its bars are those of the contract before."""
    store.list(ENDED, onboard_ms=START + 3 * HOUR_MS)

    assert found(store) == []


# -- Merging ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("open", 100.0001),
        ("high", 1_000),
        ("low", 1),
        ("close", 99.0001),
        ("volume", 1e6),
        ("quote_volume", 1e6),
        ("count", 1),
        ("taker_buy_volume", 0.0),
        ("taker_buy_quote_volume", 0.0),
    ],
)
@pytest.mark.parametrize(
    ("interval", "open_ms"), [("5m", HOUR), ("1h", HOUR), ("4h", START + 2 * HOUR_MS)]
)
def test_a_bar_that_is_not_what_its_minutes_give_is_found(
    store, found, interval, open_ms, name, value
):
    """Each of the nine values is compared, and the text says which one differs."""
    store.change(SYMBOL, interval, open_ms, **{name: value})

    findings = found(store)

    assert kinds(findings) == [("merge", interval, open_ms)]
    assert findings[0].text.startswith(f"{name} {value}, its minutes give ")
    assert ";" not in findings[0].text


def test_rounding_is_no_difference(store, found):
    """Stored values are rounded to float64 each; a sum may be off by that, and by no more."""
    volume = store.bars[SYMBOL, "1h", HOUR]["volume"]
    nearly = math.nextafter(math.nextafter(volume, 0), 0)
    store.change(SYMBOL, "1h", HOUR, volume=nearly)
    off = store.bars[SYMBOL, "1h", END - HOUR_MS]["volume"] * (1 + 2 * verify_module.TOLERANCE)
    store.change(SYMBOL, "1h", END - HOUR_MS, volume=off)

    assert nearly != volume
    assert kinds(found(store)) == [("merge", "1h", END - HOUR_MS)]


def test_flat_minutes_do_not_count_for_prices(store, found):
    """A bar opens at its first trade, and flat minutes before that do not widen its range."""
    store.keep(SYMBOL, "1m", "5m", "15m")
    for number in range(7):
        store.change(SYMBOL, "1m", HOUR + number * MINUTE_MS, **flat(1 + number))
    for interval, minutes in (("5m", 5), ("15m", 15)):
        for open_ms in range(HOUR, HOUR + 15 * MINUTE_MS, minutes * MINUTE_MS):
            store.put_longer(SYMBOL, interval, open_ms, open_ms + minutes * MINUTE_MS)

    assert store.bars[SYMBOL, "15m", HOUR]["low"] > 90
    assert found(store) == []


def test_a_flat_bar_is_at_a_price_of_its_minutes(store, found):
    """Without a trade there is no price but that of the minutes."""
    store.keep(SYMBOL, "1m", "5m")
    for number in range(5):
        store.change(SYMBOL, "1m", HOUR + number * MINUTE_MS, **flat(7))
    store.change(SYMBOL, "5m", HOUR, **flat(8))

    findings = found(store)

    assert kinds(findings) == [("merge", "5m", HOUR)]
    assert findings[0].text.startswith("open 8, its minutes give 7; high 8, ")


def test_a_bar_with_a_missing_minute_is_not_compared(store, found):
    """Where a minute is missing, that alone is the finding."""
    del store.bars[SYMBOL, "1m", HOUR]
    store.change(SYMBOL, "1h", HOUR, high=1_000)

    assert kinds(found(store)) == [("hole", "1m", HOUR)]


def test_a_suspect_bar_is_not_compared(store, found):
    """It claims nothing; repair owes it."""
    store.change(SYMBOL, "1h", HOUR, high=1_000, source="suspect")

    assert found(store) == []


def test_an_official_bar_is_compared_with_official_minutes_only(store, found):
    """Trades may straddle minutes; the exchange's own bars add up."""
    store.keep(SYMBOL, "1m", "1h")
    for open_ms in (START, HOUR):
        store.change(SYMBOL, "1h", open_ms, high=1_000, source="official")
    for open_ms in range(START, HOUR, MINUTE_MS):
        store.change(SYMBOL, "1m", open_ms, source="official")

    assert kinds(found(store)) == [("merge", "1h", START)]


def test_a_bar_is_compared_from_its_listing_to_its_delivery(found):
    """The hour of the listing and that of the delivery have fewer minutes, and these are all."""
    store = Store(last_tick_ms=START + 4 * HOUR_MS)
    first_ms, end_ms = START + 40 * MINUTE_MS, HOUR + 25 * MINUTE_MS
    store.list(SYMBOL, onboard_ms=first_ms + 1_234, delivery_ms=end_ms - 1)
    store.fill(SYMBOL, first_ms, end_ms)
    store.put_longer(SYMBOL, "1h", START, HOUR)
    store.put_longer(SYMBOL, "1h", HOUR, HOUR + HOUR_MS)
    for open_ms in (START, HOUR):
        store.change(SYMBOL, "1h", open_ms, count=1)

    assert kinds(found(store)) == [("merge", "1h", START), ("merge", "1h", HOUR)]


@pytest.mark.parametrize(
    ("minute_source", "has", "is_found"),
    [
        ("suspect", "trades", True),
        ("suspect", "official", False),
        ("suspect", "suspect", False),
        ("official", "trades", False),
        ("official", "official", False),
        ("trades", "flat", False),
    ],
)
def test_a_bar_is_as_weak_as_its_weakest_minute(store, found, minute_source, has, is_found):
    """One suspect minute makes every longer bar suspect that is not the exchange's own."""
    store.keep(SYMBOL, "1m", "5m")
    store.change(SYMBOL, "1m", TRADED, source=minute_source)
    store.change(SYMBOL, "5m", HOUR, source=has)

    findings = found(store)

    if has == "flat":  # no bar with trades is
        assert kinds(findings) == [("flat", "5m", HOUR)]
    else:
        assert kinds(findings) == [("source", "5m", HOUR)] * is_found
    if is_found:
        assert findings[0].text == "called trades, its minutes make it suspect"


@pytest.mark.parametrize(
    ("lacking", "has", "is_found"),
    [(5, "absent", False), (5, "flat", True), (4, "absent", True), (4, "flat", False)],
)
def test_what_the_exchange_lacks_does_not_count(store, found, lacking, has, is_found):
    """A bar is absent if all of its minutes are; otherwise the others say what it is."""
    store.keep(SYMBOL, "1m", "5m")
    price = store.bars[SYMBOL, "1m", HOUR - MINUTE_MS]["close"]
    for place in range(5):
        source = "absent" if place < lacking else "flat"
        store.change(SYMBOL, "1m", HOUR + place * MINUTE_MS, **flat(price) | {"source": source})
    store.change(SYMBOL, "5m", HOUR, **flat(price) | {"source": has})

    assert kinds(found(store)) == [("source", "5m", HOUR)] * is_found


def test_a_bar_of_official_minutes_is_official(store, found):
    """What is made of the exchange's own minutes only is called so."""
    for open_ms in range(HOUR, HOUR + 3 * MINUTE_MS, MINUTE_MS):
        store.change(SYMBOL, "1m", open_ms, source="official")

    findings = found(store)

    assert kinds(findings) == [("source", "3m", HOUR)]
    assert findings[0].text == "called trades, its minutes make it official"


# -- Many findings ---------------------------------------------------------------------------------


def test_the_list_of_findings_is_bounded(found):
    """After the first thousand there is a last one that says how many more there are."""
    store = Store(last_tick_ms=START + 24 * HOUR_MS)
    store.list(SYMBOL)
    store.fill(SYMBOL, START, START + 24 * HOUR_MS)
    for bar in store.bars.values():
        bar["close_time"] += 1

    findings = found(store)

    assert len(findings) == FINDINGS_MAX + 1
    assert findings[-1] == Finding(
        "more", "", "", 0, "440 more findings; these are the first 1,000"
    )


# -- The file --------------------------------------------------------------------------------------


@pytest.mark.real
def test_a_missing_database_tells_how_to_get_one(tmp_path):
    """The error names the file and the command; nothing is created."""
    folder = tmp_path / "no data"
    with pytest.raises(DamagedDataError) as caught:
        verify(folder / "klagg.db")

    assert str(caught.value) == (
        f"no usable database in {folder}/klagg.db: it does not exist; "
        f"run: klagg backfill --data-dir '{folder}'"
    )
    assert not folder.exists()


@pytest.mark.real
def test_what_is_no_database_is_damaged(tmp_path):
    """A file of another kind is left alone."""
    path = tmp_path / "klagg.db"
    path.write_bytes(b"no database at all" * 1_000)
    with pytest.raises(DamagedDataError, match=r"file is not a database; move it away, then run:"):
        verify(path)


@pytest.mark.real
def test_a_database_of_something_else_is_damaged(tmp_path):
    """Without the tables there is nothing to verify."""
    path = tmp_path / "klagg.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(DamagedDataError, match="no such table: meta"):
        verify(path)


@pytest.mark.real
def test_a_damaged_database_is_found_by_sqlite(store, tmp_path):
    """Pages that were overwritten are SQLite's to find, before anything is believed."""
    path = store.write(tmp_path / "klagg.db")
    contents = bytearray(path.read_bytes())
    middle = len(contents) // 2 // 4096 * 4096
    contents[middle : middle + 4096] = bytes(4096)
    path.write_bytes(contents)
    with pytest.raises(DamagedDataError, match=r"klagg\.db: .*; move it away, then run: klagg"):
        verify(path)


@pytest.mark.real
def test_what_cannot_be_opened_is_the_disk_s_fault(tmp_path):
    """It may be whole: no word of a backfill."""
    with pytest.raises(StoreError, match=r"cannot read the database .*; mend that first"):
        verify(tmp_path)


@pytest.mark.real
def test_odd_names_of_folders_are_no_part_of_the_address(store, tmp_path):
    """What has a meaning in a URI has none in a path."""
    folder = tmp_path / "50%? of #1 &mode=rwc"
    folder.mkdir()

    assert verify(store.write(folder / "klagg.db")) == []


@pytest.mark.real
def test_a_klagg_at_work_does_not_disturb(store, tmp_path):
    """What another connection writes meanwhile is neither seen nor hindered."""
    path = store.write(tmp_path / "klagg.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM sealed WHERE interval = '1m'")

        assert verify(path) == []

        writer.execute("COMMIT")
    assert verify(path) == []
