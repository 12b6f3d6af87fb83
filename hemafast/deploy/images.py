"""What a user names - files, folders, zips, globs - as one list of images, and their bytes one after the other.

The list is made before anything is read: what it cannot hold stops the command, while an image that turns out to be
unreadable is a row with its error.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NoReturn

from hemafast.errors import HemafastError
from hemafast.prepare import safety
from hemafast.prepare.archive import Entry, entry_reader, is_image, zip_entries
from hemafast.prepare.image_checks import FORMATS

_FORMULA = ("=", "+", "-", "@")  # what a spreadsheet takes for the beginning of a formula
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # has no place in a line of UTF-8


@dataclass(frozen=True, slots=True)
class Image:
    """One image to classify."""

    name: str
    """Its path; in a zip that of the zip, a slash, the member's name. Never the beginning of a formula."""
    zip: str = ""
    """Path of the zip it lies in, if it does."""
    entry: Entry | None = None
    """Of that zip."""


def list_images(paths: Iterable[str]) -> list[Image]:
    """The images of files, folders, zips and globs, each once; those of a folder, a zip or a glob in name order.

    A folder is searched to the bottom, and so is a zip, for files with the suffix of an image; what is named itself
    is taken for one whatever its suffix. Raises HemafastError for what is not there, for a folder or zip without
    images, for a zip that cannot be trusted, and for names that no table can hold.
    """
    found = {image.name: image for named in paths for path in _expand(named) for image in _images_of(path)}
    for name in found:
        refuse_unwritable(name)
    return list(found.values())


def refuse_unwritable(name: str) -> None:
    """Raise HemafastError for a name with control characters, line breaks, or bytes that are no text."""
    if _UNWRITABLE.search(name):
        raise HemafastError(f"The name {name!r} holds unprintable characters.", "Rename it.")


def begins_formula(text: str) -> bool:
    """Whether a spreadsheet that opens a table with this cell would calculate it."""
    return text.startswith(_FORMULA)


def read_images(images: Iterable[Image]) -> Iterator[bytes | OSError]:
    """The bytes of each image in turn, or why they cannot be had. Raises HemafastError for a zip that has gone."""
    for path, members in groupby(images, key=lambda image: image.zip):
        if path:
            yield from _read_members(Path(path), members)
        else:
            yield from (_read_file(image.name) for image in members)


def _expand(named: str) -> list[str]:
    """The files that a glob matches, or the one path that is named; `./` keeps a name from being a formula."""
    paths = [named]
    if not Path(named).exists():
        if not glob.has_magic(named):
            raise HemafastError(f"There is no {named}.", "Name files, folders, zips, or a quoted glob.")
        matches = glob.glob(named, recursive=True)  # noqa: PTH207 - that of pathlib takes no absolute pattern
        paths = sorted(path for path in matches if not Path(path).is_dir())
        if not paths:
            raise HemafastError(f"No file matches {named!r}.", "In a glob, ** stands for folders of any depth.")
    return [f"./{path}" if begins_formula(path) else path for path in paths]


def _images_of(path: str) -> Sequence[Image]:
    if Path(path).is_dir():
        images = [Image(name) for name in _walk(path)]
    elif safety.suffix_of(path) == ".zip":
        images = [Image(f"{path}/{entry.name}", path, entry) for entry in zip_entries(Path(path))]
    else:
        return [Image(path)]
    own = len(path)  # what leads to a folder or zip is the user's, hidden or not
    shown = [image for image in images if is_image(image.name) and not safety.is_clutter(image.name[own:])]
    if not shown:
        raise HemafastError(f"{path} holds no images.", f"Images are files that end in {', '.join(FORMATS)}.")
    return sorted(shown, key=lambda image: image.name)


def _walk(folder: str) -> Iterator[str]:
    """The files in a folder and those below it."""
    for parent, folders, files in os.walk(folder, onerror=_refuse_unlisted):
        for name in folders:
            path = Path(parent, name)
            if path.is_symlink():
                raise HemafastError(f"{path} is a symbolic link to a folder.", "Name that folder itself.")
        yield from (f"{parent.rstrip('/')}/{name}" for name in files)


def _refuse_unlisted(error: OSError) -> NoReturn:
    """os.walk passes over folders that it cannot read, and with them their images."""
    raise HemafastError(f"{error.filename} cannot be listed ({error.strerror}).", "Make it readable, or remove it.")


def _read_members(path: Path, members: Iterable[Image]) -> Iterator[bytes | OSError]:
    with entry_reader(path) as read:
        for member in members:
            assert member.entry is not None
            try:
                yield read(member.entry)
            except HemafastError as error:
                yield OSError(error.problem)


def _read_file(name: str) -> bytes | OSError:
    """The bytes of a plain file of bounded size; a pipe is not waited for."""
    path, most = Path(name), safety.MAX_IMAGE_BYTES
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return OSError("no plain file")
        if status.st_size > most:
            return OSError(f"{status.st_size / 2**20:,.0f} MiB, more than the {most // 2**20} that an image may have")
        with path.open("rb") as file:
            return file.read(status.st_size)
    except OSError as error:
        return error
