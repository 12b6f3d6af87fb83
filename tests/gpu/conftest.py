"""Short runs on the first CUDA device."""

import importlib.util
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hemafast.config import TrainConfig, checked
from hemafast.engine.step import TrainStep
from hemafast.engine.trainer import train
from hemafast.errors import StoppedError
from hemafast.preparation.build import Prepared
from hemafast.run_folder import LAST


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs prepared images where DALI is missing, so that the rest can be tried there."""
    if "prepared" in getattr(item, "fixturenames", ()) and importlib.util.find_spec("nvidia.dali") is None:
        pytest.skip("needs DALI, which prepares the images")


@pytest.fixture
def settings(prepared: Prepared, tmp_path) -> Callable[..., TrainConfig]:
    """`settings(**changes)`: a short run on the GPU."""

    def make(**changes) -> TrainConfig:
        small = {
            "data": prepared.folder,
            "output": tmp_path / "runs",
            "model": "test_resnet",
            "pretrained": "no",
            "epochs": 2,
            "batch_size": 8,
            "image_size": 56,
            "lr": 1e-3,
            "amp": "off",
            "compile": "off",
            "device": "cuda",
            "threads": 2,
        }
        return checked(TrainConfig, small | changes)

    return make


@pytest.fixture
def stopped_behind(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, TrainConfig], Path]:
    """`stopped_behind(update, config)`: the folder of a run that SIGTERM stopped behind an update, counted from 1."""

    def make(update: int, config: TrainConfig) -> Path:
        step = TrainStep.__call__

        def step_and_signal(self, *arguments, **named):
            step(self, *arguments, **named)
            if named["step"] + 1 == update and named.get("update", True):
                signal.raise_signal(signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(TrainStep, "__call__", step_and_signal)
            with pytest.raises(StoppedError, match=f"after {update} updates?"):
                train(config)
        (checkpoint,) = config.output.glob(f"*/{LAST}")
        return checkpoint.parent

    return make
