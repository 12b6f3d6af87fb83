"""Compiled changes to pixels on a CPU, several times faster than DALI's own operators.

Each function is the body of a DALI operator (nvidia.dali.plugin.numba) and works on one image. DALI calls it from its
threads. `cut_window` equals `fn.resize` with a region of interest and antialiasing, and `turn` equals `fn.warp_affine`
with the nearest neighbour, except for two levels of 255 and ties between two pixels. `cover`, `recolour` and `blur`
equal the same steps made of DALI's operators (`operators`) to within a level. Tests compare them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import carray, cfunc  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.lib.stride_tricks import as_strided
from nvidia.dali import types
from nvidia.dali.plugin.numba import NumbaFunction, address_as_void_pointer  # type: ignore[attr-defined]

from hemafast.compiled import compiled, kept
from hemafast.pixel_constants import LEAST_SPREAD, LEVELS, REACH, SOFT, SPREADS, WHITE

Node = Any  # nvidia.dali.data_node.DataNode
Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]

_BITS = 32
_ONE = 1 << _BITS
"""Positions are integers in units of 2^-32 pixels. Adding them is exact, and cheaper than rounding."""

_FOUR = ir.VectorType(ir.FloatType(), 4)
"""Red, green and blue, and a lane that nobody reads."""

_PIXEL = np.uint32(0xFFFFFF)
"""The three bytes of a word that hold its pixel."""


@compiled()
def _taps(start: float, extent: float, size: int, limit: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """The pixels that make up each of `size` outputs along one axis: the first ones (size,), and weights (size, n).

    The weights form a triangle as wide as two pixels of the coarser grid: antialiased bilinear scaling, as in Pillow
    and DALI.
    """
    scale = extent / size
    reach = max(scale, 1.0)
    first = np.empty(size, np.int64)
    weights = np.zeros((size, min(math.ceil(2 * reach), limit)), np.float32)
    for index in range(size):
        centre = min(max(start + (index + 0.5) * scale, 0.5), limit - 0.5)  # some pixel is always in reach
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


def _code_of_mix(_typing: Any, _target: Any, _source: Any, _weights: Any, _taps: Any) -> Any:
    """The weighted sum of `taps` adjacent pixels of three floats, all channels at once, as code for the processor.

    The first three parameters are addresses. A fourth lane is read and written beyond each pixel. numba does not join
    the channels by itself.
    """
    signature = numba.void(numba.intp, numba.intp, numba.intp, numba.intp)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        target, source, weights, taps = arguments
        total = cgutils.alloca_once_value(builder, ir.Constant(_FOUR, [0.0] * 4))  # type: ignore[no-untyped-call]
        with cgutils.for_range(builder, taps) as loop:
            pixel = builder.add(source, builder.mul(loop.index, loop.index.type(12)))
            weight = builder.add(weights, builder.mul(loop.index, loop.index.type(4)))
            values = builder.load(builder.inttoptr(pixel, _FOUR.as_pointer()), align=4)
            share = builder.load(builder.inttoptr(weight, ir.FloatType().as_pointer()))
            one = builder.insert_element(ir.Constant(_FOUR, ir.Undefined), share, ir.IntType(32)(0))
            shares = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), 4), [0] * 4))
            more = builder.fmul(values, shares, flags=("contract",))
            builder.store(builder.fadd(builder.load(total), more, flags=("contract",)), total)
        builder.store(builder.load(total), builder.inttoptr(target, _FOUR.as_pointer()), align=4)
        return context.get_dummy_value()

    return signature, generate


_mix_pixel: Any = intrinsic(_code_of_mix)


@compiled(fastmath=True)  # sums in any order, so that the processor can add several values at once
def cut_window(out: Pixels, pixels: Pixels, window: Floats) -> None:
    """Scale the window (top, left, bottom, right) of `pixels` (height, width, 3) to `out` (size, size, 3)."""
    size = out.shape[0]
    top, left, bottom, right = window[0], window[1], window[2], window[3]
    row_of, row_weights = _taps(top, bottom - top, size, pixels.shape[0])
    column_of, column_weights = _taps(left, right - left, size, pixels.shape[1])
    rows, columns = row_weights.shape[1], column_weights.shape[1]
    # Vertically first: whole pieces of rows are added at once, and only as many rows as there are outputs.
    begin, end = column_of[0], column_of[size - 1] + columns
    length, places = (end - begin) * 3, 3 * (column_of - begin)
    line, sums = np.empty(length + 1, np.float32), np.empty(3 * size + 1, np.float32)  # room for a fourth lane
    line[length] = 0
    for y in range(size):
        line[:length] = 0.5  # so that truncation rounds
        for tap in range(rows):
            weight = row_weights[y, tap]
            if weight != 0:
                values = pixels[row_of[y] + tap, begin:end].reshape(-1)
                for index in range(length):
                    line[np.uint64(index)] += weight * values[np.uint64(index)]
        # The usual numbers of taps as constants: their loops are unrolled.
        if columns == 2:
            _mix(sums, line, places, column_weights, 2)
        elif columns == 3:
            _mix(sums, line, places, column_weights, 3)
        else:
            _mix(sums, line, places, column_weights, columns)
        target = out[y].reshape(-1)
        for index in range(3 * size):
            target[np.uint64(index)] = np.uint8(sums[np.uint64(index)])


@compiled(inline="always")
def _mix(sums: Floats, line: Floats, places: npt.NDArray[np.int64], weights: Floats, taps: int) -> None:
    """Set the pixels of `sums` to weighted sums of `taps` adjacent pixels of `line`; each begins at one of `places`."""
    target, source, shares = sums.ctypes.data, line.ctypes.data, weights.ctypes.data
    for x in range(len(places)):
        _mix_pixel(target + 12 * x, source + 4 * places[x], shares + 4 * weights.shape[1] * x, taps)


@compiled()
def turn(out: Pixels, pixels: Pixels, matrix: Floats) -> None:
    """Fill `out` (size, size, 3) with the nearest of `pixels` (height, width, 3) under `matrix` (2, 3); black outside.

    The matrix maps (x, y, 1) of the output to the input, in pixels with centres at halves.
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
            if row < height and column < width:  # negative values are very large when unsigned
                at = (row * width + column) * np.uint64(3)
                for channel in range(3):
                    target[to + np.uint64(channel)] = source[at + np.uint64(channel)]
            else:
                for channel in range(3):
                    target[to + np.uint64(channel)] = 0
            at_x += right_x
            at_y += right_y
            to += np.uint64(3)


