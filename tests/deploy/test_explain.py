"""`hemafast explain`: pictures of what the network sees and where it looks, and what is refused."""

import json
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from command import hemafast
from exported import CARD, hostile_checkpoints, random_model, write_run
from PIL import Image
from recorder import Recorder, Stage

from hemafast.deploy.explain import explain
from hemafast.engine.checkpoint import View
from hemafast.errors import HemafastError

SIDE = 56
SEEN = replace(CARD, image_size=SIDE, view=View(packed_size=64, field_of_view=None, um_per_pixel={}))
"""Of an image of 64 px it sees the central 56, unscaled."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Read it, never change it."""
    return write_run(tmp_path_factory.mktemp("run") / "run", SEEN)


@pytest.fixture
def cells(tmp_path, draw, encode):
    """Five PNGs of 64 px."""
    folder = tmp_path / "cells"
    folder.mkdir()
    for number in range(5):
        (folder / f"cell_{number}.png").write_bytes(encode(draw(number, 64, 64)))
    return folder


def pixels_of(file):
    """uint8 (height, width, 3)"""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def probabilities_of(files):
    """Calibrated probabilities by Pillow and plain torch."""
    squares = np.stack([pixels_of(file) for file in files])
    images = torch.from_numpy(squares[:, 4:60, 4:60].copy()).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return torch.softmax(random_model(SEEN)(images) / SEEN.calibration.temperature, dim=1).numpy()


