"""Convolutions with wrong gradients in channels_last are found in a child, and run in the contiguous layout."""

import copy
import dataclasses
import sys

import numpy as np
import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from hemafast.config import TrainConfig, checked
from hemafast.engine import layout, layout_trial
from hemafast.engine.answers import forget_answers
from hemafast.engine.average import Average
from hemafast.engine.layout import Comparison, Convolution, compare, convolutions_of, distinct_of, run_contiguous
from hemafast.engine.learner import build_learner
from hemafast.engine.machine import choose_machine
from hemafast.errors import HemafastError
from hemafast.fuse_norm import fuse_batch_norms

STRIDED = Convolution(4, 8, 32, 32, 1, (1, 1), (2, 2), (0, 0), (1, 1))
PLAIN = Convolution(8, 8, 16, 16, 1, (3, 3), (1, 1), (1, 1), (1, 1))
DEEP = Convolution(6, 12, 9, 7, 3, (3, 3), (2, 1), (1, 0), (1, 2))
CPU = choose_machine(device="cpu", amp="off", compiled="off")

INJECTED = """
import os, sys, time, torch
from torch.nn import functional
from hemafast.engine import layout_trial
right = functional.conv2d
def conv2d(images, weight, bias, stride, *others):
    if tuple(stride) == (2, 2) and images.is_contiguous(memory_format=torch.channels_last):
        {what}
    return right(images, weight, bias, stride, *others)
functional.conv2d = conv2d
layout_trial._LONGEST, layout_trial._PATIENCE = 1, 5
layout_trial.main(int(sys.argv[1]), sys.argv[2])
"""


@pytest.fixture
def injected(monkeypatch):
    """Let the child compute strided convolutions in channels_last wrongly."""

    def inject(what):
        monkeypatch.setattr(layout, "_COMMAND", (sys.executable, "-c", INJECTED.format(what=what)))

    return inject


def test_right_convolutions_are_found_right():
    for one in (STRIDED, PLAIN, DEEP):
        if one is not STRIDED or torch.backends.cpu.get_cpu_capability() != "AVX2":  # wrong there, and may end us
            assert layout_trial.difference(one.numbers, torch.float32) < 1e-4
    assert layout_trial.difference(PLAIN.numbers, torch.bfloat16) < 5e-2


@pytest.mark.parametrize(
    "what",
    [
        "weight = weight * 1.01",
        "weight = weight * float('nan')",
        "os.kill(os.getpid(), 11)",
        "while True: pass",
        "time.sleep(600)",
        "raise RuntimeError('could not execute a primitive')",
    ],
    ids=["a little wrong", "not a number", "ends the process", "hangs", "sleeps", "raises"],
)
def test_a_wrong_convolution_is_found_in_a_child_and_the_rest_goes_on(injected, what):
    injected(what)
    assert compare([STRIDED, PLAIN], "fp32", 120) == Comparison(frozenset({STRIDED}), 0)


def test_what_ends_a_child_from_outside_makes_no_convolution_wrong(injected):
    injected("os.kill(os.getpid(), 9)")  # as the kernel for want of memory
    assert compare([PLAIN, STRIDED, DEEP], "fp32", 120) == Comparison(frozenset(), 2, "exit status -9")


def test_a_child_that_cannot_begin_makes_none_wrong(monkeypatch):
    monkeypatch.setattr(layout, "_COMMAND", (sys.executable, "-c", "import there_is_no_such_module"))
    compared = compare([PLAIN, STRIDED], "fp32", 120)
    assert (compared.wrong, compared.left) == (frozenset(), 2)
    assert "No module named" in compared.why


def test_what_the_time_does_not_suffice_for_is_counted():
    assert compare([STRIDED, PLAIN], "fp32", 0.0) == Comparison(frozenset(), 2)
    assert compare([STRIDED, PLAIN], "fp32", 0.01) == Comparison(frozenset(), 2)


