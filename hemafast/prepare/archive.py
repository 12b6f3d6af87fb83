"""Open a zip or a folder of class folders and list its images; a name that points outside it is refused."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hemafast.errors import HemafastError
from hemafast.prepare.schema import INFO

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"})
DRAWN_MARKER = "DRAWN.txt"
"""A file of this name at the root of an archive says that its cells are drawn, not photographed."""
MAX_IMAGE_BYTES = 256 * 2**20
"""No single-cell image comes near this; a member that declares more is refused before it is unpacked."""

_CLUTTER = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_ENCRYPTED = 0x1  # general purpose bit 0 of a zip entry


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive as it is listed there: its name, its size in bytes, and what changes when its bytes do."""

    name: str
    size: int
    stamp: str


@dataclass(frozen=True, slots=True)
class Member:
    """One image: the class folder it lies in, its file name, and the entry that holds its bytes."""

    label: str
    file: str
    entry: Entry


@dataclass(frozen=True, slots=True)
class Archive:
    """One domain: a zip or a folder that holds one folder of images for each class."""

    path: Path
    domain: str
    members: tuple[Member, ...]
    ignored: tuple[str, ...]
    drawn: bool

    @property
    def classes(self) -> set[str]:
        """The class folders that hold at least one image."""
        return {member.label for member in self.members}

    @contextmanager
    def reader(self) -> Iterator[Callable[[Member], bytes]]:
        """A function that reads one member's bytes.

        The function raises OSError or zipfile.BadZipFile if they cannot be read whole (a zip's CRC is checked).
        """
        if self.path.is_dir():
            yield lambda member: (self.path / member.entry.name).read_bytes()
            return
        with zipfile.ZipFile(self.path) as file:
            yield lambda member: file.read(member.entry.name)


def find_archives(source: Path, output: Path) -> list[Path]:
    """The zips and folders in `source`, in name order; dot files and the prepared data set itself are passed over.

    Raises HemafastError if `source` is missing or holds none.
    """
    if not source.is_dir():
        raise HemafastError(f"There is no folder {source}.", "Name the folder of your archives with --source.")
    found = [path for path in list_archives(source) if path.resolve() != output.resolve()]
    if not found:
        raise HemafastError(
            f"{source} holds no archive.",
            "Put Acevedo_20.zip, Matek_19.zip or a folder of class folders there, or draw a demo with `hemafast demo`.",
        )
    domains = [path.stem if path.is_file() else path.name for path in found]
    twice = {name for name in domains if domains.count(name) > 1}
    if twice:
        raise HemafastError(
            f"{source} holds both a zip and a folder named {', '.join(sorted(twice))}.", "Remove one of the two."
        )
    return found


def list_archives(source: Path) -> list[Path]:
    """The zips and folders in `source` that are no dot files and no prepared data sets, in name order."""
    return [path for path in sorted(source.iterdir()) if _is_archive(path)]


def open_archive(path: Path) -> Archive:
    """List the images of a zip or a folder.

    Raises HemafastError if it is not a zip, is encrypted, names files outside itself, or holds no class folders.
    """
    entries = list(_folder_entries(path) if path.is_dir() else _zip_entries(path))
    kept = [entry for entry in entries if not _is_clutter(entry.name)]
    top = _top_folder([entry.name for entry in kept if _is_image(entry.name)])
    members, ignored, drawn = [], [], False
    for entry in kept:
        parts = PurePosixPath(entry.name.removeprefix(top)).parts
        if parts == (DRAWN_MARKER,):
            drawn = True
        elif len(parts) == 2 and _is_image(entry.name):
            members.append(Member(label=parts[0], file=parts[1], entry=entry))
        else:
            ignored.append(entry.name)
    if not members:
        raise HemafastError(
            f"{path} holds no class folders of images.",
            "It should hold a folder for each class, such as basophil/BA_1.jpg; if it is not data, move it elsewhere.",
        )
    _refuse_collisions(path, members)
    domain = path.name if path.is_dir() else path.stem
    members.sort(key=lambda member: (member.label, member.file))
    return Archive(path=path, domain=domain, members=tuple(members), ignored=tuple(sorted(ignored)), drawn=drawn)


def _is_archive(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.suffix.lower() == ".zip" or (path.is_dir() and not (path / INFO).is_file())


def _folder_entries(path: Path) -> Iterator[Entry]:
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            whole = Path(folder, name)
            if whole.is_symlink():
                raise HemafastError(f"{whole} is a symbolic link.", "Replace it with what it points to.")
        for name in files:
            whole = Path(folder, name)
            relative, status = whole.relative_to(path).as_posix(), whole.stat()
            _refuse_unprintable(path, relative)
            yield Entry(relative, status.st_size, f"{status.st_mtime_ns}")


def _zip_entries(path: Path) -> Iterator[Entry]:
    if not zipfile.is_zipfile(path):
        raise HemafastError(f"{path} is not a zip archive.", "Download it again, or remove it from the source folder.")
    try:
        with zipfile.ZipFile(path) as file:
            listing = file.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise HemafastError(f"{path} cannot be listed ({error}).", "Download it again, or remove it.") from error
    for info in listing:
        if not info.is_dir():
            _refuse_unsafe(path, info)
            yield Entry(info.filename, info.file_size, f"{info.CRC:08x}")


def _refuse_unsafe(path: Path, info: zipfile.ZipInfo) -> None:
    parts = PurePosixPath(info.filename).parts
    _refuse_unprintable(path, info.filename)
    if not parts or info.filename.startswith("/") or ".." in parts or "\\" in info.filename or ":" in parts[0]:
        raise HemafastError(
            f"{path}: the name {info.filename!r} points outside the archive.", "Do not trust this archive; remove it."
        )
    if info.flag_bits & _ENCRYPTED:
        raise HemafastError(f"{path}: {info.filename} is encrypted.", "Unpack it yourself and use the folder.")
    if info.file_size > MAX_IMAGE_BYTES:
        raise HemafastError(
            f"{path}: {info.filename} would unpack to {info.file_size / 2**20:,.0f} MiB.",
            f"Images of more than {MAX_IMAGE_BYTES // 2**20} MiB are refused; remove it from the archive.",
        )


def _refuse_unprintable(path: Path, name: str) -> None:
    """Names go into lists of one name a line; line breaks and bytes that are no text have no place there."""
    if not name.isprintable():
        raise HemafastError(f"{path}: the name {name!r} holds unprintable characters.", "Rename the file.")


def _is_clutter(name: str) -> bool:
    return any(part in _CLUTTER or part.startswith(".") for part in PurePosixPath(name).parts)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _top_folder(images: list[str]) -> str:
    """The one extra folder around all class folders, as `name/`, or "" if there is none."""
    tops = {name.partition("/")[0] for name in images}
    depths = {name.count("/") for name in images}
    return f"{tops.pop()}/" if len(tops) == 1 and depths == {2} else ""


def _refuse_collisions(path: Path, members: Iterable[Member]) -> None:
    """Two names that differ in nothing but case would be one file on some machines."""
    seen: dict[tuple[str, str], str] = {}
    for member in members:
        key = (member.label.casefold(), member.file.casefold())
        if key in seen:
            raise HemafastError(f"{path} holds both {seen[key]} and {member.entry.name}.", "Rename one of the two.")
        seen[key] = member.entry.name
