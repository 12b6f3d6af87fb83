"""The parts of a prepared data set: names of its files, columns of its manifest, fields of dataset.json."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

SCHEMA = 2
"""Version of the format on disk. Raise it when older readers would misread newer files."""

PREPARE_AGAIN = "Run `hemafast prepare` again."
"""Remedy for files that are missing or changed."""

INFO = "dataset.json"
MANIFEST = "manifest.parquet"
QUARANTINE = "quarantine.csv"
SPLIT = "split.csv"
IMAGES = "images"
QUARANTINED_IMAGES = "quarantined"
SHARDS = "shards"
PACKED = "packed"
WEBDATASET = "webdataset"

MANIFEST_COLUMNS = {
    "path": "str",  # relative to the prepared data set
    "label": "str",  # class folder it came from
    "domain": "str",  # archive it came from
    "split": "str",  # train or val; empty if quarantined
    "fold": "int64",  # from 0; -1 without folds, or if quarantined
    "width": "int64",  # px, upright; 0 if unreadable
    "height": "int64",
    "window": "int64",  # px: side of the centre square that is kept
    "mode": "str",  # pixel layout in the file, Pillow's name
    "format": "str",  # JPEG, PNG, TIFF or BMP, by content
    "bytes": "int64",
    "sha256": "str",  # of the file's bytes
    "pixels_xxh128": "str",  # XXH3, 128 bits, of the packed squares of all sizes, one after the other
    "phash": "str",  # perceptual hash, 64 hexadecimal digits
    "duplicate_group": "str",  # the same for all images that show one picture
    "group": "str",  # the same for images that must stay together: one picture, patient or slide
    "verdict": "str",  # accepted, converted or quarantined
    "kind": "str",  # why it was converted or quarantined: keys of CONVERTED_KINDS joined by +, or of QUARANTINED_KINDS
    "reason": "str",  # the same in words
    "mean_red": "float64",  # 0 to 255, over the packed square
    "mean_green": "float64",
    "mean_blue": "float64",
}
"""Columns of the manifest and their types. Row i is row i of the packed pixels."""

ACCEPTED = "accepted"
CONVERTED = "converted"
QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class QuarantinedImage:
    """A quarantined image."""

    file: str
    kind: str
    reason: str

    def row(self) -> dict[str, str]:
        """Its row in quarantine.csv, where `verdict` is the kind."""
        return {"file": self.file, "verdict": self.kind, "reason": self.reason}


class Record(BaseModel):
    """Base of the records in dataset.json: frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DomainInfo(Record):
    """One archive and its counts of images and files."""

    archive: str
    um_per_pixel: float | None
    """None if unknown."""
    drawn: bool
    """Whether its cells are drawn rather than photographed."""
    images: int
    converted: int
    quarantined: int
    ignored: int


class DatasetInfo(Record):
    """dataset.json."""

    schema_version: int
    fingerprint: str
    """sha256 over what training depends on, by `shards.fingerprint`."""
    inputs: str
    """sha256 over the listing of the archives and the settings. If it changes, the data set is prepared again."""
    classes: tuple[str, ...]
    domains: dict[str, DomainInfo]
    counts: dict[str, dict[str, dict[str, int]]]
    """Images by split, domain and class."""
    pack_sizes: tuple[int, ...]
    rows_per_file: dict[str, int]
    """Squares in each file but the last, by packed size."""
    folds: int | None
    notes: tuple[str, ...]
    """Notes for the user about the split, the scale and the lists."""
    settings: dict[str, Any]
    """Options of `prepare`; files by their sha256."""
    versions: dict[str, str]
    files: dict[str, str]
    """sha256 of every file except images and packed pixels, whose hashes are in the manifest."""
    seal: str
    """sha256 over all other fields."""

    @property
    def drawn(self) -> bool:
        """Whether any domain's cells are drawn rather than photographed."""
        return any(domain.drawn for domain in self.domains.values())


def is_prepared(folder: Path) -> bool:
    """Whether hemafast wrote `folder`. A dataset.json alone is not enough: other tools write one too."""
    try:
        return (folder / MANIFEST).is_file() and b'"schema_version"' in (folder / INFO).read_bytes()
    except OSError:
        return False


def is_for_outputs(folder: Path) -> bool:
    """Whether `folder` is a prepared data set, or holds some and nothing else but hidden files, as a volume may."""
    try:
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return False
    return is_prepared(folder) or (bool(inside) and all(map(is_prepared, inside)))


def quarantined(manifest: pd.DataFrame) -> list[QuarantinedImage]:
    """The quarantined images, by path."""
    rows = manifest[manifest["verdict"] == QUARANTINED].sort_values("path")
    return [QuarantinedImage(*row) for row in rows[["path", "kind", "reason"]].itertuples(index=False)]


def versions() -> dict[str, str]:
    """Versions of the packages that determine pixels and verdicts."""
    return {name: version(name) for name in ("hemafast", "nvidia-dali-cuda120", "pillow", "simplejpeg")}


def shard_file(split: str, index: int, count: int, *, folder: str = SHARDS, suffix: str = ".txt") -> Path:
    """Relative path of one shard of a split."""
    return Path(folder) / f"{split}-{index:05d}-of-{count:05d}{suffix}"


def names_of(images: pd.DataFrame) -> pd.Series[str]:
    """The name `domain/class/file` of each image, none of them quarantined."""
    return images["path"].str.removeprefix(f"{IMAGES}/")


def accepted(manifest: pd.DataFrame) -> pd.DataFrame:
    """The images that are not quarantined, in the order of the manifest."""
    return manifest[manifest["verdict"] != QUARANTINED]


def in_split(manifest: pd.DataFrame, split: str, fold: int | None = None) -> pd.DataFrame:
    """The images of a split, in the order of the manifest. With `fold`, that fold is the validation set."""
    images = accepted(manifest)
    if fold is None:
        return images[images["split"] == split]
    return images[(images["fold"] == fold) == (split == "val")]
