"""Plain decimal numbers in text, a thousand at once, as whole numbers. No I/O.

Theory of operation
-------------------
A number of up to 16 characters is two words of 64 bits, read from where it ends, with a character
in each byte. What does not belong to the number is set to zero digits. A point is taken out by
moving what stands before it up by one byte. What is left has to be digits, and nothing but digits;
three multiplications by constants add neighbours up to pairs, fours and eights, the well-known way
of reading eight digits within a register. Every step is one operation on a whole array.

Numbers are plain as `wire.PLAIN` has it: digits, with at most one point between two of them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

DIGITS_MAX: Final = 16
"""Characters of the longest number that is read here, its point included."""


def word(text: bytes) -> int:
    """Return eight bytes of text, or fewer, as the number that `words_of` gives for them."""
    return int.from_bytes(text.ljust(8, b"\0"), "little")


def words_of(data: bytes) -> Words:
    """Return the eight bytes from every position on as a number, without copying anything."""
    words: Words = np.ndarray((len(data) - 7,), "<u8", data, 0, (1,))
    return words


def text_at(data: bytes, positions: Integers, width: int) -> Words:
    """Return the text of so many bytes at each position as words, in a dimension more."""
    blocks = np.ndarray((len(data) - width + 1,), f"V{width}", data, 0, (1,))
    words: Words = blocks[positions].view("<u8").reshape(*positions.shape, width // 8)
    return words


def _repeated(octet: int) -> np.uint64:
    return np.uint64(octet * 0x0101010101010101)


_ONE: Final = np.uint64(1)
_TWO: Final = np.uint64(2)
_THREE: Final = np.uint64(3)
_FOUR: Final = np.uint64(4)
_BYTE: Final = np.uint64(8)
_SEVEN_BYTES: Final = np.uint64(56)
_ZEROES: Final = _repeated(0x30)
_POINT_BIT: Final = _repeated(0x10)
"""A point without the bits of a zero is 0x1E; no digit has this one of its bits."""
_ABOVE_NINE: Final = _repeated(0x76)
"""Added to what is more than 9, it gives the highest bit of the byte."""
_HIGHEST_BITS: Final = _repeated(0x80)

_PAIRS: Final = (np.uint64(10 << 8 | 1), np.uint64(8), np.uint64(0x00FF00FF00FF00FF))
_FOURS: Final = (np.uint64(100 << 16 | 1), np.uint64(16), np.uint64(0x0000FFFF0000FFFF))
_EIGHTS: Final = (np.uint64(10_000 << 32 | 1), np.uint64(32))
_EIGHT_DIGITS: Final = 10**8

_KEPT: Final = np.array(
    [
        [
            (1 << 64) - (1 << 8 * (16 - length)) if length > 8 else 0,
            (1 << 64) - (1 << 8 * max(0, 8 - length)) if length else 0,
        ]
        for length in range(17)
    ],
    np.uint64,
)
"""What belongs to a number of so many characters in the 16 bytes that end with it."""

RESCALED_MAX: Final = 19
"""Characters that a number gets too long with, decimals added and its point counted."""

_POWERS: Final = 10 ** np.arange(RESCALED_MAX, dtype=np.int64)


def parse_numbers(
    data: bytes, begin: Integers, stop: Integers, *, fractions: int
) -> tuple[Integers, Integers] | None:
    """Read the numbers between these positions: a row for each field, a column for each record.

    The first `fractions` rows may have a point. Returns all numbers without their points, and how
    many decimals those rows have; None where anything is no plain number, or longer than
    DIGITS_MAX.
    """
    length = stop - begin
    if length.min() < 1 or length.max() > DIGITS_MAX:
        return None
    digits = text_at(data, stop - DIGITS_MAX, DIGITS_MAX)
    digits ^= _ZEROES
    digits &= _KEPT.take(length, axis=0)
    closed = _take_points_out(digits[:fractions])
    if closed is None:
        return None
    decimals, pointed = closed
    if (decimals < pointed).any() or (length[: len(decimals)] <= decimals + pointed).any():
        return None  # a point with no digit after it, or before it
    check = digits + _ABOVE_NINE
    check |= digits
    if np.bitwise_or.reduce(check, axis=None) & _HIGHEST_BITS:
        return None
    for factor, shift, mask in (_PAIRS, _FOURS):
        digits *= factor
        digits >>= shift
        digits &= mask
    factor, shift = _EIGHTS
    digits *= factor
    digits >>= shift
    halves = digits.view(np.int64)
    return halves[..., 0] * _EIGHT_DIGITS + halves[..., 1], decimals


def _take_points_out(digits: Words) -> tuple[Integers, npt.NDArray[np.bool_]] | None:
    """Close the gap that a point leaves among digits: pairs of words, the leading digits first.

    The first character is in the lowest byte, so what stands before a point moves up by one.
    Returns how many decimals there are, and where there is a point; None where what looks like one
    is another character. A second point stays.
    """
    points = digits & _POINT_BIT
    points &= ~points + _ONE
    whole = points | points >> _ONE | points >> _TWO | points >> _THREE
    if ((digits & ((points << _FOUR) - (points >> _FOUR))) != whole).any():
        return None
    before = (points >> _FOUR) - _ONE
    after = ~((points << _FOUR) - _ONE)
    pointed = points != 0
    bits = np.bitwise_count(after)
    early, late = pointed[..., 0], pointed[..., 1]
    decimals = (bits[..., 1] + np.where(late, 0, early * np.uint8(64) + bits[..., 0])) >> 3
    carried = digits[..., 0] >> _SEVEN_BYTES
    moved = digits[..., 0] << _BYTE
    before &= digits
    before <<= pointed * _BYTE
    digits &= after
    digits |= before
    digits[..., 1] |= carried * late
    digits[..., 0] = np.where(late, moved, digits[..., 0])
    return decimals, late | early


def have_leading_zeros(numbers: Integers, length: Integers) -> bool:
    """Whether a whole number is written with more digits than it needs, which JSON forbids."""
    return bool(((numbers < _POWERS.take(length - 1)) & (length > 1)).any())


def rescale(numbers: Integers, fewer: Integers, length: Integers) -> bool:
    """Multiply numbers, in place, that have so many decimals fewer than they should.

    Returns False, with nothing done, where one has more of them, or gets too long: 19 digits.
    """
    if not fewer.any():
        return True
    if fewer.min() < 0 or (fewer + length).max() >= len(_POWERS):
        return False
    numbers *= _POWERS[fewer]
    return True


def spare_decimals(numbers: Integers, decimals: int) -> int:
    """Return how many of their last decimals are zero in all of these numbers."""
    spare = 0
    while spare < decimals and not (numbers % _POWERS[spare + 1]).any():
        spare += 1
    return spare
