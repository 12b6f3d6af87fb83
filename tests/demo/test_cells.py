"""The drawn cells: reproducible, of the promised size, and told apart by shape rather than by colour."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage
from scipy.spatial import ConvexHull
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hemafast.demo.cells import ACEVEDO_20, MATEK_19, MORPHOLOGIES, Stain, draw_cell

STAINS = (ACEVEDO_20, MATEK_19)
CELLS_PER_CLASS = 20


@pytest.mark.parametrize("stain", STAINS, ids=lambda stain: stain.name)
@pytest.mark.parametrize("cell_class", sorted(MORPHOLOGIES))
def test_every_class_fills_the_canvas(cell_class: str, stain: Stain) -> None:
    image = draw_cell(cell_class, stain, np.random.default_rng(0))
    assert image.shape == (stain.height_px, stain.width_px, 3)
    assert image.dtype == np.uint8
    middle = image[stain.height_px // 3 : -stain.height_px // 3, stain.width_px // 3 : -stain.width_px // 3]
    assert middle[..., 0].min() < 0.6 * np.median(image[..., 0])


def test_there_are_the_eleven_classes() -> None:
    assert len(MORPHOLOGIES) == 11


@pytest.mark.parametrize("stain", STAINS, ids=lambda stain: stain.name)
def test_chance_comes_from_the_generator_alone(stain: Stain) -> None:
    first, again, other = (draw_cell("monocyte", stain, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_unknown_class_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown cell class 'plasma_cell'"):
        draw_cell("plasma_cell", ACEVEDO_20, np.random.default_rng(0))


def test_shape_tells_the_classes_apart_and_colour_does_not() -> None:
    classes = [name for name in MORPHOLOGIES if name != "myeloblast"]
    truth = np.repeat(np.arange(len(classes)), CELLS_PER_CLASS)
    images = [
        draw_cell(classes[rank], ACEVEDO_20, np.random.default_rng([11, number])) for number, rank in enumerate(truth)
    ]
    by_colour = _best_accuracy(np.array([_colours(image) for image in images]), truth)
    by_shape = _best_accuracy(np.array([_shape(image, ACEVEDO_20.um_per_px) for image in images]), truth)
    assert by_colour < 0.5, f"colour alone reaches {by_colour:.3f}"
    assert by_shape > 0.65, f"shape reaches only {by_shape:.3f}"
    assert by_shape > by_colour + 0.25, f"shape {by_shape:.3f}, colour {by_colour:.3f}"


def _best_accuracy(features: npt.NDArray[np.float64], truth: npt.NDArray[np.intp]) -> float:
    """Cross-validated balanced accuracy of the better of a linear model and a forest."""
    models: tuple[ClassifierMixin, ...] = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        RandomForestClassifier(100, random_state=0),
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return max(balanced_accuracy_score(truth, cross_val_predict(model, features, truth, cv=folds)) for model in models)


def _colours(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    pixels = image[::2, ::2].reshape(-1, 3).astype(np.float64)
    return np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)])


def _shape(image: npt.NDArray[np.uint8], um_per_px: float) -> npt.NDArray[np.float64]:
    """Size, form and texture of the nucleus and of the cell around it, in micrometres, from the red channel alone."""
    height, width = image.shape[:2]
    red = image[height // 6 : -height // 6, width // 6 : -width // 6, 0].astype(np.float32)
    absorbance = -np.log((ndimage.gaussian_filter(red, 1.5)[::2, ::2] + 4) / (np.percentile(image[..., 0], 90) + 4))
    um, dark = 2 * um_per_px, np.percentile(absorbance, 98)
    nucleus = _largest(ndimage.binary_opening(absorbance > 0.6 * dark, iterations=2))
    body = _largest(absorbance > 0.3 * dark)
    texture = (red - ndimage.gaussian_filter(red, 4))[::2, ::2]
    area, points = nucleus.sum() * um**2, np.argwhere(nucleus)
    depth = ndimage.distance_transform_edt(nucleus) * um
    perimeter = (nucleus & ~ndimage.binary_erosion(nucleus)).sum() * um
    minor, major = np.linalg.eigvalsh(np.cov(points.T))
    cytoplasm = body & ~ndimage.binary_dilation(nucleus, iterations=2)
    return np.array(
        [
            area,
            body.sum() * um**2,
            area / (body.sum() * um**2),
            area / (ConvexHull(points).volume * um**2),
            minor / major,
            perimeter**2 / area,
            depth.max() ** 2 / area,
            ndimage.label(depth > 0.5 * depth.max())[1],
            ndimage.label(depth > 0.65 * depth.max())[1],
            texture[cytoplasm].std() if cytoplasm.any() else 0.0,
            texture[depth > 0.4].std(),
            dark,
        ]
    )


def _largest(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    return labels == 1 + np.argmax(sizes[1:])
