"""An exchange that is wrong: each lie really goes over the wire, and the truth stays as it was."""

from __future__ import annotations

import json
import random

import pytest

from klagg_trio.sim.faults import LIES_TOLD, FaultRates, Faults, SkewedClock, rows_told, words
from klagg_trio.sim.faults.touched import QUIET_MS, RECOVERY_MS, Touched
from klagg_trio.sim.klines import DAY_MS, HOUR_MS, MINUTE_MS
from klagg_trio.sim.server import SimExchange, SimOptions

INFO = "/fapi/v1/exchangeInfo"
SYMBOL = "BTCUSDT"


class Desk:
    """An exchange on a clock that the test sets; nothing runs between two looks."""

    def __init__(self, **options) -> None:
        """Make it; it lies only when told to."""
        self.options = SimOptions(symbols=4, list_after_s=None, aggregates_kept=100_000, **options)
        self.time_ms = self.options.start_ms
        self.faults = Faults(7, FaultRates(for_good=0.0))
        self.exchange = SimExchange(self.options, now_ms=lambda: self.time_ms, faults=self.faults)
        self.exchange.step()

    @property
    def market(self):
        """The market."""
        return self.exchange.market

    def tell(self, kind, symbol=SYMBOL):
        """Bring one lie about."""
        self.faults.lies.tell(kind, self.market, symbol)

    def wait(self, minutes):
        """Let time pass, in steps of a second, and return what contractInfo told meanwhile."""
        frames = []
        tell = self.exchange.board._tell_change
        self.exchange.board._tell_change = lambda change: frames.append(change) or tell(change)
        for _ in range(round(minutes * 60)):
            self.time_ms += 1_000
            self.exchange.step()
        self.exchange.board._tell_change = tell
        return [each for each in frames if not each.brackets]

    def get(self, target):
        """Return the JSON of a REST answer."""
        return json.loads(self.exchange.answer("GET", target).body)

    def listed(self):
        """Return the rows of exchangeInfo that are rows, by symbol."""
        rows = self.get(INFO)["symbols"]
        return {
            row["symbol"]: row
            for row in rows
            if isinstance(row, dict) and isinstance(row.get("symbol"), str)
        }

    def rows(self, symbol=SYMBOL, interval="1m", limit=30):
        """Return klines as they are served."""
        return self.get(f"/fapi/v1/klines?symbol={symbol}&interval={interval}&limit={limit}")

    def truth(self, symbol=SYMBOL, interval="1m"):
        """Return klines as they are, by open time."""
        first_ms = self.options.start_ms - HOUR_MS
        klines = self.exchange.official_klines(symbol, interval, first_ms, self.time_ms)
        return {each.open_time: each for each in klines}


@pytest.fixture
def desk():
    """An exchange that lies when told to."""
    return Desk()


@pytest.mark.parametrize(("kind", "way"), [("onboard_raised", 1), ("onboard_lowered", -1)])
def test_onboard_date_is_told_wrong_for_a_while(desk, kind, way):
    """The date moves, and comes back; the contract and its klines are the same."""
    true_ms, before = desk.listed()[SYMBOL]["onboardDate"], desk.truth()
    desk.tell(kind)
    told_ms = desk.listed()[SYMBOL]["onboardDate"]
    assert (told_ms - true_ms) * way >= DAY_MS / 2
    assert desk.exchange.instrument(SYMBOL).onboard_ms == true_ms
    desk.wait(31)
    assert desk.listed()[SYMBOL]["onboardDate"] == true_ms
    assert before.items() - desk.truth().items() <= set(list(before.items())[-1:])


