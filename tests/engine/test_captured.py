"""A captured training step is the step: replayed with the addresses and numbers of its capture."""

import copy
import dataclasses
import logging
from typing import get_args

import numpy as np
import pytest
import torch
from recorded_graph import RecordedGraph
from steps import CLASSES, CPU, batch_of, changed, network, plain_descent
from torch import nn
from torch._inductor import list_mode_options

from hemafast.config import CompileMode, TrainConfig, train_config
from hemafast.engine.average import Average
from hemafast.engine.captured import WARM_UP, Captured, why_not
from hemafast.engine.compiling import Compiler
from hemafast.engine.learner import build_learner
from hemafast.engine.machine import Machine
from hemafast.engine.optimizer import build_optimizer
from hemafast.engine.plan import choices_of_a_card
from hemafast.engine.step import Totals, TrainStep, seed_batch
from hemafast.objective import build_loss

FP16 = Machine("cpu", "fp16", False, 1, (), {})
BATCH = 8
SIZES = (BATCH,) * 7 + (BATCH - 3,) + (BATCH,) * 3
"""Two epochs: the last batch of the first is shorter."""


class Infinite(nn.Module):
    """A loss that is infinite for a batch in which an image of the class `of` comes first."""

    def __init__(self, of: int) -> None:
        super().__init__()
        self.inner, self.of = build_loss(np.ones(CLASSES, dtype=np.int64)), of

    def forward(self, logits, targets):
        return self.inner(logits, targets) * torch.where(targets[0] == self.of, torch.inf, 1.0)


def thorough(graphs: list[RecordedGraph] | None, machine=CPU, loss=None):
    """A step with every option that can be captured, its network, its average and its optimizer."""

    def make() -> RecordedGraph:
        graphs.append(RecordedGraph())
        return graphs[-1]

    model = network(dropout=0.2, drop_path=0.1)
    average, optimizer = Average(model, 0.9), build_optimizer(model, weight_decay=0.01, layer_decay=0.8)
    loss = loss or build_loss(np.arange(1, CLASSES + 1), "weighted", smoothing=0.1)
    capture = None if graphs is None else lambda *called: Captured(*called, batch_size=BATCH, graph=make)
    options = {"clip_grad": 1.0, "ema": average, "skip_bad": True, "capture": capture}
    return TrainStep(model, loss, optimizer, machine, **options), model, average, optimizer


