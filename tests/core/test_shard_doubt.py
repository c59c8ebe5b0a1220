"""Which minutes are suspect: exactly those that nobody can vouch for, and for how long."""

from __future__ import annotations

import random

import pytest

from klagg_trio.core.gaps import SPANS_MAX
from klagg_trio.core.shard.evidence import GAPS_MAX, JUMP_MAX

from .desk import SYMBOL, Desk, ms, official, trade
from .naive import MINUTE, SUSPECT, minutes_around_missing, nine

# -- Missing ids ----------------------------------------------------------------------------------


def test_a_gap_marks_the_minutes_it_borders_and_all_between():
    """Ids 3 to 5 may lie anywhere from the last trade's minute to the next one's."""
    desk = Desk()
    desk.trades(trade(1, 0.5), trade(2, 2.5))
    desk.tick(5)
    desk.trades(trade(6, 5.5), trade(7, 6.5))
    desk.tick(8)
    assert desk.sources() == "tfSSSStf"


def test_a_gap_within_the_running_minute_marks_only_that_one():
    """Noticed before the tick: the minute is sealed as suspect, the next is not."""
    desk = Desk()
    desk.trades(trade(1, 0.5), trade(3, 0.6))
    assert desk.tick(1).doubted == []
    desk.trades(trade(4, 1.5))
    desk.tick(2)
    assert desk.sources() == "St"


def test_a_gap_seen_in_trades_ahead_of_the_clock_marks_their_minutes():
    """The tick is late by minutes; the gap lies in minutes it has not sealed yet."""
    desk = Desk()
    desk.trades(trade(1, 0.5), trade(2, 1.5), trade(4, 3.5))
    desk.tick(5)
    assert desk.sources() == "tSSSf"


def test_missing_ids_that_arrive_after_all_heal_the_gap():
    """Out of order, one by one: what stays suspect shrinks to what the rest may lie in."""
    desk = Desk("3m")
    some = [trade(n, minute) for n, minute in ((1, 0.5), (2, 0.9), (3, 1.5), (4, 2.5))]
    desk.trades(some[0], some[3])
    desk.tick(3)
    assert desk.sources() == "SSS"
    desk.trades(some[2])
    assert desk.sources() == "SSt"
    desk.trades(some[1])
    assert desk.sources() == "ttt"
    assert list(desk.state.suspects) == []
    assert desk.sources("3m") == "t"
    assert desk.row(0, "3m").nine == nine(some, 0)


def test_a_healed_gap_does_not_clear_the_minutes_of_another():
    """Two gaps meet in one minute; only one of them heals."""
    desk = Desk()
    desk.trades(trade(1, 0.5), trade(3, 1.2), trade(5, 1.8))
    desk.tick(2)
    assert desk.sources() == "SS"
    desk.trades(trade(2, 1.1))
    assert desk.sources() == "tS"


def test_a_healed_gap_does_not_clear_what_nobody_watched():
    """The feed went live in the middle of the minute in which the gap opened and healed."""
    desk = Desk(next_id=None, live=False)
    desk.live(0.2)
    desk.trades(trade(7, 0.5), trade(9, 0.8))
    desk.tick(1)
    desk.trades(trade(8, 0.7))
    assert desk.sources() == "S"


def test_a_missing_trade_that_comes_too_late_for_its_minute_leaves_it_to_repair():
    """It is late, not a duplicate; its minute and the flat ones after stay suspect."""
    desk = Desk()
    desk.trades(trade(1, 0.5), trade(3, 2.5))
    desk.tick(8)
    assert desk.sources() == "SSSfffff"
    desk.trades(trade(2, 0.7, 12_000))
    assert (desk.shard.trades.late, desk.shard.trades.duplicate) == (1, 0)
    assert desk.sources() == "SStfffff"
    some = trade(1, 0.5), trade(2, 0.7, 12_000)
    desk.replace(official(0, *some), official(1, *some))
    assert desk.sources() == "OOtfffff"


