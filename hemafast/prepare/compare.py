"""Whether DALI and the reference decoder read the same pixels: neither is trusted alone."""

from __future__ import annotations

import numpy as np

from hemafast.prepare.verify import Header, Pixels, UnreadableImageError, decode_reference

_TOLERANCE = 1  # largest difference between DALI's pixels and the reference, of 255: rounding, and no more


def refuse_other_pixels(data: bytes, header: Header, pixels: Pixels) -> None:
    """Compare the pixels (height, width, 3) that DALI reads in `data` with the reference decoder's, where that is due.

    Raises UnreadableImageError if they are not the same image.
    """
    if pixels.shape != (header.height, header.width, 3):
        raise UnreadableImageError("decoders disagree", f"DALI reads an image of {pixels.shape}")
    if header.compared:
        reference = header.reference
        difference = _difference(decode_reference(data) if reference is None else reference, pixels)
        if difference > _TOLERANCE:
            raise UnreadableImageError("decoders disagree", f"they differ by up to {difference} of 255")


def _difference(reference: Pixels, pixels: Pixels) -> int:
    """The largest absolute difference of two images of one shape."""
    if np.array_equal(reference, pixels):
        return 0
    return int(np.abs(reference.astype(np.int16) - pixels).max())
