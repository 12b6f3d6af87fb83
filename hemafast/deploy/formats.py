"""The files that a model can be exported as: how each is made, and how it is run again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hemafast import __version__
from hemafast.deploy.choices import Format, Layout
from hemafast.deploy.extras import require
from hemafast.engine.checkpoint import ModelCard
from hemafast.errors import HemafastError
from hemafast.model import Classifier, sized_options

INPUT = "images"
OUTPUTS = ("logits", "probabilities")
METADATA = "metadata.json"
"""Within an archive of torch.export: what the other formats have as metadata."""

_TRACED_BATCH = 2  # torch.export takes a batch of one for a constant

Answer = Callable[[Tensor], tuple[Tensor, Tensor]]
"""uint8 images (n, 3, height, width) to logits and probabilities (n, classes), by what was exported."""


class Deployed(nn.Module):
    """A classifier as others run it: uint8 images of one layout in, logits and calibrated probabilities out."""

    def __init__(self, model: Classifier, layout: Layout, temperature: float) -> None:
        super().__init__()
        self.model, self.layout, self.temperature = model, layout, temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities, float (n, classes), of uint8 (n, height, width, 3) or (n, 3, height, width)."""
        logits = self.model(images.permute(0, 3, 1, 2) if self.layout == "nhwc" else images)
        return logits, torch.softmax(logits / self.temperature, dim=1)


@dataclass(frozen=True, slots=True)
class Packed:
    """An exported model, as the bytes of its file."""

    content: bytes
    opset: int | None = None
    """Version of ONNX's operators; None for other formats."""


def metadata_of(card: ModelCard, layout: Layout | None) -> dict[str, str]:
    """What a program must know to use the model; what is no plain name or number is JSON. No layout for weights."""
    return {
        "hemafast_version": __version__,
        "backbone": card.backbone,
        "classes": json.dumps(card.classes),
        "image_size": str(card.image_size),
        **({"layout": layout} if layout else {}),
        "view": json.dumps(asdict(card.view)),
        "temperature": repr(card.temperature),
        "calibration": json.dumps(asdict(card.calibration) if card.calibration else None),
        "data_fingerprint": card.data_fingerprint,
    }


def pack_onnx(deployed: Deployed, card: ModelCard) -> Packed:
    """An ONNX graph with its weights. Raises HemafastError if packages are missing, or operators in ONNX."""
    require("export", "onnx", "onnxscript", "onnxruntime")
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    shapes = {INPUT: {0: "batch"}}
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": OUTPUTS}
    try:
        program: Any = torch.onnx.export(
            deployed, (_example(deployed, card),), dynamic_shapes=shapes, verbose=False, **names
        )
        ClearMetadataAndDocStringPass()(program.model)  # it names source files of this machine
        program.model.metadata_props.update(metadata_of(card, deployed.layout))
        return Packed(program.model_proto.SerializeToString(), program.model.opset_imports[""])
    except Exception as error:  # whatever an operator without a translation provokes
        raise _cannot_export(card, error) from error


def run_onnx(content: bytes, layout: Layout) -> Answer:
    """An ONNX graph in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def answer(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, probabilities = session.run(OUTPUTS, {INPUT: _laid_out(images, layout).numpy()})
        return torch.from_numpy(logits), torch.from_numpy(probabilities)

    return answer


def pack_torch_export(deployed: Deployed, card: ModelCard) -> Packed:
    """An archive of torch.export. Raises HemafastError if the network cannot be traced."""
    shapes = {INPUT: {0: torch.export.Dim("batch")}}
    stream = io.BytesIO()
    try:
        program = torch.export.export(deployed, (_example(deployed, card),), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it names source files of this machine
        torch.export.save(program, stream, extra_files={METADATA: json.dumps(metadata_of(card, deployed.layout))})
    except Exception as error:  # whatever code that cannot be traced provokes
        raise _cannot_export(card, error) from error
    return Packed(stream.getvalue())


def run_torch_export(content: bytes, layout: Layout) -> Answer:
    """An archive of torch.export, loaded again."""
    graph = torch.export.load(io.BytesIO(content)).module()

    def answer(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, probabilities = graph(_laid_out(images, layout))
        return logits, probabilities

    return answer


def pack_safetensors(deployed: Deployed, card: ModelCard) -> Packed:
    """The backbone's weights by timm's names, and what timm and its user need beside them as metadata."""
    from safetensors.torch import save

    model = deployed.model
    options = {"num_classes": len(card.classes), **sized_options(card.backbone, card.image_size)}
    metadata = metadata_of(card, None) | {
        "format": "pt",
        "mean": json.dumps(model.mean),
        "std": json.dumps(model.std),
        "timm_options": json.dumps(options),
    }
    tensors = {name: tensor.contiguous() for name, tensor in model.backbone.state_dict().items()}
    return Packed(save(tensors, metadata))


def run_safetensors(content: bytes, _: Layout) -> Answer:
    """The weights in a new model of timm's, which is told nothing but what the file says."""
    import timm
    from safetensors.torch import load

    length = int.from_bytes(content[:8], "little")  # the library reads the metadata of files only
    said = json.loads(content[8 : 8 + length])["__metadata__"]
    backbone = timm.create_model(said["backbone"], **json.loads(said["timm_options"])).eval()
    backbone.load_state_dict(load(content))
    mean, std = (torch.tensor(json.loads(said[name])).view(1, 3, 1, 1) for name in ("mean", "std"))

    def answer(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = backbone((images / 255 - mean) / std)
        return logits, torch.softmax(logits / float(said["temperature"]), dim=1)

    return answer


def _example(deployed: Deployed, card: ModelCard) -> Tensor:
    side = card.image_size
    return _laid_out(torch.zeros(_TRACED_BATCH, 3, side, side, dtype=torch.uint8), deployed.layout)


def _laid_out(images: Tensor, layout: Layout) -> Tensor:
    """uint8 (n, 3, height, width) as a graph of `layout` takes them."""
    return (images.permute(0, 2, 3, 1) if layout == "nhwc" else images).contiguous()


def _cannot_export(card: ModelCard, error: Exception) -> HemafastError:
    said = " ".join(str(error).split())[:200]  # exporters tell all they know
    return HemafastError(
        f"{card.backbone} cannot be exported as a graph ({type(error).__name__}: {said}).",
        "Export its weights with --format safetensors.",
    )


@dataclass(frozen=True, slots=True)
class Kind:
    """One format: the name of its file, how that is made, and how it is run."""

    file: str
    pack: Callable[[Deployed, ModelCard], Packed]
    run: Callable[[bytes, Layout], Answer]


KINDS: dict[Format, Kind] = {
    "onnx": Kind("model.onnx", pack_onnx, run_onnx),
    "torch-export": Kind("model.pt2", pack_torch_export, run_torch_export),
    "safetensors": Kind("model.safetensors", pack_safetensors, run_safetensors),
}
