"""Presets: named sets of training options. Options on the command line override those of the preset.

The reference is a portfolio pipeline for the Helmholtz HIDA challenge. `baseline` to `onecycle` are its five
experiments with its options and hyperparameters, but validated without augmentation. Its published scores (pooled
80/20 split, validated under training augmentation) are quoted where known; values that were not measured are marked.
Hours are computed for the whole challenge (26,000 training images) from rates measured on two CPU cores in fp32
(benchmarks/results/train_step.json).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from hemafast.errors import HemafastError

Fields = dict[str, Any]


def baseline() -> Fields:
    """ResNet-18, AdamW at 1e-4, batches of 32 at 224 px, 30 epochs, the reference's augmentation.

    Command: `hemafast train`
    Time: 11 hours on two CPU cores (19 images/s); not measured on a GPU.
    Score: the reference published a macro-F1 of 0.89 for ResNet-18; not measured here.
    """
    return {}


def weighted_loss() -> Fields:
    """`baseline` with classes weighted by the inverse of their frequency.

    Command: `hemafast train --preset weighted_loss`
    Time: as `baseline`.
    Score: not measured here.
    """
    return {**baseline(), "loss": "weighted"}


def strong_augment() -> Fields:
    """`baseline` with RandAugment and random erasing on top of the crop.

    Command: `hemafast train --preset strong_augment`
    Time: as `baseline`; on a fast GPU the input pipeline may limit it (see docs/data.md).
    Score: not measured here.
    """
    return {**baseline(), "policy": "strong"}


def b0() -> Fields:
    """`baseline` with EfficientNet-B0.

    Command: `hemafast train --preset b0`
    Time: 8 hours on two CPU cores (28 images/s); not measured on a GPU.
    Score: the reference published a macro-F1 of 0.90; not measured here.
    """
    return {**baseline(), "model": "efficientnet_b0"}


def onecycle() -> Fields:
    """`b0` with a one-cycle learning rate that peaks at 1e-3; autocast where it is fast.

    Command: `hemafast train --preset onecycle`
    Time: as `b0`.
    Score: the reference published a macro-F1 of 0.907; not measured here.
    """
    return {**b0(), "schedule": "onecycle", "lr": 1e-3}


def quick() -> Fields:
    """A first model in minutes on two CPU cores: a small network, 128 px, five epochs of one cycle.

    Command: `hemafast train --preset quick`
    Time: 3 minutes on two CPU cores for 3,000 images (83 images/s).
    Score: see docs/results.md, with data, seed and interval.
    """
    return {
        "model": "tf_efficientnet_lite0",
        "epochs": 5,
        "batch_size": 32,
        "image_size": 128,
        "policy": "basic",
        "lr": 3e-3,
        "schedule": "onecycle",
        "label_smoothing": 0.1,
    }


def fast() -> Fields:
    """`quick` for other laboratories, in fewer seconds: the early half is frozen, the policy is `robust`.

    Command: `hemafast train --preset fast`
    Time: 1 to 4 minutes for 2,300 images on two CPU cores, depending on the processor.
    Score: see the README, with data and seeds; benchmarks/README.md says what each option buys.
    """
    return {
        **quick(),
        "epochs": 6,
        "freeze_stages": 5,
        "warmup": 0.15,
        "ema": 0.95,
        "standardize": True,
        "quarter_turns": True,
        "policy": "robust",
        "sampler": "mixed:0.5",
    }


def robust() -> Fields:
    """`fast` for longer, with more of the network thawed: the best score here in laboratories it has not seen.

    Command: `hemafast train --preset robust`
    Time: 4 to 12 minutes for 2,300 images on two CPU cores, depending on the processor.
    Score: see docs/another-lab.md, at home and in three other laboratories, with data, seeds and intervals.
    """
    return {**fast(), "epochs": 12, "freeze_stages": 3}


def best() -> Fields:
    """Score before speed: rare classes more often, mild stain and scale jitter, averaged weights.

    Command: `hemafast train --preset best`
    Time: 7 hours on two CPU cores (28 images/s at full size); not measured on a GPU.
    Score: see benchmarks/README.md, within equal seconds, with data, seeds and intervals.
    """
    return {
        "model": "efficientnet_b0",
        "epochs": 40,
        "batch_size": 64,
        "growing_from": (128, 176),
        "policy": "lineage",
        "sampler": "mixed:0.66",
        "lr": 2e-3,
        "schedule": "onecycle",
        "weight_decay": 0.05,
        "drop_path": 0.1,
        "label_smoothing": 0.1,
        "clip_grad": 1.0,
        "ema": 0.999,
    }


def gpu() -> Fields:
    """For a GPU: EfficientNet-B0 at 224 px in batches of 256, with a rate that fits them, warm-up and averaged weights.

    Command: `hemafast train --preset gpu`
    Time: not measured on a GPU; 2,040 updates of 256 images for the whole challenge.
    Score: not measured; `--batch-size 32 --accumulate 8` makes these updates on a CPU, with batch norm over 32 images.
    """
    return {
        **best(),
        "epochs": 20,
        "batch_size": 256,
        "growing_from": (),
        "sampler": "natural",
        "lr": 4e-3,  # of `best`, times the square root of 256 / 64: Malladi et al., arXiv 2205.10287
        "warmup": 0.15,
        "ema": 0.99,
    }


def gpu_fast() -> Fields:
    """For a GPU, a first model in seconds: the network and the images of `quick` in batches of 128, for more epochs.

    Command: `hemafast train --preset gpu_fast`
    Time: not measured on a GPU; 216 updates of 128 images for 2,300 images.
    Score: 0.909 (0.884 to 0.933) on a CPU by `--batch-size 32 --accumulate 4`: Acevedo_20, 10 classes, 574 images.
    """
    return {
        **quick(),
        "epochs": 12,
        "batch_size": 128,
        "lr": 6e-3,  # of `quick`, times the square root of 128 / 32
        "warmup": 0.15,
        "clip_grad": 1.0,
        "ema": 0.95,
    }


def probe() -> Fields:
    """A last layer alone, on a network that stays as it is: for published encoders (`--weights`), and for a first look.

    Command: `hemafast train --preset probe`
    Time: one pass over four views of the training images, then seconds; see docs/pretrain.md, with data and machine.
    Score: see docs/pretrain.md, with data, seeds and interval.
    """
    return {
        "probe": 4,
        "model": "tf_efficientnet_lite0",
        "epochs": 1,
        "batch_size": 64,
        "image_size": 224,
        "policy": "basic",
        "sampler": "balanced",
        "compile": "off",  # compiling takes longer than the pass
    }


def pretrain() -> Fields:
    """Features without labels, for `hemafast pretrain` alone: the network and the size of `quick`, strong views.

    Command: `hemafast pretrain`
    Time: see docs/pretrain.md, with data and machine.
    Score: see docs/pretrain.md, of a classifier that starts from it, by its share of labels.
    """
    return {
        "method": "simclr",
        "model": "tf_efficientnet_lite0",
        "epochs": 30,
        "batch_size": 64,
        "image_size": 128,
        "policy": "robust",
        "crop_area": (0.3, 1.0),
        "background": 0.0,  # else a circle that only one view has tells them apart
        "lr": 1e-3,
        "schedule": "cosine",
        "warmup": 0.1,
        "weight_decay": 0.05,
        "clip_grad": 3.0,
        "compile": "off",  # its losses choose on the host
    }


PRESETS: dict[str, Callable[[], Fields]] = {
    preset.__name__: preset
    for preset in (
        *(baseline, weighted_loss, strong_augment, b0, onecycle, quick, fast, robust, best, gpu, gpu_fast, probe),
        pretrain,
    )
}


_FREEZE = ("freeze_stages", "freeze_norm")


def thawed(preset: str, settings: Mapping[str, Any]) -> Fields:
    """The fields that train what the preset `preset` freezes, for weights from which there is nothing to keep.

    Only fields whose values in `settings` are those of the preset: what a user has frozen otherwise stays so.
    """
    frozen = {name: value for name, value in named_preset(preset).items() if name in _FREEZE and value}
    return {name: type(value)(0) for name, value in frozen.items() if settings[name] == value}


def named_preset(name: str) -> Fields:
    """The fields that the preset `name` sets. Raises HemafastError if there is no such preset."""
    if name not in PRESETS:
        close = get_close_matches(name, PRESETS, n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise HemafastError(f"There is no preset {name!r}.", f"{hint}Presets are: {', '.join(PRESETS)}.")
    return PRESETS[name]()
