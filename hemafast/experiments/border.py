"""The border of images as numbers: everything but the cell in the centre."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hemafast.data.samples import Samples
from hemafast.preparation.images.image_checks import Pixels
from hemafast.progress import SILENT, Progress, stage

Features = npt.NDArray[np.float64]

BORDER = 0.08
"""Width of a strip, as a share of the side."""

_PERCENTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LEVELS = np.arange(256)


def border_features(parts: Sequence[Samples], *, progress: Progress = SILENT) -> list[Features]:
    """(images, 84) of each part: mean, standard deviation and five percentiles of each colour in each of four strips.

    The strips are the outer `BORDER` of the packed squares: plasma and neighbouring cells, and little of the cell.
    """
    found = [np.empty((len(part), 4 * 3 * (2 + len(_PERCENTILES)))) for part in parts]
    with stage(progress, "reading borders", sum(map(len, parts))):
        for part, rows in zip(parts, found, strict=True):
            for index in range(len(part)):
                rows[index] = _border_of(part.packed[index])
                progress.advance()
    return found


def border_pixels(size: int) -> int:
    """Width of the strips of a square of `size` pixels."""
    return max(1, round(BORDER * size))


def _border_of(square: Pixels) -> Features:
    wide = border_pixels(len(square))
    strips = (square[:wide], square[-wide:], square[:, :wide], square[:, -wide:])
    return np.concatenate([_colours_of(strip.reshape(-1, 3)) for strip in strips])


def _colours_of(pixels: Pixels) -> Features:
    """Mean, deviation and percentiles of uint8 (n, 3), from counts of the 256 levels: ten times faster than sorting."""
    counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
    mean = counts @ _LEVELS / len(pixels)
    deviation = np.sqrt(np.maximum(counts @ _LEVELS**2 / len(pixels) - mean**2, 0))
    reached = counts.cumsum(axis=1)
    levels = [(reached >= share * len(pixels)).argmax(axis=1) for share in _PERCENTILES]
    return np.concatenate([mean, deviation, *levels])
