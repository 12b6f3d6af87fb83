"""Save and load models (weights with a card, for users) and run states (everything that resuming needs)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Len
from safetensors import SafetensorError, safe_open

from hemafast.config import STRICT
from hemafast.ensemble import MOST_MEMBERS, Ensemble
from hemafast.errors import HemafastError
from hemafast.files import damaged_entry, refuse_overwritten, tensor_bytes, write_bytes, write_text, write_whole
from hemafast.lineage import Lineage
from hemafast.model import Classifier, Network, build_model, tensor_shapes
from hemafast.pickles import GreedyFileError, refuse_greedy
from hemafast.preparation.images.depth import Range
from hemafast.preparation.images.image_checks import MIN_SIDE
from hemafast.reading import cause, read_json_text
from hemafast.regular import refuse_special
from hemafast.run_folder import BEST, CALIBRATION, refuse_encoder

DRAWN_WARNING = "THE DATA IS DRAWN, NOT PHOTOGRAPHED: no score on it says anything about real blood"

_FORMAT = "hemafast-2"
_CHANNELS = 3
_ROUNDING = 1e-3  # of weights that add up to 1
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name."""
_FAR = 1.5  # times as large or small as in training that pixels may be
_Level = Annotated[float, Ge(0), Le(255)]

logger = logging.getLogger("hemafast")


@dataclass(frozen=True)
class View:
    """How an image becomes what a model sees: its part, its size in pixels, its range of values."""

    __pydantic_config__ = STRICT

    packed_size: Annotated[int, Ge(32), Le(1024)]
    """Side in pixels of the square that an image is scaled to. The network sees the centre of it."""
    field_of_view: Annotated[float, Gt(0), Le(100_000)] | None
    """Side in micrometres of the part of the image in the square. None: the largest centred square."""
    um_per_pixel: dict[str, Annotated[float, Ge(0.001), Le(100)] | None]
    """Micrometres per pixel of each domain; None if unknown."""
    ranges: dict[str, dict[str, Range]] = field(default_factory=dict)
    """By domain and kind of values ("integer", "float"), what becomes 0 and 255 of values of more than 8 bits."""
    min_side: Annotated[int, Ge(1), Le(1024)] = MIN_SIDE
    """Smallest side in pixels of an image that is accepted."""

    @property
    def scales(self) -> list[float]:
        """Micrometres per pixel of the training domains where they are known, ascending."""
        return sorted(scale for scale in self.um_per_pixel.values() if scale)

    def far_from_training(self, um_per_pixel: float) -> str:
        """Half a sentence on a scale more than 1.5 times as large or small as those of training; empty for others."""
        scales = self.scales
        if not scales or scales[0] / _FAR <= um_per_pixel <= scales[-1] * _FAR:
            return ""
        usual = " to ".join(dict.fromkeys(f"{scale:g}" for scale in (scales[0], scales[-1])))
        return f"the model was trained at {usual} um/px, and cells of other sharpness may be classified worse"


@dataclass(frozen=True)
class Calibration:
    """Temperature and thresholds, fitted on the calibration half of the validation images."""

    __pydantic_config__ = STRICT

    temperature: Annotated[float, Gt(0), Le(1000)]
    """Logits are divided by it before they become probabilities."""
    threshold: Annotated[float, Ge(0), Le(1)] | None
    """Lowest confidence at which a share `target` of the answers was right; None without one."""
    target: Annotated[float, Ge(0), Le(1)]
    """Share of right answers that `threshold` aims at."""
    images: Annotated[int, Ge(0)]
    """Number of images it was fitted on."""
    blast_threshold: Annotated[float, Ge(0), Le(1)] | None = None
    """A cell with at least this probability of blast is called a blast; None with too few blasts to fit it on."""
    blasts: Annotated[int, Ge(0)] | None = None
    """Number of blasts among the images; None without a class of blasts, and where an earlier version did not say."""
    set_thresholds: tuple[Annotated[float, Ge(0), Le(1)] | None, ...] | None = None
    """By class, the least probability with which it is in a cell's set of classes; None if it never is."""
    nuclei: tuple[Annotated[float, Gt(0), Le(1000)] | None, ...] | None = None
    """By class, the median diameter of its nuclei in micrometres; None where too few are known."""


@dataclass(frozen=True)
class _StoredCalibration:
    """The content of CALIBRATION: a calibration, and the weights that it belongs to."""

    __pydantic_config__ = STRICT

    epoch: int
    data_fingerprint: str
    calibration: Calibration


@dataclass(frozen=True)
class Adapted:
    """What `hemafast adapt` made of another run's model."""

    __pydantic_config__ = STRICT

    parent: str
    """Folder of the run whose model was adapted, absolute."""
    images: Annotated[int, Ge(0)]
    """Images of the other laboratory that it was adapted to."""
    labels: Annotated[int, Ge(0)]
    """How many of these had a label."""
    steps: tuple[str, ...]
    """What was changed, one sentence each; empty if nothing was better than the parent's weights."""


