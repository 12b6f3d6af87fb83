"""AdamW without weight decay of norms and biases; with layer decay, each layer has its own learning rate."""

from __future__ import annotations

from typing import Any

import torch

from hemafast.model import Classifier


def build_optimizer(
    model: Classifier, *, weight_decay: float, layer_decay: float | None = None, device: str = "cpu"
) -> torch.optim.AdamW:
    """Fused AdamW: one pass over the parameters instead of a dozen. `set_rate` sets its learning rate.

    The rate is a tensor on the device, so that a captured CUDA graph reads it at every replay.
    """
    groups = _groups(model.backbone, weight_decay, layer_decay)
    for group in groups:
        group["lr"] = torch.zeros((), device=device)
    return torch.optim.AdamW(groups, fused=True, capturable=device == "cuda")


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to `rate` times the scale of the group."""
    for group in optimizer.param_groups:
        group["lr"].fill_(rate * group.get("lr_scale", 1.0))


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load moments and counts from `state`; the settings of the groups stay.

    Raises ValueError or LookupError if the state belongs to other parameters.
    """
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for parameter, held in optimizer.state.items():
        for name, value in held.items():
            if getattr(value, "ndim", 0) and value.shape != parameter.shape:
                raise ValueError(f"{name} of a tensor {tuple(parameter.shape)} has the shape {tuple(value.shape)}")
    for group, ours in zip(optimizer.param_groups, settings, strict=True):
        group.update(ours)


def _groups(backbone: Any, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    plain = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    if layer_decay is None:
        return list(param_groups_weight_decay(backbone, weight_decay, no_weight_decay_list=plain))
    return list(param_groups_layer_decay(backbone, weight_decay, no_weight_decay_list=plain, layer_decay=layer_decay))
