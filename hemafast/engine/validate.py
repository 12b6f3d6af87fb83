"""Run a model over a split without randomness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hemafast.data.dataset import Samples
from hemafast.data.loader import Loader
from hemafast.engine.step import Steps, Totals
from hemafast.metrics import Confusion, count_confusion


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model makes of a split, in shard order."""

    loss: float
    probabilities: npt.NDArray[np.float32]
    """(images, classes)."""
    pooled: Confusion
    domains: dict[str, Confusion]


def validate(model: nn.Module, steps: Steps, loader: Loader, samples: Samples, totals: Totals) -> Outcome:
    """Classify every image of `samples` once; `loader` must be an `eval_loader` over it, `totals` fresh."""
    model.eval()
    probabilities = torch.cat([steps.evaluate(batch, totals) for batch in loader.epoch()]).cpu().numpy()
    loss, pooled = totals.read()
    predicted = probabilities.argmax(axis=1)
    domains = {
        str(domain): count_confusion(samples.labels[rows], predicted[rows], len(pooled))
        for domain in np.unique(samples.domains)
        for rows in [samples.domains == domain]
    }
    return Outcome(loss, probabilities, pooled, domains)
