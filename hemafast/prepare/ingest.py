"""Read every image of every archive once: verify, keep the original bytes, decode to packed pixels, describe."""

from __future__ import annotations

import hashlib
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError
from hemafast.prepare import schema
from hemafast.prepare.archive import Archive, Member
from hemafast.prepare.pixels import Pixels, SquareDecoder, SquareFile
from hemafast.prepare.verify import Header, UnreadableImageError, strict_decoders, verify_image

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""

Read = tuple[str, Member, bytes | UnreadableImageError]
"""Domain, member, and its bytes or the reason why there are none."""

# What reading a damaged archive raises, by the way its members are compressed.
_DAMAGED = (OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)

_BATCH = 64  # images in memory at once


def ingest(
    archives: list[Archive], folder: Path, squares: SquareFile, config: PrepareConfig, progress: Progress
) -> pd.DataFrame:
    """Read, verify, decode every image, a batch at a time; store its bytes in `folder`, its pixels in `squares`.

    Returns a row an image (columns of the manifest but for split), in the order of the numbers in `squares`; numbers
    of quarantined images may hold nothing.
    """
    total = sum(len(archive.members) for archive in archives)
    threads = len(os.sched_getaffinity(0))
    decoder = SquareDecoder(config.packed_size, _BATCH, threads)
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(threads) as pool:
        for batch in _batches(chain.from_iterable(_read(archive) for archive in archives)):
            with strict_decoders():
                headers = list(pool.map(_verify, (data for _, _, data in batch)))
            decoded = _decode(decoder, batch, headers)
            for (domain, member, data), header, square in zip(batch, headers, decoded, strict=True):
                row = _row(domain, member, data, header, square)
                if row["verdict"] == schema.REFUSED and config.unreadable == "stop":
                    raise HemafastError(
                        f"{domain}: {member.entry.name} cannot be read: {row['reason']}.",
                        "Repair or remove it, or leave unreadable images out with --unreadable quarantine.",
                    )
                _store(folder / row["path"], data)
                if isinstance(square, np.ndarray):
                    squares.write(len(rows), square)
                rows.append(row)
            progress(len(rows), total)
    return pd.DataFrame(rows)


def _read(archive: Archive) -> Iterator[Read]:
    with archive.reader() as read:
        for member in archive.members:
            try:
                yield archive.domain, member, read(member)
            except _DAMAGED as error:
                yield archive.domain, member, UnreadableImageError(str(error))


def _batches(images: Iterator[Read]) -> Iterator[list[Read]]:
    while batch := list(islice(images, _BATCH)):
        yield batch


def _verify(data: bytes | UnreadableImageError) -> Header | UnreadableImageError:
    if isinstance(data, UnreadableImageError):
        return data
    try:
        return verify_image(data)
    except UnreadableImageError as error:
        return error


def _decode(
    decoder: SquareDecoder, batch: Sequence[Read], headers: Sequence[Header | UnreadableImageError]
) -> list[Pixels | UnreadableImageError]:
    """Pixels of each image of the batch; an image that failed verification keeps its error and is not decoded."""
    sound = [
        data
        for (_, _, data), header in zip(batch, headers, strict=True)
        if isinstance(data, bytes) and isinstance(header, Header)
    ]
    decoded = iter(decoder.decode(sound))
    return [next(decoded) if isinstance(header, Header) else header for header in headers]


def _row(
    domain: str,
    member: Member,
    data: bytes | UnreadableImageError,
    header: Header | UnreadableImageError,
    square: Pixels | UnreadableImageError,
) -> dict[str, Any]:
    """One row of the manifest, but for the split."""
    known = header if isinstance(header, Header) else Header(0, 0, "", "")
    content = data if isinstance(data, bytes) else b""
    sha256 = hashlib.sha256(content).hexdigest()
    failure = str(square) if isinstance(square, UnreadableImageError) else ""
    # Rows first: numpy adds whole rows at once, and one channel after the other over ten times slower.
    red, green, blue = (np.nan,) * 3 if isinstance(square, UnreadableImageError) else square.mean(axis=0).mean(axis=0)
    room = schema.QUARANTINED if failure else schema.IMAGES
    return {
        "path": f"{room}/{domain}/{member.label}/{member.file}",
        "label": member.label,
        "domain": domain,
        "width": known.width,
        "height": known.height,
        "mode": known.mode,
        "bytes": len(content),
        "sha256": sha256,
        # An image that was not read whole is like no other, whatever is left of its bytes.
        "group": sha256[:16] if not failure else f"unreadable:{domain}/{member.label}/{member.file}",
        "verdict": schema.REFUSED if failure else schema.ACCEPTED,
        "reason": failure,
        "mean_red": red,
        "mean_green": green,
        "mean_blue": blue,
    }


def _store(path: Path, data: bytes | UnreadableImageError) -> None:
    """Keep the original bytes; there are none if the archive could not give them."""
    if isinstance(data, bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
