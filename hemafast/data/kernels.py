"""Resampling and turning of pixels on a CPU, compiled: what DALI's own operators do there several times slower.

Each function is the body of a DALI operator (nvidia.dali.plugin.numba) and works on one image; DALI calls it from its
threads. `cut_window` equals `fn.resize` with a region of interest and antialiasing, `turn` equals `fn.warp_affine` with
the nearest neighbour, to within two levels of 255 and the odd tie between two pixels; tests hold them together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Node = Any  # nvidia.dali.data_node.DataNode
Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_BITS = 32
_ONE = 1 << _BITS
"""Positions are counted in whole numbers of a 2^-32 of a pixel: adding them up is exact, and cheaper than rounding."""


@njit(cache=True, nogil=True)
def _taps(start: float, extent: float, size: int, limit: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Which pixels make up each of `size` outputs along one axis: the first of them (size,), and weights (size, n).

    A triangle as wide as two pixels of the coarser grid, as Pillow and DALI have it for antialiased bilinear scaling.
    """
    scale = extent / size
    reach = max(scale, 1.0)
    first = np.empty(size, np.int64)
    weights = np.zeros((size, min(math.ceil(2 * reach), limit)), np.float32)
    for index in range(size):
        centre = start + (index + 0.5) * scale
        low = min(max(math.floor(centre - reach + 0.5), 0), limit - weights.shape[1])
        first[index] = low
        total = 0.0
        for tap in range(weights.shape[1]):
            weight = max(1.0 - abs(low + tap + 0.5 - centre) / reach, 0.0)
            weights[index, tap] = weight
            total += weight
        for tap in range(weights.shape[1]):
            weights[index, tap] /= total
    return first, weights


@njit(cache=True, nogil=True, fastmath=True)
def cut_window(out: Pixels, pixels: Pixels, window: Floats) -> None:
    """Scale the window (top, left, bottom, right) of `pixels` (height, width, 3) to `out` (size, size, 3)."""
    size = out.shape[0]
    top, left, bottom, right = window[0], window[1], window[2], window[3]
    row_of, row_weights = _taps(top, bottom - top, size, pixels.shape[0])
    column_of, column_weights = _taps(left, right - left, size, pixels.shape[1])
    rows, columns = row_weights.shape[1], column_weights.shape[1]
    # Down the columns first: whole stretches of a row are added at once, and no more rows than there are outputs.
    begin, end = column_of[0], column_of[size - 1] + columns
    line = np.empty((end - begin) * 3, np.float32)
    for y in range(size):
        line[:] = 0.5  # so that cutting off rounds
        for tap in range(rows):
            weight = row_weights[y, tap]
            if weight != 0:
                values = pixels[row_of[y] + tap, begin:end].reshape(-1)
                for index in range(len(line)):
                    line[np.uint64(index)] += weight * values[np.uint64(index)]
        for x in range(size):
            red, green, blue = np.float32(0), np.float32(0), np.float32(0)
            at = np.uint64(3 * (column_of[x] - begin))
            for tap in range(columns):
                weight = column_weights[x, tap]
                red += weight * line[at]
                green += weight * line[at + np.uint64(1)]
                blue += weight * line[at + np.uint64(2)]
                at += np.uint64(3)
            out[y, x, 0], out[y, x, 1], out[y, x, 2] = np.uint8(red), np.uint8(green), np.uint8(blue)


@njit(cache=True, nogil=True)
def turn(out: Pixels, pixels: Pixels, matrix: Floats) -> None:
    """Fill `out` (size, size, 3) with the nearest of `pixels` (height, width, 3) under `matrix` (2, 3); black outside.

    The matrix maps (x, y, 1) of the output to the input, in pixels, whose centres lie at halves.
    """
    size, height, width = out.shape[0], np.uint64(pixels.shape[0]), np.uint64(pixels.shape[1])
    source, target = pixels.reshape(-1), out.reshape(-1)
    right_x, right_y = int(matrix[0, 0] * _ONE), int(matrix[1, 0] * _ONE)
    to = np.uint64(0)
    for y in range(size):
        at_x = int((matrix[0, 0] / 2 + matrix[0, 1] * (y + 0.5) + matrix[0, 2]) * _ONE)
        at_y = int((matrix[1, 0] / 2 + matrix[1, 1] * (y + 0.5) + matrix[1, 2]) * _ONE)
        for _ in range(size):
            column, row = np.uint64(at_x >> _BITS), np.uint64(at_y >> _BITS)
            if row < height and column < width:  # what is negative is very large when unsigned
                at = (row * width + column) * np.uint64(3)
                for channel in range(3):
                    target[to + np.uint64(channel)] = source[at + np.uint64(channel)]
            else:
                for channel in range(3):
                    target[to + np.uint64(channel)] = 0
            at_x += right_x
            at_y += right_y
            to += np.uint64(3)


@njit(cache=True, nogil=True)
def turn_whole(out: Pixels, pixels: Pixels, matrix: Floats) -> None:
    """What `turn` does where the matrix is one of the eight symmetries and a shift that stays within `pixels`."""
    size, width = out.shape[0], pixels.shape[1]
    source, target = pixels.reshape(-1), out.reshape(-1)
    right = 3 * (int(matrix[1, 0]) * width + int(matrix[0, 0]))
    down = 3 * (int(matrix[1, 1]) * width + int(matrix[0, 1]))
    column = math.floor((matrix[0, 0] + matrix[0, 1]) / 2 + matrix[0, 2])
    row = math.floor((matrix[1, 0] + matrix[1, 1]) / 2 + matrix[1, 2])
    corner = 3 * (row * width + column)
    # Memory is read fastest in one direction all the way; unsigned, for numba looks where a signed index may wrap.
    backwards = abs(right) == 3 and (right < 0) != (down < 0)
    for line in range(size):
        y = size - 1 - line if backwards else line
        to, begin = np.uint64(3 * size * y), corner + y * down
        if right == 3:
            for index in range(3 * size):
                target[to + np.uint64(index)] = source[np.uint64(begin + index)]
        else:
            for x in range(size):
                at = np.uint64(begin + x * right)
                for channel in range(3):
                    target[to + np.uint64(3 * x + channel)] = source[at + np.uint64(channel)]


@functools.cache
def operator(kernel: Callable[..., None], size: int, dimensions: int) -> Callable[[Node, Node], Node]:
    """A DALI operator on the CPU from pixels and float32 parameters of so many dimensions to (size, size, 3) pixels.

    Made once a process: compiling it takes about a second.
    """
    from nvidia.dali import types
    from nvidia.dali.plugin.numba import NumbaFunction

    def shape_of(outputs: Any, _: Any) -> None:
        for shape in outputs[0]:
            shape[0], shape[1], shape[2] = size, size, 3

    def run(out: Pixels, pixels: Pixels, parameters: Floats) -> None:
        kernel(out, pixels, parameters)

    made: Callable[[Node, Node], Node] = NumbaFunction(
        run_fn=run,
        setup_fn=shape_of,
        in_types=[types.UINT8, types.FLOAT],
        ins_ndim=[3, dimensions],
        out_types=[types.UINT8],
        outs_ndim=[3],
    )
    return made
