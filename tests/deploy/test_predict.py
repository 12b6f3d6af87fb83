"""Predictions are those of evaluation; ensembles, symmetries and thresholds; what is refused and what is a row."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command import hemafast
from exported import CARD, card_on, hostile_checkpoints, write_run
from PIL import Image
from recorder import Recorder, Stage

from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader
from hemafast.deploy import predict as module
from hemafast.deploy.formats import KINDS
from hemafast.deploy.inputs import read_images
from hemafast.deploy.model import open_model, symmetries
from hemafast.deploy.plan import Options, make_plan, sort_named
from hemafast.deploy.predict import classify, predict_to
from hemafast.engine.checkpoint import Calibration, load_best, read_card, save_best
from hemafast.errors import HemafastError
from hemafast.evaluate.calibration import soften
from hemafast.evaluate.predictions import read_predictions
from hemafast.preparation.scale import estimate_scale
from hemafast.preparation.split import VAL
from hemafast.preparation.tables.read import read_table
from hemafast.progress import SILENT

CPU = {"device": "cpu"}


def ask(models, paths, **options):
    """The table of predictions."""
    models = models if isinstance(models, list) else [models]
    paths = paths if isinstance(paths, list) else [paths]
    return classify(make_plan(models, list(map(str, paths)), Options(**CPU | options)))


def numbers(table):
    return table[[name for name in table if name.startswith("p_")]].to_numpy()


def calibrated(run, calibration):
    """`run`, whose model now has that calibration."""
    file = run / "best_model.safetensors"
    model, card = load_best(file)
    (run / "calibration.json").unlink(missing_ok=True)
    save_best(file, model, replace(card, calibration=calibration))
    return run


@pytest.fixture
def model(fitted, tmp_path):
    """A copy of the run to change at will."""
    return Path(shutil.copytree(fitted, tmp_path / "model"))


@pytest.fixture(scope="module")
def squares(cut):
    """Validation images as they are packed, uint8 (images, 64, 64, 3), and their files."""
    samples = cut.samples(VAL)
    return np.asarray(samples.packed), samples.paths


def answers(run, images, turn=lambda images: images):
    """Of the run's own model, called on windows (images, side, side, 3) without any of the engine."""
    model, card = load_best(run / "best_model.safetensors")
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(np.ascontiguousarray(turn(images))).permute(0, 3, 1, 2))
    temperature = card.calibration.temperature if card.calibration else 1.0
    return soften(logits.softmax(dim=1).numpy(), temperature)


@pytest.mark.parametrize("from_zips", [True, False])
def test_predictions_are_those_of_evaluation(fitted, cut, from_zips):
    expected, classes, probabilities = read_predictions(fitted / "predictions.csv")
    source = cut.folder.parent
    paths = [source / "Acevedo_20.zip", source / "Matek_19.zip"] if from_zips else [cut.folder / "images"]
    table = ask(fitted, paths)
    assert len(table) == len(cut.table)
    assert [name for name in table if name.startswith("p_")] == [f"p_{name}" for name in classes]
    key = table["image"].str.replace(".zip", "").str.split("/").str[-3:].str.join("/")
    ours = table.set_index(key).loc[expected["image"].str.removeprefix("images/")]
    assert np.abs(numbers(ours) - probabilities).max() < 1e-5
    assert ours["predicted"].tolist() == expected["predicted"].tolist()
    assert np.allclose(ours["entropy"], expected["entropy"], atol=1e-4)
    assert np.ptp(probabilities, axis=0).max() > 0.01


def test_predictions_are_those_of_the_model_called_on_centre_windows(fitted, squares):
    pixels, paths = squares
    expected = answers(fitted, pixels[:, 4:60, 4:60])
    table = ask(fitted, list(paths))
    assert table["image"].tolist() == list(paths)
    assert np.abs(numbers(table) - expected).max() < 1e-5
    assert np.allclose(table["confidence"], expected.max(axis=1), atol=1e-5)
    assert np.allclose(table["entropy"], -(expected * np.log(expected)).sum(axis=1), atol=1e-4)
    assert (table["status"] == "ok").all()
    assert (table["error"] == "").all()


