"""Images are known by their content, masks by their colours; everything else is named and passed over."""

import numpy as np
import pytest
from packs import FORMS, PACKED, pack
from PIL import Image, ImageDraw

from hemafast.preparation.sources.containers import list_container
from hemafast.preparation.sources.survey import MASK, SYSTEM_FILE, survey


def _surveyed(path) -> tuple[list[str], dict[str, str]]:
    """Names of the images, and the kind of every other file by its name."""
    images, passed = survey(list_container(path).entries)
    return sorted(entry.name for entry in images), {one.name: one.kind for one in passed}


def _mask(number: int = 0, kind: str = "L") -> Image.Image:
    """A nucleus and a cell in flat colours."""
    image = Image.new("L", (64, 60), 0)
    drawing = ImageDraw.Draw(image)
    drawing.ellipse((8, 8, 50, 50), fill=128)
    drawing.ellipse((20 + number % 5, 18, 38, 40), fill=255)
    return image.convert(kind)


@pytest.mark.parametrize("form", FORMS)
def test_images_are_known_by_content_or_suffix_and_the_rest_is_named(tmp_path, draw, encode, form):
    files = {
        "a": encode(draw(1), "JPEG"),
        "b.jfif": encode(draw(2), "JPEG"),
        "c.JPE": encode(draw(3), "JPEG"),
        "d.webp": encode(draw(4), "WEBP"),
        "e.dat": encode(draw(5), "PNG"),
        "f.png": encode(draw(6), "JPEG"),
        "g.txt": encode(draw(7), "BMP"),
        "h.BMP": b"no image at all",
        "i.tif": b"",
    }
    others = {
        "j.txt": (b"text", "text"),
        "k": (b"", "empty file"),
        "l.csv": (b"path,label\n", "table (csv)"),
        "m.pdf": (b"%PDF-1.7\n", "PDF"),
        "n.jpgx": (bytes(100), "unknown file"),
        "Thumbs.db": (encode(draw(8)), SYSTEM_FILE),
        "p/.q.png": (encode(draw(9)), SYSTEM_FILE),
        "__MACOSX/._a": (b"x", SYSTEM_FILE),
    }
    path = pack(tmp_path / form, files | {name: data for name, (data, _) in others.items()})
    assert _surveyed(path) == (sorted(files), {name: kind for name, (_, kind) in others.items()})


def test_pictures_that_cannot_be_read_count_as_images_so_that_they_are_quarantined_with_a_reason(tmp_path):
    assert _surveyed(pack(tmp_path / "d", {"a.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"}))[0] == ["a.heic"]


# Masks


def _photographs(draw, encode, names, kind="BMP"):
    return {name: encode(draw(number), kind) for number, name in enumerate(names)}


def _masks(encode, names, kind="PNG", mode="L", **options):
    return {name: encode(_mask(number, mode), kind, **options) for number, name in enumerate(names)}


NUMBERS = [f"{number:03d}" for number in range(6)]
PLACES = {
    "beside, by suffix": ("cells/{}.bmp", "cells/{}.png"),
    "beside, by name": ("cells/{}.bmp", "cells/{}_mask.bmp"),
    "beside, one word": ("cells/{}.bmp", "cells/{}mask.bmp"),
    "beside, before the name": ("cells/{}.bmp", "cells/mask-{}.png"),
    "in a folder beside": ("images/{}.bmp", "masks/{}.png"),
    "in a folder of the same kind": ("images/{}.png", "masks/{}.png"),
    "in a folder below": ("basophil/{}.bmp", "basophil/GT/{}.bmp"),
    "in a folder of the class": ("images/basophil/{}.bmp", "Ground Truth Segmentation/basophil/{}.bmp"),
    "in a folder and by name": ("images/{}.bmp", "segmentation/{}_seg.png"),
}


