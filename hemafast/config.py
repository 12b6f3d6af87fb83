"""What a user asks for, as one frozen dataclass for preparing and one for training, and the checks on both.

pydantic does the checking; it is imported when there is something to check, so that --help stays quick.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Len, Lt

from hemafast.errors import HemafastError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Classes = Literal["challenge", "from-data"]
Format = Literal["lists", "webdataset"]
Amp = Literal["auto", "bf16", "fp16", "off"]
Compile = Literal["auto", "on", "off"]
Pretrained = Literal["auto", "yes", "no"]
Input = Literal["auto", "resident", "packed", "files", "webdataset"]
Device = Literal["auto", "cpu", "cuda"]
PolicyName = Literal["seed", "basic", "strong", "lineage", "none"]
Symmetry = Literal["none", "mirror", "eight"]
ScheduleName = Literal["constant", "cosine", "onecycle"]
LossName = Literal["cross-entropy", "weighted", "focal", "logit-adjusted"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
OnNonfinite = Literal["stop", "skip"]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Rate = Annotated[float, Ge(0), Lt(1)]

AUTO_FIELD_OF_VIEW = 25.0
"""Micrometres, as the winners of the challenge chose; what it is worth is in the README."""
ImageSize = Annotated[int, Ge(32), Le(1024)]
PackSize = Annotated[int, Ge(32), Le(1024)]

Settings = TypeVar("Settings", "PrepareConfig", "TrainConfig")

_MIXED = re.compile(r"mixed:(0?\.\d+|0|1|1\.0*)")
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
_UNION_TAGS = ("constrained-", "literal[")  # pydantic: which of several allowed types the value failed on
STRICT = {"extra": "forbid", "allow_inf_nan": False}
"""pydantic: no unknown key, no number without end."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How archives become a prepared data set."""

    __pydantic_config__ = STRICT

    source: Path = Path("Source")
    """Folder that holds the archives."""
    output: Path = Path("Source/prepared")
    """Folder that will hold the prepared data set; replaced as a whole."""
    classes: Classes = "challenge"
    """The eleven classes of the challenge, or whatever class folders the archives hold."""
    val_fraction: Annotated[float, Ge(0), Lt(1)] = 0.2
    """Share of each class in each domain that validates; 0 only beside `holdout_domain`."""
    folds: Annotated[int, Ge(2), Le(100)] | None = None
    """Cut the images into this many folds for cross-validation instead; fold 0 is the default validation split."""
    holdout_domain: str | None = None
    """A domain that validates as a whole, so that training never sees it."""
    split_file: Path | None = None
    """A published split to use instead: CSV with the columns path and split."""
    groups: Path | None = None
    """Patients or slides that must not cross the split: CSV with the columns path and group."""
    group_pattern: str | None = None
    """The same from file names: a regular expression whose first group names the patient, slide or cell of a domain."""
    checksums: Path | None = None
    """sha256 sums of archives or images, as `sha256sum` writes them; what does not match is refused."""
    seed: Annotated[int, Ge(0)] = 42
    """Seed of the split."""
    pack_sizes: Annotated[tuple[PackSize, ...], Len(1)] = (256,)
    """Sides in pixels of the packed squares."""
    field_of_view: Annotated[float, Gt(0), Le(100_000)] | Literal["auto", "whole"] = "auto"
    """Side in micrometres of the centre square that is kept of each image. `whole` keeps the largest square; `auto`
    keeps 25 where the scale is known and the image shows as much, and the largest square elsewhere."""
    um_per_pixel: dict[str, Annotated[float, Ge(0.001), Le(100)]] = field(default_factory=dict)
    """Micrometres a pixel spans, by domain; goes before what is known of the challenge's domains."""
    shards: Annotated[int, Ge(1), Le(9999)] = 8
    """How many file lists each split is cut into."""
    format: Format = "lists"
    """Write file lists alone, or tar files of the WebDataset format beside them."""
    strict: bool = False
    """Any image that would be quarantined is an error."""
    max_quarantined: Annotated[float, Ge(0), Le(1)] = 0.05
    """Stop if a larger share of the images would be quarantined."""

    def __post_init__(self) -> None:
        ways = {"folds": self.folds, "holdout_domain": self.holdout_domain, "split_file": self.split_file}
        chosen = [name for name, value in ways.items() if value is not None]
        if len(chosen) > 1:
            raise HemafastError(f"{' and '.join(chosen)} exclude each other.", "Choose one way to split.")
        if self.split_file is not None and (self.groups or self.group_pattern):
            raise HemafastError("groups have no say in a published split.", "Leave out the groups, or --split-file.")
        if self.groups is not None and self.group_pattern is not None:
            raise HemafastError("groups and group_pattern exclude each other.", "Leave out one of them.")
        if self.group_pattern is not None:
            _refuse_bad_pattern(self.group_pattern)
        if self.val_fraction == 0 and self.holdout_domain is None:
            raise HemafastError("val_fraction = 0 leaves nothing to validate on.", "Name a --holdout-domain with it.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a prepared data set becomes a model. The defaults are the reference pipeline's (preset `baseline`)."""

    __pydantic_config__ = STRICT

    preset: str = "baseline"
    """Name of the preset that the other fields started from."""
    data: Path = Path("Source/prepared")
    """Prepared data set."""
    fold: Annotated[int, Ge(0)] | None = None
    """Fold that validates, of a data set prepared with folds; by default fold 0."""
    domains: Annotated[tuple[str, ...], Len(1)] | None = None
    """Domains to learn from and to choose the best epoch on; by default all of the data set."""
    output: Path = Path("runs")
    """Folder in which the run folder is made."""
    model: str = "resnet18"
    """Name of any timm image model."""
    pretrained: Pretrained = "auto"
    """Start from pretrained weights: where they can be had, always (an error otherwise), or never."""
    weights: Path | None = None
    """Weights file (.safetensors, or .pth of plain tensors) to start from; goes before `pretrained`."""
    epochs: Annotated[int, Ge(1)] = 30
    """Passes over the training images."""
    time_budget: Annotated[float, Ge(1)] | None = None
    """Seconds that the run may take from the start of its process to its report; as many epochs as fit, in place of
    `epochs`. Schedule and image sizes are laid over the time."""
    batch_size: Annotated[int, Ge(2)] | Literal["auto"] = 32
    """Images that a process works on at once; `auto` tries which number fits (GPU) or is fastest (CPU)."""
    accumulate: Annotated[int, Ge(1)] = 1
    """Batches whose gradients make one update."""
    image_size: ImageSize = 224
    """Side in pixels of what the network sees."""
    growing_from: tuple[ImageSize, ...] = ()
    """Smaller sides that images have at first (progressive resizing); all sizes have equal shares of the run."""
    dropout: Rate | None = None
    """Share of the features before the classifier that are dropped; by default the model's own."""
    drop_path: Rate | None = None
    """Largest share of the images that skip a residual block (stochastic depth); by default the model's own."""
    freeze_norm: bool = False
    """Leave batch norm as it was pretrained: statistics, scales and shifts."""
    freeze_stages: Annotated[int, Ge(0)] = 0
    """So many stages from the first layer on are not trained; the stem is the first of them."""
    policy: PolicyName = "seed"
    """Augmentation of the training images; validation has none. The fields below change one thing about it each."""
    crop_area: tuple[Annotated[float, Gt(0), Le(1)], Annotated[float, Gt(0), Le(1)]] | None = None
    """Least and largest share of the packed square that is cut out and scaled."""
    zoom: Annotated[float, Ge(0), Le(0.5)] | None = None
    """Share by which a window of fixed size may grow or shrink; without meaning beside `crop_area`."""
    symmetry: Symmetry | None = None
    """Swap left and right, or draw one of the eight flips and quarter turns."""
    rotation: Annotated[float, Ge(0), Le(180)] | None = None
    """Largest angle in degrees, either way."""
    randaugment_ops: Annotated[int, Ge(0), Le(8)] | None = None
    """Operations of RandAugment that one image goes through."""
    randaugment_magnitude: Annotated[int, Ge(0), Le(30)] | None = None
    """Strength of these operations."""
    stain: Annotated[float, Ge(0), Le(0.5)] | None = None
    """How much the absorption of each stain varies."""
    erase: Annotated[float, Ge(0), Le(1)] | None = None
    """Share of the images of which a rectangle is blanked."""
    sampler: str = "natural"
    """Every image once an epoch; or as often from each class (`balanced`); or a mixture, as `mixed:0.66`."""
    input: Input = "auto"
    """Where pixels come from: packed squares that lie on the device or in a memory map, or encoded files or members of
    WebDataset tars that are decoded each epoch. `auto` takes the first of them that memory has room for."""
    mixup: Annotated[float, Ge(0), Le(10)] = 0.0
    """Alpha of the beta distribution by which pairs of images are blended; 0 blends none."""
    cutmix: Annotated[float, Ge(0), Le(10)] = 0.0
    """Alpha of the beta distribution by which rectangles are swapped between images; 0 swaps none."""
    lr: Annotated[float, Gt(0)] = 1e-4
    """Learning rate of AdamW; the peak of it under a schedule."""
    schedule: ScheduleName = "constant"
    """How the learning rate goes: constant (after a warm-up, if any), warm-up and cosine, or one cycle."""
    warmup: Annotated[float, Ge(0), Lt(1)] | None = None
    """Share of the steps that the rate rises; by default 0 for constant, 0.05 for cosine, 0.3 for onecycle."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Decoupled weight decay of AdamW; norms and biases have none."""
    layer_decay: Annotated[float, Gt(0), Le(1)] | None = None
    """Each layer learns at this share of the rate of the one above it."""
    clip_grad: Annotated[float, Gt(0)] | None = None
    """Largest norm of all gradients together; longer ones are shortened to it."""
    ema: Rate | None = None
    """Decay of a moving average of the weights, which then is what validates and is kept as best; 0 is none."""
    loss: LossName = "cross-entropy"
    """Cross-entropy as it is, weighted by inverse class frequency, focal, or with logits adjusted by that frequency."""
    focal_gamma: Annotated[float, Ge(0), Le(10)] = 2.0
    """How much the focal loss turns to what is still wrong."""
    logit_tau: Annotated[float, Ge(0), Le(5)] = 1.0
    """How much the logit-adjusted loss favours rare classes."""
    label_smoothing: Rate = 0.0
    """Share of the target spread over all classes."""
    amp: Amp = "auto"
    """Autocast precision; `auto` takes what this machine computes fast."""
    compile: Compile = "auto"
    """Whether torch.compile compiles the model."""
    compile_mode: CompileMode = "default"
    """What torch.compile optimises for; `reduce-overhead` and `max-autotune` replay CUDA graphs."""
    device: Device = "auto"
    """Where the model runs; `auto` takes a GPU if there is one."""
    threads: Annotated[int, Ge(1)] | None = None
    """Threads of the input pipeline; by default chosen for this machine."""
    sync_norm: bool = False
    """Batch norm over the images of all processes; CUDA only."""
    save_every: Annotated[float, Gt(0)] | None = 10.0
    """Minutes between checkpoints within an epoch; each epoch ends with one."""
    keep: Annotated[int, Ge(1), Le(100)] = 2
    """Checkpoints to keep: the newest is gone on from, the one before it if that is damaged."""
    on_nonfinite: OnNonfinite = "stop"
    """What a gradient or loss that is not finite does: stop the run, or leave out the update."""
    nonfinite_budget: Annotated[int, Ge(0)] = 10
    """Updates that may be left out before the run is stopped all the same."""
    track: tuple[TrackerName, ...] = ("tensorboard",)
    """Where measurements go besides training_log.csv."""
    seed: Annotated[int, Ge(0)] = 42
    """Seed of initial weights, order, augmentation and dropout."""

    def __post_init__(self) -> None:
        balanced_share(self.sampler)
        if list(self.growing_from) != sorted({*self.growing_from, self.image_size})[:-1]:
            raise HemafastError(
                f"growing_from = {self.growing_from} does not rise to image_size = {self.image_size}.",
                "Give sides from small to large, all below --image-size, or --growing-from off.",
            )
        if self.crop_area is not None and self.crop_area[0] > self.crop_area[1]:
            raise HemafastError(f"crop_area = {self.crop_area} begins above its end.", "Give the smaller share first.")


def train_config(preset: str | None = None, file: Path | None = None, **asked: Any) -> TrainConfig:
    """A training configuration: the fields of the preset, then of `file`, then every one in `asked` that is not None.

    A `file` is JSON or TOML; the config.json of a run is one. Without a `preset` it is the one that the file names, or
    `baseline`. Raises HemafastError for an unknown preset or field, or a value out of range.
    """
    from hemafast.presets import named_preset

    stored = read_settings(file) if file is not None else {}
    name = preset or stored.get("preset", TrainConfig.preset)
    given = {name: value for name, value in asked.items() if value is not None}
    return checked(TrainConfig, {**named_preset(name), **stored, "preset": name, **given})


def read_settings(file: Path) -> dict[str, Any]:
    """The fields of TrainConfig that a settings file names.

    Raises HemafastError if it is no JSON or TOML table, or one of its fields is unknown or does not fit.
    """
    try:
        text = file.read_text(encoding="utf-8")
        fields = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise HemafastError(f"{file} cannot be read ({error}).", "Give JSON, or TOML in a file named .toml.") from error
    if not isinstance(fields, dict):
        raise HemafastError(f"{file} holds no table of settings.", "Write a JSON object, or `name = value` a line.")
    _refuse_unknown(file, fields)
    try:
        checked(TrainConfig, fields)
    except HemafastError as error:
        raise HemafastError(f"{file}: {error.problem}", error.remedy) from error
    return fields


def _refuse_unknown(file: Path, fields: dict[str, Any]) -> None:
    known = TrainConfig.__dataclass_fields__
    for name in fields:
        if name not in known:
            close = get_close_matches(name.replace("-", "_"), known, n=1)
            remedy = f"Did you mean {close[0]}?" if close else "Options of `hemafast train` are, with _ for -."
            raise HemafastError(f"{file}: {name} is no setting.", remedy)


def seconds_of(text: str) -> float:
    """A length of time as people write it: "90s", "10m", "1h30m", or a number of seconds.

    Raises HemafastError for anything else.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or not any(match.groups()):
        raise HemafastError(f"{text!r} is no length of time.", "Write it as 90s, 10m or 1h30m.")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def balanced_share(sampler: str) -> float:
    """The share of an epoch that is drawn evenly from the classes: "natural" is 0, "balanced" 1, "mixed:0.66" 0.66.

    Raises HemafastError for anything else.
    """
    named = {"natural": 0.0, "balanced": 1.0}
    if sampler in named:
        return named[sampler]
    match = _MIXED.fullmatch(sampler)
    if match is None:
        raise HemafastError(
            f"There is no sampler {sampler!r}.", "Choose natural, balanced, or mixed:SHARE as mixed:0.66."
        )
    return float(match[1])


def _refuse_bad_pattern(pattern: str) -> None:
    try:
        captures = re.compile(pattern).groups
    except re.error as error:
        raise HemafastError(f"group_pattern = {pattern!r}: {error}.", "Correct it and try again.") from error
    if not captures:
        raise HemafastError(f"group_pattern = {pattern!r} captures nothing.", "Put what names the group in brackets.")


def checked(kind: type[Settings], fields: dict[str, Any]) -> Settings:
    """Make settings of `kind`; a field that is unknown or does not fit is a HemafastError that names it."""
    from pydantic import ValidationError

    try:
        settings: Settings = _adapter(kind).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = _name_of(first["loc"])
        said = [found["msg"] for found in error.errors() if _name_of(found["loc"]) == name]
        raise HemafastError(f"{name} = {first['input']!r}: {_either(said)}.", "Correct it and try again.") from error
    return settings


def _name_of(place: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in place if not str(part).startswith(_UNION_TAGS))


def _either(said: list[str]) -> str:
    """What pydantic says of a value, in one sentence where it fits none of several allowed types."""
    first, *others = (text.partition(", unable")[0] for text in said)
    return " or ".join([first, *(text.removeprefix("Input should be ") for text in others)])


def to_json(settings: PrepareConfig | TrainConfig) -> str:
    """Settings as JSON text that `checked` takes back."""
    return json.dumps(to_plain(settings), indent=2) + "\n"


def to_plain(settings: PrepareConfig | TrainConfig) -> dict[str, Any]:
    """Settings as numbers, strings, booleans and None, by name of the field."""
    plain: dict[str, Any] = _adapter(type(settings)).dump_python(settings, mode="json")
    return plain


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
