"""Short runs on the first CUDA device."""

import importlib.util
from collections.abc import Callable

import pytest

from hemafast.config import TrainConfig, checked
from hemafast.preparation.build import Prepared


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
