"""The parts of a prepared data set: names of its files, columns of its manifest, fields of dataset.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from annotated_types import Ge, Gt, Le, Len
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    WrapSerializer,
    model_validator,
)

from hemafast.config import AUTO_FIELD_OF_VIEW, PackSize
from hemafast.preparation.images.depth import Range
from hemafast.preparation.scale import ScaleEstimate
from hemafast.preparation.split import ALL, ALL_SPLITS, NO_FOLD, SPLITS, TEST, VAL
from hemafast.reading import cause
from hemafast.regular import read_regular
from hemafast.versions import DALI, installed_versions
from hemafast.words import counted

SCHEMA = 3
"""Version of the format on disk. Raise it when older readers would misread newer files."""

_MOST_PACKED_FILES = 100_000
_PACKAGES = ("hemafast", "imagecodecs", *DALI, "pillow", "simplejpeg", "tifffile")

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
    "source": "str",  # path in the source, as the user had it
    "label": "str",  # class
    "domain": "str",  # laboratory: the folder or archive that it came from
    "split": "str",  # train, val or test; empty if quarantined
    "fold": "int64",  # from 0; -1 without folds, and for test or quarantined images
    "width": "int64",  # px, upright; 0 if unreadable
    "height": "int64",
    "window": "int64",  # px: side of the centre square that is shown; beyond the image, its edges are repeated
    "mode": "str",  # pixel layout in the original file, Pillow's name; with the type of deeper values, as L;uint16
    "format": "str",  # JPEG, PNG, TIFF ... (Pillow's name), by content, of the original file
    "bytes": "int64",  # of the stored file, which differs from the original one if it was re-encoded
    "sha256": "str",  # of the stored file
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
    "contrast": "float64",  # standard deviation of the grey values, 0 to 255, of a thumbnail of the packed square
}
"""Columns of the manifest and their types. Row i is row i of the packed pixels."""

OPENED = (
    *("path", "label", "domain", "split", "fold", "width", "height", "window", "bytes", "sha256", "pixels_xxh128"),
    "verdict",
)
"""Columns that training needs: the others are read where they are asked for."""

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
    """Base of the records in dataset.json: frozen; unknown keys and infinite numbers are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _check_part(name: str) -> str:
    """`name`, if it can be the name of a file or folder. Raises ValueError."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} cannot be the name of a folder")
    return name


def _check_inside(path: str) -> str:
    """`path`, if it is relative and stays in its folder. Raises ValueError."""
    for part in path.split("/"):
        _check_part(part)
    return path


class _UsedSettings(BaseModel):
    """The settings of `prepare` that other commands read."""

    model_config = ConfigDict(allow_inf_nan=False)

    seed: int
    val_fraction: Annotated[float, Ge(0), Le(1)] | None
    field_of_view: Annotated[float, Gt(0)] | Literal["auto", "whole"]
    min_side: Annotated[int, Ge(1), Le(1024)]
    shards: Annotated[int, Ge(1), Le(9999)]
    groups: Any
    group_pattern: Any


def _check_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings`, if those that others read are there and in their range. Raises ValueError."""
    try:
        _UsedSettings.model_validate(settings)
    except ValidationError as error:
        raise ValueError(cause(error)) from error
    return settings


def _check_ranges(ranges: dict[str, Range]) -> dict[str, Range]:
    for kind, found in ranges.items():
        if not found.low < found.high:
            raise ValueError(f"the range of {kind} values is {found.low} to {found.high}")
    return ranges


Count = Annotated[int, Ge(0)]


class Version(BaseModel):
    """The part of dataset.json that every version has."""

    schema_version: int


ScaleSource = Literal["given", "table", "known archive", "estimated", "unknown"]
"""How micrometres per pixel are known: by --um-per-pixel, by the table of labels, by the archive's name, by cells."""


def _without_red_cells(estimate: ScaleEstimate | None, write: SerializerFunctionWrapHandler) -> Any:
    """As older versions wrote it, if no red cells had a part in it: their seals cover what they wrote."""
    fields = write(estimate)
    if estimate is not None and estimate.by_red_cells is None:
        del fields["red_cells"], fields["by_red_cells"]
    return fields


