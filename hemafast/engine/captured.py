"""A function of tensors as one CUDA graph: a single launch for all of its kernels.

A small network on a fast card waits for Python, which launches a few hundred kernels a step. A graph of them is
captured once and replayed with one launch. It has not run on a GPU yet. Tests replay recorded operations on a CPU, as
a graph would: with the addresses and the numbers of the capture.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from hemafast.config import TrainConfig
from hemafast.engine.compiling import GRAPHED
from hemafast.engine.machine import Machine

logger = logging.getLogger("hemafast")

WARM_UP = 3
"""Calls before the capture: they allocate, compile, choose algorithms, and make the optimizer's state."""

Function = Callable[..., None]


class Graph(Protocol):
    """What `torch.cuda.CUDAGraph` does for us."""

    def capture(self, function: Callable[[], None]) -> None:
        """Record the kernels that `function` launches, without running them."""

    def replay(self) -> None:
        """Run them, in the order and at the addresses of the capture."""


class CudaGraph(Graph):
    """A graph of the present CUDA device, with memory of its own."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, function: Callable[[], None]) -> None:  # noqa: D102 - as in Graph
        # Only of this thread: those of the input pipeline go on allocating and freeing memory meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            function()

    def replay(self) -> None:  # noqa: D102 - as in Graph
        self._graph.replay()


class Captured:
    """Runs `function` of a batch's tensors, from the fourth batch of a shape on as a replayed graph.

    The function may read and change tensors that stay where they are. It must not wait for the device, and what differs
    between two calls must come to it in tensors. Only batches of `batch_size` are captured. There is one graph at a
    time: images that grow have a new one. If the capture fails, `forget` is called, and nothing is captured any more.
    """

    def __init__(
        self,
        function: Function,
        forget: Callable[[], None],
        *,
        batch_size: int,
        graph: Callable[[], Graph] = CudaGraph,
    ) -> None:
        self._function, self._forget, self._batch_size, self._make = function, forget, batch_size, graph
        self._shape: torch.Size | None = None
        self._calls = 0
        self._inputs: list[Tensor] = []
        self._graph: Graph | None = None
        self._off = False

    def takes(self, images: Tensor) -> bool:
        """Whether a batch with these images has the size of those that are captured."""
        return len(images) == self._batch_size and not self._off

    def __call__(self, images: Tensor, *others: Tensor) -> None:
        """The function of a batch that `takes` accepts."""
        if images.shape != self._shape:
            self._shape, self._calls, self._graph = images.shape, 0, None
        self._calls += 1
        given = (images, *others)
        if self._graph is None and self._calls > WARM_UP:
            self._capture(given)
        if self._graph is None:
            self._function(*given)
            return
        for kept, new in zip(self._inputs, given, strict=True):
            kept.copy_(new)
        self._graph.replay()

    def _capture(self, given: tuple[Tensor, ...]) -> None:
        self._inputs = [tensor.clone() for tensor in given]
        graph = self._make()
        try:
            graph.capture(lambda: self._function(*self._inputs))
        except RuntimeError as error:
            self._off = True
            self._forget()
            logger.warning("the training step runs without a CUDA graph, because its capture failed: %s", error)
            return
        self._graph = graph
        logger.info("captured the training step at %d px as one CUDA graph", given[0].shape[-1])


Capture = Callable[[Function, Callable[[], None]], Captured]
"""Makes a captured function of a function and of what to call when its capture fails."""


def capture_of(settings: TrainConfig, machine: Machine, *, alone: bool, batch_size: int) -> Capture | None:
    """How to capture the training step of a run, or None if it cannot be or is not asked for."""
    if why_not(settings, machine, alone=alone):
        return None
    return partial(Captured, batch_size=batch_size)


def why_not(settings: TrainConfig, machine: Machine, *, alone: bool) -> str:
    """What keeps the training step of a run from being captured, in words; empty if nothing does."""
    reasons = {
        "as asked for": settings.capture == "off",
        "a CPU has no graphs": machine.device != "cuda",
        "processes exchange gradients in each step": not alone,
        "an update takes several batches": settings.accumulate > 1,
        "a loss between views chooses on the host": settings.method is not None,
        "mixing draws on the host for each batch": settings.mixup > 0 or settings.cutmix > 0,
        "a teacher answers each batch": settings.teacher is not None,
        f"--compile-mode {settings.compile_mode} makes graphs of its own": machine.compiled
        and settings.compile_mode in GRAPHED,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
