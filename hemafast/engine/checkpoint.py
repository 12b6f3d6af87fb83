"""Save and load: a file of weights for whoever uses the model, and files of everything for whoever resumes the run."""

from __future__ import annotations

import json
import logging
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Len
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hemafast.config import STRICT
from hemafast.errors import HemafastError
from hemafast.files import write_whole
from hemafast.model import Classifier, build_model
from hemafast.run_folder import BEST

DRAWN_WARNING = "THE DATA IS DRAWN, NOT PHOTOGRAPHED: no score on it says anything about real blood"

_FORMAT = "hemafast-2"

logger = logging.getLogger("hemafast")


@dataclass(frozen=True)
class View:
    """Which part of an image the model has learned to look at, and at what size."""

    __pydantic_config__ = STRICT

    packed_size: Annotated[int, Ge(32), Le(1024)]
    """Side in pixels of the square that an image is scaled to; the network sees the window in its middle."""
    field_of_view: Annotated[float, Gt(0), Le(100_000)] | None
    """Side in micrometres of the centre of an image that the square shows, as far as the image goes; None for the
    largest centred square."""
    um_per_pixel: dict[str, Annotated[float, Ge(0.001), Le(100)] | None]
    """By domain of the data set; None where it is not known."""


@dataclass(frozen=True)
class Calibration:
    """What was fitted on the calibration part of the validation images, which no calibrated score is reported on."""

    __pydantic_config__ = STRICT

    temperature: Annotated[float, Gt(0), Le(1000)]
    """Logits are divided by it before they become probabilities."""
    threshold: Annotated[float, Ge(0), Le(1)] | None
    """Least confidence at which the model was right as often as `target`; None if it never was."""
    target: Annotated[float, Ge(0), Le(1)]
    """Share of right answers among those that `threshold` lets pass."""
    images: Annotated[int, Ge(0)]
    """Images it was fitted on."""
    blast_threshold: Annotated[float, Ge(0), Le(1)] | None = None
    """Probability from which on a cell is called a blast; None where there were no blasts to fit it on."""


@dataclass(frozen=True)
class ModelCard:
    """What must be known of a model to use it; stored as metadata beside the weights."""

    __pydantic_config__ = STRICT

    backbone: str
    classes: Annotated[tuple[str, ...], Len(1)]
    image_size: Annotated[int, Ge(32), Le(1024)]
    view: View
    domains: tuple[str, ...]
    """Domains it was trained on."""
    epoch: int
    started_from: str
    data_fingerprint: str
    drawn_data: bool
    calibration: Calibration | None = None
    """None before the model was evaluated."""

    @property
    def temperature(self) -> float:
        """What logits are divided by; 1 before the model was evaluated."""
        return self.calibration.temperature if self.calibration else 1.0


def save_best(file: Path, model: Classifier, card: ModelCard) -> None:
    """Write the weights and the card, whole or not at all. Raises OSError if the disk does not take them."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"format": "pt", "card": json.dumps(asdict(card)), "mean": str(model.mean), "std": str(model.std)}
    _save(file, tensors, metadata)


def save_calibration(file: Path, calibration: Calibration) -> None:
    """Put a calibration onto the card of a model; weights stay as they are. Raises HemafastError as `load_best`."""
    tensors, metadata = _read(file)
    card = replace(_card_of(file, metadata), calibration=calibration)
    _save(file, tensors, {**metadata, "card": json.dumps(asdict(card))})


def _save(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    def write(part: Path) -> None:
        try:
            save_file(tensors, part, metadata)
        except SafetensorError as error:
            raise OSError(f"{file} cannot be written: {error}") from error

    write_whole(file, write)


def load_best(file: Path) -> tuple[Classifier, ModelCard]:
    """Rebuild the model from its file alone; nothing in it is executed.

    Raises HemafastError if it is damaged or not one of ours.
    """
    tensors, metadata = _read(file)
    card = _card_of(file, metadata)
    try:
        model = build_model(card.backbone, len(card.classes), card.image_size)
        model.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _cannot_load(file, error) from error
    return model, card


def model_file(path: Path) -> Path:
    """The file of the best model that `path` means: a run folder, or such a file itself. It need not be there."""
    return path if path.suffix == ".safetensors" and not path.is_dir() else path / BEST


def read_card(file: Path) -> ModelCard:
    """The card alone. Raises HemafastError if the file is damaged or not one of ours."""
    return _card_of(file, _read(file)[1])


def _read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata."""
    if not file.exists():
        raise HemafastError(f"There is no {file}.", "Let a run end its first epoch, or name another run.")
    try:
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict
            return tensors, dict(content.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _cannot_load(file, error) from error


def _card_of(file: Path, metadata: dict[str, str]) -> ModelCard:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(ModelCard).validate_json(metadata["card"])
    except KeyError as error:
        raise HemafastError(f"{file} is no model of hemafast: it has no card.", "Name the folder of a run.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise HemafastError(
            f"{file} has a card that this version of hemafast does not understand ({where}: {first['msg']}).",
            "Train again, or name another run.",
        ) from error


def _cannot_load(file: Path, error: Exception) -> HemafastError:
    said = " ".join(str(error).split())[:200]  # a list of all tensors helps nobody
    return HemafastError(
        f"{file} cannot be loaded ({type(error).__name__}: {said}).", "Train again, or name another run."
    )


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
