"""Brightness and contrast of a domain: whether they can be those of stained blood in a bright field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hemafast.preparation import schema
from hemafast.preparation.duplicates import GREY
from hemafast.preparation.images.image_checks import Pixels

# Medians of four laboratories (2,867, 120, 351 and 300 cells): brightness 171 to 203, contrast 28 to 63.
BRIGHTNESS = (80.0, 245.0)
"""Grey values, 0 to 255: between these lies the median of a domain."""
CONTRAST = (10.0, 100.0)
"""The same for the standard deviation of grey values."""


@dataclass(frozen=True, slots=True)
class Implausible:
    """A domain that does not look like stained blood."""

    domain: str
    words: str
    example: int
    """Row in the manifest of an image near its median."""

    @property
    def note(self) -> str:
        """All of it in one sentence."""
        return f"{self.domain}: {self.words}; look at some images, and check --bit-depth"


def contrast_of(thumbnail: Pixels) -> float:
    """Standard deviation of the grey values of a thumbnail, uint8 (32, 32, 3)."""
    return float((thumbnail @ np.array(GREY)).std() / sum(GREY))


def find_implausible(manifest: pd.DataFrame) -> Iterator[Implausible]:
    """The domains whose median brightness or contrast is not that of stained blood."""
    images = schema.accepted(manifest)
    weights = zip(("mean_red", "mean_green", "mean_blue"), GREY, strict=True)
    grey = sum((images[name] * weight for name, weight in weights), pd.Series(0.0, images.index)) / sum(GREY)
    looks = {"brightness": (grey, BRIGHTNESS), "contrast": (images["contrast"], CONTRAST)}
    for domain, rows in images.groupby("domain").groups.items():
        for name, (values, (least, most)) in looks.items():
            median = values[rows].median()
            if not least <= median <= most:
                words = f"its median {name} is {median:.0f}, and stained blood has {least:.0f} to {most:.0f}"
                nearest = int((values[rows] - median).abs().to_numpy().argmin())
                yield Implausible(str(domain), words, int(rows[nearest]))
                break
