"""Which changes to take without labels: candidates are judged by what the changed networks say of the new images.

*Information* is how much an answer tells about a cell: answers are sure, and not all the same (the mutual information
of Krause, Perona and Gomes 2010). *Moved* is the share of the images that get another answer.

Measured, and not used: the statistics of batch norm, which gain where classes are equally frequent and lose where most
cells are neutrophils; class frequencies by EM or by half; pseudo-labels; and agreement under changed colours, which
falls where scores rise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hemafast.engine.home import white_point
from hemafast.model import Classifier
from hemafast.progress import SILENT, Progress
from hemafast.transfer import steps

JUDGED = 384
"""Most images that candidates are judged on."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One way to change a network without labels."""

    network: Classifier
    white: bool = False
    """Whether the white point is matched."""
    sharpened: bool = False
    """Whether its answers are sharpened."""
    information: float = 0.0
    """0 to 1."""
    moved: float = 0.0
    """0 to 1, against the network before."""

    @property
    def name(self) -> str:
        """In words."""
        parts = ["white point matched"] * self.white + ["answers sharpened"] * self.sharpened
        return ", ".join(parts) or "no change"


def best_candidate(
    network: Classifier,
    pixels: Tensor,
    wanted_white: Tensor | None,
    shares: npt.NDArray[np.float64] | None,
    progress: Progress = SILENT,
) -> tuple[Candidate, list[Candidate]]:
    """The change that is worth most without labels, and all that were judged; the first is the network before.

    Args:
        network: in evaluation mode, its batch norms not fused.
        pixels: uint8 (n, 3, height, width) of the new images.
        wanted_white: white point of the training images; None if it is unknown, or has no effect.
        shares: class frequencies that the network expects, (classes,); None if they are unknown.
        progress: listens to the steps.
    """
    judged = sample_of(pixels)
    before = answers = answers_of(network, judged)
    candidates = [Candidate(network, information=information(before))]
    white = wanted_white is not None
    if wanted_white is not None:
        matched = steps.match_white(network, white_point(pixels), wanted_white)
        answers = answers_of(matched, judged)
        candidates.append(Candidate(matched, white, False, information(answers), _moved(before, answers)))
    if steps.has_norms(network):
        changed = steps.sharpen(candidates[-1].network, pixels, _expected(answers, shares), progress)
        answers = answers_of(changed, judged)
        candidates.append(Candidate(changed, white, True, information(answers), _moved(before, answers)))
    return candidates[-1], candidates


def _moved(before: Tensor, after: Tensor) -> float:
    return float((after.argmax(1) != before.argmax(1)).float().mean())


def _expected(found: Tensor, shares: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64]:
    """Frequencies of the classes: half way between those of the answers `found`, and those that were learned."""
    mean = found.mean(0).double().numpy()
    return np.asarray(mean if shares is None else (mean + shares) / 2)


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
        {"change": one.name, "information": one.information, "moved": one.moved, "chosen": one is chosen}
        for one in candidates
    ]
