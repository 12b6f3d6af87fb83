"""Train on each domain, on all but one and on all; test on each and on all; and write the results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hemafast import __version__
from hemafast.config import TrainConfig, to_plain
from hemafast.data.dataset import Dataset, open_dataset
from hemafast.errors import HemafastError
from hemafast.evaluate.folding import Folding, fold_classes, notes
from hemafast.evaluate.predictions import read_predictions
from hemafast.experiments.matrix import Group, Mask, Matrix, score_matrix
from hemafast.experiments.plots import draw_matrix
from hemafast.experiments.resampled import Labels
from hemafast.experiments.runs import Failed, Outcome, Scored, csv_of, run_all, warnings_about, write_files
from hemafast.experiments.shortcut import POOLED, Shortcuts, check_shortcuts
from hemafast.pages import render
from hemafast.pictures import drawn, on_page, save
from hemafast.preparation.schema import accepted, divided_groups, grouped_domains
from hemafast.preparation.split import TRAIN, VAL
from hemafast.preparation.tables.lists import read_class_map
from hemafast.progress import SILENT, Progress
from hemafast.run_folder import CROSSDOMAIN, PREDICTIONS
from hemafast.words import counted

NAME = Path(CROSSDOMAIN).stem
SCHEMA = 1
LEAST_IMAGES, LEAST_CLASSES = 20, 2
"""A domain with fewer training images, or with training images of fewer classes, is only tested on."""

_ALL_BUT = "all but "
_LEAST_TO_LEAVE_OUT = 3  # domains; of two, leaving out one is training on the other

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is trained on and tested on."""

    trained: tuple[Group, ...]
    tested: tuple[Group, ...]
    tested_only: Mapping[str, str]
    """Domains that no model is trained on, and why."""

    @property
    def domains(self) -> list[str]:
        """The single domains that are tested on."""
        return [group.name for group in self.tested if group.name != POOLED]

    def unseen(self, group: Group) -> list[str]:
        """The domains to test on that a model has not seen."""
        return [name for name in self.domains if name not in group.domains]

    def without(self, domain: str) -> str | None:
        """The model of all domains but this one."""
        learned = max(self.trained, key=lambda group: len(group.domains)).domains
        rest = {name for name in learned if name != domain}
        return next((group.name for group in self.trained if set(group.domains) == rest), None)


