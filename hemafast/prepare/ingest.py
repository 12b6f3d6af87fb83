"""Read every image of every archive once: verify, keep the original bytes, decode to packed pixels, describe."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from hemafast.prepare import schema
from hemafast.prepare.archive import Member
from hemafast.prepare.duplicates import HASHED_SIZE, perceptual_hash, thumbnail, to_hex
from hemafast.prepare.pixels import Decoded, SquareDecoder, SquareFiles, centre_windows, runs_within
from hemafast.prepare.plan import Plan
from hemafast.prepare.verify import (
    POLICIES,
    Header,
    Pixels,
    UnreadableImageError,
    decode_reference,
    strict_decoders,
    verify_image,
)
from hemafast.prepare.worklog import Row, WorkLog, hash_squares

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""

Item = TypeVar("Item")

_BATCH = 64  # images in memory at once, ...
_AHEAD = 2  # batches that wait at most between two stations
_BATCH_BYTES = 64 * 2**20  # ... and fewer where they are large
_TOLERANCE = 1  # largest difference between DALI's pixels and the reference, of 255: rounding, and no more
_UNKNOWN = Header(0, 0, "", "")


@dataclass(slots=True)
class _Image:
    """One image on its way through the stations."""

    row: int
    domain: str
    member: Member
    data: bytes = b""
    sha256: str = ""
    header: Header = _UNKNOWN
    side: int = 0
    error: UnreadableImageError | None = None
    decoded: Decoded | None = None
    thumbnail: Pixels | None = None
    pixels_xxh128: str = ""

    @property
    def name(self) -> str:
        return f"{self.domain}/{self.member.label}/{self.member.file}"


def ingest(plan: Plan, sums: Mapping[str, str], folder: Path, *, workers: int, progress: Progress) -> pd.DataFrame:
    """Read, verify, decode every image, a batch at a time; store its bytes and its packed pixels in `folder`.

    `sums` holds the sha256 that an image must have, by its name; images that are not there may have any. Returns a row
    an image (columns of the manifest but for split, fold and groups) in the order of the manifest. What an earlier call
    has left in `folder` is used if it is sound.

    Raises HemafastError if an archive is damaged, OSError if the disk is full.
    """
    rows = plan.rows()
    (folder / schema.PACKED).mkdir(exist_ok=True)
    with ExitStack() as stack:
        squares = [stack.enter_context(SquareFiles(folder / schema.PACKED, size, plan.images)) for size in plan.sizes]
        log = stack.enter_context(WorkLog(folder))
        pool = stack.enter_context(_Pool(workers))
        disk, *stations = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3))
        done = log.sound_rows(squares, pool)
        progress(len(done), plan.images)
        stack.enter_context(strict_decoders())
        verified = _made_ahead(_verified(_read(plan, rows, frozenset(done)), plan, sums, pool), stations[0])
        decoder = SquareDecoder(plan.sizes, _BATCH, workers)
        decoded = _made_ahead(_decoded(verified, decoder), stations[1])
        written_back = disk.submit(_write_back, squares)
        for batch in decoded:
            pool.each(_judge_pixels, batch)
            _keep_squares(batch, squares)
            pool.each(lambda image: _keep_bytes(image, folder), batch)
            fresh = dict(_describe(batch))
            log.append(fresh.items())
            done |= fresh
            if written_back.done():
                written_back.result()
                written_back = disk.submit(_write_back, squares)
            progress(len(done), plan.images)
        written_back.result()
    return pd.DataFrame([done[row] for row in range(plan.images)])


def _verified(images: Iterator[_Image], plan: Plan, sums: Mapping[str, str], pool: _Pool) -> Iterator[list[_Image]]:
    """Batches of images, hashed and verified."""
    for batch in _batches(images):
        pool.each(lambda image: _verify(image, plan, sums), batch)
        yield batch


def _read(plan: Plan, rows: Mapping[str, int], done: frozenset[int]) -> Iterator[_Image]:
    for archive in plan.archives:
        with archive.reader() as read:
            for member in archive.members:
                image = _Image(rows[f"{archive.domain}/{member.label}/{member.file}"], archive.domain, member)
                if image.row in done:
                    continue
                image.data = read(member)
                yield image


def _batches(images: Iterator[_Image]) -> Iterator[list[_Image]]:
    batch: list[_Image] = []
    for image in images:
        batch.append(image)
        if len(batch) == _BATCH or sum(len(waiting.data) for waiting in batch) >= _BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


class _Pool(ThreadPoolExecutor):
    """Threads that share a batch evenly: one task a thread, for a task an image costs more than some of the work."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._workers = workers

    def each(self, work: Callable[[Item], None], items: Sequence[Item]) -> None:
        """Do `work` on every item. Raises what it raises."""

        def work_on(share: Sequence[Item]) -> None:
            for item in share:
                work(item)

        list(self.map(work_on, [items[start :: self._workers] for start in range(self._workers)]))


def _write_back(squares: Sequence[SquareFiles]) -> None:
    """Have the disk take pixels while others are decoded, so that publishing need not wait for all of them."""
    for file in squares:
        file.sync()


