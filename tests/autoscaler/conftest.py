"""Virtual time for the autoscaler: a model whose recommendations are carried out, so that tests read as timelines."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from autoscaler.defaults import behavior
from autoscaler.policy import recommend
from autoscaler.state import State
from autoscaler.types import Recommendation, Sample, ScalingPolicy, Supply


def _policy(**changes: Any) -> ScalingPolicy:
    base = ScalingPolicy(
        min_replicas=1,
        max_replicas=20,
        target_qps=20.0,
        mode="honour",
        metrics=(),
        behavior=behavior(),
        idle_s=30.0,
        concurrency_limit=32,
    )
    return replace(base, **changes)


@dataclass
class Timeline:
    """One model. `run` and `tick` advance a clock a second at a time and do at once what is recommended.

    Each replica serves `capacity` requests a second, a request takes `service_s`, what exceeds it queues.
    """

    policy: ScalingPolicy
    ready: int = 1
    cold_start_s: float = 0.0
    capacity: float = 1e9
    service_s: float = 0.1
    rng: random.Random | None = None
    now: float = 1000.0
    state: State = field(init=False)
    starting: list[float] = field(default_factory=list)
    """When each starting replica becomes ready."""
    queue: float = 0.0
    counts: list[int] = field(default_factory=list)
    last: Recommendation = field(init=False)
    _carry: float = 0.0

    def __post_init__(self) -> None:
        self.state = State.initial(self.now)

    @property
    def count(self) -> int:
        return self.ready + len(self.starting)

    def call(self, sample: Sample) -> Recommendation:
        """One recommendation now, carried out at once."""
        supply = Supply(self.ready, len(self.starting), 0)
        self.last, self.state = recommend(self.policy, supply, sample, self.state, self.now)
        more = self.last.replicas - self.count
        self.starting += [self.now + self.cold_start_s] * max(0, more)
        for _ in range(-more):
            if self.starting:
                self.starting.pop()
            else:
                self.ready -= 1
        self.counts.append(self.last.replicas)
        self._start()
        return self.last

    def tick(self, qps: float = 0.0, cpu_work: float | None = None, **parts: Any) -> Recommendation:
        """A second passes with `qps` arriving and `cpu_work` percent shared by the ready replicas.

        `parts` replace what the sample would show.
        """
        self.now += 1.0
        self._start()
        arrivals = self._arrivals(qps)
        work = self.queue + arrivals
        done = min(work, self.ready * self.capacity)
        self.queue = work - done
        sample = Sample(
            dt=1.0,
            arrivals=arrivals,
            completions=round(done),
            in_flight=done * self.service_s,
            queued=self.queue,
            queued_now=round(self.queue),
            wake=arrivals > 0 and self.count == 0,
            cpu=() if cpu_work is None else (min(100.0, cpu_work / max(1, self.ready)),) * self.ready,
        )
        return self.call(replace(sample, **parts))

    def run(self, seconds: int, qps: float = 0.0, **parts: Any) -> list[int]:
        """The counts recommended in each of `seconds`."""
        return [self.tick(qps, **parts).replicas for _ in range(seconds)]

    def _start(self) -> None:
        up = [at for at in self.starting if at <= self.now]
        self.ready += len(up)
        self.starting = [at for at in self.starting if at > self.now]

    def _arrivals(self, qps: float) -> int:
        if self.rng is not None:
            left, count = self.rng.expovariate(1.0), 0
            while left < qps:
                count += 1
                left += self.rng.expovariate(1.0)
            return count
        self._carry += qps
        whole = int(self._carry + 1e-9)
        self._carry -= whole
        return whole


@pytest.fixture
def policy() -> Callable[..., ScalingPolicy]:
    """Makes a policy: 1 to 20 replicas at 20 requests a second, or as changed."""
    return _policy


@pytest.fixture
def timeline() -> Callable[..., Timeline]:
    """Makes a Timeline; `policy` fields may be given too."""

    def make(**given: Any) -> Timeline:
        names = set(ScalingPolicy.__dataclass_fields__)
        wanted = {k: v for k, v in given.items() if k in names}
        return Timeline(_policy(**wanted), **{k: v for k, v in given.items() if k not in names})

    return make
