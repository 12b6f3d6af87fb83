"""A run whose names are meant to break a page."""

import pytest
from hostile import HOSTILE_CLASSES, HOSTILE_DOMAINS

from hemafast.config import PrepareConfig
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.preparation.build import prepare


@pytest.fixture(scope="session")
def hostile(tmp_path_factory, make_archive, train_on):
    """A scored run on drawn cells, from random weights that nobody asked for."""
    source = tmp_path_factory.mktemp("hostile")
    counts = dict.fromkeys(HOSTILE_CLASSES, 6)
    drawn = {"DRAWN.txt": b"drawn"}
    for seed, domain in enumerate(HOSTILE_DOMAINS):
        make_archive(source / domain, counts, seed=seed, extra=drawn)
    config = PrepareConfig(source=source, output=source / "prepared", pack_sizes=(64,), classes="from-data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(source / ".cache"))
        folder = train_on(prepare(config).folder, epochs=1, pretrained="auto")
    evaluate_run(folder)
    return folder
