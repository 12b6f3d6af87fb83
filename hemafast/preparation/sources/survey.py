"""Tell images from everything else that lies among them: by content, not by suffix. Nothing is dropped unnamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hemafast.preparation.images.image_checks import FORMATS
from hemafast.preparation.sources import safety
from hemafast.preparation.sources.containers import Entry, read_files
from hemafast.preparation.sources.masks import find_masks
from hemafast.preparation.sources.sniff import HEAD_BYTES, image_format, kind_of

SYSTEM_FILE, MASK = "system file", "mask of a cell"


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
