"""tardis-dev (node): its live feed with its computed trade bars; the figures are node's own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from bench.contenders import check_floats, job

NODE = Path(__file__).resolve().parent.parent / "node"


def main() -> None:
    task = job()
    names = task.source.folder / "symbols.json"
    names.write_text(json.dumps([symbol.lower() for symbol in task.source.symbols]))
    done = subprocess.run(
        ["node", str(NODE / "live.js"), task.url, str(names), str(task.source.trades)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, "NODE_EXTRA_CA_CERTS": os.environ.get("SSL_CERT_FILE", "")},
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-300:])
    found = json.loads(done.stdout)
    trades, seconds = task.source.trades, found["seconds"]
    bars = {(row[0], row[1] - row[1] % 60_000): tuple(row[2:]) for row in found["bars"]}
    expected = task.source.expected()
    # A bar appears with the next trade of its symbol; those still open are not told.
    check_floats({key: bar for key, bar in expected.items() if key in bars}, bars)
    if len(bars) < len(expected) - len(task.source.symbols):
        raise SystemExit(f"{len(bars)} bars, {len(expected)} expected")
    figures = {
        "trades": trades,
        "seconds": seconds,
        "per_s": trades / seconds,
        "cpu_us": found["cpu_s"] / trades * 1e6,
        "cpu_percent": 100 * found["cpu_s"] / seconds,
        "rss_mib": found["rss"] / 2**20,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
