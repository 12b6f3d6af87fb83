"""hemafast: a high-throughput training engine for single-cell blood images.

import hemafast as hf

data = hf.prepare("Source", "Source/prepared")
run = hf.train(data, preset="fast", epochs=4)
run.model().predict("cells/")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from hemafast.api import (
        TrainedRun,
        adapt,
        count_patients,
        list_runs,
        open_dataset,
        open_run,
        prepare,
        pretrain,
        resume,
        train,
        tune,
    )
    from hemafast.config import PrepareConfig, TrainConfig
    from hemafast.data.dataset import Dataset
    from hemafast.data.loader import Loader
    from hemafast.deploy.explain import explain
    from hemafast.deploy.export import export_run
    from hemafast.deploy.model import Model, open_model
    from hemafast.deploy.push import push_run
    from hemafast.errors import HemafastError, StoppedError
    from hemafast.progress import Progress, ProgressBar

_HOMES = {
    "hemafast.api": (
        *("TrainedRun", "adapt", "count_patients", "list_runs", "open_dataset", "open_run", "prepare", "pretrain"),
        *("resume", "train", "tune"),
    ),
    "hemafast.config": ("PrepareConfig", "TrainConfig"),
    "hemafast.data.dataset": ("Dataset",),
    "hemafast.data.loader": ("Loader",),
    "hemafast.deploy.explain": ("explain",),
    "hemafast.deploy.export": ("export_run",),
    "hemafast.deploy.model": ("Model", "open_model"),
    "hemafast.deploy.push": ("push_run",),
    "hemafast.errors": ("HemafastError", "StoppedError"),
    "hemafast.progress": ("Progress", "ProgressBar"),
}
"""Public names by the module that defines them. It is imported when a name is first used: torch takes seconds."""

__all__ = [
    "Dataset",
    "HemafastError",
    "Loader",
    "Model",
    "PrepareConfig",
    "Progress",
    "ProgressBar",
    "StoppedError",
    "TrainConfig",
    "TrainedRun",
    "adapt",
    "count_patients",
    "explain",
    "export_run",
    "list_runs",
    "open_dataset",
    "open_model",
    "open_run",
    "prepare",
    "pretrain",
    "push_run",
    "resume",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'hemafast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
