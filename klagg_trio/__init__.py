"""klagg: K-lines without holes, from Binance USD-M trades, on Trio.

Layout, from the bottom up; imports point down only (tests/test_layers.py enforces it):

- `core/`            pure: intervals, bars, the shard state machine. No I/O, no clock, no log.
- `cmd`              the vocabulary of a shard's inbox: Tick, TradeBatch, AddSymbol, ...
- `exchange/`        the edge to the exchange: frames and rows, REST, weight, connections.
- `store/`           the edge to the disk: schema, database, start snapshot.
- `vitals`           an immutable picture of the running program, for people.
- `tick`             the exchange's time and the minute clock.
- `worker`           one shard's task: messages in, facts out.
- `feed`             websocket feeds: connect, subscribe, watch, route.
- `discovery`        listings and delistings.
- `repair`           suspect minutes and audits: official bars for what is not right.
- `writer`           one connection, one thread, one transaction a tick.
- `dashboard`        what a person sees.
- `backfill`         history over REST, then the start snapshot.
- `nursery_app`      composition root of `klagg run`: every task is started there.
- `sim/`             the exchange simulator: seeded market, faults, servers.
- `demo`             simulator, backfill and run in one process.
- `commands/`        one file a command: flags in, exit code out.
- `cli`, `settings`  the command line and the settings.
- `interrupt`        signals, from the first line on.
"""

__version__ = "0.1.0"
