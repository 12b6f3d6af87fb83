"""Write the same files as a folder, a zip or a tar, by the suffix of its name; and read what a source holds."""

import bz2
import gzip
import io
import lzma
import tarfile
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import zstandard

from hemafast.config import PrepareConfig
from hemafast.preparation.sources.containers import read_files
from hemafast.preparation.sources.gather import gather

TARS = ("d.tar", "d.tar.gz", "d.tar.bz2", "d.tar.xz", "d.tar.zst")
PACKED = ("d.zip", *TARS)
FORMS = ("d", *PACKED)
"""Names of a folder and of an archive of each kind."""


class RawName(zipfile.ZipInfo):
    """A member of a zip whose name is written as the bytes that it is, without the flag for UTF-8."""

    def __init__(self, raw: bytes) -> None:
        super().__init__("x")
        self.filename, self.raw = raw.decode("cp437"), raw

    def _encodeFilenameFlags(self):  # noqa: N802 - what the module zipfile asks for
        return self.raw, self.flag_bits


def pack(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write the files as a folder, zip or tar. Names are taken as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == "":
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    elif path.suffix.lower() == ".zip":
        write_zip(path, files.items())
    else:
        members = [(member(name, len(data)), data) for name, data in files.items()]
        path.write_bytes(compressed(path.name, tar_of(members)))
    return path


def write_zip(path: Path, files: Iterable[tuple[str | bytes, bytes]]) -> Path:
    """A zip; a name given as bytes is of an unnamed encoding. The same name may occur twice."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
        warnings.simplefilter("ignore")  # zipfile warns of names that occur twice
        for name, data in files:
            info = RawName(name) if isinstance(name, bytes) else zipfile.ZipInfo("x")
            if isinstance(name, str):
                info.filename = name  # a ZipInfo made of it would tidy it up
            file.writestr(info, data)
    return path


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """The header of one member of a tar."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def tar_of(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """The bytes of a tar, not compressed."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def compressed(name: str, data: bytes) -> bytes:
    """The same bytes, compressed as the suffix of `name` says."""
    suffix = name.rpartition(".")[2].lower()
    if suffix in ("gz", "tgz"):
        return gzip.compress(data)
    if suffix in ("bz2", "tbz2"):
        return bz2.compress(data)
    if suffix in ("xz", "txz"):
        return lzma.compress(data)
    if suffix in ("zst", "tzst"):
        return zstandard.ZstdCompressor(write_checksum=True).compress(data)
    return data


def originals(source: Path) -> dict[str, bytes]:
    """The bytes of each image of a source of folders or archives, by its name in a data set."""
    members = gather(PrepareConfig(source=source, output=source.parent / "prepared", classes="from-data")).members
    return dict(zip([one.name for one in members], read_files([one.entry for one in members]), strict=True))
