"""Batch norms in evaluation mode, done by the convolutions before them: one pass over memory less for each.

There a norm multiplies each channel by a constant and adds another; so can the weights and the bias of a convolution.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

logger = logging.getLogger("hemafast")


def fold_norms(model: nn.Module) -> int:
    """Let plain convolutions do the work of the batch norms behind them, whenever these are in evaluation mode.

    Parameters, buffers and their names stay what they are, and what is loaded into them later counts; in training mode
    a norm works as ever. Returns how many were folded: none of a network whose operations cannot be traced.
    """
    pairs = [*_pairs(model)]
    for convolution, norm in pairs:
        for module in (convolution, norm):  # in place, so that whoever holds a module has it too
            module.__class__ = _FOLDED[type(module)]
        convolution.behind = (norm,)  # type: ignore[assignment] # in a tuple it is no module of the convolution
    return len(pairs)


class _Tracer(fx.Tracer):
    """Looks into all modules but convolutions and batch norms."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Each plain convolution whose output nothing but one batch norm sees, and that norm."""
    modules = dict(model.named_modules())
    if not any(map(_is_plain_norm, modules.values())):
        return
    calls = [node for node in _graph(model).nodes if node.op == "call_module"]
    times = Counter(node.target for node in calls)
    for call in calls:
        behind = next(iter(call.users), call)
        if len(call.users) != 1 or behind.op != "call_module" or not times[call.target] == times[behind.target] == 1:
            continue
        convolution, norm = modules[str(call.target)], modules[str(behind.target)]
        if _is_plain_convolution(convolution) and _is_plain_norm(norm):
            yield convolution, norm


def _graph(model: nn.Module) -> fx.Graph:
    training = model.training
    try:
        return _Tracer().trace(model.eval())
    except Exception as error:  # networks do what they like in Python, and tracing fails in as many ways
        logger.debug("batch norms are not folded, for the network cannot be traced: %s", error)
        return fx.Graph()
    finally:
        model.train(training)


def _is_plain_norm(module: nn.Module) -> bool:
    plain = type(module) in (nn.BatchNorm2d, BatchNormAct2d)
    return plain and bool(module.affine) and module.running_mean is not None


def _is_plain_convolution(module: nn.Module) -> bool:
    return type(module) in (nn.Conv2d, Conv2dSame) and module.padding_mode == "zeros"


def _folded(convolution: _Convolution | _ConvolutionSame) -> tuple[Tensor, Tensor]:
    """Weights and bias that do the work of the norm too. They are small: making them takes no time to speak of."""
    (norm,) = convolution.behind
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    mean = norm.running_mean if convolution.bias is None else norm.running_mean - convolution.bias
    return convolution.weight * scale.view(-1, 1, 1, 1), torch.addcmul(norm.bias, mean, scale, value=-1)


class _Convolution(nn.Conv2d):
    behind: tuple[Any]  # a batch norm

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.behind[0].training else self._conv_forward(input, *_folded(self))


class _ConvolutionSame(Conv2dSame):  # type: ignore[misc] # timm is not annotated
    behind: tuple[Any]

    def forward(self, x: Tensor) -> Tensor:
        if self.behind[0].training:
            return cast(Tensor, super().forward(x))
        padded = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return functional.conv2d(padded, *_folded(self), self.stride, 0, self.dilation, self.groups)


class _Norm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.training else input


class _NormAct(BatchNormAct2d):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, super().forward(x) if self.training else self.act(self.drop(x)))


_FOLDED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Convolution,
    Conv2dSame: _ConvolutionSame,
    nn.BatchNorm2d: _Norm,
    BatchNormAct2d: _NormAct,
}