class Small(nn.Module):
    """Two convolutions behind a norm each, and one that is computed twice at different sizes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(Conv2dSame(3, 4, 3, stride=2), nn.BatchNorm2d(4))
        self.second = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8))
        self.twice = nn.Conv2d(8, 8, 3, padding="same")

    def forward(self, images):
        maps = self.twice(self.second(self.first(images.float())))
        return self.twice(nn.functional.max_pool2d(maps, 2)).mean((2, 3))


def test_each_convolution_of_a_network_is_known_as_it_is_computed():
    found = convolutions_of(model := Small(), [33])
    assert found["first.0"] == {Convolution(3, 4, 35, 35, 1, (3, 3), (2, 2), (0, 0), (1, 1))}  # padded by itself
    assert found["second.0"] == {Convolution(4, 8, 17, 17, 1, (1, 1), (2, 2), (0, 0), (1, 1))}
    assert {(one.height, one.padding) for one in found["twice"]} == {(9, (1, 1)), (4, (1, 1))}
    assert model.training
    assert [max(one.stride) for one in distinct_of(found)] == [2, 2, 1, 1]
    assert len(distinct_of(convolutions_of(model, [33, 65]))) == 8


def layout_of(tensor):
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return "channels_last" if channels_last and not tensor.is_contiguous() else "contiguous"


def test_a_contiguous_convolution_computes_the_same_and_takes_and_gives_channels_last(monkeypatch):
    model = Small().to(memory_format=torch.channels_last).eval()
    images = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    expected = model(images)
    for name in ("first.0", "second.0"):
        run_contiguous(model.get_submodule(name))
    for network in (model, copy.deepcopy(model), Average(model, 0.9).module):
        seen, given = [], []
        right = torch.conv2d

        def convolve(maps, weight, *others, seen=seen, right=right, **named):
            # As torch sees the weights: it tells the layout of a 1 x 1 kernel by its strides.
            seen.append((layout_of(maps), weight.stride()[3] == weight.shape[1]))
            return right(maps, weight, *others, **named)

        with monkeypatch.context() as change:
            change.setattr(nn.functional, "conv2d", convolve)
            network.second[1].register_forward_pre_hook(lambda _, maps, given=given: given.append(layout_of(maps[0])))
            assert torch.allclose(network(images), expected, atol=1e-4)
        assert seen[:2] == [("contiguous", False), ("contiguous", False)]
        assert {one for one, _ in seen[2:]} == {"channels_last"}
        assert given == ["channels_last"]


def test_a_contiguous_convolution_still_fuses_with_its_norm():
    model = Small().eval()
    expected = model(torch.ones((1, 3, 33, 33)))
    run_contiguous(model.second[0])
    assert fuse_batch_norms(model) == 2
    assert torch.allclose(model(torch.ones((1, 3, 33, 33))), expected, atol=1e-4)


# Training


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = {"model": "test_resnet", "pretrained": "no", "image_size": 56, "output": tmp_path, "ema": 0.9}
    return checked(TrainConfig, asked)


def learner_of(settings, machine=CPU):
    return build_learner(settings, machine, np.full(3, 4), batch_size=4, started_from="nothing")


def never(*_):
    raise AssertionError("compared again")


def test_training_avoids_what_is_wrong_and_remembers_it(settings, injected, monkeypatch, caplog):
    injected("weight = weight * 1.01")
    monkeypatch.setattr(layout, "compare", lambda *asked: compare(*asked, seconds=120))
    caplog.set_level("INFO", "hemafast")
    learner = learner_of(settings)
    modules = {name: one for name, one in learner.model.named_modules() if isinstance(one, nn.Conv2d)}
    strided = {name for name, one in modules.items() if one.stride == (2, 2)}
    hooked = {name for name, one in modules.items() if layout._contiguous in one._forward_pre_hooks.values()}
    assert {"backbone.layer2.0.conv1"} < hooked <= strided  # where one pixel is left, both layouts are one
    averaged = [learner.scored_model.get_submodule(name) for name in hooked]
    assert all(layout._contiguous in one._forward_pre_hooks.values() for one in averaged)
    assert f"{len(hooked)} convolutions of test_resnet have wrong gradients in channels_last" in caplog.text
    assert "comparing gradients of" in caplog.text
    monkeypatch.setattr(layout, "compare", never)
    again = learner_of(settings)
    assert layout._contiguous in again.model.get_submodule(min(hooked))._forward_pre_hooks.values()
    with pytest.raises(HemafastError, match="compile on: gradients of"):
        learner_of(settings, dataclasses.replace(CPU, compiled=True))
    assert forget_answers() == 1
    with pytest.raises(AssertionError, match="compared again"):
        learner_of(settings)


def test_a_comparison_that_ran_out_of_time_goes_on_in_the_next_run(settings, monkeypatch, caplog):
    asked = []

    def some(convolutions, _):
        asked.append(convolutions)
        wrong, left = (convolutions[:1], len(convolutions) - 2) if len(asked) == 1 else ((), 0)
        return Comparison(frozenset(wrong), left)

    monkeypatch.setattr(layout, "compare", some)
    caplog.set_level("INFO", "hemafast")
    learner_of(settings)
    assert "were not compared (the time was up)" in caplog.text
    caplog.clear()
    learner_of(settings)
    assert asked[1] == asked[0][2:]
    assert "have wrong gradients" in caplog.text  # what the first comparison found is not lost
    learner_of(settings)
    assert len(asked) == 2


def test_a_gpu_is_not_compared(settings, monkeypatch):
    monkeypatch.setattr(layout, "compare", never)
    assert layout.avoid_wrong_gradients(Small(), dataclasses.replace(CPU, device="cuda"), settings) == []
