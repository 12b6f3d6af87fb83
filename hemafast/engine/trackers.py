"""Experiment trackers, which get all measurements: TensorBoard, Weights & Biases, MLflow, Trackio."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hemafast.config import TrackerName
from hemafast.errors import HemafastError
from hemafast.files import make_inside, write_text
from hemafast.pictures import pixels_of
from hemafast.regular import read_regular
from hemafast.run_folder import TENSORBOARD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LR = "lr"
"""The only curve over optimizer steps; all others are over epochs."""

MLFLOW_RUN = "mlflow_run.txt"

_PROJECT = "hemafast"

logger = logging.getLogger("hemafast")


class Tracker(Protocol):
    """Receives measurements during a run."""

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """Record values by name; `step` is the epoch from 1, or the optimizer step if `values` is {LR: rate}."""

    def figure(self, name: str, figure: Figure, *, step: int) -> None:
        """Record a picture of epoch `step`."""

    def close(self) -> None:
        """Send everything that is left."""


def open_trackers(
    names: Sequence[TrackerName], folder: Path, settings: Mapping[str, Any], *, first_epoch: int
) -> list[Tracker]:
    """Open the named trackers for the run in `folder`; a resumed run continues in each tracker.

    `settings` are plain values for the tracker to show. Measurements of `first_epoch` and later are replaced, if the
    tracker can do that. A tracker that fails later logs a warning and gets nothing more. Raises HemafastError if one is
    not installed or cannot be opened.
    """
    opened: list[Tracker] = []
    with ExitStack() as undo:
        for name in dict.fromkeys(names):
            tracker = _Guarded(name, _opened(name, folder, settings, first_epoch))
            undo.callback(tracker.close)
            opened.append(tracker)
        undo.pop_all()
    return opened


def refuse_missing(names: Sequence[TrackerName]) -> None:
    """Raise HemafastError if a tracker is not installed. Imports nothing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise _not_installed(name)


def _not_installed(name: str) -> HemafastError:
    return HemafastError(f"{name} is not installed.", f"pip install {name}, or leave it out of --track.")


def _opened(name: TrackerName, folder: Path, settings: Mapping[str, Any], first_epoch: int) -> Tracker:
    try:
        with redirect_stdout(sys.stderr):  # standard output is for results
            match name:
                case "tensorboard":
                    return _TensorBoard(folder, first_epoch)
                case "wandb":
                    return _Wandb(folder, settings)
                case "mlflow":
                    return _MLflow(folder, settings)
                case "trackio":
                    return _Trackio(folder, settings)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise _not_installed(name) from error
        raise HemafastError(f"{name} cannot be opened ({error}).", "Fix that, or leave it out of --track.") from error


class _Guarded:
    """A tracker that gets nothing more after its first error, because a tracker must not end a run."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker: Tracker | None = tracker

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        self._call("scalars", values, step=step)

    def figure(self, name: str, figure: Figure, *, step: int) -> None:
        self._call("figure", name, figure, step=step)

    def close(self) -> None:
        self._call("close")
        self._tracker = None

    def _call(self, method: str, *values: Any, **named: Any) -> None:
        if self._tracker is None:
            return
        try:
            with redirect_stdout(sys.stderr):
                getattr(self._tracker, method)(*values, **named)
        except Exception as error:
            self._tracker = None
            why = " ".join(str(error).split()) or type(error).__name__
            logger.warning("%s failed (%s). The run continues without it", self._name, why)


class _TensorBoard:
    """Event files in the run folder. The learning rate has a value for each epoch, as all else.

    A purge drops all values of a folder from one step on, but optimizer steps are counted differently. A folder of
    their own would be a second run in TensorBoard's list.
    """

    def __init__(self, folder: Path, first_epoch: int) -> None:
        self._folder = folder / TENSORBOARD
        self._hook = threading.excepthook
        threading.excepthook = self._failed  # `train` puts the one before back
        self._writer = self._opened(first_epoch)

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        if LR in values:
            return
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def figure(self, name: str, figure: Figure, *, step: int) -> None:
        self._writer.add_image(name, pixels_of(figure), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _failed(self, error: threading.ExceptHookArgs) -> None:
        """Print no traceback for a thread of TensorBoard: its next call raises the error here."""
        if not type(error.thread).__module__.startswith("tensorboard."):
            self._hook(error)

    def _opened(self, first: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        make_inside(self._folder)
        return SummaryWriter(str(self._folder), purge_step=first)


class _Wandb:
    """A run of Weights & Biases, named for the run folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        wandb = import_module("wandb")
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=folder.name,
            id=re.sub(r"[^\w.-]", "-", folder.name, flags=re.ASCII),
            dir=str(folder),
            config=dict(settings),
            resume="allow",
            settings=wandb.Settings(console="off"),  # it would capture the live panel
        )
        # The step of wandb may never decrease, so epochs and optimizer steps are axes of their own.
        for names, axis in (("train/*", "epoch"), ("val/*", "epoch"), ("confusion", "epoch"), (LR, "step")):
            self._run.define_metric(names, step_metric=axis)

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        self._run.log({**values, "step" if LR in values else "epoch": step})

    def figure(self, name: str, figure: Figure, *, step: int) -> None:
        self._run.log({name: self._image(pixels_of(figure)), "epoch": step})

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow. MLflow chooses its id, which is kept in the run folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._mlflow = mlflow = import_module("mlflow")
        self._rates: list[Any] = []
        file = folder / MLFLOW_RUN
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT))
        if file.exists():
            self._id = mlflow.start_run(run_id=read_regular(file).decode("utf-8", "replace").strip()).info.run_id
        else:
            self._id = mlflow.start_run(run_name=folder.name).info.run_id
            write_text(file, self._id + "\n")
            mlflow.log_params(dict(settings))  # only once: MLflow refuses changes, and a resume may extend the run

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [
            # MLflow allows fewer letters than the name of a domain may have
            self._mlflow.entities.Metric(re.sub(r"[^/\w.\- ]", "_", name), value, now, step)
            for name, value in values.items()
        ]
        if LR in values:
            self._rates += metrics  # sent at the end of the epoch, because a call takes a tenth of a second
        else:
            self._send(metrics)

    def figure(self, name: str, figure: Figure, *, step: int) -> None:
        self._mlflow.log_image(pixels_of(figure), artifact_file=f"{name}/{step:04d}.png")

    def close(self) -> None:
        self._send([])
        self._mlflow.end_run()

    def _send(self, metrics: list[Any]) -> None:
        metrics, self._rates = self._rates + metrics, []
        if metrics:
            self._mlflow.MlflowClient().log_batch(self._id, metrics=metrics)


class _Trackio:
    """A run of Trackio, named for the run folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        trackio = import_module("trackio")
        self._image, self._finish = trackio.Image, trackio.finish
        self._run = trackio.init(project=_PROJECT, name=folder.name, config=dict(settings), resume="allow", embed=False)

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        self._run.log(dict(values), step=step)

    def figure(self, name: str, figure: Figure, *, step: int) -> None:
        self._run.log({name: self._image(pixels_of(figure))}, step=step)

    def close(self) -> None:
        self._finish()  # not the finish of the run, which Trackio repeats when Python exits
