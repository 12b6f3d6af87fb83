"""Predictions scale values of more than 8 bits as training did: by domain, by what domains share, or by the images."""

import json
import logging
from dataclasses import asdict, replace

import numpy as np
import pytest
import tifffile
from command import hemafast
from exported import CARD, card_on, write_run
from safetensors import safe_open
from safetensors.torch import save_file

from hemafast.config import PrepareConfig
from hemafast.data.dataset import open_dataset
from hemafast.deploy.depths import choose_depths
from hemafast.deploy.inputs import Image, list_images
from hemafast.deploy.model import open_model
from hemafast.deploy.plan import Options, make_plan
from hemafast.deploy.predict import decoded
from hemafast.engine.checkpoint import View, load_best, read_card
from hemafast.errors import HemafastError
from hemafast.preparation.build import prepare
from hemafast.preparation.images.depth import Range
from hemafast.preparation.images.picture import INTEGER

SIDE = 64
TWELVE, FOURTEEN = {INTEGER: Range(0, 4095)}, {INTEGER: Range(0, 16383)}


def write_cells(folder, draw, factor: int, count: int = 4, seed: int = 0):
    """Cells of 16-bit TIFF whose brightest value is nearly 255 times `factor`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        cell = np.clip(draw(seed + number, SIDE, SIDE) * 1.4, 0, 255).astype(np.uint16)
        tifffile.imwrite(folder / f"{number}.tif", cell * factor, photometric="rgb")
    return folder


@pytest.fixture(scope="module")
def twelve(tmp_path_factory, draw):
    """A data set of a domain of 12 bits, and a model of it."""
    source = tmp_path_factory.mktemp("twelve")
    for label, seed in (("basophil", 0), ("monocyte", 70)):
        write_cells(source / "Lab" / label, draw, 16, 6, seed)
    settings = PrepareConfig(source=source, output=source / "prepared", pack_sizes=(SIDE,), field_of_view="whole")
    dataset = open_dataset(prepare(settings).folder)
    return dataset, write_run(source / "run", card_on(dataset, image_size=56))


def squares(run, paths, **options):
    """What the model sees of each image, before it is scaled to the network's size."""
    plan = make_plan([run], list(map(str, paths)), Options(device="cpu", **options))
    with decoded(plan, plan.groups[0]) as batches:
        found, errors = {}, {}
        for batch in batches:
            found |= dict(zip(batch.rows, batch.squares, strict=True))
            errors |= batch.errors
    return found, errors


def test_the_card_carries_the_ranges(twelve):
    dataset, run = twelve
    assert dataset.info.domains["Lab"].ranges == TWELVE
    assert read_card(run / "best_model.safetensors").view.ranges == {"Lab": TWELVE}


def test_an_image_becomes_what_training_saw(twelve, tmp_path, draw):
    """A single dim image, far from any folder of its domain's name: by itself it would look like 10 bits."""
    dataset, run = twelve
    dim = np.clip(draw(0, SIDE, SIDE) * 0.3, 0, 255).astype(np.uint16) * 16
    tifffile.imwrite(tmp_path / "a.tif", dim, photometric="rgb")
    found, errors = squares(run, [tmp_path / "a.tif", dataset.folder.parent / "Lab"])
    assert not errors
    np.testing.assert_array_equal(found[0], np.rint(dim * 255.0 / 4095))
    paths = dataset.table["path"].to_list()
    rows = [paths.index(f"images/Lab/{label}/{n}.tif") for label in ("basophil", "monocyte") for n in range(6)]
    for number, row in enumerate(rows, start=1):
        np.testing.assert_array_equal(found[number], dataset.files.packed[SIDE][row])


def test_a_bit_depth_overrides_the_model(twelve, tmp_path, draw):
    _, run = twelve
    folder = write_cells(tmp_path / "other", draw, 64)
    _, errors = squares(run, [folder])
    assert len(errors) == 4
    assert all("range: " in error and "--bit-depth" in error for error in errors.values())
    found, errors = squares(run, [folder], bit_depth=14)
    assert not errors
    values = tifffile.imread(folder / "2.tif")
    np.testing.assert_array_equal(found[2], np.rint(values * 255.0 / 16383))
    table = open_model(run, device="cpu").predict(str(folder), bit_depth=14)
    assert set(table["status"]) == {"ok"}
    assert open_model(run, device="cpu").embed(str(folder), bit_depth=14).shape[0] == 4


VIEW = View(packed_size=64, field_of_view=None, um_per_pixel={})
CHOSEN = [
    ("its folder", {"Lab": TWELVE, "Other": FOURTEEN}, "Other", None, Range(0, 16383)),
    ("what all domains share", {"Lab": FOURTEEN, "Other": FOURTEEN}, "cells", None, Range(0, 16383)),
    ("the images", {"Lab": TWELVE, "Other": FOURTEEN}, "cells", None, Range(0, 4095)),
    ("the images, of a model of plain ones", {}, "cells", None, Range(0, 4095)),
    ("the user", {"Lab": TWELVE}, "Lab", 16, Range(0, 65535)),
]


