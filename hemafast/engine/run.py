"""The objects of a run, and their state in a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hemafast.config import AUTO_FIELD_OF_VIEW, TrainConfig, to_plain
from hemafast.data.dataset import Dataset
from hemafast.data.loader import Loader
from hemafast.engine.build import Learner
from hemafast.engine.checkpoint import ModelCard, View
from hemafast.engine.distributed import World
from hemafast.engine.duration import Duration, EpochCount, TimeBudget, size_at
from hemafast.engine.machine import Machine
from hemafast.engine.optimizer import load_optimizer
from hemafast.engine.plan import Plan
from hemafast.engine.schedule import Schedule
from hemafast.engine.step import Totals, update_plan
from hemafast.errors import HemafastError
from hemafast.model import Classifier
from hemafast.preparation.schema import DatasetInfo


@dataclass(slots=True)
class RunState:
    """How far a run has come; all of it is in the checkpoint."""

    epochs_done: int = 0
    """Trained and validated."""
    steps_done: int = 0
    """Updates, skipped ones included."""
    steps_validated: int = 0
    """`steps_done` at the last validation."""
    best_f1: float = -1.0
    best_epoch: int = 0
    bad_updates: int = 0
    """Updates that were skipped because they were not finite."""
    seconds: float = 0.0
    """Of training in this epoch."""
    waited: float = 0.0
    """Of these, seconds of waiting for data."""
    elapsed: float = 0.0
    """Seconds of the whole run, its start included."""
    ending: float = 0.0
    """Expected seconds from the last update to the end of the run."""


@dataclass(slots=True)
class Run:
    """Everything that the loop works on."""

    plan: Plan
    world: World
    learner: Learner
    duration: Duration
    schedule: Schedule
    train_batches: Loader
    val_batches: Loader
    totals: Totals
    """Of this epoch."""
    state: RunState

    @property
    def config(self) -> TrainConfig:
        """The settings."""
        return self.plan.settings

    @property
    def machine(self) -> Machine:
        """What was decided for this machine."""
        return self.plan.machine

    @property
    def dataset(self) -> Dataset:
        """The prepared data set."""
        return self.plan.dataset

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in label order."""
        return self.dataset.info.classes

    @property
    def model(self) -> Classifier:
        """The model that learns."""
        return self.learner.model

    @property
    def scored_model(self) -> Classifier:
        """The model that validates and is kept as best: the averaged one, if there is one."""
        averaged = self.learner.ema
        return averaged.module if averaged is not None else self.learner.model

    @property
    def over(self) -> bool:
        """Whether the last epoch is trained and validated."""
        return _over(self.duration, self.state)

    @property
    def tick(self) -> int:
        """How far the run has come, of `duration.ticks`."""
        return self.duration.tick(self.state)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images at this point of the run."""
        return size_at(self.tick, self.duration.ticks, (*self.config.growing_from, self.config.image_size))

    @property
    def updates(self) -> int:
        """Updates per epoch."""
        return -(-len(self.train_batches) // self.config.accumulate)

    def update_plan(self) -> list[tuple[float, bool]]:
        """For each batch of an epoch its share in its update, and whether it completes the update."""
        return update_plan(self.train_batches.sizes, self.config.accumulate, self.world.process.world_size)

    def new_totals(self) -> Totals:
        """Totals that start at zero."""
        return Totals(len(self.classes), self.machine.device)

    def resize(self) -> bool:
        """Deliver images of the present `image_size`; whether that changed anything."""
        if self.image_size == self.train_batches.image_size:
            return False
        self._resize_to(self.image_size)
        return True

    def _resize_to(self, image_size: int) -> None:
        if image_size != self.train_batches.image_size:
            self.train_batches = self.train_batches.resized(image_size)
            self.val_batches = self.val_batches.resized(image_size)

    def begin_epoch(self) -> None:
        """Forget the measurements of the epoch before."""
        self.totals = self.new_totals()
        self.state.seconds = self.state.waited = 0.0

    def restart_epoch(self) -> None:
        """Forget what this epoch has trained: its batches do not fit the settings any more."""
        state = self.state
        position = {**self.train_batches.state_dict(), "epoch": state.epochs_done, "batch": 0}
        self.train_batches.load_state_dict(position)
        state.steps_done = state.epochs_done * self.updates
        self.begin_epoch()
        self._resize_to(self.image_size)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors, numbers and strings; collective.

        No state of a random generator: each batch seeds them (`step.seed_batch`), and the loader's draws follow from
        its position.
        """
        learner = self.learner
        return {
            "progress": asdict(self.state),
            "model": learner.model.state_dict(),
            "ema": learner.ema.module.state_dict() if learner.ema is not None else {},
            "optimizer": learner.optimizer.state_dict(),
            "scaler": learner.train_step.scaler.state_dict(),
            "loader": self.train_batches.state_dict(),
            "totals": self.totals.summed(self.world).cpu(),
            "settings": to_plain(self.config),
            "compiled": self.machine.compiled,
            "started_from": learner.started_from,
            "classes": list(self.classes),
            "data_fingerprint": self.dataset.info.fingerprint,
        }

    def load_state_dict(self, saved: dict[str, Any], *, restart_epoch: bool) -> None:
        """Continue from a checkpoint; with `restart_epoch`, from the beginning of its epoch.

        Raises HemafastError if it is the checkpoint of another run.
        """
        learner = self.learner
        try:
            learner.model.load_state_dict(saved["model"])
            if learner.ema is not None:
                learner.ema.module.load_state_dict(saved["ema"] or saved["model"])
            load_optimizer(learner.optimizer, saved["optimizer"])
            learner.train_step.scaler.load_state_dict(saved["scaler"])
            self.state = RunState(**saved["progress"])
            if self.world.first:  # they are sums over all processes
                self.totals.load(saved["totals"])
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise HemafastError(f"The checkpoint does not fit the run ({error}).", "Start a new run.") from error
        learner.train_step.bad.start_from(self.state.bad_updates)
        if restart_epoch:
            self.restart_epoch()
        else:
            size = saved["loader"].get("image_size")
            self._resize_to(size if size in self.config.growing_from else self.config.image_size)
            self.train_batches.load_state_dict(saved["loader"])

    def model_card(self) -> ModelCard:
        """What a user of the model needs to know about it."""
        info = self.dataset.info
        return ModelCard(
            backbone=self.config.model,
            classes=self.classes,
            image_size=self.val_batches.image_size,
            view=view_of(info, self.plan.val.packed_size),
            domains=tuple(self.dataset.domains),
            epoch=self.state.epochs_done,
            started_from=self.learner.started_from,
            data_fingerprint=info.fingerprint,
            drawn_data=info.drawn,
        )


def duration_of(config: TrainConfig, updates: int) -> Duration:
    """How long a run with so many `updates` per epoch is."""
    return EpochCount(config.epochs, updates) if config.time_budget is None else TimeBudget(config.time_budget)


def is_finished(saved: dict[str, Any], config: TrainConfig) -> bool:
    """Whether a run with the state `saved` in its checkpoint has reached its end under `config`."""
    try:
        return _over(duration_of(config, updates=1), RunState(**saved))
    except TypeError:
        return False  # not a state; loading it says so


def _over(duration: Duration, state: RunState) -> bool:
    return duration.over(state) and state.steps_validated == state.steps_done


def view_of(info: DatasetInfo, packed_size: int) -> View:
    """What the images of a data set show at one of its packed sizes."""
    asked = info.settings["field_of_view"]
    named = {"auto": AUTO_FIELD_OF_VIEW, "whole": None}
    return View(
        packed_size=packed_size,
        field_of_view=named[asked] if asked in named else float(asked),
        um_per_pixel={name: domain.um_per_pixel for name, domain in info.domains.items()},
    )
