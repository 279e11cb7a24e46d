"""What the gateway is told of each model: its settings, its usable replicas, and why there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from gateway.wire import ModelEntry
from packer.inventory import NoFit
from tangram.control.state import ControllerState, ModelState
from tangram.core import convert, plans, rollout
from tangram.core.replica import Phase

#: Crashed replicas that start again sooner than this are as good as starting.
SOON_S: Final = 1.0


def table(state: ControllerState, outcome: plans.Plan, now: float) -> Mapping[str, ModelEntry]:
    """Every model's entry after a plan."""
    at = datetime.fromtimestamp(now, UTC)
    state.give_slots()
    return {
        name: convert.model_entry(
            entry.model,
            state.of_model(name),
            expected_ready_s=_expected_ready(state, entry, now),
            unavailable=_unavailable(state, entry, outcome, now),
            canary_percent=rollout.canary_percent(entry.rollout, entry.model.spec.rollout),
            max_replicas=convert.replica_bounds(entry.model, at)[1],
            slot=entry.slot or 0,
        )
        for name, entry in state.models.items()
    }


def _expected_ready(state: ControllerState, entry: ModelState, now: float) -> float | None:
    whole = entry.expected_start_s
    starting = [r for r in state.of_model(entry.model.name) if r.phase is Phase.STARTING]
    if whole is None or not starting:
        return None
    return max(0.1, min(whole - (now - (r.started_at or r.since)) for r in starting))


def _unavailable(state: ControllerState, entry: ModelState, outcome: plans.Plan, now: float) -> str | None:
    name = entry.model.name
    if state.count(name, Phase.READY, Phase.STARTING):
        return None
    if entry.recommendation is not None and entry.recommendation.advisory and not entry.wanted:
        return f"advisory mode keeps it at zero; `tangram set {name} --replicas 1` starts it"
    refusals: Sequence[NoFit] = outcome.refusals.get(name, ())
    if refusals:
        return f"no room: {refusals[0]}"
    if waiting := outcome.waiting.get(name):
        return waiting
    crashed = [r for r in state.of_model(name) if r.phase is Phase.CRASHED]
    if crashed and all((r.retry_at or now) - now > SOON_S for r in crashed):
        return f"replicas crash: {crashed[0].message}"
    return None
