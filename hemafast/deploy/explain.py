"""Draw what the network sees of each image, and beside it the heat map of a class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hemafast.config import Device
from hemafast.deploy.choices import Method
from hemafast.deploy.crops import log_scales
from hemafast.deploy.decoding import DecodedBatch, decode_images
from hemafast.deploy.eval_graph import EvalGraph
from hemafast.deploy.extras import require
from hemafast.deploy.heat import overlays
from hemafast.deploy.inputs import Images, list_inputs
from hemafast.deploy.model import Model, open_model
from hemafast.deploy.plan import Options, Plan, plan_for
from hemafast.errors import HemafastError
from hemafast.files import write_whole
from hemafast.pictures import save, subplots
from hemafast.preparation.image_checks import strict_decoders
from hemafast.preparation.threads import Pool
from hemafast.progress import SILENT, Progress, stage

Pixels = npt.NDArray[np.uint8]

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
    run: str | Path,
    images: Images,
    output: str | Path | None = None,
    *,
    label: str | None = None,
    method: Method = "gradcam",
    um_per_pixel: float | None = None,
    device: Device = "auto",
    progress: Progress = SILENT,
) -> list[Explained]:
    """Draw where a model looks: one PNG for each image.

    Args:
        run: a run folder or the file of a model.
        images: paths or arrays, as `Model.predict` takes them.
        output: folder for the pictures; None for "explain" beside the model.
        label: the class to explain; None for the predicted one.
        method: how the heat map is made.
        um_per_pixel: scale of the images; None for that of the domain that a folder or zip is named after.
        device: where the model runs.
        progress: listens to the number of images done.

    Returns:
        One result per image, in order. An unreadable image has its error.

    Raises:
        HemafastError: there is no model or no image, the model has no class `label`, grad-cam is not installed, or
            the network has no feature map.
    """
    require("explain", "pytorch_grad_cam")
    model = open_model(run, device=device, amp="off")
    _ = model.network  # refuses graphs before anything is read
    plan = plan_for([model], list_inputs(images), Options(um_per_pixel=um_per_pixel, batch_size=_BATCH))
    if label is not None and label not in plan.classes:
        raise HemafastError(f"The model has no class {label!r}.", f"Choose from: {', '.join(plan.classes)}.")
    folder = Path(output) if output else model.file.parent / "explain"
    names = _file_names([image.name for image in plan.images])
    graph = EvalGraph(model.card.view.packed_size, model.card.image_size, plan.machine, _BATCH)
    explained = []
    with stage(progress, "explaining", len(plan.images)):
        for batch in _batches(plan):
            seen = _look(model, graph(batch.squares), label, method) if batch.squares else []
            found: dict[int, _Seen | str] = {**batch.errors, **dict(zip(batch.rows, seen, strict=True))}
            for row in sorted(found):
                explained.append(_written(plan.images[row].name, found[row], folder / names[row]))
                progress.advance()
    return explained


def _batches(plan: Plan) -> Iterator[DecodedBatch]:
    (group,) = plan.groups
    log_scales([group.crops])
    threads = plan.machine.loader_threads
    with Pool(threads) as pool:
        batches = decode_images(plan.images, group.crops, group.size, batch_size=_BATCH, threads=threads, pool=pool)
        while True:
            with strict_decoders():  # around the decoders only: networks and drawing may warn
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def _look(model: Model, images: Tensor, label: str | None, method: Method) -> list[_Seen]:
    """Classes and heat maps of uint8 images (n, 3, side, side) on the model's device."""
    with torch.inference_mode():
        probabilities = (model.logits(images) / model.card.temperature).softmax(dim=1).cpu().numpy()
    classes = model.classes
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
    # parse_math=False: a dollar sign in the user's names starts no formula.
    left.set_title(f"predicted: {seen.predicted}", fontsize=9, parse_math=False)
    right.set_title(f"{seen.explained}: {seen.probability:.3f}", fontsize=9, parse_math=False)
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
