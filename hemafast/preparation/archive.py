"""List and read the images of a zip or folder of class folders. Unsafe archives are refused."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from hemafast.errors import HemafastError
from hemafast.preparation import safety
from hemafast.preparation.image_checks import FORMATS
from hemafast.preparation.schema import is_for_outputs

DRAWN_MARKER = "DRAWN.txt"
"""A file of this name at the root of an archive marks its cells as drawn, not photographed."""

# What reading a damaged archive raises, depending on the damage; ValueError for names that are not text.
_DAMAGED = (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive, as listed there."""

    name: str
    size: int
    """Bytes."""
    stamp: str
    """Changes when the content does: the CRC in a zip, the time of the last change in a folder."""


@dataclass(frozen=True, slots=True)
class Member:
    """One image: its archive, the class folder it lies in, its file name, and the entry that holds its bytes."""

    domain: str
    label: str
    file: str
    entry: Entry

    @property
    def name(self) -> str:
        """`domain/class/file`."""
        return f"{self.domain}/{self.label}/{self.file}"


@dataclass(frozen=True, slots=True)
class Archive:
    """One domain: a zip or folder with one folder of images per class."""

    path: Path
    domain: str
    members: tuple[Member, ...]
    ignored: tuple[str, ...]
    drawn: bool

    @property
    def classes(self) -> set[str]:
        """The class folders with at least one image."""
        return {member.label for member in self.members}


@contextmanager
def entry_reader(path: Path) -> Iterator[Callable[[Entry], bytes]]:
    """Yield a function that reads the bytes of an entry of the zip or folder at `path`.

    It raises HemafastError for a damaged entry, since other entries may be damaged too. In a zip it checks the CRC and
    the declared length.
    """
    try:
        opened = nullcontext() if path.is_dir() else zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise HemafastError(f"{path} cannot be opened any more ({error}).", "Put it back and try again.") from error
    with opened as file:

        def read(entry: Entry) -> bytes:
            try:
                return _read_file(path, entry) if file is None else _read_member(file, entry)
            except _DAMAGED as error:
                remedy = "Check the disk and the file's permissions, or remove it."
                if path.is_file():
                    remedy = "Download it again, or unpack it and use the folder; damaged images are then quarantined."
                raise HemafastError(f"{path}: {entry.name} is damaged ({error}).", remedy) from error

        yield read


def _read_file(folder: Path, entry: Entry) -> bytes:
    """Read at most the size that was listed."""
    with (folder / entry.name).open("rb") as file:
        data = file.read(entry.size + 1)
    if len(data) != entry.size:
        raise OSError(f"it has changed since it was listed with {entry.size} bytes")
    return data


def _read_member(file: zipfile.ZipFile, entry: Entry) -> bytes:
    """Inflate no more than the declared size, even if the data holds more."""
    if _stamp(file.getinfo(entry.name)) != entry.stamp:
        raise zipfile.BadZipFile("it has changed since it was listed")
    with file.open(entry.name) as member:
        data = member.read(entry.size)
        if len(data) != entry.size or member.read(1):
            raise zipfile.BadZipFile(f"{len(data)} bytes, but {entry.size} are declared")
    return data


def find_archives(source: Path, output: Path) -> list[Path]:
    """The zips and folders in `source`, in name order, without dot files and prepared data sets.

    Raises HemafastError if `source` is missing or holds no archive, or if two have the same name.
    """
    if not source.is_dir():
        raise HemafastError(f"{source} is not a folder.", "Name the folder of your archives with --source.")
    found = [path for path in list_archives(source) if path.resolve() != output.resolve()]
    around = next((path for path in found if path.is_dir() and output.resolve().is_relative_to(path.resolve())), None)
    if around is not None and any(not path.name.startswith(".") for path in around.iterdir()):
        raise HemafastError(f"The output {output} lies within the archive {around}.", "Name another --output.")
    found = [path for path in found if path != around]  # an empty folder for the output, as a volume is
    if not found:
        raise HemafastError(
            f"{source} holds no archive.",
            "Put Acevedo_20.zip, Matek_19.zip or a folder of class folders there, or draw cells with `hemafast demo`.",
        )
    if twice := safety.find_collision(_domain(path) for path in found):
        raise HemafastError(f"{source} holds two archives named {' and '.join(twice)}.", "Remove or rename one.")
    return found


