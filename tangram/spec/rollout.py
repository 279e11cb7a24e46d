"""How a changed model comes in."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from tangram.spec.base import Doc, Positive


class CanaryStep(Doc):
    percent: Annotated[int, Field(ge=1, le=99)]
    """Of the requests that go to the new revision."""
    seconds: Positive = 60.0
    """For how long, once its replicas are ready."""


class Rollout(Doc):
    """How a changed runtime, slice or resources come in."""

    canary: tuple[CanaryStep, ...] = ()
    """Steps before the replicas are replaced; none: they are replaced at once, one after the other."""
    max_error_percent: Annotated[float, Field(ge=0, le=100)] | None = None
    """More failures than this among the requests sent to the new revision end the rollout."""
    min_requests: Annotated[int, Field(ge=1)] = 20
    """Requests to the new revision before its errors are judged."""
    automatic_rollback: bool = True
    """Go back to the former revision on too many errors, or past the runtime's progress deadline."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        percents = [step.percent for step in self.canary]
        if percents != sorted(set(percents)):
            raise ValueError(
                f"canary has percents {percents}; each step gives the new revision more than the one before"
            )
        return self
