"""A laboratory that the run of `scored` has never seen."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory, make_archive) -> Path:
    """18 images in folders of three classes; read it, never change it."""
    counts = {"basophil": 6, "eosinophil": 6, "monocyte": 6}
    return make_archive(tmp_path_factory.mktemp("laboratory") / "Lab", counts, size=(70, 72), seed=7)
