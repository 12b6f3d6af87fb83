"""Tensors by name from a weights file of any origin, without executing anything in it."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemafast.errors import HemafastError, name_some
from hemafast.files import damaged_entry
from hemafast.pickles import refuse_greedy
from hemafast.reading import read_json
from hemafast.regular import open_regular, read_regular

if TYPE_CHECKING:
    from torch import Tensor

_DEEPEST = 24
"""Levels of nesting that are searched; the deepest models of timm, stored as objects, need 16."""
_MOST_WORDS = 1000
_LONGEST_NAME = 300
_MOST_PARTS = 40
_LARGEST_INDEX = 64 * 2**20
_BLOCKED = re.compile(r"GLOBAL (\S+)|SETITEM")
_CAUSE = re.compile(r"WeightsUnpickler error:\s*(\S.{2,200})")
_TEXT = re.compile(rb"[\t\r\n -~]+")
_WORD = re.compile(r"[A-Za-z][\w.]{2,60}")
_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt"}

# What people have on their disk in place of weights: how it begins, what it is, what to do.
_OTHER_CONTENT = (
    (b"version https://git-lfs", "the pointer of Git LFS, not the file itself", "Run `git lfs pull` where it lies."),
    (b"<!doctype", "a web page", "Download the file itself, not the page that shows it."),
    (b"<html", "a web page", "Download the file itself, not the page that shows it."),
    (b"<?xml", "an XML file, such as a server's message", "Download it again, and look at it."),
    (b"\x89hdf", "an HDF5 file, as Keras writes", "Convert it to a state dict of PyTorch."),
    (b"\x1f\x8b", "packed with gzip", "Unpack it first with `gunzip`."),
)


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What a weights file holds."""

    tensors: dict[str, Tensor]
    """Dense tensors on the CPU by their path in the file, as `state_dict.module.conv1.weight`, in the file's order."""
    words: tuple[str, ...]
    """Words in the file that may name its network."""
    ignored: tuple[str, ...] = ()
    """Classes of objects that were not made."""


def read_weights(file: Path) -> StoredWeights:
    """Read a file that torch.save or safetensors wrote, or the index of a sharded one. The suffix does not matter.

    Nothing in the file is executed: torch reads it with `weights_only`, and an object of a class that torch does not
    know is replaced by an empty one.

    Args:
        file: A state dict, or a checkpoint that holds state dicts at any place beside other things.

    Returns:
        All tensors in it.

    Raises:
        HemafastError: the file is missing, damaged, or holds no tensors by name.
    """
    try:
        stored = _read_index(file) if _begins_with_json(file) else _read_one(file)
    except OSError as error:
        raise HemafastError(f"{file} cannot be read ({error.strerror or error}).", "Name a weights file.") from error
    if not stored.tensors:
        raise HemafastError(f"{file} does not hold tensors by name.", "Give a file that holds a state dict.")
    return stored


def _begins_with_json(file: Path) -> bool:
    if file.is_dir():
        inside = sorted(path.name for path in file.iterdir() if path.suffix in _SUFFIXES)
        found = f"It holds {name_some(inside, 3)}." if inside else "It holds no weights file."
        raise HemafastError(f"{file} is a folder, not a weights file.", f"Name a file in it. {found}")
    return _head(file).lstrip()[:1] == b"{"


def _head(file: Path) -> bytes:
    return read_regular(file, 64)


def _read_one(file: Path) -> StoredWeights:
    head = _head(file)
    for begin, what, remedy in _OTHER_CONTENT:
        if head.lstrip().lower().startswith(begin):
            raise HemafastError(f"{file} is {what}.", remedy)
    if head[:2] == b"PK":
        return _read_zip(file)
    if head[8:9] == b"{":  # after the length of the header
        return _read_safetensors(file)
    return _read_torch(file, zipped=False)


def _read_safetensors(file: Path) -> StoredWeights:
    from safetensors import safe_open

    try:
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict
            metadata = dict(content.metadata() or {})
    except Exception as error:  # a damaged or hostile file can raise anything
        raise _unreadable(file, error) from error
    return _stored([tensors, metadata])


def _read_index(file: Path) -> StoredWeights:
    """All files that a `*.index.json` lists; they lie beside it."""
    try:
        parts = sorted(set(read_json(file, _LARGEST_INDEX)["weight_map"].values()))
        if any(Path(part).name != part for part in parts):
            raise ValueError("it lists files in other folders")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HemafastError(
            f"{file} is no index of weights files ({first_line(error)}).", "Name the file that holds the tensors."
        ) from error
    absent = [part for part in parts if not file.with_name(part).is_file()]
    if absent:
        raise HemafastError(f"{file} lists {name_some(absent, 3)}, missing in its folder.", "Put all parts beside it.")
    stored = [_read_one(file.with_name(part)) for part in parts]
    return StoredWeights(
        {name: tensor for one in stored for name, tensor in one.tensors.items()},
        tuple(word for one in stored for word in one.words),
        tuple(sorted({name for one in stored for name in one.ignored})),
    )


