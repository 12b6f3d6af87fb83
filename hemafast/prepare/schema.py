"""What a prepared data set consists of: names of its files, columns of its manifest, fields of its dataset.json."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict

from hemafast.config import PrepareConfig

SCHEMA = 1
"""Raised when a reader of the older form would misread the newer one."""

INFO = "dataset.json"
MANIFEST = "manifest.parquet"
IMAGES = "images"
QUARANTINED = "quarantined"
SHARDS = "shards"
PACKED = "packed"

MANIFEST_COLUMNS = {
    "path": "str",  # relative to the prepared data set
    "label": "str",  # class folder it came from
    "domain": "str",  # archive it came from
    "split": "str",  # train or val; empty when quarantined
    "width": "int64",  # px, of the file; 0 when unreadable
    "height": "int64",
    "mode": "str",  # Pillow's name of the pixel layout in the file
    "bytes": "int64",
    "sha256": "str",  # of the file's bytes
    "group": "str",  # images that are one image share it
    "verdict": "str",  # accepted or quarantined
    "reason": "str",  # why it was quarantined
    "mean_red": "float64",  # 0 to 255, over the packed square
    "mean_green": "float64",
    "mean_blue": "float64",
}
"""Columns of the manifest and their types. Rows: training images in shard order, then validation, then quarantined."""

ACCEPTED = "accepted"
REFUSED = "quarantined"


class Record(BaseModel):
    """Base of what dataset.json holds: frozen, and a key it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DomainInfo(Record):
    """One archive: how many micrometres a pixel spans (None if unknown), whether its cells are drawn, what was left."""

    archive: str
    um_per_pixel: float | None
    drawn: bool
    images: int
    quarantined: int
    ignored: int


class DatasetInfo(Record):
    """dataset.json."""

    schema_version: int
    fingerprint: str
    """sha256 over classes, packed size, and the manifest's rows in order (what of them: `shards.fingerprint`)."""
    inputs: str
    """sha256 over the listing of the archives and the settings: what must change for a new preparation."""
    classes: tuple[str, ...]
    domains: dict[str, DomainInfo]
    counts: dict[str, dict[str, dict[str, int]]]
    """Images by split, domain and class."""
    settings: PrepareConfig
    versions: dict[str, str]

    @property
    def drawn(self) -> bool:
        """Whether any domain's cells are drawn rather than photographed."""
        return any(domain.drawn for domain in self.domains.values())


def packed_file(split: str, size: int) -> Path:
    """Where the packed pixels of a split lie: uint8 (images, size, size, 3), rows in shard order."""
    return Path(PACKED) / f"{split}-{size}.npy"


def shard_file(split: str, index: int, count: int) -> Path:
    """Where one file list of a split lies."""
    return Path(SHARDS) / f"{split}-{index:05d}-of-{count:05d}.txt"


def in_split(manifest: pd.DataFrame, split: str) -> pd.DataFrame:
    """The accepted images of a split, in shard order."""
    return manifest[(manifest["verdict"] == ACCEPTED) & (manifest["split"] == split)]
