"""The two drawn archives: what is in them, that they are reproducible, and that nothing half written is left."""

import io
import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from recorder import Recorder

from hemafast.demo import archives
from hemafast.demo.archives import DRAWN_MARKER, write_demo_archives
from hemafast.demo.cells import MATEK_19, MORPHOLOGIES, Stain, draw_cell

FEWEST = 120
ACEVEDO_NAME = re.compile(r"(BA|EO|ERB|LY|MMY|MO|MY|BNE|SNE|PMY)_[1-9]\d{3,5}\.jpg")
MATEK_NAME = re.compile(r"(BAS|EOS|EBO|LYT|MMZ|MON|MYO|MYB|NGB|NGS|PMO)_\d{4}\.tiff")


def _noise(cell_class: str, stain: Stain, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Stand in for a drawn cell where only the archive around it is under test."""
    assert cell_class in MORPHOLOGIES
    row = generator.integers(0, 256, (1, stain.width_px, 3), dtype=np.uint8)
    return np.repeat(row, stain.height_px, axis=0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "draw_cell", _noise)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_demo_archives(tmp_path_factory.mktemp("drawn") / "source", images=FEWEST)


def _images(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [name for name in archive.namelist() if name != DRAWN_MARKER]


def _counts(path: Path) -> Counter[str]:
    return Counter(name.split("/")[0] for name in _images(path))


def test_both_archives_are_written_under_their_names(drawn: list[Path]) -> None:
    assert [path.name for path in drawn] == ["Acevedo_20.zip", "Matek_19.zip"]
    assert sorted(drawn[0].parent.iterdir()) == sorted(drawn)
    assert [len(_images(path)) for path in drawn] == [72, 48]


def test_members_are_class_folder_and_file_name(drawn: list[Path]) -> None:
    for path, pattern in zip(drawn, (ACEVEDO_NAME, MATEK_NAME), strict=True):
        names = _images(path)
        assert len(set(names)) == len(names)
        for folder, file_name in (name.split("/") for name in names):
            assert folder in MORPHOLOGIES
            assert pattern.fullmatch(file_name), file_name


def test_images_have_the_promised_format(drawn: list[Path]) -> None:
    promised = (("JPEG", "RGB", (360, 363)), ("TIFF", "RGBA", (400, 400)))
    for path, expected in zip(drawn, promised, strict=True):
        with zipfile.ZipFile(path) as archive:
            for name in _images(path):
                with Image.open(io.BytesIO(archive.read(name))) as image:
                    assert (image.format, image.mode, image.size) == expected
                    assert image.info.get("compression", "raw") == "raw"


def test_an_image_depends_only_on_its_own_seed(drawn: list[Path]) -> None:
    rank = list(_counts(drawn[1])).index("monocyte")
    with zipfile.ZipFile(drawn[1]) as archive, Image.open(io.BytesIO(archive.read("monocyte/MON_0002.tiff"))) as image:
        stored = np.asarray(image)
    assert np.array_equal(stored[..., :3], draw_cell("monocyte", MATEK_19, np.random.default_rng([42, 1, rank, 2])))
    assert (stored[..., 3] == 255).all()


def test_marker_says_that_the_cells_are_drawn(drawn: list[Path]) -> None:
    for path in drawn:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(DRAWN_MARKER).decode()
        assert "drawn by hemafast's demo" in text
        assert "real blood" in text


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("images", [FEWEST, 333])
def test_counts_add_up_and_follow_the_real_imbalance(tmp_path: Path, images: int) -> None:
    acevedo, matek = map(_counts, write_demo_archives(tmp_path, images=images))
    assert acevedo.total() == round(0.6 * images)
    assert acevedo.total() + matek.total() == images
    assert set(acevedo) == set(MORPHOLOGIES) - {"myeloblast"}
    assert set(matek) == set(MORPHOLOGIES)
    assert min(acevedo.values()) >= 3
    assert min(matek.values()) >= 3
    assert acevedo.most_common(1)[0][0] == "eosinophil"
    assert [name for name, _ in matek.most_common(3)] == ["neutrophil_segmented", "lymphocyte_typical", "myeloblast"]


@pytest.mark.usefixtures("quick")
def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    first, again, other = (
        [path.read_bytes() for path in write_demo_archives(tmp_path / folder, images=FEWEST, seed=seed)]
        for folder, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first == again
    assert all(ours != theirs for ours, theirs in zip(first, other, strict=True))


@pytest.mark.usefixtures("quick")
def test_every_image_is_reported(tmp_path: Path) -> None:
    heard = Recorder()
    write_demo_archives(tmp_path, images=FEWEST, progress=heard)
    (stage,) = heard.stages
    assert (stage.what, stage.total, stage.unit, stage.finished) == ("drawing cells", FEWEST, "cells", True)
    assert stage.done == list(range(FEWEST + 1))


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 120 images, not 119"):
        write_demo_archives(tmp_path / "source", images=119)
    assert not (tmp_path / "source").exists()


@pytest.mark.parametrize("name", ["Acevedo_20.zip", "Matek_19.zip"])
def test_an_existing_archive_is_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=name):
        write_demo_archives(tmp_path, images=FEWEST)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"mine"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("images_before", [10, 100])
def test_nothing_is_left_when_drawing_stops_midway(
    tmp_path: Path, error: type[BaseException], images_before: int
) -> None:
    with pytest.raises(error):
        write_demo_archives(tmp_path, images=FEWEST, progress=Recorder("drawing cells", images_before, error))
    assert list(tmp_path.iterdir()) == []
