"""Which contracts are kept, and which answers of exchangeInfo are believed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klagg_trio.exchange import wire
from klagg_trio.exchange.universe import SHORT_ACCEPTED_MS, Universe, Wholeness
from klagg_trio.settings import Settings

REAL = Path(__file__).parents[3] / "shared" / "data" / "fapi_exchangeInfo_2026-07-03.json"

NAMES = [f"S{number}USDT" for number in range(100)]


@pytest.mark.skipif(not REAL.exists(), reason="real captures are not here")
def test_the_settings_choose_among_the_contracts_of_a_real_day():
    """USDT perpetuals by default; TradFi perpetuals and other quotes by settings."""
    info = wire.decode_exchange_info(REAL.read_bytes())

    def count(**settings):
        universe = Universe.of(Settings(**settings))
        return sum(map(universe.wants, info.contracts.values()))

    assert count() == 529
    assert count(contracts=("PERPETUAL", "TRADIFI_PERPETUAL")) == 529 + 118
    assert count(quotes=("*",)) > count(quotes=("USDT", "USDC")) - 1 > 529
    assert count(symbols=("BTCUSDT", "NOUSDT")) == 1
    assert count(symbols=("all",)) == 529


def test_an_empty_or_short_answer_is_not_believed():
    """One that lacks a twentieth of the names says nothing of what it lacks."""
    wholeness = Wholeness(NAMES)
    assert wholeness.flaw([], 0)
    assert wholeness.flaw(NAMES[:60], 0)
    assert not wholeness.flaw(NAMES[:97], 0)


def test_an_answer_that_stays_short_is_believed_in_the_end():
    """Then it is the exchange that has shrunk, and the answers after it are held against that."""
    wholeness = Wholeness(NAMES)
    for at_ms in range(0, SHORT_ACCEPTED_MS, 60_000):
        assert wholeness.flaw(NAMES[:50], at_ms)
    assert not wholeness.flaw(NAMES[:50], SHORT_ACCEPTED_MS)
    assert not wholeness.flaw(NAMES[:50], SHORT_ACCEPTED_MS + 1)


@given(st.lists(st.integers(0, 100), max_size=30))
def test_a_short_answer_changes_nothing(lengths):
    """Whatever came between, an answer as long as the last whole one is whole."""
    wholeness = Wholeness(NAMES)
    whole = len(NAMES)
    for at_ms, length in enumerate(lengths):
        if not wholeness.flaw(NAMES[:length], at_ms):
            whole = length
        assert not wholeness.flaw(NAMES[:whole], at_ms)
