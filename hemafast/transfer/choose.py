"""Which changes to take without labels: candidates are judged by what the changed networks say of the new images.

*Consensus* is how often a network answers as all candidates together do, by their mean probabilities: of several
networks, the one that agrees most with the others is seldom the worst. *Information* is how much an answer tells about
a cell: answers are sure, and not all the same (the mutual information of Krause, Perona and Gomes 2010). The candidate
with the most consensus is taken if it gives clearly more information than the network before adapting.

Measured, and not used: agreement under changed colours, which falls where scores rise; information alone, which keeps
rising where scores fall; and class frequencies by EM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hemafast.engine.home import white_point
from hemafast.model import Classifier
from hemafast.progress import Progress, stage
from hemafast.transfer import steps

SHARES = (0.0, 0.3, 0.7)
"""Weight of the new images in the statistics of batch norm."""
JUDGED = 384
"""Most images that candidates are judged on."""
MARGIN = 0.025
"""Information that a change must give beyond the unchanged network: at home it gave 0.014, elsewhere 0.036 to 0.115."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One way to change a network without labels."""

    white: bool
    """Whether the white point is matched."""
    share: float
    """Weight of the new images in batch norm."""
    network: Classifier
    information: float = 0.0
    """0 to 1."""
    consensus: float = 1.0
    """0 to 1."""

    @property
    def name(self) -> str:
        """In words."""
        parts = ["white point matched"] * self.white
        parts += [f"batch norm {self.share:.0%} new"] * bool(self.share)
        return ", ".join(parts) or "no change"


def best_candidate(
    network: Classifier, pixels: Tensor, wanted_white: Tensor | None, progress: Progress
) -> tuple[Candidate, list[Candidate]]:
    """The change that is worth most without labels, and all that were judged; the first is no change.

    Args:
        network: in evaluation mode, its batch norms not fused, its prior uniform.
        pixels: uint8 (n, 3, height, width) of the new images.
        wanted_white: white point of the training images; None if it is unknown.
        progress: listens to the candidates.
    """
    judged, candidates, answers = sample_of(pixels), [], []
    ways = [*_ways(steps.has_norms(network), wanted_white is not None)]
    with stage(progress, "judging changes", len(ways), unit="changes"):
        for white, share in ways:
            changed = change(network, pixels, wanted_white if white else None, share)
            answers.append(answers_of(changed, judged))
            candidates.append(Candidate(white, share, changed, information(answers[-1])))
            progress.advance()
    together = torch.stack(answers).mean(0).argmax(1)
    agreeing = [float((one.argmax(1) == together).float().mean()) for one in answers]
    candidates = [replace(one, consensus=share) for one, share in zip(candidates, agreeing, strict=True)]
    best = max(candidates, key=lambda one: one.consensus)
    worth_it = best.information > candidates[0].information + MARGIN
    return (best if worth_it else candidates[0]), candidates


def _ways(norms: bool, white_known: bool) -> Iterator[tuple[bool, float]]:
    for white in (False, True)[: 1 + white_known]:
        for share in SHARES if norms else (0.0,):
            yield white, share


def change(network: Classifier, pixels: Tensor, wanted_white: Tensor | None, share: float) -> Classifier:
    """The network with its white point matched to `wanted_white`, if given, and `share` of the images in its norms."""
    changed = network
    if wanted_white is not None:
        changed = steps.match_white(network, white_point(pixels), wanted_white)
    return steps.renew_norms(changed, pixels, share) if share else changed


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
    entropy: Tensor = torch.special.entr(probabilities).sum(-1)
    return entropy


def table(candidates: Sequence[Candidate], chosen: Candidate) -> list[dict[str, object]]:
    """What was measured of each candidate, as plain data."""
    return [
        {
            "change": one.name,
            "information": one.information,
            "consensus": one.consensus,
            "chosen": one is chosen,
        }
        for one in candidates
    ]
