"""The diameter of the nucleus in one image, on discs of known size."""

import numpy as np
import pytest

from hemafast.preparation.nuclei import nucleus_diameter


def cell(*lobes, height=120, width=120, cytoplasm=40, noise=0):
    """A cell in the middle: a red cell at its left, and lobes (x, y from the middle, radius)."""
    y, x = np.mgrid[:height, :width]
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    pixels = np.full((height, width, 3), (235, 225, 230), np.uint8)
    pixels[np.hypot(x + 48, y) < 14] = (215, 150, 150)
    pixels[np.hypot(x, y) < cytoplasm] = (190, 180, 215)
    for right, down, radius in lobes:
        pixels[np.hypot(x - right, y - down) < radius] = (95, 55, 130)
    grain = np.random.default_rng(0).normal(0, noise, pixels.shape) if noise else 0
    return (pixels + grain).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("radius", [8, 15, 30])
@pytest.mark.parametrize("noise", [0, 10])
def test_a_round_nucleus_has_its_own_diameter(radius, noise):
    assert nucleus_diameter(cell((0, 0, radius), noise=noise)) == pytest.approx(2 * radius, rel=0.06)


@pytest.mark.parametrize("size", [(120, 200), (200, 120)])
def test_the_middle_of_an_image_that_is_not_square_is_looked_at(size):
    assert nucleus_diameter(cell((0, 0, 20), height=size[0], width=size[1])) == pytest.approx(40, rel=0.06)


def test_lobes_are_taken_together():
    lobes = (-14, 0, 10), (14, 4, 10), (0, 20, 10)
    assert nucleus_diameter(cell(*lobes)) == pytest.approx(20 * np.sqrt(3), rel=0.06)


def test_a_dark_cell_far_from_the_middle_is_left_out():
    assert nucleus_diameter(cell((0, 0, 18), (44, 44, 9))) == pytest.approx(36, rel=0.06)


def test_the_diameter_grows_with_the_image():
    small = cell((0, 0, 15))
    large = np.kron(small, np.ones((3, 3, 1), np.uint8))
    assert nucleus_diameter(large) == pytest.approx(3 * nucleus_diameter(small), rel=0.03)


def _noise(low, high):
    return np.random.default_rng(1).integers(low, high, (90, 80, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((64, 64, 3), 200, np.uint8),
        np.zeros((16, 16, 3), np.uint8),
        _noise(0, 256),
        _noise(120, 124),
        np.repeat(np.linspace(0, 255, 80).astype(np.uint8)[None, :, None], 80, axis=0).repeat(3, axis=2),
        cell((0, 0, 70)),  # reaches the border
        cell((-50, -50, 9)),  # in a corner
        cell((0, 0, 1), cytoplasm=0),  # a speck
    ],
    ids=["white", "black", "noise", "faint noise", "ramp", "too large", "corner", "speck"],
)
def test_an_image_without_a_nucleus_has_none(pixels):
    assert nucleus_diameter(pixels) is None