@pytest.mark.parametrize(("photograph", "mask"), PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("form", ["d", "d.zip", "d.tar.gz"])
def test_masks_are_passed_over_wherever_they_lie(tmp_path, draw, encode, form, photograph, mask):
    kind = "PNG" if photograph.endswith("png") else "BMP"
    photographs = _photographs(draw, encode, map(photograph.format, NUMBERS), kind)
    masks = _masks(encode, map(mask.format, NUMBERS), "BMP" if mask.endswith("bmp") else "PNG")
    images, passed = _surveyed(pack(tmp_path / form, photographs | masks))
    assert images == sorted(photographs)
    assert passed == dict.fromkeys(masks, MASK)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "1", {}),
        ("PNG", "P", {}),
        ("PNG", "RGB", {}),
        ("GIF", "P", {}),
        ("TIFF", "L", {}),
        ("JPEG", "L", {"quality": 90}),
    ],
)
def test_masks_of_any_format_are_known(tmp_path, draw, encode, kind, mode, options):
    photographs = _photographs(draw, encode, [f"{number}.bmp" for number in NUMBERS])
    masks = _masks(encode, [f"{number}_mask.x" for number in NUMBERS], kind, mode, **options)
    assert _surveyed(pack(tmp_path / "d", photographs | masks))[0] == sorted(photographs)


def test_several_masks_of_a_cell_are_all_passed_over(tmp_path, draw, encode):
    photographs = _photographs(draw, encode, [f"{number}.bmp" for number in NUMBERS])
    masks = _masks(encode, [f"{number}_{what}.png" for number in NUMBERS for what in ("mask", "contour", "gt")])
    images, passed = _surveyed(pack(tmp_path / "d", photographs | masks))
    assert (images, len(passed)) == (sorted(photographs), 18)


LOOK_ALIKES = {
    "one photograph in two formats": ("{}.jpg", "{}.png"),
    "a folder with the name of masks": ("images/{}.png", "masks/{}.png"),
    "the class of segmented neutrophils": ("lym/{}.png", "seg/{}.png"),
    "files with the name of labels": ("{}.png", "{}_label.png"),
}


@pytest.mark.parametrize(("first", "second"), LOOK_ALIKES.values(), ids=LOOK_ALIKES)
def test_photographs_are_never_taken_for_masks(tmp_path, draw, encode, first, second):
    files = {
        name.format(number): encode(draw(rank + 100 * order), "JPEG" if name.endswith("jpg") else "PNG")
        for rank, number in enumerate(NUMBERS)
        for order, name in enumerate((first, second))
    }
    assert _surveyed(pack(tmp_path / "d", files)) == (sorted(files), {})


def test_one_drawing_in_two_formats_is_no_mask_of_itself(tmp_path, encode):
    files = _masks(encode, [f"{number}.png" for number in NUMBERS])
    files |= _masks(encode, [f"{number}.bmp" for number in NUMBERS], "BMP")
    assert _surveyed(pack(tmp_path / "d", files)) == (sorted(files), {})


def test_flat_images_without_a_photograph_of_their_name_are_images(tmp_path, encode):
    files = _masks(encode, [f"masks/{number}.png" for number in NUMBERS])
    assert _surveyed(pack(tmp_path / "d", files)) == (sorted(files), {})


def test_a_class_named_like_masks_does_not_hide_the_masks(tmp_path, draw, encode):
    photographs = _photographs(draw, encode, [f"seg/{number}.png" for number in NUMBERS], "PNG")
    masks = _masks(encode, [f"masks/{number}.png" for number in NUMBERS])
    assert _surveyed(pack(tmp_path / "d", photographs | masks)) == (sorted(photographs), dict.fromkeys(masks, MASK))


def test_an_image_that_cannot_be_decoded_is_no_mask(tmp_path, draw, encode):
    files = {"1.bmp": encode(draw(1), "BMP"), "1_mask.png": b"damaged", "2_mask.png": b""}
    assert _surveyed(pack(tmp_path / "d", files)) == (sorted(files), {})


def _flat(number: int) -> Image.Image:
    """A cell drawn in three flat colours."""
    shades = _mask(number)
    colours = {0: (235, 215, 225), 128: (190, 160, 210), 255: (100, 50, 140)}
    return Image.merge(
        "RGB", [shades.point([colours.get(shade, (0, 0, 0))[i] for shade in range(256)]) for i in range(3)]
    )


FLAT = {
    "in two formats": ("{}.jpg", "{}.png"),
    "in a class of segmented neutrophils": ("band/{}.png", "seg/{}.png"),
    "with the name of labels": ("{}.png", "{}_label.png"),
}


