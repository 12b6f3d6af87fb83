"""The loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import nn


def class_weights(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Weights inverse to the frequency of each class, with a mean of 1 over the images; absent classes weigh 0.

    `counts` is (classes,), images of each class in the training split. The formula is scikit-learn's "balanced":
    images / (classes present x images of the class).
    """
    present = counts > 0
    weights = np.zeros(len(counts), dtype=np.float32)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights


def build_loss(counts: npt.NDArray[np.int64], *, weighted: bool, label_smoothing: float) -> nn.Module:
    """Cross-entropy over (n, classes) logits and (n,) labels, weighted by class if asked."""
    import torch
    from torch import nn

    weight = torch.from_numpy(class_weights(counts)) if weighted else None
    return nn.CrossEntropyLoss(weight=weight, label_smoothing=label_smoothing)
