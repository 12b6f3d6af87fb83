"""Search settings by trainings: Optuna draws each trial, prunes poor ones, and keeps its study in a file."""

from __future__ import annotations

import io
import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hemafast import __version__
from hemafast.config import TrainConfig, to_plain
from hemafast.data.dataset import open_dataset
from hemafast.engine.checkpoint import DRAWN_WARNING
from hemafast.errors import HemafastError, StoppedError, require
from hemafast.experiments.runs import Failed, Scored, csv_of, run_all, write_files
from hemafast.experiments.space import Space
from hemafast.pages import render
from hemafast.pictures import data_address
from hemafast.progress import SILENT, Progress
from hemafast.run_folder import locked

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

EXTRA = "tune"
"""What pip calls the packages that this needs."""
STUDY, PAGE, TABLE, RESULT = "tune.db", "tune.html", "tune.csv", "tune.json"
SCHEMA = 1
DONE, PRUNED, FAILED = "done", "pruned", "failed"

CAVEAT = (
    "All trials are scored on the same validation images, so the best score is too good. Train with these settings and "
    "other seeds, or score held-out test images once with `hemafast evaluate --split test`"
)

_NAME = "hemafast"
_ASKED, _FOLDER, _FACTS, _REASON = "asked", "folder", "facts", "reason"  # attributes of the study and of its trials
_UNPRUNED = 4  # trials that run to their end before any is pruned
_JUDGED_FROM = 2  # the epoch at whose end a trial may be pruned first
_FREE = ("data", "output", "device", "threads")  # settings that a study may be continued with
_DPI = 110

Result = dict[str, Any]


class _PrunedError(StoppedError):
    """A trial is worse than others were at that epoch."""


class _OutOfTimeError(StoppedError):
    """The time budget is used up within a trial."""


class _Watch(Progress):
    """Reports each epoch's macro-F1 to a trial, and ends its run early where that is asked for."""

    def __init__(self, listener: Progress, trial: Trial, ends: float) -> None:
        self._listener, self._trial, self._ends = listener, trial, ends
        self.shows = listener.shows

    def start(self, what: str, total: int | None = None, *, unit: str = "images", done: int = 0, **facts: Any) -> None:
        self._listener.start(what, total, unit=unit, done=done, **facts)

    def advance(self, count: int = 1, **measured: float) -> None:
        self._listener.advance(count, **measured)

    def say(self, text: str) -> None:
        self._listener.say(text)

    def finish(self, **results: Any) -> None:
        self._listener.finish(**results)
        if "val" not in results.get("rows", {}):
            return
        self._trial.report(results["rows"]["val"]["f1_macro"], results["epoch"])
        if time.monotonic() > self._ends:
            raise _OutOfTimeError("The time budget is used up.", "Run the same command to continue.")
        if self._trial.should_prune():
            raise _PrunedError("Others were better at this epoch.", "The trial is not resumed.")


def tune(
    config: TrainConfig,
    space: Space,
    *,
    trials: int,
    time_budget: float = float("inf"),
    progress: Progress = SILENT,
) -> Result:
    """Search for the settings with the best macro-F1 on the validation images.

    Writes tune.html, tune.csv, tune.json and the study, tune.db, into `config.output`, and each run into a folder below
    it. A second call continues: finished trials are kept, and an interrupted one resumes.

    Args:
        config: settings of every trial.
        space: what trials change, and within which bounds.
        trials: how many there are in the end, those of earlier calls included.
        time_budget: seconds of this call; the epoch at its end is finished, and the trial resumes with the next call.
        progress: listens to the runs.

    Returns:
        The content of tune.json; `failures` names failed trials.

    Raises:
        HemafastError: Optuna is missing, the study is of other settings or in use, or a value of `space` is refused.
        StoppedError: a signal stopped a run.
    """
    require(EXTRA, "optuna")
    space.check(config)
    ends = time.monotonic() + time_budget
    write_files(config.output, {})
    with locked(config.output):
        study = _open_study(config, space)
        _take_up(study)
        while len(_counted(study)) < trials and time.monotonic() < ends:
            try:
                _run_trial(study, config, space, ends, progress)
            except _OutOfTimeError:
                break
            _write(study, config, space)
        return _write(study, config, space)


def _open_study(config: TrainConfig, space: Space) -> Study:
    """The study in `config.output`. Raises HemafastError if it is of other settings, or cannot be read."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = (config.output / STUDY).resolve()
    asked = {name: value for name, value in to_plain(config).items() if name not in _FREE} | {"space": space.to_plain()}
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED, n_warmup_steps=_JUDGED_FROM)
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{file}", study_name=_NAME, load_if_exists=True, direction="maximize", pruner=pruner
        )
        before = study.user_attrs.get(_ASKED, asked)
        study.set_user_attr(_ASKED, before)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, OSError, ValueError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise HemafastError(f"{file} cannot be used ({why}).", "Name another --output.") from error
    if changed := [name for name in asked if before.get(name) != asked[name]]:
        raise HemafastError(f"{file} is a study with other {', '.join(changed)}.", "Name another --output for these.")
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials))  # another one in each call
    return study


def _take_up(study: Study) -> None:
    """Ask again for trials that were interrupted: with the same folder, their runs resume."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if _FOLDER in trial.user_attrs:
            study.enqueue_trial(trial.params, user_attrs={_FOLDER: trial.user_attrs[_FOLDER]})


