"""Show where a run's best model looks: for each image what the network sees, and beside it the heat map of a class."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hemafast.config import Device
from hemafast.deploy.choices import Method
from hemafast.deploy.extras import require
from hemafast.deploy.heat import overlays
from hemafast.deploy.models import Model
from hemafast.deploy.plan import Options, Plan, make_plan
from hemafast.deploy.squares import Squares, read_squares
from hemafast.deploy.views import ViewGraph
from hemafast.deploy.windows import tell_scales
from hemafast.errors import HemafastError
from hemafast.files import write_whole
from hemafast.pictures import save, subplots
from hemafast.prepare.image_checks import strict_decoders
from hemafast.prepare.threads import Pool

Pixels = npt.NDArray[np.uint8]

_BATCH = 16
_LONGEST_NAME = 50  # letters, which are four bytes at most; file systems take 255
_UNSAFE = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True, slots=True)
class Explained:
    """What became of one image."""

    image: str
    error: str = ""
    """Why it could not be read; then nothing else is known of it."""
    picture: Path | None = None
    predicted: str = ""
    explained: str = ""
    """The class whose heat map was drawn."""
    probability: float | None = None
    """Of that class."""

    def told(self) -> str:
        """One line about it."""
        if self.error:
            return f"{self.image}: {self.error}"
        return f"{self.picture}  {self.explained} {self.probability:.3f}, predicted {self.predicted}"


@dataclass(frozen=True, slots=True)
class _Seen:
    """One image as the network sees it."""

    view: Pixels
    """uint8 (side, side, 3)"""
    overlay: Pixels
    predicted: str
    explained: str
    probability: float


def explain(
    run: Path,
    paths: Sequence[str],
    output: Path | None = None,
    *,
    label: str | None = None,
    method: Method = "gradcam",
    um_per_pixel: float | None = None,
    device: Device = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Explained]:
    """Write one PNG for each image of `paths` into `output`, by default the run's folder "explain".

    `run` is a run folder or the file of a model. The heat map is that of the class `label`, or of the predicted one. An
    image that cannot be read has its error in its row. Raises HemafastError if there is no model or no image, if the
    model does not know `label`, if grad-cam is not installed, or if the network has no feature map.
    """
    require("explain", "pytorch_grad_cam")
    plan = make_plan([run], paths, Options(um_per_pixel=um_per_pixel, device=device, amp="off"))
    (model,) = plan.models
    if label is not None and label not in plan.classes:
        raise HemafastError(f"The model knows no class {label!r}.", f"Choose from: {', '.join(plan.classes)}.")
    folder, names = output or model.file.parent / "explain", _file_names([image.name for image in plan.images])
    graph = ViewGraph(model.view.packed_size, model.card.image_size, plan.machine, _BATCH)
    explained = []
    for squares in _squares(plan):
        seen = _look(model, graph(squares.pixels), label, method) if squares.pixels else []
        found: dict[int, _Seen | str] = {**squares.errors, **dict(zip(squares.rows, seen, strict=True))}
        for row in sorted(found):
            explained.append(_written(plan.images[row].name, found[row], folder / names[row]))
            progress(len(explained), len(plan.images))
    return explained


def _squares(plan: Plan) -> Iterator[Squares]:
    (group,) = plan.groups
    tell_scales([group.windows])
    threads = plan.machine.loader_threads
    with Pool(threads) as pool:
        batches = read_squares(plan.images, group.windows, group.size, batch_size=_BATCH, threads=threads, pool=pool)
        while True:
            with strict_decoders():  # for decoders alone: networks and drawings may warn
                squares = next(batches, None)
            if squares is None:
                return
            yield squares


def _look(model: Model, images: Tensor, label: str | None, method: Method) -> list[_Seen]:
    """What the network makes of uint8 images (n, 3, side, side) on its device."""
    with torch.inference_mode():
        probabilities = (model.network(images) / model.card.temperature).softmax(dim=1).cpu().numpy()
    classes = model.card.classes
    predicted = probabilities.argmax(axis=1)
    explained = predicted if label is None else np.full_like(predicted, classes.index(label))
    views = images.permute(0, 2, 3, 1).cpu().numpy()
    drawn = overlays(model.network, views, explained.tolist(), method=method)
    return [
        _Seen(view, overlay, classes[best], classes[chosen], float(shares[chosen]))
        for view, overlay, best, chosen, shares in zip(views, drawn, predicted, explained, probabilities, strict=True)
    ]


def _written(image: str, found: _Seen | str, file: Path) -> Explained:
    if isinstance(found, str):
        return Explained(image, error=found)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda part: save(_figure(found), part))
    return Explained(image, "", file, found.predicted, found.explained, found.probability)


def _figure(seen: _Seen) -> Any:
    figure, (left, right) = subplots(2, width=3.2, height=3.6, columns=2)
    for axis, pixels in ((left, seen.view), (right, seen.overlay)):
        axis.imshow(pixels, interpolation="lanczos")
        axis.set_axis_off()
    # parse_math: names are the user's, and a dollar sign in one starts no formula.
    left.set_title(f"predicted: {seen.predicted}", fontsize=9, parse_math=False)
    right.set_title(f"{seen.explained}: {seen.probability:.3f}", fontsize=9, parse_math=False)
    return figure


def _file_names(images: Sequence[str]) -> list[str]:
    """A PNG for each image, named after it; a number tells those apart that have one name."""
    names: dict[str, str] = {}
    for image in images:
        stem = name = _UNSAFE.sub("_", Path(image).stem).lstrip(".")[:_LONGEST_NAME] or "image"
        number = 1
        while name.casefold() in names:  # some file systems take both cases for one
            number += 1
            name = f"{stem}-{number}"
        names[name.casefold()] = f"{name}.png"
    return list(names.values())
