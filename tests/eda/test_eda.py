"""The page about a data set: alone, safe to open, and its numbers those of the manifest."""

import json
import re
from pathlib import Path
from unittest.mock import Mock, call

import numpy as np
import pandas as pd
import pytest
from page import Page, needs_browser, open_in_browser, wrong_with
from PIL import Image
from typer.testing import CliRunner

from hemafast.cli import app
from hemafast.config import PrepareConfig
from hemafast.data.dataset import open_dataset
from hemafast.eda import measure
from hemafast.eda.page import write_eda
from hemafast.errors import HemafastError
from hemafast.preparation import schema
from hemafast.preparation.build import prepare

PICTURES = ("class_balance", "colours", "image_sizes", "samples", "split")
HOSTILE_DOMAINS = ("<script>alert(1)", "_$x^{$ 白血球 " + "w" * 90)
HOSTILE_CLASSES = ("<img src=x onerror=alert(2)>", "{% raw %}{{ 7 * 7 }}", "$_{x^$", "単球")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, make_archive, draw, encode):
    """Copies, a contradiction, a grey image, something damaged, a class that only one domain has."""
    source = tmp_path_factory.mktemp("mixed")
    copy, contradictory, whole = encode(draw(90_001)), encode(draw(90_002)), encode(draw(90_003))
    extra = {
        "basophil/COPY_1.png": copy,
        "basophil/COPY_2.png": copy,
        "basophil/THIS.png": contradictory,
        "monocyte/THAT.png": contradictory,
        "monocyte/CUT.png": whole[: len(whole) // 2],
        "monocyte/GREY.png": encode(draw(90_004)[..., 0]),
    }
    make_archive(source / "Acevedo_20.zip", {"basophil": 10, "monocyte": 8}, extra=extra)
    make_archive(source / "Other.zip", {"basophil": 6, "myeloblast": 7}, seed=1, size=(80, 70), kind="JPEG")
    config = PrepareConfig(
        source=source,
        output=source / "prepared",
        pack_sizes=(64,),
        max_quarantined=0.5,
        um_per_pixel={"Other": "unknown"},
    )
    return prepare(config).folder


@pytest.fixture(scope="module")
def written(mixed, tmp_path_factory):
    return write_eda(mixed, tmp_path_factory.mktemp("eda"))


@pytest.fixture(scope="module")
def page(written):
    return Page(written.read_text(encoding="utf-8"))


def section(page, title):
    """The text below a heading, up to the next one."""
    part = re.search(rf"<h2[^>]*>{title}</h2>(.*?)(<h2|</main>)", page.source, re.DOTALL)
    return Page(part[1]).text


def test_the_page_is_alone_and_its_pictures_lie_beside_it(written, page):
    assert page.is_alone
    assert {path.name for path in written.parent.iterdir()} == {"eda.html", *(f"{name}.png" for name in PICTURES)}
    for name in PICTURES:
        with Image.open(written.parent / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10


@needs_browser
@pytest.mark.slow
def test_the_page_is_sound_in_every_look(written, open_page):
    assert wrong_with(open_page, written) == {}


@needs_browser
@pytest.mark.slow
def test_the_browser_would_tell(written, tmp_path):
    page = tmp_path / "broken.html"
    broken = '<img src="missing.png"><img src="http://example.org/a.png"><script>nothing()</script>'
    page.write_text(written.read_text(encoding="utf-8").replace("<h2", broken + "<h2", 1), encoding="utf-8")
    seen = open_in_browser(page, tmp_path)
    assert seen.broken == 2
    assert seen.fetched > 0
    assert any("nothing is not defined" in line for line in seen.console)


def test_class_counts_are_those_of_the_manifest(page):
    text = " ".join(section(page, "Classes").split())
    assert "class Acevedo_20 Other" in text
    assert "basophil 12 6" in text  # 10 and two copies; of the contradiction nothing
    assert "monocyte 9 0" in text
    assert "myeloblast 0 7" in text
    assert "all 21 13" in text


def test_the_headline_counts_everything(page):
    text = " ".join(page.text.split())
    assert "37 images" in text
    for said in ("domains 2", "classes 3", "converted 1", "quarantined 3", "pictures found more than once 2"):
        assert said in text


def test_sizes_name_what_is_kept(page):
    text = " ".join(section(page, "Sizes").split())
    assert "Acevedo_20 64 60 60 6.0 PNG RGB 20" in text
    assert "Acevedo_20 64 60 60 6.0 PNG L 1" in text
    assert "Other 80 70 70 unknown JPEG RGB 13" in text


def test_scales_say_how_they_are_known_and_show_10_um(page):
    assert "Acevedo_20, um/px: 0.1 (known archive)" in section(page, "Scale")
    assert "Other, um/px: unknown" in section(page, "Scale")
    bars = re.findall(r'class="bar" style="width: ([\d.]+)%', page.source)
    assert not bars  # 60 px show 6 um


def test_a_bar_is_as_long_as_10_um(tmp_path, make_archive):
    make_archive(tmp_path / "A", {"basophil": 4, "monocyte": 4})
    scales = {"A": 0.5}
    config = PrepareConfig(source=tmp_path, output=tmp_path / "prepared", pack_sizes=(32,), um_per_pixel=scales)
    page = Page(write_eda(prepare(config).folder, tmp_path / "eda").read_text(encoding="utf-8"))
    assert "A, um/px: 0.5 (given)" in section(page, "Scale")
    assert re.findall(r'class="bar" style="width: ([\d.]+)%', page.source) == ["40.00", "40.00"]  # 25 um are shown


def test_copies_and_contradictions_are_named(page):
    text = section(page, "Pictures found more than once")
    for name in ("COPY_1", "COPY_2", "THIS", "THAT"):
        assert name in text


def test_quarantine_names_file_verdict_and_reason(page):
    text = " ".join(section(page, "Quarantine").split())
    assert "Acevedo_20/monocyte/CUT.png damaged" in text
    assert re.search(r"basophil/THIS.png contradiction .*monocyte/THAT.png", text)
    assert "3 in all" in text


def test_the_split_is_that_of_the_manifest(page, mixed):
    dataset = open_dataset(mixed)
    text = " ".join(section(page, "Split").split())
    for split in ("train", "val"):
        rows = dataset.table[dataset.table["split"] == split]
        counts = [(rows["domain"] == domain).sum() for domain in ("Acevedo_20", "Other")]
        assert f"all {counts[0]} {counts[1]}" in text
    assert dataset.info.fingerprint in text


def test_warnings_say_what_is_unknown_and_what_is_absent(page):
    text = " ".join(page.text.split())
    assert "Other: um/px unknown, so its cells" in text
    assert re.search(r"Acevedo_20 holds no [^.]*myeloblast", text)


def test_the_page_is_the_same_each_time(mixed, page, tmp_path):
    assert write_eda(mixed, tmp_path).read_text(encoding="utf-8") == page.source


def test_samples_are_of_their_class_and_domain(mixed):
    dataset = open_dataset(mixed)
    samples = measure.choose_samples(dataset, 5)
    assert set(samples["basophil"]) == {"Acevedo_20", "Other"}
    for label, domains in samples.items():
        for domain, rows in domains.items():
            chosen = dataset.table.loc[rows]
            assert 1 <= len(set(rows)) == len(rows) <= 5
            assert set(chosen["label"]) == {label}
            assert set(chosen["domain"]) == {domain}
            assert "quarantined" not in set(chosen["verdict"])


def test_colours_are_those_of_the_pixels(mixed):
    dataset = open_dataset(mixed)
    packed = dataset.files.packed[64]
    for domain, pixels in measure.sample_pixels(dataset).items():
        images = schema.accepted(dataset.table)
        rows = images.index[images["domain"] == domain]
        whole = np.concatenate([packed[row].reshape(-1, 3) for row in rows])
        assert pixels.mean(axis=0) == pytest.approx(whole.mean(axis=0), abs=3)
        assert measure.mean_colours(dataset)[domain].mean(axis=0) == pytest.approx(whole.mean(axis=0), abs=3)


def test_folds_are_shown_one_by_one(tmp_path, make_archive):
    make_archive(tmp_path / "A.zip", {"basophil": 9, "monocyte": 9})
    config = PrepareConfig(source=tmp_path, output=tmp_path / "prepared", pack_sizes=(32,), folds=3)
    page = Page(write_eda(prepare(config).folder, tmp_path / "eda").read_text(encoding="utf-8"))
    text = " ".join(section(page, "Split").split())
    assert [f"fold {fold}" in text for fold in range(4)] == [True, True, True, False]
    assert "None." in section(page, "Pictures found more than once")
    assert "No images were quarantined." in section(page, "Quarantine")


def test_names_meant_to_break_a_page_stay_names(tmp_path, make_archive):
    counts = dict.fromkeys(HOSTILE_CLASSES, 5)
    for seed, domain in enumerate(HOSTILE_DOMAINS):
        make_archive(tmp_path / "source" / domain, counts, seed=seed)
    config = PrepareConfig(
        source=tmp_path / "source", output=tmp_path / "prepared", pack_sizes=(64,), classes="from-data"
    )
    page = Page(write_eda(prepare(config).folder, tmp_path / "eda").read_text(encoding="utf-8"))
    assert page.is_alone
    for name in (*HOSTILE_DOMAINS, *HOSTILE_CLASSES):
        assert name in page.text


def test_an_old_page_stands_until_the_new_one_is_whole(mixed, tmp_path, monkeypatch):
    old = write_eda(mixed, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    write, written = Path.write_bytes, []

    def fail(path, content):
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fail)  # after other pictures have been written
    with pytest.raises(HemafastError, match="No space left on device"):
        write_eda(mixed, old.parent, images_per_class=2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_output_that_is_a_file_is_a_clear_error(mixed, tmp_path):
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    with pytest.raises(HemafastError, match="taken"):
        write_eda(mixed, tmp_path / "taken")
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "mine"


def test_the_command_says_where_the_page_is(mixed, tmp_path):
    result = CliRunner().invoke(app, ["eda", "--data", str(mixed), "--output", str(tmp_path / "e"), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["page"] == str(tmp_path / "e" / "eda.html")
    assert said["pictures"] == [str(tmp_path / "e" / f"{name}.png") for name in sorted(PICTURES)]


def test_progress_counts_the_pictures(mixed, tmp_path):
    progress = Mock()
    write_eda(mixed, tmp_path, progress=progress)
    pictures = len(list(tmp_path.glob("*.png")))
    start, *advances, finish = progress.mock_calls
    assert start == call.start("drawing", pictures, unit="pictures")
    assert advances == [call.advance()] * pictures
    assert finish == call.finish()


def test_many_sizes_become_one_row_for_each_format():
    few = pd.DataFrame({"domain": "A", "width": [40, 41], "height": 40, "window": 40, "format": "PNG", "mode": "RGB"})
    many = pd.DataFrame(
        {"domain": "B", "width": range(50, 62), "height": 50, "window": 50, "format": "JPEG", "mode": "L"}
    )
    files = pd.concat([few, many]).assign(images=2, bytes=1000.0, um=float("nan"))
    files.loc[files["domain"] == "B", "um"] = 5.0
    rows = measure.list_sizes(files)
    assert [(row["domain"], row["width"], row["images"]) for row in rows] == [
        ("A", "40", 2),
        ("A", "41", 2),
        ("B", "50 to 61", 24),
    ]
    assert [(row["um"], row["bytes"]) for row in rows] == [("unknown", 1000), ("unknown", 1000), ("5.0", 1000)]
