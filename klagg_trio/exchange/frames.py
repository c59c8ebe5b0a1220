"""Text frames of one received chunk, left where they lie in it. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


class Frames:
    """The payloads of text frames, in order. Iterating cuts them out; a burst is read in place."""

    __slots__ = ("_ends", "_starts", "data")

    def __init__(
        self, data: bytes, starts: Sequence[int] | Positions, ends: Sequence[int] | Positions
    ) -> None:
        """Name the payloads that lie in `data` from each of `starts` to before each of `ends`."""
        self.data = data
        self._starts = starts
        self._ends = ends

    @classmethod
    def of(cls, payloads: Iterable[bytes]) -> Frames:
        """Put payloads together that did not come in one piece."""
        payloads = list(payloads)
        ends = list(accumulate(map(len, payloads)))
        return cls(b"".join(payloads), [0, *ends[:-1]] if ends else [], ends)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[bytes]:
        data = self.data
        for start, end in zip(self._starts, self._ends, strict=True):
            yield data[start:end]

    @property
    def starts(self) -> Positions:
        """Where each payload begins."""
        return np.asarray(self._starts, np.int64)

    @property
    def ends(self) -> Positions:
        """The position after each payload."""
        return np.asarray(self._ends, np.int64)
