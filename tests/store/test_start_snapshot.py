"""A start snapshot gives back exactly what was put in, or says what is wrong and what to do."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klagg_trio.core.bar import Bar, Source, newborn
from klagg_trio.core.errors import DamagedDataError, StoreError
from klagg_trio.core.intervals import DAY_MS, INTERVALS, MINUTE_MS
from klagg_trio.core.seed import OpenBar, Seed, StartState
from klagg_trio.store import start_snapshot
from klagg_trio.store.start_snapshot import (
    FORMAT,
    HEADER,
    MAGIC,
    decode,
    encode,
    read_snapshot,
    write_snapshot,
)

CUT = 1_719_792_000_000 + 17 * MINUTE_MS
PATH = Path("somewhere/initial_state.cbor")
MEND = "; run: klagg backfill --data-dir somewhere"

PRICES = st.decimals("0.00000001", "99999999", places=8)
AMOUNTS = st.decimals("0.00000001", "999999999999.12345678", places=8)


def interval_of(name, phase_ms):
    """An interval, 3d on a symbol's own grid."""
    return INTERVALS[name].with_phase(phase_ms) if name == "3d" else INTERVALS[name]


@st.composite
def bars(draw, open_ms, end_ms):
    """Legal bars of one span, now and then without trades."""
    low, *between, high = sorted(draw(st.lists(PRICES, min_size=4, max_size=4)))
    if not draw(st.booleans()):
        return newborn(open_ms, end_ms, low)
    taker_volume, volume = sorted(draw(st.tuples(AMOUNTS, AMOUNTS)))
    taker_quote_volume, quote_volume = sorted(draw(st.tuples(AMOUNTS, AMOUNTS)))
    return Bar(
        open_ms,
        end_ms,
        between[0],
        high,
        low,
        between[1],
        volume,
        quote_volume,
        draw(st.integers(1, 10**12)),
        taker_volume,
        taker_quote_volume,
        draw(st.integers(0, 10**15)),
        draw(st.integers(0, 10**15)),
        draw(st.sampled_from(Source)),
    )


@st.composite
def seeds(draw, symbol, intervals, cut_ms):
    """Legal states of one symbol."""
    phase_ms = DAY_MS * draw(st.integers(0, 2))
    open_bars = []
    for name in intervals[1:]:
        interval = interval_of(name, phase_ms)
        open_ms = interval.floor(cut_ms)
        bar = draw(bars(open_ms, interval.end(open_ms)))
        open_bars.append(OpenBar(name, bar, draw(st.integers(0, 50_000))))
    minutes = [cut_ms - MINUTE_MS * n for n in draw(st.sets(st.integers(1, 9), max_size=3))]
    return Seed(
        symbol=symbol,
        onboard_ms=draw(st.integers(0, cut_ms)),
        delivery_ms=draw(st.sampled_from([4_133_404_800_000, 1 << 62])),
        last_close=draw(PRICES),
        next_id=draw(st.none() | st.integers(0, 10**15)),
        last_trade_ms=draw(st.none() | st.integers(1, cut_ms)),
        three_day_phase_ms=phase_ms,
        open_bars=tuple(open_bars),
        suspects=tuple((open_ms, open_ms) for open_ms in minutes),
        partials=tuple(draw(bars(open_ms, open_ms + MINUTE_MS)) for open_ms in minutes),
        unknown=tuple((open_ms, open_ms) for open_ms in minutes[:1]),
        first_ms=draw(st.none() | st.integers(0, 400).map(lambda n: n * DAY_MS)),
    )


