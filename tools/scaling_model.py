"""What a training step costs, counted, and how long it would take on GPUs, calculated: nothing here is measured.

benchmarks/scaling_projection.md says what is counted, what comes from data sheets and what is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

HOST_GPUS = 8
PEAK_SHARE = 0.4
"""Assumed share of the peak that convolutions reach on tensor cores."""
BACKWARD_SHARE = 2 / 3
"""Assumed share of a step that can hide an all-reduce."""
BUCKET = 25 * 2**20
"""Bytes of gradients in one all-reduce: DistributedDataParallel's default."""
LATENCY, LATENCY_HOSTS = 25e-6, 100e-6
"""Assumed seconds that each all-reduce costs whatever its size: within a host, and between hosts."""
OPTIMIZER_BYTES = 28
"""AdamW reads weight, gradient and two moments of a parameter and writes three of them back, in fp32."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU in its usual host of eight; figures of data sheets, links in one direction."""

    name: str
    peak: float
    """Dense bf16 FLOP/s."""
    memory: float
    """Bytes/s of its own memory."""
    link: float
    """Bytes/s to the other GPUs of the host."""
    network: float
    """Bytes/s out of a host, all network cards together."""
    cores: int
    """CPU cores of the host."""


A100 = Card("A100 80 GB SXM", 312e12, 2.039e12, 300e9, 8 * 25e9, 128)
CARDS = (A100, Card("H100 SXM", 989e12, 3.35e12, 450e9, 8 * 50e9, 112), Card("L4", 121e12, 300e9, 32e9, 12.5e9, 48))

ANCHORS = {
    ("efficientnet_b0", 224, 256): {1: 2489, 8: 16_652, 16: 29_332},
    ("efficientnet_b4", 380, 128): {1: 331, 8: 2570, 16: 4813, 32: 9425, 64: 18_900},
    ("resnet50", 224, 256): {1: 2470, 8: 16_621},
}
"""Published images/s on A100 80 GB by number of GPUs, of (model, pixels, batch of one GPU); the page says where."""


@dataclass(frozen=True, slots=True)
class Work:
    """What training a network costs: forward and backward in bf16, gradients and optimizer in fp32."""

    flops: float
    """Of one image."""
    image_bytes: float
    """Inputs and outputs of all operators, for one image."""
    step_bytes: float
    """The same for weights, with the optimizer: once a step."""
    kept_bytes: float
    """Activations of one image that wait for backward."""
    parameters: int
    operators: int
    """Operators of a step, without the optimizer."""

    def seconds(self, card: Card, batch: int, gpus: int, memory_share: float) -> float:
        """Seconds of a step of `batch` images on each GPU; `memory_share` is the share of the bandwidth reached."""
        moved = batch * self.image_bytes + self.step_bytes
        alone = max(batch * self.flops / (card.peak * PEAK_SHARE), moved / (card.memory * memory_share))
        if gpus == 1:
            return alone
        hosts = gpus > HOST_GPUS
        gradients = 4 * self.parameters
        exchange = 2 * (gpus - 1) / gpus * gradients / (min(card.link, card.network) if hosts else card.link)
        latency = math.ceil(gradients / BUCKET) * (LATENCY_HOSTS if hosts else LATENCY)
        return alone + max(0.0, exchange - BACKWARD_SHARE * alone) + latency

    def rate(self, card: Card, batch: int, gpus: int, memory_share: float) -> float:
        """Images/s of all GPUs together."""
        return gpus * batch / self.seconds(card, batch, gpus, memory_share)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the bytes that go in and out of operators; views move nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = self.operators = 0
        self.kept: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operators += 1
            self.moved += sum(leaf.nbytes for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor))
        return out

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor that backward will want."""
        storage = tensor.untyped_storage()
        self.kept[storage._cdata] = storage
        return tensor


def _conv_backward(gradient: Sequence[int], inputs: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any) -> int:
    """Torch's own count forgets groups: it makes a depthwise convolution as dear as a full one."""
    wanted = sum(rest[-1][:2])  # gradients of input and of weight cost what the forward pass does, each
    return int(wanted * conv_flop_count(list(inputs), list(weight), list(gradient)))


@cache
def count(model: str, pixels: int = 224, classes: int = 11) -> Work:
    """The cost of training timm's `model`, counted on tensors without data."""
    import timm

    with torch.device("meta"):
        network = timm.create_model(model, num_classes=classes).to(torch.bfloat16).train()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    counts = []
    for batch in (1, 2):  # what the second image adds is one image's; the rest is once a step
        with torch.device("meta"):
            images = torch.zeros(batch, 3, pixels, pixels, dtype=torch.uint8)
            labels = torch.zeros(batch, dtype=torch.long)
        traffic = _Traffic()
        flops = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _conv_backward})
        with flops, traffic, torch.autograd.graph.saved_tensors_hooks(traffic.keep, lambda tensor: tensor):
            loss = torch.nn.functional.cross_entropy(network(images.to(torch.bfloat16)).float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]
        network.zero_grad()
        kept = sum(storage.nbytes() for storage in traffic.kept.values())
        counts.append((flops.get_total_flops(), traffic.moved, kept, traffic.operators))
    one, two = counts
    image_bytes = two[1] - one[1]
    step_bytes = one[1] - image_bytes + OPTIMIZER_BYTES * parameters
    return Work(two[0] - one[0], image_bytes, step_bytes, two[2] - one[2], parameters, two[3])


def reached(model: str, pixels: int, batch: int) -> float:
    """Share of the A100's memory bandwidth that the published rate of one GPU implies."""
    work = count(model, pixels)
    published = ANCHORS[model, pixels, batch][1]
    return (work.image_bytes + work.step_bytes / batch) * published / A100.memory


def anchored_share() -> float:
    """The share that the first anchor implies: what the projection takes for every card."""
    return reached(*next(iter(ANCHORS)))