def test_more_gaps_than_are_remembered_are_left_to_repair():
    """The oldest is given up, and its minute stays suspect though its trade comes after all."""
    desk = Desk()
    step = 0.9 / (GAPS_MAX + 5)
    some = [trade(2 * n + 1, n * step) for n in range(GAPS_MAX + 5)]
    desk.trades(*some)
    assert len(desk.state.gaps) == GAPS_MAX
    for n in range(5, GAPS_MAX + 4):
        desk.trades(trade(2 * n + 2, n * step))
    desk.tick(1)
    assert desk.sources() == "S"


def test_a_jump_of_an_absurd_size_breaks_the_numbering_and_costs_nothing():
    """One nonsense id: its minute is suspect, memory stays small, and the true ids go on."""
    desk = Desk()
    desk.trades(trade(1, 0.2), trade(2**60, 0.3), trade(2, 0.4), trade(3, 0.5))
    desk.tick(1)
    desk.trades(trade(4, 1.5), trade(6, 1.6))
    desk.tick(2)
    desk.trades(trade(7, 2.5))
    desk.tick(3)
    assert desk.sources() == "SSt"
    assert desk.shard.trades.duplicate == 0


def test_a_large_gap_is_a_range_and_not_a_set():
    """Millions of missing ids cost as much as one."""
    desk = Desk()
    desk.trades(trade(1, 0.2), trade(JUMP_MAX, 0.3), trade(5_000_000, 0.25))
    assert [(gap.first_id, gap.end_id) for gap in desk.state.gaps] == [
        (2, 5_000_000),
        (5_000_001, JUMP_MAX),
    ]


def test_ids_that_start_over_are_no_duplicates():
    """A trade newer than all that was seen cannot have been seen, whatever its id."""
    desk = Desk(next_id=500)
    desk.trades(trade(500, 0.5), trade(501, 1.5))
    desk.tick(2)
    desk.trades(trade(1, 2.5), trade(2, 3.5))
    desk.tick(4)
    assert desk.shard.trades.in_bars == 4
    assert desk.sources() == "tSSt"


