"""Read the lists that a user provides beside the archives: checksums, groups of patients, published splits."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from hemafast.errors import HemafastError
from hemafast.preparation.safety import parts_of
from hemafast.preparation.split import ALL_SPLITS

_MAX_BYTES = 256 * 2**20
_SHA256_DIGITS = 64


def read_checksums(file: Path) -> dict[str, str]:
    """sha256 in lower case by name, from the output of sha256sum.

    Raises HemafastError for a line that is not `<64 hexadecimal digits> <space or *><name>`, or a name with two sums.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(_read_text(file).splitlines(), start=1):
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


def read_split(files: Sequence[Path], names: Iterable[str]) -> dict[str, str]:
    """The split of each image that `files` list, by image name `domain/class/file`."""
    split: dict[str, str] = {}
    for file in files:
        for name, value in read_values(file, "split", names).items():
            if value not in ALL_SPLITS:
                raise HemafastError(
                    f"{file}: {name} has the split {value!r}.", f"A split is {' or '.join(ALL_SPLITS)}."
                )
            if split.setdefault(name, value) != value:
                raise HemafastError(f"{file}: {name} is listed as {split[name]} and {value}.", "Remove one.")
    return split


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hexadecimal digits. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_values(file: Path, column: str, names: Iterable[str]) -> dict[str, str]:
    """The value in `column`, such as split or group, of each image that `file` lists, by image name."""
    table = _read_table(file, column)
    resolved = resolve(file, zip(table["path"], table[column], strict=True), names)
    if not resolved:
        remedy = "Paths are domain/class/file, such as Acevedo_20/basophil/BA_1.jpg."
        raise HemafastError(f"{file} lists no image of the archives.", remedy)
    return resolved


def _read_table(file: Path, column: str) -> pd.DataFrame:
    try:
        table = pd.read_csv(io.StringIO(_read_text(file)), dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas: empty, or rows of different lengths
        raise HemafastError(f"{file} is not a CSV file ({error}).", f"It needs path and {column}.") from error
    missing = {"path", column} - set(table.columns)
    if missing:
        raise HemafastError(f"{file} has no column {' or '.join(sorted(missing))}.", f"It needs path and {column}.")
    blank = table.index[(table["path"] == "") | (table[column] == "")]
    if len(blank):
        raise HemafastError(f"{file}, line {blank[0] + 2}: path or {column} is empty.", "Fill it in.")
    return table


def resolve(file: Path, values: Iterable[tuple[str, str]], names: Iterable[str]) -> dict[str, str]:
    """Values by image name `domain/class/file`, from the pairs of path and value that `file` lists.

    A path may have folders before the domain, or leave out domain and class if the rest is unique. Paths of unknown
    images are ignored. Raises HemafastError if a path fits several images, or an image has two values.
    """
    endings: dict[str, list[str]] = {}
    for name in names:
        domain_class_file = name.split("/")
        for start in range(len(domain_class_file)):
            endings.setdefault("/".join(domain_class_file[start:]), []).append(name)
    resolved: dict[str, str] = {}
    for path, value in values:
        plain = "/".join(parts_of(path.strip().replace("\\", "/"))[-3:])  # from any operating system
        found = endings.get(plain, [])
        if len(found) > 1:
            raise HemafastError(f"{file}: {path} may be {' or '.join(found[:2])}.", "Write domain/class/file.")
        for name in found:
            if resolved.setdefault(name, value) != value:
                raise HemafastError(f"{file}: {path} is listed as {resolved[name]} and {value}.", "Remove one.")
    return resolved


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise HemafastError(f"{file} is larger than {_MAX_BYTES // 2**20} MiB.", "Lists of images are smaller.")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise HemafastError(f"{file} cannot be read ({error}).", "Name a text file.") from error


class Labels:  # stand-in until the reader of tables is merged
    pass
