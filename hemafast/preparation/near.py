"""All pairs of near hashes, compiled: most pairs are told apart by the second half of their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from hemafast.compiled import compiled

Words = npt.NDArray[np.uint64]

_RUN = 64  # images that are compared by half of their bits, before any is looked at


def _count_ones(_context: Any, _word: Any) -> Any:
    """Number of ones in a word: one instruction, for which numba has no name."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


_ones: Any = intrinsic(_count_ones)


@compiled(nogil=True)  # so that threads can share the rows
def near_pairs(words: Words, start: int, stop: int, most: int) -> npt.NDArray[np.int64]:
    """Pairs (n, 2) of images that differ in at most `most` bits: one in `start` to `stop`, and one after it.

    `words` is (4, images): the hash of an image is a column.
    """
    a, b, c, d = words[0], words[1], words[2], words[3]
    images, limit, count = words.shape[1], np.uint64(most), 0
    found = np.empty((64, 2), np.int64)
    for row in range(start, stop):
        a_row, b_row, c_row, d_row = a[row], b[row], c[row], d[row]
        for left in range(row + 1, images, _RUN):
            right = min(left + _RUN, images)
            suspects: Any = 0
            for other in range(left, right):  # no branch, so that the processor compares several at once
                # The higher frequencies: in them, cells are least alike.
                suspects += (_ones(c_row ^ c[other]) + _ones(d_row ^ d[other])) <= limit
            if suspects == 0:
                continue
            for other in range(left, right):
                bits = _ones(a_row ^ a[other]) + _ones(b_row ^ b[other])
                if bits + _ones(c_row ^ c[other]) + _ones(d_row ^ d[other]) <= limit:
                    if count == len(found):
                        larger = np.empty((2 * count, 2), np.int64)
                        larger[:count] = found
                        found = larger
                    found[count, 0], found[count, 1] = row, other
                    count += 1
    return found[:count]
