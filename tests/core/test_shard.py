"""The shard's rules, one example each: trades fill, the tick seals, symbols come and go."""

from __future__ import annotations

from decimal import Decimal

import pytest

from klagg_trio.core.bar import Source
from klagg_trio.core.facts import Births, Listing
from klagg_trio.core.intervals import DAY_MS
from klagg_trio.core.shard.state import HELD_MINUTES, UNMERGED_MAX
from klagg_trio.core.shard.trades import AHEAD_MS_MAX

from .desk import SYMBOL, Desk, ms, official, trade
from .naive import MINUTE, nine
from .world import FAR


def test_a_trade_fills_and_seals_nothing():
    """Only the tick closes a bar: trades of three minutes leave nothing but running bars."""
    desk = Desk("5m")
    assert desk.trades(trade(1, 0.1), trade(2, 1.1), trade(3, 2.1)) is None
    assert desk.store.rows == {}
    assert desk.shard.trades.in_bars == 3


def test_trades_of_the_next_minute_wait_for_the_tick():
    """A trade that is ahead of the clock goes into its own minute, not into the running one."""
    desk = Desk()
    first, second = trade(1, 0.5, 10_100), trade(2, 1.0, 10_200)
    desk.trades(first, second)
    desk.tick(1)
    assert desk.row(0).nine == nine([first], 0)
    desk.tick(2)
    assert desk.row(1).nine == nine([second], 0)


def test_a_minute_without_trades_is_flat_at_the_last_close():
    """Ten minutes without a trade: ten flat bars, each carrying the last close."""
    desk = Desk()
    desk.trades(trade(1, 0.5, 10_100))
    for minute in range(1, 12):
        desk.tick(minute)
    assert desk.sources() == "t" + "f" * 10
    assert desk.closes() == [10_100] * 11
    assert all(desk.row(minute).nine == nine([], 10_100) for minute in range(1, 11))


def test_a_late_tick_seals_every_missed_minute_in_order():
    """After five missed ticks one tick seals all of them, and the longer bar in between."""
    desk = Desk("5m")
    desk.trades(trade(1, 0.5), trade(2, 3.5, 10_300), trade(3, 5.5, 10_500))
    facts = desk.tick(6)
    told = [(fact.interval, fact.bar.open_ms) for fact in facts.sealed_bars()]
    assert told == [*(("1m", ms(m)) for m in range(5)), ("5m", ms(0)), ("1m", ms(5))]
    assert desk.sources() == "tfftft"
    assert desk.closes() == [10_000, 10_000, 10_000, 10_300, 10_300, 10_500]


def test_a_tick_that_was_overtaken_does_nothing():
    """A minute is sealed once, whatever the order of ticks."""
    desk = Desk()
    desk.tick(3)
    assert not desk.tick(2)
    assert not desk.tick(3)
    assert desk.shard.minute_ms == ms(3)


def test_longer_bars_are_sealed_with_their_last_minute_and_open_with_the_next():
    """Finalise, fill, open: the 5m bar is in the same facts as its fifth minute."""
    desk = Desk("5m")
    some = [trade(n, n - 0.5, 10_000 + n) for n in range(1, 6)]
    desk.trades(*some)
    for minute in range(1, 5):
        assert [fact.interval for fact in desk.tick(minute).sealed] == ["1m"]
    facts = desk.tick(5)
    assert [fact.interval for fact in facts.sealed_bars()] == ["1m", "5m"]
    assert desk.row(0, "5m").nine == nine(some, 0)
    open_five = next(f.bar for f in desk.shard.open_bars() if f.interval == "5m")
    assert (open_five.open_ms, open_five.count) == (ms(5), 0)
    assert open_five.close == Decimal("100.05")


def test_open_bars_show_sealed_minutes_and_the_running_one():
    """What a running longer bar shows is its minutes so far, without touching it."""
    desk = Desk("5m")
    some = [trade(1, 0.5, 10_100), trade(2, 1.5, 10_200)]
    desk.trades(some[0])
    desk.tick(1)
    desk.trades(some[1])
    for _ in range(2):
        minute, five = (fact.bar for fact in desk.shard.open_bars())
        assert minute.count == 1
        assert (five.count, five.open, five.close) == (2, Decimal("101"), Decimal("102"))
        assert five.source == Source.TRADES


