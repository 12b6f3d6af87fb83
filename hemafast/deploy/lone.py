"""A model's file that came without its run, such as the one file of an ensemble, gets a run folder to be scored in."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from pathlib import Path

from hemafast.config import TrainConfig, to_json
from hemafast.engine.checkpoint import load_best, read_card
from hemafast.files import write_text
from hemafast.regular import open_regular
from hemafast.run_folder import BEST, COMMAND, CONFIG, MACHINE, filling_run_folder, run_folders

_MACHINE = '{"choices": [], "facts": {}}\n'  # of the training, which a model's file does not tell


def run_of_file(file: Path, data: Path = TrainConfig.data, output: Path = TrainConfig.output) -> Path:
    """A run folder under `output` for the model in `file`, which stays as it is; the same file has one such folder.

    Args:
        file: weights and card, as `best_model.safetensors` of any run and of any ensemble.
        data: prepared data set that becomes the run's own, if the model was trained on it.
        output: folder of the runs.

    Raises:
        HemafastError: it is no such file, it is damaged, or the folder cannot be written.
    """
    card = read_card(file)
    with open_regular(file) as content:
        kind = f"file-{hashlib.file_digest(content, 'sha256').hexdigest()[:8]}"
    for folder in run_folders(output):
        if folder.name.endswith(f"_{kind}"):
            return folder
    load_best(file)  # refuses what is damaged before anything is written
    model = card.backbone if not card.members else card.members[0].backbone
    config = TrainConfig(
        data=data, output=output, model=model, image_size=card.image_size, quarter_turns=card.quarter_turns
    )
    with filling_run_folder(config, kind) as folder:
        shutil.copyfile(file, folder / BEST)
        write_text(folder / CONFIG, to_json(config))
        write_text(folder / COMMAND, shlex.join(["hemafast", "evaluate", str(file), "--data", str(data)]) + "\n")
        write_text(folder / MACHINE, _MACHINE)
    return folder