def trained(graphs, batches, **options):
    """All tensors after an update with each of the batches, and what the totals of each epoch came to."""
    step, model, average, optimizer = thorough(graphs, **options)
    model.train()
    told, totals = [], Totals(CLASSES, "cpu")
    for number, batch in enumerate(batches):
        seed_batch(0, 0, number // 8, number % 8)
        step(batch, 1e-2 / (1 + number), totals, step=number)
        if number in (7, len(batches) - 1):
            loss, confusion = totals.read()
            told.append((loss, confusion.tolist(), totals.mean_norm(), step.bad.read()))
            totals = Totals(CLASSES, "cpu")
    moments = {f"{n}.{name}": value for n, of in enumerate(optimizer.state.values()) for name, value in of.items()}
    averaged = {f"ema.{name}": value for name, value in average.module.state_dict().items()}
    return {**model.state_dict(), **averaged, **moments}, told, step


@pytest.mark.parametrize("machine", [CPU, FP16])
def test_a_captured_step_is_the_step_bit_for_bit(machine):
    batches = [batch_of(images, seed) for seed, images in enumerate(SIZES)]
    expected, told, plain = trained(None, batches, machine=machine)
    graphs = []
    found, replayed, step = trained(graphs, batches, machine=machine)
    assert [graph.replays for graph in graphs] == [SIZES.count(BATCH) - WARM_UP]
    assert replayed == told
    assert not {name for name in expected if not torch.equal(expected[name], found[name])}
    assert step.scaler.state_dict() == plain.scaler.state_dict()


def test_a_bad_update_is_skipped_within_a_graph():
    batches = [batch_of(BATCH, seed) for seed in range(9)]
    bad = 6
    for number, batch in enumerate(batches):
        batch.labels[0] = 2 if number == bad else 1
    graphs = []
    found, told, _ = trained(graphs, batches, loss=Infinite(2))
    expected, eagerly, _ = trained(None, batches, loss=Infinite(2))
    assert graphs[0].replays == len(batches) - WARM_UP
    assert told == eagerly
    assert told[-1][-1] == (1, bad)
    assert not {name for name in expected if not torch.equal(expected[name], found[name])}
    assert all(value.isfinite().all() for value in found.values() if value.is_floating_point())


def test_images_that_grow_have_a_graph_of_their_own():
    small = [batch_of(BATCH, seed) for seed in range(5)]
    large = [
        dataclasses.replace(batch, images=nn.functional.interpolate(batch.images.float(), scale_factor=2).byte())
        for batch in small
    ]
    graphs = []
    found, told, _ = trained(graphs, small + large)
    expected, eagerly, _ = trained(None, small + large)
    assert [graph.replays for graph in graphs] == [2, 2]
    assert told == eagerly
    assert not {name for name in expected if not torch.equal(expected[name], found[name])}


def test_a_number_that_is_frozen_in_a_graph_is_found():
    """The recorder is no blindfold: a learning rate that is a number of Python stays that of the capture."""
    rates = iter(range(100))

    def summed(run_by) -> torch.Tensor:
        weight, total = torch.ones(3), torch.zeros(3)

        def function(images):
            weight.add_(images.sum(dim=(0, 1)), alpha=next(rates) % 6)
            total.add_(weight)

        run = run_by(function)
        for _ in range(6):
            run(torch.ones(2, 1, 3))
        return total

    captured = summed(lambda function: Captured(function, lambda: None, batch_size=2, graph=RecordedGraph))
    rates = iter(range(100))
    assert not torch.equal(captured, summed(lambda function: function))


def test_a_capture_that_fails_is_said_and_training_goes_on(caplog):
    class Refusing(RecordedGraph):
        """Like a CUDA graph, it computes nothing while it captures."""

        def capture(self, function):
            raise RuntimeError("operation not permitted when stream is capturing")

    batches = [batch_of(BATCH, seed) for seed in range(7)]
    expected, *_ = trained(None, batches)
    made = []

    def step_of(*called):
        made.append(Captured(*called, batch_size=BATCH, graph=Refusing))
        return made[-1]

    step, model, _, _ = thorough(None)
    step._captured = step_of(step._learn_whole, step._forget)
    totals = Totals(CLASSES, "cpu")
    model.train()
    with caplog.at_level(logging.WARNING, logger="hemafast"):
        for number, batch in enumerate(batches):
            seed_batch(0, 0, 0, number)
            step(batch, 1e-2 / (1 + number), totals, step=number)
    assert "runs without a CUDA graph, because its capture failed: operation not permitted" in caplog.text
    assert not made[0].takes(batches[0].images)
    assert not {name for name, value in model.state_dict().items() if not torch.equal(expected[name], value)}


def test_an_operation_that_waits_cannot_be_captured():
    graph = RecordedGraph()
    with pytest.raises(RuntimeError, match="cannot be captured"):
        graph.capture(lambda: torch.ones(1).item())


def test_accumulated_and_mixed_batches_are_not_captured():
    graphs = []
    step, model, _, _ = thorough(graphs)
    totals = Totals(CLASSES, "cpu")
    before = copy.deepcopy(model.state_dict())
    for number in range(12):
        step(batch_of(BATCH, number), 1e-2, totals, step=number // 2, share=0.5, update=number % 2 == 1)
    assert graphs == []
    assert changed(before, model)


GPU = Machine("cuda", "bf16", True, 1, (), {})


@pytest.mark.parametrize(
    ("changes", "machine", "alone", "reason"),
    [
        ({}, GPU, True, ""),
        ({"compile_mode": "max-autotune-no-cudagraphs"}, GPU, True, ""),
        ({"compile_mode": "reduce-overhead"}, GPU, True, "makes graphs of its own"),
        ({"compile_mode": "reduce-overhead"}, dataclasses.replace(GPU, compiled=False), True, ""),
        ({"accumulate": 2}, GPU, True, "several batches"),
        ({"mixup": 0.2}, GPU, True, "mixing draws on the host"),
        ({"capture": "off"}, GPU, True, "as asked for"),
        ({}, GPU, False, "processes exchange gradients"),
        ({}, CPU, True, "a CPU has no graphs"),
    ],
)
def test_what_keeps_a_step_from_being_captured_is_named(changes, machine, alone, reason):
    settings: TrainConfig = dataclasses.replace(train_config("fast"), **changes)
    said = why_not(settings, machine, alone=alone)
    assert reason in said
    assert bool(said) == bool(reason)


class _Reused(torch.autograd.Function):
    """A layer whose backward pass always leaves the gradient of its weight in the same memory, as a CUDA graph does."""

    memory: torch.Tensor

    @staticmethod
    def forward(context, features, weight):
        context.save_for_backward(features, weight)
        return features @ weight

    @staticmethod
    def backward(context, gradient):
        features, weight = context.saved_tensors
        torch.matmul(features.T, gradient, out=_Reused.memory)
        return gradient @ weight.T, _Reused.memory.detach()


class _Graphed(nn.Module):
    """A linear network whose compiled form is a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, CLASSES))
        self.register_buffer("scale", torch.ones(1))
        _Reused.memory = torch.zeros(3, CLASSES)

    def forward(self, images):
        return _Reused.apply(images.float().mean(dim=(2, 3)) / 255, self.weight)


class _Replaying(Compiler):
    replays = True


@pytest.mark.parametrize("compiler", [Compiler(enabled=False), _Replaying(enabled=False)])
def test_gradients_add_up_although_a_graph_writes_over_its_own(compiler):
    """With a compiler that replays graphs, an update of several batches is that of one large batch."""
    model, twin = _Graphed(), nn.Module()
    optimizer = plain_descent(model)
    step = TrainStep(model, build_loss(np.ones(CLASSES, dtype=np.int64)), optimizer, CPU, compiler)
    totals, (first, second) = Totals(CLASSES, "cpu"), (batch_of(4, 0), batch_of(4, 1))
    before = model.weight.detach().clone()
    for number in range(2):  # twice, because a gradient must also be forgotten
        step(first, 0.5, totals, step=number, share=0.5, update=False)
        step(second, 0.5, totals, step=number, share=0.5)
    twin.weight = nn.Parameter(before)
    for _ in range(2):
        features = torch.cat([first.images, second.images]).float().mean(dim=(2, 3)) / 255
        nn.functional.cross_entropy(features @ twin.weight, torch.cat([first.labels, second.labels])).backward()
        with torch.no_grad():
            twin.weight -= 0.5 * twin.weight.grad
            twin.weight.grad = None
    close = torch.allclose(model.weight, twin.weight, atol=1e-6)
    assert close == compiler.replays  # without memory of their own, the sums are wrong: the test can tell


def test_only_modes_with_graphs_of_the_compiler_replay():
    modes = get_args(CompileMode)
    assert {mode for mode in modes if Compiler(enabled=True, mode=mode).replays} == {"reduce-overhead", "max-autotune"}
    assert not Compiler(enabled=False, mode="reduce-overhead").replays
    by_torch = {mode for mode in modes if list_mode_options(mode).get("triton.cudagraphs")}
    assert by_torch == {"reduce-overhead", "max-autotune"}


def test_a_run_says_how_a_card_runs_its_step():
    def said(precision="bf16", **changes):
        settings = dataclasses.replace(train_config("fast"), **changes)
        machine = dataclasses.replace(GPU, precision=precision)
        return {
            choice.name: (choice.value, choice.reason) for choice in choices_of_a_card(settings, machine, alone=True)
        }

    assert said()["CUDA graph"] == ("the training step", "one launch for all its kernels")
    assert said(accumulate=2)["CUDA graph"] == ("off", "an update takes several batches")
    assert "fp32" not in said()
    assert said(precision="fp32")["fp32"][0] == "TF32 in convolutions"
    assert choices_of_a_card(train_config("fast"), CPU, alone=True) == []


def test_cudnn_looks_for_its_fastest_algorithms_on_a_gpu_alone(monkeypatch):
    """No GPU is here: building the learner ends where the network is to be moved to one."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    settings = dataclasses.replace(train_config("fast"), model="test_resnet", image_size=32, pretrained="no")
    counts = np.ones(CLASSES, dtype=np.int64)
    build_learner(settings, CPU, counts, batch_size=4)
    assert not torch.backends.cudnn.benchmark
    with pytest.raises((AssertionError, RuntimeError)):
        build_learner(settings, GPU, counts, batch_size=4)
    assert torch.backends.cudnn.benchmark
