"""Verdicts on stored minutes held against official ones."""

from __future__ import annotations

from decimal import Decimal

from klagg_trio.core.audit import Verdict, judge
from klagg_trio.core.bar import Bar, Source

MINUTE_MS = 60_000
EQUAL, STRADDLE, UNEXPLAINED = Verdict.EQUAL, Verdict.STRADDLE, Verdict.UNEXPLAINED


def minutes(*volumes, close="10"):
    """Return consecutive minutes with these volumes, one trade a unit, half of it taker buys."""
    return [
        Bar(
            number * MINUTE_MS,
            (number + 1) * MINUTE_MS,
            Decimal(10),
            Decimal(10),
            Decimal(10),
            Decimal(close),
            Decimal(volume),
            Decimal(volume) * 10,
            volume,
            Decimal(volume) / 2,
            Decimal(volume) * 5,
        )
        for number, volume in enumerate(volumes)
    ]


def test_equal_minutes_are_equal():
    """Nine equal values make a minute equal."""
    assert judge(minutes(1, 2, 3), minutes(1, 2, 3)) == [EQUAL] * 3


def test_trades_counted_a_minute_early_are_a_straddle():
    """What one minute has too much and the next too little is explained."""
    assert judge(minutes(4, 7, 5), minutes(4, 5, 7)) == [EQUAL, STRADDLE, STRADDLE]


def test_straddles_over_consecutive_boundaries_are_one_chain():
    """A minute may gain at its end what it has lost at its start."""
    assert judge(minutes(6, 5, 4), minutes(5, 5, 5)) == [STRADDLE] * 3


def test_missing_trades_are_unexplained():
    """A minute with less than the official one, without a gain before it, is unexplained."""
    assert judge(minutes(4, 5), minutes(4, 6)) == [EQUAL, UNEXPLAINED]


def test_a_difference_that_never_cancels_is_unexplained():
    """Too much that is never missed later is not a straddle."""
    assert judge(minutes(6, 5, 5, 5), minutes(5, 5, 5, 5))[0] == UNEXPLAINED


def test_a_wrong_price_alone_is_unexplained():
    """Equal sums with another close are no straddle."""
    assert judge(minutes(5, close="11"), minutes(5)) == [UNEXPLAINED]


def beside_official(number, *volumes):
    """Return minutes of which one has been replaced by the official one."""
    made = minutes(*volumes)
    made[number].source = Source.OFFICIAL
    return made


def test_what_belongs_to_a_replaced_minute_is_a_straddle():
    """Too much before an official minute, or too little after one, may be its other half."""
    assert judge(beside_official(1, 6, 5), minutes(5, 5)) == [STRADDLE, EQUAL]
    assert judge(beside_official(0, 5, 4), minutes(5, 5)) == [EQUAL, STRADDLE]


def test_a_wrong_sum_beside_a_replaced_minute_is_unexplained():
    """A straddle moves trades: never a volume alone."""
    wrong = beside_official(1, 5, 5)
    wrong[0].volume += 1
    assert judge(wrong, minutes(5, 5)) == [UNEXPLAINED, EQUAL]


def test_too_little_before_a_replaced_minute_is_unexplained():
    """Nothing is ever counted too late."""
    assert judge(beside_official(1, 4, 5), minutes(5, 5)) == [UNEXPLAINED, EQUAL]
    assert judge(beside_official(0, 5, 6), minutes(5, 5)) == [EQUAL, UNEXPLAINED]