@compiled()
def turn_whole(out: Pixels, pixels: Pixels, matrix: Floats) -> None:
    """The same as `turn`, for a matrix that is one of the eight symmetries plus a shift that stays within `pixels`."""
    size, width = out.shape[0], pixels.shape[1]
    source, target = pixels.reshape(-1), out.reshape(-1)
    right = int(matrix[1, 0]) * width + int(matrix[0, 0])
    down = int(matrix[1, 1]) * width + int(matrix[0, 1])
    column = math.floor((matrix[0, 0] + matrix[0, 1]) / 2 + matrix[0, 2])
    row = math.floor((matrix[1, 0] + matrix[1, 1]) / 2 + matrix[1, 2])
    corner = row * width + column
    last = len(source) // 3 - 1
    for place in (
        corner,
        corner + (size - 1) * right,
        corner + (size - 1) * down,
        corner + (size - 1) * (right + down),
    ):
        if not 0 <= place <= last:
            turn(out, pixels, matrix)  # the shift leaves `pixels`: slower, and black outside
            return
    # One 32-bit word at each pixel of the source except the last; its highest byte belongs to the next pixel.
    source_words = as_strided(source[:4].view(np.uint32), (last,), (3,))
    words = target[: len(target) // 4 * 4].view(np.uint32)
    backwards = abs(right) == 1 and (right < 0) != (down < 0)  # reading memory in one direction is fastest
    for line in range(size):
        y = size - 1 - line if backwards else line
        begin, to = corner + y * down, size * y
        if right == 1:
            _move_row(target, to, source, begin, size)
        elif size % 4 or max(begin, begin + (size - 1) * right) == last:
            _move_pixels(target, to, source, begin, right, size)
        else:
            _move_fours(words, to, source_words, begin, right, size)


# Places below count pixels. Indices are unsigned, because numba checks whether a signed index wraps around.


@compiled()
def _move_row(target: Pixels, to: int, source: Pixels, begin: int, count: int) -> None:
    """Copy adjacent pixels."""
    for byte in range(3 * count):
        target[np.uint64(3 * to + byte)] = source[np.uint64(3 * begin + byte)]


@compiled()
def _move_pixels(target: Pixels, to: int, source: Pixels, begin: int, step: int, count: int) -> None:
    """Copy every `step`-th pixel."""
    for pixel in range(count):
        for channel in range(3):
            target[np.uint64(3 * (to + pixel) + channel)] = source[np.uint64(3 * (begin + pixel * step) + channel)]


@compiled()
def _move_fours(words: Words, to: int, source_words: Words, begin: int, step: int, count: int) -> None:
    """The same with four pixels at once, in three words of 32 bits: twice as fast.

    Words are little-endian, as on every processor that DALI supports.
    """
    word = np.uint64(3 * to // 4)
    for pixel in range(begin, begin + count * step, 4 * step):
        first = source_words[np.uint64(pixel)] & _PIXEL
        second = source_words[np.uint64(pixel + step)] & _PIXEL
        third = source_words[np.uint64(pixel + 2 * step)] & _PIXEL
        fourth = source_words[np.uint64(pixel + 3 * step)] & _PIXEL
        words[word] = first | second << np.uint32(24)
        words[word + np.uint64(1)] = second >> np.uint32(8) | third << np.uint32(16)
        words[word + np.uint64(2)] = third >> np.uint32(16) | fourth << np.uint32(8)
        word += np.uint64(3)


@compiled()
def cover(out: Pixels, pixels: Pixels, background: Floats) -> None:
    """Copy `pixels` (size, size, 3) to `out`, with one colour outside a circle about the centre.

    `background` (6,) is the radius in pixels, and the colour in levels: a factor of the white point, a factor of the
    mean colour, and three values to add.
    """
    size, radius = out.shape[0], background[0]
    _move_row(out.reshape(-1), 0, pixels.reshape(-1), 0, size * size)
    if radius >= size:
        return
    counts, colour, filled = _histogram(pixels), np.empty(3, np.float32), np.empty(3, np.uint8)
    for channel in range(3):
        measured = background[1] * _white(counts[channel]) + background[2] * _mean(counts[channel])
        colour[channel] = background[3 + channel] + measured
        filled[channel] = np.uint8(colour[channel] + np.float32(0.5))
    edge, squares = np.float32(0.5 * size * SOFT), np.empty(size, np.float32)
    for place in range(size):
        squares[place] = (place + 0.5 - 0.5 * size) ** 2
    inner, outer = radius * radius, (radius + edge) * (radius + edge)
    for y in range(size):
        for x in range(size):
            squared = squares[y] + squares[x]
            if squared > outer:
                out[y, x, 0], out[y, x, 1], out[y, x, 2] = filled[0], filled[1], filled[2]
            elif squared > inner:
                kept = np.float32(1) - (np.sqrt(squared) - radius) / edge
                for channel in range(3):
                    value = colour[channel] + kept * (out[y, x, channel] - colour[channel])
                    out[y, x, channel] = np.uint8(value + np.float32(0.5))


@compiled()
def _histogram(pixels: Pixels) -> Words:
    """(3, 256): how many pixels have each value of each channel."""
    counts, source = np.zeros((3, 256), np.uint32), pixels.reshape(-1)
    for pixel in range(len(source) // 3):
        for channel in range(3):
            counts[channel, source[np.uint64(3 * pixel + channel)]] += np.uint32(1)
    return counts


@compiled()
def _white(counts: Words) -> int:
    """The white point of a channel, from its histogram (256,)."""
    pixel_count, reached = 0, 0
    for value in range(256):
        pixel_count += counts[value]
    wanted = pixel_count * WHITE
    for value in range(256):
        reached += counts[value]
        if reached >= wanted:
            return value
    return 255


@compiled()
def _mean(counts: Words) -> float:
    total, pixel_count = 0, 0
    for value in range(256):
        total += value * counts[value]
        pixel_count += counts[value]
    return float(total / pixel_count)


@compiled()
def _change_channels(out: Pixels, pixels: Pixels, change: Floats, standard: bool) -> None:
    counts, table, light = _histogram(pixels), np.empty((3, 256), np.uint8), np.empty(256, np.float64)
    pixel_count = pixels.shape[0] * pixels.shape[1]
    for channel in range(3):
        density, contrast, brightness = change[channel]
        total = 0.0
        for value in range(256):
            light[value] = 256 * ((value + 1) / 256) ** np.float64(density) - 1
            total += light[value] * counts[channel, value]
        mean = total / pixel_count
        level, gain = mean, np.float64(contrast)
        if standard:
            total = 0.0
            for value in range(256):
                total += (light[value] - mean) ** 2 * counts[channel, value]
            spread = math.sqrt(total / pixel_count)
            level, gain = LEVELS[channel], contrast * SPREADS[channel] / (spread + LEAST_SPREAD)
        for value in range(256):
            changed = (light[value] - mean) * gain + level + brightness
            table[channel, value] = np.uint8(min(max(changed, 0.0), 255.0) + 0.5)
    source, target = pixels.reshape(-1), out.reshape(-1)
    for pixel in range(len(source) // 3):
        for channel in range(3):
            at = np.uint64(3 * pixel + channel)
            target[at] = table[channel, source[at]]


@compiled()
def recolour(out: Pixels, pixels: Pixels, change: Floats) -> None:
    """Change each channel of `pixels` (height, width, 3) on its own: one table of 256 values does it all.

    A row of `change` (3, 3) has, for one channel, a factor of the optical density, then a factor of the distance from
    the mean, and levels to add.
    """
    _change_channels(out, pixels, change, False)


@compiled()
def standardize(out: Pixels, pixels: Pixels, change: Floats) -> None:
    """The same as `recolour`, but between density and contrast each channel gets the mean LEVELS and spread SPREADS."""
    _change_channels(out, pixels, change, True)


@compiled(fastmath=True)
def blur(out: Pixels, pixels: Pixels, sigma: Floats) -> None:
    """Blur `pixels` (height, width, 3) by a Gaussian of `sigma` (1,) pixels; 0 copies. The edges mirror the image."""
    height, width = out.shape[0], out.shape[1]
    reach = math.ceil(REACH * sigma[0])
    if reach == 0:
        _move_row(out.reshape(-1), 0, pixels.reshape(-1), 0, height * width)
        return
    weights = _bell(reach, sigma[0])
    # Vertically first, into a row that goes on beyond both ends; then horizontally. Both add whole rows at once.
    line, sums = np.empty(3 * (width + 2 * reach), np.float32), np.empty(3 * width, np.float32)
    for y in range(height):
        line[:] = 0
        for tap in range(2 * reach + 1):
            row = pixels[_mirrored(y + tap - reach, height)]
            _add(line[3 * reach : 3 * (reach + width)], weights[tap], row.reshape(-1))
        for x in range(1, reach + 1):
            for end, inner in ((-x, _mirrored(-x, width)), (width - 1 + x, _mirrored(width - 1 + x, width))):
                for channel in range(3):
                    line[3 * (reach + end) + channel] = line[3 * (reach + inner) + channel]
        sums[:] = 0.5  # so that truncation rounds
        for tap in range(2 * reach + 1):
            _add(sums, weights[tap], line[3 * tap : 3 * (tap + width)])
        target = out[y].reshape(-1)
        for index in range(3 * width):
            target[np.uint64(index)] = np.uint8(sums[np.uint64(index)])


@compiled()
def _bell(reach: int, sigma: float) -> Floats:
    """Weights (2 reach + 1,) of a Gaussian; their sum is 1."""
    weights, total = np.empty(2 * reach + 1, np.float32), 0.0
    for tap in range(-reach, reach + 1):
        total += math.exp(-0.5 * (tap / sigma) ** 2)
    for tap in range(-reach, reach + 1):
        weights[reach + tap] = math.exp(-0.5 * (tap / sigma) ** 2) / total
    return weights


@compiled(inline="always")
def _add(sums: Floats, weight: float, values: npt.NDArray[Any]) -> None:
    for index in range(len(sums)):
        sums[np.uint64(index)] += weight * values[np.uint64(index)]


@compiled()
def _mirrored(place: int, count: int) -> int:
    """The place among `count` that a place beyond either end mirrors, about the centre of the last pixel."""
    period = max(2 * (count - 1), 1)
    place = abs(place) % period
    return min(place, period - place)


# DALI calls these functions with addresses of pointers, as in nvidia.dali.plugin.numba. They are compiled here, because
# the plugin compiles for seconds in every process, while numba keeps the code compiled here.

_RUN = "void(uint64, uint64, uint64, int32, uint64, uint64, uint64, int32)"
_SETUP = "void(uint64, uint64, int32, uint64, uint64, int32, int32)"


@compiled()
def _numbers(address: int, count: int) -> npt.NDArray[np.int64]:
    """The `count` 64-bit integers at an address."""
    return carray(address_as_void_pointer(address), count, np.int64)


@compiled()
def _image(pointers: int, shapes: int, index: int) -> Pixels:
    """Image number `index` (height, width, 3) of an operator's inputs or outputs."""
    shape = _numbers(_numbers(shapes, index + 1)[index], 3)
    return carray(
        address_as_void_pointer(_numbers(pointers, index + 1)[index]), (shape[0], shape[1], shape[2]), np.uint8
    )


@compiled()
def _drawn(pointers: int, shape: tuple[int, ...]) -> Floats:
    """The second input of an operator: what was drawn for the image."""
    return carray(address_as_void_pointer(_numbers(pointers, 2)[1]), shape, np.float32)


def _run_cut_window(outs, out_shapes, _0, _1, ins, in_shapes, _2, _3):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    cut_window(_image(outs, out_shapes, 0), _image(ins, in_shapes, 0), _drawn(ins, (4,)))


def _run_turn(outs, out_shapes, _0, _1, ins, in_shapes, _2, _3):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    turn(_image(outs, out_shapes, 0), _image(ins, in_shapes, 0), _drawn(ins, (2, 3)))


def _run_turn_whole(outs, out_shapes, _0, _1, ins, in_shapes, _2, _3):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    turn_whole(_image(outs, out_shapes, 0), _image(ins, in_shapes, 0), _drawn(ins, (2, 3)))


def _run_cover(outs, out_shapes, _0, _1, ins, in_shapes, _2, _3):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    cover(_image(outs, out_shapes, 0), _image(ins, in_shapes, 0), _drawn(ins, (6,)))


def _run_recolour(outs, out_shapes, _0, _1, ins, in_shapes, _2, _3):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    recolour(_image(outs, out_shapes, 0), _image(ins, in_shapes, 0), _drawn(ins, (3, 3)))


def _run_standardize(outs, out_shapes, _0, _1, ins, in_shapes, _2, _3):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    standardize(_image(outs, out_shapes, 0), _image(ins, in_shapes, 0), _drawn(ins, (3, 3)))


def _run_blur(outs, out_shapes, _0, _1, ins, in_shapes, _2, _3):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    blur(_image(outs, out_shapes, 0), _image(ins, in_shapes, 0), _drawn(ins, (1,)))


def _square_of(size: int) -> Callable[..., None]:
    def setup(out_shapes, _0, _1, _2, _3, _4, samples):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        for address in _numbers(out_shapes, samples):
            shape = _numbers(address, 3)
            shape[0], shape[1], shape[2] = size, size, 3

    return setup


class _Operator(NumbaFunction):
    """DALI's operator around compiled functions, which it keeps alive."""

    def __init__(self, run_fn: Any, setup_fn: Any, **types_and_shapes: Any) -> None:
        self._compiled = run_fn, setup_fn
        super().__init__(run_fn=run_fn, setup_fn=setup_fn, **types_and_shapes)

    def _get_run_fn_cpu(self, run_fn: Any, *_: object) -> int:
        return int(run_fn.address)

    def _get_setup_fn_cpu(self, setup_fn: Any) -> int:
        return int(setup_fn.address)


@functools.cache
def operator(kernel: Callable[..., None], size: int) -> Callable[[Node, Node], Node]:
    """The DALI operator on the CPU that runs `kernel` on pixels and its parameters, and returns (size, size, 3) pixels.

    The first operator on a machine takes seconds to compile.
    """
    run, dimensions = _ENTRIES[kernel]
    made: Callable[[Node, Node], Node] = _Operator(
        run_fn=kept(lambda cache: cfunc(_RUN, cache=cache)(run)),
        setup_fn=kept(lambda cache: cfunc(_SETUP, cache=cache)(_square_of(size))),
        in_types=[types.UINT8, types.FLOAT],
        ins_ndim=[3, dimensions],
        out_types=[types.UINT8],
        outs_ndim=[3],
    )
    return made


_ENTRIES = {
    cut_window: (_run_cut_window, 1),
    turn: (_run_turn, 2),
    turn_whole: (_run_turn_whole, 2),
    cover: (_run_cover, 1),
    recolour: (_run_recolour, 2),
    standardize: (_run_standardize, 2),
    blur: (_run_blur, 1),
}
