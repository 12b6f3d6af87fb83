"""How far a run has come."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RunState:
    """How far a run has come; the checkpoint holds all of it."""

    epochs_done: int = 0
    """Epochs that were trained and validated."""
    steps_done: int = 0
    """Updates so far, skipped ones included."""
    steps_validated: int = 0
    """`steps_done` at the last validation."""
    best_f1: float = -1.0
    best_epoch: int = 0
    bad_updates: int = 0
    """Updates that were skipped because they were not finite."""
    seconds: float = 0.0
    """Training time in this epoch."""
    waited: float = 0.0
    """Seconds of it that were spent waiting for data."""
    elapsed: float = 0.0
    """Seconds of the whole run, startup included."""
    ending: float = 0.0
    """Expected seconds from the last update to the end of the run."""

    @property
    def validated(self) -> bool:
        """Whether the model was validated since its last update."""
        return self.steps_validated == self.steps_done
