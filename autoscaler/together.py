"""Several models on replicas that do not suffice for all, on virtual time: simulate.py's runs, in step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from autoscaler.simulate import Faults, Outcome, Requests, Run, Starts, View, Workload

if TYPE_CHECKING:
    from numpy.random import Generator

Divider = Callable[[list[View]], list[int]]
"""Says how many replicas each model should have."""


def simulate_together(
    workloads: Sequence[Workload],
    requests: Sequence[Requests],
    divider: Divider,
    starts: Starts,
    rng: Generator,
    *,
    first: Sequence[int],
    quota: int,
) -> list[Outcome]:
    """Several models, of equally long traces, on `quota` replicas; draining ones occupy theirs until they are done.

    What the divider gives beyond the room there is waits for room, the first model first. ValueError where `first`
    needs more than the quota.
    """
    if sum(first) > quota:
        raise ValueError(f"first: {sum(first)} replicas on a quota of {quota}; begin with fewer")
    runs = [
        Run(workload, drawn, starts, rng, count, 0, quota, Faults(), None)
        for workload, drawn, count in zip(workloads, requests, first, strict=True)
    ]
    steps = [run.steps() for run in runs]
    views = [next(step) for step in steps]
    outcomes: list[Outcome] = []
    while not outcomes:
        supplies = [view.supply for view in views]
        room = quota - sum(supply.ready + supply.starting + supply.draining for supply in supplies)
        coming: list[View] = []
        for step, given, supply in zip(steps, divider(views), supplies, strict=True):
            there = supply.ready + supply.starting
            more = max(0, given - there - supply.draining)
            counted = given - max(0, more - room)
            room -= min(more, room)
            try:
                coming.append(step.send(counted))
            except StopIteration as over:
                outcomes.append(over.value)
        views = coming
    return outcomes
