"""Processes that train together, one per device, started by torchrun. A run on one device is a world of one."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from hemafast.config import Device
from hemafast.data.stream import ALONE, Process
from hemafast.errors import HemafastError
from hemafast.nvidia import uses_gpu
from hemafast.words import counted

Anything = TypeVar("Anything")

_PATIENCE = timedelta(minutes=30)  # that a process waits for the others, one of which may compile alone


class World:
    """All processes of a run, as one of them sees them. The methods are collective: every process must call them."""

    def __init__(self, process: Process = ALONE, *, local_rank: int = 0, local_size: int = 1) -> None:
        self.process, self.local_rank, self.local_size = process, local_rank, local_size
        self._control: Any = None
        self._vote: Any = None
        self._pending: Any = None
        if not self.alone:
            # Small values travel between the hosts by gloo, so that nobody waits for a device.
            self._control = distributed.new_group(backend="gloo", timeout=_PATIENCE)
            self._vote = torch.zeros(1, dtype=torch.int32)

    @property
    def alone(self) -> bool:
        """Whether this process is the only one."""
        return self.process.world_size == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.process.rank == 0

    def broadcast(self, value: Anything) -> Anything:
        """The value of the first process."""
        return self.gather(value)[0]

    def gather(self, value: Anything) -> list[Anything]:
        """The values of all processes, by rank."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.process.world_size
        distributed.all_gather_object(values, value, group=self._control)
        return values

    def add_up(self, tensor: Tensor) -> None:
        """Replace the tensor on the device with its sum over all processes."""
        if not self.alone:
            distributed.all_reduce(tensor)

    def together(self, work: Callable[[], Anything]) -> Anything:
        """What `work` returns here, once it has succeeded in all processes.

        Raises HemafastError in all of them if it did in one, so that none waits for one that has ended.
        """
        if self.alone:
            return work()
        result, failure = list[Anything](), None
        try:
            result.append(work())
        except HemafastError as error:
            failure = (platform.node(), error.problem, error.remedy)
        for rank, failed in enumerate(self.gather(failure)):
            if failed is not None:
                host, problem, remedy = failed
                raise HemafastError(f"Process {rank} on {host}: {problem}", remedy)
        return result[0]

    def highest(self, *values: float) -> list[float]:
        """The highest of each value that any process has."""
        if self.alone:
            return list(values)
        highest = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(highest, op=distributed.ReduceOp.MAX, group=self._control)
        return highest.tolist()

    def barrier(self) -> None:
        """Wait for all processes."""
        self.gather(None)

    def vote(self, number: int) -> int:
        """The highest number of any process in the previous call, so that nobody waits for this one."""
        if self.alone:
            return number
        decided = self._decided()
        self._vote.fill_(number)
        self._pending = distributed.all_reduce(
            self._vote, op=distributed.ReduceOp.MAX, group=self._control, async_op=True
        )
        return decided

    def _decided(self) -> int:
        if self._pending is None:
            return 0
        self._pending.wait()
        self._pending = None
        return int(self._vote.numpy()[0])

    def align(self, model: nn.Module) -> None:
        """Copy the buffers of the first process to all, because each has batch norm statistics of its own images."""
        if not self.alone:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)

    def share(self, model: nn.Module, device: str) -> nn.Module | None:
        """The model inside DistributedDataParallel, which averages gradients over all processes; None if alone.

        Buffers do not travel in training: batch norm does not read its statistics there, and `align` copies them before
        each validation. `static_graph` is off: it gains nothing, as every parameter is used, and with it torch 2.14
        fails where gradients are accumulated.
        """
        if self.alone:
            return None
        devices = [self.local_rank] if device == "cuda" else None
        return DistributedDataParallel(
            model, device_ids=devices, gradient_as_bucket_view=True, forward_sync_buffers=False
        )


