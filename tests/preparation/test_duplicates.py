"""Which images show one picture: the same bytes, the same pixels, or nearly the same; and what they must agree on."""

import io
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from packs import originals
from PIL import Image, ImageEnhance

from hemafast.config import PrepareConfig
from hemafast.demo.archives import write_demo_archives
from hemafast.preparation import duplicates
from hemafast.preparation.build import prepare
from hemafast.preparation.duplicates import (
    MAX_DISTANCE,
    find_contradictions,
    find_near,
    from_hex,
    group_duplicates,
    perceptual_hash,
    smallest_in_component,
    thumbnail,
    to_hex,
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> list[np.ndarray]:
    """Drawn cells of 256 x 256 px, all of them different."""
    folder = tmp_path_factory.mktemp("cells")
    write_demo_archives(folder, images=160, seed=3)
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in originals(folder).values()]
    return [np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR)) for image in images]


def _hashes(squares) -> np.ndarray:
    return perceptual_hash(np.stack([thumbnail(square) for square in squares]))


def _distance(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.bitwise_count(first ^ second).sum())


def _jpeg(square: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(square).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def _resized(square: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR))


COPIES = {
    "jpeg 50": lambda square: _jpeg(square, 50),
    "half size": lambda square: _resized(square, 128),
    "brighter": lambda square: np.asarray(ImageEnhance.Brightness(Image.fromarray(square)).enhance(1.1)),
    "less contrast": lambda square: np.asarray(ImageEnhance.Contrast(Image.fromarray(square)).enhance(0.9)),
    "shifted": lambda square: np.roll(square, 1, axis=0),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_copy_is_near_its_original(cells, change):
    originals, copies = _hashes(cells[::4]), _hashes([np.ascontiguousarray(change(cell)) for cell in cells[::4]])
    distances = [_distance(first, second) for first, second in zip(originals, copies, strict=True)]
    assert max(distances) <= MAX_DISTANCE


def test_different_cells_are_far_from_each_other(cells):
    hashes = _hashes(cells)
    assert len(find_near(hashes)) == 0
    assert min(_distance(*pair) for pair in combinations(hashes, 2)) > MAX_DISTANCE


@pytest.mark.parametrize("block", [1, 7, 512])
def test_every_pair_is_compared_across_blocks(monkeypatch, block):
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 4, (40, 4)).astype(np.uint64)
    expected = {(a, b) for a, b in combinations(range(40), 2) if _distance(hashes[a], hashes[b]) <= 3}
    assert 0 < len(expected) < 780
    assert {tuple(pair) for pair in find_near(hashes, 3).tolist()} == expected


def test_no_images_have_no_near_pairs():
    assert find_near(np.empty((0, 4), np.uint64)).shape == (0, 2)


def test_a_hash_survives_being_written(cells):
    hashes = _hashes(cells[:5])
    np.testing.assert_array_equal(from_hex(pd.Series(to_hex(hashes))), hashes)


