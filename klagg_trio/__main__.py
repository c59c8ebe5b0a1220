"""`python -m klagg_trio`, and the console script `klagg`: signals first, then the command line.

The first lines hold a signal's end before anything is imported that takes its time: `signal` itself
makes its enumerations first. `interrupt` says what it is all about.
"""

import _signal  # type: ignore[import-not-found, unused-ignore]
import os


def _end(_number: int, _frame: object) -> None:
    os._exit(130)


_taken = []
for _name in ("SIGINT", "SIGTERM", "SIGHUP"):
    _number = getattr(_signal, _name, None)
    if _number is not None and _signal.getsignal(_number) != _signal.SIG_IGN:
        _signal.signal(_number, _end)
        _taken.append(_number)


def main() -> None:
    """Run one command and exit with its code."""
    from klagg_trio import cli

    try:
        cli.main()
    finally:
        # All is done and said: Python's own end would let a signal kill the process in place of it.
        for number in _taken:
            _signal.signal(number, _signal.SIG_IGN)


if __name__ == "__main__":
    main()