@pytest.mark.parametrize(("first", "second"), FLAT.values(), ids=FLAT)
def test_cells_drawn_in_flat_colours_are_no_masks_of_each_other(tmp_path, encode, first, second):
    files = {
        name.format(number): encode(_flat(rank + 3 * order), "JPEG" if name.endswith("jpg") else "PNG")
        for rank, number in enumerate(NUMBERS)
        for order, name in enumerate((first, second))
    }
    assert _surveyed(pack(tmp_path / "d", files)) == (sorted(files), {})


@pytest.mark.parametrize("mask", ["{}.png", "{}_mask.png", "masks/{}.png", "{}_nucleus.png"])
def test_a_mask_of_a_cell_drawn_in_flat_colours_is_passed_over(tmp_path, encode, mask):
    cells = {f"{number}.bmp": encode(_flat(rank), "BMP") for rank, number in enumerate(NUMBERS)}
    masks = _masks(encode, map(mask.format, NUMBERS))
    assert _surveyed(pack(tmp_path / "d", cells | masks)) == (sorted(cells), dict.fromkeys(masks, MASK))


def test_copies_with_drawn_contours_are_passed_over(tmp_path, draw, encode):
    photographs = _photographs(draw, encode, [f"{number}.bmp" for number in NUMBERS])
    overlays = _photographs(draw, encode, [f"{number}_overlay.bmp" for number in NUMBERS])
    images, passed = _surveyed(pack(tmp_path / "d", photographs | overlays))
    assert (images, passed) == (sorted(photographs), dict.fromkeys(overlays, MASK))


def test_masks_in_one_folder_and_photographs_of_the_same_kind_in_another(tmp_path, draw, encode):
    """Each folder is judged by itself, and each image of a folder that is mixed."""
    photographs = _photographs(draw, encode, [f"{lab}/{number}.bmp" for lab in "AB" for number in NUMBERS])
    photographs |= _photographs(draw, encode, ["A/000.png", *(f"B/{number}.png" for number in NUMBERS)], "PNG")
    masks = _masks(encode, [f"A/{number}.png" for number in NUMBERS[1:]])
    assert _surveyed(pack(tmp_path / "d", photographs | masks)) == (sorted(photographs), dict.fromkeys(masks, MASK))


@pytest.mark.parametrize("mask", ["masks/{}.png", "{}_mask.png", "{}.png"])
def test_one_damaged_mask_and_one_without_its_photograph_do_not_save_the_others(tmp_path, draw, encode, mask):
    photographs = _photographs(draw, encode, [f"{number}.bmp" for number in NUMBERS])
    masks = _masks(encode, map(mask.format, [*NUMBERS[1:], "alone"]))
    masks[mask.format(NUMBERS[0])] = b""
    assert _surveyed(pack(tmp_path / "d", photographs | masks)) == (sorted(photographs), dict.fromkeys(masks, MASK))


def test_a_folder_for_each_cell(tmp_path, draw, encode):
    photographs = _photographs(draw, encode, [f"basophil/{number}/image.png" for number in NUMBERS], "PNG")
    masks = _masks(encode, [f"basophil/{number}/mask.png" for number in NUMBERS])
    assert _surveyed(pack(tmp_path / "d", photographs | masks)) == (sorted(photographs), dict.fromkeys(masks, MASK))


def test_a_few_of_many_masks_are_decoded(tmp_path, draw, encode, monkeypatch):
    names = [f"{number:04d}" for number in range(300)]
    photograph, mask, opened = encode(draw(1), "BMP"), encode(_mask()), []
    files = {f"{name}.bmp": photograph for name in names} | {f"{name}.png": mask for name in names}
    open_image = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(1) or open_image(*args, **options))
    assert len(_surveyed(pack(tmp_path / "d.zip", files))[1]) == 300
    assert len(opened) < 60


@pytest.mark.parametrize("form", PACKED)
def test_large_masks_are_looked_at_in_small(tmp_path, draw, encode, form):
    large = np.zeros((3000, 2000), np.uint8)
    large[500:900, 400:800] = 255
    files = {"1.bmp": encode(draw(1), "BMP"), "1.png": encode(large)}
    assert _surveyed(pack(tmp_path / form, files)) == (["1.bmp"], {"1.png": MASK})
