"""Fit the tensors of a weights file to a network, whatever lies around them and whoever named them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from typing import TYPE_CHECKING, Any

from hemafast.errors import HemafastError, name_some
from hemafast.nearest_model import body_of, is_counter, nearest_model
from hemafast.weights_file import StoredWeights, shape_of
from hemafast.words import counted

if TYPE_CHECKING:
    from torch import Tensor, nn

    Tensors = dict[str, Tensor]

LEAST_FILLED = 0.9
"""Share of a network's elements, without its head, below which a file is refused."""

_MOST_PLACES = 40
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_modules", "_parameters", "_buffers"}
"""Parts that torch adds to names, at any place in them."""
_PREFERRED = {"ema", "teacher", "averaged", "swa"}
_NOT_PREFERRED = {"student", "momentum", "target"}
_CONVERSIONS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
_CHUNKED = re.compile(r"\bblocks\.\d+\.(\d+)\.")
_REGISTERS = ("reg_token", "register_tokens")
"""What timm and DINOv2 call the tokens of a transformer that stand for no patch and no class."""
_KINDS = {"weight", "bias", "mean", "var"}
_RECOMPUTED = {"attn_mask", "relative_position_index", "relative_coords_table"}
"""Buffers that networks make themselves."""


@dataclass(frozen=True, slots=True)
class _Network:
    """What a network takes."""

    wanted: Tensors
    """Its tensors by name, without the counters of batch norm."""
    body: Tensors
    """These without the head."""
    stems: tuple[str, ...]
    """Names of the weights of its first convolutions."""
    convert: Callable[[Tensors], Tensors] | None
    """timm's conversion of files from elsewhere and for other image sizes."""

    def share_of(self, names: Iterable[str]) -> float:
        """The elements of these tensors as a share of the body's."""
        return _elements(self.body[name] for name in names if name in self.body) / _elements(self.body.values())


@dataclass(frozen=True, slots=True)
class _Fit:
    """One way to fill a network from a file."""

    place: str
    """Where in the file the network's names begin, as `teacher.backbone`; empty for all of it."""
    found: Tensors
    """What lies there, under the network's names as far as they are known."""
    filled: Tensors
    """Those of `found` that the network takes, by its names."""
    share: float
    """How much of the body they fill."""
    known: int
    """How many of the network's names are found, of whatever shape."""
    said: tuple[str, ...]
    """What was done to names and tensors."""

    @property
    def rank(self) -> tuple[float, int, float, int, int]:
        words = set(re.split(r"[._]", self.place))
        preference = bool(words & _PREFERRED) - bool(words & _NOT_PREFERRED)
        return round(self.share, 2), preference, self.share, self.known, len(_parts(self.place))


def fit_weights(backbone: nn.Module, name: str, stored: StoredWeights, source: str, *, whole: bool = False) -> str:
    """Fill `backbone` with the tensors of a weights file, wherever they lie in it.

    Prefixes of names are found by what they leave. Names of other libraries are converted by timm where it can;
    otherwise tensors are taken by order, if all shapes agree. A first convolution for other channels and a position
    embedding for another image size are adapted. A head for other classes is left out.

    Args:
        backbone: A timm model with a head of any size. It changes only if the file fits.
        name: Its name.
        stored: The content of the file.
        source: The file, as errors name it.
        whole: Whether all but the head must be filled, for a network that is not trained.

    Returns:
        What was stripped, adapted and left out, and how much of the network was filled, on one line.

    Raises:
        HemafastError: less than LEAST_FILLED of the network would be filled, or not the `whole`; the file is of a
            network with other layers in its blocks, or with other registers; or a tensor does not hold finite numbers.
    """
    network = _network_of(backbone)
    fits = _fits(network, stored.tensors)
    best = max(fits, key=lambda fit: fit.rank)
    if best.share >= LEAST_FILLED:
        _refuse_other_registers(network, best, name, source)
    if problem := _problem_of(network, best, name, whole=whole):
        raise _does_not_fit(f"{source} {problem}", name, stored)
    ready = {key: _checked(key, tensor, network.wanted[key], source) for key, tensor in best.filled.items()}
    counters = {key: tensor for key, tensor in best.found.items() if is_counter(key) and tensor.ndim == 0}
    backbone.load_state_dict(ready | counters, strict=False)
    return "; ".join([*_told(network, best, fits, stored), *_ignored(stored)])


