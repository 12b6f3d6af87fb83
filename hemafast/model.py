"""A timm backbone that takes uint8 pixels: normalisation is part of the graph."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hemafast.config import Pretrained
from hemafast.errors import HemafastError
from hemafast.weights import Origin, load_initial_weights


class Classifier(nn.Module):
    """uint8 images in, logits out.

    `mean` and `std` are per channel, in units of full scale (0 to 1).
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, backbone: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.mean, self.std = mean, std
        deviation = torch.tensor(std)
        # (x / 255 - mean) / std as one multiplication and one addition.
        self.register_buffer("scale", (1 / (255 * deviation)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-torch.tensor(mean) / deviation).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float (n, classes), of uint8 images (n, 3, height, width)."""
        return cast(Tensor, self.backbone(torch.addcmul(self.shift, images.float(), self.scale)))


def build_model(name: str, classes: int, image_size: int) -> Classifier:
    """A classifier on the timm model `name` with random weights, in channels_last.

    Raises HemafastError if timm has no such model, or has it for no such size.
    """
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"Did you mean {', '.join(near)}?" if near else "`timm.list_models()` lists what there is."
        raise HemafastError(f"timm has no model {name!r}.", hint)
    try:
        backbone = timm.create_model(name, num_classes=classes, **sized_options(name, image_size))
        model = Classifier(backbone, tuple(backbone.pretrained_cfg["mean"]), tuple(backbone.pretrained_cfg["std"]))
        _try_out(model, image_size)
    except Exception as error:  # timm's models check little, and each in its own way
        raise HemafastError(
            f"timm cannot build {name!r} for images of {image_size} px: {error}.",
            "Choose another --image-size or --model.",
        ) from error
    return model.to(memory_format=torch.channels_last)


@torch.inference_mode()
def _try_out(model: Classifier, image_size: int) -> None:
    """One image through the network: a size that does not fit shows now, not after the run folder is made."""
    model.eval()(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8))
    model.train()


def build_initial_model(
    name: str, classes: int, image_size: int, *, pretrained: Pretrained, weights: Path | None
) -> tuple[Classifier, Origin]:
    """A classifier with the best first weights that can be had, and where they came from."""
    model = build_model(name, classes, image_size)
    return model, load_initial_weights(model.backbone, name, pretrained=pretrained, file=weights)


def sized_options(name: str, image_size: int) -> dict[str, Any]:
    """Options of `timm.create_model` for this image size.

    Transformers are built for one input size; convolutional networks take any, and know no such option.
    """
    import timm

    config = timm.get_pretrained_cfg(name)
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}
