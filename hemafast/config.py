"""What a user asks for, as one frozen model for preparing and one for training; both are checked when made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hemafast.errors import HemafastError

Classes = Literal["challenge", "from-data"]
Unreadable = Literal["stop", "quarantine"]
Amp = Literal["auto", "bf16", "fp16", "off"]
Compile = Literal["auto", "on", "off"]
Pretrained = Literal["auto", "yes", "no"]
Input = Literal["auto", "packed", "files"]
Device = Literal["auto", "cpu", "cuda"]
PolicyName = Literal["basic", "none"]

Model = TypeVar("Model", bound="Settings")


class Settings(BaseModel):
    """Base of the settings: frozen, and a key it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PrepareConfig(Settings):
    """How archives become a prepared data set."""

    source: Path = Path("Source")
    """Folder that holds the archives."""
    output: Path = Path("Source/prepared")
    """Folder that will hold the prepared data set; replaced as a whole."""
    classes: Classes = "challenge"
    """The eleven classes of the challenge, or whatever class folders the archives hold."""
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of each class in each domain that validates."""
    seed: int = Field(default=42, ge=0)
    """Seed of the split and of the order of the shards."""
    packed_size: int = Field(default=256, ge=32, le=1024)
    """Side in pixels of the packed squares."""
    shards: int = Field(default=8, ge=1, le=9999)
    """How many file lists each split is cut into."""
    unreadable: Unreadable = "stop"
    """What happens when an image cannot be read: stop with an error, or leave it out and say so in the manifest."""


class TrainConfig(Settings):
    """How a prepared data set becomes a model. The defaults are the reference pipeline's (preset `seed`)."""

    preset: str = "seed"
    """Name of the preset that the other fields started from."""
    data: Path = Path("Source/prepared")
    """Prepared data set."""
    output: Path = Path("runs")
    """Folder in which the run folder is made."""
    model: str = "resnet18"
    """Name of any timm image model."""
    pretrained: Pretrained = "auto"
    """Start from pretrained weights: where they can be had, always (an error otherwise), or never."""
    weights: Path | None = None
    """Weights file (.safetensors, or .pth of plain tensors) to start from; goes before `pretrained`."""
    epochs: int = Field(default=30, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(default=32, ge=2)
    """Images a step."""
    image_size: int = Field(default=224, ge=32, le=1024)
    """Side in pixels of what the network sees."""
    policy: PolicyName = "basic"
    """Augmentation of the training images; validation has none."""
    input: Input = "auto"
    """Where pixels come from: packed squares, or encoded files decoded each epoch."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate of AdamW; the peak of it under `onecycle`."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of AdamW."""
    onecycle: bool = False
    """One-cycle learning rate (warm up, then anneal) instead of a constant one."""
    weighted_loss: bool = False
    """Weigh classes by the inverse of their frequency in the training split."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread over all classes."""
    amp: Amp = "auto"
    """Autocast precision; `auto` takes what this machine computes fast."""
    compile: Compile = "auto"
    """Whether torch.compile compiles the model."""
    device: Device = "auto"
    """Where the model runs; `auto` takes a GPU if there is one."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of the input pipeline; by default chosen for this machine."""
    seed: int = Field(default=42, ge=0)
    """Seed of initial weights, order, augmentation and dropout."""


PRESETS: dict[str, dict[str, Any]] = {
    # The reference pipeline: ResNet-18, AdamW at 1e-4, 30 epochs of 224 px. A GPU's work.
    "seed": {},
    # A first model in minutes on two CPU cores. What each line buys is in the README.
    "quick": {
        "model": "tf_efficientnet_lite0",
        "epochs": 5,
        "batch_size": 32,
        "image_size": 128,
        "lr": 3e-3,
        "onecycle": True,
        "label_smoothing": 0.1,
    },
}


def train_config(preset: str, **asked: Any) -> TrainConfig:
    """A training configuration: the preset's fields, then every one in `asked` that is not None.

    Raises HemafastError for an unknown preset or a value out of range.
    """
    if preset not in PRESETS:
        raise HemafastError(f"There is no preset {preset!r}.", f"Choose one of: {', '.join(PRESETS)}.")
    given = {name: value for name, value in asked.items() if value is not None}
    return checked(TrainConfig, {"preset": preset, **PRESETS[preset], **given})


def checked(model: type[Model], fields: dict[str, Any]) -> Model:
    """Make a settings model; a field that does not fit is a HemafastError that names it."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise HemafastError(f"{name} = {first['input']!r}: {first['msg']}.", "Correct it and try again.") from error
