"""AdamW without weight decay of norms and biases; with layer decay, each layer has its own learning rate."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from hemafast.model import Classifier


def build_optimizer(
    model: Classifier, *, weight_decay: float, layer_decay: float | None = None, device: str = "cpu"
) -> torch.optim.AdamW:
    """Fused AdamW: one pass over the parameters instead of a dozen. `set_rate` sets its learning rate.

    The rate is a tensor on the device, so that a captured CUDA graph reads it at every replay.
    """
    heads = nn.ModuleList(part for name, part in model.named_children() if name != "backbone")
    groups = [*_groups(model.backbone, weight_decay, layer_decay), *_two_groups(heads, weight_decay, ())]
    for group in groups:
        group["lr"] = torch.zeros((), device=device)
    return _AdamW(groups, fused=True, capturable=device == "cuda")


class _AdamW(torch.optim.AdamW):
    """AdamW whose methods tell torch's compiler nothing: to tell it to leave them alone, torch's own import it."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


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
    plain = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    if layer_decay is None:
        return _two_groups(backbone, weight_decay, plain)
    from timm.optim import param_groups_layer_decay

    return list(param_groups_layer_decay(backbone, weight_decay, no_weight_decay_list=plain, layer_decay=layer_decay))


def _two_groups(backbone: nn.Module, weight_decay: float, plain: Collection[str]) -> list[dict[str, Any]]:
    """What does not decay, then what does, as timm's param_groups_weight_decay. To import that takes a second."""
    groups: dict[float, list[nn.Parameter]] = {0.0: []}
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            is_plain = parameter.ndim <= 1 or name.endswith(".bias") or any(fnmatch(name, pattern) for pattern in plain)
            groups.setdefault(0.0 if is_plain else weight_decay, []).append(parameter)
    return [{"params": found, "weight_decay": decay} for decay, found in groups.items() if found]
