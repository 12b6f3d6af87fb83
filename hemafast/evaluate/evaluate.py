"""Score the best model of a run on validation or test images, by domain and pooled.

On the run's own validation images, temperature and thresholds are fitted on half of them, and calibrated scores are
reported on the other half. All other scores use all images. Nothing is ever fitted on test images.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.config import Device, ScoredSplit, TrainConfig
from hemafast.data.dataset import Dataset, open_dataset
from hemafast.data.loader import eval_loader
from hemafast.data.samples import Samples
from hemafast.engine.checkpoint import DRAWN_WARNING, Calibration, ModelCard, load_best, save_calibration
from hemafast.engine.journal import column, read_rows
from hemafast.engine.learner import build_eval_step
from hemafast.engine.plan import machine_and_graph
from hemafast.engine.step import Totals
from hemafast.engine.validate import validate
from hemafast.errors import HemafastError
from hemafast.evaluate.calibration import TARGET, calibrate, soften
from hemafast.evaluate.likeness import (
    ALARM,
    LEAST_IMAGES,
    Likeness,
    Likenesses,
    Watching,
    describe,
    joined,
    judge,
    learn,
    load_likeness,
    save_likeness,
)
from hemafast.evaluate.predictions import prediction_table
from hemafast.evaluate.scores import calibrated_scores, score
from hemafast.files import write_table, write_text, write_whole
from hemafast.metrics import macro_f1, with_pooled
from hemafast.model import Classifier
from hemafast.pictures import confusion_figure, save
from hemafast.preparation.schema import divided_groups
from hemafast.preparation.split import TRAIN, VAL, WORDS, assign_split
from hemafast.run_folder import BEST, CONFUSION_PLOT, EVALUATIONS, METRICS, METRICS_SCHEMA, PREDICTIONS, read_config
from hemafast.taxonomy import BLAST

FITTED, REPORTED = "calibration", "report"
"""The two halves of the validation images, as predictions.csv names them."""

_PREPARED = "prepared"  # the usual name of a prepared data set; its parent says more
_LONGEST = 60  # letters of a data set's name

Metrics = dict[str, Any]
Mask = npt.NDArray[np.bool_]


def evaluate_run(
    folder: Path, *, data: Path | None = None, split: ScoredSplit = "val", device: Device = "auto"
) -> Metrics:
    """Score the best model of a run on the validation images, or on the test images.

    Writes METRICS, PREDICTIONS and CONFUSION_PLOT into `scores_folder(folder, metrics)`: the run folder or, for other
    images than the run's own validation images, a folder of its own within it. Writes CALIBRATION for the run's own
    validation images only.

    Args:
        folder: a run folder.
        data: prepared data set to score on; None for the run's own. Other data needs the same classes.
        split: which of its images to score. Of test images and of other data, all are reported on, with the
            calibration that the model has.
        device: where the model runs.

    Returns:
        The content of METRICS.

    Raises:
        HemafastError: `folder` is not a run, its model is missing or damaged, the data has other classes or no such
            split, or the run's own data changed since training.
    """
    _refuse_unknown_split(split)
    config = read_config(folder)
    model, card = load_best(folder / BEST)
    dataset = open_dataset(data or config.data)
    own = dataset.info.fingerprint == card.data_fingerprint
    if card.classes != dataset.info.classes:
        raise HemafastError(
            f"{folder / BEST} knows the classes {', '.join(card.classes)}; {dataset.folder} has others.",
            "Evaluate on data prepared with the classes of the run.",
        )
    if own:
        dataset = replace(dataset, fold=config.fold)
    elif data is None:
        raise HemafastError(
            f"{dataset.folder} is not the data that {folder / BEST} was trained with (its fingerprint differs).",
            "Prepare the same archives with the same settings again, or score it as other data with --data.",
        )
    samples = dataset.samples(split, config.image_size)
    seen = replace(config, image_size=card.image_size, growing_from=())  # the best epoch may have used smaller images
    calibrates = own and split == VAL
    fitted = _calibration_part(dataset, card) if calibrates else np.zeros(len(samples), dtype=bool)
    likeness = None if calibrates else load_likeness(folder / BEST, card)
    probabilities, likeness, likenesses = _classify(model, seen, samples, len(card.classes), device, fitted, likeness)
    calibration = _calibration(card, samples, probabilities, fitted)
    metrics = {
        "schema": METRICS_SCHEMA,
        "split": split,
        "warnings": _warnings(dataset, card),
        **_scores(dataset, samples, probabilities, calibration, ~fitted),
        "likeness": _judge(samples, likeness, likenesses, ~fitted),
        "model": {**asdict(replace(card, calibration=calibration)), "file": BEST},
        "data": _data(dataset),
        "training": _training(folder, config),
    }
    if calibrates:
        save_calibration(folder / BEST, card, calibration)
        save_likeness(folder / BEST, card, likeness)
    elif said := metrics["likeness"] and describe(metrics["likeness"]["pooled"]):
        metrics["warnings"].append(said)
    table = _predictions(dataset, split, samples, soften(probabilities, calibration.temperature), fitted, likenesses)
    _write(scores_folder(folder, metrics), metrics, table)
    return metrics


def scores_folder(folder: Path, metrics: Metrics) -> Path:
    """The folder that holds `metrics` of the run in `folder`: `folder` itself, or one of its EVALUATIONS.

    Other data than the run's has a folder named after it, with the first 8 characters of its fingerprint. Test images
    have a folder of their own, whose name is or ends in test.
    """
    data, fingerprint = Path(metrics["data"]["folder"]).absolute(), metrics["data"]["fingerprint"]
    parts = [] if metrics["split"] == VAL else [metrics["split"]]
    if fingerprint != metrics["model"]["data_fingerprint"]:
        name = (data.parent if data.name == _PREPARED else data).name or _PREPARED
        parts = [name[:_LONGEST], fingerprint[:8], *parts]
    return folder / EVALUATIONS / "-".join(parts) if parts else folder


def run_of(folder: Path) -> Path:
    """The run folder that scores in `folder` belong to: the reverse of `scores_folder`."""
    home = folder.absolute().parent
    return home.parent if home.name == EVALUATIONS else folder


def _refuse_unknown_split(split: str) -> None:
    if split not in get_args(ScoredSplit):
        raise HemafastError(
            f"split = {split!r}: a run is not scored on such images.",
            f"Choose from: {', '.join(get_args(ScoredSplit))}.",
        )


def _write(folder: Path, metrics: Metrics, table: pd.DataFrame) -> None:
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    matrices, images = {}, f"{WORDS[metrics['split']]} images"
    for name, scores in with_pooled(metrics["domains"], metrics["pooled"]).items():
        matrix = np.array(scores["confusion"])
        matrices[f"{name}: macro-F1 {macro_f1(matrix):.3f}, {int(matrix.sum())} {images}"] = matrix
    figure = confusion_figure(matrices, metrics["model"]["classes"])
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / PREDICTIONS, table)
    write_whole(folder / CONFUSION_PLOT, lambda part: save(figure, part))
    write_text(folder / METRICS, text)


def _classify(
    model: Classifier,
    config: TrainConfig,
    samples: Samples,
    classes: int,
    device: Device,
    fitted: Mask,
    likeness: Likeness | None,
) -> tuple[npt.NDArray[np.float32], Likeness | None, Likenesses | None]:
    """Uncalibrated probabilities (images, classes), a likeness, and what it says of the images.

    The likeness is `likeness`, or one learned from the `fitted` images if they are enough. One pass answers all.
    """
    machine, graph = machine_and_graph(replace(config, compile="off"), device, samples)
    learns = int(fitted.sum()) >= LEAST_IMAGES
    note = joined if learns else likeness and likeness.to(machine.device)
    watching = Watching(model, note) if note else None
    step, totals = build_eval_step(model, machine, watching), Totals(classes, machine.device)
    probabilities = validate(model, step, eval_loader(samples, shape=graph), samples, totals).probabilities
    if watching is None:
        return probabilities, None, None
    notes = watching.noted()
    if learns:
        likeness, notes = learn(notes, samples.labels, fitted)
    return probabilities, likeness, notes.numpy()


def _calibration_part(dataset: Dataset, card: ModelCard) -> Mask:
    """(images,): half of each class in each training domain. A hash draws it, and groups stay together."""
    images = dataset.split(VAL)
    part = assign_split(images, val_fraction=0.5, seed=0)
    return np.asarray((part == TRAIN) & images["domain"].isin(card.domains))


def _calibration(
    card: ModelCard, samples: Samples, probabilities: npt.NDArray[np.float32], fitted: Mask
) -> Calibration:
    if not fitted.any():
        return card.calibration or Calibration(temperature=1.0, threshold=None, target=TARGET, images=0)
    blast = card.classes.index(BLAST) if BLAST in card.classes else None
    return calibrate(samples.labels[fitted], probabilities[fitted], blast=blast)


def _scores(
    dataset: Dataset, samples: Samples, probabilities: npt.NDArray[np.float32], calibration: Calibration, reported: Mask
) -> Metrics:
    """Scores, pooled and by domain."""
    classes = dataset.info.classes
    parts = {"pooled": np.ones(len(samples), dtype=bool)}
    parts |= {str(name): samples.domains == name for name in np.unique(samples.domains)}
    scores = {
        name: score(samples.labels[part], probabilities[part], classes)
        | calibrated_scores(samples.labels[part], probabilities[part], classes, calibration, reported[part])
        for name, part in parts.items()
    }
    return {"pooled": scores.pop("pooled"), "domains": scores}


def _judge(
    samples: Samples, likeness: Likeness | None, likenesses: Likenesses | None, reported: Mask
) -> dict[str, Any] | None:
    """What likenesses say of the `reported` images, pooled and by domain; None if there are none.

    On the validation images of the run itself, alarms are false.
    """
    if likeness is None or likenesses is None:
        return None
    parts = {str(name): samples.domains == name for name in np.unique(samples.domains)}
    return {
        "fitted_on": likeness.images,
        "alarm": ALARM,
        "pooled": judge(likenesses[reported], likeness.images),
        "domains": {name: judge(likenesses[part & reported], likeness.images) for name, part in parts.items()},
    }


def _predictions(
    dataset: Dataset,
    split: str,
    samples: Samples,
    softened: npt.NDArray[np.float64],
    fitted: Mask,
    likenesses: Likenesses | None,
) -> pd.DataFrame:
    """One row per image, with calibrated probabilities."""
    images = dataset.split(split)
    columns = {
        "image": images["path"].to_numpy(),
        "domain": samples.domains,
        "label": images["label"].to_numpy(),
        "part": np.where(fitted, FITTED, REPORTED),
        "likeness": np.full(len(samples), np.nan) if likenesses is None else likenesses[:, 0],
    }
    return prediction_table(dataset.info.classes, softened.astype(np.float32), columns)


def _data(dataset: Dataset) -> dict[str, Any]:
    info = dataset.info
    return {
        "folder": str(dataset.folder),
        "fingerprint": info.fingerprint,
        "drawn": info.drawn,
        "split_seed": info.settings["seed"],
        "val_fraction": info.settings["val_fraction"],
        "counts": info.counts,
        "prepared_by": info.settings,
        "domains": {name: domain.model_dump() for name, domain in info.domains.items()},
    }


def _training(folder: Path, config: TrainConfig) -> dict[str, Any]:
    rows = read_rows(folder)
    rates = column(rows, "train", "images_per_second")
    seconds = sum(column(rows, "train", "seconds"))
    return {
        "preset": config.preset,
        "seed": config.seed,
        "epochs": len(rates),
        "train_seconds": seconds,
        "total_seconds": seconds + sum(column(rows, "val", "seconds")),
        # Every epoch trains the same images, so the mean rate is the harmonic mean of the rates.
        "train_images_per_second": len(rates) / sum(1 / rate for rate in rates) if rates else None,
    }


def _warnings(dataset: Dataset, card: ModelCard) -> list[str]:
    warnings = []
    if dataset.info.drawn or card.drawn_data:
        warnings.append(DRAWN_WARNING)
    if card.started_from.startswith("RANDOM"):
        warnings.append(f"Training started from {card.started_from}")
    if others := [name for name in dataset.info.domains if name not in card.domains]:
        warnings.append(f"Trained on {' and '.join(card.domains)}, not on {' and '.join(others)}")
    if card.data_fingerprint != dataset.info.fingerprint:
        warnings.append(
            "This is not the data that the model was trained with: the model may have been trained on some of these "
            "images"
        )
    if divided := divided_groups(dataset.table):
        warnings.append(f"{divided} patients or slides have images in several splits: scores may be too good")
    return warnings
