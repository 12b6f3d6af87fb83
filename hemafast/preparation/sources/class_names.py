"""Names of classes: compare them by `names.fold`, rename them by the user's map, and suggest what a stranger's mean."""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from hemafast.config import Classes
from hemafast.errors import HemafastError, name_some
from hemafast.preparation.sources.names import fold, without_accents, words_of
from hemafast.taxonomy import CHALLENGE_CLASSES
from hemafast.words import counted

_CHALLENGE = {fold(name): name for name in CHALLENGE_CLASSES}
ASKED = "CLASS"
"""In a suggested class map: where the user says the class."""
_MOST_NAMED = 12  # unknown classes that an error lists
_CLOSE = 0.75  # of difflib: a typo, not another word
_LONG = 5  # letters of a name that may have typos, or stand among other words; of shorter ones, too much is close
_MANY = 0.5  # share of unknown names from which on they are another list of classes
_PLURAL = re.compile(r"(?<=\w{4})(?:en|er|es|os|as|[aeinosы])$|(?<=\w{3})s$")
"""Endings of plurals and genders in the languages of the synonyms. Codes such as `eos` are too short to have one."""
_DOUBTS = frozenset({
    "abnormal", "anormal", "atipic", "atypical", "atypiqu", "atypisch", "gigant", "giant", "imatur", "immatur",
    "inmadur", "jugendlich", "juvenil", "meta", "nicht", "no", "non", "not", "pre", "pro", "reactionnel", "reactiv",
    "reaktiv", "reativ", "reattiv", "unreif", "variant", "young",
})  # fmt: skip
"""Words that make another cell of one, without their endings."""
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


class _Meaning(NamedTuple):
    """What a name means in the challenge."""

    label: str
    """The class that it is taken for; "" if it is none of them."""
    covers: frozenset[str]
    """All classes that its cells may be of."""


@cache
def _known() -> dict[str, _Meaning]:
    """What the names that the field uses mean, by their plain form."""
    meant = {name: _Meaning(name, frozenset([name])) for name in CHALLENGE_CLASSES}
    for row in _synonyms():
        meant[row["name"]] = _Meaning(row["class"], frozenset((row["covers"] or row["class"]).split()))
    return {_stems(name): meaning for name, meaning in meant.items()}


@cache
def _known_words() -> dict[frozenset[str], _Meaning]:
    return {frozenset(_without_cell(name).split()): meant for name, meant in _known().items()}


def _stems(name: str) -> str:
    """The words of a name without accents and endings."""
    return " ".join(_PLURAL.sub("", word) for word in fold(without_accents(name)).split())


def _without_cell(stems: str) -> str:
    return stems.removesuffix(" cell")


def challenge_class(name: str) -> str | None:
    """The class of the challenge of this name, in any case and spacing; None if it is none."""
    return _CHALLENGE.get(fold(name))


def is_known(name: str) -> bool:
    """Whether a folder of this name is a class: one of the challenge, or a name that the field uses."""
    return _meaning(name) is not None


def _meaning(name: str) -> _Meaning | None:
    stems, known = _stems(name), _known()
    return known.get(stems) or known.get(_without_cell(stems))


def suggestion_for(name: str) -> str | None:
    """The class of the challenge that a name means; "" for a cell that the challenge leaves out; None if unknown."""
    meant = _probably(name)
    return None if meant is None else meant.label


def covered_by(name: str) -> frozenset[str]:
    """The classes of the challenge that a name covers: both neutrophils for `Neutrophil`. Empty if it is unknown."""
    meant = _probably(name)
    return frozenset() if meant is None else meant.covers


def is_coarse(name: str) -> bool:
    """Whether a name covers several classes of the challenge and is taken for none of them, as `granulocyte`."""
    return suggestion_for(name) == "" and bool(covered_by(name))


def _probably(name: str) -> _Meaning | None:
    """What a name means, also if it has other words around it or a typo."""
    words = [word for word in words_of(name) if not word.isdecimal()]
    stems = _without_cell(_stems(" ".join(words)))
    if (known := _meaning(name) or _meaning("".join(words)) or _by_words(frozenset(stems.split()))) is not None:
        return known
    if _NO_CELL & set(words) or words == ["not", "sure"]:
        return _Meaning("", frozenset())
    return None if _DOUBTS & {*stems.split()} else _by_letters(stems)


def _by_words(words: frozenset[str]) -> _Meaning | None:
    """What the known names with the most words among these mean together, as in `01_basophil (ABC)`.

    The order of words does not matter. Of `stab neutrophil`, each word says something: it is what both cover.
    """
    known = _known_words()
    within = [some for some in known if some <= words]
    clear = words == frozenset().union(*within)  # codes such as `SEG_NEUT` count where nothing else stands beside them
    most = max((len(some) for some in within if clear or max(map(len, some)) >= _LONG), default=0)
    best = [some for some in within if len(some) == most]
    if not best or words.difference(*best) & _DOUBTS:
        return None
    meanings = {known[some] for some in best}
    shared = frozenset.intersection(*(one.covers for one in meanings))
    narrowest = [one for one in meanings if one.covers == shared]
    return narrowest[0] if len(meanings) == 1 or (shared and narrowest) else None


def _by_letters(text: str) -> _Meaning | None:
    """What the known name means that is a typo away."""
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

    `suggested` is a class map that takes the nearest of all; None if most are unknown, or nothing would be left. A name
    that means nothing here becomes `ASKED`, for the user to replace; one that covers several classes keeps its name.
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
    described = [_described(label, mapped[label], counts[label]) for label in unknown]
    number = f"{len(unknown)} of {len(counts)} classes are"
    problem = f"{number} not among the {len(CHALLENGE_CLASSES)} of the challenge: {name_some(described, _MOST_NAMED)}."
    renamed = {label: meant for label, meant in mapped.items() if meant != label}
    suggested = renamed | {
        label: label if is_coarse(mapped[label]) else ASKED if meant is None else meant
        for label, meant in meanings.items()
    }
    many = sum(meant is None for meant in meanings.values()) > _MANY * len(counts)
    useless = set({**mapped, **suggested}.values()) <= {"", ASKED}
    raise UnknownClassesError(problem, meanings, None if many or useless else suggested)


def _order(label: str) -> tuple[int, str]:
    """Numbers in their order, then names."""
    return (int(label), "") if label.isdecimal() else (sys.maxsize, label)


def _described(label: str, mapped: str, count: int) -> str:
    renamed = f", {mapped} in the class map" if mapped != label else ""
    return f"{label} ({counted(count, 'image')}{renamed}{_meant(mapped)})"


def _meant(name: str) -> str:
    """What a name means, to go on a sentence."""
    if is_coarse(name):
        return f", covers {name_some(sorted(covered_by(name)), len(CHALLENGE_CLASSES), ' and ')}"
    meant = suggestion_for(name)
    return {None: "", "": ", of no class there"}.get(meant, f", probably {meant}")
