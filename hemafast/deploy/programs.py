"""Look through a torch.export archive before torch loads it: it may hold only what `hemafast export` writes.

torch takes functions by the names in the archive, evaluates text in it, and unpickles parts of it. So any file could
execute code. Here, names of functions are compared with those of tensors, text with that of sizes, and objects are
refused.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from hemafast.pickles import plain_entries, refuse_greedy_content
from hemafast.reading import parse_json

_MEMBER = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/\w+_config\.json|models/\w+\.json"
    r"|data/sample_inputs/\w+\.pt|extra/metadata\.json|archive_format|archive_version|byteorder|\.data/\w+"
)
_TENSOR = re.compile(r"(weight|tensor)_\d+")
_FUNCTION = re.compile(
    r"torch\.ops\.(aten|higher_order)\.\w+(\.\w+)?|torch\.sym_(int|float|max|min|sum|not|ite|sqrt)|math\.(trunc|ceil|floor)"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_)"
)
_SYMBOL = re.compile(r"Symbol\('[su]\d+'((, \w+=)(True|False))*\)")
_EXPRESSION = re.compile(r"(Integer|Rational|Add|Mul|Pow|FloorDiv|Mod|PythonMod|CleanDiv|Max|Min|[-\d+*/(), ])*")
_LONGEST_EXPRESSION = 1000
_END = b"PK\5\6"  # how the last 22 bytes of a zip without a comment begin


class ForeignProgramError(ValueError):
    """An archive holds something that hemafast does not write."""


def refuse_foreign(content: bytes) -> None:
    """Refuse a torch.export archive that hemafast cannot have written.

    Args:
        content: the bytes of the file.

    Raises:
        ValueError: it is refused, or damaged; the message says why. Nothing of it was executed.
        BadZipFile, KeyError: it is damaged.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = plain_entries(archive, len(content))
        members = _members([entry.filename for entry in entries])
        if entries[0].header_offset or content[-22:-18] != _END:
            raise ForeignProgramError("bytes lie before or after the archive")
        for name, member in members.items():
            if name.endswith("_config.json"):
                _refuse_objects(parse_json(archive.read(member).decode()))
            elif name.startswith("models/"):
                _refuse_code(parse_json(archive.read(member).decode()))
            elif name.endswith(".pt"):
                refuse_greedy_content(archive.read(member))


def _members(names: list[str]) -> dict[str, str]:
    """Names without the folder that all of them are in. torch does not tell capitals from small letters."""
    folder = names[0].partition("/")[0] if names else ""
    members = {name.removeprefix(f"{folder}/"): name for name in names}
    strange = next((name for name in members if not _MEMBER.fullmatch(name)), None)
    if strange is not None:
        raise ForeignProgramError(f"it holds {strange}")
    if len({name.lower() for name in members}) < len(names):
        raise ForeignProgramError("it names one entry twice")
    return members


def _refuse_objects(config: Any) -> None:
    """What says where the tensors are: none may be a pickle."""
    for one in config["config"].values():
        if one["use_pickle"] is not False or not _TENSOR.fullmatch(one["path_name"]):
            raise ForeignProgramError("it holds pickled objects")


def _refuse_code(program: Any) -> None:
    if program.get("guards_code"):
        raise ForeignProgramError("it holds code that checks its input")
    for key, value in _fields(program):
        if key in ("target", "as_operator") and not _FUNCTION.fullmatch(str(value)):
            raise ForeignProgramError(f"it calls {str(value)[:60]}")
        if key == "expr_str" and not _is_size(str(value)):
            raise ForeignProgramError(f"a size in it is {str(value)[:60]}")
        if key == "custom_obj_values" and value:
            raise ForeignProgramError("it holds objects")


def _is_size(text: str) -> bool:
    short = len(text) <= _LONGEST_EXPRESSION
    return short and _EXPRESSION.fullmatch(_SYMBOL.sub("1", text)) is not None


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """The fields of all objects in parsed JSON."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
