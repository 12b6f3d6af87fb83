"""The library: what a notebook or a script calls. `import hemafast as hf` offers all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from hemafast.config import (
    Amp,
    Device,
    PrepareConfig,
    ScoredSplit,
    TrainConfig,
    checked,
    parse_class_map,
    prepared_beside,
    refuse_other_command,
    seconds_of,
    to_plain,
    train_config,
)
from hemafast.errors import HemafastError
from hemafast.progress import SILENT, Progress
from hemafast.run_folder import PREDICTIONS, find_run, read_adaptation, read_config, read_metrics
from hemafast.taxonomy import COUNTED_APART

if TYPE_CHECKING:
    import pandas as pd

    from hemafast.data.dataset import Dataset
    from hemafast.deploy.choices import Combining, UmPerPixel
    from hemafast.deploy.inputs import Images
    from hemafast.deploy.labels import Given as Labels
    from hemafast.deploy.model import Model
    from hemafast.preparation.build import PreparedPart


@overload
def prepare(
    source: str | Path = ...,
    output: str | Path | None = ...,
    *,
    part: None = None,
    join: bool = False,
    progress: Progress = ...,
    workers: int | None = None,
    **settings: Any,
) -> Dataset: ...


@overload
def prepare(
    source: str | Path = ...,
    output: str | Path | None = ...,
    *,
    part: str,
    join: bool = False,
    progress: Progress = ...,
    workers: int | None = None,
    **settings: Any,
) -> PreparedPart: ...


def prepare(
    source: str | Path = PrepareConfig.source,
    output: str | Path | None = None,
    *,
    part: str | None = None,
    join: bool = False,
    progress: Progress = SILENT,
    workers: int | None = None,
    **settings: Any,
) -> Dataset | PreparedPart:
    """Turn archives of class folders into a verified data set, and open it.

    A second call with the same archives and settings changes nothing and takes a moment. An interrupted call resumes.
    Several jobs share the work: each reads a `part`, and a call with `join` and the same settings makes the data set.

    Args:
        source: folder of archives or folders, one per domain; or one archive; or a folder of class folders.
        output: where to write the data set; None for `source`/prepared, or beside an archive.
        part: read only this part of the images, as "3/8"; None for all.
        join: make the data set of all its parts, which have been read.
        progress: listens to the number of images read.
        workers: threads; None for the number of cores.
        settings: other fields of `PrepareConfig`, such as `folds=5` or `um_per_pixel={"MyLab": 0.11}`.

    Returns:
        The data set; of a `part` its number, folder, count of images, and whether it was read now.

    Raises:
        HemafastError: a setting makes no sense, an archive cannot be trusted, too many images are unreadable, or a part
            is missing or no part.
    """
    from hemafast.preparation import build
    from hemafast.preparation.parts import parse_part

    if part is not None and join:
        raise HemafastError(f"part = {part} and join = True contradict each other.", "Leave out one of them.")
    where = Path(output) if output else prepared_beside(Path(source))
    config = checked(PrepareConfig, {"source": Path(source), "output": where, **settings})
    if part is not None:
        return build.prepare_part(config, parse_part(part), progress=progress, workers=workers)
    make = build.join if join else build.prepare
    return open_dataset(make(config, progress=progress, workers=workers).folder)


def open_dataset(
    folder: str | Path = TrainConfig.data, *, fold: int | None = None, domains: list[str] | None = None
) -> Dataset:
    """Open a prepared data set.

    Args:
        folder: the folder that `prepare` wrote.
        fold: which fold validates, of data prepared with `folds`; None for the split it was prepared with.
        domains: restrict both sides of the split to these domains; None for all.

    Returns:
        The data set: `table` (a frame with one row per image), `classes`, `domains`, `split` and `loader`.

    Raises:
        HemafastError: there is no data set, it is incomplete, or it has no such fold or domain.
    """
    from hemafast.data.dataset import open_dataset as open_prepared

    return open_prepared(Path(folder), fold, domains)


@overload
def train(
    data: Dataset | str | Path,
    config: TrainConfig | str | Path | None = ...,
    *,
    preset: str | None = ...,
    folds: None = None,
    seeds: None = None,
    progress: Progress = ...,
    **settings: Any,
) -> TrainedRun: ...


@overload
def train(
    data: Dataset | str | Path,
    config: TrainConfig | str | Path | None = ...,
    *,
    preset: str | None = ...,
    folds: int,
    seeds: int | None = None,
    parallel: int | None = None,
    progress: Progress = ...,
    **settings: Any,
) -> RepeatedRuns: ...


@overload
def train(
    data: Dataset | str | Path,
    config: TrainConfig | str | Path | None = ...,
    *,
    preset: str | None = ...,
    folds: None = None,
    seeds: int,
    parallel: int | None = None,
    progress: Progress = ...,
    **settings: Any,
) -> RepeatedRuns: ...


def train(
    data: Dataset | str | Path,
    config: TrainConfig | str | Path | None = None,
    *,
    preset: str | None = None,
    folds: int | None = None,
    seeds: int | None = None,
    parallel: int | None = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> TrainedRun | RepeatedRuns:
    """Train a classifier, evaluate its best epoch, write the report, and open the run.

    The same as `hemafast train`. An interrupt saves the run and raises StoppedError; `resume` continues it. What
    training sets for the process (random generators, signal handlers, compiler flags) is restored afterwards, except
    that glibc keeps freed memory from then on, which makes later steps faster.

    With `folds` or `seeds`, the same settings are trained several times, to say how sure the score is. The same call
    continues: finished runs are reused, interrupted ones resume, and one failure does not stop the rest.

    Args:
        data: a data set, or the folder of one.
        config: all settings, or a TOML or JSON file of settings on top of the preset; None for the preset alone.
        preset: name of the preset to start from; None for `baseline`.
        folds: train on each of so many folds, with which the data was prepared; None for its split.
        seeds: train with so many seeds, from `seed` on.
        parallel: with folds or seeds, runs at a time, each in a process of its own; None for one per core.
        progress: listens to epochs and images, as `ProgressBar()`; of runs in processes, to their number.
        settings: fields of `TrainConfig`, such as `epochs=4`; they override `config` and `preset`.

    Returns:
        The evaluated run; with `folds` or `seeds` all of them, `RepeatedRuns`.

    Raises:
        HemafastError: a setting or the data does not fit, or torchrun started several processes (use the command
            `hemafast train` there); raised before anything is written.
        StoppedError: the run was interrupted; everything is saved.
    """
    from hemafast.engine import trainer
    from hemafast.engine.distributed import refuse_several

    chosen = _chosen(data, config, preset, settings)
    refuse_other_command(chosen, pretrains=False)
    refuse_several()
    if folds is None and seeds is None:
        if parallel is not None:
            raise HemafastError(f"parallel = {parallel} has no effect on one run.", "Give folds or seeds too.")
        return _finish(trainer.train(chosen, progress=progress), progress)
    from hemafast.experiments.repeats import repeat_training

    return RepeatedRuns(
        repeat_training(chosen, folds=folds, seeds=1 if seeds is None else seeds, parallel=parallel, progress=progress)
    )


def resume(
    run: TrainedRun | str | Path,
    *,
    allow_changes: bool = False,
    progress: Progress = SILENT,
    **changes: Any,
) -> TrainedRun:
    """Continue a run that was interrupted, or extend a finished one; evaluate a classifier. On a CPU, the result is
    bit-identical to a run that was never interrupted.

    Args:
        run: a run, its folder, or "latest".
        allow_changes: also accept changes that matter to what is learned; the epoch then begins anew.
        progress: listens to epochs and images.
        changes: fields of `TrainConfig` to change, such as `epochs=50`.

    Returns:
        The run, evaluated unless it is one of `pretrain`.

    Raises:
        HemafastError: the folder is not a run, its data has changed, or a change is not allowed.
        StoppedError: the run was interrupted again; everything is saved.
    """
    from hemafast.engine import trainer
    from hemafast.engine.distributed import refuse_several

    refuse_several()
    folder = find_run(run)
    return _finish(trainer.resume(folder, changes, allow_changes=allow_changes, progress=progress), progress)


def pretrain(
    data: Dataset | str | Path,
    config: TrainConfig | str | Path | None = None,
    *,
    preset: str | None = None,
    go_on: bool = False,
    progress: Progress = SILENT,
    **settings: Any,
) -> TrainedRun:
    """Let a network learn features from images without their labels; train from it with `hf.train(weights=run.folder)`.

    The same as `hemafast pretrain`. An interrupt saves the run and raises StoppedError; `resume` continues it.

    Args:
        data: a data set, or the folder of one. Its labels only score the epochs.
        config: as for `train`.
        preset: name of the preset to start from; None for `pretrain`.
        go_on: continue the newest run with exactly these settings, if there is one.
        progress: listens to epochs and images.
        settings: fields of `TrainConfig`, such as `method="byol"`.

    Returns:
        The run: its folder and its `history`, with `knn_accuracy` and `feature_spread` of each epoch. It has no
        classifier, and so no model, metrics or predictions.

    Raises:
        HemafastError: a setting or the data does not fit, lightly is not installed, or torchrun started several
            processes.
        StoppedError: the run was interrupted; everything is saved.
    """
    from hemafast.engine import trainer
    from hemafast.engine.distributed import refuse_several

    if preset is None and config is None:
        preset = "pretrain"
    chosen = _chosen(data, config, preset, settings)
    refuse_other_command(chosen, pretrains=True)
    refuse_several()
    folder = trainer.train(chosen, go_on=go_on, progress=progress)
    assert folder is not None  # None is for the other processes of torchrun
    return TrainedRun(folder)


def tune(
    data: Dataset | str | Path,
    config: TrainConfig | str | Path | None = None,
    *,
    preset: str | None = None,
    space: str | Sequence[str] = (),
    trials: int = 20,
    folds: int | None = None,
    test: bool = False,
    time_budget: str | float | None = None,
    output: str | Path = "runs/tune",
    progress: Progress = SILENT,
    **settings: Any,
) -> Mapping[str, Any]:
    """Search for settings by many trainings. The same call continues.

    The same as `hemafast tune`.

    Args:
        data: a data set, or the folder of one.
        config: as for `train`.
        preset: name of the preset to start from; None for `fast`.
        space: what is searched, as "lr=1e-4..1e-2" or several of these; none for the usual settings.
        trials: how many there are in the end, those of earlier calls included.
        folds: score each trial by its mean over so many folds, with which the data was prepared; None for its split.
        test: once all trials have ended, score the best one on the held-out test images. That counts as a look.
        time_budget: of this call: seconds, or a duration such as "2h"; None for no limit.
        output: folder of the study, its page and all runs.
        progress: listens to the runs.
        settings: fields of `TrainConfig` for all trials, such as `epochs=4`.

    Returns:
        What was found, as `tune.json` holds it: `best`, `trials`, `test`, `notes`, `failures`.

    Raises:
        HemafastError: no trial or no time is asked for, optuna is not installed, a setting does not fit, the folder
            holds another search, or the data has no such folds or no test images.
        StoppedError: a run was interrupted; everything is saved.
    """
    from hemafast.experiments.space import default_space, parse_space
    from hemafast.experiments.tune import tune as search

    if preset is None and config is None:
        preset = "fast"
    chosen = _chosen(data, config, preset, {"output": Path(output), **settings})
    refuse_other_command(chosen, pretrains=False)
    seconds = seconds_of(time_budget) if isinstance(time_budget, str) else time_budget
    return search(
        chosen,
        parse_space([space] if isinstance(space, str) else space) if space else default_space(chosen),
        trials=trials,
        folds=folds,
        test=test,
        time_budget=float("inf") if seconds is None else seconds,
        progress=progress,
    )


def _chosen(
    data: Dataset | str | Path, config: TrainConfig | str | Path | None, preset: str | None, settings: dict[str, Any]
) -> TrainConfig:
    if isinstance(config, TrainConfig):
        if preset is not None:
            raise HemafastError("A TrainConfig already has its preset.", "Leave out preset, or give settings by name.")
        return checked(TrainConfig, {**to_plain(config), **_data_settings(data), **settings})
    file = None if config is None else Path(config)
    return train_config(preset, file, **{**_data_settings(data), **settings})


def _data_settings(data: Dataset | str | Path) -> dict[str, Any]:
    if isinstance(data, str | Path):
        return {"data": Path(data)}
    return {"data": data.folder, "fold": data.fold, "domains": data.chosen}


def _finish(folder: Path | None, progress: Progress) -> TrainedRun:
    assert folder is not None  # None is for the other processes of torchrun
    run = TrainedRun(folder)
    if read_config(folder).method is None:
        run.evaluate(progress=progress)
    return run


def adapt(
    run: TrainedRun | str | Path,
    data: Images | Dataset,
    *,
    labels: Labels = None,
    class_map: Mapping[str, str] | str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    groups: str | Path | None = None,
    um_per_pixel: UmPerPixel = None,
    bit_depth: int | None = None,
    classes: Sequence[str] | None = None,
    output: str | Path = TrainConfig.output,
    device: Device = "auto",
    progress: Progress = SILENT,
) -> TrainedRun:
    """Adapt a run's best model to the images of another laboratory, without labels or with a few.

    The result is a run of its own; the run it came from stays as it was. Its `adaptation` says what was changed and,
    with labels, the scores before and after by cross-validation.

    Args:
        run: a run, its folder, or "latest".
        data: images as `Model.predict` takes them; or a prepared data set, of which the training images are used.
        labels: None; a table of path and label; "own" for class folders and prepared data; or one class for each array,
            "" without one.
        class_map: new names by old ones, "FROM=TO,FROM=TO", or a table of them; "" leaves a class out.
        columns: names of columns in the table of labels, by role.
        groups: table of patients or slides, which are never on both sides of a score.
        um_per_pixel: as for `Model.predict`.
        bit_depth: as for `Model.predict`.
        classes: those of the model that this laboratory tells apart; no other can be an answer of the adapted model.
            None for all.
        output: folder in which the run folder is made.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        progress: listens to every stage.

    Returns:
        The adapted run.

    Raises:
        HemafastError: the run cannot be adapted, or images or labels do not fit it.
    """
    from hemafast.transfer.adapt import adapt_run
    from hemafast.transfer.cells import Asked

    folder = find_run(run)
    asked = Asked(
        labels=labels,
        columns=columns,
        groups=None if groups is None else Path(groups),
        um_per_pixel=um_per_pixel,
        bit_depth=bit_depth,
        classes=classes,
    )
    named = parse_class_map(class_map)
    return TrainedRun(
        adapt_run(folder, data, asked, class_map=named, output=Path(output), device=device, progress=progress).folder
    )


def count_patients(
    named: str | Path | Sequence[str | Path],
    output: str | Path = "patients",
    *,
    groups: str | Path | None = None,
    labels: Labels = None,
    columns: Mapping[str, str] | None = None,
    class_map: Mapping[str, str] | str | Path | None = None,
    cells: Literal[100, 200] = 100,
    apart: Sequence[str] = COUNTED_APART,
    calls: Mapping[str, float] | None = None,
    adjust: bool = False,
    patient_labels: str | Path | None = None,
    head: str | Path | None = None,
    um_per_pixel: UmPerPixel = None,
    bit_depth: int | None = None,
    device: Device = "auto",
    progress: Progress = SILENT,
) -> Mapping[str, Any]:
    """Count the cells of each patient in percent of leukocytes, and write a table and a page.

    The same as `hemafast patients`.

    Args:
        named: a run and then images, as `["runs/NAME", "slides/"]`; a run alone, for its validation images; or a
            table that `hemafast predict` or `evaluate` wrote.
        output: folder to write into.
        groups: table of path and patient; None for what the table of predictions says, or the folders around images.
        labels: of cells, to compare the counts with: a table of path and label, "own" for class folders, or None.
        columns: names of columns in the table of labels, by role.
        class_map: new names by old ones, "FROM=TO,FROM=TO", or a table of them; "" leaves a class out.
        cells: leukocytes that a laboratory counts; `reported` percentages come in its steps.
        apart: classes that are no leukocytes, and are counted per 100 of these.
        calls: percent by class, of which each patient is said to be above or below; None for 20 % of myeloblasts.
        adjust: correct percentages for the mistakes that the model makes on the validation images of its run.
        patient_labels: table of patient and label, to train an attention head on the features of the cells.
        head: a head that was trained so, to give patients labels.
        um_per_pixel: as for `Model.predict`.
        bit_depth: as for `Model.predict`.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        progress: listens to every stage.

    Returns:
        What was counted, as `patients.json` holds it: `patients`, a list, has the counts, percentages (0 to 100) and
        95 % intervals of each; `agreement` with labels, `labels` of patients with their scores, and `notes`.

    Raises:
        HemafastError: something named is missing or does not fit, no patient is known, or there are too few to learn.
    """
    from hemafast.deploy.plan import Options
    from hemafast.patients.count import Counting
    from hemafast.patients.written import Diagnosis, count_to
    from hemafast.report.embedding import Named

    told = Named(
        labels=labels,
        columns=columns,
        groups=None if groups is None else Path(groups),
        class_map=parse_class_map(class_map),
    )
    diagnosis = Diagnosis(
        labels=None if patient_labels is None else Path(patient_labels), head=None if head is None else Path(head)
    )
    counting = Counting(apart=apart, convention=cells, limits=calls or {}, adjust=adjust)
    options = Options(um_per_pixel=um_per_pixel, bit_depth=bit_depth, device=device)
    several = [named] if isinstance(named, str | Path) else named
    return count_to(
        Path(output), several, told, options, counting=counting, diagnosis=diagnosis, progress=progress
    ).result


def open_run(run: str | Path = "latest", output: str | Path = TrainConfig.output) -> TrainedRun:
    """Open a run that was trained before.

    Args:
        run: the run folder, or "latest" for the newest run under `output`; or the file of a model, such as
            `best_model.safetensors` of an ensemble that somebody sent, which gets a run folder under `output`.
        output: folder of the runs.

    Returns:
        The run.

    Raises:
        HemafastError: there is no such run, or the file holds no model.
    """
    folder = find_run(run, Path(output))
    if folder.is_file():
        from hemafast.deploy.lone import run_of_file

        folder = run_of_file(folder, output=Path(output))
    read_config(folder)
    return TrainedRun(folder)


def list_runs(output: str | Path = TrainConfig.output) -> pd.DataFrame:
    """The runs under a folder, those of sweeps and other experiments included.

    Args:
        output: folder of the runs.

    Returns:
        One row per run, oldest first: name, folder, data, model, preset, state ("running", "finished" or "stopped"),
        epochs_done, epochs, macro_f1 (0 to 1, None before evaluation), ci95 (its 95 % interval) and began (local time).
    """
    import pandas as pd

    from hemafast.run_folder import RunSummary, summaries

    columns = list(RunSummary.__dataclass_fields__)
    return pd.DataFrame(summaries(Path(output)), columns=columns)


@dataclass(frozen=True, slots=True)
class RepeatedRuns:
    """Runs with the same settings on several folds or with several seeds.

    Attributes:
        folder: holds the results and a folder for each run.
    """

    folder: Path

    @property
    def result(self) -> Mapping[str, Any]:
        """What the scores are worth, as `repeats.json` holds it: `score`, `spread`, `runs`, `notes`, `failures`."""
        from hemafast.experiments.repeats import read_repeats

        return read_repeats(self.folder)

    @property
    def table(self) -> pd.DataFrame:
        """One row per run: run, fold, seed, status, macro_f1 (0 to 1), ci95, epoch_gain, folder and more."""
        import pandas as pd

        return pd.DataFrame(self.result["runs"])

    @property
    def runs(self) -> tuple[TrainedRun, ...]:
        """The runs that have ended; `result["failures"]` names the failed ones."""
        return tuple(TrainedRun(Path(row["folder"])) for row in self.result["runs"] if row["folder"] is not None)


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run folder, opened.

    Attributes:
        folder: the run folder.
    """

    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        """The settings by name, as `config.json` holds them. Raises HemafastError if it is damaged."""
        return to_plain(read_config(self.folder))

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Every score, as `metrics.json` holds it: `pooled`, `domains`, `model`, `data`, `training`.

        Raises HemafastError before the run was evaluated.
        """
        return read_metrics(self.folder)

    @property
    def adaptation(self) -> Mapping[str, Any]:
        """What `adapt` changed and how it scored, as `adaptation.json` holds it. Raises HemafastError without it."""
        return read_adaptation(self.folder)

    def ensemble(
        self,
        *others: TrainedRun | str | Path,
        method: Combining = "mean",
        max_cost: float | None = None,
        output: str | Path = TrainConfig.output,
        device: Device = "auto",
        progress: Progress = SILENT,
    ) -> TrainedRun:
        """Make one model of this run and others of the same data, and score it. The runs stay as they are.

        Args:
            others: runs or their folders; none for snapshots.
            method: "mean" of probabilities; "fitted" for weights from the calibration half of the validation images;
                "soup" for the mean of the weights of seeds of one recipe, with batch norm measured anew; "snapshots"
                for the checkpoints that this run kept.
            max_cost: choose the best members that cost at most this many times the best run; None for all.
            output: folder in which the run folder is made.
            device: "cpu", "cuda", or "auto" for a GPU if there is one.
            progress: listens to every stage.

        Returns:
            The ensemble as a run; members of several folds are not scored, as no validation image is held out for all.

        Raises:
            HemafastError: the runs do not fit together, or their data set is not there; nothing is written.
        """
        from hemafast.deploy.combine import combine_runs

        folders = [find_run(one) for one in (self, *others)]
        made = combine_runs(
            folders, method=method, max_cost=max_cost, output=Path(output), device=device, progress=progress
        )
        run = TrainedRun(made.folder)
        if made.scored:
            run.evaluate(device=device, progress=progress)
        return run

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch and phase ("train", "val"): loss, accuracy, f1_macro (0 to 1), seconds and more."""
        import pandas as pd

        from hemafast.engine.journal import read_rows

        return pd.DataFrame(read_rows(self.folder))

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per validation image: image, label, predicted, confidence and a probability per class.

        Raises HemafastError before the run was evaluated.
        """
        from hemafast.evaluate.predictions import read_predictions

        return read_predictions(self.folder / PREDICTIONS)[0]

    def model(self, *, device: Device = "auto", amp: Amp = "auto") -> Model:
        """The best model of the run, ready to predict and embed.

        Args:
            device: "cpu", "cuda", or "auto" for a GPU if there is one.
            amp: autocast precision; "auto" for the fastest on a GPU and fp32 on a CPU.

        Returns:
            The model with its normalisation and calibration.

        Raises:
            HemafastError: no epoch was finished yet, or the file is damaged.
        """
        from hemafast.deploy.model import open_model

        return open_model(self.folder, device=device, amp=amp)

    def embed(
        self,
        images: Images,
        output: str | Path = "embeddings.parquet",
        *,
        labels: Labels = None,
        columns: Mapping[str, str] | None = None,
        groups: str | Path | None = None,
        class_map: Mapping[str, str] | str | Path | None = None,
        page: str | Path | None = None,
        um_per_pixel: UmPerPixel = None,
        bit_depth: int | None = None,
        device: Device = "auto",
        progress: Progress = SILENT,
    ) -> Mapping[str, Any]:
        """Write features and answers of images as a table, say how well they tell classes, and draw a map of the cells.

        The same as `hemafast embed`. `model().embed` gives the features alone, as an array.

        Args:
            images: as `Model.predict` takes them.
            output: .parquet or .npz.
            labels: of the images: a table of path and label, "own" for class folders, or None.
            columns: names of columns in the table of labels, by role.
            groups: table of path and patient or slide.
            class_map: new names by old ones, "FROM=TO,FROM=TO", or a table of them; "" leaves a class out.
            page: the map, a page that needs no other file; None for none.
            um_per_pixel: as for `Model.predict`.
            bit_depth: as for `Model.predict`.
            device: "cpu", "cuda", or "auto" for a GPU if there is one.
            progress: listens to every stage.

        Returns:
            `output`, `map`, `images`, `unreadable`, `dimensions`, and `probe`: scores of nearest neighbours and of a
            linear probe with 95 % intervals, or None without labels.

        Raises:
            HemafastError: something named is missing or does not fit, or umap-learn is not installed.
        """
        from hemafast.deploy.plan import Options
        from hemafast.report.embedding import Named, embed_to

        named = Named(
            labels=labels,
            columns=columns,
            groups=None if groups is None else Path(groups),
            class_map=parse_class_map(class_map),
        )
        options = Options(um_per_pixel=um_per_pixel, bit_depth=bit_depth, device=device)
        drawn = None if page is None else Path(page)
        return embed_to(Path(output), self.folder, images, named, options, page=drawn, progress=progress).to_plain()

    def report(self, *others: TrainedRun | str | Path, output: str | Path | None = None) -> Path:
        """Write the page of this run, or one that compares it with others on the same images, with paired intervals.

        Args:
            others: evaluated runs, or their folders.
            output: the page; needed for several runs, and None for `report.html` in the run.

        Raises:
            HemafastError: a run is not evaluated, runs are about different images, or the page cannot be written.
        """
        from hemafast.report.page import write_report

        folders = [find_run(one) for one in (self, *others)]
        return write_report(folders, None if output is None else Path(output))

    def evaluate(
        self,
        data: Dataset | str | Path | None = None,
        *,
        split: ScoredSplit = "val",
        class_map: Mapping[str, str] | str | Path | None = None,
        device: Device | None = None,
        progress: Progress = SILENT,
    ) -> Mapping[str, Any]:
        """Score the best model and write metrics, predictions and report.

        Args:
            data: another prepared data set, whose scores go into a folder of their own; None for the run's own. Classes
                of equal names are compared; images of a class that the model lacks are left out.
            split: "val", or "test" for images that training never saw, or "all" images of other data; scores of the
                latter two go into a folder of their own. Each look at test images is counted beside the data set:
                `look` says which one this is.
            class_map: new names for classes of the model, of the data or of both, which merges those of one name: a
                mapping, "FROM=TO,FROM=TO", or a table with the columns from and to. An empty name leaves the images of
                a class out. Scores with a class map go into a folder of their own.
            device: where the model runs; None for the run's own choice.
            progress: listens to what is done.

        Returns:
            The scores, as `metrics.json` holds them.

        Raises:
            HemafastError: the data has no such split, or classes that the model has under other names; the class map
                names an unknown class; or the run's own data has changed.
        """
        from hemafast.evaluate.evaluate import evaluate_run, scores_folder
        from hemafast.progress import stage
        from hemafast.report.page import write_report

        folder = None if data is None else Path(_data_settings(data)["data"])
        chosen, renamed = device or read_config(self.folder).device, parse_class_map(class_map)
        metrics = evaluate_run(
            self.folder, data=folder, split=split, class_map=renamed, device=chosen, progress=progress
        )
        with stage(progress, "writing the page"):
            write_report(scores_folder(self.folder, metrics))
        return metrics
