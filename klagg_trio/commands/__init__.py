"""One module a command, loaded when the command runs: what `cli` declares, these do."""

from collections.abc import Iterator
from typing import Final

from klagg_trio.interrupt import EXIT_INTERRUPTED

__all__ = ["EXIT_FINDINGS", "EXIT_INTERRUPTED", "leaves"]

EXIT_FINDINGS: Final = 3


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Yield the single exceptions of a group, however deep they are nested."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error
