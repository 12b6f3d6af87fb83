"""Small model files that would fill the memory, or end the process, are refused by name."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exported import CARD, random_model, write_run
from onnx import TensorProto, helper
from safetensors.torch import save_file

from hemafast.deploy import graph_trial
from hemafast.deploy.formats import KINDS, Deployed, metadata_of
from hemafast.deploy.model import open_model
from hemafast.deploy.programs import ForeignProgramError, refuse_foreign
from hemafast.engine.checkpoint import ModelCard, read_card
from hemafast.errors import HemafastError


def best(file: Path, card: ModelCard, **tensors: torch.Tensor) -> Path:
    save_file(tensors, file, {"card": json.dumps(asdict(card)), "mean": "(0.5, 0.5, 0.5)", "std": "(0.5, 0.5, 0.5)"})
    return file


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"backbone": "vit_gigantic_patch14_224", "image_size": 224}, "7 GB of weights"),
        ({"classes": tuple(map(str, range(200_000)))}, "a gigabyte of a head"),
    ],
    ids=["backbone", "classes"],
)
def test_a_small_file_that_names_a_huge_network_is_refused_before_the_network_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], told: str
) -> None:
    card = replace(CARD, calibration=None, **change)
    file = best(tmp_path / "best_model.safetensors", card, **{"backbone.conv1.weight": torch.zeros(1)})
    assert read_card(file) == card
    monkeypatch.setattr("hemafast.engine.checkpoint.build_model", lambda *_: pytest.fail(told))
    with pytest.raises(HemafastError, match=r"cannot be loaded .* in the file"):
        open_model(file, device="cpu")
    exported = tmp_path / "model.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, exported, metadata_of(card, None) | {"timm_options": "{}"})
    monkeypatch.setattr("timm.create_model", only_on_meta)
    with pytest.raises(HemafastError, match=r"cannot be loaded .* in the file"):
        open_model(exported, device="cpu")


def only_on_meta(name: str, **options: Any) -> Any:
    """timm's function, which must not allocate anything."""
    from timm.models import create_model

    assert torch.get_default_device().type == "meta"
    return create_model(name, **options)


def test_options_of_timm_in_a_file_are_not_followed(tmp_path: Path) -> None:
    from hemafast.deploy.export import export_run

    run = write_run(tmp_path / "run", replace(CARD, view=replace(CARD.view, um_per_pixel={"Acevedo_20": 0.1})))
    exported = export_run(run, tmp_path / "export", format="safetensors")
    content = exported.path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["timm_options"] = json.dumps({"checkpoint_path": "/nowhere/evil.pth", "pretrained": True})
    changed = json.dumps(header).encode()
    exported.path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])
    assert open_model(exported.path, device="cpu").classes == CARD.classes


