"""What the operators do to pixels: the compiled ones as DALI's own, and all of them as their references."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter
from torchvision import transforms

from hemafast import kernels
from hemafast.data import operators
from hemafast.data.augment import ENHANCEMENTS, POLICIES, Policy, draw_views
from hemafast.data.geometry import SYMMETRIES, about_centre, random_resized_windows, rotations
from hemafast.model import standardised
from hemafast.pixel_constants import LEVELS
from hemafast.preparation.pixels import cut_window


def _run(operate, images, *parameters, conditionals=False):
    """The outputs of `operate(images, *parameters)` in a pipeline on the CPU."""

    @pipeline_def(enable_conditionals=conditionals)
    def graph():
        inputs = [fn.external_source(name=f"input {index}") for index in range(1 + len(parameters))]
        return operate(*inputs)

    pipeline = graph(batch_size=len(images), num_threads=2, device_id=None)
    pipeline.feed_input("input 0", [np.ascontiguousarray(image) for image in images], layout="HWC")
    for index, parameter in enumerate(parameters, 1):
        pipeline.feed_input(f"input {index}", [np.ascontiguousarray(row) for row in parameter])
    (output,) = pipeline.run()
    return [np.array(output.at(index)) for index in range(len(images))]


def _both(operate, images, parameters):
    """Outputs of the compiled operator and of DALI's own."""
    return [
        np.array(_run(lambda *nodes, form=form: operate(*nodes, compiled=form), images, parameters))
        for form in (True, False)
    ]


# Compiled operators and DALI's own


@pytest.mark.parametrize("size", [56, 40])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (180, 150), (60, 41)])
def test_the_compiled_cut_is_that_of_dali_and_of_pillow(draw, height, width, size):
    images = [draw(seed, width, height) for seed in range(24)]
    side = min(height, width)
    windows = random_resized_windows(side, 24, (0.08, 1.0), (3 / 4, 4 / 3), np.random.default_rng(size))
    windows[0] = 0, 0, height, width  # all of it, edges included
    windows[1] = 3.25, 4.5, 33.25, 34.5  # between pixels
    compiled, own = _both(lambda pixels, window, **form: cut_window(pixels, window, size, **form), images, windows)
    difference = np.abs(compiled.astype(int) - own)
    assert difference.max() <= 2
    assert difference.mean() < 0.3
    for image, window, cut in zip(images, windows, compiled, strict=True):
        top, left, bottom, right = (float(edge) for edge in window)
        expected = Image.fromarray(image).resize(
            (size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
        )
        assert np.abs(cut.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("side", [17, 40, 56, 75, 150])  # two to eight taps along a side
def test_any_number_of_taps_makes_the_weighted_sum_of_pillow(draw, side):
    image = draw(side, 150, 150)
    cut = np.empty((40, 40, 3), np.uint8)
    kernels.cut_window(cut, image, np.array([0, 0, side, side], np.float32))
    expected = Image.fromarray(image).resize((40, 40), Image.Resampling.BILINEAR, box=(0, 0, side, side))
    assert np.abs(cut.astype(int) - np.asarray(expected)).max() <= 1


def test_the_edges_of_an_image_are_repeated_where_a_window_goes_beyond_it(draw):
    images = [draw(seed, 64, 48) for seed in range(2)]
    windows = np.array([[-20, -30, 76, 66], [-5.5, 10, 74.5, 90]], np.float32)
    compiled, own = _both(lambda pixels, window, **form: cut_window(pixels, window, 96, **form), images, windows)
    assert np.abs(compiled.astype(int) - own).max() <= 2
    np.testing.assert_array_equal(compiled[0], np.pad(images[0], ((20, 28), (30, 2), (0, 0)), mode="edge"))


def test_a_window_of_the_size_of_the_view_is_copied(draw):
    images = [draw(seed, 64, 64) for seed in range(4)]
    windows = np.array([[0, 0, 40, 40], [24, 24, 64, 64], [3, 7, 43, 47], [20, 0, 60, 40]], np.float32)
    for outputs in _both(lambda pixels, window, **form: cut_window(pixels, window, 40, **form), images, windows):
        for image, (top, left, bottom, right), output in zip(images, windows.astype(int), outputs, strict=True):
            np.testing.assert_array_equal(output, image[top:bottom, left:right])


@pytest.mark.parametrize("size", [40, 41, 62, 64])
def test_the_compiled_whole_turns_are_those_of_dali(draw, size):
    images = [draw(seed, 64, 64) for seed in range(8)]
    matrices = about_centre(SYMMETRIES, size)
    matrices[:, :, 2] += np.random.default_rng(0).integers(0, 64 - size, (8, 2), endpoint=True)
    compiled, own = _both(
        lambda pixels, matrix, **form: operators.turn(pixels, matrix, size, whole=True, **form), images, matrices
    )
    np.testing.assert_array_equal(compiled, own)
    general = _run(lambda *nodes: operators.turn(*nodes, size, whole=False, compiled=True), images, matrices)
    np.testing.assert_array_equal(general, own)


def test_the_compiled_rotations_are_those_of_dali(draw):
    images = [draw(seed, 61, 61) for seed in range(16)]
    matrices = about_centre(rotations(np.linspace(-180, 170, 16)), 61)
    compiled, own = _both(
        lambda pixels, matrix, **form: operators.turn(pixels, matrix, 61, whole=False, **form), images, matrices
    )
    assert (compiled != own).any(axis=3).mean() < 1e-3  # ties between two pixels


def test_a_turn_that_breaks_its_promise_stays_within_the_image(draw):
    images = [draw(seed, 30, 30) for seed in range(8)]
    matrices = about_centre(SYMMETRIES, 40)
    compiled, own = _both(
        lambda pixels, matrix, **form: operators.turn(pixels, matrix, 40, whole=True, **form), images, matrices
    )
    np.testing.assert_array_equal(compiled, own)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (3, 2), (2, 300)])
