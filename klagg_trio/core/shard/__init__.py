"""One shard of the market as a state machine: messages in, facts out.

Theory of operation
-------------------
A shard keeps, for each of its symbols, the running 1m bar, the minutes ahead of the clock that
already had trades, the last few sealed minutes, and the running bar of each longer interval.

- *Trades* fill. A trade touches the 1m bar of its own time `T` and nothing else. Trades that come
  as columns are added to sums that are *pending* until somebody needs the bar.
- *The tick* alone seals. For each minute up to the given one, in order, and for each symbol: seal
  the 1m bar (flat at the previous close where nothing traded), merge it into the longer bars, seal
  those that end with it, open what begins. The merging waits where no longer bar ends.
- *Evidence* says which minutes can be vouched for, from ids and from the liveness of the feed. It
  decides, and returns spans to doubt or to clear.
- *Restating* applies them, and puts the exchange's own minutes in the place of ours.

Imports run one way: `state` (and settling what is pending), `evidence`, `restate`, `seal`,
`trades`, `report`, `life`, and `face`, which is the shard itself and all that others may see of it.

Nothing here does I/O or knows a clock but the times in the messages. Every rule about the contents
of bars lives here and in `core/bar.py`.
"""

from klagg_trio.core.shard.face import Shard
from klagg_trio.core.shard.life import CONFIRM_MS, Life, Stored
from klagg_trio.core.shard.state import NEVER_MS, SymbolState

__all__ = ["CONFIRM_MS", "NEVER_MS", "Life", "Shard", "Stored", "SymbolState"]
