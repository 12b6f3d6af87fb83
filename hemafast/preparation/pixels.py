"""Decode images to square uint8 pixels, in the same way for preparation, training and prediction."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from hemafast.preparation.images.image_checks import Pixels

Node = Any  # nvidia.dali.data_node.DataNode; DALI ships no usable annotations
Windows = npt.NDArray[np.float32]
"""(n, 4): top, left, bottom and right of the part of each image that is kept, in px of the image."""

MAX_PACKED_BYTES = 2 * 10**9
"""Largest file of packed squares: smaller files suit object stores, older file systems and partial copies."""
_MOST_REPEATED = 3  # side of a window, as a multiple of the side of its image
_MAX_BATCH_PIXELS = 64 * 10**6  # decoded at once: 192 MB


def centre_windows(width: npt.ArrayLike, height: npt.ArrayLike, side: npt.ArrayLike) -> Windows:
    """Centre squares of `side` px in images of `width` by `height` px, each an array of n numbers.

    A square that is larger than its image goes beyond it, and `cut_window` repeats the edges of the image there: so its
    cell has the same size as in other images, instead of filling the square.
    """
    edges = np.stack([np.asarray(height), np.asarray(width)], axis=1).astype(np.int64)
    sides = np.asarray(side, dtype=np.int64)[:, None]
    start = (edges - sides) // 2
    return np.concatenate([start, start + sides], axis=1).astype(np.float32)


def shown_side(window: npt.ArrayLike, shorter: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Side in px of the square that is shown of images with the shorter sides `shorter`, for windows of that many px.

    An image that is smaller than its window keeps its scale, and its edges are repeated. Where it is smaller than a
    third of it, 8 um of the usual 25, no white cell would fit into it: the scale must be wrong, and it is shown whole.
    """
    window, shorter = np.asarray(window, np.int64), np.asarray(shorter, np.int64)
    return np.where(window <= _MOST_REPEATED * shorter, window, shorter)


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a GPU shares the decoding of JPEGs with the host. The defaults are DALI's; no card has measured others."""

    hw_decoder_load: float = 0.65
    """Share of them that the hardware decoder takes, where a card has one."""
    hybrid_huffman_threshold: int = 1_000_000
    """Pixels of an image above which the card takes a part of the Huffman decoding; below, the host does all of it."""


def decode_image(encoded: Node, device: str, decoding: Decoding = Decoding(), part: Node | None = None) -> Node:
    """DALI op from encoded bytes to upright RGB pixels: uint8 (height, width, 3) on `device` ("cpu" or "gpu").

    On a CPU `decoding` has no effect. There, a `part` of an image (top, left, bottom, right), int32, may be all that is
    decoded of it.
    """
    from nvidia.dali import fn, types

    if part is not None:
        ends = {"start": part[0:2], "end": part[2:4], "axis_names": "HW"}
        return fn.decoders.image_slice(encoded, output_type=types.RGB, **ends)
    where: dict[str, Any] = {"device": "cpu"}
    if device == "gpu":
        # Interpolate colours as libjpeg-turbo does on a CPU, where there is no choice.
        where = {"device": "mixed", "jpeg_fancy_upsampling": True, **asdict(decoding)}
    return fn.decoders.image(encoded, output_type=types.RGB, **where)


def cut_window(pixels: Node, window: Node, size: int, *, compiled: bool) -> Node:
    """DALI op from an image to the square of `size` pixels that shows its window (a row of Windows).

    Returns a node of uint8 (size, size, 3). Where the window goes beyond the image, its edges are repeated. Scaling is
    bilinear with antialiasing, by DALI's own operator or by a `compiled` kernel, which is three to four times faster on
    a CPU. Tests compare the two.
    """
    from nvidia.dali import fn, types

    if compiled:
        from hemafast import kernels

        return fn.reshape(kernels.operator(kernels.cut_window, size)(pixels, window), layout="HWC")
    return fn.resize(
        pixels,
        roi_start=window[0:2],
        roi_end=window[2:4],
        size=(size, size),
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )


