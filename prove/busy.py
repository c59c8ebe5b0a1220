"""A simulated exchange as busy as is asked for: python -m prove.busy SEED SYMBOLS RATE SECONDS.

`klagg sim` is as busy as a quiet market. This one serves RATE raw trades a minute for S seconds,
and prints its two addresses as `klagg sim --json` does.
"""

from __future__ import annotations

import json
import sys
import time

import trio

from klagg_trio.sim.server import SimOptions, run_sim


async def serve(seed: int, symbols: int, per_minute: float, seconds: float) -> None:
    """Serve on the real clock."""
    start_ms, zero_s = time.time_ns() // 1_000_000, trio.current_time()
    options = SimOptions(
        seed=seed, symbols=symbols, start_ms=start_ms, straddle=True, trades_per_minute=per_minute
    )
    with trio.move_on_after(seconds):
        await run_sim(
            options,
            now_ms=lambda: start_ms + int((trio.current_time() - zero_s) * 1_000),
            on_ready=lambda rest, ws: print(
                json.dumps({"rest_url": rest, "ws_url": ws}), flush=True
            ),
        )


if __name__ == "__main__":
    trio.run(serve, int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
