"""What a CUDA graph does, on a CPU: operations are recorded with their tensors and numbers, and run again as they were.

A CUDA graph does not run what it captures; here the capture runs it, so the first replay has nothing left to do.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors_of(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


class RecordedGraph(TorchDispatchMode):
    """Takes the place of `captured.CudaGraph`."""

    waits = ("_local_scalar_dense", "nonzero", "is_nonzero")
    """Operations that make the host wait, which no graph can capture."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0
        self._ran = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.waits:
            raise RuntimeError(f"{func} cannot be captured")
        results = func(*args, **kwargs or {})
        self.calls.append((func, args, kwargs or {}, results))
        return results

    def capture(self, function: Callable[[], None]) -> None:
        with self:
            function()
        self._ran = True

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        if self._ran:
            self._ran = False
            return
        for func, args, kwargs, before in self.calls:
            given = {tensor.untyped_storage().data_ptr() for tensor in tensors_of((args, kwargs))}
            for kept, new in zip(tensors_of(before), tensors_of(func(*args, **kwargs)), strict=True):
                if kept.untyped_storage().data_ptr() not in given:  # else it is a view, or was changed in place
                    kept.copy_(new)
