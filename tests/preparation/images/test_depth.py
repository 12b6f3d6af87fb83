"""Values of more than 8 bits are scaled by one range for a domain, which is looked for, said, and can be chosen."""

import numpy as np
import pytest
import tifffile
from command import hemafast
from forms import tiff

from hemafast.config import PrepareConfig
from hemafast.eda.page import write_eda
from hemafast.errors import HemafastError
from hemafast.preparation.appearance import BRIGHTNESS, CONTRAST
from hemafast.preparation.build import prepare
from hemafast.preparation.images import depth
from hemafast.preparation.images.depth import Range, choose_ranges, fixed, to_8_bits
from hemafast.preparation.images.image_checks import strict_decoders
from hemafast.preparation.images.kinds import UnreadableImageError
from hemafast.preparation.images.picture import FLOAT, INTEGER

SIDE = 64
DEPTHS = {  # of an image of 0 to 255: its values in the file, and the range that is found
    "8 bits in 16": (lambda cell: cell.astype(np.uint16), Range(0, 255)),
    "10 bits": (lambda cell: cell.astype(np.uint16) * 4, Range(0, 1023)),
    "12 bits": (lambda cell: cell.astype(np.uint16) * 16, Range(0, 4095)),
    "14 bits": (lambda cell: cell.astype(np.uint16) * 64, Range(0, 16383)),
    "16 bits": (lambda cell: cell.astype(np.uint16) * 257, Range(0, 65535)),
    "12 bits in 32": (lambda cell: cell.astype(np.uint32) * 16, Range(0, 4095)),
    "float to 1": (lambda cell: (cell / 255).astype(np.float32), Range(0, 1)),
    "float to 255": (lambda cell: cell.astype(np.float32), Range(0, 255)),
    "float to 65535": (lambda cell: cell.astype(np.float64) * 257, Range(0, 65535)),
    "half floats": (lambda cell: (cell / 255).astype(np.float16), Range(0, 1)),
}


def cells(draw, count: int, seed: int = 0) -> list[np.ndarray]:
    """Drawn cells whose brightest pixels are 255; pictures of different seeds are never taken for one."""
    found = []
    for number in range(seed, seed + count):
        stripes = np.sin(np.add.outer(np.arange(SIDE) * (number % 7 + 1), np.arange(SIDE) * (number % 11 + 1)) / 7)
        found.append(np.clip(draw(number, SIDE, SIDE) * 1.3 + 40 * stripes[..., None], 0, 255).astype(np.uint8))
    return found


def scaled(values: np.ndarray, chosen: Range) -> np.ndarray:
    """By the definition: rounded to the nearest of 256 steps of the range."""
    return np.rint((values.astype(np.float64) - chosen.low) / (chosen.high - chosen.low) * 255).clip(0, 255)


def write_domain(make_archive, draw, folder, kind, name) -> None:
    """Cells of two classes whose values are stored as `kind` says."""
    make, first = DEPTHS[kind][0], 1000 * list(DEPTHS).index(kind)
    extra = {
        f"{label}/{number}.tif": tiff(make(cell), photometric="rgb")
        for label, seed in (("basophil", first), ("monocyte", first + 50))
        for number, cell in enumerate(cells(draw, 5, seed))
    }
    make_archive(folder / name, {}, extra=extra)


@pytest.fixture
def archive(tmp_path, draw, make_archive):
    """`archive(**settings)`: settings to prepare a domain D of 12 bits in 16."""

    def write(**settings) -> PrepareConfig:
        write_domain(make_archive, draw, tmp_path, "12 bits", "D")
        settings = {"pack_sizes": (SIDE,), "max_quarantined": 1} | settings
        return PrepareConfig(source=tmp_path, output=tmp_path / "prepared", **settings)

    return write


@pytest.fixture(scope="module")
def deep(tmp_path_factory, draw, make_archive):
    """A domain for each of DEPTHS."""
    folder = tmp_path_factory.mktemp("deep")
    for kind in DEPTHS:
        write_domain(make_archive, draw, folder, kind, kind)
    return prepare(PrepareConfig(source=folder, output=folder / "prepared", pack_sizes=(SIDE,), field_of_view="whole"))


