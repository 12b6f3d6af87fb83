"""Find the nucleus of the white cell in the middle of an image, and measure it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from hemafast.preparation.images.image_checks import Pixels

SIDE = 200
"""px: side of the square that is looked at, after scaling."""
_BLUR = 1.5  # px of that square
_NEAR = 0.3  # share of the side within which the centre of a lobe lies from the middle
_SPECK = 30  # px of that square: smaller lobes are specks
_SMALLEST_SHARE = 0.05  # of the side, that the diameter has at least
_LEAST_OF_DARK = 0.3  # share of all dark pixels that the nucleus has at least
_MOST_SCATTERED = 3.0  # mean squared distance from its centre, relative to a disc of the same area
_LEVELS = 128

Mask = npt.NDArray[np.bool_]


def nucleus_diameter(pixels: Pixels) -> float | None:
    """Diameter of the disc that is as large as the nucleus in the middle of an image.

    The nucleus is what belongs to the darkest of three classes of red values (Otsu, IEEE Transactions on Systems, Man,
    and Cybernetics 9:62, 1979): it is blue, and red cells are not. Its lobes are taken together.

    Args:
        pixels: uint8 (height, width, 3). The largest square in the middle is looked at.

    Returns:
        The diameter in px of the image. None if nothing in the middle is darker than the rest, if it reaches the
        border, or if it is scattered as noise is.
    """
    square = middle(pixels[..., 0])
    dark = three_classes(square) == 0
    nucleus = _lobes_in_themiddle(dark)
    area = int(nucleus.sum())
    diameter = 2 * math.sqrt(area / math.pi) / SIDE
    if diameter < _SMALLEST_SHARE or area < _LEAST_OF_DARK * dark.sum() or scatter(nucleus) > _MOST_SCATTERED:
        return None
    return float(diameter * min(pixels.shape[:2]))


def middle(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The largest square in the middle of one channel (height, width), scaled to (SIDE, SIDE) and smoothed."""
    from scipy import ndimage

    side = min(values.shape)
    top, left = ((edge - side) // 2 for edge in values.shape)
    cut = Image.fromarray(np.ascontiguousarray(values[top : top + side, left : left + side]))
    scaled = np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return np.asarray(ndimage.gaussian_filter(scaled, _BLUR))


def three_classes(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """The class of each value, 0 the darkest, of the three with the largest variance between them (Otsu)."""
    levels = values // (256 // _LEVELS)
    counts = np.bincount(levels.ravel(), minlength=_LEVELS)
    counted = np.concatenate([[0.0], np.cumsum(counts)])
    summed = np.concatenate([[0.0], np.cumsum(counts * np.arange(_LEVELS))])

    def spread(begin: npt.NDArray[np.int64] | int, end: npt.NDArray[np.int64] | int) -> npt.NDArray[np.float64]:
        """Share of the levels from `begin` to before `end` in the variance between classes."""
        return np.asarray(np.square(summed[end] - summed[begin]) / np.maximum(counted[end] - counted[begin], 1))

    low, high = np.triu_indices(_LEVELS + 1, k=1)
    best = int(np.argmax(spread(0, low) + spread(low, high) + spread(high, _LEVELS)))
    return np.digitize(levels, [low[best], high[best]]).astype(np.int8)


def _lobes_in_themiddle(dark: Mask) -> Mask:
    """The connected parts that lie near the middle, do not reach the border, and are more than specks."""
    from scipy import ndimage

    parts, found = ndimage.label(dark)
    numbers = np.arange(1, found + 1)
    area = np.bincount(parts.ravel(), minlength=found + 1)[1:]
    centres = np.array(ndimage.center_of_mass(dark, parts, numbers)).reshape(-1, 2)
    near = np.hypot(*(centres - (SIDE - 1) / 2).T) <= _NEAR * SIDE
    border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    return np.isin(parts, numbers[near & (area >= _SPECK) & ~np.isin(numbers, border)])


def scatter(mask: Mask) -> float:
    """Mean squared distance of a mask's pixels from their centre, relative to a disc of the same area: at least 1."""
    places = np.argwhere(mask)
    return float(2 * math.pi * np.square(places - places.mean(axis=0)).sum() / len(places) ** 2)
