"""Signals before a command takes them in hand, and after: the program ends at once, with 130.

Theory of operation
-------------------
Python turns SIGINT into an exception that may come up anywhere: in the middle of an import, or in a
callback, where it can only be printed. So from klagg's first line on a handler of our own ends the
process without raising anything. Nothing is lost by it: whatever has begun on disk is a transaction
or a file of another name that has not been renamed yet, and those names are in `leftovers`.

Commands that have something to end cleanly wait for signals by Trio while they run
(`commands.start.wait_signal`). When the first one has come this handler is back, so that a second
one ends a program that does not stop.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Final, NoReturn

EXIT_INTERRUPTED: Final = 130

leftovers: set[str] = set()
"""Files that are of no use unless they are finished."""


def signals() -> list[int]:
    """Return the signals that end klagg. A hangup that was ignored before (nohup) stays ignored."""
    ending = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        ending.append(signal.SIGHUP)
    return list(map(int, ending))


def end_at_signals() -> None:
    """End the process at any of them from now on."""
    for number in signals():
        signal.signal(number, _end)


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    for name in list(leftovers):
        try:  # noqa: SIM105
            os.unlink(name)
        except OSError:
            pass  # gone already, or out of reach: nobody is left to be told
    os._exit(EXIT_INTERRUPTED)
