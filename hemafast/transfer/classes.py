"""Which class of the model each label of a user means, and which classes are new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hemafast.deploy.labels import named_as
from hemafast.errors import HemafastError, name_some
from hemafast.preparation.sources.class_names import covered_by, suggestion_for
from hemafast.preparation.sources.names import fold
from hemafast.preparation.tables.lists import read_class_map
from hemafast.words import counted

FEWEST_OF_NEW = 5
"""Labels that a class needs which the model lacks."""


def read_map(given: Path | Mapping[str, str] | None) -> dict[str, str]:
    """A class map; empty if none is given. Raises HemafastError as `read_class_map`."""
    return {} if given is None else read_class_map(given)


def keep_classes(given: Sequence[str] | None, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes of a model that another laboratory tells apart, in the order of the model.

    Args:
        given: their names, in any case; None for all.
        classes: of the model.

    Raises:
        HemafastError: a name is no class of the model, or fewer than two are named.
    """
    if given is None:
        return tuple(classes)
    known = {fold(name): name for name in classes}
    named = {fold(name): name for name in given if name.strip()}
    unknown = [name for folded, name in named.items() if folded not in known]
    if unknown:
        raise HemafastError(
            f"classes: {unknown[0]!r} is no class of the model.", f"Choose from: {name_some(classes, len(classes))}."
        )
    if len(named) < 2:
        only = f"{next(iter(named.values()))!r} alone is" if named else "nothing is"
        raise HemafastError(f"classes: {only} no choice.", "Name all classes that this laboratory tells apart.")
    return tuple(name for name in classes if fold(name) in named)


def refuse_dropped(places: npt.NDArray[np.int64], classes: Sequence[str], kept: Sequence[str]) -> None:
    """Raise HemafastError if a label is of a class that is not kept. `places` are among `classes`, -1 without one."""
    for place in np.unique(places):
        if 0 <= place < len(classes) and classes[place] not in kept:
            images = int((places == place).sum())
            raise HemafastError(
                f"{counted(images, 'label is', 'labels are')} {classes[place]}, which classes leaves out.",
                f"Add {classes[place]} to --classes, or leave its cells out with --class-map {classes[place]}=.",
            )


def place_labels(
    labels: Sequence[str], classes: Sequence[str], class_map: Mapping[str, str]
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """The class of each label.

    Args:
        labels: as the user writes them; "" for none.
        classes: of the model.
        class_map: new names by old ones; "" leaves a class out. A name that becomes itself is a new class.

    Returns:
        Places among the classes of the model and the new ones, -1 without a label; and the names of the new ones.

    Raises:
        HemafastError: a name is unknown to the model, a new class has too few labels, or all are of one class.
    """
    known = {fold(name): name for name in classes}
    mapped = {fold(old): new for old, new in class_map.items()}
    given = list(set(labels) - {""})
    meant = dict(zip(given, named_as(classes, given, class_map), strict=True))
    counts = Counter(meant[label] for label in labels if label and meant[label])
    new = sorted(name for name in counts if fold(name) not in known)
    _refuse_likely(new, classes, mapped)
    for name in new:
        if counts[name] < FEWEST_OF_NEW:
            raise HemafastError(
                f"{name} has {counted(counts[name], 'label')} and is no class of the model "
                f"({name_some(classes, 12)}): a new class needs {FEWEST_OF_NEW}.",
                f"Label more, or say what it is with --class-map {name}=CLASS; {name}= leaves it out.",
            )
    if not counts:
        raise HemafastError(f"None of {counted(len(labels), 'image')} has a label.", "Fill in labels.")
    if len(counts) == 1:
        ((name, images),) = counts.items()
        problem = f"All labels ({images}) are {name}: one class alone says nothing about the others."
        raise HemafastError(problem, "Label cells of other classes too, or leave out --labels.")
    places = {name: place for place, name in enumerate((*classes, *new))}
    found = [places[meant[label]] if label and meant[label] else -1 for label in labels]
    return np.array(found, dtype=np.int64), tuple(new)


def _refuse_likely(new: Sequence[str], classes: Sequence[str], mapped: Mapping[str, str]) -> None:
    """Raise HemafastError for names that probably mean classes of the model, unless they are mapped to themselves."""
    pairs = {name: _meant(name, classes) for name in new if fold(mapped.get(fold(name), "")) != fold(name)}
    likely = {name: meant for name, meant in pairs.items() if meant is not None}
    if likely:
        asked = ",".join(f"{name}={meant}" for name, meant in likely.items())
        own = ",".join(f"{name}={name}" for name in likely)
        raise HemafastError(
            f"{name_some(list(likely), 6)}: no class of the model, which has {name_some(classes, 12)}.",
            f"If you agree (NAME= leaves a class out): --class-map '{asked}'. As new classes: --class-map '{own}'.",
        )


def _meant(name: str, classes: Sequence[str]) -> str | None:
    """The class of the model that a name probably means; "" if it covers several of them; None if it is another one."""
    suggested = suggestion_for(name)
    if suggested in classes:
        return suggested
    same = [one for one in classes if covered_by(one) & covered_by(name)]
    return same[0] if len(same) == 1 else "" if same else None
