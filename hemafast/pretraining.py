"""Networks that learn from views of images without labels; their heads and losses are those of lightly."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import torch
from torch import Tensor, nn

from hemafast.config import Method
from hemafast.errors import require
from hemafast.model import Classifier

EXTRA = "ssl"
"""What to install for it."""
_TEMPERATURE = 0.5  # of simclr. High, because many images of a batch are of one class, and should not repel each other.
_TEACHER_DECAY = 0.99  # of the average of weights that byol and dino learn from, unless --ema gives another
_CLUSTERS = 4096  # of dino, for some thousand to a million cells; the paper has 65,536 for ImageNet

Views = Sequence[Tensor]
"""Projections (n, d) of n images, one tensor for each view of them."""
Compare = Callable[[Any, Views, Views], Tensor]
"""A loss of lightly, what the network makes of the views, what its teacher does: to a scalar."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a method adds to a backbone."""

    head: nn.Module
    criterion: nn.Module
    compare: Compare
    predictor: nn.Module | None = None
    teacher_decay: float | None = None
    """Of the average of weights that is the teacher; None for a method without one."""


class ViewLoss(nn.Module):
    """A loss between the views of each image in a batch."""

    def __init__(self, criterion: nn.Module, compare: Compare, views: int) -> None:
        super().__init__()
        self.criterion, self._compare, self.views = criterion, compare, views

    def forward(self, projections: Tensor, _: Tensor) -> Tensor:
        """The mean over images and pairs of views, a scalar; labels are not looked at.

        `projections` are those of `Encoder`: all images in their first view, then all in their second, and so on.
        """
        own, theirs = projections[:, 0], projections[:, -1]  # the same without a teacher
        loss: Tensor = self._compare(self.criterion, own.chunk(self.views), theirs.chunk(self.views))
        return loss


class Encoder(Classifier):
    """A backbone without classes, a head behind it, and the loss that compares what comes out.

    The loss is part of the network because that of dino has a state: its centre.
    """

    def __init__(self, plain: Classifier, parts: Parts, views: int) -> None:
        super().__init__(plain.backbone, plain.mean, plain.std, standardize=plain.standardize)
        self.head, self.predictor = parts.head, parts.predictor
        self.loss = ViewLoss(parts.criterion, parts.compare, views)
        self.teacher_decay = parts.teacher_decay
        self._teachers: list[Encoder] = []  # in a list, so that it is no part of the network

    @property
    def views(self) -> int:
        """Views of each image in a batch."""
        return self.loss.views

    def learn_from(self, teacher: Classifier) -> None:
        """Let `forward` also give what the `teacher`, an average of this network, makes of the images.

        It has no effect for a method without a teacher.
        """
        if self.teacher_decay is not None and isinstance(teacher, Encoder):
            self._teachers = [teacher]

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode of the network and of its teacher, whose batch norms see the statistics of the batch too."""
        super().train(mode)
        for teacher in getattr(self, "_teachers", ()):  # not there yet while it is made
            teacher.train(mode)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Projections, float (n, 1, d), of uint8 images (n, 3, height, width); with a teacher, (n, 2, d) with its."""
        own = self._projected(images)
        if self.predictor is not None:
            own = self.predictor(own)
        if not self._teachers:
            return own[:, None]
        with torch.no_grad():
            theirs = self._teachers[0]._projected(images)
        return torch.stack([own, theirs], dim=1)

    def _projected(self, images: Tensor) -> Tensor:
        projected: Tensor = self.head(self.features(images))
        return projected

    def features(self, images: Tensor) -> Tensor:
        """Pooled features, float (n, d), of uint8 images (n, 3, height, width)."""
        backbone: Any = self.backbone
        pooled: Tensor = backbone.forward_head(backbone.forward_features(self._normalised(images)), pre_logits=True)
        return pooled


def build_encoder(plain: Classifier, image_size: int, method: Method, *, views: int, gather: bool) -> Encoder:
    """A network for `method` on the backbone of `plain`, which has no classes; its teacher is given later.

    With `gather`, simclr compares the images of all processes. Raises HemafastError if lightly is not installed.
    """
    require(EXTRA, "lightly.loss")
    with torch.inference_mode():
        width = plain.eval().features(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)).shape[1]
    return Encoder(plain, _PARTS[method](width, gather), views).train()


def _simclr(width: int, gather: bool) -> Parts:
    """Chen et al. 2020, arXiv 2002.05709."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    criterion = NTXentLoss(temperature=_TEMPERATURE, gather_distributed=gather)
    return Parts(SimCLRProjectionHead(width), criterion, _each_pair)


def _byol(width: int, _: bool) -> Parts:
    """Grill et al. 2020, arXiv 2006.07733."""
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

    criterion, predictor = NegativeCosineSimilarity(), BYOLPredictionHead()
    return Parts(BYOLProjectionHead(width), criterion, _each_from_the_others, predictor, _TEACHER_DECAY)


def _dino(width: int, _: bool) -> Parts:
    """Caron et al. 2021, arXiv 2104.14294, with views of one size."""
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead

    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        head = DINOProjectionHead(width, output_dim=_CLUSTERS)
    # lightly's last layer has torch's former weight norm, which cannot be copied for a teacher.
    last = nn.Linear(head.last_layer.in_features, _CLUSTERS, bias=False)
    head.last_layer = nn.utils.parametrizations.weight_norm(last)
    norm = head.last_layer.parametrizations.weight.original0
    norm.data.fill_(1)
    norm.requires_grad_(False)
    return Parts(head, DINOLoss(output_dim=_CLUSTERS), _all_at_once, teacher_decay=_TEACHER_DECAY)


def _each_pair(criterion: Any, own: Views, _: Views) -> Tensor:
    return torch.stack([criterion(one, other) for one, other in combinations(own, 2)]).mean()


def _each_from_the_others(criterion: Any, own: Views, theirs: Views) -> Tensor:
    pairs = permutations(range(len(own)), 2)
    return torch.stack([criterion(own[one], theirs[other]) for one, other in pairs]).mean()


def _all_at_once(criterion: Any, own: Views, theirs: Views) -> Tensor:
    kept = criterion.center.data
    loss: Tensor = criterion(list(theirs), list(own))
    # lightly's centre moves to new memory. It stays where it is for whoever holds it, as the average of the network.
    kept.copy_(criterion.center.data)
    criterion.center.data = kept
    return loss


_PARTS: dict[Method, Callable[[int, bool], Parts]] = {"simclr": _simclr, "byol": _byol, "dino": _dino}