def list_archives(source: Path) -> list[Path]:
    """The zips and folders in `source`, in name order, without dot files and prepared data sets."""
    visible = [path for path in sorted(source.iterdir()) if not path.name.startswith(".")]
    return [path for path in visible if path.suffix.lower() == ".zip" or (path.is_dir() and not is_for_outputs(path))]


def open_archive(path: Path) -> Archive:
    """List the images of a zip or folder.

    Raises HemafastError if it cannot be listed, is unsafe (see `safety`), or holds no class folders of images.
    """
    safety.refuse_unprintable(path, path.name)
    entries = list(_folder_entries(path) if path.is_dir() else zip_entries(path))
    kept = [entry for entry in entries if not safety.is_clutter(entry.name)]
    top = _top_folder([entry.name for entry in kept if is_image(entry.name)])
    domain, members, ignored, drawn = _domain(path), [], [], False
    for entry in kept:
        parts = safety.parts_of(entry.name.removeprefix(top))
        if parts == [DRAWN_MARKER]:
            drawn = True
        elif len(parts) == 2 and is_image(entry.name):
            members.append(Member(domain, parts[0], parts[1], entry))
        else:
            ignored.append(entry.name)
    if not members:
        raise HemafastError(
            f"{path} holds no class folders of images.",
            "Images belong in a folder per class, as basophil/BA_1.jpg. If this is not data, move it elsewhere.",
        )
    _refuse_collisions(path, members)
    members.sort(key=lambda member: (member.label, member.file))
    return Archive(path, domain, tuple(members), tuple(sorted(ignored)), drawn)


def _domain(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _folder_entries(path: Path) -> Iterator[Entry]:
    for folder, folders, files in os.walk(path, onerror=safety.refuse_unlisted):
        for name in (*folders, *files):
            whole = Path(folder, name)
            if whole.is_symlink():
                raise HemafastError(f"{whole} is a symbolic link.", "Replace it with what it points to.")
        for name in files:
            whole = Path(folder, name)
            relative, status = whole.relative_to(path).as_posix(), whole.stat()
            safety.refuse_unprintable(path, relative)
            safety.refuse_nested_or_large(path, relative, status.st_size)
            if not whole.is_file():
                raise HemafastError(f"{whole} is not a regular file.", "Remove it.")
            yield Entry(relative, status.st_size, f"{status.st_mtime_ns}")


def zip_entries(path: Path) -> Iterator[Entry]:
    """The files of a zip. Raises HemafastError if it cannot be listed or is unsafe (see `safety`)."""
    if path.exists() and not path.is_file():
        raise HemafastError(f"{path} is not a regular file.", "Remove it.")
    try:
        with zipfile.ZipFile(path) as file:
            listing = file.infolist()
    except _DAMAGED as error:
        raise HemafastError(f"{path} cannot be listed ({error}).", "Download it again, or remove it.") from error
    for info in listing:
        safety.refuse_unsafe_name(path, info.filename)
        if not info.is_dir():
            safety.refuse_unsafe(path, info)
    safety.refuse_ratio(path, sum(info.file_size for info in listing), path.stat().st_size)
    safety.refuse_repeated(path, [info.filename for info in listing])
    for info in listing:
        if not info.is_dir():
            yield Entry(info.filename, info.file_size, _stamp(info))


def _stamp(info: zipfile.ZipInfo) -> str:
    return f"{info.CRC:08x}"


def is_image(name: str) -> bool:
    """Whether a file has the suffix of an image format that can be read."""
    return safety.suffix_of(name) in FORMATS


def _top_folder(images: list[str]) -> str:
    """The folder around all class folders, as `name/`; "" if they are at the root."""
    tops = {name.partition("/")[0] for name in images}
    depths = {name.count("/") for name in images}
    return f"{tops.pop()}/" if len(tops) == 1 and depths == {2} else ""


def _refuse_collisions(path: Path, members: Sequence[Member]) -> None:
    """On some machines, two names that differ only in case are one file or class; on others they are two."""
    files = safety.find_collision(f"{member.label}/{member.file}" for member in members)
    if twice := files or safety.find_collision({member.label: 0 for member in members}):
        raise HemafastError(f"{path} holds both {twice[0]} and {twice[1]}.", "Rename one of the two.")