def test_each_image_has_a_picture_with_its_class_and_probability(run, cells, tmp_path):
    recorder = Recorder()
    explained = explain(run, [str(cells)], tmp_path / "out", progress=recorder)
    files = sorted(cells.iterdir())
    expected = probabilities_of(files)
    assert len(set(expected.max(axis=1).round(3))) == 5
    for file, found, shares in zip(files, explained, expected, strict=True):
        assert found.image == str(file)
        assert found.picture == tmp_path / "out" / file.name
        assert found.predicted == found.explained == SEEN.classes[shares.argmax()]
        assert found.probability == pytest.approx(shares.max(), abs=1e-4)
        with Image.open(found.picture) as picture:
            assert picture.format == "PNG"
    assert recorder.stages == [Stage("explaining", 5, "images", [0, 1, 2, 3, 4, 5], finished=True)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [file.name for file in files]


def test_the_picture_shows_the_view_and_beside_it_the_overlay(run, tmp_path, encode, monkeypatch):
    green = np.zeros((64, 64, 3), np.uint8)
    green[4:60, 4:60] = (0, 200, 0)  # the border is outside the view
    (tmp_path / "green.png").write_bytes(encode(green))
    blue = np.zeros((1, SIDE, SIDE, 3), np.uint8) + np.array([0, 0, 255], np.uint8)
    monkeypatch.setattr("hemafast.deploy.explain.overlays", lambda model, views, classes, *, method: blue)
    (found,) = explain(run, [str(tmp_path / "green.png")], tmp_path)
    assert found.picture == tmp_path / "green.png"
    picture = pixels_of(found.picture).astype(int)
    middle = picture.shape[1] // 2
    halves = picture[:, :middle], picture[:, middle:]
    for half, colour in zip(halves, ([0, 200, 0], [0, 0, 255]), strict=True):
        same = np.abs(half - colour).max(axis=2) <= 2
        assert same.mean() > 0.5
        assert (half.max(axis=2) < 100).mean() < 0.1  # letters, and no border


def test_arrays_are_explained_as_the_files_they_came_from(run, cells, tmp_path):
    files = sorted(cells.iterdir())
    theirs = explain(str(run), files, tmp_path / "files")
    ours = explain(run, list(map(pixels_of, files)), str(tmp_path / "arrays"))
    assert [found.probability for found in ours] == [found.probability for found in theirs]
    assert [found.picture.name for found in ours] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(pixels_of(one.picture), pixels_of(other.picture))


def test_a_class_can_be_asked_for(run, cells, tmp_path):
    file = cells / "cell_0.png"
    shares = probabilities_of([file])[0]
    least = SEEN.classes[shares.argmin()]
    (found,) = explain(run, [str(file)], tmp_path / "out", label=least)
    assert (found.explained, found.predicted) == (least, SEEN.classes[shares.argmax()])
    assert found.probability == pytest.approx(shares.min(), abs=1e-4)
    assert found.told().endswith(f"{least} {found.probability:.3f}, predicted {found.predicted}")


def test_the_model_and_method_asked_for_are_used(run, cells, tmp_path, monkeypatch):
    asked = []

    def overlays(model, views, classes, *, method):
        asked.append((views.shape, list(classes), method))
        return views

    monkeypatch.setattr("hemafast.deploy.explain.overlays", overlays)
    result = hemafast("explain", run, cells, "--output", tmp_path / "out", "--class", "größe", "--method", "layercam")
    assert result.returncode == 0, result.stderr
    assert asked == [((5, SIDE, SIDE, 3), [1] * 5, "layercam")]


def test_the_command_writes_into_the_run_by_default_and_tells_of_each_image(run, cells, tmp_path):
    result = hemafast("explain", write_run(tmp_path / "own", SEEN), cells, "--quiet")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith(str(tmp_path / "own" / "explain" / "cell_0.png"))
    assert "predicted" not in lines[0]  # the class that is shown is the predicted one


def test_the_command_as_json(run, cells, tmp_path):
    result = hemafast("explain", run, cells / "cell_1.png", "--output", tmp_path / "out", "--json")
    (said,) = json.loads(result.stdout)
    assert said["picture"] == str(tmp_path / "out" / "cell_1.png")
    assert said["predicted"] in SEEN.classes
    assert 0 < said["probability"] <= 1
    assert said["error"] == ""


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_explained(run, cells, tmp_path):
    (cells / "cell_2.png").write_bytes(b"not an image")
    (cells / "cell_3.png").write_bytes((cells / "cell_1.png").read_bytes()[:-200])
    result = hemafast("explain", run, cells, "--output", tmp_path / "out", "--json")
    assert result.returncode == 1
    said = json.loads(result.stdout)
    assert [bool(image["error"]) for image in said] == [False, False, True, True, False]
    assert said[2]["picture"] is said[2]["probability"] is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cell_0.png", "cell_1.png", "cell_4.png"]
    result = hemafast("explain", run, cells / "cell_2.png", "--output", tmp_path / "none")
    assert result.returncode == 1
    assert f"{cells / 'cell_2.png'}: not an image" in result.stdout
    assert not (tmp_path / "none").exists()


def test_images_of_one_name_have_a_picture_each(run, cells, tmp_path):
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        for name in ("a/cell_0.png", "b/CELL_0.png", "b/cell_0-2.png"):
            archive.write(cells / "cell_0.png", name)
    explained = explain(run, [str(cells / "cell_0.png"), str(tmp_path / "more.zip")], tmp_path / "out")
    names = [found.picture.name for found in explained]
    assert names == ["cell_0.png", "cell_0-2.png", "CELL_0-3.png", "cell_0-2-2.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("$\\frac{x$.png", "_frac_x_.png"),
        ("<script>.png", "_script_.png"),
        ("größe 血.png", "größe_血.png"),
        ("..png", "image.png"),
        ("=1+1.png", "_1+1.png"),
        ("x" * 240 + ".png", "x" * 50 + ".png"),
        ("血" * 80 + ".png", "血" * 50 + ".png"),
    ],
)
def test_a_hostile_name_becomes_a_plain_one(run, cells, tmp_path, name, picture):
    (tmp_path / name).write_bytes((cells / "cell_0.png").read_bytes())
    (found,) = explain(run, [str(tmp_path / name)], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [picture]
    assert found.image == str(tmp_path / name)


def test_hostile_names_of_classes_are_drawn_as_they_are(cells, tmp_path):
    names = ("$\\frac{", "<b>|</b>", "血" * 200)
    run = write_run(tmp_path / "run", replace(SEEN, classes=names))
    shapes = set()
    for name in names:
        (found,) = explain(run, [str(cells / "cell_0.png")], tmp_path / "out", label=name)
        assert found.explained == name
        shapes.add(pixels_of(found.picture).shape)
    assert len(shapes) == 1


def test_a_class_that_the_model_does_not_know_is_refused(run, cells):
    result = hemafast("explain", run, cells, "--class", "macrophage")
    assert result.returncode == 2
    assert "macrophage" in result.stderr
    assert "basophil, größe, monocyte" in result.stderr


def test_what_is_not_there_is_refused_in_one_line(run, cells, tmp_path):
    for arguments in ((tmp_path / "nowhere", cells), (run, tmp_path / "nowhere.png"), (tmp_path, cells)):
        result = hemafast("explain", *arguments)
        assert result.returncode == 2
        assert result.stderr.startswith("error: There is no ")
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_pickle_is_refused_and_not_executed(cells, tmp_path):
    proof, files = hostile_checkpoints(tmp_path)
    for file in files:
        result = hemafast("explain", file, cells, "--output", tmp_path / "out")
        assert result.returncode == 2
        assert result.stderr.startswith("error: ")
    assert not proof.exists()
    assert not (tmp_path / "out").exists()


def test_without_grad_cam_its_extra_is_named(run, cells, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    result = hemafast("explain", run, cells, "--output", tmp_path / "out")
    assert result.returncode == 2
    assert "pip install 'hemafast[explain]'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_scale_of_the_images_decides_what_is_seen(tmp_path, encode):
    card = replace(SEEN, view=View(packed_size=64, field_of_view=25.0, um_per_pixel={"Acevedo_20": 0.1}))
    run = write_run(tmp_path / "run", card)
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[32:96, 32:96] = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    (tmp_path / "wide.png").write_bytes(encode(pixels))
    (tmp_path / "close.png").write_bytes(encode(pixels[32:96, 32:96]))
    (found,) = explain(run, [str(tmp_path / "wide.png")], tmp_path / "out", um_per_pixel=25 / 64)
    assert found.probability == pytest.approx(probabilities_of([tmp_path / "close.png"]).max(), abs=1e-4)
    with pytest.raises(HemafastError, match="too few to show a cell"):
        explain(run, [str(tmp_path / "wide.png")], um_per_pixel=10.0)
