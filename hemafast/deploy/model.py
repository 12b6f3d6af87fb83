"""A trained model, opened from a run, a file of weights or an export: images in, classes or features out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hemafast.config import Amp, Device
from hemafast.deploy import graph_trial
from hemafast.deploy.choices import MODELS, Engine, UmPerPixel
from hemafast.deploy.engines import TORCH, Quick, choose_engine
from hemafast.deploy.formats import KINDS, card_of, cause_of, require_onnx
from hemafast.deploy.inputs import Images, begins_formula, list_inputs, refuse_unwritable
from hemafast.deploy.programs import refuse_foreign
from hemafast.engine.checkpoint import ModelCard, load_best
from hemafast.engine.machine import Machine, choose_machine, tune_allocator
from hemafast.errors import HemafastError
from hemafast.evaluate.likeness import PARTS, Likeness, colours_of, load_likeness
from hemafast.fuse_norm import fuse_batch_norms
from hemafast.model import Network
from hemafast.nvidia import uses_gpu
from hemafast.progress import SILENT, Progress
from hemafast.regular import read_regular, refuse_special
from hemafast.run_folder import BEST
from hemafast.words import counted

if TYPE_CHECKING:
    import pandas as pd

_EXPORTS = {Path(kind.file).suffix: kind for kind in KINDS.values()}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Model:
    """A trained classifier of single-cell images.

    Attributes:
        file: the file it was loaded from.
        card: classes, image size, field of view, calibration and origin.
        machine: device, precision and threads that it runs with.
        likeness: tells images unlike the training set; None for an export, and before the run was evaluated.
        engine: what computes predictions.
        quick: logits and features by an engine other than torch; None for torch.
    """

    file: Path
    card: ModelCard
    machine: Machine
    _logits_of: Callable[[Tensor], Tensor]
    likeness: Likeness | None = None
    engine: str = TORCH
    quick: Quick | None = None

    def __repr__(self) -> str:
        classes = counted(len(self.classes), "class")
        return f"Model({str(self.file)!r}, {self.card.backbone}, {classes}, {self.machine.device})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.card.classes

    @property
    def network(self) -> Network:
        """The torch module with its normalisation inside: uint8 (n, 3, height, width) to logits (n, classes).

        Raises:
            HemafastError: the model is an exported graph (ONNX or torch.export), which has no such module.
        """
        if not isinstance(self._logits_of, Network):
            raise HemafastError(f"{self.file} is a graph without a network.", "Open the run, or export safetensors.")
        return self._logits_of

    @property
    def members(self) -> int:
        """Networks whose answers it compares: those of an ensemble, else 1."""
        return len(self._logits_of.networks) if isinstance(self._logits_of, Network) else 1

    def predict(
        self,
        images: Images,
        *,
        um_per_pixel: UmPerPixel = None,
        bit_depth: int | None = None,
        tta: bool = False,
        sets: bool = False,
        batch_size: int = 64,
        progress: Progress = SILENT,
    ) -> pd.DataFrame:
        """Classify images. They are verified, decoded, cropped and scaled as for validation.

        Args:
            images: paths of files, folders, zips and globs, one or several; or uint8 RGB arrays: one (height, width,
                3), a sequence of such of any sizes, or one (n, height, width, 3).
            um_per_pixel: scale of all images in micrometres per pixel. None for that of the training domain that the
                innermost folder or zip around an image is named after, else an estimate from the nuclei of all images
                of one path, or of all arrays, and from their predicted classes; a sample of 300 is decoded for it, and
                150 of these are classified. "unknown", like too few nuclei for an estimate, has images seen whole.
            bit_depth: bits that the camera uses of images with more than 8, such as 12; None for the range of the
                training domain that a folder is named after, else the one that all training domains share, else what a
                sample of the images shows.
            tta: average the probabilities over the eight flips and quarter turns.
            sets: add the column `set`: the classes that may be the true one, joined by ";". 90 % of the cells of each
                class have it in their set, if they are like those that the model was trained on.
            batch_size: images per forward pass, 1 to 4096.
            progress: listens to the number of images done.

        Returns:
            One row per image: `path` (for arrays the index as text), `label` (the most probable class), `confidence`
            (its probability), `status` ("ok" or "error"), `error`, `likeness` (the share of validation images that are
            at least as unlike the others; 0.05 or less is unlike; nan if not known), and a column of calibrated
            probabilities (float32) for each class under its name. An unreadable image has its error, an empty label and
            nan for numbers. A warning is logged if the images as a whole are unlike the training set.

        Raises:
            HemafastError: a path is missing or holds no images, an array is not uint8 RGB, an option is out of range,
                or `sets` is asked of a run that was not evaluated.
        """
        from hemafast.deploy.plan import Options, plan_for
        from hemafast.deploy.predict import classify
        from hemafast.evaluate.predictions import PREFIX

        options = Options(um_per_pixel=um_per_pixel, bit_depth=bit_depth, tta=tta, sets=sets, batch_size=batch_size)
        table = classify(plan_for([self], list_inputs(images), options), progress=progress)
        columns = ["image", "predicted", "confidence", "status", "error", "likeness", *(["set"] if sets else [])]
        of_classes = [f"{PREFIX}{name}" for name in self.classes]
        return table[columns + of_classes].set_axis(["path", "label", *columns[2:], *self.classes], axis=1)

    def embed(
        self,
        images: Images,
        *,
        um_per_pixel: UmPerPixel = None,
        bit_depth: int | None = None,
        batch_size: int = 64,
        progress: Progress = SILENT,
    ) -> npt.NDArray[np.float32]:
        """Features of images: what the network's last layer classifies, pooled over the image.

        Args:
            images: as for `predict`.
            um_per_pixel: as for `predict`.
            bit_depth: as for `predict`.
            batch_size: images per forward pass, 1 to 4096.
            progress: listens to the number of images done.

        Returns:
            float32 (n, d), one row per image in order; nan for unreadable images, which are logged as a warning.

        Raises:
            HemafastError: as `predict`, and if the model is an exported graph.
        """
        from hemafast.deploy.embed import embed_images
        from hemafast.deploy.plan import Options

        options = Options(um_per_pixel=um_per_pixel, bit_depth=bit_depth, batch_size=batch_size)
        return embed_images(self, list_inputs(images), options, progress=progress).features

    def logits(self, images: Tensor) -> Tensor:
        """Logits, float32 (n, classes), of uint8 (n, 3, image_size, image_size) on the model's device."""
        if self.quick is not None:
            return self.quick(images)[0]
        return self._run(lambda seen: (self._logits_of(seen),), images)[0]

    def probabilities(self, images: Tensor, *, tta: bool = False) -> Tensor:
        """Calibrated probabilities, else as `logits`; with `tta` their mean over the eight symmetries of each image."""
        return self.answers(images, tta=tta)[0]

    def answers(self, images: Tensor, *, tta: bool = False) -> tuple[Tensor, Tensor]:
        """`probabilities`, and the likeness of the images, float32 (n, 3): PARTS of it, or nan without one.

        Both come from one pass through the network; likeness is that of the images as they are.
        """
        return self.discussed(images, tta=tta)[:2]

    def discussed(self, images: Tensor, *, tta: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """`answers`, and how far the members of an ensemble disagree, float32 (n,) in nats; 0 for one network.

        Like likeness, disagreement is that of the images as they are.
        """
        forms = self._forms(images) if tta else iter([images])
        logits, likeness, disagreement = self._watched(next(forms))
        every = torch.stack([logits, *map(self.logits, forms)])
        return (every / self.card.temperature).softmax(dim=2).mean(0), likeness, disagreement

    def _forms(self, images: Tensor) -> Iterator[Tensor]:
        """Images whose answers together are those to all eight symmetries; the first are the images as they are."""
        if self.card.quarter_turns:
            return iter((images, _laid(images.transpose(2, 3))))
        return symmetries(images)

    def _watched(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, likeness and disagreement."""
        alike = images.new_zeros(len(images), dtype=torch.float32)
        likeness = images.new_full((len(images), len(PARTS)), math.nan, dtype=torch.float32)
        if self.quick is not None:
            logits, features = self.quick(images)
        elif isinstance(self._logits_of, Network):
            logits, features, alike = self._run(self._logits_of.discussed, images)
        else:
            return self.logits(images), likeness, alike
        if self.likeness is not None:
            likeness = self.likeness(colours_of(images), features)
        return logits, likeness, alike

    def described(self, images: Tensor) -> Tensor:
        """Calibrated probabilities, the likeness as a whole and the features side by side, from one pass: float32.

        `images` are uint8 (n, 3, image_size, image_size) on the model's device; the result is (n, classes + 1 + d).
        """
        logits, features = self._run(self.network.answers, images)
        likeness = logits.new_full((len(logits), 1), math.nan)
        if self.likeness is not None:
            likeness = self.likeness(colours_of(images), features)[:, :1]
        return torch.cat([(logits / self.card.temperature).softmax(dim=1), likeness, features], dim=1)

    def features(self, images: Tensor) -> Tensor:
        """Features, float32 (n, d), of uint8 (n, 3, image_size, image_size) on the model's device."""
        return self._run(self.network.answers, images)[1]

    @torch.inference_mode()
    def _run(self, function: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> list[Tensor]:
        dtype = self.machine.dtype
        with torch.autocast(self.machine.device, dtype=dtype, enabled=dtype is not None):
            return [found.float() for found in function(images)]


def symmetries(images: Tensor) -> Iterator[Tensor]:
    """The eight flips and quarter turns of (n, channels, size, size), in channels_last."""
    for turned in (images, images.transpose(2, 3)):
        for axes in ((), (2,), (3,), (2, 3)):
            yield _laid(turned.flip(axes))


def _laid(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def open_model(path: str | Path, *, device: Device = "auto", amp: Amp = "auto") -> Model:
    """Open a trained model to predict and embed with it.

    Args:
        path: a run folder, a `best_model.safetensors`, or a file or folder that `hemafast export` wrote. Of a folder
            with several formats, safetensors is taken before ONNX, ONNX before torch.export. A `.pt2` file that
            holds anything but what `hemafast export` writes is refused, because torch would execute it.
        device: "cpu", "cuda", or "auto" for a GPU if there is one. Exported graphs run on the CPU.
        amp: autocast precision: "bf16", "fp16", "off" (fp32), or "auto" for the fastest on a GPU and fp32 on a CPU.

    Returns:
        The model, in evaluation mode.

    Raises:
        HemafastError: there is no model, it is damaged, its format needs a package that is not installed, or this
            machine cannot run it as asked.
    """
    (model,) = load_models([Path(path)], device, amp)
    return model


def load_models(paths: Sequence[Path], device: Device, amp: Amp, engine: Engine = "torch") -> list[Model]:
    """The models of `paths`, each once, on one device, with the engine of predictions.

    Raises HemafastError as `open_model`, and for an engine that cannot run a model.
    """
    files = list(dict.fromkeys(map(find_model, paths)))
    machine = _choose_machine(files, device, amp)
    return [_load(file, machine, engine) for file in files]


def find_model(path: Path) -> Path:
    """The file of the model that a user means; it may be missing."""
    if path.suffix in MODELS and not path.is_dir():
        return path
    files = [path / BEST, *(path / kind.file for kind in KINDS.values())]
    return next((file for file in files if file.is_file()), path / BEST)


def _choose_machine(files: Sequence[Path], device: Device, amp: Amp) -> Machine:
    graphs = [file for file in files if file.suffix in (".onnx", ".pt2")]
    if graphs and (device == "cuda" or amp not in ("auto", "off")):
        remedy = "Leave device and amp (--device, --amp) at auto, or open the run."
        raise HemafastError(f"{graphs[0]} is a graph, which runs on the CPU in fp32.", remedy)
    on_gpu = not graphs and uses_gpu(device)
    if amp == "auto" and not on_gpu:
        amp = "off"  # whether bf16 is faster on a CPU depends on the network, and a trial takes too long
    return choose_machine(device="cpu" if graphs else device, amp=amp, compiled="off", allocator=tune_allocator())


def _load(file: Path, machine: Machine, engine: Engine) -> Model:
    is_run_model = file.suffix == ".safetensors" and not _is_exported(file)
    if is_run_model:
        logits_of: Callable[[Tensor], Tensor]
        logits_of, card = load_best(file)
    else:
        logits_of, card = _load_export(file)
    likeness = None
    if isinstance(logits_of, Network):
        likeness = load_likeness(file, card)
        logits_of.eval().to(machine.device).to(memory_format=torch.channels_last)
        fuse_batch_norms(logits_of)
    for name in card.classes:  # they become cells of tables
        refuse_unwritable(name)
        if begins_formula(name):
            raise HemafastError(f"{file}: a spreadsheet would take the class {name!r} for a formula.", "Rename it.")
    model = Model(file, card, machine, logits_of, likeness and likeness.to(machine.device))
    name, quick = choose_engine(file, card, model.logits, machine, engine if is_run_model else "torch")
    return replace(model, engine=name, quick=quick)


def _is_exported(file: Path) -> bool:
    try:
        refuse_special(file)
        with safe_open(file, framework="pt") as content:
            return "timm_options" in (content.metadata() or {})
    except (OSError, SafetensorError):
        return False  # `load_best` says what is wrong


def _load_export(file: Path) -> tuple[Callable[[Tensor], Tensor], ModelCard]:
    if not file.is_file():
        raise HemafastError(f"There is no {file}.", "Name a run folder, or a model that `hemafast export` wrote.")
    try:
        content = read_regular(file)
        if file.suffix == ".pt2":
            refuse_foreign(content)
        if file.suffix != ".safetensors":
            _refuse_greedy_graph(file)
        loaded = _EXPORTS[file.suffix].load(content)
        card = card_of(loaded.metadata)
    except HemafastError:
        raise
    except Exception as error:  # damaged files fail in many ways
        problem = f"{file} cannot be loaded ({cause_of(error)})."
        raise HemafastError(problem, "Export it again with this version of hemafast.") from error
    return loaded.network or (lambda images: loaded.answer(images)[0]), card


def _refuse_greedy_graph(file: Path) -> None:
    if file.suffix == ".onnx":
        require_onnx("onnxruntime")
    if why := graph_trial.why_not(file):
        raise HemafastError(f"{file} cannot be loaded ({why}).", "Export it again, or open the run.")
