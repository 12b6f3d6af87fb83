"""Save and load: a file of weights for whoever uses the model, and a file of everything for whoever resumes the run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hemafast.errors import HemafastError
from hemafast.model import Classifier, build_model

BEST = "best_model.safetensors"
LAST = "last_model.ckpt"

_FORMAT = "hemafast-1"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What must be known of a model to use it; stored as metadata beside the weights."""

    backbone: str
    classes: tuple[str, ...]
    image_size: int
    epoch: int
    started_from: str
    data_fingerprint: str
    drawn_data: bool


def save_best(file: Path, model: Classifier, card: ModelCard) -> None:
    """Write the weights and the card, whole or not at all."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"format": _FORMAT, "card": json.dumps(asdict(card)), "mean": str(model.mean), "std": str(model.std)}
    _write_whole(file, lambda part: save_file(tensors, part, metadata))


def load_best(file: Path) -> tuple[Classifier, ModelCard]:
    """Rebuild the model from its file alone. Raises HemafastError if it is damaged or not one of ours."""
    try:
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict
        fields = json.loads(metadata["card"])
        card = ModelCard(**{**fields, "classes": tuple(fields["classes"])})
        model = build_model(card.backbone, len(card.classes), card.image_size)
        model.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise HemafastError(
            f"{file} cannot be loaded ({type(error).__name__}: {error}).", "Train again, or name another run."
        ) from error
    return model, card


def save_last(file: Path, state: dict[str, Any]) -> None:
    """Write the whole state of a run: tensors, numbers and strings only, whole or not at all."""
    _write_whole(file, lambda part: torch.save({"format": _FORMAT, **state}, part))


def load_last(file: Path) -> dict[str, Any]:
    """Read the state of a run; nothing in the file is executed. Raises HemafastError if it cannot be read."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise HemafastError(
            f"There is no {file}.", "The run was stopped before its first epoch ended: start anew."
        ) from error
    except Exception as error:  # whatever a damaged or hostile file provokes
        raise HemafastError(f"{file} cannot be read ({type(error).__name__}).", "Start the run anew.") from error
    known = isinstance(state, dict) and state.get("format") == _FORMAT
    if not known:
        raise HemafastError(f"{file} is not a checkpoint of this version of hemafast.", "Start the run anew.")
    return dict(state)


def _write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Write beside `file`, flush to the disk, then take its place: a crash leaves the old file or the new one."""
    part = file.with_name(f".{file.name}.part")
    try:
        write(part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.chmod(0o644)  # safetensors makes private files
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
