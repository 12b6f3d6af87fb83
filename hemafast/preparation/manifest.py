"""Read a manifest and refuse one that `prepare` cannot have written, before anything relies on its values.

Its fingerprint guards against damage. Whoever edits it can compute the fingerprint anew, so the values are checked too:
training counts on labels that are classes, on paths inside the data set, and on sizes that windows can be made of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.errors import HemafastError
from hemafast.preparation import schema
from hemafast.preparation.images.image_checks import MAX_PIXELS
from hemafast.regular import open_regular
from hemafast.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

MOST_IMAGES = 10_000_000
"""Most rows of a manifest, 300 times as many as the challenge has images."""
_MOST_BYTES_PER_ROW = 2**16
_LONGEST_TEXT = 2**15
_LARGEST = {"width": MAX_PIXELS, "height": MAX_PIXELS, "window": 10**6, "bytes": 2**40}
_COUNTED = ("split", "domain", "label")  # what dataset.json counts images by
_STEPS_OUT = r"(^|/)\.{0,2}(/|$)|\x00"  # empty parts, `.` and `..`: a path with them may leave the folder
_HEXADECIMAL = {"sha256": 64, "pixels_xxh128": 32, "phash": 64}
_LEVELS = ("mean_red", "mean_green", "mean_blue", "contrast")

Bad = npt.NDArray[np.bool_]


def read_columns(file: Path, sha256: str, info: schema.DatasetInfo, names: Sequence[str]) -> pd.DataFrame:
    """Some columns of a manifest, one row per image. All columns are checked, one at a time, so that few are in memory.

    Args:
        file: the manifest.
        sha256: of its content, as dataset.json has it.
        info: what dataset.json says of the same data set.
        names: of the columns.

    Raises:
        HemafastError: the file has changed, a column is missing or has another type, a value is impossible, or the
            counts in `info` differ.
    """
    from pyarrow import parquet

    try:
        with open_regular(file) as content:  # one file for all reads: another may get its name meanwhile
            if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
                raise HemafastError(f"{file} is not the one that {schema.INFO} describes.", schema.PREPARE_AGAIN)
            opened = parquet.ParquetFile(content)
            _refuse_size(opened.metadata, file, info)
            _refuse_types(opened.schema_arrow, file)
            return _checked(opened, file, info, names)
    except HemafastError:
        raise
    except Exception as error:  # a damaged or hostile file can raise anything
        said = " ".join(str(error).split())[:200]
        raise HemafastError(f"{file} cannot be read ({type(error).__name__}: {said}).", schema.PREPARE_AGAIN) from error


def _checked(opened: Any, file: Path, info: schema.DatasetInfo, names: Sequence[str]) -> pd.DataFrame:
    """The columns `names` of an opened manifest, after all columns were checked."""
    import pyarrow as pa

    kept: dict[str, pa.ChunkedArray] = {}
    taken = ~_among(_column(opened, "verdict"), [schema.QUARANTINED])
    for name in schema.MANIFEST_COLUMNS:
        column = _column(opened, name)
        for bad, problem in _faults(name, column, taken, info):
            if bad.any():
                row = int(np.argmax(bad))
                value = repr(column[row].as_py())[:200]
                raise HemafastError(f"{file}, column {name}, row {row}: {value} {problem}.", schema.PREPARE_AGAIN)
        if name in {*names, *_COUNTED}:
            kept[name] = column
    _refuse_other_counts({name: kept[name] for name in _COUNTED}, taken, file, info)
    table: pd.DataFrame = pa.table({name: kept[name] for name in names}).to_pandas(split_blocks=True)
    return table


def _column(opened: Any, name: str) -> pa.ChunkedArray:
    """One column. Without the metadata of pandas, which could turn it into an index or into another type."""
    table = opened.read(columns=[name], use_pandas_metadata=False)
    table.validate(full=True)  # parquet's reader takes text that is not UTF-8
    return table[name]


def _refuse_size(about: Any, file: Path, info: schema.DatasetInfo) -> None:
    expected = sum(domain.images for domain in info.domains.values())
    if about.num_rows != expected:
        problem = f"{file} has {counted(about.num_rows, 'row')}, and {schema.INFO} counts {counted(expected, 'image')}."
        raise HemafastError(problem, schema.PREPARE_AGAIN)
    unpacked = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
    if expected > MOST_IMAGES or unpacked > _MOST_BYTES_PER_ROW * (expected + 1):
        problem = (
            f"{file} unpacks to {counted(expected, 'row')} of {unpacked:,} bytes; the most are {MOST_IMAGES:,} rows."
        )
        raise HemafastError(problem, "Prepare fewer images, or do not trust this data set.")


def _refuse_types(found: pa.Schema, file: Path) -> None:
    import pyarrow as pa

    types = {"str": (pa.string(), pa.large_string()), "int64": (pa.int64(),), "float64": (pa.float64(),)}
    for name, kind in schema.MANIFEST_COLUMNS.items():
        if found.names.count(name) != 1:
            problem = f"{file} has {found.names.count(name)} columns {name}, not one."
            raise HemafastError(problem, schema.PREPARE_AGAIN)
        if found.field(name).type not in types[kind]:
            problem = f"{file}, column {name}: it holds values of type {found.field(name).type}, not {kind}."
            raise HemafastError(problem, schema.PREPARE_AGAIN)


def _faults(name: str, column: pa.ChunkedArray, taken: Bad, info: schema.DatasetInfo) -> Iterator[tuple[Bad, str]]:
    """For each rule of a column, the rows that break it, and what is wrong with their values."""
    import pyarrow.compute as pc

    kind = schema.MANIFEST_COLUMNS[name]
    if kind != "float64":
        yield column.is_null().to_numpy(), "is no value"
    if kind != "str":
        yield from _number_faults(name, column.to_numpy(), taken, info.folds or 0)
        return
    yield _mask(pc.greater(pc.binary_length(column), _LONGEST_TEXT)), "is too long"
    if name in _HEXADECIMAL:
        right = _mask(pc.match_substring_regex(column, f"^[0-9a-f]{{{_HEXADECIMAL[name]}}}$"))
        yield taken & ~right, f"is not made of {_HEXADECIMAL[name]} hexadecimal digits"
    match name:
        case "verdict":
            verdicts = (schema.ACCEPTED, schema.CONVERTED, schema.QUARANTINED)
            yield ~_among(column, verdicts), f"is none of {', '.join(verdicts)}"
        case "path":
            yield from _path_faults(column, taken)
        case "domain":
            yield ~_among(column, info.domains), f"is no domain in {schema.INFO}"
        case "label":
            yield taken & ~_among(column, info.classes), f"is no class in {schema.INFO}"
        case "split":
            yield taken & ~_among(column, info.counts), f"is no split in {schema.INFO}"
            yield ~taken & ~_among(column, [""]), "is the split of a quarantined image, which has none"


def _path_faults(paths: pa.ChunkedArray, taken: Bad) -> Iterator[tuple[Bad, str]]:
    import pyarrow.compute as pc

    yield _mask(pc.match_substring_regex(paths, _STEPS_OUT)), "may lie outside the data set"
    for folder, rows in ((schema.IMAGES, taken), (schema.QUARANTINED_IMAGES, ~taken)):
        yield rows & ~_mask(pc.starts_with(paths, f"{folder}/")), f"is not in the folder {folder}"
    if pc.count_distinct(paths).as_py() < len(paths):
        yield paths.to_pandas().duplicated().to_numpy(), "is there twice"


def _number_faults(name: str, numbers: npt.NDArray[Any], taken: Bad, folds: int) -> Iterator[tuple[Bad, str]]:
    """Sizes are at least 1 of images that are taken; of others they are 0 if unknown."""
    if largest := _LARGEST.get(name):
        yield (numbers < taken) | (taken & (numbers > largest)), f"is not between 1 and {largest:,}"
    if name in _LEVELS:
        yield taken & ~((numbers >= 0) & (numbers <= 255)), "is not between 0 and 255"
    if name == "fold":
        yield (numbers < -1) | (numbers >= folds), f"is no fold: there are {folds}"


def _among(column: pa.ChunkedArray, known: Any) -> Bad:
    import pyarrow as pa
    import pyarrow.compute as pc

    return _mask(pc.is_in(column, pa.array(list(known), column.type)))


def _mask(found: pa.ChunkedArray) -> Bad:
    mask: Bad = found.to_numpy().astype(bool)
    return mask


def _refuse_other_counts(columns: dict[str, pa.ChunkedArray], taken: Bad, file: Path, info: schema.DatasetInfo) -> None:
    import pyarrow as pa

    groups = pa.table(columns).filter(taken).group_by(list(_COUNTED)).aggregate([([], "count_all")]).to_pylist()
    there = {tuple(group[name] for name in _COUNTED): group["count_all"] for group in groups}
    told = {
        (split, domain, label): count
        for split, domains in info.counts.items()
        for domain, labels in domains.items()
        for label, count in labels.items()
        if count
    }
    for key in sorted({*there, *told}):
        if there.get(key, 0) != told.get(key, 0):
            problem = f"{file} has {counted(there.get(key, 0), 'image')} of {' / '.join(key)}; {schema.INFO} counts"
            raise HemafastError(f"{problem} {told.get(key, 0)}.", schema.PREPARE_AGAIN)
