"""Random trees of mixed content: every file is accounted for, and in the same way from a folder, a zip and a tar."""

import string
import tempfile
from pathlib import Path

from door import SIDE, Room, count_files, picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hemafast.config import PrepareConfig
from hemafast.preparation.build import plan_preparation, prepare

CLASSES = ("basophil", "Eosinophil", "MONOCYTE", "neutrophil-segmented")
ODD = {
    "readme.txt": b"Cells of healthy donors.\n",
    "labels.csv": b"path,label\nx.png,basophil\n",
    "paper.pdf": b"%PDF-1.7\n",
    ".DS_Store": b"\0\0\0\1Bud1",
    "empty.jpg": b"",
    "empty": b"",
    "page.png": b"<!DOCTYPE html><html></html>",
    "cut.png": picture(800)[:-900],
    "phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    "dot.gif": b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
    "noise.bin": bytes(range(256)) * 2,
    "BA_1": picture(801, ".jpg"),
    "renamed.jpg": picture(802),
    "copy.png": picture(803),
    "copy (1).png": picture(803),
}
"""Files that lie anywhere, alone or in numbers."""

NAMES = st.text(string.ascii_letters + string.digits + " _-äßéЖ中", min_size=1, max_size=9).filter(str.strip)
WRAPPING = st.lists(NAMES, max_size=2)
SPLITS = st.sampled_from([("",), ("train", "val"), ("Training", "Test"), ("train", "valid", "test")])
TREES = st.builds(
    lambda wrapping, splits, labels, count, odd: (wrapping, splits, labels, count, odd),
    WRAPPING,
    SPLITS,
    st.lists(st.sampled_from(CLASSES), min_size=2, max_size=4, unique=True),
    st.integers(2, 4),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(sorted(ODD))), max_size=8, unique=True),
)


def files_of(room, tree):
    """Contents by path: images of classes, and odd files at random depths among them."""
    wrapping, splits, labels, count, odd = tree
    files = {}
    for split in splits:
        top = "".join(f"{folder}/" for folder in (*wrapping, split) if folder)
        files |= room.classes(*labels, under=top, count=count)
    deepest = next(iter(files)).split("/")[:-1]
    return files | {"/".join([*deepest[:depth], name]): ODD[name] for depth, name in odd}


@settings(max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(TREES)
def test_every_file_of_a_random_tree_is_accounted_for_in_any_container(tree):
    accounts = [_account_of(tree, into) for into in ("Set", "Set.zip", "Set.tar.gz")]
    assert accounts[0] == accounts[1] == accounts[2]


def _account_of(tree, into):
    """What became of every file of a tree, by its path, after the equation is checked."""
    with tempfile.TemporaryDirectory() as root:
        room = Room(Path(root))
        room.write(files_of(room, tree), into)
        config = PrepareConfig(
            source=room.source, output=room.output, pack_sizes=(SIDE,), shards=1, max_quarantined=1.0
        )
        plan = plan_preparation(config)
        prepared = prepare(config, plan, workers=1)
        account, manifest = prepared.info.account, prepared.files.manifest
        assert account.found == sum(files for _, files, _ in account.rows()) == count_files(room.source)
        became = dict(zip(manifest["source"], manifest["split"] + manifest["kind"], strict=True))
        became |= {one.name: one.kind for one in plan.passed}
        assert sorted(map(room.plain, became)) == sorted(map(room.plain, room.written))
        assert account.train and account.val
        return became
