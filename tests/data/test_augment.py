"""The policies and the draws behind them; the pixels they lead to are held in test_operators and test_loader."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from torchvision import transforms

from hemafast.config import TrainConfig
from hemafast.data.augment import ENHANCEMENTS, POLICIES, RANDAUGMENT, Policy, draw_views, named_policy, parts_of
from hemafast.data.geometry import SYMMETRIES
from hemafast.errors import HemafastError

DRAWS = 6000


def _draw(policy: Policy, images: int = DRAWS, packed_size: int = 256, image_size: int = 224, seed: int = 0):
    return draw_views(policy, packed_size, image_size, images, np.random.default_rng(seed))


def _same_distribution(ours, theirs) -> bool:
    return ks_2samp(ours, theirs).pvalue > 0.001


# What each policy draws


def test_basic_draws_every_symmetry_at_even_odds():
    views = _draw(POLICIES["basic"], 8000)
    linear = views.turn[:, :, :2]
    counts = [int((linear == matrix).all(axis=(1, 2)).sum()) for matrix in SYMMETRIES]
    assert sum(counts) == 8000
    assert chisquare(counts).pvalue > 0.001


def test_none_is_the_centre_as_it_is_and_draws_nothing():
    generator = np.random.default_rng(0)
    before = generator.bit_generator.state
    views = draw_views(POLICIES["none"], 64, 56, 5, generator)
    np.testing.assert_array_equal(views.window, np.tile([4, 4, 60, 60], (5, 1)))
    np.testing.assert_array_equal(views.turn, np.tile(np.eye(2, 3), (5, 1, 1)))
    assert generator.bit_generator.state == before


@pytest.mark.parametrize("name", POLICIES)
def test_what_a_policy_says_of_itself_holds_for_its_draws(name):
    policy = POLICIES[name]
    views = _draw(policy, 500)
    sides = views.window[:, 2:] - views.window[:, :2]
    assert policy.sees_fixed_windows == bool((sides == 224).all())
    whole = np.isin(views.turn[:, :, :2], (-1, 0, 1)).all()
    assert policy.moves_whole_pixels == whole
    assert policy.turns == (len(np.unique(views.turn, axis=0)) > 1)
    assert (policy.randaugment_ops > 0) == bool(views.enhance.any())
    assert (policy.erase > 0) == bool(views.erase.any())
    assert policy.mixes_channels == bool(views.stain.any())
    assert (policy.background > 0) == bool(views.background.any())
    assert policy.recolours == bool(views.recolour.any())
    assert (policy.blur > 0) == bool(views.blur.any())


@pytest.mark.parametrize("name", POLICIES)
def test_draws_belong_to_their_image_however_many_there_are_of_them(name):
    """A slice of the draws of an epoch is what a batch sees."""
    views = _draw(POLICIES[name], 50)
    part = views[10:20]
    for field in fields(views):
        np.testing.assert_array_equal(getattr(part, field.name), getattr(views, field.name)[10:20])


NEXT = {
    "seed": 0.841317279612,
    "basic": 0.543624991465,
    "strong": 0.488846036129,
    "lineage": 0.084015343582,
    "none": 0.636961687321,
}
"""What the generator gives after the draws for five images, as in version 0.1.0."""


def test_the_parts_of_a_policy_make_up_the_whole():
    for name, whole in POLICIES.items():
        parts = parts_of({name: whole, "basic": POLICIES["basic"]})
        changes = [
            {one.name: getattr(part, one.name) for one in fields(part) if getattr(part, one.name) != one.default}
            for label, part in parts.items()
            if label.startswith(f"{name}: ")
        ]
        assert all(len(change) == 1 for change in changes)
        assert Policy(**dict(item for change in changes for item in change.items())) == whole


def test_a_magnitude_is_no_change_of_its_own():
    parts = parts_of({"mine": replace(POLICIES["strong"], randaugment_magnitude=20)})
    assert [*parts] == ["mine: crop_area", "mine: symmetry", "mine: randaugment_ops", "mine: erase"]
    assert parts["mine: randaugment_ops"] == Policy(randaugment_ops=2, randaugment_magnitude=20)


@pytest.mark.parametrize("name", NEXT)
def test_policies_of_earlier_versions_draw_what_they_drew(name):
    """Their runs are resumed bit for bit; changes that came later are drawn after all others."""
    generator = np.random.default_rng(0)
    views = draw_views(POLICIES[name], 256, 224, 5, generator)
    assert generator.random() == pytest.approx(NEXT[name], abs=1e-9)
    more = _draw(replace(POLICIES[name], background=1, density=0.5, contrast=0.5, brightness=0.1, blur=2), 5)
    for field in ("window", "turn", "enhance", "weaken", "stain", "erase"):
        np.testing.assert_array_equal(getattr(more, field), getattr(views, field))


def test_changes_to_a_policy_leave_the_rest_of_it_alone():
    changed = named_policy("basic", rotation=15.0, stain=None)
    assert changed == replace(POLICIES["basic"], rotation=15.0)
    assert named_policy("strong") == POLICIES["strong"]


def test_zoom_acts_on_a_window_in_the_centre_too_and_is_refused_beside_crops():
    window = _draw(named_policy("none", zoom=0.1), 500).window
    sides = window[:, 2:] - window[:, :2]
    assert 190 < sides.min() < sides.max() < 247
    np.testing.assert_allclose(window[:, :2] + window[:, 2:], 256, atol=1e-3)
    with pytest.raises(HemafastError, match="zoom"):
        named_policy("seed", zoom=0.1)


def test_every_field_of_a_policy_but_one_can_be_asked_for():
    asked = {field.name for field in fields(TrainConfig)}
    assert {field.name for field in fields(Policy)} - asked == {"crop_ratio", "shift"}


def test_every_policy_is_one_that_can_be_asked_for():
    from typing import get_args

    from hemafast.config import PolicyName

    assert set(get_args(PolicyName)) == set(POLICIES)


# `seed` is the reference


def test_crops_of_seed_are_distributed_as_torchvision_crops():
    window = _draw(POLICIES["seed"]).window
    torch.manual_seed(0)
    image = torch.zeros(3, 256, 256)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(DRAWS)]
    )
    top, left, height, width = theirs.T
    ours_height, ours_width = (window[:, 2:] - window[:, :2]).T
    assert _same_distribution(window[:, 0], top)
    assert _same_distribution(window[:, 1], left)
    assert _same_distribution(ours_height, height)
    assert _same_distribution(ours_width, width)
    assert _same_distribution(ours_height * ours_width, height * width)
    assert _same_distribution(ours_width / ours_height, width / height)


def test_angles_and_flips_of_seed_are_distributed_as_torchvision_draws_them():
    linear = _draw(POLICIES["seed"]).turn[:, :, :2]
    flipped = np.linalg.det(linear) < 0
    assert 0.47 < flipped.mean() < 0.53
    unflipped = np.where(flipped[:, None, None], SYMMETRIES[2] @ linear, linear)
    angles = np.rad2deg(np.arctan2(unflipped[:, 1, 0], unflipped[:, 0, 0]))
    torch.manual_seed(0)
    theirs = [transforms.RandomRotation.get_params([-10, 10]) for _ in range(DRAWS)]
    assert _same_distribution(angles, theirs)
    assert np.abs(angles).max() <= 10


# `strong` is torchvision's RandAugment and RandomErasing


def test_rectangles_are_erased_as_torchvision_erases_them():
    boxes = _draw(replace(POLICIES["none"], erase=0.5)).erase
    shown = boxes[boxes.any(axis=1)]
    assert 0.47 < len(shown) / len(boxes) < 0.53
    torch.manual_seed(0)
    image = torch.zeros(3, 224, 224)
    theirs = np.array(
        [transforms.RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0])[:4] for _ in range(DRAWS)]
    )
    top, left, height, width = theirs.T
    ours_height, ours_width = (shown[:, 2:] - shown[:, :2]).T
    for ours, expected in ((shown[:, 0], top), (shown[:, 1], left), (ours_height, height), (ours_width, width)):
        assert _same_distribution(ours, expected)


def test_the_operations_of_randaugment_are_those_of_torchvision():
    theirs = transforms.RandAugment()._augmentation_space(31, (224, 224))
    names = {name.lower().replace("identity", "as it is").replace("autocontrast", "auto_contrast") for name in theirs}
    spelled = {name.replace("shearx", "shear_x").replace("sheary", "shear_y") for name in names}
    spelled = {name.replace("translatex", "translate_x").replace("translatey", "translate_y") for name in spelled}
    assert spelled == set(RANDAUGMENT)


def test_every_operation_of_randaugment_is_drawn_at_even_odds():
    views = _draw(replace(POLICIES["none"], randaugment_ops=1), 14_000)
    counts = np.bincount(views.enhance[:, 0], minlength=len(ENHANCEMENTS))
    assert counts[0] == pytest.approx(6000, abs=250)  # the identity and the five geometric ones
    assert chisquare(counts[1:]).pvalue > 0.001
    assert views.weaken.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_geometric_operations_are_as_strong_as_those_of_torchvision(magnitude):
    space = transforms.RandAugment()._augmentation_space(31, (224, 224))
    strength = {name: float(values[magnitude]) if values.ndim else 0.0 for name, (values, _) in space.items()}
    policy = replace(POLICIES["none"], randaugment_ops=1, randaugment_magnitude=magnitude)
    turn = _draw(policy, 3000).turn
    shear_x, shear_y = np.abs(turn[:, 0, 1]), np.abs(turn[:, 1, 0])
    rotated = (turn[:, 0, 0] != 1) & (shear_x > 0)
    assert shear_x[~rotated].max() == pytest.approx(strength["ShearX"], abs=1e-5)
    assert shear_y[~rotated].max() == pytest.approx(strength["ShearY"], abs=1e-5)
    assert np.abs(turn[~rotated, 0, 2]).max() == int(strength["TranslateX"])
    assert np.abs(turn[~rotated, 1, 2]).max() == int(strength["TranslateY"])
    angles = np.rad2deg(np.arctan2(turn[rotated, 1, 0], turn[rotated, 0, 0]))
    if magnitude:
        assert np.abs(angles).max() == pytest.approx(strength["Rotate"], abs=1e-3)
        assert {-1, 1} == set(np.sign(angles))


# `robust` imitates other laboratories


def test_crosstalk_mixes_channels_and_leaves_grey_as_it_is():
    stain = _draw(replace(POLICIES["none"], crosstalk=0.3), 300).stain
    np.testing.assert_allclose(stain @ [0.7, 0.7, 0.7, 1.0], np.full((300, 3), 0.7), atol=1e-5)
    others = np.abs(stain[:, 0, 1:3])
    assert 0.25 < others.max() <= 0.3
    purple = stain @ [0.2, 0.9, 0.4, 1.0]
    assert purple.std(axis=0).min() > 0.05


def test_a_share_of_the_images_is_grey():
    stain = _draw(replace(POLICIES["none"], grey=0.25, crosstalk=0.3), 1000).stain
    purple = stain @ [0.2, 0.9, 0.4, 1.0]
    grey = np.ptp(purple, axis=1) < 1e-6
    assert 0.2 < grey.mean() < 0.3
    np.testing.assert_allclose(purple[grey], 0.5, atol=1e-6)


def test_crosstalk_comes_after_the_stains():
    generators = [np.random.default_rng(0) for _ in range(2)]
    stains, both = (
        draw_views(replace(POLICIES["none"], stain=0.05, crosstalk=crosstalk), 64, 40, 4, generator).stain
        for crosstalk, generator in zip((0.0, 0.2), generators, strict=True)
    )
    mixture = both[:, :, :3] @ np.linalg.inv(stains[:, :, :3])
    np.testing.assert_allclose(mixture.sum(axis=2), np.ones((4, 3)), atol=1e-5)
    np.testing.assert_allclose(mixture @ stains, both, atol=1e-5)


# `lineage` is mild


def test_stains_vary_by_no_more_than_was_asked_for():
    stain = _draw(replace(POLICIES["none"], stain=0.05)).stain
    density = np.array([0.2, 0.9, 0.4, 1.0])  # of a purple nucleus
    changed = stain @ density
    assert not np.allclose(changed, density[:3])
    assert np.abs(changed / density[:3] - 1).max() < 0.5
    np.testing.assert_allclose(changed.mean(axis=0), density[:3], atol=0.01)


def test_one_stain_keeps_its_colour_when_its_amount_varies():
    """More haematoxylin is a darker haematoxylin, not another hue."""
    stain = _draw(replace(POLICIES["none"], stain=0.2), 200).stain
    haematoxylin = np.array([0.65, 0.70, 0.29]) / np.linalg.norm([0.65, 0.70, 0.29])
    changed = stain[:, :, :3] @ haematoxylin
    factor = changed @ haematoxylin
    np.testing.assert_allclose(changed, factor[:, None] * haematoxylin, atol=1e-5)
    assert factor.min() > 0.8 - 1e-6
    assert factor.max() < 1.2 + 1e-6


# `robust` is another laboratory


def test_half_of_the_new_backgrounds_are_white_and_a_quarter_the_mean_or_any_colour():
    background = _draw(replace(POLICIES["none"], background=0.4)).background
    radius, white, mean, *added = background.T
    chosen = radius < 224
    assert chosen.mean() == pytest.approx(0.4, abs=0.02)
    assert radius[~chosen].tolist() == [224] * int((~chosen).sum())
    assert _same_distribution(radius[chosen], np.random.default_rng(1).uniform(0.3 * 112, 112, DRAWS))
    assert white[chosen].mean() == pytest.approx(0.5, abs=0.04)
    assert mean[chosen].mean() == pytest.approx(0.25, abs=0.04)
    random = (white == 0) & (mean == 0)
    assert set(np.unique(white + mean)) == {0, 1}
    assert not np.any(np.array(added)[:, ~random])
    assert _same_distribution(np.array(added)[:, random].ravel(), np.random.default_rng(1).uniform(0, 255, DRAWS))


def test_each_channel_varies_by_no_more_than_was_asked_for():
    """And the density of all three together, so that an image becomes darker or lighter as well as tinted."""
    strengths = {"density": 0.6, "contrast": 0.5, "brightness": 0.15}
    density, contrast, brightness = _draw(replace(POLICIES["none"], **strengths)).recolour.transpose(2, 0, 1)
    assert 0.4 * 0.7 <= density.min() < 0.32
    assert 2.0 < density.max() <= 1.6 * 1.3
    assert np.corrcoef(density.T)[0, 1] > 0.5
    assert np.log(contrast).min() == pytest.approx(-0.5, abs=0.01)
    assert np.log(contrast).max() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(contrast.T)[0, 1]) < 0.1
    assert brightness.min() == pytest.approx(-0.15 * 255, abs=0.5)
    assert brightness.max() == pytest.approx(0.15 * 255, abs=0.5)


@pytest.mark.parametrize("alone", ["density", "contrast", "brightness"])
def test_a_channel_keeps_what_is_not_asked_to_change(alone):
    recolour = _draw(replace(POLICIES["none"], **{alone: 0.3}), 50).recolour
    kept = {"density": 1, "contrast": 1, "brightness": 0}
    for column, (name, same) in enumerate(kept.items()):
        assert bool((recolour[:, :, column] == same).all()) == (name != alone)


def test_half_of_the_images_are_blurred():
    sigma = _draw(replace(POLICIES["none"], blur=1.2)).blur[:, 0]
    assert (sigma > 0).mean() == pytest.approx(0.5, abs=0.03)
    assert _same_distribution(sigma[sigma > 0], np.random.default_rng(1).uniform(0, 1.2, DRAWS))


@pytest.mark.parametrize("name", POLICIES)
def test_draws_lie_in_memory_as_dali_reads_them(name):
    """A batch is a slice of them, which is not copied."""
    views = _draw(POLICIES[name], 7)
    for field in fields(views):
        assert getattr(views, field.name)[2:5].flags.c_contiguous, field.name
