"""Find the images that a list means, although it may write their paths in another way."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from hemafast.errors import HemafastError, name_some
from hemafast.preparation.images.image_checks import FORMATS

Value = TypeVar("Value", bound=Hashable)

Images = Mapping[str, Sequence[str]]
"""The paths that each image is known by, by its key."""

_NUMBER = re.compile(r"(\d+)(?:\.0+)?", re.ASCII)
_TELLING = re.compile(r"(?=.*[^\W\d_])(?=.*\d).{4,}")
_SEPARATOR = re.compile(r"[-_. (]")
_NAMED = 3  # paths that a note or an error lists


class AmbiguousPathError(HemafastError):
    """A listed path that means several images."""


@dataclass(frozen=True, slots=True)
class Resolved(Generic[Value]):
    """What a list says of the images."""

    file: Path | str
    values: dict[str, Value]
    """By the key of the image."""
    missing: tuple[str, ...]
    """Listed paths that are no image, as the list writes them."""
    unlisted: tuple[str, ...]
    """Keys of the images that the list does not name."""
    twice: tuple[str, ...]
    """Keys of the images that the list names more than once, with one value."""
    derived: tuple[str, ...] = ()
    """Keys of the images whose name is a listed one with more behind it, such as a cut or a copy of it."""

    def notes(self) -> tuple[str, ...]:
        """What does not fit together, in sentences with counts and examples."""
        name = self.file.name if isinstance(self.file, Path) else self.file
        found = (
            (self.missing, "path in {} matches no image", "paths in {} match no image"),
            (self.unlisted, "image is not in {}", "images are not in {}"),
            (self.twice, "image is listed more than once in {}", "images are listed more than once in {}"),
            (self.derived, "image is named after one in {}", "images are named after others in {}"),
        )
        return tuple(
            f"{len(names)} {(one if len(names) == 1 else several).format(name)}: {name_some(names, _NAMED)}"
            for names, one, several in found
            if names
        )


class _Claim(NamedTuple):
    """A listed path that fits an image."""

    contained: bool
    """Whether one path ends in the other one, so that no folder differs."""
    parts: int
    """How many parts agree, from the end."""
    folded: str
    position: int
    """In the list."""


def resolve(file: Path | str, values: Iterable[tuple[str, Value]], images: Images | Iterable[str]) -> Resolved[Value]:
    """Find the image that each listed path means.

    Paths are compared from their ends, in any case and Unicode form, with the separators of any system. A listed path
    may have more folders than the image or fewer, no suffix, or be a bare number: `1` for `001.bmp`. If folders differ,
    as in a list of another copy of the data, the image with the most parts in common is taken, unless another image or
    another listed path has as many. An image that is not listed, such as `BAS_0001_360px.tif`, goes with the longest
    listed name that its own begins with, such as `BAS_0001.tif`, if that is no image itself.

    Args:
        file: what messages call the list.
        values: listed paths, and what the list says of each.
        images: the paths that each image is known by, by its key; or names, which are both.

    Returns:
        The values by key, and what is only listed or only there.

    Raises:
        HemafastError: a path means several images, or an image has two values.
    """
    known = images if isinstance(images, Mapping) else {name: (name,) for name in images}
    finder, listed = _Finder(file, known), list(values)
    claims: dict[str, list[_Claim]] = {}
    for position, (path, _) in enumerate(listed):
        if (hit := finder.find(path)) is not None:
            key, claim = hit
            claims.setdefault(key, []).append(claim._replace(position=position))
    chosen = {key: best for key, rivals in claims.items() if (best := _best(rivals))}
    for best in chosen.values():
        _refuse_two_values(file, [listed[claim.position] for claim in best])
    direct = {claim.position for best in chosen.values() for claim in best}
    rest = {position: path for position, (path, _) in enumerate(listed) if position not in direct}
    originals = _originals({key: paths for key, paths in known.items() if key not in chosen}, rest)
    at = {key: best[0].position for key, best in chosen.items()} | originals
    used = set(originals.values())
    return Resolved(
        file=file,
        values={key: listed[position][1] for key, position in at.items()},
        missing=tuple(path for position, path in rest.items() if position not in used),
        unlisted=tuple(key for key in known if key not in at),
        twice=tuple(key for key, best in chosen.items() if len(best) > 1),
        derived=tuple(originals),
    )


def _originals(images: Images, listed: Mapping[int, str]) -> dict[str, int]:
    """The listed path that each image is named after, by position in the list.

    A name counts if it has letters and digits, since others are not telling, and if it is listed once.
    """
    names: dict[str, list[int]] = {}
    for position, path in listed.items():
        names.setdefault(_stem(fold_path(path).rpartition("/")[2]), []).append(position)
    telling = {name: at[0] for name, at in names.items() if len(at) == 1 and _TELLING.match(name)}
    found = {}
    for key, paths in images.items() if telling else ():
        name = _stem(fold_path(paths[0]).rpartition("/")[2])
        cuts = [name[: end.start()] for end in _SEPARATOR.finditer(name)]
        if (original := next((cut for cut in reversed(cuts) if cut in telling), None)) is not None:
            found[key] = telling[original]
    return found


def fold_path(path: str) -> str:
    """A path in one form: without drive, leading and repeated `/`, `.`, and case; `/` between parts; Unicode's NFC."""
    plain = path.strip()
    if not plain.isascii():
        plain = unicodedata.normalize("NFC", unicodedata.normalize("NFC", plain).casefold())
    plain = plain.lower().replace("\\", "/")
    if plain[1:2] == ":":  # a drive
        plain = plain[2:]
    return "/".join([part for part in plain.split("/") if part not in ("", ".")])


