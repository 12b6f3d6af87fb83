"""Count the training images of each class, and measure how bright their background is: `hemafast adapt` needs both."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hemafast.data.dataset import Dataset
from hemafast.data.graph import GraphShape, Source
from hemafast.data.loader import eval_loader
from hemafast.data.samples import Samples
from hemafast.engine.checkpoint import Home
from hemafast.engine.machine import Machine
from hemafast.preparation.split import TRAIN

_SAMPLE = 512  # training images that the white point is measured on
_BATCH = 64
_WHITE = 0.9  # quantile of a channel that is background in nearly all images of single cells
_STEP = 4  # px: every fourth pixel of every fourth row is enough for a quantile


def home_of(dataset: Dataset, machine: Machine, image_size: int, *, standardize: bool) -> Home:
    """What `hemafast adapt` needs to know of the training images of a data set.

    Args:
        dataset: the data set, with the domains and the fold of the run.
        machine: what reads the images.
        image_size: side in pixels of the images as the network sees them.
        standardize: whether the network standardizes them: then a white point has no effect, and is not measured.
    """
    counts = tuple(dataset.counts(TRAIN).tolist())
    if standardize:
        return Home(counts)
    return Home(counts, _white_point_of(dataset.samples(TRAIN, image_size), machine, image_size))


def _white_point_of(samples: Samples, machine: Machine, image_size: int) -> tuple[float, float, float]:
    """White point of a sample of the images."""
    some = samples.select(np.sort(np.random.default_rng(0).permutation(len(samples))[:_SAMPLE]))
    batch = min(_BATCH, len(some))
    source: Source = "resident" if machine.device == "cuda" else "packed"
    shape = GraphShape(machine.loader_device, source, some.packed_size, image_size, batch, machine.loader_threads)
    total = torch.zeros(3)
    for one in eval_loader(some, shape=shape).epoch(0):
        total += len(one.images) * white_point(one.images)
    red, green, blue = (total / len(some)).tolist()
    return red, green, blue


def white_point(pixels: Tensor) -> Tensor:
    """Brightness of the background, float32 (3,), 0 to 255: mean over uint8 images (n, 3, height, width).

    Of each channel of an image, it is the 90th percentile.
    """
    thinned = pixels[:, :, ::_STEP, ::_STEP].flatten(2).float()
    return thinned.quantile(_WHITE, dim=2).mean(0).cpu()
