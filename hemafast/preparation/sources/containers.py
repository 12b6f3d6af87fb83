"""List and read the files of a folder, a zip, a tar, or a folder with archives in it. Unsafe archives are refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shlex
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

from zstandard import ZstdDecompressor, ZstdError

from hemafast.errors import HemafastError
from hemafast.preparation.schema import is_prepared
from hemafast.preparation.sources import safety
from hemafast.preparation.sources.entries import Entries, Entry
from hemafast.preparation.sources.names import UTF8, choose_encoding, one_path, plain_name
from hemafast.preparation.sources.sniff import HEAD_BYTES, kind_of
from hemafast.regular import open_regular, read_regular

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
ARCHIVES = (".zip", *TARS)
"""Suffixes of archives that can be read, in lower case."""
_PACKINGS = {
    "zip archive": ".zip",
    "tar archive": ".tar",
    "gzip archive": ".tar.gz",
    "bzip2 archive": ".tar.bz2",
    "xz archive": ".tar.xz",
    "zstd archive": ".tar.zst",
}
"""How archives are packed, by what `sniff.kind_of` names them."""

# What reading a damaged archive raises, depending on the damage; ValueError for names that are not text.
_DAMAGED = (
    OSError, EOFError, KeyError, ValueError, RuntimeError, OverflowError, zipfile.BadZipFile, tarfile.TarError,
    zlib.error, lzma.LZMAError, ZstdError, struct.error,
)  # fmt: skip
_MAX_READ = 16 * 2**20  # bytes that the listing of a tar may ask for at once: a name is shorter
_PADDING = 16 * 2**20  # bytes of headers and zeros in a tar that may be packed to nothing
_UNICODE_PATH, _UTF8_FLAG = 0x7075, 0x800  # extra field of Info-ZIP; general purpose bit 11
_AS_BYTES: Any = {"encoding": UTF8, "errors": "surrogateescape"}
"""Names of a tar stay bytes in disguise until it is known which encoding all of them are in."""
_SYMLINK = "Replace it with what it points to."


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a folder or archive."""

    entries: Entries
    notes: tuple[str, ...] = ()
    """How names were understood."""


class Read(Protocol):
    """Reads the files of one container."""

    def __call__(self, entry: Entry, most: int | None = None) -> bytes:
        """All bytes of a file, or its first `most`, which may be fewer."""


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
    try:
        return _list_zip(path) if _packing_of(path) == ".zip" else _list_tar(path)
    except _DAMAGED as error:
        raise HemafastError(f"{path} cannot be listed ({_said(error)}).", _remedy_for(path, error)) from error


def _packing_of(path: Path) -> str:
    """How an archive is packed, as a suffix: by its first bytes, else by its name."""
    return _PACKINGS.get(kind_of(read_regular(path, HEAD_BYTES), "")) or archive_suffix(path.name)


def _remedy_for(path: Path, error: BaseException) -> str:
    kind = kind_of(read_regular(path, HEAD_BYTES), "")
    if "disks" in str(error) or path.with_suffix(".z01").exists():
        return f"It is one of several parts: join them with `zip -s 0 {shlex.quote(path.name)} --out whole.zip`."
    if not kind.endswith("archive") and kind != "unknown file":
        return f"Download it again: its content is no archive ({kind}), perhaps a page or a pointer in its place."
    return "Download it again, or remove it."


def without_top(entries: Entries, name: str) -> Entries:
    """The files of an archive that was packed from one folder of this `name`, by their path in that folder."""
    top = f"{name}/"
    if not all(one.startswith(top) for one in entries.names() if not safety.is_clutter(one)):
        return entries
    return entries.renamed(one.removeprefix(top) for one in entries.names())


