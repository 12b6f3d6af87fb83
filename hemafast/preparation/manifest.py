"""Read a manifest and refuse one that `prepare` cannot have written, before anything relies on its values.

Its fingerprint guards against damage. Whoever edits it can compute the fingerprint anew, so the values are checked too:
training counts on labels that are classes, on paths inside the data set, and on sizes that windows can be made of.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.errors import HemafastError
from hemafast.preparation import schema
from hemafast.preparation.images.image_checks import MAX_PIXELS
from hemafast.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

MOST_IMAGES = 10_000_000
"""Most rows of a manifest, 300 times as many as the challenge has images."""
_MOST_BYTES_PER_ROW = 2**16
_LONGEST_TEXT = 2**15
_LARGEST_FILE = 2**40
_LARGEST_WINDOW = 10**6
_STEPS_OUT = r"(^|/)\.{0,2}(/|$)|\x00"  # empty parts, `.` and `..`: a path with them may leave the folder
_HEXADECIMAL = {"sha256": 64, "pixels_xxh128": 32, "phash": 64}
_LEVELS = ("mean_red", "mean_green", "mean_blue", "contrast")

Bad = npt.NDArray[np.bool_]


def parse_manifest(content: bytes, file: Path, info: schema.DatasetInfo) -> pd.DataFrame:
    """The manifest in a parquet file, one row per image, with the columns of the schema.

    Args:
        content: the bytes of the file.
        file: its name, for errors.
        info: what dataset.json says of the same data set.

    Raises:
        HemafastError: a column is missing or has another type, a value is impossible, or the counts in `info` differ.
    """
    table = _read_table(content, file, info)
    columns = {name: table[name] for name in table.column_names}
    for name, bad, problem in _faults(columns, info):
        if bad.any():
            row = int(np.argmax(bad))
            value = repr(columns[name][row].as_py())[:200]
            raise HemafastError(f"{file}, column {name}, row {row}: {value} {problem}.", schema.PREPARE_AGAIN)
    manifest: pd.DataFrame = table.to_pandas()
    _refuse_other_counts(manifest, file, info)
    return manifest


def _read_table(content: bytes, file: Path, info: schema.DatasetInfo) -> pa.Table:
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(io.BytesIO(content))
        _refuse_size(opened.metadata, file, info)
        _refuse_types(opened.schema_arrow, file)
        # Without the metadata of pandas, which could turn columns into an index or into other types.
        table = opened.read(columns=list(schema.MANIFEST_COLUMNS)).replace_schema_metadata(None)
        table.validate(full=True)  # parquet's reader takes text that is not UTF-8
        return table
    except HemafastError:
        raise
    except Exception as error:  # a damaged or hostile file can raise anything
        said = " ".join(str(error).split())[:200]
        raise HemafastError(f"{file} cannot be read ({type(error).__name__}: {said}).", schema.PREPARE_AGAIN) from error


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


def _faults(columns: dict[str, pa.ChunkedArray], info: schema.DatasetInfo) -> Iterator[tuple[str, Bad, str]]:
    """For each rule a column, its rows that break the rule, and what is wrong with their values."""
    import pyarrow.compute as pc

    for name, kind in schema.MANIFEST_COLUMNS.items():
        if kind != "float64":
            yield name, columns[name].is_null().to_numpy(), "is no value"
        if kind == "str":
            yield name, _mask(pc.greater(pc.binary_length(columns[name]), _LONGEST_TEXT)), "is too long"
    verdicts = (schema.ACCEPTED, schema.CONVERTED, schema.QUARANTINED)
    yield "verdict", ~_among(columns["verdict"], verdicts), f"is none of {', '.join(verdicts)}"
    taken = ~_among(columns["verdict"], [schema.QUARANTINED])
    yield from _path_faults(columns["path"], taken)
    yield "domain", ~_among(columns["domain"], info.domains), f"is no domain in {schema.INFO}"
    yield "label", taken & ~_among(columns["label"], info.classes), f"is no class in {schema.INFO}"
    yield "split", taken & ~_among(columns["split"], info.counts), f"is no split in {schema.INFO}"
    yield "split", ~taken & ~_among(columns["split"], [""]), "is the split of a quarantined image, which has none"
    yield from _number_faults({name: column.to_numpy() for name, column in columns.items() if _is_number(name)}, taken)
    folds = columns["fold"].to_numpy()
    yield "fold", (folds < -1) | (folds >= (info.folds or 0)), f"is no fold: there are {info.folds or 0}"
    for name, digits in _HEXADECIMAL.items():
        right = _mask(pc.match_substring_regex(columns[name], f"^[0-9a-f]{{{digits}}}$"))
        yield name, taken & ~right, f"is not made of {digits} hexadecimal digits"


def _path_faults(paths: pa.ChunkedArray, taken: Bad) -> Iterator[tuple[str, Bad, str]]:
    import pyarrow.compute as pc

    yield "path", _mask(pc.match_substring_regex(paths, _STEPS_OUT)), "may lie outside the data set"
    for folder, rows in ((schema.IMAGES, taken), (schema.QUARANTINED_IMAGES, ~taken)):
        yield "path", rows & ~_mask(pc.starts_with(paths, f"{folder}/")), f"is not in the folder {folder}"
    yield "path", paths.to_pandas().duplicated().to_numpy(), "is there twice"


def _number_faults(numbers: dict[str, npt.NDArray[Any]], taken: Bad) -> Iterator[tuple[str, Bad, str]]:
    """Sizes are at least 1 of images that are taken; of others they are 0 if unknown."""
    most = {"width": MAX_PIXELS, "height": MAX_PIXELS, "window": _LARGEST_WINDOW, "bytes": _LARGEST_FILE}
    for name, largest in most.items():
        bad = (numbers[name] < taken) | (taken & (numbers[name] > largest))
        yield name, bad, f"is not between 1 and {largest:,}"
    for name in _LEVELS:
        yield name, taken & ~((numbers[name] >= 0) & (numbers[name] <= 255)), "is not between 0 and 255"


def _is_number(name: str) -> bool:
    return schema.MANIFEST_COLUMNS[name] != "str"


def _among(column: pa.ChunkedArray, known: Any) -> Bad:
    import pyarrow as pa
    import pyarrow.compute as pc

    return _mask(pc.is_in(column, pa.array(list(known), column.type)))


def _mask(found: pa.ChunkedArray) -> Bad:
    mask: Bad = found.to_numpy().astype(bool)
    return mask


def _refuse_other_counts(manifest: pd.DataFrame, file: Path, info: schema.DatasetInfo) -> None:
    taken = manifest["verdict"] != schema.QUARANTINED
    there = dict(manifest.loc[taken, ["split", "domain", "label"]].value_counts())
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
