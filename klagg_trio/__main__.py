"""`python -m klagg_trio`, and the console script `klagg`: signals first, then the command line."""

import os
from typing import NoReturn

try:
    from klagg_trio import interrupt

    interrupt.end_at_signals()
except KeyboardInterrupt:  # in the first millisecond, before the handler was there
    os._exit(130)


def main() -> NoReturn:
    """Run one command and exit with its code."""
    from klagg_trio import cli

    cli.main()


if __name__ == "__main__":
    main()
