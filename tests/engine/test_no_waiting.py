"""The host never waits for the device within an epoch."""

from typing import get_args

import numpy as np
import pytest
import torch
from steps import CLASSES, CPU, batch_of, network
from torch.utils._python_dispatch import TorchDispatchMode

from hemafast.config import LossName
from hemafast.engine import task
from hemafast.engine.average import Average
from hemafast.engine.optimizer import build_optimizer
from hemafast.engine.step import Mix, Totals, TrainStep
from hemafast.engine.trainer import train
from hemafast.objective import build_loss

_METHODS = (
    *("item", "tolist", "numpy", "cpu", "nonzero", "is_nonzero", "equal", "allclose", "unique", "masked_select"),
    *("__bool__", "__float__", "__int__", "__index__", "__complex__", "__array__", "__iter__", "__contains__"),
    *("__repr__", "__format__"),
)
_FUNCTIONS = ("equal", "allclose", "nonzero", "is_nonzero", "unique", "masked_select", "bincount")
_OPERATORS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim", "_unique2"}
EVERYTHING = {
    "mixup": 0.4,
    "cutmix": 0.4,
    "clip_grad": 1.0,
    "ema": 0.9,
    "loss": "focal",
    "label_smoothing": 0.1,
    "on_nonfinite": "skip",
    "dropout": 0.2,
    "drop_path": 0.1,
    "layer_decay": 0.8,
    "schedule": "onecycle",
}


class Waits(TorchDispatchMode):
    """Under it, a list of what would make the host wait for a device: values read, tensors copied to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        # Without a device of its own, a copy stays where it is.
        to_host = name == "_to_copy" and torch.device(kwargs.get("device") or "meta").type == "cpu"
        if name in _OPERATORS or to_host:
            self.found.append(name)
        return func(*args, **kwargs)

    def watched(self, name, function):
        def call(*arguments, **options):
            self.found.append(name)
            return function(*arguments, **options)

        return call


@pytest.fixture
def waits(monkeypatch):
    """On a CPU some never reach the dispatcher, so what Python calls is watched too."""
    mode = Waits()
    for owner, names in ((torch.Tensor, _METHODS), (torch, _FUNCTIONS)):
        for name in names:
            monkeypatch.setattr(owner, name, mode.watched(name, getattr(owner, name)))
    return mode


def thorough_step(loss="focal", **changes):
    """A step with every option, and its totals."""
    model = network(dropout=0.2, drop_path=0.1)
    options = {
        "clip_grad": 1.0,
        "ema": Average(model, 0.9),
        "mix": Mix(CLASSES, mixup=0.4, cutmix=0.4),
        "skip_bad": True,
    }
    objective = build_loss(np.ones(CLASSES, dtype=np.int64), loss, smoothing=0.1)
    optimizer = build_optimizer(model, weight_decay=0.01, layer_decay=0.8)
    return TrainStep(model, objective, optimizer, CPU, **options | changes), Totals(CLASSES, "cpu")


@pytest.mark.parametrize("loss", get_args(LossName))
@pytest.mark.parametrize("mixed", [True, False])
def test_a_training_step_never_makes_the_host_wait(waits, loss, mixed):
    step, totals = thorough_step(loss) if mixed else thorough_step(loss, mix=None)
    batches = [batch_of(images, seed) for seed, images in enumerate((8, 8, 7))]
    waits.found.clear()
    with waits:
        for number, batch in enumerate(batches):
            step(batch, 1e-3, totals, step=number // 2, share=0.5, update=number != 0)
            totals.glance()
            step.bad.glance()
    assert waits.found == []


def test_the_watch_sees_a_value_that_is_read_within_a_step(waits):
    class Curious(Mix):
        def __call__(self, batch):
            if batch.labels.sum().item() < 0:
                raise AssertionError
            return super().__call__(batch)

    step, totals = thorough_step(mix=Curious(CLASSES, mixup=0.4, cutmix=0.4))
    with waits:
        step(batch_of(8), 1e-3, totals, step=0)
    assert set(waits.found) >= {"item"}
    waits.found.clear()
    with waits:
        totals.read()
        totals.mean_norm()
    assert set(waits.found) >= {"cpu", "numpy", "__float__"}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_epoch_of_twice_as_many_batches_makes_the_host_wait_no_more_often(settings, waits, monkeypatch, accumulate):
    monkeypatch.setattr(task, "macro_f1", lambda confusion: 0.5)  # or a lucky epoch would write one more best model
    found = {}
    for batch_size in (12, 6):
        config = settings(**EVERYTHING, epochs=2, batch_size=batch_size, accumulate=accumulate)
        waits.found.clear()
        with waits:
            train(config)
        found[batch_size] = sorted(waits.found)
    assert found[12] == found[6]
    assert {"cpu", "numpy"} <= set(found[6])  # at the end of an epoch, for the log


class Counted(TorchDispatchMode):
    """Counts operations, without views; one over a list of tensors counts once: on a GPU it is a kernel or a few."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **kwargs or {})


def operations(**options) -> int:
    step, totals = thorough_step(mix=None, **options)
    step(batch_of(8), 1e-3, totals, step=0)  # makes the optimizer's state
    with Counted() as counted:
        step(batch_of(8), 1e-3, totals, step=1)
    return counted.count


def test_averages_and_guards_do_not_cost_an_operation_for_each_tensor():
    bare, tensors = operations(ema=None, skip_bad=False), len(network().state_dict())
    assert 0 < operations(skip_bad=False) - bare < tensors / 2  # batch norms' counts of batches are copied one by one
    assert 0 < operations(ema=None) - bare < 20
