"""One record across the whole loop: demand seen, count wanted, placement chosen, alternatives rejected."""

from __future__ import annotations

from dataclasses import dataclass

from autoscaler.types import Recommendation
from packer.inventory import Placement
from tangram.core import convert
from tangram.core.plans import Action, Drain, Plan, Repartition, Resize, Start, Stop, Undrain


@dataclass(frozen=True, slots=True)
class Decision:
    """One turn of the loop for one model."""

    at: float
    model: str
    recommendation: Recommendation
    desired: int
    """The count that is acted on: the recommended one, except in advisory mode."""
    granted: int
    """Replicas that are there or were started for it: what is desired less what found no place."""
    actions: tuple[str, ...] = ()
    """In words, in order."""
    placements: tuple[Placement, ...] = ()
    """Of the replicas started in this turn."""
    refused: tuple[str, ...] = ()
    """Why replicas that were wanted found no place."""
    shared: str = ""
    """What it was granted of a fleet that cannot hold all that is wanted, where that is less than it wants."""
    waiting: str = ""
    """Why nothing is started at present though more is wanted and there may be room."""

    @property
    def eventful(self) -> bool:
        """Whether something was done."""
        return bool(self.actions)


def decide(at: float, model: str, recommendation: Recommendation, desired: int, plan: Plan, live: int) -> Decision:
    """The record of one model's turn; `live` is its count of live replicas after the plan."""
    actions = [a for a in plan.actions if _model_of(a) == model]
    refused = [str(r) for r in plan.refusals.get(model, ())]
    counted = [
        f"{text} ({refused.count(text)} replicas)" if refused.count(text) > 1 else text
        for text in dict.fromkeys(refused)
    ]
    return Decision(
        at=at,
        model=model,
        recommendation=recommendation,
        desired=desired,
        granted=min(live, desired),
        actions=tuple(map(in_words, actions)),
        placements=tuple(a.replica.placement for a in actions if isinstance(a, Start) and not a.again),
        refused=tuple(counted),
        shared=str(plan.shortage(model) or ""),
        waiting=plan.waiting.get(model, ""),
    )


def in_words(action: Action) -> str:
    """The action as a person would say it."""
    match action:
        case Start(replica=replica, why=why):
            return f"start {replica.name} on {convert.in_words(replica.placement)}: {why}"
        case Drain(replica=name, why=why):
            return f"drain {name}: {why}"
        case Undrain(replica=name, why=why):
            return f"undrain {name}: {why}"
        case Stop(replica=name, why=why):
            return f"stop {name}: {why}"
        case Resize(replica=name, why=why):
            return f"resize {name}: {why}"
        case Repartition(device=device, why=why):
            return f"repartition {device}: {why}"


def _model_of(action: Action) -> str:
    return action.replica.model if isinstance(action, Start) else action.model
