"""fastai's own recipe: `vision_learner` and `fine_tune`, as its book has them. Runs in fastai's environment (peers.py).

    python benchmarks/fastai_loop.py --train DIR --val DIR --weights FILE --json points.json

Images are resized to 160 px on the way in and augmented in batches at 128 px (`aug_transforms`, with both mirrors and
without the warp that cells do not have). One epoch trains the head, the others everything.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import psutil
from fastai.vision.all import (
    Callback,
    F1Score,
    ImageDataLoaders,
    Resize,
    aug_transforms,
    set_seed,
    vision_learner,
)

SIZE, READ = 128, 160
BATCH = 32


class Points(Callback):  # type: ignore[misc]  # fastai has no types
    """Writes seconds of the process and macro-F1 after each epoch."""

    order = 60  # after the recorder, which has the score

    def __init__(self, file: Path) -> None:
        self.file, self.points = file, []  # type: ignore[var-annotated]
        self.started = psutil.Process().create_time()

    def after_epoch(self) -> None:
        """Called by fastai."""
        score = float(self.learn.final_record[-1])
        self.points.append({"seconds": time.time() - self.started, "f1_macro": score})
        self.file.write_text(json.dumps(self.points, indent=2) + "\n", encoding="utf-8")


def asked() -> argparse.Namespace:
    """The command line: typer is not in this environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "val", "weights", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5, help="After the first one, of the head.")
    return parser.parse_args()


def main() -> None:
    """Fine-tune as long as asked."""
    options = asked()
    set_seed(options.seed, reproducible=True)
    batches = ImageDataLoaders.from_folder(
        options.train.parent,
        train=options.train.name,
        valid=options.val.name,
        item_tfms=Resize(READ),
        batch_tfms=aug_transforms(size=SIZE, flip_vert=True, max_warp=0.0),
        bs=BATCH,
        num_workers=2,
    )
    learner = vision_learner(
        batches,
        options.model,
        metrics=F1Score(average="macro"),
        pretrained=True,
        pretrained_cfg_overlay={"file": str(options.weights)},
    )
    with learner.no_bar():
        learner.fine_tune(options.epochs, cbs=Points(options.json))


if __name__ == "__main__":
    main()
