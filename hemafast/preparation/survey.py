"""Tell images from everything else that lies among them: by content, not by suffix. Nothing is dropped unnamed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from hemafast.preparation import safety
from hemafast.preparation.containers import Entry, read_files
from hemafast.preparation.image_checks import FORMATS, strict_decoders
from hemafast.preparation.kinds import UnreadableImageError
from hemafast.preparation.names import words_of
from hemafast.preparation.reference import naming_damage, open_picture
from hemafast.preparation.sniff import HEAD_BYTES, image_format, kind_of

SYSTEM_FILE, MASK = "system file", "mask of a cell"

_MASK_WORDS = frozenset({
    "mask", "masks", "seg", "segmentation", "segmentations", "gt", "truth", "annotation", "annotations", "label",
    "labels", "labeled", "contour", "contours", "overlay", "binary",
})  # fmt: skip
_LOOKED_AT = 24  # files of one kind that are decoded to tell masks from photographs
_FEW_COLOURS, _NEARLY_ALL = 6, 0.97  # a mask has few colours, also after JPEG has blurred its edges
_LOOK_SIZE = 128  # px
_MOST_SIDE = 10**4  # px: larger images are no masks


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A file that is not taken, and what it is."""

    kind: str
    name: str
    entry: Entry | None = None


def survey(entries: Sequence[Entry]) -> tuple[list[Entry], list[PassedOver]]:
    """The images among the files of one folder or archive, and all other files by kind.

    A file with the suffix of an image counts as one, and is quarantined later if it is none. Every other file is an
    image if its first bytes say so.
    """
    passed = [PassedOver(SYSTEM_FILE, entry.name, entry) for entry in entries if safety.is_clutter(entry.name)]
    others = [entry for entry in entries if not safety.is_clutter(entry.name)]
    images = [entry for entry in others if safety.suffix_of(entry.name) in FORMATS]
    unclear = [entry for entry in others if safety.suffix_of(entry.name) not in FORMATS]
    for entry, head in zip(unclear, read_files(unclear, HEAD_BYTES), strict=True):
        if image_format(head):
            images.append(entry)
        else:
            passed.append(PassedOver(kind_of(head, entry.name), entry.name, entry))
    masks = find_masks(images)
    passed += [PassedOver(MASK, entry.name, entry) for entry in images if entry.name in masks]
    return [entry for entry in images if entry.name not in masks], passed


class _Kind(NamedTuple):
    """What a path says about an image, apart from which cell it shows."""

    suffix: str
    folder: str
    """The folder that is named after masks; empty if there is none."""
    named: bool
    """Whether the file is named after masks."""


def find_masks(images: Sequence[Entry]) -> set[str]:
    """Names of the images that are masks of others: named like one of them, and with few colours.

    Masks come beside the photograph (`001.bmp`, `001.png` or `001_mask.png`) or in a folder of their own
    (`masks/001.png`). Some of each kind are decoded to be sure.
    """
    if len({safety.suffix_of(entry.name) for entry in images}) < 2 and not any(map(_says_mask, images)):
        return set()
    cells = [variants for variants in _by_cell(images).values() if len(variants) > 1]
    groups: dict[_Kind, list[Entry]] = defaultdict(list)
    for variants in cells:
        for (where, kind), some in variants.items():
            beside = any(place == where and other.suffix != kind.suffix for place, other in variants)
            if kind.folder or kind.named or beside:
                groups[kind] += some
    found: set[str] = set()
    for candidates in groups.values():
        step = max(1, len(candidates) // _LOOKED_AT)
        with strict_decoders():
            alike = all(map(_has_few_colours, read_files(candidates[::step])))
        if alike:
            found |= {entry.name for entry in candidates}
    for variants in cells:  # a drawing that comes in two formats is no mask of itself
        names = {entry.name for some in variants.values() for entry in some}
        found -= names if names <= found else set()
    return found


def _says_mask(entry: Entry) -> bool:
    return any(word in entry.name.lower() for word in _MASK_WORDS)


def _by_cell(images: Sequence[Entry]) -> dict[str, dict[tuple[str, _Kind], list[Entry]]]:
    """Images by the cell that their file names name, then by folder and kind. Folders of masks may lie anywhere."""
    cells: dict[str, dict[tuple[str, _Kind], list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in images:
        path = PurePosixPath(entry.name)
        words = words_of(path.stem)
        folder = next((part for part in path.parts[:-1] if _MASK_WORDS & set(words_of(part))), "")
        kind = _Kind(path.suffix.lower(), folder, bool(_MASK_WORDS & set(words)))
        cell = " ".join(word for word in words if word not in _MASK_WORDS)
        cells[cell]["" if folder else str(path.parent), kind].append(entry)
    return cells


def _has_few_colours(data: bytes) -> bool:
    """Whether nearly all pixels of an image have one of a few colours; False if it cannot be decoded."""
    try:
        with naming_damage():
            picture = open_picture(data, _MOST_SIDE)
            values = picture.read()
    except UnreadableImageError:
        return False
    rows, columns = (np.arange(_LOOK_SIZE) * length // _LOOK_SIZE for length in values.shape[:2])
    some = values[rows][:, columns].reshape(_LOOK_SIZE**2, -1)
    _, counts = np.unique(some if picture.depth else some >> 4, axis=0, return_counts=True)
    return bool(np.sort(counts)[-_FEW_COLOURS:].sum() >= _NEARLY_ALL * _LOOK_SIZE**2)
