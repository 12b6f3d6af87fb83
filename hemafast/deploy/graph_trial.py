"""Run an ONNX graph or an exported program of unknown origin once, in a process of its own whose memory is bounded.

A graph of a hundred bytes can ask for any amount of memory, while it is opened or when it runs, and a damaged one can
end the process. No header tells that beforehand. So a child tries: it may fail, and even die.
"""

from __future__ import annotations

import math
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_ROOM = 3 * 2**30  # for one image of 1024 px in a transformer
_ROOM_PER_BYTE = 4  # of the file, which is copied when it is opened
_SECONDS = 300
_MOST_INPUT = 3 * 1024**2  # pixels of an image


def why_not(file: Path) -> str:
    """What keeps a graph from classifying one image; empty if nothing does. Raises OSError for a missing file."""
    room = _ROOM + _ROOM_PER_BYTE * file.stat().st_size
    command = [sys.executable, "-P", __file__, str(file), str(room)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return f"one image takes more than {_SECONDS} s"
    if done.returncode < 0:
        return f"it ends the process, signal {-done.returncode}"
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return "" if done.returncode == 0 else (said or ["no reason given"])[-1][:200]


def _try(file: str, room: int) -> None:
    """Open the graph and run it on one black image, with `room` bytes of memory."""
    open_graph = _open_program if file.endswith(".pt2") else _open_onnx
    open_graph(file, lambda: _bound(room))()


def _bound(room: int) -> None:
    """Allow this process `room` more bytes of memory."""
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _open_program(file: str, bound: Callable[[], None]) -> Callable[[], object]:
    """An archive that `programs` has looked through."""
    import torch

    torch.set_num_threads(1)
    bound()
    program = torch.export.load(file)
    (name,) = program.graph_signature.user_inputs
    shape = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape
    sizes = [size if isinstance(size, int) else 1 for size in shape]
    _refuse_large(sizes)
    return lambda: program.module()(torch.zeros(sizes, dtype=torch.uint8))


def _open_onnx(file: str, bound: Callable[[], None]) -> Callable[[], object]:
    import numpy as np
    import onnxruntime

    bound()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(Path(file).read_bytes(), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in given.shape]
    _refuse_large(shape)
    return lambda: session.run(None, {given.name: np.zeros(shape, np.uint8)})


def _refuse_large(shape: Sequence[int]) -> None:
    if math.prod(shape) > _MOST_INPUT:
        raise ValueError(f"it takes images of the shape {shape}")


if __name__ == "__main__":
    _try(sys.argv[1], int(sys.argv[2]))
