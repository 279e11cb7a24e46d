"""How a Model's new revision comes in: step by step, watched, and back again where it does no good.

    apply -> CANARY -> ROLLING -> COMPLETE
               |          |
               |          |---> ROLLED_BACK   the progress deadline, or more errors than the spec allows
               '----------'---> CANCELLED     the former revision was applied again, or `rollout undo`

CANARY: for each step of the spec so many percent of the requests go to replicas of the new revision, as many replicas
as that share wants; all replicas of the former revision stay. A step's time runs while its replicas are ready. A model
without steps, or without replicas of the former revision, begins with ROLLING: the planner replaces one replica after
the other. COMPLETE: only replicas of the new revision are left, and one of them has been ready.

The progress deadline is the runtime's. It runs while replicas of the new revision are wanted and lacking, and begins
anew with each one that becomes ready. Errors are those of the new revision's replicas since they were started.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from tangram.spec import Model
from tangram.spec import Rollout as Terms


class Stage(StrEnum):
    CANARY = "Canary"
    ROLLING = "Rolling"
    COMPLETE = "Complete"
    ROLLED_BACK = "RolledBack"
    CANCELLED = "Cancelled"


@dataclass(frozen=True, slots=True)
class Rollout:
    """One change of revision. Times are Unix seconds."""

    revision: str
    former: str
    stage: Stage
    began_at: float
    progress_at: float
    """Start of the wait that the progress deadline bounds."""
    step: int = 0
    step_since: float | None = None
    """Since when the step's replicas have been ready."""
    ready: int = 0
    """Most replicas of the new revision that were ready at a time."""
    message: str = ""

    @property
    def active(self) -> bool:
        """Whether it is still to end."""
        return self.stage in (Stage.CANARY, Stage.ROLLING)


@dataclass(frozen=True, slots=True)
class Seen:
    """The replicas and their answers at one moment."""

    count: int
    """Replicas wanted."""
    new_ready: int
    old_live: int
    requests: int = 0
    """Sent to replicas of the new revision."""
    failures: int = 0
    """Of those: refused, cut, timed out or answered with 5xx."""


def follow(current: Rollout | None, before: str, after: str, terms: Terms, now: float, *, direct: bool) -> Rollout:
    """The rollout after revision `after` was applied where `before` was in force; `direct` leaves out the canary."""
    former = before
    if current is not None and current.active:
        if after == current.former:
            return replace(current, stage=Stage.CANCELLED, message="the former revision was applied again")
        former = current.former
    stage = Stage.CANARY if terms.canary and not direct else Stage.ROLLING
    return Rollout(after, former, stage, began_at=now, progress_at=now)


def advance(rollout: Rollout, terms: Terms, deadline_s: float, seen: Seen, now: float) -> Rollout:
    """The rollout after what is seen now."""
    if not rollout.active:
        return rollout
    share = 100 * seen.failures / seen.requests if seen.requests else 0.0
    limit = terms.max_error_percent
    if limit is not None and seen.requests >= terms.min_requests and share > limit:
        why = (
            f"{seen.failures} of {seen.requests} requests to revision {rollout.revision} failed; "
            f"maxErrorPercent is {limit:g}"
        )
        return _fail(rollout, terms, why)
    if rollout.stage is Stage.CANARY and (not seen.old_live or rollout.step >= len(terms.canary)):
        rollout = replace(rollout, stage=Stage.ROLLING, step_since=None)
    wanted = canary_count(rollout, terms, seen.count) if rollout.stage is Stage.CANARY else seen.count
    if seen.new_ready > rollout.ready:
        rollout = replace(rollout, ready=seen.new_ready, progress_at=now)
    if seen.new_ready >= wanted:
        rollout = replace(rollout, progress_at=now, message="" if wanted else "waits for the first request")
    elif now - rollout.progress_at >= deadline_s:
        why = f"{seen.new_ready} of {wanted} replicas of revision {rollout.revision} ready after {deadline_s:g} s"
        return _fail(rollout, terms, why)
    if rollout.stage is Stage.CANARY:
        return _hold(rollout, terms, wanted, seen, now)
    if not seen.old_live and seen.new_ready and seen.new_ready >= seen.count:
        return replace(rollout, stage=Stage.COMPLETE, message="")
    return rollout


def canary_count(rollout: Rollout, terms: Terms, count: int) -> int:
    """Replicas of the new revision that the present step wants."""
    if rollout.stage is not Stage.CANARY or not count or rollout.step >= len(terms.canary):
        return 0
    return max(1, math.ceil(count * terms.canary[rollout.step].percent / 100))


def canary_percent(rollout: Rollout | None, terms: Terms) -> int | None:
    """Percent of the requests for the new revision; None where there is no canary."""
    if rollout is None or rollout.stage is not Stage.CANARY or rollout.step >= len(terms.canary):
        return None
    return terms.canary[rollout.step].percent


def restored(current: Model, former: Model) -> Model:
    """The model with the process of the former document; how it scales and takes traffic stays as it is."""
    spec = former.spec
    update = {"runtime": spec.runtime, "resources": spec.resources, "slice": spec.slice}
    return current.model_copy(update={"spec": current.spec.model_copy(update=update)})


def _hold(rollout: Rollout, terms: Terms, wanted: int, seen: Seen, now: float) -> Rollout:
    if seen.new_ready < wanted or not wanted:
        return replace(rollout, step_since=None)
    since = now if rollout.step_since is None else rollout.step_since
    if now - since < terms.canary[rollout.step].seconds:
        return replace(rollout, step_since=since)
    step = rollout.step + 1
    stage = Stage.CANARY if step < len(terms.canary) else Stage.ROLLING
    return replace(rollout, stage=stage, step=step, step_since=None, progress_at=now)


def _fail(rollout: Rollout, terms: Terms, why: str) -> Rollout:
    return replace(rollout, stage=Stage.ROLLED_BACK if terms.automatic_rollback else rollout.stage, message=why)