def test_delivery_date_is_brought_forward_and_put_back(desk):
    """For minutes the contract has an end, which may even pass; then it has none again."""
    true_ms = desk.listed()[SYMBOL]["deliveryDate"]
    desk.tell("delivery_moved")
    assert desk.listed()[SYMBOL]["deliveryDate"] < desk.time_ms + 15 * MINUTE_MS
    frames = desk.wait(30)
    assert desk.listed()[SYMBOL]["deliveryDate"] == true_ms
    assert [each.instrument.delivery_ms for each in frames][-1] == true_ms
    assert all(each.count for each in list(desk.truth().values())[-20:-1])


def test_contract_is_told_not_to_trade_and_trades_on(desk):
    """Its status is another one for a while; nothing of that is so."""
    desk.tell("mislabelled")
    assert desk.listed()[SYMBOL]["status"] != "TRADING"
    desk.wait(41)
    assert desk.listed()[SYMBOL]["status"] == "TRADING"
    assert all(each.count for each in list(desk.truth().values())[-41:-1])
    assert desk.faults.touched.minutes(SYMBOL, ()) == set()


def test_halted_contract_has_no_trades_and_flat_klines(desk):
    """From two minutes on it is told to be halted and has no trade; then it trades again."""
    begun = len(desk.truth())
    desk.tell("halted")
    assert desk.listed()[SYMBOL]["status"] == "TRADING"
    statuses = set()
    for _ in range(50):
        desk.wait(1)
        statuses.add(desk.listed()[SYMBOL]["status"])
    assert len(statuses) == 2
    klines = list(desk.truth().values())[begun:]
    idle = [each.open_time for each in klines if not each.count]
    assert idle
    assert klines[-2].count
    assert set(idle) <= desk.faults.touched.minutes(SYMBOL, ())


def test_in_maintenance_nothing_trades(desk):
    """For some minutes no contract is told to trade, none does, and all klines are flat."""
    desk.tell("maintenance")
    down = 0
    for _ in range(16):
        desk.wait(1)
        trading = [row for row in desk.listed().values() if row["status"] == "TRADING"]
        down += not trading
    assert down
    assert trading
    minutes = desk.faults.touched.minutes("ETHUSDT", ())
    idle = [at_ms for at_ms, each in desk.truth("ETHUSDT").items() if not each.count]
    assert idle
    assert set(idle) <= minutes


def test_contract_is_missing_from_few_answers(desk):
    """One to three answers lack it, then it is there again."""
    desk.tell("omitted")
    there = [SYMBOL in desk.listed() for _ in range(5)]
    assert there[0] is False
    assert there[-1] is True


@pytest.mark.parametrize("kind", ["info_empty", "info_short"])
def test_answers_of_exchange_info_are_empty_or_end_early(desk, kind):
    """The next answer or two have fewer rows, or none; those after are whole."""
    whole = len(desk.listed())
    desk.tell(kind)
    sizes = [len(desk.listed()) for _ in range(4)]
    assert sizes[0] < whole
    assert (sizes[0] == 0) == (kind == "info_empty")
    assert sizes[-1] == whole


def test_rows_of_exchange_info_are_odd_in_many_ways():
    """Every row that is no row goes out as JSON, for a while, and only that row is odd."""
    odd = set()
    for seed in range(24):
        desk = Desk()
        desk.faults.lies._draws["info_odd"] = random.Random(seed)
        usual = desk.listed()
        desk.tell("info_odd")
        rows = desk.get(INFO)["symbols"]
        strange = [row for row in rows if row not in usual.values()]
        assert len(strange) == 1
        odd.add(json.dumps(strange[0], sort_keys=True))
    assert len(odd) >= 8
    desk.wait(31)
    assert desk.listed() == usual


def test_contract_info_tells_what_is_not_so(desk):
    """A frame with a wrong status or date, of a contract that goes on."""
    desk.tell("contract_info")
    (change,) = desk.wait(0.1)
    true = desk.exchange.instrument(SYMBOL)
    told = change.instrument
    assert told.symbol == SYMBOL
    assert (told.status, told.onboard_ms, told.delivery_ms) != (
        *(true.status, true.onboard_ms, true.delivery_ms),
    )


