"""Which changes to take without labels: each is judged by what the changed network says of the new images.

Two things are measured without labels. *Information* is how much an answer tells about a cell: answers are sure, and
not all the same (the mutual information of Krause, Perona and Gomes 2010). *Agreement* is how often the answer stays
when the colours of the image change a little, as another camera would change them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hemafast.model import Classifier
from hemafast.progress import Progress, stage
from hemafast.transfer import steps

SHARES = (0.0, 0.3, 0.7)
"""Weight of the new images in the statistics of batch norm."""
JUDGED = 384
"""Most images that candidates are judged on."""
MARGIN = 0.0

_GAIN, _OFFSET = 0.3, 0.1
"""Largest change of a channel's contrast (log) and mean (share of full scale) of a colour view."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One way to change a network without labels."""

    white: bool
    """Whether the white point is matched."""
    share: float
    """Weight of the new images in batch norm."""
    network: Classifier
    information: float = 0.0
    """0 to 1, of the logarithm of the number of classes."""
    agreement: float = 0.0
    """0 to 1."""
    predicted: npt.NDArray[np.int64] | None = None
    """(judged,): answers."""

    @property
    def worth(self) -> float:
        """What candidates are compared by."""
        return self.information + self.agreement

    @property
    def name(self) -> str:
        """In words."""
        parts = ["white point matched"] * self.white
        parts += [f"batch norm {self.share:.0%} new"] * bool(self.share)
        return ", ".join(parts) or "as it is"


def best_candidate(
    network: Classifier, pixels: Tensor, wanted_white: Tensor | None, progress: Progress
) -> tuple[Candidate, list[Candidate]]:
    """The change that is worth most without labels, and all that were judged; the first is the network as it is.

    Args:
        network: in evaluation mode, its batch norms not fused, its prior uniform.
        pixels: uint8 (n, 3, height, width) of the new images.
        wanted_white: white point of the training images; None if it is unknown.
        progress: listens to the candidates.
    """
    judged, found = sample_of(pixels), []
    ways = [*_ways(steps.has_norms(network), wanted_white is not None)]
    with stage(progress, "judging changes", len(ways), unit="changes"):
        for white, share in ways:
            changed = change(network, pixels, wanted_white if white else None, share)
            found.append(judge(Candidate(white, share, changed), judged))
            progress.advance()
    best = max(found, key=lambda one: one.worth)
    return (best if best.worth > found[0].worth + MARGIN else found[0]), found


def _ways(norms: bool, white_known: bool) -> Iterator[tuple[bool, float]]:
    for white in (False, True)[: 1 + white_known]:
        for share in SHARES if norms else (0.0,):
            yield white, share


def change(network: Classifier, pixels: Tensor, wanted_white: Tensor | None, share: float) -> Classifier:
    """The network with its white point matched to `wanted_white`, if given, and `share` of the images in its norms."""
    changed = network
    if wanted_white is not None:
        changed = steps.match_white(network, steps.white_point(pixels), wanted_white)
    return steps.renew_norms(changed, pixels, share) if share else changed


def judge(candidate: Candidate, pixels: Tensor) -> Candidate:
    """The candidate with what is measured of it on uint8 images (n, 3, height, width)."""
    answers = [answers_of(candidate.network, view) for view in (pixels, coloured(pixels))]
    predicted, other = (one.argmax(1) for one in answers)
    return replace(
        candidate,
        information=information(answers[0]),
        agreement=float((predicted == other).float().mean()),
        predicted=predicted.numpy(),
    )


def sample_of(pixels: Tensor) -> Tensor:
    """At most JUDGED of the images, the same ones each time."""
    rows = np.sort(np.random.default_rng(0).permutation(len(pixels))[:JUDGED])
    return pixels[torch.from_numpy(rows).to(pixels.device)]


def answers_of(network: Classifier, pixels: Tensor) -> Tensor:
    """Probabilities, float32 (n, classes) on the CPU, of uint8 images (n, 3, height, width)."""
    return steps.logits_of(network, steps.features_of(network, pixels)).softmax(1)


def information(probabilities: Tensor) -> float:
    """Mutual information of image and answer, 0 to 1, of probabilities (n, classes)."""
    if probabilities.shape[1] < 2:
        return 0.0
    of_mean, mean_of = _entropy(probabilities.mean(0)), _entropy(probabilities).mean()
    return float((of_mean - mean_of) / np.log(probabilities.shape[1]))


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)


def coloured(pixels: Tensor) -> Tensor:
    """The same images as other cameras might show them: uint8, contrast and mean of each channel changed at random."""
    draw = torch.Generator().manual_seed(0)
    shape = (len(pixels), 3, 1, 1)
    gain, offset = (
        (torch.rand(shape, generator=draw).to(pixels.device) * 2 - 1) * most for most in (_GAIN, 255 * _OFFSET)
    )
    values = pixels.float()
    mean = values.mean((2, 3), keepdim=True)
    return ((values - mean) * gain.exp() + mean + offset).clamp(0, 255).round().to(torch.uint8)


def table(candidates: Sequence[Candidate], chosen: Candidate) -> list[dict[str, object]]:
    """What was measured of each candidate, as plain data."""
    return [
        {
            "change": one.name,
            "information": one.information,
            "agreement": one.agreement,
            "chosen": one is chosen,
        }
        for one in candidates
    ]