@contextmanager
def reader_of(container: Path) -> Iterator[Read]:
    """Yield a function that reads the bytes of an entry of this container.

    It raises HemafastError for a damaged entry, since other entries may be damaged too. In a zip it checks the CRC and
    the declared length.
    """
    with ExitStack() as stack:
        try:
            read_raw = stack.enter_context(_open_container(container))
        except _DAMAGED as error:
            problem = f"{container} cannot be opened any more ({_said(error)})."
            raise HemafastError(problem, "Put it back and try again.") from error

        def read(entry: Entry, most: int | None = None) -> bytes:
            try:
                data: bytes = read_raw(entry, most)
                return data
            except _DAMAGED as error:
                remedy = "Check the disk and the file's permissions, or remove it."
                if container.is_file():
                    remedy = "Download it again, or unpack it and use the folder; damaged images are then quarantined."
                raise HemafastError(f"{container}: {entry.name} is damaged ({_said(error)}).", remedy) from error

        yield read


def read_files(entries: Sequence[Entry], most: int | None = None) -> list[bytes]:
    """The bytes of files of any containers, or the first `most` of each. Raises HemafastError for damaged ones."""
    found: dict[Entry, bytes] = {}
    for container in sorted({entry.container for entry in entries}):
        own = sorted((one for one in entries if one.container == container), key=lambda one: one.offset)
        with reader_of(container) as read:
            found |= {entry: read(entry, most) for entry in own}
    return [found[entry] for entry in entries]


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _open_container(path: Path) -> AbstractContextManager[Read]:
    if path.is_dir():
        return _folder_reader(path)
    return _zip_reader(path) if _packing_of(path) == ".zip" else _tar_reader(path)


# Folders


def _list_folder(folder: Path, follow_links: bool) -> Listing:
    notes: list[str] = []
    found = Entries(_found_in(folder, follow_links, notes))
    names, more = _named(lambda: map(_text_or_bytes, found.names()), folder)
    return Listing(found.renamed(names), (*notes, *more))


def _found_in(folder: Path, follow_links: bool, notes: list[str]) -> Iterator[Entry]:
    """Every file below `folder`, by its path from there; what prepared data sets hold is left out, with a note."""
    for parent, folders, files in os.walk(folder, onerror=safety.refuse_unlisted):
        here = Path(parent)
        prepared = [name for name in folders if is_prepared(here / name)]
        notes += [f"{here / name} is left out: it is a prepared data set" for name in prepared]
        folders[:] = sorted(set(folders) - set(prepared))
        for name in (*folders, *(() if follow_links else files)):
            if os.path.islink(f"{parent}/{name}"):  # noqa: PTH114 - a path object for each of a million files is slow
                raise HemafastError(f"{here / name} is a symbolic link.", _SYMLINK)
        around = here.relative_to(folder).as_posix()
        files.sort()
        yield from _of_names(folder, (name if around == "." else f"{around}/{name}" for name in files), notes)


def _of_names(folder: Path, names: Iterable[str], notes: list[str]) -> Iterator[Entry]:
    """Files of a folder; archives among them are folders of their name."""
    for relative in names:
        if archive_suffix(relative) and not safety.is_clutter(relative):
            inner = list_container(folder / relative)
            notes += inner.notes
            yield from _as_folder(folder, relative, inner.entries)
        else:
            yield _file_entry(folder, relative)


