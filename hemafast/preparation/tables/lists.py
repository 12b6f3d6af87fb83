"""Read the lists that a user provides beside the images: labels, splits, patients, classes, checksums."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from hemafast.errors import HemafastError, name_some
from hemafast.preparation.sources.names import fold
from hemafast.preparation.tables import columns as roles
from hemafast.preparation.tables.columns import DOMAIN, GROUP, LABEL, PATH, SPLIT, SPLIT_WORDS, UM_PER_PIXEL
from hemafast.preparation.tables.matching import Images, Resolved, resolve
from hemafast.preparation.tables.read import number_of, read_rows, read_table, text_of, whole
from hemafast.regular import open_regular
from hemafast.words import counted

_SHA256_DIGITS = 64
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_FROM_TO = ("from", "to")
_HEADERS = {"from", "to", "old", "new", "code", "number", "id", "label", "class", "name", "classname", "celltype"}
"""Folded names that the two columns of a class map may have."""
_SMALLEST_SCALE, _LARGEST_SCALE = 0.001, 100.0  # um/px, as PrepareConfig bounds them
_NO_SPLIT = " If the column says something else: --columns split="
_NAMED = 3  # lines that a note lists

__all__ = [
    "Labels", "read_checksums", "read_class_map", "read_corrections", "read_labels", "resolve", "resolve_split",
    "resolve_values",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Labels:
    """What a table of labels says. Images without a label are in none of the mappings."""

    label: dict[str, str]
    """By the key of the image, as in the table: a number stays one."""
    split: dict[str, str]
    """train, val or test; images without a split are left out."""
    group: dict[str, str]
    """Patient or slide; images without one are left out."""
    domain: dict[str, str]
    """Images without a domain are left out."""
    um_per_pixel: dict[str, float]
    """By domain: the one in the table, or else the first part of the key."""
    columns: dict[str, str]
    """The column of each role."""
    fit: Resolved[_Row]
    """How the table and the images fit together."""
    said: tuple[str, ...]
    """The columns that were read, and lines without a label, in sentences."""

    def notes(self, ignored: Collection[str] = ()) -> tuple[str, ...]:
        """What was read, and what is missing, unlisted (but for `ignored`) or listed twice, in sentences."""
        unlisted = tuple(key for key in self.fit.unlisted if key not in ignored)
        return (*self.said, *replace(self.fit, unlisted=unlisted).notes())


class _Row(NamedTuple):
    """What a table says of one image."""

    label: str
    split: str
    group: str
    domain: str
    um_per_pixel: str

    def __str__(self) -> str:
        return ", ".join(value for value in self if value)


def read_labels(file: Path, columns: Mapping[str, str], images: Images) -> Labels:
    """Read a table of labels.

    Args:
        file: csv, tsv, xlsx or parquet; see `tables.read_table`.
        columns: names of columns by role, where the user gives them; see `columns.find_columns`.
        images: the paths that each image is known by, by its key.

    Returns:
        Label, split, group, domain and scale of the images.

    Raises:
        HemafastError: the table cannot be read, contradicts itself, or lists none of the images.
    """
    table = roles.with_one_label(read_table(file), columns)
    chosen = roles.find_columns(file, table, needed=(PATH, LABEL), columns=columns)
    _refuse_blank(file, table, chosen[PATH])
    if table.empty:
        raise HemafastError(f"{file} has one line only: {', '.join(table.columns)}.", "Add a line for each image.")
    labelled = table[table[chosen[LABEL]] != ""]
    if labelled.empty:
        remedy = "Fill it in. Formulas are empty until Excel or LibreOffice has calculated and saved them."
        raise HemafastError(
            f"{file}: the column {chosen[LABEL]} is empty in all of its {counted(len(table), 'line')}.", remedy
        )
    found = resolve(file, zip(labelled[chosen[PATH]].map(whole), _rows(labelled, chosen), strict=True), images)
    _refuse_nothing(found, images)
    blank = table.loc[table[chosen[LABEL]] == "", chosen[PATH]].tolist()
    rows = found.values
    return Labels(
        label={key: row.label for key, row in rows.items()},
        split={key: _split_of(file, key, row.split, _NO_SPLIT) for key, row in rows.items() if row.split},
        group={key: row.group for key, row in rows.items() if row.group},
        domain={key: row.domain for key, row in rows.items() if row.domain},
        um_per_pixel=_scales(file, rows),
        columns=chosen,
        fit=found,
        said=(_said(file, chosen), *_unused_note(file, labelled, chosen), *_blank_note(file, blank)),
    )


def read_class_map(given: Path | Mapping[str, str]) -> dict[str, str]:
    """New names of classes by their old ones; "" leaves a class out.

    `given` is a mapping, or a table with the columns from and to, or with two columns.

    Raises:
        HemafastError: the table cannot be read, has other columns, or gives a class two names.
    """
    pairs = list(given.items()) if isinstance(given, Mapping) else _pairs_of(given)
    meant: dict[str, str] = {}
    for old, new in pairs:
        if not old:
            raise HemafastError(f"{_origin(given)}: a class without a name becomes {new}.", "Name the class.")
        if (other := meant.setdefault(fold(old), new)) != new:
            raise HemafastError(f"{_origin(given)}: {old} becomes both {other} and {new}.", "Remove one of them.")
    return dict(pairs)


def resolve_split(files: Sequence[Path], names: Images | Iterable[str]) -> Resolved[str]:
    """The split of each image, from tables with a column for it, or with one file for each split, named after it.

    Args:
        files: tables with a path, such as `split.csv` of a prepared data set, or `x_train.csv` and `x_test.csv`.
        names: names of the images, or the paths that each image is known by, by its key.

    Returns:
        train, val or test by key, and what is listed or there alone.

    Raises:
        HemafastError: a file cannot be read or names no split, an image is in two, or no image is listed.
    """
    pairs = [pair for file in files for pair in _split_pairs(file)]
    found = resolve(files[0] if len(files) == 1 else " and ".join(file.name for file in files), pairs, names)
    _refuse_nothing(found, names)
    return found


def resolve_values(file: Path, role: str, names: Images | Iterable[str]) -> Resolved[str]:
    """The value of a role, such as group, of each image that `file` lists.

    Raises HemafastError if the table cannot be read, has an empty path or value, or lists none of the images.
    """
    table = read_table(file)
    chosen = roles.find_columns(file, table, needed=(PATH, role))
    for name in (chosen[PATH], chosen[role]):
        _refuse_blank(file, table, name)
    found = resolve(file, _pairs(table, chosen[PATH], chosen[role]), names)
    _refuse_nothing(found, names)
    return found


def read_corrections(file: Path, names: Iterable[str]) -> Resolved[str]:
    """The new label of each image that a table of path and label corrects; a line without a label corrects nothing.

    Raises HemafastError if the table cannot be read, or gives an image two labels.
    """
    table = read_table(file)
    chosen = roles.find_columns(file, table, needed=(PATH, LABEL))
    _refuse_blank(file, table, chosen[PATH])
    return resolve(file, _pairs(table[table[chosen[LABEL]] != ""], chosen[PATH], chosen[LABEL]), names)


def read_checksums(file: Path) -> dict[str, str]:
    """sha256 in lower case by name, from the output of sha256sum.

    Raises HemafastError for a line that is not `<64 hexadecimal digits> <space or *><name>`, or a name with two sums.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(text_of(file).split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        digits, _, name = line.partition(" ")
        name = name.lstrip(" *").strip()
        if len(digits) != _SHA256_DIGITS or set(digits.lower()) - set("0123456789abcdef") or not name:
            raise HemafastError(f"{file}, line {number} is not `sha256  name`.", "Write it with `sha256sum FILES`.")
        if sums.setdefault(name, digits.lower()) != digits.lower():
            raise HemafastError(f"{file}, line {number}: a second checksum for {name}.", "Remove one of the two.")
    if not sums:
        raise HemafastError(f"{file} holds no checksums.", "Write it with `sha256sum FILES`.")
    return sums


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hexadecimal digits. Raises OSError if it cannot be read."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rows(table: pd.DataFrame, chosen: Mapping[str, str]) -> list[_Row]:
    empty = pd.Series("", index=table.index, dtype=str)
    values = [table[chosen[role]].map(whole) if role in chosen else empty for role in (LABEL, SPLIT, GROUP, DOMAIN)]
    scales = table[chosen[UM_PER_PIXEL]] if UM_PER_PIXEL in chosen else empty
    return [_Row(*row) for row in zip(*values, scales, strict=True)]


def _scales(file: Path, rows: Mapping[str, _Row]) -> dict[str, float]:
    """Micrometres per pixel by domain."""
    scales: dict[str, float] = {}
    for key, row in rows.items():
        if not row.um_per_pixel:
            continue
        domain, scale = row.domain or key.partition("/")[0], _scale_of(file, key, row.um_per_pixel)
        if scales.setdefault(domain, scale) != scale:
            raise HemafastError(
                f"{file}: {domain} has images of {scales[domain]:g} and of {scale:g} um/px.",
                "Give images of each scale a domain of their own, in a column named domain.",
            )
    return scales


def _scale_of(file: Path, key: str, text: str) -> float:
    try:
        if _SMALLEST_SCALE <= (scale := number_of(text)) <= _LARGEST_SCALE:
            return scale
    except ValueError:
        pass
    raise HemafastError(
        f"{file}: {key} has {text!r} um/px.", f"Write a number from {_SMALLEST_SCALE} to {_LARGEST_SCALE:g}."
    )


def _split_of(file: Path, key: str, text: str, way_out: str = "") -> str:
    if (split := SPLIT_WORDS.get(text.casefold())) is None:
        raise HemafastError(f"{file}: {key} has the split {text!r}.", f"A split is train, val or test.{way_out}")
    return split


def _split_pairs(file: Path) -> list[tuple[str, str]]:
    table = read_table(file)
    chosen = roles.find_columns(file, table, needed=(PATH,))
    _refuse_blank(file, table, chosen[PATH])
    if SPLIT not in chosen:
        split = _split_in_name(file)
        return [(whole(path), split) for path in table[chosen[PATH]]]
    _refuse_blank(file, table, chosen[SPLIT])
    return [(path, _split_of(file, path, split)) for path, split in _pairs(table, chosen[PATH], chosen[SPLIT])]


def _split_in_name(file: Path) -> str:
    found = {SPLIT_WORDS[word.lower()] for word in _WORD.findall(file.stem) if word.lower() in SPLIT_WORDS}
    if len(found) != 1:
        raise HemafastError(
            f"{file} has no column split, and its name does not say which split it lists.",
            "Add a column split with train, val or test, or name the file as images_train.csv.",
        )
    return found.pop()


def _pairs(table: pd.DataFrame, path: str, value: str) -> list[tuple[str, str]]:
    return list(zip(table[path].map(whole), table[value].map(whole), strict=True))


def _pairs_of(file: Path) -> list[tuple[str, str]]:
    """The two columns of a class map: those named from and to, else the only two, with or without a header."""
    rows = list(read_rows(file).values())
    names = [roles.fold_name(cell) for cell in rows[0]]
    if set(_FROM_TO) <= set(names):
        places, body = tuple(names.index(name) for name in _FROM_TO), rows[1:]
    elif max(map(len, rows)) == 2:
        places, body = (0, 1), rows[1:] if set(names) <= _HEADERS else rows
    else:
        raise HemafastError(f"{file} has no columns from and to.", "Name two columns so: from,to.")
    cells = [[*row, *[""] * (max(places) + 1 - len(row))] for row in body]
    return [(whole(row[places[0]]), row[places[1]]) for row in cells]


def _origin(given: Path | Mapping[str, str]) -> str:
    return str(given) if isinstance(given, Path) else "--class-map"


def _refuse_blank(file: Path, table: pd.DataFrame, column: str) -> None:
    lines = table.index[table[column] == ""]
    if len(lines):
        raise HemafastError(f"{file}, line {lines[0]}: {column} is empty.", "Fill it in, or remove the line.")


def _refuse_nothing(found: Resolved[Any], images: Images | Iterable[str]) -> None:
    if not found.values:
        listed, known = name_some(found.missing, _NAMED), next(iter(found.unlisted), "none")
        raise HemafastError(f"{found.file} lists no image of the archives: {listed}.", f"Images are named as {known}.")


def _said(file: Path, chosen: Mapping[str, str]) -> str:
    return f"{file.name}: " + ", ".join(f"{role} is in the column {name!r}" for role, name in chosen.items())


def _unused_note(file: Path, table: pd.DataFrame, chosen: Mapping[str, str]) -> tuple[str, ...]:
    """Columns that may name patients, because their values come again, where none was taken for them."""
    unused = [name for name in table.columns if name not in chosen.values() and 1 < table[name].nunique() < len(table)]
    if GROUP in chosen or not unused:
        return ()
    choose = f"--columns {shlex.quote(f'{GROUP}={unused[0]}')}"
    return (f"{file.name}: not used: {name_some(unused, _NAMED)}; a column of patients or slides is named by {choose}",)


def _blank_note(file: Path, paths: Sequence[str]) -> tuple[str, ...]:
    many = "line has" if len(paths) == 1 else "lines have"
    return (f"{len(paths)} {many} no label in {file.name}: {name_some(paths, _NAMED)}",) if paths else ()