def graph(file: Path, *nodes: onnx.NodeProto, constants: dict[str, Any] | None = None, batch: Any = "batch") -> Path:
    """A graph from uint8 images to logits."""
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, 32, 32, 3])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("logits", "probabilities")]
    stored = [onnx.numpy_helper.from_array(np.array(value), name) for name, value in (constants or {}).items()]
    model = helper.make_model(
        helper.make_graph(list(nodes), "g", inputs, outputs, stored), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 9
    for name, value in metadata_of(CARD, "nhwc").items():
        model.metadata_props.add(key=name, value=value)
    file.write_bytes(model.SerializeToString())
    return file


def test_a_graph_that_fills_the_memory_when_it_is_opened_or_run_is_refused(tmp_path: Path) -> None:
    filled = helper.make_node("ConstantOfShape", ["shape"], ["huge"])
    parts = [
        helper.make_node("ReduceSum", ["huge"], ["logits"]),
        helper.make_node("Relu", ["logits"], ["probabilities"]),
    ]
    file = graph(tmp_path / "model.onnx", filled, *parts, constants={"shape": np.array([2**15, 2**15, 4], np.int64)})
    assert file.stat().st_size < 3_000
    with pytest.raises(HemafastError, match=r"model\.onnx cannot be loaded \(.*\)\. Export it again"):
        open_model(file)


def test_a_graph_for_huge_images_is_refused(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["images"], ["logits"], to=TensorProto.FLOAT)
    file = graph(tmp_path / "m.onnx", cast, helper.make_node("Relu", ["logits"], ["probabilities"]), batch=10**9)
    assert "takes images of the shape" in graph_trial.why_not(file)


def test_a_graph_that_ends_its_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(graph_trial, "__file__", str(crash))
    assert graph_trial.why_not(crash) == "it ends the process, signal 11"


def test_a_compressed_program_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/weights/0", bytes(2**24))
    with pytest.raises(HemafastError, match=r"model\.pt2 cannot be loaded .*compressed"):
        open_model(file)


@pytest.fixture(scope="module")
def program() -> bytes:
    """A torch.export archive as `hemafast export` writes it."""
    model = random_model().to(memory_format=torch.contiguous_format)
    return KINDS["torch-export"].pack(Deployed(model, "nchw", 1.0).eval(), CARD)[0]


def rewritten(content: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with another content of the entry whose name ends in `name`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if entry.filename.endswith(name) else data)
    return stream.getvalue()


def test_an_exported_program_is_opened(tmp_path: Path, program: bytes) -> None:
    (tmp_path / "model.pt2").write_bytes(program)
    assert open_model(tmp_path / "model.pt2").card.classes == CARD.classes


CODE = {
    "a function": (b"torch.ops.aten.relu_.default", b"torch.os.system", r"it calls torch\.os\.system"),
    "a method": (b"torch.ops.aten.relu_.default", b"_operator.methodcaller", "it calls _operator"),
    "a size": (b"positive=True, integer=True)", b"positive=True) + __import__('os').getpid()", "a size in it is"),
    "guards": (b'"guards_code": []', b'"guards_code": ["exit()"]', "code that checks"),
}


@pytest.mark.parametrize("case", CODE)
def test_a_program_that_would_execute_code_is_refused_before_torch_sees_it(
    tmp_path: Path, program: bytes, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    before, after, said = CODE[case]
    hostile = rewritten(program, "model.json", lambda data: data.replace(before, after))
    assert hostile != program
    monkeypatch.setattr("torch.export.load", None)
    (tmp_path / "model.pt2").write_bytes(hostile)
    with pytest.raises(HemafastError, match=rf"model\.pt2 cannot be loaded .*{said}"):
        open_model(tmp_path / "model.pt2")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model_weights_config.json", lambda data: data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)),
        ("model_weights_config.json", lambda data: data.replace(b"weight_0", b"custom_obj_0", 1)),
        ("sample_inputs/model.pt", lambda _: pickle.dumps(print)),
        ("archive_version", None),
    ],
)
def test_objects_and_unknown_entries_of_a_program_are_refused(
    program: bytes, name: str, change: Callable[[bytes], bytes] | None
) -> None:
    hostile = rewritten(program, name, change) if change else program.replace(name.encode(), b"archive_versioM")
    with pytest.raises(ValueError, match=r"pickle|holds archive_versioM"):
        refuse_foreign(hostile)


@pytest.mark.parametrize("surround", [lambda zipped: b"x" + zipped, lambda zipped: zipped + b"x"])
def test_bytes_around_a_program_are_refused(program: bytes, surround: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ForeignProgramError, match="before or after"):
        refuse_foreign(surround(program))


def test_a_program_that_asks_for_more_memory_than_there_is_room_for_is_refused(tmp_path: Path) -> None:
    class Greedy(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean() + torch.zeros(2**15, 2**15, 4).sum()

    file, images = tmp_path / "model.pt2", torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    torch.export.save(torch.export.export(Greedy(), (images,)), file)
    refuse_foreign(file.read_bytes())
    assert "memory" in graph_trial.why_not(file)
