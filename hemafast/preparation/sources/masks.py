"""Tell masks, and drawings on copies of photographs, from images of cells: by name, and by colours."""

from __future__ import annotations

import os.path
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from hemafast.preparation.images.image_checks import strict_decoders
from hemafast.preparation.images.kinds import UnreadableImageError
from hemafast.preparation.images.picture import Values
from hemafast.preparation.images.reference import naming_damage, open_picture
from hemafast.preparation.sources import safety
from hemafast.preparation.sources.containers import read_files
from hemafast.preparation.sources.entries import Entries, Entry
from hemafast.preparation.sources.names import words_of

_MASKS = frozenset({
    "mask", "masks", "segmentation", "segmentations", "groundtruth", "truth", "annotation", "annotations",
})  # fmt: skip
_DRAWN_ON = frozenset({"overlay", "overlays", "contour", "contours"})
"""Names of copies of a photograph with lines on them, which have as many colours as it has."""
_PERHAPS = frozenset({"seg", "gt", "label", "labels", "labeled", "binary", "nucleus", "nuclei", "cytoplasm"})
"""Names of masks that may mean something else: seg is also a segmented neutrophil."""
_MASK_WORDS = _MASKS | _DRAWN_ON | _PERHAPS
_NO_NAMES = frozenset({"image", "images", "img", "original", "originals", "raw"})

_LOOKED_AT = 24  # images of one kind that are decoded at once
_FEW_COLOURS = 6  # of a mask, also after JPEG has blurred its edges
_NEARLY_ALL, _SURELY = 0.97, 0.9
"""Share of pixels that have one of these colours: in a mask, and in a mask that is named so. In photographs of cells
it is 0.3 to 0.85."""
_PURE = np.array([0, 64, 128, 192, 255])  # of 255: values of the channels of colours that stand for labels
_NEAR = 10  # of 255: as equal after JPEG
_LOOK_SIZE = 128  # px
_MOST_SIDE = 10**4  # px: larger images are no masks


class _Kind(NamedTuple):
    """What images have in common that are all masks, or all photographs."""

    folder: str
    suffix: str
    words: frozenset[str]
    """Words for masks in the name of the file, and of the folders around it."""

    @property
    def sure(self) -> bool:
        return bool(self.words & (_MASKS | _DRAWN_ON))


class _Look(NamedTuple):
    """What an image looks like."""

    few: float
    """Share of its pixels that have one of its few most frequent colours."""
    pure: bool
    """Whether its colours are grey or pure, as those that stand for labels, and unlike those of a drawing of a cell."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Images of one kind."""

    named_alike: tuple[Entry, ...]
    """Those of whose cell there is an image of another kind."""
    alone: tuple[Entry, ...]
    """The others."""


def find_masks(images: Entries) -> set[str]:
    """Names of the images that are masks of others: named like one of them, and with few colours.

    Masks come beside the photograph (`001.bmp`, `001.png` or `001_mask.png`) or in a folder of their own
    (`masks/001.png`). Some of each kind are decoded to be sure, and all of a kind that is mixed.
    """
    if len(set(map(safety.suffix_of, images.names()))) < 2 and not any(map(_says_mask, images.names())):
        return set()
    cells = _by_cell(images)
    with strict_decoders():
        found = {entry.name for kind, group in _groups(cells).items() for entry in _masks_in(kind, group)}
    for variants in cells.values():  # a drawing that comes in two formats is no mask of itself
        names = {entry.name for entries in variants.values() for entry in entries}
        if len(names) > 1 and names <= found and not any(kind.sure for kind in variants):
            found -= names
    return found


def _says_mask(name: str) -> bool:
    lower = name.lower()  # most names hold none of the words, and are not taken apart
    return any(word in lower for word in _MASK_WORDS) and not _MASK_WORDS.isdisjoint(words_of(name))


