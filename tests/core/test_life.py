"""The life of a contract in a shard: nobody's single word ends it, renames it, or leaves a hole."""

from __future__ import annotations

import dataclasses
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klagg_trio.core.bar import Source
from klagg_trio.core.facts import Listing
from klagg_trio.core.shard import CONFIRM_MS, Shard, Stored
from klagg_trio.core.shard.seal import LAG_MINUTES_MAX

from .desk import SYMBOL, Desk, ms, official, trade
from .naive import MINUTE
from .world import FAR

PRICE = Decimal("5")

STATUSES = ("TRADING", "TRADING_HALT", "SETTLING", "PRE_DELIVERING", "NEVER SEEN", None)


def sight(desk, status, minute, *, delivery=FAR):
    """One complete answer says this of the symbol."""
    return desk.take(desk.shard.sight(SYMBOL, status, delivery, ms(minute)))


def kinds(facts):
    """The kinds of the events of some facts."""
    return [event.kind for event in facts.events]


def relist(desk, minute, **said):
    """The exchange gives another listing date; what the shard makes of it."""
    known = {"served_before": False, "confirmed": False, "price": PRICE} | said
    parts = desk.shard.redate(Listing(SYMBOL, ms(minute), FAR, 0), **known)
    for part in parts:
        desk.take(part)
    return parts


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "TRADING"])
def test_whatever_the_status_bars_go_on(status):
    """Any status but TRADING means not now: minutes are sealed as before, and the pause is told."""
    desk = Desk("5m")
    desk.trades(trade(1, 0.5))
    assert kinds(sight(desk, status, 1)) == ["paused"]
    for minute in range(1, 8):
        desk.tick(minute)
    assert desk.sources() == "tffffff"
    assert kinds(sight(desk, "TRADING", 8)) == ["trading"]
    assert desk.shard.life(SYMBOL).paused is None


def test_a_contract_ends_when_answers_say_so_twice_after_its_delivery():
    """Sealed and frozen after the pause, with its longer bars; no endless flats."""
    desk = Desk("5m", "1h")
    desk.trades(trade(1, 0.5))
    sight(desk, "SETTLING", 5, delivery=ms(4))
    desk.tick(6)
    assert not sight(desk, "SETTLING", 6, delivery=ms(4)).ended
    desk.tick(9)
    facts = sight(desk, "SETTLING", 9, delivery=ms(4))
    assert facts.ended == [SYMBOL]
    assert kinds(facts) == ["delisted"]
    (listing,) = facts.listings
    assert (listing.status, listing.delivery_ms) == ("ENDED", ms(9))
    assert desk.shard.symbols() == []
    assert [(key[1], key[2]) for key in desk.store.rows if key[1] == "1h"] == [("1h", ms(0))]
    desk.tick(12)
    assert desk.sources() == "tffffffff"


def test_a_contract_that_is_not_named_ends_too():
    """Two complete answers without it, the pause apart, and no trade meanwhile."""
    desk = Desk()
    sight(desk, None, 1)
    desk.tick(5)
    facts = sight(desk, None, 1 + CONFIRM_MS / MINUTE)
    assert facts.ended == [SYMBOL]
    assert "does not name it" in facts.events[-1].text


def test_a_trade_is_a_witness_against_the_end():
    """Whoever trades has not ended, whatever the answers say."""
    desk = Desk()
    sight(desk, None, 1)
    desk.tick(3)
    desk.trades(trade(1, 3.5))
    desk.tick(5)
    assert not sight(desk, None, 5).ended
    desk.tick(8)
    assert sight(desk, None, 8).ended  # nothing since, and they still say so


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(STATUSES), st.integers(0, 30), st.integers(1, 4)), max_size=12
    )
)
def test_it_takes_two_words_a_pause_apart_to_end_a_contract(answers):
    """Over all histories of answers: as long as none repeats itself unbroken, it lives on."""
    desk = Desk()
    minute, over_since = 0, None
    for status, delivery, pause in answers:
        minute += pause
        desk.tick(minute)
        ended = bool(sight(desk, status, minute, delivery=ms(delivery)).ended)
        over = status is None or (status != "TRADING" and delivery <= minute)
        if not over:
            over_since = None
        elif over_since is None:
            over_since = minute
        due = over_since is not None and (minute - over_since) * MINUTE >= CONFIRM_MS
        assert ended == due
        if ended:
            return
        assert desk.shard.symbols() == [SYMBOL]
    assert len(desk.sources()) == minute