def test_merging_that_waits_is_bounded_and_complete():
    """Between ends of a long interval few minutes wait, and the bar that ends has all of them."""
    desk = Desk("1h")
    some = [trade(n, n - 0.5, 10_000 + n % 9) for n in range(1, 61)]
    waiting = []
    for minute in range(1, 61):
        desk.trades(some[minute - 1])
        desk.tick(minute)
        waiting.append(len(desk.state.unmerged))
    assert 0 < max(waiting) <= UNMERGED_MAX
    assert waiting[-1] == 0
    assert desk.row(0, "1h").nine == nine(some, 0)


def test_running_bars_by_parts():
    """A longer bar is told as what it has merged; where one begins with a tick, that is nothing."""
    desk = Desk("5m")
    desk.trades(trade(1, 0.5, 10_100))
    desk.tick(1)
    desk.trades(trade(2, 1.5, 10_200))
    (minute,) = desk.shard.running_minutes()
    assert (minute.interval, minute.merged_until_ms, minute.bar.count) == ("1m", ms(1), 1)
    (five,) = desk.shard.merged_bars()
    assert (five.interval, five.merged_until_ms, five.bar.count) == ("5m", ms(1), 1)
    assert five.bar.close == Decimal("101")
    assert desk.shard.births() == []
    desk.tick(5)
    desk.trades(trade(3, 5.1, 10_700))
    assert desk.shard.births() == [Births("5m", ms(5), ms(10), [SYMBOL])]
    (five,) = desk.shard.merged_bars()
    assert (five.merged_until_ms, five.bar.count, five.bar.source) == (ms(5), 0, Source.FLAT)


def test_open_bars_of_a_lost_feed_are_suspect():
    """The running minute and all that holds it are not vouched for."""
    desk = Desk("5m")
    desk.trades(trade(1, 0.2))
    desk.lose(0.5)
    assert {fact.bar.source for fact in desk.shard.open_bars()} == {Source.SUSPECT}


# -- Trades out of line --------------------------------------------------------------------------


def test_a_repeated_trade_is_counted_and_dropped():
    """An id that was seen changes no bar."""
    desk = Desk()
    desk.trades(trade(1, 0.1), trade(2, 0.2), trade(1, 0.1), trade(2, 0.2))
    assert (desk.shard.trades.in_bars, desk.shard.trades.duplicate) == (2, 2)
    desk.tick(1)
    assert desk.row(0).nine.count == 2


def test_open_and_close_go_by_id_whatever_arrives_first():
    """An overtaken trade of the running minute becomes its open if its id is the first."""
    desk = Desk()
    desk.trades(trade(1, 0.1, 9_900))
    desk.tick(1)
    some = [trade(2, 1.1, 10_100), trade(3, 1.2, 10_200), trade(4, 1.3, 10_300)]
    desk.trades(some[1], some[0], some[2])
    desk.tick(2)
    assert desk.row(1).nine == nine(some, 0)
    assert desk.sources() == "tt"


@pytest.mark.parametrize("late", range(1, HELD_MINUTES + 1))
def test_a_late_trade_restates_its_sealed_minute_and_all_that_holds_it(late):
    """As long as the minute is held: it, the 3m and 5m bars around it, and the flat ones after."""
    desk = Desk("3m", "5m")
    first, overtaken, last = trade(1, 0.1), trade(2, 2.9, 10_200), trade(3, 2.95, 10_100)
    desk.trades(first, last)
    desk.tick(2 + late)
    assert desk.sources()[0] == "S"
    desk.trades(overtaken)
    assert desk.shard.trades.late == 1
    assert desk.row(2).nine == nine([overtaken, last], 0)
    assert desk.row(0, "3m").nine == nine([first, overtaken, last], 0)
    assert desk.sources() == "tft" + "f" * (late - 1)
    five = next(f.bar for f in desk.shard.open_bars() if f.interval == "5m")
    if late < 3:
        assert five.count == 3
    else:
        assert desk.row(0, "5m").nine == nine([first, overtaken, last], 0)