def test_the_hash_of_a_ramp_is_what_it_was():
    ramp = np.add.outer(np.arange(256) ** 2 // 300, np.arange(256) // 4).astype(np.uint8)
    (digits,) = to_hex(_hashes([np.repeat(ramp[..., None], 3, axis=2)]))
    assert digits == FROZEN


FROZEN = "00242e8ad1752e8b5175ae8b5974a48b5b76a48b5b76a4895b76b4c94a76b5cd"


def test_links_are_transitive_and_the_smallest_name_stands_for_all():
    names = pd.Series(["d", "c", "b", "a", "e"], index=[10, 20, 30, 40, 50])
    found = smallest_in_component(names, np.array([[10, 20], [20, 40]]))
    assert list(found) == ["a", "a", "b", "a", "e"]


def test_groups_do_not_depend_on_the_order_of_the_rows(cells):
    squares = [*cells[:10], cells[0], _jpeg(cells[1], 60)]
    images = pd.DataFrame(
        {
            "sha256": [f"{number:02d}" * 32 for number in range(12)],
            "pixels_xxh128": [f"{number if number != 10 else 0:032x}" for number in range(12)],
            "phash": to_hex(_hashes(squares)),
        }
    )
    groups = group_duplicates(images)
    assert groups[0] == groups[10]
    assert groups[1] == groups[11]
    assert groups.nunique() == 10
    mixed = images.sample(frac=1, random_state=1)
    pd.testing.assert_series_equal(group_duplicates(mixed).sort_index(), groups)


# Through prepare


def _prepared(folder, **options):
    fields = {
        "source": folder,
        "output": folder / "prepared",
        "pack_sizes": (64,),
        "max_quarantined": 1.0,
        "field_of_view": "whole",
    } | options
    return prepare(PrepareConfig(**fields))


def test_the_same_pixels_in_two_formats_are_one_group(tmp_path, make_archive, cells, encode):
    extra = {f"basophil/{kind}.{kind}": encode(cells[0], kind) for kind in ("png", "tiff", "bmp")}
    extra["basophil/nearly.jpg"] = encode(cells[0], "JPEG", quality=80)
    extra["basophil/other.png"] = encode(cells[1])
    make_archive(tmp_path / "D", {"monocyte": 12}, extra=extra)
    manifest = _prepared(tmp_path, val_fraction=0.5).files.manifest.set_index("path")
    group = manifest.loc[[f"images/D/basophil/{name}" for name in ("png.png", "tiff.tiff", "bmp.bmp", "nearly.jpg")]]
    assert group["duplicate_group"].nunique() == group["split"].nunique() == 1
    assert group["pixels_xxh128"].nunique() == 2
    assert manifest.loc["images/D/basophil/other.png", "duplicate_group"] not in set(group["duplicate_group"])


def test_near_copies_under_three_labels_are_all_quarantined_and_all_named(tmp_path, make_archive, cells, encode):
    extra = {
        "basophil/a.png": encode(cells[0]),
        "basophil/b.png": encode(cells[0]),
        "monocyte/c.jpg": encode(cells[0], "JPEG", quality=80),
        "eosinophil/d.png": encode(np.ascontiguousarray(np.roll(cells[0], 1, axis=0))),
    }
    make_archive(tmp_path / "D", {"monocyte": 12}, extra=extra)
    left = {image.file: image for image in _prepared(tmp_path).quarantine}
    assert set(left) == {f"quarantined/D/{name}" for name in extra}
    assert {image.kind for image in left.values()} == {"contradiction"}
    reason = left["quarantined/D/monocyte/c.jpg"].reason
    assert all(name in reason for name in ("D/basophil/a.png", "D/basophil/b.png", "D/eosinophil/d.png"))
    assert "b.png" not in left["quarantined/D/basophil/a.png"].reason


def test_images_of_nearly_one_colour_are_copies_only_if_it_is_the_same_colour(tmp_path, make_archive, encode):
    grey, white = (np.full((64, 64, 3), colour, np.uint8) for colour in (128, 254))
    grey[0, 0] += 1  # images of one colour altogether are no cells
    white[0, 0] += 1
    extra = {"basophil/1.png": encode(grey), "basophil/2.bmp": encode(grey, "BMP"), "monocyte/3.png": encode(white)}
    make_archive(tmp_path / "D", {"monocyte": 6, "basophil": 4}, extra=extra)
    prepared = _prepared(tmp_path)
    group = prepared.files.manifest.set_index("path")["duplicate_group"]
    assert prepared.quarantine == []
    assert group["images/D/basophil/1.png"] == group["images/D/basophil/2.bmp"] != group["images/D/monocyte/3.png"]


def test_a_reason_names_a_few_of_many_copies():
    rows = [(f"images/D/{label}/{n}.png", label, "g") for label in ("a", "b") for n in range(9)]
    reasons = find_contradictions(pd.DataFrame(rows, columns=["path", "label", "duplicate_group"]))
    assert len(reasons) == 18
    assert reasons[0] == "the same picture is D/b/0.png, D/b/1.png, D/b/2.png, D/b/3.png, D/b/4.png and 4 more"
