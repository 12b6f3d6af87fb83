"""Looks at test images: counted beside the data, whatever run takes them, and said louder each time."""

import shutil
from pathlib import Path

import pytest
from command import hemafast

from hemafast.config import PrepareConfig, checked
from hemafast.data.dataset import open_dataset
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.evaluate.looks import COLUMNS, looks_file, take_look
from hemafast.preparation.build import prepare
from hemafast.report.page import write_report


@pytest.fixture(scope="module")
def drawn(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("looks") / "prepared"
    fields = {"source": prepared.folder.parent, "output": folder, "pack_sizes": (64,), "test_fraction": 0.25}
    return prepare(checked(PrepareConfig, fields)).folder


@pytest.fixture(scope="module")
def trained(drawn, train_on):
    folder = train_on(drawn, epochs=1)
    evaluate_run(folder)
    return folder


@pytest.fixture
def data(drawn):
    """The data set, at whose test images nobody has looked yet."""
    looks_file(drawn).unlink(missing_ok=True)
    return open_dataset(drawn)


def _look(data, run="run", split="test", **more):
    return take_look(data, split, Path(run), epoch=1, **({"macro_f1": 0.5} | more))


def test_the_first_look_is_a_note_and_every_later_one_a_warning(data):
    first, second = _look(data), _look(data, "other")
    assert (first.number, first.runs, first.last) == (1, 0, None)
    assert first.told().startswith("The first look at these test images.")
    assert (second.number, second.runs) == (2, 1)
    assert second.told().startswith("THE TEST IMAGES WERE LOOKED AT BEFORE: 1 time, with 1 run, last at 20")
    assert "2 times, with 2 runs" in _look(data).told()
    lines = looks_file(data.folder).read_text(encoding="utf-8").splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert [line.rpartition(",")[2] for line in lines[1:]] == ["0.500000"] * 3


@pytest.mark.parametrize("split", ["val", "train"])
def test_only_looks_at_test_images_count(data, split, dataset):
    assert _look(data, split=split) is None
    assert take_look(dataset, "all", Path("run"), epoch=1, macro_f1=0.5) is None  # it has no test images
    assert not looks_file(data.folder).exists()
    assert _look(data, split="all").number == 1


def test_the_same_test_images_prepared_otherwise_are_the_same_test(data, tmp_path, prepared):
    _look(data)
    fields = {"source": prepared.folder.parent, "output": data.folder, "test_fraction": 0.25}
    moved = tmp_path / "prepared"
    for options, number in (({"folds": 3}, 2), ({"val_fraction": 0.4}, 2), ({"seed": 7}, 1)):
        shutil.rmtree(moved, ignore_errors=True)
        shutil.copy(looks_file(data.folder), looks_file(moved))
        made = prepare(checked(PrepareConfig, fields | {"output": moved, "pack_sizes": (32,)} | options)).folder
        assert _look(open_dataset(made)).number == number


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a,b\nc", b"at,test\n" * 100, b'"' * 1000])
def test_a_damaged_count_begins_anew(data, content):
    looks_file(data.folder).write_bytes(content)
    assert _look(data).number == 1


@pytest.mark.parametrize("score", [None, float("nan")])
def test_a_look_without_a_score_counts(data, score):
    assert _look(data, macro_f1=score).number == 1
    assert _look(data, "a run,\nof two lines").number == 2
    assert _look(data).number == 3


def test_a_count_that_cannot_be_written_is_a_warning(data, caplog, tmp_path):
    looks_file(data.folder).symlink_to(tmp_path / "elsewhere")
    assert _look(data).number == 1
    assert "cannot be counted" in caplog.text
    assert not (tmp_path / "elsewhere").exists()


def test_scores_log_and_page_say_it(data, trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    assert evaluate_run(run)["look"] is None
    first = evaluate_run(run, split="test")
    assert first["look"]["number"] == 1
    assert not [said for said in first["warnings"] if "LOOKED" in said]
    page = write_report(run / "evaluations" / "test").read_text(encoding="utf-8")
    assert "The first look at these test images." in " ".join(page.split())
    done = hemafast("evaluate", run, "--split", "test")
    assert done.returncode == 0, done.stderr
    assert "THE TEST IMAGES WERE LOOKED AT BEFORE: 1 time" in " ".join(done.stdout.split())
    page = (run / "evaluations" / "test" / "report.html").read_text(encoding="utf-8")
    assert "THE TEST IMAGES WERE LOOKED AT BEFORE" in page
