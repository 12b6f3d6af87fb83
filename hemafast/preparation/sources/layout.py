"""Read the folders around images: which name a split, which a laboratory, which the class, which a patient.

A stranger's tree may be `class/image`, `split/class/image`, `laboratory/class/image`, `class/patient/image`, with any
folders around it. Names that the field knows find the level of the classes. Where no name is known, it is the level
whose names come again under different parents, else the uppermost.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from hemafast.errors import name_some
from hemafast.preparation.sources.names import words_of
from hemafast.preparation.split import TEST, TRAIN, VAL

Folders = tuple[str, ...]

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainset", "traindata", "trainingset", "trainingdata", "tr"), TRAIN),
    **dict.fromkeys(
        ("trainingsdaten", "entrenamiento", "entrainement", "treino", "treinamento", "训练", "训练集"), TRAIN
    ),
    **dict.fromkeys(
        ("val", "valid", "validation", "validate", "valset", "validationset", "validationdata", "dev"), VAL
    ),
    **dict.fromkeys(("validierung", "validierungsdaten", "validacion", "validacao", "验证", "验证集"), VAL),
    **dict.fromkeys(
        ("test", "testing", "testset", "testdata", "testingset", "tst", "holdout", "eval", "evaluation"), TEST
    ),
    **dict.fromkeys(("testdaten", "prueba", "pruebas", "teste", "测试", "测试集"), TEST),
}
_WRAPPERS = frozenset({
    "set", "sets", "data", "dataset", "images", "image", "img", "imgs", "folder", "samples", "cells",
    "jpg", "jpeg", "png", "tif", "tiff", "bmp",
})  # fmt: skip
_FILLERS = _WRAPPERS | {"a", "b", "c", "d", "split", "simple", "final", "new"}
_NEUTRAL = re.compile(
    r"(fold|part|batch|chunk|shard|set|group|split|dir|folder|images?|imgs?|data|run|round)?"
    r"[\s_-]*\d+([\s_-]+\d+)?",
    re.I,
)
_PATIENT = re.compile(
    r"(patient|subject|donor|slide|smear|person|individual)[\s_-]*\w*\d\w*|(pat|pt|subj|case|pid|id|p|s)[\s_-]*\d\w*",
    re.I,
)
_NAMED = 3  # folders that a note lists
_NEARLY_ALL = 0.9  # share of the images
_SAME_LEVEL = 0.5  # share of names that two folders have in common if they hold the same classes


@dataclass(frozen=True, slots=True)
class Place:
    """What the folders around one image say."""

    split: str = ""
    """train, val, test, or empty."""
    domain: str = ""
    """Folder of a laboratory within the tree; empty if the whole tree is one."""
    label: str = ""
    """Class folder; empty for an image outside class folders."""
    group: str = ""
    """Folder of a patient or slide."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the folders of a tree say: one place per image, and notes."""

    places: tuple[Place, ...]
    notes: tuple[str, ...]


def split_named(name: str) -> str:
    """The split that a folder or file is named after, as `TestA`, `val_images` or `Training set`; empty if none."""
    words = words_of(name)
    splits = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    rest = [word for word in words if word not in _SPLIT_WORDS and word not in _FILLERS and not word.isdecimal()]
    return splits.pop() if len(splits) == 1 and not rest else ""