def _made_ahead(items: Iterator[Item], station: Executor) -> Iterator[Item]:
    """The same items, some of them made while the one before them is worked on; the first ones at once.

    `station` has one thread.
    """
    end = object()
    waiting = deque(station.submit(next, items, end) for _ in range(_AHEAD))

    def take() -> Iterator[Item]:
        while (item := waiting.popleft().result()) is not end:
            waiting.append(station.submit(next, items, end))
            yield item  # type: ignore[misc]

    return take()


def _verify(image: _Image, plan: Plan, sums: Mapping[str, str]) -> None:
    image.sha256 = hashlib.sha256(image.data).hexdigest()
    try:
        if sums.get(image.name, image.sha256) != image.sha256:
            raise UnreadableImageError("checksum", f"its sha256 is {image.sha256}, not {sums[image.name]}")
        image.header = header = verify_image(image.data, image.member.file)
        shorter = min(header.width, header.height)
        window = plan.windows.get(image.domain, shorter)
        image.side = min(window, shorter)
        if image.side < window and plan.windows_required:
            raise UnreadableImageError(
                "field of view", f"{header.width} x {header.height} px, less than the {window} px to be kept"
            )
    except UnreadableImageError as error:
        image.error = error


def _decoded(batches: Iterator[list[_Image]], decoder: SquareDecoder) -> Iterator[list[_Image]]:
    """The same images decoded, in batches that fit the memory; what cannot be decoded apart from the others."""
    for batch in batches:
        sound = [image for image in batch if image.error is None]
        if len(sound) < len(batch):
            yield [image for image in batch if image.error is not None]
        for run in runs_within([image.header.width * image.header.height for image in sound]):
            images = sound[run]
            windows = centre_windows(
                [image.header.width for image in images],
                [image.header.height for image in images],
                [image.side for image in images],
            )
            results = decoder.decode([image.data for image in images], windows)
            for image, result in zip(images, results, strict=True):
                if isinstance(result, UnreadableImageError):
                    image.error = result
                else:
                    image.decoded = result
            yield images


def _judge_pixels(image: _Image) -> None:
    """Compare and hash what was decoded."""
    if image.decoded is None:
        return
    header = image.header
    if image.decoded.full.shape != (header.height, header.width, 3):
        image.error = UnreadableImageError("decoders disagree", f"DALI reads an image of {image.decoded.full.shape}")
        return
    if header.compared:
        reference = header.reference
        difference = _difference(decode_reference(image.data) if reference is None else reference, image.decoded.full)
        if difference > _TOLERANCE:
            image.error = UnreadableImageError("decoders disagree", f"they differ by up to {difference} of 255")
            return
    image.pixels_xxh128 = hash_squares(image.decoded.squares)
    image.thumbnail = thumbnail(min(image.decoded.squares, key=lambda square: abs(len(square) - HASHED_SIZE)))


def _keep_squares(batch: Sequence[_Image], squares: Sequence[SquareFiles]) -> None:
    """Write the squares of images that passed; in one thread, for two would wait for each other, busily."""
    for image in batch:
        if image.error is None and image.decoded is not None:
            for file, square in zip(squares, image.decoded.squares, strict=True):
                file.write(image.row, square)
        image.decoded = None


def _difference(reference: Pixels, pixels: Pixels) -> int:
    """The largest absolute difference of two images of one shape."""
    if np.array_equal(reference, pixels):
        return 0
    return int(np.abs(reference.astype(np.int16) - pixels).max())


def _keep_bytes(image: _Image, folder: Path) -> None:
    """Keep the original bytes."""
    path = f"{folder}/{_path(image)}"  # no Path: it would cost as much as writing does
    try:
        _write(path, image.data)
    except FileNotFoundError:  # the first image of its class
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _write(path, image.data)


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:  # noqa: PTH123 - see above
        file.write(data)


def _path(image: _Image) -> str:
    return f"{schema.QUARANTINED if image.error else schema.IMAGES}/{image.name}"


def _describe(batch: Sequence[_Image]) -> Iterator[tuple[int, Row]]:
    """The rows of the manifest, by number."""
    thumbnails = [image.thumbnail for image in batch if image.thumbnail is not None]
    hashes = iter(to_hex(perceptual_hash(np.stack(thumbnails))) if thumbnails else [])
    for image in batch:
        yield image.row, _row(image, next(hashes) if image.thumbnail is not None else "")


def _row(image: _Image, phash: str) -> Row:
    header = image.header
    means = [None] * 3 if image.thumbnail is None else image.thumbnail.reshape(-1, 3).mean(axis=0).tolist()
    kinds = (image.error.kind,) if image.error else header.kinds
    return {
        "path": _path(image),
        "label": image.member.label,
        "domain": image.domain,
        "width": header.width,
        "height": header.height,
        "window": image.side,
        "mode": header.mode,
        "format": header.format,
        "bytes": len(image.data),
        "sha256": image.sha256,
        "pixels_xxh128": image.pixels_xxh128,
        "phash": phash,
        "verdict": schema.REFUSED if image.error else schema.CONVERTED if kinds else schema.ACCEPTED,
        "kind": "+".join(kinds),
        "reason": str(image.error) if image.error else "; ".join(POLICIES[kind].meaning for kind in kinds),
        **dict(zip(("mean_red", "mean_green", "mean_blue"), means, strict=True)),
    }
