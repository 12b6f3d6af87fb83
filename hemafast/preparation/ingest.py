"""Read every image of every archive once: check it, keep its bytes, decode it to packed pixels, describe it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from hemafast.preparation import schema
from hemafast.preparation.appearance import contrast_of
from hemafast.preparation.dali_apart import DaliApart, dali_apart
from hemafast.preparation.dali_reader import BATCH, Reading
from hemafast.preparation.duplicates import HASHED_SIZE, perceptual_hash, thumbnail, to_hex
from hemafast.preparation.images.depth import Range
from hemafast.preparation.images.image_checks import Header, Pixels, pixels_of, strict_decoders, verify_image
from hemafast.preparation.images.kinds import CONVERTED_KINDS, UnreadableImageError
from hemafast.preparation.pixels import SquareCutter, SquareFiles, centre_windows, hash_squares, runs_within, shown_side
from hemafast.preparation.plan import Plan
from hemafast.preparation.publish import log_of
from hemafast.preparation.ranges import place_of
from hemafast.preparation.sources.containers import reader_of
from hemafast.preparation.sources.gather import Member
from hemafast.preparation.threads import Pool, batches, made_ahead
from hemafast.preparation.worklog import Row, append_rows, sound_rows
from hemafast.progress import SILENT, Progress

_UNKNOWN = Header(0, 0, "", "")


@dataclass(slots=True)
class _Image:
    """One image on its way through the stations."""

    row: int
    member: Member
    data: bytes = b""
    sha256: str = ""
    header: Header = _UNKNOWN
    side: int = 0
    error: UnreadableImageError | None = None
    by_dali: Reading | None = None
    """What DALI makes of the bytes that are kept."""
    pixels: Pixels | None = None
    squares: tuple[Pixels, ...] = ()
    """uint8 (size, size, 3) for each packed size."""
    thumbnail: Pixels | None = None
    pixels_xxh128: str = ""

    @property
    def path(self) -> str:
        """Where its bytes are kept, relative to the data set."""
        return f"{schema.QUARANTINED_IMAGES if self.error else schema.IMAGES}/{self.member.name}"


def ingest(
    plan: Plan,
    sums: Mapping[str, str],
    ranges: Mapping[str, Mapping[str, Range]],
    folder: Path,
    rows: range,
    *,
    workers: int,
    progress: Progress = SILENT,
) -> None:
    """Read, verify and decode the images of some rows in batches. Store their bytes and packed pixels in `folder`.

    `sums` holds the sha256 of images, by name; images that are not in it may have any. `ranges` says by domain what
    values of more than 8 bits become. Sound results of an interrupted call are reused.

    What is known of each image goes into the log of `folder`, for `worklog.read_rows`. Raises HemafastError if an
    archive is damaged, OSError if the disk is full.
    """
    order = plan.order()
    (folder / schema.PACKED).mkdir(exist_ok=True)
    with ExitStack() as stack:
        squares = [stack.enter_context(SquareFiles(folder / schema.PACKED, size, rows)) for size in plan.sizes]
        pool = stack.enter_context(Pool(workers))
        disk, *stations = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(4))
        done = sound_rows(folder, squares, pool, progress)
        log = stack.enter_context(log_of(folder).open("a", encoding="utf-8"))
        wanted = [(row, plan.members[order[row]]) for row in rows if row not in done]
        progress.start("reading images", len(rows), done=len(done))
        stack.callback(progress.finish)
        stack.enter_context(strict_decoders())
        verified = made_ahead(_verified(_read(wanted), plan, sums, ranges, pool), stations[0])
        compared = made_ahead(_read_by_dali(verified, dali_apart(workers)), stations[1])
        decoded = made_ahead(_decoded(compared, SquareCutter(plan.sizes, BATCH, workers), pool), stations[2])
        written_back = disk.submit(_write_back, squares)
        for batch in decoded:
            pool.each(_describe_squares, batch)
            _keep_squares(batch, squares)
            pool.each(lambda image: _keep_bytes(image, folder), batch)
            append_rows(log, _describe(batch))
            if written_back.done():
                written_back.result()
                written_back = disk.submit(_write_back, squares)
            progress.advance(len(batch))
        written_back.result()


def _read(wanted: Sequence[tuple[int, Member]]) -> Iterator[_Image]:
    """The images of some rows, in the order in which their archives hold them."""
    stored = sorted(wanted, key=lambda one: place_of(one[1]))
    for container, images in groupby(stored, key=lambda one: one[1].entry.container):
        with reader_of(container) as read:
            for row, member in images:
                yield _Image(row, member, read(member.entry))


def _verified(
    images: Iterator[_Image],
    plan: Plan,
    sums: Mapping[str, str],
    ranges: Mapping[str, Mapping[str, Range]],
    pool: Pool,
) -> Iterator[list[_Image]]:
    """Batches of images, hashed and verified."""
    for batch in batches(images, BATCH, lambda image: len(image.data)):
        pool.each(lambda image: _verify(image, plan, sums, ranges[image.member.domain]), batch)
        yield batch


def _verify(image: _Image, plan: Plan, sums: Mapping[str, str], ranges: Mapping[str, Range]) -> None:
    """Check the bytes; `data` and `sha256` become those that are kept."""
    image.sha256 = hashlib.sha256(image.data).hexdigest()
    try:
        expected = sums.get(image.member.name, image.sha256)
        if image.sha256 != expected:
            raise UnreadableImageError("checksum", f"its sha256 is {image.sha256}, not {expected}")
        image.header, kept = verify_image(image.data, image.member.file, ranges, plan.settings["min_side"])
        header = image.header
        if kept is not image.data:
            image.data, image.sha256 = kept, hashlib.sha256(kept).hexdigest()
        shorter = min(header.width, header.height)
        window = plan.window(image.member.domain, shorter)
        if window > shorter and plan.windows_required:
            raise UnreadableImageError(
                "field of view", f"{header.width} x {header.height} px, smaller than the field of view of {window} px"
            )
        image.side = int(shown_side(window, shorter))
    except UnreadableImageError as error:
        image.error = error


def _read_by_dali(batches: Iterator[list[_Image]], apart: DaliApart) -> Iterator[list[_Image]]:
    """The same batches, with what DALI makes of the bytes that are kept: training from files will read them by it."""
    for batch in batches:
        sound = [image for image in batch if image.error is None]
        for image, reading in zip(sound, apart.read([image.data for image in sound]), strict=True):
            image.by_dali = reading
        yield batch


def _decoded(batches: Iterator[list[_Image]], cutter: SquareCutter, pool: Pool) -> Iterator[list[_Image]]:
    """The same images with their squares, in batches that fit the memory."""
    for batch in batches:
        for run in runs_within([image.header.width * image.header.height for image in batch]):
            pool.each(_decode, batch[run])
            _cut(batch[run], cutter)
            yield batch[run]


def _cut(batch: Sequence[_Image], cutter: SquareCutter) -> None:
    """Give each sound image its squares."""
    sound = [(image, image.pixels) for image in batch if image.pixels is not None]
    sizes = np.array([(image.header.width, image.header.height, image.side) for image, _ in sound])
    squares = cutter.cut([pixels for _, pixels in sound], centre_windows(*sizes.reshape(-1, 3).T))
    for (image, _), own in zip(sound, squares, strict=True):
        image.squares, image.pixels = own, None


def _decode(image: _Image) -> None:
    """Give it its pixels, or the reason for its quarantine."""
    if image.error is None:
        try:
            pixels = pixels_of(image.header, image.data)
            _refuse_disagreement(image.by_dali, pixels)
            image.pixels = pixels
        except UnreadableImageError as error:
            image.error = error


def _refuse_disagreement(by_dali: Reading | None, pixels: Pixels) -> None:
    if by_dali is None:
        raise UnreadableImageError("decoders disagree", "DALI cannot decode it")
    if by_dali.shape[:2] != pixels.shape[:2]:
        height, width = by_dali.shape[:2]
        raise UnreadableImageError("decoders disagree", f"DALI reads an image of {width} x {height} px")
    if by_dali.pixels_xxh128 and by_dali.pixels_xxh128 != hash_squares([np.ascontiguousarray(pixels)]):
        raise UnreadableImageError("decoders disagree", "DALI reads other pixels")


def _describe_squares(image: _Image) -> None:
    if image.squares:
        image.pixels_xxh128 = hash_squares(image.squares)
        image.thumbnail = thumbnail(min(image.squares, key=lambda square: abs(len(square) - HASHED_SIZE)))


def _keep_squares(batch: Sequence[_Image], squares: Sequence[SquareFiles]) -> None:
    """Write the squares of sound images, in one thread: several would wait for each other."""
    for image in batch:
        for file, square in zip(squares, image.squares, strict=False):  # an image to quarantine has none
            file.write(image.row, square)
        image.squares = ()


def _keep_bytes(image: _Image, folder: Path) -> None:
    path = f"{folder}/{image.path}"  # not a Path, which would cost as much as writing does
    try:
        file = open(path, "wb")  # noqa: PTH123, SIM115 - see above; closed below
    except FileNotFoundError:  # the first image of its class
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = Path(path).open("wb")  # noqa: SIM115
    with file:
        file.write(image.data)


def _write_back(squares: Sequence[SquareFiles]) -> None:
    """Have the disk take pixels while others are decoded, so that publishing need not wait for all of them."""
    for file in squares:
        file.sync()


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
        "path": image.path,
        "label": image.member.label,
        "domain": image.member.domain,
        "source": image.member.source,
        "ready_split": image.member.split,
        "listed_group": image.member.group,
        "width": header.width,
        "height": header.height,
        "window": image.side,
        "mode": header.mode,
        "format": header.format,
        "bytes": len(image.data),
        "sha256": image.sha256,
        "pixels_xxh128": image.pixels_xxh128,
        "phash": phash,
        "verdict": schema.QUARANTINED if image.error else schema.CONVERTED if kinds else schema.ACCEPTED,
        "kind": "+".join(kinds),
        "reason": str(image.error) if image.error else "; ".join(CONVERTED_KINDS[kind] for kind in kinds),
        **dict(zip(("mean_red", "mean_green", "mean_blue"), means, strict=True)),
        "contrast": None if image.thumbnail is None else contrast_of(image.thumbnail),
    }
