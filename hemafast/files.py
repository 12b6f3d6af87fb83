"""Complete files: a crash at any moment leaves the old file or the new one.

No link is followed at a name that hemafast gives to an output: it would lead out of the folder. `write_whole` replaces
it; `open_in_place` and `make_inside` refuse it.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hemafast.errors import HemafastError
from hemafast.regular import open_regular

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a disk that is full, and of a quota that is used up."""

TABLES = (".csv", ".tsv", ".xlsx", ".parquet")
"""Suffixes of the tables that `write_table` writes."""

DIGEST = "xxh3_128"
"""The entry of the metadata of a file of tensors that holds a digest of them."""

_SHEET_ROWS = 2**20  # as many as Excel opens
_NO_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # what XML, and so xlsx, cannot hold


def write_whole(
    file: Path, write: Callable[[Path], object], *, before_replace: Callable[[], object] = lambda: None
) -> None:
    """Let `write` fill a file beside `file`, flush it to the disk, then replace `file` with it.

    `before_replace` is called when the new file is on the disk. Raises OSError as `write` does, with the name of
    `file`, and `file` then stays unchanged.
    """
    part = file.with_name(f".{file.name}.part")
    try:
        if os.path.lexists(part):  # of a killed process, or a link
            part.unlink()
        part.touch(exist_ok=False)
        write(part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.chmod(0o644)  # some writers create private files
        before_replace()
        _replace(part, file)
    except OSError as error:
        raise _naming(file, part, error) from error
    finally:
        part.unlink(missing_ok=True)


def _naming(file: Path, part: Path, error: OSError) -> OSError:
    """The error with the name of the file and, on a full disk, how much it needs there."""
    if error.errno in FULL:
        needed = max((each.stat().st_size for each in (file, part) if each.exists()), default=0)
        said = f"{error.strerror}, where it needs at least {needed / 1e6:,.1f} MB"
        return OSError(error.errno, f"{said}{_free(file.parent, error.errno)}", str(file))
    if error.errno is None or error.filename is not None:
        return error
    return OSError(error.errno, error.strerror, str(file))


def _free(folder: Path, number: int | None) -> str:
    """How much is free on the disk of a folder, for a sentence; nothing where a quota counts instead."""
    return "" if number == errno.EDQUOT else f" and {shutil.disk_usage(folder).free / 1e6:,.1f} MB are free"


def open_in_place(file: Path | str, mode: str, **options: Any) -> IO[Any]:
    """`open` for a file that is written in place, such as a log. Raises OSError if a link has its name."""
    return open(file, mode, opener=_open_no_link, **options)


def _open_no_link(file: str, flags: int) -> int:
    try:
        return os.open(file, flags | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise _link_error(file) if error.errno == errno.ELOOP else error from None


def make_inside(folder: Path) -> None:
    """Make a folder in one that exists, unless it is there. Raises OSError if a link has its name."""
    if folder.is_symlink():
        raise _link_error(folder)
    folder.mkdir(exist_ok=True)


def _link_error(file: Path | str) -> OSError:
    return OSError(errno.ELOOP, "a symbolic link has this name, and is not followed", str(file))


@contextmanager
def writing(target: Path, remedy: str = "Name another --output.") -> Iterator[None]:
    """Turn an OSError of the block into a HemafastError that names `target`."""
    try:
        yield
    except OSError as error:
        raise HemafastError(f"{target} cannot be written ({error}).", remedy) from error


def make_folder(folder: Path) -> None:
    """Make the folder of an output before the work for it begins. Raises HemafastError if it cannot be written to."""
    with writing(folder.absolute()):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def user_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """The user's cache folder. A user id without a name has no home, and gets a folder of its own in TMPDIR."""
    named = environment.get("XDG_CACHE_HOME")
    try:
        return Path(named) if named else Path.home() / ".cache"
    except RuntimeError:
        folder = Path(tempfile.gettempdir(), f"cache-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    # Whoever else made it could put code into the caches.
    return folder if folder.lstat().st_uid == os.getuid() else Path(tempfile.mkdtemp(prefix="cache-"))


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text, completely or not at all. Raises OSError."""
    write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file, completely or not at all. Raises OSError."""
    write_whole(file, lambda part: part.write_bytes(content))


def write_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `tensor_bytes`, completely or not at all. Raises OSError."""
    # `save_file` would first write a file of a name that it draws, which a kill leaves, and raises no OSError.
    write_bytes(file, tensor_bytes(tensors, metadata))


def tensor_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Contiguous tensors as the content of a safetensors file, with a digest of them in its metadata."""
    from safetensors.torch import save

    return save(tensors, metadata | {DIGEST: _digest(tensors)})


def refuse_overwritten(tensors: dict[str, Tensor], metadata: Mapping[str, str], what: str) -> None:
    """Raise ValueError if the tensors of a file are not those that its digest is of; earlier versions wrote none."""
    if metadata.get(DIGEST, found := _digest(tensors)) != found:
        raise ValueError(f"its {what} were overwritten")


def _digest(tensors: dict[str, Tensor]) -> str:
    """XXH3 (128 bits) over the bytes of contiguous tensors, in the order of their names."""
    import torch
    import xxhash

    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        digest.update(tensors[name].cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def csv_bytes(table: pd.DataFrame, separator: str = ",") -> bytes:
    """A table as CSV for people and programs: UTF-8, with a byte order mark if it holds more than ASCII.

    Without the mark, Excel shows other letters wrongly. Bytes of a name that are no text become `\\udc80` and so on.
    """
    text = csv_text(table, separator)
    return (b"" if text.isascii() else codecs.BOM_UTF8) + text.encode("utf-8", "backslashreplace")


def csv_text(table: pd.DataFrame, separator: str = ",", *, header: bool = True) -> str:
    """A table as CSV, with or without the names of its columns."""
    text: str = table.to_csv(index=False, sep=separator, lineterminator="\n", header=header)
    return text


def refuse_table_name(file: Path) -> None:
    """Raise HemafastError if `write_table` cannot write `file`: a folder, or a suffix that is not in `TABLES`."""
    refuse_name(file, TABLES, "table.csv")


def refuse_name(file: Path, suffixes: Sequence[str], usual: str) -> None:
    """Raise HemafastError if `file` is a folder, or ends in none of `suffixes`; `usual` is a name that would do."""
    if file.is_dir():
        raise HemafastError(f"{file} is a folder.", "Name a file with --output.")
    if file.suffix.lower() not in suffixes:
        stem, _, suffix = usual.rpartition(".")
        raise HemafastError(f"{file} ends in none of {', '.join(suffixes)}.", f"Name it {file.stem or stem}.{suffix}.")


def write_table(file: Path, table: pd.DataFrame) -> None:
    """Write a table whole or not at all, in the format that the suffix of `file` names.

    Raises:
        HemafastError: see `refuse_table_name`; or the table has more rows than a sheet.
        OSError: the file cannot be written.
    """
    write_tables(file, [table])


def write_tables(file: Path, tables: Iterable[pd.DataFrame]) -> None:
    """Write a table that comes in parts, at least one, as `write_table` writes a whole one; no part is kept in memory.

    All parts have the columns and types of the first.
    """
    refuse_table_name(file)
    write_whole(file, partial(_WRITERS[file.suffix.lower()], iter(tables)))


def _write_csv(tables: Iterator[pd.DataFrame], file: Path, separator: str = ",") -> None:
    with file.open("wb") as out:
        marked, header = False, True
        for table in tables:
            text = csv_text(table, separator, header=header)
            if not text.isascii() and not marked:
                marked = True
                _put_first(out, file, codecs.BOM_UTF8)
            out.write(text.encode("utf-8", "backslashreplace"))
            header = False


def _put_first(out: IO[bytes], file: Path, mark: bytes) -> None:
    """Move what is written, which `out` adds to, behind a mark."""
    out.flush()
    if not out.tell():
        out.write(mark)
        return
    before = file.with_name(f"{file.name}.unmarked")
    try:
        shutil.copyfile(file, before)
        out.seek(0)
        out.write(mark)
        with before.open("rb") as written:
            shutil.copyfileobj(written, out)
    finally:
        before.unlink(missing_ok=True)


def _write_tsv(tables: Iterator[pd.DataFrame], file: Path) -> None:
    _write_csv(tables, file, "\t")


def _write_parquet(tables: Iterator[pd.DataFrame], file: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    first = pa.Table.from_pandas(next(tables), preserve_index=False)
    with parquet.ParquetWriter(file, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(pa.Table.from_pandas(table, first.schema, preserve_index=False))


def _write_xlsx(tables: Iterator[pd.DataFrame], file: Path) -> None:
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    for number, row in enumerate(_sheet_rows(tables)):
        if number == _SHEET_ROWS:
            raise HemafastError(f"More than {number - 1:,} rows do not fit an xlsx file.", "Write .csv or .parquet.")
        cells = [WriteOnlyCell(sheet, _sheet_value(value)) for value in row]
        for cell in cells:
            if cell.data_type == "f":  # a text that begins with =
                cell.data_type = "s"
        sheet.append(cells)
    book.save(file)


def _sheet_rows(tables: Iterator[pd.DataFrame]) -> Iterator[Sequence[Any]]:
    """The names of the columns, then the values of each row; None where there is none."""
    for number, table in enumerate(tables):
        if not number:
            yield list(table)
        floats = {str(name): table[name].astype(str).astype(float) for name in table.select_dtypes("float32")}
        short = table.assign(**floats)
        yield from short.astype(object).where(short.notna(), None).itertuples(index=False, name=None)


def _sheet_value(value: Any) -> Any:
    """A value; text with escapes for what a sheet cannot hold."""
    return _NO_XML.sub(lambda found: f"\\x{ord(found[0]):02x}", value) if isinstance(value, str) else value


_WRITERS = {".csv": _write_csv, ".tsv": _write_tsv, ".parquet": _write_parquet, ".xlsx": _write_xlsx}


def damaged_entry(file: Path) -> str | None:
    """The first entry of a zip that torch wrote whose checksum is wrong; None if all are right.

    torch itself does not verify checksums, and reads garbage if a flipped bit turns an entry into a folder. Raises
    OSError and BadZipFile if the file is no zip.
    """
    with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
        folders = [entry.filename for entry in archive.infolist() if entry.external_attr]
        return next(iter(folders), None) or archive.testzip()


def _replace(file: Path, target: Path) -> None:
    """Rename `file` to `target`, and flush the folder to the disk."""
    file.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
