"""Any weights file is read by its content; none can run code, fill the memory, or pass for another kind of file."""

import argparse
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from hemafast.errors import HemafastError
from hemafast.weights_file import read_weights

TENSORS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([1.0, -1.0])}


def _saved(content, *, legacy=False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def _file(folder: Path, content: bytes, name: str = "weights") -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def _equal(first, second):
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("suffix", ["", ".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [_saved(TENSORS), _saved(TENSORS, legacy=True), save(dict(sorted(TENSORS.items())))],
    ids=["torch", "torch before 1.6", "safetensors"],
)
def test_the_content_decides_and_not_the_suffix(tmp_path, suffix, content):
    found = read_weights(_file(tmp_path, content, f"weights{suffix}")).tensors
    assert _equal(dict(sorted(found.items())), dict(sorted(TENSORS.items())))


class RecipeDict(dict):
    """A class that torch does not know, as hyperparameters of many frameworks are."""


class Munch(dict):
    pass


class Callbacks(list):
    pass


class Module:
    def __init__(self):
        self.note = "resnet18"
        self.last = {"loss": 1.0}


STRANGE = {
    "namespace": argparse.Namespace(arch="vit_small", lr=0.1),
    "numpy scalar": np.float64(0.5),
    "numpy array": np.arange(3.0),
    "path": PurePosixPath("/data"),
    "dict": RecipeDict(arch="resnet18"),
    "default dict": defaultdict(list, {"a": [1]}),
    "list": Callbacks([1, "early"]),
    "object": Module(),
    "class": Module,
    "set": {1, 2},
    "dtype": torch.float16,
    "tuple": (1, ("x",), None),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_other_objects_beside_the_tensors_are_passed_over(tmp_path, kind):
    stored = read_weights(_file(tmp_path, _saved({"args": STRANGE[kind], "state_dict": TENSORS, "epoch": 3})))
    assert _equal(stored.tensors, {f"state_dict.{name}": tensor for name, tensor in TENSORS.items()})


def test_words_that_may_name_the_network_are_kept(tmp_path):
    content = {"args": STRANGE["namespace"], "recipe": STRANGE["dict"], "module": STRANGE["object"], "w": TENSORS}
    stored = read_weights(_file(tmp_path, _saved(content)))
    assert {"vit_small", "resnet18"} <= set(stored.words)
    assert "argparse.Namespace" in stored.ignored
    file = tmp_path / "named.safetensors"
    save_file(TENSORS, file, {"card": '{"backbone": "tf_efficientnet_lite0"}'})
    assert "tf_efficientnet_lite0" in read_weights(file).words


def test_a_pickled_model_gives_its_tensors(tmp_path):
    model = nn.Sequential(OrderedDict(first=nn.Linear(2, 3), rest=nn.ModuleDict({"bn": nn.BatchNorm1d(3)})))
    found = read_weights(_file(tmp_path, _saved(model))).tensors
    plain = {name.replace("_modules.", "").replace("_parameters.", "").replace("_buffers.", "") for name in found}
    assert plain == set(model.state_dict())


class _Hostile:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


class _System:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        import os

        return (os.system, (f"touch {self.trace}",))


@pytest.mark.parametrize("attack", [_Hostile, _System])
@pytest.mark.parametrize("how", ["torch", "torch before 1.6", "pickle", "beside tensors"])
def test_nothing_in_a_file_runs(tmp_path, how, attack):
    trace = tmp_path / "trace"
    hostile = attack(trace)
    content = {
        "torch": lambda: _saved({"fc.weight": hostile}),
        "torch before 1.6": lambda: _saved({"fc.weight": hostile}, legacy=True),
        "pickle": lambda: pickle.dumps(hostile),
        "beside tensors": lambda: _saved({"x": hostile, **TENSORS}),
    }[how]()
    file = _file(tmp_path, content)
    try:
        read = read_weights(file).tensors
    except HemafastError as error:
        assert str(file) in error.problem
        assert "\n" not in str(error)
        read = TENSORS if how == "beside tensors" else {}
    assert _equal(read, TENSORS if how == "beside tensors" else {})
    assert not trace.exists()
    pickle.loads(pickle.dumps(attack(trace)))
    assert trace.exists()  # it would have run code indeed


def _zipped(entries: dict[str, bytes], method=zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return stream.getvalue()


def _unzipped(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _flipped(content: bytes) -> bytes:
    """One bit of a value is another."""
    place = content.index(struct.pack("<f", 5.0))
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _script() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), stream)
    return stream.getvalue()


TORCH, SAFE = _saved(TENSORS), save(TENSORS)
BAD = {
    "empty": (b"", "cannot be read"),
    "garbage": (b"garbage" * 50, "is a text file"),
    "cut torch": (TORCH[: len(TORCH) // 2], "cut off"),
    "cut safetensors": (SAFE[:-5], "cannot be read"),
    "cut header": (SAFE[:40], "cannot be read"),
    "cut torch before 1.6": (_saved(TENSORS, legacy=True)[:-10], "cannot be read"),
    "flipped bit": (_flipped(TORCH), "checksum of"),
    "a header of a petabyte": (struct.pack("<Q", 2**50) + b'{"x":' + b" " * 99, "cannot be read"),
    "a zip bomb": (_zipped(_unzipped(TORCH) | {"archive/data/9": bytes(10**7)}, zipfile.ZIP_DEFLATED), "compressed"),
    "a zip of weights": (_zipped({"best.pth": TORCH}), "it holds best.pth"),
    "arrays of numpy": (_zipped({"conv.npy": b"\x93NUMPY"}), "torch did not write"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(99), "Keras"),
    "a server's error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML file"),
    "a server's answer": (b"Entry not found\nor so", "a text file, which begins with 'Entry not found'"),
    "a pickle that is none": (
        b"\x80\x02" + bytes(range(60, 99)),
        "it holds no pickle that torch",
    ),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "gunzip"),
    "settings": (b'{"learning_rate": 0.1}', "no index of weights files"),
    "deep nesting": (b'{"weight_map":' + b"[" * 10**5, "no index of weights files"),
    "deep header": (struct.pack("<Q", 10**5) + b'{"a":' + b"[" * (10**5 - 5), "cannot be read"),
    "numbers": (_saved({"a": 1}), "tensors by name"),
    "a list of numbers": (_saved([1, 2]), "tensors by name"),
    "a text": (_saved({"state_dict": {"a": "b"}}), "tensors by name"),
    "a nameless tensor": (_saved(torch.zeros(3)), "tensors by name"),
    "an empty dict": (_saved({}), "tensors by name"),
    "a tensor that claims more than there is": (_saved({"w": torch.ones(1).expand(10**6, 10**6)}), "tensors by name"),
    "a tensor without data": (_saved({"w": torch.ones(3, device="meta")}), "tensors by name"),
    "a sparse tensor": (_saved({"w": torch.eye(3).to_sparse()}), "tensors by name"),
    "a name full of control characters": (_saved({"w\x1b[2J": torch.ones(3)}), "tensors by name"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_weights_file_is_refused_in_words_that_help(tmp_path, kind):
    content, words = BAD[kind]
    file = _file(tmp_path, content, "stranger.pth")
    with pytest.raises(HemafastError) as caught:
        read_weights(file)
    assert "stranger.pth" in caught.value.problem
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # of writing one; it is not read
def test_a_torchscript_program_is_refused(tmp_path):
    with pytest.raises(HemafastError, match="TorchScript"):
        read_weights(_file(tmp_path, _script()))


@pytest.mark.parametrize(
    ("thing", "legacy", "words"),
    [(STRANGE["namespace"], True, r"objects of argparse\.Namespace"), (Munch(a=1), False, "objects of other classes")],
)
def test_a_file_with_classes_that_cannot_be_passed_over_is_refused_with_a_way_to_convert_it(
    tmp_path, thing, legacy, words
):
    file = _file(tmp_path, _saved({"args": thing, "state_dict": TENSORS}, legacy=legacy), "old.pth")
    with pytest.raises(HemafastError, match=words) as caught:
        read_weights(file)
    line = caught.value.remedy.partition('python -c "')[2].removesuffix('"')
    converted = tmp_path / "tensors.pth"
    exec(line.replace("'old.pth'", repr(str(file))).replace("'tensors.pth'", repr(str(converted))), {})
    assert _equal(read_weights(converted).tensors, TENSORS)


def test_very_deep_nesting_ends(tmp_path):
    deep: dict = {"w": torch.ones(2)}
    for _ in range(300):
        deep = {"x": deep}
    content = {"deep": deep, "wide": [[[[TENSORS]]]]}
    found = read_weights(_file(tmp_path, _saved(content))).tensors
    assert _equal(found, {f"wide.{name}": tensor for name, tensor in TENSORS.items()})


def test_what_is_named_many_times_is_read_once(tmp_path):
    """Twenty levels of two names each would be a million paths."""
    shared: dict = dict(TENSORS)
    for _ in range(20):
        shared = {"a": shared, "b": shared}
    assert len(read_weights(_file(tmp_path, _saved(shared))).tensors) == len(TENSORS)


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors", "none/none.bin"])
def test_a_missing_file_is_refused(tmp_path, name):
    with pytest.raises(HemafastError, match="none"):
        read_weights(tmp_path / name)


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(HemafastError, match=r"pipe cannot be read \(it is no regular file"):
        read_weights(tmp_path / "pipe")


def test_a_folder_is_refused_with_the_files_in_it(tmp_path):
    with pytest.raises(HemafastError, match="holds no weights file"):
        read_weights(tmp_path)
    _file(tmp_path, TORCH, "best_model.safetensors")
    with pytest.raises(HemafastError, match=r"is a folder.*best_model\.safetensors"):
        read_weights(tmp_path)


# Sharded


def _index(folder: Path, parts) -> Path:
    weight_map = dict(zip(TENSORS, parts, strict=True))
    return _file(folder, json.dumps({"metadata": {}, "weight_map": weight_map}).encode(), "model.index.json")


def test_the_parts_of_a_sharded_file_are_read_together(tmp_path):
    _file(tmp_path, save({"conv.weight": TENSORS["conv.weight"]}), "a.safetensors")
    _file(tmp_path, _saved({"conv.bias": TENSORS["conv.bias"]}), "b.bin")
    assert _equal(read_weights(_index(tmp_path, ["a.safetensors", "b.bin"])).tensors, TENSORS)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (["a.safetensors", "b.safetensors"], "lists a.safetensors, b.safetensors, missing"),
        (["../a.safetensors", "b"], "other folders"),
        (["/etc/passwd", "b"], "other folders"),
        ([1, 2], "no index"),
        (["model.index.json", "model.index.json"], "is a text file"),
    ],
)
def test_an_index_of_other_files_is_refused(tmp_path, parts, words):
    with pytest.raises(HemafastError, match=words):
        read_weights(_index(tmp_path, parts))