def test_windows_of_tiny_images_and_beyond_them_are_cut(draw, height, width):
    """Beyond the image its rim goes on; a file that was replaced by a smaller one must not read what is not there."""
    images = [draw(0, max(width, 8), max(height, 8))[:height, :width]] * 3
    windows = np.array([[0, 0, height, width], [0, 0, 1, 1], [50, 400, 90, 480]], np.float32)
    cut = _run(lambda pixels, window: cut_window(pixels, window, 40, compiled=True), images, windows)
    low, high = images[0].min(axis=(0, 1)).astype(int), images[0].max(axis=(0, 1)).astype(int)
    for view in cut:
        assert view.shape == (40, 40, 3)
        assert (view.astype(int) >= low - 1).all()
        assert (view.astype(int) <= high + 1).all()


def test_what_lies_outside_is_black(draw):
    far = np.array([[[1, 0, 1000], [0, 1, 0]], [[1, 0, 0], [0, 1, -1000]], [[1, 0, 1e7], [0, 1, 1e7]]], np.float32)
    images = [draw(seed, 30, 30) for seed in range(3)]
    for outputs in _both(
        lambda pixels, matrix, **form: operators.turn(pixels, matrix, 30, whole=False, **form), images, far
    ):
        assert not outputs.any()


# Colours


def _pillow(name: str, magnitude: int, sign: int, image: Image.Image) -> Image.Image:
    """One operation of torchvision's RandAugment."""
    values, signed = (
        transforms.RandAugment()
        ._augmentation_space(31, (56, 56))
        .get({"auto_contrast": "AutoContrast"}.get(name, name.capitalize()), (torch.tensor(0.0), False))
    )
    value = float(values[magnitude]) * (sign if signed else 1) if values.ndim else 0.0
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhancers:
        return enhancers[name](image).enhance(1 + value)
    return {
        "as it is": lambda: image,
        "posterize": lambda: ImageOps.posterize(image, int(value)),
        "solarize": lambda: ImageOps.solarize(image, value),
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }[name]()


