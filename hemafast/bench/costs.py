"""The costs of a training step: floating-point operations and bytes, counted operation by operation.

Nothing is computed: the network is on torch's meta device, where tensors have shapes and no values.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, flop_registry

from hemafast.bench.result import Costs
from hemafast.engine.machine import Precision
from hemafast.model import Classifier, build_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The type of the tensors in each precision."""

_MOVE_NOTHING = ("empty", "_unsafe_view")  # in names of operations that touch no memory and are not marked as views


def step_costs(name: str, classes: int, image_size: int, precision: Precision, batch_size: int = 8) -> Costs:
    """Costs of a timm model by name; see `model_costs`."""
    with torch.device("meta"):
        model = build_model(name, classes, image_size)
    return model_costs(model, image_size, DTYPES[precision], batch_size)


def model_costs(model: Classifier, image_size: int, dtype: torch.dtype, batch_size: int = 1) -> Costs:
    """Costs of `model` and the loss for a uint8 image of `image_size` pixels in training, with its backbone in `dtype`.

    Weights are read once per batch, so a larger `batch_size` takes slightly fewer bytes per image. The optimizer is not
    counted. `model` is not changed, and may be on any device.
    """
    return _count(model, image_size, dtype, batch_size)[0]


def least_training_bytes(model: Classifier, image_size: int, dtype: torch.dtype, batch_size: int = 1) -> int:
    """`training_bytes` if every other operation were fused into the products and convolutions.

    Each of them then reads its inputs and weights once and writes its output once, forward and backward. A cache that
    keeps an output for the next reader can do better.
    """
    return _count(model, image_size, dtype, batch_size)[1]


def step_operations(name: str, classes: int, precision: Precision) -> int:
    """Operations of our eager training step that touch memory: a stand-in for the kernels that a GPU launches.

    They are counted while a CPU trains on two small images; their number depends on neither the size of the images nor
    the batch. A GPU takes two or more kernels for some, as for the gradients of a convolution. The optimizer is fused.
    """
    from hemafast.bench.settings import bench_settings
    from hemafast.data.batch import Batch
    from hemafast.engine.learner import build_learner
    from hemafast.engine.machine import choose_machine
    from hemafast.engine.step import Totals

    settings = bench_settings(model=name, image_size=64, batch_size=2, device="cpu", amp="off", compile="off")
    machine = choose_machine(device="cpu", amp="off", compiled="off")
    machine = replace(machine, precision=precision, own_gradients=False)
    learner = build_learner(settings, machine, np.full(classes, 2), batch_size=2, started_from="nothing", fuse=False)
    images = torch.zeros((2, 3, 64, 64), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    batch, totals = Batch(images, torch.tensor([0, 1]), torch.arange(2)), Totals(classes, "cpu")
    learner.train_step(batch, 1e-3, totals, step=0)  # makes the state of the optimizer
    with _Traffic() as traffic:
        learner.train_step(batch, 1e-3, totals, step=1)
    return int(traffic.operations)


def _count(model: Classifier, image_size: int, dtype: torch.dtype, batch_size: int) -> tuple[Costs, int]:
    """The costs of an image, and its least training bytes."""
    model = copy.deepcopy(model).to("meta").train()
    # As under autocast: pixels are normalised in fp32, and the first convolution reads them in `dtype`.
    model.backbone.to(dtype).register_forward_pre_hook(lambda _, images: (images[0].to(dtype),))
    with torch.device("meta"):
        images = torch.empty((batch_size, 3, image_size, image_size), dtype=torch.uint8)
        labels = torch.empty(batch_size, dtype=torch.int64)
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=formulas) as operations, _Traffic() as traffic:
        loss = cross_entropy(model(images).float(), labels)
        forward_flops, forward_bytes = operations.get_total_flops(), traffic.moved
        loss.backward()  # type: ignore[no-untyped-call]
    totals = (forward_flops, operations.get_total_flops(), forward_bytes, traffic.moved, traffic.moved_by_products)
    *costs, least = (total // batch_size for total in totals)
    return Costs(*costs), least


def _convolution_backward(gradient: Any, images: Any, weight: Any, *others: Any, **_: Any) -> int:
    """Operations of the gradients of input and weight: each takes as many as the forward pass.

    Torch's own formula ignores groups for the gradient of the weight, so depthwise convolutions look expensive.
    """
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = others
    once = conv_flop_count(list(images), list(weight), list(gradient), transposed)
    return int(sum(wanted[:2]) * once)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and adds up the bytes that they read and write. Views move nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = self.moved_by_products = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view or any(part in func.name() for part in _MOVE_NOTHING):
            return out
        moved = sum(_stored_bytes(leaf) for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor))
        self.moved += moved
        self.operations += 1
        if func._overloadpacket in flop_registry:
            self.moved_by_products += moved
        return out


def _stored_bytes(tensor: Tensor) -> int:
    """Bytes without the repeats of an expanded tensor."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * prod(size for size, stride in sizes if stride)
