"""Read, verify and decode images, and cut squares out of them, exactly as `prepare` does; in batches.

DALI sees pixels only: damaged images may crash its decoders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hemafast.deploy.crops import Crops
from hemafast.deploy.depths import NO_DEPTHS, Depths
from hemafast.deploy.inputs import Image, read_images
from hemafast.preparation.images.depth import Ranges
from hemafast.preparation.images.image_checks import (
    MIN_SIDE,
    Header,
    Pixels,
    pixels_of,
    refuse_one_colour,
    refuse_shape,
    verify_image,
)
from hemafast.preparation.images.kinds import UnreadableImageError
from hemafast.preparation.pixels import SquareCutter, centre_windows, runs_within, shown_side
from hemafast.preparation.threads import Pool, batches

_UNKNOWN = Header(0, 0, "", "")


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """A batch of images, without those that cannot be decoded."""

    rows: tuple[int, ...]
    """Indices of the decoded images among all images, in order."""
    squares: tuple[Pixels, ...]
    """uint8 (size, size, 3) for each row."""
    errors: Mapping[int, str]
    """Why the other images cannot be decoded, by row."""


@dataclass(slots=True)
class _Reading:
    """One image and what is known of it so far."""

    row: int
    name: str
    data: Any
    """Encoded bytes, an array, or the OSError of reading it."""
    error: str = ""
    header: Header = _UNKNOWN
    pixels: Pixels | None = None
    square: Pixels | None = None


def decode_images(
    images: Sequence[Image],
    crops: Crops,
    size: int,
    *,
    depths: Depths = NO_DEPTHS,
    min_side: int = MIN_SIDE,
    batch_size: int,
    threads: int,
    pool: Pool,
) -> Iterator[DecodedBatch]:
    """Squares of `size` pixels that show the `crops` of `images`, all files or all arrays, in batches, in order.

    `depths` says what values of more than 8 bits become. Images with a side below `min_side` px have an error.
    Iterate within `strict_decoders`. Raises HemafastError for a zip that was removed meanwhile.
    """
    cutter = SquareCutter((size,), batch_size, threads)
    contents = enumerate(zip(images, read_images(images), strict=True))
    readings = (_Reading(row, image.name, data) for row, (image, data) in contents)
    for batch in batches(readings, batch_size, lambda one: len(one.data) if isinstance(one.data, bytes) else 0):
        pool.each(lambda one: _verify(one, depths.of(one.row), min_side), batch)
        for run in runs_within([one.header.width * one.header.height for one in batch]):
            pool.each(_decode, batch[run])
            _cut(batch[run], crops, cutter)
        yield DecodedBatch(
            rows=tuple(reading.row for reading in batch if reading.square is not None),
            squares=tuple(reading.square for reading in batch if reading.square is not None),
            errors={reading.row: reading.error for reading in batch if reading.error},
        )


def _verify(reading: _Reading, ranges: Ranges, min_side: int) -> None:
    data = reading.data
    try:
        if isinstance(data, OSError):
            reading.error = data.strerror or str(data)
        elif isinstance(data, np.ndarray):
            reading.header = Header(data.shape[1], data.shape[0], "RGB", "array")
            refuse_shape(data.shape[1], data.shape[0], min_side)
        else:
            reading.header, reading.data = verify_image(data, reading.name, ranges, min_side)
    except UnreadableImageError as error:
        reading.error = f"{error.kind}: {error}"


def _decode(reading: _Reading) -> None:
    """Give it its pixels or its error."""
    if reading.error:
        return
    try:
        if isinstance(reading.data, np.ndarray):
            refuse_one_colour(reading.data)
            reading.pixels = reading.data
        else:
            reading.pixels = pixels_of(reading.header, reading.data)
    except UnreadableImageError as error:
        reading.error = f"{error.kind}: {error}"


def _cut(readings: Sequence[_Reading], crops: Crops, cutter: SquareCutter) -> None:
    """Give each sound reading its square."""
    sound = [(reading, reading.pixels) for reading in readings if reading.pixels is not None]
    heights, widths = np.array([pixels.shape[:2] for _, pixels in sound]).reshape(-1, 2).T
    shorter = np.minimum(widths, heights)
    asked = crops.asked([reading.row for reading, _ in sound], shorter)
    sides = np.where(asked > 0, shown_side(asked, shorter), shorter)
    squares = cutter.cut([pixels for _, pixels in sound], centre_windows(widths, heights, sides))
    for (reading, _), (square,) in zip(sound, squares, strict=True):
        reading.square, reading.pixels = square, None
