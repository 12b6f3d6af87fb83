"""Every setting once: type, default, bounds, help line and group. The commands are made from these two dataclasses.

Settings are checked when they are made, by pydantic, which is imported then, so that --help stays quick.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

from annotated_types import Ge, Gt, Le, Len, Lt

from hemafast.errors import HemafastError
from hemafast.model_names import refuse_unknown_model
from hemafast.reading import MOST_SETTINGS_BYTES, read_json, read_toml

if TYPE_CHECKING:
    from pydantic import BaseModel

Classes = Literal["challenge", "from-data"]
Format = Literal["lists", "webdataset"]
Amp = Literal["auto", "bf16", "fp16", "off"]
Compile = Literal["auto", "on", "off"]
Pretrained = Literal["auto", "yes", "no"]
Input = Literal["auto", "resident", "packed", "files", "webdataset"]
Device = Literal["auto", "cpu", "cuda"]
ScoredSplit = Literal["val", "test", "all"]
"""The split that a run is scored on: validation images, or test images that training never saw."""
PolicyName = Literal["seed", "basic", "strong", "lineage", "robust", "none"]
Symmetry = Literal["none", "mirror", "eight"]
ScheduleName = Literal["constant", "cosine", "onecycle"]
LossName = Literal["cross-entropy", "weighted", "focal", "logit-adjusted"]
Method = Literal["simclr", "byol", "dino"]
Capture = Literal["auto", "off"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
OnNonfinite = Literal["stop", "skip"]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Rate = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Gt(0), Le(1)]

AUTO_FIELD_OF_VIEW = 25.0
"""Micrometres, as the winners of the challenge chose."""
ImageSize = Annotated[int, Ge(32), Le(1024)]
PackSize = Annotated[int, Ge(32), Le(1024)]

Settings = TypeVar("Settings", "PrepareConfig", "TrainConfig")

DATA = "The data"
NETWORK = "The network"
LEARNING = "How it learns"
IMAGES = "The images it learns from"
POLICY = "Changes to the policy"
RUNNING = "How it runs"
SPLITTING = "The split"
PIXELS = "The pixels"
CHECKING = "The checks"

READ = ("data", "weights", "lineage", "teacher")
"""Settings of training that name what is read. A run keeps them as absolute paths, as it is resumed from anywhere."""
PRETRAINING = ("method", "views")
"""Settings of `hemafast pretrain` alone."""
LABELLED = (
    *("loss", "focal_gamma", "logit_tau", "label_smoothing", "lineage_weight", "stage_temperature", "lineage"),
    *("sampler", "mixup", "cutmix", "dropout", "quarter_turns", "probe"),
)
"""Settings of `hemafast train` alone, because they act on labels or on the classifier."""
STEPPED = (
    *("time_budget", "accumulate", "lr", "schedule", "warmup", "weight_decay", "layer_decay", "clip_grad", "ema"),
    *("focal_gamma", "logit_tau", "label_smoothing", "lineage_weight", "stage_temperature", "teacher"),
    *("teacher_weight", "mixup", "cutmix", "dropout", "drop_path", "growing_from", "freeze_norm", "freeze_stages"),
    "sync_norm",
)
"""Settings that have no effect on a probe, which makes no steps."""
_PROBE_LOSSES = ("cross-entropy", "weighted")

LEARNS, FREE, FIXED = "learns", "free", "fixed"
"""What a resumed run may change: with --allow-changes, at will, never."""

_MIXED = re.compile(r"mixed:(0?\.\d+|0|1|1\.0*)")
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
_UNION_TAGS = ("constrained-", "literal[")  # pydantic: which of several allowed types the value failed on
STRICT = {"extra": "forbid", "allow_inf_nan": False}
"""pydantic: unknown keys and infinite numbers are errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What the command line says about a setting, and what a resumed run may do with it."""

    help: str
    group: str
    common: bool = False
    """Whether `--help` shows it; `--help-all` shows every option."""
    none: str = "off"
    """What None means, in words."""
    metavar: str | None = None
    flag: str | None = None
    """Where it is not made from the name of the field."""
    parse: Callable[[Any], Any] | None = None
    """Turns what is typed or stands in a file into the field's type; leaves everything else as it is."""
    on_resume: str = LEARNS


