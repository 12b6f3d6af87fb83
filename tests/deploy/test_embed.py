"""`hemafast embed`: features beside answers, labels, formats, scores, bad input."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from hemafast.deploy.embed import FEATURES, embed_images, write_embeddings
from hemafast.deploy.inputs import list_inputs
from hemafast.deploy.labels import read_told
from hemafast.deploy.model import open_model
from hemafast.deploy.plan import Options
from hemafast.errors import HemafastError
from hemafast.report.embedding import Named, embed_to


@pytest.fixture(scope="module")
def model(fitted):
    return open_model(fitted, device="cpu")


@pytest.fixture
def classes_of_cells(tmp_path, make_archive):
    """Class folders with nine images, and one that cannot be read."""
    folder = make_archive(tmp_path / "cells", {"basophil": 5, "Monocyte": 4})
    (folder / "basophil" / "zz.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    return folder


def test_features_and_answers_are_those_of_embed_and_predict(model, cells):
    found = embed_images(model, list_inputs(cells), Options(um_per_pixel=0.5), tile=16)
    answers = model.predict(cells, um_per_pixel=0.5)
    np.testing.assert_array_equal(found.features, model.embed(cells, um_per_pixel=0.5))
    assert found.table["image"].tolist() == answers["path"].tolist()
    assert found.table["predicted"].tolist() == answers["label"].tolist()
    np.testing.assert_allclose(found.table["confidence"], answers["confidence"], rtol=1e-5)
    np.testing.assert_allclose(found.table["likeness"], answers["likeness"], rtol=1e-5)
    assert found.tiles.shape == (3, 16, 16, 3)
    assert found.tiles.std(axis=(1, 2, 3)).min() > 0


def test_an_unreadable_image_is_a_row_with_its_error(model, classes_of_cells, tmp_path):
    found = embed_images(model, list_inputs(classes_of_cells), Options(um_per_pixel=0.5), tile=8)
    bad = ~found.readable
    assert found.table["image"][bad].tolist() == [f"{classes_of_cells}/basophil/zz.png"]
    assert np.isnan(found.features[bad]).all()
    assert np.isfinite(found.features[~bad]).all()
    assert found.table["predicted"][bad].tolist() == [""]
    assert not found.tiles[bad].any()
    assert len(found.of_readable().table) == 9


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_file_holds_the_table_and_the_features_without_pickles(model, classes_of_cells, tmp_path, suffix):
    found = embed_images(model, list_inputs(classes_of_cells), Options(um_per_pixel=0.5))
    file = tmp_path / f"out{suffix}"
    write_embeddings(file, found)
    if suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            features, images, errors = arrays[FEATURES], arrays["image"], arrays["error"]
    else:
        table = pd.read_parquet(file)
        features, images, errors = np.stack(table[FEATURES]), table["image"], table["error"]
    np.testing.assert_array_equal(features, found.features)
    assert list(images) == found.table["image"].tolist()
    assert [bool(error) for error in errors] == found.table["error"].astype(bool).tolist()


def test_labels_of_folders_are_named_as_the_model_names_them(fitted, classes_of_cells, tmp_path):
    output = tmp_path / "out.parquet"
    done = embed_to(output, fitted, str(classes_of_cells), Named(labels="own"), Options(um_per_pixel=0.5))
    table = pd.read_parquet(output)
    assert table["label"].tolist() == ["monocyte"] * 4 + ["basophil"] * 6
    assert (done.images, done.unreadable, done.dimensions) == (10, 1, table[FEATURES].map(len).max())
    assert done.probed is not None
    assert done.probed["classes"] == ["basophil", "monocyte"]
    assert any(line.startswith("linear probe: accuracy") for line in done.lines())
    json.dumps(done.to_plain())


def test_one_folder_of_all_images_is_no_class_unless_that_is_said(tmp_path):
    names = [f"Set 1/{number}.png" for number in range(3)]
    with pytest.raises(HemafastError, match="All labelled images are in the folder Set 1") as error:
        read_told(names, "own", classes=["monocyte"])
    assert "--class-map 'Set 1=Set 1'" in error.value.remedy
    assert read_told(names, "own", classes=["monocyte", "Set 1"]).labels == ["Set 1"] * 3
    assert read_told([f"monocyte/{name}" for name in "ab"], "own", classes=["monocyte"]).labels == ["monocyte"] * 2


def test_a_class_map_renames_labels_and_leaves_classes_out(fitted, classes_of_cells, tmp_path):
    output, named = tmp_path / "out.npz", Named(labels="own", class_map={"monocyte": "", "basophil": "granulocyte"})
    done = embed_to(output, fitted, str(classes_of_cells), named, Options(um_per_pixel=0.5))
    with np.load(output) as arrays:
        assert set(arrays["label"]) == {"", "granulocyte"}
    assert done.probed is None  # one class


@pytest.mark.parametrize(
    ("output", "named", "said"),
    [
        ("out.csv", Named(), r"ends in none of .npz, .parquet"),
        ("", Named(), "is a folder"),
        ("out.npz", Named(labels="missing.csv"), "missing.csv"),
    ],
)
def test_bad_requests_are_refused_before_an_image_is_read(fitted, cells, tmp_path, monkeypatch, output, named, said):
    monkeypatch.setattr("hemafast.report.embedding.embed_images", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(HemafastError, match=said):
        embed_to(tmp_path / output, fitted, str(cells), named, Options())


def test_a_map_of_too_few_cells_is_refused_and_nothing_is_written(fitted, cells, tmp_path):
    pytest.importorskip("umap")
    with pytest.raises(HemafastError, match="A map needs 10 images, and 3 could be read"):
        embed_to(tmp_path / "x.npz", fitted, str(cells), Named(), Options(um_per_pixel=0.5), page=tmp_path / "x.html")
    assert not (tmp_path / "x.npz").exists()


def test_a_map_without_umap_names_the_package(fitted, cells, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(HemafastError, match="umap cannot be imported") as error:
        embed_to(tmp_path / "x.npz", fitted, str(cells), Named(), Options(), page=tmp_path / "x.html")
    assert "hemafast[map]" in error.value.remedy
