"""What goes wrong: connections, frames, answers, clocks and contracts, drawn from a seed.

Theory of operation: `Faults` stands between the exchange and its clients. Each connection gathers
hazard as market time passes; when it has enough, a kind of fault is drawn and inflicted on it: at
once (a reset), for a while (silence), or on its next frames (duplicates). Each REST request draws
whether it is spoilt. The rates may be switched at any moment, `heal` ends what stands, and
`inflict` brings one fault about by name. Draws come from the seed, a connection's number and the
order of requests alone.
"""

from klagg_trio.sim.faults.clock import SkewedClock
from klagg_trio.sim.faults.connections import garbage
from klagg_trio.sim.faults.inflicted import Faults
from klagg_trio.sim.faults.rates import (
    HARSH,
    LIES,
    LIES_TOLD,
    MILD,
    NONE,
    ON_CONNECTION,
    ON_MACHINE,
    ON_REQUEST,
    PROFILES,
    STANDING,
    FaultRates,
    drawn,
    drawn_lies,
)

__all__ = [
    "HARSH",
    "LIES",
    "LIES_TOLD",
    "MILD",
    "NONE",
    "ON_CONNECTION",
    "ON_MACHINE",
    "ON_REQUEST",
    "PROFILES",
    "STANDING",
    "FaultRates",
    "Faults",
    "SkewedClock",
    "drawn",
    "drawn_lies",
    "garbage",
]