def test_a_model_of_another_size_sees_what_validation_shows_it(cut, squares, tmp_path):
    run = write_run(tmp_path / "run", card_on(cut, image_size=32))
    shape = GraphShape("cpu", "packed", 64, 32, 64, 1)
    (batch,) = eval_loader(cut.samples(VAL), shape=shape).epoch(0)
    expected = answers(run, batch.images.permute(0, 2, 3, 1).numpy())
    assert np.abs(numbers(ask(run, list(squares[1]))) - expected).max() < 1e-5


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_the_batch_size_changes_nothing(fitted, cut, batch_size):
    whole, other = (ask(fitted, cut.folder / "images", batch_size=size) for size in (64, batch_size))
    pd.testing.assert_frame_equal(whole, other, atol=1e-5)


def test_a_model_without_calibration_gives_its_own_probabilities(model, squares):
    pixels, paths = squares
    plain = answers(calibrated(model, None), pixels[:, 4:60, 4:60])
    assert np.abs(numbers(ask(model, list(paths))) - plain).max() < 1e-5
    hot = calibrated(model, Calibration(temperature=4.0, threshold=None, target=0.95, images=9))
    assert np.abs(numbers(ask(hot, list(paths))) - soften(plain, 4.0)).max() < 1e-5


def test_a_scale_that_is_given_decides_what_is_seen(fitted, cut, tmp_path):
    source = cut.folder.parent / "Acevedo_20.zip"
    renamed = shutil.copy(source, tmp_path / "unknown.zip")
    expected = numbers(ask(fitted, source))
    assert np.array_equal(numbers(ask(fitted, renamed, um_per_pixel=0.5)), expected)
    assert np.abs(numbers(ask(fitted, renamed)) - expected).max() > 1e-3


def test_a_scale_that_nothing_says_is_estimated_from_the_nuclei_of_all_images_named_together(model, draw, tmp_path):
    without_sizes = replace(read_card(model / "best_model.safetensors").calibration, nuclei=None)  # an older run
    fitted = calibrated(model, without_sizes)
    arrays = [np.pad(draw(seed, 64, 60), ((30, 30), (30, 30), (0, 0)), constant_values=235) for seed in range(6)]
    scale = estimate_scale(arrays).um_per_pixel
    assert 25 / scale < 100
    for number, array in enumerate(arrays):
        path = tmp_path / "new" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    opened, folder = open_model(fitted), tmp_path / "new"
    named = opened.predict(folder)
    pd.testing.assert_frame_equal(named, opened.predict(folder, um_per_pixel=scale))
    assert not named.equals(opened.predict(folder, um_per_pixel="unknown"))
    pd.testing.assert_frame_equal(opened.predict(arrays), opened.predict(arrays, um_per_pixel=scale))


def all_symmetries(images):
    """(images, side, side, 3): quarter turns, and quarter turns of the mirror image."""
    return [np.rot90(form, turns, axes=(1, 2)) for form in (images, images[:, :, ::-1]) for turns in range(4)]


def test_augmented_predictions_are_the_mean_over_the_eight_symmetries(fitted, squares):
    pixels, paths = squares
    windows = pixels[:, 4:60, 4:60]
    expected = np.mean([answers(fitted, form) for form in all_symmetries(windows)], axis=0)
    table = ask(fitted, list(paths), tta=True)
    assert np.abs(numbers(table) - expected).max() < 1e-5
    assert np.abs(numbers(table) - answers(fitted, windows)).max() > 1e-3


def test_the_symmetries_are_all_eight_and_each_once():
    image = torch.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5)
    ours = [form.permute(0, 2, 3, 1).numpy().tobytes() for form in symmetries(image)]
    assert len(ours) == 8
    assert set(ours) == {
        np.ascontiguousarray(form).tobytes() for form in all_symmetries(image.permute(0, 2, 3, 1).numpy())
    }


