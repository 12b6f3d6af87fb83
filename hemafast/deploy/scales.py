"""The scale of images that a user names together, from their nuclei and from the classes that models see in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from hemafast.deploy.crops import Crops
from hemafast.deploy.decoding import decode_images
from hemafast.deploy.depths import Depths
from hemafast.deploy.eval_graph import EvalGraph
from hemafast.deploy.inputs import Image, read_images
from hemafast.deploy.model import Model
from hemafast.preparation.images.depth import spread
from hemafast.preparation.images.image_checks import strict_decoders
from hemafast.preparation.scale import (
    SAMPLE,
    Encoded,
    Measured,
    ScaleEstimate,
    estimate_from,
    factor_of,
    measure_encoded,
    with_classes,
)
from hemafast.preparation.threads import Pool

CLASSIFIED = 150
"""Images at most that are classified: more would tell the median nucleus little better than laboratories differ."""
_ROUNDS = 3  # how often they are classified, each time at a better scale
_STILL = 0.02  # a scale that moves by less is found

Estimator = Callable[[Sequence[Image]], ScaleEstimate]


def estimator(images: Sequence[Image], depths: Depths, models: Sequence[Model]) -> Estimator:
    """A function that estimates the scale of some of `images`, once for the same ones.

    A sample of them is read and decoded for it. `models` classify a part of it if they know how large the nuclei of
    their classes are.
    """
    judges = [model for model in models if _sizes(model)]
    threads, min_side = models[0].machine.loader_threads, models[0].card.view.min_side
    found: dict[tuple[object, ...], ScaleEstimate] = {}

    def measured(some: Sequence[Image]) -> list[Measured]:
        sample = spread(some, SAMPLE)
        wanted = {image.name for image in sample}  # of a million images, few
        rows = {image.name: row for row, image in enumerate(images) if image.name in wanted}
        kept = {image.name for image in spread(sample, CLASSIFIED)} if judges else set()
        contents = zip(sample, read_images(sample), strict=True)
        with strict_decoders():
            return measure_encoded(
                (
                    Encoded(data, one.name, depths.of(rows[one.name]), min_side, keep=one.name in kept)
                    for one, data in contents
                ),
                threads,
            )

    def estimate(some: Sequence[Image]) -> ScaleEstimate:
        names = (len(some), *(image.name for image in spread(some, SAMPLE)))
        if names not in found:
            cells = measured(some)
            first = estimate_from(cells)
            found[names] = by_classes(first, [one for one in cells if one.nucleus and one.pixels is not None], judges)
        return found[names]

    return estimate


def by_classes(first: ScaleEstimate, cells: Sequence[Measured], judges: Sequence[Model]) -> ScaleEstimate:
    """The estimate after models classified cells at it.

    Args:
        first: by the nuclei alone.
        cells: with their nuclei and pixels.
        judges: models that know the sizes of their nuclei. Their answers are averaged; the sizes of the first count.

    Returns:
        The better estimate, or `first` if the classes of too few cells are clear.
    """
    if first.um_per_pixel is None or not judges or not cells:
        return first
    scales = np.array([first.by_side.get(one.side, first.um_per_pixel) for one in cells])
    diameters = scales * [one.nucleus or 0.0 for one in cells]
    images = [Image(str(place), array=one.pixels) for place, one in enumerate(cells)]
    askers = [_asker(model, images) for model in judges]
    factor = 1.0
    for _ in range(_ROUNDS):
        answers = np.mean([ask(scales * factor) for ask in askers], axis=0)
        better = factor_of(diameters, answers, _sizes(judges[0]) or ())
        if better is None:
            return first
        moved, factor = abs(math.log(better / factor)), better
        if moved < _STILL:
            break
    return with_classes(first, factor, len(cells))


def _sizes(model: Model) -> tuple[float | None, ...] | None:
    """By class, the diameter of its nuclei in um; None if the model knows none, or sees images whole."""
    card = model.card
    return card.calibration.nuclei if card.calibration and card.view.field_of_view else None


def _asker(model: Model, images: Sequence[Image]) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """A function from the scale of each of the arrays `images` to its probabilities (n, classes); nan without any."""
    view, batch = model.card.view, 64
    graph, threads = EvalGraph(model.card, model.machine, batch), model.machine.loader_threads

    def ask(scales: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        assert view.field_of_view is not None  # nuclei of known size have a known scale
        answers = np.full((len(images), len(model.classes)), np.nan)
        crops = Crops(np.maximum(np.rint(view.field_of_view / scales), 1).astype(np.int64))
        with strict_decoders(), Pool(threads) as pool:
            size, least = view.packed_size, view.min_side
            for one in decode_images(images, crops, size, min_side=least, batch_size=batch, threads=threads, pool=pool):
                if one.rows:
                    answers[list(one.rows)] = model.probabilities(graph(one.squares)).cpu().numpy()
        return answers

    return ask
