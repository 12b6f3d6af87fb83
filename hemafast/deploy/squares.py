"""Images to squares of pixels: read, verified and decoded just as `prepare` does it, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hemafast.deploy.images import Image, read_images
from hemafast.deploy.windows import Windows
from hemafast.prepare.image_checks import (
    Header,
    Pixels,
    UnreadableImageError,
    refuse_other_pixels,
    verify_image,
)
from hemafast.prepare.pixels import SquareDecoder, centre_windows, runs_within
from hemafast.prepare.threads import Pool

_BATCH_BYTES = 64 * 2**20  # encoded; a batch of larger files is shorter
_UNKNOWN = Header(0, 0, "", "")


@dataclass(frozen=True, slots=True)
class Squares:
    """A batch of images, decoded as far as they can be."""

    rows: tuple[int, ...]
    """Which of all images these are, in order."""
    pixels: tuple[Pixels, ...]
    """uint8 (size, size, 3) for each row."""
    errors: Mapping[int, str]
    """What is wrong with the others, by row."""


@dataclass(slots=True)
class _Reading:
    """One image on its way."""

    row: int
    name: str
    data: bytes = b""
    error: str = ""
    header: Header = _UNKNOWN
    square: Pixels | None = None


def read_squares(
    images: Sequence[Image], windows: Windows, size: int, *, batch_size: int, threads: int, pool: Pool
) -> Iterator[Squares]:
    """Squares of `size` pixels that show the `windows` of `images`, in batches, in order.

    To be iterated within `strict_decoders`. Raises HemafastError for a zip that has gone meanwhile.
    """
    decoder = SquareDecoder((size,), batch_size, threads)
    for batch in _batches(images, batch_size):
        pool.each(_verify, batch)
        _decode([reading for reading in batch if not reading.error], windows, decoder)
        yield Squares(
            rows=tuple(reading.row for reading in batch if reading.square is not None),
            pixels=tuple(reading.square for reading in batch if reading.square is not None),
            errors={reading.row: reading.error for reading in batch if reading.error},
        )


def _batches(images: Sequence[Image], batch_size: int) -> Iterator[list[_Reading]]:
    batch: list[_Reading] = []
    size = 0
    for row, (image, data) in enumerate(zip(images, read_images(images), strict=True)):
        if isinstance(data, OSError):
            batch.append(_Reading(row, image.name, error=data.strerror or str(data)))
        else:
            batch.append(_Reading(row, image.name, data))
            size += len(data)
        if len(batch) == batch_size or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _verify(reading: _Reading) -> None:
    if reading.error:
        return
    try:
        reading.header = verify_image(reading.data, reading.name)
    except UnreadableImageError as error:
        reading.error = f"{error.kind}: {error}"


def _decode(readings: Sequence[_Reading], windows: Windows, decoder: SquareDecoder) -> None:
    """Give each reading its square, or what is wrong with it; as many at once as fit the memory."""
    sizes = [(reading.header.width, reading.header.height) for reading in readings]
    for run in runs_within([width * height for width, height in sizes]):
        some, (widths, heights) = readings[run], np.array(sizes[run]).reshape(-1, 2).T
        shorter = np.minimum(widths, heights)
        asked = windows.sides[[reading.row for reading in some]]
        sides = np.where(asked > 0, np.minimum(asked, shorter), shorter)
        results = decoder.decode([reading.data for reading in some], centre_windows(widths, heights, sides))
        for reading, result in zip(some, results, strict=True):
            try:
                if isinstance(result, UnreadableImageError):
                    raise result
                refuse_other_pixels(reading.data, reading.header, result.full)
                (reading.square,) = result.squares
            except UnreadableImageError as error:
                reading.error = f"{error.kind}: {error}"