# -- Dates -----------------------------------------------------------------------------------------


def test_a_later_date_with_klines_from_before_it_is_a_correction():
    """Same series, the date is brought up to date, an event tells."""
    desk = Desk()
    desk.tick(5)
    (facts,) = relist(desk, 3, served_before=True)
    assert kinds(facts) == ["redated"]
    assert not facts.replaced
    assert desk.shard.life(SYMBOL).onboard_ms == ms(3)


def test_a_later_date_with_ids_that_go_on_is_a_correction():
    """Even where the exchange serves no klines from before it."""
    desk = Desk()
    desk.trades(trade(1, 0.5), trade(2, 3.5))
    desk.tick(4)
    (facts,) = relist(desk, 2, confirmed=True)
    assert kinds(facts) == ["redated"]


def test_a_date_put_back_is_a_correction_where_the_first_kline_is_the_same():
    """No klines lie before the true date, asked as often as one likes, and nothing else helps."""
    desk = Desk()
    desk.tick(5)
    desk.state.first_ms, desk.state.next_id = ms(3), None
    listing = Listing(SYMBOL, ms(3), FAR, 0, ms(3))
    (facts,) = desk.shard.redate(listing, served_before=False, confirmed=True, price=PRICE)
    assert kinds(facts) == ["redated"]
    assert not facts.replaced


def test_an_earlier_date_is_a_correction():
    """No contract was listed before the one that has its ticker now."""
    desk = Desk()
    relist(desk, 3, served_before=True)
    (facts,) = relist(desk, 1, confirmed=True)
    assert kinds(facts) == ["redated"]


def test_a_later_date_alone_proves_nothing():
    """No klines from before, once: nothing changes until a second witness speaks."""
    desk = Desk()
    desk.tick(5)
    assert relist(desk, 4) == []
    assert desk.shard.life(SYMBOL).onboard_ms == 0


@pytest.mark.parametrize("witness", ["over", "ids", "again"])
def test_a_reused_ticker_is_another_contract_by_two_witnesses(witness):
    """The old one is frozen, its label is free, and the new one is live at once."""
    desk = Desk("5m")
    desk.trades(trade(900, 0.5))  # with a gap of ids before it
    desk.tick(5)
    if witness == "over":
        sight(desk, "SETTLING", 5, delivery=ms(4))
    elif witness == "ids":
        desk.trades(trade(1, 6.6, 500), trade(2, 6.7, 500))
    desk.tick(7)
    ended, began = relist(desk, 6.5, confirmed=witness == "again")
    assert ended.ended == [SYMBOL]
    assert ended.cuts == [(SYMBOL, ms(6))]
    assert ended.listings[-1].delivery_ms == ms(6)
    assert began.replaced == [SYMBOL]
    assert [fact.bar.open_ms for fact in began.sealed] == [ms(6)]
    desk.trades(trade(3, 7.2, 600))
    desk.tick(9)
    assert desk.row(8).source == Source.FLAT  # nobody had to wait for another connection