def read_layout(paths: Sequence[str], knows: Callable[[str], bool], *, resplit: bool, labelled: bool) -> Layout:
    """What the folders in `paths` of images say. `knows` tells the name of a class.

    With `labelled`, a table says the classes, and folders only name splits. With `resplit` folders of splits are
    passed through.
    """
    knows = cache(knows)
    folders = [tuple(path.split("/")[:-1]) for path in paths]
    found = _find_splits(folders, knows)
    splits = [next((found[one[: i + 1]][0] for i in range(len(one)) if one[: i + 1] in found), "") for one in folders]
    named = [[found.get(one[: i + 1], ("", name))[1] for i, name in enumerate(one)] for one in folders]
    reduced = [tuple(filter(None, names)) for names in named]
    notes = _split_notes(splits, resplit=resplit)
    if resplit or set(splits) - {""} in ({VAL}, {TEST}):
        splits = [""] * len(paths)
    if labelled:
        return Layout(tuple(Place(split) for split in splits), tuple(notes))
    above = _class_parents(reduced, knows)
    levels = [_level(one, above, knows) for one in reduced]
    outer = _without_common([None if at is None else one[:at] for one, at in zip(reduced, levels, strict=True)])
    inner = [() if at is None else one[at + 1 :] for one, at in zip(reduced, levels, strict=True)]
    domains, groups, more = _meanings(outer, inner)
    labels = ["" if at is None else one[at] for one, at in zip(reduced, levels, strict=True)]
    return Layout(tuple(map(Place, splits, domains, labels, groups)), (*notes, *more))


def _find_splits(folders: Sequence[Folders], knows: Callable[[str], bool]) -> dict[Folders, tuple[str, str]]:
    """The folders that name a split, by their path, each with what else it names: the class or laboratory, or ""."""
    children: dict[Folders, set[str]] = defaultdict(set)
    for one in folders:
        for i, name in enumerate(one):
            children[one[:i]].add(name)
    found: dict[Folders, tuple[str, str]] = {}
    for parent, names in children.items():
        splits = splits_among(names)
        rests = set(map(_rest_of, splits))
        telling = all(rests) and (len(rests) > 1 or all(map(knows, rests)))
        found |= {(*parent, name): (split, _rest_of(name) if telling else "") for name, split in splits.items()}
    return found


def splits_among(names: Collection[str]) -> dict[str, str]:
    """The split of each folder in one place that names one: `PBC_train` does only beside another such as `PBC_test`."""
    loose = {name: splits.pop() for name in names if len(splits := _splits_in(name)) == 1}
    if len(set(loose.values())) > 1 and len(set(map(_rest_of, loose))) < len(loose):
        return loose
    return {name: split for name in names if (split := split_named(name))}


def _splits_in(name: str) -> set[str]:
    return {_SPLIT_WORDS[word] for word in words_of(name) if word in _SPLIT_WORDS}


def _rest_of(name: str) -> str:
    """What a name says besides the split: `LabA` of `LabA_train`."""
    words = [word for word in words_of(name) if word in _SPLIT_WORDS]
    return re.sub("|".join(words) or "$", "", name, flags=re.I).strip(" _-.")


def _split_notes(splits: Sequence[str], *, resplit: bool) -> list[str]:
    counts = Counter(split for split in splits if split)
    if not counts:
        return []
    said = ", ".join(f"{counts[split]} {split}" for split in (TRAIN, VAL, TEST) if counts[split])
    if resplit:
        return [f"folders of a split ({said}) are ignored, as --resplit asks"]
    if set(counts) in ({VAL}, {TEST}):
        return [f"a folder is named {next(iter(counts))}, but none train: it is not taken for a split"]
    return []


def _class_parents(folders: Sequence[Folders], knows: Callable[[str], bool]) -> set[Folders]:
    """The folders whose subfolders are classes."""
    classes = _classes_in(folders, knows)
    if parents := {one[:at] for one in folders if (at := _first_class(one, classes)) is not None}:
        return parents
    places = list(map(_may_be_classes, folders))
    named = [tuple(one[i] for i in at) for one, at in zip(folders, places, strict=True)]
    common = len(_common(one[:-1] for one in named if one))
    level = common + _repeated_level([one[common:] for one in named])
    return {one[: at[level]] for one, at in zip(folders, places, strict=True) if len(at) > level}


def _classes_in(folders: Sequence[Folders], knows: Callable[[str], bool]) -> dict[Folders, set[str]]:
    """The classes by name that lie below each folder, at any depth."""
    found: dict[Folders, set[str]] = defaultdict(set)
    for one in set(folders):
        for i in range(len(one)):
            found[one[:i]] |= set(filter(knows, one[i:]))
    return found


