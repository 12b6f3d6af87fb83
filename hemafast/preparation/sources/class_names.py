"""Names of classes: compare them by `names.fold`, rename them by the user's map, and suggest what a stranger's mean."""

from __future__ import annotations

import csv
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

from hemafast.config import Classes
from hemafast.errors import HemafastError, name_some
from hemafast.preparation.sources.names import fold, without_accents, words_of
from hemafast.taxonomy import CHALLENGE_CLASSES

_CHALLENGE = {fold(name): name for name in CHALLENGE_CLASSES}
_MOST_NAMED = 12  # unknown classes that an error lists
_CLOSE = 0.75  # of difflib: a typo, not another word
_LONG = 5  # letters of a name that may have typos, or stand among other words; of shorter ones, too much is close
_MANY = 0.5  # share of unknown names from which on they are another list of classes
_DOUBTS = frozenset({
    "abnormal", "atypical", "giant", "immature", "meta", "non", "not", "pre", "pro", "reactive", "variant",
})  # fmt: skip
"""Words that make another cell of one."""
_NO_CELL = frozenset({
    "background", "bad", "debris", "discard", "discarded", "doubtful", "empty", "junk", "misc", "miscellaneous", "na",
    "nan", "noise", "none", "null", "other", "others", "rejected", "rest", "trash", "unassigned", "uncertain",
    "unclassified", "undefined", "unidentified", "unknown", "unlabeled", "unlabelled", "unsure", "unusable",
})  # fmt: skip
"""Words that say that nobody knows the class. They are no sign of a class folder: `other` may hold a data set."""


