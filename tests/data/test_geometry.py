"""Windows and turns."""

import numpy as np
import pytest
from PIL import Image

from hemafast.data.geometry import (
    MIRROR,
    SYMMETRIES,
    WINDOW,
    about_centre,
    centre_windows,
    compose,
    random_resized_windows,
    rotations,
    shifted_windows,
    window_side,
)


def test_the_symmetries_are_the_eight_of_the_square():
    assert len({matrix.tobytes() for matrix in SYMMETRIES + 0.0}) == 8  # + 0.0: no negative zeros
    np.testing.assert_array_equal(SYMMETRIES[0], np.eye(2))
    np.testing.assert_array_equal(SYMMETRIES[MIRROR], np.diag([-1, 1]))
    for matrix in SYMMETRIES:
        np.testing.assert_array_equal(matrix @ matrix.T, np.eye(2))
        assert abs(np.linalg.det(matrix)) == pytest.approx(1)


def test_the_symmetries_are_a_group():
    known = {(matrix + 0.0).tobytes() for matrix in SYMMETRIES}
    assert {(a @ b + 0.0).tobytes() for a in SYMMETRIES for b in SYMMETRIES} == known


def test_the_window_is_the_one_of_the_reference():
    assert round(256 * WINDOW) == 224
    assert (window_side(256), window_side(64)) == (224, 56)


@pytest.mark.parametrize("packed_size", [32, 33, 64, 100, 256])
def test_windows_never_leave_the_square(packed_size):
    generator = np.random.default_rng(1)
    for windows in (
        centre_windows(packed_size, 500),
        shifted_windows(packed_size, 500, 0, generator),
        shifted_windows(packed_size, 500, 0.3, generator),
        random_resized_windows(packed_size, 500, (0.08, 1), (3 / 4, 4 / 3), generator),
        random_resized_windows(packed_size, 500, (0.9, 1), (2, 3), generator),
    ):
        assert windows.shape == (500, 4)
        assert windows.dtype == np.float32
        assert windows.min() >= 0
        assert windows.max() <= packed_size
        assert (windows[:, 2:] > windows[:, :2]).all()


def test_shifted_windows_lie_on_every_whole_pixel_at_even_odds():
    windows = shifted_windows(64, 9000, 0, np.random.default_rng(0))
    np.testing.assert_array_equal(windows[:, 2:] - windows[:, :2], 56)
    for axis in range(2):
        counts = np.bincount(windows[:, axis].astype(int), minlength=9)
        assert len(counts) == 9
        assert counts.min() > 850
        assert counts.max() < 1150


def test_zoom_is_a_share_of_the_side():
    windows = shifted_windows(64, 4000, 0.1, np.random.default_rng(0))
    height, width = (windows[:, 2:] - windows[:, :2]).T
    np.testing.assert_allclose(height, width, atol=1e-4)
    assert height.min() == pytest.approx(50.4, abs=0.1)
    assert height.max() == pytest.approx(61.6, abs=0.1)


@pytest.mark.parametrize(("ratio", "side"), [((2.0, 3.0), (50, 100)), ((0.2, 0.5), (100, 50))])
def test_where_no_crop_fits_the_largest_centred_one_is_taken(ratio, side):
    windows = random_resized_windows(100, 50, (0.99, 1.0), ratio, np.random.default_rng(0))
    height, width = side
    top, left = (100 - height) // 2, (100 - width) // 2
    np.testing.assert_array_equal(windows, np.tile([top, left, top + height, left + width], (50, 1)))


def _seen(matrix: np.ndarray, image: np.ndarray) -> np.ndarray:
    """What an image looks like under a map from (x, y, 1) of the output to the input, by Pillow."""
    side = len(image)
    turned = Image.fromarray(image).transform((side, side), Image.Transform.AFFINE, tuple(matrix.flatten()))
    return np.asarray(turned)


def test_rotations_turn_as_torchvision_does(draw):
    from torchvision.transforms import functional

    image = draw(3, 61, 61)
    for degrees in (-170.0, -10.0, 0.0, 7.5, 90.0):
        expected = np.asarray(functional.rotate(Image.fromarray(image), degrees))
        ours = _seen(about_centre(rotations(np.array([degrees])), 61)[0], image)
        assert (ours != expected).any(axis=2).mean() < 0.01  # Pillow rounds the matrix


def test_composed_maps_do_one_after_the_other(draw):
    image = draw(4, 40, 40)
    maps = about_centre(SYMMETRIES, 40)
    for first in range(8):
        for then in range(8):
            both = compose(maps[first : first + 1], maps[then : then + 1])[0]
            np.testing.assert_array_equal(_seen(both, image), _seen(maps[then], _seen(maps[first], image)))