def test_a_late_trade_moves_the_flat_bars_after_it():
    """The last trade of a minute comes a minute late: the flat bars since carry its price."""
    desk = Desk("3m")
    desk.trades(trade(1, 0.1))
    desk.tick(3)
    desk.trades(trade(2, 0.9, 12_000))
    assert desk.closes() == [12_000] * 3
    assert desk.closes("3m") == [12_000]
    assert desk.state.last_close == Decimal("120")
    assert {fact.bar.close for fact in desk.shard.open_bars()} == {Decimal("120")}
    desk.tick(4)
    assert desk.row(3).nine == nine([], 12_000)


def test_a_late_trade_moves_only_the_flat_bars_up_to_the_next_trade():
    """Later minutes have prices of their own."""
    desk = Desk()
    desk.trades(trade(1, 0.1), trade(3, 2.1, 11_000))
    desk.tick(3)
    desk.trades(trade(2, 0.9, 12_000))
    assert desk.closes() == [12_000, 12_000, 11_000]
    assert desk.sources() == "tft"


def test_a_trade_for_a_minute_no_longer_held_makes_it_suspect_and_all_flat_ones_since():
    """They are flat at a price that this trade says is wrong."""
    desk = Desk()
    desk.trades(trade(1, 0.1))
    desk.tick(6)
    desk.trades(trade(2, 0.9, 12_000))
    assert desk.shard.trades.late == 1
    assert desk.sources() == "SSSSSS"
    desk.tick(7)
    assert desk.closes()[-1] == 12_000


def test_a_trade_far_ahead_of_the_clock_is_rejected():
    """A time that outlasts the slowest resync is nonsense; just below it is not."""
    desk = Desk()
    limit = (AHEAD_MS_MAX + MINUTE) / MINUTE
    desk.trades(trade(1, limit))
    assert desk.shard.trades.rejected == 1
    desk.trades(trade(1, limit - 0.001))
    assert desk.shard.trades.in_bars == 1


def test_a_trade_of_an_unknown_symbol_is_not_ours():
    """It is counted and changes nothing."""
    desk = Desk()
    desk.trades(trade(1, 0.1, symbol="ETHUSDT"))
    assert desk.shard.trades.not_ours == 1
    assert desk.shard.trades.total == 1


def test_numbers_of_any_size_the_edge_admits_do_not_stop_the_shard():
    """Forty characters of digits beside a tiny quantity: exact, no trap, no crash."""
    desk = Desk()
    small, huge = trade(1, 0.1), trade(2, 0.2)
    object.__setattr__(small, "quantity", Decimal("0." + "0" * 37 + "1"))
    object.__setattr__(huge, "quantity", Decimal("9" * 40))
    object.__setattr__(huge, "price", Decimal("9" * 40))
    desk.shard.apply_trades([small, huge])
    bar = desk.shard.tick(ms(1)).sealed[0].bar
    assert bar.volume - Decimal("9" * 40) == 0 or str(bar.volume).endswith("1")
    assert bar.count == 2


# -- Listings and delistings ----------------------------------------------------------------------


def add(desk: Desk, *, onboard: float, cents: int = 500, symbol: str = "NEWUSDT"):
    """List a symbol."""
    price = Decimal(cents).scaleb(-2)
    return desk.take(desk.shard.add_symbol(Listing(symbol, ms(onboard), FAR, 0), price))


def test_a_symbol_listed_in_mid_minute_has_all_its_bars_at_once():
    """Every interval exists at once, flat at the seed price, and the next tick seals its minute."""
    desk = Desk("5m", "1h", "1d", "3d", "1w", "1M")
    desk.tick(7)
    add(desk, onboard=7.4)
    open_bars = [f.bar for f in desk.shard.open_bars() if f.symbol == "NEWUSDT"]
    assert len(open_bars) == 7
    assert {bar.close for bar in open_bars} == {Decimal("5")}
    assert all(bar.open_ms <= ms(7.4) < bar.end_ms for bar in open_bars)
    facts = desk.tick(8)
    assert ("NEWUSDT", "1m") in [(fact.symbol, fact.interval) for fact in facts.sealed_bars()]
    assert desk.store.rows["NEWUSDT", "1m", ms(7)].nine == nine([], 500)