@st.composite
def states(draw):
    """Legal start states of a few symbols, some with names in other scripts, or none at all."""
    longer = draw(st.sets(st.sampled_from(list(INTERVALS)[1:]), max_size=4))
    intervals = tuple(name for name in INTERVALS if name == "1m" or name in longer)
    cut_ms = MINUTE_MS * draw(st.integers(DAY_MS // MINUTE_MS * 400, 40_000_000))
    symbols = draw(
        st.lists(st.sampled_from(["BTCUSDT", "币安人生USDT", "1000PEPEUSDT"]), unique=True)
    )
    return StartState(
        cut_ms,
        intervals,
        tuple(draw(seeds(symbol, intervals, cut_ms)) for symbol in symbols),
        draw(st.none() | st.just("0123abcd" * 4)),
        draw(st.none() | st.integers(1, 9)),
    )


def small_state() -> StartState:
    """Two symbols with a partial, a suspect span, and bars of three intervals."""

    def seed(symbol: str, phase_ms: int) -> Seed:
        open_bars = []
        for name in ("5m", "3d"):
            open_ms = interval_of(name, phase_ms).floor(CUT)
            bar = newborn(open_ms, interval_of(name, phase_ms).end(open_ms), Decimal("1.5"))
            open_bars.append(OpenBar(name, bar, 2))
        partial = newborn(CUT - MINUTE_MS, CUT, Decimal("1.25"))
        partial.count, partial.volume, partial.source = 3, Decimal("0.001"), Source.SUSPECT
        return Seed(
            symbol,
            onboard_ms=CUT - 10**9,
            delivery_ms=4_133_404_800_000,
            last_close=Decimal("1.5"),
            next_id=7,
            last_trade_ms=CUT - 1,
            three_day_phase_ms=phase_ms,
            open_bars=tuple(open_bars),
            suspects=((CUT - 3 * MINUTE_MS, CUT - MINUTE_MS),),
            partials=(partial,),
        )

    return StartState(CUT, ("1m", "5m", "3d"), (seed("BTCUSDT", DAY_MS), seed("ETHUSDT", 0)))


def sealed(payload: bytes) -> bytes:
    """A file whose header is right for whatever it holds."""
    return HEADER.pack(MAGIC, FORMAT, len(payload), hashlib.sha256(payload).digest()) + payload


def changed(**columns) -> bytes:
    """The small state's file with other columns, as only another program would write it."""
    tree = cbor2.loads(encode(small_state())[HEADER.size :])
    for name, column in columns.items():
        if column is None:
            del tree[name]
        else:
            tree[name] = column
    return sealed(cbor2.dumps(tree))


def with_value(column: str, index: int, value: object) -> bytes:
    """The small state's file with one value of one column replaced."""
    values = cbor2.loads(encode(small_state())[HEADER.size :])[column]
    values[index] = value
    return changed(**{column: values})


def refusal(contents: bytes) -> str:
    """The text with which a file is refused, less its beginning and end, which are checked."""
    with pytest.raises(DamagedDataError) as caught:
        decode(contents, PATH)
    text = str(caught.value)
    start = f"no usable start snapshot in {PATH}: "
    assert text.startswith(start)
    assert text.endswith(MEND)
    assert "\n" not in text
    return text[len(start) : -len(MEND)]


# -- Round trips -----------------------------------------------------------------------------------


@pytest.mark.slow
@given(states())
@example(StartState(CUT, ("1m",), ()))
def test_what_is_decoded_is_what_was_encoded(state):
    """Every value comes back exactly, and encodes to the same bytes again."""
    contents = encode(state)

    back = decode(contents, PATH)

    assert back == state
    assert encode(back) == contents


def test_sources_come_back_as_sources():
    """An IntEnum equals its number; what comes back is the enum all the same."""
    back = decode(encode(small_state()), PATH)

    assert {type(seed.partials[0].source) for seed in back.seeds} == {Source}


def test_equal_states_give_equal_bytes():
    """The way a number was written before does not matter, only its value."""
    one, other = small_state(), small_state()
    one.seeds[0].partials[0].high = Decimal("12500")
    other.seeds[0].partials[0].high = Decimal("1.25000E+4")
    one.seeds[0].partials[0].quote_volume = Decimal("0")
    other.seeds[0].partials[0].quote_volume = Decimal("-0.000")

    assert one == other
    assert encode(one) == encode(other)


def test_numbers_of_any_length_are_exact():
    """Sums with more digits than a float or the default context has are not rounded."""
    state = small_state()
    volume = Decimal("123456789012345678901234567890123456789.12345678901234567890")
    state.seeds[1].open_bars[1].bar.volume = volume
    state.seeds[1].open_bars[1].bar.count = 1

    assert decode(encode(state), PATH).seeds[1].open_bars[1].bar.volume == volume


# -- Damage ----------------------------------------------------------------------------------------


def test_every_flipped_bit_is_refused():
    """No single bit of the file can change unnoticed."""
    contents = encode(small_state())
    for place in range(len(contents)):
        for bit in range(8):
            flipped = bytearray(contents)
            flipped[place] ^= 1 << bit
            refusal(bytes(flipped))


def test_every_truncation_is_refused():
    """A file that ends too early is cut short, wherever it ends."""
    contents = encode(small_state())
    for length in range(len(contents)):
        assert "cut short" in refusal(contents[:length])


def test_trailing_bytes_are_refused():
    """Nothing may follow the end."""
    assert refusal(encode(small_state()) + b"\0\0") == "2 bytes too many follow its end"


@given(st.binary(max_size=200))
def test_garbage_is_refused(payload):
    """Whatever lies behind a right header and digest, the only error is that of damage."""
    refusal(sealed(payload))
    refusal(payload)


@pytest.mark.parametrize(
    ("contents", "flaw"),
    [
        (b"", "it is cut short: 0 bytes"),
        (b"SQLite format 3\0" * 9, "it is no start snapshot of klagg"),
        (
            HEADER.pack(MAGIC, FORMAT + 1, 0, b""),
            f"a newer klagg wrote it: format {FORMAT + 1}, this one reads {FORMAT}",
        ),
        (HEADER.pack(MAGIC, 0, 0, b""), "another klagg wrote it: format 0"),
        (sealed(b"x")[:-1] + b"y", "it was altered: its SHA-256 does not match"),
        (sealed(b"\xff"), "it is no CBOR"),
        (sealed(cbor2.dumps([1])), "it does not hold named columns"),
        (sealed(cbor2.dumps({1: 1})), "it does not hold named columns"),
        (sealed(b"\xa2\x61a\x01\x61a\x01"), "it is no CBOR"),
    ],
    ids=["empty", "magic", "newer", "older", "digest", "cbor", "list", "keys", "twice"],
)
def test_what_is_no_snapshot_is_refused(contents, flaw):
    """The text says at which stage a file turned out to be none of ours."""
    assert refusal(contents).startswith(flaw)


@pytest.mark.parametrize(
    ("contents", "flaw"),
    [
        (changed(open=None), "wrong shape: required field missing @ $.open"),
        (changed(colour=[1]), "wrong shape: extra fields found (colour) @ $"),
        (changed(cut_ms=True), "wrong shape: invalid value for type, expected int @ $.cut_ms"),
        (with_value("next_id", 0, 1.0), "wrong shape: invalid value"),
        (with_value("symbol", 0, 1), "wrong shape: invalid value"),
        (with_value("close", 0, 1.5), "wrong shape: invalid value"),
        *((with_value("close", 0, bad), "wrong shape: invalid value") for bad in
          ("", "NaN", "1e5", "-1", "1_0", " 1", "٣", "1.2.3", "Infinity")),
        (with_value("source", 0, 5), "wrong shape: invalid value"),
        (changed(intervals=["1m", "7m"]), "unknown interval '7m'"),
        (changed(intervals=["5m", "3d"]), "the intervals must include 1m"),
        (changed(intervals=["1m", "3d", "5m"]), "its intervals are not in order"),
        (changed(intervals=["1m", "5m"]), "4 values of unofficial_minutes instead of 2"),
        (changed(cut_ms=CUT + 1), f"its cut {CUT + 1} is not on a minute"),
        (changed(last_close=["1"]), "1 values of last_close instead of 2"),
        (changed(count=[1]), "1 values of count instead of 6"),
        (changed(suspect_spans=[2, 1]), "2 values of suspect_first_ms instead of 3"),
        (changed(suspect_spans=[-1, 3]), "there are fewer than no suspects or partials"),
        (with_value("symbol", 1, "BTCUSDT"), "the symbol 'BTCUSDT' is in it 2 times"),
        (with_value("symbol", 1, ""), "a symbol has no name"),
        (with_value("last_close", 1, "0"), "a last close is not above zero"),
        (with_value("next_id", 1, -2), "a next aggregate id is negative, or beyond 64 bits"),
        (with_value("next_id", 1, 1 << 63), "a next aggregate id is negative, or beyond 64 bits"),
        (with_value("last_trade_ms", 1, -1), "a last_trade_ms is before 1970"),
        (with_value("last_trade_ms", 1, CUT + 1), "a last_trade_ms is before 1970, or later"),
        (with_value("first_ms", 1, CUT + MINUTE_MS), "a first_ms is before 1970, or later"),
        (with_value("first_ms", 1, CUT - 1), "a first kline does not open on a minute"),
        (with_value("onboard_ms", 1, 1 << 60), "a onboard_ms is before 1970, or later"),
        (with_value("delivery_ms", 1, -1), "a delivery_ms is before 1970, or later"),
        (with_value("three_day_phase_ms", 0, 5), "a 3d grid does not begin at midnight"),
        (with_value("three_day_phase_ms", 0, 1 << 50), "a three_day_phase_ms is before 1970"),
        (with_value("symbol", 0, "A" * 101), "a symbol has a name that cannot be one"),
        (with_value("symbol", 0, "A\x1b[2J"), "a symbol has a name that cannot be one"),
        (with_value("count", 0, 5), "a bar has trades without volume, or volume without"),
        (with_value("volume", 0, "5"), "a bar has trades without volume, or volume without"),
        (with_value("count", 4, 1 << 63), "in a bar count is beyond 64 bits"),
        (with_value("first", 4, -1), "in a bar first is negative, or beyond 64 bits"),
        (with_value("last", 4, 1 << 63), "in a bar last is negative, or beyond 64 bits"),
        (with_value("unofficial_minutes", 1, 1 << 60), "an open bar has more unofficial minutes"),
        (with_value("high", 4, "9" * 221), "wrong shape: invalid value"),
        (changed(unknown_spans=[0, 1]), "0 values of unknown_first_ms instead of 1"),
        (changed(unknown_spans=[0, 1], unknown_first_ms=[5], unknown_last_ms=[5]),
         "no minutes are suspect from 5 to 5"),
        (changed(database_id="a'b"), "wrong shape: invalid value"),
        (changed(generation=-1), "wrong shape: invalid value"),
        (with_value("suspect_first_ms", 0, -MINUTE_MS), "no minutes are suspect from"),
        (with_value("unofficial_minutes", 1, -1), "an open bar has fewer than no unofficial"),
        (with_value("suspect_last_ms", 0, CUT), "no minutes are suspect from"),
        (with_value("suspect_first_ms", 0, CUT - 1), "no minutes are suspect from"),
        (with_value("low", 0, "0"), "a price is not above zero"),
        (with_value("low", 0, "1.6"), "in a bar low is above open"),
        (with_value("high", 0, "1.4"), "in a bar open is above high"),
        (with_value("close", 0, "1.6"), "in a bar close is above high"),
        (with_value("taker_buy_volume", 0, "1"), "in a bar taker_buy_volume is above volume"),
        (with_value("count", 0, -1), "in a bar count is below zero"),
        (with_value("open_ms", 0, CUT), "the open 5m bar of 'BTCUSDT' is"),
        (with_value("end_ms", 3, CUT), "the open 3d bar of 'ETHUSDT' is"),
        (with_value("three_day_phase_ms", 1, DAY_MS), "the open 3d bar of 'ETHUSDT' is"),
        (with_value("end_ms", 5, CUT + 1), "a partial minute goes from"),
        (with_value("open_ms", 4, CUT), "a partial minute goes from"),
    ],
)  # fmt: skip
def test_what_no_run_can_have_written_is_refused(contents, flaw):
    """A right digest does not make up for a state that cannot be."""
    assert refusal(contents).startswith(flaw)


def test_minutes_before_a_contract_s_life_are_not_owed():
    """A span since 1970 costs nothing: what is before the first kline, or the listing, is cut."""
    state = small_state()
    listed = replace(state.seeds[0], suspects=((0, CUT - MINUTE_MS),), unknown=((0, 0),))
    first_ms = CUT - 9 * MINUTE_MS
    known = replace(state.seeds[1], suspects=((0, CUT - MINUTE_MS),), first_ms=first_ms)
    read = decode(encode(replace(state, seeds=(listed, known))), PATH)

    listed_ms = listed.onboard_ms // MINUTE_MS * MINUTE_MS
    assert read.seeds[0].suspects == ((listed_ms, CUT - MINUTE_MS),)
    assert read.seeds[0].unknown == ()
    assert read.seeds[1].suspects == ((first_ms, CUT - MINUTE_MS),)


def as_of_0_1_0(state) -> bytes:
    """The file that 0.1.0 would have written."""
    tree = cbor2.loads(encode(state)[HEADER.size :])
    for name in ("database_id", "generation", "first_ms"):
        del tree[name]
    for name in ("unknown_spans", "unknown_first_ms", "unknown_last_ms"):
        del tree[name]
    tree["next_id"] = [-1 if value is None else value for value in tree["next_id"]]
    tree["last_trade_ms"] = [0 if value is None else value for value in tree["last_trade_ms"]]
    payload = cbor2.dumps(tree)
    return HEADER.pack(MAGIC, 1, len(payload), hashlib.sha256(payload).digest()) + payload


def test_a_snapshot_of_0_1_0_is_read():
    """Its numbers for what is not known become None; what it kept to itself is unknown."""
    state = small_state()
    other = replace(state.seeds[1], next_id=None, last_trade_ms=None)
    state = replace(state, seeds=(state.seeds[0], other))
    read = decode(as_of_0_1_0(state), PATH)

    unknown = ((CUT - 3 * MINUTE_MS, CUT - 2 * MINUTE_MS),)
    assert read == replace(
        state, seeds=tuple(replace(seed, unknown=unknown) for seed in state.seeds)
    )


@pytest.mark.parametrize("column", ["next_id", "last_trade_ms", "symbol"])
@pytest.mark.parametrize("value", [[False, 5], [0.0, 5], ["0", 5], 7, None])
def test_a_snapshot_of_0_1_0_is_no_less_checked(column, value):
    """Translating it lets nothing through."""
    tree = cbor2.loads(as_of_0_1_0(small_state())[HEADER.size :])
    tree[column] = value
    payload = cbor2.dumps(tree)
    head = HEADER.pack(MAGIC, 1, len(payload), hashlib.sha256(payload).digest())
    refusal(head + payload)


def test_a_file_larger_than_any_is_not_read(tmp_path):
    """Nor is room made for it."""
    path = tmp_path / "initial_state.cbor"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedDataError, match="larger than any"):
        read_snapshot(path)


def test_an_impossible_state_is_not_written():
    """What could not be read again never replaces a snapshot that can: it is our own bug."""
    state = small_state()
    state.seeds[0].open_bars[0].bar.high = Decimal(1)
    with pytest.raises(AssertionError, match="in a bar open is above high"):
        encode(state)


# -- Files -----------------------------------------------------------------------------------------


@pytest.mark.real
def test_what_is_read_is_what_was_written(tmp_path):
    """A written snapshot can be read, over and over again, and leaves nothing beside it."""
    path = tmp_path / "initial_state.cbor"
    for cut_ms in (CUT, CUT + MINUTE_MS):
        state = StartState(cut_ms, ("1m",), ())
        write_snapshot(path, state)

        assert read_snapshot(path) == state
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.real
def test_a_missing_file_tells_how_to_get_one(tmp_path):
    """Without a snapshot, or even its folder, the error names the file and the command."""
    folder = tmp_path / "my data"
    with pytest.raises(DamagedDataError) as caught:
        read_snapshot(folder / "initial_state.cbor")

    assert str(caught.value) == (
        f"no usable start snapshot in {folder}/initial_state.cbor: it does not exist; "
        f"run: klagg backfill --data-dir '{folder}'"
    )


@pytest.mark.real
def test_an_unreadable_file_is_the_disk_s_fault(tmp_path):
    """What cannot be read at all may still be whole: no word of a backfill."""
    with pytest.raises(StoreError, match=r"cannot read the start snapshot .*: Is a directory"):
        read_snapshot(tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_write_leaves_the_former_snapshot(tmp_path, monkeypatch, step):
    """Whatever the disk refuses: the old file stays whole, and the new one leaves no trace."""
    path = tmp_path / "initial_state.cbor"
    former = small_state()
    write_snapshot(path, former)

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(start_snapshot.os, step, refuse)
    with pytest.raises(StoreError, match=r"cannot write .*: No space left on device; make room"):
        write_snapshot(path, StartState(CUT + MINUTE_MS, ("1m",), ()))
    monkeypatch.undo()

    assert read_snapshot(path) == former
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.real
def test_a_full_disk_leaves_the_former_snapshot(tmp_path):
    """A write that the system itself refuses (a limit on the file's size) changes nothing."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = tmp_path / "initial_state.cbor"
    former = StartState(CUT, ("1m",), ())
    write_snapshot(path, former)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(encode(former)) + 1, limit[1]))
    try:
        with pytest.raises(StoreError, match="File too large"):
            write_snapshot(path, small_state())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)

    assert read_snapshot(path) == former
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.real
def test_a_missing_folder_is_the_disk_s_fault(tmp_path):
    """A snapshot does not make folders."""
    with pytest.raises(StoreError, match="No such file or directory"):
        write_snapshot(tmp_path / "gone" / "initial_state.cbor", small_state())


@pytest.mark.real
def test_an_interrupted_write_does_not_stop_the_next(tmp_path):
    """What a killed process left of a new file is written over."""
    path = tmp_path / "initial_state.cbor"
    (tmp_path / "initial_state.cbor.new").write_bytes(b"half of it")

    write_snapshot(path, small_state())

    assert read_snapshot(path) == small_state()
    assert list(tmp_path.iterdir()) == [path]
