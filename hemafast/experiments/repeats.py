"""Train the same settings several times, on each fold and with several seeds, and say how sure the score is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemafast import __version__
from hemafast.config import TrainConfig, to_plain
from hemafast.data.dataset import Dataset, open_dataset
from hemafast.engine.distributed import refuse_several
from hemafast.engine.journal import measured, read_rows
from hemafast.errors import HemafastError
from hemafast.evaluate.elsewhere import note_on_elsewhere
from hemafast.evaluate.predictions import read_predictions
from hemafast.experiments.apart import processes_for
from hemafast.experiments.certainty import certainty, passes_of, spread_of
from hemafast.experiments.repeats_plan import RESULT, Repeats, newest_repeats, plan_repeats, refuse_other_folds
from hemafast.experiments.runs import Failed, Outcome, Scored, csv_of, run_all, warnings_about, write_files
from hemafast.files import csv_bytes
from hemafast.pages import render
from hemafast.pictures import confusion_figure, on_page
from hemafast.preparation.schema import grouped_domains
from hemafast.preparation.split import TEST, VAL
from hemafast.progress import SILENT, Progress
from hemafast.reading import cause
from hemafast.recorded import RepeatsFile, read_recorded
from hemafast.run_folder import PREDICTIONS, locked, make_run_folder
from hemafast.words import counted

TABLE, PAGE = "repeats.csv", "repeats.html"
SCHEMA = 1
DONE, NOT_RUN, FAILED = "done", "not run", "failed"

_COLUMNS = ("run", "fold", "seed", "status", "macro_f1", "low", "high", "epoch_gain", "accuracy", "images")
_MORE_COLUMNS = ("best_epoch", "epochs", "seconds", "folder")

Result = dict[str, Any]


def repeat_training(
    config: TrainConfig,
    *,
    folds: int | None = None,
    seeds: int = 1,
    parallel: int | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Train with the same settings on each fold, with several seeds, or both, and write what the scores are worth.

    Writes RESULT, TABLE and PAGE into a folder of its own under `config.output`, each run into a folder below it, and
    with folds the answers to all images as out_of_fold_seed_SEED.csv. The same call continues: finished runs are
    reused, interrupted ones resume, and one failure does not stop the rest. More seeds add to those that there are.

    Args:
        config: settings of all runs; `config.seed` is the first seed.
        folds: the number of folds that the data set was prepared with; None for its split.
        seeds: how many seeds.
        parallel: how many runs at a time; None for as many as `processes_for` finds suitable.
        progress: listens to the runs.

    Returns:
        The folder; `read_repeats` reads its RESULT.

    Raises:
        HemafastError: the data has no such folds, or another process is at it.
        StoppedError: a signal stopped the runs.
    """
    refuse_several()
    repeats = plan_repeats(config, folds, seeds)
    dataset = open_dataset(config.data, domains=config.domains)
    refuse_other_folds(dataset, folds)
    folder = newest_repeats(repeats, dataset.info.fingerprint) or make_run_folder(config, repeats.kind)
    configs = repeats.configs(folder)
    processes = processes_for(config, len(configs)) if parallel is None else parallel
    with locked(folder):
        outcomes: dict[str, Outcome] = {}
        _write(folder, repeats, dataset, outcomes)
        for name, outcome in run_all(configs, processes=processes, progress=progress):
            outcomes[name] = outcome
            _write(folder, repeats, dataset, outcomes)
    return folder


def read_repeats(folder: Path) -> Result:
    """The content of RESULT in a folder. Raises HemafastError if there is none."""
    try:
        return read_recorded(folder / RESULT, RepeatsFile)
    except (OSError, ValueError) as error:
        problem = f"{folder} holds no readable {RESULT} ({cause(error)})."
        raise HemafastError(problem, "Train with --folds or --seeds.") from error


def _write(folder: Path, repeats: Repeats, dataset: Dataset, outcomes: Mapping[str, Outcome]) -> None:
    """Write the results so far. Raises HemafastError if the folder cannot be written."""
    scored = {name: run for name, run in outcomes.items() if isinstance(run, Scored)}
    tables = dict(_complete(repeats, dataset, scored))
    named = {str(seed): table for seed, table in tables.items()}
    sure = certainty(passes_of(_images(repeats, dataset), named, dataset.classes)) if tables else None
    result = _result(repeats, dataset, outcomes, sure)
    page = render("experiments/repeats.html.j2", result=result, pictures=_pictures(dataset, sure, len(tables)))
    contents = {
        RESULT: json.dumps(result, indent=2, allow_nan=False).encode() + b"\n",
        TABLE: csv_of([_flat(row) for row in result["runs"]], [*_COLUMNS, *_MORE_COLUMNS]),
        PAGE: page.encode(),
    }
    if repeats.folds is not None:
        contents |= {f"out_of_fold_seed_{seed}.csv": csv_bytes(table) for seed, table in tables.items()}
    write_files(folder, contents)


def _complete(repeats: Repeats, dataset: Dataset, scored: Mapping[str, Scored]) -> Iterator[tuple[int, pd.DataFrame]]:
    """The seeds whose runs have all ended, with their answers: one row for each image, in the order of the data set.

    Raises HemafastError if a run is about other images.
    """
    images = _images(repeats, dataset)["path"]
    for seed in repeats.seeds:
        names = [name for name, (_, of) in repeats.members.items() if of == seed]
        if not all(name in scored for name in names):
            continue
        parts = []
        for name in names:
            table, classes, _ = read_predictions(scored[name].folder / PREDICTIONS)
            if list(classes) != dataset.classes:
                raise HemafastError(f"{scored[name].folder / PREDICTIONS} has other classes.", "Evaluate it again.")
            parts.append(table.assign(fold=repeats.members[name][0]))
        whole = pd.concat(parts, ignore_index=True).set_index("image")
        if sorted(whole.index) != sorted(images):
            raise HemafastError(f"The runs of seed {seed} are not about {dataset.folder}.", "Evaluate them again.")
        yield seed, whole.loc[images].reset_index()


