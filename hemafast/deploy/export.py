"""Export a run's best model for programs without hemafast; what is written was run and compared with the model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hemafast.data.dataset import Dataset, open_dataset
from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader
from hemafast.deploy.choices import Format, Layout
from hemafast.deploy.formats import KINDS, Answer, Deployed
from hemafast.deploy.model_card import model_card
from hemafast.engine.checkpoint import ModelCard, load_best, model_file
from hemafast.errors import HemafastError
from hemafast.files import write_whole
from hemafast.prepare.split import VAL
from hemafast.run_folder import read_config

CARD = "MODEL_CARD.md"

TOLERANCE = 1e-3
"""How far a logit may be from the model's, as a share of the largest logit where that is above 1. fp32 sums in another
order stay far below it."""

_ROUNDING = 1e-5  # of a probability
_RANDOM_BATCHES = (1, 2, 5)
_CELLS, _CELL_BATCH = 16, 7

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Agreement:
    """How an exported model compares with the one it was made from."""

    images: int
    """Images that both were shown: random pixels and cells."""
    cells: int
    """How many of them are validation images of the run."""
    same_class: int
    """How many both put into the same class."""
    largest_difference: float
    """Of a logit."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    path: Path
    card: Path
    format: Format
    layout: Layout | None
    """None for bare weights."""
    bytes: int
    opset: int | None
    """Version of ONNX's operators; None for other formats."""
    agreement: Agreement

    def to_plain(self) -> dict[str, Any]:
        """All of it by name, as JSON takes it."""
        plain = asdict(self)
        agreement = plain.pop("agreement")
        return {**plain, "path": str(self.path), "card": str(self.card), **agreement}

    def told(self) -> str:
        """What a user is told of it, in lines."""
        found = self.agreement
        kind = ", ".join([self.format, *([self.layout] if self.layout else []), f"{self.bytes / 1e6:.1f} MB"])
        return (
            f"{self.path}  {kind}\n{self.card}\n"
            f"compared with the model on {found.images} images ({found.cells} cells, the rest noise): logits differ by "
            f"{found.largest_difference:.2g} at most, {found.same_class} of {found.images} have the same class"
        )


def export_run(run: Path, output: Path | None = None, *, format: Format = "onnx", layout: Layout = "nhwc") -> Exported:
    """Write the best model of a run, and a model card beside it, into `output`, by default the run's folder "export".

    `run` is a run folder or the file of a model. Onnx and torch-export hold a graph that takes uint8 images of `layout`
    in batches of any size; safetensors holds weights by the names that timm gives them. Raises HemafastError if there
    is no model, if it cannot be exported, or if the export answers otherwise than the model: then nothing is written.
    """
    file = model_file(run)
    model, card = load_best(file)
    model.to(memory_format=torch.contiguous_format)  # as exporters expect weights to lie
    deployed = Deployed(model, layout, card.temperature).eval()
    dataset = _data_of(file.parent, card)
    kind = KINDS[format]
    packed = kind.pack(deployed, card)
    agreement = compare(deployed, kind.run(packed.content, layout), _images(card, dataset))
    folder = output or file.parent / "export"
    exported = Exported(
        path=folder / kind.file,
        card=folder / CARD,
        format=format,
        layout=None if format == "safetensors" else layout,
        bytes=len(packed.content),
        opset=packed.opset,
        agreement=agreement,
    )
    text = model_card(exported, model, card, file.parent, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(exported.card, lambda part: part.write_text(text, encoding="utf-8"))
    write_whole(exported.path, lambda part: part.write_bytes(packed.content))
    return exported


def _data_of(folder: Path, card: ModelCard) -> Dataset | None:
    """The data set of the run in `folder`, if it is there and still the one that the model was trained with."""
    try:
        config = read_config(folder)
        dataset = open_dataset(config.data, config.fold, config.domains)
    except HemafastError as error:
        logger.debug("no data set: %s", error.problem)
        return None
    return dataset if dataset.info.fingerprint == card.data_fingerprint else None


@torch.inference_mode()
def compare(deployed: Deployed, answer: Answer, batches: Iterable[tuple[Tensor, bool]]) -> Agreement:
    """Show the same images to a model and to what was exported of it; each batch says whether it is of cells.

    Images are uint8 (n, 3, height, width). Raises HemafastError if a logit differs by more than TOLERANCE, or if the
    probabilities are not those of the logits.
    """
    expected, answers, cells = [], [], 0
    for images, real in batches:
        expected.append(deployed.model(images))
        answers.append(answer(images))
        cells += len(images) if real else 0
    wanted, found, probabilities = (torch.cat([*parts]) for parts in (expected, *zip(*answers, strict=True)))
    difference = float((found - wanted).abs().max())
    _refuse(difference, TOLERANCE * max(1.0, float(wanted.abs().max())), "a logit")
    softened = torch.softmax(found / deployed.temperature, dim=1)
    _refuse(float((probabilities - softened).abs().max()), _ROUNDING, "a probability")
    same = found.argmax(dim=1) == wanted.argmax(dim=1)
    return Agreement(len(wanted), cells, int(same.sum()), difference)


def _refuse(difference: float, allowed: float, what: str) -> None:
    if not difference <= allowed:  # nan is no agreement either
        raise HemafastError(
            f"The exported model differs from the model by {difference:.3g} in {what}, where {allowed:.3g} is allowed: "
            "nothing was written.",
            "Choose another --format.",
        )


def _images(card: ModelCard, dataset: Dataset | None) -> Iterator[tuple[Tensor, bool]]:
    """Batches of several sizes, uint8 (n, 3, image_size, image_size), and whether they are of cells."""
    draw = torch.Generator().manual_seed(0)
    for count in _RANDOM_BATCHES:
        size = (count, 3, card.image_size, card.image_size)
        yield torch.randint(0, 256, size, dtype=torch.uint8, generator=draw), False
    if dataset is not None:
        samples = dataset.samples(VAL, card.image_size)
        rows = np.linspace(0, len(samples) - 1, min(_CELLS, len(samples))).astype(np.int64)
        shape = GraphShape("cpu", "packed", samples.packed_size, card.image_size, _CELL_BATCH, threads=1)
        for batch in eval_loader(samples.select(rows), shape=shape).epoch():
            yield batch.images, True
