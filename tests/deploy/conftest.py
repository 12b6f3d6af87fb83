"""A data set whose scale is known, so that cells are cut out of larger images, and a run that was trained on it."""

import pytest

from hemafast.config import PrepareConfig
from hemafast.data.dataset import open_dataset
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.preparation.build import prepare


@pytest.fixture(scope="session")
def cut(tmp_path_factory, make_archive):
    """Two archives and what was prepared of them: 25 um are 50 px of Acevedo_20 and 56 px of Matek_19."""
    source = tmp_path_factory.mktemp("cut")
    make_archive(source / "Acevedo_20.zip", {"basophil": 9, "monocyte": 8}, kind="JPEG", size=(76, 72), seed=3)
    make_archive(source / "Matek_19.zip", {"basophil": 7, "myeloblast": 8}, kind="TIFF", size=(64, 80), seed=4)
    scales = {"Acevedo_20": 0.5, "Matek_19": 0.45}
    settings = PrepareConfig(source=source, output=source / "prepared", pack_sizes=(64,), um_per_pixel=scales)
    return open_dataset(prepare(settings).folder)


@pytest.fixture(scope="session")
def fitted(cut, train_on):
    """A run on `cut`, evaluated and so calibrated; read it, never change it."""
    folder = train_on(cut.folder)
    evaluate_run(folder)
    return folder


@pytest.fixture
def cells(tmp_path, make_archive):
    """A folder of three images."""
    return make_archive(tmp_path / "cells", {"a": 2, "b": 1})
