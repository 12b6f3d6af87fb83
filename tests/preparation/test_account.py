"""Files found are training, validation, test and quarantined images and what is passed over: none more, none less."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import hemafast
from packs import pack
from trees import tree

from hemafast.config import PrepareConfig
from hemafast.errors import LossError
from hemafast.preparation.account import passed_by_kind, refuse_lost
from hemafast.preparation.build import plan_preparation, prepare
from hemafast.preparation.schema import INFO, Account
from hemafast.preparation.sources.survey import PassedOver

SMALL = {"pack_sizes": (32,), "max_quarantined": 1.0}


@pytest.fixture
def source(tmp_path, draw, encode) -> Path:
    """Two laboratories and single files: 38 files of which 24 are sound images of a class."""
    numbers = iter(range(1000))

    def cells(folder: str, count: int) -> dict[str, bytes]:
        return {f"{folder}/{number}.png": encode(draw(next(numbers), 40, 40)) for number in range(count)}

    source, mask = tmp_path / "source", np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20] = 255
    split = {**cells("Train/Basophil", 6), **cells("Train/Monocyte", 6), **cells("TestA/Basophil", 2)}
    masks = {f"Train/Basophil/{number}_mask.png": encode(mask) for number in range(4)}
    pack(source / "Raabin.tar.gz", split | masks | {"README.md": b"text", "Train/Thumbs.db": b"x"})
    bad = {"basophil/empty.png": b"", "monocyte/garbage.png": b"garbage" * 30}
    others = {"labels.csv": b"path,label\n", ".DS_Store": b"x", "notes/a.txt": b"text", "notes/b.txt": b"text"}
    pack(source / "Prague", cells("basophil", 6) | cells("monocyte", 4) | bad | others)
    pack(source, {"overview.png": encode(draw(999)), ".hidden/x.png": b"x"})
    return source


def _files(source: Path) -> int:
    """Files in the folders of the source, and what the tar holds."""
    loose = [path for path in source.rglob("*") if path.is_file() and "prepared" not in path.parts]
    return len([path for path in loose if path.name not in ("Raabin.tar.gz", ".prepared.lock")]) + 14 + 4 + 2


def _prepared(source: Path, **options) -> Account:
    prepared = prepare(PrepareConfig(source=source, output=source / "prepared", **SMALL, **options))
    account = prepared.info.account
    assert json.loads((prepared.folder / INFO).read_text())["account"] == account.model_dump(mode="json")
    manifest = prepared.files.manifest
    assert len(manifest) == account.train + account.val + account.test + sum(account.quarantined.values())
    return account


PASSED = {
    "image outside class folders": (1, ["source/overview.png"]),
    "mask of a cell": (4, [f"Raabin/Train/Basophil/{number}_mask.png" for number in range(3)]),
    "system file": (3, ["Prague/.DS_Store", "Raabin/Train/Thumbs.db", "source/.hidden/x.png"]),
    "table (csv)": (1, ["Prague/labels.csv"]),
    "text": (3, ["Prague/notes/a.txt", "Prague/notes/b.txt", "Raabin/README.md"]),
}


def _kinds(account: dict) -> dict[str, tuple[int, list[str]]]:
    return {kind: (found["files"], list(found["examples"])) for kind, found in account.items()}


def test_the_account_names_every_file_of_the_source(source):
    account = _prepared(source)
    assert account.found == _files(source) == 38
    assert sum(number for _, number, _ in account.rows()) == account.found
    assert account.test == 2
    assert account.train + account.val == 22
    assert account.quarantined == {"empty": 1, "not an image": 1}
    assert _kinds(account.model_dump()["passed_over"]) == PASSED


@pytest.mark.parametrize(
    "options",
    [
        {"resplit": True},
        {"folds": 2},
        {"holdout_domain": "Prague"},
        {"class_map": {"monocyte": ""}},
        {"classes": "from-data"},
    ],
)
def test_the_account_adds_up_whatever_is_asked(source, options):
    account = _prepared(source, **options)
    assert account.found == _files(source)
    assert sum(number for _, number, _ in account.rows()) == account.found


def test_classes_that_are_left_out_are_in_the_account(source):
    passed = _prepared(source, class_map={"monocyte": ""}).passed_over["class left out"]
    assert (passed.files, passed.examples[0]) == (11, "Prague/monocyte/0.png")


def test_copies_and_contradictions_are_in_the_account(source, draw, encode):
    twice = encode(draw(500, 40, 40))
    pack(source / "Prague", {"basophil/twice.png": twice, "monocyte/twice.png": twice})
    account = _prepared(source)
    assert account.quarantined["contradiction"] == 2
    assert sum(number for _, number, _ in account.rows()) == account.found == _files(source)


def test_a_second_call_finds_the_same(source):
    assert _prepared(source) == _prepared(source)


def test_examples_are_the_first_three_of_each_kind_and_the_largest_kind_comes_first():
    passed = [PassedOver("text", f"{number}.txt") for number in (4, 2, 3, 1)] + [PassedOver("PDF", "a.pdf")]
    assert [(kind, of.files, of.examples) for kind, of in passed_by_kind(passed).items()] == [
        ("text", 4, ("1.txt", "2.txt", "3.txt")),
        ("PDF", 1, ("a.pdf",)),
    ]


# --dry-run


def test_a_dry_run_writes_nothing_and_shows_what_would_be_taken(source):
    before = tree(source)
    said = hemafast("prepare", "--source", source, "--dry-run")
    assert said.returncode == 0, said.stderr
    assert tree(source) == before
    for line in (
        "source: 38 files",
        "Raabin (Raabin.tar.gz): 14 images, um/px unknown",
        "train: 12 images",
        "test: 2 images",
        "Prague (Prague): 12 images",
        "split to be drawn: 12 images",
        "passed over: 12 files",
        "mask of a cell: 4, such as Raabin/Train/Basophil/0_mask.png",
        "image outside class folders: 1, such as source/overview.png",
        "note: ",
    ):
        assert line in said.stdout


def test_a_dry_run_gives_the_same_as_json(source):
    before = tree(source)
    result = hemafast("prepare", "--source", source, "--dry-run", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    said = json.loads(result.stdout)
    assert tree(source) == before
    assert said["found"] == said["images"] + sum(kind["files"] for kind in said["passed_over"].values()) == 38
    assert said["domains"]["Raabin"]["splits"] == {
        "train": {"basophil": 6, "monocyte": 6},
        "test": {"basophil": 2},
    }
    assert said["domains"]["Prague"]["splits"] == {"split to be drawn": {"basophil": 7, "monocyte": 5}}
    assert _kinds(said["passed_over"]) == PASSED


def test_a_dry_run_refuses_what_preparing_would(source):
    pack(source / "Prague", {"blue/1.png": b"x"})
    result = hemafast("prepare", "--source", source, "--dry-run")
    assert result.returncode == 2
    assert "blue" in result.stderr
    assert not (source / "prepared").exists()


def test_the_plan_of_a_dry_run_is_what_is_prepared(source):
    config = PrepareConfig(source=source, output=source / "prepared", **SMALL)
    plan = plan_preparation(config)
    assert plan.images + len(plan.passed) == prepare(config, plan).info.account.found


# --strict


def _strict(source: Path, *more: str):
    return hemafast("prepare", "--source", source, "--pack-size", "32", "--strict", "--quiet", *more)


def _sound(source: Path) -> Path:
    """The source without what --strict minds."""
    (source / "overview.png").unlink()
    (source / "Prague" / "basophil" / "empty.png").unlink()
    (source / "Prague" / "monocyte" / "garbage.png").unlink()
    return source


def test_strict_accepts_text_masks_and_what_a_system_left(source):
    result = _strict(_sound(source))
    assert result.returncode == 0, result.stderr
    assert (source / "prepared" / INFO).is_file()


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_strict_fails_for_an_image_outside_class_folders(source, draw, encode, more):
    pack(_sound(source), {"overview.png": encode(draw(1))})
    result = _strict(source, *more)
    assert result.returncode == 1
    assert "1 image outside class folders: source/overview.png" in result.stderr
    assert not (source / "prepared").exists()


@pytest.mark.parametrize("data", [b"", b"garbage"])
def test_strict_fails_for_an_image_that_would_be_quarantined(source, data):
    pack(_sound(source), {"Prague/basophil/bad.png": data})
    result = _strict(source)
    assert result.returncode == 1
    assert "bad.png" in result.stderr
    assert not (source / "prepared").exists()


def test_strict_fails_for_an_image_that_the_labels_lack(source):
    table = source.parent / "labels.csv"
    names = [f"Prague/{label}/{number}.png,{label}" for label in ("basophil", "monocyte") for number in range(4)]
    table.write_text("\n".join(["path,label", *names]), encoding="utf-8")
    result = _strict(_sound(source), "--labels", str(table))
    assert result.returncode == 1
    assert "2 image not in the labels" in result.stderr  # the other trees have class folders of their own


def test_without_strict_nothing_of_it_is_an_error(source):
    result = hemafast("prepare", "--source", source, "--pack-size", "32", "--max-quarantined", "1", "--quiet")
    assert result.returncode == 0, result.stderr
    assert "passed over: image outside class folders" in result.stdout
    assert "files found" in result.stdout


def test_leaving_a_class_out_is_no_loss():
    refuse_lost([PassedOver("class left out", "a.png"), PassedOver("text", "b.txt")])
    with pytest.raises(LossError) as caught:
        refuse_lost([PassedOver("image not in the labels", "a.png")])
    assert caught.value.exit_code == 1
