"""Find images that show the same picture: perceptual hashes, groups of near copies, and contradictory labels.

The hash is pHash (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions") with 16 x 16
instead of 8 x 8 frequencies: all these images show a cell in a bright field, and 64 bits cannot tell them apart.
"""

from __future__ import annotations

import os
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hemafast.errors import name_some
from hemafast.preparation.images.image_checks import Pixels
from hemafast.preparation.threads import Pool

Hashes = npt.NDArray[np.uint64]
"""(images, 4): 256 bits each."""

MAX_DISTANCE = 40
"""Images whose hashes differ in at most this many bits show the same picture. Measured on 2,987 real cells: 8 pairs of
identical files at 0 bits, the closest pair of different cells at 68 (of 4.5 million). Copies of real cells, the most of
300 each: JPEG at quality 30, 8 bits; half resolution, 4; 10 % brighter, 12; 2 of 256 px shifted, 30; 2 % cut, 32."""

HASHED_SIZE = 256
"""px: side of the squares that MAX_DISTANCE was measured on. Of several packed sizes, the nearest is hashed."""

GREY = (299.0, 587.0, 114.0)
"""Weights of red, green and blue in a grey value, in thousandths (ITU-R BT.601)."""

_FLAT = "0" * 64  # hash of an image of one colour; such images are compared by their pixels alone
_THUMBNAIL = 32  # px
_NAMED = 5  # copies that a reason lists
_PLACES = 4  # sampled along each side of a field, in even steps; all pixels would take twice the time
_FREQUENCIES = 16
_BLOCK = 4096  # hashes that a thread compares with all that follow


def thumbnail(square: Pixels) -> Pixels:
    """The colours of a square in 32 x 32 fields, each the mean of 16 places: uint8 (32, 32, 3) of (size, size, 3)."""
    size = len(square)
    places = ((np.arange(_THUMBNAIL * _PLACES) + 0.5) * size / (_THUMBNAIL * _PLACES)).astype(np.intp)
    rows = square[places].reshape(_THUMBNAIL, _PLACES, size, 3).sum(axis=1, dtype=np.uint16)
    fields = rows[:, places].reshape(_THUMBNAIL, _THUMBNAIL, _PLACES, 3).sum(axis=2)
    thumbnail: Pixels = (fields // _PLACES**2).astype(np.uint8)
    return thumbnail


def perceptual_hash(thumbnails: npt.NDArray[np.uint8]) -> Hashes:
    """Hashes of thumbnails, uint8 (images, 32, 32, 3).

    A bit says whether a low frequency of the brightness is stronger than the image's median.
    """
    # Whole numbers: with the rounding below, the bits do not depend on the machine.
    brightness = sum(weight * thumbnails[..., channel] for channel, weight in enumerate(GREY))
    frequencies = dctn(brightness, axes=(1, 2), norm="ortho")[:, :_FREQUENCIES, :_FREQUENCIES]
    strength = np.round(frequencies, 3).reshape(len(thumbnails), -1)
    strength[:, 0] = -np.inf  # the mean brightness is not shape
    median = np.median(strength[:, 1:], axis=1, keepdims=True)
    return np.packbits(strength > median, axis=1).view(np.uint64)


def find_near(hashes: Hashes, max_distance: int = MAX_DISTANCE) -> npt.NDArray[np.int64]:
    """All pairs of rows whose hashes differ in at most `max_distance` bits: (pairs, 2), the smaller row first.

    Compares every pair, in threads: a million images are 5e11 comparisons. There is no index for so many bits and so
    wide a distance that looks at much less.
    """
    from hemafast.preparation.near import near_pairs

    ends = np.unique(np.r_[np.arange(0, len(hashes), _BLOCK), len(hashes)]).tolist()
    words = np.ascontiguousarray(hashes.T)
    with Pool(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(lambda ends: near_pairs(words, *ends, max_distance), pairwise(ends))
        return np.concatenate([np.empty((0, 2), dtype=np.int64), *found])


def group_duplicates(images: pd.DataFrame) -> pd.Series[str]:
    """Name the group of each image. A group has the same bytes, the same pixels, or nearly the same picture.

    `images` has the columns sha256, pixels_xxh128 and phash (hexadecimal). The name is the smallest sha256 in the
    group, cut to 16 digits, so it depends only on the images.
    """
    # One image of each set of equal pixels is compared, so that the matrix stays small.
    first = images.drop_duplicates("pixels_xxh128")
    first = first[first["phash"] != _FLAT]
    pairs = first.index.to_numpy()[find_near(from_hex(first["phash"]))]
    links = [pairs, *(chains(images[column]) for column in ("sha256", "pixels_xxh128"))]
    return smallest_in_component(images["sha256"].str[:16], np.concatenate(links))


def smallest_in_component(names: pd.Series[str], links: npt.NDArray[np.int64]) -> pd.Series[str]:
    """The smallest name linked to each row, directly or through others; links are pairs of index labels."""
    left, right = (names.index.get_indexer(pd.Index(links[:, side])) for side in (0, 1))
    graph = coo_array((np.ones(len(links)), (left, right)), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=False)
    return names.groupby(component).transform("min")


def find_contradictions(images: pd.DataFrame) -> pd.Series[str]:
    """A reason for each image whose picture is also in another class; other images are not in the result.

    `images` has the columns path, label and duplicate_group; the result keeps its index.
    """
    labels = images.groupby("duplicate_group")["label"].transform("nunique")
    suspects = images[labels > 1]
    reasons = pd.Series("", dtype=str, index=suspects.index)
    for _, copies in suspects.groupby("duplicate_group"):
        for label, own in copies.groupby("label"):
            named = sorted(path.partition("/")[2] for path in copies.loc[copies["label"] != label, "path"])
            reasons[own.index] = f"the same picture is {name_some(named, _NAMED)}"
    return reasons


def to_hex(hashes: Hashes) -> list[str]:
    """Hashes as 64 hexadecimal digits each."""
    return [row.tobytes().hex() for row in hashes]


def from_hex(digits: pd.Series[str]) -> Hashes:
    """The inverse of `to_hex`."""
    return np.frombuffer(bytes.fromhex("".join(digits)), dtype=np.uint64).reshape(-1, _FREQUENCIES**2 // 64)


def chains(keys: pd.Series[str]) -> npt.NDArray[np.int64]:
    """Pairs of index labels that link all rows with the same key in a chain."""
    ordered = keys.sort_values(kind="stable")
    same = (ordered.to_numpy()[1:] == ordered.to_numpy()[:-1]).nonzero()[0]
    labels = ordered.index.to_numpy()
    return np.stack([labels[same], labels[same + 1]], axis=1)
