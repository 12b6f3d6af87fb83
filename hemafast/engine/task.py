"""What a run is for: how an epoch is scored, which epochs are kept, and as what."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hemafast.data.loader import Loader, eval_loader
from hemafast.data.stream import Process
from hemafast.engine.checkpoint import encoder_bytes, model_bytes
from hemafast.engine.plan import Plan
from hemafast.engine.validate import features_of, validate
from hemafast.metrics import Confusion, accuracy, macro_f1
from hemafast.neighbours import Features, Labels, nearest_labels, spread
from hemafast.run_folder import BEST, ENCODER
from hemafast.taxonomy import UNLABELLED

if TYPE_CHECKING:
    from hemafast.engine.run import Run

Row = Mapping[str, float]
"""Measurements of a phase of an epoch by name."""
OnBatch = Callable[[int], None]
"""Gets the number of images of each batch that was looked at."""

KNN, SPREAD = "knn_accuracy", "feature_spread"
"""Scores of pretraining."""

_REFERENCES = 2000  # training images at most that validation images are compared with: a part of an epoch's time
_COLLAPSED = 0.05  # a spread below it: all images look alike to the network

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Scored:
    """An epoch."""

    row: dict[str, float]
    score: float
    images: int
    """That were looked at."""
    broken: str = ""
    """What is not finite, in words."""
    confusion: Confusion | None = None


class Task(Protocol):
    """What the loop asks for at the end of an epoch."""

    file: str
    """Where in the run folder the kept network is."""

    def images(self, run: Run) -> int:
        """Images that `score` looks at."""

    def score(self, run: Run, on_batch: OnBatch) -> Scored:
        """Score the present network; collective."""

    def keeps(self, score: float, best: float) -> bool:
        """Whether to keep the network with this score, where the one before had the score `best`."""

    def kept(self, run: Run) -> bytes:
        """The present network, as the content of `file`."""

    def told(self, row: Row) -> str:
        """The row of an epoch, in words."""

    def told_at_the_end(self, run: Run) -> str:
        """What was kept, in words."""


class Classification(Task):
    """Tell classes apart. The epoch of the highest macro-F1 on the validation images is kept."""

    file = BEST

    def images(self, run: Run) -> int:  # noqa: D102 - as in Task, and so are all below
        return run.val_batches.images

    def score(self, run: Run, on_batch: OnBatch) -> Scored:  # noqa: D102
        outcome = validate(
            run.learner.scored_model,
            run.learner.eval_step,
            run.val_batches,
            run.plan.val,
            run.new_totals(),
            world=run.world,
            on_batch=on_batch,
        )
        row = {
            "loss": outcome.loss,
            "accuracy": accuracy(outcome.pooled),
            "f1_macro": macro_f1(outcome.pooled),
            **{f"f1_macro_{name}": macro_f1(confusion) for name, confusion in outcome.domains.items()},
        }
        broken = "" if np.isfinite(outcome.loss) else f"The validation loss is {outcome.loss}"
        return Scored(row, row["f1_macro"], int(outcome.pooled.sum()), broken, outcome.pooled)

    def keeps(self, score: float, best: float) -> bool:  # noqa: D102
        return score > best

    def kept(self, run: Run) -> bytes:  # noqa: D102
        return model_bytes(run.learner.scored_model, run.model_card())

    def told(self, row: Row) -> str:  # noqa: D102
        return f"val loss {row['loss']:.3f}, val macro-F1 {row['f1_macro']:.4f}, accuracy {row['accuracy']:.4f}"

    def told_at_the_end(self, run: Run) -> str:  # noqa: D102
        return f"best epoch {run.state.best_epoch}: macro-F1 {run.state.best_f1:.4f} on the validation set"


class Pretraining(Task):
    """Learn features from views without labels. Every epoch is kept, so that the last one remains.

    Labels score an epoch, and nothing else: the share of the validation images that their nearest neighbours among
    training images give the right class. Images of the class UNLABELLED, whose index is `unlabelled`, have no part in
    it. Without `references` there are no classes to score.
    """

    file = ENCODER

    def __init__(self, references: Loader | None, unlabelled: int | None = None) -> None:
        self._references, self._unlabelled = references, unlabelled

    def images(self, run: Run) -> int:  # noqa: D102
        return run.val_batches.images + (self._references.images if self._references else 0)

    def score(self, run: Run, on_batch: OnBatch) -> Scored:  # noqa: D102
        found, labels = _features(run, run.val_batches, on_batch)
        row = {SPREAD: spread(found)} if len(found) > 1 else {}  # one image has none
        if not np.isfinite(found).all():
            return Scored(row, 0.0, len(found), "A feature of a validation image is not finite")
        if self._references is not None:
            if self._references.image_size != run.val_batches.image_size:
                self._references = self._references.resized(run.val_batches.image_size)
            known, known_labels = _features(run, self._references, on_batch)
            asked = labels != self._unlabelled
            row[KNN] = float((nearest_labels(known, known_labels, found[asked]) == labels[asked]).mean())
        if row.get(SPREAD, 1.0) < _COLLAPSED and run.world.first:
            logger.warning(
                "the features have collapsed: their spread is %.3f, and 1 at best. All images look alike to this "
                "network. Lower --lr, raise --batch-size, or take another --method",
                row[SPREAD],
            )
        return Scored(row, row.get(KNN, 0.0), self.images(run))

    def keeps(self, score: float, best: float) -> bool:  # noqa: D102
        return True

    def kept(self, run: Run) -> bytes:  # noqa: D102
        config = run.config
        about = {"model": config.model, "method": str(config.method), "started_from": run.learner.started_from}
        about |= {"image_size": str(config.image_size), "epochs": str(run.state.epochs_done)}
        return encoder_bytes(run.learner.scored_model, about | {"data_fingerprint": run.dataset.info.fingerprint})

    def told(self, row: Row) -> str:  # noqa: D102
        said = {KNN: "kNN accuracy {:.4f}", SPREAD: "spread of the features {:.3f}"}
        return ", ".join(text.format(row[name]) for name, text in said.items() if name in row) or "no scores"

    def told_at_the_end(self, run: Run) -> str:  # noqa: D102
        return f"{ENCODER} is that of epoch {run.state.best_epoch}, the last"


def task_of(plan: Plan, process: Process) -> Task:
    """What the settings of a plan ask for."""
    if plan.settings.method is None:
        return Classification()
    classes = plan.dataset.classes
    unlabelled = classes.index(UNLABELLED) if UNLABELLED in classes else None
    labelled = np.flatnonzero(plan.train.labels != unlabelled)
    if len(np.unique(plan.train.labels[labelled])) < 2 or not (plan.val.labels != unlabelled).any():
        logger.info("images of two known classes are not there: no neighbours are scored")
        return Pretraining(None)
    drawn = np.random.default_rng(plan.settings.seed).permutation(labelled)[:_REFERENCES]
    references = plan.train.select(np.sort(drawn))
    return Pretraining(eval_loader(references, shape=plan.graph, process=process), unlabelled)


def _features(run: Run, loader: Loader, on_batch: OnBatch) -> tuple[Features, Labels]:
    return features_of(run.learner.scored_model, run.plan.machine, loader, world=run.world, on_batch=on_batch)
