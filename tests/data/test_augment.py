"""The policies and the draws behind them; the pixels they lead to are held in test_loader."""

import numpy as np
import pytest

from hemafast.data.augment import POLICIES, SYMMETRIES, Views, draw_views, warp_matrices, window_side


def test_the_symmetries_are_the_eight_of_the_square():
    assert len({matrix.tobytes() for matrix in SYMMETRIES + 0.0}) == 8  # + 0.0: no negative zeros
    np.testing.assert_array_equal(SYMMETRIES[0], np.eye(2))
    for matrix in SYMMETRIES:
        np.testing.assert_array_equal(matrix @ matrix.T, np.eye(2))
        assert abs(np.linalg.det(matrix)) == pytest.approx(1)


def test_the_symmetries_are_a_group():
    known = {(matrix + 0.0).tobytes() for matrix in SYMMETRIES}
    assert {(a @ b + 0.0).tobytes() for a in SYMMETRIES for b in SYMMETRIES} == known


def test_the_window_is_seven_eighths():
    assert (window_side(256), window_side(64)) == (224, 56)


def test_basic_draws_every_window_and_symmetry_at_even_odds():
    views = draw_views(POLICIES["basic"], 64, 9000, np.random.default_rng(0))
    for axis in range(2):
        counts = np.bincount(views.corner[:, axis].astype(int), minlength=9)
        assert len(counts) == 9
        assert counts.min() > 850
        assert counts.max() < 1150
    counts = np.bincount(views.symmetry, minlength=8)
    assert len(counts) == 8
    assert counts.min() > 1000
    assert counts.max() < 1250


def test_none_is_the_centre_as_it_is_and_draws_nothing():
    generator = np.random.default_rng(0)
    before = generator.bit_generator.state
    views = draw_views(POLICIES["none"], 64, 5, generator)
    np.testing.assert_array_equal(views.corner, np.full((5, 2), 4))
    np.testing.assert_array_equal(views.symmetry, np.zeros(5))
    assert generator.bit_generator.state == before


@pytest.mark.parametrize("packed_size", [32, 33, 64, 100, 256])
def test_the_window_never_leaves_the_square(packed_size):
    for policy in POLICIES.values():
        corner = draw_views(policy, packed_size, 500, np.random.default_rng(1)).corner
        assert corner.min() >= 0
        assert corner.max() + window_side(packed_size) <= packed_size


@pytest.mark.parametrize("image_size", [56, 40, 41])
def test_warps_map_the_output_square_onto_the_window(image_size):
    views = Views(np.full((8, 2), [3, 5], np.float32), np.arange(8))
    matrices = warp_matrices(views, 64, image_size)
    assert matrices.dtype == np.float32
    corners = np.array([[x, y, 1] for x in (0, image_size) for y in (0, image_size)], np.float32)
    shift = np.array([5, 3]) if image_size == 56 else np.zeros(2)  # (x, y), of (top, left) = (3, 5)
    expected = {tuple(corner[:2] + shift) for corner in corners}
    for matrix in matrices:
        assert {tuple(point) for point in corners @ matrix.T} == expected