@dataclass(frozen=True)
class Home:
    """What is known of the training images, so that `hemafast adapt` needs no other file than the model's."""

    __pydantic_config__ = STRICT

    counts: tuple[Annotated[int, Ge(0)], ...]
    """Training images of each class."""
    white_point: tuple[_Level, _Level, _Level] | None = None
    """Brightness of their background, by channel; None for a network that standardizes images."""


@dataclass(frozen=True)
class Member:
    """One network of an ensemble."""

    __pydantic_config__ = STRICT

    run: str
    """Folder of the run that it comes from, absolute."""
    epoch: int
    backbone: str
    image_size: Annotated[int, Ge(32), Le(1024)]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    standardize: bool
    quarter_turns: bool
    temperature: Annotated[float, Gt(0), Le(1000)]
    """Divisor of its logits before they become probabilities."""
    weight: Annotated[float, Ge(0), Le(1)]
    """Of its probabilities in the mean."""
    order: tuple[Annotated[int, Ge(0)], ...]
    """Of each class of the ensemble, its place among those of the run."""
    fold: Annotated[int, Ge(0)] | None = None
    """The fold that its run validates on; None is the first."""


@dataclass(frozen=True)
class Combined:
    """What `hemafast ensemble` made one model of."""

    __pydantic_config__ = STRICT

    method: Literal["mean", "fitted", "soup", "snapshots"]
    runs: tuple[str, ...]
    """Folders of the runs, absolute."""
    members: Annotated[tuple[Member, ...], Len(0, MOST_MEMBERS)] = ()
    """None for a soup: its weights are those of one network."""
    fitted_on: Annotated[int, Ge(0)] = 0
    """Validation images that weights or members were chosen on."""

    @property
    def folds(self) -> bool:
        """Whether members were trained on validation images of one another."""
        return len({member.fold or 0 for member in self.members}) > 1


@dataclass(frozen=True)
class ModelCard:
    """Everything needed to use a model, besides its weights. Stored as metadata in the same file."""

    __pydantic_config__ = STRICT

    backbone: str
    classes: Annotated[tuple[str, ...], Len(1)]
    image_size: Annotated[int, Ge(32), Le(1024)]
    view: View
    domains: tuple[str, ...]
    """Domains of the training set."""
    epoch: int
    """Epochs trained before these weights were saved."""
    started_from: str
    data_fingerprint: str
    drawn_data: bool
    quarter_turns: bool = False
    """Whether the model answers with the mean over the four quarter turns of an image. Training validates without."""
    calibration: Calibration | None = None
    """Stored in CALIBRATION beside the weights; None before the model was evaluated."""
    adapted: Adapted | None = None
    """None for a model as it was trained."""
    home: Home | None = None
    """None for an adapted model, and for one that an earlier version trained."""
    lineage: Lineage | None = None
    """How the classes are related; None if that was not known, and for a model that an earlier version trained."""
    combined: Combined | None = None
    """What an ensemble or a soup was made of; None for the model of one run."""

    def __post_init__(self) -> None:
        for name in ("set_thresholds", "nuclei"):
            values = getattr(self.calibration, name, None)
            if values is not None and len(values) != len(self.classes):
                raise ValueError(f"{len(values)} {name} for {len(self.classes)} classes")
        if self.home is not None and len(self.home.counts) != len(self.classes):
            raise ValueError(f"home has counts of {len(self.home.counts)} classes, not of {len(self.classes)}")
        for member in self.members:
            if sorted(set(member.order)) != list(range(len(self.classes))) or len(member.order) != len(self.classes):
                raise ValueError(f"the order of the classes of {member.run} is no permutation of the classes")
        if self.members and abs((total := sum(member.weight for member in self.members)) - 1) > _ROUNDING:
            raise ValueError(f"the weights of the members add up to {total:g}, not to 1")

    @property
    def members(self) -> tuple[Member, ...]:
        """Of an ensemble; empty for one network."""
        return self.combined.members if self.combined else ()

    @property
    def temperature(self) -> float:
        """Divisor of the logits; 1 before the model was evaluated."""
        return self.calibration.temperature if self.calibration else 1.0

    def places_of(self, classes: Iterable[str]) -> list[int]:
        """The places of some of its classes among them."""
        return [self.classes.index(name) for name in classes]


def save_best(file: Path, model: Network, card: ModelCard) -> None:
    """Write weights and card, completely or not at all. Raises OSError if the disk is full."""
    write_bytes(file, model_bytes(model, card))


