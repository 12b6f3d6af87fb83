"""Several classifiers as one module: the mean of their probabilities, whatever each is made of."""

import pytest
import torch

from hemafast.ensemble import Ensemble, resized, single
from hemafast.errors import HemafastError
from hemafast.fuse_norm import fuse_batch_norms
from hemafast.model import build_model

CLASSES = 4


@pytest.fixture(scope="module")
def members():
    """Two networks of other normalisation and image size."""
    torch.manual_seed(0)
    networks = [build_model("test_resnet", CLASSES, 32), build_model("test_efficientnet", CLASSES, 48)]
    networks[1].standardize = True
    networks[1].normalise_by((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    return [network.eval() for network in networks]


def ensemble(members, weights=(0.25, 0.75), order=(0, 1, 2, 3)):
    return Ensemble(members, weights, (1.0, 2.0), (32, 48), 48, ((0, 1, 2, 3), order)).eval()


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_probabilities_are_the_weighted_mean_with_own_size_temperature_and_normalisation(members, pixels):
    small = torch.nn.functional.interpolate(pixels.float(), (32, 32), mode="bilinear", antialias=True)
    wanted = 0.25 * members[0](small).softmax(1) + 0.75 * (members[1](pixels) / 2).softmax(1)
    found = ensemble(members)
    torch.testing.assert_close(found(pixels).softmax(1), wanted)
    logits, features = found.answers(pixels)
    torch.testing.assert_close(logits, found(pixels))
    assert features.shape == (3, sum(member.features(pixels).shape[1] for member in members))


@torch.inference_mode()
def test_classes_of_a_member_in_another_order_are_found_by_place(members, pixels):
    order = (2, 0, 3, 1)
    plain, turned = (ensemble(members, (0.0, 1.0), one)(pixels) for one in ((0, 1, 2, 3), order))
    torch.testing.assert_close(turned, plain[:, list(order)])


@torch.inference_mode()
def test_disagreement_is_the_divergence_of_the_answers(members, pixels):
    assert ensemble([members[1], members[1]], (0.5, 0.5)).discussed(pixels)[2].shape == (3,)
    twins = Ensemble([members[1]] * 2, (0.5, 0.5), (1.0, 1.0), (48, 48), 48, ((0, 1, 2, 3),) * 2).eval()
    assert twins.discussed(pixels)[2].max() < 1e-6
    found = ensemble(members)
    each = torch.stack([found.opinion(place, pixels)[0] for place in (0, 1)])
    mean = 0.25 * each[0] + 0.75 * each[1]
    parts = (each * (each / mean).log()).sum(2)  # divergences of Kullback and Leibler from the mean
    torch.testing.assert_close(found.discussed(pixels)[2], 0.25 * parts[0] + 0.75 * parts[1], atol=1e-6, rtol=1e-4)


@torch.inference_mode()
def test_a_certain_member_gives_no_infinite_logit(members, pixels):
    with torch.no_grad():
        bias = members[0].backbone.get_classifier().bias
        before = bias.clone()
        bias[0] += 1e4
    assert ensemble(members, (1.0, 0.0))(pixels).isfinite().all()
    bias.copy_(before)


@torch.inference_mode()
def test_fused_norms_change_nothing(members, pixels):
    found = ensemble(members)
    before = found(pixels)
    fuse_batch_norms(found)
    torch.testing.assert_close(found(pixels), before, atol=1e-5, rtol=1e-4)


def test_images_of_the_size_are_left_alone(pixels):
    assert resized(pixels, 48, 48) is pixels
    assert resized(pixels, 24, 48).shape == (3, 3, 24, 24)


def test_only_one_network_is_single(members):
    assert single(members[0], "anything") is members[0]
    with pytest.raises(HemafastError, match="cannot be pressed into a cube"):
        single(ensemble(members), "pressed into a cube")
