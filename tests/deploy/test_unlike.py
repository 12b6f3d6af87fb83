"""Images unlike those that a model was trained on are told before the answers, in the table, and by evaluate."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import hemafast
from exported import write_run_on
from PIL import Image

from hemafast.config import PrepareConfig
from hemafast.data.dataset import open_dataset
from hemafast.deploy.model import open_model
from hemafast.errors import HemafastError
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.evaluate.predictions import read_predictions
from hemafast.preparation.build import prepare
from hemafast.report.page import write_report

COUNTS = {"basophil": 90, "monocyte": 90}


@pytest.fixture(scope="module")
def home(tmp_path_factory, make_archive):
    """A run with 45 calibration images of home, evaluated."""
    source = tmp_path_factory.mktemp("home")
    make_archive(source / "Lab.zip", COUNTS, seed=11)
    settings = PrepareConfig(
        source=source, output=source / "prepared", pack_sizes=(64,), val_fraction=0.5, classes="from-data"
    )
    dataset = open_dataset(prepare(settings).folder)
    folder = write_run_on(dataset, source / "run", calibration=None)
    (folder / "machine.json").write_text('{"choices": [], "facts": {}}', encoding="utf-8")
    return folder, evaluate_run(folder, device="cpu")


@pytest.fixture(scope="module")
def like(tmp_path_factory, make_archive):
    return make_archive(tmp_path_factory.mktemp("like") / "cells", {"basophil": 20, "monocyte": 20}, seed=12)


@pytest.fixture(scope="module")
def unlike(like, tmp_path_factory):
    """The same cells as negatives."""
    folder = tmp_path_factory.mktemp("unlike")
    for file in like.rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(file))).save(folder / file.name)
    return folder


def predict(home, images, output, *options):
    return hemafast("predict", home[0], images, "--output", output, "--device", "cpu", *options)


def test_false_alarms_at_home_are_counted_on_images_that_nothing_was_fitted_on(home):
    folder, metrics = home
    found = metrics["likeness"]
    assert found["fitted_on"] == metrics["model"]["calibration"]["images"] >= 40
    assert found["pooled"]["images"] == metrics["pooled"]["images"] - found["fitted_on"]
    assert found["pooled"]["share"] < 0.3
    assert found["domains"].keys() == {"Lab"}
    table, _, _ = read_predictions(folder / "predictions.csv")
    reported = table[table["part"] == "report"]["likeness"].astype(float)
    assert (reported <= 0.05).sum() == found["pooled"]["alarms"]
    assert (folder / "likeness.safetensors").is_file()


def test_images_like_home_are_no_alarm(home, like, tmp_path):
    done = predict(home, like, tmp_path / "out.csv")
    assert done.returncode == 0
    assert "unlike those that the model was trained on" not in done.stdout + done.stderr
    likeness = pd.read_csv(tmp_path / "out.csv")["likeness"]
    assert ((likeness > 0) & (likeness <= 1)).all()
    assert (likeness <= 0.05).mean() < 0.3


def test_unlike_images_are_told_before_the_answers_in_the_table_and_with_exit_code_0(home, unlike, tmp_path):
    done = predict(home, unlike, tmp_path / "out.csv")
    assert done.returncode == 0
    (warning,) = [line for line in done.stderr.splitlines() if "unlike those that the model was trained on" in line]
    assert "40 of 40 images" in warning
    assert "100% in colour" in warning
    assert "hemafast adapt" in warning
    assert "40 images (100%) unlike" in done.stdout
    table = pd.read_csv(tmp_path / "out.csv")
    assert (table["likeness"] <= 0.05).all()
    assert (table["status"] == "ok").all()


def test_the_summary_as_json_has_the_likeness(home, unlike, tmp_path):
    found = json.loads(predict(home, unlike, tmp_path / "out.csv", "--json").stdout)["likeness"]
    assert found["unlike"] is True
    assert (found["alarms"], found["images"], found["parts"]["colour"]) == (40, 40, 1.0)


def test_the_library_has_the_column_and_warns(home, unlike, caplog):
    frame = open_model(home[0], device="cpu").predict(sorted(unlike.iterdir())[:3], tta=True)
    assert (frame["likeness"] <= 0.05).all()
    assert "3 of 3 images are unlike" in caplog.text


def test_an_unreadable_image_has_no_likeness(home, unlike, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    frame = open_model(home[0], device="cpu").predict([*sorted(unlike.iterdir())[:2], tmp_path / "broken.png"])
    assert frame["likeness"].isna().tolist() == [False, False, True]


def test_a_model_without_a_likeness_says_nothing(home, unlike, caplog, tmp_path):
    file = Path(tmp_path / "best_model.safetensors")
    file.write_bytes((home[0] / "best_model.safetensors").read_bytes())
    frame = open_model(file, device="cpu").predict(unlike)
    assert frame["likeness"].isna().all()
    assert "unlike those" not in caplog.text


def test_other_data_that_is_unlike_is_a_warning_of_its_scores_and_on_the_page(home, unlike, tmp_path):
    folder, own = home
    for file in unlike.iterdir():
        label = {"BAS": "basophil", "MON": "monocyte"}[file.name[:3]]
        (tmp_path / "other" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / label / file.name).write_bytes(file.read_bytes())
    settings = PrepareConfig(
        source=tmp_path / "other", output=tmp_path / "prepared", pack_sizes=(64,), val_fraction=0.5, classes="from-data"
    )
    before = (folder / "likeness.safetensors").read_bytes()
    metrics = evaluate_run(folder, data=prepare(settings).folder, device="cpu")
    assert metrics["likeness"]["pooled"]["unlike"] is True
    assert any("unlike those that the model was trained on" in warning for warning in metrics["warnings"])
    assert not any("unlike those" in warning for warning in own["warnings"])
    assert metrics["pooled"]["sets"]["images"] == metrics["pooled"]["images"]
    assert (folder / "likeness.safetensors").read_bytes() == before
    (scores,) = (folder / "evaluations").iterdir()
    page = write_report(scores).read_text(encoding="utf-8")
    assert "Likeness to the training images" in page
    assert "unlike those that the model was trained on" in page


def test_sets_are_a_column_of_classes_by_probability(home, like, tmp_path, caplog):
    done = predict(home, like, tmp_path / "out.csv", "--sets")
    assert done.returncode == 0
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    thresholds = home[1]["model"]["calibration"]["set_thresholds"]
    classes = home[1]["model"]["classes"]
    for row in table.to_dict("records"):
        inside = {name for name, least in zip(classes, thresholds, strict=True) if row[f"p_{name}"] >= least}
        assert set(filter(None, row["set"].split(";"))) == inside
    assert table["set"].str.split(";").str[0].isin([*table["predicted"].unique(), ""]).all()


def test_sets_need_a_calibration_and_one_model(home, like, tmp_path):
    file = Path(tmp_path / "best_model.safetensors")
    file.write_bytes((home[0] / "best_model.safetensors").read_bytes())
    with pytest.raises(HemafastError, match=r"No sets were calibrated for .*hemafast evaluate"):
        open_model(file, device="cpu").predict(like, sets=True)
    done = hemafast("predict", home[0], like, "--runs", tmp_path, "--sets", "--output", tmp_path / "out.csv")
    assert done.returncode != 0
    assert "several models" in done.stderr
