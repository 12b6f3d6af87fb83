"""Costs on paper, beside those added up by hand."""

from dataclasses import astuple

import pytest
import torch
from torch import nn

from hemafast.bench.costs import DTYPES, least_training_bytes, model_costs, step_costs
from hemafast.bench.result import Costs
from hemafast.model import Classifier

IMAGES, SIDE, CLASSES = 4, 8, 5
PIXELS = IMAGES * 3 * SIDE**2
TWO = torch.bfloat16.itemsize

# What every model does besides: pixels to float, times scale plus shift (three floats each), and to bf16.
NORMALISED = PIXELS * (1 + 4) + (PIXELS * 4 + 2 * 3 * 4 + PIXELS * 4) + PIXELS * (4 + TWO)


def classifier(*layers: nn.Module) -> Classifier:
    return Classifier(nn.Sequential(*layers), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


class Head(nn.Module):
    """The sum of three values is the logit of a class."""

    def forward(self, values):
        return values.unflatten(1, (CLASSES, 3)).sum(2)


def single(groups: int) -> Classifier:
    return classifier(nn.Conv2d(3, 3 * CLASSES, SIDE, groups=groups, bias=False), nn.Flatten(), Head())


@pytest.mark.parametrize("groups", [1, 3])
def test_operations_of_a_convolution_are_those_of_its_definition(groups):
    costs = model_costs(single(groups), SIDE, torch.bfloat16, IMAGES)
    outputs, inputs_of_each = 3 * CLASSES, 3 // groups * SIDE**2
    assert costs.forward_flops == 2 * outputs * inputs_of_each
    # The pixels want no gradient: backward is the gradient of the weight alone, as dear as forward.
    assert costs.training_flops == 2 * costs.forward_flops


@pytest.mark.parametrize("groups", [1, 3])
def test_least_bytes_of_a_convolution_are_input_weight_and_output_in_both_directions(groups):
    pixels, outputs = PIXELS * TWO, IMAGES * 3 * CLASSES * TWO
    weight = 3 * CLASSES * (3 // groups) * SIDE**2 * TWO
    forward = pixels + weight + outputs
    backward = outputs + pixels + weight + weight  # reads all three, and writes the gradient of the weight
    found = least_training_bytes(single(groups), SIDE, torch.bfloat16, IMAGES)
    assert found == (forward + backward) // IMAGES


def test_forward_bytes_are_those_of_every_operation_added_up():
    logits, hidden = IMAGES * CLASSES, IMAGES * 3 * CLASSES
    weight = 3 * CLASSES * 3 * SIDE**2
    moved = [
        NORMALISED,
        (PIXELS + weight + hidden) * TWO,
        (hidden + logits) * TWO,  # the sum of three
        logits * (TWO + 4),  # to float
        logits * (4 + 4),  # log softmax
        logits * 4
        + IMAGES * 8
        + 4
        + 4,  # reads labels and all log probabilities; writes the loss and the weight of all
    ]
    assert model_costs(single(1), SIDE, torch.bfloat16, IMAGES).forward_bytes == sum(moved) // IMAGES


def test_a_gradient_that_repeats_one_value_is_read_once():
    """The mean over all places hands every place the same gradient, which lies in memory once."""
    pooled = classifier(nn.Conv2d(3, CLASSES, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    costs = model_costs(pooled, SIDE, torch.bfloat16, IMAGES)
    hidden, logits = IMAGES * CLASSES * SIDE**2 * TWO, IMAGES * CLASSES * TWO
    backward = IMAGES * (costs.training_bytes - costs.forward_bytes)
    division = logits + hidden
    convolution = hidden + PIXELS * TWO + 2 * 3 * CLASSES * TWO
    loss = IMAGES * CLASSES * (3 * 4 + 2 * 4 + 4 + TWO) + IMAGES * 8  # softmax, likelihood, and back to bf16; labels
    assert backward == pytest.approx(division + convolution + loss, abs=64)  # and some scalars


def test_a_backward_pass_of_a_deep_network_costs_what_two_forward_passes_do_but_for_the_first_layer():
    costs = step_costs("resnet18", 11, 224, "bf16")
    stem = 2 * 64 * 112**2 * 3 * 7**2
    assert costs.training_flops == 3 * costs.forward_flops - stem


def test_multiplications_of_known_networks_are_those_of_their_papers():
    assert step_costs("resnet18", 1000, 224, "bf16").forward_flops == pytest.approx(2 * 1.8e9, rel=0.02)
    assert step_costs("efficientnet_b0", 1000, 224, "bf16").forward_flops == pytest.approx(2 * 0.39e9, rel=0.02)


def test_weights_are_read_once_a_batch():
    one, two, many = (model_costs(single(1), SIDE, torch.bfloat16, images) for images in (1, 2, 64))
    weight = 3 * CLASSES * 3 * SIDE**2 * TWO
    assert one.forward_flops == many.forward_flops
    assert one.forward_bytes - two.forward_bytes == pytest.approx(weight / 2, abs=16)
    assert many.training_bytes < two.training_bytes < one.training_bytes


def test_the_least_is_less_and_half_the_bits_are_half_the_bytes():
    with torch.device("meta"):
        model = single(1)
    full, half = (least_training_bytes(model, SIDE, DTYPES[name], IMAGES) for name in ("fp32", "bf16"))
    assert full == 2 * half
    assert half < model_costs(model, SIDE, torch.bfloat16, IMAGES).training_bytes


def test_counting_leaves_the_model_as_it_was():
    model = single(1).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    costs = model_costs(model, SIDE, torch.bfloat16, IMAGES)
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)).dtype == torch.float32
    assert all(parameter.grad is None for parameter in model.parameters())
    assert isinstance(costs, Costs)
    assert all(isinstance(value, int) and value > 0 for value in astuple(costs))
