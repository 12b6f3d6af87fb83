"""Scales of domains in a preparation: given, known, estimated from nuclei, or unknown; and what is said about them."""

import json

import numpy as np
import pytest

from hemafast.config import PrepareConfig, checked
from hemafast.errors import HemafastError
from hemafast.preparation.build import plan_preparation, prepare
from hemafast.preparation.reader import read_info, seal

CELL = {"basophil": 3, "monocyte": 3}


def _prepare(source, **options):
    fields = {"source": source, "output": source / "prepared", "pack_sizes": (32,), "max_quarantined": 1.0} | options
    return prepare(checked(PrepareConfig, fields))


def _notes(prepared, domain):
    return [note.removeprefix(f"{domain}: ") for note in prepared.info.notes if note.startswith(f"{domain}: ")]


def _disc(radius: int, side: int, seed: int) -> np.ndarray:
    """A cell whose nucleus has this radius, in a square image on a background of its own."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    patches = np.random.default_rng(seed).integers(200, 256, (5, 5)).repeat(side // 5, axis=0).repeat(side // 5, axis=1)
    shade = np.where(np.hypot(x, y) < radius, 70, patches)
    return np.repeat(shade[..., None], 3, axis=2).astype(np.uint8)


def _discs(encode, radii, side):
    """Files by name."""
    pixels = [_disc(radius, side, side + number) for number, radius in enumerate(radii)]
    return {f"basophil/{side}_{number}.png": encode(one) for number, one in enumerate(pixels)}


def test_a_domain_of_unknown_scale_is_cut_by_its_nuclei(tmp_path, make_archive, encode):
    make_archive(tmp_path / "New", {}, extra=_discs(encode, [19, 20, 20, 20, 21], 100))
    prepared = _prepare(tmp_path)
    domain = prepared.info.domains["New"]
    assert domain.um_per_pixel == pytest.approx(9.7 / 40, rel=0.05)
    assert set(prepared.files.manifest["window"]) == {round(25 / domain.um_per_pixel)}  # 103 px, more than there is
    assert domain.scale.source == "estimated"
    assert (domain.scale.estimate.nuclei, domain.scale.estimate.images) == (5, 5)
    assert domain.scale.estimate.low < domain.um_per_pixel < domain.scale.estimate.high
    assert "estimated: " in domain.scale_words
    assert "5 nuclei" in domain.scale_words
    (said,) = [note for note in _notes(prepared, "New") if "nuclei" in note]
    assert said.startswith("about 0.2")
    assert "--um-per-pixel New=unknown" in said
    smaller = _prepare(tmp_path, field_of_view=15.0)
    assert set(smaller.files.manifest["window"]) == {round(15 / domain.um_per_pixel)}


def test_images_stay_whole_where_that_is_asked_for(tmp_path, make_archive):
    make_archive(tmp_path / "New", CELL)
    prepared = _prepare(tmp_path, um_per_pixel={"New": "unknown"})
    domain = prepared.info.domains["New"]
    assert (domain.um_per_pixel, domain.scale.source, domain.scale.estimate) == (None, "unknown", None)
    assert domain.scale_words == "unknown"
    assert set(prepared.files.manifest["window"]) == {60}
    assert "um/px unknown, as asked for; images are kept whole" in _notes(prepared, "New")


def test_images_without_nuclei_stay_whole_under_a_note_that_says_why(tmp_path, make_archive):
    make_archive(tmp_path / "New", {"basophil": 2, "monocyte": 2})
    prepared = _prepare(tmp_path)
    domain = prepared.info.domains["New"]
    assert (domain.um_per_pixel, domain.scale.source) == (None, "unknown")
    assert domain.scale.estimate.images == 4
    (said,) = _notes(prepared, "New")
    assert said.startswith("um/px unknown, images are kept whole; it cannot be estimated")
    assert "of 4 images" in said
    assert "--um-per-pixel New=NUMBER" in said
    assert not _prepare(tmp_path).fresh
    with pytest.raises(HemafastError, match="New are unknown: it cannot be estimated") as refused:
        _prepare(tmp_path, field_of_view=25.0)
    assert "--um-per-pixel New=0.1" in refused.value.remedy


@pytest.mark.parametrize(("scale", "doubted"), [(0.3, False), (0.9, True)])
def test_a_scale_that_is_given_is_compared_with_the_nuclei(tmp_path, make_archive, encode, scale, doubted):
    make_archive(tmp_path / "New", {}, extra=_discs(encode, [16] * 32, 100))
    prepared = _prepare(tmp_path, um_per_pixel={"New": scale})
    domain = prepared.info.domains["New"]
    assert (domain.um_per_pixel, domain.scale.source, domain.scale_words) == (scale, "given", f"{scale} (given)")
    said = [note for note in _notes(prepared, "New") if "nuclei say" in note]
    assert len(said) == doubted
    assert all(f"{scale} um/px (given), but its nuclei say about 0.30" in note for note in said)


def test_sizes_that_differ_in_scale_are_each_cut_by_their_own(tmp_path, make_archive, encode):
    files = _discs(encode, [20] * 20, 120) | _discs(encode, [40] * 20, 240)
    make_archive(tmp_path / "New", {}, extra=files)
    prepared = _prepare(tmp_path, field_of_view=15.0)
    windows = prepared.files.manifest.groupby("width")["window"].agg(set)
    small, large = windows[120].pop(), windows[240].pop()
    assert not windows[120]
    assert not windows[240]
    assert large == pytest.approx(2 * small, rel=0.03)
    assert large == pytest.approx(15 * 80 / 9.7, rel=0.03)
    assert any(note.startswith("sizes differ in scale") for note in _notes(prepared, "New"))


def test_known_archives_and_estimates_are_told_apart_before_anything_is_read(tmp_path, make_archive):
    make_archive(tmp_path / "Acevedo_20.zip", CELL)
    make_archive(tmp_path / "New", CELL, seed=1)
    config = checked(PrepareConfig, {"source": tmp_path, "output": tmp_path / "prepared"})
    plan = plan_preparation(config)
    assert plan.scale_sources == {"Acevedo_20": "known archive", "New": "estimated"}
    assert plan.um_per_pixel == {"Acevedo_20": 0.1, "New": None}


def test_a_data_set_that_does_not_say_how_scales_are_known_opens(tmp_path, make_archive):
    make_archive(tmp_path / "New", CELL)
    prepared = _prepare(tmp_path, um_per_pixel={"New": 0.5})
    path = prepared.folder / "dataset.json"
    old = json.loads(path.read_text())
    del old["domains"]["New"]["scale"]
    path.write_text(json.dumps(old))
    with pytest.raises(HemafastError, match="was changed"):
        read_info(prepared.folder)
    path.write_text(json.dumps(old | {"seal": seal(type(prepared.info).model_validate(old))}))
    found = read_info(prepared.folder).domains["New"]
    assert (found.um_per_pixel, found.scale, found.scale_words) == (0.5, None, "0.5")


def _draw_smear(seed: int) -> np.ndarray:
    """A cell amid whole red cells of 28 px."""
    places = [(30, 30), (170, 30), (30, 170), (170, 170)]
    y, x = np.mgrid[:200, :200] + np.random.default_rng(seed).integers(-4, 5, 2)[:, None, None]
    pixels = np.full((200, 200, 3), (238, 226, 225 - seed), np.uint8)
    for across, down in places:
        pixels[np.hypot(x - across, y - down) < 14] = (212, 160, 162)
    pixels[np.hypot(x - 100, y - 100) < 24] = (95, 55, 130)
    return pixels


def test_red_cells_are_stored_and_said_and_seals_of_older_versions_hold(tmp_path, make_archive, encode):
    smear = {f"basophil/{seed}.png": encode(_draw_smear(seed)) for seed in range(6)}
    make_archive(tmp_path / "New", {}, extra=smear | _discs(encode, [19, 20, 20, 20, 21], 100))
    make_archive(tmp_path / "Bare", {}, extra=_discs(encode, [19, 20, 20, 20, 21], 105))
    prepared = _prepare(tmp_path)
    scale = prepared.info.domains["New"].scale
    assert scale.estimate.red_cells >= 20
    assert scale.estimate.by_red_cells == pytest.approx(7.1 / 28, rel=0.06)
    assert f"{scale.estimate.red_cells} red cells" in prepared.info.domains["New"].scale_words
    written = json.loads((prepared.folder / "dataset.json").read_text(encoding="utf-8"))["domains"]
    assert written["New"]["scale"]["estimate"]["red_cells"] == scale.estimate.red_cells
    assert not {"red_cells", "by_red_cells"} & written["Bare"]["scale"]["estimate"].keys()  # as before there were any
    info = read_info(prepared.folder)
    assert info.seal == seal(info)
