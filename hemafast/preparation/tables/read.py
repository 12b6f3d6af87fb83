"""Read a table that a user provides, as text: csv, tsv, xlsx or parquet, told apart by content and not by suffix."""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from hemafast.errors import HemafastError
from hemafast.preparation.images.image_checks import FORMATS
from hemafast.preparation.sources.safety import suffix_of
from hemafast.reading import parse_json
from hemafast.regular import read_regular
from hemafast.words import counted

MAX_BYTES = 256 * 2**20
"""Bytes of a list, and bytes that an xlsx or parquet file may unpack to."""
MAX_CELLS = 10_000_000

_MAX_LINES = 2**20  # as many as a sheet of Excel has
_SEPARATORS = "\t;|,"  # the rarer a character is within a cell, the earlier
_NO_SEPARATOR = "\x1f"
_SNIFFED_LINES = 200
_ZIP, _PARQUET, _OLE = b"PK\x03\x04", b"PAR1", b"\xd0\xcf\x11\xe0"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_COMMENT = re.compile(r"#(?:[ #!].*)?\n?")  # `#,path` and `#path` are headers, `#1.png` is a file
_SEPARATOR_HINT = re.compile(r"sep=(.)\n?")  # first line of files for Excel
_WHOLE = re.compile(r"([+-]?\d+)[.,]0+", re.ASCII)
_DECIMAL = re.compile(r"[+-]?\d*(?:[.,]\d*)?(?:[eE][+-]?\d+)?", re.ASCII)
_SAVE_AS = "Save it as CSV (UTF-8) or xlsx."

Rows = dict[int, list[str]]
"""Cells by line, of all lines that are not blank."""


def read_table(file: Path) -> pd.DataFrame:
    """Read a table.

    Columns without a name are called `column 1` and so on by their place. If the first line names an image, it is no
    header, and all columns are called so.

    Args:
        file: csv, tsv or text with another separator, in UTF-8, UTF-16 or Windows-1252; xlsx; or parquet.

    Returns:
        Columns of str without spaces around, "" where a cell is empty. The index holds the lines of the file.

    Raises:
        HemafastError: `file` cannot be read, is too large, damaged or no table, or has two columns of one name.
    """
    rows = read_rows(file)
    first, cells = next(iter(rows.items()))
    header = [] if names_image(cells) else cells
    body = {line: row for line, row in rows.items() if not header or line != first}
    if header:
        _refuse_wide(file, body, len(header))
    width = max(map(len, rows.values()))
    names = [name or f"column {place}" for place, name in enumerate(_padded(header, width), start=1)]
    if len(set(names)) < width:
        twice = Counter(names).most_common(1)[0][0]
        raise HemafastError(f"{file} has two columns named {twice}.", "Rename one of them.")
    filled = [_padded(row, width) for row in body.values()]
    return pd.DataFrame(filled, index=pd.Index(list(body), name="line"), columns=names, dtype=str)


def read_rows(file: Path) -> Rows:
    """The cells of every line that is not blank, header included, as `read_table` describes them. Not empty.

    Raises:
        HemafastError: see `read_table`.
    """
    data = _read_bytes(file)
    kinds = {_ZIP: _xlsx_rows, _PARQUET: _parquet_rows, _OLE: _refuse_ole}
    read = next((read for start, read in kinds.items() if data.startswith(start)), _text_rows)
    rows: Rows = {}
    cells = width = 0
    for line, row in read(file, data):
        while row and not row[-1]:
            row.pop()
        if row:
            rows[line] = row
        cells += len(row)
        width = max(width, len(row))
        if max(cells, width * len(rows)) > MAX_CELLS or line > _MAX_LINES:
            raise HemafastError(f"{file} has more than {MAX_CELLS:,} cells or {_MAX_LINES:,} lines.", "Shorten it.")
    if not rows:
        raise HemafastError(f"{file} is empty.", "A table needs a line with the names of its columns.")
    return rows


def number_of(text: str) -> float:
    """The number that `text` shows, with a decimal point or a decimal comma.

    Raises:
        ValueError: `text` is no finite number, or has separators of thousands.
    """
    number = float(text.replace(",", ".")) if _DECIMAL.fullmatch(text) else math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a number")
    return number


def whole(text: str) -> str:
    """`1` for `1.0`, as spreadsheets write whole numbers; any other text as it is."""
    found = _WHOLE.fullmatch(text)
    return found[1] if found else text


def names_image(cells: Iterable[str]) -> bool:
    """Whether a cell is the name of an image file."""
    return any(suffix_of(cell) in FORMATS for cell in cells)


def _read_bytes(file: Path) -> bytes:
    try:
        data = read_regular(file, MAX_BYTES + 1)
    except OSError as error:
        remedy = "Name a table (csv, tsv, xlsx or parquet) that you may read."
        raise HemafastError(f"{file} cannot be read ({error.strerror}).", remedy) from error
    if len(data) > MAX_BYTES:
        raise HemafastError(f"{file} is larger than {MAX_BYTES // 2**20} MiB.", "Lists of images are smaller.")
    return data


