"""A probe: the network stays as it is, and its last layer is fitted to features of a few views of each image.

The views come from the loaders of any training: first each image as it is, then as the policy changes it. They are
looked at once. How smooth the layer is, is chosen by cross-validation among the training images, groups apart; no
validation image has a part in it. So a run of one epoch without a step remains, like any other in all that it leaves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hemafast.config import balanced_share
from hemafast.data.loader import eval_loader
from hemafast.engine.hooks import Clock, NonfiniteCheck, Saver, Stops
from hemafast.engine.journal import Journal
from hemafast.engine.loop import end_epoch
from hemafast.engine.run import Run
from hemafast.engine.starting import Starting
from hemafast.engine.stop import StopFlag
from hemafast.engine.validate import features_of
from hemafast.errors import HemafastError
from hemafast.folds import folds_apart
from hemafast.logistic import Axes, Layer, Matrix, cross_entropy, fit_logistic
from hemafast.metrics import accuracy, count_confusion, macro_f1
from hemafast.model import last_layer
from hemafast.neighbours import Labels
from hemafast.objective import class_weights
from hemafast.preparation.split import TRAIN
from hemafast.words import counted

SMOOTHNESS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""C of the logistic regression on standardised features: the smaller, the smoother."""
_USUAL = 0.01  # where no class has images of two groups to choose on
_FOLDS = 3

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Probe:
    """A last layer, and what is known of it."""

    layer: Layer
    smoothness: float
    held_out: Matrix | None
    """Logits (images, classes) of each training image from a layer fitted without its group; None without folds."""


def probe_run(run: Run, folder: Path, journal: Journal, flag: StopFlag, starting: Starting) -> None:
    """Fit the last layer of a run, score it, and keep it. A run that was stopped starts over.

    Raises HemafastError if the network has no linear last layer, or if a feature is not finite.
    """
    clock, check_finite = Clock(run, starting), NonfiniteCheck(run, folder)
    saver = Saver(run, folder, clock, check_finite, journal)
    stops = Stops(run, folder, flag, saver, clock)
    layer = last_layer(run.learner.model)
    saver.save(must=True)  # so that a run that is stopped can be started over in its folder
    starting.done("checkpoint")
    began = time.perf_counter()

    def on_batch(images: int) -> None:
        clock.stepped()
        stops.in_validation()
        journal.advance(images)

    views, labels = _embedded(run, journal, stops, on_batch)
    seconds = time.perf_counter() - began
    made = run.world.broadcast(_fitted(run, views, labels) if run.world.first else None)
    assert made is not None
    _fill(layer, made.layer)
    row = _scores_of(made, views[0], labels, _weights(run, labels))
    row |= {"smoothness": made.smoothness, "seconds": time.perf_counter() - began}
    row["images_per_second"] = views.shape[0] * views.shape[1] / max(seconds, 1e-3)
    end_epoch(run, row, {}, journal=journal, stops=stops, clock=clock, saver=saver)


def fit_probe(views: Matrix, labels: Labels, groups: Sequence[str], classes: int, weights: Matrix) -> Probe:
    """Fit a last layer as smooth as it gives held-out images the highest likelihood.

    Args:
        views: (views, images, d), features; the first view is the plain one, on which held-out images are scored.
        labels: (images,), indices of classes.
        groups: patient or slide of each image; never on both sides of a fold.
        classes: number of classes.
        weights: (images,), how much each image counts.
    """
    axes = Axes.of(views.reshape(-1, views.shape[2]))
    low = axes(views)

    def fit(rows: npt.NDArray[np.int64], smoothness: float) -> Layer:
        seen = low[:, rows].reshape(-1, low.shape[2])
        many, shares = np.tile(labels[rows], len(low)), np.tile(weights[rows] / len(low), len(low))
        return fit_logistic(seen, many, classes, smoothness, shares)

    folds, every = [*folds_apart(labels, groups, _FOLDS)], np.arange(len(labels))
    if not folds:
        return Probe(axes.unfold(fit(every, _USUAL)), _USUAL, None)
    answers = {}
    for smoothness in SMOOTHNESS:
        answers[smoothness] = np.zeros((len(labels), classes))
        for fitted, left in folds:
            answers[smoothness][left] = fit(fitted, smoothness)(low[0, left])
    best = min(answers, key=lambda one: cross_entropy(answers[one], labels, weights))
    return Probe(axes.unfold(fit(every, best)), best, answers[best])


def _embedded(
    run: Run, journal: Journal, stops: Stops, on_batch: Callable[[int], None]
) -> tuple[npt.NDArray[np.float32], Labels]:
    """Features (views, images, d) and labels (images,) of the training images; collective."""
    learner, world, count = run.learner, run.world, run.config.probe
    plain = eval_loader(run.plan.train, shape=run.plan.graph, process=world.process)
    journal.begin("embedding", 1, count * plain.images)
    look = partial(features_of, learner.model, run.plan.machine, world=world, on_batch=on_batch)
    found = [look(plain)]
    for view in range(count - 1):
        stops.between_views()
        found.append(look(run.train_batches, epoch=view, learns=True))
    views = np.stack([features for features, _ in found])
    if not np.isfinite(views).all():
        broken = counted(int((~np.isfinite(views).all(axis=(0, 2))).sum()), "training image")
        remedy = "Give other --weights, or --amp off."
        raise HemafastError(f"{run.config.model} makes features of {broken} that are not finite.", remedy)
    return views, found[0][1]


def _fitted(run: Run, views: npt.NDArray[np.float32], labels: Labels) -> Probe:
    groups = run.dataset.split(TRAIN)["group"].tolist()
    began = time.perf_counter()
    made = fit_probe(views, labels, groups, run.learner.model.classes, _weights(run, labels))
    chosen = "usual, as no class has images of two groups" if made.held_out is None else "chosen by cross-validation"
    logger.info(
        "last layer fitted to %s of %s in %.1f s: C = %g, %s",
        counted(len(views), "view"),
        counted(len(labels), "training image"),
        time.perf_counter() - began,
        made.smoothness,
        chosen,
    )
    return made


def _weights(run: Run, labels: Labels) -> Matrix:
    """(images,): how often the sampler would draw each training image, times its weight in the loss."""
    share, of_class = balanced_share(run.config.sampler), class_weights(run.dataset.counts(TRAIN))
    drawn = 1 - share + share * of_class
    weights: Matrix = (drawn * of_class if run.config.loss == "weighted" else drawn)[labels]
    return weights


def _scores_of(made: Probe, plain: Matrix, labels: Labels, weights: Matrix) -> dict[str, float]:
    """Scores on training images: held-out ones or, without folds, those of the layer itself."""
    logits = made.layer(plain) if made.held_out is None else made.held_out
    confusion = count_confusion(labels, logits.argmax(axis=1), logits.shape[1])
    return {
        "loss": cross_entropy(logits, labels, weights),
        "accuracy": accuracy(confusion),
        "f1_macro": macro_f1(confusion),
    }


@torch.no_grad()
def _fill(layer: nn.Linear, fitted: Layer) -> None:
    layer.weight.copy_(torch.from_numpy(fitted.weights))
    layer.bias.copy_(torch.from_numpy(fitted.bias))
