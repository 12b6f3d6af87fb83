"""The exponential moving average of a network's weights."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class Average(Generic[Network]):
    """A copy of a network whose weights and batch norm statistics follow those of the network.

    Frozen weights are those of the network from the beginning, and are left alone.
    """

    def __init__(self, model: Network, decay: float) -> None:
        from timm.utils import ModelEmaV3

        # The decay starts low and rises, so that the average of a short run does not consist of its first weights.
        self._timm = ModelEmaV3(model, decay=decay, use_warmup=True)
        self.module: Network = self._timm.module
        learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        frozen = {name for name, _ in model.named_parameters()} - learns
        theirs = self.module.state_dict()
        pairs = [(theirs[name], tensor) for name, tensor in model.state_dict().items() if name not in frozen]
        self._blended, self._counts = (
            [pair for pair in pairs if pair[0].is_floating_point() == floats] for floats in (True, False)
        )

    def share(self, update: int) -> float:
        """How much of the average the network's present weights make up after update `update`, counted from 0."""
        return 1 - float(self._timm.get_decay(update + 1))

    @torch.no_grad()
    def take(self, share: Tensor) -> None:
        """Move the average by `share`, a scalar on the device, towards the network."""
        ours, theirs = ([pair[side] for pair in self._blended] for side in (0, 1))
        steps = torch._foreach_sub(theirs, ours)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(ours, steps)
        for mine, its in self._counts:
            mine.copy_(its)
