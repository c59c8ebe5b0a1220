"""A start snapshot with a byte flipped anywhere, or cut short anywhere, or with more behind it."""

from __future__ import annotations

import random
from pathlib import Path

from klagg_trio.core.errors import DamagedDataError
from klagg_trio.store.start_snapshot import decode
from prove.chain import scene
from prove.process import process
from prove.row import Broken, Outcome, Row, check

PROCESSES = 12
"""How many of the damaged files are also given to a whole `klagg run`."""

EXIT_DAMAGED = 65


def run(seed: int, folder: Path, outcome: Outcome) -> None:
    """Damage a real snapshot in every place, and let klagg's reader look at each; then let whole
    processes look at some."""
    rng = random.Random(f"snapshot/{seed}")
    with scene(folder, seed) as made:
        whole = made.snapshot.read_bytes()
        stored = made.database.read_bytes()
        decode(whole, made.snapshot)
        flips = [flipped(whole, at, 1 << rng.randrange(8)) for at in range(len(whole))]
        cuts = [whole[:length] for length in range(len(whole))]
        longer = [whole + b"\0", whole + whole]
        for damaged in (*flips, *cuts, *longer):
            try:
                decode(damaged, made.snapshot)
            except DamagedDataError:
                outcome.cases += 1
            else:
                raise Broken("a damaged snapshot was taken")
        for number in range(PROCESSES):
            made.snapshot.write_bytes(damaged := rng.choice(flips if number % 2 else cuts))
            with process(folder, f"run-{number}", made.run_arguments()) as klagg:
                code = klagg.wait(30)
            check(code == EXIT_DAMAGED, f"run ends with {code}\n{klagg.tail()}")
            klagg.check_quiet()
            check("klagg backfill" in klagg.text, f"it names no way out\n{klagg.tail()}")
            check(made.snapshot.read_bytes() == damaged, "the damaged snapshot was written over")
            check(made.database.read_bytes() == stored, "the database was written to")
            outcome.cases += 1
        made.snapshot.write_bytes(whole)
        with made.running("last") as klagg:
            made.wait_live(klagg)
            made.settle(klagg)


def flipped(contents: bytes, at: int, bits: int) -> bytes:
    """Return the contents with some bits of one byte the other way round."""
    return contents[:at] + bytes((contents[at] ^ bits,)) + contents[at + 1 :]


ROW = Row(
    name="snapshot",
    what="start snapshot: a bit flipped in every byte, truncated at every length, longer",
    holds="refused with the way out, exit 65; neither it nor the database is written to",
    run=run,
    ci=1,
    release=8,
    lanes=2,
)
