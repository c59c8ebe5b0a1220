"""The seeded market: what it promises to those who build bars from it."""

from __future__ import annotations

from collections import defaultdict

import pytest

from klagg_trio.sim.history import History
from klagg_trio.sim.klines import DAY_MS, HOUR_MS, INTERVALS, MARKET, MINUTE_MS, join, part_of
from klagg_trio.sim.market import Aggregate, Market, SimOptions, Tape
from klagg_trio.sim.universe import COIN_M, rates

MINUTES = 12


def lived(options: SimOptions, *, step_ms: int = 1000, minutes: int = MINUTES):
    """Return a market after some minutes, its aggregates, changes, and raw trades by tape."""
    raw: dict[int, list] = defaultdict(list)
    write = Tape.write_minute

    def spy(tape: Tape, minute_ms: int):
        made = write(tape, minute_ms)
        raw[tape.instrument.number].extend(tape.raw_trades(minute_ms))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tape, "write_minute", spy)
        market = Market(options)
        published: list[Aggregate] = []
        for tape in market.tapes:
            published.extend(tape.published)
        changes = []
        for now_ms in range(options.start_ms, options.start_ms + minutes * MINUTE_MS + 1, step_ms):
            aggregates, told = market.advance(now_ms)
            published.extend(aggregates)
            changes.extend(told)
    return market, published, changes, raw


@pytest.mark.slow
def test_same_seed_makes_the_same_market_however_it_is_looked_at():
    """Steps of 50 ms and of seven seconds bring the same events in the same order."""
    options = SimOptions(symbols=12, seed=5)
    _, fine, fine_changes, _ = lived(options, step_ms=50)
    _, coarse, coarse_changes, _ = lived(options, step_ms=60_000)
    assert fine == coarse
    assert fine_changes == coarse_changes


def test_another_seed_makes_another_market():
    """The seed decides prices and trades."""
    _, first, _, _ = lived(SimOptions(symbols=5, seed=1), minutes=2)
    _, second, _, _ = lived(SimOptions(symbols=5, seed=2), minutes=2)
    assert first != second


