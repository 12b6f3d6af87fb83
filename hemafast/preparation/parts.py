"""Parts of a preparation: each reads a stretch of the rows of the manifest, in any process; a join makes one of them.

What concerns one image is done in its part: bytes, checks, squares, hashes. What needs all images is left to the join:
copies, quarantine of contradictions, split, lists. Scales and ranges come from the same sample of images in each, and
the join refuses parts that found others.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.errors import HemafastError, name_some
from hemafast.files import write_whole
from hemafast.preparation import schema
from hemafast.preparation.pixels import SquareFiles, hash_squares
from hemafast.preparation.plan import Plan
from hemafast.preparation.publish import drop_links, lock_of, log_of, sync
from hemafast.preparation.worklog import read_rows
from hemafast.progress import Progress, stage
from hemafast.reading import read_json_text
from hemafast.words import counted

_MARK = "part.json"
_MOST = 10_000  # parts
_NAMED = 8  # parts that an error lists
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EACCES}


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """One of several parts of a preparation."""

    number: int
    """From 1."""
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def rows(self, images: int) -> range:
        """Its rows of a manifest of `images` images. Any stretch is a fair sample, so parts take equally long."""
        return range((self.number - 1) * images // self.of, self.number * images // self.of)

    def folder(self, target: Path, key: str) -> Path:
        """Where it is read to: beside the data set `target`, for the preparation with this ingest key."""
        return target.with_name(f".{target.name}-part-{self.number}-of-{self.of}-{key}")


class _Mark(schema.Record):
    """Written into the folder of a part when all of it is on the disk."""

    first: int
    images: int
    measured: str
    """sha256 over the scales and ranges that it was read with."""


def parse_part(text: str) -> Part:
    """The part that `--part` names, as in 3/8. Raises HemafastError for anything else."""
    found = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text.strip())
    part = Part(int(found[1]), int(found[2])) if found else Part(0, 0)
    if not 1 <= part.number <= part.of <= _MOST:
        raise HemafastError(
            f"--part {text!r} is no part of a preparation.", f"Write NUMBER/PARTS, as 3/8; at most {_MOST:,} parts."
        )
    return part


def is_read(folder: Path, rows: range, measured: str) -> bool:
    """Whether the part in `folder` is finished, with these rows, scales and ranges."""
    return _mark_of(folder) == _Mark(first=rows.start, images=len(rows), measured=measured)


def mark_read(folder: Path, rows: range, measured: str) -> None:
    """Say that a part is finished, once all its files are on the disk. Raises OSError if the disk is full."""
    sync(folder)
    text = _Mark(first=rows.start, images=len(rows), measured=measured).model_dump_json()
    write_whole(folder / _MARK, lambda file: file.write_text(f"{text}\n", encoding="utf-8"))


def find_parts(target: Path, key: str) -> dict[Part, Path]:
    """The finished parts of one division of a preparation: one for each of its numbers.

    Raises HemafastError that names the missing parts, and says if there are none or those of other settings.
    """
    divisions = _parts_beside(target).get(key, {})
    if not divisions:
        raise _no_part(target)
    finished = {
        of: {number: folder for number, folder in there.items() if _mark_of(folder)} for of, there in divisions.items()
    }
    of = min(finished, key=lambda parts: (parts - len(finished[parts]), parts))
    missing = [str(Part(number, of)) for number in range(1, of + 1) if number not in finished[of]]
    if missing:
        raise HemafastError(
            f"{target} cannot be joined: not read to the end {_are(missing)} {name_some(missing, _NAMED)}.",
            f"Run `hemafast prepare --part {missing[0]}` with the same options, for each of them; then join again.",
        )
    return {Part(number, of): finished[of][number] for number in range(1, of + 1)}


def join_parts(parts: Mapping[Part, Path], plan: Plan, measured: str, folder: Path, progress: Progress) -> pd.DataFrame:
    """Fill `folder` with the images and squares of all parts, which stay as they are.

    Files are linked, or copied where links are impossible. Returns the rows, as `worklog.read_rows`. Raises
    HemafastError for a part that was damaged, or read with other scales or ranges than `measured`.
    """
    log_of(folder).unlink(missing_ok=True)  # of an undivided call that was interrupted
    shutil.rmtree(folder)
    (folder / schema.PACKED).mkdir(parents=True)
    order, tables = plan.order(), []
    with ExitStack() as stack, stage(progress, "joining parts", plan.images):
        whole = [
            stack.enter_context(SquareFiles(folder / schema.PACKED, size, range(plan.images))) for size in plan.sizes
        ]
        for part, place in parts.items():
            rows = part.rows(plan.images)
            if not is_read(place, rows, measured):
                raise _damaged(place, "was read with other scales or bit depths than this machine finds")
            table = _rows_of(place, rows, plan, order)
            _link_images(table, place, folder)
            _copy_squares(table, place, rows, plan.sizes, whole, progress)
            tables.append(table)
    return pd.concat(tables)


def remove_parts(target: Path, key: str) -> None:
    """Delete all parts of a preparation that is published, with their logs and locks."""
    for division in _parts_beside(target).get(key, {}).values():
        for folder in division.values():
            shutil.rmtree(folder, ignore_errors=True)
            log_of(folder).unlink(missing_ok=True)
            lock_of(folder).unlink(missing_ok=True)


def _parts_beside(target: Path) -> dict[str, dict[int, dict[int, Path]]]:
    """Folders of parts by ingest key, number of parts and number."""
    name = re.compile(rf"\.{re.escape(target.name)}-part-([0-9]{{1,5}})-of-([0-9]{{1,5}})-([0-9a-f]{{16}})")
    found: dict[str, dict[int, dict[int, Path]]] = defaultdict(lambda: defaultdict(dict))
    for path in target.parent.iterdir() if target.parent.is_dir() else ():
        if (parts := name.fullmatch(path.name)) and path.is_dir() and not path.is_symlink():
            found[parts[3]][int(parts[2])][int(parts[1])] = path
    return found


def _no_part(target: Path) -> HemafastError:
    beside = [folder for key in _parts_beside(target).values() for of in key.values() for folder in of.values()]
    if not beside:
        return HemafastError(
            f"There is no part of {target}.", "Read them with `hemafast prepare --part 1/8` and so on."
        )
    return HemafastError(
        f"The parts beside {target} ({beside[0].name}) were read from other files or with other settings.",
        "Use the options and the versions that they were read with. Or delete these folders, and read the parts again.",
    )


def _are(names: Sequence[str]) -> str:
    return "is part" if len(names) == 1 else "are parts"


def _mark_of(folder: Path) -> _Mark | None:
    path = folder / _MARK
    with suppress(OSError, ValueError):
        return None if path.is_symlink() else _Mark.model_validate_json(read_json_text(path))
    return None


def _damaged(folder: Path, problem: str) -> HemafastError:
    return HemafastError(f"{folder} {problem}.", "Delete this folder, read the part again, then join.")


def _rows_of(place: Path, rows: range, plan: Plan, order: npt.NDArray[np.int64]) -> pd.DataFrame:
    """The rows of a part, each checked to be that of its image, for its path becomes the name of a file."""
    drop_links(place)
    try:
        table = read_rows(log_of(place))
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise _damaged(place, f"has a log that cannot be read ({error})") from error
    if table.index.tolist() != list(rows):
        raise _damaged(place, f"has a log of {counted(len(table), 'image')}, not of its {len(rows)}")
    names = [plan.members[position].name for position in order[rows.start : rows.stop]]
    for path, verdict, name in zip(table["path"], table["verdict"], names, strict=True):
        room = schema.QUARANTINED_IMAGES if verdict == schema.QUARANTINED else schema.IMAGES
        if path != f"{room}/{name}":
            raise _damaged(place, f"holds {path!r}, not {room}/{name}")
    return table


def _link_images(table: pd.DataFrame, place: Path, folder: Path) -> None:
    for parent in {os.path.dirname(path) for path in table["path"]}:  # noqa: PTH120 - a Path each would be slow
        (folder / parent).mkdir(parents=True, exist_ok=True)
    for path, size in zip(table["path"], table["bytes"], strict=True):
        _link(place / path, folder / path)
        if (folder / path).stat().st_size != size:
            raise _damaged(place, f"has other bytes in {path} than it was left with")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError as error:
        raise _damaged(source, "is missing") from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)


def _copy_squares(
    table: pd.DataFrame,
    place: Path,
    rows: range,
    sizes: Sequence[int],
    whole: Sequence[SquareFiles],
    progress: Progress,
) -> None:
    with ExitStack() as stack:
        try:
            own = [stack.enter_context(SquareFiles(place / schema.PACKED, size, rows, there=True)) for size in sizes]
        except (OSError, ValueError) as error:
            raise _damaged(place, f"lost its squares ({error})") from error
        for row, expected in _hashed(table):
            squares = [file.read(row) for file in own]
            if hash_squares(squares) != expected:
                raise _damaged(place, f"has other pixels in row {row} than it was left with")
            for file, square in zip(whole, squares, strict=True):
                file.write(row, square)
            progress.advance()
        progress.advance(len(table) - sum(1 for _ in _hashed(table)))


def _hashed(table: pd.DataFrame) -> Iterator[tuple[int, str]]:
    """Rows that have squares, and the hash of these."""
    return ((row, found) for row, found in zip(table.index, table["pixels_xxh128"], strict=True) if found)
