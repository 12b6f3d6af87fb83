"""How well a run tells images unlike its training set, and what becomes of its sets of classes elsewhere.

    hemafast prepare --source HOME --output HOME/prepared && hemafast train --data HOME/prepared
    python benchmarks/unlike.py RUN --other Matek/prepared --other BCCD/prepared --json benchmarks/results/unlike.json

RUN must be evaluated. Known are the validation images of its data set that nothing was fitted on. Unlike are all images
of the other data sets, and non-cells: squares cut out of the corners of the home images and mirrored to its field of
view. Nothing is trained or fitted. Refuses drawn cells.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from output import JsonFile, write_json
from PIL import Image
from scipy import ndimage
from scipy.stats import bootstrap
from sklearn.metrics import roc_auc_score

from hemafast.config import Device
from hemafast.data.dataset import Dataset, open_dataset
from hemafast.deploy.inputs import Images, list_inputs
from hemafast.deploy.model import Model, open_model
from hemafast.deploy.plan import Options, plan_for
from hemafast.deploy.predict import Together, inferred
from hemafast.engine.machine import machine_facts
from hemafast.evaluate.conformal import in_sets, set_scores
from hemafast.evaluate.evaluate import REPORTED
from hemafast.evaluate.likeness import PARTS, judge
from hemafast.evaluate.predictions import read_predictions
from hemafast.preparation.schema import accepted
from hemafast.progress import SILENT
from hemafast.run_folder import PREDICTIONS, read_config, read_metrics

Answers = npt.NDArray[np.float32]
"""(images, classes + 3): calibrated probabilities, then PARTS of the likeness."""

_CORNER = 11.0  # um
_SIZES = (1, 10, 30, 100)  # of sets of home


def main(
    run: Annotated[Path, typer.Argument(help="Evaluated run on real cells.")],
    json_file: JsonFile,
    other: Annotated[list[Path], typer.Option(help="Prepared data set of other laboratories; may be repeated.")],
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = "auto",
    most: Annotated[int, typer.Option(min=1, help="Home images whose corners are searched for non-cells.")] = 1200,
) -> None:
    """Score likeness and sets of a run, and write the result."""
    model, home = open_model(run, device=device), open_dataset(read_config(run).data)
    if home.info.drawn or any(open_dataset(folder).info.drawn for folder in other):
        sys.exit("Drawn cells: no score on them is worth keeping.")
    if model.likeness is None:
        sys.exit(f"{run} has no likeness: run `hemafast evaluate {run}`, with at least 40 calibration images.")
    known = _known(model, run, home)
    result = {
        "command": f"python benchmarks/unlike.py RUN{' --other DATA' * len(other)} --most {most}",
        "machine": machine_facts(model.machine.device),
        "run": {"backbone": model.card.backbone, "image_size": model.card.image_size, "trained_on": model.card.domains},
        "macro_f1": read_metrics(run)["pooled"]["macro_f1"],
        "fitted_on": model.likeness.images,
        "home": _scored(model, *known) | {"unlike_sets": _unlike_sets(model, known[0])},
        "elsewhere": {
            name: _scored(model, *found) | _told_apart(model, known[0], found[0])
            for folder in other
            for name, found in _domains(model, open_dataset(folder))
        },
        "non_cells": {
            name: _judged(model, found) | _told_apart(model, known[0], found)
            for name, squares in non_cells(home, most).items()
            for found in [ask(model, squares, 0.1)]
        },
    }
    write_json(result, json_file)


def ask(model: Model, images: Images, um_per_pixel: float | None) -> Answers:
    """What `hemafast predict` computes of images."""
    plan = plan_for([model], list_inputs(images), Options(um_per_pixel=um_per_pixel))
    (group,) = plan.groups
    with inferred(plan, group, Together(plan, group), SILENT) as parts:
        columns = len(model.classes) + len(PARTS)
        return np.concatenate([part.filled(columns + 1)[:, :columns] for part in parts])


def _known(model: Model, run: Path, home: Dataset) -> tuple[Answers, list[str]]:
    predictions, _, _ = read_predictions(run / PREDICTIONS)
    reported = predictions[predictions["part"] == REPORTED]
    return ask(model, [home.folder / path for path in reported["image"]], None), reported["label"].tolist()


def _domains(model: Model, dataset: Dataset) -> list[tuple[str, tuple[Answers, list[str]]]]:
    """All images of each domain, whatever their split, at the scale that the data set knows."""
    found = []
    for name, images in accepted(dataset.table).groupby("domain"):
        scale = dataset.info.domains[str(name)].um_per_pixel
        answers = ask(model, [dataset.folder / path for path in images["path"]], scale)
        found.append((str(name), (answers, images["label"].tolist())))
    return found


def _judged(model: Model, answers: Answers) -> dict[str, Any]:
    assert model.likeness is not None
    return {"likeness": judge(answers[:, -len(PARTS) :], model.likeness.images)}


def _scored(model: Model, answers: Answers, labels: Sequence[str]) -> dict[str, Any]:
    """Likeness, and sets of the images whose class the model knows."""
    places = np.array([model.classes.index(label) if label in model.classes else -1 for label in labels])
    known, calibration = places >= 0, model.card.calibration
    probabilities = answers[known, : len(model.classes)]
    right = probabilities.argmax(axis=1) == places[known]
    thresholds = calibration.set_thresholds if calibration else None
    sets = None if thresholds is None else set_scores(places[known], in_sets(probabilities, thresholds), model.classes)
    return _judged(model, answers) | {"accuracy": float(right.mean()) if len(right) else None, "sets": sets}


def _told_apart(model: Model, known: Answers, other: Answers) -> dict[str, Any]:
    """AUROC of `known` against `other` images, by PARTS, with percentile bootstrap intervals."""
    found = {}
    for place, name in enumerate(PARTS, start=len(model.classes)):
        samples = known[:, place].astype(np.float64), other[:, place].astype(np.float64)
        ends = bootstrap(samples, _auroc, n_resamples=1000, vectorized=False, method="percentile", rng=0)
        interval = ends.confidence_interval
        found[name] = {"value": _auroc(*samples), "ci95": [float(interval.low), float(interval.high)]}
    return {"auroc": found}


def _auroc(known: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    truth = np.repeat([1, 0], [len(known), len(other)])
    return float(roc_auc_score(truth, np.concatenate([known, other])))


def _unlike_sets(model: Model, known: Answers, draws: int = 1000) -> dict[str, float]:
    """Share of random sets of home images that are called unlike, by their size."""
    draw = np.random.default_rng(0)
    sizes = [size for size in _SIZES if size <= len(known)]
    called = {
        size: [_judged(model, draw.choice(known, size, replace=False))["likeness"]["unlike"] for _ in range(draws)]
        for size in sizes
    }
    return {str(size): float(np.mean(verdicts)) for size, verdicts in called.items()}


def non_cells(home: Dataset, most: int) -> dict[str, list[npt.NDArray[np.uint8]]]:
    """Squares of background, of clumped red cells and of platelets, at 0.1 um/px.

    They are the corners of home images, 11 um wide, mirrored to 25 um. A seed chooses the images.
    """
    table = accepted(home.table).sample(frac=1, random_state=0)[:most]
    found: dict[str, list[npt.NDArray[np.uint8]]] = {"background": [], "red cells": [], "platelets": []}
    for path, domain in zip(table["path"], table["domain"], strict=True):
        scale = home.info.domains[domain].um_per_pixel
        if scale is None:
            continue
        pixels = np.asarray(Image.open(home.folder / path).convert("RGB"))
        side = round(_CORNER / scale)
        for top in (0, len(pixels) - side):
            for left in (0, pixels.shape[1] - side):
                corner = pixels[top : top + side, left : left + side]
                if kind := _kind_of(corner, scale):
                    found[kind].append(_mirrored(corner))
    return {kind: squares for kind, squares in found.items() if len(squares) >= 5}


def _kind_of(corner: npt.NDArray[np.uint8], scale: float) -> str | None:
    """Background if hardly anything is stained, red cells if most is, a platelet if one small purple body is."""
    density = -np.log((corner.astype(np.float32) + 1) / 256)
    density -= np.percentile(density.reshape(-1, 3), 10, axis=0)
    stained = density[..., 1] > 0.15
    purple = ndimage.binary_opening((density[..., 0] > 0.35) & (density[..., 1] > 0.45), iterations=2)
    bodies, count = ndimage.label(purple)
    if count == 0 and stained.mean() < 0.03:
        return "background"
    if count == 0 and stained.mean() > 0.6:
        return "red cells"
    on_border = any(bodies[edge].any() for edge in (0, -1)) or any(bodies[:, edge].any() for edge in (0, -1))
    diameter = 2 * np.sqrt(purple.sum() / np.pi) * scale
    return "platelets" if count == 1 and not on_border and 1.2 <= diameter <= 4.5 else None


def _mirrored(corner: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """25 um at 0.1 um/px: the corner in the middle, and its mirror images around it."""
    side = round(_CORNER / 0.1)
    scaled = np.asarray(Image.fromarray(corner).resize((side, side), Image.Resampling.BILINEAR))
    width = (250 - side) // 2
    return np.pad(scaled, ((width, width), (width, width), (0, 0)), mode="symmetric")


if __name__ == "__main__":
    typer.run(main)
