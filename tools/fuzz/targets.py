"""Who reads what users hand over: a sound example of each file, how it is damaged, and the function that reads it.

Each function here takes an empty folder and gives a Target. A reader may return, or raise HemafastError (images:
UnreadableImageError). Anything else is a fault.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from PIL import Image

from fuzz.inputs import VALUES, as_json, damaged, documents, towers
from hemafast.config import PrepareConfig, TrainConfig, to_plain, train_config
from hemafast.errors import HemafastError

if TYPE_CHECKING:
    from hemafast.engine.checkpoint import ModelCard

_FORMS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_COMMANDS = (
    *("train", "evaluate", "predict", "report", "export", "prepare", "runs", "verify", "eda", "explain", "adapt"),
    *("lr-find", "bench", "sweep", "crossdomain", "patients", "ensemble", "embed", "push", "audit", "tune", "pretrain"),
)
"""Commands that refuse to work in an empty folder; `demo` and `doctor` would work, slowly."""

_FLAGS = (
    *("--data", "--source", "--preset", "--config", "--model", "--epochs", "--class-map", "--image-size", "--domain"),
    *("--time-budget", "--output", "--resume", "--labels", "--lr", "--device", "--policy", "--json", "-q", "--help"),
)
_WORDS = (
    *("-1", "nan", "1e999", "a=b", "=", "[red]", "\x1b[31m", "0", "auto", "latest", "10m", "*", "[", "..", "A=x,A=y"),
    *("", "-", "--", "\u202e", "x" * 300),
)
_BACKBONES = (
    *("vit_giant_patch14_224", "convnext_xxlarge", "resnetv2_152x4_bit", "test_vit"),
    *("hf_hub:a/b", "hf-hub:a/b", "local-dir:.", "local-dir:/etc", "../x", "", "test_resnet.r160_in1k"),
)
"""Names that timm takes for giants, for a download or for a folder."""


@dataclass(frozen=True)
class Target:
    """One reader under attack."""

    inputs: st.SearchStrategy[bytes]
    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...] = (HemafastError,)
    sound: bytes | None = None
    """An input that the reader takes; it is read first."""


def archives(room: Path) -> Target:
    """Listing zips and tars, and the plan of `prepare`."""
    from hemafast.preparation.build import plan_preparation

    images = {f"Lab/{label}/{n}.png": _picture("PNG", n) for label in ("basophil", "monocyte") for n in range(2)}
    sound = [_zip(images), *(_tar(images, kind) for kind in ("", "gz", "bz2", "xz"))]
    config = PrepareConfig(source=room / "source", output=room / "prepared", classes="from-data")
    (room / "source").mkdir()

    def read(data: bytes) -> None:
        (room / "source" / "A.zip").write_bytes(data)
        plan_preparation(config)

    return Target(damaged(sound), read, sound=sound[0])


def images(_: Path) -> Target:
    """Verifying and decoding one image."""
    from hemafast.preparation.images.image_checks import decode_reference, strict_decoders, verify_image
    from hemafast.preparation.images.kinds import UnreadableImageError

    sound = [_picture(form, seed) for seed, form in enumerate(_FORMS)]

    def read(data: bytes) -> None:
        with strict_decoders():
            decode_reference(verify_image(data, "cell.png")[1])

    return Target(damaged(sound), read, (UnreadableImageError,), sound=sound[0])


def tables(room: Path) -> Target:
    """Tables of labels."""
    from hemafast.preparation.tables.lists import read_labels

    frame = pd.DataFrame({"path": ["A/x.png", "A/y.png"], "label": ["basophil", "monocyte"], "patient": [1, 2]})
    book, columns = io.BytesIO(), io.BytesIO()
    frame.to_excel(book, index=False)
    frame.to_parquet(columns)
    texts = [frame.to_csv(index=False, sep=separator).encode() for separator in ",;\t"]
    sound = [
        *texts,
        b"\xef\xbb\xbf" + texts[0],
        texts[0].decode().encode("utf-16"),
        book.getvalue(),
        columns.getvalue(),
    ]

    def read(data: bytes) -> None:
        suffix = {b"PK": ".xlsx", b"PA": ".parquet"}.get(data[:2], ".csv")
        (room / f"labels{suffix}").write_bytes(data)
        read_labels(room / f"labels{suffix}", {}, {name: (name,) for name in ("A/x.png", "A/y.png")})

    cells = st.lists(st.lists(st.one_of(st.text(max_size=12), st.just("A/x.png")), max_size=5), max_size=6)
    free = cells.map(lambda rows: "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass"))
    return Target(st.one_of(damaged(sound), damaged(texts), free), read, sound=texts[0])


def settings(room: Path) -> Target:
    """Settings files, in JSON and TOML, and the config.json of a run."""
    from hemafast.run_folder import CONFIG, read_config

    sound = as_json(to_plain(TrainConfig()))
    toml = b'preset = "quick"\nepochs = 3\ndomains = ["A", "B"]\nlr = 1e-3\n[class_map]\nneutrophil = "Neutrophil"\n'

    def read(data: bytes) -> None:
        if data[:1] in (b"{", b"["):
            (room / CONFIG).write_bytes(data)
            read_config(room)
        else:
            (room / "settings.toml").write_bytes(data)
            train_config(file=room / "settings.toml")

    changed = documents([json.loads(sound)]).map(as_json)
    return Target(st.one_of(changed, damaged([sound, toml]), towers(), VALUES.map(as_json)), read, sound=sound)


def data_sets(room: Path) -> Target:
    """The dataset.json of a prepared data set, sealed anew as an attacker would."""
    from hemafast.data.dataset import open_dataset
    from hemafast.preparation import schema

    folder = _prepared(room)
    file = folder / schema.INFO
    sound = file.read_bytes()

    def read(data: bytes) -> None:
        file.write_bytes(_sealed(data))
        open_dataset(folder)

    changed = documents([json.loads(sound)]).map(as_json)
    return Target(st.one_of(changed, damaged([sound]), towers()), read, sound=sound)


def manifests(room: Path) -> Target:
    """The manifest of a prepared data set, with a dataset.json that fits it."""
    from hemafast.data.dataset import open_dataset
    from hemafast.preparation import schema

    folder = _prepared(room)
    file, info = folder / schema.MANIFEST, json.loads((folder / schema.INFO).read_text(encoding="utf-8"))
    sound = file.read_bytes()
    rows = {str(name): list(cells) for name, cells in pd.read_parquet(file).items()}

    def read(data: bytes) -> None:
        file.write_bytes(data)
        info["files"][schema.MANIFEST] = hashlib.sha256(data).hexdigest()
        (folder / schema.INFO).write_bytes(_sealed(as_json(info)))
        open_dataset(folder)

    return Target(st.one_of(_edited_tables(rows), damaged([sound])), read, sound=sound)


def checkpoints(room: Path) -> Target:
    """Checkpoints of --resume, and weights of others."""
    import torch

    from hemafast.engine.checkpoint import load_last, save_last
    from hemafast.weights_file import read_weights

    own, old = room / "last_model.ckpt", io.BytesIO()
    save_last(own, {"model": {"w": torch.ones(3)}, "epoch": 1})
    torch.save({"state_dict": {"w": torch.ones(3)}}, old, _use_new_zipfile_serialization=False)
    sound = own.read_bytes()

    def read(data: bytes) -> None:
        own.write_bytes(data)
        with contextlib.suppress(HemafastError):
            read_weights(own)
        load_last(own)

    return Target(damaged([sound, old.getvalue()]), read, sound=sound)


def models(room: Path) -> Target:
    """Models of a run: header, metadata and tensors of safetensors."""
    import torch

    from hemafast.deploy.model import open_model
    from hemafast.engine.checkpoint import save_best
    from hemafast.model import build_model

    file = room / "best_model.safetensors"
    torch.manual_seed(0)
    save_best(file, build_model("test_resnet", 2, 32), _card())
    sound = file.read_bytes()

    def read(data: bytes) -> None:
        file.write_bytes(data)
        open_model(file, device="cpu")

    head = sound[: 8 + int.from_bytes(sound[:8], "little")]
    edited = damaged([head]).map(lambda start: start + sound[len(head) :])
    others = [{"backbone": name} for name in _BACKBONES] + [{"image_size": 8192}]
    return Target(st.one_of(_edited_headers(sound, others), edited, damaged([sound])), read, sound=sound)


def ensembles(room: Path) -> Target:
    """A model of two members: its card says what each is."""
    import torch

    from hemafast.deploy.model import open_model
    from hemafast.engine.checkpoint import Combined, Member, ensemble_of, save_best
    from hemafast.model import build_model

    file = room / "best_model.safetensors"
    torch.manual_seed(0)
    networks = [build_model("test_resnet", 2, 32) for _ in range(2)]
    members = tuple(
        Member(f"runs/{place}", 1, "test_resnet", 32, (0.5,) * 3, (0.2,) * 3, True, False, 1.0, 0.5, (1, 0))
        for place in range(2)
    )
    card = replace(_card(), combined=Combined("mean", tuple(member.run for member in members), members))
    save_best(file, ensemble_of(networks, card), card)
    sound = file.read_bytes()

    def read(data: bytes) -> None:
        file.write_bytes(data)
        open_model(file, device="cpu")

    return Target(st.one_of(_edited_headers(sound), damaged([sound])), read, sound=sound)


def programs(_: Path) -> Target:
    """Looking through an exported program before torch may load it."""
    import torch

    from hemafast.deploy.formats import Deployed, pack_torch_export
    from hemafast.deploy.programs import refuse_foreign
    from hemafast.model import build_model

    torch.manual_seed(0)
    sound = pack_torch_export(Deployed(build_model("test_resnet", 2, 32).eval(), "nhwc", 1.0), _card())[0]
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    (name,) = [name for name in members if "/models/" in name]

    def written(code: Any) -> bytes:
        return _zip(members | {name: as_json(code)}, zipfile.ZIP_STORED)

    edited = documents([json.loads(members[name])]).map(written)
    return Target(st.one_of(edited, damaged([sound])), refuse_foreign, (ValueError, KeyError, BadZipFile), sound=sound)


def likenesses(room: Path) -> Target:
    """What is kept of the images of home beside a model."""
    import torch

    from hemafast.evaluate.likeness import fit_likeness, load_likeness, save_likeness
    from hemafast.run_folder import LIKENESS

    torch.manual_seed(0)
    model, card = room / "best_model.safetensors", _card()
    save_likeness(model, card, fit_likeness(torch.rand(60, 6), torch.rand(60, 8), *np.zeros((2, 60), np.int64))[0])
    sound = (room / LIKENESS).read_bytes()

    def read(data: bytes) -> None:
        (room / LIKENESS).write_bytes(data)
        load_likeness(model, card)

    return Target(damaged([sound]), read, sound=sound)


def lineages(room: Path) -> Target:
    """A tree of classes."""
    from hemafast.lineage import PACKAGED, fitting_lineage

    file, sound = room / "lineage.toml", PACKAGED.read_bytes()

    def read(data: bytes) -> None:
        file.write_bytes(data)
        fitting_lineage(file, ("myelocyte", "basophil"), needed=True)

    return Target(st.one_of(damaged([sound]), towers()), read, sound=sound)


def reports(room: Path) -> Target:
    """The files of a run that its page is made of; the first byte of an input says which it replaces."""
    from hemafast import train
    from hemafast.report.page import write_report

    small: dict[str, Any] = {"model": "test_resnet", "pretrained": "no", "image_size": 32, "epochs": 1, "batch_size": 4}
    run = train(_prepared(room), output=room / "runs", device="cpu", amp="off", compile="off", **small).folder
    names = ("metrics.json", "machine.json", "config.json", "predictions.csv", "training_log.csv", "calibration.json")
    whole = [(run / name).read_bytes() for name in names]

    def read(data: bytes) -> None:
        for name, content in zip(names, whole, strict=True):
            (run / name).write_bytes(content)
        (run / names[data[0] % len(names)]).write_bytes(data[1:])
        write_report(run, room / "page.html")

    def chosen(place: int) -> st.SearchStrategy[bytes]:
        content, mark = whole[place], bytes([place])
        if not names[place].endswith(".json"):
            return damaged([content]).map(mark.__add__)
        return st.one_of(documents([json.loads(content)]).map(as_json), damaged([content])).map(mark.__add__)

    return Target(st.integers(0, len(names) - 1).flatmap(chosen), read, sound=b"\0" + whole[0])


def predictions(room: Path) -> Target:
    """Tables of predictions with patients, as `patients` counts them."""
    from hemafast.patients.written import count_to

    rows: dict[str, list[Any]] = {
        "image": ["a.png", "b.png", "c.png"],
        "patient": ["007", "<b>", "=1"],
        "error": ["", "", "damaged"],
        "likeness": [0.5, 0.01, ""],
        "predicted": ["monocyte", "myeloblast", ""],
        "confidence": [0.9, 0.6, ""],
        "p_monocyte": [0.9, 0.4, ""],
        "p_myeloblast": [0.1, 0.6, ""],
    }
    sound = pd.DataFrame(rows).to_csv(index=False).encode()
    file = room / "predictions.csv"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        count_to(room / "out", [file])

    edited = st.lists(
        st.tuples(st.sampled_from(list(rows)), st.integers(0, 2), st.one_of(VALUES, st.text(max_size=12))), max_size=4
    )

    def changed(changes: list[tuple[str, int, Any]]) -> bytes:
        table = {name: list(values) for name, values in rows.items()}
        for name, row, value in changes:
            table[name][row] = value
        return pd.DataFrame(table).to_csv(index=False).encode("utf-8", "surrogatepass")

    return Target(st.one_of(edited.map(changed), damaged([sound])), read, sound=sound)


def heads(room: Path) -> Target:
    """Attention heads for labels of patients: header, metadata and tensors of safetensors."""
    from hemafast.patients.attention import GatedAttention, Head, load_head, save_head

    file = room / "head.safetensors"
    save_head(file, Head(GatedAttention(6, 4, 2), ("a", "b"), "network", 12))
    sound = file.read_bytes()

    def read(data: bytes) -> None:
        file.write_bytes(data)
        load_head(file, "network")

    return Target(st.one_of(_edited_headers(sound), damaged([sound])), read, sound=sound)


def commands(room: Path) -> Target:
    """The command line, in an empty folder."""
    from hemafast.cli import main

    inner = room / "a" / "b"
    inner.mkdir(parents=True)
    os.chdir(inner)
    word = st.one_of(st.sampled_from(_FLAGS + _WORDS), st.text(st.characters(exclude_characters="/\0"), max_size=8))
    lines = st.tuples(st.sampled_from(_COMMANDS), st.lists(word, max_size=6))

    def read(data: bytes) -> None:
        sink = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
        words = [str(one).encode("utf-8", "replace").decode().replace("\0", "") for one in json.loads(data)]
        as_typed = patch.object(sys, "argv", ["hemafast", *words]), patch.dict(os.environ)
        with as_typed[0], as_typed[1], contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            try:
                main()
            except SystemExit as end:
                if end.code in (1, 2):
                    raise HemafastError("It ended with an error of its own.", "Read it.") from end
                if end.code not in (None, 0):
                    raise AssertionError(f"exit code {end.code}") from end

    return Target(lines.map(lambda one: as_json([one[0], *one[1]])), read, sound=as_json(["runs"]))


TARGETS: dict[str, Callable[[Path], Target]] = {
    one.__name__: one
    for one in (
        *(
            archives,
            images,
            tables,
            settings,
            data_sets,
            manifests,
            checkpoints,
            models,
            ensembles,
            programs,
            likenesses,
        ),
        *(heads, lineages, reports, predictions, commands),
    )
}


def _card() -> ModelCard:
    """Of a network with two classes."""
    from hemafast.engine.checkpoint import ModelCard, View

    return ModelCard("test_resnet", ("a", "b"), 32, View(64, None, {}), ("A",), 1, "random weights", "0", False)


def _picture(form: str, seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def _zip(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def _tar(files: dict[str, bytes], kind: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{kind}") as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def _prepared(room: Path) -> Path:
    """A small prepared data set."""
    from hemafast.preparation.build import prepare

    images = {f"{label}/{n}.png": _picture("PNG", 9 * rank + n) for rank, label in enumerate("ab") for n in range(4)}
    (room / "source").mkdir()
    (room / "source" / "A.zip").write_bytes(_zip(images))
    config = PrepareConfig(source=room / "source", output=room / "prepared", classes="from-data", pack_sizes=(32,))
    return prepare(config, workers=1).folder


def _sealed(data: bytes) -> bytes:
    """dataset.json with a seal that fits, if it can be read at all."""
    from hemafast.preparation import schema
    from hemafast.preparation.reader import seal

    try:
        info = schema.DatasetInfo.model_validate_json(data)
        return as_json(json.loads(data) | {"seal": seal(info)})
    except Exception:  # whatever reads it next has to refuse it
        return data


def _edited_headers(sound: bytes, others: Sequence[dict[str, Any]] = ()) -> st.SearchStrategy[bytes]:
    """A safetensors file with another header, or another card in its metadata; `others` are fields of cards."""
    size = int.from_bytes(sound[:8], "little")
    header, body = json.loads(sound[8 : 8 + size]), sound[8 + size :]
    stored = json.loads(header["__metadata__"]["card"])

    def packed(changed: Any) -> bytes:
        text = as_json(changed)
        return len(text).to_bytes(8, "little") + text + body

    def carded(changed: Any) -> bytes:
        return packed(header | {"__metadata__": header["__metadata__"] | {"card": json.dumps(changed)}})

    cards = st.one_of(documents([stored]), st.sampled_from([stored | one for one in others or [{}]]))
    return st.one_of(cards.map(carded), documents([header]).map(packed))


def _edited_tables(rows: dict[str, list[Any]]) -> st.SearchStrategy[bytes]:
    """A parquet file of the rows, with some cells or a whole column replaced."""

    def edited(changes: list[tuple[int, int, Any]], whole: bool) -> bytes:
        table, names, stream = {name: list(column) for name, column in rows.items()}, list(rows), io.BytesIO()
        for column, row, value in changes:
            cells = table[names[column % len(names)]]
            at = row % len(cells)
            cells[:] = [value] * len(cells) if whole else [*cells[:at], value, *cells[at + 1 :]]
        try:
            pd.DataFrame(table).to_parquet(stream)
        except Exception:  # a column of mixed types is written as text
            stream = io.BytesIO()
            pd.DataFrame({name: [repr(cell) for cell in cells] for name, cells in table.items()}).to_parquet(stream)
        return stream.getvalue()

    change = st.tuples(st.integers(0, 40), st.integers(0, 40), st.one_of(VALUES, st.binary(max_size=8)))
    return st.builds(edited, st.lists(change, min_size=1, max_size=3), st.booleans())
