"""What a user says of new images: labels, groups and domains, from a table, from class folders, or one text each."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hemafast.errors import HemafastError
from hemafast.preparation.sources.class_names import is_known
from hemafast.preparation.sources.layout import read_layout
from hemafast.preparation.sources.names import fold
from hemafast.preparation.tables import lists
from hemafast.preparation.tables.columns import GROUP
from hemafast.words import counted

OWN = "own"
"""In place of a table of labels: the class folders, or the rows of a prepared data set."""

Given = str | Path | Sequence[str] | None
"""Labels as a user gives them: a table, OWN, one text for each array ("" for none), or None."""

logger = logging.getLogger("hemafast")


class Told(NamedTuple):
    """What is known of each image, in order."""

    labels: list[str]
    """As the user writes them; "" without a label."""
    groups: list[str]
    """Patient or slide; the name of the image where none is known."""
    domains: list[str]
    """Laboratory; "" where none is known."""


def read_told(
    names: Sequence[str],
    given: Given,
    *,
    columns: Mapping[str, str] | None = None,
    groups: Path | None = None,
    classes: Sequence[str] = (),
) -> Told:
    """Labels, groups and domains of images.

    Args:
        names: of the images, as `inputs.list_inputs` gives them.
        given: the labels.
        columns: names of columns in a table of labels, by role.
        groups: a table of patients or slides, which overrides others.
        classes: names that a class folder may have besides those that the field knows.

    Raises:
        HemafastError: a table cannot be read or does not fit the images, no image lies in a class folder, or there is
            another number of labels than images.
    """
    told = Told([""] * len(names), list(names), [""] * len(names))
    if given == OWN:
        told = _of_folders(names, classes)
    elif isinstance(given, str | Path):
        told = _of_table(names, Path(given), columns or {})
    elif given is not None:
        told = told._replace(labels=_of_sequence(given, len(names)))
    if groups is None:
        return told
    table = lists.resolve_values(groups, GROUP, {name: (name,) for name in names})
    return told._replace(groups=[table.values.get(name, own) for name, own in zip(names, told.groups, strict=True)])


def named_as(classes: Sequence[str], labels: Sequence[str], class_map: Mapping[str, str]) -> list[str]:
    """Labels under the names of `classes`, in any case, after the class map; others stay as they are."""
    known = {fold(name): name for name in classes}
    mapped = {fold(old): new for old, new in class_map.items()}
    meant = [mapped.get(fold(label), label) for label in labels]
    return [known.get(fold(name), name) for name in meant]


def _of_folders(names: Sequence[str], classes: Sequence[str]) -> Told:
    known = {fold(name) for name in classes}

    def is_class(name: str) -> bool:
        return is_known(name) or fold(name) in known

    places = read_layout(names, is_class, resplit=True, labelled=False).places
    _refuse_no_classes(names, {place.label for place in places if place.label}, is_class)
    groups = [one.group or name for one, name in zip(places, names, strict=True)]
    return Told([one.label for one in places], groups, [one.domain for one in places])


def _refuse_no_classes(names: Sequence[str], labels: set[str], is_class: Callable[[str], bool]) -> None:
    """One folder with all images, which names no class, says nothing of them."""
    remedy = "Put images into a folder per class, as basophil/BA_1.jpg, or name a table with --labels."
    if not labels:
        raise HemafastError(f"None of {counted(len(names), 'image')} is in a class folder, as {names[0]}.", remedy)
    (one, *others) = sorted(labels)
    if not others and not is_class(one):
        if_so = f" If it is a class: --class-map {shlex.quote(f'{one}={one}')}."
        raise HemafastError(f"All labelled images are in the folder {one}, which names no known class.", remedy + if_so)


def _of_table(names: Sequence[str], file: Path, columns: Mapping[str, str]) -> Told:
    found = lists.read_labels(file, columns, {name: (name,) for name in names})
    for note in found.notes():
        logger.info("%s", note)
    return Told(
        [found.label.get(name, "") for name in names],
        [found.group.get(name, name) for name in names],
        [found.domain.get(name, "") for name in names],
    )


def _of_sequence(given: Sequence[str], images: int) -> list[str]:
    labels = ["" if label is None else str(label) for label in given]
    if len(labels) != images:
        raise HemafastError(
            f"{counted(len(labels), 'label')} for {counted(images, 'image')}.", 'Give one for each, "" for none.'
        )
    return labels
