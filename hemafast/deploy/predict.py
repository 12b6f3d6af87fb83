"""Classify images with one model, or with several as one."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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
from hemafast.files import make_folder, refuse_table_name, write_tables, writing
from hemafast.preparation.images.image_checks import Pixels, strict_decoders
from hemafast.preparation.threads import Pool, made_ahead
from hemafast.progress import SILENT, Progress, stage
from hemafast.run_folder import ADAPTATION_PAGE, is_run
from hemafast.words import counted

OK, ABSTAINED, FAILED = "ok", "abstained", "error"
"""Status of an image: classified; classified below the threshold; unreadable."""
_ROWS = 8192
"""Rows of the result that are written at once."""
_NO_NUMBER = "the model's answer is not a number"

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Predictions:
    """What came of classifying images."""

    plan: Plan
    status: Counter[str]
    """Images by status."""
    named: Counter[str]
    """Images by predicted class, without those that have none."""
    highest: float
    """Confidence of the surest answer; 0 without any."""
    likeness: dict[str, Any] | None
    """What `judge` says of the images as a set; None without a likeness."""
    seconds: float
    """From the first byte read to the last answer."""

    @property
    def images(self) -> int:
        """Number of images."""
        return self.status.total()

    @property
    def failed(self) -> int:
        """Number of images without an answer."""
        return self.status[FAILED]

    def summary(self) -> dict[str, Any]:
        """Counts, models and settings as plain data."""
        return {
            "models": [str(model.file) for model in self.plan.models],
            "images": self.images,
            "status": {name: self.status[name] for name in (OK, ABSTAINED, FAILED)},
            "predicted": {name: self.named[name] for name in self.plan.classes},
            "tta": self.plan.options.tta,
            "threshold": self.plan.threshold,
            "likeness": self.likeness,
            "device": self.plan.machine.device,
            "precision": self.plan.machine.precision,
            "engines": [model.engine for model in self.plan.models],
            "seconds": self.seconds,
            "images_per_second": self.images / self.seconds,
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
        refuse_submission((image.name for image in plan.images), plan.classes, plan.threshold)
    make_folder(output.parent)
    work = Classification(plan, progress)
    with writing(output):
        write_tables(output, map(submission_table, work.tables()) if submission else work.tables())
    predictions = work.done()
    _warn_of_silence(predictions)
    if predictions.failed:
        said = f"{predictions.failed} of {counted(predictions.images, 'image has', 'images have')} no answer"
        where = "they are left out of the submission" if submission else f"see the column error of {output}"
        logger.warning("%s: %s", said, where)
    return predictions


def _warn_of_silence(predictions: Predictions) -> None:
    """Warn if the threshold withholds every answer."""
    if predictions.status[OK] or not predictions.status[ABSTAINED]:
        return
    logger.warning(
        "no image is named: the highest confidence is %.3f, the threshold %.3f. Lower it (--abstain-below %.2f), or "
        "leave it out and read the column confidence",
        predictions.highest,
        predictions.plan.threshold,
        math.floor(100 * predictions.highest) / 100,
    )


def classify(plan: Plan, *, progress: Progress = SILENT) -> pd.DataFrame:
    """Read, decode and classify the images: one row per image, in order.

    The columns are image, status, error, likeness, predicted, confidence, entropy, the probability of each class; the
    disagreement of several models or members; and the set of classes if sets are asked for. Raises HemafastError for a
    zip that was removed since the plan was made.
    """
    work = Classification(plan, progress)
    table = pd.concat(work.tables(), ignore_index=True)
    work.done()
    return table


class Classification:
    """Classifies the images of a plan: their rows in parts as they come, then the counts. It keeps no row."""

    def __init__(self, plan: Plan, progress: Progress = SILENT) -> None:
        self._plan, self._progress = plan, progress
        self._status, self._named = Counter[str](), Counter[str]()
        self._likenesses: list[npt.NDArray[np.float32]] = []  # 12 bytes an image
        self._highest, self._seconds = 0.0, 0.0

    def tables(self) -> Iterator[pd.DataFrame]:
        """Rows of the images as in `classify`, in order, `_ROWS` or a few more at a time.

        Raises HemafastError for a zip that was removed since the plan was made.
        """
        started, waiting, rows = time.perf_counter(), list[pd.DataFrame](), 0
        for table in self._each():
            waiting.append(table)
            rows += len(table)
            if rows >= _ROWS:
                yield pd.concat(waiting, ignore_index=True)
                waiting, rows = [], 0
        self._seconds = time.perf_counter() - started
        if waiting:
            yield pd.concat(waiting, ignore_index=True)

    def done(self) -> Predictions:
        """The counts, after all rows were taken. Logs a warning if the images are unlike those of training."""
        judged = _judge(self._plan, np.concatenate(self._likenesses))
        return Predictions(self._plan, self._status, self._named, self._highest, judged, self._seconds)

    def _each(self) -> Iterator[pd.DataFrame]:
        """The rows of one batch after the other. All groups of models answer a batch before the next one."""
        plan, classes = self._plan, len(self._plan.classes)
        with stage(self._progress, "classifying", len(plan.images) * len(plan.groups)), ExitStack() as stack:
            groups = [
                stack.enter_context(inferred(plan, group, Together(plan, group), self._progress))
                for group in plan.groups
            ]
            for parts in zip(*groups, strict=True):
                sums = sum(part.filled(classes + len(PARTS) + 1).astype(np.float64) for part in parts)
                errors = {row: error for part in parts for row, error in part.errors.items()}
                means = np.asarray(sums) / len(plan.models)
                probabilities, likenesses, agreed = np.split(means, [classes, classes + len(PARTS)], axis=1)
                table = _table(plan, parts[0].rows, probabilities, likenesses[:, 0], agreed[:, 0], errors)
                self._count(table, likenesses)
                yield table

    def _count(self, table: pd.DataFrame, likenesses: Likenesses) -> None:
        self._status.update(table["status"])
        self._named.update(name for name in table["predicted"] if name)
        self._highest = max(self._highest, float(table["confidence"].fillna(0).max()))
        self._likenesses.append(likenesses.astype(np.float32))


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
        logger.warning("%s. %s", said, advice(plan.models[0]))
    return judged


def advice(model: Model) -> str:
    """What to do about images unlike those of training."""
    folder = model.file.parent
    if model.members > 1:
        return "Adapt a member of the ensemble: `hemafast adapt RUN IMAGES`"
    if model.card.adapted is None:
        return f"Adapt the model: `hemafast adapt {folder} IMAGES`"
    return f"If they are of the laboratory that the model was adapted to, see {folder / ADAPTATION_PAGE}"


class Together:
    """Models of one view as one: from squares to sums of their calibrated probabilities and what else they tell."""

    def __init__(self, plan: Plan, group: Group) -> None:
        self._models, self._tta = group.models, plan.options.tta
        cards = {model.card.image_size: model.card for model in group.models}
        self._graphs = {size: EvalGraph(card, plan.machine, plan.options.batch_size) for size, card in cards.items()}

    @torch.inference_mode()
    def __call__(self, squares: Sequence[Pixels]) -> Tensor:
        """Sums over the models, fp32 (n, classes + 4) on the device: probabilities, likenesses, and the entropy that
        is not disagreement of a model's own members.

        Squares are uint8 (size, size, 3).
        """
        images = {size: graph(squares) for size, graph in self._graphs.items()}
        return torch.stack([self._answer(model, images[model.card.image_size]) for model in self._models]).sum(0)

    def _answer(self, model: Model, images: Tensor) -> Tensor:
        probabilities, likeness, disagreement = model.discussed(images, tta=self._tta)
        agreed = torch.special.entr(probabilities).sum(1) - disagreement
        return torch.cat([probabilities, likeness, agreed[:, None]], dim=1)


@dataclass(frozen=True, slots=True)
class Inferred:
    """What was computed of a batch of images."""

    rows: range
    """Of the batch, among all images."""
    good: tuple[int, ...]
    """Those of them that could be decoded."""
    answers: npt.NDArray[np.float32] | None
    """(good, d); None if none could be decoded."""
    errors: Mapping[int, str]
    """Why the others could not, by row."""

    def filled(self, columns: int) -> npt.NDArray[np.float32]:
        """The answers of all rows, (rows, columns); nan for those that could not be decoded."""
        whole = np.full((len(self.rows), columns), np.nan, np.float32)
        if self.answers is not None:
            whole[np.array(self.good) - self.rows.start] = self.answers
        return whole


@contextmanager
def inferred(
    plan: Plan, group: Group, compute: Callable[[Sequence[Pixels]], Tensor], progress: Progress
) -> Iterator[Iterator[Inferred]]:
    """What `compute` makes of batches of squares, in order; each is fetched after the next has begun on the device."""

    def fetched(batch: DecodedBatch, answers: Tensor | None) -> Inferred:
        every = sorted((*batch.rows, *batch.errors))
        progress.advance(len(every))
        found = None if answers is None else answers.cpu().numpy()
        return Inferred(range(every[0], every[-1] + 1), batch.rows, found, batch.errors)

    def computed(batches: Iterator[DecodedBatch]) -> Iterator[Inferred]:
        before = None
        for batch in batches:
            answers = compute(batch.squares) if batch.rows else None
            if before is not None:
                yield fetched(*before)
            before = batch, answers
        if before is not None:
            yield fetched(*before)

    with decoded(plan, group) as batches:
        yield computed(batches)


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
    plan: Plan,
    rows: range,
    probabilities: npt.NDArray[np.float64],
    likeness: npt.NDArray[np.float64],
    agreed: npt.NDArray[np.float64],
    errors: Mapping[int, str],
) -> pd.DataFrame:
    answered: npt.NDArray[np.bool_] = np.isfinite(probabilities).all(axis=1)  # type: ignore[assignment]
    sure = probabilities.max(axis=1) >= (plan.threshold or 0.0)
    table = prediction_table(
        plan.classes,
        probabilities.astype(np.float32),
        {
            "image": [image.name for image in plan.images[rows.start : rows.stop]],
            "status": np.where(answered, np.where(sure, OK, ABSTAINED), FAILED),
            "error": ["" if good else errors.get(row, _NO_NUMBER) for row, good in zip(rows, answered, strict=True)],
            "likeness": np.where(answered, likeness, np.nan).astype(np.float32),
        },
    )
    if plan.members > 1:
        place = table.columns.tolist().index("entropy") + 1
        table.insert(place, "disagreement", (table["entropy"] - agreed).clip(lower=0).astype(np.float32))
    table.loc[table["status"] == ABSTAINED, "predicted"] = ""
    if plan.set_thresholds is not None:
        table["set"] = set_names(probabilities, plan.classes, plan.set_thresholds)
    return table
