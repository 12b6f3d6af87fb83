"""What a step costs on paper: floating-point operations and bytes, counted operation by operation.

Nothing is computed: the network lies on torch's meta device, where tensors have shapes and no values.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, flop_registry

from hemafast.engine.machine import Precision
from hemafast.model import Classifier, build_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of the tensors that a precision reads and writes."""

_MOVE_NOTHING = ("empty", "_unsafe_view")  # parts of names of operations that are no views and touch no memory


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one image."""

    forward_flops: int
    """Of products and convolutions, as in all that follow: a multiplication and an addition are two."""
    training_flops: int
    """Forward and backward: somewhat less than three times the forward's, as the pixels want no gradient."""
    forward_bytes: int
    """Read and written by all operations, each by itself: what fusing and caching them saves is not taken off."""
    training_bytes: int


def step_costs(name: str, classes: int, image_size: int, precision: Precision, batch_size: int = 8) -> Costs:
    """Costs of a timm model for an image of `image_size` pixels, as `model_costs` counts them."""
    with torch.device("meta"):
        model = build_model(name, classes, image_size)
    return model_costs(model, image_size, DTYPES[precision], batch_size)


def model_costs(model: Classifier, image_size: int, dtype: torch.dtype, batch_size: int = 1) -> Costs:
    """Costs of `model` for a uint8 image of `image_size` pixels in training, with the loss, its backbone in `dtype`.

    Weights are read once a batch, so that bytes an image fall a little with `batch_size`. The optimizer is not
    counted. `model` itself stays as it is, on whatever device.
    """
    forward, training = _passes(model, image_size, dtype, batch_size)
    return Costs(
        forward_flops=forward.flops // batch_size,
        training_flops=training.flops // batch_size,
        forward_bytes=forward.moved // batch_size,
        training_bytes=training.moved // batch_size,
    )


def least_training_bytes(model: Classifier, image_size: int, dtype: torch.dtype, batch_size: int = 1) -> int:
    """What is left of `training_bytes` if all but products and convolutions were fused into them.

    Each of them then reads its inputs and weights once and writes its output once, forward and backward; everything
    between two of them costs nothing. A cache that keeps an output for the next reader can still do better.
    """
    _, training = _passes(model, image_size, dtype, batch_size)
    return training.moved_by_products // batch_size


@dataclass(frozen=True, slots=True)
class _Count:
    """Of a batch."""

    flops: int
    moved: int
    moved_by_products: int


def _passes(model: Classifier, image_size: int, dtype: torch.dtype, batch_size: int) -> tuple[_Count, _Count]:
    """Counts of the forward pass, and of both passes together."""
    model = copy.deepcopy(model).to("meta").train()
    # As under autocast: pixels are normalised in fp32, and the first convolution wants them in `dtype`.
    model.backbone.to(dtype).register_forward_pre_hook(lambda _, images: (images[0].to(dtype),))
    with torch.device("meta"):
        images = torch.empty((batch_size, 3, image_size, image_size), dtype=torch.uint8)
        labels = torch.empty(batch_size, dtype=torch.int64)
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=formulas) as operations, _Traffic() as traffic:
        loss = cross_entropy(model(images).float(), labels)
        forward = _Count(operations.get_total_flops(), traffic.moved, traffic.moved_by_products)
        loss.backward()  # type: ignore[no-untyped-call]
    return forward, _Count(operations.get_total_flops(), traffic.moved, traffic.moved_by_products)


def _convolution_backward(
    gradient: Sequence[int],
    images: Sequence[int],
    weight: Sequence[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: int,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    """Torch's own formula forgets groups for the gradient of the weight, which makes depthwise convolutions dear.

    The gradients of input and weight each take as many multiplications as the forward pass.
    """
    once = conv_flop_count(list(images), list(weight), list(gradient), transposed)
    return int(sum(wanted[:2]) * once)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all tensors that operations read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = self.moved_by_products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view or any(part in func.name() for part in _MOVE_NOTHING):
            return out
        moved = sum(_stored_bytes(leaf) for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor))
        self.moved += moved
        if func._overloadpacket in flop_registry:
            self.moved_by_products += moved
        return out


def _stored_bytes(tensor: Tensor) -> int:
    """Without what an expanded tensor repeats."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * prod(size for size, stride in sizes if stride)
