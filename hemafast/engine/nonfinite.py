"""Save a batch whose loss or gradients were not finite, to look at and to replay."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from hemafast.data.dataset import Dataset
from hemafast.data.loader import Batch
from hemafast.files import write_whole
from hemafast.preparation.split import TRAIN
from hemafast.run_folder import NONFINITE


def save_bad_batch(folder: Path, batch: Batch, dataset: Dataset, *, epoch: int, number: int, rank: int = 0) -> Path:
    """Write a training batch into the run `folder`: a file of tensors, and its rows of the manifest as CSV beside it.

    `images` are uint8 (n, 3, height, width), augmented but not mixed. `epoch` counts from 1, `number` is the batch in
    the epoch and counts from 0. Returns the file of tensors.
    """
    folder = folder / NONFINITE
    folder.mkdir(exist_ok=True)
    file = folder / f"epoch{epoch:03d}-batch{number:05d}-rank{rank}.safetensors"
    tensors = {"images": batch.images.contiguous(), "labels": batch.labels, "rows": batch.rows}
    where = {"epoch": str(epoch), "batch": str(number), "classes": json.dumps(dataset.info.classes)}
    write_whole(file, lambda part: save_file(tensors, part, where))
    rows = dataset.split(TRAIN).iloc[batch.rows.numpy()]
    write_whole(file.with_suffix(".csv"), lambda part: rows.to_csv(part, index=False))
    return file
