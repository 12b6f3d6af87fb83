"""Read, verify and decode images, and cut squares out of them, exactly as `prepare` does; in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hemafast.deploy.crops import Crops
from hemafast.deploy.depths import NO_DEPTHS, Depths
from hemafast.deploy.inputs import Image, read_images
from hemafast.preparation.images.depth import Ranges
from hemafast.preparation.images.image_checks import MIN_SIDE, Header, Pixels, check_pixels, refuse_shape, verify_image
from hemafast.preparation.images.kinds import UnreadableImageError
from hemafast.preparation.pixels import SquareDecoder, centre_windows, runs_within, shown_side
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
    decoder = SquareDecoder((size,), batch_size, threads, encoded=images[0].array is None)
    contents = enumerate(zip(images, read_images(images), strict=True))
    readings = (_Reading(row, image.name, data) for row, (image, data) in contents)
    for batch in batches(readings, batch_size, lambda one: len(one.data) if isinstance(one.data, bytes) else 0):
        pool.each(lambda one: _verify(one, depths.of(one.row), min_side), batch)
        _decode([reading for reading in batch if not reading.error], crops, decoder)
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


def _decode(readings: Sequence[_Reading], crops: Crops, decoder: SquareDecoder) -> None:
    """Give each reading its square or its error; decodes as many at once as fit into memory."""
    sizes = [(reading.header.width, reading.header.height) for reading in readings]
    for run in runs_within([width * height for width, height in sizes]):
        some, (widths, heights) = readings[run], np.array(sizes[run]).reshape(-1, 2).T
        shorter = np.minimum(widths, heights)
        asked = crops.asked([reading.row for reading in some], shorter)
        sides = np.where(asked > 0, shown_side(asked, shorter), shorter)
        results = decoder.decode([reading.data for reading in some], centre_windows(widths, heights, sides))
        for reading, result in zip(some, results, strict=True):
            try:
                if isinstance(result, UnreadableImageError):
                    raise result
                check_pixels(reading.data, reading.header, result.full)
                (reading.square,) = result.squares
            except UnreadableImageError as error:
                reading.error = f"{error.kind}: {error}"
