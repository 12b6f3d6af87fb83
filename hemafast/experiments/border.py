"""The border of images as numbers: what there is to see without the cell in the middle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from hemafast.data.dataset import Samples
from hemafast.prepare.image_checks import Pixels

Features = npt.NDArray[np.float64]

BORDER = 0.08
"""Share of the side that a strip of the border is wide."""

_PERCENTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LEVELS = np.arange(256)


def border_features(
    parts: Sequence[Samples], on_image: Callable[[int, int], object] = lambda done, images: None
) -> list[Features]:
    """(images, 84) of each part: mean, standard deviation and five percentiles of each colour in each of four strips.

    The strips are the outer `BORDER` of the packed squares, where neighbours and plasma are, and little of the cell.
    """
    images, done, found = sum(map(len, parts)), 0, []
    for part in parts:
        rows = np.empty((len(part), 4 * 3 * (2 + len(_PERCENTILES))))
        for index in range(len(part)):
            rows[index] = _border_of(part.packed[index])
            done += 1
            on_image(done, images)
        found.append(rows)
    return found


def border_pixels(size: int) -> int:
    """How wide the strips of a square of `size` pixels are."""
    return max(1, round(BORDER * size))


def _border_of(square: Pixels) -> Features:
    wide = border_pixels(len(square))
    strips = (square[:wide], square[-wide:], square[:, :wide], square[:, -wide:])
    return np.concatenate([_colours_of(strip.reshape(-1, 3)) for strip in strips])


def _colours_of(pixels: Pixels) -> Features:
    """Mean, deviation and percentiles of uint8 (n, 3), from counts of the 256 levels: ten times as fast as sorting."""
    counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
    mean = counts @ _LEVELS / len(pixels)
    deviation = np.sqrt(np.maximum(counts @ _LEVELS**2 / len(pixels) - mean**2, 0))
    reached = counts.cumsum(axis=1)
    levels = [(reached >= share * len(pixels)).argmax(axis=1) for share in _PERCENTILES]
    return np.concatenate([mean, deviation, *levels])
