"""Two archives of drawn cells, laid out like the two public ones: same names, formats, classes and imbalance."""

import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image

from hemafast.demo.cells import ACEVEDO_20, MATEK_19, Stain, draw_cell
from hemafast.prepare.archive import DRAWN_MARKER

_DRAWN_TEXT = (
    "The cells in this archive are drawn by hemafast's demo; none of them was photographed.\n"
    "No score on them says anything about real blood.\n"
)
_FEWEST_IMAGES = 120
_FEWEST_PER_CLASS = 3
_ACEVEDO_SHARE = 0.6
# The earliest time a zip can hold, so that the archive does not depend on when it was written.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class _Archive:
    """One archive: how often each class occurs in the real one, and how its members are named and stored."""

    stain: Stain
    weights: Mapping[str, int]
    prefixes: Mapping[str, str]
    encode: Callable[[npt.NDArray[np.uint8]], bytes]
    numbered: Callable[[int, np.random.Generator], list[str]]
    suffix: str
    compression: int


def write_demo_archives(
    source: Path, *, images: int = 400, seed: int = 42, on_image: Callable[[], None] | None = None
) -> list[Path]:
    """Draw ``Acevedo_20.zip`` and ``Matek_19.zip``, together ``images`` cells, into the folder ``source``.

    The folder is created if missing. The same ``images`` and ``seed`` give byte-identical archives. ``on_image`` is
    called after every image. Both archives appear only when both are complete. Returns the two paths.
    Raises ``ValueError`` for fewer than 120 images and ``FileExistsError`` if either archive is already there.
    """
    if images < _FEWEST_IMAGES:
        raise ValueError(f"the demo needs at least {_FEWEST_IMAGES} images, not {images}")
    paths = [source / f"{archive.stain.name}.zip" for archive in _ARCHIVES]
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} already exists; the demo never overwrites an archive")
    source.mkdir(parents=True, exist_ok=True)
    in_first = round(_ACEVEDO_SHARE * images)
    # Within the source folder, so that the finished archives move into place without crossing file systems.
    with tempfile.TemporaryDirectory(dir=source, prefix=".drawing-") as unfinished:
        parts = [Path(unfinished, path.name) for path in paths]
        for domain, (part, share) in enumerate(zip(parts, (in_first, images - in_first), strict=True)):
            _write_archive(part, domain, share, seed, on_image or _nothing)
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
    return paths


def _nothing() -> None:
    """Stand in for a progress bar."""


def _share_out(images: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Split ``images`` in proportion to ``weights`` by largest remainders, after a few for every class."""
    spare = images - _FEWEST_PER_CLASS * len(weights)
    exact = {name: spare * weight / sum(weights.values()) for name, weight in weights.items()}
    counts = {name: _FEWEST_PER_CLASS + int(part) for name, part in exact.items()}
    by_remainder = sorted(exact, key=lambda name: int(exact[name]) - exact[name])
    for name in by_remainder[: images - sum(counts.values())]:
        counts[name] += 1
    return counts


def _write_archive(path: Path, domain: int, images: int, seed: int, on_image: Callable[[], None]) -> None:
    archive = _ARCHIVES[domain]
    with zipfile.ZipFile(path, "w") as target:
        _add(target, DRAWN_MARKER, _DRAWN_TEXT.encode(), zipfile.ZIP_STORED)
        for member, data in _members(domain, _share_out(images, archive.weights), seed):
            _add(target, member, data, archive.compression)
            on_image()


def _members(domain: int, counts: Mapping[str, int], seed: int) -> Iterator[tuple[str, bytes]]:
    """Name and encoded bytes of every image of one archive."""
    archive = _ARCHIVES[domain]
    for rank, (cell_class, count) in enumerate(counts.items()):
        # A stream per image makes a picture independent of how many are drawn before it; stream 0 names the files.
        numbers = archive.numbered(count, np.random.default_rng([seed, domain, rank, 0]))
        for index, number in enumerate(numbers, start=1):
            pixels = draw_cell(cell_class, archive.stain, np.random.default_rng([seed, domain, rank, index]))
            yield f"{cell_class}/{archive.prefixes[cell_class]}_{number}{archive.suffix}", archive.encode(pixels)


def _add(target: zipfile.ZipFile, member: str, data: bytes, compression: int) -> None:
    entry = zipfile.ZipInfo(member, _ZIP_TIME)
    entry.compress_type = compression
    entry.create_system = 3  # the same bytes on every operating system
    entry.external_attr = 0o644 << 16
    target.writestr(entry, data, compresslevel=1)


def _as_jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def _as_tiff(pixels: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])).save(stream, "TIFF")
    return stream.getvalue()


def _scattered(count: int, generator: np.random.Generator) -> list[str]:
    return [str(1000 + number) for number in generator.choice(999_000, count, replace=False)]


def _consecutive(count: int, generator: np.random.Generator) -> list[str]:
    return [f"{number:04d}" for number in range(1, count + 1)]


_ARCHIVES = (
    _Archive(
        stain=ACEVEDO_20,
        weights=MappingProxyType(
            {
                "basophil": 1168,
                "eosinophil": 3067,
                "erythroblast": 1499,
                "lymphocyte_typical": 1164,
                "metamyelocyte": 1015,
                "monocyte": 1370,
                "myelocyte": 1137,
                "neutrophil_banded": 1633,
                "neutrophil_segmented": 1646,
                "promyelocyte": 592,
            }
        ),
        prefixes=MappingProxyType(
            {
                "basophil": "BA",
                "eosinophil": "EO",
                "erythroblast": "ERB",
                "lymphocyte_typical": "LY",
                "metamyelocyte": "MMY",
                "monocyte": "MO",
                "myelocyte": "MY",
                "neutrophil_banded": "BNE",
                "neutrophil_segmented": "SNE",
                "promyelocyte": "PMY",
            }
        ),
        encode=_as_jpeg,
        numbered=_scattered,
        suffix=".jpg",
        compression=zipfile.ZIP_STORED,
    ),
    _Archive(
        stain=MATEK_19,
        weights=MappingProxyType(
            {
                "basophil": 79,
                "eosinophil": 424,
                "erythroblast": 78,
                "lymphocyte_typical": 3937,
                "metamyelocyte": 15,
                "monocyte": 1815,
                "myeloblast": 3268,
                "myelocyte": 42,
                "neutrophil_banded": 109,
                "neutrophil_segmented": 8484,
                "promyelocyte": 70,
            }
        ),
        prefixes=MappingProxyType(
            {
                "basophil": "BAS",
                "eosinophil": "EOS",
                "erythroblast": "EBO",
                "lymphocyte_typical": "LYT",
                "metamyelocyte": "MMZ",
                "monocyte": "MON",
                "myeloblast": "MYO",
                "myelocyte": "MYB",
                "neutrophil_banded": "NGB",
                "neutrophil_segmented": "NGS",
                "promyelocyte": "PMO",
            }
        ),
        encode=_as_tiff,
        numbered=_consecutive,
        suffix=".tiff",
        compression=zipfile.ZIP_DEFLATED,
    ),
)
