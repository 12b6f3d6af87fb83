"""`open_model`: what it opens, and that arrays are predicted and embedded as the files they were decoded from."""

import gc
import logging
import os
import shutil
import sys
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from exported import CARD, card_on, hostile_checkpoints, write_run
from PIL import Image
from recorder import Recorder, Stage

from hemafast.deploy.explain import explain
from hemafast.deploy.export import export_run
from hemafast.deploy.model import open_model
from hemafast.deploy.plan import Options, make_plan
from hemafast.deploy.predict import classify
from hemafast.errors import HemafastError

FORMATS = ("safetensors", "onnx", "torch-export")
CLASSES = list(CARD.classes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Read it, never change it."""
    return write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def model(run):
    return open_model(run, device="cpu")


@pytest.fixture(scope="module")
def exports(run, tmp_path_factory):
    """A folder for each format."""
    folder = tmp_path_factory.mktemp("exports")
    layouts = {"torch-export": "nchw"}
    return {
        kind: export_run(run, folder / kind, format=kind, layout=layouts.get(kind, "nhwc")).path.parent
        for kind in FORMATS
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, draw):
    """Arrays of several sizes, and the PNGs that hold them."""
    folder = tmp_path_factory.mktemp("pictures")
    arrays = [
        draw(number, width, height) for number, (width, height) in enumerate([(64, 60), (300, 280), (33, 90)] * 3)
    ]
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{number}.png")
    return arrays, [folder / f"{number}.png" for number in range(len(arrays))]


@pytest.mark.parametrize("how", [{}, {"um_per_pixel": 0.25}, {"tta": True}, {"batch_size": 2}])
def test_arrays_are_predicted_as_the_files_they_came_from_to_the_last_bit(model, pictures, how):
    arrays, files = pictures
    ours, theirs = model.predict(arrays, **how), model.predict(files, **how)
    assert theirs["path"].tolist() == list(map(str, files))
    assert ours["path"].tolist() == [str(number) for number in range(len(files))]
    pd.testing.assert_frame_equal(ours.drop(columns="path"), theirs.drop(columns="path"), check_exact=True)
    assert np.ptp(ours[CLASSES], axis=0).max() > 0.01


@pytest.mark.parametrize("how", [{}, {"um_per_pixel": 0.25}, {"batch_size": 2}])
def test_arrays_are_embedded_as_the_files_they_came_from_to_the_last_bit(model, pictures, how):
    arrays, files = pictures
    ours, theirs = model.embed(arrays, **how), model.embed(files, **how)
    assert (ours.dtype, ours.shape) == (np.float32, (len(files), 96))
    assert np.array_equal(ours, theirs)
    assert np.ptp(ours, axis=0).max() > 0.01


def test_the_frame_holds_the_numbers_of_the_command(model, run, pictures):
    _, files = pictures
    frame = model.predict(files)
    table = classify(make_plan([run], list(map(str, files)), Options(device="cpu")))
    assert list(frame) == ["path", "label", "confidence", "status", "error", "likeness", *CLASSES]
    for ours, theirs in {"path": "image", "label": "predicted", "größe": "p_größe", "confidence": "confidence"}.items():
        assert frame[ours].tolist() == table[theirs].tolist()


def test_features_are_what_the_last_layer_classifies(model, pictures):
    arrays, _ = pictures
    layer = model.network.backbone.get_classifier()
    with torch.inference_mode():
        logits = layer(torch.from_numpy(model.embed(arrays)))
    probabilities = torch.softmax(logits / CARD.calibration.temperature, dim=1)
    np.testing.assert_allclose(model.predict(arrays)[CLASSES], probabilities, atol=1e-5)


def test_one_array_a_batch_of_arrays_and_a_list_are_the_same(model, draw):
    batch = np.stack([draw(number, 50, 70) for number in range(3)])
    several = model.predict(batch)
    pd.testing.assert_frame_equal(several, model.predict(list(batch)))
    pd.testing.assert_frame_equal(several, model.predict(batch[:, ::-1][:, ::-1]))
    assert np.allclose(model.predict(batch[0])[CLASSES], several[CLASSES][:1], atol=1e-6)


@pytest.mark.parametrize("kind", [str, lambda path: path, lambda path: [path], lambda path: pd.Series([str(path)])])
def test_a_path_may_be_text_or_a_path_alone_or_in_a_sequence(model, pictures, kind):
    _, files = pictures
    assert model.predict(kind(files[0]))["path"].tolist() == [str(files[0])]
    assert len(model.predict(kind(files[0].parent))) == len(files)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], ["No images"]),
        (np.zeros((0, 8, 8, 3), np.uint8), ["No images"]),
        (np.zeros((8, 8, 3), np.float32), ["Image 0", "float32", ".astype(np.uint8)"]),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3))], ["Image 1", "float64"]),
        (np.zeros((8, 8), np.uint8), ["Image 0", "(8, 8)", "(height, width, 3)"]),
        (np.zeros((2, 8, 8, 4), np.uint8), ["Image 0", "(8, 8, 4)"]),
        ([np.zeros((8, 0, 3), np.uint8)], ["Image 0", "(8, 0, 3)"]),
        (np.broadcast_to(np.uint8(0), (9000, 9000, 3)), ["Image 0", "9000", "million pixels"]),
        ([torch.zeros(8, 8, 3, dtype=torch.uint8)], ["Image 0", "Tensor", "np.asarray"]),
        (Image.new("RGB", (8, 8)), ["Image 0", "np.asarray"]),
        (["a.png", np.zeros((8, 8, 3), np.uint8)], ["Image 1", "ndarray", "mix"]),
        ([np.zeros((8, 8, 3), np.uint8), "a.png"], ["Image 1", "str"]),
        ("nowhere.png", ["nowhere.png"]),
    ],
)
def test_what_is_no_image_is_refused_with_its_index_and_a_remedy(model, images, words):
    for work in (model.predict, model.embed):
        with pytest.raises(HemafastError) as refused:
            work(images)
        assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(("side", "status"), [(1, "error"), (15, "error"), (16, "ok"), (1999, "ok"), (2000, "error")])
def test_arrays_of_the_size_of_a_cell_are_answered(model, side, status):
    """They follow the same rules as files."""
    array = np.full((side, side, 3), 90, np.uint8)
    array[0, 0] = 200
    assert model.predict(array)["status"].tolist() == [status]


def test_an_unreadable_image_is_a_row_with_its_error_and_nan(model, pictures, tmp_path, caplog):
    _, files = pictures
    (tmp_path / "bad.png").write_bytes(b"no image")
    named = [files[0], tmp_path / "bad.png", files[1]]
    frame, features = model.predict(named), model.embed(named)
    assert frame["status"].tolist() == ["ok", "error", "ok"]
    assert frame["error"][1].startswith("not an image")
    assert frame["label"][1] == ""
    assert np.isnan(frame[CLASSES].to_numpy()).all(axis=1).tolist() == [False, True, False]
    assert np.isnan(features).all(axis=1).tolist() == [False, True, False]
    assert "1 of 3 images cannot be read" in caplog.text
    assert model.embed(tmp_path / "bad.png").shape == (1, 96)


def test_progress_hears_of_every_image(model, pictures):
    for work, what in ((model.predict, "classifying"), (model.embed, "embedding")):
        recorder = Recorder()
        work(pictures[0], batch_size=4, progress=recorder)
        assert recorder.stages == [Stage(what, 9, "images", [0, 4, 8, 9], finished=True)]


def test_a_class_may_have_the_name_of_a_column(pictures, tmp_path):
    run = write_run(tmp_path / "run", replace(CARD, classes=("path", "label", "error")))
    frame = open_model(run, device="cpu").predict(pictures[0])
    assert list(frame) == ["path", "label", "confidence", "status", "error", "likeness", "path", "label", "error"]
    assert np.allclose(frame.iloc[:, 6:].sum(axis=1), 1, atol=1e-5)


def test_a_run_its_weights_and_a_copy_of_them_are_one_model(model, run, pictures, tmp_path):
    copied = shutil.copy(run / "best_model.safetensors", tmp_path / "copy.safetensors")
    expected = model.predict(pictures[0])
    for path in (str(run), run / "best_model.safetensors", copied):
        opened = open_model(path, device="cpu")
        assert (opened.classes, opened.card) == (CARD.classes, CARD)
        pd.testing.assert_frame_equal(opened.predict(pictures[0]), expected, check_exact=True)
    assert not model.network.training


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("named", ["folder", "file", "copied"])
def test_an_export_predicts_as_its_run(model, exports, pictures, tmp_path, kind, named):
    path = exports[kind]
    if named != "folder":
        (path,) = path.glob("model.*")
    if named == "copied":
        path = shutil.copy(path, tmp_path / f"other{path.suffix}")
    opened = open_model(path)
    assert (opened.classes, opened.card) == (CARD.classes, CARD)
    ours, theirs = opened.predict(pictures[0], um_per_pixel=0.2), model.predict(pictures[0], um_per_pixel=0.2)
    np.testing.assert_allclose(ours[CLASSES], theirs[CLASSES], atol=1e-5)
    pd.testing.assert_frame_equal(ours.iloc[:, :2], theirs.iloc[:, :2])


def test_exported_weights_embed_and_have_a_network(model, exports, pictures):
    opened = open_model(exports["safetensors"], device="cpu")
    np.testing.assert_allclose(opened.embed(pictures[0]), model.embed(pictures[0]), atol=1e-5)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(opened.network(images), model.network(images))


@pytest.mark.parametrize("kind", FORMATS[1:])
def test_a_graph_says_that_it_has_no_network_and_no_features(exports, pictures, kind):
    opened = open_model(exports[kind])
    for ask in (lambda: opened.network, lambda: opened.embed(pictures[0])):
        with pytest.raises(HemafastError, match=r"is a graph.*safetensors"):
            ask()
    for how in ({"device": "cuda"}, {"amp": "bf16"}):
        with pytest.raises(HemafastError, match="CPU in fp32"):
            open_model(exports[kind], **how)


def test_a_folder_of_several_formats_opens_its_weights(exports, tmp_path):
    for kind in FORMATS:
        shutil.copytree(exports[kind], tmp_path, dirs_exist_ok=True)
    assert open_model(tmp_path, device="cpu").file == tmp_path / "model.safetensors"


def test_a_run_and_an_export_of_another_are_an_ensemble(run, exports, pictures):
    files = list(map(str, pictures[1]))
    table = classify(make_plan([run, exports["onnx"]], files, Options(device="auto")))
    alone = classify(make_plan([run], files, Options(device="cpu")))
    np.testing.assert_allclose(table["confidence"], alone["confidence"], atol=1e-5)


def test_a_graph_cannot_be_explained(exports, pictures, tmp_path):
    with pytest.raises(HemafastError, match="is a graph"):
        explain(exports["onnx"], pictures[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_onnxruntime_its_extra_is_named(exports, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(HemafastError, match=r"onnxruntime.*hemafast\[export\]"):
        open_model(exports["onnx"])


@pytest.mark.parametrize("name", ["nowhere", "nowhere.onnx", "nowhere.pt2", "nowhere.safetensors"])
def test_a_model_that_is_missing_is_named(tmp_path, name):
    with pytest.raises(HemafastError, match=f"There is no .*{name}"):
        open_model(tmp_path / name)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_or_foreign_export_is_refused(exports, tmp_path, kind):
    (file,) = exports[kind].glob("model.*")
    damaged = tmp_path / file.name
    content = file.read_bytes()
    for change in (content[: len(content) // 2], b"", content.replace(b"drawn_data", b"drawn_dat_")):
        damaged.write_bytes(change)
        with pytest.raises(HemafastError, match=f"{file.name} cannot be loaded"):
            open_model(damaged)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    proof, named = hostile_checkpoints(tmp_path)
    for path in named:
        with pytest.raises(HemafastError):
            open_model(path)
    assert not proof.exists()


def test_the_scale_of_a_folder_counts_and_that_around_arrays_does_not(cut, tmp_path, monkeypatch, pictures, caplog):
    opened = open_model(write_run(tmp_path / "run", card_on(cut)), device="cpu")
    folder = tmp_path / "Acevedo_20"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for file in pictures[1]:
        shutil.copy(file, folder)
    scaled = opened.predict(folder)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    whole = opened.predict(pictures[0], um_per_pixel="unknown")
    assert "9 images" in caplog.text
    assert np.abs(scaled[opened.classes[0]] - whole[opened.classes[0]]).max() > 1e-4
    given = opened.predict(pictures[0], um_per_pixel=0.5)
    pd.testing.assert_frame_equal(given.iloc[:, 1:], scaled.iloc[:, 1:], check_exact=True)


def test_many_predictions_leak_no_threads_and_no_files(model, pictures):
    arrays, files = pictures
    process = psutil.Process(os.getpid())

    def counts():
        for work in (model.predict, model.embed):
            work(arrays[:2])
            work(files[:2])
        gc.collect()
        return process.num_threads(), process.num_fds(), threading.active_count()

    counts()
    first = counts()
    for _ in range(5):
        last = counts()
    assert last == first


def test_a_model_describes_itself_in_one_line(model, run):
    assert repr(model) == f"Model('{run}/best_model.safetensors', test_resnet, 3 classes, cpu)"