def _best(rivals: Sequence[_Claim]) -> Sequence[_Claim]:
    """The claims on one image that count: those that contradict it nowhere, else the one with the most parts."""
    if contained := [claim for claim in rivals if claim.contained]:
        return contained
    most = max(claim.parts for claim in rivals)
    closest = [claim for claim in rivals if claim.parts == most]
    return closest if len({claim.folded for claim in closest}) == 1 else ()


def _refuse_two_values(file: Path | str, claims: Sequence[tuple[str, Hashable]]) -> None:
    path, value = claims[0]
    for other, second in claims[1:]:
        if second != value:
            which = f"{path} is" if other == path else f"{path} and {other} are one image,"
            raise HemafastError(f"{file}: {which} listed as {value} and {second}.", "Remove one of the two lines.")


class _Finder:
    """Finds the image that a path means, by its file name, else without suffix, else as a number."""

    def __init__(self, file: Path | str, images: Images) -> None:
        self._file, self._images = file, images
        paths = [(key, fold_path(path).rpartition("/")) for key, known in images.items() for path in known]
        self._paths = [(key, folders, name) for key, (folders, _, name) in paths]

    @cached_property
    def _by_name(self) -> _Index:
        return _Index(self._paths)

    @cached_property
    def _by_stem(self) -> _Index:
        return _Index((key, folders, _stem(name)) for key, folders, name in self._paths)

    @cached_property
    def _by_number(self) -> _Index:
        return _Index((key, folders, _number(_stem(name))) for key, folders, name in self._paths)

    def find(self, path: str) -> tuple[str, _Claim] | None:
        """The key of the image, and how well it fits; None if there is none or, with other folders, several."""
        folded = fold_path(path)
        folders, _, name = folded.rpartition("/")
        if (hit := self._by_name.find(folders, name) or self._without_suffix(folders, name)) is None:
            return None
        keys, contained, parts = hit
        if len(keys) == 1:
            return keys[0], _Claim(contained, parts, folded, position=-1)
        if contained:
            names = [self._images[key][0] for key in keys]
            remedy = "Write the path with its folders and suffix, or name the folder of its images with --source."
            raise AmbiguousPathError(f"{self._file}: {path} may be {name_some(names, _NAMED, ' or ')}.", remedy)
        return None

    def _without_suffix(self, folders: str, name: str) -> _Hit | None:
        if not (number := _number(name)):
            return self._by_stem.find(folders, name)
        if name.startswith("0"):
            return self._by_stem.find(folders, name) or self._by_number.find(folders, number)
        return self._by_number.find(folders, number) or self._by_stem.find(folders, name)  # `1` may have been `001`


_Hit = tuple[Sequence[str], bool, int]
"""Keys of images, whether one of the two paths ends in the other, and the number of parts that agree."""


class _Index:
    """Images by file name or what is made of it, from triples of key, folders and name. Names of "" are left out."""

    def __init__(self, paths: Iterable[tuple[str, str, str]]) -> None:
        self._paths: dict[str, list[tuple[str, str]]] = {}
        self._folders: dict[str, _Folders] = {}
        for key, folders, name in paths:
            if name:
                self._paths.setdefault(name, []).append((key, folders))

    def find(self, folders: str, name: str) -> _Hit | None:
        """The images of this name whose folders have the most in common with `folders`, from the end."""
        if name not in self._folders:
            if name not in self._paths:
                return None
            self._folders[name] = _Folders(self._paths[name])
        return self._folders[name].find(folders.split("/") if folders else [])


class _Folders:
    """Images of one name by the ends of their folders."""

    def __init__(self, paths: Iterable[tuple[str, str]]) -> None:
        self._ending: dict[str, list[str]] = {}
        self._whole: dict[str, list[str]] = {}
        for key, folders in paths:
            ending = ""
            _append(self._ending, ending, key)
            for part in reversed(folders.split("/") if folders else []):
                ending = f"{part}/{ending}"
                _append(self._ending, ending, key)
            _append(self._whole, ending, key)

    def find(self, folders: Sequence[str]) -> _Hit:
        """The images whose folders have the most in common with `folders`."""
        endings = [""]
        for part in reversed(folders):
            if (ending := f"{part}/{endings[-1]}") not in self._ending:
                break
            endings.append(ending)
        ending, count = endings[-1], len(endings)
        whole = self._ending[ending] if count > len(folders) else self._whole.get(ending)
        return whole or self._ending[ending], bool(whole), count


def _append(keys: dict[str, list[str]], ending: str, key: str) -> None:
    """Add an image once, although several of its paths may end alike."""
    known = keys.setdefault(ending, [])
    if not known or known[-1] != key:
        known.append(key)


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix in FORMATS else name


def _number(text: str) -> str:
    """The digits of a whole number without leading zeros; "" for other text."""
    found = _NUMBER.fullmatch(text)
    return (found[1].lstrip("0") or "0") if found else ""