def option(default: Any, help: str, group: str, **more: Any) -> Any:
    """A field with its option; `more` as `Option` has it. A dict is copied for each instance."""
    metadata = {"option": Option(help=help, group=group, **more)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def common(default: Any, help: str, group: str, **more: Any) -> Any:
    """A field whose option `--help` shows."""
    return option(default, help, group, common=True, **more)


def seconds_of(text: str) -> float:
    """Seconds of a duration as people write it: "90s", "10m", "1h30m", or a number of seconds.

    Raises HemafastError for anything else.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or not any(match.groups()):
        raise HemafastError(f"{text!r} is not a duration.", "Write it as 90s, 10m or 1h30m.")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def _duration(value: Any) -> Any:
    return seconds_of(value) if isinstance(value, str) else value


def _sides(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    parts = () if value == "off" else value.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise HemafastError(f"{value!r} is not a list of sizes in pixels.", "Write it as 96,112, or off.")
    return tuple(map(int, parts))


def _trackers(value: Any) -> Any:
    return () if value in (["none"], ("none",)) else value


def _scales(value: Any) -> Any:
    """["NAME=UM", ...] as a mapping."""
    return dict(map(_scale, value)) if isinstance(value, list) else value


def _scale(text: str) -> tuple[str, str]:
    name, equals, number = text.rpartition("=")
    if not equals or not name:
        raise HemafastError(f"--um-per-pixel {text!r} is not NAME=UM.", "Write --um-per-pixel Acevedo_20=0.1.")
    return name, number


def _pairs(value: Any) -> Any:
    """ "NAME=VALUE,NAME=VALUE", or a list of such texts, as a mapping."""
    return _mapping(value, str.partition, "path=Image,label=Class")


def _mapping(value: Any, divide: Callable[[str, str], tuple[str, str, str]], example: str) -> Any:
    """Pairs as a mapping. In quotes, as in csv, they may hold commas."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        return value
    meant: dict[str, str] = {}
    for pair in (part.strip() for row in csv.reader(texts, skipinitialspace=True) for part in row):
        name, equals, new = map(str.strip, divide(pair, "="))
        if pair and not (equals and name):
            raise HemafastError(f"{','.join(texts)!r} is not NAME=VALUE,NAME=VALUE.", f"Write it as {example}.")
        if pair and meant.setdefault(name, new) != new:
            raise HemafastError(f"{','.join(texts)!r} gives {name} two values.", "Remove one of them.")
    return meant


def _several(value: Any) -> Any:
    """One file as a list of one."""
    return [value] if isinstance(value, str | Path) else value


def parse_class_map(value: Any) -> Any:
    """A file becomes a path, pairs become a mapping. None, for a class that is left out, becomes ""."""
    if isinstance(value, dict):
        return {name: "" if meant is None else meant for name, meant in value.items()}
    if not isinstance(value, str):
        return value
    if Path(value).is_file():
        return Path(value)
    if "=" in value:
        return _mapping(value, str.rpartition, "Neutrophil=neutrophil_segmented,Platelet=")
    remedy = "Name a table with the columns from and to, or write pairs as Neutrophil=neutrophil_segmented,Platelet=."
    raise HemafastError(f"--class-map: there is no file {value!r}.", remedy)


def _depths(value: Any) -> Any:
    """["12"] or ["NAME=12"] as a mapping; "" stands for all domains."""
    if isinstance(value, int):
        return {"": value}
    texts = [value] if isinstance(value, str) else value
    return (
        {name: bits for name, _, bits in (text.rpartition("=") for text in texts)} if isinstance(texts, list) else value
    )


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How archives become a prepared data set.

    Raises HemafastError for a value or a combination that makes no sense.
    """

    source: Path = common(
        Path("Source"),
        "Folder of archives or folders, one per domain; or one archive; or a folder of class folders.",
        DATA,
    )
    output: Path = common(
        Path("Source/prepared"), "Where to write the prepared data set.", DATA, none="SOURCE/prepared"
    )
    classes: Classes = common("challenge", "The 11 classes of the challenge, or the class folders as they are.", DATA)
    class_map: Path | dict[str, str] | None = common(
        None,
        "Rename classes: FROM=TO,FROM=TO or a table with the columns from and to. An empty TO leaves a class out.",
        DATA,
        none="none",
        metavar="FROM=TO,...|FILE",
        parse=parse_class_map,
    )
    labels: Path | None = common(
        None,
        "Table of labels (csv, tsv, xlsx, parquet): path and label of each image, perhaps split, group, domain, um/px.",
        DATA,
        none="none",
    )
    columns: dict[str, str] = option(
        {},
        "Names of columns in --labels, as path=Image,label=Class.",
        DATA,
        none="by their common names",
        metavar="ROLE=NAME,...",
        parse=_pairs,
    )
    labels_fix: Path | None = option(
        None,
        "Table of corrected labels, as `hemafast audit` writes it: path and label of some images; empty labels change "
        "nothing.",
        DATA,
        none="none",
        metavar="FILE",
    )
    ignore_labels: bool = option(
        False,
        "Take every image, in whatever folder, as one of the class `unlabelled`, for `hemafast pretrain`.",
        DATA,
        flag="--ignore-labels",
    )
    checksums: Path | None = option(
        None,
        "sha256 sums of archives or images. Another archive is an error; another image is quarantined.",
        DATA,
        none="none",
    )
    val_fraction: Annotated[float, Ge(0), Lt(1)] = common(
        0.2, "Share of each class and domain in the validation set.", SPLITTING
    )
    test_fraction: Annotated[float, Ge(0), Lt(1)] = common(
        0.0,
        "Share of each class and domain to hold out as test images, before anything else is drawn. Nothing but "
        "`hemafast evaluate --split test` reads them.",
        SPLITTING,
    )
    folds: Annotated[int, Ge(2), Le(100)] | None = common(
        None, "Divide the images into this many folds for cross-validation. Fold 0 is the validation set.", SPLITTING
    )
    holdout_domain: str | None = common(
        None, "Use this whole domain as the validation set.", SPLITTING, none="none", metavar="NAME"
    )
    split_file: tuple[Path, ...] = common(
        (),
        "Use a published split: a table with the columns path and split, or one file per split, named after it; "
        "may be repeated.",
        SPLITTING,
        none="none",
        metavar="FILE",
        parse=_several,
    )
    resplit: bool = common(
        False, "Ignore folders named train, val or test and splits in --labels.", SPLITTING, flag="--resplit"
    )
    groups: Path | None = common(
        None,
        "Keep patients or slides on one side of the split: a table with the columns path and group.",
        SPLITTING,
        none="none",
    )
    group_pattern: str | None = common(
        None,
        "The same from file names: the first group of this regular expression names the patient or slide.",
        SPLITTING,
        none="none",
        metavar="REGEX",
    )
    seed: Annotated[int, Ge(0)] = common(42, "Seed of the split.", SPLITTING)
    field_of_view: Annotated[float, Gt(0), Le(100_000)] | Literal["auto", "whole"] = common(
        "auto",
        "Side in micrometres of the centre square to keep of each image. whole: the largest square. "
        "auto: 25 where the scale is known and the image shows as much, else whole.",
        PIXELS,
        metavar="UM|whole|auto",
    )
    um_per_pixel: dict[str, Annotated[float, Ge(0.001), Le(100)] | Literal["unknown"]] = common(
        {},
        "Micrometres per pixel of a domain; may be repeated. unknown keeps its images whole.",
        PIXELS,
        none="estimated from its cells, if not known",
        metavar="NAME=UM|unknown",
        parse=_scales,
    )
    bit_depth: dict[str, Annotated[int, Ge(1), Le(32)]] = option(
        {},
        "Bits that a camera uses of 16, as 12: for all domains, or NAME=12 for one; may be repeated.",
        PIXELS,
        none="by the range of each domain",
        metavar="BITS|NAME=BITS",
        parse=_depths,
    )
    min_side: Annotated[int, Ge(1), Le(1024)] = option(
        16, "Smallest side in pixels of an image that can show a cell; smaller ones are quarantined.", PIXELS
    )
    pack_sizes: Annotated[tuple[PackSize, ...], Len(1)] = common(
        (256,), "Side in pixels of the packed squares; may be repeated.", PIXELS, flag="--pack-size"
    )
    shards: Annotated[int, Ge(1), Le(9999)] = option(8, "File lists per split.", PIXELS)
    format: Format = option("lists", "Write file lists, or WebDataset tar files as well.", PIXELS)
    strict: bool = common(False, "Fail on the first bad image instead of quarantining it.", CHECKING, flag="--strict")
    max_quarantined: Annotated[float, Ge(0), Le(1)] = option(
        0.05, "Stop if a larger share of the images would be quarantined.", CHECKING
    )

    def __post_init__(self) -> None:
        _check(self)
        ways = {"folds": self.folds, "holdout_domain": self.holdout_domain, "split_file": self.split_file}
        chosen = [name for name, value in ways.items() if value not in (None, ())]
        if len(chosen) > 1:
            raise HemafastError(f"{' and '.join(chosen)} exclude each other.", "Choose one way to split.")
        if self.split_file and (self.groups or self.group_pattern):
            raise HemafastError(
                "groups have no effect on a published split.", "Leave out the groups, or leave out --split-file."
            )
        if self.split_file and self.test_fraction:
            raise HemafastError(
                "test_fraction has no effect on a published split.",
                "Name the test images in --split-file, or leave out --test-fraction.",
            )
        if self.groups is not None and self.group_pattern is not None:
            raise HemafastError("groups and group_pattern exclude each other.", "Leave out one of them.")
        if self.ignore_labels:
            _refuse_labels(self)
            object.__setattr__(self, "classes", "from-data")
        if self.columns and self.labels is None:
            raise HemafastError("--columns has no effect without a table of labels.", "Name the table with --labels.")
        if self.group_pattern is not None:
            _refuse_bad_pattern(self.group_pattern)
        if self.val_fraction == 0 and self.holdout_domain is None:
            raise HemafastError(
                "val_fraction = 0 leaves the validation set empty.", "Add --holdout-domain, or give a share above 0."
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a prepared data set becomes a model. The defaults are the reference pipeline's (preset `baseline`).

    Raises HemafastError for a value or a combination that makes no sense.
    """

    preset: str = common("baseline", "Settings to start from.", DATA, none="baseline", metavar="NAME", on_resume=FREE)
    data: Path = common(Path("Source/prepared"), "Prepared data set.", DATA, on_resume=FIXED)
    fold: Annotated[int, Ge(0)] | None = option(
        None, "Fold to validate on, of data prepared with --folds.", DATA, none="0", on_resume=FIXED
    )
    domains: Annotated[tuple[str, ...], Len(1)] | None = option(
        None,
        "Train and validate on this domain only; may be repeated.",
        DATA,
        none="all",
        metavar="NAME",
        on_resume=FIXED,
    )
    output: Path = common(Path("runs"), "Folder in which the run folder is made.", DATA, on_resume=FREE)
    seed: Annotated[int, Ge(0)] = common(42, "Seed of initial weights, order, augmentation and dropout.", DATA)

    model: str = common("resnet18", "Name of any timm image model.", NETWORK, on_resume=FIXED)
    pretrained: Pretrained = common(
        "auto", "Pretrained weights: auto (if available), yes (an error otherwise), no.", NETWORK, on_resume=FIXED
    )
    weights: Path | None = common(
        None,
        "Weights to start from: a file of any origin (safetensors, pth, ckpt ...), or a run; overrides --pretrained.",
        NETWORK,
        none="none",
        on_resume=FIXED,
    )
    image_size: ImageSize = common(224, "Side in pixels of the network's input.", NETWORK)
    growing_from: tuple[ImageSize, ...] = option(
        (),
        "Progressive resizing: smaller sizes to begin with, each for an equal share of the run.",
        NETWORK,
        metavar="N,N...|off",
        parse=_sides,
    )
    dropout: Rate | None = option(None, "Dropout before the classifier.", NETWORK, none="the model's own")
    drop_path: Rate | None = option(None, "Stochastic depth: largest drop rate.", NETWORK, none="the model's own")
    standardize: bool = option(
        False,
        "Bring the channels of each image to one mean and spread, so that cameras and stains differ less.",
        NETWORK,
    )
    quarter_turns: bool = option(
        False,
        "Let the finished model answer with the mean over the four quarter turns of each image, which takes four times "
        "as long. Scores while training are without it.",
        NETWORK,
    )
    freeze_norm: bool = option(False, "Freeze batch norm: running statistics, weight and bias.", NETWORK)
    freeze_stages: Annotated[int, Ge(0)] = option(
        0, "Freeze this many stages of the network, counted from the stem.", NETWORK
    )

    method: Method | None = common(
        None,
        "Self-supervised method: simclr (contrastive), byol (a teacher's features), dino (a teacher's clusters).",
        LEARNING,
        metavar="NAME",
        on_resume=FIXED,
    )
    probe: Annotated[int, Ge(0), Le(64)] = option(
        0,
        "Leave the network as it is, and fit its last layer to features of this many views of each image: the plain "
        "one and others of the policy; 0 trains the network.",
        LEARNING,
        on_resume=FIXED,
    )
    views: Annotated[int, Ge(2), Le(8)] = option(
        2, "Views of each image that a self-supervised method compares.", LEARNING, on_resume=FIXED
    )
    epochs: Annotated[int, Ge(1)] = common(30, "Passes over the training set.", LEARNING, on_resume=FREE)
    time_budget: Annotated[float, Ge(1)] | None = common(
        None,
        "Instead of --epochs: time that the whole command may take, report included.",
        LEARNING,
        metavar="90s|10m|2h",
        parse=_duration,
        on_resume=FREE,
    )
    batch_size: Annotated[int, Ge(2)] | Literal["auto"] = common(
        32,
        "Batch size per process. auto tries sizes and keeps the fastest (CPU) or the smallest nearly as fast (GPU).",
        LEARNING,
        metavar="N|auto",
    )
    accumulate: Annotated[int, Ge(1)] = option(1, "Batches per optimizer step (gradient accumulation).", LEARNING)
    lr: Annotated[float, Gt(0)] = common(1e-4, "Learning rate of AdamW; the peak of the schedule.", LEARNING)
    schedule: ScheduleName = common(
        "constant", "Learning rate schedule: constant, cosine, onecycle.", LEARNING, metavar="NAME"
    )
    warmup: Annotated[float, Ge(0), Lt(1)] | None = option(
        None,
        "Share of the steps in which the learning rate rises.",
        LEARNING,
        none="0 for constant, 0.05 for cosine, 0.3 for onecycle",
    )
    weight_decay: Annotated[float, Ge(0)] = common(0.01, "Weight decay of AdamW; norms and biases have none.", LEARNING)
    layer_decay: Share | None = option(
        None, "Layer-wise learning rates: each layer gets this share of the rate of the layer above.", LEARNING
    )
    clip_grad: Annotated[float, Gt(0)] | None = option(None, "Clip the gradient norm to this value.", LEARNING)
    ema: Rate | None = option(
        None, "Validate and keep an exponential moving average of the weights with this decay, as 0.999.", LEARNING
    )
    loss: LossName = common(
        "cross-entropy",
        "Loss: cross-entropy, weighted (by inverse class frequency), focal, logit-adjusted.",
        LEARNING,
        metavar="NAME",
    )
    focal_gamma: Annotated[float, Ge(0), Le(10)] = option(2.0, "Gamma of --loss focal.", LEARNING)
    logit_tau: Annotated[float, Ge(0), Le(5)] = option(1.0, "Tau of --loss logit-adjusted.", LEARNING)
    label_smoothing: Rate = common(0.0, "Label smoothing.", LEARNING)
    lineage_weight: Annotated[float, Ge(0), Le(10)] = option(
        0.0, "Weight of a loss on the lineage of a cell beside that on its class, with any --loss; 0 is off.", LEARNING
    )
    stage_temperature: Annotated[float, Ge(0), Le(10)] = option(
        0.0,
        "Soft labels: neighbours in the maturation series get a share of the target, in proportion to "
        "e^(-stages / temperature), as 0.5; 0 is off.",
        LEARNING,
    )
    lineage: Path | None = option(
        None,
        "TOML file of the lineages, stages and blasts of your classes, for training and scores.",
        LEARNING,
        none="those of the challenge",
        metavar="FILE",
        on_resume=FIXED,
    )
    teacher: Path | None = option(
        None,
        "Learn from the answers of a trained model too: a run, an ensemble, or its file (distillation).",
        LEARNING,
        none="none",
        metavar="RUN",
        on_resume=FIXED,
    )
    teacher_weight: Annotated[float, Gt(0), Le(1)] = option(
        0.5, "Share of the teacher's answers in the targets; labels have the rest.", LEARNING
    )

    input: Input = option(
        "auto",
        "Source of the pixels: resident (packed squares in device memory), packed (memory-mapped), files or "
        "webdataset (decoded each epoch). auto takes the first that fits.",
        IMAGES,
        metavar="NAME",
    )
    sampler: str = common(
        "natural",
        "Class frequencies in an epoch: natural, balanced, or mixed:SHARE as mixed:0.66.",
        IMAGES,
        metavar="NAME",
    )
    mixup: Annotated[float, Ge(0), Le(10)] = option(0.0, "Alpha of mixup; 0 is off.", IMAGES)
    cutmix: Annotated[float, Ge(0), Le(10)] = option(0.0, "Alpha of cutmix; 0 is off.", IMAGES)
    policy: PolicyName = common(
        "seed",
        "Augmentation of the training images: seed (the reference's), basic, strong, lineage, robust, none. "
        "`hemafast augment-preview` shows them.",
        IMAGES,
        metavar="NAME",
    )

    crop_area: tuple[Share, Share] | None = option(
        None, "Least and largest share of the square to crop, as 0.5 1.", POLICY, metavar="SHARE SHARE"
    )
    zoom: Annotated[float, Ge(0), Le(0.5)] | None = option(
        None, "Scale jitter, as 0.1; has no effect with --crop-area.", POLICY
    )
    symmetry: Symmetry | None = option(None, "Mirror, or all eight flips and quarter turns.", POLICY)
    rotation: Annotated[float, Ge(0), Le(180)] | None = option(None, "Largest rotation in degrees.", POLICY)
    randaugment_ops: Annotated[int, Ge(0), Le(8)] | None = option(None, "RandAugment: operations per image.", POLICY)
    randaugment_magnitude: Annotated[int, Ge(0), Le(30)] | None = option(
        None, "RandAugment: magnitude, 0 to 30.", POLICY
    )
    stain: Annotated[float, Ge(0), Le(0.5)] | None = option(None, "Stain jitter, as 0.05.", POLICY)
    crosstalk: Annotated[float, Ge(0), Le(0.5)] | None = option(
        None, "Mix the channels' optical densities at random, each by up to this share.", POLICY
    )
    grey: Annotated[float, Ge(0), Le(1)] | None = option(None, "Share of the images without colour, as 0.25.", POLICY)
    background: Annotated[float, Ge(0), Le(1)] | None = option(
        None, "Random background: share of the images with one colour outside a circle.", POLICY
    )
    density: Rate | None = option(
        None, "Jitter of the optical density, and by half as much of its tint, as 0.6.", POLICY
    )
    contrast: Annotated[float, Ge(0), Le(1)] | None = option(
        None, "Contrast jitter of each channel, as 0.5: by a factor of up to e^0.5.", POLICY
    )
    brightness: Annotated[float, Ge(0), Le(1)] | None = option(
        None, "Brightness jitter of each channel, as 0.15: a share of the full range.", POLICY
    )
    blur: Annotated[float, Ge(0), Le(10)] | None = option(
        None, "Gaussian blur of half of the images, as 1.2: largest sigma in pixels.", POLICY
    )
    erase: Annotated[float, Ge(0), Le(1)] | None = option(
        None, "Random erasing: share of the images with a blank rectangle.", POLICY
    )

    device: Device = common("auto", "Where the model runs; auto takes a GPU if there is one.", RUNNING)
    amp: Amp = common("auto", "Autocast precision; auto takes the fastest on this machine.", RUNNING)
    compile: Compile = option(
        "auto", "torch.compile; auto compiles on a GPU, unless the time budget is too short for it.", RUNNING
    )
    compile_mode: CompileMode = option(
        "default",
        "Mode of torch.compile: default, reduce-overhead, max-autotune, max-autotune-no-cudagraphs.",
        RUNNING,
        metavar="MODE",
    )
    capture: Capture = option(
        "auto", "Run the training step as one CUDA graph; auto does so on a GPU where it can.", RUNNING, on_resume=FREE
    )
    threads: Annotated[int, Ge(1)] | None = option(
        None, "Threads of the input pipeline.", RUNNING, none="chosen for the machine", on_resume=FREE
    )
    sync_norm: bool = option(False, "Synchronise batch norm over all processes (CUDA).", RUNNING)
    save_every: Annotated[float, Gt(0)] | None = option(
        10.0, "Minutes between checkpoints within an epoch; each epoch ends with one.", RUNNING, on_resume=FREE
    )
    keep: Annotated[int, Ge(1), Le(100)] = option(2, "Checkpoints to keep.", RUNNING, on_resume=FREE)
    on_nonfinite: OnNonfinite = option(
        "stop", "On a loss or gradient that is not finite: stop the run, or skip the update.", RUNNING, on_resume=FREE
    )
    nonfinite_budget: Annotated[int, Ge(0)] = option(
        10, "Updates that may be skipped before the run stops anyway.", RUNNING, on_resume=FREE
    )
    track: tuple[TrackerName, ...] = option(
        ("tensorboard",),
        "Experiment tracker: tensorboard, wandb, mlflow, trackio; may be repeated. none: the CSV only.",
        RUNNING,
        none="none",
        metavar="NAME",
        parse=_trackers,
        on_resume=FREE,
    )

    def __post_init__(self) -> None:
        _check(self)
        refuse_unknown_model(self.model)
        balanced_share(self.sampler)
        if self.method is not None:
            _refuse_idle(self, LABELLED, f"method = {self.method}, which uses no labels", "pretrain")
        if self.probe:
            _become_probe(self)
        if list(self.growing_from) != sorted({*self.growing_from, self.image_size})[:-1]:
            raise HemafastError(
                f"growing_from = {self.growing_from} does not rise to image_size = {self.image_size}.",
                "Give sizes from small to large, all below --image-size, or --growing-from off.",
            )
        if self.crop_area is not None and self.crop_area[0] > self.crop_area[1]:
            raise HemafastError(
                f"crop_area = {self.crop_area}: the first share is larger than the second.",
                "Give the smaller share first.",
            )
        if self.sync_norm and self.device == "cpu":
            raise HemafastError("sync_norm = True needs GPUs, and device = 'cpu'.", "Leave out --sync-norm.")


def _refuse_labels(settings: PrepareConfig) -> None:
    for name in ("labels", "labels_fix", "class_map"):
        if getattr(settings, name) is not None:
            raise HemafastError(f"{name} and ignore_labels exclude each other.", "Leave out one of them.")


def _refuse_idle(settings: TrainConfig, names: Sequence[str], why: str, preset: str) -> None:
    """Raise HemafastError if one of `names` is not at its default, where `preset` leaves all of them there."""
    other = "" if settings.preset == preset else f", or use --preset {preset}"
    for name in names:
        value = getattr(settings, name)
        if value != TrainConfig.__dataclass_fields__[name].default:
            raise HemafastError(f"{name} = {value} has no effect with {why}.", f"Leave it out{other}.")


def _become_probe(settings: TrainConfig) -> None:
    """One epoch. Raises HemafastError for what a probe cannot do."""
    _refuse_idle(settings, STEPPED, f"probe = {settings.probe}, which makes no steps", "probe")
    if settings.epochs not in (1, TrainConfig.epochs):
        raise HemafastError(
            f"epochs = {settings.epochs}: a probe looks at its views once.",
            "Leave it out, or give more views, as --probe 8.",
        )
    if settings.loss not in _PROBE_LOSSES:
        raise HemafastError(
            f"loss = {settings.loss} has no logistic regression, which probe = {settings.probe} fits.",
            f"Choose {' or '.join(_PROBE_LOSSES)}.",
        )
    object.__setattr__(settings, "epochs", 1)


def refuse_other_command(settings: TrainConfig, *, pretrains: bool) -> None:
    """Raise HemafastError if these settings belong to `hemafast train` where it `pretrains`, or the other way round."""
    if pretrains and settings.method is None:
        raise HemafastError("method = None learns from labels.", "Give --method simclr, byol or dino.")
    if not pretrains and settings.method is not None:
        raise HemafastError(f"method = {settings.method} learns without labels.", "Use `hemafast pretrain`.")


def views_of(settings: TrainConfig) -> int:
    """Views of each image in a training batch."""
    return settings.views if settings.method else 1


def located(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of training by name, what is read with its absolute path."""
    paths = {name: settings[name] for name in READ if isinstance(settings.get(name), str | Path)}
    return {**settings, **{name: Path(path).absolute() for name, path in paths.items()}}


def everywhere(config: TrainConfig) -> TrainConfig:
    """The same settings, with absolute paths as in the settings of a run."""
    return checked(TrainConfig, located(to_plain(config)))


def prepared_beside(source: Path) -> Path:
    """Where the data set of a source goes unless --output says it: in the folder, or beside the archive."""
    archive = source.stem.removesuffix(".tar")
    return source.with_name(f"{archive}-prepared") if source.is_file() else source / "prepared"


def option_of(kind: type[Any], name: str) -> Option:
    """The option of a field of PrepareConfig or TrainConfig."""
    found: Option = kind.__dataclass_fields__[name].metadata["option"]
    return found


def train_config(preset: str | None = None, file: Path | None = None, **asked: Any) -> TrainConfig:
    """A training configuration: the preset, then the settings in `file`, then every setting in `asked` but None.

    Args:
        preset: name of a preset; by default the one that `file` names, or `baseline`.
        file: JSON or TOML; the config.json of a run is one.
        asked: fields of TrainConfig.

    Raises:
        HemafastError: an unknown preset or field, or a value out of range.
    """
    from hemafast.presets import named_preset

    stored = read_settings(file) if file is not None else {}
    name = preset or stored.get("preset", TrainConfig.preset)
    given = {name: value for name, value in asked.items() if value is not None}
    return checked(TrainConfig, {**named_preset(name), **stored, "preset": name, **given})


def read_settings(file: Path) -> dict[str, Any]:
    """The fields of TrainConfig that a settings file names.

    Raises HemafastError if it is not a JSON or TOML table, or if a field is unknown or out of range.
    """
    try:
        fields = read_toml(file) if file.suffix == ".toml" else read_json(file, MOST_SETTINGS_BYTES)
    except (OSError, ValueError) as error:
        raise HemafastError(f"{file} cannot be read ({error}).", "Give JSON, or TOML in a file named .toml.") from error
    if not isinstance(fields, dict):
        raise HemafastError(f"{file} holds no table of settings.", "Write a JSON object, or `name = value` per line.")
    try:
        checked(TrainConfig, fields)
    except HemafastError as error:
        raise HemafastError(f"{file}: {error.problem}", error.remedy) from error
    return fields


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


def checked(kind: type[Settings], given: Mapping[str, Any]) -> Settings:
    """Make settings of `kind`. Raises HemafastError that names a field that is unknown or out of range."""
    known = kind.__dataclass_fields__
    for name, value in given.items():
        if name not in known:
            close = get_close_matches(name.replace("-", "_"), known, n=1)
            remedy = f"Did you mean {close[0]}?" if close else f"Settings are: {', '.join(known)}."
            raise HemafastError(f"{name} = {value!r}: there is no such setting.", remedy)
    return kind(**given)


def _check(settings: PrepareConfig | TrainConfig) -> None:
    """Replace each value by what its type makes of it, or raise HemafastError."""
    from pydantic import ValidationError

    kind = type(settings)
    given = {one.name: parsed(kind, one.name, getattr(settings, one.name)) for one in fields(settings)}
    try:
        clean = _model_of(kind).model_validate(given)  # type: ignore[arg-type] # a class is hashable
    except ValidationError as error:
        first = error.errors()[0]
        name = _name_of(first["loc"])
        said = [found["msg"] for found in error.errors() if _name_of(found["loc"]) == name]
        raise HemafastError(f"{name} = {first['input']!r}: {_either(said)}.", "Correct it and try again.") from error
    for name in given:
        object.__setattr__(settings, name, getattr(clean, name))


def parsed(kind: type[Any], name: str, value: Any) -> Any:
    """What is typed for a setting, or stands in a file, as a value of its field; all else as it is."""
    parse = option_of(kind, name).parse
    return value if parse is None else parse(value)


@cache
def _model_of(kind: Any) -> type[BaseModel]:
    from pydantic import ConfigDict, create_model

    hints = get_type_hints(kind, include_extras=True)
    known: dict[str, Any] = {name: (hints[name], ...) for name in kind.__dataclass_fields__}
    strict = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())  # fields may begin with "model_"
    return create_model(kind.__name__, __config__=strict, **known)


def _name_of(place: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in place if not str(part).startswith(_UNION_TAGS))


def _either(said: list[str]) -> str:
    """What pydantic says of a value, in one sentence where several types are allowed."""
    first, *others = (text.partition(", unable")[0] for text in said)
    return " or ".join([first, *(text.removeprefix("Input should be ") for text in others)])


def to_json(settings: PrepareConfig | TrainConfig) -> str:
    """Settings as JSON text that `checked` takes back."""
    return json.dumps(to_plain(settings), indent=2) + "\n"


def to_plain(settings: PrepareConfig | TrainConfig) -> dict[str, Any]:
    """Settings by name as numbers, strings, booleans, lists and None."""
    return {one.name: _plain(getattr(settings, one.name)) for one in fields(settings)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return dict(value)
    return str(value) if isinstance(value, Path) else value
