"""A fleet on virtual time, for tests of the planner."""

from __future__ import annotations

from typing import Any

from packer.inventory import Inventory
from packer.verify import verify
from tangram.core.planner import ledger_of, plan
from tangram.core.plans import Attempts, Desired, Observed, Plan, Start, apply
from tangram.core.replica import Observation, Phase, Replica, observe
from tangram.spec import Model


class World:
    """A fleet with a clock, in which processes do at once what they are told."""

    def __init__(self, fleet: Inventory, *models: Model) -> None:
        self.fleet = fleet
        self.models = {m.name: m for m in models}
        self.counts: dict[str, int] = {}
        self.replicas: tuple[Replica, ...] = ()
        self.attempts: dict[str, Attempts] = {}
        self.ordinals: dict[str, int] = {}
        self.drained: set[str] = set()
        self.now = 1000.0
        self.last = Plan()
        self.stable: Model | None = None
        self.canary = 0

    def step(self, seconds: float = 0.0, **counts: int) -> list[Any]:
        """Let time pass, plan, and apply; returns the actions."""
        self.now += seconds
        self.counts.update(counts)
        observed = Observed(self.replicas, frozenset(self.drained), self.attempts, self.ordinals)
        held = {"canary": self.canary, "stable": self.stable}
        desired = {n: Desired(m, self.counts.get(n, 0), **held) for n, m in self.models.items()}
        self.last = plan(observed, desired, ledger_of(self.fleet, self.replicas), self.now)
        self.attempts.update(self.last.attempts)
        for action in self.last.actions:
            if isinstance(action, Start) and not action.again:
                model, _, number = action.replica.name.rpartition("-")
                self.ordinals[model] = max(self.ordinals.get(model, 1), int(number) + 1)
        self.replicas = apply(self.replicas, self.last.actions, self.now)
        assert verify(ledger_of(self.fleet, self.replicas).inventory()) == []
        return list(self.last.actions)

    def see(self, name: str, **seen: Any) -> None:
        """Something is observed of one replica's process."""
        found = Observation(**{"alive": True, "pid": 1, "started_at": self.now, **seen})
        after, _ = observe(self[name], found, self.now)
        self.replicas = tuple(r for r in self.replicas if r.name != name) + ((after,) if after else ())

    def ready(self, *names: str) -> None:
        for name in names or [r.name for r in self.replicas if r.phase is Phase.STARTING]:
            self.see(name, ready=True)

    def gone(self) -> None:
        """What is being stopped has ended."""
        for replica in self.replicas:
            if replica.phase is Phase.STOPPING:
                self.see(replica.name, alive=False)

    def __getitem__(self, name: str) -> Replica:
        return next(r for r in self.replicas if r.name == name)

    def phases(self) -> dict[str, str]:
        return {r.name: r.phase.name for r in sorted(self.replicas, key=lambda r: r.name)}


def kinds(actions: list[Any]) -> list[str]:
    return [type(a).__name__ + " " + (a.replica.name if isinstance(a, Start) else a.replica) for a in actions]