def test_a_symbol_found_late_has_its_minutes_since_the_listing_as_suspect():
    """Nobody watched them; with the next tick there is no hole."""
    desk = Desk("5m")
    desk.tick(7)
    add(desk, onboard=3.5)
    desk.tick(8)
    rows = {k: r.source for k, r in desk.store.rows.items() if k[0] == "NEWUSDT"}
    assert [key[2] for key in rows if key[1] == "1m"] == [ms(m) for m in range(3, 8)]
    assert ("NEWUSDT", "5m", ms(0)) in rows
    assert set(rows.values()) == {Source.SUSPECT}
    assert list(desk.shard.states["NEWUSDT"].suspects) == [(ms(3), ms(7))]


def test_a_symbol_listed_days_ago_starts_now_and_owes_what_its_longer_bars_lack():
    """The minutes are not made up one by one, but the running day is not vouched for either."""
    desk = Desk("1h", "1d")
    desk.tick(90)
    add(desk, onboard=-2 * 1_440)
    state = desk.shard.states["NEWUSDT"]
    assert state.minute.open_ms == ms(90)
    assert list(state.suspects) == [(ms(0), ms(89))]
    sources = {f.interval: f.bar.source for f in desk.shard.open_bars() if f.symbol == "NEWUSDT"}
    assert sources["1h"] == sources["1d"] == Source.SUSPECT


def test_the_first_trade_of_a_new_symbol_finds_its_bar():
    """Subscribed after the listing, live since: flat and not vouched for until its first trade."""
    desk = Desk("5m")
    desk.tick(7)
    add(desk, onboard=7.1)
    desk.shard.feed_live(["NEWUSDT"], ms(7.5))
    desk.tick(9)
    desk.trades(trade(99, 9.5, 600, symbol="NEWUSDT"))
    desk.tick(12)
    rows = [desk.store.rows["NEWUSDT", "1m", ms(m)] for m in range(7, 12)]
    assert [row.source for row in rows] == [2, 2, 0, 1, 1]
    assert [row.nine.close for row in rows] == [500, 500, 600, 600, 600]


def test_a_symbol_announced_twice_is_taken_up_once():
    """The same contract again changes nothing."""
    desk = Desk()
    add(desk, onboard=0.5)
    assert not add(desk, onboard=0.5, cents=900)
    assert desk.shard.states["NEWUSDT"].last_close == Decimal("5")


# -- Official bars --------------------------------------------------------------------------------


def test_official_minutes_replace_suspect_ones_in_every_bar_that_holds_them():
    """A partial minute is taken out exactly and the whole one put in: sealed and running bars."""
    desk = Desk("3m", "5m", "1h")
    seen, missed = trade(1, 0.1, 10_100), trade(2, 0.5, 10_500)
    rest = [trade(n, n - 2.2, 10_000 + n) for n in range(3, 10)]
    desk.trades(seen, *rest)
    for minute in range(1, 7):
        desk.tick(minute)
    assert desk.sources() == "Sttttt"
    in_first_minute = [seen, missed, rest[0]]
    desk.replace(official(0, *in_first_minute))
    assert desk.sources() == "Ottttt"
    everything = [seen, missed, *rest]
    for name, minutes in (("3m", 3), ("5m", 5)):
        inside = [t for t in everything if t.time_ms < ms(minutes)]
        assert desk.row(0, name).nine == nine(inside, 0)
        assert desk.row(0, name).source == Source.TRADES
    hour = next(f.bar for f in desk.shard.open_bars() if f.interval == "1h")
    assert hour.count == len(everything)
    assert hour.source == Source.TRADES


def test_an_official_minute_is_never_changed_again():
    """Not by a late trade, not by another official bar of the same minute."""
    desk = Desk("1h")
    first, late = trade(1, 0.5, 10_100), trade(2, 0.9, 10_200)
    desk.trades(first, trade(3, 1.5))
    desk.tick(2)
    desk.replace(official(0, first, late))
    hour = next(f.bar for f in desk.shard.open_bars() if f.interval == "1h")
    assert hour.count == 3
    desk.trades(late)
    assert not desk.replace(official(0, first, late))
    assert desk.row(0).nine == nine([first, late], 0)
    hour = next(f.bar for f in desk.shard.open_bars() if f.interval == "1h")
    assert hour.count == 3
    assert desk.shard.trades.late == 1


