"""Files that do not belong together: older, missing, restored, another's, another version's."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from prove.chain import Scene, scene
from prove.process import backfill, pause, process, wait_for
from prove.row import Outcome, Row, check

REFUSED = (65, 74, 78)
APART_S = 62.0
"""Between yesterday's copy and now: at least a minute that only one of the two has."""

DATABASE = ("klagg.db", "klagg.db-wal", "klagg.db-shm")


def older_database(made: Scene, old: Path) -> None:
    """The database is restored, the snapshot is not."""
    for name in DATABASE:
        (made.data / name).unlink(missing_ok=True)
        if (old / name).exists():
            shutil.copy(old / name, made.data / name)


def older_snapshot(made: Scene, old: Path) -> None:
    """The snapshot is restored, the database is not."""
    shutil.copy(old / "initial_state.cbor", made.snapshot)


def no_database(made: Scene, old: Path) -> None:
    """The database is gone."""
    for name in DATABASE:
        (made.data / name).unlink(missing_ok=True)


def no_snapshot(made: Scene, old: Path) -> None:
    """The snapshot is gone."""
    made.snapshot.unlink()


def both_restored(made: Scene, old: Path) -> None:
    """Both are of yesterday."""
    older_database(made, old)
    older_snapshot(made, old)


def of_another(made: Scene, old: Path) -> None:
    """The snapshot is another database's."""
    other = made.folder / "other"
    backfill(made.folder, other, made.rest_url)
    shutil.copy(other / "initial_state.cbor", made.snapshot)


def newer_format(made: Scene, old: Path) -> None:
    """The snapshot is of a klagg that does not exist yet, whole in every other way."""
    contents = bytearray(made.snapshot.read_bytes())
    contents[8:12] = struct.pack(">I", 99)
    made.snapshot.write_bytes(contents)


def newer_schema(made: Scene, old: Path) -> None:
    """The database has seen a newer klagg."""
    with closing(sqlite3.connect(made.database)) as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
            " VALUES ('klagg', '9999 later', 'now')"
        )
        connection.commit()


def not_ours(made: Scene, old: Path) -> None:
    """The database is some other program's."""
    no_database(made, old)
    with closing(sqlite3.connect(made.database)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.commit()


KINDS: dict[str, tuple[Callable[[Scene, Path], None], bool | None]] = {
    "older database": (older_database, None),
    "older snapshot": (older_snapshot, None),
    "no database": (no_database, None),
    "no snapshot": (no_snapshot, False),
    "both restored": (both_restored, True),
    "another's snapshot": (of_another, None),
    "newer snapshot format": (newer_format, False),
    "newer schema": (newer_schema, False),
    "another program's database": (not_ours, False),
}
"""By kind, what does it, and whether klagg goes on (None: either, as long as it says so)."""


def run(seed: int, folder: Path, outcome: Outcome) -> None:
    """Make one kind of disorder and start: healed with nothing missing, or refused."""
    name = list(KINDS)[seed % len(KINDS)]
    disorder, goes_on = KINDS[name]
    old = folder / "old"
    with scene(folder, seed) as made:
        shutil.copytree(made.data, old)
        with made.running() as klagg:
            made.wait_live(klagg)
            pause(APART_S)
            klagg.stop()
        disorder(made, old)
        before = contents(made)
        with made.running("after") as after:
            wait_for(lambda: not after.alive or "good" in after.text, f"a word on it: {name}", 150)
            if after.alive:
                check(goes_on is not False, f"{name}: went on as if nothing were\n{after.tail()}")
                made.settle(after)
            else:
                code = after.popen.returncode
                check(goes_on is not True, f"{name}: exit {code}\n{after.tail()}")
                check(code in REFUSED, f"{name}: exit {code}\n{after.tail()}")
                after.check_quiet()
                check(contents(made) == before, f"{name}: something was written over")
                outcome.notes.append(f"{name}: refused with {code}")
        if not after.alive and after.popen.returncode in REFUSED:
            way_out(made, name)
        outcome.cases += 1


def way_out(made: Scene, name: str) -> None:
    """Do what the message says where it is a backfill: then it has to work."""
    if name not in ("no snapshot", "older database", "no database", "another's snapshot"):
        return
    arguments = ("backfill", "--data-dir", made.data, "--rest-url", made.rest_url, "--since", "2h")
    with process(made.folder, "way-out", arguments) as filling:
        code = filling.wait(120)
        check(code == 0, f"{name}: backfill is no way out: {code}\n{filling.tail()}")
    with made.running("last") as last:
        made.wait_live(last)
        made.settle(last)


def contents(made: Scene) -> dict[str, str]:
    """Return what the files hold, without what SQLite keeps beside them."""
    names = ("klagg.db", "initial_state.cbor")
    return {
        name: hashlib.sha256((made.data / name).read_bytes()).hexdigest()
        for name in names
        if (made.data / name).exists()
    }


ROW = Row(
    name="files",
    what="files that do not belong together: older, missing, restored, of another version",
    holds="told, healed or refused; nothing is written over; there is a way out",
    run=run,
    ci=len(KINDS),
    release=4 * len(KINDS),
    lanes=4,
)
