"""A run folder: the names of its files, how it is made, found and locked, and how far its run has come.

Everything here reads small files only; torch is not needed to list a hundred runs.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from hemafast.config import TrainConfig, checked
from hemafast.errors import HemafastError
from hemafast.files import writing
from hemafast.reading import cause, read_object
from hemafast.regular import open_regular, read_regular

CONFIG = "config.json"
"""Settings, as `TrainConfig` takes them; `--config` reads it."""
COMMAND = "command.txt"
"""The command that makes the run again, on one line."""
MACHINE = "machine.json"
"""What was decided for this machine, and why."""
LOG = "train.log"
LOG_TABLE = "training_log.csv"
"""One row for each phase of an epoch."""
TENSORBOARD = "tb"
BEST = "best_model.safetensors"
"""Weights of the best epoch, with all that is needed to use them."""
ENCODER = "encoder.safetensors"
"""Of a pretraining run, in place of BEST: the backbone after the last epoch, for `hemafast train --weights`."""
LAST = "last_model.ckpt"
"""Everything that resuming needs; older ones are LAST.1, LAST.2 and so on."""
CALIBRATION = "calibration.json"
"""Temperature and thresholds of BEST, fitted on half of the validation images."""
LIKENESS = "likeness.safetensors"
"""What images of the training domains look like to BEST, to tell others from them."""
METRICS = "metrics.json"
PREDICTIONS = "predictions.csv"
CONFUSION_PLOT = "confusion_matrix.png"
REPORT = "report.html"
ADAPTATION = "adaptation.json"
"""Of an adapted run: its parent, what was changed, and the scores before and after."""
ADAPTATION_PAGE = "adaptation.html"
ENSEMBLE = "ensemble.json"
"""Of an ensemble or a soup: its members, what was measured of them, and the scores before and after."""
EVALUATIONS = "evaluations"
"""Scores on test images and on other data, a folder for each."""
CROSSDOMAIN = "crossdomain.json"
"""Scores of models trained on some domains and tested on others, in the folder of such an experiment."""
NONFINITE = "nonfinite"
"""Batches whose loss or gradient was not finite."""

LATEST = "latest"
"""In place of a run folder: the newest run."""
METRICS_SCHEMA = 2

logger = logging.getLogger("hemafast")

_LOCK = ".lock"
_UNFINISHED = ".unfinished"  # in a run folder that is filled in one go
_STAMP = "%Y%m%d_%H%M%S"


class OpenedRun(Protocol):
    """A run that was opened: `hf.TrainedRun`."""

    @property
    def folder(self) -> Path:
        """The run folder."""


NamedRun = OpenedRun | str | Path
"""How a user names a run."""


def find_run(run: NamedRun, output: Path = TrainConfig.output) -> Path:
    """The folder that a user means: an opened run, a path, or "latest" for the newest run under `output`.

    BEST of a run means that run; any other file is returned as it is.

    Raises:
        HemafastError: there is no such run.
    """
    named = run if isinstance(run, str | Path) else run.folder
    path = Path(named)
    if str(named) == LATEST and not path.exists():
        runs = run_folders(output, nested=True)
        if not runs:
            raise HemafastError(f"{output} holds no run yet.", "Train one first, or name a run folder.")
        return runs[-1]
    if not path.exists():
        known = [LATEST, *map(str, run_folders(path.parent)), *map(str, run_folders(output))]
        close = [name for name in known if name.startswith(str(named))] or get_close_matches(str(named), known, n=1)
        hint = f"Did you mean {close[0]}?" if close else "`hemafast runs` lists the runs."
        raise HemafastError(f"There is no run {named}.", hint)
    return path.parent if path.name == BEST and is_run(path.parent) else path


def run_folders(output: Path, *, nested: bool = False) -> list[Path]:
    """The run folders in `output`, oldest first; with `nested` also those of sweeps and other experiments in it."""
    patterns = [f"{'*/' * depth}{CONFIG}" for depth in ((1, 2, 3) if nested else (1,))]
    folders = {file.parent for pattern in patterns for file in output.glob(pattern)}
    return sorted(filter(is_run, folders), key=_began)


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a run; other software has files named like CONFIG too."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in (LOG, BEST))


def _began(folder: Path) -> tuple[datetime, str]:
    """When a run began, by its name, or by its settings file where the user has renamed it."""
    try:
        began = datetime.strptime(folder.name[: len("20261129_235959")], _STAMP)
    except ValueError:
        began = datetime.fromtimestamp((folder / CONFIG).stat().st_mtime)
    return began, folder.name


def make_run_folder(config: TrainConfig, kind: str | None = None) -> Path:
    """A new, empty folder under `config.output`, named for the moment, the model, and its schedule or `kind`."""
    stamp = datetime.now().astimezone().strftime(_STAMP)
    kind = kind or ("probe" if config.probe else "" if config.schedule == "constant" else config.schedule)
    name = f"{stamp}_{config.model}" + (f"_{kind}" if kind else "")
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        folder = config.output / (name + suffix)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise HemafastError(f"{folder} cannot be made ({error.strerror}).", "Choose another --output.") from error
        return folder
    raise HemafastError(f"{config.output} holds a hundred runs of this second.", "Choose another --output.")


def tells_settings(folder: Path) -> bool:
    """Whether CONFIG holds what the model was trained with; a run made of a model's file does not know it."""
    return any((folder / name).exists() for name in (LOG, LOG_TABLE, ENSEMBLE, ADAPTATION))


