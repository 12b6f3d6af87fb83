"""The diameters of whole red cells in one image, on discs of known size."""

import numpy as np
import pytest

from hemafast.demo.cells import ACEVEDO_20, draw_cell
from hemafast.preparation.red_cells import red_cell_diameters

PALE, RED, DARK = (238, 226, 225), (212, 160, 162), (95, 55, 130)


def smear(*cells, size=(200, 200), noise=0, colour=RED):
    """A white cell in the middle, and discs (x, y from the left top, radius)."""
    y, x = np.mgrid[: size[0], : size[1]]
    pixels = np.full((*size, 3), PALE, np.uint8)
    pixels[np.hypot(x - size[1] / 2, y - size[0] / 2) < 40] = (190, 175, 215)
    pixels[np.hypot(x - size[1] / 2, y - size[0] / 2) < 26] = DARK
    for across, down, radius in cells:
        pixels[np.hypot(x - across, y - down) < radius] = colour
    grain = np.random.default_rng(0).normal(0, noise, pixels.shape) if noise else 0
    return (pixels + grain).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("noise", [0, 8])
def test_whole_cells_have_their_own_diameters(noise):
    found = red_cell_diameters(smear((30, 30, 18), (165, 35, 20), (35, 165, 22), noise=noise))
    assert sorted(found) == pytest.approx([36, 40, 44], rel=0.06)


def test_a_pale_middle_is_part_of_the_cell():
    pixels = smear((30, 30, 20), (165, 165, 20))
    y, x = np.mgrid[:200, :200]
    pixels[np.hypot(x - 30, y - 30) < 8] = PALE
    assert red_cell_diameters(pixels) == pytest.approx([40, 40], rel=0.06)


@pytest.mark.parametrize(
    "cells",
    [
        [(5, 100, 18)],  # reaches the border
        [(30, 30, 18), (55, 30, 18)],  # touches another one
        [(30, 30, 3)],  # a speck
        [(70, 70, 20)],  # touches the white cell
    ],
)
def test_what_is_not_whole_is_no_measure(cells):
    assert red_cell_diameters(smear(*cells)) == []


def test_a_nucleus_is_no_red_cell():
    assert red_cell_diameters(smear((30, 30, 18), colour=DARK)) == []


def test_diameters_grow_with_the_image_and_the_middle_square_is_looked_at():
    small = smear((90, 30, 18), size=(200, 320))
    large = np.kron(small, np.ones((2, 2, 1), np.uint8))
    assert red_cell_diameters(small) == pytest.approx([36], rel=0.06)
    assert red_cell_diameters(large) == pytest.approx([72], rel=0.06)


@pytest.mark.parametrize("pixels", [np.full((64, 64, 3), 200, np.uint8), np.zeros((16, 16, 3), np.uint8)])
def test_an_empty_image_has_none(pixels):
    assert red_cell_diameters(pixels) == []


def test_drawn_red_cells_have_the_size_that_they_were_drawn_in():
    found = []
    for seed in range(8):
        found += red_cell_diameters(draw_cell("monocyte", ACEVEDO_20, np.random.default_rng([5, seed])))
    assert len(found) >= 5
    assert np.median(found) * ACEVEDO_20.um_per_px == pytest.approx(7.6, rel=0.1)  # radii about 3.8 um