def _images(repeats: Repeats, dataset: Dataset) -> pd.DataFrame:
    """The images that a pass answers for, each once: of all folds, or the validation images."""
    parts = [replace(dataset, fold=fold).images(VAL, "group") for fold in repeats.validating]
    return pd.concat(parts).sort_index()


def _result(
    repeats: Repeats, dataset: Dataset, outcomes: Mapping[str, Outcome], sure: Mapping[str, Any] | None
) -> Result:
    rows = [_row(name, *member, outcomes.get(name)) for name, member in repeats.members.items()]
    done = [row for row in rows if row["status"] == DONE]
    info = dataset.info
    return {
        "schema": SCHEMA,
        "hemafast": __version__,
        "kind": repeats.kind,
        "folds": repeats.folds,
        "seeds": list(repeats.seeds),
        "warnings": warnings_about(run for run in outcomes.values() if isinstance(run, Scored)),
        "notes": _notes(repeats, dataset, done),
        "runs": rows,
        "spread": spread_of([row["macro_f1"] for row in done]),
        "score": sure,
        "failures": {name: run.reason for name, run in outcomes.items() if isinstance(run, Failed)},
        "identity": repeats.identity(),
        "settings": to_plain(repeats.config),
        "data": {
            "folder": str(dataset.folder),
            "fingerprint": info.fingerprint,
            "drawn": info.drawn,
            "domains": dataset.domains,
            "test_images": len(dataset.images(TEST)) if TEST in info.counts else 0,
        },
    }


def _row(name: str, fold: int | None, seed: int, outcome: Outcome | None) -> dict[str, Any]:
    """One run; without numbers if it has not ended."""
    row: dict[str, Any] = {"run": name, "fold": fold, "seed": seed}
    if not isinstance(outcome, Scored):
        numbers = ("macro_f1", "epoch_gain", "accuracy", "images", "best_epoch", "epochs", "seconds", "folder")
        status = FAILED if isinstance(outcome, Failed) else NOT_RUN
        return row | {"status": status, "ci95": [None, None]} | dict.fromkeys(numbers)
    metrics, logged = outcome.metrics, measured(read_rows(outcome.folder), VAL, "f1_macro")
    pooled, training = metrics["pooled"], metrics["training"]
    return row | {
        "status": DONE,
        "macro_f1": pooled["macro_f1"],
        "ci95": pooled["ci95"]["macro_f1"],
        "epoch_gain": max(logged) - logged[-1] if logged else None,
        "accuracy": pooled["accuracy"],
        "images": pooled["images"],
        "best_epoch": metrics["model"]["epoch"],
        "epochs": training["epochs"],
        "seconds": training["total_seconds"],
        "folder": str(outcome.folder),
    }


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    low, high = row["ci95"]
    return {**row, "low": low, "high": high}


def _notes(repeats: Repeats, dataset: Dataset, done: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the scores are, and what makes them too good."""
    return [
        _of_images(repeats, dataset),
        *_of_patients(dataset),
        *_of_epochs(done),
        *(["Two seeds say little about others: their interval is wide"] if len(repeats.seeds) == 2 else []),
        _of_choices(dataset),
        note_on_elsewhere(dataset.domains),
    ]


def _of_images(repeats: Repeats, dataset: Dataset) -> str:
    images = len(_images(repeats, dataset))
    if repeats.folds is None:
        return f"All runs learn from the same images, and are scored on the same {counted(images, 'validation image')}"
    return (
        f"Each of {counted(images, 'image')} is answered once for each seed: by the one model of {repeats.folds} that "
        "has not learned from its fold"
    )


def _of_patients(dataset: Dataset) -> Iterator[str]:
    grouped = set(grouped_domains(dataset.files.columns("verdict", "domain", "group", "duplicate_group")))
    apart, divided = ([name for name in dataset.domains if (name in grouped) is known] for known in (True, False))
    if apart:
        yield f"In {' and '.join(apart)}, groups such as patients are kept apart, and resampled as a whole"
    if divided:
        yield f"In {' and '.join(divided)}, the split is by image, not by patient: scores may be too good"


def _of_epochs(done: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    gains = [row["epoch_gain"] for row in done if row["epoch_gain"] is not None and row["epochs"] > 1]
    if gains:
        yield (
            "The best epoch of each run was chosen on the images that it is scored on. Over the last epoch, that "
            f"choice gains {np.mean(gains):.3f} macro-F1 on average: about so much of the score may be luck"
        )


def _of_choices(dataset: Dataset) -> str:
    start = "If settings were chosen on these images, as by `hemafast tune`, the score is too good as well. "
    if TEST not in dataset.info.counts:
        return f"{start}`hemafast prepare --test-fraction 0.2` holds out images for one honest test"
    held_out = counted(len(dataset.images(TEST)), "held-out test image")
    return f"{start}`hemafast evaluate RUN --split test` scores {held_out}: once, when nothing is left to choose"


def _pictures(dataset: Dataset, sure: Mapping[str, Any] | None, passes: int) -> list[Any]:
    """The confusion matrix as a part of the page; none without a score."""
    if sure is None:
        return []
    of = "" if passes == 1 else f", {passes} seeds added up"
    title = f"{counted(sure['images'], 'image')}{of}: macro-F1 {sure['macro_f1']['value']:.3f}"
    figure = confusion_figure({title: np.array(sure["confusion"])}, dataset.classes)
    return [on_page(figure, f"Confusion matrix. {title}. The numbers are in {RESULT}")]
