"""Write shards as tar files in the WebDataset format, each with an index for DALI's reader, and find images in them.

A sample has two members: `<domain>/<class>/<stem>-<row>.<suffix>` with the original bytes, and the same name with
`.cls` and the number of the class. The first line of the index holds the number of samples. Then follows a line per
sample, with `suffix offset bytes name` for each member (DALI's wds2idx, version v1.2).
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.errors import HemafastError
from hemafast.preparation.schema import IMAGES, PREPARE_AGAIN, WEBDATASET, DatasetInfo, shard_file
from hemafast.preparation.shards import shard_parts, split_names
from hemafast.preparation.sources.sniff import image_format
from hemafast.progress import SILENT, Progress, stage
from hemafast.regular import read_regular

_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "TIFF": "tiff", "BMP": "bmp"}
_INDEX_VERSION = "v1.2"


@dataclass(frozen=True, slots=True)
class Members:
    """Places of the encoded bytes of n images."""

    paths: tuple[str, ...]
    """(n,): tar files, absolute."""
    offsets: npt.NDArray[np.int64]
    """(n,): bytes from the start of the tar."""
    sizes: npt.NDArray[np.int64]
    """(n,): bytes."""

    def place(self, row: int) -> tuple[str, int, int]:
        """Tar, offset and size of one image."""
        return self.paths[row], int(self.offsets[row]), int(self.sizes[row])

    def select(self, rows: npt.NDArray[np.int64]) -> Members:
        """Some of these images, by position."""
        return Members(tuple(self.paths[row] for row in rows), self.offsets[rows], self.sizes[rows])


def read_members(folder: Path, images: pd.DataFrame, split: str, info: DatasetInfo) -> Members:
    """Find `images`, the rows of a split in the manifest, in the tars of a prepared data set.

    Raises HemafastError if there are no tars, or if an index has changed or lists other images. The contents of tars
    are not hashed.
    """
    if not (folder / WEBDATASET).is_dir():
        raise HemafastError(f"{folder} holds no tar files.", "Prepare it with --format webdataset.")
    paths: list[str] = []
    places: list[tuple[int, int]] = []
    rows = zip(images.index, images["path"], images["bytes"], strict=True)
    expected = [(_key(path, row), size) for row, path, size in rows]
    count = info.settings["shards"]
    for index in range(count):
        place = shard_file(split, index, count, folder=WEBDATASET, suffix=".idx")
        tar = folder.absolute() / place.with_suffix(".tar")
        found = _read_index(folder / place, info.files.get(place.as_posix()))
        length = tar.stat().st_size if tar.is_file() else -1
        whole = length >= max((begin + size for _, begin, size in found), default=0)
        if not whole or expected[len(places) :][: len(found)] != [(key, size) for key, _, size in found]:
            raise HemafastError(f"{tar} or its index has changed since it was prepared.", PREPARE_AGAIN)
        paths += [str(tar)] * len(found)
        places += [(begin, size) for _, begin, size in found]
    if len(places) != len(images):
        raise HemafastError(f"The tar files of {split} in {folder} lack images.", PREPARE_AGAIN)
    offsets, sizes = np.array(places, dtype=np.int64).reshape(-1, 2).T
    return Members(tuple(paths), offsets, sizes)


def _read_index(path: Path, sha256: str | None) -> list[tuple[str, int, int]]:
    """Key, offset and size of the image in each sample."""
    try:
        content = read_regular(path)
        head, *lines = content.decode("utf-8").splitlines()
        samples = [line.split(" ") for line in lines]
        found = [(name.removesuffix(f".{suffix}"), int(begin), int(size)) for suffix, begin, size, name, *_ in samples]
    except (OSError, ValueError) as error:
        raise HemafastError(f"{path} cannot be read ({error}).", PREPARE_AGAIN) from error
    if head != f"{_INDEX_VERSION} {len(found)}" or hashlib.sha256(content).hexdigest() != sha256:
        raise HemafastError(f"{path} was cut or changed.", PREPARE_AGAIN)
    return found


def write_webdataset(
    folder: Path,
    manifest: pd.DataFrame,
    classes: Sequence[str],
    *,
    folds: int | None,
    count: int,
    progress: Progress = SILENT,
) -> None:
    """Write a tar and its index for every shard of every split."""
    (folder / WEBDATASET).mkdir(exist_ok=True)
    index_of = {name: index for index, name in enumerate(classes)}
    with stage(progress, "writing tar files", len(split_names(manifest, folds)) * count, unit="files"):
        for split, index, images in shard_parts(manifest, folds, count):
            path = folder / shard_file(split, index, count, folder=WEBDATASET, suffix=".tar")
            lines = list(_write_tar(path, folder, images, index_of))
            text = "\n".join([f"{_INDEX_VERSION} {len(lines)}", *lines]) + "\n"
            path.with_suffix(".idx").write_text(text, encoding="utf-8")
            progress.advance()


def _write_tar(path: Path, folder: Path, images: pd.DataFrame, index_of: dict[str, int]) -> Iterator[str]:
    """Write one tar. Yields the index line of each sample."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for row, image, label in zip(images.index, images["path"], images["label"], strict=True):
            key, data = _key(image, row), (folder / image).read_bytes()
            parts = ((_SUFFIXES[image_format(data)], data), ("cls", str(index_of[label]).encode()))
            yield " ".join(_add(tar, key, extension, data) for extension, data in parts)


def _add(tar: tarfile.TarFile, key: str, extension: str, data: bytes) -> str:
    """Add a member with only name and size in its header. Returns its entry for the index."""
    member = tarfile.TarInfo(f"{key}.{extension}")
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    offset = tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return f"{extension} {offset} {len(data)} {member.name}"


def _key(image: str, row: int) -> str:
    """Name of a sample: `<domain>/<class>/<stem>-<row of the manifest>`, with underscores for dots and spaces.

    Readers take everything after the first dot for the extension, and spaces separate the columns of the index. The
    row keeps names unique.
    """
    name = PurePosixPath(image).relative_to(IMAGES).with_suffix("")
    return f"{name}-{row}".replace(".", "_").replace(" ", "_")
