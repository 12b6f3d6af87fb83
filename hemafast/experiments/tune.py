"""Search settings by trainings: Optuna draws each trial, prunes poor ones, and keeps its study in a file."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemafast import __version__
from hemafast.config import TrainConfig, to_plain
from hemafast.data.dataset import open_dataset
from hemafast.engine.checkpoint import DRAWN_WARNING
from hemafast.errors import HemafastError, require
from hemafast.evaluate.elsewhere import note_on_elsewhere
from hemafast.experiments.plots import plain
from hemafast.experiments.repeats_plan import refuse_other_folds
from hemafast.experiments.runs import Failed, csv_of, write_files
from hemafast.experiments.space import Space
from hemafast.experiments.study import open_study, told_of
from hemafast.experiments.tested import score_on_test
from hemafast.experiments.trials import OutOfTimeError, PrunedError, train_trial
from hemafast.pages import render
from hemafast.pictures import on_page
from hemafast.preparation.split import TEST
from hemafast.progress import SILENT, Progress
from hemafast.run_folder import locked

if TYPE_CHECKING:
    from markupsafe import Markup
    from optuna import Study
    from optuna.trial import FrozenTrial

EXTRA = "tune"
"""What pip calls the packages that this needs."""
PAGE, TABLE, RESULT = "tune.html", "tune.csv", "tune.json"
SCHEMA = 1
DONE, PRUNED, FAILED = "done", "pruned", "failed"

CAVEAT = (
    "All trials are scored on the same images, so the best score is too good. Train with these settings and other "
    "seeds, or score held-out test images once with --test"
)
NESTED = (
    "The test images are the outer part of a nested search: no trial has seen them, and no setting was chosen by them. "
    "So this is the score to expect on other images of the same laboratories"
)

_TESTED = "tested"  # attribute of the study
_FOLDER, _FACTS, _REASON = "folder", "facts", "reason"  # attributes of its trials: `study.Told`
_FREE = ("data", "output", "device", "threads")  # settings that a study may be continued with

Result = dict[str, Any]


def tune(
    config: TrainConfig,
    space: Space,
    *,
    trials: int,
    folds: int | None = None,
    test: bool = False,
    time_budget: float = float("inf"),
    progress: Progress = SILENT,
) -> Result:
    """Search for the settings with the best macro-F1 on the validation images, or the best mean over folds.

    Writes tune.html, tune.csv, tune.json and the study, tune.db, into `config.output`, and each run into a folder below
    it. A second call continues: finished trials are kept, and an interrupted one resumes.

    Args:
        config: settings of every trial.
        space: what trials change, and within which bounds.
        trials: how many there are in the end, those of earlier calls included.
        folds: with which the data was prepared; None for its split. A trial falls behind by its epochs, or by the mean
            over its folds so far.
        test: once all trials have ended, score the models of the best one on the test images. That counts as a look.
        time_budget: seconds of this call; the epoch at its end is finished, and the trial resumes with the next call.
        progress: listens to the runs.

    Returns:
        The content of tune.json; `failures` names failed trials.

    Raises:
        HemafastError: no trial or no time is asked for, Optuna is missing, the study is of other settings or in use, a
            value of `space` is refused, or the data has no such folds or no test images.
        StoppedError: a signal stopped a run.
    """
    if trials < 1 or not time_budget > 0:
        raise HemafastError(f"trials = {trials}, time_budget = {time_budget:g}: nothing is trained.", "Ask for more.")
    require(EXTRA, "optuna")
    space.check(config)
    search = _Search(config, space, folds)
    search.refuse_other_data(test=test)
    ends = time.monotonic() + time_budget
    write_files(config.output, {})
    with locked(config.output):
        study = open_study(config.output, search.asked(), seed=config.seed)
        _take_up(study)
        while len(_counted(study)) < trials and time.monotonic() < ends:
            try:
                _run_trial(study, search, ends, progress)
            except OutOfTimeError:
                break
            _write(study, search)
        if test and len(_counted(study)) >= trials:
            _test_best(study, search)
        return _write(study, search)


@dataclass(frozen=True, slots=True)
class _Search:
    """What is searched, and on which images."""

    config: TrainConfig
    space: Space
    folds: int | None

    def refuse_other_data(self, *, test: bool) -> None:
        """Raise HemafastError if the data has no such folds, or no test images where they are asked for."""
        if self.folds is not None and self.config.fold is not None:
            problem = f"fold = {self.config.fold} and folds = {self.folds} exclude each other."
            raise HemafastError(problem, "Leave out one of them.")
        dataset = open_dataset(self.config.data)
        refuse_other_folds(dataset, self.folds)
        if test:
            dataset.images(TEST)

    def asked(self) -> dict[str, Any]:
        """What a study cannot be continued without."""
        settings = {name: value for name, value in to_plain(self.config).items() if name not in _FREE}
        return settings | {"space": self.space.to_plain(), "folds": self.folds}


def _take_up(study: Study) -> None:
    """Ask again for trials that were interrupted: with the same folder, their runs resume."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if folder := told_of(trial).folder:
            study.enqueue_trial(trial.params, user_attrs={_FOLDER: folder})


def _counted(study: Study) -> list[FrozenTrial]:
    """Trials that came to an end, in any way but by an interruption."""
    from optuna.trial import TrialState

    ended = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [trial for trial in ended if trial.state != TrialState.FAIL or told_of(trial).reason is not None]


