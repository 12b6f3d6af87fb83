"""Save and load: a file of weights for whoever uses the model, and files of everything for whoever resumes the run."""

from __future__ import annotations

import json
import logging
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hemafast.errors import HemafastError
from hemafast.files import write_whole
from hemafast.model import Classifier, build_model

BEST = "best_model.safetensors"
LAST = "last_model.ckpt"

_FORMAT = "hemafast-2"

logger = logging.getLogger("hemafast")


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
    """Write the weights and the card, whole or not at all. Raises OSError if the disk does not take them."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"format": "pt", "card": json.dumps(asdict(card)), "mean": str(model.mean), "std": str(model.std)}

    def write(part: Path) -> None:
        try:
            save_file(tensors, part, metadata)
        except SafetensorError as error:
            raise OSError(f"{file} cannot be written: {error}") from error

    write_whole(file, write)


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


def save_last(file: Path, state: dict[str, Any], *, keep: int = 1) -> None:
    """Write the whole state of a run: tensors, numbers and strings only, whole or not at all.

    The `keep` - 1 states before it stay beside it as FILE.1 (the newest) and so on. Raises OSError if the disk does not
    take it; then all files are as they were.
    """

    def write(part: Path) -> None:
        try:
            torch.save({"format": _FORMAT, **state}, part)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(f"{file} cannot be written: {error}") from error

    write_whole(file, write, before_replace=lambda: _shift(file, keep))


def load_last(file: Path) -> dict[str, Any]:
    """Read the newest state of a run that is whole; nothing in the files is executed.

    A damaged one is passed over under a warning. Raises HemafastError if none can be read.
    """
    problems = []
    for candidate in _newest_first(file):
        try:
            return _load(candidate)
        except HemafastError as error:
            problems.append(error)
            logger.warning("%s", error.problem)
    if problems:
        raise problems[0]
    raise HemafastError(f"There is no {file}.", "The run was stopped before its first step: start anew.")


def _load(file: Path) -> dict[str, Any]:
    remedy = "Start the run anew."
    try:
        with zipfile.ZipFile(file) as archive:
            # torch.load looks at no checksum, and fills nothing in for an entry that a flipped bit has made a folder.
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr]
            damaged = next(iter(folders), None) or archive.testzip()
        state = torch.load(file, map_location="cpu", weights_only=True) if damaged is None else None
    except Exception as error:  # whatever a damaged or hostile file provokes
        raise HemafastError(f"{file} cannot be read ({type(error).__name__}).", remedy) from error
    if damaged is not None:
        raise HemafastError(f"{file} cannot be read ({damaged} is damaged).", remedy)
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise HemafastError(f"{file} is not a checkpoint of this version of hemafast.", remedy)
    return dict(state)


def _newest_first(file: Path) -> list[Path]:
    older = [path for path in file.parent.glob(f"{file.name}.*") if path.suffix[1:].isdigit()]
    older.sort(key=lambda path: int(path.suffix[1:]))
    return [file, *older] if file.exists() else older


def _shift(file: Path, keep: int) -> None:
    """Make room for a new `file`: it becomes .1, that .2, and what is beyond `keep` goes. `file` itself stays in place.

    A crash in between leaves each state that is kept under one name or under two.
    """
    older = [file.with_name(f"{file.name}.{number}") for number in range(1, keep)]
    linked = older and file.exists() and older[0].exists() and older[0].samefile(file)  # a crash came behind that
    if older and file.exists() and not linked:
        free = next((place for place, path in enumerate(older) if not path.exists()), len(older) - 1)
        for place in range(free, 0, -1):
            older[place - 1].replace(older[place])
        older[0].unlink(missing_ok=True)
        older[0].hardlink_to(file)
    for path in _newest_first(file):
        if path != file and int(path.suffix[1:]) >= keep:
            path.unlink()