def _network_of(backbone: Any) -> _Network:
    stems = backbone.pretrained_cfg.get("first_conv") or ()
    return _Network(
        {name: tensor for name, tensor in backbone.state_dict().items() if not is_counter(name)},
        body_of(backbone),
        tuple(f"{name}.weight" for name in ([stems] if isinstance(stems, str) else stems)),
        _conversion(backbone),
    )


def _conversion(backbone: nn.Module) -> Callable[[Tensors], Tensors] | None:
    module = sys.modules[type(backbone).__module__]
    convert: Any = next((found for name in _CONVERSIONS if (found := getattr(module, name, None))), None)
    if convert is None:
        return None
    takes = signature(convert).parameters
    model = (backbone,) if "model" in takes else ()
    options = {"adapt_layer_scale": True} if "adapt_layer_scale" in takes else {}  # the names of DeiT III
    return lambda found: dict(convert(dict(found), *model, **options))


# Where the tensors lie


def _fits(network: _Network, tensors: Tensors) -> list[_Fit]:
    """All ways to fill the network; the more adventurous ones only if the plain ones do not fill it."""
    places = {place: _below(place, tensors) for place in _places(tensors, _elements(network.body.values()) / 2)}
    fits = [_fit(network, place, found) for place, found in places.items()]
    if network.convert and not _filled(fits, 1):
        fits += [_fit(network, place, found, convert=True) for place, found in places.items()]
    if not _filled(fits, LEAST_FILLED):
        whole = {place: _without_chunks(found) for place, found in places.items()}
        said = "its blocks lie in chunks, which were left out of their names"
        fits += [_fit(network, place, found, said, convert=True) for place, found in whole.items() if found]
    if not _filled(fits, LEAST_FILLED):
        ordered = {place: _by_order(network, found) for place, found in places.items()}
        said = "its names are not timm's, so tensors were taken by order, all shapes agree"
        fits += [_fit(network, place, found, said, convert=True) for place, found in ordered.items() if found]
    return fits


def _filled(fits: list[_Fit], share: float) -> bool:
    return any(fit.share >= share for fit in fits)


def _places(tensors: Tensors, least: float) -> list[str]:
    """The root, and each beginning of names under which at least so many elements lie."""
    elements: dict[str, int] = {"": 0}
    for path, tensor in tensors.items():
        for place in _beginnings(path)[:-1]:
            elements[place] = elements.get(place, 0) + tensor.numel()
    return ["", *(place for place, count in elements.items() if place and count >= least)][:_MOST_PLACES]


def _below(place: str, tensors: Tensors) -> Tensors:
    """The tensors at a place by their names from there on, without the parts that torch adds."""
    begin = f"{place}." if place else ""
    below = ((path.removeprefix(begin), tensor) for path, tensor in tensors.items() if path.startswith(begin))
    return {".".join(part for part in _parts(name) if part not in _WRAPPERS): tensor for name, tensor in below}


def _fit(network: _Network, place: str, found: Tensors, said: str = "", *, convert: bool = False) -> _Fit:
    converted = _converted(network, found) if convert else dict(found)
    adapted = _adapt_stems(network, converted)
    filled = {name: converted[name] for name in network.wanted if name in converted}
    filled = {name: tensor for name, tensor in filled.items() if tensor.shape == network.wanted[name].shape}
    resized = [
        f"{name} resampled from {shape_of(found[name])} to {shape_of(tensor)} for this image size"
        for name, tensor in filled.items()
        if name in found and _is_resampled(found[name], tensor) and name not in network.stems
    ]
    told = (said, *resized[:2], *adapted)
    known = len(converted.keys() & network.wanted.keys())
    return _Fit(place, converted, filled, network.share_of(filled), known, tuple(filter(None, told)))