def test_several_models_are_the_mean_of_their_probabilities(fitted, cut, squares, tmp_path):
    _, paths = squares
    hot = Calibration(temperature=3.0, threshold=None, target=0.95, images=1)
    others = [
        write_run(tmp_path / "same_view", card_on(cut, image_size=56, calibration=hot)),
        write_run(tmp_path / "other_size", card_on(cut, image_size=32)),
    ]
    alone = [numbers(ask(run, list(paths))) for run in (fitted, *others)]
    assert np.abs(alone[0] - alone[1]).max() > 1e-2
    together = ask([fitted, *others], list(paths))
    assert np.abs(numbers(together) - np.mean(alone, axis=0)).max() < 1e-5
    expected = [cut.info.classes[row.argmax()] for row in np.mean(alone, axis=0)]
    assert together["predicted"].tolist() == expected


def test_models_of_different_views_each_have_their_own_squares(fitted, cut, squares, tmp_path):
    _, paths = squares
    card = card_on(cut)
    small = replace(card.view, packed_size=48)
    narrow = replace(card.view, field_of_view=12.5)
    others = [write_run(tmp_path / name, replace(card, view=view)) for name, view in {"s": small, "n": narrow}.items()]
    alone = [numbers(ask(run, list(paths))) for run in (fitted, *others)]
    assert len(make_plan([fitted, *others], [paths[0]], Options(**CPU)).groups) == 3
    assert np.abs(numbers(ask([fitted, *others], list(paths))) - np.mean(alone, axis=0)).max() < 1e-5


def test_images_are_decoded_once_for_models_of_one_view(fitted, cut, squares, tmp_path, monkeypatch):
    read, decode_images = [], module.decode_images
    monkeypatch.setattr(module, "decode_images", lambda *of, **more: read.append(1) or decode_images(*of, **more))
    ask([fitted, write_run(tmp_path / "other", card_on(cut))], list(squares[1]))
    assert len(read) == 1


def test_a_model_that_is_named_twice_counts_once(fitted, cells):
    assert len(make_plan([fitted, fitted / "best_model.safetensors"], [str(cells)], Options(**CPU)).models) == 1


