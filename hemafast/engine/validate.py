"""Look at a split without randomness: classify its images, or take their features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hemafast.data.loader import Loader
from hemafast.data.samples import Samples
from hemafast.engine.distributed import World
from hemafast.engine.machine import Machine
from hemafast.engine.step import EvalStep, Totals
from hemafast.metrics import Confusion, count_confusion
from hemafast.model import Classifier
from hemafast.neighbours import Features, Labels


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answers of a model for a split, in shard order."""

    loss: float
    probabilities: npt.NDArray[np.float32]
    """(images, classes)."""
    pooled: Confusion
    domains: dict[str, Confusion]


@torch.inference_mode()
def features_of(
    model: Classifier,
    machine: Machine,
    loader: Loader,
    *,
    epoch: int = 0,
    learns: bool = False,
    world: World | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
) -> tuple[Features, Labels]:
    """Features (n, d) and labels (n,) of all images of an epoch of a loader, in shard order; otherwise as `validate`.

    The loader is an `eval_loader` or, for a model that `learns`, a `train_loader` that draws each image once.
    """
    world = world or World()
    model.train(learns)
    world.align(model)
    parts, dtype = [], machine.dtype
    for batch in loader.epoch(epoch):
        with torch.autocast(machine.device, dtype=dtype, enabled=dtype is not None):
            found = model.features(batch.images)
        parts.append((batch.rows.numpy(), found.float().cpu().numpy(), batch.labels.cpu().numpy()))
        on_batch(len(batch.labels))
    of_all = [part for mine in world.gather(parts) for part in mine]
    rows, features, labels = map(np.concatenate, zip(*of_all, strict=True))
    order = np.argsort(rows)
    return features[order], labels[order]


def validate(
    model: nn.Module,
    step: EvalStep,
    loader: Loader,
    samples: Samples,
    totals: Totals,
    *,
    world: World | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Outcome:
    """Classify every image of `samples` once. `loader` must be an `eval_loader` over it, and `totals` must be zero.

    In a `world`, each process classifies its part, and all return the whole outcome. `on_batch` gets the number of
    images of each batch.
    """
    world = world or World()
    model.eval()
    world.align(model)
    rows, parts = [], []
    for batch in loader.epoch(0):
        rows.append(batch.rows)
        parts.append(step(batch, totals))
        on_batch(len(batch.labels))
    totals.load(totals.summed(world))
    loss, pooled = totals.read()
    mine = (torch.cat(rows).numpy(), torch.cat(parts).cpu().numpy()) if rows else None
    probabilities = np.zeros((len(samples), len(pooled)), dtype=np.float32)
    for part in world.gather(mine):
        if part is not None:
            probabilities[part[0]] = part[1]
    predicted = probabilities.argmax(axis=1)
    domains = {
        str(domain): count_confusion(samples.labels[rows_of], predicted[rows_of], len(pooled))
        for domain in np.unique(samples.domains)
        for rows_of in [samples.domains == domain]
    }
    return Outcome(loss, probabilities, pooled, domains)
