"""The losses. Each is a mean over images, so that gradients do not depend on how a batch is divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from hemafast.config import LossName
from hemafast.lineage import Lineage, soft_targets


@dataclass(frozen=True, slots=True)
class LineageTerm:
    """What a tree of classes changes in a loss."""

    weight: float
    """Of the cross-entropy on the lineage, beside that on the class; 0 for none."""
    groups: npt.NDArray[np.int64]
    """(classes,): the lineage of each class, counted from 0; none is empty."""
    targets: npt.NDArray[np.float32] | None = None
    """(classes, classes): the soft target of each class; None for whole targets."""


def class_weights(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Weights inverse to the frequency of each class, with a mean of 1 over the images; absent classes weigh 0.

    `counts` (classes,) are training images per class. The formula is "balanced" of scikit-learn: images / (number of
    present classes x images of the class).
    """
    present = counts > 0
    weights = np.zeros(len(counts), dtype=np.float32)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights


def log_priors(counts: npt.NDArray[np.integer[Any] | np.floating[Any]]) -> npt.NDArray[np.float32]:
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
        targets = _smoothed(_shares(targets, logits), self.smoothing)
        logs = logits.log_softmax(dim=1)
        # At least 1e-6, because the gradient of a power below 1 is infinite at 0.
        wrong = (1 - logs.exp()).clamp_min(1e-6)
        return -(targets * wrong**self.gamma * logs).sum(dim=1).mean()


class LineageLoss(nn.Module):
    """A loss on the class, plus the loss on the lineage, whose probability is the sum over its classes.

    Both terms want the same answer. Class weights, logit adjustment, label smoothing and mixed images act on the
    classes, and a lineage has what its classes have: the logarithm of the sum of their exponentials as its logit, the
    sum of their weighted targets as its target. The focal factor is that of the lineage's own probability.

    A lineage may be absent from a batch, or from training: its classes are then wrong answers like any other.
    """

    weight: Tensor | None
    offset: Tensor | None
    targets: Tensor | None
    belongs: Tensor
    members: Tensor

    def __init__(
        self,
        base: CrossEntropy | Focal,
        groups: Tensor,
        strength: float,
        *,
        weight: Tensor | None = None,
        offset: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> None:
        """`base` is the loss on the class, with its `weight` and `offset` (classes,); the rest as in `LineageTerm`."""
        super().__init__()
        self.base, self.strength = base, strength
        self.on_lineages = Focal(gamma=base.gamma) if isinstance(base, Focal) else CrossEntropy()
        self.register_buffer("weight", weight)
        self.register_buffer("offset", offset)
        self.register_buffer("targets", targets)
        self.register_buffer("belongs", functional.one_hot(groups).to(torch.float32))
        self.register_buffer("members", _members(groups))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the images, a scalar."""
        if self.targets is not None:
            targets = _shares(targets, logits) @ self.targets
        loss: Tensor = self.base(logits, targets)
        return loss + self.strength * self._on_lineages(logits, targets) if self.strength else loss

    def _on_lineages(self, logits: Tensor, targets: Tensor) -> Tensor:
        targets = _smoothed(_shares(targets, logits), self.base.smoothing)
        if self.weight is not None:
            targets = targets * self.weight
        if self.offset is not None:
            logits = logits + self.offset
        nothing = logits.new_full((len(logits), 1), -torch.inf)  # fills up the lineages of few classes
        of_lineages = torch.cat([logits, nothing], dim=1).index_select(1, self.members.flatten())
        of_lineages = of_lineages.view(len(logits), *self.members.shape).logsumexp(dim=2)
        loss: Tensor = self.on_lineages(of_lineages, targets @ self.belongs)
        return loss


def lineage_term(
    lineage: Lineage | None, classes: Sequence[str], *, weight: float, temperature: float
) -> LineageTerm | None:
    """What `lineage` changes in a loss on `classes`; None if nothing. A temperature of 0 keeps targets whole."""
    if lineage is None or not (weight or temperature):
        return None
    targets = soft_targets(lineage, classes, temperature) if temperature else None
    return LineageTerm(weight, lineage.groups(classes)[1], targets)


def build_loss(
    counts: npt.NDArray[np.int64],
    name: LossName = "cross-entropy",
    *,
    smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    logit_tau: float = 1.0,
    lineage: LineageTerm | None = None,
) -> nn.Module:
    """The loss `name` for a training split with `counts` images per class, and with the term of `lineage`.

    `logit-adjusted` (Menon et al., arXiv 2007.07314) adds tau times the logarithm of the class frequency to the logits
    in the loss, and classifies by the bare logits.
    """
    soft = None if lineage is None or lineage.targets is None else _among_trained(lineage.targets, counts)
    weight = torch.from_numpy(class_weights(counts)) if name == "weighted" else None
    priors = log_priors(counts if soft is None else counts @ soft)  # as often as a class is a target
    offset = logit_tau * torch.from_numpy(priors) if name == "logit-adjusted" else None
    base: CrossEntropy | Focal = CrossEntropy(weight=weight, offset=offset, smoothing=smoothing)
    if name == "focal":
        base = Focal(gamma=focal_gamma, smoothing=smoothing)
    if lineage is None:
        return base
    targets = None if soft is None else _weighed_by_label(torch.from_numpy(soft), weight)
    groups = torch.from_numpy(lineage.groups)
    return LineageLoss(base, groups, lineage.weight, weight=weight, offset=offset, targets=targets)


def _shares(targets: Tensor, logits: Tensor) -> Tensor:
    """Labels (n,) as shares of the classes (n, classes); shares stay as they are."""
    return targets if targets.ndim == 2 else torch.zeros_like(logits).scatter(1, targets[:, None], 1.0)


def _smoothed(shares: Tensor, smoothing: float) -> Tensor:
    return shares * (1 - smoothing) + smoothing / shares.shape[1]


def _members(groups: Tensor) -> Tensor:
    """(lineages, most classes of one): the classes of each lineage, filled up with the number of classes."""
    classes = [(groups == lineage).nonzero().flatten() for lineage in range(int(groups.max()) + 1)]
    return nn.utils.rnn.pad_sequence(classes, batch_first=True, padding_value=len(groups))


def _among_trained(targets: npt.NDArray[np.float32], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Soft targets that give no share to a class without training images, but for its own row."""
    kept = targets * ((counts > 0) | np.eye(len(counts), dtype=bool))
    return np.asarray(kept / kept.sum(axis=1, keepdims=True), dtype=np.float32)


def _weighed_by_label(targets: Tensor, weight: Tensor | None) -> Tensor:
    """Soft targets with which an image weighs as its label does in a loss that weighs each target by its own class.

    Otherwise rare neighbours of a frequent class would win.
    """
    if weight is None:
        return targets
    weighs = torch.where(weight > 0, weight, 1.0)
    return targets * weighs[:, None] / weighs
