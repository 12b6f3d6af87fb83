"""Runs of tiny networks on the small prepared data set."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hemafast.config import PrepareConfig, TrainConfig, checked
from hemafast.engine.checkpoint import load_best, load_last
from hemafast.engine.journal import read_rows
from hemafast.engine.step import TrainStep
from hemafast.preparation.build import Prepared, prepare
from hemafast.run_folder import BEST, LAST

TIMES = ("seconds", "waited", "elapsed", "ending", "per_second", "share")


@pytest.fixture(scope="session")
def settings(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainConfig]:
    """`settings(**changes)`: a short run on the CPU (47 images in 6 steps) into a fresh output folder."""

    def make(**changes) -> TrainConfig:
        small = {
            "data": prepared.folder,
            "output": tmp_path_factory.mktemp("runs"),
            "model": "test_resnet",
            "pretrained": "no",
            "epochs": 1,
            "batch_size": 8,
            "image_size": 32,
            "lr": 1e-3,
            "amp": "off",
            "compile": "off",  # `auto` begins with a trial
            "track": (),  # the picture of each epoch takes longer than the epoch
            "device": "cpu",
            "threads": 1,
        }
        return checked(TrainConfig, small | changes)

    return make


@pytest.fixture(scope="session")
def prepare_again(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`prepare_again(**changes)`: the same archives prepared with other settings."""

    def make(**changes) -> Path:
        folder = tmp_path_factory.mktemp("other") / "prepared"
        fields = {"source": prepared.folder.parent, "output": folder, "pack_sizes": (64,)}
        return prepare(checked(PrepareConfig, fields | changes)).folder

    return make


@contextmanager
def _signal_at(update: int, number: int = signal.SIGINT) -> Iterator[None]:
    step = TrainStep.__call__

    def step_and_signal(self, *arguments, **named):
        step(self, *arguments, **named)
        if named["step"] + 1 == update and named.get("update", True):
            signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", step_and_signal)
        yield


@pytest.fixture(scope="session")
def signal_at():
    """`with signal_at(update, number=SIGINT):` a signal comes within that update of a run, counted from 1."""
    return _signal_at


def _same(first, second) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.fixture(scope="session")
def same():
    """`same(first, second)`: whether two states have the same structure and, bit for bit, the same tensors."""
    return _same


def _assert_equal_runs(first: Path, second: Path) -> None:
    assert _untimed(read_rows(first)) == _untimed(read_rows(second))
    states = [load_last(folder / LAST) for folder in (first, second)]
    for state in states:
        state["progress"] = {name: value for name, value in state["progress"].items() if name not in TIMES}
        del state["settings"]
        for group in state["optimizer"]["param_groups"]:
            del group["lr"]  # every update sets it; none has where nothing was left to train
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not _same(states[0][name], states[1][name])] == []
    (model, card), (other_model, other_card) = (load_best(folder / BEST) for folder in (first, second))
    assert replace(card, calibration=None) == replace(other_card, calibration=None)  # one of them may be evaluated
    assert _same(model.state_dict(), other_model.state_dict())


def _untimed(rows):
    return [{name: row[name] for name in row if not name.endswith(TIMES)} for row in rows]


@pytest.fixture(scope="session")
def assert_equal_runs():
    """`assert_equal_runs(folder, other)`: all that two finished runs left is the same, but for times."""
    return _assert_equal_runs
