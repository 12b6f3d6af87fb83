"""Write an adapted model as a run folder of its own: the parent's settings and log, weights, what was done, a page."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from hemafast.config import TrainConfig, to_json
from hemafast.engine.checkpoint import ModelCard, save_best
from hemafast.files import write_text
from hemafast.model import Classifier
from hemafast.pages import render
from hemafast.run_folder import (
    ADAPTATION,
    ADAPTATION_PAGE,
    BEST,
    CALIBRATION,
    COMMAND,
    CONFIG,
    LIKENESS,
    LOG_TABLE,
    MACHINE,
    filling_run_folder,
)


def write_adapted(
    parent: Path, config: TrainConfig, output: Path, network: Classifier, card: ModelCard, result: dict[str, Any]
) -> Path:
    """Write a run folder under `output`, completely or not at all.

    Args:
        parent: run folder of the parent. Its training log and machine are part of the new run's history, and its
            calibration and likeness too if its weights are kept.
        config: settings of the parent.
        output: folder of the runs.
        network: the adapted network.
        card: its card.
        result: what was done, the content of ADAPTATION.

    Returns:
        The folder.

    Raises:
        HemafastError: it cannot be written.
    """
    with filling_run_folder(replace(config, output=output), "adapted") as folder:
        kept = (MACHINE, LOG_TABLE, *((CALIBRATION, LIKENESS) if result["kept_parent"] else ()))
        for name in kept:
            if (parent / name).is_file():
                shutil.copyfile(parent / name, folder / name)
        write_text(folder / CONFIG, to_json(config))
        write_text(folder / COMMAND, result["command"] + "\n")
        write_text(folder / ADAPTATION, json.dumps(result, indent=2, allow_nan=False) + "\n")
        write_text(folder / ADAPTATION_PAGE, render("transfer/adaptation.html.j2", name=folder.name, **result))
        save_best(folder / BEST, network, card)
    return folder