def _file_entry(folder: Path, relative: str) -> Entry:
    try:
        status = os.stat(f"{folder}/{relative}")  # noqa: PTH116 - as above
    except OSError as error:  # a link to nothing, or it has just gone
        raise HemafastError(
            f"{folder / relative} cannot be found ({error.strerror}).", "Put it back, or remove the link."
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise HemafastError(f"{folder / relative} is not a regular file.", "Remove it.")
    safety.refuse_nested_or_large(folder, relative, status.st_size)
    return Entry(relative, status.st_size, f"{status.st_mtime_ns}", folder, relative)


def _as_folder(folder: Path, archive: str, inside: Entries) -> Iterator[Entry]:
    """What an archive in a folder holds, as if it were a folder of its name."""
    around = archive[: len(archive) - len(archive_suffix(archive))]
    twins = [folder / f"{around}{suffix}" for suffix in ("", *ARCHIVES)]
    if twin := next((one for one in twins if one != folder / archive and one.exists()), None):
        raise HemafastError(f"{folder / archive} and {twin} would be one folder.", "Remove one of the two.")
    own = without_top(inside, around.rpartition("/")[2])
    yield from own.renamed(f"{around}/{name}" for name in own.names())


@contextmanager
def _folder_reader(folder: Path) -> Iterator[Read]:
    def read(entry: Entry, most: int | None = None) -> bytes:
        """At most the size that was listed."""
        with open_regular(folder / entry.place) as file:
            if most is not None:
                return file.read(most)
            data = file.read(entry.size + 1)
        if len(data) != entry.size:
            raise OSError(f"it has changed since it was listed with {entry.size} bytes")
        return data

    yield read


def _named(raw: Callable[[], Iterable[str | bytes]], container: Path) -> tuple[Iterator[str], list[str]]:
    """Names as text that can be trusted, and a note if the encoding of those given as bytes was guessed.

    `raw` gives the names anew each time, so that they need not be in memory. Raises HemafastError for a name that leads
    out of its container, cannot be printed, or occurs twice in an archive.
    """
    unclear = [name for name in raw() if isinstance(name, bytes)]
    encoding = choose_encoding(unclear)

    def names() -> Iterator[str]:
        return (name if isinstance(name, str) else name.decode(encoding) for name in raw())

    for name in names():
        safety.refuse_unsafe_name(container, name)
    if container.is_file():  # a folder has each name once; in its archives, they may differ only in Unicode form
        safety.refuse_repeated(container, list(map(one_path, names())))
    notes = []
    if encoding != UTF8:
        example = next(name.decode(encoding) for name in unclear if not name.isascii())
        notes = [f"{container.name}: names are not UTF-8; read as {encoding}, such as {example}"]
    return map(plain_name, names()), notes


def _text_or_bytes(name: str) -> str | bytes:
    """A name as the system gave it, as bytes if it is no text: programs of several systems may have written here."""
    return name if _is_unicode(name) else os.fsencode(name)


def _is_unicode(name: str) -> bool:
    try:
        name.encode(UTF8)
    except UnicodeEncodeError:
        return False
    return True


# Zips


def _list_zip(path: Path) -> Listing:
    with open_regular(path) as stream, zipfile.ZipFile(stream) as file:
        listing = file.infolist()
    for info in listing:
        safety.refuse_unsafe(path, info)
    files = [info for info in listing if not info.filename.endswith(("/", "\\"))]
    safety.refuse_ratio(path, sum(info.file_size for info in listing), path.stat().st_size)
    names, notes = _named(lambda: map(_raw_name, files), path)
    return Listing(
        Entries(
            Entry(name, info.file_size, f"{info.CRC:08x}", path, info.filename, info.header_offset)
            for name, info in zip(names, files, strict=True)
        ),
        tuple(notes),
    )


def _raw_name(info: zipfile.ZipInfo) -> str | bytes:
    """A name: text if the zip says in either of two ways that it is UTF-8, else what the packing program wrote."""
    name = info.orig_filename  # as stored; `filename` has the separators of this system
    if info.flag_bits & _UTF8_FLAG:
        return name
    raw = name.encode("cp437")
    extra = info.extra
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_PATH and content[1:5] == struct.pack("<L", zlib.crc32(raw)):
            return content[5:].decode(UTF8)
    return raw


@contextmanager
def _zip_reader(path: Path) -> Iterator[Read]:
    with open_regular(path) as stream, zipfile.ZipFile(stream) as file:

        def read(entry: Entry, most: int | None = None) -> bytes:
            """Inflate no more than the declared size, even if the data holds more."""
            info = file.getinfo(entry.place)
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
    entries, raw, total = [], [], 0
    with (
        closing(_open_tar(path)) as stream,
        tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:", **_AS_BYTES) as tar,
    ):
        for member in tar:
            _refuse_unsafe_member(path, member)
            total += member.size
            safety.refuse_ratio(path, total, stream.packed_size)
            if not member.isdir():
                stamp = _tar_stamp(stream, member.offset_data)
                entries.append(Entry("", member.size, stamp, path, "", member.offset_data))
                raw.append(member.name.encode(UTF8, "surrogateescape"))
        _refuse_cut(stream, tar.offset)
    names, notes = _named(lambda: raw, path)
    return Listing(Entries(entries).renamed(names), tuple(notes))


def _tar_stamp(stream: _Unpacked, offset: int) -> str:
    """A tar has no checksums of its members: they may have changed when the whole has."""
    return f"{stream.changed}:{offset}"


def _refuse_unsafe_member(path: Path, member: tarfile.TarInfo) -> None:
    if member.size < 0:
        raise tarfile.ReadError(f"{member.name} has a size of {member.size}")
    if member.issym() or member.islnk():
        raise HemafastError(f"{path}: {member.name} is a link.", "Pack the file that it points to.")
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise HemafastError(f"{path}: {member.name} is not a regular file.", "Unpack the archive and use the folder.")
    if not member.isdir():
        safety.refuse_nested_or_large(path, member.name, member.size)


def _refuse_cut(stream: _Unpacked, end: int) -> None:
    """A tar ends in blocks of zeros; the module tarfile takes a cut one for a shorter one.

    Files after the first such block would be lost: that of a second tar, or all those behind a hole.
    """
    stream.seek(end)
    if len(block := stream.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut: its end is missing")
    while block:  # to the checksum of the compressed data
        if block.count(0) != len(block):
            raise tarfile.ReadError("it is damaged, or several tars in one: more follows its end")
        block = stream.read(_MAX_READ)


@contextmanager
def _tar_reader(path: Path) -> Iterator[Read]:
    with closing(_open_tar(path)) as stream:

        def read(entry: Entry, most: int | None = None) -> bytes:
            if _tar_stamp(stream, entry.offset) != entry.stamp:
                raise tarfile.ReadError("it has changed since it was listed")
            stream.seek(entry.offset)
            wanted = entry.size if most is None else min(most, entry.size)
            data = bytearray()
            while len(data) < wanted and (more := stream.read(min(wanted - len(data), _MAX_READ))):
                data += more
            if len(data) != wanted:
                raise EOFError(f"{len(data)} bytes, but {wanted} are declared")
            return bytes(data)

        yield read


def _open_tar(path: Path) -> _Unpacked:
    packing = _packing_of(path)
    if packing == ".tar":
        return _Unpacked(path, lambda: path.open("rb"), jumps=True)
    if packing in (".tar.gz", ".tgz"):
        return _Unpacked(path, lambda: gzip.open(path))
    if packing in (".tar.bz2", ".tbz2"):
        return _Unpacked(path, lambda: bz2.open(path))
    if packing in (".tar.xz", ".txz"):
        return _Unpacked(path, lambda: lzma.open(path))
    return _Unpacked(path, lambda: _open_zstd(path))


def _open_zstd(path: Path) -> Any:
    """As `zstandard.open`, which stops at the first frame; parallel packers write several."""
    return ZstdDecompressor(max_window_size=2**27).stream_reader(path.open("rb"), read_across_frames=True)


class _Unpacked(io.RawIOBase):
    """The bytes of a tar: reads little at once, and seeks by reading on or from the start again unless it `jumps`.

    Raises HemafastError if far more comes out of `path` than it could hold of images.
    """

    def __init__(self, path: Path, open_again: Callable[[], Any], *, jumps: bool = False) -> None:
        status = path.stat()
        self.packed_size, self.changed = status.st_size, status.st_mtime_ns
        self._path, self._open, self._jumps = path, open_again, jumps
        self._file, self._position = open_again(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise tarfile.ReadError("a name or header in it is too long")
        data: bytes = self._file.read(size)
        self._position += len(data)
        safety.refuse_ratio(self._path, self._position - _PADDING, self.packed_size)
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