def _is_resampled(before: Tensor, after: Tensor) -> bool:
    """Whether values were lost or added. A single position is not: it is the class token's, which timm adds to that."""
    return before.numel() != after.numel() and not (before.ndim == 3 and before.shape[1] - after.shape[1] == 1)


def _converted(network: _Network, found: Tensors) -> Tensors:
    try:
        return network.convert(found) if network.convert else dict(found)
    except Exception:  # it is written for certain files, and fails on others in many ways
        return dict(found)


def _adapt_stems(network: _Network, found: Tensors) -> list[str]:
    """Adapt first convolutions for other channels, in place; what was adapted."""
    from timm.models import adapt_input_conv

    told = []
    for name in network.stems:
        ours, theirs = network.wanted.get(name), found.get(name)
        if ours is None or theirs is None or ours.shape == theirs.shape:
            continue
        if ours.ndim == theirs.ndim == 4 and _but_channels(ours) == _but_channels(theirs):
            found[name] = adapt_input_conv(ours.shape[1], theirs, base_chans=theirs.shape[1])
            told.append(f"{name} adapted from {theirs.shape[1]} to {ours.shape[1]} input channels")
    return told


def _but_channels(convolution: Tensor) -> tuple[int, ...]:
    return convolution.shape[0], *convolution.shape[2:]


def _without_chunks(found: Tensors) -> Tensors:
    """The tensors by names that count the blocks of a transformer without their chunks; empty if there are none.

    DINOv2 divides its blocks into chunks for training, and counts on through them: blocks.1.7 is the eighth.
    """
    renamed = {_CHUNKED.sub(r"blocks.\1.", name): tensor for name, tensor in found.items()}
    return renamed if len(renamed) == len(found) and renamed.keys() != found.keys() else {}


def _by_order(network: _Network, found: Tensors) -> Tensors:
    """The tensors under the network's names, if both list the same layers in the same order; empty otherwise.

    Tokens and position embeddings are compared apart: each library lists them at another place.
    """
    theirs = {name: tensor for name, tensor in found.items() if not is_counter(name)}
    layers = _pairs(_tokens(network.wanted, are=False), _tokens(theirs, are=False), _layer)
    tokens = _pairs(_tokens(network.wanted, are=True), _tokens(theirs, are=True), _token)
    names = layers | tokens
    if not network.body.keys() <= names.keys():
        return {}
    renamed = {ours: _reshaped(theirs[name], network.wanted[ours]) for ours, name in names.items()}
    return renamed | {name: tensor for name, tensor in theirs.items() if name not in names.values()}


def _pairs(ours: Tensors, theirs: Tensors, kind: Callable[[str, Tensor], object]) -> dict[str, str]:
    """Their names by ours, up to the first pair of another kind."""
    pairs = {}
    for (name, tensor), (their_name, their_tensor) in zip(ours.items(), theirs.items(), strict=False):
        if kind(name, tensor) != kind(their_name, their_tensor):
            break
        pairs[name] = their_name
    return pairs


def _tokens(tensors: Tensors, *, are: bool) -> Tensors:
    return {name: one for name, one in tensors.items() if (one.ndim == 3 and one.shape[0] == 1) is are}


def _token(_: str, tensor: Tensor) -> object:
    return tensor.shape[-1]


def _layer(name: str, tensor: Tensor) -> object:
    """What must agree for two tensors to be the same of one layer: a linear layer may be a convolution of 1x1."""
    kind = re.split(r"[._]", name)[-1]
    return kind if kind in _KINDS else "parameter", tuple(size for size in tensor.shape if size != 1)


