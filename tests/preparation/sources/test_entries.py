"""A million files as columns: what comes out is what went in, and little of it stays in memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hemafast.preparation.sources.entries import BLOCK, Entries, Entry, packed, sorted_rows, unpacked

FOLDER, ZIP, TAR = Path("/data"), Path("/data/a.zip"), Path("/data/b.tar")
MIXED = [
    Entry("b/é.png", 7, "1764513123123456789", FOLDER, "b/e\u0301.png"),
    Entry("a.jpg", 2**33, "00ff00ff", ZIP, "a.jpg", 40),
    Entry("\U0001d51e.jpg", 0, "1:512", TAR, "", 512),
    Entry("bytes.png", 1, "1", FOLDER, "bytes\udcff.png"),
]
MANY = [Entry(f"{number:07d}.png", number, str(number), FOLDER, f"{number:07d}.png") for number in range(BLOCK + 5)]


@pytest.mark.parametrize("given", [[], MIXED, MANY], ids=["none", "mixed", "more than a block"])
def test_entries_come_back_as_they_were(given):
    entries = Entries(iter(given))
    assert len(entries) == len(given)
    assert list(entries) == given
    assert list(entries.names()) == [one.name for one in given]
    assert [entries[row] for row in range(-len(given), len(given), 999)] == (given * 2)[::999][: len(given[::999]) * 2]


@pytest.mark.parametrize("part", [slice(None), slice(1, 3), slice(None, None, -1), slice(3, 1), slice(-2, None)])
def test_a_slice_is_that_of_a_list(part):
    assert list(Entries(MIXED)[part]) == MIXED[part]


def test_rows_are_taken_in_any_order_and_all_in_order_cost_nothing():
    entries = Entries(MIXED)
    assert list(entries.take(np.array([2, 0]))) == [MIXED[2], MIXED[0]]
    assert entries.take(np.arange(4)) is entries


def test_another_name_does_not_change_where_a_file_is():
    renamed = Entries(MIXED).renamed(["x", "a.jpg", "y", "bytes\udcff.png"])
    assert [one.name for one in renamed] == ["x", "a.jpg", "y", "bytes\udcff.png"]
    assert [(one.place, one.container, one.stamp) for one in renamed] == [
        (one.place, one.container, one.stamp) for one in MIXED
    ]
    entries = Entries(MIXED)
    assert entries.renamed(entries.names()) is entries


def test_names_are_in_the_order_of_python():
    names = ["b", "a/b", "a.png", "ä", "z", "\U0001d51e", "\ufb00", "a", "A", ""]
    assert [names[row] for row in sorted_rows(packed(names))] == sorted(names)
    assert list(unpacked(packed(names))) == names
    assert [MIXED[row].name for row in Entries(MIXED).by_name()] == sorted(one.name for one in MIXED)


def test_numbers_are_those_of_the_rows():
    entries = Entries(MIXED)
    assert entries.numbers("size").tolist() == [7, 2**33, 0, 1]
    assert entries.numbers("offset").tolist() == [0, 40, 512, 0]
    assert [entries.containers[code] for code in entries.numbers("container")] == [one.container for one in MIXED]


def test_an_entry_takes_some_fifty_bytes_and_its_name():
    count, before = 50_000, pa.total_allocated_bytes()
    tracemalloc.start()
    entries = Entries(Entry(f"{row:020d}", row, f"{row:019d}", FOLDER, f"{row:020d}") for row in range(count))
    objects, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (pa.total_allocated_bytes() - before + objects) / count < 20 + 70
    assert len(entries) == count
