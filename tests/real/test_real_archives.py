"""The two public archives, where HEMAFAST_REAL_ARCHIVES names a folder that holds (parts of) them."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hemafast.config import PrepareConfig
from hemafast.data.dataset import open_dataset
from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader
from hemafast.experiments import audit as room
from hemafast.experiments.audit import audit
from hemafast.preparation.build import prepare
from hemafast.preparation.images.image_checks import decode_reference, strict_decoders, verify_image
from hemafast.preparation.images.kinds import UnreadableImageError
from hemafast.preparation.scale import Measured, estimate_from, factor_of, measure
from hemafast.preparation.verify import verify

FOLDER = os.environ.get("HEMAFAST_REAL_ARCHIVES", "")
FILES = ("Acevedo_20.zip", "Matek_19.zip")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not FOLDER or not all((Path(FOLDER) / file).is_file() for file in FILES),
        reason=f"HEMAFAST_REAL_ARCHIVES names no folder with {' and '.join(FILES)}",
    ),
]

TWINS = (
    ("BA_20201", "BA_809918"),
    ("BA_225540", "BA_786369"),
    ("BA_251042", "BA_988506"),
    ("BA_381452", "BA_80990"),
    ("BA_435917", "BA_858229"),
    ("BA_546746", "BA_685720"),
    ("MO_145357", "MO_997225"),
)
"""Images of Acevedo_20 whose bytes are the same."""
TURNED = ("BAS_0053", "MMZ_0001", "MMZ_0006", "MMZ_0011", "MOB_0002", "MOB_0022", "MYB_0001", "MYB_0036")
"""Cells of the sample of Matek_19 that are in there twice, turned or stretched: no hash finds them, their names do."""
SCALES = {"Acevedo_20": 0.1, "Matek_19": 0.0725}
"""Micrometres per pixel, as published."""
CONTRADICTION = {"EO_225902", "BNE_191112"}
"""One image of Acevedo_20 in two class folders."""


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The archives prepared with the default settings; linked, so that nothing is written beside them."""
    source = tmp_path_factory.mktemp("real")
    for file in FILES:
        (source / file).symlink_to(Path(FOLDER).absolute() / file)
    return open_dataset(prepare(PrepareConfig(source=source, output=source / "prepared")).folder)


@pytest.fixture(scope="module")
def images(real):
    """The manifest by the stem of each file's name."""
    return real.table.set_index(real.table["path"].map(lambda path: Path(path).stem))


def test_every_image_is_counted(real):
    for file in FILES:
        domain = Path(file).stem
        with zipfile.ZipFile(Path(FOLDER) / file) as archive:
            packed = [name for name in archive.namelist() if name.lower().endswith((".jpg", ".tif", ".tiff"))]
        rows = real.table[real.table["domain"] == domain]
        assert sorted(rows["path"].str.split("/", n=2).str[2]) == sorted(packed)
        assert real.info.domains[domain].images == len(packed) == rows["path"].nunique()
    assert {name: domain.quarantined for name, domain in real.info.domains.items()} == {"Acevedo_20": 2, "Matek_19": 0}
    assert not real.info.drawn
    assert real.counts("train").sum() + real.counts("val").sum() == len(real.table) - 2


def test_an_image_with_two_labels_is_quarantined(images):
    refused = images[images["verdict"] == "quarantined"]
    assert set(refused.index) == CONTRADICTION
    assert (refused["split"] == "").all()
    assert refused["sha256"].nunique() == 1


def test_an_image_with_two_labels_leads_the_audit(real, tmp_path, monkeypatch):
    drawn = np.random.default_rng(0).normal
    monkeypatch.setattr(room, "features_of", lambda _, samples, *__: (drawn(size=(len(samples), 8)), "chance"))
    table = pd.read_csv(audit(real, tmp_path, count=3).folder / room.TABLE, keep_default_na=False)
    assert {Path(path).stem for path in table["path"][:2]} == CONTRADICTION
    assert table["reason"].ne("").tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("twins", TWINS, ids="=".join)
def test_twins_never_stand_on_both_sides_of_the_split(images, twins):
    pair = images.loc[list(twins)]
    assert pair["sha256"].nunique() == 1
    assert pair["split"].nunique() == 1
    assert set(pair["split"]) <= {"train", "val"}


def test_no_other_images_are_taken_for_one_picture(images):
    """Whether near duplicates are found is tested on copies; here, that different cells are told apart."""
    groups = images[images["verdict"] != "quarantined"].groupby("duplicate_group")
    found = {frozenset(group.index) for _, group in groups if len(group) > 1}
    assert found == {frozenset(pair) for pair in TWINS}


def test_the_field_of_view_is_25_um_in_both_domains(images):
    assert images.groupby("domain")["window"].agg(set).to_dict() == {"Acevedo_20": {250}, "Matek_19": {345}}


def test_flipped_bytes_in_real_images_are_noticed_and_no_clean_one_is_refused(real, images):
    generator = np.random.default_rng(0)
    jpegs = images[images["format"] == "JPEG"].sort_index().iloc[::14].head(200)
    data = [(real.folder / path).read_bytes() for path in jpegs["path"]]
    assert len(data) == 200
    caught = 0
    with strict_decoders():
        for image in data:
            verify_image(image, "a.jpg")
            content = np.frombuffer(image, np.uint8).copy()
            places = generator.choice(len(content), 200, replace=False)
            content[places] ^= generator.integers(1, 256, 200, dtype=np.uint8)
            try:
                verify_image(content.tobytes(), "a.jpg")
            except UnreadableImageError:
                caught += 1
    assert caught >= 196


