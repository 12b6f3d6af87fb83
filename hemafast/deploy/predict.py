"""Classify images with the best model of a run, or with those of several runs as one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from hemafast.deploy.models import Ensemble
from hemafast.deploy.plan import Group, Options, Plan, make_plan, sort_named
from hemafast.deploy.squares import read_squares
from hemafast.deploy.submission import refuse_submission, submission_table
from hemafast.deploy.windows import tell_scales
from hemafast.errors import HemafastError
from hemafast.evaluate.predictions import prediction_table, write_predictions
from hemafast.prepare.image_checks import strict_decoders
from hemafast.prepare.threads import Pool, made_ahead

OK, ABSTAINED, FAILED = "ok", "abstained", "error"
"""What became of an image: classified; classified, but not surely enough; unreadable."""

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Predictions:
    """What models make of images."""

    table: pd.DataFrame
    """One row an image: image, status, error, predicted, confidence, entropy, and the probability of each class."""
    plan: Plan
    seconds: float
    """From the first byte that was read to the last answer."""

    @property
    def failed(self) -> int:
        """How many images have no answer."""
        return int((self.table["status"] == FAILED).sum())

    def summary(self) -> dict[str, Any]:
        """Counts and circumstances, as plain data."""
        counts = {name: self.table[name].value_counts() for name in ("status", "predicted")}
        return {
            "models": [str(model.file) for model in self.plan.models],
            "images": len(self.table),
            "status": {name: int(counts["status"].get(name, 0)) for name in (OK, ABSTAINED, FAILED)},
            "predicted": {name: int(counts["predicted"].get(name, 0)) for name in self.plan.classes},
            "tta": self.plan.options.tta,
            "threshold": self.plan.threshold,
            "device": self.plan.machine.device,
            "precision": self.plan.machine.precision,
            "seconds": self.seconds,
            "images_per_second": len(self.table) / self.seconds,
        }

    def lines(self) -> list[str]:
        """The summary in words: how many of what, and how fast."""
        said = self.summary()
        return [
            ", ".join(f"{images} {name}" for name, images in said["predicted"].items() if images) or "no class named",
            f"{said['images']} images at {said['images_per_second']:,.1f}/s: "
            + ", ".join(f"{images} {name}" for name, images in said["status"].items()),
        ]


def predict_to(
    output: Path,
    named: Sequence[str],
    runs: Sequence[Path] = (),
    options: Options | None = None,
    *,
    submission: bool = False,
    progress: Progress = lambda done, total: None,
) -> Predictions:
    """Classify what is `named`, and write a CSV of one row an image, or the challenge's submission, to `output`.

    What is `named` and is a run is a model, like each of `runs`; all else is images. Raises HemafastError as
    `make_plan` does, and for a submission that would not be one; then nothing is written.
    """
    if output.is_dir():
        raise HemafastError(f"{output} is a folder.", "Name a file with --output.")
    models, paths = sort_named(named)
    plan = make_plan([*runs, *models], paths, options)
    if submission:
        refuse_submission([image.name for image in plan.images], plan.classes, plan.threshold)
    output.parent.mkdir(parents=True, exist_ok=True)
    predictions = classify(plan, progress)
    write_predictions(output, submission_table(predictions.table) if submission else predictions.table)
    if predictions.failed:
        said = f"{predictions.failed} of {len(predictions.table)} images have no answer"
        where = "they are left out of the submission" if submission else f"the column error of {output} says why"
        logger.warning("%s: %s", said, where)
    return predictions


def predict(
    models: Sequence[Path],
    paths: Sequence[str],
    options: Options | None = None,
    *,
    progress: Progress = lambda done, total: None,
) -> Predictions:
    """Classify the images of `paths` with the mean of `models`. Raises HemafastError as `make_plan` does."""
    return classify(make_plan(models, paths, options), progress)


def classify(plan: Plan, progress: Progress = lambda done, total: None) -> Predictions:
    """Read, decode and classify the images; while one batch is classified, the next ones are decoded.

    Raises HemafastError for a zip that has gone since the plan was made.
    """
    tell_scales([group.windows for group in plan.groups])
    started = time.perf_counter()
    images, total = len(plan.images), len(plan.images) * len(plan.groups)
    sums = np.zeros((images, len(plan.classes)))
    errors: dict[int, str] = {}

    def told_from(begin: int) -> Callable[[int], None]:
        return lambda done: progress(begin + done, total)

    for number, group in enumerate(plan.groups):
        sums += _answers(plan, group, errors, told_from(number * images))
    return Predictions(_table(plan, sums / len(plan.models), errors), plan, time.perf_counter() - started)


def _answers(
    plan: Plan, group: Group, errors: dict[int, str], on_images: Callable[[int], None]
) -> npt.NDArray[np.float64]:
    """Probabilities (images, classes), added up over the models of a group; nan where `errors` says what is wrong."""
    options, threads = plan.options, plan.machine.loader_threads
    ensemble = Ensemble(group.models, plan.machine, options.batch_size, tta=options.tta)
    rows: list[int] = []
    done = 0
    parts: list[Tensor] = []  # on the device: nothing waits for it before the end
    with strict_decoders(), Pool(threads) as pool, ThreadPoolExecutor(1) as station:
        squares = read_squares(
            plan.images, group.windows, group.size, batch_size=options.batch_size, threads=threads, pool=pool
        )
        for batch in made_ahead(squares, station):
            if batch.rows:
                rows += batch.rows
                parts.append(ensemble(batch.pixels))
            errors |= batch.errors
            done += len(batch.rows) + len(batch.errors)
            on_images(done)
    answers = np.full((len(plan.images), len(plan.classes)), np.nan)
    if parts:
        answers[rows] = torch.cat(parts).cpu().numpy()
    return answers


def _table(plan: Plan, probabilities: npt.NDArray[np.float64], errors: dict[int, str]) -> pd.DataFrame:
    answered: npt.NDArray[np.bool_] = np.isfinite(probabilities).all(axis=1)  # type: ignore[assignment]
    sure = probabilities.max(axis=1) >= (plan.threshold or 0.0)
    columns: dict[str, list[str] | npt.NDArray[np.str_]] = {
        "image": [image.name for image in plan.images],
        "status": np.where(answered, np.where(sure, OK, ABSTAINED), FAILED),
        "error": [
            "" if good else errors.get(row, "the model's answer is not a number") for row, good in enumerate(answered)
        ],
    }
    table = prediction_table(plan.classes, probabilities.astype(np.float32), columns)
    table.loc[table["status"] == ABSTAINED, "predicted"] = ""
    return table
