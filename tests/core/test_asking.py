"""When the exchange is asked again: growing pauses, doubtful rows, and what makes a hole absent."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klagg_trio.core.asking import (
    ABSENCES_MAX,
    CONFIRM_MS,
    FINAL_MS,
    KEPT_PER_SYMBOL,
    KEPT_SYMBOLS,
    PAUSES_S,
    Absences,
    FewerTrades,
    Patience,
    skipped,
    without,
)
from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.intervals import DAY_MS, MINUTE_MS

NOON_MS = 1_735_732_800_000


def at(minute):
    """Return the open time of a minute after noon."""
    return NOON_MS + minute * MINUTE_MS


def span(first, last):
    """Return a span of minutes after noon."""
    return at(first), at(last)


def bar(minute, count=5, volume="3"):
    """Return an official bar."""
    ten = Decimal(10)
    amount = Decimal(volume)
    values = (ten, ten, ten, ten, amount, amount * ten, count, Decimal(0), Decimal(0))
    return Bar(at(minute), at(minute + 1), *values, source=Source.OFFICIAL)


# -- Pauses ----------------------------------------------------------------------------------------


def test_pauses_grow_and_stay_finite():
    """Each asking in vain waits for longer, up to the longest; after 5,000 of them as well."""
    patience, now_s = Patience(), 0.0
    pauses = []
    for _ in range(5_000):
        patience.fail("A", *span(1, 2), now_s)
        assert patience.waiting("A", now_s) == [span(1, 2)]
        pauses.append(min(p for p in PAUSES_S if not patience.waiting("A", now_s + p)))
        now_s += pauses[-1]
    assert pauses[: len(PAUSES_S)] == list(PAUSES_S)
    assert set(pauses[len(PAUSES_S) :]) == {PAUSES_S[-1]}
    assert len(patience) == 1


def test_only_the_first_time_is_news():
    """A span that failed before is no news; a minute beside it is."""
    patience = Patience()
    assert patience.fail("A", *span(1, 1), 0)
    assert not patience.fail("A", *span(1, 1), 100)
    assert patience.fail("A", *span(2, 2), 100)
    assert patience.fail("B", *span(1, 1), 100)
    patience.succeed("A", *span(1, 1))
    assert patience.fail("A", *span(1, 1), 200)


def test_being_asked_for_beside_others_costs_no_patience():
    """A span that comes along within another page before its time waits no longer for that."""
    patience = Patience()
    for _ in range(10):
        patience.fail("A", *span(1, 1), 0)
    assert patience.waiting("A", PAUSES_S[0] + 1) == []


def test_patience_is_bounded():
    """However many spans and symbols fail, so many are remembered and no more."""
    patience = Patience()
    for minute in range(1_000):
        patience.fail("A", *span(2 * minute, 2 * minute), 0)
    assert len(patience) == KEPT_PER_SYMBOL
    for number in range(KEPT_SYMBOLS + 100):
        patience.fail(f"S{number}", *span(0, 0), 0)
    assert len(patience) == KEPT_SYMBOLS


minutes = st.integers(0, 40)
spans = st.builds(lambda a, b: (min(a, b), max(a, b)), minutes, minutes)


@given(st.lists(st.tuples(st.booleans(), spans), max_size=20))
def test_what_succeeded_does_not_wait(steps):
    """A minute waits exactly while something that failed since it last succeeded holds it."""
    patience, waiting = Patience(), set()
    for failed, (first, last) in steps:
        if failed:
            # Overlapping failures are joined: what one of them covers waits with it.
            touched = {m for a, b in patience.waiting("A", 0.0) for m in range(a, b + 1, MINUTE_MS)}
            patience.fail("A", *span(first, last), 0.0)
            waiting |= {at(m) for m in range(first, last + 1)} | touched
        else:
            patience.succeed("A", *span(first, last))
            waiting -= {at(m) for m in range(first, last + 1)}
    found = {m for a, b in patience.waiting("A", 0.0) for m in range(a, b + 1, MINUTE_MS)}
    assert found == waiting


@given(st.lists(minutes, max_size=20).map(sorted), spans)
def test_skipped_and_served_make_the_whole(served, asked):
    """The stretches that an answer skips are exactly the minutes asked for that it has not."""
    first, last = asked
    got = list(skipped([at(m) for m in served], at(first), at(last)))
    found = {m for a, b in got for m in range(a, b + 1, MINUTE_MS)}
    assert found == {at(m) for m in range(first, last + 1)} - {at(m) for m in served}


def test_spans_are_taken_out_of_spans():
    """What waits is not asked for; the rest of a span is."""
    assert without([span(0, 9)], [span(2, 3), span(9, 20)]) == [span(0, 1), span(4, 8)]


# -- Doubtful rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", [bar(0, count=6), bar(0, volume="3.1")])
def test_a_row_with_fewer_trades_than_ours_is_asked_for_again(ours):
    """It is believed when it says the same again, or when it has grown to hold ours."""
    fewer = FewerTrades()
    assert fewer.is_doubtful("A", bar(0), ours)
    assert not fewer.is_doubtful("A", bar(0), ours)
    assert fewer.is_doubtful("A", bar(0, count=1, volume="1"), ours)
    assert fewer.is_doubtful("A", bar(0, count=2, volume="2"), ours)
    assert not fewer.is_doubtful("A", bar(0, count=9, volume="9"), ours)


def test_a_row_that_has_all_of_ours_is_believed():
    """So is one for a minute of which nothing is known here."""
    fewer = FewerTrades()
    assert not fewer.is_doubtful("A", bar(0), bar(0))
    assert not fewer.is_doubtful("A", bar(0), bar(0, count=1, volume="1"))
    assert not fewer.is_doubtful("A", bar(0), None)


# -- Absences --------------------------------------------------------------------------------------


def test_two_askings_make_a_hole_absent():
    """The first is a note, one right after it says nothing, one after a pause confirms."""
    absences = Absences()
    (note,) = absences.skip("A", *span(0, 89), at(100))
    assert (note.askings, note.final) == (1, False)
    assert absences.skip("A", *span(0, 89), at(100) + CONFIRM_MS - 1) == []
    assert absences.waiting("A", at(100)) == [span(0, 89)]
    assert absences.waiting("A", at(100) + CONFIRM_MS) == []
    (note,) = absences.skip("A", *span(0, 89), at(100) + CONFIRM_MS)
    assert note.askings == 2
    assert note[:4] == ("A", *span(0, 89), at(100))


def test_an_absence_is_asked_for_for_a_day_and_then_final():
    """With growing pauses, a dozen times at most; after a day nobody asks any more."""
    absences, now_ms = Absences(), at(100)
    (note,) = absences.skip("A", *span(0, 89), now_ms)
    pauses, askings = [], 1
    while not note.final:
        now_ms += MINUTE_MS
        changed = absences.skip("A", *span(0, 89), now_ms)
        if changed:
            (note,) = changed
            pauses.append(now_ms - at(100) - sum(pauses))
            askings += 1
            assert note.askings == askings
    assert pauses == sorted(pauses)
    assert FINAL_MS <= now_ms - note.noticed_ms < 2 * FINAL_MS
    assert askings <= 12
    assert absences.due(now_ms + 1_000 * DAY_MS) == []
    assert len(absences) == 0
    assert len(Absences([note])) == 0


def test_absences_outlive_a_restart():
    """What was noted goes on from where it was: the next asking confirms it."""
    notes = Absences().skip("A", *span(0, 89), at(100))
    again = Absences(notes)
    (note,) = again.skip("A", *span(0, 89), at(110))
    assert note.askings == 2
    assert [due.symbol for due in Absences([note]).due(at(1_000))] == ["A"]


def test_what_is_served_after_all_is_no_absence():
    """The minutes served leave the note, the rest of the stretch stays in it."""
    absences = Absences()
    absences.skip("A", *span(0, 9), at(100))
    absences.serve("A", *span(3, 4))
    assert not absences.covers("A", at(3))
    assert [note[1:3] for note in absences] == [span(0, 2), span(5, 9)]
    absences.serve("A", *span(0, 9))
    assert len(absences) == 0


def test_absences_are_bounded():
    """Holes without end are not remembered without end: the others stay owed."""
    absences = Absences()
    for minute in range(2 * ABSENCES_MAX):
        absences.skip("A", *span(2 * minute, 2 * minute), at(100_000))
    assert len(absences) == ABSENCES_MAX


@given(st.lists(st.tuples(spans, st.integers(0, 600)), max_size=12))
def test_notes_never_overlap_and_no_single_asking_confirms(askings):
    """Whatever stretches are skipped whenever, each minute is in one note, counted by its askings.

    A minute is absent only if it was skipped at two times that lie CONFIRM_MS apart.
    """
    absences, now_ms, seen = Absences(), at(1_000), {}
    for (first, last), pause in askings:
        now_ms += pause * 1_000
        absences.skip("A", *span(first, last), now_ms)
        for minute in range(first, last + 1):
            seen.setdefault(at(minute), []).append(now_ms)
    noted = [m for note in absences for m in range(note.first_ms, note.last_ms + 1, MINUTE_MS)]
    assert sorted(noted) == sorted(seen)
    for note in absences:
        for minute in range(note.first_ms, note.last_ms + 1, MINUTE_MS):
            if note.askings > 1:
                assert seen[minute][-1] - seen[minute][0] >= CONFIRM_MS