class SquareCutter:
    """Cuts squares of several sizes out of decoded images, with DALI on the CPU."""

    def __init__(self, sizes: Sequence[int], batch_size: int, threads: int) -> None:
        from nvidia.dali import Pipeline, fn

        # Dynamic: the caller owns the outputs.
        executor = {"prefetch_queue_depth": 1, "exec_dynamic": True}
        with Pipeline(batch_size, threads, device_id=None, **executor) as self._pipeline:
            pixels = fn.external_source(name="pixels", no_copy=True, layout="HWC")
            window = fn.external_source(name="window", ndim=1)
            self._pipeline.set_outputs(*(cut_window(pixels, window, size, compiled=True) for size in sizes))

    def cut(self, images: Sequence[Pixels], windows: Windows) -> list[tuple[Pixels, ...]]:
        """The squares of at most batch_size images, uint8 (height, width, 3): (size, size, 3) for each size.

        The arrays are DALI's memory, which it does not reuse while they are referenced.
        """
        if not images:
            return []
        self._pipeline.feed_input("pixels", [np.ascontiguousarray(image) for image in images])
        self._pipeline.feed_input("window", windows)
        tensors = [np.asarray(output.as_tensor()) for output in self._pipeline.run()]
        return list(zip(*tensors, strict=True))


def hash_squares(squares: Iterable[Any]) -> str:
    """XXH3 (128 bits) over the pixels of squares, one after the other.

    It notices damage as sha256 does, in a tenth of the time. The sha256 of the original bytes guards against forgery.
    """
    digest = xxhash.xxh3_128()
    for square in squares:
        digest.update(square)
    return digest.hexdigest()


def runs_within(pixels: Sequence[int]) -> list[slice]:
    """Cut a list of images, given their numbers of pixels, into runs that fit the memory when decoded."""
    cuts, total = [0], 0
    for index, count in enumerate(pixels):
        total += count
        if total > _MAX_BATCH_PIXELS and index > cuts[-1]:
            cuts.append(index)
            total = count
    return [slice(start, stop) for start, stop in zip(cuts, [*cuts[1:], len(pixels)], strict=True)]


class SquareFiles:
    """Packed squares of one size in .npy files of at most MAX_PACKED_BYTES, written in any order by any thread.

    They are those of the rows `rows` of the manifest, all of them or a stretch.

    Rows that were never written are zero. The files are not memory-mapped for writing, because the pages of a map
    count as memory of the process.
    """

    def __init__(self, folder: Path, size: int, rows: range, *, there: bool = False) -> None:
        """With `there`, open finished files for reading. Raises ValueError if one has another header or length."""
        self._square_bytes = 3 * size * size
        self._rows_per_file = rows_per_file(size)
        self._first = rows.start
        self._files: list[tuple[int, int]] = []  # descriptor, length of the header
        for index, start in enumerate(range(0, len(rows), self._rows_per_file)):
            rows_here = min(self._rows_per_file, len(rows) - start)
            header = packed_header(rows_here, size)
            name, length = packed_name(size, index), len(header) + self._square_bytes * rows_here
            file = os.open(folder / name, os.O_RDONLY if there else os.O_RDWR | os.O_CREAT, 0o644)
            self._files.append((file, len(header)))
            if not there:
                os.pwrite(file, header, 0)
                os.ftruncate(file, length)
            elif os.fstat(file).st_size != length or os.pread(file, len(header), 0) != header:
                raise ValueError(f"{name} has another length or header")

    def __enter__(self) -> SquareFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for file, _header_size in self._files:
            os.close(file)

    def write(self, row: int, square: Pixels | bytes) -> None:
        """Write a square, uint8 (size, size, 3) or its bytes, as row `row`. Raises OSError if the disk is full."""
        file, offset = self._place(row)
        view = memoryview(square) if isinstance(square, bytes) else np.ascontiguousarray(square).data.cast("B")
        while view:
            written = os.pwrite(file, view, offset)
            view, offset = view[written:], offset + written

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        for file, _ in self._files:
            os.fdatasync(file)

    def read(self, row: int) -> bytes:
        """The bytes of the square at row `row`."""
        file, offset = self._place(row)
        return os.pread(file, self._square_bytes, offset)

    def _place(self, row: int) -> tuple[int, int]:
        index, within = divmod(row - self._first, self._rows_per_file)
        file, header_bytes = self._files[index]
        return file, header_bytes + within * self._square_bytes


def packed_name(size: int, index: int) -> str:
    """Name of one file of packed squares."""
    return f"{size}-{index:05d}.npy"


def rows_per_file(size: int) -> int:
    """Number of squares per file of packed squares."""
    return max(1, MAX_PACKED_BYTES // (3 * size * size))


def packed_header(rows: int, size: int) -> bytes:
    """The bytes before the pixels in a .npy file of uint8 (rows, size, size, 3)."""
    stream, shape = io.BytesIO(), (rows, size, size, 3)
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()
