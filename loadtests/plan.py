"""What the stepped load asks for, as plain data: shared by the Locust side and by the side that watches.

Rates are in units of replicas: a step of `n` replicas is a rate that `n` replicas can just serve and `n - 1` cannot,
so the count that must follow is known beforehand: ceil(rate / targetQPS).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Replicas that the stepped model should need, step by step.
UNITS: Final = (1, 3, 5, 2, 1)
STEP_SECONDS: Final = 24.0
#: Part of a replica left idle in each step, so that a rate a little off does not change the count that is right.
SLACK: Final = 0.4
USERS_PER_REPLICA: Final = 10


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of constant load."""

    start: float
    """Seconds since the load began."""
    end: float
    users: int
    """Users of the stepped model; each sends `user_rate` requests per second."""
    rate: float
    """Requests per second of all of them."""
    replicas: int
    """ceil(rate / targetQPS)."""


def user_rate(target_qps: float) -> float:
    """Requests per second of one user of the stepped model."""
    return target_qps / USERS_PER_REPLICA


def steps(target_qps: float, max_replicas: int, units: Sequence[int] = UNITS) -> tuple[Step, ...]:
    """The load against a model of this target, never more than `max_replicas` can serve."""
    planned = []
    for index, unit in enumerate(units):
        users = round((min(unit, max_replicas) - SLACK) * USERS_PER_REPLICA)
        rate = users * user_rate(target_qps)
        planned.append(
            Step(
                start=index * STEP_SECONDS,
                end=(index + 1) * STEP_SECONDS,
                users=users,
                rate=rate,
                replicas=math.ceil(rate / target_qps),
            )
        )
    return tuple(planned)


def step_at(planned: Sequence[Step], elapsed: float) -> int | None:
    """Index of the step that `elapsed` seconds fall into; None after the last."""
    return next((i for i, step in enumerate(planned) if elapsed < step.end), None)