def _reshaped(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.reshape(like.shape) if tensor.numel() == like.numel() else tensor


def _checked(name: str, tensor: Tensor, wanted: Tensor, source: str) -> Tensor:
    """The tensor in the network's type. Raises HemafastError if it does not hold finite numbers of its kind."""
    if tensor.is_complex() or tensor.is_floating_point() != wanted.is_floating_point():
        raise HemafastError(
            f"{name} in {source} is {_type(tensor)}, but the network takes {_type(wanted)}.",
            "Give a file of float weights, not of quantised or packed ones.",
        )
    converted = tensor.to(wanted.dtype)
    bad = int((~converted.isfinite()).sum())
    if bad:
        raise HemafastError(
            f"{name} in {source} holds NaN or infinity ({bad} of {converted.numel()} values).",
            "Give an earlier checkpoint of that training.",
        )
    return converted


# What is said


def _told(network: _Network, best: _Fit, fits: list[_Fit], stored: StoredWeights) -> list[str]:
    rivals = [fit.place for fit in fits if fit.place and round(fit.share, 2) == round(best.share, 2)]
    others = [place for place in dict.fromkeys(rivals) if not _related(place, best.place)]
    missing = [name for name in network.body if name not in best.filled]
    left = _left_out(network, best, stored.tensors)
    stripped = _stripped(best.place, stored.tensors)
    told = [
        f"stripped {' and '.join(stripped)} from its names" if stripped else "",
        f"took {best.place}, not {name_some(others, 2)}" if others else "",
        *best.said,
        f"filled {_percent(best.share)} of the network",
        f"not filled: {_missing(network, best, missing)}" if missing else "",
        f"left out {name_some(left, 4)}" if left else "",
    ]
    return [one for one in told if one]


def _stripped(place: str, tensors: Tensors) -> list[str]:
    """What was removed from the names of the tensors at a place: its own name, and the parts that torch adds."""
    begin = f"{place}." if place else ""
    parts = {part for path in tensors if path.startswith(begin) for part in _parts(path.removeprefix(begin))}
    return [one for one in (begin, *(f"{part}." for part in sorted(parts & _WRAPPERS))) if one]


def _related(first: str, second: str) -> bool:
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def _left_out(network: _Network, best: _Fit, tensors: Tensors) -> list[str]:
    """What of the file is not in the network, as the shortest names that say it."""
    inside = [name for name in best.found if name not in best.filled and not is_counter(name)]
    heads = [name for name in inside if name in network.wanted and name not in network.body]
    classes = {f"the head of {counted(best.found[name].shape[0], 'class')}" for name in heads if best.found[name].ndim}
    begin = f"{best.place}." if best.place else ""
    outside = [path for path in tensors if not path.startswith(begin)]
    rest = [name for name in inside if name not in network.wanted]
    return [*classes, *_branches(rest, network.wanted), *_branches(outside, [best.place])]


def _branches(paths: Iterable[str], known: Iterable[str]) -> list[str]:
    """The shortest beginnings of the paths that are not beginnings of known names, each once."""
    stems = {begin for name in known for begin in _beginnings(name)}
    return list(dict.fromkeys(next((one for one in _beginnings(path)[1:] if one not in stems), path) for path in paths))


def _missing(network: _Network, best: _Fit, names: list[str]) -> str:
    """The first of these tensors of the network, with both shapes where the file has another."""
    described = [
        f"{name} ({shape_of(best.found[name])}, not {shape_of(network.wanted[name])})" if name in best.found else name
        for name in names
    ]
    return name_some(described, 3)


def _ignored(stored: StoredWeights) -> list[str]:
    return [f"read tensors only, no {name_some(stored.ignored, 2)}"] if stored.ignored else []


def _problem_of(network: _Network, best: _Fit, name: str, *, whole: bool) -> str:
    """Why a file does not fit, as the rest of a sentence about it; empty if it does.

    Few elements may be what blocks do with all others: without its layer scales, a transformer answers nonsense.
    """
    missing = [key for key in network.body if key not in best.filled]
    if best.share < LEAST_FILLED:
        return f"fills only {_percent(best.share)} of {name}; not filled: {_missing(network, best, missing)}."
    if foreign := _foreign(network, best):
        return f"is not of {name}, whose blocks have no {name_some(foreign, 3)}."
    if absent := _absent(network, best):
        return f"is not of {name}, whose blocks have {name_some(absent, 3)}, which it lacks."
    if whole and missing:
        return f"leaves random what is not trained of {name}: {_missing(network, best, missing)}."
    return ""


def _refuse_other_registers(network: _Network, best: _Fit, name: str, source: str) -> None:
    """Raise HemafastError if the blocks learned with another number of registers than the network has."""
    from timm import list_models

    ours, theirs = _registers(network.wanted), _registers(best.found)
    if ours == theirs:
        return
    marks = {model: re.search(r"_reg(\d+)", model) for model in list_models()}
    fitting = [model for model, mark in marks.items() if int(mark[1] if mark else 0) == theirs]
    near = get_close_matches(name.partition(".")[0], fitting, 1, cutoff=0)
    raise HemafastError(
        f"{source} is of a transformer with {counted(theirs, 'register')}, and {name} has {ours}.",
        f"Use --model {near[0]}." if near else "Give the timm model of this file with --model.",
    )


def _registers(tensors: Mapping[str, Tensor]) -> int:
    """How many registers are among these tensors."""
    found = (tensors[name] for name in _REGISTERS if name in tensors)
    return next((tensor.shape[1] for tensor in found if tensor.ndim == 3), 0)


def _foreign(network: _Network, best: _Fit) -> list[str]:
    """Tensors of the file that lie in numbered parts as the network has them, and have no place there."""
    stems = {begin for name in network.body for begin in _beginnings(_kind(name))}
    left = [name for name in best.found.keys() - network.wanted.keys() if best.found[name].is_floating_point()]
    known = {name: max((one for one in _beginnings(_kind(name)) if one in stems), key=len) for name in left}
    return sorted(name for name in left if "*" in known[name] and not _is_made(name))


def _absent(network: _Network, best: _Fit) -> list[str]:
    """Kinds of tensors that several numbered parts of the network have, and the file none of."""
    of_kind: dict[str, list[str]] = {}
    for name in network.body:
        of_kind.setdefault(_kind(name), []).append(name)
    return [
        kind
        for kind, names in of_kind.items()
        if len(names) > 1 and not _is_made(kind) and not any(name in best.found for name in names)
    ]


def _is_made(name: str) -> bool:
    """Whether networks make this tensor themselves."""
    return is_counter(name) or _parts(name)[-1] in _RECOMPUTED


def _kind(name: str) -> str:
    """A name with * in place of numbers."""
    return ".".join("*" if part.isdigit() else part for part in _parts(name))


def _does_not_fit(problem: str, name: str, stored: StoredWeights) -> HemafastError:
    tensors = stored.tensors
    places = [_below(place, tensors) for place in _places(tensors, _elements(tensors.values()) / 4)]
    nearest = nearest_model([_shapes(place) for place in places], stored.words, name)
    if nearest is not None and nearest.name == name.partition(".")[0]:
        part = "the file holds a part of it, or more than it"
        return HemafastError(problem, f"No timm model is nearer: {part}. Give a file of this network alone.")
    if nearest is not None and nearest.share >= LEAST_FILLED:
        told = f"{problem} It fills {_percent(nearest.share)} of {nearest.name}."
        return HemafastError(told, f"Use --model {nearest.name}.")
    near = (
        f"{nearest.name} comes nearest, {_percent(nearest.share)} filled" if nearest else "none found that is like it"
    )
    return HemafastError(problem, f"Give the timm model of this file with --model ({near}).")


def _shapes(tensors: Tensors) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _percent(share: float) -> str:
    """Rounded down, so that 100 % is all."""
    return f"{math.floor(share * 1000) / 10:g} %"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _elements(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _parts(path: str) -> list[str]:
    return path.split(".") if path else []


def _beginnings(path: str) -> list[str]:
    """The empty path, and the path up to each of its dots and its end."""
    parts = _parts(path)
    return [".".join(parts[:end]) for end in range(len(parts) + 1)]
