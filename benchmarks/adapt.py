"""What `hemafast adapt` gains on laboratories that runs have never seen: without labels, with few, and which to label.

    python benchmarks/adapt.py LabA/prepared LabB/prepared --run runs/SEED1 --run runs/SEED2 \
        --json benchmarks/results/adapt.json

Each laboratory is a prepared data set, whose classes have the names of the run's (`hemafast prepare --class-map`). All
its images are used. A class of the run that a laboratory lacks can count as another one: --merge
neutrophil_banded=neutrophil_segmented. Scores are macro-F1 over the classes that a laboratory has; intervals without
labels are bootstraps over cells, paired with the run before adapting. For curves, half of the groups give labels and
the other half is scored, for each draw; intervals are percentiles over draws. Seconds are those of `adapt` as a whole
with the first run, without labels and with most of them: from opening the run, over reading all images of the
laboratory from their files, to the new run folder. Loading Python and its packages is not in them.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from adapt_tables import PER_CLASS, SUGGESTED
from output import JsonFile, write_json

from hemafast.data.dataset import Dataset, open_dataset
from hemafast.engine.machine import machine_facts
from hemafast.errors import HemafastError
from hemafast.evaluate.compared import compare
from hemafast.logistic import Layer, Matrix
from hemafast.metrics import count_confusion, macro_f1
from hemafast.model import Classifier, last_layer
from hemafast.preparation.split import SPLITS
from hemafast.progress import SILENT
from hemafast.transfer import steps
from hemafast.transfer.adapt import Parent, adapt_run, open_parent, without_labels
from hemafast.transfer.cells import Asked, read_samples
from hemafast.transfer.choose import Candidate
from hemafast.transfer.head import fit_layer
from hemafast.transfer.suggest import choose_cells

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Laboratory:
    """All cells of a prepared data set."""

    name: str
    paths: tuple[str, ...]
    """Files of the cells."""
    pixels: torch.Tensor
    labels: Labels
    groups: npt.NDArray[np.str_]
    merged: npt.NDArray[np.int64]
    """(classes,): the class that an answer counts as."""

    def answers(self, logits: Matrix) -> Labels:
        """Classes of logits (n, classes), merged."""
        merged: Labels = self.merged[logits.argmax(axis=1)]
        return merged

    def score(self, logits: Matrix, rows: Labels) -> float:
        """Macro-F1 of the logits of some cells."""
        classes = len(self.merged)
        return macro_f1(count_confusion(self.labels[rows], self.answers(logits), classes))


def main(
    data: Annotated[list[Path], typer.Argument(help="Prepared data sets of other laboratories.")],
    run: Annotated[list[Path], typer.Option(help="Run folder; may be repeated, for other seeds.")],
    json_file: JsonFile,
    merge: Annotated[list[str] | None, typer.Option(help="FROM=TO, for laboratories without FROM.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of labels.")] = 5,
    own_classes: Annotated[
        bool,
        typer.Option(
            "--own-classes", help="Only changes without labels, also with the classes of the laboratory alone."
        ),
    ] = False,
) -> None:
    """Adapt each run to each laboratory, and write all scores."""
    pairs = dict(one.split("=") for one in merge or ())
    runs: list[dict[str, Any]] = []
    for folder in run:
        parent = open_parent(folder)
        found = []
        for other in data:
            laboratory = _read(parent, open_dataset(other), pairs)
            if own_classes:
                found.append(_with_own_classes(parent, laboratory))
            else:
                found.append(_measured(parent, laboratory, draws, timed=not runs))
            print(f"{folder.name}, {laboratory.name}: {found[-1]['chosen']}", file=sys.stderr)
        runs.append({**_described(parent), "laboratories": found})
    names = [one["name"] for one in runs[0]["laboratories"]]
    command = ["python", "benchmarks/adapt.py", *names, *(word for _ in run for word in ("--run", "RUN"))]
    command += [word for one in merge or () for word in ("--merge", one)]
    command += ["--own-classes"] if own_classes else []
    facts = {"command": shlex.join(command), "machine": machine_facts("cpu"), "draws": draws}
    write_json({**facts, "runs": runs}, json_file)


def _described(parent: Parent) -> dict[str, Any]:
    card, config = parent.card, parent.config
    return {"backbone": card.backbone, "preset": config.preset, "seed": config.seed, "domains": card.domains}


def _read(parent: Parent, dataset: Dataset, pairs: Mapping[str, str]) -> Laboratory:
    if dataset.info.drawn:
        raise HemafastError(f"{dataset.folder} holds drawn cells.", "No score on them is worth keeping.")
    place = {name: index for index, name in enumerate(parent.card.classes)}
    parts = [(dataset.split(name), dataset.samples(name, parent.card.image_size)) for name in SPLITS]
    known = [np.flatnonzero(rows["label"].isin(place)) for rows, _ in parts]
    rows = [part.iloc[some] for (part, _), some in zip(parts, known, strict=True)]
    labels = np.concatenate([[place[name] for name in part["label"]] for part in rows]).astype(np.int64)
    pixels = [
        read_samples(parent.opened, samples.select(some), SILENT)
        for (_, samples), some in zip(parts, known, strict=True)
    ]
    paths = [path for (_, samples), some in zip(parts, known, strict=True) for path in samples.select(some).paths]
    merged = np.arange(len(place))
    for lacking, other in pairs.items():
        if place[lacking] not in labels:
            merged[place[lacking]] = place[other]
    groups = np.concatenate([part["group"].to_numpy(dtype=np.str_) for part in rows])
    return Laboratory("+".join(dataset.domains), tuple(paths), torch.cat(pixels), labels, groups, merged)


def _measured(parent: Parent, laboratory: Laboratory, draws: int, *, timed: bool) -> dict[str, Any]:
    chosen, judged = without_labels(parent, laboratory.pixels, SILENT)
    changes = [_change(parent, parent, laboratory, one, one is chosen) for one in judged]
    features = steps.features_of(chosen.network, laboratory.pixels).double().numpy()
    old = _layer_of(chosen)
    return {
        "name": laboratory.name,
        "cells": len(laboratory.labels),
        "classes": len(np.unique(laboratory.labels)),
        "chosen": chosen.name,
        "changes": changes,
        "labels": [*_curve(laboratory, features, old, draws)],
        "suggested": _suggested(laboratory, features, old, draws),
        **({"seconds": _timed(parent, laboratory)} if timed else {}),
    }


def _with_own_classes(parent: Parent, laboratory: Laboratory) -> dict[str, Any]:
    """Changes without labels, where all classes can be answers, and where those of the laboratory can."""
    narrow = open_parent(parent.folder, classes=_own_classes(parent, laboratory))
    changes = []
    for of in (parent, narrow):
        chosen, judged = without_labels(of, laboratory.pixels, SILENT)
        changes += [_change(parent, of, laboratory, one, one is chosen) for one in judged]
    return {
        "name": laboratory.name,
        "cells": len(laboratory.labels),
        "classes": len(np.unique(laboratory.labels)),
        "chosen": changes[-1]["change"],
        "changes": changes,
    }


def _timed(parent: Parent, laboratory: Laboratory) -> dict[str, float]:
    """Seconds of adapting without labels, and with most of them."""
    labelled, _ = _drawn(laboratory, PER_CLASS[-1], 0)
    return {"without": _seconds(parent, laboratory, []), "with": _seconds(parent, laboratory, labelled)}


def _own_classes(parent: Parent, laboratory: Laboratory) -> list[str]:
    """Those of the model that the laboratory has cells of, or that count as one that it has."""
    has = np.isin(laboratory.merged, laboratory.labels)
    return [name for name, known in zip(parent.card.classes, has, strict=True) if known]


def _change(parent: Parent, of: Parent, laboratory: Laboratory, one: Candidate, chosen: bool) -> dict[str, Any]:
    """Scores of one candidate of `of` beside the run before adapting."""
    before = _logits(parent.network, laboratory)
    after = np.full_like(before, -np.inf)
    after[:, of.card.places_of(of.classes)] = _logits(one.network, laboratory)
    first, other = (np.eye(len(laboratory.merged))[laboratory.answers(logits)] for logits in (before, after))
    compared = compare(laboratory.labels, first, other, parent.card.classes)
    return {
        "change": one.name if of is parent else f"its classes only, {one.name}",
        "chosen": chosen,
        "information": one.information,
        "moved": one.moved,
        "macro_f1": compared["after"]["macro_f1"],
        "ci95": compared["after"]["ci95"]["macro_f1"],
        "difference": compared["difference"],
    }


def _logits(network: Classifier, laboratory: Laboratory) -> Matrix:
    return steps.logits_of(network, steps.features_of(network, laboratory.pixels)).double().numpy()


def _layer_of(one: Candidate) -> Layer:
    layer = last_layer(one.network)
    weights, bias = (value.detach().double().cpu().numpy() for value in (layer.weight, layer.bias))
    return Layer(weights, bias)


def _halves(laboratory: Laboratory, seed: int) -> tuple[Labels, Labels]:
    """Cells that give labels, and cells that are scored; no group is on both sides."""
    from sklearn.model_selection import StratifiedGroupKFold

    halves = StratifiedGroupKFold(2, shuffle=True, random_state=seed)
    pool, rest = next(iter(halves.split(laboratory.labels, laboratory.labels, laboratory.groups)))
    return pool, rest


def _curve(laboratory: Laboratory, features: Matrix, old: Layer, draws: int) -> Iterator[dict[str, Any]]:
    """Scores with few labels a class, as far as a class has them."""
    for count in PER_CLASS:
        before, after, used = [], [], []
        for seed in range(draws):
            rows, rest = _drawn(laboratory, count, seed)
            used.append(len(rows))
            before.append(laboratory.score(old(features[rest]), rest))
            after.append(_fitted_score(laboratory, features, old, rows, rest))
        yield {
            "per_class": count,
            "labels": float(np.mean(used)),
            "without": _over(before),
            "with": _over(after),
        }


def _drawn(laboratory: Laboratory, count: int, seed: int) -> tuple[Labels, Labels]:
    """Cells that give labels, at most `count` a class, and cells that are scored."""
    pool, rest = _halves(laboratory, seed)
    some = np.random.default_rng(seed).permutation(pool)
    rows = [some[laboratory.labels[some] == label][:count] for label in np.unique(laboratory.labels)]
    return np.concatenate(rows), rest


def _seconds(parent: Parent, laboratory: Laboratory, rows: Sequence[int] | Labels) -> float:
    """Seconds that `adapt` takes with all images of a laboratory and the labels of some."""
    labels = [""] * len(laboratory.paths)
    for row in rows:
        labels[row] = parent.card.classes[laboratory.labels[row]]
    with tempfile.TemporaryDirectory() as output:
        began = time.perf_counter()
        adapt_run(parent.folder, laboratory.paths, Asked(labels=labels if len(rows) else None), output=Path(output))
        return time.perf_counter() - began


def _suggested(laboratory: Laboratory, features: Matrix, old: Layer, draws: int) -> dict[str, Any]:
    """Scores with SUGGESTED labels: chosen by `--suggest`, and at random."""
    scores: dict[str, list[float]] = {"suggested": [], "random": []}
    for seed in range(draws):
        pool, rest = _halves(laboratory, seed)
        logits = torch.from_numpy(old(features[pool]))
        rows = {
            "suggested": pool[choose_cells(features[pool], logits.softmax(1).numpy(), SUGGESTED, seed)],
            "random": np.random.default_rng(seed).permutation(pool)[:SUGGESTED],
        }
        for name, some in rows.items():
            scores[name].append(_fitted_score(laboratory, features, old, some, rest))
    gain = [one - other for one, other in zip(*scores.values(), strict=True)]
    return {"labels": SUGGESTED, **{name: _over(values) for name, values in scores.items()}, "difference": _over(gain)}


def _fitted_score(laboratory: Laboratory, features: Matrix, old: Layer, rows: Labels, rest: Labels) -> float:
    layer, _ = fit_layer(features[rows], laboratory.labels[rows], laboratory.groups[rows].tolist(), old, features)
    return laboratory.score(layer(features[rest]), rest)


def _over(values: Sequence[float]) -> dict[str, Any]:
    """Mean and interval over draws."""
    return {"mean": float(np.mean(values)), "ci95": np.percentile(values, [2.5, 97.5]).tolist(), "draws": list(values)}


if __name__ == "__main__":
    typer.run(main)
