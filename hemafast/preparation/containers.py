"""List and read the files of a folder, a zip, a tar, or a folder with archives in it. Unsafe archives are refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from hemafast.errors import HemafastError
from hemafast.preparation import safety
from hemafast.preparation.names import UTF8, choose_encoding, plain_name

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
ARCHIVES = (".zip", *TARS)
"""Suffixes of archives that can be read, in lower case."""

# What reading a damaged archive raises, depending on the damage; ValueError for names that are not text.
_DAMAGED = (
    OSError, EOFError, KeyError, ValueError, RuntimeError, OverflowError, zipfile.BadZipFile, tarfile.TarError,
    zlib.error, lzma.LZMAError, struct.error,
)  # fmt: skip
_MAX_READ = 16 * 2**20  # bytes that the listing of a tar may ask for at once: a name is shorter
_UNICODE_PATH, _UTF8_FLAG = 0x7075, 0x800  # extra field of Info-ZIP; general purpose bit 11
_AS_BYTES: Any = {"encoding": UTF8, "errors": "surrogateescape"}
"""Names of a tar stay bytes in disguise until it is known which encoding all of them are in."""
_SYMLINK = "Replace it with what it points to."


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a folder or archive."""

    name: str
    """Path within what was listed, by `names.plain_name`."""
    size: int
    """Bytes."""
    stamp: str
    """Changes when the content does: the CRC in a zip, otherwise a time of change."""
    container: Path
    """The zip or tar that holds it, or the folder that was listed."""
    place: str | int
    """Where it is there: its path in a folder, its raw name in a zip, the offset of its bytes in a tar."""
    offset: int = 0
    """Position in the archive; reading in this order is fastest."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a folder or archive."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    """How names were understood."""


Read = Callable[[Entry], bytes]


def archive_suffix(name: str) -> str:
    """The suffix that makes a file an archive, in lower case; empty if it is none."""
    lower = name.lower()
    return max((suffix for suffix in ARCHIVES if lower.endswith(suffix)), key=len, default="")


def stem_of(path: Path) -> str:
    """The name of a folder, or of an archive without its suffix."""
    return path.name if path.is_dir() else path.name[: len(path.name) - len(archive_suffix(path.name))] or path.name


def list_container(path: Path, *, follow_links: bool = False) -> Listing:
    """The files of a folder, zip or tar.

    Archives in a folder count as folders of the same name. `follow_links` takes links to files in a folder; otherwise
    they are refused, since what they point to would be copied. Raises HemafastError if something cannot be listed or
    is unsafe (see `safety`).
    """
    safety.refuse_unprintable(path, path.name)
    if path.is_dir():
        return _list_folder(path, follow_links)
    if path.exists() and not path.is_file():
        raise HemafastError(f"{path} is not a regular file.", "Remove it.")
    list_archive = _list_zip if archive_suffix(path.name) == ".zip" else _list_tar
    try:
        return list_archive(path)
    except _DAMAGED as error:
        raise HemafastError(f"{path} cannot be listed ({_said(error)}).", "Download it again, or remove it.") from error


@contextmanager
def reader_of(container: Path) -> Iterator[Read]:
    """Yield a function that reads the bytes of an entry of this container.

    It raises HemafastError for a damaged entry, since other entries may be damaged too. In a zip it checks the CRC and
    the declared length.
    """
    try:
        opened = _open_container(container)
    except _DAMAGED as error:
        problem = f"{container} cannot be opened any more ({_said(error)})."
        raise HemafastError(problem, "Put it back and try again.") from error
    with opened as read_raw:

        def read(entry: Entry) -> bytes:
            try:
                data: bytes = read_raw(entry)
                return data
            except _DAMAGED as error:
                remedy = "Check the disk and the file's permissions, or remove it."
                if container.is_file():
                    remedy = "Download it again, or unpack it and use the folder; damaged images are then quarantined."
                raise HemafastError(f"{container}: {entry.name} is damaged ({_said(error)}).", remedy) from error

        yield read


def read_heads(entries: Sequence[Entry], most: int) -> list[bytes]:
    """The first `most` bytes of each file, which may be fewer. Raises HemafastError for damaged archives."""
    return _read_each(entries, most)


def read_all(entries: Sequence[Entry]) -> list[bytes]:
    """The bytes of a few files of any containers. Raises HemafastError for damaged archives."""
    return _read_each(entries, None)


def _read_each(entries: Sequence[Entry], most: int | None) -> list[bytes]:
    found: dict[Entry, bytes] = {}
    for container in sorted({entry.container for entry in entries}):
        own = sorted((one for one in entries if one.container == container), key=lambda one: one.offset)
        try:
            with _open_container(container) as read_raw:
                found |= {entry: read_raw(entry, most) for entry in own}
        except _DAMAGED as error:
            remedy = "Check that you may read it, or download it again."
            raise HemafastError(f"{container} cannot be read ({_said(error)}).", remedy) from error
    return [found[entry] for entry in entries]


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _open_container(path: Path) -> Any:
    """A context manager that yields `read(entry, most=None)`: all bytes of an entry, or its first `most`."""
    if path.is_dir():
        return _folder_reader(path)
    return _zip_reader(path) if archive_suffix(path.name) == ".zip" else _tar_reader(path)


# Folders


def _list_folder(folder: Path, follow_links: bool) -> Listing:
    entries: list[Entry] = []
    notes: list[str] = []
    for path, raw in _walk(folder, follow_links):
        relative = os.fsdecode(raw)
        if archive_suffix(relative) and not safety.is_clutter(relative):
            inner = list_container(path)
            around = relative[: len(relative) - len(archive_suffix(relative))]
            entries += [replace(entry, name=_within(around, entry.name)) for entry in inner.entries]
            notes += inner.notes
            continue
        status = path.stat()
        if not path.is_file():
            raise HemafastError(f"{path} is not a regular file.", "Remove it.")
        safety.refuse_nested_or_large(folder, relative, status.st_size)
        entries.append(Entry(relative, status.st_size, f"{status.st_mtime_ns}", folder, relative))
    named, found = _named([os.fsencode(entry.name) for entry in entries], folder)
    return Listing(
        tuple(replace(entry, name=name) for entry, name in zip(entries, named, strict=True)), (*notes, *found)
    )


def _walk(folder: Path, follow_links: bool) -> Iterator[tuple[Path, bytes]]:
    """Every file below `folder`, and its path from there as bytes."""
    for parent, folders, files in os.walk(folder, onerror=safety.refuse_unlisted):
        folders.sort()
        for name in (*folders, *(() if follow_links else files)):
            if (whole := Path(parent, name)).is_symlink():
                raise HemafastError(f"{whole} is a symbolic link.", _SYMLINK)
        for name in sorted(files):
            whole = Path(parent, name)
            yield whole, os.fsencode(whole.relative_to(folder))


def _within(folder: str, name: str) -> str:
    """The name of a file in an archive that lies in a folder; `a.zip` with everything in `a/` is `a/`, not `a/a/`."""
    top = f"{folder.rpartition('/')[2]}/"
    return f"{folder}/{name.removeprefix(top)}"


@contextmanager
def _folder_reader(folder: Path) -> Iterator[Any]:
    def read(entry: Entry, most: int | None = None) -> bytes:
        """At most the size that was listed."""
        with (folder / cast(str, entry.place)).open("rb") as file:
            if most is not None:
                return file.read(most)
            data = file.read(entry.size + 1)
        if len(data) != entry.size:
            raise OSError(f"it has changed since it was listed with {entry.size} bytes")
        return data

    yield read


def _named(raw: Sequence[bytes], container: Path) -> tuple[list[str], list[str]]:
    """Names as text that can be trusted, and a note if their encoding was guessed.

    Raises HemafastError for a name that leads out of its container or cannot be printed.
    """
    encoding = choose_encoding(raw)
    names = [name.decode(encoding, "surrogateescape") for name in raw]
    for name in names:
        safety.refuse_unsafe_name(container, name)
    example = next((name for name in names if not name.isascii()), "")
    notes = (
        [f"{container.name}: names are not UTF-8; read as {encoding}, such as {example}"] if encoding != UTF8 else []
    )
    return [plain_name(name) for name in names], notes


# Zips


def _list_zip(path: Path) -> Listing:
    with zipfile.ZipFile(path) as file:
        listing = file.infolist()
    for info in listing:
        safety.refuse_unsafe(path, info)
    files = [info for info in listing if not info.filename.endswith(("/", "\\"))]
    safety.refuse_ratio(path, sum(info.file_size for info in listing), path.stat().st_size)
    safety.refuse_repeated(path, [info.filename for info in listing])
    names, notes = _named([_raw_name(info) for info in files], path)
    return Listing(
        tuple(
            Entry(name, info.file_size, f"{info.CRC:08x}", path, info.filename, info.header_offset)
            for name, info in zip(names, files, strict=True)
        ),
        tuple(notes),
    )


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    """The bytes of a name: UTF-8 if the zip says so in either of two ways, else what the packing program wrote."""
    name = info.orig_filename  # as stored; `filename` has the separators of this system
    if info.flag_bits & _UTF8_FLAG:
        return name.encode(UTF8, "surrogateescape")
    raw = name.encode("cp437")
    extra = info.extra
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_PATH and content[1:5] == struct.pack("<L", zlib.crc32(raw)):
            return content[5:]
    return raw


@contextmanager
def _zip_reader(path: Path) -> Iterator[Any]:
    with zipfile.ZipFile(path) as file:

        def read(entry: Entry, most: int | None = None) -> bytes:
            """Inflate no more than the declared size, even if the data holds more."""
            info = file.getinfo(cast(str, entry.place))
            if f"{info.CRC:08x}" != entry.stamp:
                raise zipfile.BadZipFile("it has changed since it was listed")
            with file.open(info) as member:
                if most is not None:
                    return member.read(most)
                data = member.read(entry.size)
                if len(data) != entry.size or member.read(1):
                    raise zipfile.BadZipFile(f"{len(data)} bytes, but {entry.size} are declared")
            return data

        yield read


# Tars


def _list_tar(path: Path) -> Listing:
    packed = path.stat()
    entries, raw, total = [], [], 0
    with _open_tar(path) as stream, tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:", **_AS_BYTES) as tar:
        for member in tar:
            _refuse_unsafe_member(path, member)
            total += member.size
            safety.refuse_ratio(path, total, packed.st_size)
            if not member.isdir():
                stamp = f"{packed.st_mtime_ns}:{member.offset_data}"
                entries.append(Entry("", member.size, stamp, path, member.offset_data, member.offset_data))
                raw.append(member.name.encode(UTF8, "surrogateescape"))
        _refuse_cut(stream, tar.offset)
    names, notes = _named(raw, path)
    safety.refuse_repeated(path, names)
    return Listing(tuple(replace(one, name=name) for one, name in zip(entries, names, strict=True)), tuple(notes))


def _refuse_unsafe_member(path: Path, member: tarfile.TarInfo) -> None:
    if member.issym() or member.islnk():
        raise HemafastError(f"{path}: {member.name} is a link.", "Pack the file that it points to.")
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise HemafastError(f"{path}: {member.name} is not a regular file.", "Unpack the archive and use the folder.")
    if not member.isdir():
        safety.refuse_nested_or_large(path, member.name, member.size)


def _refuse_cut(stream: _Unpacked, end: int) -> None:
    """A tar ends in blocks of zeros; the module tarfile takes a cut one for a shorter one."""
    stream.seek(end)
    block = stream.read(tarfile.BLOCKSIZE) or b""
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError("it is cut or damaged: its end is missing")
    while stream.read(_MAX_READ):  # to the checksum of the compressed data
        pass


@contextmanager
def _tar_reader(path: Path) -> Iterator[Any]:
    with _open_tar(path) as stream:

        def read(entry: Entry, most: int | None = None) -> bytes:
            stream.seek(cast(int, entry.place))
            wanted = entry.size if most is None else min(most, entry.size)
            data = bytearray()
            while len(data) < wanted and (more := stream.read(min(wanted - len(data), _MAX_READ))):
                data += more
            if len(data) != wanted:
                raise EOFError(f"{len(data)} bytes, but {wanted} are declared")
            return bytes(data)

        yield read


def _open_tar(path: Path) -> _Unpacked:
    suffix = archive_suffix(path.name)
    if suffix == ".tar":
        return _Unpacked(lambda: path.open("rb"), jumps=True)
    if suffix in (".tar.gz", ".tgz"):
        return _Unpacked(lambda: gzip.open(path))
    if suffix in (".tar.bz2", ".tbz2"):
        return _Unpacked(lambda: bz2.open(path))
    if suffix in (".tar.xz", ".txz"):
        return _Unpacked(lambda: lzma.open(path))
    return _Unpacked(lambda: _open_zstd(path))


def _open_zstd(path: Path) -> Any:
    import zstandard

    return zstandard.open(path, "rb", dctx=zstandard.ZstdDecompressor(max_window_size=2**27))


class _Unpacked(io.RawIOBase):
    """The bytes of a tar: reads little at once, and seeks by reading on or from the start again unless it `jumps`."""

    def __init__(self, open_again: Callable[[], Any], *, jumps: bool = False) -> None:
        self._open, self._file, self._position, self._jumps = open_again, open_again(), 0, jumps

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise tarfile.ReadError("a name or header in it is too long")
        data: bytes = self._file.read(size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("only from the start")
        if self._jumps:
            self._position = self._file.seek(offset)
        elif offset < self._position:
            self._file.close()
            self._file, self._position = self._open(), 0
        while self._position < offset and self.read(min(offset - self._position, _MAX_READ)):
            pass
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._file.close()
        super().close()
