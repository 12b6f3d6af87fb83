"""Export a model for programs without hemafast, after running the export and comparing it with the model."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hemafast.data.dataset import Dataset, open_dataset
from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader
from hemafast.deploy.choices import Format, Layout
from hemafast.deploy.engines import EXPORT
from hemafast.deploy.formats import KINDS, Agreement, Answer, Deployed, Exported
from hemafast.deploy.model_card import model_card
from hemafast.deploy.quantise import pack_int8
from hemafast.engine.checkpoint import ModelCard, load_best, model_file
from hemafast.ensemble import single
from hemafast.errors import HemafastError
from hemafast.files import make_inside, write_text, write_whole, writing
from hemafast.preparation.split import VAL
from hemafast.run_folder import NamedRun, find_run, read_config

CARD = "MODEL_CARD.md"

TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit if that is above 1. Rounding in fp32 stays far below."""

_ROUNDING = 1e-5  # of a probability
_RANDOM_BATCHES = (1, 2, 5)
_CELLS, _CELL_BATCH = 16, 7

logger = logging.getLogger("hemafast")


def export_run(
    run: NamedRun, output: str | Path | None = None, *, format: Format = "onnx", layout: Layout = "nhwc"
) -> Exported:
    """Export the best model of a run, with a model card beside it.

    Args:
        run: a run, its folder or `best_model.safetensors`, or "latest".
        output: folder to write into; None for "export" in the run folder.
        format: "onnx" or "torch-export" for a graph, "onnx-int8" for a quantised one that may lose 0.005 of
            macro-F1 on the validation images, "safetensors" for the weights under timm's names.
        layout: images that the graph takes, uint8: "nhwc" for (batch, side, side, 3), "nchw" for (batch, 3, side,
            side). The batch may have any size.

    Returns:
        The files, and how the export compares with the model.

    Raises:
        HemafastError: there is no model, it cannot be exported, or the export differs from it (int8: loses too much
            macro-F1, or the data set is not there); nothing is written.
    """
    file = model_file(find_run(run))
    folder = Path(output) if output else file.parent / EXPORT
    exported, content, text = make_export(file, folder, format=format, layout=layout)
    with writing(folder):
        make_inside(folder) if output is None else folder.mkdir(parents=True, exist_ok=True)
        write_text(exported.card, text)
        write_whole(exported.path, lambda part: part.write_bytes(content))
    return exported


def make_export(file: Path, folder: Path, *, format: Format, layout: Layout) -> tuple[Exported, bytes, str]:
    """What `export_run` writes for the model `file` into `folder`: the content of the export, and the model card."""
    model, card = load_best(file)
    model.to(memory_format=torch.contiguous_format)  # the memory layout that exporters expect
    int8 = format == "onnx-int8"
    if int8:
        single(model, "exported as int8: choose onnx")
    deployed = Deployed(model, layout, card.temperature, features=int8).eval()
    dataset = _data_of(file.parent, card)
    kind = KINDS[format]
    content, opset = pack_int8(deployed, card, file, dataset) if int8 else kind.pack(deployed, card)
    loaded, allowed = kind.load(content), math.inf if int8 else None  # the score of int8 was checked instead
    agreement = compare(deployed, loaded.answer, _images(card, dataset), allowed)
    shown = None if format == "safetensors" else layout
    exported = Exported(folder / kind.file, folder / CARD, format, shown, len(content), opset, agreement)
    return exported, content, model_card(exported, model, card, file.parent, dataset)


def _data_of(folder: Path, card: ModelCard) -> Dataset | None:
    """The data set of the run in `folder`, if it exists and is still the one that the model was trained on."""
    try:
        config = read_config(folder)
        dataset = open_dataset(config.data, config.fold, config.domains)
    except HemafastError as error:
        logger.debug("no data set: %s", error.problem)
        return None
    return dataset if dataset.info.fingerprint == card.data_fingerprint else None


@torch.inference_mode()
def compare(
    deployed: Deployed, answer: Answer, batches: Iterable[tuple[Tensor, bool]], tolerance: float | None = None
) -> Agreement:
    """Run a model and its export on batches of uint8 images (n, 3, height, width), each with whether it holds cells.

    Raises HemafastError if a logit differs by more than the tolerance (None for TOLERANCE) or the
    probabilities do not match the logits.
    """
    expected, answers, cells = [], [], 0
    for images, real in batches:
        expected.append(deployed.model(images))
        answers.append(answer(images))
        cells += len(images) if real else 0
    wanted, found, probabilities = (torch.cat([*parts]) for parts in (expected, *zip(*answers, strict=True)))
    difference = float((found - wanted).abs().max())
    _refuse(
        difference, (TOLERANCE if tolerance is None else tolerance) * max(1.0, float(wanted.abs().max())), "a logit"
    )
    softened = torch.softmax(found / deployed.temperature, dim=1)
    _refuse(float((probabilities - softened).abs().max()), _ROUNDING, "a probability")
    same = found.argmax(dim=1) == wanted.argmax(dim=1)
    return Agreement(len(wanted), cells, int(same.sum()), difference)


def _refuse(difference: float, allowed: float, what: str) -> None:
    if not difference <= allowed:  # nan must fail too
        problem = f"The exported model differs from the model by {difference:.3g} in {what}; {allowed:.3g} is allowed."
        raise HemafastError(problem, "Choose another format (--format); nothing was written.")


def _images(card: ModelCard, dataset: Dataset | None) -> Iterator[tuple[Tensor, bool]]:
    """Batches of several sizes, uint8 (n, 3, image_size, image_size), and whether they hold cells."""
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
