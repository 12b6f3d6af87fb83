"""How large the nuclei of each class are, in the training images of a run."""

from dataclasses import replace

import numpy as np
import pytest

from hemafast.engine.checkpoint import load_best, read_card
from hemafast.evaluate.nucleus_sizes import FEWEST, nuclei_of
from hemafast.preparation.images.image_checks import decode_reference
from hemafast.preparation.nuclei import nucleus_diameter

KNOWN = {"Acevedo_20": 0.1, "Matek_19": 0.0725}


@pytest.fixture(scope="module")
def card(scored):
    return read_card(scored / "best_model.safetensors")


def diameters(dataset, label):
    """In um, of all training images of a class."""
    own = dataset.split("train").query("label == @label")
    found = [
        (nucleus_diameter(decode_reference((dataset.folder / row.path).read_bytes())), row) for row in own.itertuples()
    ]
    return [diameter * KNOWN[row.domain] for diameter, row in found if diameter is not None]


def test_the_size_of_a_class_is_the_median_in_micrometres_over_all_domains(dataset, card):
    measured = [diameters(dataset, name) for name in card.classes]
    assert sum(len(own) >= FEWEST for own in measured) >= 3
    for size, own in zip(nuclei_of(dataset, card), measured, strict=True):
        assert size == (pytest.approx(np.median(own), rel=2e-3) if len(own) >= FEWEST else None)


def test_evaluating_a_run_keeps_the_sizes_with_its_calibration(scored, dataset, card):
    assert card.calibration.nuclei == nuclei_of(dataset, card)
    assert load_best(scored / "best_model.safetensors")[1] == card


def test_images_of_other_domains_and_of_unknown_scale_tell_no_size(dataset, card):
    eosinophil = card.classes.index("eosinophil")  # of Acevedo_20 alone
    assert nuclei_of(dataset, card)[eosinophil]
    assert nuclei_of(dataset, replace(card, domains=("Matek_19",)))[eosinophil] is None
    unknown = {name: one.model_copy(update={"um_per_pixel": None}) for name, one in dataset.info.domains.items()}
    info = dataset.info.model_copy(update={"domains": unknown})
    assert nuclei_of(replace(dataset, files=replace(dataset.files, info=info)), card) is None
    assert nuclei_of(dataset, replace(card, view=replace(card.view, field_of_view=None))) is None


def test_files_that_are_gone_tell_nothing(dataset, card, tmp_path):
    assert nuclei_of(replace(dataset, folder=tmp_path), card) is None
