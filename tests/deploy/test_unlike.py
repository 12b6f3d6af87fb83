"""Images unlike those that a model was trained on are told before the answers, in the table, and by evaluate."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import hemafast
from exported import write_run_on
from PIL import Image

from hemafast.config import PrepareConfig
from hemafast.data.dataset import open_dataset
from hemafast.demo.cells import ACEVEDO_20, MATEK_19, draw_cell
from hemafast.deploy.model import open_model
from hemafast.errors import HemafastError
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.evaluate.predictions import read_predictions
from hemafast.preparation.build import prepare
from hemafast.report.page import write_report


def draw(folder, stain, images, seed):
    """A folder of drawn cells of two classes, 64 px wide."""
    generator = np.random.default_rng(seed)
    small = replace(stain, width_px=64, height_px=64, um_per_px=stain.um_per_px * 5)
    for label in ("basophil", "monocyte"):
        (folder / label).mkdir(parents=True)
        for number in range(images // 2):
            Image.fromarray(draw_cell(label, small, generator)).save(folder / label / f"{label}_{number:03d}.png")
    return folder


def ready(source):
    """A prepared data set; half of the images are for validation."""
    settings = {"pack_sizes": (64,), "val_fraction": 0.5, "classes": "from-data"}
    return prepare(PrepareConfig(source=source, output=source.parent / f"{source.name}-prepared", **settings)).folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run with calibration images of home, evaluated."""
    source = tmp_path_factory.mktemp("home")
    draw(source / "archives" / "Lab", ACEVEDO_20, 200, seed=0)
    folder = write_run_on(open_dataset(ready(source / "archives")), source / "run", calibration=None)
    (folder / "machine.json").write_text('{"choices": [], "facts": {}}', encoding="utf-8")
    return folder, evaluate_run(folder, device="cpu")


@pytest.fixture(scope="module")
def like(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("like") / "cells", ACEVEDO_20, 40, seed=1)


@pytest.fixture(scope="module")
def unlike(tmp_path_factory):
    """Cells of another laboratory."""
    return draw(tmp_path_factory.mktemp("unlike") / "cells", MATEK_19, 40, seed=2)


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
    warning = " ".join(done.stderr.split())
    assert "WARNING 40 of 40 images are unlike those that the model was trained on (100% in colour" in warning
    assert f"hemafast adapt {home[0]}" in warning
    assert "40 images (100%) unlike" in done.stdout
    table = pd.read_csv(tmp_path / "out.csv")
    assert (table["likeness"] <= 0.05).all()
    assert (table["status"] == "ok").all()


def test_the_summary_as_json_has_the_likeness(home, unlike, tmp_path):
    found = json.loads(predict(home, unlike, tmp_path / "out.csv", "--json").stdout)["likeness"]
    assert found["unlike"] is True
    assert (found["alarms"], found["images"], found["parts"]["colour"]) == (40, 40, 1.0)


def test_the_library_has_the_column_and_warns(home, unlike, caplog):
    frame = open_model(home[0], device="cpu").predict(sorted(unlike.rglob("*.png"))[:3], tta=True)
    assert (frame["likeness"] <= 0.05).all()
    assert "3 of 3 images are unlike" in caplog.text


def test_an_unreadable_image_has_no_likeness(home, unlike, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    frame = open_model(home[0], device="cpu").predict([*sorted(unlike.rglob("*.png"))[:2], tmp_path / "broken.png"])
    assert frame["likeness"].isna().tolist() == [False, False, True]


def test_a_model_without_a_likeness_says_nothing(home, unlike, caplog, tmp_path):
    file = Path(tmp_path / "best_model.safetensors")
    file.write_bytes((home[0] / "best_model.safetensors").read_bytes())
    frame = open_model(file, device="cpu").predict(unlike)
    assert frame["likeness"].isna().all()
    assert "unlike those" not in caplog.text


def test_other_data_that_is_unlike_is_a_warning_of_its_scores_and_on_the_page(home, unlike, tmp_path):
    folder, own = home
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "Elsewhere").symlink_to(unlike)
    before = (folder / "likeness.safetensors").read_bytes()
    metrics = evaluate_run(folder, data=ready(tmp_path / "other"), device="cpu")
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
        inside = [name for name, least in zip(classes, thresholds, strict=True) if row[f"p_{name}"] >= least]
        inside.sort(key=lambda name: -row[f"p_{name}"])
        assert row["set"] == ";".join(inside)


def test_sets_need_a_calibration_and_one_model(home, like, tmp_path):
    file = Path(tmp_path / "best_model.safetensors")
    file.write_bytes((home[0] / "best_model.safetensors").read_bytes())
    with pytest.raises(HemafastError, match=r"No sets were calibrated for .*hemafast evaluate"):
        open_model(file, device="cpu").predict(like, sets=True)
    done = hemafast("predict", home[0], like, "--runs", tmp_path, "--sets", "--output", tmp_path / "out.csv")
    assert done.returncode != 0
    assert "2 models together" in done.stderr
