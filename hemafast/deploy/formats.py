"""The files that a model can be exported as: how each is made, described, and loaded again."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hemafast import __version__
from hemafast.deploy.choices import Format, Layout
from hemafast.deploy.programs import refuse_foreign
from hemafast.engine.checkpoint import ModelCard, network_for
from hemafast.ensemble import single
from hemafast.errors import HemafastError, require
from hemafast.model import Classifier, Network, sized_options
from hemafast.reading import parse_json
from hemafast.words import counted

INPUT = "images"
OUTPUTS = ("logits", "probabilities")
FEATURES = "features"
"""A further output of int8 graphs: what likeness is told by."""
INT8 = "int8"
"""The entry of the metadata of an int8 graph that says what was measured of it, as JSON."""
METADATA = "metadata.json"
"""The file within a torch.export archive that holds the metadata."""

_OF_NETWORK = ("mean", "std", "standardize", "quarter_turns")  # what a classifier adds to its backbone
_TRACED_BATCH = 2  # torch.export would treat a batch size of 1 as constant

Answer = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From uint8 images to logits and probabilities (n, classes)."""
Packed = tuple[bytes, int | None]
"""The content of the file of an exported model, and the opset version of an ONNX graph."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An exported model, loaded on the CPU."""

    run: Answer
    """Takes images in the layout of the metadata."""
    metadata: dict[str, str]
    network: Classifier | None = None
    """None for graphs."""

    def answer(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities (n, classes) of uint8 images (n, 3, height, width)."""
        return self.run(laid_out(images, self.metadata.get("layout")))


class Deployed(nn.Module):
    """A classifier to export: uint8 images of one layout in, logits and calibrated probabilities out."""

    def __init__(self, model: Network, layout: Layout, temperature: float, *, features: bool = False) -> None:
        super().__init__()
        self.model, self.layout, self.temperature, self.features = model, layout, temperature, features

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits and probabilities, float (n, classes), of uint8 (n, height, width, 3) or (n, 3, height, width).

        With `features`, float (n, d) too.
        """
        pixels = images.permute(0, 3, 1, 2) if self.layout == "nhwc" else images
        logits, *more = self.model.answers(pixels) if self.features else (self.model(pixels),)
        return (logits, torch.softmax(logits / self.temperature, dim=1), *more)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How an exported model compares with the original."""

    images: int
    """Images that both classified: random pixels and cells."""
    cells: int
    """How many of these are validation images of the run."""
    same_class: int
    """How many have the same class in both."""
    largest_difference: float
    """Largest difference of a logit."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The files that an export wrote."""

    path: Path
    card: Path
    format: Format
    layout: Layout | None
    """None for weights."""
    bytes: int
    opset: int | None
    """ONNX opset version; None for other formats."""
    agreement: Agreement

    def to_plain(self) -> dict[str, Any]:
        """All fields by name, ready for JSON."""
        plain = asdict(self)
        agreement = plain.pop("agreement")
        return {**plain, "path": str(self.path), "card": str(self.card), **agreement}

    def told(self) -> str:
        """The result in lines of text."""
        found = self.agreement
        layout = f", {self.layout}" if self.layout else ""
        return (
            f"{self.path}  {self.format}{layout}, {self.bytes / 1e6:.1f} MB\n{self.card}\n"
            f"compared with the model on {counted(found.images, 'image')} "
            f"({counted(found.cells, 'cell')}, the rest noise): "
            f"logits differ by {found.largest_difference:.2g} at most, "
            f"{found.same_class} of {found.images} have the same class"
        )


def metadata_of(card: ModelCard, layout: Layout | None) -> dict[str, str]:
    """The whole card, version, temperature and layout (None for weights): text as it is, all else as JSON."""
    said = {"hemafast_version": __version__, **asdict(card), "temperature": card.temperature}
    plain = {name: value if isinstance(value, str) else json.dumps(value) for name, value in said.items()}
    return plain | ({"layout": layout} if layout else {})


def card_of(metadata: dict[str, str]) -> ModelCard:
    """The card in the metadata of an exported file. Raises ValueError if it is incomplete or invalid."""
    from pydantic import TypeAdapter

    said = {
        field.name: metadata[field.name] if field.type == "str" else parse_json(metadata[field.name])
        for field in fields(ModelCard)
        if field.name in metadata
    }
    return TypeAdapter(ModelCard).validate_json(json.dumps(said))


def pack_onnx(deployed: Deployed, card: ModelCard) -> Packed:
    """An ONNX graph with its weights. Raises HemafastError for missing packages and operators without translation."""
    require_onnx("onnx", "onnxscript", "onnxruntime")
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    names = [*OUTPUTS, FEATURES] if deployed.features else OUTPUTS
    options: dict[str, Any] = {"input_names": [INPUT], "output_names": names, "verbose": False}
    options["dynamic_shapes"] = {INPUT: {0: "batch"}}
    try:
        program: Any = torch.onnx.export(deployed, (_example(deployed, card),), **options)
        ClearMetadataAndDocStringPass()(program.model)  # they name source files of this machine
        program.model.metadata_props.update(metadata_of(card, deployed.layout))
        return program.model_proto.SerializeToString(), program.model.opset_imports[""]
    except Exception as error:  # operators without translation fail in many ways
        raise _cannot_export(card, error) from error


def require_onnx(*packages: str) -> None:
    """Import packages of ONNX. ONNX Runtime would send usage data to its maker, and leave a file in TMPDIR."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reads this when it is imported
    require("export", *packages)


def load_onnx(content: bytes) -> Loaded:
    """An ONNX graph in ONNX Runtime on the CPU. Raises HemafastError if onnxruntime is not installed."""
    require_onnx("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, probabilities = session.run(OUTPUTS, {INPUT: images.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(probabilities)

    return Loaded(run, session.get_modelmeta().custom_metadata_map)


def pack_torch_export(deployed: Deployed, card: ModelCard) -> Packed:
    """A torch.export archive. Raises HemafastError if the network cannot be traced."""
    stream, batch = io.BytesIO(), torch.export.Dim("batch")
    try:
        program = torch.export.export(deployed, (_example(deployed, card),), dynamic_shapes={INPUT: {0: batch}})
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # they name source files of this machine
        torch.export.save(program, stream, extra_files={METADATA: json.dumps(metadata_of(card, deployed.layout))})
    except Exception as error:  # code that cannot be traced fails in many ways
        raise _cannot_export(card, error) from error
    return stream.getvalue(), None


def load_torch_export(content: bytes) -> Loaded:
    """A torch.export archive. Raises ValueError, before torch sees it, if hemafast cannot have written it."""
    refuse_foreign(content)
    extra = {METADATA: ""}
    graph = torch.export.load(io.BytesIO(content), extra_files=extra).module()
    return Loaded(graph, parse_json(extra[METADATA]))


def pack_safetensors(deployed: Deployed, card: ModelCard) -> Packed:
    """The backbone's weights under timm's names, with the options of timm and the normalisation as metadata."""
    from safetensors.torch import save

    model = single(deployed.model, "exported as safetensors, which hold one network of timm: choose onnx")
    options = {"num_classes": len(card.classes), **sized_options(card.backbone, card.image_size)}
    plain = {"timm_options": options} | {name: getattr(model, name) for name in _OF_NETWORK}
    metadata = metadata_of(card, None) | {"format": "pt"} | {name: json.dumps(value) for name, value in plain.items()}
    tensors = {name: tensor.contiguous() for name, tensor in model.backbone.state_dict().items()}
    return save(tensors, metadata), None


def load_safetensors(content: bytes) -> Loaded:
    """The weights in a new network, made from nothing but the file."""
    from safetensors.torch import load

    tensors = load(content)
    length = int.from_bytes(content[:8], "little")  # safetensors itself reads only the metadata of files
    said: dict[str, str] = parse_json(content[8 : 8 + length].decode()).get("__metadata__", {})
    shapes = {f"backbone.{name}": tuple(tensor.shape) for name, tensor in tensors.items()}
    network = network_for(card_of(said), shapes).eval()
    network.backbone.load_state_dict(tensors)
    network.normalise_by(*(tuple(parse_json(said[name])) for name in ("mean", "std")))
    network.standardize, network.quarter_turns = (
        said.get(name) == "true"
        for name in ("standardize", "quarter_turns")  # older files have none
    )

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = network(images)
        return logits, torch.softmax(logits / float(said["temperature"]), dim=1)

    return Loaded(run, said, network)


def _example(deployed: Deployed, card: ModelCard) -> Tensor:
    side = card.image_size
    return laid_out(torch.zeros(_TRACED_BATCH, 3, side, side, dtype=torch.uint8), deployed.layout)


def laid_out(images: Tensor, layout: str | None) -> Tensor:
    """uint8 (n, 3, height, width) in the layout that a graph takes."""
    return (images.permute(0, 2, 3, 1) if layout == "nhwc" else images).contiguous()


def _cannot_export(card: ModelCard, error: Exception) -> HemafastError:
    problem = f"{card.backbone} cannot be exported as a graph ({cause_of(error)})."
    return HemafastError(problem, "Choose the format (--format) safetensors, which holds its weights.")


def cause_of(error: Exception) -> str:
    """Type and beginning of an error of torch or onnx, which may be pages long, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@dataclass(frozen=True, slots=True)
class Kind:
    """One format: the name of its file, how it is made, and how it is loaded."""

    file: str
    pack: Callable[[Deployed, ModelCard], Packed]
    load: Callable[[bytes], Loaded]


KINDS: dict[Format, Kind] = {
    "safetensors": Kind("model.safetensors", pack_safetensors, load_safetensors),
    "onnx": Kind("model.onnx", pack_onnx, load_onnx),
    "onnx-int8": Kind("model.int8.onnx", pack_onnx, load_onnx),  # quantised by `hemafast.deploy.quantise`
    "torch-export": Kind("model.pt2", pack_torch_export, load_torch_export),
}
