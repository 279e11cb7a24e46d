"""Tangram's own behavior where the operator gives none. docs/autoscaling.md says why these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autoscaler.types import Behavior, RatePolicy, Rules

UP = Rules(
    stabilization_s=0.0,
    select="Max",
    policies=(RatePolicy("Percent", 100, 5.0), RatePolicy("Pods", 4, 5.0)),
    tolerance=0.1,
)
DOWN = Rules(stabilization_s=60.0, select="Max", policies=(RatePolicy("Percent", 100, 15.0),), tolerance=0.1)


@dataclass(frozen=True, slots=True)
class RulesSpec:
    """One direction as far as the operator gave it; None (and no policies at all) takes the default."""

    stabilization_s: float | None = None
    select: Literal["Max", "Min", "Disabled"] | None = None
    policies: tuple[RatePolicy, ...] | None = None
    tolerance: float | None = None


def behavior(up: RulesSpec = RulesSpec(), down: RulesSpec = RulesSpec()) -> Behavior:
    """Both directions with the defaults filled in."""
    return Behavior(_filled(up, UP), _filled(down, DOWN))


def _filled(given: RulesSpec, default: Rules) -> Rules:
    return Rules(
        stabilization_s=default.stabilization_s if given.stabilization_s is None else given.stabilization_s,
        select=given.select or default.select,
        policies=given.policies or default.policies,
        tolerance=default.tolerance if given.tolerance is None else given.tolerance,
    )
