"""A folder as model hubs expect it: model card, weights for timm alone, a graph for ONNX Runtime, preprocessing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemafast.data.geometry import window_side
from hemafast.deploy.export import make_export
from hemafast.deploy.formats import KINDS
from hemafast.deploy.model_card import metrics_of
from hemafast.engine.checkpoint import ModelCard, load_best, model_file
from hemafast.ensemble import single
from hemafast.errors import HemafastError
from hemafast.files import make_inside, write_bytes, writing
from hemafast.model import Classifier
from hemafast.run_folder import NamedRun, find_run
from hemafast.weights import is_offline

PUSH = "push"
"""Folder in the run, by default."""
README, CONFIG, PREPROCESSING, EXAMPLE = "README.md", "config.json", "preprocessing.json", "classify.py"
WEIGHTS, GRAPH = KINDS["safetensors"].file, KINDS["onnx"].file
UNKNOWN_LICENCE = "other"
_TEMPLATE = Path(__file__).with_name("classify.py.txt")


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was written, and where it went."""

    folder: Path
    files: tuple[str, ...]
    bytes: int
    licence: str
    address: str | None
    """On a hub; None if it was not asked for."""

    def told(self) -> str:
        """The result in lines of text."""
        lines = [f"{self.folder}: {', '.join(self.files)}, {self.bytes / 1e6:.1f} MB"]
        if self.licence == UNKNOWN_LICENCE:
            lines.append("no licence is stated: give --license before you publish; README.md says what it depends on")
        return "\n".join([*lines, *([self.address] if self.address else [])])


def push_run(
    run: NamedRun, output: str | Path | None = None, *, licence: str = UNKNOWN_LICENCE, to: str | None = None
) -> Pushed:
    """Write the best model of a run as model hubs expect it, and upload it if asked.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` loads the weights, and EXAMPLE classifies an image with
    ONNX Runtime; neither needs hemafast.

    Args:
        run: a run, its folder or `best_model.safetensors`, or "latest".
        output: folder to write into; None for PUSH in the run folder.
        licence: identifier of the licence of the weights, such as "cc-by-nc-4.0".
        to: OWNER/NAME of a repository on the hub; it is made private if there is none. None to upload nothing.

    Returns:
        The files, and their address on the hub.

    Raises:
        HemafastError: there is no model, it cannot be exported, or the hub refuses it. Without an upload, nothing is
            written then.
    """
    if to is not None and is_offline():
        raise HemafastError(f"{to} is on a hub, and --offline or HF_HUB_OFFLINE forbids to ask it.", "Leave out --to.")
    file = model_file(find_run(run))
    folder = Path(output) if output else file.parent / PUSH
    contents = _contents(file, folder, licence)
    with writing(folder):
        make_inside(folder) if output is None else folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_bytes(folder / name, content)
    address = None if to is None else _upload(folder, tuple(contents), to)
    return Pushed(folder, tuple(contents), sum(map(len, contents.values())), licence, address)


def _contents(file: Path, folder: Path, licence: str) -> dict[str, bytes]:
    """The files by name."""
    found, card = load_best(file)
    model = single(found, "pushed: hubs load one network of timm")
    _, weights, text = make_export(file, folder, format="safetensors", layout="nchw")
    _, graph, _ = make_export(file, folder, format="onnx", layout="nhwc")
    texts = {
        README: f"---\n{_front(card, file.parent, licence)}\n---\n{text}{_stated(licence)}{_use(model)}",
        CONFIG: _timm_config(model, card),
        PREPROCESSING: json.dumps(_preprocessing(model, card), indent=2, ensure_ascii=False) + "\n",
        EXAMPLE: _TEMPLATE.read_text(encoding="utf-8"),
    }
    return {name: said.encode() for name, said in texts.items()} | {WEIGHTS: weights, GRAPH: graph}


def _front(card: ModelCard, run: Path, licence: str) -> str:
    """What hubs read at the beginning of a model card: YAML, whose values are JSON."""
    fields: dict[str, Any] = {"license": licence}
    if licence == UNKNOWN_LICENCE:
        fields |= {"license_name": "not-stated", "license_link": "#licence"}
    fields |= {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["timm", "image-classification", "onnx", "hematology", "blood-cells", "hemafast"],
        "metrics": ["f1", "accuracy"],
    }
    if metrics := metrics_of(run, card):
        fields["model-index"] = [_index(card, metrics["pooled"])]
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in fields.items())


def _index(card: ModelCard, scores: Mapping[str, Any]) -> dict[str, Any]:
    named = {"macro_f1": ("f1", "macro-F1"), "accuracy": ("accuracy", "accuracy")}
    measured = [{"type": kind, "name": said, "value": scores[name]} for name, (kind, said) in named.items()]
    dataset = {"type": "image-folder", "name": f"validation images of {' and '.join(card.domains)}"}
    task = {"type": "image-classification"}
    return {"name": card.backbone, "results": [{"task": task, "dataset": dataset, "metrics": measured}]}


def _timm_config(model: Classifier, card: ModelCard) -> str:
    """config.json as timm writes and reads it."""
    import torch
    from timm.models import save_for_hf

    side = card.image_size
    data: dict[str, Any] = {"input_size": (3, side, side), "mean": model.mean, "std": model.std}
    data |= {"interpolation": "bilinear", "crop_pct": 1.0}
    with tempfile.TemporaryDirectory() as room:
        network = model.backbone.to(memory_format=torch.contiguous_format)
        labels = {"label_names": list(card.classes)}
        save_for_hf(network, room, labels, safe_serialization=True, data_config=data)
        return Path(room, CONFIG).read_text(encoding="utf-8") + "\n"


def _preprocessing(model: Classifier, card: ModelCard) -> dict[str, Any]:
    """From an image to what the network takes, and from its logits to probabilities."""
    return {
        "classes": card.classes,
        "field_of_view_um": card.view.field_of_view,
        "um_per_pixel": card.view.um_per_pixel,
        "square_px": card.view.packed_size,
        "window_px": window_side(card.view.packed_size),
        "image_px": card.image_size,
        "mean": model.mean,
        "std": model.std,
        "standardize": model.standardize,
        "quarter_turns": model.quarter_turns,
        "temperature": card.temperature,
    }


def _stated(licence: str) -> str:
    """The end of the section about the licence."""
    return "" if licence == UNKNOWN_LICENCE else f"\nWhoever published these weights states the licence {licence}.\n"


def _use(model: Classifier) -> str:
    """How to use the folder without hemafast."""
    more = (
        ""
        if not (model.standardize or model.quarter_turns)
        else (
            " This network also needs what the code at the top does with images before and with logits after; "
            f"{GRAPH} includes it."
        )
    )
    return f"""
## Use it without hemafast

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:OWNER/NAME"
```

{PREPROCESSING} says how to make the input.{more} With onnxruntime, numpy and pillow alone:

```sh
python {EXAMPLE} cell.png 0.1  # micrometres per pixel
```
"""


def _upload(folder: Path, files: tuple[str, ...], to: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = HfApi()
    try:
        hub.create_repo(to, private=True, exist_ok=True)
        hub.upload_folder(repo_id=to, folder_path=folder, allow_patterns=list(files))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        remedy = f"Log in with `hf auth login`, or upload {folder} yourself."
        raise HemafastError(f"{to} cannot be uploaded ({why}).", remedy) from error
    return f"{hub.endpoint}/{to}"
