"""The mean of weights, and batch norms that are measured anew where they were learned."""

import copy

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from hemafast.deploy.soup import mean_of_weights, reestimate_norms
from hemafast.model import build_model


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return [build_model("test_resnet", 3, 32).eval() for _ in range(3)]


@pytest.fixture
def batches():
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=draw) for _ in range(3)]


def norms(network):
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def test_weights_are_means_and_the_networks_stay(networks):
    before = copy.deepcopy(networks[0].state_dict())
    soup = mean_of_weights(networks).state_dict()
    for name, tensor in soup.items():
        each = torch.stack([network.state_dict()[name] for network in networks])
        torch.testing.assert_close(tensor, each.mean(0) if tensor.is_floating_point() else each[0])
        assert torch.equal(networks[0].state_dict()[name], before[name])


def test_a_soup_of_one_network_is_that_network(networks):
    soup = mean_of_weights([networks[0], copy.deepcopy(networks[0])])
    assert all(torch.equal(tensor, networks[0].state_dict()[name]) for name, tensor in soup.state_dict().items())


def test_statistics_are_those_of_the_images(networks, batches):
    network = networks[0]
    count = reestimate_norms(network, batches)
    first = norms(network)[0]
    assert count == len(norms(network))
    seen = []
    hook = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        for images in batches:
            network(images)
    hook.remove()
    wanted = torch.stack([one.mean((0, 2, 3)) for one in seen]).mean(0)
    torch.testing.assert_close(first.running_mean, wanted, atol=1e-4, rtol=1e-3)
    assert not network.training and first.momentum == pytest.approx(0.1)


def test_frozen_norms_stay_as_they_are(networks, batches):
    network = networks[0]
    network.freeze(norm=True)
    before = copy.deepcopy(network.state_dict())
    assert reestimate_norms(network, batches) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_quarter_turns_are_left_out_meanwhile_and_standardizing_is_not(networks, batches):
    one, other = (copy.deepcopy(networks[0]) for _ in range(2))
    other.quarter_turns = one.standardize = other.standardize = True
    for network in (one, other):
        reestimate_norms(network, batches)
    assert other.quarter_turns
    torch.testing.assert_close(norms(one)[-1].running_mean, norms(other)[-1].running_mean)
    plain = copy.deepcopy(networks[0])
    reestimate_norms(plain, batches)
    assert not torch.allclose(norms(plain)[0].running_mean, norms(one)[0].running_mean)