def _counted(study: Study) -> list[FrozenTrial]:
    """Trials that came to an end, in any way but by an interruption."""
    from optuna.trial import TrialState

    ended = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [trial for trial in ended if trial.state != TrialState.FAIL or _REASON in trial.user_attrs]


def _run_trial(study: Study, config: TrainConfig, space: Space, ends: float, progress: Progress) -> None:
    from optuna.trial import TrialState

    trial = study.ask()
    name = trial.user_attrs.get(_FOLDER, f"trial_{trial.number + 1:03d}")
    drawn = replace(space.draw(trial, config), output=config.output / name)
    trial.set_user_attr(_FOLDER, name)
    try:
        ((_, outcome),) = run_all({name: drawn}, progress=_Watch(progress, trial, ends))
    except _PrunedError:
        study.tell(trial, state=TrialState.PRUNED)
        return
    if isinstance(outcome, Failed):
        trial.set_user_attr(_REASON, outcome.reason)
        study.tell(trial, state=TrialState.FAIL)
    else:
        trial.set_user_attr(_FACTS, _facts(outcome))
        study.tell(trial, outcome.metrics["pooled"]["macro_f1"])


def _facts(outcome: Scored) -> dict[str, Any]:
    metrics = outcome.metrics
    return {
        "ci95": metrics["pooled"]["ci95"]["macro_f1"],
        "epochs": metrics["training"]["epochs"],
        "seconds": metrics["training"]["total_seconds"],
        "run": str(outcome.folder),
    }


def _row(trial: FrozenTrial) -> dict[str, Any]:
    """One trial; of a pruned one, the macro-F1 of its last epoch."""
    facts = trial.user_attrs.get(_FACTS, {})
    last = max(trial.intermediate_values, default=None)
    states = {"COMPLETE": DONE, "PRUNED": PRUNED, "FAIL": FAILED}
    return {
        "trial": trial.number + 1,
        "state": states[trial.state.name],
        "macro_f1": trial.intermediate_values.get(last) if trial.value is None else trial.value,
        "ci95": facts.get("ci95", [None, None]),
        "epochs": facts.get("epochs", last),
        "seconds": facts.get("seconds"),
        "settings": trial.params,
        "run": facts.get("run"),
        "reason": trial.user_attrs.get(_REASON),
    }


def _write(study: Study, config: TrainConfig, space: Space) -> Result:
    """Write the results so far. Raises HemafastError if the output cannot be written."""
    rows = [_row(trial) for trial in _counted(study)]
    done = sorted((row for row in rows if row["state"] == DONE), key=lambda row: -row["macro_f1"])
    info = open_dataset(config.data).info
    result = {
        "schema": SCHEMA,
        "hemafast": __version__,
        "warnings": [DRAWN_WARNING] if info.drawn else [],
        "space": space.to_plain(),
        "settings": to_plain(config),
        "trials": rows,
        "best": done[0] if done else None,
        "notes": [CAVEAT],
        "failures": {f"trial {row['trial']}": row["reason"] for row in rows if row["state"] == FAILED},
        "data": {"folder": str(config.data), "fingerprint": info.fingerprint, "drawn": info.drawn},
    }
    pictures = _pictures(study) if len(done) > 1 else {}
    write_files(
        config.output,
        {
            RESULT: json.dumps(result, indent=2, allow_nan=False).encode() + b"\n",
            TABLE: csv_of([_flat(row, space) for row in rows], _columns(space)),
            PAGE: render("experiments/tune.html.j2", result=result, ranked=_ranked(rows), pictures=pictures).encode(),
        },
    )
    return result


def _columns(space: Space) -> list[str]:
    return ["trial", "state", "macro_f1", "low", "high", "epochs", "seconds", *space.parts, "run", "reason"]


def _flat(row: Mapping[str, Any], space: Space) -> dict[str, Any]:
    low, high = row["ci95"]
    settings = {name: row["settings"].get(name) for name in space.parts}
    return {**row, **settings, "low": low, "high": high}


def _ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best first; pruned and failed trials last."""
    order = (DONE, PRUNED, FAILED)
    return sorted(rows, key=lambda row: (order.index(row["state"]), -(row["macro_f1"] or 0), row["trial"]))


def _pictures(study: Study) -> dict[str, str]:
    """Optuna's own plots as data URLs, by what they show."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.visualization import matplotlib as plots

    asked = {
        "Macro-F1 of each trial, and the best so far": plots.plot_optimization_history,
        "Macro-F1 over each setting": plots.plot_slice,
        "How much each setting matters": plots.plot_param_importances,
    }
    with _no_display(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)  # of matplotlib, about axes on which all trials have one value
        return {title: _drawn(plot(study)) for title, plot in asked.items()}


def _drawn(axes: Any) -> str:
    from matplotlib import pyplot
    from numpy import ravel

    figure = ravel(axes)[0].figure
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI, bbox_inches="tight")
    pyplot.close(figure)
    return data_address(picture.getvalue(), "png")


@contextmanager
def _no_display() -> Iterator[None]:
    """matplotlib draws into files within the block: Optuna's plots go through pyplot."""
    import matplotlib

    before = matplotlib.get_backend()
    matplotlib.use("agg")
    try:
        yield
    finally:
        matplotlib.use(before)
