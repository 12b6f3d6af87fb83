"""The mean of the weights of several networks as one network (Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hemafast.model import Classifier


def mean_of_weights(networks: Sequence[Classifier]) -> Classifier:
    """A network whose weights and buffers are the means of those of others of the same kind; counts are the first's."""
    soup = copy.deepcopy(networks[0])
    states = [network.state_dict() for network in networks]
    mixed = {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }
    soup.load_state_dict(mixed)
    return soup


@torch.no_grad()
def reestimate_norms(network: Classifier, batches: Iterable[Tensor]) -> int:
    """Measure the statistics of all batch norms anew that learned them: means of weights have activations of their own.

    Args:
        network: in evaluation mode, with its frozen batch norms frozen (`Classifier.freeze`), which stay as they are.
        batches: uint8 images (n, 3, size, size) of the training set, on the device of the network.

    Returns:
        How many batch norms were measured.
    """
    norms, turns = network.learning_norms, network.quarter_turns
    network.eval().quarter_turns = False  # training sees no image in four turns at once
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    for images in batches if norms else ():
        network(images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    network.eval().quarter_turns = turns
    return len(norms)
