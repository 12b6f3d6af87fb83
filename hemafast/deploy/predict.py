"""Classify images with one model, or with several as one."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from hemafast.deploy.crops import log_scales
from hemafast.deploy.decoding import DecodedBatch, decode_images
from hemafast.deploy.eval_graph import EvalGraph
from hemafast.deploy.model import Model
from hemafast.deploy.plan import Group, Options, Plan, make_plan, sort_named
from hemafast.deploy.submission import refuse_submission, submission_table
from hemafast.evaluate.conformal import set_names
from hemafast.evaluate.likeness import ALARM, PARTS, Likenesses, describe, judge
from hemafast.evaluate.predictions import prediction_table
from hemafast.files import make_folder, refuse_table_name, write_table, writing
from hemafast.preparation.images.image_checks import Pixels, strict_decoders
from hemafast.preparation.threads import Pool, made_ahead
from hemafast.progress import SILENT, Progress, stage
from hemafast.run_folder import ADAPTATION_PAGE, is_run
from hemafast.words import counted

OK, ABSTAINED, FAILED = "ok", "abstained", "error"
"""Status of an image: classified; classified below the threshold; unreadable."""
_NO_NUMBER = "the model's answer is not a number"

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Predictions:
    """The classes of images."""

    table: pd.DataFrame
    """One row per image: image, status, error, likeness, predicted, confidence, entropy, the probability of each class;
    and the set of classes if sets are asked for."""
    plan: Plan
    likeness: dict[str, Any] | None
    """What `judge` says of the images as a set; None without a likeness."""
    seconds: float
    """From the first byte read to the last answer."""

    @property
    def failed(self) -> int:
        """Number of images without an answer."""
        return int((self.table["status"] == FAILED).sum())

    def summary(self) -> dict[str, Any]:
        """Counts, models and settings as plain data."""
        status, predicted = (self.table[name].value_counts() for name in ("status", "predicted"))
        return {
            "models": [str(model.file) for model in self.plan.models],
            "images": len(self.table),
            "status": {name: int(status.get(name, 0)) for name in (OK, ABSTAINED, FAILED)},
            "predicted": {name: int(predicted.get(name, 0)) for name in self.plan.classes},
            "tta": self.plan.options.tta,
            "threshold": self.plan.threshold,
            "likeness": self.likeness,
            "device": self.plan.machine.device,
            "precision": self.plan.machine.precision,
            "engines": [model.engine for model in self.plan.models],
            "seconds": self.seconds,
            "images_per_second": len(self.table) / self.seconds,
        }

    def lines(self) -> list[str]:
        """The summary in words: counts and speed."""
        summary = self.summary()
        named = ", ".join(f"{images} {name}" for name, images in summary["predicted"].items() if images)
        status = ", ".join(f"{images} {name}" for name, images in summary["status"].items())
        speed = f"{counted(summary['images'], 'image')} at {summary['images_per_second']:,.1f}/s"
        return [named or "no class named", f"{speed}: {status}", *self._likeness_lines()]

    def _likeness_lines(self) -> list[str]:
        if self.likeness is None:
            unknown = "whether these images are like those of training is not known yet"
            return [f"{unknown}: `hemafast evaluate {run}` finds out" for run in _never_evaluated(self.plan)[:1]]
        if not self.likeness["images"]:
            return []
        alarms, share = self.likeness["alarms"], self.likeness["share"]
        return [f"{counted(alarms, 'image')} ({share:.0%}) unlike those of training; {ALARM:.0%} would be at home"]


def predict_to(
    output: Path,
    named: Sequence[str],
    runs: Sequence[Path] = (),
    options: Options | None = None,
    *,
    submission: bool = False,
    progress: Progress = SILENT,
) -> Predictions:
    """Classify what is `named`, and write a table with one row per image, or the challenge's submission, to `output`.

    The suffix of `output` chooses the format: one of `files.TABLES`.

    Runs among `named` are models, like each of `runs`; all else is images. Raises HemafastError as `make_plan` does,
    and for an invalid submission; then nothing is written.
    """
    refuse_table_name(output)
    models, paths = sort_named(named)
    plan = make_plan([*runs, *models], paths, options or Options())
    if submission:
        refuse_submission([image.name for image in plan.images], plan.classes, plan.threshold)
    make_folder(output.parent)
    predictions = classify(plan, progress=progress)
    with writing(output):
        write_table(output, submission_table(predictions.table) if submission else predictions.table)
    _warn_of_silence(predictions)
    if predictions.failed:
        said = f"{predictions.failed} of {counted(len(predictions.table), 'image has', 'images have')} no answer"
        where = "they are left out of the submission" if submission else f"see the column error of {output}"
        logger.warning("%s: %s", said, where)
    return predictions


def _warn_of_silence(predictions: Predictions) -> None:
    """Warn if the threshold withholds every answer."""
    status = predictions.table["status"]
    if not (status == ABSTAINED).any() or (status == OK).any():
        return
    highest = float(predictions.table["confidence"].astype(float).max())
    logger.warning(
        "no image is named: the highest confidence is %.3f, the threshold %.3f. Lower it (--abstain-below %.2f), or "
        "leave it out and read the column confidence",
        highest,
        predictions.plan.threshold,
        math.floor(100 * highest) / 100,
    )


def classify(plan: Plan, *, progress: Progress = SILENT) -> Predictions:
    """Read, decode and classify the images. Raises HemafastError for a zip that was removed since the plan was made."""
    started = time.perf_counter()
    sums = np.zeros((len(plan.images), len(plan.classes) + len(PARTS)))
    errors: dict[int, str] = {}
    with stage(progress, "classifying", len(plan.images) * len(plan.groups)):
        for group in plan.groups:
            sums += infer(plan, group, Ensemble(plan, group), errors, progress)
    probabilities, likenesses = np.split(sums / len(plan.models), [len(plan.classes)], axis=1)
    judged = _judge(plan, likenesses)
    return Predictions(
        _table(plan, probabilities, likenesses[:, 0], errors), plan, judged, time.perf_counter() - started
    )


def _never_evaluated(plan: Plan) -> list[Path]:
    """Run folders of models that `hemafast evaluate` has not seen."""
    unseen = [model for model in plan.models if model.likeness is None and model.card.calibration is None]
    return [model.file.parent for model in unseen if is_run(model.file.parent)]


def _judge(plan: Plan, likenesses: Likenesses) -> dict[str, Any] | None:
    """What likenesses say of the images as a set, logged as a warning if it is unlike; None if a model cannot tell."""
    if any(model.likeness is None for model in plan.models):
        return None
    judged = judge(likenesses, min(model.likeness.images for model in plan.models if model.likeness))
    if said := describe(judged):
        logger.warning("%s. %s", said, _advice(plan.models[0]))
    return judged


def _advice(model: Model) -> str:
    """What to do about images unlike those of training."""
    folder = model.file.parent
    if model.card.adapted is None:
        return f"Adapt the model: `hemafast adapt {folder} IMAGES`"
    return f"If they are of the laboratory that the model was adapted to, see {folder / ADAPTATION_PAGE}"


class Ensemble:
    """Models of one view as one: from squares to the sum of their calibrated probabilities and likenesses."""

    def __init__(self, plan: Plan, group: Group) -> None:
        self._models, self._tta = group.models, plan.options.tta
        cards = {model.card.image_size: model.card for model in group.models}
        self._graphs = {size: EvalGraph(card, plan.machine, plan.options.batch_size) for size, card in cards.items()}

    @torch.inference_mode()
    def __call__(self, squares: Sequence[Pixels]) -> Tensor:
        """Probabilities and then likenesses summed over the models, fp32 (n, classes + 3) on the device.

        Squares are uint8 (size, size, 3).
        """
        images = {size: graph(squares) for size, graph in self._graphs.items()}
        answers = [model.answers(images[model.card.image_size], tta=self._tta) for model in self._models]
        return torch.stack([torch.cat(answer, dim=1) for answer in answers]).sum(0)


def infer(
    plan: Plan, group: Group, compute: Callable[[Sequence[Pixels]], Tensor], errors: dict[int, str], progress: Progress
) -> npt.NDArray[np.float32]:
    """What `compute` makes of batches of squares, (images, d); nan where decoding fails, which `errors` explains."""
    rows: list[int] = []
    parts: list[Tensor] = []  # on the device: nothing waits for it before the end
    with decoded(plan, group) as batches:
        for batch in batches:
            if batch.rows:
                rows += batch.rows
                parts.append(compute(batch.squares))
            errors |= batch.errors
            progress.advance(len(batch.rows) + len(batch.errors))
    if not parts:  # one black square tells how many columns there are
        parts = [compute([np.zeros((group.size, group.size, 3), np.uint8)])[:0]]
    answers = np.full((len(plan.images), parts[0].shape[1]), np.nan, np.float32)
    answers[rows] = torch.cat(parts).cpu().numpy()
    return answers


@contextmanager
def decoded(plan: Plan, group: Group) -> Iterator[Iterator[DecodedBatch]]:
    """Batches of decoded images. While one is worked on, the next ones are decoded."""
    if group is plan.groups[0]:  # said once
        log_scales([one.crops for one in plan.groups])
    threads, batch_size = plan.machine.loader_threads, plan.options.batch_size
    with strict_decoders(), Pool(threads) as pool, ThreadPoolExecutor(1) as station:
        batches = decode_images(
            plan.images,
            group.crops,
            group.size,
            depths=group.depths,
            min_side=group.models[0].card.view.min_side,
            batch_size=batch_size,
            threads=threads,
            pool=pool,
        )
        yield made_ahead(batches, station)


def _table(
    plan: Plan, probabilities: npt.NDArray[np.float64], likeness: npt.NDArray[np.float64], errors: dict[int, str]
) -> pd.DataFrame:
    answered: npt.NDArray[np.bool_] = np.isfinite(probabilities).all(axis=1)  # type: ignore[assignment]
    sure = probabilities.max(axis=1) >= (plan.threshold or 0.0)
    table = prediction_table(
        plan.classes,
        probabilities.astype(np.float32),
        {
            "image": [image.name for image in plan.images],
            "status": np.where(answered, np.where(sure, OK, ABSTAINED), FAILED),
            "error": ["" if good else errors.get(row, _NO_NUMBER) for row, good in enumerate(answered)],
            "likeness": np.where(answered, likeness, np.nan).astype(np.float32),
        },
    )
    table.loc[table["status"] == ABSTAINED, "predicted"] = ""
    if plan.set_thresholds is not None:
        table["set"] = set_names(probabilities, plan.classes, plan.set_thresholds)
    return table
