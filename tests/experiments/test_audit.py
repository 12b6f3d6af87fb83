"""Labels that are probably wrong: found, listed, corrected."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from command import hemafast
from page import needs_browser, wrong_with

from hemafast.config import PrepareConfig, checked
from hemafast.data.dataset import open_dataset
from hemafast.errors import HemafastError
from hemafast.experiments import audit as room
from hemafast.experiments.audit import PAGE, TABLE, audit, judgeable
from hemafast.preparation.build import prepare


@pytest.fixture
def source(tmp_path, draw, encode):
    """Dark and bright cells in two classes; two of each lie in the folder of the other."""
    for number in range(40):
        label = "monocyte" if number % 2 else "basophil"
        shown = label if number not in (3, 7, 10, 20) else {"monocyte": "basophil", "basophil": "monocyte"}[label]
        pixels = draw(number) // 2 + (120 if shown == "monocyte" else 0)
        path = tmp_path / "source" / "Lab" / label / f"cell_{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels.astype(np.uint8)))
    return tmp_path / "source"


WRONG = {f"cell_{number:02d}.png" for number in (3, 7, 10, 20)}


def prepared_from(source, **changes):
    fields = {"source": source, "output": source / "prepared", "pack_sizes": (64,), "classes": "from-data"}
    return open_dataset(prepare(checked(PrepareConfig, fields | changes)).folder)


@pytest.fixture
def by_brightness(monkeypatch):
    """Features that need no weights: the mean of each channel."""
    means = lambda images: images.float().mean(dim=(2, 3))  # noqa: E731

    class Network:
        levels = staticmethod(means)
        backbone = None

        def eval(self):
            return self

        def to(self, *_, **__):
            return self

    monkeypatch.setattr(room, "build_model", lambda *_: Network())
    monkeypatch.setattr(room, "fuse_batch_norms", lambda _: None)
    monkeypatch.setattr(room, "load_initial_weights", lambda *_, **__: type("Origin", (), {"detail": "none"}))
    monkeypatch.setattr(room, "SIZE", 56)


def _pairs(data):
    return zip(data.table["path"], data.table["label"], strict=True)


def test_test_images_are_neither_judged_nor_shown(source, by_brightness, tmp_path, monkeypatch):
    seen = []
    features = room.features_of
    monkeypatch.setattr(room, "features_of", lambda *given: seen.append(given[1]) or features(*given))
    data = prepared_from(source, test_fraction=0.5)
    tested = set(data.split("test")["path"])
    assert 18 <= len(tested) <= 22
    found = audit(data, tmp_path / "out", count=40)
    assert found.images == 40 - len(tested) == len(found.table)
    assert not tested & set(found.table["path"])
    assert {"/".join(path.split("/")[-4:]) for path in seen[0].paths} == set(data.split("all")["path"]) - tested


def names(table):
    return {path.rpartition("/")[2] for path in table["path"]}


def test_wrong_labels_come_first_and_the_right_class_is_suggested(source, by_brightness, tmp_path):
    found = audit(prepared_from(source), tmp_path / "out", count=4)
    assert names(found.table) == WRONG
    assert (found.table["given"] != found.table["suggested"]).all()
    assert (found.table["label"] == "").all()
    assert found.table["quality"].is_monotonic_increasing
    assert found.images == 40
    page = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 4
    assert "4 labels to look at again" in page


@needs_browser
@pytest.mark.slow
def test_the_page_is_sound_in_every_look(source, by_brightness, tmp_path, open_page):
    again = source / "Lab" / "monocyte" / "cell_12.png"  # also a picture in two classes
    again.write_bytes((source / "Lab" / "basophil" / "cell_12.png").read_bytes())
    audit(prepared_from(source), tmp_path / "out", count=4)
    assert wrong_with(open_page, tmp_path / "out" / PAGE) == {}


def test_a_corrected_table_goes_back_into_prepare(source, by_brightness, tmp_path):
    before = prepared_from(source)
    found = audit(before, tmp_path / "out", count=6)
    table = pd.read_csv(tmp_path / "out" / TABLE, keep_default_na=False)
    assert table.columns.tolist() == found.table.columns.tolist()
    wrong = [path.rpartition("/")[2] in WRONG for path in table["path"]]
    table.loc[wrong, "label"] = table.loc[wrong, "suggested"]
    table.to_csv(tmp_path / "fixed.csv", index=False)
    after = prepared_from(source, labels_fix=tmp_path / "fixed.csv")
    label_of = {path.rpartition("/")[2]: label for path, label in _pairs(after)}
    for path, label in _pairs(before):
        name = path.rpartition("/")[2]
        assert (label_of[name] != label) == (name in WRONG), name
    assert after.info.fingerprint != before.info.fingerprint
    assert not names(audit(after, tmp_path / "again", count=4).table) & WRONG


def test_an_empty_table_of_corrections_changes_no_label(source, tmp_path):
    before = prepared_from(source)
    (tmp_path / "none.csv").write_text("path,label\nimages/Lab/basophil/cell_00.png,\n")
    after = prepared_from(source, labels_fix=tmp_path / "none.csv")
    assert after.table["label"].tolist() == before.table["label"].tolist()
    assert "none.csv: 0 labels corrected" in after.info.notes


def test_a_table_that_a_spreadsheet_saved_corrects_too_and_another_case_is_no_correction(source, tmp_path):
    text = "path;label\nimages/Lab/basophil/cell_00.png;Monocyte\nimages/Lab/basophil/cell_02.png;Basophil\n"
    (tmp_path / "fixed.csv").write_text(text, encoding="utf-8-sig")
    after = prepared_from(source, labels_fix=tmp_path / "fixed.csv")
    labels = {path.rpartition("/")[2]: label for path, label in _pairs(after)}
    assert (labels["cell_00.png"], labels["cell_02.png"]) == ("monocyte", "basophil")
    assert "fixed.csv: 1 label corrected" in after.info.notes


@pytest.mark.parametrize(
    ("text", "classes", "words"),
    [
        ("path,label\nimages/Lab/basophil/cell_99.png,monocyte\n", "from-data", "cell_99.png"),
        ("path,label\ncell_00.png,monocite\n", "from-data", "'monocite'"),
        ("path,label\ncell_00.png,monocite\n", "challenge", "monocite"),
        ("path,label\ncell_00.png,monocyte\nbasophil/cell_00.png,basophil\n", "from-data", "cell_00.png"),
        ("path,given\ncell_00.png,monocyte\n", "from-data", "no column label"),
        (",label\n", "from-data", "fixed.csv"),
    ],
)
def test_corrections_that_cannot_be_meant_are_refused_and_nothing_is_written(source, tmp_path, text, classes, words):
    (tmp_path / "fixed.csv").write_text(text)
    with pytest.raises(HemafastError, match=words):
        prepared_from(source, labels_fix=tmp_path / "fixed.csv", classes=classes)
    assert not (source / "prepared").exists()


def test_pictures_that_lie_in_two_classes_come_before_all_others(source, by_brightness, tmp_path):
    twin = source / "Lab" / "monocyte" / "twin.png"
    twin.write_bytes((source / "Lab" / "basophil" / "cell_00.png").read_bytes())
    found = audit(prepared_from(source), tmp_path / "out", count=3)
    assert names(found.table[:2]) == {"twin.png", "cell_00.png"}
    assert found.table["reason"][:2].str.startswith("the same picture is ").all()
    assert len(found.table) == 5
    (tmp_path / "fixed.csv").write_text(
        f"path,label\n{found.table['path'][0]},basophil\n{found.table['path'][1]},basophil\n"
    )
    after = prepared_from(source, labels_fix=tmp_path / "fixed.csv")
    assert set(after.table["verdict"]) == {"accepted"}


def test_a_class_in_one_group_is_not_judged_and_is_named(source, by_brightness, tmp_path, draw, encode):
    lone = source / "Lab" / "blast" / "only.png"
    lone.parent.mkdir()
    lone.write_bytes(encode(draw(99)))
    found = audit(prepared_from(source), tmp_path / "out", count=41)
    assert found.unjudged == ("blast",)
    assert "only.png" not in names(found.table)
    assert "not judged: blast" in "\n".join(found.lines())


def test_data_with_too_few_images_is_refused(tmp_path, by_brightness, draw, encode):
    for number, label in enumerate(("basophil", "basophil", "monocyte")):
        path = tmp_path / "source" / "Lab" / label / f"cell_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(draw(number)))
    with pytest.raises(HemafastError, match="too few images to judge"):
        audit(prepared_from(tmp_path / "source"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_few_images_have_a_most_suspicious_one_too(tmp_path, by_brightness, draw, encode):
    for number, label in enumerate(("basophil", "basophil", "monocyte", "monocyte")):
        path = tmp_path / "source" / "Lab" / label / f"cell_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(draw(number)))
    assert len(audit(prepared_from(tmp_path / "source"), tmp_path / "out").table) == 1


@pytest.mark.parametrize(
    ("groups", "places"), [("abcd", [0, 1, 2, 3]), ("aabc", []), ("aabb", []), ("abcde", [0, 1, 2, 3])]
)
def test_only_classes_with_images_in_two_groups_are_judged(groups, places):
    labels = np.array([0, 0, 1, 1, 2])[: len(groups)]
    assert judgeable(labels, list(groups)).tolist() == places


def test_a_run_on_these_labels_may_not_judge_them(scored, dataset, tmp_path):
    with pytest.raises(HemafastError, match="has learned the wrong labels too"):
        audit(dataset, tmp_path / "out", run=scored, device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_run_on_other_data_judges_by_its_features(scored, source, tmp_path):
    found = audit(prepared_from(source), tmp_path / "out", run=scored, count=2, device="cpu")
    assert str(scored) in found.judged_by
    assert len(found.table) == 2


def test_the_command_prints_what_to_do_next(source, by_brightness, tmp_path):
    data = prepared_from(source)
    said = hemafast("audit", data.folder, "--count", 4, "--output", tmp_path / "out", "--quiet")
    assert said.returncode == 0, said.stderr
    assert "4 of 40 labels to look at again" in said.stdout
    assert f"--labels-fix {tmp_path}" in re.sub(r"\s+", " ", said.stdout)
    plain = json.loads(hemafast("audit", data.folder, "--output", tmp_path / "out", "--json").stdout)
    assert len(plain["suspects"]) == 2  # 4 %
    refused = hemafast("audit", tmp_path / "nowhere")
    assert refused.returncode == 2
    assert "or name one." in refused.stderr


def test_of_a_run_the_labels_that_it_was_trained_on_are_judged(scored, by_brightness, tmp_path):
    said = hemafast("audit", scored, "--count", 3, "--output", tmp_path / "out", "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["images"] == 58