@cache
def _synonyms() -> tuple[dict[str, str], ...]:
    text = files("hemafast.preparation.sources").joinpath("class_synonyms.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


@cache
def _known() -> dict[str, str]:
    """The class of the challenge, or "" for none, by the plain form of the names that the field uses."""
    synonyms = {fold(without_accents(row["name"])): row["class"] for row in _synonyms()}
    return synonyms | {fold(without_accents(name)): name for name in CHALLENGE_CLASSES}


@cache
def _coarse() -> dict[frozenset[str], frozenset[str]]:
    """The classes of the challenge that a name covers, where they are several, by its words."""
    return {_singular(row["name"]): frozenset(row["covers"].split()) for row in _synonyms() if row["covers"]}


@cache
def _known_words() -> dict[frozenset[str], str]:
    return {_singular(name): meant for name, meant in _known().items()}


def _singular(name: str) -> frozenset[str]:
    """The words of a name but numbers and `cell`, without the s of a plural."""
    words = {word.removesuffix("s") for word in words_of(name) if not word.isdecimal()}
    return frozenset(words - {"cell", ""})


def challenge_class(name: str) -> str | None:
    """The class of the challenge of this name, in any case and spacing; None if it is none."""
    return _CHALLENGE.get(fold(name))


def is_known(name: str) -> bool:
    """Whether a folder of this name is a class: one of the challenge, or a name that the field uses."""
    return _meaning(name) is not None


def _meaning(name: str) -> str | None:
    plain, known = fold(without_accents(name)), _known()
    forms = (plain, plain.removesuffix("s"), plain.removesuffix(" cells"), plain.removesuffix("es"))
    return next((known[form] for form in forms if form in known), None)


def suggestion_for(name: str) -> str | None:
    """The class of the challenge that a name means; "" for a cell that the challenge leaves out; None if unknown."""
    if (meant := _meaning(name)) is not None:
        return meant
    words = [word for word in words_of(name) if not word.isdecimal()]
    if (meant := _meaning("".join(words))) is not None or (meant := _by_words(_singular(name))) is not None:
        return meant
    if _NO_CELL & set(words) or words == ["not", "sure"]:
        return ""
    return None if _DOUBTS & set(words) else _by_letters(" ".join(words))


def covered_by(name: str) -> frozenset[str]:
    """The classes of the challenge that a name covers: both neutrophils for `Neutrophil`. Empty if it is unknown."""
    meant = suggestion_for(name)
    return _coarse().get(_singular(without_accents(name)), frozenset([meant] if meant else []))


def _by_words(words: frozenset[str]) -> str | None:
    """The class of the known name with the most words among these, whatever their order, as in `01_basophil (ABC)`."""
    known = _known_words()
    if words in known:
        return known[words]
    within = [some for some in known if some <= words and max(map(len, some)) >= _LONG]
    most = max(map(len, within), default=0)
    meanings = {known[some] for some in within if len(some) == most}
    return meanings.pop() if len(meanings) == 1 and not words & _DOUBTS else None


def _by_letters(text: str) -> str | None:
    """The class of the known name that is a typo away."""
    known = _known()
    long = [name for name in known if len(name) >= _LONG]
    close = get_close_matches(text, long, n=1, cutoff=_CLOSE) if len(text) >= _LONG else []
    return known[close[0]] if close else None


def rename(labels: Sequence[str], given: Mapping[str, str], classes: Classes) -> tuple[dict[str, str], list[str]]:
    """The class of each of the `labels`, one per image; "" for one that `given` leaves out. And notes.

    `given` is applied first; a number there is the same with zeros before it. Names that differ only in case, spaces or
    Unicode form are one class: that of the challenge, or with "from-data" the most frequent spelling. Raises
    HemafastError with a command that works for names that are no class of the challenge.
    """
    counts = Counter(labels)
    by_fold = {fold(name): meant for name, meant in given.items()}
    by_number = {_number(name): meant for name, meant in by_fold.items() if name.isdecimal()}
    mapped = {label: by_fold.get(fold(label), by_number.get(_number(label), label)) for label in counts}
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
    spelled = [f"{label} is {renamed[label]}" for label in sorted(counts) if renamed[label] not in ("", mapped[label])]
    notes += [f"names of classes that differ in case or spaces: {name_some(spelled, _MOST_NAMED)}"] if spelled else []
    return renamed, notes


def _unused(given: Mapping[str, str], counts: Collection[str]) -> list[str]:
    present = {_number(fold(label)) for label in counts}
    return [name for name in given if _number(fold(name)) not in present]


def _number(name: str) -> str:
    """`7` for `07`; any other name as it is."""
    return str(int(name)) if name.isdecimal() else name


class UnknownClassesError(HemafastError):
    """Classes that are none of the challenge.

    `suggested` is a class map that takes the nearest of all; None if most are unknown, or nothing would be left.
    `meanings` is what each of them means, in the order of numbers and names; None if unknown.
    """

    def __init__(self, problem: str, meanings: Mapping[str, str | None], suggested: Mapping[str, str] | None) -> None:
        super().__init__(problem, "Give them other names with --class-map, or take them with --classes from-data.")
        self.meanings, self.suggested = meanings, suggested


def _refuse_unknown(mapped: Mapping[str, str], counts: Mapping[str, int]) -> None:
    unknown = sorted((label for label, meant in mapped.items() if meant and fold(meant) not in _CHALLENGE), key=_order)
    if not unknown:
        return
    meanings = {label: suggestion_for(mapped[label]) for label in unknown}
    described = [_described(label, mapped[label], counts[label], meanings[label]) for label in unknown]
    number = f"{len(unknown)} of {len(counts)} classes are"
    problem = f"{number} not among the {len(CHALLENGE_CLASSES)} of the challenge: {name_some(described, _MOST_NAMED)}."
    renamed = {label: meant for label, meant in mapped.items() if meant != label}
    suggested = renamed | {label: meant or "" for label, meant in meanings.items()}
    many = sum(meant is None for meant in meanings.values()) > _MANY * len(counts)
    useless = not any({**mapped, **suggested}.values())
    raise UnknownClassesError(problem, meanings, None if many or useless else suggested)


def _order(label: str) -> tuple[int, str]:
    """Numbers in their order, then names."""
    return (int(label), "") if label.isdecimal() else (sys.maxsize, label)


def _described(label: str, mapped: str, count: int, meant: str | None) -> str:
    images = f"{count} {'image' if count == 1 else 'images'}"
    means = {None: "", "": ", of no class there"}.get(meant, f", probably {meant}")
    renamed = f", {mapped} in the class map" if mapped != label else ""
    return f"{label} ({images}{renamed}{means})"
