"""How much a bench measures, and of which training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from hemafast.config import TrainConfig, train_config


class Effort(NamedTuple):
    """How much is measured by default."""

    batch_size: int
    rounds: int
    seconds: float
    peers: bool


THOROUGH = Effort(batch_size=32, rounds=5, seconds=2.0, peers=True)
QUICK = Effort(batch_size=8, rounds=3, seconds=0.1, peers=False)
"""Under a minute on two cores, most of it imports and training steps of a second."""


def bench_settings(preset: str | None = None, file: Path | None = None, **asked: Any) -> TrainConfig:
    """Settings of a bench: EfficientNet-B0 under the policy `basic`, unless a preset or a file says otherwise."""
    usual = {"policy": "basic"} if preset is None and file is None else {}
    given = {name: value for name, value in asked.items() if value is not None}
    return train_config(preset or (None if file else "b0"), file, **{**usual, **given})