def compare_domains(
    config: TrainConfig,
    shortcuts: Shortcuts | None = None,
    *,
    class_map: Mapping[str, str] | Path | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Train models on each of `config.domains` (by default all), on all but one and on all; test each on each.

    Writes crossdomain.json, .csv, .png and .html into `config.output`, and each run into a folder below it:
    train_DOMAIN, all_but_DOMAIN and pooled. A second call reuses finished runs and resumes interrupted ones.

    Args:
        config: settings of every run. With three domains to train on or more, each is also left out in turn.
        shortcuts: written with the results.
        class_map: new names for classes, which merges those of one name in the scores; "" leaves the images of a class
            out. Training does not change.
        progress: listens to the runs.

    Returns:
        The content of crossdomain.json; `failures` names the failed runs.

    Raises:
        HemafastError: there are fewer than two domains, a name is unknown, or the class map names an unknown class.
        StoppedError: a signal stopped a run.
    """
    dataset = open_dataset(config.data, config.fold)
    folding, plan = _folding(dataset, read_class_map(class_map or {})), _plan(dataset, config.domains)
    configs = {group.name: _settings(config, group) for group in plan.trained}
    outcomes = dict(run_all(configs, progress=progress))
    result = _result(config, dataset, plan, folding, outcomes)
    result["shortcuts"] = None if shortcuts is None else shortcuts.to_json()
    _write(config.output, result)
    return result


def find_shortcuts(config: TrainConfig, *, progress: Progress = SILENT) -> Shortcuts | None:
    """`check_shortcuts` between the domains to compare; None if only one of them can be trained on."""
    dataset = open_dataset(config.data, config.fold)
    names = _trainable(dataset, config.domains)
    return check_shortcuts(dataset, names, progress=progress) if len(names) > 1 else None


def _folding(dataset: Dataset, class_map: Mapping[str, str]) -> Folding:
    classes = dataset.info.classes
    counts = dataset.counts(VAL).tolist()
    return fold_classes(classes, dict(zip(classes, counts, strict=True)), class_map)


def _trainable(dataset: Dataset, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The domains of `asked` (by default all) that have enough training images, and validation images."""
    return tuple(name for name in _domains(dataset, asked) if not _too_small(dataset, name))


def _too_small(dataset: Dataset, name: str) -> str:
    """Why a domain cannot be trained on; empty if it can."""
    counts = replace(dataset, chosen=(name,)).counts(TRAIN)
    images, classes = int(counts.sum()), int((counts > 0).sum())
    if images < LEAST_IMAGES or classes < LEAST_CLASSES:
        return (
            f"{counted(images, 'training image')} of {counted(classes, 'class')}; "
            f"{LEAST_IMAGES} images of {LEAST_CLASSES} classes are the "
            "least"
        )
    return "" if (dataset.images(VAL)["domain"] == name).any() else "no validation images to choose an epoch by"


def _domains(dataset: Dataset, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The domains to compare. Raises HemafastError if there are fewer than two, or a name is unknown."""
    names = tuple(dict.fromkeys(asked or dataset.info.domains))
    there = ", ".join(dataset.info.domains)
    for name in names:
        if name not in dataset.info.domains:
            raise HemafastError(f"{dataset.folder} has no domain {name}.", f"Choose from: {there}.")
        if name == POOLED or name.startswith(_ALL_BUT):
            raise HemafastError(
                f"A domain is named {name}, which here means several domains together.",
                "Rename its archive and prepare it.",
            )
    if len(names) < 2:
        raise HemafastError(
            f"There is only one domain to compare, {names[0]}.", f"Name two of: {there}; or prepare a second archive."
        )
    return names


def _plan(dataset: Dataset, asked: Sequence[str] | None) -> _Plan:
    names, learned = _domains(dataset, asked), _trainable(dataset, asked)
    tested = [name for name in names if (dataset.images(VAL)["domain"] == name).any()]
    small = {name: _too_small(dataset, name) for name in tested if name not in learned}
    if not learned or len(tested) < 2:
        reasons = "".join(f"; {name}: {reason}" for name, reason in small.items())
        raise HemafastError(
            f"Of {' and '.join(names)}, {len(learned)} can be trained on and {len(tested)} have validation "
            f"images{reasons}.",
            "Prepare the data with another split, or with more images.",
        )
    pooled = [Group(POOLED, learned)] if len(learned) > 1 else []
    alone = {name: Group(name, (name,)) for name in names}
    rest = [Group(f"{_ALL_BUT}{name}", tuple(one for one in learned if one != name)) for name in learned]
    left_out = rest if len(learned) >= _LEAST_TO_LEAVE_OUT else []
    return _Plan(
        trained=(*(alone[name] for name in learned), *left_out, *pooled),
        tested=(*(alone[name] for name in tested), *pooled),
        tested_only=small,
    )


def _settings(config: TrainConfig, group: Group) -> TrainConfig:
    """The prefix of a folder keeps names of domains from clashing."""
    if group.name == POOLED:
        folder = POOLED
    elif group.name.startswith(_ALL_BUT):
        folder = f"all_but_{group.name.removeprefix(_ALL_BUT)}"
    else:
        folder = f"train_{group.name}"
    return replace(config, domains=group.domains, output=config.output / folder)


def _result(
    config: TrainConfig, dataset: Dataset, plan: _Plan, folding: Folding, outcomes: Mapping[str, Outcome]
) -> Result:
    scored = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Scored)}
    counts = {group.name: replace(dataset, chosen=group.domains).counts(TRAIN) for group in plan.trained}
    classes, images = dataset.info.classes, dataset.samples(VAL)
    matrix = score_matrix(
        images,
        folding.labels[images.labels],
        {name: _answers(dataset, run.folder, folding) for name, run in scored.items()},
        plan.tested,
        {name: _known(images > 0, folding) for name, images in counts.items()},
        folding.classes,
    )
    return {
        "schema": SCHEMA,
        "hemafast": __version__,
        "warnings": warnings_about(scored.values()),
        "notes": _notes(dataset, plan),
        "trained": [_row(group, counts[group.name], classes, outcomes[group.name]) for group in plan.trained],
        "tested": [{"name": group.name, "domains": list(group.domains)} for group in plan.tested],
        "tested_only": dict(plan.tested_only),
        "classes": list(folding.classes),
        "folding": dict(folding.account),
        "cells": [asdict(cell) for cell in matrix.cells],
        "unseen": _unseen(plan, matrix),
        "left_out": _left_out(plan, matrix),
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


def _unseen(plan: _Plan, matrix: Matrix) -> list[dict[str, Any]]:
    """By model: its mean over the domains that it has not seen. Models without such a score are left out."""
    means = {group.name: matrix.mean(dict.fromkeys(plan.unseen(group), group.name)) for group in plan.trained}
    return [{"trained_on": name, **asdict(mean)} for name, mean in means.items() if mean is not None]


def _left_out(plan: _Plan, matrix: Matrix) -> dict[str, Any] | None:
    """The mean over domains, each tested with the model of all others. None where such a model is missing."""
    models = {name: model for name in plan.domains if (model := plan.without(name)) is not None}
    mean = matrix.mean(models)
    if mean is None:
        return None
    return {
        **asdict(mean.macro_f1),
        "domains": list(mean.domains),
        "models": {name: models[name] for name in mean.domains},
    }


def _notes(dataset: Dataset, plan: _Plan) -> list[str]:
    """Whether the same patients may be on both sides of a diagonal, and which domains are only tested on."""
    grouped = set(grouped_domains(dataset.files.columns("verdict", "domain", "group", "duplicate_group")))
    divided = [name for name in plan.domains if name not in grouped]
    apart = [name for name in plan.domains if name in grouped]
    said = (
        [f"In {' and '.join(apart)}, groups such as patients are in training or in validation, not in both"]
        if apart
        else []
    )
    said += (
        [f"In {' and '.join(divided)}, the split is by image, not by patient: scores at home may be too good"]
        if divided
        else []
    )
    if twice := divided_groups(_images_of(dataset, apart)):
        said.append(f"{counted(twice, 'group has', 'groups have')} images on both sides of the split, as it was given")
    return said + [f"{name} is only tested on: {reason}" for name, reason in plan.tested_only.items()]


def _images_of(dataset: Dataset, domains: Sequence[str]) -> Any:
    images = accepted(dataset.files.columns("verdict", "domain", "split", "group"))
    return images[images["domain"].isin(domains)]


def _known(trained: Mask, folding: Folding) -> Mask:
    """Of the merged classes: those that any class with training images became."""
    known = np.zeros(len(folding.classes), dtype=bool)
    known[folding.answers[trained]] = True
    return known


def _answers(dataset: Dataset, run: Path, folding: Folding) -> Labels:
    """The likeliest merged classes of the validation images of all domains, as a run wrote them down."""
    file = run / PREDICTIONS
    table, classes, probabilities = read_predictions(file)
    if list(table["image"]) != list(dataset.images(VAL)["path"]) or classes != dataset.info.classes:
        raise HemafastError(f"{file} is not about {dataset.folder}.", "Run `hemafast evaluate` again.")
    return np.asarray(folding.probabilities(probabilities).argmax(axis=1), dtype=np.int64)


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
    figure = draw_matrix(result)
    page = render(
        f"experiments/{NAME}.html.j2",
        result=result,
        cells=cells_of(result),
        folding=notes(result["folding"]),
        picture=on_page(figure, "Macro-F1 of each model on each domain; the numbers are in the table"),
    )
    contents = {
        CROSSDOMAIN: json.dumps(result, indent=2, allow_nan=False).encode() + b"\n",
        f"{NAME}.csv": csv_of(map(_csv_row, result["cells"]), _CSV_COLUMNS),
        f"{NAME}.png": drawn(partial(save, figure)),
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
