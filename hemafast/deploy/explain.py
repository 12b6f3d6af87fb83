"""Draw what the network sees of each image, and beside it the heat map of a class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hemafast.config import Device
from hemafast.deploy.choices import Method, UmPerPixel
from hemafast.deploy.eval_graph import EvalGraph
from hemafast.deploy.heat import overlays
from hemafast.deploy.inputs import Images, list_inputs
from hemafast.deploy.model import Model, open_model
from hemafast.deploy.plan import Options, plan_for
from hemafast.deploy.predict import decoded
from hemafast.errors import HemafastError, require
from hemafast.files import make_inside, write_whole, writing
from hemafast.pictures import HEAT_COLOURS, save, subplots
from hemafast.preparation.images.image_checks import Pixels
from hemafast.progress import SILENT, Progress, stage
from hemafast.run_folder import NamedRun, find_run

_BATCH = 16
_LONGEST_NAME = 50  # letters of at most four bytes each; file systems take 255 bytes
_UNSAFE = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True, slots=True)
class Explained:
    """The result for one image."""

    image: str
    error: str = ""
    """Why it could not be read; then the other fields are empty."""
    picture: Path | None = None
    predicted: str = ""
    explained: str = ""
    """The class whose heat map was drawn."""
    probability: float | None = None
    """Of the explained class."""

    def told(self) -> str:
        """The result in one line."""
        if self.error:
            return f"{self.image}: {self.error}"
        instead = f", predicted {self.predicted}" if self.predicted != self.explained else ""
        return f"{self.picture}  {self.explained} {self.probability:.3f}{instead}"


def explain(
    run: NamedRun,
    images: Images,
    output: str | Path | None = None,
    *,
    label: str | None = None,
    method: Method = "gradcam",
    um_per_pixel: UmPerPixel = None,
    bit_depth: int | None = None,
    device: Device = "auto",
    progress: Progress = SILENT,
) -> list[Explained]:
    """Draw where a model looks: one PNG for each image.

    Args:
        run: a run, its folder, the file of a model, or "latest".
        images: paths or arrays, as `Model.predict` takes them.
        output: folder for the pictures; None for "explain" beside the model.
        label: the class to explain; None for the predicted one.
        method: how the heat map is made.
        um_per_pixel: scale of the images, as for `Model.predict`.
        bit_depth: bits that the camera uses of images with more than 8, as for `Model.predict`.
        device: where the model runs.
        progress: listens to the number of images done.

    Returns:
        One result per image, in order. An unreadable image has its error.

    Raises:
        HemafastError: there is no model or no image, the model has no class `label`, grad-cam is not installed, or
            the network has no feature map.
    """
    require("explain", "pytorch_grad_cam")
    model = open_model(find_run(run), device=device, amp="off")
    _ = model.network  # refuses graphs before anything is read
    options = Options(um_per_pixel=um_per_pixel, bit_depth=bit_depth, batch_size=_BATCH)
    plan = plan_for([model], list_inputs(images), options)
    if label is not None and label not in plan.classes:
        remedy = f"Choose label (--class) from: {', '.join(plan.classes)}."
        raise HemafastError(f"The model has no class {label!r}.", remedy)
    folder = Path(output) if output else model.file.parent / "explain"
    names = _file_names([image.name for image in plan.images])
    (group,) = plan.groups
    graph = EvalGraph(model.card, plan.machine, _BATCH)
    explained = []
    with stage(progress, "explaining", len(plan.images)), decoded(plan, group) as batches:
        for batch in batches:
            seen = _look(model, graph(batch.squares), label, method) if batch.rows else iter(())
            for row in sorted((*batch.rows, *batch.errors)):
                image, file = plan.images[row].name, folder / names[row]
                if row in batch.errors:
                    explained.append(Explained(image, batch.errors[row]))
                else:
                    figure, *answer = next(seen)
                    with writing(folder):
                        make_inside(folder) if output is None else folder.mkdir(parents=True, exist_ok=True)
                        write_whole(file, partial(save, figure))
                    explained.append(Explained(image, "", file, *answer))
                progress.advance()
    return explained


def _look(model: Model, images: Tensor, label: str | None, method: Method) -> Iterator[tuple[Any, ...]]:
    """For each of the uint8 images (n, 3, side, side) on the model's device: a figure of it, the predicted class, the
    explained class, and the probability of the latter.
    """
    probabilities = model.probabilities(images).cpu().numpy()
    predicted = probabilities.argmax(axis=1)
    explained = predicted if label is None else np.full_like(predicted, model.classes.index(label))
    views = images.permute(0, 2, 3, 1).cpu().numpy()
    pairs = zip(views, overlays(model.network, views, explained.tolist(), method=method), strict=True)
    for pixels, best, chosen, shares in zip(pairs, predicted, explained, probabilities, strict=True):
        answer = model.classes[best], model.classes[chosen], float(shares[chosen])
        yield _figure(pixels, *answer), *answer


def _figure(pixels: tuple[Pixels, Pixels], predicted: str, explained: str, probability: float) -> Any:
    """The view and its overlay with its scale, side by side."""
    from matplotlib.cm import ScalarMappable

    figure, (left, right) = subplots(2, width=3.2, height=3.6, columns=2)
    for axis, picture in zip((left, right), pixels, strict=True):
        axis.imshow(picture, interpolation="lanczos")
        axis.set_axis_off()
    # parse_math=False: a dollar sign in the user's names starts no formula.
    left.set_title(f"predicted: {predicted}", fontsize=9, parse_math=False)
    right.set_title(f"{explained}: {probability:.3f}", fontsize=9, parse_math=False)
    scale = figure.colorbar(ScalarMappable(cmap=HEAT_COLOURS), ax=right, ticks=(0, 1), shrink=0.8)
    scale.ax.set_yticklabels(("least", "most"), fontsize=8)
    return figure


def _file_names(images: Sequence[str]) -> list[str]:
    """A PNG name for each image, with a number where names collide."""
    names: dict[str, str] = {}
    for image in images:
        stem = name = _UNSAFE.sub("_", Path(image).stem).lstrip(".")[:_LONGEST_NAME] or "image"
        number = 1
        while name.casefold() in names:  # some file systems ignore case
            number += 1
            name = f"{stem}-{number}"
        names[name.casefold()] = f"{name}.png"
    return list(names.values())
