"""Batches out of the pipeline of DALI, and how its outputs become tensors of torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import tee
from typing import TYPE_CHECKING, Any

from hemafast.data.augment import Policy
from hemafast.data.batch import Batch, Placed
from hemafast.data.graph import GraphShape, build_graph
from hemafast.data.source import Images

if TYPE_CHECKING:
    from torch import Tensor


class DaliFeed:
    """Batches from any source and under any policy; DALI works READ_AHEAD batches ahead."""

    def __init__(self, images: Images, batches: Iterator[Placed], shape: GraphShape, policy: Policy) -> None:
        self._device = shape.device
        # DALI reads the arrays in place (`no_copy`): they stay here until their batch is delivered.
        self._read: deque[tuple[Placed, Any]] = deque()
        first, second = tee(batches)
        names = shape.inputs(policy)
        views = (tuple(placed.views[name] for name in names) for placed in second)
        self._pipeline = build_graph(_reading(images, first, self._read), views, shape, policy)

    def next(self) -> Batch:
        """The next batch, on the graph's device."""
        import torch

        (images,) = self._pipeline.run(current_stream(self._device))
        seen = take(images, self._device).permute(0, 3, 1, 2)
        placed, _ = self._read.popleft()
        labels = torch.from_numpy(placed.labels).to(seen.device, non_blocking=True)
        return Batch(seen, labels, rows=torch.from_numpy(placed.rows))


def current_stream(device: str) -> Any:
    """The stream of torch on which DALI hands its outputs over; None for "cpu"."""
    if device == "cpu":
        return None
    import torch

    return torch.cuda.current_stream()


def take(output: Any, device: str) -> Tensor:
    """A batch of outputs of one shape, from a pipeline that ran on `current_stream`, as one tensor.

    On a CPU it is the memory of the output, which belongs to whoever holds it (DALI's dynamic executor). On a GPU it is
    a copy in memory of torch, made on its current stream, and DALI has its own back at once. Otherwise DALI would free
    it whenever the tensor dies, in a thread that may synchronise the device: that breaks a capture of a CUDA graph.

    Args:
        output: a TensorList of DALI.
        device: "cpu" or "gpu".
    """
    from torch.utils.dlpack import from_dlpack

    whole = output.as_tensor()
    if device == "cpu":
        handed: Tensor = from_dlpack(whole)
        return handed
    return _copied(whole)


def _copied(whole: Any) -> Tensor:
    import torch
    from nvidia.dali.plugin.pytorch import feed_ndarray, to_torch_type

    copy = torch.empty(whole.shape(), dtype=to_torch_type[whole.dtype], device="cuda")
    feed_ndarray(whole, copy, cuda_stream=torch.cuda.current_stream())  # does not wait
    return copy


def _reading(images: Images, batches: Iterator[Placed], read: deque[tuple[Placed, Any]]) -> Iterator[tuple[Any]]:
    """The images of each batch, also noted in `read`. Not a method, so that a feed is gone with its last reference."""
    for placed in batches:
        seen = images(placed.rows)
        read.append((placed, seen))
        yield (seen,)
