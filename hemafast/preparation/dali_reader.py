"""How DALI reads encoded images. It runs in a process of its own (`dali_apart`): damaged images may crash DALI."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hemafast.preparation.pixels import decode_image, hash_squares

BATCH = 64
"""Images that are read at once, at most."""

_IDLE_SECONDS = 60.0
_LOOK_SECONDS = 5.0  # between two looks whether the parent lives
_JPEG = b"\xff\xd8"

Encoded = npt.NDArray[np.uint8]


class Reading(NamedTuple):
    """What DALI makes of an image."""

    shape: tuple[int, ...]
    """Height, width, channels."""
    pixels_xxh128: str
    """Hash of its RGB pixels. Empty for a JPEG: only its header is read, because its decoder is libjpeg-turbo too."""


Readings = list[Reading | None]
"""None for an image that DALI cannot read."""


def serve(descriptor: int, memory: int, threads: int) -> None:
    """Answer lists of lengths with Readings, until the parent ends or asks nothing for a minute.

    The images lie one behind the other in the file `memory`, which the parent writes.
    """
    connection, parent, idle = Connection(descriptor), os.getppid(), 0.0
    reader = DaliReader(threads)
    while idle < _IDLE_SECONDS and os.getppid() == parent:
        if not connection.poll(_LOOK_SECONDS):
            idle += _LOOK_SECONDS
            continue
        try:
            lengths = connection.recv()
        except EOFError:
            return
        shared = mmap.mmap(memory, sum(lengths), access=mmap.ACCESS_READ)  # closed when no array refers to it
        connection.send(reader.read(_cut(np.frombuffer(shared, np.uint8), lengths)))
        idle = 0.0


def _cut(content: Encoded, lengths: Sequence[int]) -> list[Encoded]:
    return np.split(content, np.cumsum(lengths)[:-1])


class DaliReader:
    """Reads lists of at most BATCH encoded images. One that DALI refuses does not disturb the others."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pipelines: dict[bool, Any] = {}

    def read(self, encoded: Sequence[Encoded]) -> Readings:
        """What DALI makes of each image."""
        found: Readings = [None] * len(encoded)
        for jpeg in (True, False):
            places = [place for place, data in enumerate(encoded) if (bytes(data[:2]) == _JPEG) == jpeg]
            for place, reading in zip(places, self._read([encoded[place] for place in places], jpeg), strict=True):
                found[place] = reading
        return found

    def _read(self, encoded: Sequence[Encoded], jpeg: bool) -> Readings:
        if not encoded:
            return []
        pipeline = self._pipelines.get(jpeg) or self._build(jpeg)
        try:
            pipeline.feed_input("encoded", list(encoded))
            (outputs,) = pipeline.run()
            return [_shape_of(one) if jpeg else _pixels_of(one) for one in map(np.asarray, outputs)]
        except RuntimeError:
            # One bad image fails the whole batch and breaks the pipeline: build a new one and read one by one.
            self._pipelines.pop(jpeg, None)
            return [None] if len(encoded) == 1 else [self._read([data], jpeg)[0] for data in encoded]

    def _build(self, jpeg: bool) -> Any:
        from nvidia.dali import Pipeline, fn

        with Pipeline(BATCH, self._threads, device_id=None, prefetch_queue_depth=1, exec_dynamic=True) as pipeline:
            encoded = fn.external_source(name="encoded", no_copy=True)
            pipeline.set_outputs(fn.peek_image_shape(encoded) if jpeg else decode_image(encoded, "cpu"))
        self._pipelines[jpeg] = pipeline
        return pipeline


def _shape_of(shape: Any) -> Reading:
    return Reading(tuple(shape.tolist()), "")


def _pixels_of(pixels: Any) -> Reading:
    return Reading(pixels.shape, hash_squares([np.ascontiguousarray(pixels)]))