class Scale(Record):
    """How the micrometres per pixel of a domain are known."""

    source: ScaleSource
    estimate: Annotated[ScaleEstimate | None, WrapSerializer(_without_red_cells)]
    """What its cells say, whether that is used or not; None if they were not looked at."""


def scale_words(um_per_pixel: float | None, scale: Scale | None) -> str:
    """Micrometres per pixel of a domain, and how they are known if `scale` says it."""
    if um_per_pixel is None or scale is None:
        return "unknown" if um_per_pixel is None else f"{um_per_pixel:g}"
    found = scale.estimate
    if scale.source != "estimated" or found is None:
        return f"{um_per_pixel:g} ({scale.source})"
    seen = [counted(found.nuclei, "nucleus"), *([counted(found.red_cells, "red cell")] if found.red_cells else [])]
    return f"{um_per_pixel:.3g} (estimated: {found.low:.3g} to {found.high:.3g}, {', '.join(seen)})"


class DomainInfo(Record):
    """One archive and its counts of images and files."""

    archive: str
    um_per_pixel: Annotated[float, Gt(0)] | None
    """None if unknown."""
    drawn: bool
    """Whether its cells are drawn rather than photographed."""
    images: Count
    converted: Count
    quarantined: Count
    ranges: Annotated[dict[str, Range], AfterValidator(_check_ranges)]
    """What becomes 0 and 255 of values of more than 8 bits, by their kind: integer or float."""
    scale: Scale | None = None
    """None in data sets of older versions, which did not say."""

    @property
    def scale_words(self) -> str:
        """Micrometres per pixel, and how they are known."""
        return scale_words(self.um_per_pixel, self.scale)

    def um_per_pixel_of(self, shorter_side: int) -> float | None:
        """Micrometres per pixel of images of this size."""
        if self.scale is None or self.scale.source != "estimated" or self.scale.estimate is None:
            return self.um_per_pixel
        return self.scale.estimate.by_side.get(shorter_side, self.um_per_pixel)


class PassedFiles(Record):
    """Files of one kind that are not taken."""

    files: Count
    examples: tuple[str, ...]


class Account(Record):
    """What became of every file of the source: `found` is the sum of all other numbers."""

    found: Count
    train: Count
    val: Count
    test: Count
    quarantined: dict[str, Count]
    """Images by kind, as in `kinds.QUARANTINED_KINDS`."""
    passed_over: dict[str, PassedFiles]
    """Files that are no images of a class, by what they are."""

    def rows(self) -> list[tuple[str, int, tuple[str, ...]]]:
        """What became of files, how many they are, and examples; the numbers add up to `found`."""
        splits = ("training images", self.train), ("validation images", self.val), ("test images", self.test)
        rows: list[tuple[str, int, tuple[str, ...]]] = [(name, images, ()) for name, images in splits if images]
        rows += [(f"quarantined: {kind}", images, ()) for kind, images in self.quarantined.items()]
        rows += [(f"passed over: {kind}", of.files, of.examples) for kind, of in self.passed_over.items()]
        return rows


