"""Look through the pickles of a file that torch wrote, before torch makes anything of them.

torch with `weights_only` executes no code of a file, yet a file of a hundred bytes can have it make a storage or a
bytearray of any size. Here, a pickle is read with inert objects in place of all that it names, and what it asks for is
compared with what the file holds.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any, ClassVar, Self

from hemafast.regular import open_regular

_ZIP = b"PK"
_LEGACY_PICKLES = 4  # what follows the magic number: version, system, content, keys of the storages
_REBUILD = "torch._utils._rebuild_tensor_v2"
_OWN = {"collections.OrderedDict", _REBUILD}
"""What the checkpoints of hemafast name, besides storages."""
_FILLED = "torch._utils._rebuild_qtensor"  # makes an empty tensor of the given shape first
_CALLING = "torch._tensor._rebuild_from_type_v2"  # calls its first argument with its third
_SIZED = ("Tensor", "Storage", "bytearray", "bytes")  # of a number they make so many elements
_BYTES = {f"{name}Storage": 2 for name in ("Half", "BFloat16", "Short")}
_BYTES |= {f"{name}Storage": 4 for name in ("Float", "Int", "QInt32")}
_BYTES |= {f"{name}Storage": 8 for name in ("Double", "Long", "ComplexFloat")} | {"ComplexDoubleStorage": 16}
"""Bytes of an element where it has more than one."""
_MOST_NAMES = 10_000
_DISPATCH = pickle._Unpickler.dispatch


class GreedyFileError(ValueError):
    """A file asks for more memory than it holds bytes, or for something else than tensors."""


def refuse_greedy(file: Path, *, own: bool = False) -> None:
    """Refuse a file that torch could only read with more memory than the file is long.

    Args:
        file: what `torch.save` wrote: a zip or, before torch 1.6, pickles one after the other.
        own: whether hemafast wrote it: then nothing but dense tensors, numbers, strings and containers is in it.

    Raises:
        OSError: the file cannot be read.
        GreedyFileError: it is refused, or damaged; the message says why.
    """
    try:
        with open_regular(file) as stream:
            head = stream.read(len(_ZIP))
            if head == _ZIP:
                _look_through_zip(stream, own)
            elif head:
                with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    _look_through_legacy(content, own)
    except (OSError, GreedyFileError):
        raise
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise GreedyFileError(f"it holds no pickle that torch writes ({type(error).__name__})") from error


def refuse_greedy_content(content: bytes) -> None:
    """Refuse the bytes of a zip that `torch.save` did not make of dense tensors, numbers, strings and containers.

    Raises GreedyFileError as `refuse_greedy`.
    """
    try:
        _look_through_zip(io.BytesIO(content), own=True)
    except GreedyFileError:
        raise
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise GreedyFileError(f"it holds no pickle that torch writes ({type(error).__name__})") from error


def plain_entries(archive: zipfile.ZipFile, file_bytes: int) -> list[zipfile.ZipInfo]:
    """The entries of a zip that does not grow when it is read. Raises GreedyFileError for any other."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise GreedyFileError("it is compressed, as torch never writes it")
    if sum(entry.file_size for entry in entries) > file_bytes:
        raise GreedyFileError("its entries overlap")
    return entries


def _look_through_zip(stream: IO[bytes], own: bool) -> None:
    with zipfile.ZipFile(stream) as archive:
        entries = plain_entries(archive, stream.seek(0, os.SEEK_END))
        # torch takes the folder of the first entry, and does not tell capitals from small letters.
        folder = entries[0].filename.partition("/")[0] if entries else ""
        sizes = {entry.filename.removeprefix(f"{folder}/"): entry.file_size for entry in entries}
        if "data.pkl" not in sizes or len({name.lower() for name in sizes}) < len(entries):
            raise GreedyFileError("it is no archive of torch, or names one entry twice")
        _DryRun(io.BytesIO(archive.read(f"{folder}/data.pkl")), sizes, own=own).load()


def _look_through_legacy(content: mmap.mmap, own: bool) -> None:
    from torch.serialization import MAGIC_NUMBER

    room = _Room(len(content))
    if _DryRun(content, room, own=own).load() == MAGIC_NUMBER:
        for _ in range(_LEGACY_PICKLES):
            _DryRun(content, room, own=own).load()


class _Room(dict[str, int]):
    """In place of the sizes of entries: each storage takes its bytes from those of the whole file, once."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.left = total

    def take(self, key: str, size: int) -> None:
        """Raise GreedyFileError if the file has no room for a storage of `size` bytes."""
        if key not in self:
            self[key] = size
            self.left -= size
        if self.left < 0 or self[key] != size:
            raise GreedyFileError(f"a storage of {size:,} bytes is larger than the file")


class _Inert:
    """In place of an object: does nothing, whatever a pickle puts into it."""

    origin = ""
    elements = 0

    def __new__(cls, *args: Any) -> Self:
        numbers = [value for value in args if isinstance(value, int)]
        if numbers and cls.origin.endswith(_SIZED):
            raise GreedyFileError(f"it makes a {cls.origin} of {max(numbers):,} elements")
        if cls.origin == _FILLED:
            _refuse_views(*args[:3])
        if cls.origin == _CALLING:
            args[0](*args[2])
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def _take(self, *values: object) -> None:
        pass

    append = extend = add = update = _take


class _OwnInert(_Inert):
    """The same, if hemafast wrote the file: tensors have no more elements than their storage."""

    def __new__(cls, *args: Any) -> Self:
        if cls.origin not in _OWN:
            raise GreedyFileError(f"it holds a {cls.origin}")
        if cls.origin == _REBUILD:
            _refuse_views(*args[:3])
        return super().__new__(cls, *args)


def _refuse_views(storage: _Inert, _: object, shape: tuple[int, ...]) -> None:
    if not 0 <= math.prod(shape) <= storage.elements:
        raise GreedyFileError(f"a tensor of shape {shape} has a storage of {storage.elements:,} elements")


class _DryRun(pickle._Unpickler):
    """Reads a pickle and makes nothing but containers, numbers and strings."""

    dispatch: ClassVar = {
        code: read for code, read in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }

    def __init__(self, stream: Any, sizes: dict[str, int], *, own: bool) -> None:
        super().__init__(stream, encoding="bytes")
        self._sizes, self._base = sizes, _OwnInert if own else _Inert
        self._kinds: dict[str, type[_Inert]] = {}

    def find_class(self, module: str, name: str) -> type[_Inert]:
        """An inert class of that name."""
        origin = f"{module}.{name}"
        if origin not in self._kinds:
            if len(self._kinds) >= _MOST_NAMES:
                raise GreedyFileError(f"it names more than {_MOST_NAMES:,} classes")
            self._kinds[origin] = type("Inert", (self._base,), {"origin": origin})
        return self._kinds[origin]

    def persistent_load(self, pid: Any) -> _Inert:
        """An inert storage. Raises GreedyFileError if it has more bytes than the file has of it."""
        _, kind, key, _, elements, *_ = pid
        storage = _Inert()
        storage.elements = elements
        self._take(_text(key), elements * _BYTES.get(kind.origin.rpartition(".")[2], 1))
        return storage

    def _take(self, key: str, size: int) -> None:
        if isinstance(self._sizes, _Room):
            self._sizes.take(key, size)
        elif not 0 <= size <= self._sizes.get(f"data/{key}", -1):
            raise GreedyFileError(f"a storage of {size:,} bytes is larger than its entry in the file")


def _text(key: str | bytes) -> str:
    return key.decode() if isinstance(key, bytes) else key