@contextmanager
def joined(device: Device, environment: Mapping[str, str] = os.environ) -> Iterator[World]:
    """The world that the variables of torchrun describe; NCCL between GPUs, gloo between CPUs.

    Raises HemafastError if the variables are wrong, if Slurm started several processes without torchrun, if a host has
    fewer GPUs than processes, or if only some processes have a GPU.
    """
    _refuse_bare_slurm(environment)
    try:
        rank, size, local_rank, local_size = (
            int(environment.get(name, default))
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
        )
    except ValueError as error:
        raise _not_torchruns(error) from error
    if size == 1:
        yield World()
        return
    if not 0 <= rank < size:
        raise _not_torchruns(f"rank {rank} of {size}")
    on_cuda = uses_gpu(device)
    if on_cuda:
        if local_rank >= torch.cuda.device_count():
            raise HemafastError(
                f"{counted(local_size, 'process')} share {counted(torch.cuda.device_count(), 'GPU')} here.",
                "Set --nproc-per-node to the number of GPUs.",
            )
        torch.cuda.set_device(local_rank)
    # The store still holds the addresses of dead processes, so each restart has a prefix of its own. Hosts count their
    # own restarts; with several, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 lets torchrun make a new store instead.
    prefix = f"life {restarts(environment)}" if local_size == size else "life"
    store = PrefixStore(prefix, _meeting_place())
    _refuse_mixed(store, rank, on_cuda=on_cuda)
    distributed.init_process_group(
        "nccl" if on_cuda else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
        device_id=torch.device("cuda", local_rank) if on_cuda else None,
    )
    world = World(Process(rank, size), local_rank=local_rank, local_size=local_size)
    try:
        yield world
    finally:
        with suppress(RuntimeError):  # if another process died, its consequence is being raised already
            world._decided()
        distributed.destroy_process_group()


def _meeting_place() -> Any:
    """The store of torchrun, in which processes find each other's addresses."""
    try:
        store, _, _ = next(rendezvous("env://"))
    except ValueError as error:  # no rank, or no address
        raise _not_torchruns(error) from error
    return store


def _refuse_mixed(store: Any, rank: int, *, on_cuda: bool) -> None:
    """Raise HemafastError if this process has a GPU and the first has none, or the other way round."""
    mine = "a GPU" if on_cuda else "the CPU"
    if rank == 0:
        store.set("device", mine)
        return
    first = store.get("device").decode()
    if first != mine:
        raise HemafastError(
            f"Process {rank} on {platform.node()} trains on {mine}, and process 0 on {first}.",
            "Give all hosts a GPU per process, or use --device cpu.",
        )


def _refuse_bare_slurm(environment: Mapping[str, str]) -> None:
    """Raise HemafastError if srun started several copies of this command, which know nothing of each other.

    srun sets SLURM_STEP_NUM_TASKS for each step. A batch script has only SLURM_NTASKS: it is one process, whatever the
    job may start.
    """
    copies = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if copies in ("", "1") or "WORLD_SIZE" in environment:
        return
    raise HemafastError(
        f"Slurm started {copies} copies of this command, and each would train alone (SLURM_STEP_NUM_TASKS={copies}).",
        "Start one torchrun per node: `srun --ntasks-per-node=1 torchrun --nproc-per-node GPUS -m hemafast train ...` "
        "(docs/distributed.md). For a separate run in each task, set WORLD_SIZE=1.",
    )


def _not_torchruns(why: object) -> HemafastError:
    return HemafastError(
        f"RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT do not come from torchrun ({why}).",
        "Unset them, or start with torchrun.",
    )


def refuse_several(environment: Mapping[str, str] = os.environ) -> None:
    """Raise HemafastError if torchrun started several processes, for work that one process does."""
    _refuse_bare_slurm(environment)
    started = environment.get("WORLD_SIZE", "1")
    if started != "1":
        raise HemafastError(
            f"torchrun started {started} processes.", "Start this without torchrun, or use `hemafast train`."
        )


def restarts(environment: Mapping[str, str] = os.environ) -> int:
    """How often torchrun has restarted these processes because one of them died."""
    return int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
