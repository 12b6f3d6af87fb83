"""Every form of file is read exactly like a reference decoder reads it, or quarantined with a reason that helps."""

import io
import tarfile

import numpy as np
import pytest
from forms import HEIGHT, WIDTH, others, refused, tiffs
from PIL import Image

from hemafast.config import PrepareConfig
from hemafast.engine.run import view_of
from hemafast.errors import HemafastError
from hemafast.preparation.build import prepare
from hemafast.preparation.dali_apart import DaliApart, dali_apart
from hemafast.preparation.dali_reader import Reading
from hemafast.preparation.images.depth import fixed
from hemafast.preparation.images.image_checks import decode_reference, pixels_of, strict_decoders, verify_image
from hemafast.preparation.images.kinds import CONVERTED_KINDS, QUARANTINED_KINDS, UnreadableImageError
from hemafast.preparation.pixels import hash_squares
from hemafast.preparation.sources.sniff import READABLE, image_format
from hemafast.preparation.verify import verify

_rgb = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
_alpha = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH), np.uint8)
FORMS = tiffs(_rgb, _alpha) | others(_rgb, _alpha)
REFUSED = refused(_rgb, _alpha)
AS_THEY_ARE = {
    "tiff", "tiff zlib", "tiff lzw", "tiff packbits", "tiff predictor", "tiff big endian", "tiff tiles", "tiff strips",
    "tiff grey", "tiff rgba", "tiff of ImageJ", "tiff of OME",
    "jpeg", "jpeg grey", "jpeg progressive", "png", "png rgba", "png 1 bits", "png 2 bits", "png 4 bits",
    "bmp", "bmp of 32 bits", "bmp palette",
}  # fmt: skip


@pytest.fixture(scope="module")
def dali() -> DaliApart:
    return dali_apart(1)


def read(data: bytes, name: str, dali: DaliApart) -> tuple[np.ndarray, bytes, tuple[str, ...]]:
    """As `prepare` does it: the pixels, which are DALI's, the bytes that are kept, and the kinds."""
    with strict_decoders():
        header, kept = verify_image(data, name, fixed(16))
        pixels = pixels_of(header, kept)
    if dali.read([kept]) != [reading(kept, pixels)]:
        raise UnreadableImageError("decoders disagree")
    return pixels, kept, header.kinds


def reading(data: bytes, pixels: np.ndarray) -> Reading:
    """What DALI should make of it: of a JPEG it reads the header alone."""
    jpeg = data.startswith(b"\xff\xd8")
    return Reading(pixels.shape, "" if jpeg else hash_squares([np.ascontiguousarray(pixels)]))


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_read_like_its_reference_decoder_reads_it(form, dali):
    data, expected = FORMS[form]
    pixels, kept, kinds = read(data, "a", dali)
    np.testing.assert_array_equal(pixels, expected)
    assert (kept == data) == (form in AS_THEY_ARE)
    assert ("re-encoded" in kinds) == (form not in AS_THEY_ARE)
    assert set(kinds) <= CONVERTED_KINDS.keys()
    assert image_format(data) in READABLE
    if kept != data:
        with Image.open(io.BytesIO(kept)) as stored:
            assert (stored.format, stored.mode) == ("PNG", "RGB")


@pytest.mark.parametrize("form", REFUSED)
def test_a_form_without_one_meaning_is_refused_with_a_reason(form, dali):
    kind, data, words = REFUSED[form]
    with pytest.raises(UnreadableImageError) as caught:
        read(data, "a", dali)
    assert caught.value.kind == kind
    assert words in str(caught.value)
    assert kind in QUARANTINED_KINDS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, make_archive):
    """All forms in one archive; the packed squares have the size of the images, so that they are not scaled."""
    folder = tmp_path_factory.mktemp("forms")
    extra = {f"basophil/{form.replace(' ', '_')}": data for form, (data, _) in FORMS.items()}
    extra |= {f"eosinophil/{form.replace(' ', '_')}.png": data for form, (_, data, _) in REFUSED.items()}
    make_archive(folder / "D", {"monocyte": 8, "eosinophil": 4}, extra=extra)
    config = PrepareConfig(
        source=folder,
        output=folder / "prepared",
        pack_sizes=(HEIGHT,),
        max_quarantined=1,
        bit_depth={"": 16},
        format="webdataset",
    )
    return prepare(config, workers=2)