def test_time_alone_is_off_for_seconds(desk):
    """/time steps and comes back; events and klines stay where they are."""
    desk.tell("time_told")
    assert abs(desk.get("/fapi/v1/time")["serverTime"] - desk.time_ms) >= 90_000
    assert abs(desk.market.now_ms - desk.time_ms) <= 1_000
    desk.wait(1)
    assert desk.get("/fapi/v1/time")["serverTime"] == desk.time_ms


@pytest.mark.parametrize("kind", range(len(rows_told.WRONG)))
def test_row_of_klines_contradicts_itself(desk, kind):
    """One row differs from what is so, every other is the same, and the truth knows of none."""
    desk.wait(5)
    before = desk.rows()
    at_ms = before[-3][0]
    instrument = desk.exchange.instrument(SYMBOL)
    desk.faults.lies.about_rows.spoil(desk.market, instrument, "1m", at_ms, kind)
    after = desk.rows()
    differing = [place for place, row in enumerate(before) if after[place] != row]
    assert differing == [len(before) - 3]
    assert at_ms in desk.truth()
    assert desk.faults.lies.about_rows.unserved(instrument.number) == {at_ms}


def test_wrong_row_lasts_for_a_while_or_for_good(desk):
    """What is wrong for a while is right afterwards, and only the rest is never served."""
    desk.wait(2)
    instrument, about = desk.exchange.instrument(SYMBOL), desk.faults.lies.about_rows
    minute_ms = desk.time_ms // MINUTE_MS * MINUTE_MS
    about.spoil(desk.market, instrument, "1m", minute_ms - MINUTE_MS, 0, desk.time_ms + 60_000)
    about.spoil(desk.market, instrument, "1m", minute_ms - 2 * MINUTE_MS, 0)
    wrong = [row[0] for row in desk.rows() if float(row[3]) > float(row[1])]
    assert wrong == [minute_ms - 2 * MINUTE_MS, minute_ms - MINUTE_MS]
    desk.wait(2)
    wrong = [row[0] for row in desk.rows() if float(row[3]) > float(row[1])]
    assert wrong == [minute_ms - 2 * MINUTE_MS]
    assert about.unserved(instrument.number) == set(wrong)


def test_hole_in_history_is_never_served(desk):
    """The 1m rows are left out for good; longer rows and the truth have them."""
    desk.wait(10)
    first_ms = desk.time_ms // MINUTE_MS * MINUTE_MS - 5 * MINUTE_MS
    instrument = desk.exchange.instrument(SYMBOL)
    desk.faults.lies.about_rows.leave_out(instrument, first_ms, first_ms + 2 * MINUTE_MS)
    desk.faults.heal()
    served = {row[0] for row in desk.rows()}
    hole = {first_ms + each * MINUTE_MS for each in range(3)}
    assert not served & hole
    assert hole <= desk.truth().keys()
    assert desk.faults.lies.about_rows.unserved(instrument.number) == hole


def test_pages_are_empty_and_rows_shuffled_for_a_while(desk):
    """Nothing, or every row and some twice in any order; then as usual."""
    desk.wait(3)
    usual = desk.rows()
    desk.tell("rows_shuffled")
    shuffled = desk.rows()
    assert len(shuffled) > len(usual)
    assert {row[0] for row in shuffled} == {row[0] for row in usual}
    desk.tell("pages_empty")
    assert desk.rows() == []
    desk.wait(21)
    assert desk.rows() == sorted(desk.rows())
    assert desk.rows()


