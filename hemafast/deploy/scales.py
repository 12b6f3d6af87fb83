"""The scale of images that a user names together, from their nuclei."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hemafast.deploy.depths import Depths
from hemafast.deploy.inputs import Image, read_images
from hemafast.preparation.images.depth import spread
from hemafast.preparation.images.image_checks import strict_decoders
from hemafast.preparation.scale import SAMPLE, Encoded, ScaleEstimate, estimate_encoded


def estimator(
    images: Sequence[Image], depths: Depths, *, min_side: int, threads: int
) -> Callable[[Sequence[Image]], ScaleEstimate]:
    """A function that estimates the scale of some of `images`; a sample of these is read and decoded for it."""
    rows = {image.name: row for row, image in enumerate(images)}

    def estimate(some: Sequence[Image]) -> ScaleEstimate:
        sample = spread(some, SAMPLE)
        contents = zip(sample, read_images(sample), strict=True)
        with strict_decoders():
            encoded = (Encoded(data, one.name, depths.of(rows[one.name]), min_side) for one, data in contents)
            return estimate_encoded(encoded, threads)

    return estimate