def _run_trial(study: Study, search: _Search, ends: float, progress: Progress) -> None:
    from optuna.trial import TrialState

    trial = study.ask()
    name = trial.user_attrs.get(_FOLDER, f"trial_{trial.number + 1:03d}")
    drawn = replace(search.space.draw(trial, search.config), output=search.config.output / name)
    trial.set_user_attr(_FOLDER, name)
    try:
        outcome = train_trial(trial, drawn, search.folds, ends=ends, progress=progress)
    except PrunedError:
        study.tell(trial, state=TrialState.PRUNED)
        return
    if isinstance(outcome, Failed):
        trial.set_user_attr(_REASON, outcome.reason)
        study.tell(trial, state=TrialState.FAIL)
    else:
        trial.set_user_attr(_FACTS, outcome.facts())
        study.tell(trial, outcome.macro_f1)


def _test_best(study: Study, search: _Search) -> None:
    """Score the best trial on the test images, unless that was done before."""
    best = _best([_row(trial) for trial in _counted(study)])
    if best is None or study.user_attrs.get(_TESTED, {}).get("trial") == best["trial"]:
        return
    runs = [Path(run) for run in best["runs"]]
    study.set_user_attr(_TESTED, {"trial": best["trial"]} | score_on_test(runs, search.config))


def _row(trial: FrozenTrial) -> dict[str, Any]:
    """One trial; of a pruned one, the macro-F1 of its last epoch."""
    told = told_of(trial)
    facts = told.facts
    last = max(trial.intermediate_values, default=None)
    states = {"COMPLETE": DONE, "PRUNED": PRUNED, "FAIL": FAILED}
    return {
        "trial": trial.number + 1,
        "state": states[trial.state.name],
        "macro_f1": trial.intermediate_values.get(last) if trial.value is None else trial.value,
        "ci95": facts.ci95 if facts else [None, None],
        "by_fold": told.by_fold,
        "epochs": facts.epochs if facts else None if told.by_fold else last,
        "seconds": facts.seconds if facts else None,
        "settings": trial.params,
        "run": facts.run if facts else None,
        "runs": facts.runs or [facts.run] if facts else [],
        "reason": told.reason,
    }


def _best(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    return max((row for row in rows if row["state"] == DONE), key=lambda row: row["macro_f1"], default=None)


def _write(study: Study, search: _Search) -> Result:
    """Write the results so far. Raises HemafastError if the output cannot be written."""
    rows = [_row(trial) for trial in _counted(study)]
    config, space, best = search.config, search.space, _best(rows)
    dataset, tested = open_dataset(config.data, domains=config.domains), study.user_attrs.get(_TESTED)
    info = dataset.info
    tested = tested if best and tested and tested["trial"] == best["trial"] else None
    result = {
        "schema": SCHEMA,
        "hemafast": __version__,
        "warnings": [DRAWN_WARNING] if info.drawn else [],
        "space": space.to_plain(),
        "folds": search.folds,
        "settings": to_plain(config),
        "trials": rows,
        "best": best,
        "test": tested,
        "notes": [*([NESTED, tested["look"]] if tested else [CAVEAT]), note_on_elsewhere(dataset.domains)],
        "failures": {f"trial {row['trial']}": row["reason"] for row in rows if row["state"] == FAILED},
        "data": {"folder": str(config.data), "fingerprint": info.fingerprint, "drawn": info.drawn},
    }
    pictures = _pictures(study) if sum(row["state"] == DONE for row in rows) > 1 else {}
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
    scores = ["macro_f1", "low", "high", "by_fold"]
    return ["trial", "state", *scores, "epochs", "seconds", *space.parts, "run", "reason"]


def _flat(row: Mapping[str, Any], space: Space) -> dict[str, Any]:
    low, high = row["ci95"]
    settings = {name: row["settings"].get(name) for name in space.parts}
    by_fold = " ".join(f"{score:.4f}" for score in row["by_fold"])
    return {**row, **settings, "low": low, "high": high, "by_fold": by_fold}


def _ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best first; pruned and failed trials last."""
    order = (DONE, PRUNED, FAILED)
    return sorted(rows, key=lambda row: (order.index(row["state"]), -(row["macro_f1"] or 0), row["trial"]))


def _pictures(study: Study) -> dict[str, Markup]:
    """Optuna's own plots as parts of the page, by what they show."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.visualization import matplotlib as plots

    asked = {
        "Macro-F1 of each trial, and the best so far": plots.plot_optimization_history,
        "Macro-F1 over each setting": plots.plot_slice,
    }
    if len(study.best_params) > 1:
        asked["How much each setting matters"] = plots.plot_param_importances
    with _no_display(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)  # of matplotlib, about axes on which all trials have one value
        return {title: _drawn(plot(study), title) for title, plot in asked.items()}


def _drawn(axes: Any, title: str) -> Markup:
    from matplotlib import pyplot
    from numpy import ravel

    figure = ravel(axes)[0].figure
    plain(figure)
    drawn = on_page(figure, f"{title}; the numbers are in the table")
    pyplot.close(figure)
    return drawn


@contextmanager
def _no_display() -> Iterator[None]:
    """matplotlib draws into files within the block: Optuna's plots go through pyplot, and set its style for all."""
    import matplotlib

    before = matplotlib.get_backend()
    matplotlib.use("agg")
    try:
        # The layout is set before a figure is made: set later, it cannot lay out a bar of colours.
        with matplotlib.rc_context({"figure.constrained_layout.use": True}):
            yield
    finally:
        matplotlib.use(before)
