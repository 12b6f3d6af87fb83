"""A timm backbone that takes uint8 pixels; normalisation is part of the network."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hemafast.errors import HemafastError
from hemafast.pixel_constants import LEAST_SPREAD, LEVELS, SPREADS
from hemafast.words import counted


class Network(nn.Module):
    """uint8 images in, logits out: a classifier, or several as one (`hemafast.ensemble`)."""

    quarter_turns: bool
    """Whether answers are means over the four quarter turns of each image, in evaluation mode."""

    @property
    def networks(self) -> tuple[Classifier, ...]:
        """The classifiers in it: itself, or the members of an ensemble."""
        raise NotImplementedError

    def features(self, images: Tensor) -> Tensor:
        """Pooled features before the last layer, float (n, d), of uint8 images (n, 3, height, width)."""
        return self.answers(images)[1]

    def answers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits as `forward` and `features`, from the same passes through the network."""
        raise NotImplementedError

    def discussed(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `answers`, and how far its classifiers disagree, float (n,) in nats: 0 where there is one."""
        logits, features = self.answers(images)
        return logits, features, logits.new_zeros(len(logits))


class Classifier(Network):
    """uint8 images in, logits out.

    `mean` and `std` are per channel, in units of full scale (0 to 1). With `standardize`, images are brought to LEVELS
    and SPREADS first, but not in training mode: there, the input graph does it before it changes the colours. With
    `quarter_turns`, logits and features are means over the four quarter turns of each image, in evaluation mode.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        standardize: bool = False,
        quarter_turns: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.standardize, self.quarter_turns = backbone, standardize, quarter_turns
        self._frozen: list[nn.Module] = []
        self.normalise_by(mean, std)

    @property
    def classes(self) -> int:
        """How many the last layer tells apart; 0 without one."""
        return int(self.backbone.num_classes)  # type: ignore[arg-type]

    def normalise_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Normalise images by other constants from now on. Raises ValueError unless all of `std` are above 0."""
        if not all(deviation > 0 for deviation in std):
            raise ValueError(f"images cannot be divided by the deviations {std}")
        self.mean, self.std = mean, std
        deviation = torch.tensor(std)
        # (x / 255 - mean) / std as one multiplication and one addition.
        self.register_buffer("scale", (1 / (255 * deviation)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-torch.tensor(mean) / deviation).view(1, 3, 1, 1), persistent=False)

    def freeze(self, *, stages: int = 0, norm: bool = False) -> None:
        """Freeze the first `stages` stages, and with `norm` every batch norm, running statistics included.

        The stem is the first stage. Raises HemafastError if the network has fewer stages, without the classifier.
        """
        for parameter in _parameters_of_stages(self.backbone, stages):
            parameter.requires_grad_(False)
        norms = [module for module in self.modules() if isinstance(module, _BatchNorm)]
        if norm:
            for module in norms:
                module.requires_grad_(False)
        self._frozen = [
            module for module in norms if not any(parameter.requires_grad for parameter in module.parameters())
        ]
        self.train(self.training)

    @property
    def learns_norms(self) -> bool:
        """Whether a batch norm takes its statistics from training batches."""
        return bool(self.learning_norms)

    @property
    def learning_norms(self) -> list[_BatchNorm]:
        """Batch norms that take their statistics from training batches."""
        norms = [module for module in self.modules() if isinstance(module, _BatchNorm)]
        return [module for module in norms if module not in self._frozen]

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode like any module, but frozen batch norms stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    @property
    def networks(self) -> tuple[Classifier, ...]:
        """Itself."""
        return (self,)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float (n, classes), of uint8 images (n, 3, height, width)."""
        normalised = self._normalised(images)
        if not self._turns:
            return cast(Tensor, self.backbone(normalised))
        return torch.stack([self.backbone(turned) for turned in quarter_turns(normalised)]).mean(0)

    def levels(self, images: Tensor) -> Tensor:
        """`features`, then mean and spread of the maps of every level of the backbone; float (n, d), of one view.

        Where no layer was trained on such images, texture in early levels tells more than the last features do.
        """
        last, maps = self.backbone.forward_intermediates(self._normalised(images))  # type: ignore[operator]
        parts = [self.backbone.forward_head(last, pre_logits=True)]  # type: ignore[operator]
        return torch.cat([*parts, *(of(one, (2, 3)) for one in maps for of in (torch.mean, torch.std))], dim=1)

    def answers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits as `forward` and `features`, from the same passes through the backbone; only its head is run twice."""
        normalised = self._normalised(images)
        if not self._turns:
            return self._answers(normalised)
        logits, features = zip(*map(self._answers, quarter_turns(normalised)), strict=True)
        return torch.stack(logits).mean(0), torch.stack(features).mean(0)

    @property
    def _turns(self) -> bool:
        return self.quarter_turns and not self.training

    def _answers(self, normalised: Tensor) -> tuple[Tensor, Tensor]:
        backbone: Any = self.backbone
        maps = backbone.forward_features(normalised)
        return backbone.forward_head(maps), backbone.forward_head(maps, pre_logits=True)

    def _normalised(self, images: Tensor) -> Tensor:
        pixels = images.float()
        if self.standardize and not self.training:
            pixels = standardised(pixels)
        return torch.addcmul(self.shift, pixels, self.scale)


def last_layer(network: Classifier) -> nn.Linear:
    """The layer that classifies features. Raises HemafastError if it is not linear with a bias."""
    backbone: Any = network.backbone
    layer = backbone.get_classifier()
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        raise HemafastError(
            f"The last layer of this network is {type(layer).__name__}, not a linear one with a bias.",
            "Choose another --model.",
        )
    return layer


def quarter_turns(images: Tensor) -> Iterator[Tensor]:
    """Square images (n, channels, size, size) and their three quarter turns, in channels_last."""
    for turns in range(4):
        yield torch.rot90(images, turns, (2, 3)).contiguous(memory_format=torch.channels_last)


def standardised(pixels: Tensor) -> Tensor:
    """Images whose channels have the means LEVELS and the spreads SPREADS, cut off at 0 and 255.

    Args:
        pixels: float (n, 3, height, width), 0 to 255.
    """
    centred = pixels - pixels.mean((2, 3), keepdim=True)
    spread = centred.square().mean((2, 3), keepdim=True).sqrt() + LEAST_SPREAD
    levels, spreads = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (LEVELS, SPREADS))
    return (levels + spreads * centred / spread).clamp(0, 255)


def build_model(
    name: str,
    classes: int,
    image_size: int,
    *,
    dropout: float | None = None,
    drop_path: float | None = None,
    standardize: bool = False,
) -> Classifier:
    """A classifier on the timm model `name` with random weights, in channels_last. A rate of None is the model's own.

    With 0 `classes` it has no last layer, and answers with features.

    Raises HemafastError if timm has no such model, or cannot build it for this size or with these rates.
    """
    import timm

    _refuse_unknown(name)
    try:
        rates = {"drop_rate": dropout, "drop_path_rate": drop_path}
        options = {key: rate for key, rate in rates.items() if rate is not None}
        backbone = timm.create_model(name, num_classes=classes, **sized_options(name, image_size), **options)
        mean, std = (tuple(backbone.pretrained_cfg[constant]) for constant in ("mean", "std"))
        model = Classifier(backbone, mean, std, standardize=standardize)
        _try_out(model, image_size)
    except Exception as error:  # every model of timm checks its options differently
        raise HemafastError(
            f"timm cannot build {name!r} for images of {image_size} px: {error}.",
            "Choose another --image-size, --dropout, --drop-path or --model.",
        ) from error
    return model.to(memory_format=torch.channels_last)


def tensor_shapes(name: str, classes: int, image_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in the state dict of `build_model(name, classes, image_size)`, which are not allocated.

    Raises HemafastError if timm has no such model; timm raises anything if it cannot build it.
    """
    import timm

    _refuse_unknown(name)
    with torch.device("meta"):
        backbone = timm.create_model(name, num_classes=classes, **sized_options(name, image_size))
    return {f"backbone.{key}": tuple(tensor.shape) for key, tensor in backbone.state_dict().items()}


def _refuse_unknown(name: str) -> None:
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"Did you mean {', '.join(near)}?" if near else "`timm.list_models()` lists what there is."
        raise HemafastError(f"timm has no model {name!r}.", hint)


@torch.inference_mode()
def _try_out(model: Classifier, image_size: int) -> None:
    """Run one image, so that a size that does not fit fails now and not after the run folder is made."""
    model.eval()(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8))
    model.train()


def _parameters_of_stages(backbone: Any, stages: int) -> list[nn.Parameter]:
    """The parameters of the first `stages` stages, as timm groups them."""
    from timm.models import group_parameters

    if not stages:
        return []
    stage_of = group_parameters(backbone, backbone.group_matcher(coarse=True), reverse=True)
    most = max(stage_of.values())  # the last is the classifier
    if stages > most:
        raise HemafastError(
            f"freeze_stages = {stages}: this model has {counted(most, 'stage')} to freeze.", "Freeze fewer stages."
        )
    return [parameter for name, parameter in backbone.named_parameters() if stage_of[name] < stages]


def sized_options(name: str, image_size: int) -> dict[str, Any]:
    """Options of `timm.create_model` for this image size.

    Transformers are built for one input size. Convolutional networks take any size and have no such option.
    """
    import timm

    config = timm.get_pretrained_cfg(name)
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}
