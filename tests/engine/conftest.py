"""Runs of tiny networks on the small prepared data set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from rich.console import Console

from hemafast.config import PrepareConfig, TrainConfig, checked
from hemafast.engine.step import Steps
from hemafast.prepare.build import Prepared, prepare


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


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
def _interrupted_at(step: int) -> Iterator[None]:
    train, steps = Steps.train, count(1)

    def train_or_stop(self, *arguments):
        if next(steps) == step:
            raise KeyboardInterrupt
        train(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Steps, "train", train_or_stop)
        yield


@pytest.fixture(scope="session")
def interrupted_at():
    """`with interrupted_at(step):` Ctrl-C at that training step, counted from 1."""
    return _interrupted_at
