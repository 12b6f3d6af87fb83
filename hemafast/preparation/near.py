"""All pairs of near hashes, compiled: most pairs are told apart by the first half of their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from hemafast.compiled import compiled

Words = npt.NDArray[np.uint64]


@intrinsic
def _ones(_context: Any, _word: Any) -> Any:
    """Number of ones in a word: one instruction, for which numba has no name."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@compiled(nogil=True)  # so that threads can share the rows
def near_pairs(hashes: Words, start: int, stop: int, most: int) -> npt.NDArray[np.int64]:
    """Pairs (n, 2) of rows, the first in `start` to `stop` and the second after it, that differ in at most `most` bits.

    `hashes` is (images, 4).
    """
    found = np.empty((64, 2), np.int64)
    count = 0
    for row in range(start, stop):
        a, b, c, d = hashes[row, 0], hashes[row, 1], hashes[row, 2], hashes[row, 3]
        for other in range(row + 1, len(hashes)):
            bits = _ones(a ^ hashes[other, 0]) + _ones(b ^ hashes[other, 1])
            if bits > most:
                continue
            bits += _ones(c ^ hashes[other, 2]) + _ones(d ^ hashes[other, 3])
            if bits <= most:
                if count == len(found):
                    larger = np.empty((2 * count, 2), np.int64)
                    larger[:count] = found
                    found = larger
                found[count, 0], found[count, 1] = row, other
                count += 1
    return found[:count]