def test_row_is_unfinished_soon_after_its_minute(desk):
    """Asked for at once it lacks trades, a minute later it has them; the truth always had."""
    desk.faults.rates = FaultRates(unfinished=1.0)
    lacking = 0
    for _ in range(6):
        desk.wait((MINUTE_MS - desk.time_ms % MINUTE_MS) / MINUTE_MS)
        minute_ms = desk.time_ms // MINUTE_MS * MINUTE_MS - MINUTE_MS
        count = desk.truth()[minute_ms].count
        fresh = next(row for row in desk.rows() if row[0] == minute_ms)
        assert fresh[8] <= count
        lacking += fresh[8] < count
        desk.wait(1)
        later = next(row for row in desk.rows() if row[0] == minute_ms)
        assert later[8] == desk.truth()[minute_ms].count == count
    assert lacking


def test_aggregate_ids_begin_anew_and_trades_go_on(desk):
    """The next minute but one has other ids; raw ids and klines go on as they were."""
    tape = desk.market.tape_of(SYMBOL)
    desk.tell("ids_restart")
    desk.wait(4)
    pairs = list(zip(tape.published, list(tape.published)[1:], strict=False))
    jumps = [(one, two) for one, two in pairs if two.id != one.id + 1]
    assert len(jumps) == 1
    one, two = jumps[0]
    assert two.first_id > one.last_id
    assert all(each.count for each in list(desk.truth().values())[-4:-1])
    assert two.time_ms // MINUTE_MS * MINUTE_MS in desk.faults.touched.minutes(SYMBOL, ())


def test_some_contracts_have_a_quiet_start():
    """No trade from before the start to some minutes after it, then as usual; klines are flat."""
    desk = Desk(quiet_share=1.0)
    assert desk.get(f"/fapi/v1/aggTrades?symbol={SYMBOL}") == []
    first = list(desk.truth().values())[-2]
    assert first.count == 0
    desk.wait(27)
    assert list(desk.truth().values())[-2].count


def test_dropped_contract_leaves_the_list_and_stays_away(desk):
    """One that has ended is not listed any more, whatever heals."""
    desk.faults.rates = FaultRates(dropped=1.0)
    desk.faults.delist(desk.market)
    symbol = next(each for each, row in desk.listed().items() if row["deliveryDate"] < 4e12)
    desk.wait(20)
    desk.faults.heal()
    assert symbol not in desk.listed()
    assert desk.faults.counts["dropped"] == 1


def test_reused_ticker_may_begin_with_id_one(desk):
    """The new contract's first aggregate has the id 1 where ids begin anew."""
    desk.faults.rates = FaultRates(reused=1.0, ids_anew=1.0)
    desk.faults.delist(desk.market)
    desk.wait(27)
    fresh = desk.market.instruments[-1]
    assert desk.market.tapes[fresh.number].published[0].id == 1


STREAM = f"/market/ws/{SYMBOL.lower()}@aggTrade"


async def frames_of(client, seconds):
    """Return events, the huge and the odd ones too."""
    return await client.gather(seconds)


@pytest.mark.parametrize("kind", ["trade_time", "trade_span", "trade_digits"])
async def test_trade_holds_what_cannot_be(autojump_clock, make_world, kind):
    """Some frames differ in one field from the exchange's own aggregates, which REST has."""
    world = await make_world(SimOptions(symbols=3))
    client = await world.connect(STREAM)
    await client.gather(2)
    world.exchange.faults.inflict(kind, list(world.exchange.board.peers), frames=6)
    told = await frames_of(client, 30)
    tape = world.exchange.market.tape_of(SYMBOL)
    true = {each.id: each for each in tape.published}
    name = {"trade_time": ("T",), "trade_span": ("l",), "trade_digits": ("p", "q")}[kind]
    rows = {row["a"]: row for row in world.get(f"/fapi/v1/aggTrades?symbol={SYMBOL}&limit=1000")}
    wrong = [each for each in told if any(each[field] != rows[each["a"]][field] for field in name)]
    assert len(wrong) == 6
    assert all(each["a"] in true for each in wrong)
    if kind == "trade_time":
        assert all(abs(each["T"] - each["E"]) >= HOUR_MS - 1_000 for each in wrong)
    elif kind == "trade_span":
        assert {str(each["l"]) for each in wrong} <= set(words.LAST_IDS)
    else:
        lengths = {max(len(each["p"]), len(each["q"])) for each in wrong}
        assert lengths == {words.DIGITS, words.TOO_MANY_DIGITS}


