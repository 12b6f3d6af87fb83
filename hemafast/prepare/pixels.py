"""Encoded bytes to square uint8 pixels: the one way that preparation, training and prediction decode an image."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.prepare.verify import UnreadableImageError

Pixels = npt.NDArray[np.uint8]
Node = Any  # nvidia.dali.data_node.DataNode; DALI ships no usable annotations


def decode_to_square(encoded: Node, size: int, device: str) -> Node:
    """DALI ops from encoded bytes to RGB pixels: the short side is scaled to `size`, then the centre square is kept.

    Returns a node of uint8 (size, size, 3) on `device` ("cpu" or "gpu"). Scaling is bilinear with antialiasing.
    """
    from nvidia.dali import fn, types

    pixels = fn.decoders.image(encoded, device="mixed" if device == "gpu" else "cpu", output_type=types.RGB)
    pixels = fn.resize(pixels, resize_shorter=size, interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.crop(pixels, crop=(size, size))


class SquareDecoder:
    """Decodes lists of encoded images with DALI on the CPU, and says which of them it cannot decode."""

    def __init__(self, size: int, batch_size: int, threads: int) -> None:
        self._size, self._batch_size, self._threads = size, batch_size, threads
        self._pipeline = self._build()

    def decode(self, encoded: list[bytes]) -> list[Pixels | UnreadableImageError]:
        """Pixels of each image as uint8 (size, size, 3), or why there are none. Takes at most batch_size images."""
        if not encoded:
            return []
        try:
            return list(self._run(encoded))
        except RuntimeError as error:
            # One bad image fails its whole batch and kills the pipeline: build a new one and go one by one.
            self._pipeline = self._build()
            if len(encoded) > 1:
                return [result for data in encoded for result in self.decode([data])]
            return [UnreadableImageError(_first_line_of_cause(error))]

    def _run(self, encoded: list[bytes]) -> Pixels:
        self._pipeline.feed_input("encoded", [np.frombuffer(data, dtype=np.uint8) for data in encoded])
        (pixels,) = self._pipeline.run()
        return np.asarray(pixels.as_tensor())

    def _build(self) -> Any:
        from nvidia.dali import Pipeline, fn

        with Pipeline(self._batch_size, self._threads, device_id=None, prefetch_queue_depth=1) as pipeline:
            encoded = fn.external_source(name="encoded", no_copy=True)
            pipeline.set_outputs(decode_to_square(encoded, self._size, "cpu"))
        return pipeline


class SquareFile:
    """Squares in a temporary file of their own, written and read by number.

    Plain reads and writes, no memory map: pages of a map count as memory of the process, and grow with the images.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by __exit__
        self._bytes = 3 * size * size

    def __enter__(self) -> SquareFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, number: int, square: Pixels) -> None:
        """Keep a uint8 (size, size, 3) square under `number`."""
        self._file.seek(number * self._bytes)
        self._file.write(square.tobytes())

    def read(self, number: int) -> bytes:
        """The bytes of the square that was written under `number`."""
        self._file.seek(number * self._bytes)
        return self._file.read(self._bytes)


def _first_line_of_cause(error: RuntimeError) -> str:
    """DALI's messages are pages long; what happened stands after the last `encountered:`."""
    lines = str(error).partition("encountered:")[2].strip().splitlines()
    return f"DALI cannot decode it ({lines[0].strip()})" if lines else "DALI cannot decode it"
