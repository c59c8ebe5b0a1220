"""Bars are the same in whatever order, parts or repetitions of restatement they are built."""

from __future__ import annotations

import decimal
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klagg_trio.core.bar import EXACT, Bar, Source, combined_source, merge, newborn

from .naive import MINUTE, ATrade, nine, nine_of

FIRST_CLOSE = 7_777
PRICE = Decimal("77.77")


@st.composite
def trades(draw, *, minutes=1, min_size=0):
    """Trades with distinct ids, in id order, at any time in the minutes."""
    ids = draw(st.lists(st.integers(0, 10**12), unique=True, min_size=min_size, max_size=30))
    times = draw(
        st.lists(st.integers(0, minutes * MINUTE - 1), min_size=len(ids), max_size=len(ids)).map(
            sorted
        )
    )
    made = []
    for trade_id, time_ms in zip(sorted(ids), times, strict=True):
        first = draw(st.integers(0, 10**12))
        made.append(
            ATrade(
                "BTCUSDT",
                trade_id,
                draw(st.integers(1, 10**10)),
                draw(st.integers(1, 10**12)),
                time_ms,
                draw(st.booleans()),
                first,
                first + draw(st.integers(0, 50)),
            )
        )
    return made


def bar_of(some, open_ms=0, end_ms=MINUTE, price=PRICE) -> Bar:
    """Add trades to a newborn bar, one by one."""
    bar = newborn(open_ms, end_ms, price)
    with decimal.localcontext(EXACT):
        for trade in some:
            bar.add(trade)
    return bar


def minutes_of(some, minutes) -> list[Bar]:
    """Return the minutes of these trades, each flat at the close before where it is empty."""
    bars, price = [], PRICE
    for open_ms in range(0, minutes * MINUTE, MINUTE):
        inside = [t for t in some if open_ms <= t.time_ms < open_ms + MINUTE]
        bars.append(bar_of(inside, open_ms, open_ms + MINUTE, price))
        price = bars[-1].close
    return bars


@given(trades())
def test_a_bar_is_what_its_trades_add_up_to(some):
    """All nine values, against whole numbers."""
    assert nine_of(bar_of(some).values()) == nine(some, FIRST_CLOSE)


@given(trades(), st.randoms(use_true_random=False))
def test_the_order_of_arrival_makes_no_difference(some, rng):
    """Shuffled trades make the same bar: open and close go by id, not by arrival."""
    shuffled = list(some)
    rng.shuffle(shuffled)
    assert bar_of(shuffled) == bar_of(some)


@given(trades())
def test_a_bar_is_sane(some):
    """low <= open, close <= high; taker buy is a part; flat exactly where the count is 0."""
    bar = bar_of(some)
    assert bar.low <= bar.open <= bar.high
    assert bar.low <= bar.close <= bar.high
    assert 0 <= bar.taker_buy_volume <= bar.volume
    assert 0 <= bar.taker_buy_quote_volume <= bar.quote_volume
    assert bar.low * bar.volume <= bar.quote_volume <= bar.high * bar.volume
    if not some:
        assert bar.count == 0
        assert bar.open == bar.high == bar.low == bar.close == PRICE


@pytest.mark.slow
@given(trades(minutes=5), st.randoms(use_true_random=False))
def test_minutes_merge_to_the_longer_bar_in_any_order(some, rng):
    """A merge of disjoint parts is the bar of all their trades."""
    parts = minutes_of(some, 5)
    rng.shuffle(parts)
    with decimal.localcontext(EXACT):
        merged = merge(parts, 0, 5 * MINUTE, PRICE)
    assert nine_of(merged.values()) == nine(some, FIRST_CLOSE)


@given(trades(minutes=6), st.integers(1, 5))
def test_merging_in_steps_is_merging_at_once(some, cut):
    """Associativity: the merge of two merges is the merge of all the minutes."""
    minutes = minutes_of(some, 6)
    with decimal.localcontext(EXACT):
        left = merge(minutes[:cut], 0, cut * MINUTE, PRICE)
        right = merge(minutes[cut:], cut * MINUTE, 6 * MINUTE, left.close)
        both = merge([right, left], 0, 6 * MINUTE, PRICE)
        whole = merge(minutes, 0, 6 * MINUTE, PRICE)
    assert both.values() == whole.values()


@pytest.mark.slow
@given(trades(minutes=4, min_size=1), trades(min_size=0), st.integers(0, 3))
def test_replacing_a_part_is_rebuilding_or_says_that_it_is_not(some, others, which):
    """By exact difference: the sums are always right, all of it where replace returns True."""
    minutes = minutes_of(some, 4)
    new = bar_of(others, which * MINUTE, (which + 1) * MINUTE, minutes[which].open)
    with decimal.localcontext(EXACT):
        bar = merge(minutes, 0, 4 * MINUTE, PRICE)
        exact = bar.replace(minutes[which], new)
        rebuilt = merge(
            [*minutes[:which], new, *minutes[which + 1 :]], 0, 4 * MINUTE, minutes[0].open
        )
    assert bar.values()[4:] == rebuilt.values()[4:]
    if exact and rebuilt.count:
        assert bar.values() == rebuilt.values()