def _by_cell(images: Entries) -> dict[str, dict[_Kind, list[Entry]]]:
    """Images by the cell that their paths name, then by kind. Folders around all of them say nothing."""
    around = len(PurePosixPath(os.path.commonpath([f"{PurePosixPath(name).parent}/" for name in images.names()])).parts)
    cells: dict[str, dict[_Kind, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in images:
        path = PurePosixPath(entry.name)
        below = path.parts[around:-1]
        words = frozenset(word for part in (*below, path.stem) for word in words_of(part)) & _MASK_WORDS
        name = _cell_of(path.stem) or _cell_of(path.parent.name)
        cells[name][_Kind(str(path.parent), path.suffix.lower(), words)].append(entry)
    return cells


def _cell_of(name: str) -> str:
    return " ".join(word for word in words_of(name) if word not in _MASK_WORDS | _NO_NAMES)


def _groups(cells: Mapping[str, Mapping[_Kind, Sequence[Entry]]]) -> dict[_Kind, _Group]:
    """The images that may be masks by their names."""
    named_alike: dict[_Kind, list[Entry]] = defaultdict(list)
    alone: dict[_Kind, list[Entry]] = defaultdict(list)
    for variants in cells.values():
        for kind, entries in variants.items():
            (named_alike if _may_be_mask(kind, variants) else alone)[kind] += entries
    return {kind: _Group(tuple(some), tuple(alone[kind])) for kind, some in named_alike.items()}


def _may_be_mask(kind: _Kind, variants: Iterable[_Kind]) -> bool:
    """Whether there is an image of the same cell of which one of this kind may be the mask."""
    others = [other for other in variants if other != kind and not other.sure]
    return any(kind.words or (other.folder == kind.folder and not other.words) for other in others)


def _masks_in(kind: _Kind, group: _Group) -> Iterable[Entry]:
    """The masks among the images of a kind. One that cannot be decoded counts if its name is sure."""
    if kind.words & _DRAWN_ON:
        return group.named_alike
    few = _SURELY if kind.sure else _NEARLY_ALL
    some = [look for look in _looks(_spread(group.named_alike)) if look]

    def is_mask(look: _Look | None) -> bool:
        return look is not None and look.few >= few and (look.pure or kind.sure)

    if not any(map(is_mask, some)):
        return ()
    alone = [one for one, look in _looked_at(group.alone) if is_mask(look) and look and look.pure]
    if all(map(is_mask, some)):
        return *group.named_alike, *alone
    each = _looked_at(group.named_alike)
    return *(one for one, look in each if is_mask(look) or (look is None and kind.sure)), *alone


def _spread(entries: Sequence[Entry]) -> Sequence[Entry]:
    return entries[:: max(1, len(entries) // _LOOKED_AT)]


def _looked_at(entries: Sequence[Entry]) -> Iterator[tuple[Entry, _Look | None]]:
    for begin in range(0, len(entries), _LOOKED_AT):
        some = entries[begin : begin + _LOOKED_AT]
        yield from zip(some, _looks(some), strict=True)


def _looks(entries: Sequence[Entry]) -> Iterator[_Look | None]:
    """What images look like; None for one that cannot be decoded."""
    return map(_look, read_files(entries))


def _look(data: bytes) -> _Look | None:
    try:
        with naming_damage():
            picture = open_picture(data, _MOST_SIDE)
            values = picture.read()
    except UnreadableImageError:
        return None
    rows, columns = (np.arange(_LOOK_SIZE) * length // _LOOK_SIZE for length in values.shape[:2])
    some = np.nan_to_num(values[rows][:, columns].reshape(_LOOK_SIZE**2, -1))
    _, counts = np.unique(some if picture.depth else some >> 4, axis=0, return_counts=True)
    return _Look(few=float(np.sort(counts)[-_FEW_COLOURS:].sum() / len(some)), pure=_pure(some) >= _NEARLY_ALL)


def _pure(pixels: Values) -> float:
    """The share of pixels (n, channels) of a grey or pure colour."""
    scaled = pixels * (255 / max(pixels.max(), 1)) if pixels.max() > 255 else pixels.astype(np.float64)
    grey = scaled.max(axis=1) - scaled.min(axis=1) <= _NEAR
    pure = (np.abs(scaled[..., None] - _PURE).min(axis=2) <= _NEAR).all(axis=1)
    return float((grey | pure).mean())