def test_packed_squares_and_stored_files_show_the_reference_pixels(prepared, dali):
    """Copies of one picture are one group, and none contradicts: all of them have the same class."""
    manifest = prepared.files.manifest
    rows = {path.rpartition("/")[2]: row for row, path in enumerate(manifest["path"])}
    for form, (_, expected) in FORMS.items():
        row = rows[form.replace(" ", "_")]
        assert manifest["verdict"][row] != "quarantined", form
        top, left = ((length - HEIGHT) // 2 for length in expected.shape[:2])
        centre = expected[top : top + HEIGHT, left : left + HEIGHT]
        np.testing.assert_array_equal(prepared.files.packed[HEIGHT][row], centre, err_msg=form)
        stored = (prepared.folder / manifest["path"][row]).read_bytes()
        np.testing.assert_array_equal(decode_reference(stored), expected, err_msg=form)
        assert dali.read([stored]) == [reading(stored, expected)], form


def test_every_refused_form_is_in_the_quarantine_list(prepared):
    found = {image.file.rpartition("/")[2]: (image.kind, image.reason) for image in prepared.quarantine}
    assert {name: kind for name, (kind, _) in found.items()} == {
        f"{form.replace(' ', '_')}.png": kind for form, (kind, _, _) in REFUSED.items()
    }
    for form, (_, data, words) in REFUSED.items():
        name = f"{form.replace(' ', '_')}.png"
        assert words in found[name][1]
        stored = prepared.folder / "quarantined/D/eosinophil" / name
        assert stored.read_bytes() == data, "a quarantined file is kept as it came"


def test_the_hashes_are_those_of_the_stored_files(prepared):
    assert not verify(prepared.folder).problems


def test_members_of_tar_files_are_named_for_what_they_hold(prepared):
    suffixes = {"JPEG": "jpg", "PNG": "png", "TIFF": "tiff", "BMP": "bmp"}
    seen = set()
    for path in (prepared.folder / "webdataset").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.name.endswith(".cls"):
                    assert member.name.endswith(f".{suffixes[image_format(tar.extractfile(member).read())]}")
                    seen.add(member.name.rpartition(".")[2])
    assert seen == set(suffixes.values())


def test_an_archive_of_slides_fails_with_what_is_taken(tmp_path, make_archive, draw, encode):
    slides = {f"basophil/{number}.png": encode(draw(number, 2100, 20)) for number in range(3)}
    make_archive(tmp_path / "D", {"monocyte": 4}, extra=slides)
    with pytest.raises(HemafastError, match=r"2100 x 20 px.*hemafast takes images of single cells.*cut out the cells"):
        prepare(PrepareConfig(source=tmp_path, output=tmp_path / "prepared", pack_sizes=(32,)))


@pytest.mark.parametrize(("min_side", "left"), [(16, 1), (10, 0), (70, 9)])
def test_the_smallest_side_can_be_chosen(tmp_path, make_archive, draw, encode, min_side, left):
    make_archive(tmp_path / "D", {"monocyte": 8}, extra={"basophil/small.png": encode(draw(99, 12, 14))})
    make_archive(tmp_path / "E", {"monocyte": 8}, size=(80, 80), seed=1)
    config = PrepareConfig(
        source=tmp_path, output=tmp_path / "prepared", pack_sizes=(32,), max_quarantined=1, min_side=min_side
    )
    prepared = prepare(config)
    assert len(prepared.quarantine) == left
    assert all(f"smaller than {min_side} px (--min-side)" in image.reason for image in prepared.quarantine)
    assert view_of(prepared.info, 32).min_side == min_side


def test_no_decoder_writes_to_the_terminal(capfd, dali):
    """Damaged and odd files, cut and with other bytes in the middle."""
    generator = np.random.default_rng(0)
    capfd.readouterr()
    broken = 0
    for data in (*(data for data, _ in FORMS.values()), *(data for _, data, _ in REFUSED.values())):
        middle, count = len(data) // 2, min(200, len(data) // 4)
        flipped = data[:middle] + generator.bytes(count) + data[middle + count :]
        for some in (data, data[: len(data) * 6 // 10], data[:-5], flipped):
            try:
                read(some, "a", dali)
            except UnreadableImageError:
                broken += 1
    assert broken > len(FORMS)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_file_is_refused(form, dali):
    data, _ = FORMS[form]
    with pytest.raises(UnreadableImageError):
        read(data[: len(data) // 2], "a", dali)
