"""The objects of a run, and their state in a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from hemafast.config import TrainConfig, to_plain
from hemafast.data.dataset import Dataset
from hemafast.data.loader import Loader
from hemafast.engine.checkpoint import Home, ModelCard, View
from hemafast.engine.distributed import World
from hemafast.engine.duration import Duration, duration_of, size_at
from hemafast.engine.home import home_of
from hemafast.engine.learner import Learner
from hemafast.engine.optimizer import load_optimizer
from hemafast.engine.plan import Plan
from hemafast.engine.schedule import Schedule
from hemafast.engine.state import RunState
from hemafast.engine.step import Totals
from hemafast.engine.task import Task
from hemafast.errors import HemafastError
from hemafast.preparation.schema import DatasetInfo, field_of_view_of


@dataclass(slots=True)
class Run:
    """Everything that the loop works on."""

    plan: Plan
    world: World
    learner: Learner
    updates: int
    """Per epoch."""
    duration: Duration
    schedule: Schedule
    train_batches: Loader
    val_batches: Loader
    task: Task
    state: RunState = field(default_factory=RunState)
    totals: Totals = field(init=False)
    """Sums over this epoch."""
    _home: Home | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.totals = self.new_totals()

    @property
    def config(self) -> TrainConfig:
        """The settings."""
        return self.plan.settings

    @property
    def dataset(self) -> Dataset:
        """The prepared data set."""
        return self.plan.dataset

    @property
    def over(self) -> bool:
        """Whether the last epoch is trained and validated."""
        return self.duration.over(self.state) and self.state.validated

    @property
    def tick(self) -> int:
        """How far the run has come; the end is at `duration.ticks`."""
        return self.duration.tick(self.state)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images at this point of the run."""
        return size_at(self.tick, self.duration.ticks, (*self.config.growing_from, self.config.image_size))

    def new_totals(self) -> Totals:
        """Totals that start at zero."""
        return self.learner.new_totals()

    def resize(self, image_size: int) -> None:
        """Deliver images of this size from the next batch on."""
        if image_size != self.train_batches.image_size:
            self.train_batches = self.train_batches.resized(image_size)
            self.val_batches = self.val_batches.resized(image_size)

    def begin_epoch(self) -> None:
        """Reset the measurements."""
        self.totals = self.new_totals()
        self.state.seconds = self.state.waited = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors, numbers and strings; collective.

        Random generators have no state here: each batch seeds them (`step.seed_batch`), and the position of the loader
        determines its draws.
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
            "compiled": self.plan.machine.compiled,
            "precision": self.plan.machine.precision,
            "started_from": learner.started_from,
            "classes": list(self.dataset.info.classes),
            "data_fingerprint": self.dataset.info.fingerprint,
            "teacher": learner.teacher.digest if learner.teacher else None,
            "lineage": None if self.plan.lineage is None else asdict(self.plan.lineage),
        }

    def load_state_dict(self, saved: dict[str, Any], *, restart_epoch: bool) -> None:
        """Continue from a checkpoint; with `restart_epoch`, from the beginning of its epoch.

        Raises HemafastError if the checkpoint belongs to another run.
        """
        learner = self.learner
        self._refuse_other_teacher(saved.get("teacher"))
        try:
            learner.model.load_state_dict(saved["model"])
            if learner.ema is not None:
                learner.ema.module.load_state_dict(saved["ema"] or saved["model"])
            load_optimizer(learner.optimizer, saved["optimizer"])
            _load_scale(learner.train_step.scaler, saved["scaler"])
            self.state = RunState(**saved["progress"])
            if self.world.first:  # the sums are those of all processes
                self.totals.load(saved["totals"])
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise HemafastError(f"The checkpoint does not fit the run ({error}).", "Start a new run.") from error
        learner.train_step.bad.start_from(self.state.bad_updates)
        if not restart_epoch:
            size = saved["loader"].get("image_size")
            self.resize(size if size in self.config.growing_from else self.config.image_size)
            self.train_batches.load_state_dict(saved["loader"])
            return
        position = {**self.train_batches.state_dict(), "epoch": self.state.epochs_done, "batch": 0}
        self.train_batches.load_state_dict(position)
        self.state.steps_done = self.state.epochs_done * self.updates
        self.begin_epoch()
        self.resize(self.image_size)

    def _refuse_other_teacher(self, digest: str | None) -> None:
        teacher = self.learner.teacher
        if digest != (teacher.digest if teacher else None):
            raise HemafastError(
                f"{self.config.teacher} is not the teacher that the run began with: its file has changed.",
                "Put the file back, or start a new run.",
            )

    def home(self) -> Home:
        """What is known of the training images; measured once."""
        if self._home is None:
            config = self.config
            self._home = home_of(self.dataset, self.plan.machine, config.image_size, standardize=config.standardize)
        return self._home

    def model_card(self) -> ModelCard:
        """The card of the model in its present state."""
        info = self.dataset.info
        return ModelCard(
            backbone=self.config.model,
            classes=info.classes,
            image_size=self.val_batches.image_size,
            view=view_of(info, self.plan.val.packed_size),
            domains=tuple(self.dataset.domains),
            epoch=self.state.epochs_done,
            started_from=self.learner.started_from,
            data_fingerprint=info.fingerprint,
            drawn_data=info.drawn,
            quarter_turns=self.config.quarter_turns,
            home=self.home(),
            lineage=self.plan.lineage,
        )


def _load_scale(scaler: Any, saved: dict[str, Any]) -> None:
    """Load the scale of the gradients. A run that changes to fp16 has none yet; one that leaves fp16 needs none."""
    if scaler.is_enabled() and saved:
        scaler.load_state_dict(saved)


def is_finished(saved: dict[str, Any], config: TrainConfig) -> bool:
    """Whether a run whose checkpoint holds the progress `saved` has reached its end under `config`."""
    try:
        state = RunState(**saved)
    except TypeError:
        return False  # not a state; loading it raises the error
    return duration_of(config, updates=1).over(state) and state.validated


def view_of(info: DatasetInfo, packed_size: int) -> View:
    """The part of an image that a model sees, for data packed at `packed_size`."""
    return View(
        packed_size=packed_size,
        field_of_view=field_of_view_of(info),
        um_per_pixel={name: domain.um_per_pixel for name, domain in info.domains.items()},
        ranges={name: domain.ranges for name, domain in info.domains.items() if domain.ranges},
        min_side=info.settings["min_side"],
    )
