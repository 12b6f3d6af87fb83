"""Files of folders and archives: each as an entry, and a million of them as columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BLOCK = 8192
"""Entries that are objects at once."""
_AS_STORED = ("utf-8", "surrogateescape")  # names of folders may hold bytes that are no text
_SCHEMA = pa.schema(
    {
        "name": pa.large_binary(),
        "size": pa.int64(),
        "stamp": pa.string(),
        "container": pa.int32(),
        "place": pa.large_binary(),
        "offset": pa.int64(),
    }
)
_PLACE = _SCHEMA.get_field_index("place")

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a folder or archive."""

    name: str
    """Path within what was listed, by `names.plain_name`."""
    size: int
    """Bytes."""
    stamp: str
    """Changes when the content does: the CRC in a zip, otherwise a time of change."""
    container: Path
    """The zip or tar that holds it, or the folder that was listed."""
    place: str
    """Where it is there: its path in a folder, its raw name in a zip; in a tar, the offset says it."""
    offset: int = 0
    """Position in the archive; reading in this order is fastest."""


class Entries(Sequence[Entry]):
    """Entries in columns: some fifty bytes and a name each, where objects take five hundred."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        codes: dict[Path, int] = {}
        tables = [_table_of(block, codes) for block in blocks(entries, BLOCK)]
        self._table = pa.concat_tables(tables or [_SCHEMA.empty_table()])
        self._containers = tuple(codes)

    @classmethod
    def _made(cls, table: pa.Table, containers: tuple[Path, ...]) -> Entries:
        made = cls.__new__(cls)
        made._table, made._containers = table, containers
        return made

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> Entries: ...

    def __getitem__(self, index: int | slice) -> Entry | Entries:
        if isinstance(index, slice):
            rows = range(len(self))[index]
            if rows.step == 1:
                return Entries._made(self._table.slice(rows.start, len(rows)), self._containers)
            return self.take(np.array(rows, dtype=np.int64))
        (entry,) = self._objects(self._table.slice(range(len(self))[index], 1))
        return entry

    def __iter__(self) -> Iterator[Entry]:
        for start in range(0, len(self), BLOCK):
            yield from self._objects(self._table.slice(start, BLOCK))

    @property
    def containers(self) -> tuple[Path, ...]:
        """The folders and archives that hold them."""
        return self._containers

    def names(self) -> Iterator[str]:
        """Their names, in order."""
        return unpacked(self._table["name"])

    def numbers(self, column: str) -> npt.NDArray[np.int64]:
        """One of size, offset, and container, which counts in `containers`: (n,)."""
        return np.asarray(self._table[column].to_numpy()).astype(np.int64)

    def by_name(self) -> npt.NDArray[np.int64]:
        """The rows in the order of the names, (n,)."""
        return sorted_rows(self._table["name"])

    def take(self, rows: npt.NDArray[np.int64]) -> Entries:
        """Those at the positions `rows`, in that order."""
        every = len(rows) == len(self) and bool((rows == np.arange(len(self))).all())
        return self if every else Entries._made(self._table.take(rows), self._containers)

    def renamed(self, names: Iterable[str]) -> Entries:
        """The same files by other names, one for each."""
        import pyarrow.compute as pc

        old, new = self._table["name"], packed(names)
        if old.equals(new):
            return self
        place = pc.coalesce(self._table["place"], old)
        place = pc.if_else(pc.equal(place, new), pa.scalar(None, place.type), place)
        changed = self._table.set_column(0, "name", new)
        return Entries._made(changed.set_column(_PLACE, "place", place), self._containers)

    def _objects(self, table: pa.Table) -> Iterator[Entry]:
        columns = [table[name].to_pylist() for name in _SCHEMA.names]
        for name, size, stamp, container, place, offset in zip(*columns, strict=True):
            text = name.decode(*_AS_STORED)
            where = text if place is None else place.decode(*_AS_STORED)
            yield Entry(text, size, stamp, self._containers[container], where, offset)


def _table_of(entries: Sequence[Entry], codes: dict[Path, int]) -> pa.Table:
    """Entries as columns, with containers as numbers; a place that is the name is not stored again."""
    columns: list[list[Any]] = [
        [one.name.encode(*_AS_STORED) for one in entries],
        [one.size for one in entries],
        [one.stamp for one in entries],
        [codes.setdefault(one.container, len(codes)) for one in entries],
        [None if one.place == one.name else one.place.encode(*_AS_STORED) for one in entries],
        [one.offset for one in entries],
    ]
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)], _SCHEMA)


def packed(texts: Iterable[str]) -> pa.ChunkedArray:
    """Texts as one column of bytes."""
    parts = [pa.array([text.encode(*_AS_STORED) for text in some], pa.large_binary()) for some in blocks(texts, BLOCK)]
    return pa.chunked_array(parts, pa.large_binary())


def unpacked(column: pa.ChunkedArray) -> Iterator[str]:
    """The texts of `packed`, a block of them at once."""
    for start in range(0, len(column), BLOCK):
        yield from (text.decode(*_AS_STORED) for text in column.slice(start, BLOCK).to_pylist())


def sorted_rows(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The rows of `packed` texts in the order of these: bytes of UTF-8 have that of their letters."""
    import pyarrow.compute

    return np.asarray(pyarrow.compute.sort_indices(column)).astype(np.int64)


def blocks(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    """The same items in lists of `most`, and a shorter one last."""
    source = iter(items)
    while some := list(islice(source, most)):
        yield some
