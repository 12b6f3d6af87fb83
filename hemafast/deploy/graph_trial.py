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

import numpy as np
import numpy.typing as npt

_ROOM = 3 * 2**30  # for one image of 1024 px in a transformer
_ROOM_PER_BYTE = 4  # of the file, which is copied when it is opened
_SECONDS = 300
_MOST_INPUT = 3 * 1024**2  # pixels of an image


def why_not(file: Path, engine: str = "onnxruntime") -> str:
    """What keeps a graph from classifying one image in an engine; empty if nothing does.

    The engine is "onnxruntime" or "openvino". Raises OSError for a missing file.
    """
    room = _ROOM + _ROOM_PER_BYTE * file.stat().st_size
    command = [sys.executable, "-P", __file__, str(file), str(room), engine]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return f"one image takes more than {_SECONDS} s"
    if done.returncode < 0:
        return f"it ends the process, signal {-done.returncode}"
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return "" if done.returncode == 0 else (said or ["no reason given"])[-1][:200]


def _try(file: str, room: int, engine: str) -> None:
    """Open the graph and run it on one black image, with `room` bytes of memory."""
    opened = {"onnxruntime": _open_onnx, "openvino": _open_openvino}
    open_graph = _open_program if file.endswith(".pt2") else opened[engine]
    open_graph(Path(file), lambda: _bound(room))()


def _bound(room: int) -> None:
    """Let this process have `room` bytes more, and leave no core file."""
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _open_program(file: Path, bound: Callable[[], None]) -> Callable[[], object]:
    """An archive that `programs` has looked through."""
    import torch

    torch.set_num_threads(1)
    bound()
    program = torch.export.load(file)
    (name,) = program.graph_signature.user_inputs
    shape = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape
    black = _black([size if isinstance(size, int) else 1 for size in shape])
    return lambda: program.module()(torch.from_numpy(black))


def _open_onnx(file: Path, bound: Callable[[], None]) -> Callable[[], object]:
    import onnxruntime

    bound()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    black = _black([size if isinstance(size, int) else 1 for size in given.shape])
    return lambda: session.run(None, {given.name: black})


def _open_openvino(file: Path, bound: Callable[[], None]) -> Callable[[], object]:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # it would send usage data
    import openvino

    core = openvino.Core()
    bound()
    model = core.read_model(file.read_bytes(), b"")
    (given,) = model.inputs
    black = _black([size.get_length() if size.is_static else 1 for size in given.get_partial_shape()])
    request = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1}).create_infer_request()
    return lambda: request.infer({0: black})


def _black(shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    if math.prod(shape) > _MOST_INPUT:
        raise ValueError(f"it takes images of the shape {list(shape)}")
    return np.zeros(shape, np.uint8)


if __name__ == "__main__":
    _try(sys.argv[1], int(sys.argv[2]), sys.argv[3])
