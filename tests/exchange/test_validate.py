"""The validator of official klines: what it refuses, and that the store takes all it passes."""

import csv
import gzip
import tempfile
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.facts import BarFact, Facts, Listing
from klagg_trio.core.intervals import DAY_MS, INTERVALS, MINUTE_MS, THREE_DAY_PHASE_MS
from klagg_trio.exchange.validate import COUNT_MAX, TIME_MS_MAX, RefusedRow, flaw_of, sift
from klagg_trio.store.database import NEVER_MS, Database
from klagg_trio.store.reading import open_reader
from klagg_trio.store.verify import verify

MINUTE = INTERVALS["1m"]
NOON_MS = 1_735_732_800_000
"""2025-01-01 12:00 UTC."""
DATA = Path(__file__).parents[3] / "shared" / "data"


def kline(at=0, interval=MINUTE, **changes):
    """Return a good row, with changes."""
    open_ms = NOON_MS + at * MINUTE_MS
    fields = {
        "open_ms": open_ms,
        "end_ms": open_ms + MINUTE_MS,
        "open": "10",
        "high": "12",
        "low": "9",
        "close": "11",
        "volume": "3",
        "quote_volume": "30",
        "count": 5,
        "taker_buy_volume": "1",
        "taker_buy_quote_volume": "10",
    }
    fields |= changes
    numbers = {n: Decimal(v) if isinstance(v, str) else v for n, v in fields.items()}
    return Bar(**numbers, source=Source.OFFICIAL)


FLAT = {
    **dict.fromkeys(("open", "high", "low", "close"), "10"),
    **dict.fromkeys(("volume", "quote_volume"), "0"),
    **dict.fromkeys(("taker_buy_volume", "taker_buy_quote_volume"), "0"),
    "count": 0,
}