@pytest.mark.parametrize("magnitude", [9, 25])
@pytest.mark.parametrize("weaken", [0, 1])
def test_enhancements_are_those_of_torchvision(draw, magnitude, weaken):
    images = [draw(seed, 56, 56) for seed in range(len(ENHANCEMENTS))]
    operations = np.arange(len(ENHANCEMENTS), dtype=np.int32)[:, None]
    signs = np.full_like(operations, weaken)
    outputs = _run(
        lambda pixels, drawn, sign: operators.enhance(pixels, drawn, sign, 1, magnitude),
        images,
        operations,
        signs,
        conditionals=True,
    )
    for name, image, output in zip(ENHANCEMENTS, images, outputs, strict=True):
        expected = np.asarray(_pillow(name, magnitude, 1 - 2 * weaken, Image.fromarray(image)))
        inner = np.abs(output.astype(int) - expected)[1:-1, 1:-1]  # Pillow leaves the rim when it sharpens
        # DALI equalizes histograms as OpenCV does, which is not quite Pillow's way.
        assert inner.mean() < (6 if name == "equalize" else 1), name


def test_stains_of_nothing_leave_an_image_as_it_is(draw):
    images = [draw(seed, 40, 40) for seed in range(3)] + [np.arange(4800, dtype=np.uint8).reshape(40, 40, 3)]
    same = np.tile(np.eye(3, 4, dtype=np.float32), (4, 1, 1))
    np.testing.assert_array_equal(
        _run(lambda pixels, matrix: operators.stain(pixels, matrix, 40), images, same), images
    )


def test_stains_are_mixed_in_optical_density(draw):
    images = [draw(seed, 40, 40) for seed in range(8)]
    stain = draw_views(POLICIES["lineage"], 64, 40, 8, np.random.default_rng(0)).stain
    outputs = _run(lambda pixels, matrix: operators.stain(pixels, matrix, 40), images, stain)
    for image, matrix, output in zip(images, stain.astype(np.float64), outputs, strict=True):
        density = -np.log((image + 1.0) / 256)
        expected = 256 * np.exp(-(density @ matrix[:, :3].T + matrix[:, 3])) - 1
        assert np.abs(output - expected.clip(0, 255)).max() < 0.6
        assert np.abs(output.astype(int) - image).mean() < 25


# Another laboratory


BACKGROUNDS = np.array(
    [
        [12, 1, 0, 0, 0, 0],
        [20, 0, 1, 0, 0, 0],
        [6.5, 0, 0, 250, 3.4, 120.7],
        [0, 0, 0, 0, 255, 0],
        [41, 1, 0, 0, 0, 0],
    ],
    np.float32,
)
RECOLOURINGS = np.array(
    [
        [[1, 1, 0], [1, 1, 0], [1, 1, 0]],
        [[0.3, 1.6, 38], [2.08, 0.6, -38], [1, 1.2, 0]],
        [[2.08, 1.65, -38], [1.5, 1.65, -38], [2.08, 1, 5.4]],
        [[0.28, 0.6, 38], [0.5, 1.65, 38], [0.28, 1.65, 20.2]],
    ],
    np.float32,
)
SIGMAS = np.array([[0], [0.2], [0.7], [1.2], [3]], np.float32)


@pytest.mark.parametrize("size", [40, 41])
@pytest.mark.parametrize(
    ("operate", "drawn"),
    [
        (operators.cover, BACKGROUNDS),
        (operators.recolour, RECOLOURINGS),
        (partial(operators.recolour, standardize=True), RECOLOURINGS),
        (operators.blur, SIGMAS),
    ],
    ids=["cover", "recolour", "standardize", "blur"],
)
def test_the_compiled_changes_of_colour_are_those_of_dali(draw, operate, drawn, size):
    images = [draw(seed, size, size) for seed in range(len(drawn))]
    compiled, own = _both(lambda pixels, row, **form: operate(pixels, row, size, **form), images, drawn)
    assert np.abs(compiled.astype(int) - own).max() <= 1
    assert (compiled != np.array(images)).any()


def test_a_new_background_has_one_colour_and_leaves_the_middle_alone(draw):
    images = [draw(seed, 41, 41) for seed in range(len(BACKGROUNDS))]
    outputs = _run(lambda *nodes: operators.cover(*nodes, 41, compiled=True), images, BACKGROUNDS)
    y, x = np.mgrid[:41, :41] - 20
    distance = np.hypot(y, x)
    for image, (radius, white, mean, *added), output in zip(images, BACKGROUNDS, outputs, strict=True):
        inner, outer = distance <= radius, distance > radius + 0.05 * 20.5
        np.testing.assert_array_equal(output[inner], image[inner])
        bright = np.percentile(image.reshape(-1, 3), 95, axis=0, method="inverted_cdf")
        colour = white * bright + mean * image.mean(axis=(0, 1)) + np.array(added)
        assert np.abs(output[outer] - colour).max(initial=0) <= 0.51
        assert len(np.unique(output[outer], axis=0)) <= 1
        low, high = np.minimum(image, colour), np.maximum(image, colour)
        assert ((low - 0.51 <= output) & (output <= high + 0.51)).all()  # the edge lies between the two