def _first_class(folders: Folders, classes: Mapping[Folders, set[str]]) -> int | None:
    """The uppermost class by name. A folder with several classes in it is none itself, whatever its name."""
    named = (i for i, name in enumerate(folders) if name in classes.get(folders[:i], ()))
    return next((i for i in named if len(classes.get(folders[: i + 1], ())) < 2), None)


def _may_be_classes(folders: Folders) -> list[int]:
    """Which of the folders may be a class: not `images`, and neither `fold_0` nor `patient 7` if there is another."""
    named = [i for i, name in enumerate(folders) if not _is_wrapper(name)]
    return [i for i in named if not is_aside(folders[i])] or named


def _is_wrapper(name: str) -> bool:
    words = words_of(name)
    return bool(words) and set(words) <= _WRAPPERS


def is_aside(name: str) -> bool:
    """Whether a folder is named as one part of many or as a patient; a short number alone may be a class."""
    return bool(_PATIENT.fullmatch(name) or (_NEUTRAL.fullmatch(name) and not re.fullmatch(r"\d{1,2}", name)))


def _repeated_level(folders: Sequence[Folders]) -> int:
    """The first level whose folders have mostly the same names under different parents; 0 if there is none.

    Nearly all images lie as deep: images directly in a folder make that one a class.
    """
    for level in range(1, max(map(len, folders), default=0)):
        if sum(len(one) > level for one in folders) < _NEARLY_ALL * len(folders):
            return 0
        names: dict[Folders, set[str]] = defaultdict(set)
        for one in folders:
            if len(one) > level:
                names[one[:level]].add(one[level])
        pairs = list(combinations(list(names.values())[:20], 2))
        alike = [len(first & second) / len(first | second) for first, second in pairs]
        if alike and sum(alike) / len(alike) >= _SAME_LEVEL:
            return level
    return 0


def _level(folders: Folders, parents: set[Folders], knows: Callable[[str], bool]) -> int | None:
    """Which of the folders is the class; None if the image is outside class folders."""
    possible = [i for i in range(len(folders)) if folders[:i] in parents]
    known = [i for i in possible if knows(folders[i])]
    return known[0] if known else possible[-1] if possible else None


def _without_common(folders: Sequence[Folders | None]) -> list[Folders]:
    common = len(_common(one for one in folders if one is not None))
    return [() if one is None else one[common:] for one in folders]


def _common(folders: Iterable[Folders]) -> Folders:
    """The folders that all have in common, from the top."""
    some = list(folders)
    first, last = min(some, default=()), max(some, default=())
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]


def _meanings(outer: Sequence[Folders], inner: Sequence[Folders]) -> tuple[list[str], list[str], list[str]]:
    """Domain and group of each image from the folders above and below its class, and notes."""
    above, below = {name for one in outer for name in one}, {name for one in inner for name in one}
    patients = {name for name in above | below if _PATIENT.fullmatch(name)}
    neutral = {name for name in above if _NEUTRAL.fullmatch(name) or _is_wrapper(name)} | patients
    domains = ["_".join(name for name in one if name not in neutral) for one in outer]
    # Slides lie in the folder of their patient: the outermost keeps more together.
    around = [(*up, *down) for up, down in zip(outer, inner, strict=True)]
    groups = [next((name for name in one if name in patients), "") for one in around]
    notes = []
    if labs := sorted(set(domains) - {""}):
        notes.append(f"folders around the classes are domains: {name_some(labs, _NAMED)}")
    if named := sorted(set(groups) - {""}):
        notes.append(f"folders of patients or slides stay on one side of the split: {name_some(named, _NAMED)}")
    if passed := sorted(((above & neutral) | below) - patients):
        notes.append(
            f"folders without a meaning: {name_some(passed, _NAMED)} (if they are patients, name them with --groups)"
        )
    return domains, groups, notes
