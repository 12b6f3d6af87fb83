"""Build a run: from the plan to loaders, learner and schedule."""

from __future__ import annotations

from typing import Any

import torch

from hemafast.data.loader import eval_loader, train_loader
from hemafast.engine.distributed import World
from hemafast.engine.duration import duration_of
from hemafast.engine.learner import build_learner
from hemafast.engine.plan import Plan
from hemafast.engine.run import Run
from hemafast.engine.schedule import build_schedule
from hemafast.objective import lineage_term
from hemafast.preparation.split import TRAIN


def build_run(plan: Plan, world: World, saved: dict[str, Any] | None = None, *, restart_epoch: bool = False) -> Run:
    """All objects of a run, new or from the state `saved` in a checkpoint; writes nothing.

    With `restart_epoch`, a saved run trains its epoch again from the start, because its settings have changed.
    """
    settings, graph = plan.settings, plan.graph
    torch.manual_seed(settings.seed)
    learner = build_learner(
        settings,
        plan.machine,
        plan.dataset.counts(TRAIN),
        batch_size=graph.batch_size,
        world=world,
        started_from=None if saved is None else str(saved["started_from"]),
        lineage=lineage_term(
            plan.lineage,
            plan.dataset.info.classes,
            weight=settings.lineage_weight,
            temperature=settings.stage_temperature,
        ),
    )
    batches = train_loader(
        plan.train,
        policy=plan.policy,
        seed=settings.seed,
        shape=graph,
        sampler=settings.sampler,
        process=world.process,
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
    )
    if saved is None:
        run.resize(run.image_size)
    else:
        run.load_state_dict(saved, restart_epoch=restart_epoch)
    return run