WRONG = {
    "off the grid": {"open_ms": NOON_MS + 1_000, "end_ms": NOON_MS + MINUTE_MS + 1_000},
    "ends as it opens": {"end_ms": NOON_MS},
    "ends early": {"end_ms": NOON_MS + MINUTE_MS - 1},
    "a year long": {"end_ms": NOON_MS + 365 * DAY_MS},
    "before all time": {"open_ms": -MINUTE_MS, "end_ms": 0},
    "after all time": {"open_ms": 2**53 // MINUTE_MS * MINUTE_MS},
    "low above open": {"low": "10.5"},
    "high below close": {"high": "10.9"},
    "low above high": {"low": "13", "open": "13"},
    "a price of zero": {"low": "0"},
    "a negative price": {"low": "-1"},
    "not a number": {"high": "NaN"},
    "infinite": {"high": "Infinity"},
    "beyond floats": {"high": "1e309"},
    "negative volume": {"volume": "-3"},
    "endless volume": {"volume": "1e41"},
    "takers above volume": {"taker_buy_volume": "3.1", "taker_buy_quote_volume": "30"},
    "takers above volume by a hair": {
        "taker_buy_volume": "3.0000000000000000001",
        "taker_buy_quote_volume": "30",
    },
    "takers above quote": {"taker_buy_volume": "3", "taker_buy_quote_volume": "30.00001"},
    "quote below all prices": {"quote_volume": "26.9"},
    "quote above all prices": {"quote_volume": "36.1"},
    "takers' quote below all prices": {"taker_buy_quote_volume": "8.9"},
    "takers' quote above all prices": {"taker_buy_quote_volume": "12.1"},
    "count without volume": {"volume": "0", "quote_volume": "0", "taker_buy_volume": "0"},
    "volume without count": {"count": 0},
    "negative count": {"count": -1},
    "a count beyond sums": {"count": COUNT_MAX + 1},
    "a count beyond 64 bits": {"count": 2**63},
    "flat at two prices": FLAT | {"high": "11"},
    "flat that opens elsewhere": FLAT | {"open": "9"},
    "flat with quote": FLAT | {"quote_volume": "1"},
    "flat with takers' quote": FLAT | {"quote_volume": "1", "taker_buy_quote_volume": "1"},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_a_row_that_contradicts_itself_is_refused_alone(changes):
    """It is refused with a reason; the rows beside it are used."""
    before, after = kline(-1), kline(1)
    klines = sift([before, kline(**changes), after], MINUTE)
    assert klines.bars == [before, after]
    (refused,) = klines.refused
    assert refused.reason


@pytest.mark.parametrize(
    "changes",
    [{}, FLAT, {"quote_volume": "26.99996", "taker_buy_quote_volume": "8.99996"}, {"count": 1}],
)
def test_right_rows_pass(changes):
    """Traded ones, flat ones, and values rounded in the last digit that the exchange prints."""
    assert flaw_of(kline(**changes), MINUTE) is None


@pytest.mark.parametrize("name", INTERVALS)
def test_the_grid_is_the_intervals(name):
    """A row opens where its interval does and ends before the next one, months included."""
    interval = INTERVALS[name]
    open_ms = interval.floor(NOON_MS)
    end_ms = interval.end(open_ms)
    assert flaw_of(kline(open_ms=open_ms, end_ms=end_ms), interval) is None
    step_ms = DAY_MS if name == "3d" else MINUTE_MS
    for wrong in (
        {"open_ms": open_ms, "end_ms": end_ms - 1},
        {"open_ms": open_ms, "end_ms": end_ms + step_ms},
        {"open_ms": open_ms + 1, "end_ms": end_ms + 1},
    ):
        assert flaw_of(kline(**wrong), interval)
    if name not in ("1m", "3d"):
        shifted = kline(open_ms=open_ms + MINUTE_MS, end_ms=end_ms + MINUTE_MS)
        assert flaw_of(shifted, interval)


def test_three_day_bars_have_a_phase_of_their_own():
    """Any whole day may be the first; within an answer the grid of most rows is the symbol's."""
    three_days = INTERVALS["3d"]
    day_ms = NOON_MS // DAY_MS * DAY_MS

    def row(day):
        return kline(open_ms=day_ms + day * DAY_MS, end_ms=day_ms + (day + 3) * DAY_MS)

    for day in range(3):
        assert flaw_of(row(day), three_days) is None
    klines = sift([row(0), row(4), row(6)], three_days)
    assert [bar.open_ms for bar in klines.bars] == [day_ms, day_ms + 6 * DAY_MS]
    assert [refused.open_ms for refused in klines.refused] == [day_ms + 4 * DAY_MS]


def test_answers_are_put_in_order():
    """Rows out of order are sorted, the same row twice is one, two that differ are none."""
    rows = [kline(2), kline(0), kline(2), kline(1), kline(3), kline(3, close="10.5"), kline(4)]
    klines = sift(rows, MINUTE)
    assert klines.bars == [kline(0), kline(1), kline(2), kline(4)]
    assert [refused.open_ms for refused in klines.refused] == [kline(3).open_ms]


def test_rows_that_were_not_asked_for_are_refused():
    """An answer holds what opens within the times asked for, both inclusive."""
    klines = sift(
        [kline(at) for at in range(5)],
        MINUTE,
        first_ms=kline(1).open_ms,
        last_ms=kline(3).open_ms,
    )
    assert klines.bars == [kline(1), kline(2), kline(3)]
    assert [refused.open_ms for refused in klines.refused] == [kline(0).open_ms, kline(4).open_ms]


def test_what_is_refused_is_bounded():
    """An answer of nothing but nonsense does not become a list as long as itself."""
    assert len(sift([RefusedRow(None, "nonsense")] * 10_000, MINUTE).refused) < 2_000


@pytest.mark.skipif(not DATA.exists(), reason="needs the recordings")
def test_real_klines_pass():
    """Not one of the exchange's own recorded minutes is refused."""
    paths = [*DATA.rglob("um_*1m*.csv.gz"), *DATA.rglob("klines_1m_official.csv")]
    count = 0
    for path in paths:
        text = path.read_bytes()
        text = gzip.decompress(text) if path.suffix == ".gz" else text
        for row in csv.reader(text.decode().splitlines()):
            if not row[0].isdigit():
                continue
            values = [Decimal(value) for value in (*row[1:6], row[7], row[9], row[10])]
            bar = Bar(int(row[0]), int(row[6]) + 1, *values[:6], int(row[8]), *values[6:])
            assert flaw_of(bar, MINUTE) is None, row
            count += 1
    assert count or not paths


# -- Against the store -----------------------------------------------------------------------------

digits = st.integers(0, 10**30)
numbers = st.one_of(
    st.builds(lambda whole, places: Decimal(whole).scaleb(-places), digits, st.integers(0, 38)),
    st.sampled_from(
        [Decimal(text) for text in ("0", "1e-38", "1", "9" * 39, "0." + "0" * 37 + "1")]
    ),
)
near = st.sampled_from([Decimal(0), Decimal("1e-30"), Decimal("-1e-30"), Decimal("1e-12")])
times = st.one_of(
    st.integers(0, 10**8).map(lambda minute: minute * MINUTE_MS),
    st.integers(0, TIME_MS_MAX),
    st.just(TIME_MS_MAX // MINUTE_MS * MINUTE_MS - MINUTE_MS),
)


@st.composite
def rows(draw):
    """Draw a row: mostly near to a right one, so that it passes, at the edges of what is right."""
    interval = INTERVALS[draw(st.sampled_from(sorted(INTERVALS)))]
    open_ms = draw(times)
    if draw(st.booleans()):
        open_ms = interval.floor(open_ms)
    low, spread = draw(numbers), draw(numbers)
    high = low + spread
    prices = [min(max(low + draw(near), low), high) for _ in range(2)]
    if draw(st.booleans()):
        count, volume = 0, Decimal(0)
        low = high = prices[0] = prices[1] = draw(numbers)
    else:
        count, volume = draw(st.one_of(st.integers(1, 9), st.just(COUNT_MAX))), draw(numbers)
    taker = draw(st.sampled_from([volume, Decimal(0), volume / 2])) + draw(near) * draw(
        st.integers(0, 1)
    )
    price = draw(st.sampled_from([low, high]))
    bar = Bar(
        open_ms,
        interval.end(open_ms) + draw(st.sampled_from([0, 0, 0, 1])),
        prices[0],
        high,
        low,
        prices[1],
        volume,
        volume * price,
        count,
        taker,
        taker * price,
        source=Source.OFFICIAL,
    )
    return interval, bar


@pytest.mark.real
@settings(max_examples=150, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=12))
def test_the_store_takes_what_passes(drawn):
    """Every row that the validator passes is stored as official; `verify` finds nothing in it."""
    passed = [(interval, bar) for interval, bar in drawn if not sift([bar], interval).refused]
    assume(passed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "klagg.db"
        database = Database.open(path)
        try:
            for number, (interval, bar) in enumerate(passed):
                # A symbol each, so that there is nothing to be merged or continued.
                symbol = f"S{number}USDT"
                phase_ms = bar.open_ms if interval.name == "3d" else THREE_DAY_PHASE_MS
                listing = Listing(symbol, 0, NEVER_MS, phase_ms % (3 * DAY_MS))
                facts = Facts(listings=[listing], restated=[BarFact(symbol, interval.name, bar)])
                database.commit(None, [facts])
        finally:
            database.close()
        read = open_reader(path)
        try:
            stored = read.execute("SELECT count(*) FROM klines WHERE source = 'official'")
            assert stored.fetchone() == (len(passed),)
        finally:
            read.close()
        told = [finding for finding in verify(path) if finding.kind not in ("hole", "behind")]
        assert told == []
