"""The input graph: one DALI pipeline for CPU and GPU, training and validation, and all sources of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from hemafast.cores import cores
from hemafast.data import operators
from hemafast.data.augment import Policy
from hemafast.data.geometry import window_side
from hemafast.data.stream import READ_AHEAD
from hemafast.preparation.pixels import Decoding, cut_window, decode_image

Node = Any  # nvidia.dali.data_node.DataNode
Feeds = Iterator[tuple[Any, ...]]

Source = Literal["resident", "packed", "files", "webdataset"]
ENCODED = ("files", "webdataset")
"""Sources of images that must be decoded."""


@dataclass(frozen=True, slots=True)
class GraphShape:
    """Device, source, sizes and threads of the graph."""

    device: str
    """ "cpu" or "gpu", for decoding and augmentation."""
    source: Source
    """Source of the images: squares in device memory, memory-mapped squares, files, or members of tars."""
    packed_size: int
    image_size: int
    batch_size: int
    """The largest batch; smaller batches are not padded."""
    threads: int
    decoding: Decoding = field(default_factory=Decoding)
    """How a GPU shares the decoding with the host."""
    compiled: bool = False
    """Whether torch compiles what makes views of resident squares on a GPU."""

    @property
    def encoded(self) -> bool:
        """Whether images must be decoded."""
        return self.source in ENCODED

    def inputs(self, policy: Policy) -> tuple[str, ...]:
        """Inputs of the graph beside the images: the fields of `augment.Views` that have an effect, and "part".

        A window of fixed size that has the size of the view is not scaled, and `turn` cuts it out. A CPU decodes only
        the part of an image that the window needs.
        """
        scaled = self.encoded or not policy.sees_fixed_windows or window_side(self.packed_size) != self.image_size
        needed = {
            "part": self.encoded and self.device == "cpu",
            "window": scaled,
            "turn": policy.turns or not scaled,
            "enhance": policy.randaugment_ops > 0,
            "weaken": policy.randaugment_ops > 0,
            "stain": policy.mixes_channels,
            "erase": policy.erase > 0,
            "background": policy.background > 0,
            "recolour": policy.recolours,
            "blur": policy.blur > 0,
        }
        return tuple(name for name, does in needed.items() if does)


def default_threads(processes: int = 1, source: Source = "packed") -> int:
    """Threads of the pipeline: the share of the cores of one of several processes; to read squares, at most 8."""
    share = max(cores() // processes, 1)
    return share if source in ENCODED else min(share, 8)


def define_graph(images: Node, views: dict[str, Node], shape: GraphShape, policy: Policy) -> Node:
    """DALI operations from images to views: uint8 (image_size, image_size, 3) on the graph's device.

    `images` are squares, names of files, or encoded bytes; `views` has a node for each name in `shape.inputs`.
    """
    size, compiled = shape.image_size, shape.device == "cpu"
    pixels = _pixels(images, views, shape)
    if "window" in views:
        pixels = cut_window(pixels, views["window"], size, compiled=compiled)
    if "turn" in views:
        whole = policy.moves_whole_pixels
        pixels = operators.turn(pixels, views["turn"], size, whole=whole, compiled=compiled)
    if "enhance" in views:
        count, magnitude = policy.randaugment_ops, policy.randaugment_magnitude
        pixels = operators.enhance(pixels, views["enhance"], views["weaken"], count, magnitude)
    if "background" in views:
        pixels = operators.cover(pixels, views["background"], size, compiled=compiled)
    if "stain" in views:
        pixels = operators.stain(pixels, views["stain"], size)
    if "recolour" in views:
        pixels = operators.recolour(pixels, views["recolour"], size, standardize=policy.standardize, compiled=compiled)
    if "blur" in views:
        pixels = operators.blur(pixels, views["blur"], size, compiled=compiled)
    if "erase" in views:
        pixels = operators.erase(pixels, views["erase"])
    return pixels


def _pixels(images: Node, views: dict[str, Node], shape: GraphShape) -> Node:
    from nvidia.dali import fn

    if shape.source == "files":
        images = fn.io.file.read(images)
    if shape.encoded:
        return decode_image(images, shape.device, shape.decoding, views.get("part"))
    return images.gpu() if shape.device == "gpu" and images.device == "cpu" else images


def build_graph(images: Feeds, views: Feeds, shape: GraphShape, policy: Policy) -> Any:
    """A pipeline that yields the views of one batch after the other: uint8 NHWC on the graph's device.

    Both inputs are endless, and the pipeline reads them READ_AHEAD batches ahead, in place: the arrays must not change
    before their batch is delivered. `images` yields a tuple with the images of a batch; `views` yields the arrays named
    by `shape.inputs(policy)`. Raises RuntimeError if the device is missing.
    """
    from nvidia.dali import fn, pipeline_def

    names = shape.inputs(policy)

    # enable_conditionals: RandAugment applies the operations drawn for each image.
    @pipeline_def(enable_conditionals=policy.randaugment_ops > 0)  # type: ignore[untyped-decorator]
    def graph() -> Node:
        (source,) = fn.external_source(source=images, num_outputs=1, **images_from(shape))
        drawn = fn.external_source(source=views, num_outputs=len(names), no_copy=True)
        seen = {name: drawn[index] for index, name in enumerate(names)}  # DALI cannot parse a strict zip
        return define_graph(source, seen, shape, policy)

    return graph(
        batch_size=shape.batch_size,
        num_threads=shape.threads,
        device_id=current_device(shape.device),
        prefetch_queue_depth=READ_AHEAD,
        exec_dynamic=True,  # outputs own their memory
    )


def images_from(shape: GraphShape) -> dict[str, Any]:
    """Where DALI finds the images that it is fed, and whether it reads them there: arguments of fn.external_source.

    It reads memory of the host in place, also for a GPU, which copies it from there. A batch that torch gathered on a
    GPU is copied first, because torch reuses its memory on a stream of its own.
    """
    on_gpu = shape.device == "gpu" and shape.source == "resident"
    return {"device": "gpu" if on_gpu else "cpu", "no_copy": not on_gpu}


def current_device(device: str) -> int | None:
    """The number of the GPU that torch uses, which differs between the processes of a machine; None for "cpu"."""
    if device == "cpu":
        return None
    import torch

    return torch.cuda.current_device() if torch.cuda.is_available() else 0
