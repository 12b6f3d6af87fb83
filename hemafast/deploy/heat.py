"""Heat maps that show where in an image a network looks, from the last feature map of any timm model."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hemafast.deploy.choices import Method
from hemafast.ensemble import Ensemble, resized, single
from hemafast.errors import HemafastError, require
from hemafast.model import Classifier, Network
from hemafast.pictures import HEAT_COLOURS
from hemafast.preparation.images.image_checks import Pixels

Heat = npt.NDArray[np.float32]
"""(n, side, side), scaled to 0 to 1 within each image: it shows where, not how much."""

_CLASSES = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
}
"""Names in pytorch_grad_cam."""
_BATCH = 16


def overlays(
    model: Network, views: Pixels, classes: Sequence[int] | None = None, *, method: Method = "gradcam"
) -> Pixels:
    """`views` (n, side, side, 3) with their heat maps drawn over them, in the same shape; otherwise as `heat_maps`."""
    heat = heat_maps(model, views, classes, method=method)
    import cv2
    from pytorch_grad_cam.utils.image import show_cam_on_image

    colours = getattr(cv2, f"COLORMAP_{HEAT_COLOURS.upper()}")
    drawn = [
        show_cam_on_image(view.astype(np.float32) / 255, map_of_view, use_rgb=True, colormap=colours)
        for view, map_of_view in zip(views, heat, strict=True)
    ]
    return np.stack(drawn) if drawn else np.zeros_like(views)


def heat_maps(
    model: Network, views: Pixels, classes: Sequence[int] | None = None, *, method: Method = "gradcam"
) -> Heat:
    """Where in each of `views`, uint8 (n, side, side, 3), the network finds a class: `classes` (n,), or the best.

    Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) or a variant, on the last feature map that the logits depend on.
    An image without evidence for its class has no heat. An ensemble has the weighted mean of its members' maps for the
    same class. The model stays on its device and is not changed. Raises HemafastError if grad-cam is not installed or
    the model has no feature map.
    """
    require("explain", "pytorch_grad_cam")
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    if not len(views):
        return np.zeros(views.shape[:3], np.float32)
    if isinstance(model, Ensemble):
        return _mean_map(model, views, classes, method)
    targets = None if classes is None else [ClassifierOutputTarget(int(label)) for label in classes]  # None: the best
    network = copy.deepcopy(single(model, "explained")).requires_grad_(False).eval()  # the caller's stays as it is
    network.quarter_turns = False  # the map is drawn over the image, which is not turned
    with torch.enable_grad():
        layer = _feature_layer(network, _as_input(network, views[:1]))
        cam_of = getattr(pytorch_grad_cam, _CLASSES[method])
        cam = cam_of(network, [layer], reshape_transform=lambda output: _as_map(output, network.backbone))
        parts = [slice(start, start + _BATCH) for start in range(0, len(views), _BATCH)]
        maps = [cam(_as_input(network, views[part]), targets[part] if targets else None) for part in parts]
        return np.concatenate(maps)


def _mean_map(model: Ensemble, views: Pixels, classes: Sequence[int] | None, method: Method) -> Heat:
    if classes is None:
        classes = _best_classes(model, views)
    maps = np.zeros(views.shape[:3], np.float32)
    for place, weight in enumerate(model.weights.tolist()):
        own = model.orders[place]
        seen = resized(_as_input(model, views).detach(), model.sizes[place], model.image_size)
        pixels = seen.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        found = heat_maps(model.member(place), pixels, [own[label] for label in classes], method=method)
        whole = resized(torch.from_numpy(found)[:, None], model.image_size, model.sizes[place])[:, 0]
        maps += weight * whole.numpy()
    most = maps.max((1, 2), keepdims=True)
    return np.asarray(maps / np.where(most > 0, most, 1), dtype=np.float32)


@torch.inference_mode()
def _best_classes(model: Network, views: Pixels) -> list[int]:
    parts = [model(_as_input(model, views[start : start + _BATCH])) for start in range(0, len(views), _BATCH)]
    found: list[int] = torch.cat(parts).argmax(1).tolist()
    return found


def _as_input(model: Network, views: Pixels) -> Tensor:
    """Float (n, 3, side, side) on the model's device; requires a gradient, because the frozen weights do not."""
    device = next(model.parameters()).device
    return torch.from_numpy(np.ascontiguousarray(views)).to(device).permute(0, 3, 1, 2).float().requires_grad_()


def _feature_layer(model: Classifier, images: Tensor) -> nn.Module:
    """The last layer whose output is a feature map larger than 1 x 1 that the logits of `images` depend on.

    In a transformer that classifies its class token, the other tokens of the last block have no effect; then it is a
    layer before the last attention. `images` is float (1, 3, side, side).
    """
    outputs, logits = _outputs(model, images)
    for layer, output in reversed(outputs.items()):
        (gradient,) = torch.autograd.grad(logits.amax(), output, retain_graph=True, allow_unused=True)
        if gradient is not None and cast(Tensor, _as_map(gradient, model.backbone)).any():
            return layer
    problem = f"The network has no feature map larger than 1 x 1 for images of {images.shape[-1]} px to draw heat over."
    raise HemafastError(problem, "Explain a run with another model or image size.")


def _outputs(model: Classifier, images: Tensor) -> tuple[dict[nn.Module, Tensor], Tensor]:
    """The feature maps of `images` by layer, in order of execution, and the logits."""
    found: dict[nn.Module, Any] = {}

    def keep(layer: nn.Module, _: Any, output: Any) -> None:
        found[layer] = None if layer in found else output  # grad-cam would mix the outputs of a layer that runs twice

    hooks = [layer.register_forward_hook(keep) for layer in model.modules()]
    logits = model(images)
    for hook in hooks:
        hook.remove()
    maps = {layer: output for layer, output in found.items() if _as_map(output, model.backbone) is not None}
    return maps, logits


def _as_map(output: Any, backbone: Any) -> Tensor | None:
    """A layer's output as (n, channels, side, side); None if it is not a feature map larger than 1 x 1.

    timm's channel counts tell feature maps from the inner results of attention and heads.
    """
    channels = {backbone.num_features, *(stage["num_chs"] for stage in getattr(backbone, "feature_info", []))}
    found = None
    if isinstance(output, Tensor) and output.ndim == 4:
        found = output if output.shape[1] in channels else output.permute(0, 3, 1, 2)
    elif isinstance(output, Tensor) and output.ndim == 3:
        found = _tokens_as_map(output, getattr(backbone, "num_prefix_tokens", 0))
    if found is None or found.shape[1] not in channels:
        return None
    return found if found.shape[2] == found.shape[3] > 1 else None


def _tokens_as_map(tokens: Tensor, prefix: int) -> Tensor | None:
    """(n, tokens, channels) as a square map, without prefix tokens (class token, registers) if there are any."""
    for dropped in (prefix, 0):
        places = tokens.shape[1] - dropped
        side = math.isqrt(max(places, 0))
        if side**2 == places:
            return tokens[:, dropped:].transpose(1, 2).reshape(len(tokens), -1, side, side)
    return None
