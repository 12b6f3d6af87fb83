"""The images that a user gives: files, folders, archives and globs as one list, or arrays; and their bytes in turn.

The list is made before anything is read. A path that cannot be listed is an error; an image that cannot be read is a
row with its error.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from hemafast.errors import HemafastError, name_some
from hemafast.preparation.images.image_checks import MAX_PIXELS, Pixels
from hemafast.preparation.sources import safety
from hemafast.preparation.sources.containers import archive_suffix, list_container, reader_of
from hemafast.preparation.sources.entries import BLOCK, Entries, Entry, packed, sorted_rows, unpacked
from hemafast.preparation.sources.survey import SYSTEM_FILE, PassedOver, survey
from hemafast.regular import open_regular
from hemafast.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

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


@dataclass(frozen=True, slots=True, eq=False)
class _Files:
    """Files that follow each other, given by name or by one glob."""

    paths: pa.ChunkedArray
    named: str

    def __len__(self) -> int:
        return len(self.paths)

    def names(self) -> Iterator[str]:
        return unpacked(self.paths)

    def some(self, start: int, stop: int) -> Iterator[Image]:
        return (Image(path, named=self.named) for path in unpacked(self.paths.slice(start, stop - start)))


@dataclass(frozen=True, slots=True, eq=False)
class _Packed:
    """The images of one folder or archive."""

    entries: Entries
    around: str
    named: str

    def __len__(self) -> int:
        return len(self.entries)

    def names(self) -> Iterator[str]:
        return (f"{self.around}/{name}" for name in self.entries.names())

    def some(self, start: int, stop: int) -> Iterator[Image]:
        return (Image(f"{self.around}/{one.name}", one, named=self.named) for one in self.entries[start:stop])


_Part = _Files | _Packed


class Listed(Sequence[Image]):
    """Images on a disk, each once, as columns: a million of them take little memory. Each is made when it is used."""

    def __init__(self, parts: Iterable[_Part]) -> None:
        self._parts = tuple(parts)
        self._ends = list(accumulate(map(len, self._parts)))
        count = sum(map(len, self._parts))
        self._rows = _each_once(self._all_names, count)
        self._count = count if self._rows is None else len(self._rows)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Image: ...

    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...

    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        if not isinstance(index, slice):
            return self._at(range(len(self))[index])
        found = range(len(self))[index]
        if self._rows is None and found.step == 1:
            return list(self._between(found.start, found.stop))
        return [self._at(row) for row in found]

    def __iter__(self) -> Iterator[Image]:
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK]

    def names(self) -> Iterator[str]:
        """Their names, in order."""
        return self._all_names() if self._rows is None else (image.name for image in self)

    def _all_names(self) -> Iterator[str]:
        return chain.from_iterable(part.names() for part in self._parts)

    def _at(self, row: int) -> Image:
        place = row if self._rows is None else int(self._rows[row])
        (image,) = self._between(place, place + 1)
        return image

    def _between(self, start: int, stop: int) -> Iterator[Image]:
        """The images of some rows that follow each other, before those named twice are left out."""
        for place in range(bisect_right(self._ends, start), len(self._parts)):
            begin = self._ends[place] - len(self._parts[place])
            if begin >= stop:
                return
            yield from self._parts[place].some(max(start - begin, 0), min(stop - begin, len(self._parts[place])))


def _each_once(names: Callable[[], Iterator[str]], count: int) -> npt.NDArray[np.int64] | None:
    """The last row of each name, in the order of the first ones; None if no name is there twice.

    Names are compared by their hashes, 8 bytes each, and those that share one by themselves.
    """
    hashes = np.fromiter(map(hash, names()), np.int64, count)
    if len(np.unique(hashes)) == count:
        return None
    _, place, times = np.unique(hashes, return_inverse=True, return_counts=True)
    shared = times[place] > 1
    rows, seen = np.arange(count), dict[str, int]()
    keep = np.ones(count, dtype=bool)
    for row, name in enumerate(names()):
        if shared[row]:
            keep[row] = name not in seen
            rows[seen.setdefault(name, row)] = row
    return rows[keep]


class Some(Sequence[Image]):
    """Some of many images, by their rows."""

    def __init__(self, images: Sequence[Image], rows: npt.NDArray[np.int64]) -> None:
        self._images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Image: ...

    @overload
    def __getitem__(self, index: slice) -> Some: ...

    def __getitem__(self, index: int | slice) -> Image | Some:
        if isinstance(index, slice):
            return Some(self._images, self.rows[index])
        return self._images[int(self.rows[index])]


def list_inputs(images: Images) -> Sequence[Image]:
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


def list_images(paths: Iterable[str]) -> Listed:
    """The images of files, folders, archives and globs, each once; those of a folder, zip or glob in name order.

    Folders and archives are searched for files that are images by suffix or content; masks are left out. A file given
    by name may be anything. Raises HemafastError for a missing path, a folder or archive without images, an archive
    that cannot be trusted, and names with unprintable characters.
    """
    listed = Listed(_parts_of(paths))
    for name in listed.names():
        refuse_unwritable(name)
    return listed


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


def _parts_of(paths: Iterable[str]) -> Iterator[_Part]:
    """Files in a row, and what each folder or archive holds."""
    expanded = ((path, named) for given in paths for named, found in [_expand(given)] for path in found)
    for (several, named), some in groupby(expanded, lambda one: (_holds_several(one[0]), one[1])):
        if several:
            yield from (_Packed(_images_in(path), path.rstrip("/"), path) for path, _ in some)
        else:
            yield _Files(packed(path for path, _ in some), named)


def _holds_several(path: str) -> bool:
    return bool(archive_suffix(path)) or Path(path).is_dir()


def _expand(given: str) -> tuple[str, Iterable[str]]:
    """The path itself, of no set; or a glob and the files that it matches. `./` keeps a name from being a formula."""
    named, paths = "", iter([given])
    if not Path(given).exists():
        if not glob.has_magic(given):
            raise HemafastError(f"There is no {given}.", "Name files, folders, archives, or a quoted glob.")
        matches = glob.iglob(given, recursive=True)  # noqa: PTH207 - pathlib takes no absolute pattern
        found = packed(path for path in matches if not os.path.isdir(path))  # noqa: PTH112 - of a million, slow
        if not len(found):
            raise HemafastError(f"No file matches {given!r}.", "In a glob, ** matches folders of any depth.")
        named, paths = given, unpacked(found.take(sorted_rows(found)))
    return named, (f"./{path}" if begins_formula(path) else path for path in paths)


def _images_in(path: str) -> Entries:
    """The images of a folder or archive, in order. Raises HemafastError if it holds none."""
    listing = list_container(Path(path), follow_links=True)
    entries, passed = survey(listing.entries)
    for note in listing.notes:
        logger.warning("%s", note)
    others = _said(passed)
    if not entries:
        raise HemafastError(f"{path} holds no images{f', only {others}' if others else ''}.", "Name another path.")
    if others:
        logger.warning("%s: not images, and left out: %s", path, others)
    return entries.take(_in_order(entries))


def _in_order(entries: Entries) -> npt.NDArray[np.int64]:
    """Rows in the order of their names; of a compressed tar, which can only be read from its start, as they lie there.

    What lies in one archive stays together if nothing else is named between.
    """
    rows = entries.by_name()
    held = entries.numbers("container")[rows]
    for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(held)) + 1):
        container = entries.containers[held[run[0]]]
        if container.is_file() and archive_suffix(container.name) not in (".zip", ".tar"):
            rows[run] = rows[run][np.argsort(entries.numbers("offset")[rows[run]], kind="stable")]
    return rows


def _said(passed: Sequence[PassedOver]) -> str:
    """Files that are no images, by kind, without what operating systems leave."""
    kinds = Counter(one.kind for one in passed if one.kind != SYSTEM_FILE)
    return name_some([f"{kind} ({counted(count, 'file')})" for kind, count in kinds.most_common()], 5)


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
