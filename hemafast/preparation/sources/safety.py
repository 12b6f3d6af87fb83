"""What an archive must not hold. Each `refuse_...` raises HemafastError, and nothing of the archive is written."""

from __future__ import annotations

import posixpath
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hemafast.errors import HemafastError
from hemafast.preparation.sources.names import plain_name

MAX_IMAGE_BYTES = 256 * 2**20
"""Far more than any single-cell image has. Larger members are refused before they are unpacked."""
MAX_RATIO = 200
"""Unpacked bytes per packed byte, over the archive and over each member of more than a mebibyte. Deflate reaches 1,032
on zeros, and 5 at most on the uncompressed TIFF of a real cell."""

_CLUTTER = frozenset({
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "system volume information",
    "@eadir", "lost+found",
})  # fmt: skip
_CLUTTER_ENDS = ("~", ":zone.identifier", ".crdownload")
_NESTED = (
    ".zip",
    ".tar",
    ".tgz",
    ".tbz2",
    ".txz",
    ".tzst",
    ".tar.gz",
    ".tar.bz2",
    ".tar.xz",
    ".tar.zst",
    ".7z",
    ".rar",
)
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's control characters, lone surrogates, line and paragraph breaks
_ENCRYPTED = 0x1  # general purpose bit 0 of a zip entry
_SYMLINK, _FILE_TYPE = 0o120000, 0o170000  # Unix modes, in the upper half of a zip entry's external attributes
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


def is_clutter(name: str) -> bool:
    """Whether an operating system left this file, such as .DS_Store."""
    folded = name.lower()
    if folded.endswith(_CLUTTER_ENDS):
        return True
    return any(part in _CLUTTER or part.startswith((".", "~$")) for part in parts_of(folded))


def parts_of(name: str) -> list[str]:
    """The parts of a name, as in pathlib, whose objects would take half the time of listing an archive."""
    return [part for part in name.split("/") if part not in ("", ".")]


def suffix_of(name: str) -> str:
    """The suffix of a name in lower case, with its dot."""
    return posixpath.splitext(name)[1].lower()


def refuse_unprintable(path: Path, name: str) -> None:
    """Names go into lists with one name per line, so they must not hold line breaks or bytes that are not text."""
    if name.isprintable() or is_clutter(name):
        return
    if any(unicodedata.category(letter) in _UNPRINTABLE for letter in name):
        raise HemafastError(f"{path}: the name {name!r} holds unprintable characters.", "Rename it.")


def refuse_nested_or_large(path: Path, name: str, size: int) -> None:
    """Refuse an archive in an archive, whose cells would be ignored, and a file larger than any single-cell image."""
    if name.lower().endswith(_NESTED) and not is_clutter(name):
        remedy = "Unpack it there, then remove it." if path.is_dir() else f"Unpack {path}, and use the folder instead."
        raise HemafastError(f"{path} holds another archive, {name}.", remedy)
    if size > MAX_IMAGE_BYTES:
        remedy = f"Files of more than {MAX_IMAGE_BYTES // 2**20} MiB are refused; remove it."
        raise HemafastError(f"{path}: {name} has {size / 2**20:,.0f} MiB.", remedy)


def refuse_unlisted(error: OSError) -> NoReturn:
    """For `os.walk`, which would silently skip a folder that it cannot read, and the cells in it."""
    raise HemafastError(f"{error.filename} cannot be listed ({error.strerror}).", "Make it readable, or remove it.")


def refuse_unsafe_name(path: Path, name: str) -> None:
    """Refuse a name that leads upwards, out of the archive. `plain_name` drops drive letters and leading separators."""
    refuse_unprintable(path, name)
    if not plain_name(name) or ".." in plain_name(name).split("/"):
        raise HemafastError(f"{path}: the name {name!r} points outside the archive.", "Do not trust this archive.")


def refuse_unsafe(path: Path, info: zipfile.ZipInfo) -> None:
    """Refuse a member of a zip that is not a regular file of bounded size."""
    name = info.filename
    if (info.external_attr >> 16) & _FILE_TYPE == _SYMLINK:
        raise HemafastError(f"{path}: {name} is a symbolic link.", "Pack the file that it points to.")
    if info.flag_bits & _ENCRYPTED:
        raise HemafastError(f"{path}: {name} is encrypted.", "Unpack it yourself and use the folder.")
    if info.compress_type not in _METHODS:
        raise HemafastError(
            f"{path}: {name} is compressed by method {info.compress_type}, which cannot be unpacked in bounded memory.",
            "Pack it again with deflate, or unpack it yourself and use the folder.",
        )
    refuse_nested_or_large(path, name, info.file_size)
    if info.file_size > 2**20:
        refuse_ratio(path, info.file_size, info.compress_size, f": {name}")


def refuse_ratio(path: Path, unpacked: int, packed: int, what: str = "") -> None:
    """Refuse a compression ratio that images never reach. `what` follows the path in the message."""
    if unpacked > MAX_RATIO * max(packed, 1):
        raise HemafastError(
            f"{path}{what} would unpack to {unpacked / 2**20:,.0f} MiB, over {MAX_RATIO} times its size.",
            "Images do not compress that well; do not trust this archive.",
        )


def refuse_repeated(path: Path, names: Sequence[str]) -> None:
    """Refuse two members of one name, since it is unclear which one a reader gets."""
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise HemafastError(f"{path} holds {name} {times} times.", "Pack it again.")
