"""The `hemafast` command: parse, call one function, print. Each module has the commands of one station."""

from hemafast.cli.common import app, main

# In the order in which --help lists the commands.
from hemafast.cli import data, training, evaluation, ensembles, deployment, patients  # isort: skip  # noqa: F401
from hemafast.cli import transfer, experiments, measuring, doctor  # isort: skip  # noqa: F401

__all__ = ["app", "main"]
