"""Several classifiers as one module: the weighted mean of their probabilities.

The output is the logarithm of that mean, whose softmax is the mean itself: all that takes the logits of one network
takes those of an ensemble. Each member has its own normalisation, image size, quarter turns and temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hemafast.errors import HemafastError
from hemafast.model import Classifier, Network

MOST_MEMBERS = 16
_LEAST = float(torch.finfo(torch.float32).tiny)  # a probability whose logarithm is finite


class Ensemble(Network):
    """Classifiers of the same classes and the same part of an image."""

    weights: Tensor

    def __init__(
        self,
        members: Sequence[Classifier],
        weights: Sequence[float],
        temperatures: Sequence[float],
        sizes: Sequence[int],
        image_size: int,
        orders: Sequence[Sequence[int]],
    ) -> None:
        """Put members together.

        Args:
            members: the networks.
            weights: of each in the mean; they add up to 1.
            temperatures: divisor of the logits of each.
            sizes: side in pixels of the images that each was trained on.
            image_size: side of the images that come.
            orders: of each, the place of every class of the ensemble among its own.
        """
        super().__init__()
        self.members = nn.ModuleList(members)
        self.temperatures, self.sizes, self.image_size = tuple(temperatures), tuple(sizes), image_size
        self.quarter_turns = all(member.quarter_turns for member in members)
        self.register_buffer("weights", torch.tensor(weights), persistent=False)
        self.orders = tuple(tuple(order) for order in orders)
        for place, order in enumerate(orders):
            self.register_buffer(f"order_{place}", torch.tensor(order), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logarithms of the mean probabilities, float (n, classes), of uint8 images (n, 3, image_size, image_size)."""
        opinions = [self.opinion(place, images)[0] for place in range(len(self.members))]
        return self._mean(torch.stack(opinions)).clamp_min(_LEAST).log()

    def answers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and the features of all members side by side, float (n, sum of d)."""
        return self.discussed(images)[:2]

    def discussed(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `answers`, and the disagreement of the members, float (n,), from the same passes.

        Disagreement is the Jensen-Shannon divergence of their probabilities in nats: 0 if all answer alike. It is the
        part of the entropy of the mean that no member has alone (Houlsby et al. 2011, arXiv 1112.5745).
        """
        opinions, features = zip(*(self.opinion(place, images) for place in range(len(self.members))), strict=True)
        stacked = torch.stack(opinions)
        mean = self._mean(stacked)
        alone = (self.weights * torch.special.entr(stacked).sum(2).T).sum(1)
        disagreement = (torch.special.entr(mean).sum(1) - alone).clamp_min(0)
        return mean.clamp_min(_LEAST).log(), torch.cat(features, dim=1), disagreement

    @property
    def networks(self) -> tuple[Classifier, ...]:
        """The members."""
        return tuple(map(self.member, range(len(self.members))))

    def member(self, place: int) -> Classifier:
        """One of the networks."""
        return cast(Classifier, self.members[place])

    def opinion(self, place: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """Calibrated probabilities of one member in the classes of the ensemble, and its features."""
        logits, features = self.member(place).answers(resized(images, self.sizes[place], self.image_size))
        probabilities = (logits.float() / self.temperatures[place]).softmax(1)
        if self.orders[place] != tuple(sorted(self.orders[place])):
            probabilities = probabilities.index_select(1, self.get_buffer(f"order_{place}"))
        return probabilities, features.float()

    def _mean(self, opinions: Tensor) -> Tensor:
        return (self.weights[:, None, None] * opinions).sum(0)


def resized(images: Tensor, size: int, now: int) -> Tensor:
    """Square images of side `now` as float images of side `size`; the same where nothing changes."""
    if size == now:
        return images
    return functional.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)


def single(network: Network, what: str) -> Classifier:
    """The network, if it is one. Raises HemafastError that says `what` an ensemble cannot be."""
    if isinstance(network, Classifier):
        return network
    raise HemafastError(
        f"This is an ensemble, which cannot be {what}.", "Name one of its members, or train one network on its answers."
    )
