"""Odd forms of images: ink, several pictures, animations, palettes, transparency."""

import io

import imagecodecs
import numpy as np
import tifffile
from door import Taken, cell, encode, taken
from PIL import Image

BA, MO = "Lab/basophil", "Lab/monocyte"
USUAL = {BA: 3, MO: 3}


def with_images(room, files):
    room.write({**room.classes("basophil", "monocyte"), **files}, "Lab")


def tiff(values, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def animated(form):
    frames = [Image.fromarray(cell(900 + number)) for number in range(3)]
    return encode(frames[0], form, save_all=True, append_images=frames[1:])


def by_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@taken
def jpegs_of_ink(room):
    inks = Image.fromarray(cell(900)).convert("CMYK")
    with_images(room, {"basophil/print.jpg": encode(inks, "JPEG"), "monocyte/print.tif": encode(inks, "TIFF")})
    return Taken(USUAL, {f"{BA}/print.jpg": "CMYK", f"{MO}/print.tif": "CMYK"})


@taken
def pictures_of_a_stereo_camera(room):
    data = animated("MPO")
    with_images(room, {"basophil/a.mpo": data, "basophil/b.jpg": data})
    return Taken({BA: 5, MO: 3}, pixels=dict.fromkeys((f"{BA}/a.mpo", f"{BA}/b.jpg"), by_pillow(data)))


@taken
def animations(room):
    with_images(
        room,
        {"basophil/a.gif": animated("GIF"), "basophil/b.webp": animated("WEBP"), "monocyte/c.png": animated("PNG")},
    )
    names = (f"{BA}/a.gif", f"{BA}/b.webp", f"{MO}/c.png")
    return Taken(USUAL, dict.fromkeys(names, "several frames"))


@taken
def single_gif_and_webp(room):
    files = {
        "basophil/a.gif": encode(Image.fromarray(cell(900)).quantize(64), "GIF"),
        "basophil/b.webp": encode(cell(901), "WEBP", lossless=True),
        "monocyte/c.WebP": encode(cell(902), "WEBP", quality=80),
    }
    with_images(room, files)
    return Taken({BA: 5, MO: 4}, pixels={f"Lab/{name}": by_pillow(data) for name, data in files.items()})


@taken
def a_tiff_of_several_pages(room):
    stack = np.stack([cell(900), cell(901), cell(902)])
    with_images(room, {"basophil/stack.tif": tiff(stack, photometric="rgb")})
    return Taken(USUAL, {f"{BA}/stack.tif": "several frames"})


@taken
def a_tiff_of_every_common_compression(room):
    files = {
        f"basophil/{name}.tif": tiff(cell(900 + number), photometric="rgb", compression=name)
        for number, name in enumerate(("lzw", "zlib", "packbits", "zstd", "lzma"))
    }
    files["basophil/planes.tif"] = tiff(cell(910).transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate")
    files["basophil/tiles.tif"] = tiff(cell(911), photometric="rgb", tile=(16, 16))
    files["basophil/big.tif"] = tiff(cell(912), photometric="rgb", bigtiff=True, byteorder=">")
    with_images(room, files)
    numbers = [900, 901, 902, 903, 904, 910, 911, 912]
    return Taken(
        {BA: 11, MO: 3}, pixels={f"Lab/{name}": cell(number) for name, number in zip(files, numbers, strict=True)}
    )


@taken
def palettes_and_transparency(room):
    alpha = np.dstack([cell(901), cell(902)[..., 0]])
    palette = Image.fromarray(cell(900)).quantize(32)
    files = {
        "basophil/palette.png": encode(palette),
        "basophil/alpha.png": encode(alpha),
        "monocyte/alpha.tif": tiff(
            np.dstack([cell(905), cell(906)[..., 0]]), photometric="rgb", extrasamples=["unassalpha"]
        ),
    }
    with_images(room, files)
    pixels = {
        f"{BA}/palette.png": by_pillow(files["basophil/palette.png"]),
        f"{BA}/alpha.png": cell(901),
        f"{MO}/alpha.tif": cell(905),
    }
    return Taken({BA: 5, MO: 4}, pixels=pixels)


@taken
def grey_images_of_several_forms(room):
    grey = cell(900)[..., 0], cell(901)[..., 0], cell(902)[..., 0]
    with_images(
        room,
        {"basophil/a.png": encode(grey[0]), "basophil/b.bmp": encode(grey[1], "BMP"), "monocyte/c.tif": tiff(grey[2])},
    )
    names = (f"{BA}/a.png", f"{BA}/b.bmp", f"{MO}/c.tif")
    return Taken(
        {BA: 5, MO: 4},
        pixels={name: np.repeat(one[..., None], 3, axis=2) for name, one in zip(names, grey, strict=True)},
    )


@taken
def jpeg_2000_and_avif(room):
    files = {
        "basophil/a.jp2": imagecodecs.jpeg2k_encode(cell(900), level=0),
        "monocyte/b.avif": encode(cell(901), "AVIF"),
    }
    with_images(room, files)
    return Taken({BA: 4, MO: 4}, pixels={f"{BA}/a.jp2": cell(900), f"{MO}/b.avif": by_pillow(files["monocyte/b.avif"])})


@taken
def spectral_and_lab_tiff(room):
    with_images(
        room,
        {
            "basophil/bands.tif": tiff(
                np.dstack([cell(900), cell(901)]), photometric="minisblack", planarconfig="contig"
            ),
            "monocyte/lab.tif": encode(Image.fromarray(cell(902)).convert("LAB"), "TIFF"),
        },
    )
    return Taken(USUAL, {f"{BA}/bands.tif": "pixel layout", f"{MO}/lab.tif": "pixel layout"})


@taken
def jpegs_of_rare_kinds(room):
    files = {
        "basophil/progressive.jpg": encode(cell(900), "JPEG", progressive=True),
        "basophil/grey.jpg": encode(cell(901)[..., 0], "JPEG"),
        "monocyte/full.jpg": encode(cell(902), "JPEG", subsampling=0, quality=95),
        "monocyte/rgb.jpg": encode(cell(903), "JPEG", keep_rgb=True),
    }
    with_images(room, files)
    return Taken({BA: 5, MO: 5}, pixels={f"Lab/{name}": by_pillow(data) for name, data in files.items()})


@taken
def a_slide_pyramid(room):
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(cell(900), photometric="rgb")
        writer.write(cell(900)[::2, ::2], photometric="rgb", subfiletype=1)
    with_images(room, {"basophil/preview.tif": stream.getvalue()})
    return Taken({BA: 4, MO: 3}, pixels={f"{BA}/preview.tif": cell(900)})