@pytest.mark.parametrize("straddle", [False, True])
def test_every_market_trade_is_in_exactly_one_aggregate(straddle):
    """Ids from f to l of all aggregates are the ids of the market trades, none twice, and all sums
    agree."""
    market, published, _, raw = lived(SimOptions(symbols=20, straddle=straddle))
    by_number: dict[int, list[Aggregate]] = defaultdict(list)
    for aggregate in published:
        by_number[aggregate.number].append(aggregate)
    crossing = 0
    for number, aggregates in by_number.items():
        trades = {each.id: each for each in raw[number]}
        horizon_ms = market.now_ms - 2_000
        covered = [
            each
            for aggregate in aggregates
            for each in range(aggregate.first_id, aggregate.last_id + 1)
        ]
        assert len(covered) == len(set(covered))
        due = [each.id for each in raw[number] if each.kind == MARKET and each.time_ms < horizon_ms]
        assert [each for each in covered if trades[each].time_ms < horizon_ms] == due
        for aggregate in aggregates:
            fills = [trades[each] for each in range(aggregate.first_id, aggregate.last_id + 1)]
            assert aggregate.quantity == sum(fill.quantity for fill in fills)
            assert {fill.price for fill in fills} == {aggregate.price}
            assert {fill.buyer_is_maker for fill in fills} == {aggregate.buyer_is_maker}
            assert aggregate.time_ms == fills[0].time_ms
            assert fills[-1].time_ms - fills[0].time_ms < 100
            assert aggregate.time_ms + 100 <= aggregate.event_ms
            assert aggregate.normal_quantity <= aggregate.quantity
            boundary_ms = (fills[0].time_ms // MINUTE_MS + 1) * MINUTE_MS
            beyond = [fill for fill in fills if fill.time_ms >= boundary_ms]
            if beyond:
                crossing += 1
                noted = market.tapes[number].straddles[boundary_ms]
                quantity = sum(fill.quantity for fill in beyond)
                assert (noted.count, noted.volume) == (len(beyond), quantity)
                assert noted.quote_volume == aggregate.price * quantity
    assert bool(crossing) is straddle


def test_aggregate_ids_have_no_gap_and_raw_ids_do():
    """`a` is contiguous for each symbol, event times never go back, and some raw ids are used up
    by records that are no market trades."""
    _, published, _, raw = lived(SimOptions(symbols=10))
    last: dict[int, Aggregate] = {}
    for aggregate in published:
        before = last.get(aggregate.number)
        if before is not None:
            assert aggregate.id == before.id + 1
            assert aggregate.event_ms >= before.event_ms
        last[aggregate.number] = aggregate
    kinds = {trade.kind for trades in raw.values() for trade in trades}
    assert kinds == {MARKET, "INSURANCE_FUND", "NA"}


def test_official_minutes_are_the_raw_trades_of_their_own_time():
    """Each stored minute is what its raw trades make, whatever the aggregates are."""
    market, _, _, raw = lived(SimOptions(symbols=10, straddle=True))
    first_ms = market.options.start_ms // MINUTE_MS * MINUTE_MS
    for tape in market.tapes:
        for open_ms in range(first_ms, market.now_ms - MINUTE_MS, MINUTE_MS):
            if open_ms < tape.first_minute_ms:
                continue
            trades = [
                each
                for each in raw[tape.instrument.number]
                if open_ms <= each.time_ms < open_ms + MINUTE_MS
            ]
            expected = part_of(trades, tape.close_before(open_ms))
            assert tape.part(open_ms, open_ms + MINUTE_MS, market.now_ms) == expected


def test_running_minute_holds_what_has_happened_by_now():
    """The open bar grows with time and never knows the future."""
    market = Market(SimOptions(symbols=3))
    tape = market.tapes[0]
    counts = []
    for second in range(30):
        market.advance(market.options.start_ms + second * 1000)
        span = market.spans(tape, "1m", None, None, 1)
        counts.append(market.klines(tape, "1m", span)[0].count)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize("interval", INTERVALS)
def test_longer_bars_are_the_merge_of_their_minutes(interval):
    """Across the border between made-up past and written present, and from the listing on."""
    options = SimOptions(symbols=12)
    market, _, _, _ = lived(options, minutes=4)
    for tape in (market.tapes[0], market.tapes[-1], market.tapes[11], market.tapes[17]):
        spans = market.spans(tape, interval, None, None, 2)
        if interval in ("3d", "1w", "1M"):
            spans = spans[-1:]
        assert spans
        for span in spans:
            minutes = [
                tape.part(open_ms, open_ms + MINUTE_MS, market.now_ms)
                for open_ms in range(
                    max(span[0], tape.instrument.onboard_ms // MINUTE_MS * MINUTE_MS),
                    min(span[1], market.now_ms),
                    MINUTE_MS,
                )
            ]
            assert tape.part(*span, market.now_ms) == join(minutes, minutes[0].open)


def test_history_is_sane_and_continuous():
    """Made-up minutes are possible bars, and a flat one carries the close before it."""
    market = Market(SimOptions(symbols=45))
    flats = 0
    for tape in (market.tapes[0], market.tapes[22], market.tapes[44]):
        history = History(tape.instrument, 1)
        end_ms = tape.first_minute_ms // DAY_MS * DAY_MS
        close = history.close_before(end_ms - 6 * HOUR_MS)
        for open_ms in range(end_ms - 6 * HOUR_MS, end_ms, MINUTE_MS):
            part = history.minute(open_ms)
            assert 0 < part.low <= min(part.open, part.close)
            assert max(part.open, part.close) <= part.high
            assert part.count <= part.volume or not part.count
            assert part.taker_buy_volume <= part.volume
            assert part.low * part.volume <= part.quote_volume <= part.high * part.volume
            if not part.count:
                flats += 1
                assert part.open == part.close == close
            close = part.close
    assert flats > 300


def test_prices_go_on_from_the_history():
    """The first written trade is near the last price of the made-up past."""
    market, _, _, _ = lived(SimOptions(symbols=45), minutes=3)
    for tape in market.tapes:
        before = tape.close_before(tape.first_minute_ms)
        assert abs(tape.part(tape.first_minute_ms, market.now_ms, market.now_ms).close - before) < (
            before * 0.05
        )


def test_some_symbols_are_busy_and_some_nearly_dead():
    """The busiest trades many times a second; the quietest rest for more than ten minutes."""
    market, published, _, _ = lived(SimOptions(symbols=45), minutes=15)
    times: dict[int, list[int]] = defaultdict(list)
    for aggregate in published:
        times[aggregate.number].append(aggregate.time_ms)
    assert len(times[0]) > 15 * 60
    quiet = [number for number in range(45) if len(times[number]) <= 1]
    assert 2 <= len(quiet) <= 25
    assert market.tapes[44].instrument.trades_per_minute < 0.1


@pytest.mark.parametrize("count", [1, 2, 45, 500, 800])
def test_universe_has_as_many_perpetuals_as_asked_for(count):
    """All names differ, the rates fall, and the odd ones are among them."""
    market = Market(SimOptions(symbols=count, warm_minutes=0))
    ours = [each for each in market.instruments if each.is_usdt_perpetual]
    assert len(ours) == count
    names = [each.symbol for each in market.instruments]
    assert len(set(names)) == len(names)
    falling = rates(count, SimOptions(symbols=count).total_per_minute)
    assert falling == sorted(falling, reverse=True)
    if count >= 5:
        assert "币安人生USDT" in names
        assert "1000PEPEUSDT" in names
    kinds = {each.contract_type for each in market.instruments}
    assert kinds == {"PERPETUAL", "TRADIFI_PERPETUAL", "CURRENT_QUARTER", "NEXT_QUARTER"}
    assert any(each.market == COIN_M for each in market.instruments)
    assert any(each.status == "SETTLING" for each in market.instruments)


def test_listing_is_announced_happens_in_mid_minute_and_then_waits_for_a_trade():
    """The new contract is pending, then trading, then flat for a while, then trades."""
    options = SimOptions(symbols=3)
    market, published, changes, _ = lived(options, minutes=8)
    fresh = market.current["NOVAUSDT"]
    told = [change for change in changes if change.instrument.symbol == "NOVAUSDT"]
    statuses = [change.instrument.status for change in told if not change.brackets]
    assert statuses == ["PENDING_TRADING", "TRADING"]
    assert fresh.onboard_ms % MINUTE_MS == 40_000
    assert fresh.onboard_ms >= options.start_ms + 100_000
    first = next(each for each in published if each.number == fresh.number)
    assert first.time_ms >= fresh.onboard_ms + 75_000
    tape = market.tapes[fresh.number]
    spans = market.spans(tape, "1m", 0, None, 1500)
    assert spans[0][0] == fresh.onboard_ms - 40_000
    klines = market.klines(tape, "1m", spans)
    assert [kline.count for kline in klines[:2]] == [0, 0]
    assert klines[0].close * 10**4 == fresh.price
    for interval in INTERVALS:
        spans = market.spans(tape, interval, None, None, 10)
        assert spans[0][0] <= fresh.onboard_ms < spans[0][1]


def test_delisted_contract_is_told_ahead_settles_and_stays_flat():
    """The date is rewritten first; trading stops then; flat bars go on for ever."""
    market = Market(SimOptions(symbols=3))
    at_ms = market.now_ms + 3 * MINUTE_MS
    market.delist("BTCUSDT", at_ms)
    changes = []
    for now_ms in range(market.now_ms, at_ms + 5 * MINUTE_MS, 1000):
        aggregates, told = market.advance(now_ms)
        changes += [each for each in told if each.instrument.symbol == "BTCUSDT"]
        assert now_ms <= at_ms + 1000 or all(each.number for each in aggregates)
    assert [(each.instrument.status, each.instrument.delivery_ms) for each in changes] == [
        ("TRADING", at_ms),
        ("SETTLING", at_ms),
    ]
    tape = market.tapes[0]
    klines = market.klines(tape, "1m", market.spans(tape, "1m", None, None, 4))
    assert [kline.count for kline in klines] == [0, 0, 0, 0]
    assert len({kline.close for kline in klines}) == 1


def test_reused_ticker_stands_for_the_new_contract_only():
    """After the new listing a symbol's klines begin at its own onboard date."""
    market = Market(SimOptions(symbols=3))
    gone_ms = market.now_ms + 2 * MINUTE_MS
    market.delist("ETHUSDT", gone_ms)
    back_ms = gone_ms + 3 * MINUTE_MS + 20_000
    fresh = market.relist("ETHUSDT", back_ms)
    for now_ms in range(market.now_ms, back_ms + 4 * MINUTE_MS, 1000):
        market.advance(now_ms)
    assert market.current["ETHUSDT"] is fresh
    tape = market.tape_of("ETHUSDT")
    assert tape is not None
    spans = market.spans(tape, "1m", 0, None, 1500)
    assert spans[0][0] == back_ms // MINUTE_MS * MINUTE_MS
    assert sum(kline.count for kline in market.klines(tape, "1m", spans)) > 0


def test_time_never_goes_back():
    """A clock that is set back leaves the market where it was."""
    market = Market(SimOptions(symbols=2))
    market.advance(market.now_ms + 5000)
    now_ms = market.now_ms
    assert market.advance(now_ms - 60_000) == ([], [])
    assert market.now_ms == now_ms


def test_far_jump_brings_everything_in_between():
    """After a pause of hours every aggregate is handed out, in order."""
    options = SimOptions(symbols=3)
    market, published, _, _ = lived(options, minutes=20)
    late = Market(options)
    held = [each for tape in late.tapes for each in tape.published]
    aggregates, _ = late.advance(market.now_ms)
    assert held + aggregates == published
