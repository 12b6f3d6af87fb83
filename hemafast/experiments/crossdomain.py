"""Train on each domain and on all, test on each and on all, and write the results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from hemafast import __version__
from hemafast.config import TrainConfig, to_plain
from hemafast.data.dataset import Dataset, open_dataset
from hemafast.errors import HemafastError
from hemafast.evaluate.predictions import read_predictions
from hemafast.experiments.matrix import Group, score_cells
from hemafast.experiments.plots import plot_matrix
from hemafast.experiments.resampled import Labels
from hemafast.experiments.runs import Failed, Outcome, Scored, csv_of, run_all, warnings_about, write_files
from hemafast.experiments.shortcut import POOLED, Shortcuts, check_shortcuts
from hemafast.pages import render
from hemafast.pictures import data_address, drawn
from hemafast.preparation.split import TRAIN, VAL
from hemafast.progress import SILENT, Progress
from hemafast.run_folder import PREDICTIONS

NAME = "crossdomain"
SCHEMA = 1

Result = dict[str, Any]


def compare_domains(config: TrainConfig, shortcuts: Shortcuts | None = None, *, progress: Progress = SILENT) -> Result:
    """Train a model on each of `config.domains` (by default all) and one on all of them, and test each on each.

    Writes crossdomain.json, .csv, .png and .html into `config.output`, and each run into a folder below it:
    train_DOMAIN, and pooled. `shortcuts` are written with the results. A second call reuses finished runs and resumes
    interrupted ones. Returns the content of crossdomain.json; `failures` names the failed runs.

    Raises HemafastError if there are fewer than two domains or a name is unknown, and StoppedError if a signal stopped
    a run.
    """
    dataset = open_dataset(config.data, config.fold)
    trained, tested = _groups(dataset, config.domains)
    configs = {group.name: _settings(config, group) for group in trained}
    outcomes = dict(run_all(configs, progress=progress))
    result = _result(config, dataset, trained, tested, outcomes)
    result["shortcuts"] = None if shortcuts is None else shortcuts.to_json()
    _write(config.output, result)
    return result


def find_shortcuts(config: TrainConfig, *, progress: Progress = SILENT) -> Shortcuts | None:
    """`check_shortcuts` between the domains to compare; None if only one of them has training images."""
    dataset = open_dataset(config.data, config.fold)
    names = _trainable(dataset, config.domains)
    return check_shortcuts(dataset, names, progress=progress) if len(names) > 1 else None


def _trainable(dataset: Dataset, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The domains of `asked` (by default all) that have training and validation images."""
    there = [set(dataset.split(split)["domain"]) for split in (TRAIN, VAL)]
    return tuple(name for name in _domains(dataset, asked) if all(name in names for names in there))