def model_bytes(model: Network, card: ModelCard) -> bytes:
    """Weights and card, as the content of a model file. The card of an ensemble has the constants of its members."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"format": "pt", "card": json.dumps(asdict(card))}
    if isinstance(model, Classifier):
        metadata |= {"mean": str(model.mean), "std": str(model.std), "standardize": json.dumps(model.standardize)}
    return tensor_bytes(tensors, metadata)


def encoder_bytes(model: Classifier, about: Mapping[str, str]) -> bytes:
    """The backbone alone, as the content of a weights file; `about` goes into its metadata."""
    kept = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name.startswith("backbone.")}
    return tensor_bytes(kept, {"format": "pt", **about})


def save_calibration(file: Path, card: ModelCard, calibration: Calibration) -> None:
    """Write CALIBRATION beside the model `file`, for the weights that `card` describes. `file` stays unchanged."""
    stored = _StoredCalibration(card.epoch, card.data_fingerprint, calibration)
    write_text(file.with_name(CALIBRATION), json.dumps(asdict(stored), indent=2) + "\n")


def _with_calibration(file: Path, card: ModelCard) -> ModelCard:
    """The card with the calibration beside `file`, if it was fitted for these weights."""
    from pydantic import TypeAdapter

    beside = file.with_name(CALIBRATION)
    try:
        stored = TypeAdapter(_StoredCalibration).validate_json(read_json_text(beside))
        calibrated = replace(card, calibration=stored.calibration)
    except FileNotFoundError:
        return card
    except (OSError, ValueError) as error:
        raise HemafastError(
            f"{beside} cannot be read ({cause(error)}).", f"Delete it, then run `hemafast evaluate {file.parent}`."
        ) from error
    if (stored.epoch, stored.data_fingerprint) == (card.epoch, card.data_fingerprint):
        return calibrated
    logger.warning("%s ignored: it belongs to other weights than %s. `hemafast evaluate` renews it.", beside, file.name)
    return card


def load_best(file: Path) -> tuple[Network, ModelCard]:
    """Rebuild a model from its file, without executing anything in it.

    Args:
        file: BEST of a run. CALIBRATION in the same folder is read too, if it exists.

    Returns:
        The model, on the CPU, a classifier or an ensemble, and its card with the calibration.

    Raises:
        HemafastError: a file is missing, damaged, or was not written by hemafast.
    """
    shapes, metadata = _read_header(file)
    card = _card_of(file, metadata)
    try:
        model = ensemble_for(card, shapes) if card.members else _classifier_for(card, shapes, metadata)
        model.load_state_dict(tensors := _read_tensors(file))
        refuse_overwritten(tensors, metadata, "weights")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _cannot_load(file, error) from error
    return model, card


def _classifier_for(card: ModelCard, shapes: Shapes, metadata: Mapping[str, str]) -> Classifier:
    model = network_for(card, shapes)
    model.standardize = metadata.get("standardize") == "true"  # older files have none
    model.quarter_turns = card.quarter_turns
    model.normalise_by(*(_constants(metadata[name]) for name in ("mean", "std")))
    return model


def ensemble_for(card: ModelCard, shapes: Shapes) -> Ensemble:
    """An ensemble of random weights for a file of tensors, if they are its tensors; raises as `network_for`."""
    prefixes = [f"members.{place}." for place in range(len(card.members))]
    strange = next((name for name in shapes if not name.startswith(tuple(prefixes))), None)
    if strange is not None:
        raise ValueError(f"{strange} belongs to no member")
    networks = []
    for member, prefix in zip(card.members, prefixes, strict=True):
        own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        network = network_for(replace(card, backbone=member.backbone, image_size=member.image_size), own)
        network.standardize, network.quarter_turns = member.standardize, member.quarter_turns
        network.normalise_by(member.mean, member.std)
        networks.append(network)
    return ensemble_of(networks, card)


def ensemble_of(networks: Sequence[Classifier], card: ModelCard) -> Ensemble:
    """Networks as the members that the card describes."""
    return Ensemble(
        networks,
        weights=[member.weight for member in card.members],
        temperatures=[member.temperature for member in card.members],
        sizes=[member.image_size for member in card.members],
        image_size=card.image_size,
        orders=[member.order for member in card.members],
    )


def network_for(card: ModelCard, shapes: Shapes) -> Classifier:
    """A network of random weights for a file of tensors, made only if they are its tensors.

    Args:
        card: what the network is.
        shapes: the tensors of the file by their names in the network's state dict.

    Raises:
        HemafastError: timm has no such model, or cannot build it.
        ValueError: the tensors are those of another network. Nothing was allocated: a small file cannot name a network
            that fills the memory.
    """
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, and replaced
        wanted = tensor_shapes(card.backbone, len(card.classes), card.image_size)
        for name in [*wanted, *shapes]:
            if wanted.get(name) != shapes.get(name):
                raise ValueError(f"{name} of {card.backbone} is {wanted.get(name)}, and {shapes.get(name)} in the file")
        return build_model(card.backbone, len(card.classes), card.image_size)


def _constants(text: str) -> tuple[float, ...]:
    """Three constants of the normalisation, as `save_best` writes them. Raises ValueError for anything else."""
    values = tuple(map(float, text.strip("()").split(",")))
    if len(values) != _CHANNELS or not all(math.isfinite(value) for value in values):
        raise ValueError(f"{text!r} are not the constants of a normalisation")
    return values


def model_file(path: Path) -> Path:
    """The model file that `path` means: `path` itself or, for a run folder, BEST in it. It need not exist."""
    return path if path.suffix == ".safetensors" and not path.is_dir() else path / BEST


def read_card(file: Path) -> ModelCard:
    """The card with its calibration, without the model. Raises HemafastError as `load_best` does."""
    return _card_of(file, _read_header(file)[1])


def _read_header(file: Path) -> tuple[Shapes, dict[str, str]]:
    """Shapes of the tensors, and the metadata. safetensors refuses a header that does not fit the file's length."""
    if not file.exists():
        refuse_encoder(file.parent)
        raise HemafastError(f"There is no {file}.", "Wait for the first epoch to end, or name another run.")
    try:
        refuse_special(file)
        with safe_open(file, framework="pt") as content:
            shapes = {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
            return shapes, dict(content.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _cannot_load(file, error) from error


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(file, framework="pt") as content:
        return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict


def _card_of(file: Path, metadata: dict[str, str]) -> ModelCard:
    from pydantic import TypeAdapter, ValidationError

    try:
        card = TypeAdapter(ModelCard).validate_json(metadata["card"])
    except KeyError as error:
        raise HemafastError(f"{file} is not a hemafast model: it has no card.", "Name a run folder.") from error
    except ValidationError as error:
        raise HemafastError(
            f"{file} holds a card that this version of hemafast cannot read ({cause(error)}).",
            "Train again, or name another run.",
        ) from error
    return _with_calibration(file, card)


def _cannot_load(file: Path, error: Exception) -> HemafastError:
    said = " ".join(str(error).split())[:200]  # torch lists all tensors
    return HemafastError(
        f"{file} cannot be loaded ({type(error).__name__}: {said}).", "Train again, or name another run."
    )


def save_last(file: Path, state: dict[str, Any], *, keep: int = 1) -> None:
    """Write the state of a run (tensors, numbers and strings), completely or not at all.

    The `keep` - 1 previous states stay beside it as FILE.1 (the newest), FILE.2 and so on. Raises OSError if the disk
    is full, and then changes no file.
    """

    def write(part: Path) -> None:
        try:
            torch.save({"format": _FORMAT, **state}, part)
        except RuntimeError as error:  # of torch, for a full disk
            raise OSError(f"{file} cannot be written: {error}") from error

    write_whole(file, write, before_replace=lambda: _shift(file, keep))


def load_last(file: Path) -> dict[str, Any]:
    """Read the newest undamaged state of a run, without executing anything in the files.

    Logs a warning for each damaged file. Raises HemafastError if all are damaged, or if there are none.
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
    raise HemafastError(f"There is no {file}.", "The run stopped before its first step. Start a new run.")


def load_kept(file: Path) -> list[dict[str, Any]]:
    """All undamaged states of a run that are kept, the newest first; read as `load_last` does."""
    states = []
    for candidate in _newest_first(file):
        try:
            states.append(_load(candidate))
        except HemafastError as error:
            logger.warning("%s", error.problem)
    return states


def _load(file: Path) -> dict[str, Any]:
    remedy = "Start a new run."
    try:
        refuse_greedy(file, own=True)
        damaged = damaged_entry(file)
        state = torch.load(file, map_location="cpu", weights_only=True) if damaged is None else None
    except Exception as error:  # a damaged or hostile file can raise anything
        told = error if isinstance(error, GreedyFileError) else getattr(error, "strerror", None)
        said = f": {told}" if told else ""
        raise HemafastError(f"{file} cannot be read ({type(error).__name__}{said}).", remedy) from error
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
    """Make room for a new `file`: rename .1 to .2 and so on, link `file` as .1, and delete all beyond `keep`.

    `file` itself stays in place. After a crash in between, each kept state has one name or two.
    """
    older = [file.with_name(f"{file.name}.{number}") for number in range(1, keep)]
    linked = older and file.exists() and older[0].exists() and older[0].samefile(file)  # after a crash
    if older and file.exists() and not linked:
        free = next((place for place, path in enumerate(older) if not path.exists()), len(older) - 1)
        for place in range(free, 0, -1):
            older[place - 1].replace(older[place])
        older[0].unlink(missing_ok=True)
        older[0].hardlink_to(file)
    for path in _newest_first(file):
        if path != file and int(path.suffix[1:]) >= keep:
            path.unlink()