@pytest.fixture
def spoilt(cells):
    """The folder of three good images, and three that are none."""
    (cells / "a" / "empty.png").write_bytes(b"")
    (cells / "b" / "notes.png").write_bytes(b"this is no image")
    cut_short = cells / "b" / "cut.png"
    good = next(cells.rglob("A_000.png")).read_bytes()
    cut_short.write_bytes(good[: len(good) // 2])
    return cells


def test_a_bad_image_is_a_row_with_its_error_and_no_numbers(fitted, spoilt):
    table = ask(fitted, spoilt).set_index("image")
    assert len(table) == 6
    bad = table[table["status"] == "error"]
    assert {Path(name).name: error.partition(":")[0] for name, error in bad["error"].items()} == {
        "empty.png": "empty",
        "notes.png": "not an image",
        "cut.png": "damaged",
    }
    assert (bad["predicted"] == "").all()
    assert bad[["confidence", "entropy"]].isna().all(axis=None)
    assert np.isnan(numbers(bad)).all()
    good = table[table["status"] == "ok"]
    assert np.allclose(numbers(good).sum(axis=1), 1, atol=1e-5)
    assert (good["predicted"] != "").all()


def test_images_that_are_all_bad_are_all_rows(fitted, tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    table = ask(fitted, tmp_path)
    assert table["status"].tolist() == ["error", "error"]
    assert np.isnan(numbers(table)).all()


def test_a_model_that_answers_with_nan_is_an_error_of_each_image(model, cells):
    file = model / "best_model.safetensors"
    network, card = load_best(file)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    save_best(file, network, card)
    table = ask(model, cells)
    assert table["status"].tolist() == ["error"] * 3
    assert (table["error"] == "the model's answer is not a number").all()


def test_below_a_threshold_no_class_is_named_and_probabilities_stay(fitted, squares):
    _, paths = squares
    plain = ask(fitted, list(paths))
    middle = float(plain["confidence"].sort_values().iloc[len(paths) // 2])
    table = ask(fitted, list(paths), abstain_below=middle)
    low = plain["confidence"] < middle
    assert 0 < low.sum() < len(paths)
    assert (table["status"] == np.where(low, "abstained", "ok")).all()
    assert (table["predicted"] == np.where(low, "", plain["predicted"])).all()
    assert np.array_equal(numbers(table), numbers(plain))


def test_abstaining_takes_the_threshold_that_was_chosen_on_validation(model, squares):
    _, paths = squares
    confidence = float(ask(model, list(paths))["confidence"].median())
    card = read_card(model / "best_model.safetensors")
    calibrated(model, replace(card.calibration, threshold=confidence))
    chosen, given = (ask(model, list(paths), **how) for how in ({"abstain": True}, {"abstain_below": confidence}))
    pd.testing.assert_frame_equal(chosen, given)
    assert set(chosen["status"]) == {"ok", "abstained"}


def test_a_threshold_beside_symmetries_is_said_to_be_another(model, cells, caplog):
    calibrated(model, Calibration(temperature=1.0, threshold=0.5, target=0.95, images=9))
    with caplog.at_level(logging.WARNING, "hemafast"):
        make_plan([model], [str(cells)], Options(abstain=True, tta=True, **CPU))
    assert "--tta" in caplog.text


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        (None, "hemafast evaluate"),
        (Calibration(temperature=1.0, threshold=None, target=0.95, images=9), "95%"),
    ],
)
def test_abstaining_without_a_chosen_threshold_is_refused(model, cells, calibration, words):
    calibrated(model, calibration)
    with pytest.raises(HemafastError, match=words) as refused:
        ask(model, cells, abstain=True)
    assert "--abstain-below" in refused.value.remedy


def test_abstaining_of_several_models_wants_a_number(fitted, trained, cells):
    with pytest.raises(HemafastError, match="several models"):
        ask([fitted, trained], cells, abstain=True)
    with pytest.raises(HemafastError, match="exclude each other"):
        ask(fitted, cells, abstain=True, abstain_below=0.5)


def test_models_of_other_classes_are_refused_by_name(fitted, cells, tmp_path):
    other = write_run(tmp_path / "other", CARD)
    with pytest.raises(HemafastError, match="do not have the same classes") as refused:
        ask([fitted, other], cells)
    assert str(fitted) in refused.value.problem
    assert str(other) in refused.value.problem


def test_a_class_that_is_a_formula_is_refused(cells, tmp_path):
    run = write_run(tmp_path / "run", replace(CARD, classes=("a", "=1+1")))
    with pytest.raises(HemafastError, match="formula"):
        ask(run, cells)


def test_nothing_in_a_checkpoint_is_executed(cells, tmp_path):
    proof, named = hostile_checkpoints(tmp_path)
    for path in named:
        with pytest.raises(HemafastError):
            ask(path, cells)
        result = hemafast("predict", path, cells, "--output", tmp_path / "out.csv")
        assert result.returncode == 2
        assert result.stderr.startswith("error: ")
    assert not proof.exists()
    assert not (tmp_path / "out.csv").exists()


def test_no_more_images_are_read_ahead_than_a_few_batches(fitted, tmp_path, make_archive, monkeypatch):
    folder = make_archive(tmp_path / "many", {"a": 40}, kind="BMP")
    seen, ahead = [0], []

    def counted(images):
        for number, data in enumerate(read_images(images), start=1):
            seen[0] = number
            yield data

    monkeypatch.setattr("hemafast.deploy.decoding.read_images", counted)
    forward = module.Together.__call__

    def slow(self, squares):
        time.sleep(0.05)  # reading would be through long before
        ahead.append(seen[0] - 2 * len(ahead))
        return forward(self, squares)

    monkeypatch.setattr(module.Together, "__call__", slow)
    ask(fitted, folder, batch_size=2)
    assert len(ahead) == 20
    assert 2 < max(ahead) <= 2 * 5


def test_progress_counts_every_image_of_every_group(fitted, cut, spoilt, tmp_path):
    other = write_run(tmp_path / "other", replace(card_on(cut), view=replace(card_on(cut).view, packed_size=48)))
    recorder = Recorder()
    classify(make_plan([fitted, other], [str(spoilt)], Options(batch_size=2, **CPU)), progress=recorder)
    assert recorder.stages == [Stage("classifying", 12, "images", [0, 2, 4, 6, 8, 10, 12], finished=True)]


def test_an_unknown_scale_is_told_once_for_all_models(fitted, cut, cells, tmp_path, caplog):
    other = write_run(tmp_path / "other", replace(card_on(cut), view=replace(card_on(cut).view, packed_size=48)))
    with caplog.at_level(logging.WARNING, "hemafast"):
        ask([fitted, other], cells)
    (record,) = caplog.records
    assert "3 images are of unknown scale" in record.getMessage()


def test_runs_and_images_are_told_apart(tmp_path, trained, cells):
    (tmp_path / "unfinished").mkdir()
    for file in ("config.json", "train.log"):
        (tmp_path / "unfinished" / file).touch()
    (cells / "config.json").touch()
    exported = [f"x{Path(kind.file).suffix}" for kind in KINDS.values()]
    named = [str(cells), str(trained), *exported, str(tmp_path / "unfinished"), "*.png"]
    models, paths = sort_named(named)
    assert list(map(str, models)) == named[1:-1]
    assert paths == [named[0], named[-1]]


def test_the_command_writes_one_row_an_image(fitted, cells, tmp_path):
    result = hemafast("predict", fitted, cells, "--output", tmp_path / "new" / "out.csv")
    assert result.returncode == 0, result.stderr
    assert "3 images" in result.stdout
    written, classes, probabilities = read_predictions(tmp_path / "new" / "out.csv", labelled=False)
    table = ask(fitted, cells)
    assert list(written) == [
        "image",
        "status",
        "error",
        "likeness",
        "predicted",
        "confidence",
        "entropy",
        *(f"p_{c}" for c in classes),
    ]
    assert written["image"].tolist() == table["image"].tolist()
    assert np.allclose(probabilities, numbers(table), atol=1e-6)


def test_the_default_output_is_replaced_whole(fitted, cells, tmp_path):
    (tmp_path / "predictions.csv").write_text("old")
    assert hemafast("predict", fitted, "cells", cwd=tmp_path).returncode == 0
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_suffix_chooses_the_format(fitted, cells, tmp_path):
    tables = []
    for name in ("out.csv", "out.tsv", "out.xlsx", "out.parquet"):
        assert hemafast("predict", fitted, cells, "--output", tmp_path / name).returncode == 0
        tables.append(read_table(tmp_path / name))
    assert tables[0]["predicted"].str.len().all()
    for table in tables[1:]:
        assert table[["image", "status", "predicted"]].equals(tables[0][["image", "status", "predicted"]])
        assert np.allclose(table["confidence"].astype(float), tables[0]["confidence"].astype(float), atol=1e-6)


def test_another_suffix_is_refused_before_anything_is_read(cells, tmp_path):
    result = hemafast("predict", cells, "--output", tmp_path / "new" / "out.txt")
    assert result.returncode == 2
    assert "out.txt ends in none of .csv, .tsv, .xlsx, .parquet. Name it out.csv." in result.stderr
    assert not (tmp_path / "new").exists()


def test_names_outside_ascii_are_written_in_any_locale(fitted, cells, tmp_path):
    image = tmp_path / "cells" / "\u8840 [b] \u00e9.png"
    shutil.copy(next(cells.rglob("*.png")), image)
    line = [sys.executable, "-m", "hemafast", "predict", str(fitted), str(image), "--output", "out.csv"]
    poor = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(line, cwd=tmp_path, env=os.environ | poor, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    data = (tmp_path / "out.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")  # for Excel
    table, _, _ = read_predictions(tmp_path / "out.csv", labelled=False)
    assert table["image"].tolist() == [str(image)]


def test_bad_images_are_exit_code_1_and_one_line(fitted, spoilt, tmp_path):
    result = hemafast("predict", fitted, spoilt, "--output", tmp_path / "out.csv")
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if "WARNING" in line and "um-per-pixel" not in line]
    assert "3 of 6 images" in line
    written = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert written["status"].value_counts().to_dict() == {"ok": 3, "error": 3}


def test_json_is_a_summary(fitted, spoilt, tmp_path):
    result = hemafast("predict", fitted, spoilt, "--output", tmp_path / "out.csv", "--json", "--abstain-below", "0")
    assert result.returncode == 1
    said = json.loads(result.stdout)
    assert said["output"] == str(tmp_path / "out.csv")
    assert said["models"] == [str(fitted / "best_model.safetensors")]
    assert said["status"] == {"ok": 3, "abstained": 0, "error": 3}
    assert said["images"] == 6
    assert sum(said["predicted"].values()) == 3
    assert said["images_per_second"] == pytest.approx(6 / said["seconds"])
    assert (said["threshold"], said["precision"]) == (0.0, "fp32")


def test_several_runs_behind_one_option_are_an_ensemble(fitted, trained, cut, cells, tmp_path):
    other = write_run(tmp_path / "other", card_on(cut))
    third = write_run(tmp_path / "third", card_on(cut, image_size=32))
    arguments = (cells, "--runs", fitted, other, third, "--json", "--output", tmp_path / "out.csv")
    result = hemafast("predict", *arguments)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["models"] == [f"{run}/best_model.safetensors" for run in (fitted, other, third)]
    _, _, probabilities = read_predictions(tmp_path / "out.csv", labelled=False)
    assert np.allclose(probabilities, numbers(ask([fitted, other, third], cells)), atol=1e-6)


@pytest.mark.parametrize("named", ["glob", "file", "zip"])
def test_the_command_takes_globs_files_and_zips(fitted, cells, tmp_path, named):
    with zipfile.ZipFile(tmp_path / "cells.zip", "w") as file:
        for path in cells.rglob("*.png"):
            file.write(path, path.relative_to(cells))
    what = {"glob": "cells/**/*.png", "file": "cells/b/B_000.png", "zip": "cells.zip"}[named]
    assert hemafast("predict", fitted, what, cwd=tmp_path).returncode == 0
    expected = {
        "glob": ["cells/a/A_000.png", "cells/a/A_001.png", "cells/b/B_000.png"],
        "file": ["cells/b/B_000.png"],
        "zip": ["cells.zip/a/A_000.png", "cells.zip/a/A_001.png", "cells.zip/b/B_000.png"],
    }[named]
    assert pd.read_csv(tmp_path / "predictions.csv")["image"].tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cells"], ["No model", "run folder"]),
        (["last_model.ckpt", "cells"], ["No model", ".safetensors"]),
        (["{run}"], ["No images"]),
        (["{run}", "none"], ["There is no none"]),
        (["{run}", "none/*.png"], ["No file matches", "none/*.png"]),
        (["{run}", "empty"], ["empty holds no images"]),
        (["{run}", "cells", "none"], ["There is no none"]),
        (["none.safetensors", "cells"], ["There is no none.safetensors"]),
        (["cells", "--runs", "none"], ["There is no none."]),
        (["unfinished", "cells"], ["There is no unfinished/best_model.safetensors", "epoch"]),
        (["damaged", "cells"], ["damaged/best_model.safetensors cannot be loaded"]),
        (["{run}", "cells", "--output", "cells"], ["cells is a folder"]),
        (["{run}", "cells", "--um-per-pixel", "5"], ["5 pixels", "um_per_pixel (--um-per-pixel)"]),
        (["{run}", "cells", "--um-per-pixel", "nan"], ["um_per_pixel = nan", "--um-per-pixel", "0.001"]),
        (["{run}", "cells", "--abstain-below", "nan"], ["abstain_below = nan", "--abstain-below"]),
        (["{run}", "cells", "--batch-size", "0"], ["batch_size = 0", "--batch-size"]),
        (["{run}", "cells", "--amp", "fp16", "--device", "cpu"], ["fp16"]),
    ],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(fitted, cells, tmp_path, arguments, words):
    for name in ("empty", "unfinished", "damaged"):
        (tmp_path / name).mkdir()
    for file in ("unfinished/config.json", "unfinished/train.log", "last_model.ckpt"):
        (tmp_path / file).touch()
    whole = (fitted / "best_model.safetensors").read_bytes()
    (tmp_path / "damaged" / "best_model.safetensors").write_bytes(whole[:-9])
    before = sorted(tmp_path.rglob("*"))
    result = hemafast("predict", *(text.format(run=fitted) for text in arguments), cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert sorted(tmp_path.rglob("*")) == before


def test_ctrl_c_is_one_line_and_writes_nothing(fitted, cells, tmp_path, monkeypatch):
    def stop(self, squares):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Together, "__call__", stop)
    result = hemafast("predict", fitted, cells, "--output", tmp_path / "out.csv")
    assert result.returncode == 130
    assert "nothing was written" in result.stderr
    assert not (tmp_path / "out.csv").exists()


def test_rows_come_in_parts_and_are_those_of_the_whole(trained, prepared, monkeypatch, tmp_path):
    paths = [prepared.folder / "images"]
    (tmp_path / "broken.png").write_bytes(b"no image")
    whole = ask(trained, [*paths, tmp_path / "broken.png"], batch_size=8)
    monkeypatch.setattr(module, "_ROWS", 8)
    named = [*map(str, paths), str(tmp_path / "broken.png")]
    work = module.Classification(make_plan([trained], named, Options(**CPU, batch_size=8)))
    parts = list(work.tables())
    assert len(parts) > 3
    assert max(map(len, parts)) == 8
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole)
    done = work.done()
    assert done.images == len(whole)
    assert done.failed == (whole["status"] == "error").sum() == 1
    assert {name: count for name, count in done.summary()["predicted"].items() if count} == (
        whole.loc[whole["predicted"] != "", "predicted"].value_counts().to_dict()
    )


def test_images_are_read_and_decoded_while_the_network_computes(trained, prepared, monkeypatch):
    plan = make_plan([trained], [str(prepared.folder / "images")], Options(**CPU, batch_size=8))
    decoded, ahead, total = [], [], -(-len(plan.images) // 8)
    right = module.decode_images

    def decode(*given, **options):
        for batch in right(*given, **options):
            decoded.append(batch.rows)
            yield batch

    def compute(squares):
        wanted, deadline = min(len(ahead) + 2, total), time.monotonic() + 60
        while len(decoded) < wanted and time.monotonic() < deadline:
            time.sleep(0.001)  # as a network that takes its time; the next batch is decoded meanwhile
        ahead.append(len(decoded) >= wanted)
        return torch.zeros(len(squares), 1)

    monkeypatch.setattr(module, "decode_images", decode)
    with module.inferred(plan, plan.groups[0], compute, SILENT) as parts:
        answered = sum(len(part.rows) for part in parts)
    assert answered == len(plan.images)
    assert ahead == [True] * total


def test_a_run_that_does_not_exist_is_told_as_such_with_those_like_it(fitted, cells):
    for named in (str(fitted)[:-3], str(fitted) + "x"):
        done = hemafast("predict", named, cells)
        assert done.returncode == 2
        assert f"There is no run {named}. Did you mean {fitted}?" in done.stderr


def test_a_threshold_that_withholds_every_answer_says_which_one_would_not(fitted, cells, tmp_path, caplog):
    done = predict_to(tmp_path / "out.csv", [str(fitted), str(cells)], options=Options(abstain_below=1.0))
    (said,) = [one.getMessage() for one in caplog.records if "no image is named" in one.getMessage()]
    highest = pd.read_csv(tmp_path / "out.csv")["confidence"].max()
    assert f"the highest confidence is {highest:.3f}" in said
    assert done.highest == pytest.approx(highest)
    advised = float(said.split("--abstain-below ")[1].split(")")[0])
    caplog.clear()
    again = predict_to(tmp_path / "out.csv", [str(fitted), str(cells)], options=Options(abstain_below=advised))
    assert again.status["ok"]
    assert "no image is named" not in caplog.text
