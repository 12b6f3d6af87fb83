"""What makes batches: the pipeline of DALI, or torch alone out of squares on the device."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from itertools import tee
from typing import TYPE_CHECKING, Any

from hemafast.data.augment import Policy
from hemafast.data.batch import Batch, Placed
from hemafast.data.graph import GraphShape, build_graph
from hemafast.data.source import Images

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from torch import Tensor

_FUNCTIONS = 64  # compiled functions that a process may have of `gather`


class DaliFeed:
    """Batches from any source and under any policy; DALI works READ_AHEAD batches ahead."""

    def __init__(self, images: Images, batches: Iterator[Placed], shape: GraphShape, policy: Policy) -> None:
        self._device, self._images = shape.device, images
        # DALI reads the arrays in place (`no_copy`): they stay here until their batch is delivered.
        self._read: deque[tuple[Placed, Any]] = deque()
        first, second = tee(batches)
        names = shape.inputs(policy)
        views = (tuple(placed.views[name] for name in names) for placed in second)
        self._pipeline = build_graph(_reading(images, first, self._read), views, shape, policy)

    def next(self) -> Batch:
        """The next batch, on the graph's device. Raises HemafastError for a file that cannot be read any more."""
        import torch

        try:
            (images,) = self._pipeline.run(current_stream(self._device))
        except RuntimeError:
            for placed, _ in self._read:  # DALI does not say which batch or image it failed on
                self._images.examine(placed.rows)
            raise
        seen = take(images, self._device).permute(0, 3, 1, 2)
        placed, _ = self._read.popleft()
        return Batch(seen, _moved(placed.labels, seen.device), rows=torch.from_numpy(placed.rows))


class GatherFeed:
    """Batches out of squares in the memory of a device, made when they are asked for, without DALI.

    On a GPU they queue up like any kernel: neither the host nor the pipeline's threads wait for them.
    """

    def __init__(self, squares: Tensor, batches: Iterator[Placed], shape: GraphShape, policy: Policy) -> None:
        from hemafast.data.gather import gather

        self._squares, self._batches, self._full = squares, batches, shape.batch_size
        self._gather = functools.partial(gather, policy=policy, size=shape.image_size)
        self._fast = compiled_gather(policy, shape.image_size) if shape.compiled else self._gather

    def next(self) -> Batch:
        """The next batch, on the device of the squares."""
        import torch

        placed, device = next(self._batches), self._squares.device
        # Batches of other sizes are rare, as the last of an epoch, and not worth a compilation.
        make = self._fast if len(placed.rows) == self._full else self._gather
        views = {name: _moved(values, device) for name, values in placed.views.items()}
        seen = make(self._squares, _moved(placed.rows, device), views)
        return Batch(seen, _moved(placed.labels, device), rows=torch.from_numpy(placed.rows))


@functools.cache
def compiled_gather(policy: Policy, size: int, backend: str = "inductor") -> Callable[..., Tensor]:
    """`gather` under a policy as one compiled function, for all feeds of the process."""
    import torch
    import torch._dynamo

    from hemafast.data.gather import gather

    # Policies and sizes share the code, and torch counts them against the limit of recompilations of one function.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _FUNCTIONS)
    made = functools.partial(gather, policy=policy, size=size)
    return torch.compile(made, dynamic=False, fullgraph=True, backend=backend)


def _moved(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on the device. By way of page-locked memory, so that the host does not wait for a GPU."""
    import torch

    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


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
