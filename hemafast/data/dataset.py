"""Open a prepared data set and check that it is the one its dataset.json describes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.errors import HemafastError
from hemafast.prepare import schema
from hemafast.prepare.build import read_info
from hemafast.prepare.pixels import Pixels
from hemafast.prepare.shards import fingerprint

_REMEDY = "Run `hemafast prepare` again."


@dataclass(frozen=True, slots=True)
class Samples:
    """The images of one split, in shard order."""

    paths: tuple[str, ...]
    """Files of encoded bytes, absolute."""
    labels: npt.NDArray[np.int64]
    """Index of each image's class."""
    domains: npt.NDArray[np.str_]
    """Name of each image's domain."""
    packed: Pixels
    """uint8 (images, size, size, 3), memory-mapped."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def packed_size(self) -> int:
        """Side of the packed squares in pixels."""
        return int(self.packed.shape[1])


@dataclass(frozen=True, slots=True)
class Dataset:
    """A prepared data set on disk."""

    folder: Path
    info: schema.DatasetInfo
    manifest: pd.DataFrame

    def samples(self, split: str) -> Samples:
        """The images of `split` ("train" or "val"). Raises HemafastError if its packed pixels are missing or cut."""
        images = schema.in_split(self.manifest, split)
        index = {label: position for position, label in enumerate(self.info.classes)}
        return Samples(
            paths=tuple(str(self.folder.absolute() / path) for path in images["path"]),
            labels=np.array([index[label] for label in images["label"]], dtype=np.int64),
            domains=images["domain"].to_numpy(dtype=np.str_),
            packed=self._packed(split, len(images)),
        )

    def counts(self, split: str) -> npt.NDArray[np.int64]:
        """(classes,): images of each class in `split`."""
        labels = schema.in_split(self.manifest, split)["label"].value_counts()
        return np.array([labels.get(name, 0) for name in self.info.classes], dtype=np.int64)

    def _packed(self, split: str, images: int) -> Pixels:
        size = self.info.settings.packed_size
        path = self.folder / schema.packed_file(split, size)
        try:
            packed: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise HemafastError(f"{path} cannot be read: {error}.", _REMEDY) from error
        if packed.shape != (images, size, size, 3) or packed.dtype != np.uint8:
            raise HemafastError(
                f"{path} holds {packed.shape} {packed.dtype}, not {images} images of {size} px.", _REMEDY
            )
        return packed


def open_dataset(folder: Path) -> Dataset:
    """Open the prepared data set at `folder`.

    Raises HemafastError if there is none, or if its manifest is not the one that its fingerprint was taken of.
    """
    if not (folder / schema.INFO).is_file():
        raise HemafastError(
            f"{folder} is not a prepared data set.", "Make it with `hemafast prepare`, or name one with --data."
        )
    info = read_info(folder)
    if info is None:
        raise HemafastError(f"{folder / schema.INFO} was written by another version or is damaged.", _REMEDY)
    try:
        manifest = pd.read_parquet(folder / schema.MANIFEST)
        found = fingerprint(manifest, info.classes, info.settings.packed_size)
    except (OSError, ValueError, KeyError) as error:
        raise HemafastError(f"{folder / schema.MANIFEST} cannot be read: {error}.", _REMEDY) from error
    if found != info.fingerprint:
        raise HemafastError(f"{folder / schema.MANIFEST} does not match the fingerprint in {schema.INFO}.", _REMEDY)
    return Dataset(folder, info, manifest)
