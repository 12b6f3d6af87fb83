"""Windows and turns: which part of a square is seen, and in which orientation."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float32]
"""(n, 4): top, left, bottom and right, in pixels."""
Linear = npt.NDArray[np.float32]
"""(n, 2, 2): maps on (x, y) from a place in the view to the place in the window that it shows."""

WINDOW = 7 / 8
"""Side of the window as a share of the packed square: 224 of 256, as in the reference."""

SYMMETRIES: Linear = np.array(
    [[[x, 0], [0, y]] for x in (1, -1) for y in (1, -1)] + [[[0, x], [y, 0]] for x in (1, -1) for y in (1, -1)],
    dtype=np.float32,
)
"""The symmetries of the square as (8, 2, 2) matrices on (x, y); the first is the identity."""
MIRROR = 2
"""Index of the one that swaps left and right."""

_ATTEMPTS = 10  # to draw a crop that fits, as in torchvision


def window_side(packed_size: int) -> int:
    """Side of the window in pixels of the packed square."""
    return round(packed_size * WINDOW)


def centre_windows(packed_size: int, images: int) -> Boxes:
    """The window in the middle of the square."""
    side = window_side(packed_size)
    start = (packed_size - side) // 2
    return np.tile(np.array([start, start, start + side, start + side], np.float32), (images, 1))


def shifted_windows(
    packed_size: int, images: int, zoom: float, generator: np.random.Generator, *, centred: bool = False
) -> Boxes:
    """Windows anywhere in the square, or in its centre, whose side varies by up to the share `zoom`.

    None is larger than the square. Without zoom they lie on whole pixels, all places equally likely.
    """
    side = window_side(packed_size)
    if not zoom:
        corner = generator.integers(0, packed_size - side, size=(images, 2), endpoint=True)
        return np.concatenate([corner, corner + side], axis=1).astype(np.float32)
    sides = np.minimum(side * generator.uniform(1 - zoom, 1 + zoom, (images, 1)), packed_size)
    place = np.full((images, 2), 0.5) if centred else generator.uniform(0, 1, (images, 2))
    corner = place * (packed_size - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def random_resized_windows(
    packed_size: int, images: int, area: tuple[float, float], ratio: tuple[float, float], generator: np.random.Generator
) -> Boxes:
    """Windows with a random share of the square's area and ratio of width to height, as RandomResizedCrop.

    If ten draws leave the square, the largest centred window within the ratios is taken, as in torchvision.
    """
    windows, fits = random_boxes(packed_size, images, area, ratio, generator)
    sizes = np.round(packed_size / np.array([max(1, ratio[0]), max(1, 1 / ratio[1])]))
    corner = (packed_size - sizes) // 2
    windows[~fits] = np.concatenate([corner, corner + sizes])
    return windows


def random_boxes(
    side: int, images: int, area: tuple[float, float], ratio: tuple[float, float], generator: np.random.Generator
) -> tuple[Boxes, npt.NDArray[np.bool_]]:
    """Boxes on whole pixels in a square of `side` pixels, and whether any of ten draws fits into the square.

    `area` is the range of shares of the square; `ratio` is the range of width over height, uniform in the logarithm.
    """
    shape = (images, _ATTEMPTS)
    target = side**2 * generator.uniform(area[0], area[1], shape)
    aspect = np.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1]), shape))
    width, height = np.round(np.sqrt(target * aspect)), np.round(np.sqrt(target / aspect))
    fits = (width > 0) & (width <= side) & (height > 0) & (height <= side)
    row, first = np.arange(images), fits.argmax(axis=1)  # the first draw that fits
    sizes = np.stack([height[row, first], width[row, first]], axis=1)
    corner = np.floor(generator.uniform(0, 1, (images, 2)) * (side - sizes + 1))
    return np.concatenate([corner, corner + sizes], axis=1).astype(np.float32), fits[row, first]


def rotations(degrees: npt.NDArray[np.float64]) -> Linear:
    """Counterclockwise rotations by `degrees`."""
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack([cosine, -sine, sine, cosine], axis=1).reshape(-1, 2, 2).astype(np.float32)


def about_centre(linear: Linear, side: int) -> npt.NDArray[np.float32]:
    """(n, 2, 3) maps on (x, y, 1) that apply `linear` about the centre of a square of `side` pixels."""
    centre = np.full((1, 2, 1), side / 2, dtype=np.float32)
    return np.concatenate([linear, centre - linear @ centre], axis=2)


def compose(first: npt.NDArray[np.float32], then: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(n, 2, 3) maps that change an image by `first`, then by `then`."""
    linear = first[:, :, :2] @ then[:, :, :2]
    shift = first[:, :, :2] @ then[:, :, 2:] + first[:, :, 2:]
    return np.concatenate([linear, shift], axis=2)