@pytest.mark.parametrize("kind", DEPTHS)
def test_the_range_of_a_domain_is_found_said_and_used(kind, draw, deep):
    make, expected = DEPTHS[kind]
    stored = FLOAT if "float" in kind else INTEGER
    assert deep.info.domains[kind].ranges == {stored: expected}
    said = [note for note in deep.info.notes if note.startswith(f"{kind}: 10 images have more than 8 bits")]
    assert len(said) == 1
    assert f"{expected} become 0 to 255" in said[0]
    assert f"--bit-depth {kind}=16" in said[0]
    manifest = deep.files.manifest[deep.files.manifest["domain"] == kind]
    assert set(manifest["kind"]) == {"scaled+re-encoded"}
    row = manifest.index[manifest["path"] == f"images/{kind}/monocyte/3.tif"][0]
    wanted = scaled(make(cells(draw, 5, 50 + 1000 * list(DEPTHS).index(kind))[3]), expected)
    np.testing.assert_array_equal(deep.files.packed[SIDE][row], wanted)
    assert BRIGHTNESS[0] < wanted.mean() < BRIGHTNESS[1]


def test_float_values_of_no_usual_range_are_cut_at_percentiles(draw):
    images = [tiff((cell.astype(np.float32) - 100) * 7, photometric="rgb") for cell in cells(draw, 5)]
    with strict_decoders():
        found = choose_ranges(images, lambda some: some)
    assert found[FLOAT].clipped
    assert -700 <= found[FLOAT].low < -400
    assert 900 < found[FLOAT].high <= 155 * 7
    beyond = to_8_bits(np.array([[-5000.0, 5000.0]]), FLOAT, found)
    assert beyond.tolist() == [[0, 255]]


def test_dim_float_values_are_not_taken_for_a_wider_range(draw):
    """Values up to 3 are not 0 to 255, which would make black pictures."""
    with strict_decoders():
        found = choose_ranges([tiff((draw(0) / 80).astype(np.float32), photometric="rgb")], lambda some: some)
    assert found[FLOAT].high < 4


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_every_value_becomes_the_nearest_of_256(bits):
    values = np.arange(2**bits).reshape(1, -1)
    found = to_8_bits(values, INTEGER, fixed(bits))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.rint(values * 255 / (2**bits - 1)))
    if bits == 16:
        np.testing.assert_array_equal(found, (values + 128) // 257)


@pytest.mark.parametrize(
    ("asked", "found"),
    [({"": 16}, 65535), ({"D": 16}, 65535), ({"": 8, "D": 12}, 4095), ("14", 16383), (["D=14"], 16383)],
)
def test_a_chosen_bit_depth_overrides_what_the_images_show(archive, asked, found):
    prepared = prepare(archive(bit_depth=asked))
    assert prepared.info.domains["D"].ranges[INTEGER] == Range(0, found)
    assert not prepared.quarantine


def test_a_bit_depth_for_a_domain_that_is_not_there_is_refused(archive):
    with pytest.raises(HemafastError, match=r"--bit-depth names E, which is no domain"):
        prepare(archive(bit_depth={"E": 12}))


def test_values_beyond_the_range_fail_the_archive_with_the_remedy(archive):
    beyond = r"beyond 0 to 2047 \(11 bits\): give the bits of the camera with --bit-depth"
    with pytest.raises(HemafastError, match=beyond):
        prepare(archive(bit_depth={"": 11}, max_quarantined=0.5))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([[np.nan, 1]]), "not finite"),
        (np.array([[np.inf, 1]]), "not finite"),
        (np.array([[-5, 1]]), "beyond 0 to 1: convert it to PNG"),
        (np.array([[0, 1.2]]), "beyond 0 to 1: give the bits of the camera"),
    ],
)
def test_values_that_no_range_holds_are_refused(values, words):
    with pytest.raises(UnreadableImageError, match=words):
        to_8_bits(values, FLOAT, {FLOAT: Range(0, 1)})


def test_values_that_are_not_finite_are_named_also_where_no_image_has_others():
    with pytest.raises(UnreadableImageError, match="not finite"):
        to_8_bits(np.array([[np.nan]]), FLOAT, {})


def test_a_slight_overshoot_of_resampled_floats_is_clipped():
    assert to_8_bits(np.array([[-0.03, 1.04]]), FLOAT, {FLOAT: Range(0, 1)}).tolist() == [[0, 255]]


