"""What can be changed in a network without labels: white point, statistics of batch norm, and prior of the classes.

Each change is one of ordinary weights, so that an adapted model is a model like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hemafast.errors import HemafastError
from hemafast.fuse_norm import fuse_batch_norms
from hemafast.model import Classifier
from hemafast.progress import SILENT, Progress, stage

_LEAST_WHITE, _MOST_GAIN = 16.0, 4.0
_STEPS, _BATCH = 48, 32  # of `sharpen`
_RATE, _WARMUP = 1e-3, 10  # learning rate, and steps in which it rises


def match_white(network: Classifier, measured: Tensor, wanted: Tensor) -> Classifier:
    """A copy of a network that sees a background `measured` (3,) as one of brightness `wanted` (3,).

    Each channel is multiplied by a factor, as a camera does for its white balance (von Kries 1902).
    """
    gain = (wanted / measured.clamp_min(_LEAST_WHITE)).clamp(1 / _MOST_GAIN, _MOST_GAIN).tolist()
    changed = copy.deepcopy(network)
    mean, std = (
        tuple(value / factor for value, factor in zip(values, gain, strict=True))
        for values in (network.mean, network.std)
    )
    changed.normalise_by(mean, std)
    return changed.to(next(network.parameters()).device)


def has_norms(network: nn.Module) -> bool:
    """Whether the network has batch norms with running statistics."""
    return any(isinstance(one, _BatchNorm) and one.running_mean is not None for one in network.modules())


@torch.inference_mode()
def renew_norms(network: Classifier, pixels: Tensor, share: float, batch_size: int = 64) -> Classifier:
    """A copy of a network whose batch norms know other images (Schneider et al. 2020, arXiv 2006.16971).

    Args:
        network: a network in evaluation mode, whose batch norms are not fused.
        pixels: uint8 (n, 3, height, width).
        share: weight of the mean and variance of these images; 1 - `share` is that of the old ones.
        batch_size: images per forward pass, in an order with a fixed seed. Statistics are means over batches.

    Returns:
        The copy, in evaluation mode.
    """
    changed = copy.deepcopy(network).eval()
    changed.quarter_turns = False  # statistics of the images as they are
    norms: list[Any] = [one for one in changed.modules() if isinstance(one, _BatchNorm)]
    old = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    sums = [(torch.zeros_like(mean), torch.zeros_like(variance)) for mean, variance in old]

    def mix(place: int, entering: Tensor) -> None:
        """Let a batch norm use the mixture for this batch, so that deeper ones see what it makes of it."""
        variance, mean = torch.var_mean(entering.float(), (0, 2, 3), correction=0)
        for kept, total, former, new in zip(
            _statistics(norms[place]), sums[place], old[place], (mean, variance), strict=True
        ):
            kept.copy_(former.lerp(new, share))
            total.add_(kept, alpha=len(entering) / len(pixels))

    hooks = [
        norm.register_forward_pre_hook(lambda _, entering, place=place: mix(place, entering[0]))
        for place, norm in enumerate(norms)
    ]
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(pixels))).to(pixels.device)
    for rows in order.chunk(-(-len(pixels) // batch_size)):
        changed.features(pixels[rows])
    for hook in hooks:
        hook.remove()
    for norm, totals in zip(norms, sums, strict=True):
        for kept, total in zip(_statistics(norm), totals, strict=True):
            kept.copy_(total)
    changed.quarter_turns = network.quarter_turns
    return changed


def _statistics(norm: Any) -> tuple[Tensor, Tensor]:
    return norm.running_mean, norm.running_var


def sharpen(
    network: Classifier, pixels: Tensor, expected: npt.NDArray[np.float64], progress: Progress = SILENT
) -> Classifier:
    """A copy of a network whose answers tell more about other images.

    Scales and shifts of all norms are changed until answers are sure of each image, and together have the frequencies
    that are expected (Liang et al. 2020, arXiv 2002.08546, and Wang et al. 2021, arXiv 2006.10726). Statistics of batch
    norm stay.

    Args:
        network: a network in evaluation mode, whose batch norms are not fused.
        pixels: uint8 (n, 3, height, width), height equal to width.
        expected: frequencies of the classes among the images, (classes,).
        progress: listens to the steps.

    Returns:
        The copy, in evaluation mode.
    """
    changed = copy.deepcopy(network).eval().requires_grad_(False)
    changed.quarter_turns = False  # each step draws one of them
    learning = [parameter.requires_grad_() for norm in _norms(changed) for parameter in norm.parameters()]
    optimizer = torch.optim.Adam(learning, lr=0.0)
    frequencies = torch.from_numpy(expected).float().to(pixels.device)
    generator = np.random.default_rng(0)
    with torch.enable_grad(), stage(progress, "sharpening answers", _STEPS, unit="steps"):
        for done, rows in enumerate(_batches(len(pixels), generator)):
            optimizer.param_groups[0]["lr"] = _RATE * min(1, (done + 1) / _WARMUP) * (1 - done / _STEPS)
            seen = _turned(pixels[torch.from_numpy(rows).to(pixels.device)], generator)
            torch.autograd.backward(_uncertainty(changed(seen), frequencies))
            optimizer.step()
            optimizer.zero_grad()
            progress.advance()
    changed.quarter_turns = network.quarter_turns
    return changed.requires_grad_(False)


def _norms(network: nn.Module) -> list[nn.Module]:
    return [one for one in network.modules() if isinstance(one, _BatchNorm | nn.LayerNorm | nn.GroupNorm)]


def _batches(images: int, generator: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Rows for each of _STEPS batches: all images in a new order, again and again."""
    rows = np.concatenate([generator.permutation(images) for _ in range(-(-_STEPS * _BATCH // images))])
    yield from rows[: _STEPS * _BATCH].reshape(_STEPS, _BATCH)


def _turned(images: Tensor, generator: np.random.Generator) -> Tensor:
    """Square images in one of their eight symmetries."""
    turned = torch.rot90(images, int(generator.integers(4)), (2, 3))
    mirrored = turned.flip(3) if generator.integers(2) else turned
    return mirrored.contiguous(memory_format=torch.channels_last)


def _uncertainty(logits: Tensor, expected: Tensor) -> Tensor:
    """Mean entropy of answers (n, classes), and the divergence of their mean from the `expected` (classes,)."""
    probabilities = logits.float().softmax(1)
    entropy: Tensor = torch.special.entr(probabilities).sum(1).mean()
    mean = probabilities.mean(0).clamp_min(1e-8)
    return entropy + (mean * (mean / expected).log()).sum()


def last_layer(network: Classifier) -> nn.Linear:
    """The layer that classifies features. Raises HemafastError if it is not linear with a bias."""
    backbone: Any = network.backbone
    layer = backbone.get_classifier()
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        raise HemafastError(
            f"The last layer of this network is {type(layer).__name__}, not a linear one with a bias.",
            "Adapt a run of another --model.",
        )
    return layer


def divide_by_shares(network: Classifier, shares: npt.NDArray[np.float64]) -> Classifier:
    """A copy of a network that expects classes to be more equally frequent.

    Probabilities are divided by the square root of the `shares` (classes,) that classes had in training: the bias of
    the last layer changes. A whole division (Saerens et al. 2002, for known priors) takes all classes for equally
    frequent; it helps where they are, and harms where the new images have the frequencies of blood.
    """
    changed = copy.deepcopy(network)
    layer = last_layer(changed)
    with torch.no_grad():
        layer.bias.sub_(torch.from_numpy(np.log(shares) / 2).to(layer.bias))
    return changed


def learned_shares(counts: npt.NDArray[np.int64], balanced: float, tau: float) -> npt.NDArray[np.float64]:
    """Shares of the classes (classes,) that a network has learned to expect.

    Args:
        counts: training images of each class.
        balanced: share of an epoch that was drawn evenly from the classes.
        tau: how much of the frequencies the loss has taken out: 0 for cross-entropy, 1 for a balanced loss.

    Returns:
        Shares that add up to 1. A class without images counts as one image.
    """
    seen = np.maximum(counts, 1) / np.maximum(counts, 1).sum()
    drawn = (1 - balanced) * seen + balanced / len(seen)
    powered = drawn ** (1 - tau)
    return np.asarray(powered / powered.sum())


@torch.inference_mode()
def features_of(network: Classifier, pixels: Tensor, batch_size: int = 64) -> Tensor:
    """Features, float32 (n, d) on the CPU, of uint8 images (n, 3, height, width)."""
    fused = copy.deepcopy(network).eval()
    fuse_batch_norms(fused)
    return torch.cat([fused.features(part).float().cpu() for part in torch.split(pixels, batch_size)])


def logits_of(network: Classifier, features: Tensor) -> Tensor:
    """Logits, float32 (n, classes) on the CPU, of `features_of` images."""
    layer = last_layer(network)
    weight, bias = (value.detach().float().cpu() for value in (layer.weight, layer.bias))
    return torch.nn.functional.linear(features, weight, bias)


def expand(network: Classifier, weights: Tensor, bias: Tensor) -> Classifier:
    """A copy of a network with another last layer: weights (classes, d) and bias (classes,)."""
    changed = copy.deepcopy(network)
    layer = last_layer(changed)
    layer.weight = nn.Parameter(weights.to(layer.weight))
    layer.bias = nn.Parameter(bias.to(layer.bias))
    layer.out_features = len(bias)
    return changed
