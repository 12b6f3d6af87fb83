"""Strangers' sources, built file by file, and what `prepare` must make of each."""

from __future__ import annotations

import io
import os
import tarfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from PIL import Image

from hemafast.preparation.build import Prepared

SIDE = 32
"""px of the images, and of the packed squares: an image that is taken is its own square."""

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".gif": "GIF",
}

Files = Mapping[str, bytes]
"""Contents by path."""


@cache
def cell(number: int, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """Coarse random fields with fine noise, no two alike: uint8 (height, width, 3)."""
    generator = np.random.default_rng(number)
    fields = generator.integers(30, 225, (8, 8, 3))
    rows, columns = (np.arange(length) * 8 // length for length in (height, width))
    pixels = fields[rows[:, None], columns] + generator.integers(-25, 25, (height, width, 3))
    pixels = pixels.astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


def encode(pixels: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file, as Pillow writes it."""
    stream, image = io.BytesIO(), pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, form, **options)
    return stream.getvalue()


@cache
def picture(number: int, suffix: str = ".png") -> bytes:
    """The cell of this number as a file; PNG for an unknown suffix."""
    return encode(cell(number), FORMATS.get(suffix.lower(), "PNG"))


@dataclass
class Room:
    """Where one case writes its source, and what it wrote there."""

    root: Path
    source: Path = field(init=False)
    written: list[str] = field(default_factory=list)
    """The path of every file from the source, as a user would say it, with archives as folders."""
    drawn: int = 0

    def __post_init__(self) -> None:
        self.source = self.root / "Source"

    @property
    def output(self) -> Path:
        return self.root / "prepared"

    def cells(self, pattern: str, count: int = 3, *, start: int = 0) -> dict[str, bytes]:
        """New images named by `pattern`, which holds {} for their number."""
        names = [pattern.format(number) for number in range(start, start + count)]
        return {name: self.image(Path(name).suffix) for name in names}

    def classes(self, *names: str, suffix: str = ".png", count: int = 3, under: str = "") -> dict[str, bytes]:
        """New images of classes, in a folder each."""
        return {path: data for name in names for path, data in self.cells(f"{under}{name}/{{}}{suffix}", count).items()}

    def image(self, suffix: str = ".png") -> bytes:
        self.drawn += 1
        return picture(self.drawn, suffix)

    def write(self, files: Files, into: str = "") -> None:
        """Write files into a folder or archive of the source, told by its suffix; "" is the source itself."""
        path = self.source / into if into else self.source
        path.parent.mkdir(parents=True, exist_ok=True)
        pack(path, files)
        self.written += [f"{_stem(into)}/{name}" if into else name for name in files]

    def write_source(self, name: str, files: Files) -> None:
        """Make an archive the source itself."""
        self.source = self.root / name
        pack(self.source, files)
        self.written += [f"{_stem(name)}/{inside}" for inside in files]

    def beside(self, name: str, content: str | bytes) -> Path:
        """A list that lies outside the source."""
        path = self.root / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def plain(self, name: str) -> str:
        """A name of the source in one form: from its top, and `a/a/` as `a/`, since many archives repeat their name."""
        parts = unicodedata.normalize("NFC", name.replace("\\", "/")).split("/")
        kept = [part for place, part in enumerate(parts) if place == 0 or part != parts[place - 1]]
        return "/".join(kept[1:] if kept[0] == _stem(self.source.name) and len(kept) > 1 else kept)


@dataclass(frozen=True)
class Taken:
    """A source that is taken, and as what."""

    images: Mapping[str, int]
    """Images that are not quarantined, by domain/class."""
    others: Mapping[str, str] = field(default_factory=dict)
    """What every other file is: its kind, by its path from the source."""
    splits: Mapping[str, int] | None = None
    """Images by split, where the source or a list says them."""
    notes: tuple[str, ...] = ()
    """Words that notes must hold."""
    pixels: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the packed square of an image must be, by its path from the source."""
    options: Mapping[str, Any] = field(default_factory=dict)
    also: Callable[[Prepared], object] | None = None
    """Raises AssertionError if anything else is wrong."""


@dataclass(frozen=True)
class Refused:
    """A source that is refused."""

    words: tuple[str, ...]
    """What the error must say."""
    options: Mapping[str, Any] = field(default_factory=dict)
    then: Mapping[str, Any] | None = None
    """Options that the remedy names; with them it works."""
    commands: int = 0
    """Commands that the remedy names; each must work."""


TAKEN: dict[str, Callable[[Room], Taken]] = {}
"""Builders of sources that are taken, by kind and name."""
REFUSED: dict[str, Callable[[Room], Refused]] = {}
"""Builders of sources that are refused."""


def taken(builder: Callable[[Room], Taken]) -> Callable[[Room], Taken]:
    """Add a case to the corpus, named by its function after the kind of its module."""
    return TAKEN.setdefault(_name_of(builder), builder)


def refused(builder: Callable[[Room], Refused]) -> Callable[[Room], Refused]:
    """The same for a source that is refused."""
    return REFUSED.setdefault(_name_of(builder), builder)


def _name_of(builder: Callable[[Room], Any]) -> str:
    name = f"{builder.__module__.removeprefix('cases_')}-{builder.__name__}"
    assert name not in TAKEN | REFUSED
    return name


def pack(path: Path, files: Files) -> None:
    """Write a folder, zip or tar."""
    suffix = next((one for one in sorted(ARCHIVES, key=len, reverse=True) if path.name.lower().endswith(one)), "")
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif suffix:
        path.write_bytes(tar(files, {".tar": "w", ".tgz": "w:gz"}.get(suffix, f"w:{suffix[5:]}")))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)


def tar(files: Files, mode: str = "w", **options: Any) -> bytes:
    """The bytes of a tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w" if mode == "w:zst" else mode, **options) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return zstandard.compress(stream.getvalue()) if mode == "w:zst" else stream.getvalue()


def zipped(files: Mapping[bytes, bytes]) -> bytes:
    """The bytes of a zip whose names are stored as these bytes, as programs of other systems write them."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number, data in enumerate(files.values()):
            archive.writestr(_placeholder(number, list(files)[number]), data)
    content = stream.getvalue()
    for number, raw in enumerate(files):
        assert content.count(_placeholder(number, raw).encode()) == 2
        content = content.replace(_placeholder(number, raw).encode(), raw)
    return content


def _placeholder(number: int, raw: bytes) -> str:
    """An ASCII name as long as the real one."""
    return f"{number:03d}".rjust(len(raw), "~")


def count_files(path: Path) -> int:
    """How many files a source holds, counted without hemafast."""
    if path.is_dir():
        return sum(
            count_files(Path(parent, name)) if _is_archive(name) else 1
            for parent, _, names in os.walk(path)
            for name in names
        )
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            return sum(not name.endswith(("/", "\\")) for name in archive.namelist())
    whole = io.BytesIO(zstandard.decompress(path.read_bytes())) if path.suffix == ".zst" else path.open("rb")
    with whole, tarfile.open(fileobj=whole) as archive:
        return sum(member.isfile() for member in archive)


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVES) and not name.startswith(".")


def _stem(name: str) -> str:
    suffix = next((one for one in sorted(ARCHIVES, key=len, reverse=True) if name.lower().endswith(one)), "")
    return name[: len(name) - len(suffix)]


def squares_of(prepared: Prepared) -> np.ndarray:
    """The packed squares, read without hemafast: row i is row i of the manifest."""
    (file,) = sorted((prepared.folder / "packed").iterdir())
    count = len(prepared.files.manifest)
    return np.fromfile(file, np.uint8)[-count * 3 * SIDE**2 :].reshape(-1, SIDE, SIDE, 3)


def tally(names: list[str]) -> dict[str, int]:
    return dict(Counter(names))
