"""Two processes that train together on this machine: a pair that waits for work, or the command under torchrun."""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import forked

TIMEOUT = 120  # seconds; none of it takes a tenth of that


class Pair:
    """Calls a function of a test module in both processes at once; what they return comes back by rank."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for pipe in self._pipes:
            pipe.send((store.port, work, arguments))
        results = []
        for pipe in self._pipes:
            if not pipe.poll(TIMEOUT):
                raise TimeoutError(f"{work.__name__} is not over after {TIMEOUT} s")
            results.append(pipe.recv())
        failures = [failure for _, failure in results if failure]
        if failures:
            raise RuntimeError("\n".join(failures))
        return [result for result, _ in results]


@contextmanager
def pair_of_processes() -> Iterator[Pair]:
    """Start both, and end them."""
    context = forked.context()
    ends = [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=_serve, args=(rank, far), daemon=True) for rank, (_, far) in enumerate(ends)]
    for process in processes:
        process.start()
    try:
        yield Pair([near for near, _ in ends])
    finally:
        for process in processes:
            process.kill()
            process.join()
        for end in (end for pipe in ends for end in pipe):
            end.close()


def _serve(rank: int, pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    while True:
        port, work, arguments = pipe.recv()
        os.environ |= {
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"},
        }
        try:
            pipe.send((work(*arguments), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What `torchrun` with two processes on this machine leaves; `arguments` as of python."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=TIMEOUT,
        check=False,
    )


def torchrun_with(event: str, update: int, *arguments: object, cwd: Path, restarts: int = 0) -> forked.Ended:
    """What `torchrun` with two processes of `hemafast ARGUMENTS` leaves, where something happens once.

    `event` is `kill` (the second process kills itself) or `stop` (it sends SIGTERM to torchrun), before that update.
    All three processes are forked, so that they need not import anything.
    """
    first = partial(_become_torchrun, event, update, restarts)
    return forked.hemafast(*arguments, cwd=cwd, timeout=TIMEOUT, first=first, OMP_NUM_THREADS="1")


def _become_torchrun(event: str, update: int, restarts: int) -> None:
    """In the process that was to be the command: it launches two of them, as `torchrun` does."""
    from torch.distributed import run
    from torch.distributed.launcher.api import elastic_launch

    standalone = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")
    asked = [*standalone, "--nproc-per-node", "2", "--max-restarts", str(restarts), "hemafast"]
    config, _, _ = run.config_from_args(run.parse_args(asked))
    config.start_method = "fork"
    elastic_launch(config, _command)(event, update)
    sys.exit()


def _command(event: str, update: int) -> None:
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        _let_happen(event, update)
    from hemafast.cli import main

    main()


def _let_happen(event: str, update: int) -> None:
    from hemafast.engine.step import TrainStep

    train, happened = TrainStep.__call__, False

    def call(self: TrainStep, *arguments: Any, step: int, **options: Any) -> None:
        nonlocal happened
        if step == update and not happened:
            happened = True
            os.kill(*((os.getpid(), signal.SIGKILL) if event == "kill" else (os.getppid(), signal.SIGTERM)))
        train(self, *arguments, step=step, **options)

    TrainStep.__call__ = call  # type: ignore[method-assign]
