"""One rule for names, wherever they come from: archives, disks, lists of any operating system."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise

UTF8 = "utf-8"
_DRIVE = re.compile(r"^[A-Za-z]:")
_BETWEEN_WORDS = re.compile(r"[\s_.\-]+")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")
_CODE_PAGES = ("cp437", "cp850", "cp1252", "gb2312", "cp866")
"""What zips without the UTF-8 flag hold if it is not UTF-8: DOS, Western Windows, Chinese and Russian Windows."""
_COMMON = frozenset("äöüßéèêëàâáíóúñçåæøìòùïîôûœÄÖÜÉÅØÆÑÇ")
"""Letters of Western languages that are frequent in names."""


def plain_name(name: str) -> str:
    """A path with `/` between its parts, without drive letter, leading `/` and `.`, in Unicode form NFC.

    `..` stays, for the caller to refuse.
    """
    return unicodedata.normalize("NFC", one_path(name))


def one_path(name: str) -> str:
    """The same in the Unicode form that it has: equal for names that a program unpacks to one file."""
    parts = _DRIVE.sub("", name.replace("\\", "/")).split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def fold(name: str) -> str:
    """What names are compared by: Unicode form, case, spaces, hyphens and underscores do not matter."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return _BETWEEN_WORDS.sub(" ", folded).strip()


def words_of(name: str) -> list[str]:
    """The words of a name in lower case and without accents: `TestA_set-2` is test, a, set, 2."""
    return [word.casefold() for word in _WORD.findall(without_accents(name))]


def without_accents(name: str) -> str:
    """`Basofilo` for `Basófilo`."""
    letters = unicodedata.normalize("NFKD", name)
    return unicodedata.normalize("NFC", "".join(letter for letter in letters if not unicodedata.combining(letter)))


def same_file(name: str) -> str:
    """A key that is equal for names that some file system cannot tell apart: they differ in case or Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def choose_encoding(names: Iterable[bytes]) -> str:
    """The encoding of the names of one archive, which were all written by one program.

    UTF-8 if all are valid, as macOS writes them without saying so. Otherwise the code page that makes the most
    plausible letters: Latin letters rather than symbols, line graphics or two scripts in one name.
    """
    foreign = [name for name in names if not name.isascii()]
    if all(_decodes(name, UTF8) for name in foreign):
        return UTF8
    usable = [page for page in _CODE_PAGES if all(_decodes(name, page) for name in foreign)]
    return min(usable or ["cp437"], key=lambda page: sum(_doubt(name, page) for name in foreign))


def _decodes(name: bytes, encoding: str) -> bool:
    try:
        return "\x00" not in name.decode(encoding)
    except UnicodeDecodeError:
        return False


def _doubt(name: bytes, encoding: str) -> float:
    """How implausible a name is in this encoding; capitals within words are unusual."""
    text = name.decode(encoding)
    inner = [letter for before, letter in pairwise(f" {text}") if before.isalpha() and not letter.isascii()]
    return sum(_cost(letter) for letter in text if not letter.isascii()) + 0.5 * sum(map(str.isupper, inner))


def _cost(letter: str) -> float:
    """How unlikely a character is in a name: symbols and line graphics most."""
    if letter in _COMMON:
        return 0
    if not unicodedata.category(letter).startswith("L"):
        return 3
    script = unicodedata.name(letter, "").partition(" ")[0]
    return {"CJK": 0.8, "CYRILLIC": 0.8, "LATIN": 1}.get(script, 2)
