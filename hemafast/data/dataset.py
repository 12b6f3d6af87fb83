"""A prepared data set as training uses it: files, pixels and labels of each split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.config import Device
from hemafast.data.augment import Policy, named_policy
from hemafast.data.geometry import window_side
from hemafast.data.graph import GraphShape, Source, default_threads
from hemafast.data.loader import Loader, eval_loader, process_here, train_loader
from hemafast.data.samples import Files, Samples, fixed_texts
from hemafast.data.stream import Process
from hemafast.errors import HemafastError
from hemafast.nvidia import uses_gpu
from hemafast.preparation import schema
from hemafast.preparation.pixels import centre_windows
from hemafast.preparation.reader import PreparedFiles, read_prepared
from hemafast.preparation.split import ALL, SPLITS, TEST, TRAIN, WORDS
from hemafast.preparation.webdataset import Members, read_members
from hemafast.words import counted

_MAKE_A_TEST = (
    "Run `hemafast prepare` with --test-fraction 0.2, on archives with a folder named test, or with a --split-file "
    "that lists test images."
)


@dataclass(frozen=True, slots=True, repr=False)
class Dataset:
    """A prepared data set on disk."""

    folder: Path
    files: PreparedFiles
    fold: int | None = None
    """Fold to validate on; None for the split that the data set was prepared with."""
    chosen: tuple[str, ...] | None = None
    """Domains in the splits; None for all."""

    def __repr__(self) -> str:
        images = ", ".join(f"{len(self._rows(name)):,} {name}" for name in self.info.counts)
        classes = counted(len(self.info.classes), "class")
        return f"Dataset({str(self.folder)!r}, {', '.join(self.domains)}, {classes}, images: {images})"

    @property
    def info(self) -> schema.DatasetInfo:
        """What dataset.json says."""
        return self.files.info

    @property
    def table(self) -> pd.DataFrame:
        """The manifest: one row per image, quarantined ones included, with path, label, domain, split and verdict.

        It is read when it is first asked for.
        """
        return self.files.manifest

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in label order."""
        return list(self.info.classes)

    @property
    def domains(self) -> list[str]:
        """Names of the domains that splits contain."""
        return list(self.chosen or self.info.domains)

    def split(self, name: str) -> pd.DataFrame:
        """The rows of `table` that are in a split, in its order.

        Args:
            name: "train", "val" or, for images that training never sees, "test"; "all" for every accepted image.

        Raises:
            HemafastError: the data set has no such split.
        """
        return self._in_split(self.table, name)

    def images(self, name: str, *more: str) -> pd.DataFrame:
        """The same rows with the columns `schema.OPENED`, which are in memory, and with `more`, which are read."""
        images = self._in_split(self.files.images, name)
        return images.join(self.files.columns(*more)) if more else images

    def _in_split(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        return table.iloc[self._rows(name)]

    def _rows(self, name: str) -> npt.NDArray[np.int64]:
        """The rows of the manifest that are in a split."""
        if name not in (*self.info.counts, ALL):
            raise HemafastError(
                f"{self.folder} has no split {name!r}: its splits are {' and '.join(self.info.counts)}.",
                _MAKE_A_TEST if name == TEST else f"Choose from: {', '.join(self.info.counts)}.",
            )
        images = self.files.images
        chosen = schema.is_in_split(images, name, self.fold)
        if self.chosen is not None:
            chosen = chosen & images["domain"].isin(self.chosen).to_numpy()
        return np.flatnonzero(chosen)

    def samples(self, split: str, image_size: int = 0) -> Samples:
        """The images of `split`, with packed squares that suit views of `image_size` pixels.

        Raises HemafastError if the data set has no such split, or no such images of the chosen domains.
        """
        rows, images = self._rows(split), self.files.images
        if not len(rows):
            raise HemafastError(
                f"{self.folder} has no {WORDS[split]} images of {' and '.join(self.domains)}.",
                "Choose other domains, or another split.",
            )
        packed = self.files.packed[choose_pack_size(self.info.pack_sizes, image_size)]
        name = split if self.fold is None or split in (TEST, ALL) else f"fold{self.fold}-{split}"

        def of(column: str) -> pd.Series[Any]:
            return images[column].iloc[rows]  # one column after the other: all together would be there twice

        return Samples(
            paths=Files(self.folder, of("path")),
            labels=pd.Index(self.info.classes).get_indexer(pd.Index(of("label"))).astype(np.int64),
            domains=of("domain").to_numpy(dtype=np.str_),
            edges=np.stack([of(name).to_numpy(dtype=np.int64) for name in ("height", "width")], axis=1),
            windows=centre_windows(*(of(name).to_numpy() for name in ("width", "height", "window"))),
            packed=packed.select(rows),
            hashes=fixed_texts(of("pixels_xxh128")),
            hashed=tuple(squares.select(rows) for squares in self.files.packed.values()),
            sizes=of("bytes").to_numpy(dtype=np.int64),
            sha256=fixed_texts(of("sha256")),
            split=name,
            fingerprint=self.info.fingerprint,
            members=lambda: self._members(split, name, rows),
        )

    def _members(self, split: str, name: str, rows: npt.NDArray[np.int64]) -> Members:
        """Places of some rows of the manifest in the tars of a split."""
        whole = schema.in_split(self.files.images, split, self.fold)
        return read_members(self.folder, whole, name, self.info).select(whole.index.get_indexer(pd.Index(rows)))

    def loader(
        self,
        split: str = "train",
        *,
        policy: str | Policy | None = None,
        batch_size: int = 64,
        size: int = 224,
        device: str = "cpu",
        sampler: str = "natural",
        seed: int = 0,
        source: Source = "packed",
        threads: int | None = None,
        process: Process | None = None,
    ) -> Loader:
        """Batches for any PyTorch loop, as fast as in `hemafast train`.

        Args:
            split: "train" (shuffled and augmented), or "val" or "test" (in order, without randomness).
            policy: augmentation: "basic" (by default), "seed", "strong", "lineage", "robust" or "none".
            batch_size: images per batch and process.
            size: side of the images in pixels.
            device: "cpu", "cuda", or "auto" for a GPU if there is one.
            sampler: class frequencies: "natural", "balanced", or "mixed:SHARE".
            seed: seed of order and augmentation.
            source: "packed" (memory-mapped squares), "resident" (squares in device memory), "files" or "webdataset".
            threads: threads of the pipeline; by default this process's share of the cores, at most 8 without decoding.
            process: this process's part of each batch; by default that of torch.distributed.

        Returns:
            The loader. It yields (images, labels): uint8 (n, 3, size, size) in channels_last, and int64 (n,).

        Raises:
            HemafastError: an argument is invalid, or the data set lacks what `source` needs.
        """
        choices = {"device": (device, get_args(Device)), "source": (source, get_args(Source))}
        for name, (value, known) in choices.items():
            if value not in known:
                raise HemafastError(f"{name} = {value!r} is unknown.", f"Choose from: {', '.join(known)}.")
        process = process or process_here()
        samples = self.samples(split, size)
        shape = GraphShape(
            device="gpu" if uses_gpu(device) else "cpu",
            source=source,
            packed_size=samples.packed_size,
            image_size=size,
            batch_size=batch_size,
            threads=threads or default_threads(process.world_size, source),
        )
        if split != TRAIN:
            if policy not in (None, "none"):
                raise HemafastError(
                    f"policy = {policy!r}: {WORDS[split]} images are not augmented.", "Leave out the policy."
                )
            return eval_loader(samples, shape=shape, process=process)
        chosen = policy if isinstance(policy, Policy) else named_policy(policy or "basic")
        return train_loader(samples, policy=chosen, seed=seed, shape=shape, sampler=sampler, process=process)

    def counts(self, split: str) -> npt.NDArray[np.int64]:
        """(classes,): images of each class in `split`."""
        labels = self.images(split)["label"].value_counts()
        return np.array([labels.get(name, 0) for name in self.info.classes], dtype=np.int64)


def open_dataset(folder: Path, fold: int | None = None, domains: Sequence[str] | None = None) -> Dataset:
    """Open the data set in `folder`, to validate on `fold` if given, and keep only `domains` if given.

    Raises HemafastError if there is no data set, if it is damaged or has no such fold or domain, or if a domain has no
    training or no validation images.
    """
    files = read_prepared(folder)
    if fold is not None and fold >= (files.info.folds or 0):
        there = f"folds 0 to {files.info.folds - 1}" if files.info.folds else "no folds"
        raise HemafastError(f"{folder} has {there}, and no fold {fold}.", "Prepare it with --folds.")
    dataset = Dataset(folder, files, fold, None if domains is None else tuple(domains))
    _refuse_missing_domains(dataset)
    return dataset


def _refuse_missing_domains(dataset: Dataset) -> None:
    for name in dataset.chosen or ():
        if name not in dataset.info.domains:
            there = ", ".join(dataset.info.domains)
            raise HemafastError(f"{dataset.folder} has no domain {name}.", f"Choose from: {there}.")
        for split in SPLITS:
            if not (dataset.images(split)["domain"] == name).any():
                raise HemafastError(f"No image of {name} is in {split}.", "Prepare the data with another split.")


def choose_pack_size(sizes: Sequence[int], image_size: int) -> int:
    """The smallest packed size whose window is not smaller than the view; the largest if there is none."""
    enough = [size for size in sizes if window_side(size) >= image_size]
    return min(enough) if enough else max(sizes)
