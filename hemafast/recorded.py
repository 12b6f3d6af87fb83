"""What the JSON files of a run hold, field by field. A file that lacks a field, or has another type there, is refused.

Only fields that are read again are listed: others may be anything. A field that earlier versions did not write has a
default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from hemafast.reading import parse_json, read_json_text


class Recorded(BaseModel):
    """Base of what is read back: no conversions, no infinite numbers."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


def read_recorded(file: Path, kind: type[Recorded]) -> dict[str, Any]:
    """The whole object in a JSON file.

    Args:
        file: one that hemafast wrote.
        kind: what it must hold at least.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON, or a field is missing or has another type; `reading.cause` says which.
    """
    text = read_json_text(file)
    content: dict[str, Any] = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    kind.model_validate_json(text)
    return content


Count = Annotated[int, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Seconds = Annotated[float, Ge(0)]
Score = float | None
Ends = Annotated[list[Score], Len(2, 2)]
"""Low and high end of an interval, both None where there is none."""


def _square(rows: list[list[Count]]) -> list[list[Count]]:
    if any(len(row) != len(rows) for row in rows):
        raise ValueError(f"a row has not {len(rows)} numbers, as there are rows")
    return rows


def _given(value: Any) -> Any:
    """For a field that may be missing, but not be null: defaults are not validated."""
    if value is None:
        raise ValueError("it is null")
    return value


Confusion = Annotated[list[list[Count]], AfterValidator(_square)]


class _LineageEnds(Recorded):
    macro_f1: Ends


class _Lineage(Recorded):
    names: list[str]
    confusion: Confusion
    macro_f1: Score
    mistake_distance: Score = None
    ci95: _LineageEnds

    @model_validator(mode="after")
    def _fits(self) -> _Lineage:
        if len(self.names) != len(self.confusion):
            raise ValueError(f"{len(self.names)} names for {len(self.confusion)} rows of the confusion")
        return self


class _Maturation(Recorded):
    distance: Score
    ci95: Ends | None
    exact: Count
    neighbour: Count
    far: Count
    outside: Count
    stages: Annotated[list[str], Len(1)] | None = None
    largest: float | None = None


class _Bin(Recorded):
    confidence: Share
    accuracy: Share
    ci95: Annotated[list[Share], Len(2, 2)]


class _ConfidenceEnds(Recorded):
    log_loss: Ends
    ece: Ends


class _Confidence(Recorded):
    log_loss: Score
    ece: Score
    ci95: _ConfidenceEnds
    reliability: list[_Bin]


class _Calibrated(Recorded):
    images: Count
    before: _Confidence
    after: _Confidence


class _Selective(Recorded):
    threshold: Share
    coverage: Share
    accuracy: Score
    ci95: Ends | None


class _Blasts(Recorded):
    blasts: Count
    others: Count
    sensitivity: Score
    sensitivity_ci95: Ends | None
    specificity: Score
    specificity_ci95: Ends | None


class _BlastsFrom(_Blasts):
    threshold: Share


class _Blast(Recorded):
    class_: str = Field(alias="class")
    likeliest: _Blasts
    operating_point: _BlastsFrom | None
    at_specificity: _Blasts | None = None


class _Coverage(Recorded):
    coverage: Share
    ci95: Ends


class _Sets(_Coverage):
    target: Share
    images: Count
    mean_size: float
    empty: Share
    per_class: dict[str, _Coverage]


class _ClassEnds(Recorded):
    precision: Ends
    recall: Ends
    f1: Ends


class _ClassScores(Recorded):
    images: Count
    precision: Score
    recall: Score
    f1: Score
    auroc: Score
    ci95: _ClassEnds


class _ScoreEnds(Recorded):
    accuracy: Ends
    balanced_accuracy: Ends
    macro_f1: Ends
    weighted_f1: Ends
    matthews: Ends
    kappa: Ends
    top2_accuracy: Ends
    log_loss: Ends
    auroc: Ends
    ece: Ends


class _Scores(Recorded):
    accuracy: Score
    balanced_accuracy: Score
    macro_f1: Score
    weighted_f1: Score
    matthews: Score
    kappa: Score
    top2_accuracy: Score
    log_loss: Score
    auroc: Score
    ece: Score
    ci95: _ScoreEnds
    images: Count
    classes: Count
    absent: list[str]
    per_class: dict[str, _ClassScores]
    confusion: Confusion
    lineage: _Lineage | None
    maturation: _Maturation | None
    calibrated: _Calibrated
    selective: _Selective | None
    blast: _Blast | None
    sets: _Sets | None = None


class _OwnEnds(Recorded):
    macro_f1: Ends
    accuracy: Ends


class _OwnClasses(Recorded):
    classes: list[str]
    macro_f1: Score
    accuracy: Score
    ci95: _OwnEnds


class _Folding(Recorded):
    class_map: dict[str, str]
    compared: list[str]
    merged: dict[str, list[str]]
    left_out: dict[str, Count]
    model_only: list[str]
    own_classes: _OwnClasses | None = None


class _Parts(Recorded):
    colour: Share | None = None
    content: Share | None = None


class _Judged(Recorded):
    images: Count
    share: Share | None
    ci95: Ends | None
    mean: Score
    parts: _Parts
    unlike: bool


class _Likeness(Recorded):
    fitted_on: Count
    alarm: Share
    pooled: _Judged
    domains: dict[str, _Judged]


class _Calibration(Recorded):
    temperature: float
    images: Count
    target: Share
    set_thresholds: list[Share | None] | None = None


class _Model(Recorded):
    backbone: str
    classes: list[str]
    domains: list[str]
    epoch: Count
    started_from: str
    data_fingerprint: str
    calibration: _Calibration


class _Domain(Recorded):
    um_per_pixel: float | None
    drawn: bool
    images: Count
    quarantined: Count


class _Data(Recorded):
    folder: str
    fingerprint: str
    drawn: bool
    split_seed: int
    val_fraction: Share | None
    counts: dict[str, dict[str, dict[str, Count]]]
    grouped: list[str] | None = None
    prepared_by: dict[str, Any]
    domains: dict[str, _Domain]


class _Taught(Recorded):
    model: str
    weight: Share
    macro_f1: Score


class _Training(Recorded):
    preset: str
    seed: int
    epochs: Count
    total_seconds: float
    train_images_per_second: float | None
    teacher: _Taught | None = None


class _Look(Recorded):
    number: Annotated[int, Ge(1)]
    told: str


class Metrics(Recorded):
    """metrics.json."""

    schema_: Annotated[Literal[2], Field(alias="schema")]
    split: Literal["val", "test", "all"]
    warnings: list[str]
    look: _Look | None = None
    classes: Annotated[list[str] | None, AfterValidator(_given)] = None
    folding: Annotated[_Folding | None, AfterValidator(_given)] = None
    pooled: _Scores
    domains: Annotated[dict[str, _Scores], Len(1)]
    likeness: _Likeness | None = None
    model: _Model
    data: _Data
    training: _Training

    @model_validator(mode="after")
    def _fits(self) -> Metrics:
        """The parts belong to each other: as many classes, and the same kinds of scores in all domains."""
        classes = self.model.classes if self.classes is None else self.classes
        thresholds = self.model.calibration.set_thresholds
        if thresholds is not None and len(thresholds) != len(self.model.classes):
            raise ValueError(f"{len(thresholds)} set_thresholds for {len(self.model.classes)} classes")
        for name, scores in {**self.domains, "pooled": self.pooled}.items():
            if len(scores.confusion) != len(classes):
                raise ValueError(f"the confusion of {name} has {len(scores.confusion)} rows, not {len(classes)}")
            if (scores.blast is None) != (self.pooled.blast is None):
                raise ValueError(f"{name} and pooled do not both have scores of blasts")
        return self


class _Choice(Recorded):
    name: str
    value: str | int | float | bool | None
    reason: str


class _Parent(Recorded):
    folder: str
    epoch: Count
    data_fingerprint: str


class Adaptation(Recorded):
    """adaptation.json."""

    parent: _Parent
    data: str
    images: Count
    labels: Count
    new_classes: list[str]
    dropped_classes: list[str] = Field(default_factory=list)
    kept_parent: bool
    steps: list[str]
    verdict: str
    scores: dict[str, Any] | None
    predicted: list[dict[str, Any]]


class _EnsembleMember(Recorded):
    run: str
    epoch: Count
    weight: Share
    macro_f1: Score
    images_per_second: Annotated[float, Ge(0)]


class EnsembleFile(Recorded):
    """ensemble.json."""

    method: str
    members: Annotated[list[_EnsembleMember], Len(1)]
    left_out: list[str]
    fitted_on: Count
    images: Count
    cost: float
    images_per_second: Annotated[float, Ge(0)]
    scores: dict[str, Any] | None
    verdict: str


class MachineFile(Recorded):
    """machine.json."""

    choices: list[_Choice]
    facts: dict[str, str | int | float | bool | None]


class _LeftOut(Recorded):
    value: float
    ci95: Annotated[list[float], Len(2, 2)]
    domains: list[str]


class _Merged(Recorded):
    class_map: dict[str, str]


class _Preset(Recorded):
    preset: str


class _Fingerprint(Recorded):
    fingerprint: str


class CrossDomain(Recorded):
    """crossdomain.json, as far as other runs are judged by it."""

    left_out: _LeftOut
    folding: _Merged
    settings: _Preset
    data: _Fingerprint


class _Progress(Recorded):
    epochs_done: Count = 0
    steps_done: Count = 0
    steps_validated: Count = 0
    best_f1: float = 0.0
    best_epoch: Count = 0
    bad_updates: Count = 0
    seconds: Seconds = 0.0
    waited: Seconds = 0.0
    elapsed: Seconds = 0.0
    ending: Seconds = 0.0


class _Optimizer(Recorded):
    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class _Position(Recorded):
    epoch: Count
    batch: Count
    pixels: str


class Checkpoint(Recorded):
    """What torch reads of last_model.ckpt. Whether its tensors fit the network is asked where they are loaded."""

    progress: _Progress
    model: dict[str, Any]
    ema: dict[str, Any]
    optimizer: _Optimizer
    scaler: dict[str, Any]
    loader: _Position
    totals: Any
    settings: dict[str, JsonValue]
    compiled: bool
    precision: str | None = None
    started_from: str
    classes: list[str]
    data_fingerprint: str
    teacher: str | None = None


class RepeatsFile(Recorded):
    """repeats.json, as far as the next call and the library read it."""

    identity: dict[str, Any]
    data: _Fingerprint
    runs: list[dict[str, Any]]
    failures: dict[str, str]


class _Row(Recorded):
    experiment: str
    run: str | None
    settings: dict[str, Any]


class Results(Recorded):
    """results.json of a sweep, as far as the next call reuses it."""

    experiments: list[_Row]
