"""What can be changed in a network without labels: its white point, and the scales and shifts of its norms.

Each change is one of ordinary weights, so that an adapted model is a model like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hemafast.fuse_norm import fuse_batch_norms
from hemafast.model import Classifier, last_layer
from hemafast.progress import SILENT, Progress, stage

_LEAST_WHITE, _MOST_GAIN = 16.0, 4.0
_STEPS, _BATCH = 48, 32  # of `sharpen`
_RATE, _WARMUP = 1e-3, 10  # learning rate, and steps in which it rises
_KEPT = 0.6  # how far norms go from those before to those learned


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
    """Whether the network has norms to sharpen its answers by."""
    return bool(_norms(network))


def sharpen(
    network: Classifier, pixels: Tensor, expected: npt.NDArray[np.float64], progress: Progress = SILENT
) -> Classifier:
    """A copy of a network whose answers tell more about other images.

    Scales and shifts of all norms learn to give answers that are sure of each image, and that together have the
    frequencies that are expected (Liang et al. 2020, arXiv 2002.08546, and Wang et al. 2021, arXiv 2006.10726). What is
    kept lies between those before and those learned (Wortsman et al. 2022, arXiv 2109.01903). Statistics of batch norm
    stay.

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
    before = [parameter.detach().clone() for parameter in learning]
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
    with torch.no_grad():
        for former, parameter in zip(before, learning, strict=True):
            parameter.copy_(former.lerp(parameter, _KEPT))
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
    logs = logits.float().log_softmax(1)
    probabilities = logs.exp()
    entropy = -(probabilities * logs).sum(1).mean()  # not of the probabilities: at 0 their gradient is infinite
    mean = probabilities.mean(0).clamp_min(1e-8)
    return entropy + (mean * (mean / expected).log()).sum()


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


def narrow(network: Classifier, rows: Sequence[int]) -> Classifier:
    """The network, or a copy whose last layer has these rows only: the classes that it tells apart, in order."""
    layer = last_layer(network)
    if len(rows) == layer.out_features:
        return network
    chosen = torch.tensor(rows, device=layer.weight.device)
    return expand(network, layer.weight.detach()[chosen], layer.bias.detach()[chosen])


def expand(network: Classifier, weights: Tensor, bias: Tensor) -> Classifier:
    """A copy of a network with another last layer: weights (classes, d) and bias (classes,)."""
    changed = copy.deepcopy(network)
    layer = last_layer(changed)
    layer.weight = nn.Parameter(weights.to(layer.weight))
    layer.bias = nn.Parameter(bias.to(layer.bias))
    layer.out_features = len(bias)
    changed.backbone.num_classes = len(bias)  # type: ignore[assignment]
    return changed
