"""The policy as a scaler of the simulator: the code that runs in the loop, on virtual time."""

from __future__ import annotations

from autoscaler.policy import recommend
from autoscaler.simulate import View
from autoscaler.state import State
from autoscaler.types import Recommendation, ScalingPolicy


class Ours:
    """`recommend`, called every second. `last` is the latest recommendation."""

    def __init__(self, policy: ScalingPolicy, expected_ready_s: float | None = None, phase: float = 0.0) -> None:
        self.policy, self._expected_ready_s, self._phase = policy, expected_ready_s, phase
        self.state = State.initial(0.0, phase)
        self.last: Recommendation | None = None

    def __call__(self, view: View) -> int:
        supply = view.supply
        if self._expected_ready_s is not None or self.boost() != 1.0:
            supply = type(supply)(supply.ready, supply.starting, supply.draining, self._expected_ready_s, self.boost())
        self.last, self.state = recommend(self.policy, supply, view.sample, self.state, view.now)
        return self.last.replicas

    def boost(self) -> float:
        """How many times its slice each replica has now."""
        return self.last.boost if self.last else 1.0

    def restart(self, now: float) -> None:
        """All is forgotten."""
        self.state, self.last = State.initial(now, self._phase), None
