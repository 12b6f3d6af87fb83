"""Suffixes against content: what a file is called, and what it is."""

import numpy as np
from door import Room, Taken, cell, encode, picture, taken

BA, MO = "Lab/basophil", "Lab/monocyte"
USUAL = {BA: 3, MO: 3}


def with_images(room: Room, files: dict[str, bytes]) -> None:
    """Three images in each of two classes, and these files."""
    room.write({**room.classes("basophil", "monocyte"), **files}, "Lab")


@taken
def a_jpeg_named_png(room):
    data = picture(900, ".jpg")
    with_images(room, {"basophil/a.png": data})
    return Taken({BA: 4, MO: 3}, also=lambda made: _kinds(made, "a.png", "misnamed"))


@taken
def a_png_named_jpg_keeps_its_pixels(room):
    with_images(room, {"basophil/a.jpg": picture(900)})
    return Taken({BA: 4, MO: 3}, pixels={f"{BA}/a.jpg": cell(900)})


@taken
def a_bmp_named_tif(room):
    with_images(room, {"monocyte/scan.TIF": picture(900, ".bmp")})
    return Taken({BA: 3, MO: 4}, pixels={f"{MO}/scan.TIF": cell(900)})


@taken
def images_without_a_suffix(room):
    files = {
        name.rpartition(".")[0]: data for name, data in room.classes("basophil", "monocyte", suffix=".jpg").items()
    }
    room.write(files, "Lab")
    return Taken(USUAL)


@taken
def rare_suffixes_of_jpeg(room):
    with_images(room, {f"basophil/b{suffix}": room.image(suffix) for suffix in (".JPE", ".jfif", ".JPG", ".jpeg")})
    return Taken({BA: 7, MO: 3})


@taken
def a_suffix_of_another_program(room):
    with_images(room, {"basophil/cell_001.dat": picture(900), "basophil/cell 2.png.1": picture(901)})
    return Taken({BA: 5, MO: 3}, pixels={f"{BA}/cell_001.dat": cell(900)})


@taken
def an_empty_jpg(room):
    with_images(room, {"basophil/empty.jpg": b""})
    return Taken(USUAL, {f"{BA}/empty.jpg": "empty"})


@taken
def an_empty_file_without_suffix(room):
    with_images(room, {"basophil/empty": b"", ".gitkeep": b""})
    return Taken(USUAL, {f"{BA}/empty": "empty file", "Lab/.gitkeep": "system file"})


@taken
def a_page_of_a_server_named_jpg(room):
    page = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n"
    with_images(room, {"monocyte/BA_0042.jpg": page})
    return Taken(USUAL, {f"{MO}/BA_0042.jpg": "not an image"})


@taken
def a_pointer_of_git_lfs_named_png(room):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    with_images(room, {"monocyte/a.png": pointer})
    return Taken(USUAL, {f"{MO}/a.png": "not an image"})


@taken
def a_cut_jpeg_and_a_cut_png(room):
    with_images(room, {"basophil/a.jpg": picture(900, ".jpg")[:-400], "basophil/b.png": picture(901)[:-900]})
    return Taken(USUAL, {f"{BA}/a.jpg": "damaged", f"{BA}/b.png": "damaged"})


@taken
def documents_and_programs_among_images(room):
    others = {
        "README.md": b"# Cells\n",
        "paper.pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "load.py": b"import torch\n",
        "features.npy": b"\x93NUMPY\x01\0v\0{'descr': '<f4'}",
        "model.pth": b"PK\x03\x04" + bytes(40),
        "basophil/notes.json": b"{}\n",
        "basophil/annotation.xml": b'<?xml version="1.0"?><annotation/>\n',
        "video.mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    }
    with_images(room, others)
    kinds = {
        "README.md": "text",
        "paper.pdf": "PDF",
        "load.py": "Python program",
        "features.npy": "NumPy array",
        "model.pth": "torch file",
        "basophil/notes.json": "JSON file",
        "basophil/annotation.xml": "XML file",
        "video.mp4": "video",
    }
    return Taken(USUAL, {f"Lab/{name}": kind for name, kind in kinds.items()})


@taken
def forms_that_no_decoder_here_reads(room):
    with_images(room, {
        "basophil/phone.HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
        "basophil/scan.dcm": bytes(128) + b"DICM" + bytes(200),
        "monocyte/drawn.psd": b"8BPS\0\1" + bytes(200),
        "monocyte/slide.czi": b"ZISRAWFILE" + bytes(200),
        "monocyte/a.ppm": b"P6\n4 4\n255\n" + bytes(48),
    })  # fmt: skip
    unread = ("Lab/basophil/phone.HEIC", "Lab/basophil/scan.dcm", f"{MO}/drawn.psd", f"{MO}/slide.czi", f"{MO}/a.ppm")
    return Taken(USUAL, dict.fromkeys(unread, "unreadable form"))


@taken
def a_drawing_and_an_icon(room):
    with_images(
        room,
        {"logo.svg": b'<?xml version="1.0"?>\n<svg xmlns="x"></svg>\n', "favicon.ico": b"\0\0\1\0\1\0" + bytes(40)},
    )
    return Taken(USUAL, {"Lab/logo.svg": "SVG drawing", "Lab/favicon.ico": "icon"})


@taken
def what_operating_systems_leave(room):
    left = [".DS_Store", "basophil/.DS_Store", "basophil/Thumbs.db", "desktop.ini", "basophil/._0.png"]
    with_images(room, dict.fromkeys(left, b"\0\5\x16\7"))
    return Taken(USUAL, {f"Lab/{name}": "system file" for name in left})


@taken
def files_of_zeros_and_of_noise(room):
    noise = np.random.default_rng(0).bytes(300)
    with_images(
        room, {"basophil/zeros.jpg": bytes(5000), "basophil/noise.png": noise, "basophil/noise.bin": b"\0\1" + noise}
    )
    others = {"zeros.jpg": "not an image", "noise.png": "not an image", "noise.bin": "unknown file"}
    return Taken(USUAL, {f"{BA}/{name}": kind for name, kind in others.items()})


@taken
def bytes_behind_the_end_of_a_picture(room):
    with_images(
        room, {"basophil/a.png": picture(900) + b"\n\0more", "monocyte/b.jpg": picture(901, ".jpg") + bytes(64)}
    )
    return Taken({BA: 4, MO: 4}, pixels={f"{BA}/a.png": cell(900)})


@taken
def a_pickle_of_a_whole_folder_of_png(room):
    with_images(room, {"basophil/a.png": b"\x80\x04\x95" + bytes(60), "cells.pkl": b"\x80\x04\x95" + bytes(60)})
    return Taken(USUAL, {f"{BA}/a.png": "not an image", "Lab/cells.pkl": "pickle"})


def _kinds(made, file, kind):
    rows = made.files.manifest
    (found,) = rows.loc[rows["source"].str.endswith(f"/{file}"), "kind"]
    assert kind in found.split("+")


@taken
def a_grey_png_named_bmp(room):
    grey = cell(900)[..., 0]
    with_images(room, {"basophil/a.bmp": encode(grey)})
    return Taken({BA: 4, MO: 3}, pixels={f"{BA}/a.bmp": np.repeat(grey[..., None], 3, axis=2)})