@pytest.mark.parametrize("minute", [7, 8])
def test_trades_that_the_old_contract_took_are_owed_to_the_new_one(minute):
    """Of the running minute, or of the next one: it is not sealed as if they had never been."""
    desk = Desk()
    desk.trades(trade(900, 0.5))
    desk.tick(7)
    desk.trades(trade(1, minute + 0.1, 500))
    relist(desk, 6.5)
    desk.trades(trade(2, minute + 0.2, 500))
    desk.tick(9)
    assert desk.row(minute).source == Source.SUSPECT
    assert desk.state.suspects.meets(ms(minute), ms(minute + 1))


# -- Coming back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("away", [1, 7, 3 * LAG_MINUTES_MAX])
def test_whoever_comes_back_has_every_bar_since_its_last_stored_one(away):
    """Suspect and owed, in every interval, a slice at each tick; then it goes on as any other."""
    desk = Desk("5m", "1h")
    desk.tick(10)
    del desk.shard.states[SYMBOL]
    desk.tick(10 + away)
    stored = Stored(ms(10), Decimal("100"))
    facts = desk.take(desk.shard.add_symbol(Listing(SYMBOL, 0, FAR, 0), PRICE, stored=stored))
    assert facts.resumed == [SYMBOL]
    now = 10 + away
    while desk.state.minute.open_ms < desk.shard.minute_ms:
        now += 1
        sealed = [fact for fact in desk.tick(now).sealed if fact.interval == "1m"]
        assert len(sealed) <= LAG_MINUTES_MAX + 1
    minutes = sorted(key[2] for key in desk.store.rows if key[1] == "1m")
    assert minutes == [ms(m) for m in range(now)]
    fives = sorted(key[2] for key in desk.store.rows if key[1] == "5m")
    assert fives == [ms(m) for m in range(0, now - 4, 5)]
    assert list(desk.state.suspects) == [(ms(10), ms(now - 1))]
    assert set(desk.sources()[10:]) == {"S"}
    assert {row.nine.close for key, row in desk.store.rows.items() if key[2] >= ms(10)} == {10_000}


def test_trades_that_come_while_a_symbol_is_caught_up_with_are_kept():
    """They wait ahead of its own running minute, and end in their bars."""
    desk = Desk()
    del desk.shard.states[SYMBOL]
    desk.tick(2 * LAG_MINUTES_MAX + 10)
    now = 2 * LAG_MINUTES_MAX + 10
    stored = Stored(ms(0), Decimal("100"))
    desk.take(desk.shard.add_symbol(Listing(SYMBOL, 0, FAR, 0), PRICE, stored=stored))
    desk.live(now)
    desk.trades(trade(7, now + 0.5), trade(8, now + 1.2))
    desk.tick(now + 1)
    desk.trades(trade(9, now + 1.5))
    desk.tick(now + 2)
    assert desk.shard.trades.in_bars == 3
    assert desk.row(now).nine.count == 1
    assert desk.row(now + 1).nine.count == 2


def test_seeds_leave_out_who_is_not_in_step():
    """What a snapshot would have of it is no state at the cut: it goes on from its stored bars."""
    desk = Desk()
    del desk.shard.states[SYMBOL]
    desk.tick(2 * LAG_MINUTES_MAX)
    stored = Stored(ms(0), Decimal("100"))
    desk.shard.add_symbol(Listing(SYMBOL, 0, FAR, 0), PRICE, stored=stored)
    assert desk.shard.seeds() == []


# -- What the exchange lacks, and what it corrects -------------------------------------------------


def test_absent_minutes_are_owed_no_more():
    """Flat at the close before them, called absent; longer bars are right without them."""
    desk = Desk("5m")
    desk.trades(trade(1, 0.5, 10_100))
    desk.tick(1)
    desk.lose(1.0)
    desk.tick(4)
    facts = desk.take(desk.shard.make_absent(SYMBOL, ms(1), ms(3)))
    assert [span[1:] for span in facts.absent] == [(ms(1), ms(3))]
    assert list(desk.state.suspects) == []
    assert desk.shard.owed() == {}
    desk.live(4.0)
    desk.trades(trade(2, 4.5))
    desk.tick(5)
    (five,) = [row for key, row in desk.store.rows.items() if key[1] == "5m"]
    assert five.source == Source.TRADES


