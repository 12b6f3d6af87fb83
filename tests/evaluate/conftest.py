"""One short run on the small prepared data set, scored."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from hemafast.config import TrainConfig, checked
from hemafast.engine.trainer import train
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.prepare.build import Prepared

TrainOn = Callable[..., Path]


@pytest.fixture(scope="session")
def train_on(tmp_path_factory: pytest.TempPathFactory) -> TrainOn:
    """`train_on(data, **changes)`: the folder of a short run."""

    def make(data: Path, **changes) -> Path:
        small = {
            "data": data,
            "output": tmp_path_factory.mktemp("runs"),
            "model": "test_resnet",
            "pretrained": "no",
            "epochs": 3,
            "batch_size": 8,
            "image_size": 56,
            "lr": 3e-3,
            "amp": "off",
            "device": "cpu",
            "threads": 1,
        }
        logger = logging.getLogger("hemafast")
        before = logger.level
        logger.setLevel(logging.DEBUG)
        try:
            return train(checked(TrainConfig, small | changes), Console(quiet=True))
        finally:
            logger.setLevel(before)

    return make


@pytest.fixture(scope="session")
def trained(prepared: Prepared, train_on: TrainOn) -> Path:
    """A run that was not evaluated; read it, never change it."""
    return train_on(prepared.folder)


@pytest.fixture(scope="session")
def scored(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, evaluated; read it, never change it."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("scored") / "run"))
    evaluate_run(folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run to change at will."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
