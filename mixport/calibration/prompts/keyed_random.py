"""Random numbers that depend on (seed, stream, index) and nothing else, the same on every machine and in
every NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

_WORD_BITS = 64


class Stream(IntEnum):
    """What a random number is for; streams of one seed are independent. The values are part of every drawn
    set: never change one.
    """

    ORDER = 1
    CHOICE = 2
    ADJECTIVE = 3
    IMAGE_SEED = 4
    SEED_STRIDE = 5


def words(seed: int, *, stream: Stream, index: int, count: int) -> list[int]:
    """`count` random integers of 64 bits, for a seed and an index of 0 to 2^63 - 1 each.

    Raw words of a counter-based generator: NumPy promises these for ever, unlike the streams of Generator's
    methods.
    """
    # The low word of the counter is left to the generator, which steps it: indices never overlap.
    counter, key = np.array([0, index, 0, 0], np.uint64), np.array([seed, stream], np.uint64)
    return [int(word) for word in np.random.Philox(counter=counter, key=key).random_raw(count)]


def below(word: int, bound: int) -> int:
    """A 64-bit word as an integer of 0 to bound - 1; no value is more likely than another by more than bound
    / 2^64.
    """
    return word * bound >> _WORD_BITS


def distinct(random: Sequence[int], bound: int) -> tuple[int, ...]:
    """As many different integers of 0 to bound - 1 as there are words, every ordered choice equally
    likely.
    """
    remaining = list(range(bound))
    return tuple(remaining.pop(below(word, len(remaining))) for word in random)
