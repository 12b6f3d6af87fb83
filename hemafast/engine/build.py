"""Build a run: from the plan to loaders, learner and schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from hemafast.config import to_plain, views_of
from hemafast.data.loader import eval_loader, train_loader
from hemafast.engine.distributed import World
from hemafast.engine.duration import duration_of
from hemafast.engine.learner import Learner, build_learner
from hemafast.engine.plan import Plan
from hemafast.engine.run import Run
from hemafast.engine.schedule import build_schedule
from hemafast.engine.task import task_of
from hemafast.engine.teacher import open_teacher
from hemafast.objective import lineage_term
from hemafast.preparation.split import TRAIN
from hemafast.presets import thawed
from hemafast.weights import are_random


def build_run(plan: Plan, world: World, saved: dict[str, Any] | None = None, *, restart_epoch: bool = False) -> Run:
    """All objects of a run, new or from the state `saved` in a checkpoint; writes nothing.

    With `restart_epoch`, a saved run trains its epoch again from the start, because its settings have changed.
    """
    if saved is None:
        plan, learner = _new_learner(plan, world)
    else:
        learner = _learner(plan, world, str(saved["started_from"]))
    if learner.teacher is not None:
        plan = replace(plan, warnings=(*plan.warnings, *learner.teacher.warnings))
    settings, graph = plan.settings, plan.graph
    batches = train_loader(
        plan.train,
        policy=plan.policy,
        seed=settings.seed,
        shape=graph,
        sampler="natural" if settings.probe else settings.sampler,  # a probe weighs each image instead
        process=world.process,
        views=views_of(settings),
    )
    updates = -(-len(batches) // settings.accumulate)
    duration = duration_of(settings, updates)
    run = Run(
        plan=plan,
        world=world,
        learner=learner,
        updates=updates,
        duration=duration,
        schedule=build_schedule(settings.schedule, settings.lr, duration.ticks, settings.warmup),
        train_batches=batches,
        val_batches=eval_loader(plan.val, shape=graph, process=world.process),
        task=task_of(plan, world.process),
    )
    if saved is None:
        run.resize(run.image_size)
    else:
        run.load_state_dict(saved, restart_epoch=restart_epoch)
    return run


def _new_learner(plan: Plan, world: World) -> tuple[Plan, Learner]:
    """A learner with its first weights. If these are random, the plan that trains all of them."""
    learner = _learner(plan, world, None)
    origin = world.broadcast(learner.started_from)
    changes = thawed(plan.settings.preset, to_plain(plan.settings)) if are_random(origin) else {}
    if not changes:
        return plan, learner
    said = f"all layers are trained: {plan.settings.preset} freezes some, but the weights are random"
    plan = replace(plan, settings=replace(plan.settings, **changes), warnings=(*plan.warnings, said))
    return plan, _learner(plan, world, origin)  # the same random weights, by the same seed


def _learner(plan: Plan, world: World, started_from: str | None) -> Learner:
    torch.manual_seed(plan.settings.seed)
    return build_learner(
        plan.settings,
        plan.machine,
        plan.dataset.counts(TRAIN),
        batch_size=plan.graph.batch_size * views_of(plan.settings),
        world=world,
        started_from=started_from,
        lineage=lineage_term(
            plan.lineage,
            plan.dataset.info.classes,
            weight=plan.settings.lineage_weight,
            temperature=plan.settings.stage_temperature,
        ),
        teacher=open_teacher(plan.settings, plan.dataset, plan.machine),
    )
