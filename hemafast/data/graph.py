"""The input graph: one DALI pipeline for CPU and GPU, training and validation, packed pixels and files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hemafast.data.augment import apply_views, window_is_exact
from hemafast.prepare.pixels import decode_image, resize_window

Node = Any  # nvidia.dali.data_node.DataNode


@dataclass(frozen=True, slots=True)
class GraphShape:
    """What the graph is built for."""

    device: str
    """ "cpu" or "gpu": where decoding and augmentation run."""
    packed: bool
    """The source yields packed squares rather than names of files."""
    packed_size: int
    image_size: int
    batch_size: int
    """The largest batch; smaller ones pass as they are."""
    threads: int

    @property
    def scaled(self) -> bool:
        """Whether views are scaled, rather than cut out of the square as they are."""
        return not window_is_exact(self.packed_size, self.image_size)


def define_graph(pixels_or_paths: Node, kept: Node, corner: Node, matrix: Node, shape: GraphShape) -> Node:
    """DALI ops from the source to views: uint8 (image_size, image_size, 3) on the graph's device.

    `kept`, the part of each file that its square shows, is read only for files; `corner` only where views are scaled.
    """
    from nvidia.dali import fn

    if shape.packed:
        squares = pixels_or_paths.gpu() if shape.device == "gpu" else pixels_or_paths
    else:
        whole = decode_image(fn.io.file.read(pixels_or_paths), shape.device)
        squares = resize_window(whole, kept, shape.packed_size)
    return apply_views(squares, corner, matrix, packed_size=shape.packed_size, image_size=shape.image_size)


def build_graph(source: Iterator[tuple[Any, ...]], shape: GraphShape) -> Any:
    """A pipeline whose outputs are views (uint8 NHWC), labels (int64) and rows (int64) of one batch after the other.

    `source` yields, without end, (squares or encoded paths, matrices, labels, rows) of a batch, then its corners where
    views are scaled, then the parts to keep where it yields paths. It is read ahead of the outputs by two batches.
    Raises RuntimeError if `shape.device` is "gpu" and there is none.
    """
    from nvidia.dali import Pipeline, fn

    device_id = 0 if shape.device == "gpu" else None
    pipeline = Pipeline(shape.batch_size, shape.threads, device_id, prefetch_queue_depth=2)
    with pipeline:
        # no_copy: the rows of the memory map outlive the pipeline, and the other arrays are never written again.
        outputs = 4 + shape.scaled + (not shape.packed)
        inputs = list(fn.external_source(source=source, num_outputs=outputs, no_copy=True))
        kept = None if shape.packed else inputs.pop()
        corner = inputs.pop() if shape.scaled else None
        pixels_or_paths, matrix, labels, rows = inputs
        pipeline.set_outputs(define_graph(pixels_or_paths, kept, corner, matrix, shape), labels, rows)
    return pipeline
