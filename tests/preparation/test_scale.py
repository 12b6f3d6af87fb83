"""Micrometres per pixel from the nuclei of a set of images."""

from dataclasses import replace

import numpy as np
import pytest

from hemafast.demo.cells import ACEVEDO_20, MATEK_19, draw_cell
from hemafast.preparation.images.image_checks import strict_decoders
from hemafast.preparation.scale import (
    Encoded,
    Measured,
    estimate_encoded,
    estimate_from,
    estimate_scale,
    factor_of,
    measure_encoded,
    with_classes,
)

CLASSES = ("eosinophil", "lymphocyte_typical", "metamyelocyte", "monocyte", "neutrophil_banded", "neutrophil_segmented")


def nuclei(diameter, images, *, side=100, seed=0):
    """Images of one size whose nuclei spread about a diameter in px."""
    spread = np.exp(np.random.default_rng(seed).normal(0, 0.2, images))
    return [Measured(side, float(diameter * one)) for one in spread / np.median(spread)]


@pytest.mark.parametrize("stain", [ACEVEDO_20, MATEK_19], ids=lambda stain: stain.name)
def test_drawn_cells_tell_the_scale_that_they_were_drawn_at(stain):
    drawn = [draw_cell(label, stain, np.random.default_rng([3, rank])) for rank, label in enumerate(CLASSES)]
    found = estimate_scale(drawn)
    assert found.um_per_pixel == pytest.approx(stain.um_per_px, rel=0.2)
    assert found.low < stain.um_per_px < found.high
    assert found.holds(stain.um_per_px)
    assert (found.nuclei, found.images) == (6, 6)


def test_the_median_nucleus_has_9_7_um():
    found = estimate_from(nuclei(97, 101))
    assert found.um_per_pixel == pytest.approx(0.1, rel=1e-3)
    assert found.words() == "about 0.1 um/px (0.085 to 0.118), by the nuclei of 101 cells"
    assert found.holds(0.11)
    assert not found.holds(0.2)


def test_the_interval_is_wider_the_fewer_nuclei_there_are_and_allows_15_percent_for_classes():
    widths = [found.high / found.um_per_pixel for n in (5, 30, 3000) if (found := estimate_from(nuclei(50, n)))]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == pytest.approx(1.36, abs=0.01)
    assert widths[1] == pytest.approx(1.21, abs=0.01)
    assert widths[2] == pytest.approx(np.exp(0.15), abs=0.01)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "in 0 of 0 images"),
        (nuclei(50, 1), "in 1 of 1 image"),
        (nuclei(50, 4), "in 4 of 4 images"),
        ([*nuclei(50, 5), *[Measured(100, None)] * 11], "in 5 of 16 images"),
        (nuclei(4, 50), "in 50 of 50 images"),
    ],
)
def test_too_few_or_too_small_nuclei_are_no_measure_and_the_words_say_so(given, said):
    found = estimate_from(given)
    assert (found.um_per_pixel, found.low, found.high) == (None, None, None)
    assert "cannot be estimated" in found.words()
    assert said in found.words()
    assert found.holds(0.1)


def test_images_without_cells_give_no_estimate():
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, (60, 60, 3), dtype=np.uint8) for _ in range(10)]
    flat = [np.full((60, 60, 3), 10 * level, np.uint8) for level in range(10)]
    found = estimate_scale([*noise, *flat, None])
    assert (found.um_per_pixel, found.nuclei, found.images) == (None, 0, 20)


def test_sizes_that_differ_in_scale_have_one_each():
    halved = [*nuclei(100, 30, side=400), *nuclei(50, 30, side=200), *nuclei(60, 5, side=300)]
    found = estimate_from(halved)
    assert found.by_side == {200: pytest.approx(0.194, rel=1e-3), 400: pytest.approx(0.097, rel=1e-3)}


@pytest.mark.parametrize(
    "given",
    [
        [*nuclei(100, 30, side=400), *nuclei(85, 30, side=360)],  # which classes explain as well
        [*nuclei(100, 30, side=400), *nuclei(50, 19, side=200)],  # too few
        [Measured(side, side / 3) for side in range(100, 300)],  # crops along boxes
    ],
)
def test_sizes_share_one_scale_unless_they_surely_differ(given):
    found = estimate_from(given)
    assert found.um_per_pixel is not None
    assert not found.by_side


def test_files_arrays_and_what_cannot_be_read_are_told_apart(draw, encode):
    pixels = [draw(seed, 80, 80) for seed in range(6)]
    given = [encode(one) for one in pixels[:3]] + pixels[3:] + [b"damaged", OSError("gone"), b""]
    with strict_decoders():
        found = estimate_encoded((Encoded(data, "a.png", {}) for data in given), threads=2)
    assert found == estimate_scale(pixels)
    assert found.images == 6


def test_pixels_are_kept_of_what_is_asked_for_and_not_of_very_large_images(draw):
    arrays = [draw(0, 80, 80), draw(1, 80, 80), draw(2, 1001, 1000)]
    asked = [Encoded(array, "a.png", {}, keep=keep) for array, keep in zip(arrays, (True, False, True), strict=True)]
    found = measure_encoded(asked, threads=1)
    assert [one.pixels is not None for one in found] == [True, False, False]
    assert [one.side for one in found] == [80, 80, 1000]


# Red cells


