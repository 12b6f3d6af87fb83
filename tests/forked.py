"""The command line in a process of its own that need not import anything: seconds cheaper than a new interpreter.

A server has imported what the commands import, has one thread, and runs nothing. Processes are forked from it. They
share nothing with each other or with the tests, and end as other processes do. What depends on the order of imports or
on the variables that libraries read when they are imported needs a new interpreter.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch

IMPORTED = (
    *("pytest", "torch", "torchvision", "timm", "numba", "nvidia.dali.fn", "nvidia.dali.plugin.numba", "pandas"),
    *("pyarrow.parquet", "pyarrow.dataset", "scipy.sparse.csgraph", "scipy.stats", "scipy.ndimage", "jinja2"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "rich.table"),
    *("rich.logging", "torch.utils.tensorboard", "hemafast.cli", "hemafast.cli.tables", "hemafast.report.page"),
    *("hemafast.preparation.build", "hemafast.engine.trainer", "hemafast.evaluate.evaluate", "hemafast.doctor"),
)


ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""What keeps libraries from starting threads when they are imported."""


def context() -> ForkServerContext:
    """Start processes from the server. All call this: its imports and threads are settled when it starts."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(IMPORTED))
    with patch.dict(os.environ, ONE_THREAD):
        forkserver.ensure_running()
    return server


Ended = subprocess.CompletedProcess[str]


def hemafast(
    *arguments: object, cwd: Path, timeout: float = 300, first: Callable[[], None] | None = None, **environment: str
) -> Ended:
    """Exit code and output of `hemafast ARGUMENTS`, in a process that calls `first` before.

    Raises subprocess.TimeoutExpired after that many seconds.
    """
    words = list(map(str, arguments))
    with TemporaryDirectory() as said:
        process = context().Process(target=_run, args=(words, cwd, {**os.environ, **environment}, said, first))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["hemafast", *words], timeout)
        out, err = (Path(said, name).read_text(encoding="utf-8") for name in ("out", "err"))
    return Ended(["hemafast", *words], process.exitcode, out, err)


def _run(words: list[str], cwd: Path, environment: dict[str, str], said: str, first: Callable[[], None] | None) -> None:
    """In the new process: become the command. Collections of garbage pass over what the server has imported."""
    assert torch.get_num_threads() == 1, "the server was started elsewhere, not by `context`"
    gc.freeze()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(said, name), os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["hemafast", *words]
    if first is not None:
        first()
    from hemafast.cli import main

    main()
