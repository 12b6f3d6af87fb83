"""Fused batch norms, compared with the same network without fusing."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from hemafast.fuse_norm import fuse_batch_norms
from hemafast.model import Classifier, build_model


def with_statistics(model):
    """The model with batch norms as training leaves them, none of which is the identity."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, least in ((module.running_mean, -0.5), (module.bias, -0.5), (module.running_var, 0.5)):
                tensor.data.copy_(least + torch.rand(tensor.shape, generator=generator))
            module.weight.data.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
    return model


def norms_of(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def seen(images=3, side=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv3_small_050", "resnet18", "tf_efficientnet_lite0"])
def test_all_norms_are_fused_and_the_answers_stay(name):
    model = with_statistics(build_model(name, 11, 64)).eval()
    fused = deepcopy(model)
    assert fuse_batch_norms(fused) == norms_of(model) > 0
    with torch.inference_mode():
        torch.testing.assert_close(fused(seen()), model(seen()), rtol=1e-4, atol=1e-4)
    mine, theirs = fused.state_dict(), model.state_dict()
    assert [*mine] == [*theirs]
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert fuse_batch_norms(fused) == 0  # a second time


def test_training_stays_what_it_was_to_the_bit():
    torch.manual_seed(0)
    model = with_statistics(build_model("tf_efficientnet_lite0", 11, 64))
    fused = deepcopy(model)
    fuse_batch_norms(fused)
    for one in (model, fused):
        one.train()
        torch.manual_seed(0)
        one(seen()).sum().backward()
    for one, other in zip(model.parameters(), fused.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(model.buffers(), fused.buffers(), strict=True):
        assert torch.equal(one, other)  # statistics too


@pytest.mark.parametrize("frozen", [{"stages": 3}, {"norm": True}], ids=["stages", "norms"])
def test_behind_frozen_norms_gradients_stay(frozen):
    model = with_statistics(build_model("resnet18", 11, 64, dropout=0.0)).double()
    model.freeze(**frozen)
    fused = deepcopy(model)
    assert fuse_batch_norms(fused) > 0
    for one in (model, fused):
        one.train()
        one.backbone(seen().double() / 255).square().sum().backward()
    for one, other in zip(model.parameters(), fused.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-6, atol=1e-8)


def test_what_is_loaded_later_counts():
    model = build_model("resnet18", 11, 64).eval()
    other = with_statistics(build_model("resnet18", 11, 64)).eval()
    fuse_batch_norms(model)
    model.load_state_dict(other.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(model(seen()), other(seen()), rtol=1e-4, atol=1e-4)


def test_a_copy_has_its_own_norms():
    model = with_statistics(build_model("resnet18", 11, 64)).eval()
    fuse_batch_norms(model)
    copied = deepcopy(model)
    before = copied(seen())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.fill_(9.0)
    assert torch.equal(copied(seen()), before)


class Sees(nn.Module):
    """A convolution and a norm, and what `forward` makes of them."""

    def __init__(self, forward, **options):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 3, padding=1, **options), nn.BatchNorm2d(3)
        self._forward = forward

    def forward(self, images):
        return self._forward(self, images)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: (y := self.convolution(x)) + self.norm(y),
        lambda self, x: self.norm(self.convolution(self.convolution(x))),
        lambda self, x: self.norm(self.norm(self.convolution(x))),
        lambda self, x: self.norm(self.convolution(x).relu()),
        lambda self, x: self.convolution(self.norm(x)),
        lambda self, x: self.norm(self.convolution(x)) if x.mean() > 0 else x,  # which cannot be traced
    ],
    ids=["seen by others", "convolution twice", "norm twice", "something between", "norm first", "branches"],
)
def test_what_is_no_pair_is_left_alone(forward):
    model = with_statistics(Classifier(Sees(forward), (0.5,) * 3, (0.2,) * 3)).eval()
    before = model(seen())
    assert fuse_batch_norms(model) == 0
    assert torch.equal(model(seen()), before)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"padding_mode": "reflect"}, {"groups": 3}])
def test_every_plain_convolution_is_fused(options):
    model = with_statistics(
        Classifier(Sees(lambda self, x: self.norm(self.convolution(x)), **options), (0.5,) * 3, (0.2,) * 3)
    )
    before = model.eval()(seen())
    assert fuse_batch_norms(model) == ("padding_mode" not in options)
    torch.testing.assert_close(model(seen()), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_a_network_without_batch_norms_is_left_alone(name):
    assert fuse_batch_norms(build_model(name, 11, 224)) == 0


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_of_the_network_stays(mode):
    model = build_model("resnet18", 11, 64).train(mode)
    fuse_batch_norms(model)
    assert {module.training for module in model.modules()} == {mode}