def test_a_bar_whose_minutes_are_all_absent_is_absent():
    """And so is only that one."""
    desk = Desk("5m")
    desk.tick(1)
    desk.lose(0.5)
    desk.tick(10)
    desk.take(desk.shard.make_absent(SYMBOL, ms(0), ms(9)))
    assert desk.state.longer[0].previous.source == Source.ABSENT


@pytest.mark.parametrize("minutes_more", [0, 1])
def test_an_absent_minute_that_turns_up_counts_again(minutes_more):
    """Its official bar is in the longer one, which is official when all of them are."""
    desk = Desk("5m")
    desk.tick(1)
    desk.lose(0.5)
    desk.tick(5 + minutes_more)
    desk.take(desk.shard.make_absent(SYMBOL, ms(0), ms(4)))
    for minute in range(5):
        turned_up = official(minute, trade(10 + minute, minute + 0.5))
        lacking = msgspec.structs.replace(
            turned_up, count=0, volume=Decimal(0), source=Source.ABSENT
        )
        desk.take(desk.shard.replace_minutes(SYMBOL, [turned_up], [lacking]))
    longer = desk.state.longer[0]
    assert longer.previous is not None
    assert longer.previous.count == 5
    assert longer.previous.source == Source.OFFICIAL
    assert longer.previous_absent_minutes == 0
    assert longer.previous_unofficial_minutes == 0


def test_a_minute_with_trades_is_never_absent():
    """Two witnesses contradict each other: it stays owed."""
    desk = Desk()
    desk.trades(trade(1, 0.5))
    desk.lose(0.7)
    desk.tick(3)
    desk.take(desk.shard.make_absent(SYMBOL, ms(0), ms(2)))
    assert list(desk.state.suspects) == [(ms(0), ms(0))]


def test_a_later_official_row_corrects_an_earlier_one():
    """The exchange may have served an unfinished row; our own never replaces either."""
    desk = Desk("5m")
    desk.trades(trade(1, 0.5), trade(3, 0.7))
    desk.tick(1)
    desk.replace(official(0, trade(1, 0.5)))
    assert desk.row(0).nine.count == 1
    whole = official(0, trade(1, 0.5), trade(2, 0.6), trade(3, 0.7))
    facts = desk.replace(whole)
    assert [fact.interval for fact in facts.restated] == ["1m"]
    assert desk.row(0).nine.count == 3
    assert not desk.replace(whole)
    for minute in range(2, 6):
        desk.tick(minute)
    (five,) = [row for key, row in desk.store.rows.items() if key[1] == "5m"]
    assert five.nine.count == 3


def test_what_is_owed_at_the_start_counts_as_unofficial():
    """A seed may count none: its placeholders turn official later, and the count stays right."""
    desk = Desk("1h")
    (seed,) = desk.shard.seeds()
    desk.tick(10)
    suspects = ((ms(3), ms(5)),)
    again = Desk("1h")
    again.shard = Shard(again.intervals, ms(10))
    again.shard.load(dataclasses.replace(seed, suspects=suspects))
    for minute in range(3, 6):
        again.replace(official(minute))
    assert again.state.longer[0].unofficial_minutes == 0


def test_what_was_owed_before_it_went_away_is_owed_still():
    """Suspect minutes on disk are its shard's business again, and not the sweep's alone."""
    desk = Desk("1h")
    desk.tick(10)
    del desk.shard.states[SYMBOL]
    desk.tick(12)
    stored = Stored(ms(10), Decimal("100"), ((ms(3), ms(4)),))
    desk.take(desk.shard.add_symbol(Listing(SYMBOL, 0, FAR, 0), PRICE, stored=stored))
    assert desk.shard.owed() == {SYMBOL: ((ms(3), ms(4)), (ms(10), ms(11)))}
