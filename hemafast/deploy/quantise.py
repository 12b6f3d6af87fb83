"""An int8 graph of a model: ranges from training images, and its score on validation images beside the model's own."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hemafast.data.dataset import Dataset
from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader
from hemafast.deploy.engines import MOST_LOST, OPENERS, available, saturates
from hemafast.deploy.formats import INPUT, INT8, Deployed, Packed, laid_out, pack_onnx
from hemafast.engine.checkpoint import ModelCard
from hemafast.errors import HemafastError
from hemafast.metrics import count_confusion, macro_f1
from hemafast.preparation.split import TRAIN, VAL

_CALIBRATION = 256  # training images; twice as many change the ranges by little
_BATCH, _SMALL_BATCH = 64, 8
_SPARED = (2, 6, 12)  # first convolutions that stay in fp32: they see the widest ranges with the fewest channels
_TURNS = 4

Pixels = npt.NDArray[np.uint8]
logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of an int8 graph at its export."""

    weights: str
    """sha256 of the file of the model that it was made of."""
    images: int
    """Validation images."""
    macro_f1: float
    """Of the model in fp32."""
    lost: dict[str, float]
    """Macro-F1 lost by each engine that ran it; negative for a gain."""
    calibration_images: int
    spared: int
    """First convolutions that stayed in fp32."""
    seven_bits: bool
    """Whether weights have 7 bits, so that no processor cuts off their sums (`engines.saturates`)."""


def pack_int8(deployed: Deployed, card: ModelCard, file: Path, dataset: Dataset | None) -> Packed:
    """A graph whose convolutions and matrix products are int8, for ONNX Runtime and OpenVINO.

    Args:
        deployed: the model, with features.
        card: of the model.
        file: of the model.
        dataset: what it was trained on. Ranges are those of training images, the score is that of validation images.

    Raises:
        HemafastError: without the data set or packages, or if more than MOST_LOST is lost however many of the first
            convolutions stay in fp32.
    """
    if dataset is None:
        problem = f"{file} is exported as int8 with images of its data set, which is not there or has changed."
        raise HemafastError(problem, "Run `hemafast prepare` where the run says, or choose another --format.")
    content, opset = pack_onnx(deployed, card)
    ranges = [images for images, _ in _batches(dataset, TRAIN, card, deployed, _CALIBRATION, _SMALL_BATCH)]

    def score_of(logits_of: Callable[[Pixels], npt.NDArray[np.float32]]) -> float:
        return _score(logits_of, _batches(dataset, VAL, card, deployed, None, _BATCH), card)  # read anew: they are many

    own = score_of(lambda pixels: deployed(torch.from_numpy(pixels))[0].numpy())
    turns, seven_bits, lost = _TURNS if card.quarter_turns else 1, saturates(), dict[str, float]()
    for spared in _SPARED:
        graph = quantised(content, ranges, spared, turns, seven_bits=seven_bits)
        lost = {name: own - score_of(_logits_of(name, graph)) for name in OPENERS if available(name)}
        logger.info("int8 with %d convolutions in fp32 loses %s of macro-F1 %.4f", spared, _said(lost), own)
        if min(lost.values()) <= MOST_LOST:
            digest, count = hashlib.sha256(file.read_bytes()).hexdigest(), sum(map(len, ranges))
            images = len(dataset.samples(VAL, card.image_size))
            measured = Measured(digest, images, own, lost, count, spared, seven_bits)
            return _with_metadata(graph, {INT8: json.dumps(asdict(measured))}), opset
    problem = f"{card.backbone} loses {_said(lost)} of macro-F1 {own:.4f} as int8; {MOST_LOST} is allowed."
    raise HemafastError(problem, "Choose another format (--format); nothing was written.")


def quantised(content: bytes, ranges: list[Pixels], spared: int, turns: int = 1, *, seven_bits: bool = False) -> bytes:
    """An ONNX graph in int8, QDQ format.

    Args:
        content: the graph in fp32.
        ranges: batches of its input; the smallest and largest value of each layer come from them.
        spared: how many of the first convolutions stay in fp32.
        turns: how often the network stands in the graph, once behind the other.
        seven_bits: whether weights lose a bit, for processors that `engines.saturates`.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc] # onnxruntime is not annotated
        def __init__(self) -> None:
            self._batches = iter(ranges)

        def get_next(self) -> dict[str, Pixels] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as room:
        plain, ready, done = (Path(room, name) for name in ("plain.onnx", "ready.onnx", "int8.onnx"))
        plain.write_bytes(content)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        kept = _in_fp32(onnx.load(ready).graph.node, spared, turns)
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}  # what VNNI multiplies
        chosen = {"per_channel": True, "reduce_range": seven_bits, "nodes_to_exclude": kept}
        quantize_static(ready, done, Reader(), **chosen, **kinds)
        return done.read_bytes()


def _in_fp32(nodes: Sequence[Any], spared: int, turns: int) -> list[str]:
    """Names of what stays in fp32: normalisation, the first convolutions of each turn, and what makes probabilities."""
    sums = [place for place, node in enumerate(nodes) if node.op_type in ("Conv", "Gemm", "MatMul")]
    first, last = (sums[0], sums[-1]) if sums else (0, len(nodes))
    around = [node.name for place, node in enumerate(nodes) if not first <= place <= last]
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    each = max(1, len(convolutions) // turns)
    return around + [name for place, name in enumerate(convolutions) if place % each < spared]


def _logits_of(engine: str, graph: bytes) -> Callable[[Pixels], npt.NDArray[np.float32]]:
    run = OPENERS[engine](graph)
    return lambda pixels: run(pixels)[0]


def _batches(
    dataset: Dataset, split: str, card: ModelCard, deployed: Deployed, most: int | None, size: int
) -> Iterator[tuple[Pixels, npt.NDArray[np.int64]]]:
    """Images in the layout of the graph and labels: all of a split, or `most` of them spread over it."""
    samples = dataset.samples(split, card.image_size)
    rows = np.unique(np.linspace(0, len(samples) - 1, min(most or len(samples), len(samples))).astype(np.int64))
    shape = GraphShape("cpu", "packed", samples.packed_size, card.image_size, min(size, len(rows)), threads=1)
    for batch in eval_loader(samples.select(rows), shape=shape).epoch():
        yield laid_out(batch.images, deployed.layout).numpy().copy(), batch.labels.numpy().copy()


@torch.inference_mode()
def _score(
    logits_of: Callable[[Pixels], npt.NDArray[np.float32]],
    batches: Iterable[tuple[Pixels, npt.NDArray[np.int64]]],
    card: ModelCard,
) -> float:
    classes = len(card.classes)
    confusion = np.zeros((classes, classes), np.int64)
    for pixels, labels in batches:
        confusion += count_confusion(labels, logits_of(pixels).argmax(axis=1), classes)
    return float(macro_f1(confusion))


def _with_metadata(graph: bytes, said: dict[str, str]) -> bytes:
    import onnx

    model: Any = onnx.load_from_string(graph)
    for name, value in said.items():
        model.metadata_props.add(key=name, value=value)
    content: bytes = model.SerializeToString()
    return content


def _said(lost: dict[str, float]) -> str:
    return ", ".join(f"{value:.4f} ({name})" for name, value in lost.items())
