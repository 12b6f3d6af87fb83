"""Weight gradients of depthwise convolutions: torch's own are what they are held against."""

import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import numba
import pytest
import torch
from steps import CPU
from timm.layers import Conv2dSame
from torch import nn
from torch.nn.grad import conv2d_weight

from hemafast.engine import machine as machine_module
from hemafast.engine.depthwise import use_own_gradients, weight_gradient
from hemafast.engine.machine import choose_machine
from hemafast.model import build_model

OWN = replace(CPU, own_gradients=True)


@pytest.mark.parametrize(
    ("images", "channels", "size", "kernel", "stride", "padding"),
    [
        (8, 128, 4, 5, 1, (2, 2)),
        (1, 3, 7, 3, 1, (1, 1)),  # fewer images than are taken at once
        (13, 130, 6, 5, 1, (2, 2)),  # neither images nor channels fill their groups
        (9, 16, 9, 5, 2, (2, 2)),
        (8, 16, 11, 5, 2, (0, 0)),
        (5, 8, 8, 7, 1, (3, 3)),
        (4, 8, 5, 5, 1, (4, 4)),  # rows that see nothing but padding at an edge
        (4, 8, 9, 5, 3, (2, 1)),
    ],
)
def test_gradient_is_that_of_torch(images, channels, size, kernel, stride, padding):
    torch.manual_seed(0)
    pixels = torch.randn(images, channels, size, size)
    weight = torch.randn(channels, 1, kernel, kernel)
    gradient = torch.randn_like(nn.functional.conv2d(pixels, weight, None, stride, padding, groups=channels))
    want = conv2d_weight(pixels.double(), weight.shape, gradient.double(), stride, padding, groups=channels)
    for layout in (torch.channels_last, torch.contiguous_format):
        got = weight_gradient(
            pixels.contiguous(memory_format=layout), gradient.contiguous(memory_format=layout), kernel, stride, padding
        )
        assert got.shape == weight.shape
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_any_number_of_threads_gives_the_same_bits():
    torch.manual_seed(0)
    pixels, gradient = torch.randn(24, 300, 6, 6), torch.randn(24, 300, 6, 6)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 50):
            torch.set_num_threads(threads)
            found.append(weight_gradient(pixels, gradient, 5, 1, (2, 2)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize(
    "first_call",
    [
        "assert use_own_gradients(nn.Conv2d(64, 64, 5, groups=64), CPU)",
        "weight_gradient(torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 4, 4), 3, 1, (1, 1))",
    ],
    ids=["of a network", "of a gradient"],
)
def test_threads_of_torch_stay_as_many_as_they_were(first_call):
    script = f"""
import torch
from torch import nn
from hemafast.engine.depthwise import use_own_gradients, weight_gradient
from hemafast.engine.machine import Machine
CPU = Machine("cpu", "fp32", False, 1, (), {{}}, own_gradients=True)
torch.set_num_threads(1)
{first_call}
assert torch.get_num_threads() == 1, torch.get_num_threads()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_numba_has_the_threads_of_torch():
    weight_gradient(torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 4, 4), 3, 1, (1, 1))
    assert numba.threading_layer() == "omp"


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto"])
def test_a_network_has_the_gradients_that_it_had(name):
    torch.manual_seed(0)
    plain = build_model(name, 5, 64)
    own = deepcopy(plain)
    assert use_own_gradients(own, OWN) > 0
    assert list(own.state_dict()) == list(plain.state_dict())
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    copied = deepcopy(own)  # as the averaged weights are made
    for model in (plain, own, copied):
        torch.manual_seed(1)
        model(images).logsumexp(dim=1).sum().backward()
    for (name, want), got, of_copy in zip(plain.named_parameters(), own.parameters(), copied.parameters(), strict=True):
        scale = max(float(want.grad.abs().max()), 1e-3)
        torch.testing.assert_close(got.grad / scale, want.grad / scale, rtol=1e-3, atol=1e-3, msg=name)
        assert torch.equal(got.grad, of_copy.grad)


def test_only_what_gains_is_changed():
    fast = nn.Conv2d(64, 64, 5, padding=2, groups=64)
    left = [
        nn.Conv2d(64, 64, 1, groups=64),
        nn.Conv2d(32, 32, 5, groups=32),
        nn.Conv2d(64, 128, 5, groups=64),
        nn.Conv2d(64, 64, 5, groups=4),
        nn.Conv2d(64, 64, (5, 7), groups=64),
        nn.Conv2d(64, 64, 5, stride=(1, 2), groups=64),
        nn.Conv2d(64, 64, 5, dilation=2, groups=64),
        nn.Conv2d(64, 64, 5, padding="same", groups=64),
        nn.Conv2d(64, 64, 5, padding_mode="reflect", padding=2, groups=64),
        nn.Conv2d(64, 64, 5, groups=64).requires_grad_(False),
    ]
    model = nn.ModuleList([fast, Conv2dSame(64, 64, 5, stride=2, groups=64), *left])
    kinds = [type(module) for module in left]
    assert use_own_gradients(model, CPU) == 0
    assert type(fast) is nn.Conv2d
    assert use_own_gradients(model, OWN) == 2
    assert type(fast) is not nn.Conv2d
    assert [type(module) for module in left] == kinds


@pytest.mark.parametrize(("capability", "taps"), [("AVX2", {3, 5, 7}), ("AVX512", {5, 7})])
def test_a_kernel_is_ours_where_that_of_the_processor_is_slower(monkeypatch, capability, taps):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model = nn.ModuleList([nn.Conv2d(64, 64, size, groups=64) for size in (1, 3, 5, 7)])
    assert use_own_gradients(model, OWN) == len(taps)
    assert {module.kernel_size[0] for module in model if type(module) is not nn.Conv2d} == taps


@pytest.mark.parametrize(
    ("capability", "precision", "compiled", "own"),
    [
        ("AVX2", "fp32", "off", True),
        ("AVX512", "fp32", "off", True),
        ("AVX512", "bf16", "off", False),
        ("DEFAULT", "fp32", "off", False),
        ("AVX2", "bf16", "off", False),
        ("AVX2", "fp32", "on", False),
    ],
)
def test_the_machine_says_whether_it_gains(monkeypatch, capability, precision, compiled, own):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(machine_module, "_fast_precision", lambda _: (precision, "as the test has it"))
    machine = choose_machine(device="cpu", amp="auto", compiled=compiled)
    (choice,) = [choice for choice in machine.choices if choice.name == "depthwise gradients"]
    assert machine.own_gradients == own == (choice.value == "own kernel")
    assert choice.reason
