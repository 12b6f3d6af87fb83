"""The file that a bench writes: its schema, by version, and how such a file is read back."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hemafast.errors import HemafastError

SCHEMA = 2
FEWEST_ROUNDS = 3
"""Fewer have no spread."""

Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Spread(_Strict):
    """Of several measurements."""

    median: Rate
    min: Rate
    max: Rate

    @model_validator(mode="after")
    def _in_order(self) -> Spread:
        if not self.min <= self.median <= self.max:
            raise ValueError("not min <= median <= max")
        return self


class RoundFacts(_Strict):
    """One measurement, as `worker.Round` has it."""

    images: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(gt=0)]
    cpu_seconds: Rate
    steps: Annotated[int, Field(ge=1)]
    waited: Rate
    page_faults: Annotated[int, Field(ge=0)]
    peak_memory: Annotated[int, Field(ge=0)]
    peak_device_memory: Annotated[int, Field(ge=0)]


class StationFacts(_Strict):
    """What was measured at one station."""

    unit: str
    """What it counts: images, if nothing else is said."""
    images_per_second: Spread
    images_per_cpu_second: Spread
    page_faults_a_step: Spread
    data_wait_share: Spread
    """Of the time, that in which the step had no batch to work on."""
    peak_memory: int
    """Bytes, of the whole process; 0 where the kernel does not tell."""
    peak_device_memory: int
    rounds: Annotated[list[RoundFacts], Field(min_length=FEWEST_ROUNDS)]


class Ratio(Spread):
    """Of a station's rate to that of another, round by round."""

    to: str


class CostFacts(_Strict):
    """Of one image, as `costs.Costs` has them."""

    forward_flops: Annotated[int, Field(gt=0)]
    training_flops: Annotated[int, Field(gt=0)]
    forward_bytes: Annotated[int, Field(gt=0)]
    training_bytes: Annotated[int, Field(gt=0)]


class Headroom(_Strict):
    """Rates in images a second: what there is, and what would be if one thing cost nothing."""

    end_to_end: Rate
    step_with_free_data: Rate
    data_with_free_step: Rate
    decode: Rate
    """Of encoded images, by DALI alone."""
    arithmetic: Rate
    """If all that the step did were its products, at the rate of a large matrix product."""
    memory: Rate
    """If each operation read and wrote at the rate of a memory copy; fused and cached operations may do better."""
    reached: Rate
    """End to end as a share of the slower of data and step."""


class BenchFacts(_Strict):
    """All of it. A figure without a warm-up before it and a spread around it has no place here."""

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
    """A second."""
    memory_copy_bytes: Spread
    """A second, read and written."""
    costs: CostFacts
    headroom: Headroom
    bound_by: str
    """One sentence: what training is bound by, and what to try next."""


def checked_result(result: dict[str, Any]) -> dict[str, Any]:
    """The same result, if it is one. Raises ValidationError."""
    BenchFacts.model_validate(result)
    return result


def read_result(file: Path) -> dict[str, Any]:
    """What a bench wrote to `file`. Raises HemafastError if it cannot be read, or is of another version."""
    import json

    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise HemafastError(f"{file} cannot be read ({error.strerror}).", "Name a file of --json.") from error
    except ValueError as error:
        raise HemafastError(
            f"{file} is no JSON ({error}).", "Name a file that `hemafast bench --json` wrote."
        ) from error
    if isinstance(found, dict) and found.get("schema", SCHEMA) != SCHEMA:
        raise HemafastError(
            f"{file} has version {found['schema']!r} of the format; this hemafast reads {SCHEMA}.", "Measure it again."
        )
    try:
        return checked_result(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise HemafastError(
            f"{file} is no result of a bench ({where}: {first['msg']}).",
            "Name a file that `hemafast bench --json` wrote.",
        ) from error


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}
