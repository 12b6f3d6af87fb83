"""Write two archives of drawn cells with the names, formats, classes and imbalance of the two public ones."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from hemafast.demo.cells import ACEVEDO_20, MATEK_19, Stain, draw_cell
from hemafast.preparation.sources.trees import DRAWN_MARKER
from hemafast.progress import SILENT, Progress, stage

_DRAWN_TEXT = (
    "The cells in this archive are drawn by hemafast's demo, not photographed.\n"
    "No score on them says anything about real blood.\n"
)
_FEWEST_IMAGES = 120
_FEWEST_PER_CLASS = 3
_ACEVEDO_SHARE = 0.6
# The earliest time a zip can hold, so that the archive does not depend on when it was written.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class _Archive:
    """One archive: its classes, and how its members are named and stored."""

    stain: Stain
    classes: Mapping[str, tuple[str, int]]
    """Prefix of the file names of each class, and its number of images in the real archive."""
    encode: Callable[[npt.NDArray[np.uint8]], bytes]
    numbered: Callable[[int, np.random.Generator], list[str]]
    suffix: str
    compression: int


def write_demo_archives(source: Path, *, images: int = 400, seed: int = 42, progress: Progress = SILENT) -> list[Path]:
    """Draw `Acevedo_20.zip` and `Matek_19.zip` into a folder. Both appear only when both are complete.

    Args:
        source: the folder; created if missing.
        images: number of cells in both archives together, at least 120.
        seed: the same `images` and `seed` give byte-identical archives.
        progress: receives every cell.

    Returns:
        The paths of the two archives.

    Raises:
        ValueError: fewer than 120 images.
        FileExistsError: one of the archives already exists.
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
    with (
        tempfile.TemporaryDirectory(dir=source, prefix=".drawing-") as unfinished,
        stage(progress, "drawing cells", images, unit="cells"),
    ):
        parts = [Path(unfinished, path.name) for path in paths]
        for domain, (part, share) in enumerate(zip(parts, (in_first, images - in_first), strict=True)):
            _write_archive(part, domain, share, seed, progress)
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
    return paths


def _write_archive(path: Path, domain: int, images: int, seed: int, progress: Progress) -> None:
    archive = _ARCHIVES[domain]
    counts = _share_out(images, {name: weight for name, (_, weight) in archive.classes.items()})
    with zipfile.ZipFile(path, "w") as target:
        _add(target, DRAWN_MARKER, _DRAWN_TEXT.encode(), zipfile.ZIP_STORED)
        for rank, (cell_class, count) in enumerate(counts.items()):
            # A stream per image makes a picture independent of how many are drawn before it; stream 0 names the files.
            numbers = archive.numbered(count, np.random.default_rng([seed, domain, rank, 0]))
            for index, number in enumerate(numbers, start=1):
                pixels = draw_cell(cell_class, archive.stain, np.random.default_rng([seed, domain, rank, index]))
                name = f"{cell_class}/{archive.classes[cell_class][0]}_{number}{archive.suffix}"
                _add(target, name, archive.encode(pixels), archive.compression)
                progress.advance()


def _share_out(images: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Split `images` in proportion to `weights` by largest remainders, after a few for every class."""
    spare = images - _FEWEST_PER_CLASS * len(weights)
    exact = {name: spare * weight / sum(weights.values()) for name, weight in weights.items()}
    counts = {name: _FEWEST_PER_CLASS + int(part) for name, part in exact.items()}
    by_remainder = sorted(exact, key=lambda name: int(exact[name]) - exact[name])
    for name in by_remainder[: images - sum(counts.values())]:
        counts[name] += 1
    return counts


def _add(target: zipfile.ZipFile, member: str, data: bytes, compression: int) -> None:
    entry = zipfile.ZipInfo(member, _ZIP_TIME)
    entry.create_system = 3  # the same bytes on every operating system
    entry.external_attr = 0o644 << 16
    target.writestr(entry, data, compression, compresslevel=1)


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
        classes={
            "basophil": ("BA", 1168),
            "eosinophil": ("EO", 3067),
            "erythroblast": ("ERB", 1499),
            "lymphocyte_typical": ("LY", 1164),
            "metamyelocyte": ("MMY", 1015),
            "monocyte": ("MO", 1370),
            "myelocyte": ("MY", 1137),
            "neutrophil_banded": ("BNE", 1633),
            "neutrophil_segmented": ("SNE", 1646),
            "promyelocyte": ("PMY", 592),
        },
        encode=_as_jpeg,
        numbered=_scattered,
        suffix=".jpg",
        compression=zipfile.ZIP_STORED,
    ),
    _Archive(
        stain=MATEK_19,
        classes={
            "basophil": ("BAS", 79),
            "eosinophil": ("EOS", 424),
            "erythroblast": ("EBO", 78),
            "lymphocyte_typical": ("LYT", 3937),
            "metamyelocyte": ("MMZ", 15),
            "monocyte": ("MON", 1815),
            "myeloblast": ("MYO", 3268),
            "myelocyte": ("MYB", 42),
            "neutrophil_banded": ("NGB", 109),
            "neutrophil_segmented": ("NGS", 8484),
            "promyelocyte": ("PMO", 70),
        },
        encode=_as_tiff,
        numbered=_consecutive,
        suffix=".tiff",
        compression=zipfile.ZIP_DEFLATED,
    ),
)
