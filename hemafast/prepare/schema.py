"""What a prepared data set consists of: names of its files, columns of its manifest, fields of its dataset.json."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

SCHEMA = 2
"""Raised when a reader of the older form would misread the newer one."""

INFO = "dataset.json"
MANIFEST = "manifest.parquet"
QUARANTINE = "quarantine.csv"
SPLIT = "split.csv"
IMAGES = "images"
QUARANTINED = "quarantined"
SHARDS = "shards"
PACKED = "packed"
WEBDATASET = "webdataset"

MANIFEST_COLUMNS = {
    "path": "str",  # relative to the prepared data set
    "label": "str",  # class folder it came from
    "domain": "str",  # archive it came from
    "split": "str",  # train or val; empty when quarantined
    "fold": "int64",  # from 0; -1 without folds, or when quarantined
    "width": "int64",  # px, upright; 0 when unreadable
    "height": "int64",
    "window": "int64",  # px: side of the centre square that is kept
    "mode": "str",  # Pillow's name of the pixel layout in the file
    "format": "str",  # JPEG, PNG, TIFF or BMP, by its bytes
    "bytes": "int64",
    "sha256": "str",  # of the file's bytes
    "pixels_xxh128": "str",  # XXH3, 128 bits, of the packed squares of all sizes, one after the other
    "phash": "str",  # perceptual hash, 64 hexadecimal digits
    "duplicate_group": "str",  # images that show one picture share it
    "group": "str",  # images that must not cross the split share it: one picture, patient or slide
    "verdict": "str",  # accepted, converted or quarantined
    "kind": "str",  # what it was converted or quarantined for, names of policies joined by +
    "reason": "str",  # the same in words
    "mean_red": "float64",  # 0 to 255, over the packed square
    "mean_green": "float64",
    "mean_blue": "float64",
}
"""Columns of the manifest and their types. Row i is row i of the packed pixels."""

ACCEPTED = "accepted"
CONVERTED = "converted"
REFUSED = "quarantined"


@dataclass(frozen=True, slots=True)
class Refused:
    """One image that was left out."""

    file: str
    kind: str
    reason: str

    def row(self) -> dict[str, str]:
        """What quarantine.csv says of it; its verdict is the kind of the manifest."""
        return {"file": self.file, "verdict": self.kind, "reason": self.reason}


class Record(BaseModel):
    """Base of what dataset.json holds: frozen, and a key it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DomainInfo(Record):
    """One archive: how many micrometres a pixel spans (None if unknown), whether its cells are drawn, what was left."""

    archive: str
    um_per_pixel: float | None
    drawn: bool
    images: int
    converted: int
    quarantined: int
    ignored: int


class DatasetInfo(Record):
    """dataset.json."""

    schema_version: int
    fingerprint: str
    """sha256 over classes, packed sizes, and the manifest's rows in order (what of them: `shards.fingerprint`)."""
    inputs: str
    """sha256 over the listing of the archives and the settings: what must change for a new preparation."""
    classes: tuple[str, ...]
    domains: dict[str, DomainInfo]
    counts: dict[str, dict[str, dict[str, int]]]
    """Images by split, domain and class."""
    pack_sizes: tuple[int, ...]
    rows_per_file: dict[str, int]
    """By packed size: squares in each file but the last."""
    folds: int | None
    notes: tuple[str, ...]
    """What a user should know of the split and of the lists that were handed in."""
    settings: dict[str, Any]
    """What was asked for; files by their content."""
    versions: dict[str, str]
    files: dict[str, str]
    """sha256 of every file that the manifest does not vouch for."""
    seal: str
    """sha256 over all other fields."""

    @property
    def drawn(self) -> bool:
        """Whether any domain's cells are drawn rather than photographed."""
        return any(domain.drawn for domain in self.domains.values())


def is_prepared(folder: Path) -> bool:
    """Whether hemafast has written `folder`. A dataset.json alone says nothing: other tools write one too."""
    try:
        return (folder / MANIFEST).is_file() and b'"schema_version"' in (folder / INFO).read_bytes()
    except OSError:
        return False


def refused(manifest: pd.DataFrame) -> list[Refused]:
    """The images that were left out, by file."""
    rows = manifest[manifest["verdict"] == REFUSED].sort_values("path")
    return [Refused(*row) for row in rows[["path", "kind", "reason"]].itertuples(index=False)]


def versions() -> dict[str, str]:
    """The programs that decide about pixels and verdicts."""
    return {name: version(name) for name in ("hemafast", "nvidia-dali-cuda120", "pillow", "simplejpeg")}


def shard_file(split: str, index: int, count: int, *, folder: str = SHARDS, suffix: str = ".txt") -> Path:
    """Where one shard of a split lies."""
    return Path(folder) / f"{split}-{index:05d}-of-{count:05d}{suffix}"


def accepted(manifest: pd.DataFrame) -> pd.DataFrame:
    """The images that are not quarantined, in the order of the manifest."""
    return manifest[manifest["verdict"] != REFUSED]


def in_split(manifest: pd.DataFrame, split: str, fold: int | None = None) -> pd.DataFrame:
    """The images of a split, in the order of the manifest; with `fold`, of the split where that fold validates."""
    images = accepted(manifest)
    if fold is None:
        return images[images["split"] == split]
    return images[(images["fold"] == fold) == (split == "val")]
