"""The images that a user gives: files, folders, archives and globs as one list, or arrays; and their bytes in turn.

The list is made before anything is read. A path that cannot be listed is an error; an image that cannot be read is a
row with its error.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.errors import HemafastError, name_some
from hemafast.preparation.images.image_checks import MAX_PIXELS, Pixels
from hemafast.preparation.sources import safety
from hemafast.preparation.sources.containers import Entry, archive_suffix, list_container, reader_of
from hemafast.preparation.sources.survey import SYSTEM_FILE, PassedOver, survey
from hemafast.regular import open_regular

Images = str | Path | Sequence[str | Path] | npt.NDArray[np.uint8] | Sequence[npt.NDArray[np.uint8]]
"""Paths of files, folders, archives, globs; or uint8 RGB (height, width, 3), several such, or (n, height, width, 3)."""

_GIVE = "Give paths, or uint8 RGB arrays (height, width, 3), such as np.asarray(PIL.Image.open(file).convert('RGB'))."
_FORMULA = ("=", "+", "-", "@")  # a spreadsheet calculates cells that begin so
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # cannot stand in a line of UTF-8


logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Image:
    """One image to classify."""

    name: str
    """Path of the file, or ARCHIVE/MEMBER, or the index of an array. Never begins like a spreadsheet formula."""
    entry: Entry | None = None
    """The file of a folder or archive; None for a file that is given by name."""
    array: Pixels | None = field(default=None, compare=False, repr=False)
    """uint8 (height, width, 3); None for an image that is read from a file."""
    named: str = field(default="", compare=False)
    """The folder, archive or glob that it was found by: its images are of one scale. Empty for all other images."""


def list_inputs(images: Images) -> list[Image]:
    """The images of paths, as `list_images`, or of arrays. Raises HemafastError for what is neither."""
    several = isinstance(images, Iterable) and not isinstance(images, str)
    if isinstance(images, np.ndarray):
        several = images.ndim == 4 or images.dtype.kind in "OU"  # a batch, or names
    given: list[Any] = list(images) if several else [images]  # type: ignore[arg-type]
    if not given:
        raise HemafastError("No images are given.", _GIVE)
    if isinstance(given[0], str | Path):
        for index, one in enumerate(given):
            if not isinstance(one, str | Path):
                kind = type(one).__name__
                raise HemafastError(f"Image {index} is a {kind}, but image 0 is a path.", "Do not mix them.")
        return list_images(map(str, given))
    for index, array in enumerate(given):
        _refuse_array(index, array)
    return [Image(str(index), array=array) for index, array in enumerate(given)]


def _refuse_array(index: int, array: Any) -> None:
    if not isinstance(array, np.ndarray):
        raise HemafastError(f"Image {index} is a {type(array).__name__}, not a numpy array.", _GIVE)
    if array.dtype != np.uint8:
        remedy = "Scale it to 0 to 255 and convert it with .astype(np.uint8)."
        raise HemafastError(f"Image {index} is an array of {array.dtype}, not uint8.", remedy)
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise HemafastError(f"Image {index} has the shape {array.shape}, not (height, width, 3).", _GIVE)
    if array.size > 3 * MAX_PIXELS:
        problem = f"Image {index} has the shape {array.shape}: more than {MAX_PIXELS // 10**6} million pixels."
        raise HemafastError(problem, "Cut it into single cells.")


def list_images(paths: Iterable[str]) -> list[Image]:
    """The images of files, folders, archives and globs, each once; those of a folder, zip or glob in name order.

    Folders and archives are searched for files that are images by suffix or content; masks are left out. A file given
    by name may be anything. Raises HemafastError for a missing path, a folder or archive without images, an archive
    that cannot be trusted, and names with unprintable characters.
    """
    found = {image.name: image for named in paths for path in _expand(named) for image in _images_of(path, named)}
    for name in found:
        refuse_unwritable(name)
    return list(found.values())


def refuse_unwritable(name: str) -> None:
    """Raise HemafastError for a name with control characters, line breaks, or bytes that are not text."""
    if _UNWRITABLE.search(name):
        raise HemafastError(f"The name {name!r} holds unprintable characters.", "Rename it.")


def begins_formula(text: str) -> bool:
    """Whether a spreadsheet would calculate a cell with this text."""
    return text.startswith(_FORMULA)


def read_images(images: Iterable[Image]) -> Iterator[bytes | Pixels | OSError]:
    """The bytes or array of each image, or why it cannot be read. Raises HemafastError for a lost archive."""
    for container, members in groupby(images, key=lambda image: image.entry and image.entry.container):
        if container is None:
            yield from (_read_file(image.name) if image.array is None else image.array for image in members)
        else:
            yield from _read_members(container, members)


def _expand(named: str) -> list[str]:
    """The path itself, or the files that a glob matches; `./` keeps a name from being a formula."""
    paths = [named]
    if not Path(named).exists():
        if not glob.has_magic(named):
            raise HemafastError(f"There is no {named}.", "Name files, folders, archives, or a quoted glob.")
        matches = glob.glob(named, recursive=True)  # noqa: PTH207 - pathlib takes no absolute pattern
        paths = sorted(path for path in matches if not Path(path).is_dir())
        if not paths:
            raise HemafastError(f"No file matches {named!r}.", "In a glob, ** matches folders of any depth.")
    return [f"./{path}" if begins_formula(path) else path for path in paths]


def _images_of(path: str, named: str) -> Sequence[Image]:
    whole = Path(path)
    if not whole.is_dir() and not archive_suffix(path):
        return [Image(path, named="" if Path(named).exists() else named)]
    listing = list_container(whole, follow_links=True)
    entries, passed = survey(listing.entries)
    for note in listing.notes:
        logger.warning("%s", note)
    others = _said(passed)
    if not entries:
        raise HemafastError(f"{path} holds no images{f', only {others}' if others else ''}.", "Name another path.")
    if others:
        logger.warning("%s: not images, and left out: %s", path, others)
    around = path.rstrip("/")
    return [Image(f"{around}/{entry.name}", entry, named=path) for entry in _in_order(entries)]


def _in_order(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Files in name order; those of a compressed tar, which can only be read from its start, as they lie there."""
    named = sorted(entries, key=lambda entry: entry.name)
    for container, group in groupby(named, key=lambda entry: entry.container):
        own = list(group)
        if container.is_file() and archive_suffix(container.name) not in (".zip", ".tar"):
            own.sort(key=lambda entry: entry.offset)
        yield from own


def _said(passed: Sequence[PassedOver]) -> str:
    """Files that are no images, by kind, without what operating systems leave."""
    kinds = Counter(one.kind for one in passed if one.kind != SYSTEM_FILE)
    return name_some([f"{count} {kind}" for kind, count in kinds.most_common()], 5)


def _read_members(container: Path, members: Iterable[Image]) -> Iterator[bytes | OSError]:
    with reader_of(container) as read:
        for member in members:
            assert member.entry is not None
            try:
                yield read(member.entry)
            except HemafastError as error:
                yield OSError(error.problem)


def _read_file(name: str) -> bytes | OSError:
    """The bytes of a regular file of bounded size; never waits for a pipe."""
    path, most = Path(name), safety.MAX_IMAGE_BYTES
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                return OSError(f"{size / 2**20:,.0f} MiB, but images may have at most {most // 2**20}")
            return file.read(size)
    except OSError as error:
        return error