async def test_event_times_are_off_in_some_frames(autojump_clock, make_world):
    """Some of a connection's frames of some seconds are far off in E; T stays what it is."""
    world = await make_world(SimOptions(symbols=3))
    client = await world.connect(STREAM)
    await client.gather(2)
    world.exchange.faults.inflict("event_time", list(world.exchange.board.peers), seconds=10)
    told = await frames_of(client, 30)
    off = [each for each in told if abs(each["E"] - each["T"]) >= HOUR_MS - 1_000]
    assert off
    assert len(off) < len(told)
    assert all(each["T"] <= world.now_ms() for each in told)


async def test_strangers_trade_in_between(autojump_clock, make_world):
    """Trades of symbols that do not exist come over a connection that never asked for them."""
    world = await make_world(SimOptions(symbols=3))
    client = await world.connect(STREAM)
    await client.gather(2)
    world.exchange.faults.inflict("stranger", list(world.exchange.board.peers))
    told = await frames_of(client, 5)
    strange = [each["data"] for each in told if each.get("data", {}).get("s", SYMBOL) != SYMBOL]
    assert strange
    assert all(world.exchange.market.tape_of(each["s"]) is None for each in strange)


def test_every_kind_comes_about_by_its_rate_alone():
    """With one rate set that kind happens and no other."""
    for kind in LIES_TOLD:
        desk = Desk()
        desk.faults.rates = FaultRates(**{kind: 1_000.0})
        desk.wait(1)
        assert set(desk.faults.counts) == {kind}


def test_heal_ends_all_lies_but_those_for_good(desk):
    """After it exchangeInfo, /time and klines say what is so."""
    usual, rows = desk.listed(), desk.rows()
    for kind in LIES_TOLD:
        if kind not in ("ids_restart", "hole", "halted", "maintenance"):
            desk.tell(kind)
    desk.faults.heal()
    assert desk.listed() == usual
    assert desk.get("/fapi/v1/time")["serverTime"] == desk.time_ms
    assert desk.rows() == rows


def test_touched_minutes_reach_to_the_next_trade_that_comes_through():
    """From the minute before a fault to its end, the recovery, and the next trade after that."""
    touched = Touched()
    touched.add(["aaausdt"], 600_000, 610_000)
    until_ms = 610_000 + RECOVERY_MS
    found = touched.minutes("AAAUSDT", (until_ms - 1, until_ms + 200_000))
    assert found == set(range(540_000, 900_001, MINUTE_MS))
    found = touched.minutes("AAAUSDT", (until_ms + 10 * HOUR_MS,))
    quiet = set(range(540_000, until_ms + QUIET_MS, MINUTE_MS))
    assert found - quiet == {(until_ms + 10 * HOUR_MS) // MINUTE_MS * MINUTE_MS}
    assert touched.minutes("AAAUSDT", ()) == quiet
    assert touched.minutes("BBBUSDT", ()) == set()
    touched.claim("bbbusdt", 10**15 + 1)
    assert touched.minutes("BBBUSDT", ()) == {10**15 // MINUTE_MS * MINUTE_MS}
    touched.add(None, 0, 0)
    assert 0 in touched.minutes("BBBUSDT", ())


def test_true_small_step_moves_all_of_the_exchange():
    """A step of the clock itself is in /time and in the market alike: that is no lie."""
    true = [1_719_791_850_000]
    clock = SkewedClock(lambda: true[0])
    exchange = SimExchange(SimOptions(symbols=2), now_ms=clock)
    clock.step(400)
    told = json.loads(exchange.answer("GET", "/fapi/v1/time").body)["serverTime"]
    assert told == true[0] + 400 == exchange.market.now_ms
