"""Which contracts are to be kept, and whether an answer of exchangeInfo can be taken for whole."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from klagg_trio.exchange.wire import Contract
from klagg_trio.settings import Settings

TRADING: Final = "TRADING"

ANY: Final = "*"
"""In the quotes: whatever a contract is quoted in."""

SHORT_SHARE: Final = 0.05
SHORT_COUNT: Final = 2
"""An answer that lacks more than this of what the last whole one had is no whole answer."""

SHORT_ACCEPTED_MS: Final = 3_600_000
"""Unless answers have been as short as that for this long: then it is the exchange that shrank."""


@dataclass(frozen=True, slots=True)
class Universe:
    """What the user asked for."""

    symbols: tuple[str, ...]
    """Names; none: all of the kept kinds."""
    contracts: tuple[str, ...]
    """Contract types."""
    quotes: tuple[str, ...]
    """Quote assets, or `*`."""

    @classmethod
    def of(cls, settings: Settings) -> Universe:
        """Return what these settings ask for."""
        return cls(settings.named_symbols, settings.contracts, settings.quotes)

    @property
    def kinds(self) -> str:
        """The kept kinds, in words."""
        return f"{' or '.join(self.contracts)} in {' or '.join(self.quotes)}"

    def is_kept_kind(self, contract: Contract) -> bool:
        """Whether a contract is of a type and a quote asset that are kept."""
        quoted = ANY in self.quotes or contract.quote_asset in self.quotes
        return quoted and contract.contract_type in self.contracts

    def names(self, symbol: str) -> bool:
        """Whether a symbol is among those asked for."""
        return not self.symbols or symbol in self.symbols

    def wants(self, contract: Contract) -> bool:
        """Whether bars of a contract are to be kept now."""
        return (
            self.names(contract.symbol)
            and self.is_kept_kind(contract)
            and contract.status == TRADING
        )


def nearest(symbol: str, known: Iterable[str]) -> str:
    """Return advice for a name that nobody knows."""
    near = difflib.get_close_matches(symbol.upper(), list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "see exchangeInfo for its names"


class Wholeness:
    """Judges answers of exchangeInfo by the names in them.

    An empty or a short answer says nothing about what it lacks: it may be a fault of a moment. One
    that stays short for long enough is believed.
    """

    def __init__(self, known: Collection[str] = ()) -> None:
        """`known` are names that a whole answer is expected to have."""
        self._expected = frozenset(known)
        self._short_since_ms: int | None = None

    def flaw(self, names: Collection[str], at_ms: int) -> str:
        """Return why an answer is no whole one; empty where it is one."""
        if not names:
            return "it names no contract"
        missing = len(self._expected.difference(names))
        if missing > max(SHORT_COUNT, SHORT_SHARE * len(self._expected)):
            if self._short_since_ms is None:
                self._short_since_ms = at_ms
            if at_ms - self._short_since_ms < SHORT_ACCEPTED_MS:
                return f"it lacks {missing} of {len(self._expected)} contracts"
        self._short_since_ms = None
        self._expected = frozenset(names)
        return ""
