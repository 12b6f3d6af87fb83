"""Decoded squares equal those that preparation packs, and a bad image spoils no other."""

import zipfile

import numpy as np
import pytest
from jpegs import without_first_segment
from nvidia.dali import fn
from PIL import Image as Pillow

from hemafast.deploy.crops import Crops, choose_crops
from hemafast.deploy.decoding import decode_images
from hemafast.deploy.inputs import list_images
from hemafast.engine.run import view_of
from hemafast.preparation import threads
from hemafast.preparation.images.image_checks import strict_decoders
from hemafast.preparation.threads import Pool


def read(paths, crops=None, *, size=64, batch_size=8, threads=2):
    """All batches, and the names of the images."""
    images = list_images(map(str, paths))
    crops = Crops(np.zeros(len(images), np.int64)) if crops is None else crops
    with strict_decoders(), Pool(threads) as pool:
        batches = decode_images(images, crops, size, batch_size=batch_size, threads=threads, pool=pool)
        return list(batches), [image.name for image in images]


@pytest.mark.parametrize("batch_size", [1, 8, 64])
@pytest.mark.parametrize("from_zips", [True, False])
def test_squares_are_those_that_preparation_packs(cut, batch_size, from_zips):
    source = cut.folder.parent
    paths = [source / "Acevedo_20.zip", source / "Matek_19.zip"] if from_zips else [cut.folder / "images"]
    chosen = choose_crops(list_images(map(str, paths)), view_of(cut.info, 64), None, lambda images: None)
    assert set(chosen.sides) == {50, 56}
    batches, names = read(paths, chosen, batch_size=batch_size)
    manifest = cut.table
    known = {path.split("/", 1)[1]: row for row, path in zip(manifest.index, manifest["path"], strict=True)}
    packed = cut.files.packed[64]
    assert [row for batch in batches for row in batch.rows] == list(range(len(known))) == list(range(len(names)))
    for batch in batches:
        assert len(batch.rows) <= batch_size
        for row, pixels in zip(batch.rows, batch.squares, strict=True):
            key = "/".join(names[row].replace(".zip", "").split("/")[-3:])
            assert np.array_equal(pixels, packed[known[key]])


def test_an_image_smaller_than_its_window_is_seen_as_far_as_it_goes(cells):
    whole, _ = read([cells])
    wide, _ = read([cells], Crops(np.full(3, 10_000)))
    assert all(np.array_equal(a, b) for a, b in zip(whole[0].squares, wide[0].squares, strict=True))


BAD = {
    "cut.jpg": "damaged",
    "empty.png": "empty: no bytes",
    "flipped.jpg": "damaged",
    "frames.tiff": "several frames",
    "text.png": "not an image",
}


@pytest.fixture
def mixed(tmp_path, draw, encode):
    """A good image before each bad one."""
    jpeg = encode(draw(1), "JPEG", quality=95)
    middle = len(jpeg) // 2
    flipped = bytes(255 - byte for byte in jpeg[middle : middle + 200])
    contents = {
        "cut.jpg": jpeg[:middle],
        "empty.png": b"",
        "flipped.jpg": jpeg[:middle] + flipped + jpeg[middle + 200 :],
        "frames.tiff": encode(draw(2), "TIFF", save_all=True, append_images=[Pillow.fromarray(draw(3))]),
        "text.png": b"this is no image",
    }
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, name in enumerate(BAD):
        (folder / f"{number}-a-good.png").write_bytes(encode(draw(10 + number)))
        (folder / f"{number}-{name}").write_bytes(contents[name])
    return folder


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_bad_image_spoils_no_other(mixed, batch_size):
    batches, names = read([mixed], batch_size=batch_size)
    good = [row for row, name in enumerate(names) if name.endswith("good.png")]
    assert [row for batch in batches for row in batch.rows] == good
    errors = {names[row].rpartition("-")[2]: error for batch in batches for row, error in batch.errors.items()}
    assert errors.keys() == BAD.keys()
    assert all(errors[name].startswith(words) for name, words in BAD.items())


def test_dali_never_sees_the_bytes_of_an_image(cells, draw, encode, monkeypatch):
    """It crashes on some, as on this one now and then."""

    def fail(*_):
        raise AssertionError("decoded by DALI")

    monkeypatch.setattr(fn.decoders, "image", fail)
    refused = cells / "a" / "refused.jpg"
    refused.write_bytes(without_first_segment(encode(draw(5), "JPEG")))
    (batch,), names = read([cells])
    assert len(batch.rows) == len(names) == 4


def test_a_batch_of_large_files_is_shorter(cells, monkeypatch):
    size = max(path.stat().st_size for path in cells.rglob("*.png"))
    monkeypatch.setattr(threads, "_BATCH_BYTES", size + 1)
    batches, _ = read([cells])
    assert [len(batch.rows) for batch in batches] == [2, 1]


def test_a_damaged_member_of_a_zip_is_an_error_of_that_image(tmp_path, draw, encode):
    path, data = tmp_path / "d.zip", encode(draw(1))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.png", encode(draw(2)))
        file.writestr("b.png", data)
    content = path.read_bytes()
    at = content.index(data) + len(data) // 2
    path.write_bytes(content[:at] + bytes([255 - content[at]]) + content[at + 1 :])
    (batch,), _ = read([path])
    assert (batch.rows, list(batch.errors)) == ((0,), [1])
    assert "b.png is damaged" in batch.errors[1]
