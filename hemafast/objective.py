"""The losses. Each is a mean over images, so that gradients do not depend on how a batch is divided."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from hemafast.config import LossName


def class_weights(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Weights inverse to the frequency of each class, with a mean of 1 over the images; absent classes weigh 0.

    `counts` (classes,) are training images per class. The formula is "balanced" of scikit-learn: images / (number of
    present classes x images of the class).
    """
    present = counts > 0
    weights = np.zeros(len(counts), dtype=np.float32)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights


def log_priors(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Logarithms of the class frequencies, (classes,). An absent class counts as the most frequent one.

    With a small prior, the loss would let its bare logit rise above the others, and the model would predict it.
    """
    present = np.where(counts > 0, counts, counts.max())
    logs: npt.NDArray[np.float32] = np.log(present / counts.sum()).astype(np.float32)
    return logs


class CrossEntropy(nn.Module):
    """Cross-entropy of logits (n, classes) to labels (n,) or shares of the classes (n, classes).

    Unlike the mean of torch, it does not normalise weights per batch: their mean over the training images is 1.
    """

    weight: Tensor | None
    offset: Tensor | None

    def __init__(self, *, weight: Tensor | None = None, offset: Tensor | None = None, smoothing: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("offset", offset)
        self.smoothing = smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the images, a scalar."""
        if self.offset is not None:
            logits = logits + self.offset
        losses = functional.cross_entropy(
            logits, targets, weight=self.weight, label_smoothing=self.smoothing, reduction="none"
        )
        return losses.mean()


class Focal(nn.Module):
    """Focal loss (Lin et al., arXiv 1708.02002) of logits (n, classes) to labels (n,) or shares (n, classes)."""

    def __init__(self, *, gamma: float, smoothing: float = 0.0) -> None:
        super().__init__()
        self.gamma, self.smoothing = gamma, smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the images, a scalar."""
        classes = logits.shape[1]
        if targets.ndim == 1:
            targets = torch.zeros_like(logits).scatter(1, targets[:, None], 1.0)
        targets = targets * (1 - self.smoothing) + self.smoothing / classes
        logs = logits.log_softmax(dim=1)
        # At least 1e-6, because the gradient of a power below 1 is infinite at 0.
        wrong = (1 - logs.exp()).clamp_min(1e-6)
        return -(targets * wrong**self.gamma * logs).sum(dim=1).mean()


def build_loss(
    counts: npt.NDArray[np.int64],
    name: LossName = "cross-entropy",
    *,
    smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    logit_tau: float = 1.0,
) -> nn.Module:
    """The loss `name` for a training split with `counts` images per class.

    `logit-adjusted` (Menon et al., arXiv 2007.07314) adds tau times the logarithm of the class frequency to the logits
    in the loss, and classifies by the bare logits.
    """
    if name == "focal":
        return Focal(gamma=focal_gamma, smoothing=smoothing)
    weight = torch.from_numpy(class_weights(counts)) if name == "weighted" else None
    offset = logit_tau * torch.from_numpy(log_priors(counts)) if name == "logit-adjusted" else None
    return CrossEntropy(weight=weight, offset=offset, smoothing=smoothing)