def test_official_bars_of_running_minutes_are_left_to_the_tick():
    """Only sealed minutes are replaced."""
    desk = Desk()
    desk.trades(trade(1, 0.5))
    assert not desk.replace(official(0, trade(1, 0.5)))


def test_official_bars_of_unknown_symbols_go_to_the_store():
    """A delisted symbol's minutes can still be made right."""
    desk = Desk()
    desk.tick(1)
    facts = desk.take(desk.shard.replace_minutes("GONEUSDT", [official(0, trade(1, 0.5))]))
    assert [(f.symbol, f.bar.source) for f in facts.restated] == [("GONEUSDT", Source.OFFICIAL)]


def test_an_audited_minute_is_replaced_with_the_help_of_what_is_stored():
    """It is not suspect and no longer held: what the longer bars were given comes with it."""
    desk = Desk("1h")
    ours, theirs = trade(1, 0.5, 10_100), trade(1, 0.5, 10_150)
    desk.trades(ours)
    desk.tick(10)
    assert not desk.replace(official(0, theirs))
    stored = official(0, ours)
    stored.source = Source.TRADES
    facts = desk.shard.replace_minutes(SYMBOL, [official(0, theirs)], [stored])
    assert facts.restated[0].interval == "1m"
    hour = next(f.bar for f in desk.shard.open_bars() if f.interval == "1h")
    assert (hour.count, hour.close) == (1, Decimal("101.5"))


def test_a_longer_bar_of_official_minutes_only_is_official():
    """Each minute replaced: then the sealed 3m bar carries the exchange's name too."""
    desk = Desk("3m", next_id=None)
    desk.tick(3)
    some = [trade(n, n - 0.5) for n in range(1, 4)]
    desk.replace(*(official(n, *some[: n + 1]) for n in range(2)))
    assert desk.sources("3m") == "S"
    desk.replace(official(2, *some))
    assert desk.sources() == "OOO"
    assert desk.sources("3m") == "O"
    assert desk.row(0, "3m").nine == nine(some, 0)


# -- Snapshots ------------------------------------------------------------------------------------


def test_seeds_leave_out_what_the_running_minute_holds():
    """The id that continues is that of the first trade not in a sealed bar."""
    desk = Desk("5m")
    desk.trades(trade(1, 0.5), trade(2, 1.5), trade(3, 2.5))
    desk.tick(1)
    (seed,) = desk.shard.seeds()
    assert seed.next_id == 2
    assert seed.last_close == Decimal("100")
    assert [bar.bar.count for bar in seed.open_bars] == [1]


def test_seeds_do_not_change_with_the_shard():
    """A snapshot is written later: what it was given must stay as it was."""
    desk = Desk("5m")
    (seed,) = desk.shard.seeds()
    desk.trades(trade(1, 0.5))
    desk.tick(1)
    assert seed.open_bars[0].bar.count == 0
    assert seed.suspects == ()


def test_a_gap_over_the_cut_is_remembered_by_the_id_that_continues():
    """The missing id may belong to the running minute, so it alone can prove that one."""
    desk = Desk()
    desk.trades(trade(1, 0.9), trade(3, 1.1))
    desk.tick(1)
    (seed,) = desk.shard.seeds()
    assert seed.next_id == 2
    assert seed.suspects == ((ms(0), ms(0)),)


def test_three_day_bars_keep_their_phase_through_a_restart():
    """The phase that was learnt is in the seed."""
    desk = Desk("3d")
    desk.take(desk.shard.add_symbol(Listing("NEWUSDT", ms(0), FAR, 2 * DAY_MS), Decimal(1)))
    seed = next(seed for seed in desk.shard.seeds() if seed.symbol == "NEWUSDT")
    assert seed.three_day_phase_ms == 2 * DAY_MS
    assert seed.open_bars[0].bar.open_ms % (3 * DAY_MS) == 2 * DAY_MS