def test_cells_that_are_there_twice_are_kept_on_one_side_by_their_names(real, tmp_path):
    source = real.folder.parent
    config = PrepareConfig(
        source=source, output=tmp_path / "prepared", pack_sizes=(32,), group_pattern=r"^([A-Z]+_\d+)_"
    )
    manifest = prepare(config).files.manifest
    cell = manifest["path"].str.extract(r"/([A-Z]+_\d+)_[^/]*$")[0]
    pairs = manifest[cell.isin(TURNED)].groupby(cell)
    assert len(pairs) == len(TURNED)
    assert (pairs.size() == 2).all()
    assert (pairs["split"].nunique() == 1).all()


def test_the_data_set_verifies(real):
    found = verify(real.folder)
    assert (found.images, found.problems) == (len(real.table), ())


def test_no_bytes_stand_on_both_sides_of_the_split(images):
    accepted = images[images["verdict"] != "quarantined"]
    assert (accepted.groupby("sha256")["split"].nunique() == 1).all()


def test_every_class_of_each_domain_validates(real):
    for domain, classes in (("Acevedo_20", 10), ("Matek_19", 11)):
        assert len(real.info.counts["train"][domain]) == len(real.info.counts["val"][domain]) == classes


@pytest.mark.parametrize("domain", ["Acevedo_20", "Matek_19"])
def test_packed_pixels_are_nearly_those_of_the_files(real, domain):
    samples = real.samples("train")
    rows = np.flatnonzero(samples.domains == domain)[:100]
    assert len(rows) > 90
    some = samples.select(rows)
    packed, files = (
        np.concatenate(
            [
                batch.images.numpy()
                for batch in eval_loader(
                    some,
                    shape=GraphShape("cpu", kind, packed_size=256, image_size=224, batch_size=25, threads=2),
                ).epoch()
            ]
        )
        for kind in ("packed", "files")
    )
    difference = np.abs(packed.astype(int) - files)
    assert difference.max() <= 3
    assert difference.mean() < 0.5
    assert packed.std() > 10


# Scale


def test_known_scales_agree_with_the_nuclei(real):
    for domain in real.info.domains.values():
        assert domain.scale.source == "known archive"
        assert domain.scale.estimate.holds(domain.um_per_pixel)
    assert not [note for note in real.info.notes if "nuclei say" in note]


@pytest.fixture(scope="module")
def nuclei(real, images):
    """By domain: what was measured of each image, and its class, of at most 600."""
    found = {}
    for domain, own in images[images["verdict"] != "quarantined"].sort_index().groupby("domain"):
        some = own.iloc[:: max(1, len(own) // 600)]
        pixels = [decode_reference((real.folder / path).read_bytes()) for path in some["path"]]
        measured = [measure(one) for one in pixels]
        found[domain] = measured, some["label"].tolist()
    return found


@pytest.mark.parametrize(("domain", "scale"), SCALES.items())
def test_the_scale_of_30_images_is_within_20_percent(nuclei, domain, scale):
    measured, _ = nuclei[domain]
    found = [one for one in measured if one.nucleus is not None]
    assert len(found) > 0.9 * len(measured)
    held = 0
    for seed in range(20):
        chosen = np.random.default_rng(seed).permutation(len(measured))[:30]
        estimate = estimate_from([measured[place] for place in chosen])
        assert estimate.um_per_pixel == pytest.approx(scale, rel=0.2)
        held += estimate.holds(scale)
    assert held >= 18  # 95 % of 20 are 19


@pytest.mark.parametrize(("domain", "scale"), SCALES.items())
def test_the_scale_of_one_class_is_within_half(nuclei, domain, scale):
    measured, labels = nuclei[domain]
    for label in set(labels):
        estimate = estimate_from([one for one, own in zip(measured, labels, strict=True) if own == label])
        assert estimate.um_per_pixel == pytest.approx(scale, rel=0.5)


def of_class(measured, label):
    """Those of a class in which a nucleus was found."""
    return [one for one, own in zip(*measured, strict=True) if own == label and one.nucleus]


@pytest.mark.parametrize(("domain", "scale"), SCALES.items())
def test_whole_red_cells_have_the_same_size_in_both_laboratories(nuclei, domain, scale):
    measured, labels = nuclei[domain]
    assert estimate_from(measured).by_red_cells == pytest.approx(scale, rel=0.06)
    for label in set(labels):
        estimate = estimate_from([one for one, own in zip(measured, labels, strict=True) if own == label])
        assert estimate.by_red_cells is None or estimate.by_red_cells == pytest.approx(scale, rel=0.2)


@pytest.mark.parametrize(
    ("domain", "scale", "other"), [("Acevedo_20", 0.1, "Matek_19"), ("Matek_19", 0.0725, "Acevedo_20")]
)
def test_classes_of_known_size_tell_the_scale_of_one_class_better(nuclei, domain, scale, other):
    """With the true classes, and the sizes that nuclei have in the other laboratory."""
    known = {"Acevedo_20": 0.1, "Matek_19": 0.0725}[other]
    sizes = {
        label: float(np.median([one.nucleus * known for one in of_class(nuclei[other], label)]))
        for label in set(nuclei[other][1])
    }
    names, alone, with_classes = sorted(sizes), [], []
    for label in set(nuclei[domain][1]) & set(sizes):
        diameters = [one.nucleus for one in of_class(nuclei[domain], label)]
        first = estimate_from([Measured(100, d) for d in diameters]).um_per_pixel
        answers = np.eye(len(names))[[names.index(label)] * len(diameters)]
        factor = factor_of(first * np.array(diameters), answers, [sizes[name] for name in names])
        alone.append(np.log(first / scale))
        with_classes.append(np.log(first * factor / scale))
    assert len(alone) >= 10
    error, better = (np.sqrt(np.mean(np.square(one))) for one in (alone, with_classes))
    assert better < 0.9 * error
    assert better < 0.2
