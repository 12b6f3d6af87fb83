"""How classes are related: lineages, the stages of maturation within one, and the class that is an alarm.

`lineage.toml` beside this module is the tree of the classes of the challenge. `--lineage FILE` replaces it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from annotated_types import Len

from hemafast.config import STRICT
from hemafast.errors import HemafastError, name_some
from hemafast.reading import cause, read_toml

PACKAGED = Path(__file__).with_suffix(".toml")
"""The tree of the classes of the challenge."""

_NAMED = 12  # classes that an error lists


@dataclass(frozen=True)
class Lineage:
    """A tree of classes, as a file of --lineage holds it."""

    __pydantic_config__ = STRICT

    lineages: Annotated[dict[str, Annotated[tuple[str, ...], Len(1)]], Len(1)]
    """Classes by lineage."""
    stages: tuple[str, ...] = ()
    """Classes of one lineage in the order of maturation, youngest first."""
    blast: str | None = None
    """The class whose presence in blood is an alarm."""

    def __post_init__(self) -> None:
        members = [*chain.from_iterable(self.lineages.values())]
        if twice := [name for name, count in Counter(members).items() if count > 1]:
            raise ValueError(f"{name_some(twice, _NAMED)} is in a lineage twice, or in two")
        if self.blast is not None and self.blast not in members:
            raise ValueError(f"blast: {self.blast} is in no lineage")
        if len(set(self.stages)) < len(self.stages):
            raise ValueError("stages: a class is there twice")
        if self.stages and not any({*self.stages} <= {*names} for names in self.lineages.values()):
            raise ValueError("stages: they are not all of one lineage")

    def lacks(self, classes: Sequence[str]) -> list[str]:
        """The `classes` that are in no lineage."""
        members = {*chain.from_iterable(self.lineages.values())}
        return [name for name in classes if name not in members]

    def groups(self, classes: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
        """The lineages that have any of the `classes`, and the place among them of each class, (classes,).

        Each class must be in a lineage.
        """
        lineage_of = {label: lineage for lineage, labels in self.lineages.items() for label in labels}
        names = [lineage for lineage in self.lineages if lineage in {lineage_of[label] for label in classes}]
        return names, np.array([names.index(lineage_of[label]) for label in classes], dtype=np.int64)

    def steps(self, classes: Sequence[str]) -> npt.NDArray[np.int64]:
        """(stages, classes): stages between each stage and each class; the longest way for a class that is no stage."""
        place = {stage: index for index, stage in enumerate(self.stages)}
        farthest = len(self.stages) - 1
        return np.array(
            [[abs(place[label] - at) if label in place else farthest for label in classes] for at in place.values()],
            dtype=np.int64,
        ).reshape(len(self.stages), len(classes))


def soft_targets(lineage: Lineage, classes: Sequence[str], temperature: float) -> npt.NDArray[np.float32]:
    """Targets (classes, classes) that give the neighbours of a stage their share: row k is the target of class k.

    A stage d stages away has a share in proportion to exp(-d / temperature), as in soft labels for ordinal regression
    (Diaz and Marathe, CVPR 2019). Classes that are no stages keep whole targets.
    """
    targets = np.eye(len(classes))
    here = [index for index, label in enumerate(classes) if label in lineage.stages]
    if here:
        place = np.array([lineage.stages.index(classes[index]) for index in here])
        shares = np.exp(-np.abs(place[:, None] - place) / temperature)
        targets[np.ix_(here, here)] = shares / shares.sum(axis=1, keepdims=True)
    return targets.astype(np.float32)


@cache
def packaged_lineage() -> Lineage:
    """The tree of the classes of the challenge."""
    return read_lineage(PACKAGED)


def read_lineage(file: Path) -> Lineage:
    """The tree in a TOML file. Raises HemafastError that names what is wrong in it."""
    try:
        return as_lineage(read_toml(file))
    except (OSError, ValueError) as error:
        raise HemafastError(
            f"{file} is not a tree of lineages ({cause(error)}).", f"Write it as {PACKAGED}, which is one."
        ) from error


def as_lineage(plain: Any) -> Lineage:
    """A tree from plain data. Raises ValueError if it is none."""
    from pydantic import TypeAdapter

    return TypeAdapter(Lineage).validate_python(plain)


def fitting_lineage(file: Path | None, classes: Sequence[str], *, needed: bool) -> Lineage | None:
    """The tree that a run on these classes uses.

    Args:
        file: the user's; None for that of the challenge.
        classes: names of the classes of the data.
        needed: whether the run cannot do without.

    Returns:
        The tree; None if it is not needed and that of the challenge lacks a class.

    Raises:
        HemafastError: the file is no tree, or classes of the data are missing in a tree that was given or is needed.
    """
    lineage = packaged_lineage() if file is None else read_lineage(file)
    missing = lineage.lacks(classes)
    if not missing:
        return lineage
    if file is None and not needed:
        return None
    unused = [name for name in chain.from_iterable(lineage.lineages.values()) if name not in classes]
    raise HemafastError(
        f"{file or PACKAGED} does not fit the classes of the data. Only in the data: {name_some(missing, _NAMED)}. "
        f"Only in the tree: {name_some(unused, _NAMED) or 'none'}.",
        "Name each class of the data in one lineage, in a file for --lineage.",
    )
