"""Score the best model of a run on the validation split, by domain and pooled."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hemafast.config import Device, TrainConfig
from hemafast.data.dataset import Dataset, Samples, open_dataset
from hemafast.data.loader import eval_loader
from hemafast.engine.checkpoint import BEST, ModelCard, load_best
from hemafast.engine.journal import column, read_rows
from hemafast.engine.run import DRAWN_WARNING, machine_for, read_config
from hemafast.engine.step import EvalStep, Totals
from hemafast.engine.validate import Outcome, validate
from hemafast.errors import HemafastError
from hemafast.evaluate.plots import plot_confusions
from hemafast.metrics import Confusion, accuracy, class_scores, macro_f1, macro_f1_interval
from hemafast.objective import CrossEntropy
from hemafast.prepare.split import VAL

METRICS = "metrics.json"
CONFUSION_PLOT = "confusion_matrix.png"

SCHEMA = 1

Metrics = dict[str, Any]


def evaluate_run(folder: Path, *, data: Path | None = None, device: Device = "auto") -> Metrics:
    """Classify the validation images with the run's best model; write metrics.json and confusion_matrix.png.

    `data` names another prepared data set than the run's own. Returns what metrics.json holds. Raises HemafastError if
    `folder` is not a run or the data has another list of classes.
    """
    config = read_config(folder)
    if data is not None:
        config = replace(config, data=data)
    if not (folder / BEST).is_file():
        raise HemafastError(f"{folder} holds no {BEST}.", "Let the run end its first epoch: hemafast train --resume.")
    dataset = open_dataset(config.data, config.fold)
    samples = dataset.samples(VAL, config.image_size)
    outcome, card = _classify(folder, config, dataset, samples, device)
    metrics = _metrics(folder, config, dataset, card, outcome)
    (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    plot_confusions(folder / CONFUSION_PLOT, _named(outcome), dataset.info.classes)
    return metrics


def read_metrics(folder: Path) -> Metrics:
    """metrics.json of a run. Raises HemafastError if there is none."""
    remedy = f"Run `hemafast evaluate {folder}`."
    try:
        metrics: Metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HemafastError(f"{folder} holds no readable {METRICS}.", remedy) from error
    if metrics.get("schema") != SCHEMA:
        raise HemafastError(f"{folder / METRICS} was not written by this version of hemafast.", remedy)
    return metrics


def _classify(
    folder: Path, config: TrainConfig, dataset: Dataset, samples: Samples, device: Device
) -> tuple[Outcome, ModelCard]:
    machine, shape = machine_for(replace(config, compile="off"), device, samples)
    model, card = load_best(folder / BEST)
    if card.classes != dataset.info.classes:
        raise HemafastError(
            f"{folder / BEST} knows the classes {', '.join(card.classes)}; {dataset.folder} has others.",
            "Evaluate on data prepared with the classes of the run.",
        )
    model.to(machine.device)
    step = EvalStep(model, CrossEntropy(), machine)
    batches = eval_loader(samples, shape=shape)
    totals = Totals(len(card.classes), machine.device)
    return validate(model, step, batches, samples, totals), card


def _metrics(folder: Path, config: TrainConfig, dataset: Dataset, card: ModelCard, outcome: Outcome) -> Metrics:
    info = dataset.info
    return {
        "schema": SCHEMA,
        "split": VAL,
        "warnings": _warnings(dataset, card),
        "pooled": _scores(outcome.pooled, info.classes),
        "domains": {name: _scores(confusion, info.classes) for name, confusion in outcome.domains.items()},
        "log_loss": outcome.loss,
        "model": {**asdict(card), "classes": list(card.classes), "file": BEST},
        "data": {
            "folder": str(dataset.folder),
            "fingerprint": info.fingerprint,
            "drawn": info.drawn,
            "split_seed": info.settings["seed"],
            "val_fraction": info.settings["val_fraction"],
            "domains": {name: domain.model_dump() for name, domain in info.domains.items()},
        },
        "training": _training(folder, config),
    }


def _scores(confusion: Confusion, classes: tuple[str, ...]) -> dict[str, Any]:
    """The scores of one set of images; `classes` counts those that have images, which the macro-F1 averages over."""
    per_class = class_scores(confusion, classes)
    return {
        "macro_f1": macro_f1(confusion),
        "macro_f1_ci95": list(macro_f1_interval(confusion)),
        "accuracy": accuracy(confusion),
        "classes": len(per_class),
        "images": int(confusion.sum()),
        "per_class": {name: asdict(score) for name, score in per_class.items()},
        "confusion": confusion.tolist(),
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
        # Every epoch trained the same images, so the mean rate is the harmonic mean of the rates.
        "train_images_per_second": len(rates) / sum(1 / rate for rate in rates) if rates else None,
    }


def _warnings(dataset: Dataset, card: ModelCard) -> list[str]:
    warnings = []
    if dataset.info.drawn or card.drawn_data:
        warnings.append(DRAWN_WARNING)
    if card.started_from.startswith("RANDOM"):
        warnings.append(f"Training started from {card.started_from}")
    if card.data_fingerprint != dataset.info.fingerprint:
        warnings.append(
            "This is not the data that the model was trained with: some of these images may have been trained on"
        )
    return warnings


def _named(outcome: Outcome) -> dict[str, Confusion]:
    return {"pooled": outcome.pooled, **outcome.domains} if len(outcome.domains) > 1 else outcome.domains
