"""The file that a bench writes: its schema, and how to read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from annotated_types import Gt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hemafast.bench.worker import Round
from hemafast.errors import HemafastError
from hemafast.reading import cause, read_json

SCHEMA = 2
FEWEST_ROUNDS = 3
"""Fewer rounds give no useful spread."""

LOADER, STEP, WHOLE, DECODE, CHECKPOINT = "augment, basic", "step", "end to end", "decode", "checkpoint"
PRODUCT, COPY = "matrix product", "memory copy"
"""Names of stations."""

Rate = Annotated[float, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Spread(_Strict):
    """Median and range of several measurements."""

    median: Rate
    min: Rate
    max: Rate

    @model_validator(mode="after")
    def _in_order(self) -> Spread:
        if not self.min <= self.median <= self.max:
            raise ValueError("not min <= median <= max")
        return self


class StationFacts(_Strict):
    """The measurements of one station."""

    unit: str
    """What it counts, as images."""
    images_per_second: Spread
    """Over the rounds. The rate of a round is all its images by all its seconds: the harmonic mean of its steps."""
    images_per_second_overall: Rate | None = None
    """Likewise of all rounds together; None in older results."""
    images_per_cpu_second: Spread
    seconds_a_step: Spread | None = None
    """Median step, with the 10th and 90th percentile for min and max; None in older results."""
    compile_seconds: Rate = 0.0
    """Seconds of compiling, in none of the other figures."""
    page_faults_a_step: Spread
    data_wait_share: Spread
    """Share of the time in which the step waited for a batch."""
    peak_memory: int
    """Bytes of the whole process; 0 if unknown."""
    peak_device_memory: int
    rounds: Annotated[list[Round], Field(min_length=FEWEST_ROUNDS)]


class Ratio(Spread):
    """Ratio of a station's rate to that of another station, round by round."""

    to: str


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of one image."""

    forward_flops: Annotated[int, Gt(0)]
    """Operations of products and convolutions; a multiplication and an addition are two."""
    training_flops: Annotated[int, Gt(0)]
    """Forward and backward: a little less than three times the forward pass, because pixels need no gradient."""
    forward_bytes: Annotated[int, Gt(0)]
    """Bytes that all operations read and write, each by itself, as if nothing were fused or cached."""
    training_bytes: Annotated[int, Gt(0)]


class Headroom(_Strict):
    """Rates in images/s: measured, and possible if something cost nothing."""

    end_to_end: Rate
    step_with_free_data: Rate
    data_with_free_step: Rate
    decode: Rate
    """DALI decoding alone."""
    arithmetic: Rate
    """If the step did only its products, at the speed of a large matrix product."""
    memory: Rate
    """If each operation read and wrote at the speed of a memory copy; fused and cached operations may be faster."""
    reached: Rate
    """End to end, as a share of the slower of loader and step."""


class BenchFacts(_Strict):
    """The whole result. Every number has a warm-up and a spread."""

    schema_: Annotated[Literal[2], Field(alias="schema")]
    bench: dict[str, Any]
    data: dict[str, Any]
    machine: dict[str, str]
    warm_up_rounds: Annotated[int, Field(ge=1)]
    rounds: Annotated[int, Field(ge=FEWEST_ROUNDS)]
    seconds: Annotated[float, Field(gt=0)]
    stations: dict[str, StationFacts]
    ratios: dict[str, Ratio]
    matrix_product_flops: Spread
    """FLOP/s."""
    memory_copy_bytes: Spread
    """Bytes/s, read and written."""
    costs: Costs
    headroom: Headroom
    bound_by: str
    """One sentence: what limits training, and what to try next."""


def read_result(file: Path) -> dict[str, Any]:
    """Read what a bench wrote to `file`. Raises HemafastError if it is unreadable or of another version."""
    remedy = "Name a file that `hemafast bench --json` wrote."
    try:
        found: dict[str, Any] = read_json(file)
    except OSError as error:
        raise HemafastError(f"{file} cannot be read ({error.strerror}).", remedy) from error
    except ValueError as error:
        raise HemafastError(f"{file} is not JSON ({error}).", remedy) from error
    if isinstance(found, dict) and found.get("schema", SCHEMA) != SCHEMA:
        raise HemafastError(f"{file} has format {found['schema']!r}, not {SCHEMA}.", "Run the bench again.")
    try:
        BenchFacts.model_validate(found)
    except ValidationError as error:
        raise HemafastError(f"{file} is not the result of a bench ({cause(error)}).", remedy) from error
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": median(values), "min": min(values), "max": max(values)}
