"""Names of classes: compare them by `names.fold`, rename them by the user's map, and suggest what a stranger's mean."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

from hemafast.config import Classes
from hemafast.errors import HemafastError, name_some
from hemafast.preparation.names import fold
from hemafast.taxonomy import CHALLENGE_CLASSES

_CHALLENGE = {fold(name): name for name in CHALLENGE_CLASSES}
_MOST_NAMED = 12  # unknown classes that an error lists
_CLOSE = 0.75  # of difflib: a typo, not another word
_SHORTEST = 5  # letters of a name that may be a typo: nearly all names of three letters are close to a code
_MANY = 0.5  # share of unknown names from which on they are another list of classes


@cache
def _synonyms() -> dict[str, str]:
    """The class of the challenge, or "" for none, by folded name, of the data sets of the field."""
    text = files("hemafast.preparation").joinpath("class_synonyms.csv").read_text(encoding="utf-8")
    return {fold(row["name"]): row["class"] for row in csv.DictReader(text.splitlines())}


def is_known(name: str) -> bool:
    """Whether a folder of this name is a class: one of the challenge, or a name that the field uses."""
    return suggestion_for(name, typos=False) is not None


def suggestion_for(name: str, *, typos: bool = True) -> str | None:
    """The class of the challenge that a name means; "" for a cell that the challenge leaves out; None if unknown."""
    folded = fold(name)
    known = _CHALLENGE | _synonyms()
    for form in (folded, folded.removesuffix("s"), folded.removesuffix(" cells"), folded.removesuffix("es")):
        if form in known:
            return known[form]
    close = get_close_matches(folded, known, n=1, cutoff=_CLOSE) if typos and len(folded) >= _SHORTEST else []
    return known[close[0]] if close else None


def rename(labels: Sequence[str], given: Mapping[str, str], classes: Classes) -> tuple[dict[str, str], list[str]]:
    """The class of each of the `labels`, one per image; "" for one that `given` leaves out. And notes.

    `given` is applied first. Names that differ only in case, spaces or Unicode form are one class: that of the
    challenge, or with "from-data" the most frequent spelling. Raises HemafastError with a command that works for names
    that are no class of the challenge.
    """
    counts = Counter(labels)
    by_fold = {fold(name): meant for name, meant in given.items()}
    mapped = {label: by_fold.get(fold(label), label) for label in counts}
    notes = [f"the class map names {name}, which is no class here" for name in _unused(given, counts)]
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for label, meant in mapped.items():
        if meant:
            spellings[fold(meant)][meant] += counts[label]
    usual = {folded: max(sorted(names), key=lambda one: names[one]) for folded, names in spellings.items()}
    if classes == "challenge":
        usual |= {folded: _CHALLENGE[folded] for folded in usual if folded in _CHALLENGE}
        _refuse_unknown(mapped, counts)
    renamed = {label: usual[fold(meant)] if meant else "" for label, meant in mapped.items()}
    notes += [
        f"class {label} is {renamed[label]}" for label in sorted(counts) if renamed[label] not in ("", mapped[label])
    ]
    return renamed, notes


def _unused(given: Mapping[str, str], counts: Collection[str]) -> list[str]:
    present = {fold(label) for label in counts}
    return [name for name in given if fold(name) not in present]


class UnknownClassesError(HemafastError):
    """Classes that are none of the challenge; `suggested` is a class map that takes their nearest."""

    def __init__(self, problem: str, suggested: Mapping[str, str] | None) -> None:
        super().__init__(problem, "Give them other names with --class-map, or take them with --classes from-data.")
        self.suggested = suggested


def _refuse_unknown(mapped: Mapping[str, str], counts: Mapping[str, int]) -> None:
    unknown = sorted(label for label, meant in mapped.items() if meant and fold(meant) not in _CHALLENGE)
    if not unknown:
        return
    suggested = {label: suggestion_for(label) for label in unknown}
    named = name_some([_described(label, counts[label], suggested[label]) for label in unknown], _MOST_NAMED)
    number = f"{len(unknown)} of {len(counts)} classes are"
    problem = f"{number} not among the {len(CHALLENGE_CLASSES)} of the challenge: {named}."
    many = sum(meant is None for meant in suggested.values()) > _MANY * len(counts)
    if many or not any({**mapped, **suggested}.values()):
        raise UnknownClassesError(problem, None)
    renamed = {label: meant for label, meant in mapped.items() if meant != label}
    raise UnknownClassesError(problem, renamed | {label: meant or "" for label, meant in suggested.items()})


def _described(label: str, count: int, meant: str | None) -> str:
    images = f"{count} {'image' if count == 1 else 'images'}"
    means = {None: "", "": ", of no class there"}.get(meant, f", probably {meant}")
    return f"{label} ({images}{means})"
