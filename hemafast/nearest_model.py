"""The timm model whose tensors are most like those of a weights file."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    Shapes = Mapping[str, tuple[int, ...]]

_SECONDS = 5.0
"""Of computing, so that a busy machine compares as many models."""
_LARGEST_FAMILIES = 16
_LEAST_ALIKE = 0.2
_LEAST_OVERLAP = 0.5
_ALIKE_ENOUGH = 0.8
"""A file also holds heads, so that it is never quite like a model."""
_MOST_HINTED = 12


@dataclass(frozen=True, slots=True)
class Nearest:
    """A timm model, and how much of it a file would fill."""

    name: str
    share: float


def is_counter(name: str) -> bool:
    """Whether this is a counter of batch norm, which no prediction depends on."""
    return name.endswith("num_batches_tracked")


def heads_of(model: Any) -> tuple[str, ...]:
    """Beginnings of the names of a timm model's last layers, as `("fc.",)`."""
    named = model.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))


def body_of(model: Any) -> dict[str, Tensor]:
    """The tensors of a timm model by name, without its head and the counters of batch norm."""
    heads = heads_of(model)
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(heads) and not is_counter(name)
    }


def nearest_model(places: Sequence[Shapes], words: Iterable[str], beside: str) -> Nearest | None:
    """Compare shapes with timm models for at most _SECONDS of computing, likely ones first.

    Args:
        places: Shapes by name, as they are at each place of the file that may hold the network.
        words: Words that may be names of models.
        beside: The model that was tried; its family comes first.

    Returns:
        The most similar model; None if none has a fifth of its elements in common with the file.
    """
    until = time.thread_time() + _SECONDS
    best, most_alike = None, _LEAST_ALIKE
    for name in _candidates(places, words, beside):
        if time.thread_time() > until:
            break
        shapes = _shapes(name)
        alike, share = max((_compare(shapes, place) for place in places), default=(0.0, 0.0))
        if alike > most_alike:
            best, most_alike = Nearest(name, share), alike
        if share == 1 and alike > _ALIKE_ENOUGH:
            break
    return best


def _compare(model: Shapes, place: Shapes) -> tuple[float, float]:
    """How alike two sets of shapes are (common elements over all), and the share of the model that is filled."""
    common = sum(math.prod(shape) for name, shape in model.items() if name in place and _agree(shape, place[name]))
    ours, theirs = (sum(map(math.prod, shapes.values())) for shapes in (model, place))
    return common / max(ours + theirs - common, 1), common / max(ours, 1)


def _agree(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether shapes are the same; a position embedding may be for another image size."""
    tokens = len(first) == len(second) == 3 and first[0] == second[0] == 1
    return first[-1:] == second[-1:] if tokens else first == second


def _candidates(places: Sequence[Shapes], words: Iterable[str], beside: str) -> Iterator[str]:
    """Names of timm models, each once: the one tried, those that the file names, then those of similar families."""
    import timm

    names = timm.list_models()
    hinted = (name for word in words for name in names if name == word or name.startswith(f"{word}_"))
    yielded: set[str] = set()
    tried = beside.partition(".")[0]
    for name in chain([tried], islice(hinted, _MOST_HINTED), _of_families(names, places, beside)):
        if name not in yielded:
            yielded.add(name)
            yield name


def _of_families(names: Sequence[str], places: Sequence[Shapes], beside: str) -> Iterator[str]:
    """The models of similar families, short names first: these are the common variants."""
    families: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (len(name), name)):
        families.setdefault(_family(name), []).append(name)
    largest = sorted(families, key=lambda family: -len(families[family]))[:_LARGEST_FAMILIES]
    patterns = [_pattern(place) for place in places]
    for family in dict.fromkeys([_family(beside), *largest]):
        first, *others = families.get(family, [beside])
        yield first
        if any(_overlap(_pattern(_shapes(first)), pattern) >= _LEAST_OVERLAP for pattern in patterns):
            yield from others


def _family(name: str) -> str:
    """The source file of timm that makes the model."""
    import timm

    return str(timm.model_entrypoint(name).__module__)


@lru_cache(maxsize=2)
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's body, without allocating it; empty if timm cannot make it so."""
    import timm
    import torch

    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning), torch.device("meta"), _without_values():
            return {key: tuple(tensor.shape) for key, tensor in body_of(timm.create_model(name)).items()}
    except Exception:  # some models compute with values when they are made
        return {}


def _without_values() -> AbstractContextManager[object]:
    """Leave out all that fills tensors: on the meta device there is nothing to fill, and it takes most of the time."""
    from torch.overrides import TorchFunctionMode

    class WithoutValues(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            options = kwargs or {}
            fills = re.search(r"[a-z]_$", func.__name__)
            return (*args, *options.values())[0] if fills else func(*args, **options)

    return WithoutValues()


def _pattern(shapes: Shapes) -> set[str]:
    """Names of tensors with all numbers as 0."""
    return {re.sub(r"\d+", "0", name) for name in shapes}


def _overlap(first: set[str], second: set[str]) -> float:
    return len(first & second) / max(len(first | second), 1)
