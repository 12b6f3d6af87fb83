"""From decoded squares to the network's input: the input graph of validation, fed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from hemafast.data.augment import POLICIES, draw_views
from hemafast.data.feed import current_stream, take
from hemafast.data.graph import GraphShape, current_device, define_graph
from hemafast.engine.checkpoint import ModelCard
from hemafast.engine.machine import Machine
from hemafast.preparation.images.image_checks import Pixels

_POLICY = POLICIES["none"]


class EvalGraph:
    """From squares to the inputs of the network of `card`, exactly as `eval_loader` makes them from packed squares."""

    def __init__(self, card: ModelCard, machine: Machine, batch_size: int) -> None:
        from nvidia.dali import Pipeline, fn

        sizes = card.view.packed_size, card.image_size
        shape = GraphShape(machine.loader_device, "packed", *sizes, batch_size, machine.loader_threads)
        views = draw_views(_POLICY, *sizes, batch_size, np.random.default_rng(0))  # the same for every image
        names = shape.inputs(_POLICY)
        if "window" not in names:  # not scaled: `turn` cuts the window out; (top, left) to (x, y)
            views.turn[:, :, 2] += views.window[:, 1::-1]
        self._drawn = {name: getattr(views, name) for name in names}
        self._device = shape.device
        device = current_device(shape.device)
        executor = {"prefetch_queue_depth": 1, "exec_dynamic": True}  # dynamic: outputs belong to whoever holds them
        with Pipeline(batch_size, shape.threads, device_id=device, **executor) as self._pipeline:
            squares = fn.external_source(name="squares", no_copy=True, layout="HWC")
            drawn = {name: fn.external_source(name=name, no_copy=True) for name in names}
            self._pipeline.set_outputs(define_graph(squares, drawn, shape, _POLICY))

    def __call__(self, squares: Sequence[Pixels]) -> Tensor:
        """uint8 (n, 3, image_size, image_size), channels_last, on the device; n is at most the batch size."""
        self._squares = list(squares)  # DALI reads them in place
        self._pipeline.feed_input("squares", self._squares)
        for name, drawn in self._drawn.items():
            self._pipeline.feed_input(name, drawn[: len(squares)])
        (views,) = self._pipeline.run(current_stream(self._device))
        return take(views, self._device).permute(0, 3, 1, 2)