@pytest.mark.parametrize("compiled", [True, False])
def test_channels_are_changed_in_density_and_about_their_mean(draw, compiled):
    images = [draw(seed, 40, 40) for seed in range(len(RECOLOURINGS))]
    outputs = _run(lambda *nodes: operators.recolour(*nodes, 40, compiled=compiled), images, RECOLOURINGS)
    np.testing.assert_array_equal(outputs[0], images[0])
    for image, change, output in zip(images, RECOLOURINGS.astype(np.float64), outputs, strict=True):
        density, contrast, brightness = change.T
        light = 256 * np.exp(density * np.log((image + 1.0) / 256)) - 1
        mean = light.mean(axis=(0, 1))
        expected = (light - mean) * contrast + mean + brightness
        assert np.abs(output - expected.clip(0, 255)).max() < 0.6
        assert np.abs(expected.mean(axis=(0, 1)) - mean - brightness).max() < 1e-6


def test_images_are_standardised_in_the_graph_as_in_the_network(draw):
    images = [draw(seed, 40, 40) for seed in range(3)] + [np.full((40, 40, 3), 90, np.uint8)]
    same = np.tile(np.float32([1, 1, 0]), (4, 3, 1))
    outputs = _run(lambda *nodes: operators.recolour(*nodes, 40, standardize=True, compiled=True), images, same)
    expected = standardised(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1)
    assert np.abs(np.array(outputs) - expected.numpy()).max() <= 0.51
    np.testing.assert_array_equal(outputs[3], np.tile(np.uint8(LEVELS), (40, 40, 1)))


@pytest.mark.parametrize("compiled", [True, False])
def test_white_stays_white_when_only_the_density_varies(compiled):
    images, views = (
        [np.full((40, 40, 3), 255, np.uint8)] * 8,
        draw_views(Policy(density=0.9), 64, 40, 8, np.random.default_rng(0)),
    )
    outputs = _run(lambda *nodes: operators.recolour(*nodes, 40, compiled=compiled), images, views.recolour)
    np.testing.assert_array_equal(outputs, images)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_blur_is_the_gaussian_of_scipy(draw, compiled):
    images = [draw(seed, 40, 40) for seed in range(len(SIGMAS))]
    outputs = _run(lambda *nodes: operators.blur(*nodes, 40, compiled=compiled), images, SIGMAS)
    np.testing.assert_array_equal(outputs[0], images[0])
    for image, (sigma,), output in zip(images[1:], SIGMAS[1:], outputs[1:], strict=True):
        reach = math.ceil(3 * sigma)
        blurred = gaussian_filter(image.astype(float), sigma, mode="mirror", radius=reach, axes=(0, 1))
        assert np.abs(output - blurred).max() < 0.51


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_blur_wider_than_the_image_stays_within_it(draw, side):
    pixels = np.ascontiguousarray(draw(0)[:side, :side])
    out = np.empty_like(pixels)
    kernels.blur(out, pixels, np.array([9], np.float32))
    low, high = pixels.min(axis=(0, 1)), pixels.max(axis=(0, 1))
    assert ((low <= out) & (out <= high)).all()


def test_erasing_blanks_the_box_and_nothing_else(draw):
    images = [draw(seed, 40, 40) for seed in range(3)]
    boxes = np.array([[0, 0, 0, 0], [3, 5, 20, 11], [0, 0, 40, 40]], np.float32)
    for image, (top, left, bottom, right), output in zip(
        images, boxes.astype(int), _run(operators.erase, images, boxes), strict=True
    ):
        expected = image.copy()
        expected[top:bottom, left:right] = operators.ERASED
        np.testing.assert_array_equal(output, expected)


def test_the_blank_is_the_mean_of_imagenet():
    assert tuple(math.floor(255 * mean + 0.5) for mean in (0.485, 0.456, 0.406)) == operators.ERASED
