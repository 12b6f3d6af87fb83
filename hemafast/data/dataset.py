"""A prepared data set as training sees it: labels as numbers, files and pixels by split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.prepare import schema
from hemafast.prepare.pixels import Pixels
from hemafast.prepare.reader import PreparedFiles, read_prepared


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
    files: PreparedFiles

    @property
    def info(self) -> schema.DatasetInfo:
        """What dataset.json says."""
        return self.files.info

    @property
    def manifest(self) -> pd.DataFrame:
        """One row an image."""
        return self.files.manifest

    def samples(self, split: str) -> Samples:
        """The images of `split` ("train" or "val")."""
        images = schema.in_split(self.manifest, split)
        index = {label: position for position, label in enumerate(self.info.classes)}
        return Samples(
            paths=tuple(str(self.folder.absolute() / path) for path in images["path"]),
            labels=np.array([index[label] for label in images["label"]], dtype=np.int64),
            domains=images["domain"].to_numpy(dtype=np.str_),
            packed=self.files.packed[split],
        )

    def counts(self, split: str) -> npt.NDArray[np.int64]:
        """(classes,): images of each class in `split`."""
        labels = schema.in_split(self.manifest, split)["label"].value_counts()
        return np.array([labels.get(name, 0) for name in self.info.classes], dtype=np.int64)


def open_dataset(folder: Path) -> Dataset:
    """Open the prepared data set at `folder`. Raises HemafastError if there is none, or if it is not whole."""
    return Dataset(folder, read_prepared(folder))
