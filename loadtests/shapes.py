"""The load of `make load`: steps against the digits model, a trickle to the others; figures in `plan.py`."""

from __future__ import annotations

import json
import time

from locust import LoadTestShape

from loadtests import plan

_SPAWN_RATE = 100.0


class Steps(LoadTestShape):
    """Two minutes; each step's beginning is written to the file of `--events`."""

    def __init__(self) -> None:
        super().__init__()
        self._step: int | None = None

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        planned = plan.steps(options.target_qps, options.peak_replicas)
        step = plan.step_at(planned, self.get_run_time())
        if step is None:
            return None
        if step != self._step:
            self._step = step
            if options.events:
                with open(options.events, "a", encoding="utf-8") as file:  # noqa: PTH123
                    file.write(json.dumps({"event": "step", "step": step, "at": time.time()}) + "\n")
        steady = sum(user.fixed_count for user in self.runner.user_classes)
        return planned[step].users + steady, _SPAWN_RATE
