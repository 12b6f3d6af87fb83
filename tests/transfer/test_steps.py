"""What is changed without labels: each change does what it says, to a copy, and is one of ordinary weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hemafast.engine.home import white_point
from hemafast.errors import HemafastError
from hemafast.model import build_model, last_layer
from hemafast.transfer import steps


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model("test_resnet", 3, 32).eval()


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(40, 120, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_matched_white_point_is_seen_as_the_wanted_one(network, pixels):
    measured = white_point(pixels)
    assert measured.tolist() == pytest.approx([112, 112, 112], abs=3)
    changed = steps.match_white(network, measured, 2 * measured)
    with torch.inference_mode():
        torch.testing.assert_close(changed(pixels), network(2 * pixels), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(changed(pixels), network(pixels))


def test_the_gain_of_a_channel_is_bounded(network):
    changed = steps.match_white(network, torch.tensor([0.0, 1.0, 255.0]), torch.tensor([250.0, 250.0, 1.0]))
    gains = [before / after for before, after in zip(network.std, changed.std, strict=True)]
    assert gains == pytest.approx([4, 4, 0.25])


def test_sharpened_answers_are_surer_and_as_frequent_as_expected(network, pixels):
    expected = np.array([0.2, 0.3, 0.5])
    changed = steps.sharpen(network, pixels, expected)
    with torch.inference_mode():
        before, after = (one(pixels).softmax(1) for one in (network, changed))
    assert torch.special.entr(after).sum(1).mean() < torch.special.entr(before).sum(1).mean()
    off = [float((found.mean(0) - torch.from_numpy(expected)).abs().sum()) for found in (before, after)]
    assert off[1] < off[0]


def test_answers_that_are_certain_leave_the_network_finite(pixels):
    network = build_model("test_resnet", 3, 32).eval()
    last_layer(network).weight.data *= 1e6
    with torch.inference_mode():
        assert (network(pixels).softmax(1) == 0).any()
    changed = steps.sharpen(network, pixels, np.full(3, 1 / 3))
    assert all(value.isfinite().all() for value in changed.state_dict().values())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_sharpening_changes_scales_and_shifts_of_norms_and_nothing_else(name, pixels):
    network = build_model(name, 3, 32).eval()
    network.quarter_turns = True
    changed = steps.sharpen(network, pixels, np.full(3, 1 / 3))
    of_norms = {id(value) for norm in steps._norms(network) for value in norm.parameters()}
    names = {name for name, value in network.named_parameters() if id(value) in of_norms}
    after = changed.state_dict()
    assert {key for key, value in network.state_dict().items() if not torch.equal(value, after[key])} == names
    assert changed.quarter_turns


def test_sharpening_has_no_randomness(network, pixels):
    first, second = (steps.sharpen(network, pixels, np.full(3, 1 / 3)).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_changes_are_made_to_a_copy(network, pixels):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    mean = network.mean
    steps.sharpen(network, pixels, np.full(3, 1 / 3))
    steps.match_white(network, torch.full((3,), 100.0), torch.full((3,), 200.0))
    assert network.mean == mean
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_a_network_expects_depends_on_what_it_was_shown_and_on_its_loss():
    counts = np.array([90, 10, 0])
    natural = steps.learned_shares(counts, 0.0, 0.0)
    assert natural.tolist() == pytest.approx([90 / 101, 10 / 101, 1 / 101])
    assert steps.learned_shares(counts, 1.0, 0.0).tolist() == pytest.approx([1 / 3] * 3)
    assert steps.learned_shares(counts, 0.0, 1.0).tolist() == pytest.approx([1 / 3] * 3)
    assert steps.learned_shares(counts, 0.5, 0.0).tolist() == pytest.approx(((natural + 1 / 3) / 2).tolist())


def test_a_new_last_layer_answers_for_more_classes(network, pixels):
    features = steps.features_of(network, pixels)
    weights, bias = torch.randn(5, features.shape[1]), torch.randn(5)
    with torch.inference_mode():
        torch.testing.assert_close(
            steps.expand(network, weights, bias)(pixels), features @ weights.T + bias, atol=1e-4, rtol=1e-4
        )


def test_a_network_whose_last_layer_is_not_linear_is_refused():
    backbone = SimpleNamespace(get_classifier=torch.nn.Identity)
    with pytest.raises(HemafastError, match="The last layer of this network is Identity"):
        last_layer(SimpleNamespace(backbone=backbone))
