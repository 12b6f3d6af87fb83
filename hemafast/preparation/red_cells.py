"""Find whole red cells in an image, and measure them."""

from __future__ import annotations

import math

from hemafast.preparation.images.image_checks import Pixels
from hemafast.preparation.nuclei import SIDE, Mask, middle, scatter, three_classes

_SMALLEST_SHARE = 0.06  # of the side, that a cell has at least
_LONGEST = 1.5  # a cell's length over its width, at most
_ROUND = 1.06  # mean squared distance from its centre, relative to a disc of the same area, at most
_MOST_DARK = 0.1  # share of a cell that is as dark in red as nuclei are, at most


def red_cell_diameters(pixels: Pixels) -> list[float]:
    """Diameters of the discs that are as large as the whole red cells in an image.

    Red cells are darker than the background in green, round, and without anything as dark in red as a nucleus. Cells
    that touch others, or the border, are not round or not whole.

    Args:
        pixels: uint8 (height, width, 3). The largest square in the middle is looked at.

    Returns:
        Diameters in px of the image; platelets, white cells and specks of dirt may be among them.
    """
    from scipy import ndimage

    stained = three_classes(middle(pixels[..., 1])) < 2
    parts, _ = ndimage.label(stained)
    boxes = [(number, box) for number, box in enumerate(ndimage.find_objects(parts), 1) if _may_be_whole(box)]
    cells = [(box, ndimage.binary_fill_holes(parts[box] == number)) for number, box in boxes]
    round_ones = [(box, cell) for box, cell in cells if scatter(cell) <= _ROUND]
    if not round_ones:
        return []
    dark = three_classes(middle(pixels[..., 0])) == 0
    px = min(pixels.shape[:2]) / SIDE
    return [px * _diameter(cell) for box, cell in round_ones if dark[box][cell].mean() <= _MOST_DARK]


def _may_be_whole(box: tuple[slice, ...]) -> bool:
    """Whether it is inside the square, large enough, and about as long as wide."""
    short, long = sorted(edge.stop - edge.start for edge in box)
    inside = all(edge.start > 0 and edge.stop < SIDE for edge in box)
    return inside and short >= _SMALLEST_SHARE * SIDE and long <= _LONGEST * short


def _diameter(cell: Mask) -> float:
    return 2 * math.sqrt(cell.sum() / math.pi)