class DatasetInfo(Record):
    """dataset.json."""

    schema_version: int
    fingerprint: str
    """sha256 over what training depends on, by `shards.fingerprint`."""
    inputs: str
    """sha256 over the listing of the archives and the settings. If it changes, the data set is prepared again."""
    classes: Annotated[tuple[Annotated[str, Len(1)], ...], Len(1)]
    domains: dict[Annotated[str, AfterValidator(_check_part)], DomainInfo]
    counts: dict[str, dict[str, dict[str, Count]]]
    """Images by split, domain and class. There is no test without test images."""
    account: Account
    pack_sizes: Annotated[tuple[PackSize, ...], Len(1)]
    rows_per_file: dict[str, Annotated[int, Ge(1)]]
    """Squares in each file but the last, by packed size."""
    folds: Annotated[int, Ge(2), Le(100)] | None
    notes: tuple[str, ...]
    """Notes for the user about the split, the scale and the lists."""
    settings: Annotated[dict[str, Any], AfterValidator(_check_settings)]
    """Options of `prepare`; files by their sha256."""
    versions: dict[str, str]
    files: dict[Annotated[str, AfterValidator(_check_inside)], str]
    """sha256 of every file except images and packed pixels, whose hashes are in the manifest."""
    seal: str
    """sha256 over all other fields."""

    @model_validator(mode="after")
    def _check(self) -> DatasetInfo:
        """Raise ValueError if fields contradict each other."""
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: a name is there twice")
        if not set(SPLITS) <= set(self.counts) <= set(ALL_SPLITS):
            raise ValueError(f"counts: the splits are {', '.join(self.counts)}")
        if MANIFEST not in self.files:
            raise ValueError(f"files: there is no {MANIFEST}")
        images = sum(domain.images for domain in self.domains.values())
        for size in self.pack_sizes:
            most = self.rows_per_file.get(str(size), 0)
            if most * _MOST_PACKED_FILES < images or not most:
                raise ValueError(f"rows_per_file: {most} for {images} images of {size} px")
        return self

    @property
    def drawn(self) -> bool:
        """Whether any domain's cells are drawn rather than photographed."""
        return any(domain.drawn for domain in self.domains.values())


def is_prepared(folder: Path) -> bool:
    """Whether hemafast wrote `folder`. A dataset.json alone is not enough: other tools write one too."""
    try:
        return (folder / MANIFEST).is_file() and b'"schema_version"' in read_regular(folder / INFO)
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
    return installed_versions(_PACKAGES)


def shard_file(split: str, index: int, count: int, *, folder: str = SHARDS, suffix: str = ".txt") -> Path:
    """Relative path of one shard of a split."""
    return Path(folder) / f"{split}-{index:05d}-of-{count:05d}{suffix}"


def names_of(images: pd.DataFrame) -> pd.Series[str]:
    """The name `domain/class/file` of each image, none of them quarantined."""
    return images["path"].str.removeprefix(f"{IMAGES}/")


def accepted(manifest: pd.DataFrame) -> pd.DataFrame:
    """The images that are not quarantined, in the order of the manifest."""
    return manifest[manifest["verdict"] != QUARANTINED]


def field_of_view_of(info: DatasetInfo) -> float | None:
    """Side in micrometres of the part of an image that is kept; None for the largest square."""
    asked = info.settings["field_of_view"]
    named = {"auto": AUTO_FIELD_OF_VIEW, "whole": None}
    return named[asked] if asked in named else float(asked)


def splits_of(manifest: pd.DataFrame) -> tuple[str, ...]:
    """The splits that a data set has: those of training, and test if any image is held out."""
    return (*SPLITS, TEST) if (manifest["split"] == TEST).any() else SPLITS


def in_split(manifest: pd.DataFrame, split: str, fold: int | None = None) -> pd.DataFrame:
    """The images of a split, in the order of the manifest. With `fold`, that fold is the validation set.

    Test images are in no fold, and the same whatever fold validates.
    """
    return manifest[is_in_split(manifest, split, fold)]


def is_in_split(manifest: pd.DataFrame, split: str, fold: int | None = None) -> npt.NDArray[np.bool_]:
    """(images,): whether each image is in a split, as for `in_split`."""
    chosen = manifest["verdict"] != QUARANTINED
    if split != ALL and (fold is None or split == TEST):
        chosen &= manifest["split"] == split
    elif split != ALL:
        chosen &= (manifest["fold"] != NO_FOLD) & ((manifest["fold"] == fold) == (split == VAL))
    return chosen.to_numpy(dtype=np.bool_)


def divided_groups(manifest: pd.DataFrame) -> int:
    """How many patients or slides have images in several splits, which only a ready split can cause."""
    return int((accepted(manifest).groupby("group")["split"].nunique() > 1).sum())


def grouped_domains(manifest: pd.DataFrame) -> list[str]:
    """The domains of whose images some show different pictures and yet belong together: of one patient or slide."""
    images = accepted(manifest)
    return [str(name) for name in images.loc[images["group"] != images["duplicate_group"], "domain"].unique()]
