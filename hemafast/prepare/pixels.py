"""Encoded bytes to square uint8 pixels: the one way that preparation, training and prediction decode an image."""

from __future__ import annotations

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


def _first_line_of_cause(error: RuntimeError) -> str:
    """DALI's messages are pages long; what happened stands after the last `encountered:`."""
    lines = str(error).partition("encountered:")[2].strip().splitlines()
    return f"DALI cannot decode it ({lines[0].strip()})" if lines else "DALI cannot decode it"