def test_one_image_far_above_the_others_does_not_darken_its_domain(archive, tmp_path):
    """Hot pixels of 16 bits in one of ten images of 12."""
    config = archive(max_quarantined=0.2)
    image = tmp_path / "D/basophil/3.tif"
    values = tifffile.imread(image)
    values[5, 5] = 65535
    image.write_bytes(tiff(values, photometric="rgb"))
    prepared = prepare(config)
    assert prepared.info.domains["D"].ranges[INTEGER] == Range(0, 4095)
    (left,) = prepared.quarantine
    assert (left.file, left.kind) == ("quarantined/D/basophil/3.tif", "range")
    assert "beyond 0 to 4095 (12 bits): give the bits of the camera with --bit-depth" in left.reason


def test_a_saturated_camera_of_14_bits_is_no_outlier(draw):
    """Cells of many exposures: some reach the end of the range."""
    images = [tiff((draw(n) * (0.3 if n < 9 else 1) * 64).astype(np.uint16), photometric="rgb") for n in range(10)]
    with strict_decoders():
        assert choose_ranges(images, lambda some: some) == {INTEGER: Range(0, 16383)}


def test_deep_images_that_the_sample_missed_are_quarantined(monkeypatch, draw, make_archive, tmp_path):
    monkeypatch.setattr(depth, "SAMPLE", 2)
    last = {"monocyte/z.tif": tiff(draw(0).astype(np.uint16) * 16, photometric="rgb")}
    make_archive(tmp_path / "D", {"basophil": 4, "monocyte": 6}, extra=last)
    config = PrepareConfig(source=tmp_path, output=tmp_path / "prepared", pack_sizes=(32,), max_quarantined=0.5)
    (left,) = prepare(config).quarantine
    assert (left.file, left.kind) == ("quarantined/D/monocyte/z.tif", "range")
    assert "give --bit-depth" in left.reason


def test_plain_images_are_looked_at_and_nothing_is_said(prepared):
    assert all(domain.ranges == {} for domain in prepared.info.domains.values())
    assert not any("bits" in note for note in prepared.info.notes)


def test_damaged_and_flat_images_do_not_decide(draw):
    good = tiff(draw(0).astype(np.uint16) * 16, photometric="rgb")
    with strict_decoders():
        found = choose_ranges([b"", b"text", good[:-3000], good], lambda some: some)
    assert found == {INTEGER: Range(0, 4095)}


def test_a_domain_too_dark_for_stained_blood_is_said_and_shown(archive, tmp_path):
    """12 bits read as 16."""
    prepared = prepare(archive(bit_depth={"": 16}))
    (note,) = (note for note in prepared.info.notes if "stained blood" in note)
    assert note.startswith("D: its median brightness is 1")
    page = write_eda(prepared.folder, tmp_path / "eda").read_text(encoding="utf-8")
    (warning,) = (part for part in page.split("<p ") if part.startswith('class="warning"') and "stained blood" in part)
    assert '<img src="data:image/jpeg;base64,' in warning


def test_a_domain_without_contrast_is_said(tmp_path, make_archive, draw, encode):
    faint = {f"basophil/{n}.png": encode((170 + draw(n) // 40).astype(np.uint8)) for n in range(8)}
    make_archive(tmp_path / "D", {}, extra=faint)
    prepared = prepare(PrepareConfig(source=tmp_path, output=tmp_path / "prepared", pack_sizes=(32,)))
    assert prepared.files.manifest["contrast"].max() < CONTRAST[0]
    assert sum("D: its median contrast is" in note for note in prepared.info.notes) == 1


def test_cells_as_they_are_photographed_and_drawn_are_plausible(prepared):
    assert not any("stained blood" in note for note in prepared.info.notes)
    contrast = prepared.files.manifest["contrast"]
    assert CONTRAST[0] < contrast.min() <= contrast.max() < CONTRAST[1]


def test_the_command_line_takes_a_bit_depth(archive, tmp_path):
    archive()
    done = hemafast(
        "prepare", "--source", tmp_path, "--output", tmp_path / "p", "--bit-depth", "D=12", "--pack-size", 32
    )
    assert done.returncode == 0, done.stderr
    assert "0 to 4095 (12 bits)" in done.stderr + done.stdout