def _read_zip(file: Path) -> StoredWeights:
    """A zip that torch.save wrote: never compressed, so that nothing in it grows when it is read."""
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
        plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        plain = plain and sum(entry.file_size for entry in entries) <= file.stat().st_size
        damaged = damaged_entry(file) if plain else None
    except Exception as error:  # a damaged or hostile file can raise anything
        raise HemafastError(f"{file} is damaged or cut off ({first_line(error)}).", "Download it again.") from error
    _refuse_other_zip(file, [entry.filename for entry in entries])
    if not plain:
        raise HemafastError(f"{file} is compressed, as torch never writes it.", "Save the state dict anew with torch.")
    if damaged is not None:
        raise HemafastError(f"{file} is damaged (the checksum of {damaged} is wrong).", "Download it again.")
    return _read_torch(file, zipped=True)


def _refuse_other_zip(file: Path, names: list[str]) -> None:
    if not any(name.endswith("data.pkl") for name in names):
        inside = [name for name in names if Path(name).suffix in _SUFFIXES]
        holds = name_some(inside, 3) or "no weights file"
        raise HemafastError(f"{file} is a zip archive that torch did not write: it holds {holds}.", "Unpack it first.")
    if any(name.endswith("constants.pkl") for name in names):
        raise HemafastError(f"{file} is a TorchScript program, not a weights file.", "Save its state dict with torch.")


def _read_torch(file: Path, *, zipped: bool) -> StoredWeights:
    import torch

    strange: list[str] = []
    try:
        refuse_greedy(file)
        # A stream, because torch takes a path with the suffix .safetensors for that format.
        with open_regular(file) as stream, warnings.catch_warnings(action="ignore", category=UserWarning):
            if zipped:
                strange = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(stream))
                stream.seek(0)
            stand_ins: list[Any] = [(_stand_in_for(name), name) for name in strange]
            with torch.serialization.safe_globals(stand_ins):
                content = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can raise anything
        raise _unreadable(file, error) from error
    return _stored(content, tuple(strange))


class _StandIn(list[Any]):
    """In place of an object of an unknown class: keeps what was stored in it, and does nothing."""

    state: object = None

    def __new__(cls, *_: object) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        self.state = state


class _DictStandIn:
    """In place of a subclass of dict: torch fills only dicts of its own list of types."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict()


def _stand_in_for(name: str) -> type[_StandIn | _DictStandIn]:
    return _DictStandIn if "dict" in name.rpartition(".")[2].lower() else _StandIn


def _stored(content: object, ignored: tuple[str, ...] = ()) -> StoredWeights:
    import torch

    tensors: dict[str, Tensor] = {}
    words: dict[str, None] = {}
    for path, leaf in _leaves(content):
        if isinstance(leaf, torch.Tensor):
            if path and path.count(".") < _MOST_PARTS and _is_dense(leaf):
                tensors.setdefault(path, leaf.detach())
        elif len(words) < _MOST_WORDS:
            words.update(dict.fromkeys(_WORD.findall(leaf[:10_000])))
    return StoredWeights(tensors, tuple(words), ignored)


def _leaves(content: object) -> Iterator[tuple[str, Tensor | str]]:
    """All tensors and strings with their paths, in order. Each container is entered once, however often it is named."""
    import torch

    entered: set[int] = set()
    waiting: list[tuple[tuple[str, ...], object]] = [((), content)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, torch.Tensor | str):
            yield ".".join(path), value
        elif id(value) not in entered and len(path) < _DEEPEST:
            entered.add(id(value))
            waiting += [((*path, *step), child) for step, child in reversed(_children(value))]


def _children(value: object) -> list[tuple[tuple[str, ...], object]]:
    """What a container holds, in order. Steps into lists and objects have no name of their own."""
    if isinstance(value, Mapping):
        named: list[tuple[tuple[str, ...], object]] = [((str(key),), child) for key, child in value.items()]
        held = [((), vars(value))] if isinstance(value, OrderedDict) else []  # of a subclass of dict
        return [(step, child) for step, child in named + held if all(map(_is_name, step))]
    if isinstance(value, list | tuple):
        state = [value.state] if isinstance(value, _StandIn) else []
        return [((), child) for child in (*state, *value) if not isinstance(child, int | float)]
    return []


def _is_name(key: str) -> bool:
    return len(key) <= _LONGEST_NAME and key.isprintable()


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements are really there: a tensor can claim more of them than its memory holds."""
    import torch

    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _unreadable(file: Path, error: Exception) -> HemafastError:
    blocked = _BLOCKED.search(str(error))
    if blocked is None and _TEXT.fullmatch(head := _head(file)):
        begin = head.decode().strip().partition("\n")[0]
        return HemafastError(
            f"{file} is a text file, which begins with {begin!r}.", "Download it again, and look at it."
        )
    if blocked is None:
        cause = _CAUSE.search(str(error))
        why = first_line(error) if cause is None else cause[1].strip()
        return HemafastError(f"{file} cannot be read as weights ({why}).", "Download it again.")
    return HemafastError(
        f"{file} cannot be read as weights: it holds objects of {blocked[1] or 'other classes'}.",
        "Ask its author for a .safetensors file. If you trust the author, save the tensors alone: "
        f"python -c \"import torch; x = torch.load('{file.name}', 'cpu', weights_only=False); "
        "x = x.state_dict() if hasattr(x, 'state_dict') else x.get('state_dict', x); "
        "torch.save({k: v for k, v in x.items() if torch.is_tensor(v)}, 'tensors.pth')\"",
    )


def first_line(error: BaseException) -> str:
    """What an error says, in at most one line of 200 characters."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:200] if lines else type(error).__name__


def shape_of(tensor: Tensor) -> str:
    """The shape as it is written in messages, as 64x3x7x7."""
    return "x".join(map(str, tensor.shape)) or "one number"