def _domains(dataset: Dataset, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The domains to compare. Raises HemafastError if there are fewer than two, or a name is unknown."""
    names = tuple(dict.fromkeys(asked or dataset.info.domains))
    there = ", ".join(dataset.info.domains)
    for name in names:
        if name not in dataset.info.domains:
            raise HemafastError(f"{dataset.folder} has no domain {name}.", f"Choose from: {there}.")
        if name == POOLED:
            raise HemafastError(
                f"A domain is named {POOLED}, which here means all domains together.",
                "Rename its archive and prepare it.",
            )
    if len(names) < 2:
        raise HemafastError(
            f"There is only one domain to compare, {names[0]}.", f"Name two of: {there}; or prepare a second archive."
        )
    return names


def _groups(dataset: Dataset, asked: Sequence[str] | None) -> tuple[list[Group], list[Group]]:
    """Groups to train on and groups to test on; a domain without training images is only tested on."""
    names, learned = _domains(dataset, asked), _trainable(dataset, asked)
    tested = [name for name in names if (dataset.split(VAL)["domain"] == name).any()]
    if not learned or len(tested) < 2:
        raise HemafastError(
            f"Of {' and '.join(names)}, {len(learned)} have training images and {len(tested)} have validation images.",
            "Prepare the data with another split.",
        )
    pooled = [Group(POOLED, learned)] if len(learned) > 1 else []
    alone = {name: Group(name, (name,)) for name in names}
    return [alone[name] for name in learned] + pooled, [alone[name] for name in tested] + pooled


def _settings(config: TrainConfig, group: Group) -> TrainConfig:
    folder = POOLED if group.name == POOLED else f"train_{group.name}"  # the prefix keeps a domain's name from clashing
    return replace(config, domains=group.domains, output=config.output / folder)


def _result(
    config: TrainConfig,
    dataset: Dataset,
    trained: Sequence[Group],
    tested: Sequence[Group],
    outcomes: Mapping[str, Outcome],
) -> Result:
    scored = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Scored)}
    counts = {group.name: replace(dataset, chosen=group.domains).counts(TRAIN) for group in trained}
    known = {name: images > 0 for name, images in counts.items()}
    answers = {name: _answers(dataset, run.folder) for name, run in scored.items()}
    classes = dataset.info.classes
    return {
        "schema": SCHEMA,
        "hemafast": __version__,
        "warnings": warnings_about(scored.values()),
        "trained": [_row(group, counts[group.name], classes, outcomes[group.name]) for group in trained],
        "tested": [{"name": group.name, "domains": list(group.domains)} for group in tested],
        "cells": [asdict(cell) for cell in score_cells(dataset.samples(VAL), answers, tested, known, classes)],
        "failures": {name: outcome.reason for name, outcome in outcomes.items() if isinstance(outcome, Failed)},
        "data": {
            "folder": str(dataset.folder),
            "fingerprint": dataset.info.fingerprint,
            "drawn": dataset.info.drawn,
            "classes": list(classes),
            "settings": dataset.info.settings,
        },
        "settings": to_plain(config),
    }


def _answers(dataset: Dataset, run: Path) -> Labels:
    """The predictions of a run for the validation images of all domains."""
    file, places = run / PREDICTIONS, {label: place for place, label in enumerate(dataset.info.classes)}
    table, _, _ = read_predictions(file)
    if list(table["image"]) != list(dataset.split(VAL)["path"]) or not table["predicted"].isin(places).all():
        raise HemafastError(f"{file} is not about {dataset.folder}.", "Run `hemafast evaluate` again.")
    return np.array([places[label] for label in table["predicted"]], dtype=np.int64)


def _row(group: Group, images: Labels, classes: Sequence[str], outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": group.name,
        "domains": list(group.domains),
        "images": int(images.sum()),
        "absent": [name for name, count in zip(classes, images, strict=True) if not count],
        "run": None,
    }
    if isinstance(outcome, Failed):
        return row
    training, model = outcome.metrics["training"], outcome.metrics["model"]
    return row | {
        "run": str(outcome.folder),
        "epochs": training["epochs"],
        "best_epoch": model["epoch"],
        "seconds": training["total_seconds"],
        "images_per_second": training["train_images_per_second"],
        "started_from": model["started_from"],
    }


def cells_of(result: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The cells by training group and test group."""
    return {(cell["trained_on"], cell["tested_on"]): cell for cell in result["cells"]}


def _write(folder: Path, result: Result) -> None:
    picture = drawn(lambda file: plot_matrix(file, result))
    page = render(
        f"experiments/{NAME}.html.j2", result=result, cells=cells_of(result), picture=data_address(picture, "png")
    )
    contents = {
        f"{NAME}.json": json.dumps(result, indent=2, allow_nan=False).encode() + b"\n",
        f"{NAME}.csv": csv_of(map(_csv_row, result["cells"]), _CSV_COLUMNS),
        f"{NAME}.png": picture,
        f"{NAME}.html": page.encode(),
    }
    write_files(folder, contents)


_CSV_COLUMNS = (
    "trained_on",
    "tested_on",
    *(f"{kind}_{name}" for kind in ("shared", "all") for name in ("macro_f1", "low", "high", "images", "classes")),
    *("drop", "drop_low", "drop_high", "drop_classes"),
)


def _csv_row(cell: Mapping[str, Any]) -> dict[str, Any]:
    """One cell; missing scores are left empty."""
    row = {"trained_on": cell["trained_on"], "tested_on": cell["tested_on"]}
    for kind, score in (("shared", cell["shared"]), ("all", cell["every"])):
        low, high = score["macro_f1"]["ci95"]
        row |= {f"{kind}_macro_f1": score["macro_f1"]["value"], f"{kind}_low": low, f"{kind}_high": high}
        row |= {f"{kind}_images": score["images"], f"{kind}_classes": len(score["classes"])}
    if drop := cell["drop"]:
        low, high = drop["drop"]["ci95"]
        row |= {"drop": drop["drop"]["value"], "drop_low": low, "drop_high": high, "drop_classes": len(drop["classes"])}
    return row
