"""The rollouts' part of a turn: what the replicas of new revisions do, and what follows from it."""

from __future__ import annotations

import logging

from autoscaler.quota import Claim
from tangram.control.state import ControllerState, ModelState
from tangram.control.store import Store
from tangram.control.views import EventView
from tangram.core import plans, rollout
from tangram.core.replica import Phase
from tangram.core.rollout import Rollout, Seen, Stage

log = logging.getLogger("tangram.rollouts")


def seen(state: ControllerState, entry: ModelState, running: Rollout) -> Seen:
    """What the replicas of both revisions do now."""
    replicas = state.of_model(entry.model.name)
    new = [r for r in replicas if r.revision == running.revision]
    requests, failures = state.outcomes.of([r.name for r in new])
    return Seen(
        count=entry.wanted or 0,
        new_ready=sum(r.phase is Phase.READY for r in new),
        old_live=sum(r.live for r in replicas if r.revision != running.revision),
        requests=requests,
        failures=failures,
    )


def advance(state: ControllerState, store: Store, now: float) -> None:
    """Carry every active rollout on; one that failed puts the former document in force again."""
    state.outcomes.retain(state.replicas.keys())
    for name, entry in state.models.items():
        running = entry.rollout
        if running is None or not running.active or entry.recommendation is None:
            continue
        spec = entry.model.spec
        deadline_s = spec.runtime.progress_deadline_seconds
        after = rollout.advance(running, spec.rollout, deadline_s, seen(state, entry, running), now)
        if after == running:
            continue
        entry.rollout = after
        told = _told(running, after, len(spec.rollout.canary))
        with store.transaction():
            store.put_rollout(name, after)
            if after.stage is Stage.ROLLED_BACK:
                _roll_back(entry, store, after, now)
            if told:
                store.add_event(EventView(at=now, model=name, reason="Rollout", message=told))
        if told:
            log.info("%s: %s", name, told)


def desired(entry: ModelState, claim: Claim | None) -> plans.Desired | None:
    """What the planner is asked for; None before anything is recommended."""
    if entry.recommendation is None or entry.wanted is None:
        return None
    count, running, terms = entry.wanted, entry.rollout, entry.model.spec.rollout
    canary, stable = 0, None
    if running is not None and running.revision == entry.model.revision:
        canary = rollout.canary_count(running, terms, count)
        stable = entry.revisions.get(running.former) if canary else None
    boost = 1.0 if entry.recommendation.advisory else entry.recommendation.boost
    because = "advisory" if entry.recommendation.advisory else entry.recommendation.signal
    return plans.Desired(entry.model, count, because, canary, stable, boost, claim)


def _roll_back(entry: ModelState, store: Store, ended: Rollout, now: float) -> None:
    former = entry.revisions.get(ended.former)
    if former is None:
        return
    entry.model = rollout.restored(entry.model, former)
    entry.attempts, entry.changed = plans.Attempts(), True
    store.fail_revision(entry.model.name, ended.revision, ended.message)
    store.put_model(entry.model, now)
    store.put_revision(entry.model, now)


def _told(before: Rollout, after: Rollout, steps: int) -> str:
    if after.stage is Stage.ROLLED_BACK:
        return f"rolled back to revision {after.former}: {after.message}"
    if after.stage is Stage.COMPLETE:
        return f"revision {after.revision} is in"
    if (after.stage, after.step) != (before.stage, before.step):
        if after.stage is Stage.ROLLING:
            return f"all replicas are replaced by revision {after.revision}"
        return f"canary step {after.step + 1} of {steps}"
    return after.message if after.message != before.message else ""
