"""Build a network and what trains it: loss, optimizer and steps. Runs, trials, bench and evaluation do so here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hemafast.config import TrainConfig
from hemafast.data.stream import FEWEST
from hemafast.engine.average import Average
from hemafast.engine.captured import capture_of
from hemafast.engine.compiling import Compiler
from hemafast.engine.depthwise import use_own_gradients
from hemafast.engine.distributed import World
from hemafast.engine.layout import avoid_wrong_gradients
from hemafast.engine.machine import Machine
from hemafast.engine.optimizer import build_optimizer
from hemafast.engine.step import EvalStep, Mix, Totals, TrainStep, ViewTotals
from hemafast.engine.teacher import Teacher
from hemafast.errors import HemafastError
from hemafast.fuse_norm import fuse_batch_norms
from hemafast.model import Classifier, Network, build_model
from hemafast.objective import CrossEntropy, LineageTerm, build_loss
from hemafast.pretraining import Encoder, build_encoder
from hemafast.weights import load_initial_weights


@dataclass(frozen=True, slots=True)
class Learner:
    """A network and everything that trains it."""

    model: Classifier
    scored_model: Classifier
    """The model to validate and to keep as best: the averaged one, if there is one."""
    ema: Average[Classifier] | None
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    compiler: Compiler
    train_step: TrainStep
    eval_step: EvalStep
    started_from: str
    """The origin of the first weights, in words."""
    teacher: Teacher | None = None

    def new_totals(self) -> Totals:
        """Totals of what the steps count, which start at zero."""
        model, device = self.model, self.model.scale.device.type
        return ViewTotals(model.views, device) if isinstance(model, Encoder) else Totals(model.classes, device)


def build_learner(
    settings: TrainConfig,
    machine: Machine,
    counts: npt.NDArray[np.int64],
    *,
    batch_size: int,
    world: World | None = None,
    started_from: str | None = None,
    fuse: bool = True,
    lineage: LineageTerm | None = None,
    teacher: Teacher | None = None,
) -> Learner:
    """A network with its loss, optimizer and steps on the machine's device.

    `counts` are training images per class. With `started_from`, no initial weights are loaded: a checkpoint holds them,
    or the network is only timed. With `fuse`, batch norms in evaluation mode run as part of the convolutions before
    them, unless the step is compiled. Networks that are only timed do without `lineage`, a term of the loss, and
    `teacher`. Raises HemafastError if these are too few images for batch norm.
    """
    world = world or World()
    if machine.device == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes are static, so each is tried once
    classes = len(counts)
    model, started_from = _build_network(settings, classes, machine, started_from, alone=world.alone)
    if model.learns_norms:
        _refuse_too_few(int(counts.sum()), world.process.world_size)
    model = model.to(machine.device)
    if not settings.probe:
        avoid_wrong_gradients(model, machine, settings)
    ema = _average_of(model, settings)
    scored_model = ema.module if ema else model
    if not settings.probe:
        use_own_gradients(model, machine)
    if fuse and not machine.compiled:
        for network in {model, scored_model}:
            fuse_batch_norms(network)
    optimizer = build_optimizer(
        model, weight_decay=settings.weight_decay, layer_decay=settings.layer_decay, device=machine.device
    )
    if ema is not None and isinstance(model, Encoder):
        model.learn_from(ema.module)
    loss = _loss_of(model, settings, counts, lineage).to(machine.device)
    mixes = settings.mixup > 0 or settings.cutmix > 0
    compiler = Compiler(
        enabled=machine.compiled,
        mode=settings.compile_mode,
        batch_size=batch_size,
        cache=settings.output,
        may_fail=settings.compile == "auto",
    )
    train_step = TrainStep(
        model,
        loss,
        optimizer,
        machine,
        compiler,
        clip_grad=settings.clip_grad,
        ema=ema,
        mix=Mix(classes, mixup=settings.mixup, cutmix=settings.cutmix) if mixes else None,
        teacher=teacher,
        skip_bad=settings.on_nonfinite == "skip",
        shared=world.share(model, machine.device),
        capture=capture_of(settings, machine, alone=world.alone, batch_size=batch_size),
    )
    eval_step = EvalStep(scored_model, loss, machine, compiler)
    return Learner(model, scored_model, ema, loss, optimizer, compiler, train_step, eval_step, started_from, teacher)


def build_eval_step(model: Network, machine: Machine, around: nn.Module | None = None) -> EvalStep:
    """The evaluation step of a trained model; moves the model to the machine's device.

    The step calls `around` instead of the model, if given: a module that calls the model itself.
    """
    fuse_batch_norms(model.to(machine.device))
    return EvalStep(around or model, CrossEntropy(), machine)


def _build_network(
    settings: TrainConfig, classes: int, machine: Machine, started_from: str | None, *, alone: bool
) -> tuple[Classifier, str]:
    model = build_model(
        settings.model,
        0 if settings.method else classes,
        settings.image_size,
        dropout=settings.dropout,
        drop_path=settings.drop_path,
        standardize=settings.standardize,
    )
    if settings.method:
        model = build_encoder(model, settings.image_size, settings.method, views=settings.views, gather=not alone)
    if started_from is None:
        started_from = load_initial_weights(
            model.backbone,
            settings.model,
            pretrained=settings.pretrained,
            file=settings.weights,
            whole=settings.probe > 0,
        ).detail
    if settings.sync_norm:
        model = synchronised(model, machine)
    model.freeze(stages=settings.freeze_stages, norm=settings.freeze_norm or settings.probe > 0)
    return model, started_from


def _average_of(model: Classifier, settings: TrainConfig) -> Average[Classifier] | None:
    """The averaged network, if one is asked for or a self-supervised method learns from it."""
    decay = settings.ema or (model.teacher_decay if isinstance(model, Encoder) else None)
    return Average(model, decay) if decay else None


def _loss_of(
    model: Classifier, settings: TrainConfig, counts: npt.NDArray[np.int64], lineage: LineageTerm | None
) -> nn.Module:
    if isinstance(model, Encoder):
        return model.loss
    return build_loss(
        counts,
        settings.loss,
        smoothing=settings.label_smoothing,
        focal_gamma=settings.focal_gamma,
        logit_tau=settings.logit_tau,
        lineage=lineage,
    )


def _refuse_too_few(images: int, processes: int) -> None:
    """Batch norm needs `FEWEST` images of each process in each batch, and the loader has them if the split does."""
    if images >= FEWEST * processes:
        return
    most = images // FEWEST
    fewer = f"Start fewer processes (at most {most})" if most else "Prepare more training images"
    raise HemafastError(
        f"Training images: {images}. Batch norm needs {FEWEST} per process, here {FEWEST * processes}.",
        f"{fewer}, or freeze batch norm with --freeze-norm.",
    )


def synchronised(model: Classifier, machine: Machine) -> Classifier:
    """The model with batch norm statistics over all processes. Raises HemafastError on a CPU."""
    from timm.layers import convert_sync_batchnorm

    if machine.device != "cuda":
        raise HemafastError("--sync-norm needs GPUs: torch does not support it on CPUs.", "Leave it out.")
    converted: Classifier = convert_sync_batchnorm(model)
    return converted
