"""The command line within this process: quicker than a process of its own, and what it asks of others can be seen."""

import io
import logging
import os
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from unittest.mock import patch

import pytest

from hemafast.cli import main
from hemafast.config import TrainConfig


def hemafast(*arguments, cwd=None) -> subprocess.CompletedProcess[str]:
    """Exit code and output of `hemafast ARGUMENTS`."""
    command = ["hemafast", *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as change, redirect_stdout(out), redirect_stderr(err), _process_kept():
        change.setattr(sys, "argv", command)
        if cwd is not None:
            change.chdir(cwd)
        try:
            main()
        except SystemExit as error:
            code = error.code or 0
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def asked_of_training(*arguments, cwd=None, command="train") -> TrainConfig:
    """The settings that `hemafast train ARGUMENTS`, or another command that trains, would train with."""
    asked = []
    with pytest.MonkeyPatch.context() as change:
        change.setattr("hemafast.engine.trainer.train", lambda config, **_: asked.append(config))
        change.setattr("hemafast.cli.training.refuse_missing_data", lambda folder: None)
        done = hemafast(command, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return asked[0]


@contextmanager
def _process_kept():
    """Put back what the command sets for the whole process: where the log goes, and variables of the environment."""
    root, ours = logging.getLogger(), logging.getLogger("hemafast")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    root.handlers[:] = []  # else they would be closed
    try:
        with patch.dict(os.environ):
            yield
    finally:
        root.handlers[:] = handlers
        for logger, level in zip((root, ours), levels, strict=True):
            logger.setLevel(level)
