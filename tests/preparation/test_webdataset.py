"""The tar files are what DALI's and webdataset's readers expect, and hold what the file lists name."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from nvidia.dali import Pipeline, fn, types

from hemafast.config import PrepareConfig
from hemafast.preparation.build import prepare

# webdataset leaves the last tar that it read for the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_archive, draw, encode) -> Path:
    source = tmp_path_factory.mktemp("webdataset")
    extra = {
        "basophil/a.b.png": encode(draw(900)),  # names that one key could stand for
        "basophil/a_b.png": encode(draw(901)),
        "basophil/a b.png": encode(draw(902)),
        "basophil/same.png": encode(draw(903)),
        "basophil/same.tiff": encode(draw(904), "TIFF"),
        "basophil/misnamed.jpg": encode(draw(905)),
    }
    make_archive(source / "A.zip", {"basophil": 6, "monocyte": 9}, kind="JPEG", extra=extra)
    config = PrepareConfig(source=source, output=source / "prepared", pack_sizes=(64,), shards=3, format="webdataset")
    return prepare(config).folder


def _listed(folder: Path, split: str) -> list[tuple[bytes, int]]:
    """Bytes and label of every image of a split, as the file lists have them."""
    lines = "".join(path.read_text() for path in sorted((folder / "shards").glob(f"{split}-*"))).splitlines()
    parts = [line.rsplit(" ", 1) for line in lines]
    return [((folder / path).read_bytes(), int(label)) for path, label in parts]


def _tars(folder: Path, split: str) -> list[str]:
    return [str(path) for path in sorted((folder / "webdataset").glob(f"{split}-*.tar"))]


@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset_reads_what_the_lists_name(folder, split):
    samples = webdataset.WebDataset(_tars(folder, split), shardshuffle=False, empty_check=False)
    found = [
        (next(data for key, data in sample.items() if key in ("jpg", "png", "tiff")), int(sample["cls"]))
        for sample in samples
    ]
    assert found == _listed(folder, split)


def _read_by_dali(folder: Path, split: str) -> list[tuple[np.ndarray, int]]:
    tars = _tars(folder, split)
    listed = _listed(folder, split)
    with Pipeline(1, 1, None) as pipeline:
        encoded, label = fn.readers.webdataset(
            paths=tars,
            index_paths=[tar.replace(".tar", ".idx") for tar in tars],
            ext=["jpg;png;tiff", "cls"],
            missing_component_behavior="error",
        )
        pipeline.set_outputs(fn.decoders.image(encoded, device="cpu", output_type=types.RGB), label)
    found = []
    for _ in listed:
        pixels, label = pipeline.run()
        found.append((np.asarray(pixels.at(0)), int(bytes(np.asarray(label.at(0))).decode())))
    return found


@pytest.mark.parametrize("split", ["train", "val"])
def test_dali_reads_what_the_lists_name(folder, split):
    from PIL import Image

    for (pixels, label), (data, expected) in zip(_read_by_dali(folder, split), _listed(folder, split), strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        assert label == expected


def test_the_index_points_at_the_bytes(folder):
    for tar in _tars(folder, "train"):
        content = Path(tar).read_bytes()
        lines = Path(tar.replace(".tar", ".idx")).read_text().splitlines()
        assert lines[0] == f"v1.2 {len(lines) - 1}"
        with tarfile.open(tar) as file:
            members = {member.name: file.extractfile(member).read() for member in file.getmembers()}
        parts = [line.split(" ") for line in lines[1:]]
        assert all(len(part) == 8 for part in parts)
        for part in parts:
            for suffix, offset, size, name in (part[:4], part[4:]):
                assert name.endswith(f".{suffix}")
                assert content[int(offset) : int(offset) + int(size)] == members[name]


def test_no_two_images_share_a_key(folder):
    for split in ("train", "val"):
        names = []
        for tar in _tars(folder, split):
            with tarfile.open(tar) as file:
                names += [member.name for member in file.getmembers()]
        keys = [name.partition(".")[0] for name in names]
        assert len(set(keys)) == len(names) / 2
