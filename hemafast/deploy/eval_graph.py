"""From decoded squares to the network's input: the input graph of validation, fed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hemafast.data.augment import POLICIES, draw_views
from hemafast.data.graph import GraphShape, define_graph
from hemafast.engine.machine import Machine
from hemafast.preparation.image_checks import Pixels

_POLICY = POLICIES["none"]


class EvalGraph:
    """From squares to network inputs, exactly as `eval_loader` makes them from packed squares."""

    def __init__(self, packed_size: int, image_size: int, machine: Machine, batch_size: int) -> None:
        shape = GraphShape(
            device=machine.loader_device,
            source="packed",
            packed_size=packed_size,
            image_size=image_size,
            batch_size=batch_size,
            threads=machine.loader_threads,
        )
        self._on_gpu = shape.device == "gpu"
        self._drawn = _draw(shape)
        self._pipeline = _build(shape, tuple(self._drawn))

    def __call__(self, squares: Sequence[Pixels]) -> Tensor:
        """uint8 (n, 3, image_size, image_size), channels_last, on the device; n is at most the batch size."""
        from torch.utils.dlpack import from_dlpack

        self._pipeline.feed_input("squares", list(squares))
        for name, drawn in self._drawn.items():
            self._pipeline.feed_input(name, drawn[: len(squares)])
        # DALI reuses the memory only after torch's stream is done with it.
        (views,) = self._pipeline.run(torch.cuda.current_stream() if self._on_gpu else None)
        seen: Tensor = from_dlpack(views.as_tensor())
        return seen.permute(0, 3, 1, 2)


def _draw(shape: GraphShape) -> dict[str, npt.NDArray[np.float32]]:
    """Inputs of the graph beside the pixels, by name. Nothing is random: they are the same for every image."""
    views = draw_views(_POLICY, shape.packed_size, shape.image_size, shape.batch_size, np.random.default_rng(0))
    names = shape.inputs(_POLICY)
    if "window" not in names:  # not scaled: `turn` cuts the window out; (top, left) to (x, y)
        views.turn[:, :, 2] += views.window[:, 1::-1]
    return {name: getattr(views, name) for name in names}


def _build(shape: GraphShape, names: tuple[str, ...]) -> Any:
    from nvidia.dali import Pipeline, fn

    on_gpu = shape.device == "gpu"
    device = torch.cuda.current_device() if on_gpu else None
    executor = {"prefetch_queue_depth": 1, "exec_dynamic": True}  # dynamic: outputs belong to whoever holds them
    with Pipeline(shape.batch_size, shape.threads, device_id=device, **executor) as pipeline:
        squares = fn.external_source(name="squares", no_copy=not on_gpu, layout="HWC")
        views = {name: fn.external_source(name=name, no_copy=True) for name in names}
        pipeline.set_outputs(define_graph(squares, views, shape, _POLICY))
    return pipeline
