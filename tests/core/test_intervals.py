"""The calendar of all fifteen intervals against `datetime`, and against official bars."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klagg_trio.core.intervals import (
    DAY_MS,
    DEFAULT_INTERVALS,
    INTERVALS,
    MINUTE_MS,
    THREE_DAYS_MS,
    select,
)

DATA = Path(__file__).parents[3] / "shared" / "data"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

LENGTHS = {
    "1m": timedelta(minutes=1),
    "3m": timedelta(minutes=3),
    "5m": timedelta(minutes=5),
    "15m": timedelta(minutes=15),
    "30m": timedelta(minutes=30),
    "1h": timedelta(hours=1),
    "2h": timedelta(hours=2),
    "4h": timedelta(hours=4),
    "6h": timedelta(hours=6),
    "8h": timedelta(hours=8),
    "12h": timedelta(hours=12),
    "1d": timedelta(days=1),
    "3d": timedelta(days=3),
    "1w": timedelta(weeks=1),
}

moments = st.integers(-(10**12), 4 * 10**12)
"""1938 to 2096, in ms."""

intervals = st.sampled_from(list(INTERVALS.values()))


def ms(moment: datetime) -> int:
    """Milliseconds since 1970, exactly."""
    return (moment - EPOCH) // timedelta(milliseconds=1)


def at(moment_ms: int) -> datetime:
    """The moment as a datetime."""
    return EPOCH + timedelta(milliseconds=moment_ms)


@given(intervals, moments)
def test_a_moment_lies_in_its_bar_and_bars_follow_without_a_gap(interval, moment_ms):
    """floor <= t < end; the end of a bar is the open of the next; an open is its own floor."""
    open_ms = interval.floor(moment_ms)
    end_ms = interval.end(open_ms)
    assert open_ms <= moment_ms < end_ms
    assert interval.floor(end_ms) == end_ms
    assert interval.floor(end_ms - 1) == open_ms
    assert interval.is_open(open_ms)
    assert interval.is_open(moment_ms) == (moment_ms == open_ms)


@given(intervals, moments)
def test_every_bar_is_made_of_whole_minutes(interval, moment_ms):
    """Longer bars are merged from minutes, so they begin and end with one."""
    open_ms = interval.floor(moment_ms)
    assert open_ms % MINUTE_MS == 0
    assert interval.end(open_ms) % MINUTE_MS == 0


@given(st.sampled_from([name for name in LENGTHS if name not in ("3d", "1w")]), moments)
def test_intervals_up_to_a_day_divide_the_utc_day(name, moment_ms):
    """They open at a whole number of lengths after midnight."""
    midnight = at(moment_ms).replace(hour=0, minute=0, second=0, microsecond=0)
    steps = (at(moment_ms) - midnight) // LENGTHS[name]
    assert INTERVALS[name].floor(moment_ms) == ms(midnight + steps * LENGTHS[name])
    assert INTERVALS[name].end(ms(midnight)) == ms(midnight + LENGTHS[name])


@given(moments)
def test_weeks_open_on_monday(moment_ms):
    """Monday 00:00 UTC, seven days long."""
    opened = at(INTERVALS["1w"].floor(moment_ms))
    assert opened.isoweekday() == 1
    assert (opened.hour, opened.minute, opened.second, opened.microsecond) == (0, 0, 0, 0)
    assert INTERVALS["1w"].end(ms(opened)) == ms(opened + timedelta(weeks=1))


@given(moments)
def test_months_are_those_of_the_calendar(moment_ms):
    """The first of the month, to the first of the next, leap days included."""
    moment = at(moment_ms)
    first = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + timedelta(days=32)).replace(day=1)
    assert INTERVALS["1M"].floor(moment_ms) == ms(first)
    assert INTERVALS["1M"].end(ms(first)) == ms(following)


def test_every_month_of_four_centuries():
    """One whole Gregorian cycle, from 1800."""
    month = INTERVALS["1M"]
    open_ms = ms(datetime(1800, 1, 1, tzinfo=UTC))
    for year in range(1800, 2200):
        for number in range(1, 13):
            assert open_ms == ms(datetime(year, number, 1, tzinfo=UTC))
            open_ms = month.end(open_ms)


@given(moments, st.sampled_from([0, DAY_MS, 2 * DAY_MS]))
def test_three_day_bars_keep_the_phase_they_were_given(moment_ms, phase_ms):
    """They step three days from the phase, whatever day that is."""
    interval = INTERVALS["3d"].with_phase(phase_ms)
    open_ms = interval.floor(moment_ms)
    assert open_ms % THREE_DAYS_MS == phase_ms
    assert interval.end(open_ms) - open_ms == THREE_DAYS_MS


@given(moments)
def test_a_phase_may_be_given_as_any_official_open_time(open_ms):
    """What is learnt from a bar is its open time; only the rest by three days counts."""
    open_ms -= open_ms % DAY_MS
    assert INTERVALS["3d"].with_phase(open_ms).is_open(open_ms)


def test_official_three_day_bars_of_bitcoin_lie_on_the_default_grid():
    """Eleven real 3d bars of BTCUSDT: open times and close times as the calendar has them."""
    path = DATA / "um_BTCUSDT_3d.json"
    if not path.exists():
        pytest.skip(f"no real data: {path} is not there")
    interval = INTERVALS["3d"]
    rows = json.loads(path.read_text())
    assert len(rows) == 11
    for row in rows:
        assert interval.is_open(row[0])
        assert interval.end(row[0]) == row[6] + 1


def test_selected_intervals_come_shortest_first_and_once():
    """Whatever the order of the names."""
    names = [interval.name for interval in select(("1d", "1m", "5m", "1d"))]
    assert names == ["1m", "5m", "1d"]
    assert [interval.name for interval in select(DEFAULT_INTERVALS)] == list(DEFAULT_INTERVALS)
    assert len(select(tuple(INTERVALS))) == 15


@pytest.mark.parametrize(
    ("names", "text"), [(("1m", "7m"), "unknown interval '7m'"), (("5m",), "must include 1m")]
)
def test_a_wrong_selection_says_what_is_wrong(names, text):
    """An unknown name, or no minutes to merge from."""
    with pytest.raises(ValueError, match=text):
        select(names)


def test_months_and_minutes_are_told_apart_by_case():
    """1m is a minute, 1M a month."""
    assert INTERVALS["1m"].end(0) == MINUTE_MS
    assert INTERVALS["1M"].end(0) == 31 * DAY_MS