def with_red_cells(images, diameter, each, *, spread=0.1, seed=1):
    """The same images with so many red cells each, spread about a diameter in px."""
    sizes = diameter * np.exp(np.random.default_rng(seed).normal(0, spread, (len(images), each)))
    return [replace(one, red_cells=own.tolist()) for one, own in zip(images, sizes, strict=True)]


def test_red_cells_draw_the_estimate_to_theirs_and_narrow_its_interval():
    alone = estimate_from(nuclei(130, 40))  # of one class with large nuclei: 0.075 um/px, and 0.1 is true
    found = estimate_from(with_red_cells(nuclei(130, 40), 71, 2))
    assert alone.um_per_pixel == pytest.approx(0.0746, rel=1e-2)
    assert found.by_red_cells == pytest.approx(0.1, rel=0.03)
    assert 0.085 < found.um_per_pixel < found.by_red_cells
    assert found.high / found.low < 0.9 * alone.high / alone.low
    assert found.words().endswith("by the nuclei of 40 cells and 80 red cells")


@pytest.mark.parametrize(
    "red",
    [
        {"diameter": 71, "each": 0},
        {"diameter": 71, "each": 2, "spread": 0.3},  # of many sizes: no red cells
        {"diameter": 20, "each": 2},  # platelets
        {"diameter": 200, "each": 2},
    ],
)
def test_what_cannot_be_red_cells_changes_nothing(red):
    plain = nuclei(97, 40)
    assert estimate_from(with_red_cells(plain, **red)) == estimate_from(plain)
    assert estimate_from([*with_red_cells(plain[:4], 71, 2), *plain[4:]]) == estimate_from(plain)  # too few


def test_sizes_that_differ_in_scale_have_no_red_cells_in_common():
    sizes = [*nuclei(100, 30, side=400), *nuclei(50, 30, side=200)]
    assert estimate_from(with_red_cells(sizes, 60, 2)) == estimate_from(sizes)


def test_red_cells_have_a_part_beside_classes_once():
    first = estimate_from(with_red_cells(nuclei(130, 40), 71, 2))
    found = with_classes(first, 0.1 / first.um_per_pixel, 40)  # by which the nuclei would say 0.1
    assert found.um_per_pixel == pytest.approx(0.1, rel=0.02)
    assert found.high / found.low < first.high / first.low
    assert found.words().endswith("by the nuclei of 40 cells, 80 red cells and the predicted classes of 40")


# Classes


SIZES = (8.0, None, 14.0)


def sure(label, cells):
    return np.eye(3)[[label] * cells]


def test_nuclei_are_compared_with_those_of_their_classes():
    assert factor_of(np.full(5, 8.0), sure(0, 5), SIZES) == pytest.approx(1)
    assert factor_of(np.full(5, 10.0), sure(0, 5), SIZES) == pytest.approx(0.8)
    mixed = np.array([10.0, 17.5, 10.0, 17.5, 99.0])
    assert factor_of(mixed, np.eye(3)[[0, 2, 0, 2, 2]], SIZES) == pytest.approx(0.8)
    doubtful = np.tile([0.5, 0.0, 0.5], (5, 1))  # between the two, in the logarithm
    assert factor_of(np.full(5, 10.0), doubtful, SIZES) == pytest.approx(np.sqrt(8 * 14) / 10)


def test_cells_whose_class_is_not_known_or_has_no_size_are_no_measure():
    assert factor_of(np.full(4, 8.0), sure(0, 4), SIZES) is None
    assert factor_of(np.full(9, 8.0), np.full((9, 3), 1 / 3), SIZES) is None
    assert factor_of(np.full(9, 8.0), np.full((9, 3), np.nan), SIZES) is None
    assert factor_of(np.full(9, 8.0), sure(1, 9), SIZES) is None
    assert factor_of(np.full(9, 8.0), sure(0, 9), (None, None, None)) is None
    some = np.concatenate([sure(0, 5), sure(1, 10)])
    assert factor_of(np.array([10.0] * 5 + [1.0] * 10), some, SIZES) == pytest.approx(0.8)
    assert factor_of(np.full(16, 10.0), np.concatenate([some, sure(1, 1)]), SIZES) is None  # less than a third


@pytest.mark.parametrize(("diameter", "factor"), [(2.0, 1.5), (50.0, 1 / 1.5)])
def test_no_factor_is_larger_than_one_class_explains(diameter, factor):
    assert factor_of(np.full(9, diameter), sure(0, 9), SIZES) == pytest.approx(factor)


def test_an_estimate_with_classes_is_narrower_and_says_so():
    first = estimate_from([*nuclei(100, 30, side=400), *nuclei(50, 30, side=200)])
    found = with_classes(first, 1.2, 30)
    assert found.um_per_pixel == pytest.approx(1.2 * first.um_per_pixel, abs=1e-5)
    assert found.by_side == {side: pytest.approx(1.2 * one, abs=1e-5) for side, one in first.by_side.items()}
    assert found.high / found.um_per_pixel == pytest.approx(1.15, abs=0.01)
    assert found.um_per_pixel / found.low == pytest.approx(1.15, abs=0.01)
    assert found.words().endswith("by the nuclei of 60 cells and the predicted classes of 30")
    widths = [with_classes(first, 1.0, cells).high / first.um_per_pixel for cells in (5, 150)]
    assert widths == [pytest.approx(1.22, abs=0.01), pytest.approx(1.13, abs=0.01)]
