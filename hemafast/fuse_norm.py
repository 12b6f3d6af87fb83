"""Fuse batch norms in evaluation mode into the convolutions before them, which saves one pass over memory each.

In evaluation mode, a batch norm scales and shifts channels by constants. Weight and bias of a convolution do the same.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from hemafast.light_timm import BatchNormAct2d, Conv2dSame, pad_same

logger = logging.getLogger("hemafast")


def fuse_batch_norms(model: nn.Module) -> int:
    """Fuse each batch norm into the plain convolution before it, in place, while the norm is in evaluation mode.

    Parameters, buffers and their names stay the same, so weights can be loaded afterwards. In training mode nothing
    changes. Returns the number of fused norms; 0 if the network cannot be traced.
    """
    pairs = [*_pairs(model)]
    for convolution, norm in pairs:
        for module in (convolution, norm):  # in place, so that other references to the module see it too
            module.__class__ = _FUSED[type(module)]
        convolution.behind = (norm,)  # type: ignore[assignment] # in a tuple, so that it is not registered as a submodule
    return len(pairs)


class _Tracer(fx.Tracer):
    """Traces into every module except convolutions and batch norms."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Each plain convolution whose only consumer is one batch norm, and that norm."""
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
    except Exception as error:  # tracing arbitrary Python can fail in any way
        logger.debug("batch norms are not fused because the network cannot be traced: %s", error)
        return fx.Graph()
    finally:
        model.train(training)


def _is_plain_norm(module: nn.Module) -> bool:
    plain = type(module) in (nn.BatchNorm2d, BatchNormAct2d)
    return plain and bool(module.affine) and module.running_mean is not None


def _is_plain_convolution(module: nn.Module) -> bool:
    return type(module) in (nn.Conv2d, Conv2dSame) and module.padding_mode == "zeros"


def _fused(convolution: _Convolution | _ConvolutionSame) -> tuple[Tensor, Tensor]:
    """Weight and bias of convolution and norm together. They are small, so computing them costs little."""
    (norm,) = convolution.behind
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    mean = norm.running_mean if convolution.bias is None else norm.running_mean - convolution.bias
    return convolution.weight * scale.view(-1, 1, 1, 1), torch.addcmul(norm.bias, mean, scale, value=-1)


class _Convolution(nn.Conv2d):
    behind: tuple[Any]  # a batch norm

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.behind[0].training else self._conv_forward(input, *_fused(self))


class _ConvolutionSame(Conv2dSame):  # type: ignore[misc] # timm is not annotated
    behind: tuple[Any]

    def forward(self, x: Tensor) -> Tensor:
        if self.behind[0].training:
            return cast(Tensor, super().forward(x))
        padded = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return functional.conv2d(padded, *_fused(self), self.stride, 0, self.dilation, self.groups)


class _Norm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.training else input


class _NormAct(BatchNormAct2d):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, super().forward(x) if self.training else self.act(self.drop(x)))


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Convolution,
    Conv2dSame: _ConvolutionSame,
    nn.BatchNorm2d: _Norm,
    BatchNormAct2d: _NormAct,
}