@contextmanager
def filling_run_folder(config: TrainConfig, kind: str) -> Iterator[Path]:
    """A new run folder, as `make_run_folder`, that is whole after the block or not there.

    What a killed process has left of such a folder is removed by the next one under the same output: it bears a mark,
    and its lock is free. Raises HemafastError if the folder cannot be written.
    """
    _remove_unfinished(config.output)
    folder = make_run_folder(config, kind)
    held = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks, where nothing is removed either
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with writing(folder):
            (folder / _UNFINISHED).touch()
            yield folder
            (folder / _UNFINISHED).unlink()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(held)


def _remove_unfinished(output: Path) -> None:
    for mark in output.glob(f"*/{_UNFINISHED}"):
        try:
            held = os.open(mark.parent, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # a process fills it
        else:
            shutil.rmtree(mark.parent, ignore_errors=True)
        finally:
            os.close(held)


def read_config(folder: Path) -> TrainConfig:
    """The settings of the run in `folder`. Raises HemafastError if it is not a run."""
    if folder.is_file():
        evaluate = f"`hemafast evaluate {folder} --data PREPARED` scores a model's file, and makes a run folder of it."
        raise HemafastError(f"{folder} is a file, not the folder of a run.", evaluate)
    try:
        fields = read_object(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise HemafastError(
            f"{folder} is not a run: it holds no readable {CONFIG} ({cause(error)}).",
            "Name a folder that `hemafast train` made.",
        ) from error
    try:
        return checked(TrainConfig, fields)
    except HemafastError as error:
        raise HemafastError(f"{folder / CONFIG}: {error.problem}", error.remedy) from error


def refuse_encoder(folder: Path) -> None:
    """Raise HemafastError if `folder` is a pretraining run, which has no classes to answer, to score or to show."""
    if (folder / ENCODER).exists():
        problem = f"{folder} was pretrained without labels and has no classifier."
        raise HemafastError(problem, f"Train one: `hemafast train --weights {folder}`.")


def read_metrics(folder: Path) -> dict[str, Any]:
    """The scores in `folder`, a run folder or one of its EVALUATIONS. Raises HemafastError if there are none."""
    from hemafast.recorded import Metrics, read_recorded

    remedy = f"Run `hemafast evaluate {folder}`."
    try:
        return read_recorded(folder / METRICS, Metrics)
    except (OSError, ValueError) as error:
        if folder.is_dir() and not (folder / METRICS).exists():
            refuse_encoder(folder)
            raise HemafastError(f"{folder} was not evaluated.", remedy) from error
        raise HemafastError(f"{folder} holds no readable {METRICS} ({cause(error)}).", remedy) from error


def read_adaptation(folder: Path) -> dict[str, Any]:
    """What was adapted in the run in `folder`. Raises HemafastError if it was not made by `adapt`."""
    from hemafast.recorded import Adaptation, read_recorded

    try:
        return read_recorded(folder / ADAPTATION, Adaptation)
    except (OSError, ValueError) as error:
        remedy = f"Make one with `hemafast adapt {folder} NEWDATA`."
        raise HemafastError(f"{folder} holds no readable {ADAPTATION} ({cause(error)}).", remedy) from error


def read_ensemble(folder: Path) -> dict[str, Any]:
    """What the ensemble in `folder` is made of. Raises HemafastError if it was not made by `ensemble`."""
    from hemafast.recorded import EnsembleFile, read_recorded

    try:
        return read_recorded(folder / ENSEMBLE, EnsembleFile)
    except (OSError, ValueError) as error:
        remedy = "Make one with `hemafast ensemble RUN RUN`."
        raise HemafastError(f"{folder} holds no readable {ENSEMBLE} ({cause(error)}).", remedy) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in `folder` meanwhile. Raises HemafastError if one already does.

    The lock ends with the process that holds it, however that ends. It also holds between hosts that share the folder
    by NFS. On a file system without locks, only a process of this host is noticed, and a warning says so.
    """
    file = _open_lock(folder)
    if file is None:
        yield
        return
    try:
        _lock(folder, file)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()} {platform.node()} {datetime.now():%Y-%m-%d %H:%M:%S}".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(file, 0)
    finally:
        os.close(file)


def _open_lock(folder: Path) -> int | None:
    """None in a folder that cannot be written to: nobody trains in it, and whatever is written next says so."""
    try:
        return os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise HemafastError(f"{folder / _LOCK} is a link, which is not followed.", "Remove it.") from error
        return None


def _lock(folder: Path, file: int) -> None:
    holder = os.pread(file, 300, 0).decode("utf-8", "replace").split(maxsplit=2)
    pid, host, since = holder if len(holder) == 3 else ("", "", "")
    here = pid.isdecimal() and host == platform.node()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        pass
    except OSError as error:
        if not (here and Path("/proc", pid).exists()):
            logger.warning("%s is on a file system without locks (%s): start no second process there", folder, error)
            return
    who = f" (process {pid} on {host}, since {since})" if pid else ""
    stop = f"`kill {pid}`, which saves" if here else "Ctrl-C, which saves"
    raise HemafastError(f"Another process is training in {folder}{who}.", f"Wait for it, or stop it with {stop}.")


def _is_locked(folder: Path) -> bool:
    try:
        with open_regular(folder / _LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One row of `hemafast runs`."""

    name: str
    folder: str
    data: str
    model: str
    preset: str
    state: str
    """ "running", "finished" or "stopped"."""
    epochs_done: int
    epochs: int | None
    """None under a time budget."""
    macro_f1: float | None
    """Pooled over the validation images; None before the run was evaluated."""
    ci95: tuple[float, float] | None
    began: str
    """Local time, ISO 8601."""


def summaries(output: Path) -> list[RunSummary]:
    """All runs under `output`, oldest first. A run whose settings are damaged is left out with a warning."""
    found = []
    for folder in run_folders(output, nested=True):
        try:
            found.append(summarise(folder))
        except HemafastError as error:
            logger.warning("not listed: %s", error.problem)
    return found


def summarise(folder: Path) -> RunSummary:
    """What the small files of a run say. Raises HemafastError if `folder` is not a run."""
    config = read_config(folder)
    epochs_done = _epochs_done(folder)
    try:
        pooled = read_metrics(folder)["pooled"]
    except HemafastError:
        pooled = None
    trained = config.time_budget is None and not (folder / ENSEMBLE).is_file()
    complete = epochs_done >= config.epochs if trained else pooled is not None
    return RunSummary(
        name=folder.name,
        folder=str(folder),
        data=str(config.data),
        model=config.model,
        preset=config.preset,
        state="running" if _is_locked(folder) else "finished" if complete else "stopped",
        epochs_done=epochs_done,
        epochs=config.epochs if trained else None,
        macro_f1=pooled["macro_f1"] if pooled else None,
        ci95=tuple(pooled["ci95"]["macro_f1"]) if pooled else None,
        began=_began(folder)[0].isoformat(timespec="seconds"),
    )


def _epochs_done(folder: Path) -> int:
    """Epochs that were validated, by the log table; 0 where it is missing or damaged."""
    try:
        text = read_regular(folder / LOG_TABLE).decode("utf-8")
        rows = csv.DictReader(text.splitlines())
        return max((int(row["epoch"]) for row in rows if row["phase"] == "val"), default=0)
    except (OSError, ValueError, KeyError, TypeError):
        return 0