@pytest.mark.parametrize("seed", range(40))
def test_exactly_the_minutes_that_hold_or_border_a_missing_id_are_suspect(seed):
    """Random trades, a share of them never delivered, some late: against the rule's own text."""
    rng = random.Random(seed)
    desk = Desk("5m")
    times = sorted(rng.uniform(0, 30) for _ in range(rng.choice((10, 60, 200))))
    some = [trade(n, at, rng.randrange(9_000, 11_000)) for n, at in enumerate(times, 1)]
    inner = some[1:-1]
    rng.shuffle(inner)
    lost = set(inner[: len(inner) // 8])
    late = set(inner[len(inner) // 8 : len(inner) // 4])
    arrivals = [(t.time_ms + (rng.randrange(100_000) if t in late else 0), t) for t in some]
    arrivals = [(at, t) for at, t in arrivals if t not in lost]
    arrivals += [(ms(minute) + 1, None) for minute in range(1, 34)]
    for at, each in sorted(arrivals, key=lambda arrival: arrival[0]):
        desk.trades(each) if each else desk.tick((at - 1 - ms(0)) // MINUTE)
    delivered = [t for t in some if t not in lost]
    suspect = {key[2] for key, row in desk.store.rows.items() if key[1] == "1m" and row.source == 2}
    assert suspect == minutes_around_missing(delivered)
    assert {
        key[2] for key, row in desk.store.rows.items() if key[1] == "5m" and row.source == 2
    } == {at - at % (5 * MINUTE) for at in suspect}


# -- Liveness -------------------------------------------------------------------------------------


def test_minutes_from_the_cut_to_the_first_whole_live_one_are_suspect():
    """Trades since the snapshot are missing by nature; the first id shows that some are."""
    desk = Desk(live=False)
    desk.tick(2)
    desk.live(2.5)
    desk.trades(trade(9, 2.7))
    desk.tick(4)
    assert desk.sources() == "SSSf"


def test_a_restart_that_missed_nothing_leaves_no_suspect():
    """The first id is the one that the snapshot said would continue."""
    desk = Desk("3m", live=False)
    desk.tick(2)
    desk.live(2.5)
    desk.trades(trade(1, 2.7))
    assert desk.sources() == "ff"
    desk.tick(3)
    assert desk.sources() == "fft"
    assert desk.sources("3m") == "t"


def test_a_reconnect_that_missed_nothing_leaves_no_suspect():
    """Lost and back within a minute, or over several: the next id proves all of them."""
    desk = Desk("3m")
    desk.trades(trade(1, 0.2))
    desk.lose(0.4)
    desk.tick(3)
    assert desk.sources() == "SSS"
    desk.live(3.2)
    facts = desk.trades(trade(2, 3.5))
    assert [(span.first_ms, span.last_ms) for span in facts.proven] == [(ms(0), ms(2))]
    desk.tick(4)
    assert desk.sources() == "tfft"
    assert desk.sources("3m") == "t"
    assert list(desk.state.suspects) == []


def test_a_reconnect_that_missed_trades_leaves_just_the_minutes_nobody_watched():
    """From the minute of the loss to that of the return, and flat ones at an unknown price."""
    desk = Desk()
    desk.trades(trade(1, 0.2), trade(2, 1.2))
    desk.tick(2)
    desk.lose(2.4)
    desk.tick(4)
    desk.live(4.2)
    desk.trades(trade(5, 5.5))
    desk.tick(7)
    assert desk.sources() == "ttSSStf"


def test_flat_minutes_before_the_first_trade_are_at_a_price_nobody_knows():
    """Alive, but the close before may have been moved by a missed trade: not vouched for."""
    desk = Desk(live=False)
    desk.live(0.5)
    desk.tick(3)
    assert desk.sources() == "SSS"
    desk.trades(trade(4, 3.5))
    desk.tick(5)
    assert desk.sources() == "SSStf"


def test_an_official_bar_settles_the_price_for_a_symbol_that_does_not_trade():
    """Repair of a minute that ended under the live feed: what follows is flat at its close."""
    desk = Desk("5m", live=False)
    desk.live(0.5)
    desk.tick(2)
    missed = trade(4, 0.3, 12_000)
    desk.replace(official(0, missed), official(1, missed))
    desk.tick(4)
    assert desk.sources() == "OOff"
    assert desk.closes() == [12_000] * 4


def test_loss_noticed_after_the_tick_makes_sealed_minutes_suspect():
    """And the longer bars around them; minutes before the loss stay as they are."""
    desk = Desk("3m")
    desk.trades(trade(1, 0.2), trade(2, 2.1))
    desk.tick(4)
    assert desk.sources() == "tftf"
    desk.lose(2.5)
    assert desk.sources() == "tfSS"
    assert desk.sources("3m") == "S"
    desk.live(4.5)
    desk.trades(trade(3, 4.6))
    desk.tick(5)
    assert desk.sources() == "tftft"
    assert desk.sources("3m") == "t"


def test_a_loss_at_the_last_moment_of_a_minute_leaves_it_alone():
    """The feed was alive to the minute's very end."""
    desk = Desk()
    desk.trades(trade(1, 0.2))
    desk.lose(1)
    desk.tick(2)
    assert desk.sources() == "tS"


def test_a_loss_in_a_minute_that_no_tick_has_sealed_yet():
    """The clock is late: lost in minute 1 while minute 0 runs; minute 0 was watched to its end."""
    desk = Desk()
    desk.trades(trade(1, 0.2))
    desk.lose(1.1)
    desk.tick(2)
    assert desk.sources() == "tS"


def test_a_second_loss_before_any_trade_keeps_the_first_question():
    """The id that continues is still that of before the first loss."""
    desk = Desk()
    desk.trades(trade(1, 0.2))
    desk.lose(0.5)
    desk.live(1.5)
    desk.lose(2.5)
    desk.live(3.5)
    desk.tick(4)
    assert desk.sources() == "SSSS"
    desk.trades(trade(2, 4.5))
    assert desk.sources() == "tfff"


def test_a_proof_after_a_second_loss_does_not_reach_back_to_the_first():
    """Trades were missed in the first outage; that nothing was in the second changes nothing."""
    desk = Desk()
    desk.trades(trade(1, 0.2))
    desk.lose(0.5)
    desk.live(1.5)
    desk.trades(trade(9, 1.7))
    desk.tick(3)
    assert desk.sources() == "SSf"
    desk.lose(3.5)
    desk.live(4.5)
    desk.tick(5)
    desk.trades(trade(10, 5.5))
    desk.tick(6)
    assert desk.sources() == "SSffft"


def test_a_proof_does_not_clear_a_gap_inside_the_outage():
    """Id 3 is missing in the minute of the loss, though the reconnect itself missed nothing."""
    desk = Desk()
    desk.trades(trade(1, 0.2), trade(2, 1.1), trade(4, 1.3))
    desk.lose(1.5)
    desk.tick(8)
    desk.live(8.5)
    desk.trades(trade(5, 8.7))
    desk.tick(9)
    assert desk.sources() == "tSfffffft"


def test_trades_that_come_while_the_feed_is_lost_do_not_call_it_alive():
    """The rest of a dead connection's buffer: counted in bars, but nothing is vouched for."""
    desk = Desk()
    desk.trades(trade(1, 0.2))
    desk.lose(0.4)
    desk.trades(trade(2, 0.5), trade(3, 0.6))
    desk.tick(3)
    assert desk.sources() == "SSS"
    desk.live(3.5)
    desk.trades(trade(4, 3.7))
    desk.tick(4)
    assert desk.sources() == "tfft"
    assert desk.shard.trades.in_bars == 4


def test_trades_between_loss_and_return_prove_only_what_follows_them():
    """Ids 2 to 6 were missed before; from id 7 on the chain is unbroken, and so are its minutes."""
    desk = Desk()
    desk.trades(trade(1, 0.2))
    desk.lose(0.4)
    desk.trades(trade(7, 1.5))
    desk.tick(4)
    desk.live(4.5)
    desk.trades(trade(8, 4.7))
    desk.tick(5)
    assert desk.sources() == "SSfft"


def test_an_old_trade_repeated_after_a_restart_proves_nothing():
    """It has the id that continues, but was made before anybody watched again."""
    desk = Desk(live=False)
    desk.tick(3)
    desk.live(3.5)
    desk.trades(trade(1, 0.5))
    desk.tick(4)
    assert desk.sources() == "SSSS"
    desk.trades(trade(3, 4.5))
    assert desk.sources() == "SSSS"


def test_the_first_trades_after_a_loss_may_come_in_any_order():
    """Id 2 continues but is overtaken by 3: both count, and neither is called a duplicate."""
    desk = Desk()
    desk.trades(trade(1, 0.2))
    desk.tick(1)
    desk.lose(1.2)
    desk.live(1.3)
    desk.trades(trade(3, 2.5), trade(2, 2.4))
    desk.tick(3)
    assert desk.shard.trades.in_bars == 3
    assert desk.row(2).nine.count == 2


def test_a_gap_after_the_return_is_a_gap_of_a_live_feed():
    """The first trade came before the shard heard that the feed is live; the second jumps."""
    desk = Desk()
    desk.trades(trade(1, 0.2))
    desk.lose(0.4)
    desk.trades(trade(2, 1.5))
    desk.live(1.4)
    desk.tick(3)
    desk.trades(trade(5, 4.5))
    desk.tick(6)
    assert desk.sources() == "tSSSSf"


def test_the_story_of_one_message_has_one_end():
    """A batch doubts a minute and clears it again: the store hears only the last word."""
    desk = Desk()
    desk.trades(trade(1, 0.2))
    desk.tick(2)
    facts = desk.trades(trade(3, 2.5), trade(2, 1.5))
    assert facts.doubted == []
    assert desk.sources() == "tt"
    facts = desk.trades(trade(5, 2.6), trade(4, 2.55), trade(7, 2.7))
    desk.tick(3)
    assert desk.sources() == "ttS"


# -- What repair needs ----------------------------------------------------------------------------


def check_repaired(desk: Desk, some, minutes: int) -> None:
    """Replace every suspect minute; then the hour must be what all the trades add up to."""
    for first_ms, last_ms in list(desk.state.suspects):
        for at in range(first_ms, last_ms + 1, MINUTE):
            desk.replace(official((at - ms(0)) // MINUTE, *some))
    assert "S" not in desk.sources()
    hour = next(f.bar for f in desk.shard.open_bars() if f.interval == "1h")
    inside = [t for t in some if t.time_ms < ms(minutes)]
    assert (hour.count, hour.volume) == (len(inside), len(inside))
    assert desk.store.inexact == 0


def test_the_minute_before_a_long_silence_is_not_counted_twice_by_its_repair():
    """A gap borders a minute sealed long ago: what it gave to the hour is still known."""
    desk = Desk("1h")
    some = [trade(1, 0.2), trade(2, 15.2), trade(3, 20.5)]
    desk.trades(some[0])
    desk.tick(20)
    desk.trades(some[2])
    desk.tick(21)
    check_repaired(desk, some, 21)


def test_the_minute_of_a_loss_noticed_late_is_not_counted_twice_by_its_repair():
    """After a suspend the ticks come first and the loss is noticed after: same thing."""
    desk = Desk("1h")
    some = [trade(1, 0.2), trade(2, 2.2), trade(3, 2.6), trade(4, 12.5)]
    desk.trades(*some[:2])
    desk.tick(12)
    desk.lose(2.3)
    desk.live(12.1)
    desk.trades(some[3])
    desk.tick(13)
    check_repaired(desk, some, 13)


def test_a_suspect_minute_keeps_its_trades_through_a_restart():
    """They are in the seed, so that repair can take them out of the longer bars exactly."""
    desk = Desk("1h")
    some = [trade(1, 0.2), trade(2, 0.5), trade(3, 0.7)]
    desk.trades(some[0], some[2])
    desk.tick(6)
    (seed,) = desk.shard.seeds()
    assert seed.suspects == ((ms(0), ms(0)),)
    assert [bar.count for bar in seed.partials] == [2]
    desk.shard.load(seed)
    check_repaired(desk, some, 6)


def test_too_many_outages_to_remember_are_joined_and_said_to_be_inexact():
    """The minutes that come in unasked are replaced, but the running hour cannot follow."""
    desk = Desk("1d")
    some = []
    for number in range(2 * SPANS_MAX + 6):
        gap = number % 2
        some.append(trade(len(some) + 1, number + 0.1))
        if gap:
            some.append(trade(len(some) + 1, number + 0.2))
        some.append(trade(len(some) + 1, number + 0.3))
        desk.trades(some[-3] if gap else some[-2], some[-1])
        desk.tick(number + 1)
    assert len(desk.state.suspects) <= SPANS_MAX
    assert desk.state.unknown
    for first_ms, last_ms in list(desk.state.suspects):
        for at in range(first_ms, last_ms + 1, MINUTE):
            desk.replace(official((at - ms(0)) // MINUTE, *some))
    assert not desk.state.suspects
    assert not desk.state.unknown
    assert desk.store.inexact > 0
    minute = next(m for m in range(5) if desk.row(m).source == 3)
    inside = [t for t in some if ms(minute) <= t.time_ms < ms(minute + 1)]
    assert desk.row(minute).nine == nine(inside, 0)


def test_the_price_of_repaired_flat_minutes_reaches_flat_longer_bars():
    """Repaired newest first: the flat 3m bar carries the official price, not the old one."""
    desk = Desk("3m", live=False, next_id=None)
    desk.tick(6)
    missed = trade(5, 0.5, 12_000)
    for minute in (5, 4, 3, 2, 1, 0):
        desk.replace(official(minute, missed))
    assert desk.closes("3m") == [12_000, 12_000]
    assert desk.sources("3m") == "OO"
    assert desk.state.last_close == 120


def test_spans_of_one_symbol_are_told_by_that_symbol():
    """Facts name the symbol whose minutes are doubted."""
    desk = Desk()
    desk.trades(trade(1, 0.5))
    desk.tick(2)
    facts = desk.trades(trade(3, 2.5))
    assert [(s.symbol, s.first_ms, s.last_ms) for s in facts.doubted] == [(SYMBOL, ms(0), ms(1))]
    assert [(event.kind, event.symbol) for event in facts.events] == [("gap", SYMBOL)]


def test_a_minute_is_replaced_once():
    """Two who asked for the same official minute at the same time change it once."""
    desk = Desk("1h")
    desk.trades(trade(1, 0.5))
    desk.tick(9)
    stored = desk.shard.states[SYMBOL].traded
    first = desk.shard.replace_minutes(SYMBOL, [official(0, trade(1, 0.5, 9_000))], [stored])
    again = desk.shard.replace_minutes(SYMBOL, [official(0, trade(1, 0.5, 9_000))], [stored])
    assert first
    assert not again
    (hour,) = desk.state.longer
    assert hour.unofficial_minutes == 8
    assert hour.bar.count == 1


def test_an_official_minute_is_never_doubted_again():
    """A loss that is told of late reaches back over minutes that were repaired meanwhile."""
    desk = Desk("1h", live=False)
    desk.tick(9)
    desk.replace(*(official(minute) for minute in range(7)))
    desk.live(9)
    desk.lose(0.5)
    assert list(desk.state.suspects) == [(ms(7), ms(8))]
    (hour,) = desk.state.longer
    assert hour.unofficial_minutes == 2
    desk.replace(*(official(minute) for minute in range(9)))
    assert hour.unofficial_minutes == 0
    assert desk.sources() == "O" * 9
    assert desk.store.inexact == 0


# -- Times that cannot be --------------------------------------------------------------------------


def test_a_trade_whose_time_its_ids_contradict_is_refused():
    """Made an hour before the one before it: it changes no bar, and its minutes are owed."""
    desk = Desk(next_id=1)
    desk.trades(trade(1, 0.5))
    for minute in range(1, 12):
        desk.tick(minute)
    desk.trades(trade(2, 11.5))
    desk.tick(12)
    desk.trades(trade(3, 2.0, 12_000))
    assert desk.shard.trades.rejected == 1
    desk.tick(13)
    desk.trades(trade(4, 13.5))
    desk.tick(14)
    assert desk.sources() == "t" + 10 * "f" + "SSt"
    assert set(desk.closes()) == {10_000}


def test_where_all_contradict_it_was_the_one_before():
    """A trade minutes ahead is not to make nonsense of all that follow."""
    desk = Desk(next_id=1)
    desk.trades(trade(1, 0.5))
    desk.trades(trade(2, 8.0))
    desk.trades(*(trade(number, 1.1 + number / 100) for number in range(3, 9)))
    assert desk.shard.trades.rejected == 2
    desk.tick(1)
    desk.tick(2)
    assert desk.row(1).source == SUSPECT
    desk.trades(trade(9, 2.5))
    desk.tick(3)
    assert desk.shard.trades.rejected == 2