@pytest.mark.slow
@given(trades(minutes=3, min_size=1), trades(min_size=1))
def test_a_part_that_only_grew_is_always_replaced_exactly(some, more):
    """A partial minute and its official bar: the old trades are among the new ones."""
    minutes = minutes_of(some, 3)
    extra = [t for t in more if t.id not in {s.id for s in some}]
    grown = bar_of([*[t for t in some if MINUTE <= t.time_ms < 2 * MINUTE], *extra])
    grown.open_ms, grown.end_ms = MINUTE, 2 * MINUTE
    with decimal.localcontext(EXACT):
        bar = merge(minutes, 0, 3 * MINUTE, PRICE)
        assert bar.replace(minutes[1], grown)
        rebuilt = merge([minutes[0], grown, minutes[2]], 0, 3 * MINUTE, PRICE)
    assert bar.values() == rebuilt.values()


def test_the_last_trades_taken_out_leave_a_flat_bar():
    """An official minute without trades in the place of the only one that had some."""
    trade = ATrade("BTCUSDT", 1, 5_000, 1_000, 0)
    empty = newborn(0, MINUTE, Decimal("48"))
    with decimal.localcontext(EXACT):
        bar = merge([bar_of([trade])], 0, 5 * MINUTE, PRICE)
        assert bar.replace(bar_of([trade]), empty)
        assert nine_of(bar.values()) == nine([], 4_800)
        bar.absorb(bar_of([trade], MINUTE, 2 * MINUTE))
    assert nine_of(bar.values()) == nine([trade], 4_800)


def test_what_dwarfed_the_rest_cannot_be_taken_out_of_it():
    """A part that has been a float64 and was far larger than all others: the sums are not sure."""
    usual = bar_of([ATrade("BTCUSDT", 1, 5_000, 1_000, 0)])
    exact = bar_of([ATrade("BTCUSDT", 2, 5_000, 1_000, MINUTE)], MINUTE, 2 * MINUTE)
    for name in ("high", "volume", "quote_volume"):
        huge = exact.copy()
        setattr(huge, name, Decimal("9" * 39))
        read_back = huge.copy()
        setattr(read_back, name, Decimal(repr(float("9" * 39))))
        with decimal.localcontext(EXACT):
            bar = merge([usual, huge], 0, 5 * MINUTE, PRICE)
            assert not bar.replace(read_back, exact), name


def test_an_empty_part_changes_nothing():
    """A traded bar opens at its own first trade, not at the close before it."""
    trade = ATrade("BTCUSDT", 1, 5_000, 1_000, MINUTE)
    with decimal.localcontext(EXACT):
        merged = merge(minutes_of([trade], 3), 0, 3 * MINUTE, PRICE)
    assert merged.open == Decimal("50")
    assert merged.close == Decimal("50")


def test_a_copy_is_equal_and_separate():
    """Restating a copy leaves the sealed bar as it was."""
    bar = bar_of([ATrade("BTCUSDT", 1, 5_000, 1_000, 0)])
    copied = bar.copy()
    assert copied == bar
    copied.add(ATrade("BTCUSDT", 2, 6_000, 1_000, 0))
    assert bar.close == Decimal("50")
    assert {name: getattr(bar.copy(), name) for name in Bar.__slots__} == {
        name: getattr(bar, name) for name in Bar.__slots__
    }


def test_arithmetic_that_would_round_is_trapped():
    """Nothing is rounded in silence: a sum beyond the precision raises."""
    huge, tiny = Decimal(10) ** 150, Decimal(10) ** -100
    with decimal.localcontext(EXACT), pytest.raises(decimal.Inexact):
        _ = huge + tiny
    with decimal.localcontext(EXACT), pytest.raises(decimal.InvalidOperation):
        _ = Decimal("Infinity") - Decimal("Infinity")


digits = st.integers(1, 10**39 - 1)


@given(st.lists(st.tuples(digits, st.integers(0, 38), digits, st.integers(0, 38)), max_size=20))
def test_no_numbers_that_the_edge_admits_need_rounding(numbers):
    """Prices and quantities of up to 40 characters, as mixed as can be, add up exactly."""
    bar = newborn(0, MINUTE, PRICE)
    price_sum = quote_sum = 0
    with decimal.localcontext(EXACT):
        for number, (price, price_shift, quantity, shift) in enumerate(numbers):
            trade = ATrade("BTCUSDT", number, 1, 1, 0)
            object.__setattr__(trade, "price", Decimal(price).scaleb(-price_shift))
            object.__setattr__(trade, "quantity", Decimal(quantity).scaleb(-shift))
            bar.add(trade)
            price_sum += quantity * 10 ** (38 - shift)
            quote_sum += price * quantity * 10 ** (76 - shift - price_shift)
        assert bar.volume.scaleb(38) == price_sum
        assert bar.quote_volume.scaleb(76) == quote_sum


@pytest.mark.parametrize(
    ("count", "suspect", "official", "source"),
    [
        (5, True, False, Source.SUSPECT),
        (5, True, True, Source.SUSPECT),
        (5, False, True, Source.OFFICIAL),
        (0, False, True, Source.OFFICIAL),
        (5, False, False, Source.TRADES),
        (0, False, False, Source.FLAT),
    ],
)
def test_a_longer_bar_has_the_weakest_source_of_its_minutes(count, suspect, official, source):
    """Suspect before all; official only where every minute is."""
    assert combined_source(count, suspect, official) is source


def test_sources_have_the_words_that_people_read():
    """The labels in tables, on the screen, and in csv."""
    assert [source.label for source in Source] == [
        "trades",
        "flat",
        "suspect",
        "official",
        "absent",
    ]
