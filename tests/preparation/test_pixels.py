"""Pixels to squares: exact where nothing is scaled."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from hemafast.preparation.pixels import SquareCutter, centre_windows

SIZE, BATCH = 64, 8


@pytest.fixture(scope="module")
def cutter():
    return SquareCutter((SIZE,), BATCH, 2)


def cut(cutter: SquareCutter, images: list[np.ndarray]) -> list[np.ndarray]:
    """The largest centre square of each image."""
    sizes = np.array([image.shape[:2] for image in images]).reshape(-1, 2)
    found = cutter.cut(images, centre_windows(sizes[:, 1], sizes[:, 0], sizes.min(axis=1, initial=9999)))
    return [square for (square,) in found]


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 96), (91, 64), (64, 1000)])
def test_the_centre_square_is_kept_where_the_short_side_fits(cutter, draw, width, height):
    pixels = draw(0, width, height)
    (square,) = cut(cutter, [pixels])
    top, left = (height - SIZE) / 2, (width - SIZE) / 2
    centres = [pixels[y : y + SIZE, x : x + SIZE] for y in _around(top) for x in _around(left)]
    assert any(np.array_equal(square, centre) for centre in centres)


def _around(offset: float) -> set[int]:
    """The whole offset, or its two neighbours: which one an odd margin gives is the library's choice."""
    return {int(np.floor(offset)), int(np.ceil(offset))}


@pytest.mark.parametrize(("width", "height"), [(128, 128), (192, 160), (40, 40), (50, 77), (360, 363)])
def test_scaling_agrees_with_pillow(cutter, draw, width, height):
    # Smooth, because the side that is cut may be shifted by half a pixel.
    pixels = np.asarray(Image.fromarray(draw(3, width, height)).filter(ImageFilter.GaussianBlur(2)))
    (square,) = cut(cutter, [pixels])
    side = min(width, height)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    expected = np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
    assert np.abs(square.astype(int) - expected).mean() < 2


def test_no_images_are_no_squares(cutter):
    assert cut(cutter, []) == []


def test_order_is_kept_over_batches_of_every_size(cutter, draw):
    pixels = [draw(seed, SIZE, SIZE) for seed in range(BATCH * 2)]
    start = 0
    for count in (BATCH, 1, 3, 4):
        np.testing.assert_array_equal(cut(cutter, pixels[start : start + count]), pixels[start : start + count])
        start += count


def test_a_square_does_not_depend_on_its_neighbours_or_threads(cutter, draw):
    pixels = [draw(seed, 75 + seed, 81) for seed in range(6)]
    alone = [cut(SquareCutter((SIZE,), 1, 1), [image])[0] for image in pixels]
    np.testing.assert_array_equal(cut(cutter, pixels), alone)


def test_squares_stay_as_they_are_while_more_are_cut(cutter, draw):
    pixels = [draw(seed, 90, 80) for seed in range(3 * BATCH)]
    held = [cut(cutter, pixels[start : start + BATCH]) for start in (0, BATCH)]
    copies = [square.copy() for batch in held for square in batch]
    for _ in range(5):
        cut(cutter, pixels[2 * BATCH :])
    np.testing.assert_array_equal([square for batch in held for square in batch], copies)


def test_an_image_of_the_right_size_is_not_changed_and_several_sizes_are_cut_at_once(draw):
    pixels = draw(0, SIZE, SIZE)
    ((small, same),) = SquareCutter((32, SIZE), BATCH, 2).cut([pixels], centre_windows([SIZE], [SIZE], [SIZE]))
    assert small.shape == (32, 32, 3)
    np.testing.assert_array_equal(same, pixels)
