"""Tell images from everything else that lies among them: by content, not by suffix. Nothing is dropped unnamed."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from hemafast.preparation.images.image_checks import FORMATS
from hemafast.preparation.sources import safety
from hemafast.preparation.sources.containers import read_files
from hemafast.preparation.sources.entries import Entries, Entry
from hemafast.preparation.sources.masks import find_masks
from hemafast.preparation.sources.sniff import HEAD_BYTES, image_format, kind_of

SYSTEM_FILE, MASK = "system file", "mask of a cell"


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A file that is not taken, and what it is."""

    kind: str
    name: str
    entry: Entry | None = None


def survey(entries: Entries) -> tuple[Entries, list[PassedOver]]:
    """The images among the files of one folder or archive, and all other files by kind.

    A file with the suffix of an image counts as one, and is quarantined later if it is none. Every other file is an
    image if its first bytes say so.
    """
    images, others = array("q"), list[tuple[int, Entry]]()
    passed: list[PassedOver] = []
    for row, entry in enumerate(entries):
        if safety.is_clutter(entry.name):
            passed.append(PassedOver(SYSTEM_FILE, entry.name, entry))
        elif safety.suffix_of(entry.name) in FORMATS:
            images.append(row)
        else:
            others.append((row, entry))
    heads = read_files([entry for _, entry in others], HEAD_BYTES)
    for (row, entry), head in zip(others, heads, strict=True):
        if image_format(head):
            images.append(row)
        else:
            passed.append(PassedOver(kind_of(head, entry.name), entry.name, entry))
    found = entries.take(np.array(images, dtype=np.int64))
    masks = find_masks(found)
    if not masks:
        return found, passed
    passed += [PassedOver(MASK, entry.name, entry) for entry in found if entry.name in masks]
    return found.take(np.flatnonzero([name not in masks for name in found.names()])), passed