def text_of(file: Path) -> str:
    """The text of a file in UTF-8, UTF-16 with a byte order mark or Windows-1252, lines ended by a line feed.

    Raises:
        HemafastError: `file` cannot be read, is too large, or is no text.
    """
    return _decoded(file, _read_bytes(file))


def _decoded(file: Path, data: bytes) -> str:
    encodings = ("utf-16",) if data.startswith(_UTF16) else ("utf-8-sig", "cp1252")
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text.replace("\r\n", "\n").replace("\r", "\n")
    raise HemafastError(f"{file} is no text, or text in an unknown encoding.", _SAVE_AS)


def _text_rows(file: Path, data: bytes) -> Iterator[tuple[int, list[str]]]:
    text = _decoded(file, data)
    if _is_json(text):
        raise HemafastError(f"{file} is JSON, and no table.", _SAVE_AS)
    lines = io.StringIO(text).readlines()
    hint = _SEPARATOR_HINT.fullmatch(lines[0]) if lines else None
    if hint:
        lines[0] = "\n"
    lines = ["\n" if _COMMENT.fullmatch(line) else line for line in lines]  # so that lines keep their numbers
    separator = hint[1] if hint else _sniffed([line for line in lines if line.strip()][:_SNIFFED_LINES])
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = "Check the quotes from there on."
            raise HemafastError(f"{file}, line {line} cannot be read ({error}).", remedy) from error
        yield line, [cell.strip() for cell in row]


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _sniffed(lines: Sequence[str]) -> str:
    """The separator that cuts the header, and the most lines into as many cells as the header."""
    best, most = _NO_SEPARATOR, -1
    for separator in _SEPARATORS:
        try:
            widths = [len(row) for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)]
        except csv.Error:  # a cell that is too long; reading the file then says so
            continue
        agreeing = widths.count(widths[0]) if widths and widths[0] > 1 else -1
        if agreeing > most:
            best, most = separator, agreeing
    return best


def _xlsx_rows(file: Path, data: bytes) -> Iterator[tuple[int, list[str]]]:
    """The rows of the first sheet that is not blank."""
    from openpyxl import load_workbook

    with _readable(file, "xlsx file"):
        _refuse_bomb(file, data)
        book = load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # the dimensions that a file declares may be wrong or huge
            filled = False
            for line, row in enumerate(sheet.iter_rows(values_only=True), start=1):
                cells = [_text(cell) for cell in row]
                filled = filled or any(cells)
                yield line, cells
            if filled:
                return


def _refuse_bomb(file: Path, data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    if "[Content_Types].xml" not in sizes:
        raise HemafastError(f"{file} is a zip, but no xlsx file.", _SAVE_AS)
    if sum(sizes.values()) > MAX_BYTES:
        raise HemafastError(f"{file} unpacks to more than {MAX_BYTES // 2**20} MiB.", "Do not trust this file.")


def _parquet_rows(file: Path, data: bytes) -> Iterator[tuple[int, list[str]]]:
    import pyarrow as pa
    from pyarrow import parquet

    with _readable(file, "parquet file"):
        opened = parquet.ParquetFile(io.BytesIO(data))
        about = opened.metadata
        unpacked = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
        if unpacked > MAX_BYTES or about.num_rows * about.num_columns > MAX_CELLS:
            raise HemafastError(f"{file} holds more than a list of images.", "Write one with fewer columns.")
        names = [field.name for field in opened.schema_arrow if not pa.types.is_nested(field.type)]
        columns = opened.read(columns=names).to_pydict()
    yield 1, list(columns)
    for line, row in enumerate(zip(*columns.values(), strict=True), start=2):
        yield line, [_text(cell) for cell in row]


def _refuse_ole(file: Path, data: bytes) -> Iterator[tuple[int, list[str]]]:
    raise HemafastError(f"{file} is an old (.xls) or encrypted Excel file.", _SAVE_AS)


@contextmanager
def _readable(file: Path, kind: str) -> Iterator[None]:
    """Turn whatever a damaged or hostile file makes a library raise into a HemafastError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of styles and extensions, which do not matter here
            yield
    except HemafastError:
        raise
    except Exception as error:
        problem = f"{file} is a damaged {kind} ({type(error).__name__}: {error})."
        raise HemafastError(problem, f"Open it in the program that wrote it. {_SAVE_AS}") from error


def _text(cell: Any) -> str:
    """A cell of a spreadsheet as text; whole numbers without a point."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _padded(cells: list[str], width: int) -> list[str]:
    return cells + [""] * (width - len(cells))


def _refuse_wide(file: Path, body: Rows, width: int) -> None:
    for line, cells in body.items():
        if len(cells) > width:
            problem = f"{file}, line {line} has {counted(len(cells), 'cell')}, but "
            problem += f"{counted(width, 'column has', 'columns have')} a name."
            raise HemafastError(problem, "Put quotes around text that holds the separator, or name all columns.")
