"""Settings of runs that take a second, and what happened in them."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hemafast.config import TrainConfig, checked
from hemafast.engine.step import TrainStep
from hemafast.evaluate import evaluate
from hemafast.experiments import runs
from hemafast.preparation.build import Prepared

TINY = {
    "model": "test_resnet",
    "pretrained": "no",
    "epochs": 1,
    "batch_size": 8,
    "image_size": 32,
    "lr": 3e-3,
    "amp": "off",
    "compile": "off",
    "device": "cpu",
    "threads": 1,
    "track": (),
}


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Fields of a run that takes a second."""
    return dict(TINY)


@pytest.fixture(scope="session")
def settings(prepared: Prepared) -> Callable[..., TrainConfig]:
    """`settings(output, **changes)`: a run of a second on the small prepared data set."""

    def make(output: Path, **changes) -> TrainConfig:
        return checked(TrainConfig, {"data": prepared.folder, "output": output} | TINY | changes)

    return make


@pytest.fixture(autouse=True, scope="module")
def _no_pictures_of_single_runs() -> Iterator[None]:
    """They take longer than such a run, and have their own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "confusion_figure", lambda *_: None)
        patch.setattr(evaluate, "save", lambda figure, target: target.write_bytes(b""))
        patch.setattr(runs, "write_report", lambda folder: (folder / "report.html").write_bytes(b""))
        yield


@pytest.fixture(autouse=True)
def _level_kept() -> Iterator[None]:
    logger = logging.getLogger("hemafast")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture
def updates(monkeypatch) -> list[int]:
    """The optimizer steps that were taken since, as they are taken."""
    taken, step = [], TrainStep.__call__

    def count(self, *arguments, **named):
        taken.append(named["step"])
        return step(self, *arguments, **named)

    monkeypatch.setattr(TrainStep, "__call__", count)
    return taken


@pytest.fixture
def evaluations(monkeypatch) -> list[Path]:
    """The runs that were evaluated since."""
    seen, score = [], runs.evaluate_run

    def note(folder, **named):
        seen.append(folder)
        return score(folder, **named)

    monkeypatch.setattr(runs, "evaluate_run", note)
    return seen