@pytest.mark.parametrize(("_why", "ranges", "folder", "bits", "expected"), CHOSEN, ids=[one[0] for one in CHOSEN])
def test_who_decides(_why, ranges, folder, bits, expected, tmp_path, draw):
    images = list_images([str(write_cells(tmp_path / folder, draw, 16))])
    depths = choose_depths(images, replace(VIEW, ranges=ranges), bits)
    assert [depths.of(row)[INTEGER] for row in range(4)] == [expected] * 4


@pytest.mark.parametrize("folder", ["Lab", "cells"])
def test_float_images_are_measured_by_themselves_if_the_model_knows_only_integers(folder, twelve, tmp_path, draw):
    _, run = twelve
    cell = np.clip(draw(0, SIDE, SIDE) * 1.4, 0, 255).astype(np.float32) / 255
    (tmp_path / folder).mkdir()
    tifffile.imwrite(tmp_path / folder / "float.tif", cell, photometric="rgb")
    write_cells(tmp_path / folder, draw, 16, 1)
    found, errors = squares(run, [tmp_path / folder])
    assert not errors
    np.testing.assert_array_equal(found[1], np.rint(cell * 255))
    values = tifffile.imread(tmp_path / folder / "0.tif")
    np.testing.assert_array_equal(found[0], np.rint(values * 255.0 / 4095))


def test_a_range_that_the_images_decide_is_a_warning(tmp_path, draw, caplog):
    with caplog.at_level(logging.WARNING, "hemafast"):
        choose_depths(list_images([str(write_cells(tmp_path / "cells", draw, 16))]), VIEW, None)
    assert "0 to 4095 (12 bits) become 0 to 255, by the images given" in caplog.text


def test_plain_images_and_arrays_need_no_range(cells, caplog):
    with caplog.at_level(logging.INFO, "hemafast"):
        assert choose_depths(list_images([str(cells)]), VIEW, None).of(0) == {}
        array = Image("0", array=np.zeros((20, 20, 3), np.uint8))
        assert choose_depths([array], VIEW, None).of(0) == {}
    assert not caplog.text


def test_a_card_of_an_older_version_has_no_ranges(tmp_path):
    run = write_run(tmp_path / "run")
    card = asdict(CARD)
    del card["view"]["ranges"], card["view"]["min_side"]
    _rewrite(run / "best_model.safetensors", card)
    view = load_best(run / "best_model.safetensors")[1].view
    assert (view.ranges, view.min_side) == ({}, 16)


def _rewrite(file, card) -> None:
    with safe_open(file, "pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict
        metadata = content.metadata()
    save_file(tensors, file, metadata | {"card": json.dumps(card)})


@pytest.mark.parametrize("bits", [0, 33])
def test_a_bit_depth_out_of_range_is_refused(bits):
    with pytest.raises(HemafastError, match=rf"bit_depth = {bits} is not between 1 and 32"):
        Options(bit_depth=bits)


def test_sizes_and_flat_images_are_errors_of_their_rows(twelve, tmp_path, draw, encode):
    _, run = twelve
    sizes = {"tiny": (8, 8), "long": (20, 90), "slide": (2400, 30), "good": (40, 40)}
    for name, (width, height) in sizes.items():
        (tmp_path / f"{name}.png").write_bytes(encode(draw(0, width, height)))
    (tmp_path / "flat.png").write_bytes(encode(np.full((30, 30, 3), 9, np.uint8)))
    table = open_model(run, device="cpu").predict(str(tmp_path))
    errors = {path.rpartition("/")[2]: error for path, error in zip(table["path"], table["error"], strict=True)}
    assert errors["good.png"] == ""
    assert "smaller than 16 px" in errors["tiny.png"]
    assert "more than 4 times as long as wide" in errors["long.png"]
    assert "hemafast takes images of single cells" in errors["slide.png"]
    assert "one colour" in errors["flat.png"]
    arrays = [draw(0, 8, 8), draw(0, 40, 40), np.full((30, 30, 3), 9, np.uint8)]
    assert [bool(error) for error in open_model(run, device="cpu").predict(arrays)["error"]] == [True, False, True]


def test_the_command_line_takes_a_bit_depth(twelve, tmp_path, draw):
    _, run = twelve
    folder = write_cells(tmp_path / "cells", draw, 64)
    out = tmp_path / "out.csv"
    assert hemafast("predict", run, folder, "--output", out).returncode == 1
    done = hemafast("predict", run, folder, "--output", out, "--bit-depth", 14)
    assert done.returncode == 0, done.stderr
